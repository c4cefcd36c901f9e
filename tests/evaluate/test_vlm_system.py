"""A plain model: one greedy decoding a video, and nothing that it writes is taken for safe."""

import asyncio

import pytest
import torch

from safelens.bundle import ClipSettings
from safelens.evaluate.styles import STYLES
from safelens.evaluate.system import SystemsError
from safelens.evaluate.vlm_system import VlmSystem
from safelens.prompts import guardrail_answer
from safelens.vlm import VisionLanguageModel

torch.set_num_threads(1)


def system(model, policy, style="safelens", **changes):
    usual = {"clip": ClipSettings(max_side=48), "frame_pixels": 48 * 48, "max_new_tokens": 6}
    return VlmSystem("systems.yaml:2: system 'a'", str(model), style, policy, **(usual | changes))


def ask(one, clips):
    async def all_of_them():
        async with one:
            return [(await one.answer(clip))["generate"] for clip in clips]

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("name", ["qwen3_vl", "internvl", "lfm2_vl"])
def test_what_a_random_model_writes_is_kept_and_counts_as_unparsed(
    family_dirs, clips, policy, name
):
    vlm = VisionLanguageModel.load(family_dirs[name], frame_pixels=48 * 48)
    answers = ask(system(family_dirs[name], policy), clips[:2])
    style = STYLES["safelens"]
    parts = vlm.layout(style.question(policy), system=style.system(policy))
    for answer, clip in zip(answers, clips, strict=False):
        assert answer.outcome == "unparsed"
        assert answer.error.startswith(f"{clip.path}: the answer cannot be read")
        video = vlm.encode_videos([clip.frames], [clip.timestamps])
        assert answer.generated_tokens <= 6
        assert answer.prompt_tokens == len(video[0].ids) + len(vlm.ids(parts.tail)) + len(
            vlm.ids(parts.closing)
        )
        assert answer.gflops > 0
        assert set(answer.seconds) == {"generate"}
        # its first word is what one pass over the whole prompt gives
        head = vlm.prefill_text(parts.head)
        whole = vlm.prefill_videos(head, video, parts.tail + parts.closing)
        first = int(vlm.logits(whole.hidden[0, -1]).argmax())
        assert answer.text.startswith(vlm.tokenizer.decode([first]))


def test_a_whole_answer_decides(vlm_dir, clips, policy, monkeypatch):
    text = guardrail_answer(policy, ["violence", "abuse"])
    monkeypatch.setattr("safelens.vlm_decoding.alone", lambda *_, **__: text)
    [answer] = ask(system(vlm_dir, policy), clips[:1])
    assert (answer.outcome, answer.flags, answer.label) == (
        "decided",
        ("abuse", "violence"),
        "abuse",
    )
    assert (answer.text, answer.scores, answer.confidence) == (text, None, None)


def test_what_an_answer_depends_on(vlm_dir, policy, small_vlm, tmp_path):
    model, processor = small_vlm(seed=5)
    model.save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    known = system(vlm_dir, policy).identity()
    assert system(vlm_dir, policy).identity() == known
    for other in (
        system(tmp_path / "other", policy),
        system(vlm_dir, policy, "safewatch"),
        system(vlm_dir, policy, clip=ClipSettings(max_frames=3)),
        system(vlm_dir, policy, max_new_tokens=7),
        system(vlm_dir, policy, frame_pixels=32 * 32),
    ):
        assert other.identity() != known


def test_a_directory_without_a_model(tmp_path, policy):
    one = system(tmp_path, policy)
    with pytest.raises(SystemsError, match=r"^systems.yaml:2: system 'a': cannot load"):
        ask(one, [])
