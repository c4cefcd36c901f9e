"""Calibration written into a bundle: what changes, what does not, and what is refused."""

import json
import shutil

import numpy as np
import pytest

from safelens.bundle import Bundle, BundleError, write_bundle
from safelens.calibrate import Screening
from safelens.calibrated_bundle import Calibration, Measured, write_calibration
from safelens.policy import Policy
from safelens.reliability import ece, reliability
from safelens.risk import control_class_risk, control_risk
from safelens.tradeoff import operating_points, tau_for_cost

LABELS = Policy.load("default").labels


@pytest.fixture
def bundle(tmp_path):
    """A bundle of text files; loading one runs no model."""
    folder = tmp_path / "b"
    for name in ("model/config.json", "captioner/config.json"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("{}")
    (folder / "policy.yaml").write_text(Policy.load("default").to_yaml())
    (folder / "probe").mkdir()
    (folder / "probe" / "probe.json").write_text(json.dumps({"labels": LABELS}))
    (folder / "card.md").write_text("# b 1\n\nS1's answer stands from a confidence of 0.9 on.\n")
    screen = {"model": "model", "probe": "probe", "temperature": 2.0}
    settings = {"name": "b", "version": "1", "knows": "drawings", "screen": screen}
    write_bundle(folder, settings | {"deliberate": {"captioner": "captioner"}})
    return folder


def answers():
    n = 400
    confidence = np.linspace(1, 0.5, n)
    right = np.arange(n) % 100 != 99
    return Screening(confidence, np.zeros(n, int), right, np.ones(n, bool))


def result(bundle, method="risk", **fields):
    s = answers()
    if method == "risk":
        evidence = control_risk(s, alpha=0.05, delta=0.05)
    elif method == "class_risk":
        evidence = control_class_risk(s, LABELS, alpha=0.05, delta=0.05)
    else:
        points = operating_points(s, s.right, s1_cost=1, s2_cost=9)
        evidence = tau_for_cost(points, most=0.5)
    bins = reliability(s.confidence, s.right)
    measured = Measured(answers=97, alone=50, wrong=1, risk=0.02, ece=0.2)
    values = {
        "bundle_sha256": Bundle.load(bundle).sha256,
        "data_sha256": "ab" * 32,
        "seed": 0,
        "counts": {"temperature": 100, "tau": 400, "test": 100},
        "left_out": {"unfamiliar": 3},
        "method": method,
        "target": {"alpha": 0.05, "delta": 0.05},
        "evidence": evidence,
        "temperature": 1.5,
        "before": measured,
        "after": measured.model_copy(update={"ece": ece(bins)}),
        "reliability": bins,
    }
    return Calibration(**(values | fields))


@pytest.mark.parametrize("method", ["risk", "class_risk", "cost"])
def test_a_copy_carries_the_result_and_the_evidence(bundle, tmp_path, method):
    before = {p.relative_to(bundle): p.read_bytes() for p in bundle.rglob("*") if p.is_file()}
    given = result(bundle, method)
    out = tmp_path / "new" / "c"
    digest = write_calibration(bundle, out, given)
    made = Bundle.load(out)
    assert made.sha256 == digest
    s = made.settings
    assert s.thresholds == given.thresholds
    assert s.screen.temperature == 3.0
    assert (s.name, s.knows, s.calibration) == ("b", "drawings", "calibration.json")
    assert Calibration.model_validate_json((out / "calibration.json").read_text()) == given
    if method == "class_risk":
        assert s.taus.keys() == set(LABELS)
        assert sorted(s.taus.values())[1:] == [1.01] * (len(LABELS) - 1)
        assert s.tau == 1.01
    else:
        assert s.tau == given.evidence.tau < 1
    assert {
        p.relative_to(bundle): p.read_bytes() for p in bundle.rglob("*") if p.is_file()
    } == before
    assert [p.name for p in out.parent.iterdir()] == ["c"]
    card = (out / "card.md").read_text()
    assert card.startswith("# b 1\n")
    assert "Temperature 3.0000" in card
    assert "50 of 97 familiar videos alone, 1 of them wrongly" in card
    assert "(reliability.svg)" in card
    assert b"<svg" in (out / "reliability.svg").read_bytes()
    assert ("none, all to S2" in card) == (method == "class_risk")


def test_in_place_only_where_the_bundle_itself_is_named(bundle, tmp_path):
    given = result(bundle)
    other = tmp_path / "other"
    shutil.copytree(bundle, other)
    sha256 = Bundle.load(other).sha256
    with pytest.raises(BundleError, match="exists; name another directory"):
        write_calibration(bundle, other, given)
    assert Bundle.load(other).sha256 == sha256
    write_calibration(bundle, bundle, given)
    assert Bundle.load(bundle).settings.screen.temperature == 3.0
    again = result(bundle, "class_risk", temperature=0.5)
    (tmp_path / "link").symlink_to(bundle)
    write_calibration(bundle, tmp_path / "link", again)
    assert (tmp_path / "link").is_symlink()
    assert Bundle.load(bundle).settings.screen.temperature == 1.5
    assert (bundle / "card.md").read_text().count("## Calibration") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "link", "other"]


def test_the_result_of_another_bundle_is_refused(bundle, tmp_path):
    with pytest.raises(BundleError, match=r"but the calibration is of cdcdcdcdcdcd\.\.\."):
        write_calibration(bundle, tmp_path / "c", result(bundle, bundle_sha256="cd" * 32))
    assert not (tmp_path / "c").exists()


def test_without_a_probe_there_is_no_temperature(bundle, tmp_path):
    shutil.rmtree(bundle / "probe")
    parts = {"screen": {"model": "model"}, "deliberate": {"captioner": "captioner"}}
    write_bundle(bundle, {"name": "b", "version": "1"} | parts)
    with pytest.raises(BundleError, match="without a probe"):
        write_calibration(bundle, tmp_path / "c", result(bundle))
    write_calibration(bundle, tmp_path / "c", result(bundle, temperature=1.0))
    assert Bundle.load(tmp_path / "c").settings.thresholds == result(bundle).thresholds


def test_a_failure_leaves_the_bundle_and_no_rubbish(bundle, tmp_path, monkeypatch):
    given, before = result(bundle), Bundle.load(bundle).sha256

    def full(*_args):
        raise OSError("disk full")

    monkeypatch.setattr("safelens.calibrated_bundle.into_place", full)
    with pytest.raises(BundleError, match="could not be written: disk full"):
        write_calibration(bundle, bundle, given)
    assert Bundle.load(bundle).sha256 == before
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
