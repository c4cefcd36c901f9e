"""What a caption costs, by formula: floating-point operations of Florence-2-like models, in use.

Knows configurations and lengths; needs no weights. Counts as `vlm_cost` does: multiplications and additions of
matrix products, convolutions and attention; norms, activations and position embeddings are left out.
"""

from __future__ import annotations

import math
from typing import Any


def image_flops(config: Any, height: int, width: int) -> float:
    """DaViT and the projection of its output, for one image.

    A stage is a convolution and blocks; a block attends over windows, then over channels, and each half
    begins with a depthwise 3 x 3 convolution, which another parts from its feed-forward layer. Windows at the
    edge are filled up and run whole. Between channels, each of d / groups attends to those of its group, over
    all places.

    Args:
        config: the model's vision configuration.
        height: pixels.
        width: pixels.
    """
    total, before, wide = 0.0, config.in_channels, config.window_size
    for stage, d in enumerate(config.embed_dim):
        kernel, stride = config.patch_size[stage], config.patch_stride[stage]
        height, width = (
            (side + 2 * config.patch_padding[stage] - kernel) // stride + 1
            for side in (height, width)
        )
        places = height * width
        filled = math.ceil(height / wide) * math.ceil(width / wide) * wide**2
        half = 2 * places * (2 * 9 * d + 2 * d * int(d * config.mlp_ratio))
        windows = 2 * filled * 4 * d * d + 4 * d * filled * wide**2
        channels = 2 * places * 4 * d * d + 4 * d * places * (d // config.num_groups[stage])
        total += 2 * places * kernel**2 * before * d
        total += config.depths[stage] * (2 * half + windows + channels)
        before = d
    return total + 2 * (places + 1) * before * config.projection_dim


def encoder_flops(config: Any, tokens: int) -> float:
    """BART's encoder over image and prompt, each token attending to all.

    Args:
        config: the model's text configuration.
        tokens: of image and prompt.
    """
    d = config.d_model
    linear = 4 * d * d + 2 * d * config.encoder_ffn_dim
    return float(config.encoder_layers * (2 * tokens * linear + 4 * d * tokens**2))


def decoder_flops(config: Any, read: int, written: int) -> float:
    """BART's decoder over ``written`` steps, one token each, and the vocabulary's logits of each.

    Keys and values of what the encoder gives are made once, those of the tokens as they come.

    Args:
        config: the model's text configuration.
        read: tokens of the encoder.
        written: steps, the first of which reads the start token.
    """
    d = config.d_model
    linear = 2 * written * (6 * d * d + 2 * d * config.decoder_ffn_dim) + 2 * read * 2 * d * d
    attention = 4 * d * (written * (written + 1) / 2 + written * read)
    return config.decoder_layers * (linear + attention) + 2 * written * d * config.vocab_size


def caption_flops(config: Any, size: tuple[int, int], read: int, written: int) -> float:
    """One image's caption by greedy decoding.

    Args:
        config: a `Florence2Config`.
        size: height and width of the image as the model is given it, in pixels.
        read: tokens of image and prompt.
        written: decoding steps. A batch goes on until its longest caption ends, and costs each image as many.
    """
    text = config.text_config
    return (
        image_flops(config.vision_config, *size)
        + encoder_flops(text, read)
        + decoder_flops(text, read, written)
    )
