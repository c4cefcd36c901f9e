import json
import re
import subprocess
import sys

import pytest
from pyarrow import parquet

from safelens.engine import verdicts
from safelens.engine.manifest import Entry
from safelens.engine.verdicts import VerdictFolder, read_verdicts
from safelens.line_log import LogError
from safelens.verdict import CategoryScore, ErrorInfo, Provenance, Verdict

PROVENANCE = Provenance(package="0.1.0", bundle="tiny 1", policy="p", policy_sha256="a", tau=0.8)
A, B = "a" * 64, "b" * 64


def good(video, sha256, **fields):
    category = CategoryScore(id="abuse", name="Abuse", flagged=False, score=0.1)
    values = {
        "video": video, "sha256": sha256, "status": "ok", "flagged": False, "label": "safe",
        "confidence": 0.9, "categories": [category], "decided_by": "screen",
        "provenance": PROVENANCE,
    }  # fmt: skip
    return Verdict(**(values | fields)).to_json()


def failed(video, sha256=None, status="model_error"):
    error = ErrorInfo(code="x", message=f"{video}: broken")
    fields = {"video": video, "sha256": sha256, "status": status}
    return Verdict(**fields, error=error, provenance=PROVENANCE).to_json()


def lines(folder, pattern="verdicts-*.jsonl"):
    return [
        json.loads(line)["video"]
        for file in sorted(folder.glob(pattern))
        for line in file.read_text().splitlines()
    ]


def test_the_same_bytes_are_written_once(tmp_path):
    folder = VerdictFolder(tmp_path)
    for video in ("a", "copy of a", "a"):
        folder.add(good(video, A), {})
    folder.add(failed("gone", status="video_error"), {})
    folder.add(failed("gone", status="video_error"), {})
    assert lines(tmp_path) == ["a", "gone"]
    assert lines(tmp_path, "copies.jsonl") == ["copy of a"]
    assert (folder.known(A), folder.known(B)) == (True, False)
    assert folder.outcomes == {"safe": 1, "error": 1}
    folder.close()
    again = VerdictFolder(tmp_path)
    assert all(again.knows(Entry(video)) for video in ("a", "copy of a", "gone"))
    assert not again.knows(Entry("b"))
    again.add(good("a", A), {})
    assert lines(tmp_path) == ["a", "gone"]
    assert again.outcomes == {"safe": 1, "error": 1}


def test_a_digest_in_the_manifest_decides_and_not_the_path(tmp_path):
    folder = VerdictFolder(tmp_path)
    folder.add(good("a", A), {})
    assert folder.knows(Entry("elsewhere", A))
    assert lines(tmp_path, "copies.jsonl") == ["elsewhere"]
    assert not folder.knows(Entry("a", B))
    folder.add(good("a", B), {"a": B})
    assert folder.knows(Entry("a", B))
    assert lines(tmp_path) == ["a", "a"]  # other bytes, so another key


def test_a_file_with_other_bytes_than_the_manifest_says_is_done_once(tmp_path):
    folder = VerdictFolder(tmp_path)
    folder.add(good("a", A), {"a": B})
    folder.add(failed("gone", status="video_error"), {"gone": B})
    for _ in range(2):
        assert folder.knows(Entry("a", B))
        assert folder.knows(Entry("gone", B))
        assert not folder.knows(Entry("other", B))
        folder.close()
        folder = VerdictFolder(tmp_path)
    assert lines(tmp_path) == ["a", "gone"]


def test_a_line_that_a_kill_cut_off_is_replaced(tmp_path):
    folder = VerdictFolder(tmp_path)
    folder.add(good("a", A), {})
    folder.close()
    shard = tmp_path / "verdicts-00000.jsonl"
    shard.write_text(shard.read_text() + good("b", B)[:50])
    assert [v.video for v in read_verdicts(tmp_path)] == ["a"]
    folder = VerdictFolder(tmp_path)
    assert not folder.knows(Entry("b"))
    folder.add(good("c", "c" * 64), {})
    assert [v.video for v in read_verdicts(tmp_path)] == lines(tmp_path) == ["a", "c"]


