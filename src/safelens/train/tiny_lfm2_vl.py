"""An LFM2-VL of about one million parameters with random weights, for frames of about 48 px.

Knows shapes. Does not know how the model is trained or what on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    Lfm2VlConfig,
    Lfm2VlForConditionalGeneration,
    Lfm2VlImageProcessor,
    Lfm2VlProcessor,
)

SPECIAL_TOKENS = {
    "image_token": "<image>",
    "image_start_token": "<|image_start|>",
    "image_end_token": "<|image_end|>",
}
"""What the family needs beside the tokens of `safelens.train.tokenizer` and a beginning of the text."""
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}{{- message.content }}{%- else %}
{%- for part in message.content %}
{%- if part.type == 'image' %}{{- '<image>' }}
{%- elif part.type == 'text' %}{{- part.text }}{%- endif %}
{%- endfor %}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
_PATCH = 8
_TEXT = {
    "model_type": "lfm2",
    "hidden_size": 96,
    # LFM2 takes two thirds of it, rounded up to a multiple of the next.
    "intermediate_size": 384,
    "block_multiple_of": 32,
    "num_hidden_layers": 4,
    # Copying takes two layers of attention: one finds what came before a token, one what came after it.
    "layer_types": ["conv", "full_attention", "conv", "full_attention"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_VISION = {
    "model_type": "siglip2_vision_model",
    "hidden_size": 80,
    "intermediate_size": 240,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "patch_size": _PATCH,
    "num_patches": 36,
    "vision_use_head": False,
}


def build_lfm2_vl(
    tokenizer_dir: Path,
    *,
    seed: int,
    text: Mapping[str, Any] | None = None,
    vision: Mapping[str, Any] | None = None,
) -> tuple[Lfm2VlForConditionalGeneration, Lfm2VlProcessor]:
    """A model with random weights and its processor.

    Args:
        tokenizer_dir: what `safelens.train.tokenizer.train_tokenizer` wrote; the family's special tokens
            follow after all that it has.
        seed: of the weights.
        text: sizes of the language model, an LFM2, in place of the usual ones.
        vision: the same of the vision tower.
    """
    tokenizer = AutoTokenizer.from_pretrained(
        tokenizer_dir, bos_token="<|startoftext|>", extra_special_tokens=SPECIAL_TOKENS
    )
    torch.manual_seed(seed)
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    config = Lfm2VlConfig(
        text_config=_TEXT | sizes | dict(text or {}),
        vision_config=_VISION | dict(vision or {}),
        projector_hidden_size=96,
        image_token_id=tokenizer.get_vocab()["<image>"],
    )
    model = Lfm2VlForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    processor = Lfm2VlProcessor(
        Lfm2VlImageProcessor(encoder_patch_size=_PATCH, min_image_tokens=1, tile_size=128),
        tokenizer,
        chat_template=CHAT_TEMPLATE,
    )
    return model, processor
