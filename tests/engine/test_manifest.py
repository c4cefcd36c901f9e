import json
import re

import pyarrow as pa
import pytest
from pyarrow import parquet

from safelens.engine.manifest import Entry, ManifestError, is_manifest, merged, read_manifest

A, B = "a" * 64, "b" * 64


def test_three_forms_say_the_same(tmp_path):
    rows = [{"video": "a.mp4", "sha256": A}, {"video": "/x/b.mp4"}, {"video": "s3://c/d.mp4"}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
    (tmp_path / "m.csv").write_text(
        f"id,video,sha256\r\n1,a.mp4,{A.upper()}\r\n2,/x/b.mp4,\r\n3,s3://c/d.mp4,\r\n"
    )
    columns = {"video": [r["video"] for r in rows], "sha256": [r.get("sha256") for r in rows]}
    parquet.write_table(pa.table(columns), tmp_path / "m.parquet")
    wanted = [Entry(str(tmp_path / "a.mp4"), A), Entry("/x/b.mp4"), Entry("s3://c/d.mp4")]
    for name in ("m.jsonl", "m.csv", "m.parquet"):
        assert is_manifest(name)
        assert read_manifest(str(tmp_path / name)) == wanted
    assert not is_manifest("a.mp4")


def test_a_manifest_in_a_store_is_read_by_its_address(tmp_path):
    (tmp_path / "m.csv").write_text("video\na.mp4\n")
    assert read_manifest(f"file://{tmp_path}/m.csv") == [Entry(f"file://{tmp_path}/a.mp4")]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("m.jsonl", '{"video": "a.mp4"}\n{"vide', "m.jsonl:2: no JSON"),
        ("m.jsonl", '{"path": "a.mp4"}\n', 'm.jsonl:1: expected an object with "video"'),
        ("m.jsonl", '["a.mp4"]\n', 'm.jsonl:1: expected an object with "video"'),
        ("m.jsonl", '\n{"video": 3}\n', "m.jsonl:2: video is 3; expected a path"),
        ("m.jsonl", '{"video": ""}\n', "m.jsonl:1: video is ''"),
        ("m.jsonl", '{"video": "a", "sha256": "ff"}\n', "m.jsonl:1: sha256 is 'ff'; expected 64"),
        ("m.csv", "path,label\na.mp4,1\n", "m.csv:1: no column video; the header says path, label"),
        ("m.csv", "", "m.csv:1: no column video; the header says nothing"),
        ("m.csv", 'video\na.mp4\n"b\n', "m.csv:3: no CSV"),
        ("m.csv", "video,sha256\na.mp4,12\n", "m.csv:2: sha256 is '12'"),
        ("m.parquet", "no parquet", "m.parquet: no Parquet"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(tmp_path, name, text, said):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(ManifestError, match=re.escape(said)):
        read_manifest(str(file))


def test_bytes_that_are_no_text_and_files_that_are_not_there(tmp_path):
    (tmp_path / "m.csv").write_bytes(b"video\n\xff.mp4\n")
    with pytest.raises(ManifestError, match=r"m\.csv: cannot be read"):
        read_manifest(str(tmp_path / "m.csv"))
    with pytest.raises(ManifestError, match=r"gone\.jsonl: cannot be read \(No such file"):
        read_manifest(str(tmp_path / "gone.jsonl"))
    with pytest.raises(ManifestError, match=r"gone\.jsonl: no such object"):
        read_manifest(f"file://{tmp_path}/gone.jsonl")


def test_parquet_without_the_column_and_with_a_gap(tmp_path):
    parquet.write_table(pa.table({"path": ["a"]}), tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="no column video; its columns are path"):
        read_manifest(str(tmp_path / "m.parquet"))
    parquet.write_table(pa.table({"video": ["a", None]}), tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match=r"m\.parquet: row 2: video is None"):
        read_manifest(str(tmp_path / "m.parquet"))


def test_each_video_once_and_never_two_digests():
    assert merged([Entry("a"), Entry("b", B), Entry("a", A)]) == [Entry("a", A), Entry("b", B)]
    with pytest.raises(ManifestError, match="a: is listed with two digests"):
        merged([Entry("a", A), Entry("a", B)])
