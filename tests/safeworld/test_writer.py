import hashlib
import json
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import av
import numpy as np
import pytest
from PIL import Image

from safelens.data.records import read_records
from safelens.policy import Policy
from safelens.prompts import guardrail_answer, parse_response
from safelens.safeworld import sample_scene
from safelens.safeworld.encode import UNUSUAL, USUAL, encode, format_of, frame_times, is_complete
from safelens.safeworld.writer import DatasetError, clip_id, split_of, write_dataset

SEED, CLIPS = 11, 10


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    out = tmp_path_factory.mktemp("world") / "data"
    steps = []
    about = write_dataset(
        out, clips=CLIPS, seed=SEED, noise=0.5, with_twins=True, on_progress=steps.append
    )
    return out, about, steps


def decode(path):
    with av.open(str(path)) as container:
        frames = [(f.time, f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    return np.array([t for t, _ in frames]), [picture for _, picture in frames]


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_records_tell_the_truth_of_their_scenes(dataset):
    out, about, steps = dataset
    records = read_records(out / "records.jsonl")
    assert [step.done for step in steps] == list(range(1, CLIPS + 1))
    originals = [r for r in records if r.twin_of is None]
    assert [r.id for r in originals] == [clip_id(SEED, k) for k in range(CLIPS)]
    for index, record in enumerate(originals):
        scene = sample_scene(SEED, index)
        assert record.true_labels == scene.truth.labels
        assert record.scenario == scene.truth.scenario
        if scene.truth.interval is None:
            assert record.interval is None
        else:
            # The file ends on a whole frame, at most half of one from the scene's end.
            half = 0.5 / (format_of(SEED, index).fps or scene.fps)
            assert record.interval[0] == scene.truth.interval[0]
            assert 0 <= scene.truth.interval[1] - record.interval[1] <= half + 1e-9
        assert record.split == split_of(SEED, index)
        for caption in record.captions:
            assert caption.text == scene.caption(caption.time_s)
    assert about["counts"]["videos"] == len(records)
    assert json.loads((out / "safeworld.json").read_text()) == about


def test_every_violating_clip_has_one_safe_twin_in_its_own_part(dataset):
    out, _, _ = dataset
    records = {r.id: r for r in read_records(out / "records.jsonl")}
    twins = {r.twin_of: r for r in records.values() if r.twin_of}
    assert set(twins) == {r.id for r in records.values() if r.true_labels}
    for original, twin in twins.items():
        assert twin.true_labels == ()
        assert twin.split == records[original].split
        assert twin.video.rsplit(".")[-1] == records[original].video.rsplit(".")[-1]


def test_videos_hold_the_scenes_frames_at_their_times(dataset):
    out, _, _ = dataset
    for index in range(3):
        scene, format = sample_scene(SEED, index), format_of(SEED, index)
        path = out / "videos" / f"{clip_id(SEED, index)}{format.suffix}"
        times, pictures = decode(path)
        np.testing.assert_allclose(times, frame_times(scene, format), atol=2e-3)
        assert pictures[0].shape == (format.size[1], format.size[0], 3)
        if format == USUAL:
            middle = len(times) // 2
            drawn = scene.render(times[middle], 256).astype(float)
            assert np.abs(pictures[middle] - drawn).mean() < 6
            other = sample_scene(SEED, index + 1).render(times[middle], 256)
            assert np.abs(pictures[middle] - other.astype(float)).mean() > 12


def test_noise_is_on_the_train_part_only_and_the_response_follows_the_label(dataset):
    out, about, _ = dataset
    policy = Policy.load("default")
    records = read_records(out / "records.jsonl")
    wrong = [r for r in records if r.mislabelled]
    assert wrong
    assert about["counts"]["mislabelled"] == len(wrong)
    assert {r.split for r in wrong} == {"train"}
    for record in records:
        assert record.response == guardrail_answer(policy, record.labels)


def test_a_second_run_keeps_videos_and_a_damaged_one_is_redrawn(dataset, tmp_path):
    out, about, _ = dataset
    before = {p.name: (sha256(p), p.stat().st_mtime_ns) for p in (out / "videos").iterdir()}
    victim = out / "videos" / sorted(before)[0]
    victim.write_bytes(victim.read_bytes()[:-700])
    (out / "videos" / ".leftover.mp4.part").write_bytes(b"x")
    lines = (out / "records.jsonl").read_bytes()
    steps = []
    write_dataset(out, clips=CLIPS, seed=SEED, noise=0.5, with_twins=True, on_progress=steps.append)
    after = {p.name: (sha256(p), p.stat().st_mtime_ns) for p in (out / "videos").iterdir()}
    assert {name: digest for name, (digest, _) in after.items()} == {
        name: digest for name, (digest, _) in before.items()
    }
    assert [name for name in after if after[name] != before[name]] == [victim.name]
    assert steps[-1].reused == about["counts"]["videos"] - 1
    assert (out / "records.jsonl").read_bytes() == lines


def test_two_processes_write_the_same_bytes_as_one(dataset, tmp_path):
    out, _, _ = dataset
    again = write_dataset(tmp_path / "b", clips=4, seed=SEED, noise=0.5, with_twins=True, jobs=2)
    names = sorted(p.name for p in (tmp_path / "b/videos").iterdir())
    assert len(names) == again["counts"]["videos"]
    for name in names:
        assert sha256(tmp_path / "b/videos" / name) == sha256(out / "videos" / name)
    first = (out / "records.jsonl").read_text().splitlines()
    assert (tmp_path / "b/records.jsonl").read_text().splitlines() == first[: len(names)]


@pytest.mark.parametrize("format", [USUAL, *UNUSUAL], ids=lambda f: f.name)
def test_every_format_decodes_is_repeatable_and_is_checked(tmp_path, format):
    scene = sample_scene(SEED, 0)
    path = tmp_path / f"a{format.suffix}"
    encode(scene, format, path)
    times, pictures = decode(path)
    assert is_complete(path, scene, format)
    expected = frame_times(scene, format)
    assert pictures[0].shape[:2] == format.size[::-1]
    if format.name == "gif":
        assert times[-1] <= expected[-1] + 0.01
    else:
        np.testing.assert_allclose(times, expected, atol=2e-3)
    digest = sha256(path)
    encode(scene, format, path)
    assert sha256(path) == digest
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert not is_complete(path, scene, format)


def test_about_eight_in_a_hundred_are_unusual_and_all_kinds_occur():
    names = Counter(format_of(0, k).name for k in range(3000))
    share = 1 - names["h264"] / 3000
    assert abs(share - 0.08) < 4 * (0.08 * 0.92 / 3000) ** 0.5
    assert set(names) == {f.name for f in (USUAL, *UNUSUAL)}


def test_parts_are_80_10_10():
    parts = Counter(split_of(1, k) for k in range(5000))
    assert abs(parts["train"] - 4000) < 120
    assert abs(parts["val"] - 500) < 90
    assert abs(parts["test"] - 500) < 90


def test_safewatch_files_have_the_public_layout(tmp_path):
    # Ten clips hold too few of the test part; labels alone need no drawing.
    from safelens.data.records import Record
    from safelens.safeworld.export import write_safewatch

    policy = Policy.load("default")
    records = []
    for index in range(150):
        for twin in (False, True):
            scene = sample_scene(SEED, index)
            if twin and not scene.truth.labels:
                continue
            truth = (scene.twin() if twin else scene).truth
            name = clip_id(SEED, index, twin=twin)
            records.append(
                Record(
                    id=name, video=f"videos/{name}.mp4", labels=truth.labels, source="safeworld",
                    split=split_of(SEED, index), true_labels=truth.labels,
                    scenario=truth.scenario, description=truth.description,
                    explanation=truth.explanation,
                )
            )  # fmt: skip
    write_safewatch(tmp_path, records, policy)
    test = {r.id: r for r in records if r.split == "test"}
    ids = policy.labels
    seen = []
    for path in (tmp_path / "safewatch").glob("genai/C*/*_benchmark.json"):
        number = int(path.parent.name[1:])
        for entry in json.loads(path.read_text()):
            assert set(entry) == {"video_path", "labels", "subcategories"}
            record = test[entry["video_path"].removeprefix("../videos/").removesuffix(".mp4")]
            seen.append(record.id)
            assert {ids[k - 1] for k in entry["labels"]} == set(record.true_labels)
            if entry["labels"]:
                assert number in entry["labels"]
                assert path.name == f"{entry['subcategories'][0]}_benchmark.json"
            else:
                assert path.name == "benign_benchmark.json"
                assert entry["subcategories"] == []
    assert sorted(seen) == sorted(test)

    sft = (tmp_path / "safewatch/sft.jsonl").read_text("utf-8")
    entries = [json.loads(line) for line in sft.splitlines()]
    train = [r for r in records if r.split == "train"]
    assert [e["id"] for e in entries] == list(range(1, len(train) + 1))
    for entry, record in zip(entries, train, strict=True):
        human, gpt = entry["conversations"]
        assert (human["from"], gpt["from"]) == ("human", "gpt")
        assert human["value"].startswith("<video>\n")
        fields = [gpt["value"].index(f"{f}:") for f in ("DESCRIPTION", "GUARDRAIL", "EXPLANATION")]
        assert all(a < b for a, b in pairwise(fields))
        flags = parse_response(policy, gpt["value"]).flags
        assert {k for k, flag in flags.items() if flag} == set(record.labels)


def test_the_sheet_shows_a_picture_a_scenario(dataset):
    out, _, _ = dataset
    with Image.open(out / "samples.png") as sheet:
        assert sheet.width > 1000
        assert sheet.height >= 190
        colours = sheet.convert("RGB").getcolors(1 << 20)
    assert colours is not None
    assert len(colours) > 50


def test_a_folder_of_something_else_is_refused(dataset, tmp_path):
    out, _, _ = dataset
    with pytest.raises(DatasetError, match=f"another seed .{SEED}; now 12"):
        write_dataset(out, clips=2, seed=12)
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(DatasetError, match=r"not empty and holds no safeworld\.json"):
        write_dataset(tmp_path, clips=2, seed=1)
    assert [p.name for p in tmp_path.iterdir()] == ["holiday.jpg"]
    with pytest.raises(DatasetError, match="is a file"):
        write_dataset(tmp_path / "holiday.jpg", clips=2, seed=1)
    with pytest.raises(DatasetError, match="at least 1"):
        write_dataset(tmp_path / "new", clips=0, seed=1)
    assert not (tmp_path / "new").exists()


def test_an_interrupt_leaves_whole_videos_and_the_next_run_continues(tmp_path):
    def stop(progress):
        if progress.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "w", clips=4, seed=SEED, on_progress=stop)
    assert json.loads((tmp_path / "w/safeworld.json").read_text())["complete"] is False
    assert len(list((tmp_path / "w/videos").iterdir())) == 2
    steps = []
    about = write_dataset(tmp_path / "w", clips=4, seed=SEED, on_progress=steps.append)
    assert about["complete"]
    assert steps[-1].reused == 2


def test_workers_start_without_torch():
    code = "import sys, safelens.safeworld.writer; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"
