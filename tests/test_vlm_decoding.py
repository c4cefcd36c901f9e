"""Sequences that share passes, against each alone and against the library's own decoding."""

import pytest
import torch
from transformers import DynamicCache

from safelens.vlm import VisionLanguageModel
from safelens.vlm_cache import Context
from safelens.vlm_decoding import Decoding, Phrases, Step, alone, greedy, reply

torch.set_num_threads(1)
CLOSE = {"atol": 2e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def loaded(family_dirs):
    return {
        name: VisionLanguageModel.load(folder, frame_pixels=48 * 48)
        for name, folder in family_dirs.items()
    }


@pytest.fixture(params=["qwen3_vl", "internvl", "lfm2_vl"])
def model(loaded, request):
    return loaded[request.param]


@pytest.fixture(scope="module")
def adapted(vlm_dir, adapter_dir):
    found = VisionLanguageModel.load(vlm_dir, frame_pixels=48 * 48)
    found.load_adapter(adapter_dir, "deliberate")
    return found


def asked(vlm, clip):
    """A context that ends with a question."""
    videos = vlm.encode_videos([clip.frames], [clip.timestamps])
    return vlm.prefill_videos(vlm.prefill_text("A policy."), videos, " Look:").context(0)


def opening(vlm):
    return vlm.ids("DESCRIPTION:").tolist()


def one_by_one(vlm, context, ids, count, adapter=None):
    """The first greedy tokens, a pass each, and the logits before each."""
    found, logits = [], []
    hidden = vlm.extend(context, torch.tensor(ids), adapter=adapter)
    for _ in range(count):
        logits.append(vlm.logits(hidden[0, -1]))
        found.append(int(logits[-1].argmax()))
        hidden = vlm.extend(context, torch.tensor(found[-1:]), adapter=adapter)
    return found, logits


def until_end(vlm, ids):
    ends = vlm.end_tokens
    return ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]


# -- greedy decoding ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1, 3])
def test_greedy_decoding_equals_generate(model, clips, number):
    vlm, clip = model, clips[number]
    [video] = vlm.encode_videos([clip.frames], [clip.timestamps])
    ids = torch.cat([vlm.ids("A policy."), video.ids, vlm.ids(" Look:"), vlm.ids("DESCRIPTION:")])
    inputs = vlm.family.visual([video]) | {"input_ids": ids[None]}
    if vlm.family.medium == "video":
        vlm.model.model.rope_deltas = None
        is_video = ids == vlm.model.config.video_token_id
        inputs["mm_token_type_ids"] = is_video.int()[None] * 2
    made = vlm.model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, len(ids) :].tolist()
    made = until_end(vlm, made)
    assert len(set(made)) > 3
    context = asked(vlm, clip)
    text = alone(vlm, context, reply(vlm, context.spent, opening(vlm), max_new_tokens=24))
    assert text == vlm.text(made)
    assert context.spent.generated == len(made)


def test_with_an_adapter_it_equals_generate(adapted):
    """Without a prefix, the library's own greedy decoding with the adapter on is the reference."""
    ids = adapted.ids("Look:")
    adapted.model.enable_adapters()
    adapted.model.model.rope_deltas = None
    found = adapted.model.generate(input_ids=ids[None], max_new_tokens=12, do_sample=False)
    adapted.model.disable_adapters()
    wanted = until_end(adapted, found[0, len(ids) :].tolist())
    empty = Context(DynamicCache(config=adapted.model.config), 0)
    program = reply(adapted, empty.spent, ids.tolist(), max_new_tokens=12)
    assert alone(adapted, empty, program, adapter="deliberate") == adapted.text(wanted)
    with pytest.raises(ValueError, match="'other' is not loaded; loaded: deliberate"):
        alone(adapted, empty, reply(adapted, empty.spent, [1], max_new_tokens=2), adapter="other")


def written_then(vlm, context, more, quoted=(), **limits):
    """What greedy decoding writes, and the logits behind tokens that are run after it."""

    def program():
        logits = yield Step(opening(vlm), [len(opening(vlm)) - 1])
        source = [*opening(vlm), *quoted]
        written = yield from greedy(vlm, context.spent, logits, source, **limits)
        ids = [*written.missing, *more]
        first = len(written.missing)
        found = yield Step(ids, range(first, len(ids)), drop=written.drop, own=first)
        return written.text, found

    return alone(vlm, context, program())


