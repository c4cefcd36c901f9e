import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console
from typer.testing import CliRunner

from safelens.cli import app
from safelens.cli._log import VerdictLog, log_key
from safelens.cli._paths import UsageError, expand
from safelens.cli._table import MAX_ROWS, Row, print_table
from safelens.safeworld import sample_scene
from safelens.safeworld.encode import UNUSUAL, USUAL, encode
from safelens.verdict import CategoryScore, ErrorInfo, Provenance, RemoteModel, Verdict

PROVENANCE = Provenance(
    package="0.1.0", bundle="tiny 1", bundle_sha256="b" * 64, policy="p", policy_sha256="a", tau=0.8
)

REMOTE = RemoteModel(
    engine="openai", base_url="http://a/v1", model="m", frames="images", structured="none",
    scores="stated",
)  # fmt: skip


def run(*arguments, **options):
    return CliRunner().invoke(app, ["moderate", *map(str, arguments)], **options)


def good(video, **fields):
    category = CategoryScore(id="abuse", name="Abuse", flagged=False, score=0.1)
    values = {
        "video": video, "status": "ok", "flagged": False, "label": "safe", "confidence": 0.9,
        "categories": [category], "decided_by": "screen", "provenance": PROVENANCE,
    }  # fmt: skip
    return Verdict(**(values | fields))


def failed(video, status="video_error"):
    error = ErrorInfo(code="x", message=f"{video}: broken")
    return Verdict(video=video, status=status, error=error, provenance=PROVENANCE)


def write(path, *verdicts):
    path.write_text("".join(v.to_json() + "\n" for v in verdicts))
    return path


# -- which files ------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    for name in ("b.mp4", "a.txt", ".hidden.mp4", "sub/z.mp4", "sub/.git/x.mp4", "sub/aa/c.mp4"):
        file = tmp_path / "t" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    os.symlink("nowhere", tmp_path / "t/broken")
    os.symlink("..", tmp_path / "t/sub/loop")
    os.mkfifo(tmp_path / "t/pipe")
    return tmp_path / "t"


def test_folders_give_their_files_sorted_without_hidden_ones_and_loops(tree):
    names = ["a.txt", "b.mp4", "broken", "sub/z.mp4", "sub/aa/c.mp4"]
    assert expand([str(tree)]) == [str(tree / name) for name in names]
    hidden = str(tree / ".hidden.mp4")
    again = expand([hidden, str(tree), hidden, "gone.mp4"], leave_out=[tree / "b.mp4"])
    assert again == [hidden, *(str(tree / n) for n in names if n != "b.mp4"), "gone.mp4"]


def test_lists_on_standard_input(tree):
    lines = f"{tree}/b.mp4\r\n\n{tree}/sub\nna\xefve.mp4\n".encode("latin-1")
    assert expand(["-", "last.mp4"], stdin=io.BytesIO(lines)) == [
        f"{tree}/b.mp4", f"{tree}/sub/z.mp4", f"{tree}/sub/aa/c.mp4", "na\udcefve.mp4", "last.mp4",
    ]  # fmt: skip
    zeros = io.BytesIO(b"with\nnewline.mp4\0b\0")
    assert expand(["-"], null=True, stdin=zeros) == ["with\nnewline.mp4", "b"]


