import pytest
import torch
from torch import nn

from safelens.vlm_attention import grouped_attention

torch.set_num_threads(1)


def written_out(query, key, value, seen):
    """Each query head on its own (Vaswani et al., 2017, equation 1)."""
    groups = query.shape[1] // key.shape[1]
    found = torch.empty(*query.shape[:3], value.shape[-1], dtype=query.dtype)
    for row in range(query.shape[0]):
        for head in range(query.shape[1]):
            products = query[row, head] @ key[row, head // groups].T / query.shape[-1] ** 0.5
            weights = products.masked_fill(~seen[row, 0], float("-inf")).softmax(-1)
            found[row, head] = weights @ value[row, head // groups]
    return found.transpose(1, 2)


@pytest.mark.parametrize(("new", "heads", "keys"), [(1, 4, 2), (5, 6, 2), (3, 4, 4), (80, 4, 1)])
def test_equals_each_head_on_its_own(new, heads, keys):
    generator = torch.Generator().manual_seed(new)

    def drawn(heads, tokens):
        return torch.randn(3, heads, tokens, 8, generator=generator, dtype=torch.float64)

    query, key, value = drawn(heads, new), drawn(keys, 120), drawn(keys, 120)
    lengths = torch.tensor([120, 90, 101])[:, None, None] - new
    seen = (torch.arange(120) <= lengths + torch.arange(new)[:, None])[:, None]
    layer = nn.Module()
    layer.num_key_value_groups = heads // keys
    wanted = written_out(query, key, value, seen)
    floor = torch.finfo(torch.float64).min
    for mask in (seen, torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, floor)):
        found, weights = grouped_attention(layer, query, key, value, mask, scaling=8**-0.5)
        assert weights is None
        torch.testing.assert_close(found, wanted)


def test_keys_are_not_copied(small_vlm, monkeypatch):
    """A model that was taken in attends this way, and its vision tower as before."""
    from safelens.vlm import VisionLanguageModel

    model, processor = small_vlm()
    before = model.config.vision_config._attn_implementation
    vlm = VisionLanguageModel(model, processor, frame_pixels=48 * 48)
    text, vision = model.config.get_text_config(), model.config.vision_config
    assert (text._attn_implementation, vision._attn_implementation) == ("safelens_grouped", before)
    shapes = []
    real = torch.nn.functional.scaled_dot_product_attention

    def watched(query, key, value, **more):
        shapes.append((query.shape[1:3], key.shape[1:3]))
        return real(query, key, value, **more)

    context = vlm.prefill_text("What is seen?")
    past = context.length
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    vlm.extend(context, vlm.ids("Nothing at all."))
    new, keys = context.length - past, text.num_key_value_heads
    assert text.num_attention_heads > keys
    wanted = ((keys, new * text.num_attention_heads // keys), (keys, context.length))
    assert shapes == [wanted] * text.num_hidden_layers
