"""Small models of the image families with random weights, saved as the hub's are."""

from pathlib import Path

INTERNVL_TEMPLATE = """\
{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}{{- message.content }}{%- else %}
{%- for part in message.content %}
{%- if part.type == 'image' %}{{- '<IMG_CONTEXT>\\n' }}
{%- elif part.type == 'video' %}{{- '<video>\\n' }}
{%- elif part.type == 'text' %}{{- part.text }}{%- endif %}
{%- endfor %}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

LFM2_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}{{- message.content }}{%- else %}
{%- for part in message.content %}
{%- if part.type == 'image' %}{{- '<image>' }}
{%- elif part.type == 'text' %}{{- part.text }}{%- endif %}
{%- endfor %}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

TEXT = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def internvl(tokenizer_dir: Path):
    """An InternVL whose squares of 48 pixels are 3 x 3 tokens; its language model is a Qwen2."""
    from transformers import (
        AutoTokenizer,
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    tokenizer = AutoTokenizer.from_pretrained(
        tokenizer_dir,
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    )
    text = {"model_type": "qwen2", "vocab_size": len(tokenizer), "intermediate_size": 96}
    text |= {"num_hidden_layers": 3, "max_position_embeddings": 8192, "tie_word_embeddings": True}
    config = InternVLConfig(
        text_config=text | TEXT,
        vision_config=TOWER | {"image_size": [48, 48], "patch_size": [8, 8]},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=9,
    )
    model = InternVLForConditionalGeneration(config)
    size = {"height": 48, "width": 48}
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=size),
        tokenizer,
        InternVLVideoProcessor(size=size),
        image_seq_length=9,
        chat_template=INTERNVL_TEMPLATE,
    )
    return model, processor


def lfm2_vl(tokenizer_dir: Path):
    """An LFM2-VL of patches of 8 pixels, its layers convolution, attention, convolution, as LFM2's begin."""
    from transformers import (
        AutoTokenizer,
        Lfm2VlConfig,
        Lfm2VlForConditionalGeneration,
        Lfm2VlImageProcessor,
        Lfm2VlProcessor,
    )

    tokenizer = AutoTokenizer.from_pretrained(
        tokenizer_dir,
        bos_token="<|startoftext|>",
        extra_special_tokens={
            "image_token": "<image>",
            "image_start_token": "<|image_start|>",
            "image_end_token": "<|image_end|>",
        },
    )
    text = {"model_type": "lfm2", "vocab_size": len(tokenizer), "intermediate_size": 144}
    text |= {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention", "conv", "conv"]}
    text |= {"block_multiple_of": 32, "pad_token_id": tokenizer.pad_token_id}
    config = Lfm2VlConfig(
        text_config=text | TEXT,
        vision_config=TOWER
        | {
            "model_type": "siglip2_vision_model",
            "patch_size": 8,
            "num_patches": 36,
            "vision_use_head": False,
        },
        projector_hidden_size=48,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = Lfm2VlForConditionalGeneration(config)
    processor = Lfm2VlProcessor(
        Lfm2VlImageProcessor(encoder_patch_size=8, min_image_tokens=1, tile_size=128),
        tokenizer,
        chat_template=LFM2_TEMPLATE,
    )
    return model, processor


def save(build, tokenizer_dir: Path, folder: Path) -> Path:
    """Build a model whose random weights are loud enough to tell inputs apart, and save it."""
    import torch

    torch.manual_seed(7)
    model, processor = build(tokenizer_dir)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(8 if "lm_head" in name or "embed_tokens" in name else 10)
            elif parameter.ndim > 2:
                parameter.normal_(std=0.3)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