def test_nothing_to_do_is_said(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no files in .*empty; hidden"):
        expand([str(tmp_path / "empty")])
    with pytest.raises(UsageError, match="no files in the list on standard input"):
        expand(["-"], stdin=io.BytesIO(b"\n"))
    assert expand([str(tmp_path / "empty"), "x"]) == ["x"]
    assert "note: no files in" in capsys.readouterr().err


# -- the file of verdicts ---------------------------------------------------------------------------


def test_a_log_is_continued_and_model_errors_are_tried_again(tmp_path):
    path = write(
        tmp_path / "v.jsonl",
        good("a"), failed("b"), failed("c", "model_error"), failed("d", "model_error"), good("d"),
        good("e"), failed("e", "model_error"),
    )  # fmt: skip
    log = VerdictLog(path, resume=True)
    assert list(log.done) == ["a", "b", "d"]
    log.check(PROVENANCE)
    assert [v.video for v in log.earlier(["d", "x", "a"])] == ["a", "d"]
    log.add(good("c"))
    log.close()
    again = VerdictLog(path, resume=True)
    assert list(again.done) == ["a", "b", "d", "c"]
    assert [v.status for v in again.earlier("abcde")] == ["ok", "video_error", "ok", "ok"]


@pytest.mark.parametrize("cut", [1, 20, 150, None])
def test_a_half_written_last_line_is_mended(tmp_path, cut):
    path = write(tmp_path / "v.jsonl", good("a"))
    whole = path.read_bytes()
    half = good("ü").to_json().encode()
    path.write_bytes(whole + half[:cut])
    log = VerdictLog(path, resume=True)
    assert list(log.done) == (["a"] if cut else ["a", "ü"])
    log.add(good("c"))
    log.close()
    kept = whole if cut else whole + half + b"\n"
    assert path.read_bytes() == kept + good("c").to_json().encode() + b"\n"


def test_a_log_refuses_what_it_must_not_touch(tmp_path):
    path = write(tmp_path / "v.jsonl", good("a"))
    with pytest.raises(UsageError, match="not empty; continue it with --resume"):
        VerdictLog(path, resume=False)
    with pytest.raises(UsageError, match="is a folder"):
        VerdictLog(tmp_path, resume=True)
    before = b"my notes, no verdicts, no line end"
    for data in (before, path.read_bytes() + b'{"schema":\n', path.read_bytes() + before):
        path.write_bytes(data)
        with pytest.raises(UsageError, match=r"v\.jsonl:\d: no verdict"):
            VerdictLog(path, resume=True)
        assert path.read_bytes() == data
        path.write_bytes(good("a").to_json().encode() + b"\n")


def test_other_settings_are_not_mixed_into_a_log(tmp_path):
    log = VerdictLog(write(tmp_path / "v.jsonl", good("a")), resume=True)
    log.check(PROVENANCE.model_copy(update={"bundle": "other name, same content"}))
    for change, words in [
        ({"tau": 0.7}, "tau 0.8, now 0.7"),
        ({"policy_sha256": "c"}, "policy's SHA-256 a, now c"),
        ({"keyframe_shift_s": 1.5}, "keyframes within None, now 1.5"),
        ({"bundle_sha256": None, "bundle": "zero-shot m"}, "bundle None, now zero-shot m"),
        ({"taus": {"safe": 0.9}}, r"tau by class None, now \(\('safe', 0.9\),\)"),
        ({"remote": REMOTE}, "S2's server None, now .*model='m'"),
    ]:
        changed = PROVENANCE.model_copy(update=change)
        with pytest.raises(UsageError, match=words):
            log.check(changed)
        VerdictLog(write(tmp_path / "w.jsonl", good("a", provenance=changed)), resume=True).check(
            changed
        )


def test_a_name_that_is_no_text_is_found_again(tmp_path):
    name = "na\udcefve.mp4"
    log = VerdictLog(write(tmp_path / "v.jsonl", good(name)), resume=True)
    assert log_key(name) in log.done


# -- the table --------------------------------------------------------------------------------------


def table(verdicts):
    console = Console(width=120, file=io.StringIO(), color_system=None)
    print_table([Row.of(v) for v in verdicts], console)
    return console.file.getvalue()


def test_the_table_has_a_row_a_video_and_no_control_characters():
    text = table([good("a[red].mp4", timing={"decode": 1.25}), failed("\x1b[2Jb\n.mp4")])
    assert "│ a[red].mp4" in text
    assert [cell.strip() for cell in text.splitlines()[3].split("│")[1:-1]] == [
        "a[red].mp4", "ok", "safe", "0.900", "screen", "1.25",
    ]  # fmt: skip
    assert "\\x1b[2Jb\\n.mp4" in text
    assert "\x1b" not in text


def test_a_long_table_leaves_out_safe_videos_first():
    verdicts = [good(f"s{i}") for i in range(MAX_ROWS + 5)]
    verdicts.insert(MAX_ROWS, failed("broken.mp4"))
    text = table(verdicts)
    assert "broken.mp4" in text
    assert "and 6 more" in text
    assert f" s{MAX_ROWS - 2} " in text
    assert f" s{MAX_ROWS - 1} " not in text


# -- the whole command ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["x", "--model", "m", "--bundle", "b"], "exclude each other"),
        (["x", "--captioner", "c"], "--captioner belongs to --model"),
        (["x", "--layout", "video_first"], "--layout belongs to --model"),
        (["x", "--resume"], "name it with --out"),
        (["x", "--report", "r.mp4"], "ends in .html"),
        (["x", "-0"], "-0 is about the list"),
        (["x", "--tau", "nan"], "'--tau'"),
        (["x", "--tau", "-1"], "'--tau'"),
        (["x", "--keyframes", "-1"], "'--keyframes'"),
        (["x", "--keyframes", "nan"], "'--keyframes'"),
        ([], "PATH"),
        (["x", "--policy", "/no/such.yaml"], "/no/such.yaml: cannot be read"),
        (["x", "--bundle", "./no/such"], "bundle ./no/such: no such directory"),
        (["x", "--device", "warp"], "--device warp"),
    ],
)
def test_wrong_use_is_exit_code_2_and_says_what_to_do(arguments, words):
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.stderr.split())
    assert result.stdout == ""


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for i in range(3):
        encode(sample_scene(5, i), USUAL, folder / f"clip{i}.mp4")
    (folder / "notes.txt").write_text("no video")
    return folder


