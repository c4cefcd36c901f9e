import pytest
import torch
from attention_flops import flop_counter

from safelens.reading import layout_of
from safelens.vlm_cache import Context
from safelens.vlm_cost import (
    ATTENTION_BACKWARD,
    head_flops,
    head_training_flops,
    language_flops,
    language_training_flops,
    lora_flops,
    lora_parameters,
    vision_flops,
    vision_training_flops,
)
from safelens.vlm_decoding import alone, reply

torch.set_num_threads(1)


def counted(run):
    """Operations that PyTorch counts while ``run`` runs."""
    with flop_counter() as counter:
        run()
    return counter.get_total_flops()


def unseen(config, new, past):
    """What the counter adds: scores of tokens that causal attention does not see."""
    queries = config.num_attention_heads * config.head_dim
    return config.num_hidden_layers * 4 * queries * (new * (past + new) - new * past) - (
        config.num_hidden_layers * 4 * queries * new * (new + 1) / 2
    )


@pytest.mark.parametrize("words", [3, 300])
def test_text_costs_what_is_counted(vlm, words):
    config = vlm.model.config.text_config
    found: list[Context] = []
    total = counted(lambda: found.append(vlm.prefill_text("word " * words)))
    n = found[0].length
    assert found[0].spent.prompt == n
    assert found[0].spent.flops == language_flops(config, n, 0)
    assert found[0].spent.flops + unseen(config, n, 0) == pytest.approx(total, rel=0.002)


def test_continuation_costs_what_is_counted(vlm):
    config = vlm.model.config.text_config
    context = vlm.prefill_text("word " * 200)
    before, past = context.spent.flops, context.length
    ids = vlm.ids("and so on " * 20)
    total = counted(lambda: vlm.extend(context, ids))
    spent = context.spent.flops - before
    assert spent + unseen(config, len(ids), past) == pytest.approx(total, rel=0.002)
    rows = context.fork(3)
    total = counted(lambda: vlm.extend(rows, ids))
    spent = rows.spent.flops + 3 * unseen(config, len(ids), past + len(ids))
    assert spent == pytest.approx(total, rel=0.002)
    assert rows.spent.prompt == 3 * len(ids)


def test_a_video_costs_what_is_counted(vlm, policy, clips):
    config = vlm.model.config
    parts = layout_of(vlm, policy, "policy_first")
    head = vlm.prefill_text(parts.head)
    for clip in clips[:4]:
        (video,) = vlm.encode_videos([clip.frames], [clip.timestamps])
        total = counted(lambda video=video: vlm.prefill_videos(head, [video], parts.tail))
        prefilled = vlm.prefill_videos(head, [video], parts.tail)
        n = prefilled.lengths[0]
        spent = prefilled.spent[0]
        assert spent.prompt == n
        extra = unseen(config.text_config, n, head.length)
        assert spent.flops + extra == pytest.approx(total, rel=0.002)
        tower = counted(
            lambda video=video: vlm.model.model.get_video_features(video.pixels, video.grid)
        )
        assert vision_flops(config.vision_config, *video.grid[0].tolist()) == pytest.approx(
            tower, rel=0.03
        )


def test_decoding_costs_what_is_counted(vlm):
    config = vlm.model.config.text_config
    context = vlm.prefill_text("word " * 50)
    hidden = vlm.extend(context, vlm.ids("Look"))
    before = context.spent.flops
    program = reply(vlm, context.spent, vlm.ids("Look").tolist(), max_new_tokens=6)
    total = counted(lambda: alone(vlm, context, program))
    assert context.spent.generated == 6
    assert context.spent.flops - before == pytest.approx(total, rel=0.002)
    logits = counted(lambda: vlm.logits(hidden[:, -1:]))
    assert head_flops(config, 1) == logits


@pytest.mark.parametrize("rank", [None, 8])
def test_training_costs_what_is_counted(small_vlm, policy, clips, rank):
    """Two rows on a shared head, forward and backward: all weights, and LoRA."""
    from safelens.train.embedder import Turns
    from safelens.train.reasoner import add_adapter
    from safelens.train.sequences import Example, teacher_forced
    from safelens.vlm import VisionLanguageModel

    vlm = VisionLanguageModel(*small_vlm(), frame_pixels=48 * 48)
    turns = Turns(vlm, policy)
    config = vlm.model.config
    text, vision = config.text_config, config.vision_config
    if rank:
        add_adapter(vlm, rank, 2 * rank)
        trained = sum(p.numel() for p in vlm.model.parameters() if p.requires_grad)
        assert lora_parameters(text, rank) == trained
    [video] = vlm.encode_videos([clips[0].frames], [clips[0].timestamps])
    prompt, answer = turns.screening(("violence",))
    batch = [Example(video, ((prompt, answer),))] * 2
    losses = []
    forward = counted(lambda: losses.append(teacher_forced(vlm, turns.head, batch).losses[0]))
    total = forward + counted(losses[0].backward)
    head, own, grid = len(turns.head), len(video.ids) + len(prompt) + len(answer), video.grid[0]
    adapter = (
        0.0 if rank is None else lora_flops(text, head, rank) + 2 * lora_flops(text, own, rank)
    )
    tower = vision_flops(vision, *grid.tolist())
    said = language_flops(text, head, 0) + adapter
    said += 2 * (language_flops(text, own, head) + head_flops(text, len(answer)) + tower)
    extra = unseen(text, head, 0) + 2 * unseen(text, own, head)
    assert said + extra == pytest.approx(forward, rel=1e-6)
    if rank is None:
        tower = vision_training_flops(vision, *grid.tolist())
    whole = language_training_flops(text, head, 0, rank, read=False) + 2 * (
        language_training_flops(text, own, head, rank)
        + head_training_flops(text, len(answer), trained=rank is None)
        + tower
    )
    layers = text.num_hidden_layers
    extra += ATTENTION_BACKWARD * (
        unseen(text, head, 0) * (layers - 1) / layers + 2 * unseen(text, own, head)
    )
    assert whole + extra == pytest.approx(total, rel=1e-6)
    if rank is None:
        assert total == pytest.approx(3 * forward, rel=0.06)
    else:
        assert (
            total < 2.7 * forward
        )  # 2.56 here, where attention and adapter weigh more than at full size
