import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from safelens.screen import layout_of
from safelens.vlm_cache import Context
from safelens.vlm_cost import head_flops, language_flops, vision_flops

torch.set_num_threads(1)


def counted(run):
    """Operations that PyTorch counts while ``run`` runs."""
    with FlopCounterMode(display=False) as counter:
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
    assert found[0].spent.flops + unseen(config, n, 0) == pytest.approx(total, rel=0.03)


def test_continuation_costs_what_is_counted(vlm):
    config = vlm.model.config.text_config
    context = vlm.prefill_text("word " * 200)
    before, past = context.spent.flops, context.length
    ids = vlm.ids("and so on " * 20)
    total = counted(lambda: vlm.extend(context, ids))
    spent = context.spent.flops - before
    assert spent + unseen(config, len(ids), past) == pytest.approx(total, rel=0.03)
    rows = context.fork(3)
    total = counted(lambda: vlm.extend(rows, ids))
    spent = rows.spent.flops + 3 * unseen(config, len(ids), past + len(ids))
    assert spent == pytest.approx(total, rel=0.03)
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
        assert spent.flops + extra == pytest.approx(total, rel=0.03)
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
    total = counted(lambda: vlm.decode(context, hidden, max_new_tokens=6, stop="no such text"))
    assert context.spent.generated == 6
    assert context.spent.flops - before == pytest.approx(total, rel=0.03)
    logits = counted(lambda: vlm.logits(hidden[:, -1:]))
    assert head_flops(config, 1) == logits
