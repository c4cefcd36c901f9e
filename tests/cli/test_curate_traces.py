import json
import signal
import subprocess
import sys
import time

from typer.testing import CliRunner

from safelens.cli import app
from safelens.data.records import read_records, write_records


def run(*arguments):
    return CliRunner().invoke(app, ["curate", "traces", *map(str, arguments)])


def start(*arguments, **options):
    code = "from safelens.cli import app; app()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "curate", "traces", *map(str, arguments)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def endpoint(chat_server, behaviour, *, port_path="v1"):
    return (
        "--generator",
        "openai",
        "--base-url",
        f"{chat_server}/{behaviour}/{port_path}",
        "--model",
        "m",
    )


def wait_for_lines(path, count, process):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.01)
    raise AssertionError(f"{count} lines never came: {process.communicate()}")


def test_rules_from_the_command_line(scored_records, tmp_path):
    out = tmp_path / "deep" / "traces.jsonl"
    result = run(scored_records, "--out", out, "--generator", "rules")
    assert result.exit_code == 0, result.output
    total = len(read_records(scored_records))
    assert result.stdout.splitlines() == [
        f"{total} traces written, 0 there before: {out}",
        "0 rejected",
        "0 left out, 0 without an answer from the endpoint",
    ]
    traced = read_records(out)
    assert all(r.response.startswith("DESCRIPTION: ") for r in traced)
    assert all(r.video_path(out).is_file() for r in traced)
    again = run(scored_records, "--out", out, "--generator", "rules", "--json")
    counts = json.loads(again.stdout)
    assert (counts["written"], counts["written_earlier"], counts["records"]) == (0, total, total)
    assert read_records(out) == traced


def test_an_endpoint_from_the_command_line_and_what_it_cost(chat_server, scored_records, tmp_path):
    out = tmp_path / "traces.jsonl"
    prices = ("--price-in", 1, "--price-out", 10)
    result = run(scored_records, "--out", out, *endpoint(chat_server, "good-cli"), *prices)
    assert result.exit_code == 0, result.output
    total = len(read_records(scored_records))
    tokens = f"{total} requests (0 retries), 0 from the cache, {total}000 + {50 * total} tokens"
    assert f"{tokens}, {total * 0.0015:.4f} in all, " in result.stdout


def test_what_is_left_out_or_rejected_is_counted_and_exit_code_1(
    chat_server, scored_records, tmp_path
):
    records = read_records(scored_records)
    records[0] = records[0].model_copy(update={"scores": None})
    write_records(tmp_path / "kept.jsonl", records)
    out = tmp_path / "traces.jsonl"
    result = run(
        tmp_path / "kept.jsonl",
        "--out",
        out,
        *endpoint(chat_server, "liar-cli"),
        "--max-attempts",
        1,
    )
    assert result.exit_code == 1
    assert f"left out {records[0].id}: no scores" in result.stderr
    assert f"rejected {records[1].id}: label: " in result.stderr
    count = len(records) - 1
    assert f"{count} rejected (label {count})" in result.stdout
    assert "1 left out, 0 without an answer" in result.stdout
    assert "  1: no scores" in result.stdout


def test_wrong_use_is_exit_code_2_before_anything_is_asked(chat_server, scored_records, tmp_path):
    out = ("--out", tmp_path / "t.jsonl")
    url = endpoint(chat_server, "never")
    (tmp_path / "bad.jsonl").write_text(scored_records.read_text() + "{oops\n")
    (tmp_path / "folder").mkdir()
    for arguments, said in (
        ((scored_records, *out, "--generator", "openai"), "needs --base-url and --model"),
        ((scored_records, *out, *url, "--api-key-env", "NO_SUCH_KEY"), "NO_SUCH_KEY"),
        ((scored_records, *out, *url, "--price-in", "1"), "go together"),
        ((scored_records, "--out", scored_records, *url), "is the input"),
        ((scored_records, "--out", tmp_path / "folder", *url), "name a new file"),
        ((tmp_path / "bad.jsonl", *out, *url), "bad.jsonl:"),
        ((tmp_path / "none.jsonl", *out, *url), "none.jsonl: cannot be read"),
        ((scored_records, *out, *url, "--policy", "nope"), "nope"),
        ((scored_records, *out, *endpoint("gopher://x", "y")), "expected http://"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2, result.output
        assert said in result.stderr
        assert "Traceback" not in result.output
    assert not (tmp_path / "t.jsonl").exists()


def test_a_refused_key_is_exit_code_2_and_never_printed(
    chat_server, scored_records, tmp_path, monkeypatch
):
    monkeypatch.setenv("MY_KEY", "sk-secret-4711")
    out = tmp_path / "t.jsonl"
    result = run(
        scored_records,
        "--out",
        out,
        *endpoint(chat_server, "refuse-cli"),
        "--api-key-env",
        "MY_KEY",
    )
    assert result.exit_code == 2
    assert "HTTP 401" in result.stderr
    assert "environment variable" in result.stderr
    assert "0 traces written" in result.stdout
    assert "sk-secret" not in result.output
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"sk-secret" in path.read_bytes() for path in written)


def test_an_output_that_cannot_be_made(scored_records, tmp_path):
    (tmp_path / "file").write_text("")
    result = run(scored_records, "--out", tmp_path / "file" / "t.jsonl", "--generator", "rules")
    assert result.exit_code == 2
    assert "cannot be read or written" in result.stderr
    out = tmp_path / "t.jsonl"
    (tmp_path / "t.jsonl.rejected.jsonl").mkdir()
    result = run(scored_records, "--out", out, "--generator", "rules")
    assert result.exit_code == 2
    assert "t.jsonl.rejected.jsonl: cannot be read" in result.stderr


def test_killed_and_resumed_gives_the_same_file(chat_server, scored_records, tmp_path):
    address = endpoint(chat_server, "slow-kill")
    arguments = (scored_records, *address, "--concurrency", 2)
    whole, cut = tmp_path / "a" / "t.jsonl", tmp_path / "b" / "t.jsonl"
    for folder in (whole.parent, cut.parent):
        folder.mkdir()
    assert run(*arguments, "--out", whole).exit_code == 0
    for number, lines in ((signal.SIGKILL, 3), (signal.SIGINT, 7)):
        process = start(*arguments, "--out", cut)
        wait_for_lines(cut, lines, process)
        process.send_signal(number)
        printed, messages = process.communicate(timeout=20)
        assert "Traceback" not in messages
        if number == signal.SIGINT:
            assert process.returncode == 130, messages
            assert "stopped; what is written is whole" in messages
            assert cut.read_bytes().endswith(b"\n")
            assert "traces written, " in printed
    assert 7 <= cut.read_bytes().count(b"\n") < whole.read_bytes().count(b"\n")
    assert run(*arguments, "--out", cut).exit_code == 0
    assert cut.read_bytes() == whole.read_bytes()