def test_videos_end_to_end_with_a_small_model(tmp_path, videos, vlm_dir, captioner_dir):
    long = tmp_path / ("n" * 200)  # the table breaks no name
    long.symlink_to(videos, target_is_directory=True)
    videos = long
    out, page = tmp_path / "new" / "v.jsonl", tmp_path / "r.html"
    options = ["--model", vlm_dir, "--captioner", captioner_dir, "--device", "cpu", "--tau", 1.01]
    first = run(videos / "clip1.mp4", *options, "--out", out, "--json")
    assert first.exit_code == 0, first.output
    (verdict,) = map(Verdict.from_json, first.stdout.splitlines())
    assert verdict.status == "ok"
    assert verdict.decided_by == "deliberate"
    assert out.read_text() == first.stdout
    assert "1 video in" in first.stderr

    refused = run(videos, *options, "--out", out)
    assert (refused.exit_code, "--resume" in refused.stderr) == (2, True)
    other = run(videos, *options[:-1], 0.5, "--out", out, "--resume")
    assert (other.exit_code, "tau 1.01, now 0.5" in other.stderr) == (2, True)

    second = run(videos, *options, "--out", out, "--resume", "--report", page)
    assert second.exit_code == 1, second.output  # notes.txt
    assert "1 of 4 are in" in second.stderr
    assert out.read_text().startswith(first.stdout)
    verdicts = [Verdict.from_json(line) for line in out.read_text().splitlines()]
    assert [v.video.rsplit("/")[-1] for v in verdicts] == [
        "clip1.mp4", "clip0.mp4", "clip2.mp4", "notes.txt",
    ]  # fmt: skip
    assert [v.status for v in verdicts] == ["ok", "ok", "ok", "video_error"]
    assert all(str(v.video.rsplit("/")[-1]) in second.stdout for v in verdicts)
    assert "4 videos in" in second.stdout
    html = page.read_text()
    assert html.count("<article") == 4
    assert html.count("<img") == 2  # the earlier verdict comes without frames

    third = run(videos, *options, "--out", out, "--resume", "--json")
    assert (third.exit_code, third.stdout) == (1, "")


