import json
import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from safelens.cli import app
from safelens.data.records import read_records
from safelens.safeworld.writer import write_dataset


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "world"
    write_dataset(out, clips=8, seed=4)
    return out


def run(*arguments):
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def lines_of(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_check_names_each_problem_by_its_record_and_ends_with_counts(world, tmp_path):
    lines = (world / "records.jsonl").read_text().splitlines()
    lines[0] = lines[0].replace('"videos/', '"/far/away/videos/')
    lines[1] = lines[1][:40]
    (tmp_path / "records.jsonl").write_text("\n".join(lines))
    bad = run("check", tmp_path / "records.jsonl", "--videos-root", world, "--json")
    assert bad.exit_code == 1, bad.output
    *problems, summary = lines_of(bad)
    kinds = {(p["kind"], p.get("id")) for p in problems}
    assert ("missing_video", "sw4-000000") not in kinds  # found by its ending
    assert ("bad_entry", f"{tmp_path}/records.jsonl:2") in kinds
    assert summary["kind"] == "summary"
    assert (summary["entries"], summary["records"], summary["left_out"]) == (8, 7, 1)
    assert (summary["videos"], summary["looked_at"]) == (7, 7)
    assert sum(summary["problems"].values()) == len(problems)

    shown = run("check", tmp_path / "records.jsonl")
    assert shown.exit_code == 1
    assert "videos that are not there (7):" in shown.stdout
    assert "sw4-000003: not_found: " in shown.stdout
    assert "8 entries: 7 records, 1 left out (1 bad_entry)" in shown.stdout


def test_check_of_a_whole_data_set_is_exit_code_0(world, tmp_path):
    records = read_records(world / "records.jsonl")
    policy = tmp_path / "policy.yaml"
    labels = {label for r in records for label in r.labels}
    categories = "".join(
        f"  - {{id: {label}, name: {label}, core_value: x, rules: [{{blocked: x}}]}}\n"
        for label in sorted(labels)
    )
    policy.write_text(f'id: few\nname: Few\nversion: "1"\ncategories:\n{categories}')
    table = "file,label\n" + "".join(f"{r.video},{';'.join(r.labels) or 'safe'}\n" for r in records)
    (world / "labels.csv").write_text(table)
    result = run("check", world / "labels.csv", "--policy", policy)
    (world / "labels.csv").unlink()
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "no problems"


def test_convert_and_stats(world, tmp_path):
    out = world / "converted.jsonl"
    sft = world / "safewatch" / "sft.jsonl"
    result = run("convert", sft, world / "safewatch", "--out", out, "--source", "mine")
    assert result.exit_code == 0, result.output
    records = read_records(out)
    assert {r.source for r in records} == {"mine"}
    assert all(not os.path.isabs(r.video) and r.video_path(out).is_file() for r in records)
    assert result.stdout.endswith(f"records: {out}\n")
    again = run("convert", out, "--out", tmp_path / "again.jsonl", "--json")
    (summary,) = lines_of(again)
    assert (summary["records"], summary["missing_videos"]) == (len(records), 0)
    assert all(os.path.isabs(r.video) for r in read_records(tmp_path / "again.jsonl"))

    sheet = tmp_path / "samples.png"
    counted = run("stats", tmp_path / "again.jsonl", "--json", "--sheet", sheet)
    assert counted.exit_code == 0, counted.output
    (about,) = lines_of(counted)
    assert about["records"] == sum(r.split is not None for r in records)
    assert about["with_field"]["response"] == sum(r.response is not None for r in records)
    assert sheet.is_file()
    table = run("stats", world)
    assert table.exit_code == 0
    assert "8 records of 8 videos" in table.stdout


def test_convert_leaves_out_with_a_reason_and_writes_nothing_for_nothing(tmp_path):
    (tmp_path / "labels.csv").write_text("file,label\na.mp4,fight\nb.mp4,what\n")
    out = tmp_path / "records.jsonl"
    nothing = run("convert", tmp_path, "--out", out)
    assert nothing.exit_code == 1
    assert not out.exists()
    some = run("convert", tmp_path, "--out", out, "--map", "fight=violence", "--split", "val")
    assert some.exit_code == 0
    assert f"{tmp_path.name}/b.mp4: label 'what'" in some.stderr
    assert "2 entries: 1 records, 1 left out (1 unknown_label)" in some.stdout
    assert "1 of the records' videos are not there" in some.stdout
    (record,) = read_records(out)
    assert (record.video, record.labels, record.split) == ("a.mp4", ("violence",), "val")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", "nothing"], "no such file"),
        (["check", "FILE", "--policy", "nope"], "nope"),
        (["check", "FILE", "--map", "fight"], "expected NAME=ID"),
        (["check", "FILE", "--map", "fight=brawl"], "has no 'brawl'"),
        (["check", "FILE", "--videos-root", "nothing"], "no such folder"),
        (["stats", "FILE", "--sheet", "a.jpg"], "ends in .png"),
        (["convert", "FILE", "--out", "FILE"], "one of the files to read"),
    ],
)
def test_wrong_use_is_exit_code_2_and_says_what_to_do(world, arguments, said):
    file = str(world / "records.jsonl")
    result = run(*(file if argument == "FILE" else argument for argument in arguments))
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.stderr.split())


def test_ctrl_c_prints_what_was_found(world, tmp_path):
    line = (world / "records.jsonl").read_text().splitlines()[0]
    one = json.loads(line)
    video = (world / one["video"]).read_bytes()
    with open(tmp_path / "records.jsonl", "w") as file:
        for k in range(400):
            (tmp_path / f"{k}.mp4").write_bytes(video)
            file.write(json.dumps(one | {"id": f"r{k}", "video": f"{k}.mp4"}) + "\n")
    code = (
        "import safelens.video as v, pathlib, sys\n"
        "read = v.VideoReader.read\n"
        "def slow(self, path):\n"
        "    clip = read(self, path)\n"
        "    pathlib.Path(sys.argv[0]).touch()\n"
        "    return clip\n"
        "v.VideoReader.read = slow\n"
        "from safelens.cli import app; app()"
    )
    mark = tmp_path / "read-one"
    process = subprocess.Popen(
        [
            sys.executable, "-c", f"import sys; sys.argv[0] = {str(mark)!r}\n{code}",
            "data", "check", str(tmp_path / "records.jsonl"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 200  # a busy machine takes long to start
    while not mark.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    output, messages = process.communicate(timeout=60)
    assert process.returncode == 130, messages
    assert "of 400 videos; the rest is unchecked" in messages
    assert "Traceback" not in messages
    assert "400 entries: 400 records" in output
