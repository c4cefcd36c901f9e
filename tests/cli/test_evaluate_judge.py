"""`safelens evaluate --judge` from the command line, against a server."""

import json
import subprocess
import sys
import time
import urllib.request

import pytest
from typer.testing import CliRunner

from safelens.cli import app
from safelens.data.records import Record, write_records


@pytest.fixture
def arguments(chat_server, videos, tmp_path):
    """Arguments of the command for a system and a judge that behave so."""

    def build(system, judge, *, limit=3):
        records = [
            Record(id=p.stem, video=str(p), labels=("abuse",), source="test") for p in videos
        ]
        write_records(tmp_path / "records.jsonl", records)
        (tmp_path / "systems.yaml").write_text(
            f'systems:\n  remote: {{kind: openai, base_url: "{chat_server}/{system}/v1", model: m, '
            "prompt: safewatch, clip: {max_side: 48}}\n"
        )
        (tmp_path / "judge.yaml").write_text(
            f"base_url: {chat_server}/{judge}/v1\nmodel: the-judge\nretries: 0\nconcurrency: 1\n"
        )
        return ["evaluate", str(tmp_path / "records.jsonl"), "--systems", str(tmp_path / "systems.yaml"),
                "--out", str(tmp_path / "out"), "--judge", str(tmp_path / "judge.yaml"),
                "--limit", str(limit)]  # fmt: skip

    return build


def counted(chat_server, name):
    with urllib.request.urlopen(f"{chat_server}/{name}", timeout=5) as answer:
        return json.load(answer)["requests"]


def rubric(tmp_path):
    return json.loads((tmp_path / "out" / "metrics.json").read_text())["systems"]["remote"][
        "rubric"
    ]


def test_explanations_are_graded_reported_and_not_graded_twice(arguments, chat_server, tmp_path):
    command = arguments("good-graded-cli", "good-judge-cli")
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    found = rubric(tmp_path)
    assert (found["judge"], found["graded"], found["unparsed"]) == ("the-judge", 3, 0)
    assert found["overall"] == {"mean": 6, "sd": 0, "n": 3}
    assert "Explanations by a judge's rubric" in result.stdout
    assert "6.00 ± 0.00" in (tmp_path / "out" / "report.md").read_text()
    assert "6.00 ± 0.00" in (tmp_path / "out" / "report.html").read_text()
    # The server says the same of all three videos, whose truth is the same, so it is one question.
    assert counted(chat_server, "good-judge-cli") == 1
    assert CliRunner().invoke(app, command).exit_code == 0
    assert rubric(tmp_path) == found
    assert counted(chat_server, "good-judge-cli") == 1


def test_a_judge_that_fails_leaves_the_report_and_an_exit_code(arguments, tmp_path):
    result = CliRunner().invoke(app, arguments("good-ungraded-cli", "refuse-judge-cli"))
    assert result.exit_code == 1
    assert "failed: " in result.stderr
    assert (rubric(tmp_path)["failed"], rubric(tmp_path)["overall"]["mean"]) == (3, None)
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_wrong_file_is_said_before_anything_is_asked(arguments, chat_server, tmp_path):
    command = arguments("good-unasked-cli", "good-unasked-judge-cli")
    (tmp_path / "judge.yaml").write_text("base_url: http://a/v1\n")
    result = CliRunner().invoke(app, command)
    assert (result.exit_code, "judge.yaml:1: key 'model' is missing" in result.stderr) == (2, True)
    assert counted(chat_server, "good-unasked-cli") == 0
    assert not (tmp_path / "out").exists()


def test_a_killed_run_goes_on(arguments, chat_server, tmp_path):
    command = arguments("good-killed-cli", "slow-judge-cli", limit=6)
    records = [Record(id=str(i), video=str(tmp_path / f"{i}.mp4"), labels=("abuse",), source="test",
                      explanation=f"Reason {i}.") for i in range(6)]  # fmt: skip
    for i, line in enumerate((tmp_path / "records.jsonl").read_text().splitlines()):
        (tmp_path / f"{i}.mp4").symlink_to(json.loads(line)["video"])
    write_records(tmp_path / "records.jsonl", records)
    kept = lambda: len(list((tmp_path / "out" / "judge").glob("*/*.json")))  # noqa: E731
    process = subprocess.Popen(
        [sys.executable, "-m", "safelens", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(6000):
            if kept() >= 2 or process.poll() is not None:
                break
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    before, asked = kept(), counted(chat_server, "slow-judge-cli")
    assert 2 <= before < 6
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert rubric(tmp_path)["graded"] == 6
    assert counted(chat_server, "slow-judge-cli") - asked == 6 - before
