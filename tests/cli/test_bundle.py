"""`safelens bundle` from the command line, on small real models."""

import json

import pytest
from typer.testing import CliRunner

from safelens.cli import app


def run(*arguments):
    return CliRunner().invoke(app, ["bundle", *map(str, arguments)])


@pytest.fixture(scope="module")
def packed(tmp_path_factory, vlm_dir, captioner_dir, adapter_dir, probe_dir, guard_file):
    out = tmp_path_factory.mktemp("packed") / "mine"
    done = run("pack", "--out", out, "--name", "mine", "--model", vlm_dir, "--probe", probe_dir,
               "--domain", guard_file, "--captioner", captioner_dir, "--adapter", adapter_dir,
               "--knows", "drawings", "--outside-domain", "refuse", "--tau", 0.7,
               "--frame-pixels", 48 * 48, "--max-side", 48, "--max-caption-tokens", 4,
               "--max-new-tokens", 8)  # fmt: skip
    assert done.exit_code == 0, done.output
    return out, done


def test_what_is_packed_is_checked_shown_and_moderates(packed, videos):
    out, done = packed
    checked = run("check", out)
    assert checked.exit_code == 0, checked.output
    assert "all parts load" in checked.stdout
    shown = json.loads(run("show", out, "--json").stdout)
    assert shown["sha256"] in done.stdout
    assert shown["knows"] == "drawings"
    assert shown["tau"] == 0.7
    assert shown["parts"]["adapter"] == {
        "place": "deliberate",
        "inside": True,
        "mb": pytest.approx(
            sum(p.stat().st_size for p in (out / "deliberate").iterdir()) / 1e6, rel=1e-6
        ),
    }
    text = run("show", out).stdout
    assert "deliberate (" in text
    assert "MB, inside)" in text
    verdict = CliRunner().invoke(app, ["moderate", str(videos[0]), "--bundle", str(out), "--json"])
    assert json.loads(verdict.stdout)["provenance"]["knows"] == "drawings", verdict.output


def test_a_separate_reasoner_takes_the_place_of_an_adapter(tmp_path, vlm_dir, captioner_dir):
    done = run("pack", "--out", tmp_path / "b", "--name", "b", "--model", vlm_dir,
               "--captioner", captioner_dir, "--reasoner", vlm_dir)  # fmt: skip
    assert done.exit_code == 0, done.output
    shown = json.loads(run("show", tmp_path / "b", "--json").stdout)
    assert shown["parts"]["reasoner"]["place"] == "reasoner"
    assert "probe           none" in run("show", tmp_path / "b").stdout
    assert run("check", tmp_path / "b").exit_code == 0


def test_damage_and_parts_that_do_not_load_are_found(packed, tmp_path):
    import shutil

    from safelens.bundle import BundleSettings, write_bundle

    copy = tmp_path / "copy"
    shutil.copytree(packed[0], copy)
    weights = copy / "captioner" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    damaged = run("check", copy)
    assert damaged.exit_code == 1
    assert "captioner/model.safetensors has SHA-256" in damaged.stderr
    assert run("show", copy).exit_code == 2
    import yaml

    weights.write_bytes(whole[:1000])
    fields = yaml.safe_load((copy / "bundle.yaml").read_text())
    write_bundle(copy, BundleSettings.model_validate(fields).model_dump(mode="json"))
    broken = run("check", copy)
    assert broken.exit_code == 1
    assert "files have their digests" in broken.stdout
    assert "error: " in broken.stderr


def test_wrong_use_is_said_and_nothing_is_written(packed, tmp_path, vlm_dir, adapter_dir):
    base = ["pack", "--name", "b", "--model", vlm_dir]
    both = run(*base, "--out", tmp_path / "b", "--adapter", adapter_dir, "--reasoner", vlm_dir)
    assert both.exit_code == 2
    assert "give one of them" in both.stderr
    there = run(*base, "--out", packed[0], "--captioner", vlm_dir)
    assert there.exit_code == 2
    assert "--replace" in there.stderr
    assert "expected a Florence-2" in there.stderr
    card = run(*base, "--out", tmp_path / "b", "--card", tmp_path / "none.md")
    assert card.exit_code == 2
    assert "none.md" in card.stderr
    policy = run(*base, "--out", tmp_path / "b", "--policy", tmp_path / "none.yaml")
    assert policy.exit_code == 2
    assert list(tmp_path.iterdir()) == []
    assert run("check", tmp_path / "none").exit_code == 1
