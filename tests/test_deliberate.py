import pytest
import torch

from safelens import prompts
from safelens.deliberate import ADAPTER, Deliberator
from safelens.policy import Category, Policy, Rule
from safelens.screen import Screener
from safelens.verdict import Caption
from safelens.vlm import VisionLanguageModel
from safelens.vlm_cost import Spent

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


def played(vlm, program, script, chances):
    """Run a program on a model that writes ``script`` and gives each choice a chance of true.

    Returns:
        What it returned, all tokens left in the cache, and the number of passes.
    """
    kept, passes = [], 0
    true = int(vlm.ids(prompts.TRUE)[0])
    step = next(program)
    opened = len(step.ids)
    while True:
        passes += 1
        kept = kept[: len(kept) - step.drop]
        before, kept = len(kept), [*kept, *step.ids]
        logits = torch.zeros(len(step.read), len(vlm.tokenizer))
        for row, place in zip(logits, step.read, strict=True):
            written = kept[opened : before + place + 1]
            if written == script[: len(written)] and "GUARDRAIL" not in vlm.text(written):
                row[script[len(written)]] = 1
            else:
                choice = vlm.text(written).count('":') - 1
                row[true] = torch.tensor(chances[choice]).logit()
        try:
            step = program.send(logits)
        except StopIteration as end:
            return end.value, kept, passes


def test_reasoning_that_writes_its_own_answer_is_cut(adapted, policy):
    """The model's own GUARDRAIL does not stand: the forced one replaces it."""
    script = adapted.ids(
        ' A park.\nEXPLANATION: none.\nGUARDRAIL: {"Sexual Content": true}'
    ).tolist()
    s2 = Deliberator(adapted, policy, max_new_tokens=60)
    spent = Spent()
    found, kept, _ = played(adapted, s2.program([], None, spent), script, [0.25] * 6)
    assert found.description == "A park."
    assert found.explanation == "none."
    assert not any(found.flags.values())
    assert found.scores == pytest.approx(dict.fromkeys(found.flags, 0.25))
    assert found.text.count("GUARDRAIL") == 1
    opening = prompts.deliberation_request(policy, [], None) + s2.parts.closing + "DESCRIPTION:"
    answer = prompts.guardrail_answer(policy, [])
    wanted = opening + " A park.\nEXPLANATION: none.\n" + answer
    assert adapted.tokenizer.decode(kept) == wanted[: wanted.rindex(prompts.FALSE)]
    assert spent.generated == len(adapted.ids(" A park.\nEXPLANATION: none.\n"))


@pytest.mark.parametrize("flagged", [(), ("violence",), ("sexual", "illegal"), ("extreme",)])
def test_booleans_that_s1_foresaw_take_one_pass(adapted, policy, flagged):
    """Each that it did not costs one more; the cache holds the model's own."""
    script = adapted.ids(" A park.\nEXPLANATION: none.\nGUARDRAIL").tolist()
    s2 = Deliberator(adapted, policy, max_new_tokens=60)
    names = [c.id for c in policy.categories]
    chances = [0.9 if name in flagged else 0.2 for name in names]
    passes, texts = {}, set()
    for likely in ("violence", "safe"):
        scores = {name: 0.9 if name == likely else 0.01 for name in policy.labels}
        found, kept, passes[likely] = played(
            adapted, s2.program([], scores, Spent()), script, chances
        )
        assert [name for name, flag in found.flags.items() if flag] == list(flagged)
        assert list(found.scores.values()) == pytest.approx(chances)
        wanted = " A park.\nEXPLANATION: none.\n" + prompts.guardrail_answer(policy, flagged)
        assert adapted.tokenizer.decode(kept).endswith(wanted[: wanted.rindex(":") + 1])
        texts.add(found.text)
    assert len(texts) == 1
    # of the last boolean nothing follows that could be wrong
    wrong = {k: len((set(flagged) ^ {k}) - {"safe", names[-1]}) for k in passes}
    assert passes["violence"] - wrong["violence"] == passes["safe"] - wrong["safe"]


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
