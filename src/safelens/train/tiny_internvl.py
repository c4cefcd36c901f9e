"""An InternVL of about 1.5 million parameters with random weights, for squares of 48 px.

Knows shapes. Does not know how the model is trained or what on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
)

SPECIAL_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
"""What the family needs beside the tokens of `safelens.train.tokenizer`."""
CHAT_TEMPLATE = """\
{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}{{- message.content }}{%- else %}
{%- for part in message.content %}
{%- if part.type == 'image' %}{{- '<IMG_CONTEXT>\\n' }}
{%- elif part.type == 'video' %}{{- '<video>\\n' }}
{%- elif part.type == 'text' %}{{- part.text }}{%- endif %}
{%- endfor %}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
_SIDE, _PATCH = 48, 8
_TOKENS = (_SIDE // _PATCH // 2) ** 2
_TEXT = {
    "model_type": "qwen2",
    "hidden_size": 112,
    "intermediate_size": 336,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
_VISION = {
    "hidden_size": 112,
    "intermediate_size": 336,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": [_SIDE, _SIDE],
    "patch_size": [_PATCH, _PATCH],
}


def build_internvl(
    tokenizer_dir: Path,
    *,
    seed: int,
    text: Mapping[str, Any] | None = None,
    vision: Mapping[str, Any] | None = None,
) -> tuple[InternVLForConditionalGeneration, InternVLProcessor]:
    """A model with random weights and its processor; an image becomes 3 x 3 tokens.

    Args:
        tokenizer_dir: what `safelens.train.tokenizer.train_tokenizer` wrote; the family's special tokens
            follow after all that it has.
        seed: of the weights.
        text: sizes of the language model, a Qwen2, in place of the usual ones.
        vision: the same of the vision tower.
    """
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir, extra_special_tokens=SPECIAL_TOKENS)
    torch.manual_seed(seed)
    config = InternVLConfig(
        text_config=_TEXT | {"vocab_size": len(tokenizer)} | dict(text or {}),
        vision_config=_VISION | dict(vision or {}),
        image_token_id=tokenizer.get_vocab()["<IMG_CONTEXT>"],
        image_seq_length=_TOKENS,
    )
    model = InternVLForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    size = {"height": _SIDE, "width": _SIDE}
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=size),
        tokenizer,
        InternVLVideoProcessor(size=size),
        image_seq_length=_TOKENS,
        chat_template=CHAT_TEMPLATE,
    )
    return model, processor
