import pytest
from typer.testing import CliRunner

from safelens.cli import app

SECONDS = ["--screen-s", "0.5", "--deliberate-s", "4", "--escalated", "0.25"]


def run(*words):
    return CliRunner().invoke(app, ["plan", *words])


def test_a_backlog_and_a_stream():
    result = run(*SECONDS, "--videos", "7200", "--hours", "1", "--gpu-price", "2")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith(("S1: 1 replicas", "S1: 2 replicas"))
    assert lines[1].startswith(("S2: 2 replicas", "S2: 3 replicas"))
    assert lines[2].startswith("GPUs: ")
    assert lines[3].startswith("last verdict after ")
    result = run(*SECONDS, "--arrivals", "1000,3600", "--delay", "30")
    assert result.exit_code == 0, result.stderr
    assert "95% of the videos within " in result.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (SECONDS, "give a backlog (--videos and --hours) or a stream"),
        ([*SECONDS, "--videos", "5"], "give a backlog"),
        (["--videos", "5", "--hours", "1"], "give verdicts of a run, or --screen-s"),
        (["gone", "--videos", "5", "--hours", "1"], "gone: no such file or folder of verdicts"),
        (["gone", *SECONDS, "--videos", "5", "--hours", "1"], "are in place of verdicts"),
        ([*SECONDS, "--arrivals", "1,x", "--delay", "9"], "could not convert"),
        ([*SECONDS, "--arrivals", "3600", "--delay", "1"], "they take 4.5 s without waiting"),
    ],
)
def test_what_cannot_be_planned(words, said):
    result = run(*words)
    assert result.exit_code == 2
    assert said in result.stderr