def test_shards_follow_one_another(tmp_path):
    for _ in range(2):
        folder = VerdictFolder(tmp_path, shard=2)
        for number in range(5):
            folder.add(good(f"{number}", f"{number:02}" * 32), {})
        folder.close()
    assert lines(tmp_path, "verdicts-00001.jsonl") == ["2", "3"]
    assert lines(tmp_path, "verdicts-00002.jsonl") == ["4"]
    folder = VerdictFolder(tmp_path, shard=2)
    folder.add(good("5", "05" * 32), {})
    folder.add(good("6", "06" * 32), {})
    assert lines(tmp_path) == list("0123456")


def test_parquet_takes_the_place_of_full_shards(tmp_path):
    folder = VerdictFolder(tmp_path, form="parquet", shard=2)
    wanted = [good(f"{number}", f"{number:02}" * 32) for number in range(3)]
    for line in wanted:
        folder.add(line, {})
    assert lines(tmp_path) == ["2"]
    table = parquet.read_table(tmp_path / "verdicts-00000.parquet").to_pylist()
    assert [row["video"] for row in table] == ["0", "1"]
    assert table[0]["flagged"] is False
    assert table[0]["confidence"] == 0.9
    assert [v.to_json() for v in read_verdicts(tmp_path)] == wanted
    folder.close()
    assert lines(tmp_path) == []
    assert [v.to_json() for v in read_verdicts(tmp_path)] == wanted
    # A kill between the two forms of a shard leaves both.
    (tmp_path / "verdicts-00000.jsonl").write_text("".join(line + "\n" for line in wanted[:2]))
    assert [v.to_json() for v in read_verdicts(tmp_path)] == wanted
    folder = VerdictFolder(tmp_path, form="parquet", shard=2)
    assert lines(tmp_path) == []
    for number in range(5):
        folder.add(good(f"{number}", f"{number:02}" * 32), {})
    assert [v.video for v in read_verdicts(tmp_path)] == list("01234")


def test_what_failed_lies_aside_until_it_is_tried_again(tmp_path):
    folder = VerdictFolder(tmp_path)
    folder.add(failed("a", A), {})
    assert lines(tmp_path) == []
    assert [v.status for v in read_verdicts(tmp_path)] == ["model_error"]
    folder.close()
    folder = VerdictFolder(tmp_path)
    assert folder.knows(Entry("a"))
    folder.close()
    folder = VerdictFolder(tmp_path)
    folder.forget_failed()
    assert not +folder.outcomes
    assert not folder.knows(Entry("a"))
    folder.add(good("a", A), {})
    assert [v.status for v in read_verdicts(tmp_path)] == ["ok"]


HOLD = """
import sys, time
from pathlib import Path
from safelens.engine.verdicts import VerdictFolder
folder = VerdictFolder(Path(sys.argv[1]))
print("here", flush=True)
time.sleep(600)
"""


def test_two_do_not_write_at_once(tmp_path, monkeypatch):
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "here\n"
            monkeypatch.setattr(verdicts, "_LOCK_WAIT_S", 0.2)
            with pytest.raises(LogError, match="another run is writing there"):
                VerdictFolder(tmp_path)
        finally:
            other.kill()
    VerdictFolder(tmp_path).close()


def test_a_folder_of_other_settings_is_refused(tmp_path):
    folder = VerdictFolder(tmp_path)
    folder.claim(PROVENANCE)
    folder.claim(PROVENANCE.model_copy(update={"package": "9"}))
    with pytest.raises(LogError, match=re.escape("tau 0.8, now 0.9")):
        folder.claim(PROVENANCE.model_copy(update={"tau": 0.9}))
    folder.close()
    with pytest.raises(LogError, match=re.escape("form 'jsonl', now 'parquet'")):
        VerdictFolder(tmp_path, form="parquet").claim(PROVENANCE)


def test_paths_that_are_no_text(tmp_path):
    folder = VerdictFolder(tmp_path)
    folder.add(good("na\udcefve.mp4", A), {})
    assert folder.knows(Entry("na\udcefve.mp4"))
