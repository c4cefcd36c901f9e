"""Puts the trained parts into a bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from recipes.tiny.data import LARGE
from recipes.tiny.parts import FRAME_PIXELS, policy
from safelens.bundle import write_bundle

KNOWS = (
    "SafeWorld, the project's generated pictograms, and nothing of the real world; "
    "its verdicts on other videos mean nothing"
)
TAU = 0.9


def pack(parts: Mapping[str, Path], out: Path) -> None:
    """Copy, then write settings and digests; the card stays.

    Args:
        parts: Folders of the stages embedder, captioner, fast and reasoner.
        out: The bundle, replaced.
    """
    card = out / "card.md"
    kept = card.read_text() if card.exists() else "# tiny\n"
    shutil.rmtree(out, ignore_errors=True)
    for name, part in (
        ("model", parts["embedder"] / "model"),
        ("captioner", parts["captioner"] / "model"),
        ("deliberate", parts["reasoner"] / "adapter"),
        ("probe", parts["fast"] / "probe"),
    ):
        shutil.copytree(part, out / name)
    (out / "deliberate" / "README.md").unlink(missing_ok=True)
    adapter = out / "deliberate" / "adapter_config.json"
    # peft notes where the base model lay on the machine that trained it
    adapter.write_text(
        json.dumps(json.loads(adapter.read_text()) | {"base_model_name_or_path": None}, indent=2)
    )
    shutil.copy(parts["fast"] / "domain.safetensors", out)
    for part in out.rglob("*"):
        part.chmod(0o755 if part.is_dir() else 0o644)
    (out / "policy.yaml").write_text(policy().to_yaml())
    card.write_text(kept)
    digest = write_bundle(
        out,
        {
            "name": "tiny",
            "version": "1",
            "knows": KNOWS,
            "layout": "policy_first",
            "policy": "policy.yaml",
            "tau": TAU,
            "outside_domain": "refuse",
            "clip": {"max_side": LARGE},
            "screen": {
                "model": "model",
                "frame_pixels": FRAME_PIXELS,
                "probe": "probe",
                "domain": "domain.safetensors",
            },
            "deliberate": {
                "captioner": "captioner",
                "adapter": "deliberate",
                "max_new_tokens": 160,
                "max_caption_tokens": 48,
            },
        },
    )
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    print(f"{out}: {size / 1e6:.1f} MB, {digest}")
