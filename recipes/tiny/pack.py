"""Puts the trained parts into a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.tiny.captioner import MAX_TOKENS
from recipes.tiny.data import LARGE
from recipes.tiny.parts import FRAME_PIXELS, policy
from safelens.bundle import Bundle
from safelens.bundle_parts import ADAPTER, CAPTIONER, DOMAIN, MODEL, PROBE, Parts
from safelens.evaluate.routing import OutsideDomain
from safelens.pack import CARD
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


def packed(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: a bundle of what the stages that it needs left, in ``bundle``."""
    pack(needs, out / "bundle")


def pack_with_adapter(bundle: Bundle, adapter: Path, out: Path) -> None:
    """The same bundle, its card too, with another adapter of S2; in place of what lies there.

    Args:
        bundle: As the recipe packs it.
        adapter: Folder of the adapter.
        out: May be the bundle itself.
    """
    folder = bundle.folder
    card = folder / CARD
    parts = Parts(
        model=str(folder / MODEL),
        captioner=str(folder / CAPTIONER),
        policy=bundle.policy,
        probe=folder / PROBE,
        domain=folder / DOMAIN,
        adapter=str(adapter),
        card=card.read_text() if card.exists() else None,
    )
    settings = bundle.settings.model_dump(exclude={"files", "policy", "format"}, exclude_unset=True)
    assert settings["deliberate"]["adapter"] == ADAPTER
    packed = pack_parts(parts, out, settings, replace_bundle=True)
    print(f"{out}: {packed.sha256}")
