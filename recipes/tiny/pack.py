"""Puts the trained parts into a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from recipes.tiny.captioner import MAX_TOKENS
from recipes.tiny.data import LARGE
from recipes.tiny.parts import FRAME_PIXELS, policy
from safelens.bundle_parts import Parts
from safelens.evaluate.routing import OutsideDomain
from safelens.pack import pack as pack_parts

KNOWS = (
    "SafeWorld, the project's generated pictograms, and nothing of the real world; "
    "its verdicts on other videos mean nothing"
)
TAU = 0.9


def pack(
    folders: Mapping[str, Path], out: Path, *, outside_domain: OutsideDomain = "refuse"
) -> None:
    """Pack, in place of what lies there; its card, written by hand, is kept.

    Args:
        folders: Of the stages embedder, captioner, fast and reasoner; with "second", S2's own model and its
            adapter, in place of the last.
        out: The bundle.
        outside_domain: What becomes of a clip that the guard does not know.
    """
    card = out / "card.md"
    second = folders.get("second")
    parts = Parts(
        model=str(folders["embedder"] / "model"),
        captioner=str(folders["captioner"] / "model"),
        policy=policy(),
        probe=folders["fast"] / "probe",
        domain=folders["fast"] / "domain.safetensors",
        reasoner=None if second is None else str(second / "model"),
        adapter=str((second or folders["reasoner"]) / "adapter"),
        card=card.read_text() if card.exists() else None,
    )
    settings = {
        "name": "tiny",
        "version": "1",
        "knows": KNOWS,
        "tau": TAU,
        "outside_domain": outside_domain,
        "clip": {"max_side": LARGE},
        "screen": {"frame_pixels": FRAME_PIXELS},
        "deliberate": {"max_new_tokens": 160, "max_caption_tokens": MAX_TOKENS},
    }
    packed = pack_parts(parts, out, settings, replace_bundle=True)
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    print(f"{out}: {size / 1e6:.1f} MB, {packed.sha256}")
