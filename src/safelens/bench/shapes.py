"""The models of the paper at their true shape with random weights: what they cost needs no training.

Knows configurations. Knows nothing of what is measured on them.

Shapes are those of Qwen3-VL-2B and Florence-2-large. The tokenizer is the embedded bundle's, which knows the words
of the default policy, so prompts are somewhat shorter than with Qwen's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from safelens.bundle import Bundle, ClipSettings
from safelens.captioner import Captioner
from safelens.cascade import SafeLens
from safelens.deliberate import ADAPTER, Deliberator
from safelens.freed_memory import keep_freed_memory
from safelens.packed import pack
from safelens.policy import Policy
from safelens.probe import ProbeConfig, RollingAttentionProbe
from safelens.screen import ProbeReader, Screener
from safelens.thresholds import Thresholds
from safelens.train.reasoner import add_adapter
from safelens.train.tokenizer import florence_tokenizer
from safelens.verdict import Provenance
from safelens.vlm import VisionLanguageModel

QWEN = "Qwen3-VL-2B"
TEXT: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 262_144,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5e6,
        "mrope_section": [24, 20, 20],
        "mrope_interleaved": True,
    },
    "tie_word_embeddings": True,
}
VISION: dict[str, Any] = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 2048,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [5, 11, 17],
}
_TOKENS: dict[str, str] = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
FLORENCE: dict[str, Any] = {
    "depths": [1, 1, 9, 1],
    "embed_dim": [256, 512, 1024, 2048],
    "num_heads": [8, 16, 32, 64],
    "num_groups": [8, 16, 32, 64],
    "projection_dim": 1024,
}
"""Its vision tower; the library's default is that of Florence-2-base."""
FLORENCE_SIDE = 768
"""Pixels of a frame as it reads it."""
RANK = 32
"""Of S2's adapter."""


def at_true_shape(
    device: str, *, caption_tokens: int, dtype: torch.dtype = torch.bfloat16
) -> SafeLens:
    """The whole system with the default policy, its weights as a bundle's lie.

    Args:
        device: where it runs.
        caption_tokens: of every caption.
        dtype: of all weights.
    """
    policy = Policy.load("default")
    bundle = Bundle.load("tiny")
    tokenizer = Path(bundle.path(bundle.settings.screen.model))
    vlm = VisionLanguageModel(*qwen(tokenizer, dtype, device), frame_pixels=448 * 448)
    add_adapter(vlm, RANK, 2 * RANK)
    vlm.model.to(dtype)
    vlm.adopt_adapter(ADAPTER)
    torch.manual_seed(1)
    probe = RollingAttentionProbe(ProbeConfig(input_dim=vlm.hidden_size, labels=policy.labels))
    captioner = Captioner(*florence(tokenizer, dtype, device), max_new_tokens=caption_tokens)
    captioner.model.generation_config.min_new_tokens = caption_tokens
    for model in (vlm.model, captioner.model):
        pack(model)
    keep_freed_memory()
    thresholds = Thresholds(0.9)
    return SafeLens(
        Screener(vlm, policy, reader=ProbeReader(probe.to(device))),
        Deliberator(vlm, policy),
        captioner,
        thresholds=thresholds,
        provenance=Provenance(
            package="",
            bundle=f"random weights, {QWEN}",
            policy=policy.id,
            policy_sha256=policy.sha256,
            tau=thresholds.tau,
            layout="policy_first",
        ),
        clip=ClipSettings(),
    )


def qwen(tokenizer_dir: Path, dtype: torch.dtype, device: str) -> tuple[Any, Any]:
    """Model and processor."""
    from transformers import (
        AutoTokenizer,
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    vocabulary = tokenizer.get_vocab()
    tokens: dict[str, Any] = {key: vocabulary[name] for key, name in _TOKENS.items()}
    config = Qwen3VLConfig(
        text_config=TEXT, vision_config=VISION, tie_word_embeddings=True, **tokens
    )
    model = _random(Qwen3VLForConditionalGeneration, config, dtype, device)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    sizes: dict[str, Any] = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2}
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**sizes),
        chat_template=tokenizer.chat_template,
    )
    return model, processor


def florence(tokenizer_dir: Path, dtype: torch.dtype, device: str) -> tuple[Any, Any]:
    """Model and processor."""
    from transformers import (
        BartConfig,
        CLIPImageProcessor,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
    )

    tokenizer = florence_tokenizer(tokenizer_dir)
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "decoder_start_token_id": tokenizer.bos_token_id,
    }
    text = BartConfig(vocab_size=51_289, max_position_embeddings=4096, **special)
    config = Florence2Config(
        vision_config=FLORENCE, text_config=text, image_token_id=tokenizer.image_token_id, **special
    )
    model = _random(Florence2ForConditionalGeneration, config, dtype, device)
    tokens = (FLORENCE_SIDE // 32) ** 2 + 1
    size = {"height": FLORENCE_SIDE, "width": FLORENCE_SIDE}
    pictures = CLIPImageProcessor(
        do_center_crop=False, size=size, crop_size=size, image_seq_length=tokens
    )
    processor = Florence2Processor(
        image_processor=pictures, tokenizer=tokenizer, post_processor_config={"pure_text": {}}
    )
    return model, processor


def _random(kind: Any, config: Any, dtype: torch.dtype, device: str) -> Any:
    """A model whose weights are of their type from the start: as float32 they would need twice the memory."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(0)
            return kind(config)
    finally:
        torch.set_default_dtype(before)
