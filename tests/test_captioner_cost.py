"""The formula of a caption is what PyTorch counts, for small models and for the published one's shape."""

import copy

import pytest
import torch
from attention_flops import flop_counter
from transformers import BartConfig, Florence2Config, Florence2ForConditionalGeneration
from transformers.initialization import no_init_weights
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig

from safelens.captioner_cost import caption_flops, decoder_flops, encoder_flops, image_flops

torch.set_num_threads(1)

SMALL = Florence2VisionConfig(
    depths=[1, 0, 2],
    patch_size=[7, 3, 3],
    patch_stride=[4, 2, 2],
    patch_padding=[3, 1, 1],
    patch_prenorm=[False, True, True],
    embed_dim=[16, 32, 64],
    num_heads=[1, 1, 2],
    num_groups=[1, 2, 4],
    window_size=5,
    projection_dim=48,
    max_position_embeddings=20,
)
LARGE = Florence2VisionConfig(
    embed_dim=[256, 512, 1024, 2048],
    num_heads=[8, 16, 32, 64],
    num_groups=[8, 16, 32, 64],
    projection_dim=1024,
)


def built(vision, **text):
    config = Florence2Config(vision_config=vision, text_config=BartConfig(**text).to_dict())
    with no_init_weights(), torch.device("meta"):
        model = Florence2ForConditionalGeneration(config).eval()
    model.set_attn_implementation("eager")  # the others look at masks, which have no values here
    return config, model


def counted(run):
    with flop_counter() as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


def one_by_one(model, states, steps):
    """Greedy decoding's passes, with the cache that they leave."""
    cache = None
    for _ in range(steps):
        token = torch.zeros(1, 1, dtype=torch.long, device="meta")
        out = model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            decoder_input_ids=token,
            past_key_values=cache,
            use_cache=True,
        )
        cache = out.past_key_values


@pytest.mark.parametrize(
    ("vision", "size", "text"),
    [
        # sides that windows of 5 do not fill, at no stage
        (SMALL, (112, 208), {"d_model": 48, "encoder_layers": 1, "decoder_layers": 2,
         "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 96,
         "decoder_ffn_dim": 128, "vocab_size": 500}),
        # Florence-2-large
        (LARGE, (768, 768), {"vocab_size": 51289}),
    ],
)  # fmt: skip
def test_each_part_costs_what_is_counted(vision, size, text):
    config, model = built(vision, **text)
    text, pixels = config.text_config, torch.empty(1, 3, *size, device="meta")
    found = counted(lambda: model.model.get_image_features(pixels))
    assert image_flops(config.vision_config, *size) == pytest.approx(found, rel=1e-6)
    states = torch.empty(1, 90, text.d_model, device="meta")
    found = counted(lambda: model.model.language_model.encoder(inputs_embeds=states))
    assert encoder_flops(text, 90) == pytest.approx(found, rel=1e-6)
    found = counted(lambda: one_by_one(model, states, 5))
    assert decoder_flops(text, 90, 5) == pytest.approx(found, rel=1e-6)


def test_a_caption_is_its_parts():
    config, _ = built(SMALL, d_model=48, vocab_size=500)
    longer = caption_flops(config, (112, 208), 90, 6)
    shorter = caption_flops(config, (112, 208), 90, 5)
    text = config.text_config
    assert longer - shorter == decoder_flops(text, 90, 6) - decoder_flops(text, 90, 5)
    other = copy.deepcopy(config)
    other.vision_config.depths = [0, 0, 2]
    block = image_flops(config.vision_config, 112, 208) - image_flops(other.vision_config, 112, 208)
    assert longer - caption_flops(other, (112, 208), 90, 6) == pytest.approx(block)
