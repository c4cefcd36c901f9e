import json

import pytest

from safelens.data.records import Record, RecordError, iter_records, read_records, write_records
from safelens.verdict import Caption

FULL = Record(
    id="a",
    video="videos/a.mp4",
    labels=("abuse",),
    response='GUARDRAIL: {"Harassment & Bullying": true}',
    captions=(
        Caption(time_s=0.0, text="A ring — „Boxkampf“."),
        Caption(time_s=1.5, text="A fall."),
    ),
    scores={"abuse": 0.75, "safe": 0.25},
    source="safeworld",
    split="train",
    true_labels=("violence",),
    scenario="violence/fighting",
    twin_of=None,
    interval=(0.5, 1.5),
    difficulty="order",
    tags=("ring",),
    description="Two figures.",
    explanation="One strikes the other.",
)
PLAIN = Record(id="b", video="/abs/b.mp4", labels=(), source="folder")


def test_round_trip_keeps_every_field(tmp_path):
    path = tmp_path / "deep" / "records.jsonl"
    assert write_records(path, [FULL, PLAIN]) == 2
    assert read_records(path) == [FULL, PLAIN]
    assert sorted(p.name for p in path.parent.iterdir()) == ["records.jsonl"]
    first, second = path.read_text("utf-8").splitlines()
    assert json.loads(first)["captions"][0] == {"time_s": 0.0, "text": "A ring — „Boxkampf“."}
    assert json.loads(second) == {
        "id": "b", "video": "/abs/b.mp4", "labels": [], "captions": [], "source": "folder",
        "tags": [],
    }  # fmt: skip


def test_derived_values(tmp_path):
    assert (FULL.label, PLAIN.label) == ("abuse", "safe")
    assert (FULL.mislabelled, PLAIN.mislabelled) == (True, None)
    assert FULL.video_path(tmp_path / "records.jsonl") == tmp_path / "videos/a.mp4"
    assert str(PLAIN.video_path(tmp_path / "records.jsonl")) == "/abs/b.mp4"


GOOD = '{"id": "a", "video": "a.mp4", "labels": [], "source": "x"}'


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{oops", "not JSON"),
        ("[1]", "expected a JSON object, found list"),
        ('{"id": "b", "video": "b.mp4", "source": "x"}', "labels: Field required"),
        ('{"id": "b", "video": "b.mp4", "labels": "abuse", "source": "x"}', "labels: "),
        (
            '{"id": "b", "video": "b.mp4", "labels": ["safe"], "source": "x"}',
            "leave the list empty",
        ),
        ('{"id": "b", "video": "b.mp4", "labels": ["a", "a"], "source": "x"}', "twice"),
        ('{"id": "b", "video": "b.mp4", "labels": [], "source": "x", "splt": 1}', "splt: Extra"),
        ('{"id": "b", "video": "b.mp4", "labels": [], "source": "x", "split": "dev"}', "'train'"),
        (
            '{"id": "b", "video": "b.mp4", "labels": [], "source": "x", "interval": [2, 1]}',
            "interval [2.0, 1.0]",
        ),
        (GOOD, "id 'a' was used on line 1"),
    ],
)
def test_errors_name_file_and_line(tmp_path, line, expected):
    path = tmp_path / "records.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n")
    with pytest.raises(RecordError) as caught:
        read_records(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert expected in str(caught.value)


def test_good_lines_come_before_a_bad_one(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(f"{GOOD}\nnot json\n")
    records = iter_records(path)
    assert next(records).id == "a"
    with pytest.raises(RecordError, match=":2: not JSON"):
        next(records)


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(RecordError, match="No such file"):
        read_records(tmp_path / "none.jsonl")
    (tmp_path / "video.mp4").write_bytes(b"\x00\xff\xfe\x80")
    with pytest.raises(RecordError, match="not UTF-8"):
        read_records(tmp_path / "video.mp4")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "records.jsonl"
    write_records(path, [PLAIN])

    def broken():
        yield FULL
        raise RuntimeError("source failed")

    with pytest.raises(RuntimeError):
        write_records(path, broken())
    assert read_records(path) == [PLAIN]


def test_a_record_that_asked_for_a_part_is_undecided_where_it_flags_nothing():
    fields = {"id": "a", "video": "a.mp4", "source": "x"}
    assert Record(labels=(), asked=("abuse",), **fields).undecided
    assert not Record(labels=("abuse",), asked=("abuse",), **fields).undecided
    assert not Record(labels=(), **fields).undecided
    with pytest.raises(ValueError, match="not among asked"):
        Record(labels=("violence",), asked=("abuse",), **fields)
