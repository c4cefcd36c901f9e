import json
import os
import signal
import subprocess
import sys
import time

from typer.testing import CliRunner

from safelens.cli import app
from safelens.data.records import read_records


def run(*arguments):
    return CliRunner().invoke(app, ["safeworld", *map(str, arguments)])


def test_a_data_set_from_the_command_line_and_its_continuation(tmp_path):
    out = tmp_path / "world"
    first = run(out, "--clips", 2, "--seed", 5)
    assert first.exit_code == 0, first.output
    assert first.stdout.startswith(f"2 videos (0 twins) in {out}\n")
    more = run(out, "--clips", 3, "--seed", 5, "--with-twins", "--noise", 0.5, "--json")
    assert more.exit_code == 0, more.output
    (line,) = more.stdout.splitlines()
    about = json.loads(line)
    records = read_records(out / "records.jsonl")
    assert about["counts"]["videos"] == len(records)
    assert about["noise"] == {"rate": 0.5, "kind": "confusion", "split": "train"}
    assert all(r.video_path(out / "records.jsonl").is_file() for r in records)


def test_bad_use_is_exit_code_2_and_says_what_to_do(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"x")
    refused = run(tmp_path, "--clips", 1)
    assert refused.exit_code == 2
    assert "name a new or empty folder" in " ".join(refused.stderr.split())
    assert run(tmp_path / "new", "--noise", "2").exit_code == 2
    assert run(tmp_path / "new", "--clips", "0").exit_code == 2
    assert run(tmp_path / "new", "--noise-kind", "typo").exit_code == 2
    assert not (tmp_path / "new").exists()


def test_ctrl_c_ends_at_once_and_the_same_command_continues(tmp_path):
    out = tmp_path / "world"
    arguments = [str(out), "--clips", "400", "--seed", "7", "--jobs", "2"]
    code = "from safelens.cli import app; app()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "safeworld", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while len(list(out.glob("videos/sw*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, messages = process.communicate(timeout=30)
    assert process.returncode == 130, messages
    assert "Give the same command again to continue" in messages
    assert "Traceback" not in messages
    assert not list(out.glob("videos/.*"))
    kept = len(list(out.glob("videos/sw*")))
    assert 3 <= kept < 400
    again = run(out, "--clips", 3, "--seed", 7, "--json")
    assert again.exit_code == 0
    assert json.loads(again.stdout)["counts"]["videos"] == 3
