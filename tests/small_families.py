"""Models of the image families, still smaller and with random weights, saved as the hub's are."""

from pathlib import Path

TEXT = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def internvl(tokenizer_dir: Path, seed: int):
    """An InternVL whose squares of 48 pixels are 3 x 3 tokens; its language model is a Qwen2."""
    from safelens.train.tiny_internvl import build_internvl

    text = TEXT | {"intermediate_size": 96, "num_hidden_layers": 3}
    return build_internvl(tokenizer_dir, seed=seed, text=text, vision=TOWER)


def lfm2_vl(tokenizer_dir: Path, seed: int):
    """An LFM2-VL of patches of 8 pixels, its layers convolution, attention, convolution, as LFM2's begin."""
    from safelens.train.tiny_lfm2_vl import build_lfm2_vl

    layers = ["conv", "full_attention", "conv", "conv"]
    text = TEXT | {"intermediate_size": 144, "layer_types": layers}
    return build_lfm2_vl(tokenizer_dir, seed=seed, text=text, vision=TOWER)


def save(build, tokenizer_dir: Path, folder: Path) -> Path:
    """Build a model whose random weights are loud enough to tell inputs apart, and save it."""
    import torch

    model, processor = build(tokenizer_dir, seed=7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(8 if "lm_head" in name or "embed_tokens" in name else 10)
            elif parameter.ndim > 2:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
