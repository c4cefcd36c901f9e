"""The embedded bundle: what the README promises of it, on the samples and on real videos."""

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from safelens.bundle import Bundle
from safelens.cascade import SafeLens
from safelens.cli import app
from safelens.verdict import Verdict

SAMPLES = Path(__file__).parents[1] / "samples"
PLAIN = ("sexual", "abuse", "violence", "misinformation", "illegal", "extreme", "safe")


@pytest.fixture(scope="module")
def lens():
    with SafeLens.load("tiny") as found:
        yield found


@pytest.fixture(scope="module")
def verdicts(lens):
    paths = sorted(SAMPLES.glob("*.mp4"))
    return {p.stem: m.verdict for p, m in zip(paths, lens.moderate_many(paths), strict=True)}


def test_is_small_and_says_what_it_knows():
    bundle = Bundle.load("tiny")
    size = sum(p.stat().st_size for p in bundle.folder.rglob("*") if p.is_file())
    assert size <= 30e6
    assert "SafeWorld" in (bundle.settings.knows or "")
    assert (bundle.folder / "card.md").is_file()


@pytest.mark.parametrize("name", PLAIN)
def test_plain_samples_are_decided_rightly(verdicts, name):
    verdict = verdicts[name]
    assert (verdict.status, verdict.label) == ("ok", name)
    assert verdict.flagged == (name != "safe")
    assert "SafeWorld" in verdict.provenance.knows


def test_hard_samples_are_deliberated_and_explained(verdicts):
    hard = [v for name, v in verdicts.items() if name.startswith("hard")]
    deliberated = [v for v in hard if v.decided_by == "deliberate"]
    assert deliberated
    for verdict in deliberated:
        assert verdict.description
        assert verdict.explanation
        assert verdict.captions


def test_evidence_lies_in_the_video(verdicts):
    for verdict in verdicts.values():
        assert bool(verdict.evidence) == bool(verdict.flagged)
        for part in verdict.evidence:
            assert 0 <= part.start_s <= part.end_s <= 8.1


def test_a_real_film_is_refused(verdicts):
    verdict = verdicts["real-film"]
    assert verdict.status == "out_of_domain"
    assert verdict.flagged is None


def test_the_command_line_end_to_end(tmp_path):
    out, report = tmp_path / "v.jsonl", tmp_path / "r.html"
    videos = [str(SAMPLES / f"{n}.mp4") for n in ("abuse", "safe", "real-film")]
    run = CliRunner().invoke(app, ["moderate", *videos, "--out", str(out), "--report", str(report)])
    assert run.exit_code == 0, run.output
    assert "SafeWorld" in run.output
    found = [Verdict.from_json(line) for line in out.read_text().splitlines()]
    assert [v.status for v in found] == ["ok", "ok", "out_of_domain"]
    assert "SafeWorld" in report.read_text()


@pytest.mark.shared
@pytest.mark.parametrize("folder", ["plain", "fights"])
def test_real_videos_are_out_of_domain(lens, shared_videos, folder):
    paths = [
        p for p in sorted((shared_videos / folder).iterdir()) if p.suffix not in (".csv", ".md")
    ]
    statuses = [m.verdict.status for m in lens.moderate_many(paths)]
    assert len(statuses) >= 10
    assert statuses.count("out_of_domain") >= 0.95 * len(statuses)


@pytest.mark.shared
def test_awkward_files_each_get_an_honest_verdict(shared_videos, tmp_path):
    out = tmp_path / "v.jsonl"
    CliRunner().invoke(app, ["moderate", str(shared_videos / "awkward"), "--out", str(out)])
    found = {Path(v["video"]).name: v for v in map(json.loads, out.read_text().splitlines())}
    with (shared_videos / "awkward" / "manifest.csv").open() as file:
        manifest = {row["file"]: row["expected"] for row in csv.DictReader(file)}
    for name, expected in manifest.items():
        decodes = found[name]["status"] in ("ok", "out_of_domain", "partial")
        assert decodes == (expected == "video"), (name, found[name]["status"], expected)
        assert decodes or found[name]["status"] == "video_error"
