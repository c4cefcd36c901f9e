"""`safelens moderate --engine openai`: the embedded bundle here, S2 behind an endpoint."""

import json
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from safelens.cli import app
from safelens.verdict import Verdict

SAMPLES = Path(__file__).parents[2] / "samples"
SERVER = ("--engine", "openai", "--base-url", "http://a/v1", "--served-model", "m")


def run(*arguments):
    return CliRunner().invoke(app, ["moderate", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--base-url", "http://a/v1"], "--base-url belongs to --engine openai"),
        (["--served-model", "m"], "--served-model belongs to --engine openai"),
        (["--frames", "video"], "--frames belongs to --engine openai"),
        (["--structured", "none"], "--structured belongs to --engine openai"),
        (["--logprobs"], "--logprobs belongs to --engine openai"),
        (["--timeout", "5"], "--timeout belongs to --engine openai"),
        (["--concurrency", "5"], "--concurrency belongs to --engine openai"),
        (["--engine", "openai", "--served-model", "m"], "--engine openai needs --base-url"),
        (["--engine", "openai", "--base-url", "http://a/v1"], "openai needs --served-model"),
        (["--engine", "warp"], "'--engine'"),
        ([*SERVER, "--timeout", "inf"], "--timeout"),
        ([*SERVER, "--api-key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY is not set"),
        ([*SERVER[:3], "a/v1", *SERVER[4:]], "base URL 'a/v1': expected http://HOST/v1"),
    ],
)
def test_wrong_use_is_exit_code_2_and_says_what_to_do(arguments, words):
    result = run("x.mp4", *arguments)
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.stderr.split())
    assert result.stdout == ""


def test_the_embedded_bundle_with_s2_on_a_server(chat_server, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret-4711")
    out, page = tmp_path / "v.jsonl", tmp_path / "r.html"
    server = [*SERVER[:3], f"{chat_server}/flaky-cli/v1", *SERVER[4:], "--api-key-env", "MY_KEY"]
    videos = [SAMPLES / name for name in ("violence.mp4", "real-film.mp4", "safe.mp4")]
    form = ["--structured", "json_schema", "--logprobs", "--max-new-tokens", 99, "--tau", 1.01]
    result = run(*videos, *server, *form, "--out", out, "--report", page, "--device", "cpu")
    assert result.exit_code == 0, result.output
    one, film, other = map(Verdict.from_json, out.read_text().splitlines())
    for verdict in (one, other):
        assert (verdict.status, verdict.decided_by) == ("ok", "deliberate")
        assert (verdict.label, verdict.explanation) == ("abuse", "It is shown.")
        assert verdict.confidence == pytest.approx(0.7 / 0.9)
        assert len(verdict.captions) > 1
    assert (film.status, film.decided_by) == ("out_of_domain", None)  # and is sent to nobody
    assert one.provenance == film.provenance
    assert one.provenance.bundle.startswith("tiny")
    told = one.provenance.remote.model_dump()
    assert told.pop("base_url") == f"{chat_server}/flaky-cli/v1"
    assert list(told.values()) == ["openai", "m", "images", "json_schema", "logprobs"]
    with urllib.request.urlopen(f"{chat_server}/last/flaky-cli", timeout=5) as answer:
        sent = json.load(answer)
    assert sent["key"] == "Bearer sk-secret-4711"
    assert sent["body"]["max_tokens"] == 99
    words = sent["body"]["messages"][1]["content"][-1]["text"]
    assert any(v.captions[0].text in words for v in (one, other))  # whichever was asked last
    assert "INITIAL_CONFIDENCE_SCORES" in words
    assert f"<dt>S2</dt><dd>m at {chat_server}" in page.read_text()
    for written in (result.output, out.read_text(), page.read_text()):
        assert "sk-secret" not in written

    here = run(videos[0], "--tau", 1.01, "--out", out, "--resume", "--device", "cpu")
    assert (here.exit_code, "S2's server" in here.stderr) == (2, True)


def test_a_model_without_training_and_a_server_that_refuses(chat_server, tmp_path, vlm_dir):
    out = tmp_path / "v.jsonl"
    server = [*SERVER[:3], f"{chat_server}/refuse-cli-s2/v1", *SERVER[4:]]
    options = ["--model", vlm_dir, "--tau", 1.01, "--out", out, "--device", "cpu"]
    result = run(SAMPLES / "safe.mp4", *server, *options)
    assert result.exit_code == 1, result.output
    verdict = Verdict.from_json(out.read_text())
    assert (verdict.status, verdict.flagged, verdict.label) == ("model_error", None, None)
    assert "HTTP 401" in verdict.error.message
    assert "environment variable" in " ".join(result.output.split())
