import hashlib

import numpy as np
import pytest
import torch

from safelens.data.records import Record
from safelens.domain_features import domain_features
from safelens.screen import LAST_TOKENS, Screener
from safelens.train import states as states_module
from safelens.train.loop import TrainingError
from safelens.train.state_store import Screened, StateStore, video_key
from safelens.train.states import collect_states
from safelens.video import VideoError

ABOUT = {"model": "m", "layout": "policy_first"}


class Clips:
    """Reads clips from memory, notes what is read, and can be interrupted."""

    def __init__(self, clips, broken=(), stop_after=None):
        self.clips = {f"{i}.mp4": clip for i, clip in enumerate(clips)}
        self.broken = broken
        self.left = stop_after
        self.read_paths = []

    def read(self, path):
        if self.left is not None and len(self.read_paths) >= self.left:
            raise KeyboardInterrupt
        self.read_paths.append(path)
        if path in self.broken:
            raise VideoError("unreadable", f"{path}: no video; make it anew")
        return self.clips[path]


@pytest.fixture(scope="module")
def records(policy):
    labels = [(), ("violence",), ("sexual", "abuse"), (), ("extreme",), ()]
    fields = [{"asked": ("violence",)} if i == 3 else {} for i in range(6)]
    return [
        Record(id=f"r{i}", video=f"{i}.mp4", labels=labels[i], source="test", **fields[i])
        for i in range(6)
    ]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(states_module, "CHUNK", 2)


def collect(vlm, policy, records, reader, folder, **options):
    return collect_states(vlm, policy, records, reader, StateStore(folder, ABOUT), **options)


def test_states_are_what_the_screener_sees(vlm, policy, clips, records, tmp_path):
    counted = []
    found = collect(
        vlm, policy, records, Clips(clips), tmp_path, batch=2, on_progress=counted.append
    )
    assert sum(counted) == 6
    assert found.ids == [r.id for r in records]
    assert found.sha256 == [clip.sha256 for clip in clips]
    names = [*policy.labels, "undecided"]
    assert [names[i] for i in found.labels.tolist()] == [
        *("safe", "violence", "sexual", "undecided", "extreme", "safe")
    ]
    screener = Screener(vlm, policy)
    for row, clip in enumerate(clips):
        alone = screener.prefill([clip])
        states = alone.tail_states(0, LAST_TOKENS).half()
        assert torch.allclose(found.question[row].float(), states.float(), atol=2e-2, rtol=2e-2)
        features = domain_features(alone, 0, vlm.patch_shape)
        assert np.allclose(found.features[row], features, atol=1e-3, rtol=1e-3)


def test_interrupted_and_continued_is_the_same_and_computes_nothing_twice(
    vlm, policy, clips, records, tmp_path
):
    whole = collect(vlm, policy, records, Clips(clips, {"1.mp4"}), tmp_path / "whole", batch=2)
    stopped = Clips(clips, {"1.mp4"}, stop_after=5)
    with pytest.raises(KeyboardInterrupt):
        collect(vlm, policy, records, stopped, tmp_path / "parts", batch=2)
    (tmp_path / "parts" / ".0123.part").write_bytes(b"what a kill left")
    again = Clips(clips, {"1.mp4"})
    parts = collect(vlm, policy, records, again, tmp_path / "parts", batch=2)
    assert again.read_paths == ["1.mp4", "4.mp4", "5.mp4"]  # a broken one is tried again
    assert torch.equal(whole.question, parts.question)
    assert np.array_equal(whole.features, parts.features)
    assert parts.ids == whole.ids == ["r0", "r2", "r3", "r4", "r5"]
    assert parts.left_out == whole.left_out == {"r1": "1.mp4: no video; make it anew"}
    none = Clips(clips, {"1.mp4"})
    collect(vlm, policy, records, none, tmp_path / "parts", batch=2)
    assert none.read_paths == ["1.mp4"]


def test_another_order_or_part_or_label_finds_what_is_there(vlm, policy, clips, records, tmp_path):
    whole = collect(vlm, policy, records, Clips(clips), tmp_path)
    some = [r.model_copy(update={"labels": (), "asked": None}) for r in records[4:0:-2]]
    twice = some[0].model_copy(update={"id": "copy"})
    reader = Clips(clips)
    found = collect(vlm, policy, [*some, twice], reader, tmp_path)
    assert reader.read_paths == []
    assert found.ids == ["r4", "r2", "copy"]
    assert torch.equal(found.question, whole.question[[4, 2, 4]])
    assert set(found.labels.tolist()) == {policy.labels.index("safe")}


def test_states_that_are_no_numbers_are_left_out_by_id(vlm, policy, clips, records, tmp_path):
    class Damaged:
        """The model, whose vision tower gives no numbers for one clip."""

        def __getattr__(self, name):
            return getattr(vlm, name)

        def encode_videos(self, frames, timestamps):
            videos = vlm.encode_videos(frames, timestamps)
            for clip, video in zip(frames, videos, strict=True):
                if clip is clips[2].frames:
                    video.pixels[:] = torch.nan
            return videos

    found = collect(Damaged(), policy, records, Clips(clips), tmp_path, batch=2)
    assert found.ids == ["r0", "r1", "r3", "r4", "r5"]
    assert list(found.left_out) == ["r2"]
    assert "no numbers" in found.left_out["r2"]
    assert found.question.isfinite().all()


def test_nothing_readable_and_other_settings_are_said(vlm, policy, clips, records, tmp_path):
    with pytest.raises(TrainingError, match="no clip could be screened"):
        collect(vlm, policy, records[:1], Clips(clips, {"0.mp4"}), tmp_path)
    with pytest.raises(TrainingError, match="another layout, model"):
        StateStore(tmp_path, {"model": "other", "layout": "video_first"})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(TrainingError, match="something else"):
        StateStore(tmp_path / "full", ABOUT)
    bad = tmp_path / "0000000000000000.safetensors"
    bad.write_bytes(b"no tensors")
    with pytest.raises(TrainingError, match=r"0000000000000000\.safetensors: holds no states"):
        StateStore(tmp_path, ABOUT)


def test_a_file_that_cannot_be_written_is_said_and_the_rest_is_whole(tmp_path):
    store = StateStore(tmp_path, ABOUT)
    one = Screened(["a"], ["0"], torch.ones(1, 4, 8).half(), torch.ones(1, 3))
    store.add(one)
    name = hashlib.sha256(b"b").hexdigest()[:16]
    (tmp_path / f"{name}.safetensors").mkdir()
    with pytest.raises(TrainingError, match=r"cannot be written .* is whole: make room"):
        store.add(Screened(["b"], ["1"], one.question, one.features))
    assert "b" not in store
    assert not list(tmp_path.glob(".*"))
    assert torch.equal(store.read(["a"]).question, one.question)


def test_a_replaced_video_is_another(tmp_path):
    video = tmp_path / "v.mp4"
    video.write_bytes(b"one")
    before = video_key(str(video))
    assert video_key(str(video)) == before
    video.write_bytes(b"other")
    assert video_key(str(video)) != before
    assert video_key("nowhere.mp4") == "nowhere.mp4"