@pytest.mark.parametrize("quoting", [False, True])
def test_stop_text_is_cut_off_exactly(model, clips, quoting):
    """The cache goes on as though only the text before it had been written, guesses or none."""
    vlm, clip = model, clips[1]
    ids, _ = one_by_one(vlm, asked(vlm, clip), opening(vlm), 20)
    ids = until_end(vlm, ids)
    whole, more = vlm.text(ids), vlm.ids("GUARDRAIL: no").tolist()
    assert len(ids) > 8
    quoted = ids[:14] if quoting else ()
    for stop in (whole[12:15], whole[5:6], whole[:2], whole[-3:]):
        context = asked(vlm, clip)
        text, logits = written_then(vlm, context, more, quoted, max_new_tokens=20, stop=stop)
        assert stop not in text
        assert whole.startswith(text)
        kept = next(n for n in range(len(ids)) if vlm.text(ids[:n]) == text)
        kept = max(n for n in range(len(ids)) if len(vlm.text(ids[:n])) <= whole.index(stop))
        assert context.spent.generated == kept
        hidden = vlm.extend(asked(vlm, clip), torch.tensor([*opening(vlm), *ids[:kept], *more]))
        torch.testing.assert_close(logits, vlm.logits(hidden[0, -len(more) :]), **CLOSE)


def test_budget_and_end_token(model, clips):
    vlm, clip = model, clips[0]
    more = vlm.ids("GUARDRAIL: no").tolist()
    ids, _ = one_by_one(vlm, asked(vlm, clip), opening(vlm), 9)

    def check(kept, **limits):
        context = asked(vlm, clip)
        text, logits = written_then(vlm, context, more, ids, **limits)
        assert text == vlm.text(ids[:kept])
        assert context.spent.generated == kept
        hidden = vlm.extend(asked(vlm, clip), torch.tensor([*opening(vlm), *ids[:kept], *more]))
        torch.testing.assert_close(logits, vlm.logits(hidden[0, -len(more) :]), **CLOSE)

    for budget in (0, 1, 5):
        check(budget, max_new_tokens=budget)
    first = next(i for i in range(1, 9) if ids[i] not in ids[:i])
    usual = vlm.model.generation_config.eos_token_id
    vlm.model.generation_config.eos_token_id = [usual, ids[first]]
    try:
        check(first, max_new_tokens=9)
    finally:
        vlm.model.generation_config.eos_token_id = usual


def test_quoting_takes_fewer_passes(adapted, clips, monkeypatch):
    vlm, clip = adapted, clips[2]
    ids, _ = one_by_one(vlm, asked(vlm, clip), opening(vlm), 20)
    passes, widths = vlm.extend_slots, []

    def counting(slots, rows, tokens, **options):
        widths.append(tokens.shape[1])
        return passes(slots, rows, tokens, **options)

    monkeypatch.setattr(vlm, "extend_slots", counting)
    context = asked(vlm, clip)
    text, _ = written_then(vlm, context, [1], ids, max_new_tokens=20)
    assert text == vlm.text(ids)
    assert len(widths) < 10
    assert max(widths) == 8


def test_guesses():
    phrases = Phrases()
    phrases.add([1, 2, 3, 4, 9, 2, 3, 5])
    assert phrases.after([7, 2, 3], 7) == (5,)  # where they stood last
    assert phrases.after([1, 2, 3], 2) == (4, 9)  # three tokens say more than two
    assert phrases.after([2, 3], 0) == ()
    assert phrases.after([3], 5) == phrases.after([], 5) == phrases.after([5, 5], 5) == ()
    text = [1, 2, 3, 4, 9, 2, 3, 5, 6, 7]
    phrases.add(text, known=8)
    whole = Phrases()
    whole.add(text)
    for end in range(2, len(text)):
        assert phrases.after(text[:end], 4) == whole.after(text[:end], 4) != ()
    newer = Phrases(whole)
    newer.add([2, 3, 8])
    assert newer.after([2, 3], 1) == (8,)
    assert newer.after([9, 2, 3], 1) == (5,)  # the longer run is an earlier text's
    few = Phrases(most=4)
    few.add(range(10))
    assert few.after([1, 2], 1) == ()
    assert few.after([7, 8], 1) == (9,)


def test_an_answer_that_was_given_before_is_guessed(adapted, clips, monkeypatch):
    vlm, clip = adapted, clips[2]
    answers, widths, texts = Phrases(), [], []
    passes = vlm.extend_slots

    def counting(slots, rows, tokens, **options):
        widths[-1].append(tokens.shape[1])
        return passes(slots, rows, tokens, **options)

    monkeypatch.setattr(vlm, "extend_slots", counting)
    for _ in range(2):
        widths.append([])
        limits = {"max_new_tokens": 20, "answers": answers}
        texts.append(written_then(vlm, asked(vlm, clip), [1], **limits)[0])
    assert texts[0] == texts[1]
    assert len(widths[1]) <= 5
    assert len(widths[0]) > len(widths[1])


# -- several sequences ----------------------------------------------------------------------------


def recording(steps):
    """A program of given steps that returns all logits it was sent."""
    found = []
    for step in steps:
        found += [(yield step)]
    return found


