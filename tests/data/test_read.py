import json

import pytest

from safelens.data import DataError, read_dataset, read_records
from safelens.safeworld.writer import write_dataset


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A small data set with twins and wrong labels."""
    out = tmp_path_factory.mktemp("data") / "world"
    write_dataset(out, clips=14, seed=3, with_twins=True, noise=0.4)
    return out


def test_what_safeworld_exports_reads_back_to_the_same_labels(world, policy):
    records = read_records(world / "records.jsonl")
    expected = {
        str(r.video_path(world / "records.jsonl")): set(
            r.labels if r.split == "train" else r.true_labels
        )
        for r in records
        if r.split != "val"
    }
    data = read_dataset([world / "safewatch/sft.jsonl", world / "safewatch"], policy)
    assert data.problems == ()
    assert {r.video: set(r.labels) for r in data.records} == expected
    assert any(r.mislabelled for r in records)
    assert {r.split for r in data.records} == {"train", "test"}
    assert all(r.asked is None for r in data.records)


def test_records_of_a_folder_and_of_a_file_are_read_with_absolute_videos(world, policy):
    by_file = read_dataset(world / "records.jsonl", policy)
    assert by_file == read_dataset(world, policy)
    given = read_records(world / "records.jsonl")
    assert [r.id for r in by_file.records] == [r.id for r in given]
    assert by_file.records[0].video == str(world / given[0].video)


def record(**fields) -> str:
    return json.dumps({"id": "a", "video": "a.mp4", "labels": [], "source": "x"} | fields)


def test_a_bad_record_is_left_out_by_its_line_or_id_and_the_rest_is_read(tmp_path, policy):
    disagrees = json.dumps({c.name: c.id == "abuse" for c in policy.categories})
    lines = [
        record(id="good"),
        '{"id": "cut of',
        "[]",
        record(id="typo", labels=["violense"]),
        record(id="good", video="b.mp4"),
        record(id="extra", colour="red"),
        record(id="mute", response="nothing"),
        record(id="torn", labels=["violence"], response=f"GUARDRAIL: {disagrees}"),
        record(id="last", labels=["violence"]),
    ]
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join(lines))
    data = read_dataset(path, policy)
    assert [r.id for r in data.records] == ["good", "last"]
    assert [(p.id, p.kind) for p in data.problems] == [
        (f"{path}:2", "bad_entry"),
        (f"{path}:3", "bad_entry"),
        ("typo", "unknown_label"),
        ("good", "duplicate_id"),
        ("extra", "bad_entry"),
        ("mute", "unreadable_response"),
        ("torn", "response_disagrees"),
    ]
    assert (data.entries, data.left_out) == (9, 7)
    assert all(p.left_out for p in data.problems)


def test_split_and_source_are_for_records_that_do_not_say(tmp_path, policy):
    path = tmp_path / "records.jsonl"
    path.write_text(record(split="val") + "\n" + record(id="b", source=None))
    data = read_dataset(path, policy, split="train", source="mine")
    assert [(r.split, r.source) for r in data.records] == [("val", "x"), ("train", "mine")]


def test_a_table_of_labels(tmp_path, policy):
    folder = tmp_path / "clips"
    folder.mkdir()
    table = folder / "labels.csv"
    table.write_text(
        "File,Label,split,source_group\n"
        "a.mp4,fight,train,s1\n"
        "b.mp4,calm,valid,s2\n"
        'c.mp4,"Threats, Violence & Harm; abuse",,\n'
        "d.mp4,what,,\n"
        "e.mp4,,,\n"
        "f.mp4,safe;abuse,,\n"
        "g.mp4,fight,sometimes,\n"
        "h.mp4\n"
        "a.mp4,fight,train,s1\n"
    )
    data = read_dataset(folder, policy, names={"fight": "violence", "calm": "safe"})
    assert [(r.id, r.labels, r.split, r.group) for r in data.records] == [
        ("clips/a.mp4", ("violence",), "train", "s1"),
        ("clips/b.mp4", (), "val", "s2"),
        ("clips/c.mp4", ("violence", "abuse"), None, None),
    ]
    assert [(p.id, p.kind) for p in data.problems] == [
        ("clips/d.mp4", "unknown_label"),
        ("clips/e.mp4", "unknown_label"),
        ("clips/f.mp4", "unknown_label"),
        ("clips/g.mp4", "bad_entry"),
        (f"{table}:9", "bad_entry"),
        ("clips/a.mp4", "duplicate_id"),
    ]
    assert data.records[0].video == str(folder / "a.mp4")
    assert {r.source for r in data.records} == {"clips"}


def test_videos_are_looked_for_below_the_root(tmp_path, policy):
    path = tmp_path / "lists" / "records.jsonl"
    path.parent.mkdir()
    (tmp_path / "here" / "C1").mkdir(parents=True)
    (tmp_path / "here" / "C1" / "a.mp4").touch()
    path.write_text(
        record(video="/far/away/C1/a.mp4")
        + "\n"
        + record(id="b", video="C1/a.mp4")
        + "\n"
        + record(id="c", video="gone.mp4")
    )
    data = read_dataset(path, policy, videos_root=tmp_path / "here")
    found = str(tmp_path / "here" / "C1" / "a.mp4")
    assert [r.video for r in data.records] == [found, found, str(tmp_path / "here" / "gone.mp4")]
    beside = read_dataset(path, policy).records
    assert beside[0].video == "/far/away/C1/a.mp4"
    assert beside[1].video == str(tmp_path / "lists" / "C1" / "a.mp4")


def test_what_is_no_data_set_is_said_with_what_was_found(tmp_path, policy):
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "other.json").write_text('[{"prompt": "a", "chosen": "b"}]')
    (tmp_path / "cut.json").write_text('[{"id": 1, "video": "a", ')
    (tmp_path / "empty.jsonl").write_text("")
    found = {
        "photo.jpg": "not UTF-8",
        "other.json": "keys prompt, chosen",
        "cut.json": "not JSON",
        "empty.jsonl": "no entry",
        "": "a folder with cut.json, empty.jsonl, other.json, photo.jpg",
    }
    for name, what in found.items():
        with pytest.raises(DataError) as error:
            read_dataset(tmp_path / name, policy)
        assert what in str(error.value)
        assert "folder with labels.csv" in str(error.value)
    with pytest.raises(DataError, match="no such file"):
        read_dataset(tmp_path / "nothing", policy)
    (tmp_path / "t.csv").write_text("name,label\na.mp4,safe\n")
    with pytest.raises(DataError, match="no column for the video"):
        read_dataset(tmp_path / "t.csv", policy)


@pytest.mark.shared
def test_the_fights(shared_videos, policy):
    data = read_dataset(
        shared_videos / "fights", policy, names={"fight": "violence", "noFight": "safe"}
    )
    assert data.problems == ()
    assert sum(r.labels == ("violence",) for r in data.records) == 80
    assert sum(r.labels == () for r in data.records) == 80
    assert all(r.group for r in data.records)
    unmapped = read_dataset(shared_videos / "fights", policy)
    assert (unmapped.records, unmapped.left_out) == ((), 160)
