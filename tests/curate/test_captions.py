import pytest

from safelens.captioner import Captioner
from safelens.curate.captions import captioned
from safelens.data.records import Record
from safelens.verdict import Caption
from safelens.video import VideoError


class Clips:
    """Reads clips from memory, and notes what is read."""

    def __init__(self, clips):
        self.clips = clips
        self.read_paths = []

    def read(self, path):
        self.read_paths.append(path)
        if path not in self.clips:
            raise VideoError("unreadable", f"{path}: no video; make it anew")
        return self.clips[path]


@pytest.fixture(scope="module")
def captioner(captioner_dir):
    return Captioner.load(captioner_dir, max_new_tokens=4)


@pytest.fixture
def reader(clips):
    return Clips({f"{i}.mp4": clip for i, clip in enumerate(clips[:3])})


def record(name, **fields):
    return Record(id=name, video=f"{name}.mp4", labels=(), source="test", **fields)


def test_one_caption_per_frame_as_the_cascade_will_give_it(captioner, reader, clips):
    found = list(captioned([record("0"), record("1"), record("2")], reader, captioner))
    for (given, reason), clip in zip(found, clips[:3], strict=True):
        assert reason is None
        assert [c.time_s for c in given.captions] == clip.timestamps.tolist()
        assert [c.text for c in given.captions] == captioner.caption(clip.frames)
    assert len({given.captions for given, _ in found}) == 3


@pytest.mark.parametrize("batch", [1, 9, 64])
def test_clips_that_share_a_batch_keep_their_own_captions(captioner, reader, clips, batch):
    names = ["0", "1", "nope", "2", "0"]
    found = list(captioned([record(n) for n in names], reader, captioner, batch=batch))
    assert [given.id for given, _ in found] == names
    for (given, reason), name in zip(found, names, strict=True):
        if name == "nope":
            assert reason
            continue
        assert given.captions == captioner.describe([clips[int(name)]])[0]


def test_what_has_captions_is_left_as_it_is_unless_asked_for(captioner, reader):
    told = record("1", captions=(Caption(time_s=0.5, text="A cat."),))
    found = dict.fromkeys("012")
    for given, _ in captioned([record("0"), told, record("2")], reader, captioner):
        found[given.id] = given
    assert found["1"] == told
    assert reader.read_paths == ["0.mp4", "2.mp4"]
    [(anew, _)] = captioned([told], reader, captioner, replace=True)
    assert len(anew.captions) == len(reader.clips["1.mp4"].frames)
    assert anew == told.model_copy(update={"captions": anew.captions})


def test_a_broken_video_is_said_and_does_not_stop_the_rest(captioner, reader):
    found = list(captioned([record("0"), record("nope"), record("2")], reader, captioner))
    assert [reason for _, reason in found] == [None, "nope.mp4: no video; make it anew", None]
    assert found[1][0] == record("nope")
