import shutil

import av
import numpy as np
import pytest
from PIL import Image

from safelens.data.check import Checker, class_problems
from safelens.data.fingerprint import CLIP_OPTIONS, NEAR_BITS, Fingerprint, fingerprint, near_pairs
from safelens.data.read import read_dataset
from safelens.data.records import Record
from safelens.safeworld import sample_scene
from safelens.safeworld.writer import write_dataset
from safelens.video import VideoReader


def write_video(path, picture, rate=4, frames=12):
    """Encodes `picture(k)`, an RGB array of even sides, as H.264."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        first = picture(0)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        for k in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(k), format="rgb24")))
        container.mux(stream.encode())
    return path


def scene(index, side=96):
    drawn = sample_scene(3, index)
    return lambda k: drawn.render(k / 4, side)


def altered(index):
    """A smaller grey copy with a logo between black bars."""

    def picture(k):
        grey = Image.fromarray(scene(index)(k)).convert("L").convert("RGB").resize((64, 64))
        grey.paste((255, 255, 0), (4, 4, 12, 10))
        framed = np.zeros((64, 96, 3), np.uint8)
        framed[:, 16:80] = np.asarray(grey)
        return framed

    return picture


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two scenes, an exact copy and an altered one of the first, dark videos, a file of noise."""
    folder = tmp_path_factory.mktemp("files")
    a = write_video(folder / "a.mp4", scene(0))
    write_video(folder / "b.mp4", scene(1))
    shutil.copy(a, folder / "copy.mp4")
    write_video(folder / "altered.mp4", altered(0))
    # Nothing to be seen in either, which makes them no copies of each other.
    for name, frames in (("dark", 12), ("black", 16)):
        write_video(
            folder / f"{name}.mp4", lambda k: np.zeros((64, 64, 3), np.uint8), frames=frames
        )
    (folder / "noise.mp4").write_bytes(bytes(range(256)) * 8)
    return folder


def record(files, name, **fields):
    values = {"id": name, "video": str(files / f"{name}.mp4"), "labels": (), "source": "x"}
    return Record(**(values | fields))


def found(records, policy, **options):
    checker = Checker(records, policy, **options)
    checker.look()
    of_classes = ("empty_class", "split_without_class")
    return [(p.kind, p.id, p.other) for p in checker.problems() if p.kind not in of_classes]


def test_missing_unreadable_same_and_nearly_the_same(files, policy):
    names = ("a", "b", "copy", "altered", "dark", "black", "noise", "gone")
    records = [record(files, name) for name in names]
    assert found(records, policy) == [
        ("unreadable_video", "noise", None),
        ("missing_video", "gone", None),
        ("duplicate", "copy", "a"),
        ("near_duplicate", "altered", "a"),
    ]
    assert found(records, policy, near_duplicates=False)[-1] == ("duplicate", "copy", "a")


def test_content_in_two_splits_leaks_and_contradicting_labels_are_named(files, policy):
    records = [
        record(files, "a", split="train"),
        record(files, "b", split="val"),
        record(files, "copy", split="test", labels=("violence",)),
        record(files, "altered", split="val"),
    ]
    assert found(records, policy) == [
        ("label_conflict", "copy", "a"),
        ("leak", "copy", "a"),
        ("leak", "altered", "a"),
    ]


def test_labels_contradict_only_where_both_were_asked(files, policy):
    records = [
        record(files, "a", asked=("sexual",)),
        record(files, "copy", labels=("violence",)),
        record(files, "again", video=str(files / "a.mp4"), asked=("violence",)),
    ]
    kinds = found(records, policy)
    assert ("label_conflict", "copy", "a") not in kinds
    assert [k for k in kinds if k[0] == "duplicate"] == [
        ("duplicate", "copy", "a"), ("duplicate", "again", "a"),
    ]  # fmt: skip
    records[0] = record(files, "a", asked=("violence",))
    assert ("label_conflict", "copy", "a") in found(records, policy)


def test_a_twin_may_look_alike_but_not_be_in_another_split(files, policy):
    twin = record(files, "altered", twin_of="a", split="train")
    assert found([record(files, "a", split="train"), twin], policy) == []
    apart = [record(files, "a", split="test"), twin]
    assert ("leak", "altered", "a") in found(apart, policy)


def test_a_group_in_two_splits_leaks(files, policy):
    records = [
        record(files, "a", group="camera", split="train"),
        record(files, "b", group="camera", split="train"),
        record(files, "dark", group="camera", split="val"),
    ]
    assert found(records, policy) == [("leak", "dark", "a")]


def test_every_video_is_decoded_once_and_an_interrupted_look_is_continued(files, policy):
    records = [record(files, n) for n in ("a", "b", "gone")]
    records.append(record(files, "same", video=str(files / "a.mp4")))
    checker = Checker(records, policy)

    def stop(done):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checker.look(stop)
    assert ("duplicate", "same") in {(p.kind, p.id) for p in checker.problems()}
    assert not any(p.kind == "missing_video" for p in checker.problems())
    progress = []
    checker.look(progress.append)
    assert progress[-1] == len(checker.seen) == 3
    assert any(p.kind == "missing_video" for p in checker.problems())


def test_classes_without_records(policy):
    def of(label, split, **fields):
        labels = () if label == "safe" else (label,)
        return Record(id="x", video="x", labels=labels, source="x", split=split, **fields)

    records = [of(label, "train") for label in policy.labels if label != "extreme"]
    records += [of("violence", "val"), of("safe", "val", asked=("sexual",))]
    problems = [(p.kind, p.message.split(":")[0]) for p in class_problems(records, policy)]
    assert problems[0] == ("empty_class", "no record of class 'extreme'")
    without = [message for kind, message in problems if kind == "split_without_class"]
    # An undecided record is not a safe one.
    assert without == [
        f"val has no record of {label!r}"
        for label in policy.labels
        if label not in ("violence", "extreme")
    ]


def test_distinct_generated_clips_are_not_called_alike(tmp_path, policy):
    write_dataset(tmp_path / "world", clips=12, seed=8, with_twins=True)
    data = read_dataset(tmp_path / "world", policy)
    assert any(r.twin_of for r in data.records)
    assert found(data.records, policy) == []


def test_flat_frames_do_not_count_and_blocks_give_the_same_pairs(monkeypatch):
    rng = np.random.default_rng(0)
    signs = rng.choice([-1, 1], size=(5, 8, 256)).astype(np.int8)
    signs[3] = signs[1]
    signs[3, :, :20] *= -1
    signs[3, 0] = 0
    signs[4] = signs[2]
    signs[4, :5] = 0
    prints = [Fingerprint(s) for s in signs]
    assert list(near_pairs(prints)) == [(1, 3, 20.0)]
    monkeypatch.setattr("safelens.data.fingerprint._BLOCK", 2)
    assert list(near_pairs(prints)) == [(1, 3, 20.0)]
    assert list(near_pairs([])) == []


@pytest.mark.shared
def test_real_near_duplicates_and_no_others(shared_videos):
    paths = sorted(p for p in (shared_videos / "plain").iterdir())
    with VideoReader(CLIP_OPTIONS) as reader:
        prints = [fingerprint(reader.read(path)) for path in paths]
    pairs = {(paths[i].stem, paths[j].stem): bits for i, j, bits in near_pairs(prints)}
    assert set(pairs) == {("chair-original", "chair-with-logo"), ("pattern-hd", "pattern-sd-grey")}
    assert all(0 < bits <= NEAR_BITS for bits in pairs.values())
