import pytest
import torch

from safelens import prompts
from safelens.deliberate import ADAPTER, Deliberator
from safelens.policy import Category, Policy, Rule
from safelens.screen import Screener
from safelens.verdict import Caption
from safelens.vlm import VisionLanguageModel

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def adapted(vlm_dir, adapter_dir):
    model = VisionLanguageModel.load(vlm_dir, frame_pixels=48 * 48)
    model.load_adapter(adapter_dir, ADAPTER)
    return model


@pytest.fixture(scope="module")
def screener(adapted, policy):
    return Screener(adapted, policy)


def captions_of(clip):
    return [Caption(time_s=float(t), text=f"A frame at {t}.") for t in clip.timestamps]


@torch.no_grad()
def by_hand(vlm, policy, screener, clip, s1, budget):
    """The same algorithm, each token from one uncached run with the adapter masked off the prefix."""
    parts = screener.parts
    (video,) = vlm.encode_videos([clip.frames], [clip.timestamps])
    prefix = torch.cat([vlm.ids(parts.head), video.ids, vlm.ids(parts.tail)])
    request = prompts.deliberation_request(policy, captions_of(clip), s1.scores)
    ids = torch.cat([prefix, vlm.ids(request + parts.closing + "DESCRIPTION:")])

    def logits():
        mask = (torch.arange(len(ids)) >= len(prefix))[None, :, None]
        hooks = [
            m.register_forward_hook(lambda _m, _i, out: out * mask)
            for name, m in vlm.model.named_modules()
            if name.endswith(f"lora_B.{ADAPTER}")
        ]
        vlm.model.enable_adapters()
        vlm.model.model.rope_deltas = None
        out = vlm.model(
            input_ids=ids[None],
            mm_token_type_ids=(ids == vlm.model.config.video_token_id).int()[None] * 2,
            pixel_values_videos=video.pixels,
            video_grid_thw=video.grid,
        ).logits[0, -1]
        vlm.model.disable_adapters()
        for hook in hooks:
            hook.remove()
        return out

    written = []
    for _ in range(budget):
        written.append(int(logits().argmax()))
        ids = torch.cat([ids, torch.tensor(written[-1:])])
    text = vlm.tokenizer.decode(written, skip_special_tokens=True)
    assert "GUARDRAIL" not in text
    if not text.endswith("\n"):
        ids = torch.cat([ids, vlm.ids("\n")])
    scores = {}
    true, false = vlm.ids(prompts.TRUE), vlm.ids(prompts.FALSE)
    for category, piece in zip(policy.categories, prompts.answer_skeleton(policy), strict=False):
        ids = torch.cat([ids, vlm.ids(piece)])
        at = logits()
        scores[category.id] = float(torch.sigmoid(at[true[0]] - at[false[0]]))
        ids = torch.cat([ids, true if scores[category.id] > 0.5 else false])
    return text, scores


def test_equals_the_algorithm_by_hand_without_a_cache(adapted, policy, screener, clips):
    clip = clips[0]
    s1 = screener.screen([clip])[0]
    s2 = Deliberator(adapted, policy, max_new_tokens=4)
    found = s2.deliberate(s1.context, captions_of(clip), s1.scores)
    text, scores = by_hand(adapted, policy, screener, clip, s1, 4)
    assert found.text.startswith(f"DESCRIPTION:{text.rstrip()}")
    for name in scores:
        assert found.scores[name] == pytest.approx(scores[name], abs=2e-3)
    assert found.flags == {name: p > 0.5 for name, p in found.scores.items()}
    assert len({round(p, 4) for p in scores.values()}) > 3