def test_sequences_that_come_and_go_are_as_alone(model, clips, monkeypatch):
    """Unequal lengths, unequal steps, tokens taken back, long steps, more sequences than slots."""
    vlm = model
    text = vlm.ids(
        "The video shows a park with people, no blood and no weapons at all. " * 2
    ).tolist()
    plans = []
    for n in range(6):
        some = text[n : n + 3]
        steps = [Step(opening(vlm) + some, [0, len(some)])]
        steps += [Step(text[i : i + 1 + n % 3], [0]) for i in range(n + 2)]
        if n % 2:
            steps.append(Step(text[:4], [3]))
            steps.append(Step(text[8:11], range(3), drop=2 + n % 2))
        if n == 4:
            steps.append(Step(text, [5, len(text) - 1], drop=1))
            steps.append(Step(text[:2], [1], drop=len(text) - 3))
        plans.append(steps)
    decoding = Decoding(vlm, slots=3)
    waiting = list(enumerate(plans))
    found, most = {}, 0
    while waiting or len(decoding):
        while waiting and decoding.free:
            number, steps = waiting.pop(0)
            decoding.admit(number, asked(vlm, clips[number % len(clips)]), recording(steps))
        most = max(most, len(decoding))
        for one in decoding.step():
            assert one.error is None
            assert one.seconds > 0
            found[one.key] = one.result
    assert most == 3
    assert set(found) == set(range(6))
    for number, steps in enumerate(plans):
        context = asked(vlm, clips[number % len(clips)])
        for step, logits in zip(steps, found[number], strict=True):
            context.crop(step.drop)
            hidden = vlm.extend(context, torch.tensor(step.ids))
            wanted = vlm.logits(hidden[0, list(step.read)])
            torch.testing.assert_close(logits, wanted, **CLOSE)
    assert len({round(float(one[0][0].std()), 5) for one in found.values()}) > 3


def test_what_is_spent_is_each_sequences_own(model, clips):
    """The same in company as alone: padding in a common pass is charged to nobody."""
    vlm = model
    texts, spent = {}, {}
    for slots in (1, 4):
        decoding = Decoding(vlm, slots=slots)
        contexts = [asked(vlm, clip) for clip in clips[:4]]
        waiting = list(enumerate(contexts))
        while waiting or len(decoding):
            while waiting and decoding.free:
                number, context = waiting.pop(0)
                program = reply(vlm, context.spent, opening(vlm), max_new_tokens=3 + number)
                decoding.admit(number, context, program)
            for one in decoding.step():
                texts[slots, one.key] = one.result
        for number, context in enumerate(contexts):
            spent[slots, number] = context.spent
    for number in range(4):
        assert texts[1, number] == texts[4, number]
        assert spent[1, number] == spent[4, number]
    assert len(set(map(str, spent.values()))) > 2


def failing(after):
    yield Step([1, 2, 3], [2])
    for _ in range(after):
        yield Step([4], [0])
    raise FloatingPointError("not a number")


def test_a_program_that_fails_takes_no_other_with_it(adapted, clips):
    vlm = adapted
    decoding = Decoding(vlm, slots=3)
    steps = [Step(opening(vlm), [0])] + [Step([i], [0]) for i in range(5, 12)]
    for key, program in (("a", failing(2)), ("b", recording(steps)), ("c", failing(0))):
        decoding.admit(key, asked(vlm, clips[0]), program)
    ended = {}
    while len(decoding):
        ended |= {one.key: one for one in decoding.step()}
    assert [type(ended[key].error) for key in "abc"] == [
        FloatingPointError,
        type(None),
        FloatingPointError,
    ]
    logits = alone(vlm, asked(vlm, clips[0]), recording(steps))
    torch.testing.assert_close(ended["b"].result, logits, **CLOSE)


def test_a_pass_that_fails_ends_all_that_were_in_it(adapted, clips, monkeypatch):
    vlm = adapted
    decoding = Decoding(vlm, slots=2)
    for key in "ab":
        decoding.admit(key, asked(vlm, clips[0]), recording([Step([1], [0]), Step([2], [0])]))
    passes = vlm.extend_slots

    def broken(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(vlm, "extend_slots", broken)
    finished = decoding.step()
    assert {one.key for one in finished} == {"a", "b"}
    assert all("out of memory" in str(one.error) for one in finished)
    monkeypatch.setattr(vlm, "extend_slots", passes)
    assert len(decoding) == 0
    decoding.admit("c", asked(vlm, clips[0]), recording([Step([1], [0])]))
    [one] = decoding.step()
    assert one.error is None
    for key in "de":
        decoding.admit(key, asked(vlm, clips[0]), recording([Step([1], [0]), Step([2], [0])]))
    with pytest.raises(ValueError, match="all 2 slots are taken"):
        decoding.admit("f", asked(vlm, clips[0]), recording([]))
