"""Three ways on a small bundle: who is asked what, and how long answers are."""

import pytest
import torch

from safelens import prompts
from safelens.bench.agreement import measure
from safelens.bench.systems import Naive, Ours, PaperStyle, clip_of, few_of, share_unsure
from safelens.cascade import SafeLens
from safelens.policy import SAFE
from safelens.video import VideoError

torch.set_num_threads(1)
LENGTH = 110


@pytest.fixture(scope="module")
def lens(bundle_dir):
    with SafeLens.load(bundle_dir, device="cpu") as found:
        yield found


@pytest.fixture(scope="module")
def unsure(lens, videos):
    return share_unsure(lens, videos, 0.34)


def test_as_many_are_unsure_as_asked_for(lens, videos, unsure):
    assert len(unsure) == 2
    decided = {m.verdict.video: m.verdict.decided_by for m in lens.moderate_many(videos)}
    assert {path for path in videos if decided[str(path)] == "deliberate"} == unsure


def test_all_are_asked_or_s2_the_unsure_alone(lens, videos, unsure, policy):
    naive = Naive(lens, LENGTH).run(videos)
    assert naive.tokens == LENGTH * len(videos)
    assert set(naive.seconds) == {"decode", "prepare", "generate"}
    paper = PaperStyle(lens, LENGTH, unsure).run(videos)
    assert paper.tokens == LENGTH * len(unsure)
    assert set(paper.seconds) == {"decode", "screen", "caption", "deliberate"}
    ours = Ours(lens, LENGTH).run(videos)
    forced = len(lens.screener.vlm.ids("\n" + prompts.guardrail_answer(policy, [])))
    assert ours.tokens <= (LENGTH - forced) * len(unsure)
    assert ours.tokens > 0
    assert ours.gflops > 0
    for done in (naive, paper, ours):
        assert len(done.labels) == len(videos)
        assert set(done.labels) <= {None, SAFE, *(c.id for c in policy.categories)}
        assert all(seconds > 0 for seconds in done.seconds.values())
    for path, label in zip(videos, paper.labels, strict=True):
        assert (label is None) or path not in unsure


def test_what_the_plain_pipeline_reads(lens, videos, policy):
    plain = Naive(lens, None)
    clip = clip_of(lens, videos[0])
    text = plain.vlm.processor.decode(plain.inputs(clip, " AND MORE")["input_ids"][0])
    video = text.index("<|video_pad|>")
    assert video < text.index(policy.categories[0].name) < text.index("AND MORE")
    assert f"<{clip.timestamps[:2].mean():.1f} seconds>" in text
    states = plain.states(plain.inputs(clip, ""))
    assert states.shape == (100, plain.vlm.hidden_size)


def test_a_file_without_frames_is_an_error(lens, tmp_path):
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(VideoError, match="is empty"):
        Naive(lens, None).run([tmp_path / "empty.mp4"])
    with pytest.raises(RuntimeError, match="is empty"):
        Ours(lens, None).run([tmp_path / "empty.mp4"])


def test_few_have_the_share_of_all(tmp_path):
    paths = [tmp_path / str(i) for i in range(12)]
    unsure = set(paths[6:10])
    few = few_of(paths, unsure, 3)
    assert few == [paths[0], paths[1], paths[6]]
    assert few_of(paths, unsure, 12) == paths


def test_fast_and_plain_say_the_same(lens, bundle_dir, videos):
    with SafeLens.load(bundle_dir, device="cpu") as theirs:
        found = measure(lens, theirs, [clip_of(lens, path) for path in videos[:3]])
    assert found["clips"] == found["screen"]["same_label"] == 3
    assert found["screen"]["largest_difference"] < 1e-3
    assert 0 < found["screen"]["of_states"] < 1e-3
    assert found["deliberate"]["same_flags"] == found["deliberate"]["same_text"] == 3
    assert found["deliberate"]["largest_difference"] < 1e-3