def test_any_clip_gives_a_well_formed_answer(adapted, policy, screener, make_clip):
    s2 = Deliberator(adapted, policy, max_new_tokens=12)
    texts = set()
    for index in range(20):
        clip = make_clip(index, 2 + index % 3)
        s1 = screener.screen([clip])[0]
        context = s1.context
        before = context.length
        found = s2.deliberate(context, captions_of(clip), s1.scores if index % 2 else None)
        response = prompts.parse_response(policy, found.text)
        assert response.flags == found.flags
        assert list(found.flags) == [c.id for c in policy.categories]
        assert all(0 <= p <= 1 for p in found.scores.values())
        assert found.text.splitlines()[-1] == prompts.guardrail_answer(
            policy, [n for n, flag in found.flags.items() if flag]
        )
        assert context.spent.generated <= 12
        assert context.length > before
        assert context.spent is s1.spent
        texts.add(found.text)
    assert len(texts) > 5


def test_reasoning_that_writes_its_own_answer_is_cut(adapted, policy, screener, clips, monkeypatch):
    """The model's own GUARDRAIL does not stand: the forced one replaces it."""
    wanted = adapted.ids(' A park.\nEXPLANATION: none.\nGUARDRAIL: {"Sexual Content": true}')
    script = iter(wanted.tolist())
    s1 = screener.screen([clips[0]])[0]
    request = prompts.deliberation_request(policy, [], None)
    opening = adapted.ids(request + screener.parts.closing + "DESCRIPTION:")
    opened = s1.context.length + len(opening)

    def scripted(hidden):
        logits = torch.zeros(*hidden.shape[:-1], len(adapted.tokenizer))
        token = next(script, None)
        if token is not None:
            logits[..., token] = 1
        return logits

    monkeypatch.setattr(adapted, "logits", scripted)
    s2 = Deliberator(adapted, policy, max_new_tokens=60)
    monkeypatch.setattr(
        adapted, "choice_probability", lambda hidden, *_: torch.full((len(hidden),), 0.25)
    )
    found = s2.deliberate(s1.context, [], None)
    assert found.description == "A park."
    assert found.explanation == "none."
    assert not any(found.flags.values())
    assert set(found.scores.values()) == {0.25}
    assert found.text.count("GUARDRAIL") == 1
    reasoning = len(adapted.ids(" A park.\nEXPLANATION: none.\n"))
    pieces = prompts.answer_skeleton(policy)[:-1]
    forced = sum(len(adapted.ids(p)) + len(adapted.ids(prompts.FALSE)) for p in pieces)
    assert s1.context.length == opened + reasoning + forced


def test_broken_weights_are_an_error_and_never_safe(small_vlm, policy, clips):
    model = VisionLanguageModel(*small_vlm(), frame_pixels=48 * 48)
    s1 = Screener(model, policy).screen([clips[0]])[0]
    context = s1.context
    with torch.no_grad():
        model.model.model.language_model.norm.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not a number"):
        Deliberator(model, policy, adapter=None, max_new_tokens=3).deliberate(context, [], None)


def test_another_model_reads_the_video_itself(vlm, adapted, policy, clips):
    s2 = Deliberator(vlm, policy, adapter=None, max_new_tokens=3)
    own = s2.read_video(clips[1])
    s1 = Screener(vlm, policy).screen([clips[1]])[0]
    assert own.length == s1.context.length
    one = s2.deliberate(own, [], s1.scores)
    other = s2.deliberate(s1.context, [], s1.scores)
    assert one.text == other.text
    assert one.scores == pytest.approx(other.scores, abs=1e-5)


def test_thirty_categories(vlm, clips):
    rules = (Rule("blocked", "Flag what is shown."),)
    many = tuple(Category(f"c{i}", f'Kind "{i}"', "Safety.", rules) for i in range(30))
    wide = Policy(id="wide", name="Wide", version="1", categories=many)
    s1 = Screener(vlm, wide).screen(clips[:1])[0]
    s2 = Deliberator(vlm, wide, adapter=None, max_new_tokens=3)
    found = s2.deliberate(s1.context, [], s1.scores)
    assert prompts.parse_response(wide, found.text).flags == found.flags
    assert len(found.flags) == 30
