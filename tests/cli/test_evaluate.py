"""`safelens evaluate` from the command line, against a server and with a model."""

import json
import subprocess
import sys
import time
import urllib.request

import pytest
from typer.testing import CliRunner

from safelens.cli import app
from safelens.data.records import Record, write_records
from safelens.evaluate.answer_log import read_answers


def run(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


@pytest.fixture
def data(videos, tmp_path):
    records = [Record(id=p.stem, video=str(p), labels=(), source="test") for p in videos]
    write_records(tmp_path / "records.jsonl", records)
    return tmp_path / "records.jsonl"


@pytest.fixture
def systems(chat_server, vlm_dir, tmp_path):
    def write(behaviour):
        text = f"""systems:
  remote:
    {{kind: openai, base_url: "{chat_server}/{behaviour}/v1", model: m, prompt: safewatch,
      concurrency: 1, retries: 0, clip: {{max_side: 48}}}}
  plain:
    {{kind: vlm, model: "{vlm_dir}", prompt: safelens, frame_pixels: 2304, max_new_tokens: 3}}
"""
        (tmp_path / "systems.yaml").write_text(text)
        return tmp_path / "systems.yaml"

    return write


def counted(chat_server, name):
    with urllib.request.urlopen(f"{chat_server}/{name}", timeout=5) as answer:
        return json.load(answer)["requests"]


def rows(result):
    cells = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines()
    ]
    return [row for row in cells if len(row) == 6]


def test_systems_are_run_counted_and_kept(data, systems, chat_server, tmp_path):
    out = tmp_path / "out"
    arguments = (data, "--systems", systems("good-evaluation"), "--out", out, "--limit", 2)
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert rows(result) == [
        ["remote", "request", "2", "0", "0", "0"],
        ["plain", "generate", "0", "0", "2", "0"],
    ]
    answers = read_answers(out / "answers" / "remote" / "request.jsonl")
    assert [(a.id, a.label) for a in answers] == [("0", "abuse"), ("1", "abuse")]
    again = run(*arguments)
    assert "remote: 2 of 2 were answered before" in again.stdout
    assert "plain: 2 of 2 were answered before" in again.stdout
    assert rows(again) == rows(result)
    assert counted(chat_server, "good-evaluation") == 2


def test_failures_are_named_and_the_rest_goes_on(data, systems, tmp_path):
    result = run(data, "--systems", systems("picky-cli"), "--out", tmp_path / "out",
                 "--only", "remote")  # fmt: skip
    assert result.exit_code == 1
    assert rows(result) == [["remote", "request", "3", "0", "0", "3"]]
    assert "remote: 0: " in result.stderr
    assert "too many images" in result.stderr


def test_a_killed_run_goes_on(data, systems, chat_server, tmp_path):
    out = tmp_path / "out"
    arguments = ["evaluate", str(data), "--systems", str(systems("slow-cli")), "--out", str(out),
                 "--only", "remote"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "safelens", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(3000):
            kept = [p.read_bytes().count(b"\n") for p in out.glob("cache/*.jsonl")]
            if sum(kept) >= 2 or process.poll() is not None:
                break
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    kept = sum(p.read_bytes().count(b"\n") for p in out.glob("cache/*.jsonl"))
    assert kept >= 2
    before = counted(chat_server, "slow-cli")
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert rows(result) == [["remote", "request", "6", "0", "0", "0"]]
    assert counted(chat_server, "slow-cli") - before == 6 - kept


def test_wrong_use_is_said_before_anything_is_asked(data, systems, chat_server, tmp_path):
    file, out = systems("good-wrong"), tmp_path / "out"
    result = run(data, "--systems", file, "--out", out, "--only", "remotely")
    assert (result.exit_code, "no system 'remotely'" in result.stderr) == (2, True)
    file.write_text(file.read_text() + "  last: {kind: safelens, bundle: ./gone}\n")
    result = run(data, "--systems", file, "--out", out)
    assert (result.exit_code, "no directory" in result.stderr) == (2, True)
    assert run(tmp_path / "none.jsonl", "--systems", file, "--out", out).exit_code == 2
    assert counted(chat_server, "good-wrong") == 0
    assert not out.exists()


def test_figures_report_and_comparison_of_a_bundle(bundle_dir, videos, tmp_path):
    records = [
        Record(id=p.stem, video=str(p), labels=("abuse",) if i else (), source="test")
        for i, p in enumerate(videos[:3])
    ]
    write_records(tmp_path / "records.jsonl", records)
    file, out = tmp_path / "systems.yaml", tmp_path / "out"
    file.write_text(f"systems:\n  small: {{kind: safelens, bundle: '{bundle_dir}'}}\n")
    arguments = (tmp_path / "records.jsonl", "--systems", file, "--out", out)
    wrong = run(*arguments, "--compare", "small", "other")
    assert (wrong.exit_code, "no system 'other' to compare" in wrong.stderr) == (2, True)
    assert run(*arguments, "--compare", "small", "small/cascade").exit_code == 2
    assert not out.exists()
    result = run(*arguments, "--compare", "small", "small/screen")
    assert result.exit_code == 0, result.output
    assert "small/cascade against small/screen" in result.stdout
    assert "limits of small/cascade, small/screen, small/deliberate: drawings" in result.stdout
    told = json.loads((out / "metrics.json").read_text())
    assert list(told["systems"]) == ["small/cascade", "small/screen", "small/deliberate"]
    assert told["systems"]["small/screen"]["metrics"]["counts"]["videos"] == 3
    assert told["comparison"]["overall"]["videos"] == 3
    assert told["sweeps"]["small"]["everything"]["escalated"] == 1
    page = (out / "report.html").read_text()
    assert "drawings" in page
    # Again, without a model, without the videos' pictures, without a comparison.
    code = (
        "import sys; from safelens.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert 'transformers' not in sys.modules"
    )
    called = ["evaluate", *map(str, arguments)]
    subprocess.run([sys.executable, "-c", code, *called], check=True, stdout=subprocess.DEVNULL)
    again = json.loads((out / "metrics.json").read_text())
    assert again["comparison"] is None
    assert again["systems"] == told["systems"]


def test_help_is_quick():
    code = (
        "import sys; from safelens.cli import app\n"
        "try: app(['evaluate', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'httpx2'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--systems" in done.stdout
