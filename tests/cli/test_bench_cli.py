import json

from typer.testing import CliRunner

from safelens.cli import app


def test_bench_prints_and_writes_its_figures(bundle_dir, videos, tmp_path):
    out = tmp_path / "new" / "bench.json"
    args = ["bench", *map(str, videos[:3]), "--bundle", str(bundle_dir), "--repeats", "1"]
    found = CliRunner().invoke(app, [*args, "--device", "cpu", "--out", str(out)])
    assert found.exit_code == 0, found.output
    report = json.loads(out.read_text())
    assert set(report["systems"]) == {"naive", "paper", "ours"}
    assert set(report["ratio"]) == {"ours_over_naive", "ours_over_paper", "s1_over_plain"}
    assert (report["videos"], report["unsure"]) == (3, 1)
    assert set(report["share_of_limit"]) == {"screen", "caption", "deliberate"}
    assert all(one["share_of_limit"] > 0 for one in report["share_of_limit"].values())
    for name in (*report["systems"], *report["ratio"]):
        assert name in found.output


def test_what_cannot_be_compared_is_refused(make_bundle, videos, tmp_path):
    folder = make_bundle(screen={"probe": None, "domain": None})
    found = CliRunner().invoke(app, ["bench", str(videos[0]), "--bundle", str(folder)])
    assert found.exit_code == 2
    assert "has none" in found.output
    found = CliRunner().invoke(app, ["bench", str(tmp_path / "none.mp4")])
    assert found.exit_code == 2