def test_keyframes_are_looked_at_on_request_and_verdicts_say_so(tmp_path):
    intra = next(format for format in UNUSUAL if format.name == "mjpeg")
    for format in (intra, USUAL):  # of the usual one only the first frame is a keyframe
        encode(sample_scene(5, 0), format, tmp_path / f"{format.name}{format.suffix}")
    out, page = tmp_path / "v.jsonl", tmp_path / "r.html"
    files = [tmp_path / "mjpeg.mov", tmp_path / "h264.mp4"]
    first = run(*files, "--keyframes", 0.2, "--device", "cpu", "--out", out, "--report", page)
    assert first.exit_code == 0, first.output
    verdicts = [Verdict.from_json(line) for line in out.read_text().splitlines()]
    assert [v.status for v in verdicts] == ["ok", "ok"]
    assert [v.provenance.keyframe_shift_s for v in verdicts] == [0.2, 0.2]
    html = page.read_text()
    assert html.count("keyframes stand in for") == 1
    assert html.count("within 0.2 s") == 2

    again = run(*files, "--device", "cpu", "--out", out, "--resume")
    assert again.exit_code == 2
    assert "keyframes within 0.2, now None" in " ".join(again.stderr.split())


def test_ctrl_c_keeps_what_was_done_and_says_how_to_continue(tmp_path, videos, vlm_dir):
    many = "\n".join(f"{videos}/{'./' * i}clip{i % 3}.mp4" for i in range(400))
    out = tmp_path / "v.jsonl"
    code = "import torch; torch.set_num_threads(1); from safelens.cli import app; app()"
    command = ["moderate", "-", "--model", vlm_dir, "--tau", "0", "--out", out]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, command), "--report", str(tmp_path / "r.html")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    process.stdin.write(many)
    process.stdin.close()
    process.stdin = None
    deadline = time.monotonic() + 120
    while not (out.exists() and out.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    printed, messages = process.communicate(timeout=60)
    assert process.returncode == 130, messages
    assert "of 400 videos; give the same command with --resume to continue" in messages
    assert "Traceback" not in messages
    done = [json.loads(line) for line in out.read_text().splitlines()]
    assert 0 < len(done) < 400
    assert (tmp_path / "r.html").read_text().count("<article") == len(done)
    assert f"{len(done)} video" in printed


# -- policies of one's own --------------------------------------------------------------------------

OWN = """
id: arms
name: Arms
version: "1"
categories:
  - id: guns
    name: Guns
    core_value: Nobody is threatened.
    rules:
      - blocked: A gun is shown.
  - id: kitchen
    name: Kitchen knives
    core_value: Cooking is fine.
    rules:
      - blocked: A knife is pointed at a person.
"""


def test_a_policy_of_ones_own_each_category_read_alone(tmp_path, make_bundle, videos):
    (tmp_path / "my.yaml").write_text(OWN)
    parallel = make_bundle(policy_encoding="parallel", other_policies=True)
    options = ["--bundle", parallel, "--policy", tmp_path / "my.yaml", "--device", "cpu"]
    options += ["--prune", "0.2", "--tau", "0", "--json"]
    options += ["--policy-cache", tmp_path / "cache", "--report", tmp_path / "page.html"]
    found = run(next(videos.iterdir()), *options)
    assert found.exit_code == 0, found.output
    assert "note: The bundle's probe does not know this policy" in found.stderr
    verdict = Verdict.from_json(found.stdout.splitlines()[0])
    assert verdict.provenance.policy_encoding == "parallel"
    assert verdict.provenance.prune_keep == 0.2
    assert verdict.provenance.screen_reader == "labels"
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert (tmp_path / "page.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--prune", "0.1"], "needs policy_encoding: parallel"),
        (["--policy-cache", "x"], "no blocks to keep on disk"),
        (["--policy-encoding", "both"], "parallel"),
        (["--policy-encoding", "parallel"], "--policy-encoding belongs to --model"),
        (["--prune", "0"], "a share above 0"),
    ],
)
def test_how_a_policy_is_read_must_fit_together(bundle_dir, arguments, expected):
    found = run("x.mp4", "--bundle", bundle_dir, *arguments)
    assert found.exit_code == 2
    assert expected in found.output
