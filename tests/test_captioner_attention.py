import pytest
import torch
from torch import nn
from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig
from transformers.models.florence2.modeling_florence2 import Florence2VisionChannelAttention

from safelens.captioner_attention import attend_channels, channel_attention

torch.set_num_threads(1)


@pytest.fixture
def layer():
    config = Florence2VisionConfig(embed_dim=[12, 24], num_groups=[3, 4], num_heads=[3, 4])
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    return Florence2VisionChannelAttention(config, 0).double()


def test_equals_the_eager_layer(layer):
    """The layer gives attention strided queries, and puts what it returns together again."""
    seen = torch.randn(2, 35, 12, dtype=torch.float64)
    with torch.no_grad():
        wanted = layer(seen)
        layer.config._attn_implementation = "safelens_channels"
        torch.testing.assert_close(layer(seen), wanted)


def test_equals_each_group_on_its_own(layer):
    """Softmax of the products of channels over places, times the values (channel group attention of DaViT, arXiv 2204.03645)."""
    generator = torch.Generator().manual_seed(1)
    query, key, value = torch.randn(3, 2, 3, 4, 35, generator=generator, dtype=torch.float64)
    found, weights = channel_attention(layer, query, key, value, None, scaling=0.2)
    assert weights is None
    for row in range(2):
        for group in range(3):
            products = 0.2 * query[row, group] @ key[row, group].T
            wanted = products.softmax(-1) @ value[row, group]
            torch.testing.assert_close(found[row, :, group], wanted)


def test_other_layers_attend_as_before():
    query, key, value = torch.randn(3, 2, 3, 9, 8)
    found, _ = channel_attention(
        nn.Module(), query, key, value, None, scaling=8**-0.5, is_causal=False
    )
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(found, wanted.transpose(1, 2))


def test_a_captioner_attends_this_way():
    from safelens.bundle import Bundle
    from safelens.captioner import Captioner

    bundle = Bundle.load("tiny")
    captioner = Captioner.load(bundle.path(bundle.settings.deliberate.captioner))
    tower, text = captioner.model.model.vision_tower, captioner.model.model.language_model
    assert tower.config._attn_implementation == "safelens_channels"
    assert text.config._attn_implementation == "sdpa"
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        found = tower(pixels).last_hidden_state
        tower.set_attn_implementation("eager")
        torch.testing.assert_close(tower(pixels).last_hidden_state, found, rtol=1e-4, atol=1e-5)
    attend_channels(captioner.model)
    assert tower.config._attn_implementation == "eager"
