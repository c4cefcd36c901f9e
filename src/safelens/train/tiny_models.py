"""Small models with random weights, of the architectures that are used at full size.

Knows shapes that fit 128-pixel drawings and a few million parameters. Does not know how they are
trained or what on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safelens.train.tokenizer import florence_tokenizer


def build_captioner(
    tokenizer_dir: str | Path,
    out_dir: str | Path | None = None,
    *,
    seed: int = 0,
    image_size: int = 128,
    embed_dim: tuple[int, ...] = (32, 64, 160),
    depths: tuple[int, ...] = (0, 1, 2),
    strides: tuple[int, ...] = (4, 2, 2),
    text_dim: int = 128,
    encoder_layers: int = 1,
    decoder_layers: int = 2,
    max_positions: int = 256,
) -> tuple[Any, Any]:
    """A small Florence-2 with random weights and its processor.

    An image becomes (image_size / product of strides)^2 + 1 tokens: 65 by default.

    Args:
        tokenizer_dir: What `safelens.train.tokenizer.train_tokenizer` wrote.
        out_dir: Where to save model and processor for `Captioner.load`; not saved when None.
        seed: Seeds the weights; the caller's random state is left as it was.
        image_size: Side in pixels to which every frame is brought.
        embed_dim: Widths of the DaViT stages, each a multiple of 16.
        depths: Blocks per stage (each block attends over windows, then over channels);
            0 leaves the stage its convolution only, which saves the costly first resolution.
        strides: Downsampling before each stage.
        text_dim: Width of the BART encoder and decoder, a multiple of 32.
        encoder_layers: Layers of the BART encoder.
        decoder_layers: Layers of the BART decoder.
        max_positions: Longest sequence of image and text tokens.

    Returns:
        `(Florence2ForConditionalGeneration, Florence2Processor)`; about 2.5 M parameters at a
        vocabulary of 2,048.

    Raises:
        ValueError: `image_size` is no multiple of the product of the strides.
    """
    import torch
    from transformers import (
        BartConfig,
        CLIPImageProcessor,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
        GenerationConfig,
    )
    from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig

    shrink = 1
    for stride in strides:
        shrink *= stride
    if image_size % shrink:
        raise ValueError(
            f"image_size {image_size} must be a multiple of the strides' product {shrink}"
        )
    side = image_size // shrink

    tokenizer = florence_tokenizer(tokenizer_dir)
    size = {"height": image_size, "width": image_size}
    image_processor = CLIPImageProcessor(
        do_center_crop=False,
        do_resize=True,
        size=size,
        crop_size=size,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.25, 0.25, 0.25],
        image_seq_length=side * side + 1,
    )
    processor = Florence2Processor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        post_processor_config={"pure_text": {}},
    )

    stages = len(embed_dim)
    vision = Florence2VisionConfig(
        depths=list(depths),
        patch_size=[7] + [3] * (stages - 1),
        patch_stride=list(strides),
        patch_padding=[3] + [1] * (stages - 1),
        patch_prenorm=[False] + [True] * (stages - 1),
        embed_dim=list(embed_dim),
        num_heads=[max(1, dim // 32) for dim in embed_dim],
        num_groups=[max(1, dim // 16) for dim in embed_dim],
        window_size=side,
        drop_path_rate=0.0,
        projection_dim=text_dim,
        max_position_embeddings=side,
        max_temporal_embeddings=1,
    )
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "decoder_start_token_id": tokenizer.bos_token_id,
    }
    text = BartConfig(
        vocab_size=len(tokenizer),
        d_model=text_dim,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        encoder_attention_heads=text_dim // 32,
        decoder_attention_heads=text_dim // 32,
        encoder_ffn_dim=4 * text_dim,
        decoder_ffn_dim=4 * text_dim,
        max_position_embeddings=max_positions,
        dropout=0.0,
        forced_eos_token_id=None,
        **special,
    )
    config = Florence2Config(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.image_token_id,
        **special,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Florence2ForConditionalGeneration(config)
    model.generation_config = GenerationConfig(**special)
    if out_dir is not None:
        model.save_pretrained(str(out_dir))
        processor.save_pretrained(str(out_dir))
    return model, processor
