"""Systems of other families than Qwen3-VL: one model alone, and a bundle of two families."""

import pytest
import torch

from safelens import SafeLens
from safelens.bundle_parts import Parts
from safelens.deliberate import Deliberator
from safelens.pack import pack
from safelens.screen import Screener
from safelens.vlm import VisionLanguageModel

torch.set_num_threads(1)


@pytest.mark.parametrize("name", ["internvl", "lfm2_vl"])
def test_deliberation_continues_the_screens_cache(family_dirs, policy, clips, name):
    vlm = VisionLanguageModel.load(family_dirs[name], frame_pixels=48 * 48)
    screener = Screener(vlm, policy)
    deliberator = Deliberator(vlm, policy, adapter=None, max_new_tokens=6)
    screened = screener.screen(clips[1:4])
    for s1, clip in zip(screened[1:], clips[2:4], strict=True):
        spent = s1.spent.prompt
        found = deliberator.deliberate(s1.context, (), s1.scores)
        alone = deliberator.deliberate(deliberator.read_video(clip), (), s1.scores)
        assert found.text == alone.text
        assert list(found.scores.values()) == pytest.approx(list(alone.scores.values()), abs=1e-5)
        assert s1.spent.prompt > spent


@pytest.mark.parametrize(
    ("screen", "reasoner", "with_adapter"),
    [("lfm2_vl", "qwen3_vl", True), ("internvl", "lfm2_vl", False)],
)
def test_a_bundle_of_two_families(
    family_dirs,
    captioner_dir,
    adapter_dir,
    policy,
    videos,
    tmp_path,
    screen,
    reasoner,
    with_adapter,
):
    parts = Parts(
        model=str(family_dirs[screen]),
        captioner=str(captioner_dir),
        policy=policy,
        reasoner=str(family_dirs[reasoner]),
        adapter=str(adapter_dir) if with_adapter else None,
    )
    settings = {
        "name": "two",
        "version": "1",
        "tau": 1.01,
        "clip": {"max_side": 48, "max_frames": 3},
        "screen": {"frame_pixels": 48 * 48},
        "deliberate": {"max_new_tokens": 4, "max_caption_tokens": 3},
    }
    pack(parts, tmp_path / "two", settings)
    with SafeLens.load(tmp_path / "two", device="cpu") as lens:
        kinds = [x.vlm.model.config.model_type for x in (lens.screener, lens.deliberator)]
        assert kinds == [screen, reasoner]
        found = lens.moderate(videos[0])
        verdict = found.verdict
        assert (verdict.status, verdict.decided_by) == ("ok", "deliberate")
        s1 = lens.screener.screen([found.clip])[0]
        context = lens.deliberator.read_video(found.clip)
        alone = lens.deliberator.deliberate(context, verdict.captions, s1.scores)
        assert [c.score for c in verdict.categories] == pytest.approx(
            list(alone.scores.values()), abs=1e-4
        )
        assert verdict.cost.generated_tokens == context.spent.generated
