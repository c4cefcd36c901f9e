"""Stages: the domain guard, and the bundle whose policy is read category by category and may be another.

Knows which parts make it. Knows nothing of how they are trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recipes.safewatch_tiny.start import embedded
from recipes.tiny.captioner import MAX_TOKENS
from recipes.tiny.data import LARGE, DrawnReader
from recipes.tiny.pack import KNOWS, TAU
from recipes.tiny.parts import FRAME_PIXELS, load_vlm, policy, sets_of, use_all_cores
from safelens.assembly import Encoding
from safelens.bundle_parts import Parts
from safelens.domain import DomainGuard
from safelens.domain_features import domain_views
from safelens.pack import pack as pack_parts
from safelens.train.state_store import StateStore
from safelens.train.states import States, collect_states


def fit_guard(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: what looks like SafeWorld to the model of the second stage."""
    use_all_cores()
    vlm, sets = load_vlm(needs["pruning"]), sets_of(needs)
    reader = DrawnReader(sets, "small")
    store = StateStore(out / "states", {"model": needs["pruning"].name})
    prompt = Encoding("parallel", keep=settings["keep"]).prompt(vlm, policy(), "policy_first")

    def states(name: str) -> States:
        records = sets[name].records(name)[: settings[name]]
        return collect_states(vlm, policy(), records, reader, store, batch=16, prompt=prompt)

    DomainGuard.fit(
        states("held").features,
        states("val").features,
        false_refusal_rate=settings["false_refusal_rate"],
        views=domain_views(vlm.hidden_size),
    ).save(out / "domain.safetensors")


def pack_bundle(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: all parts in one; S1 reads the label answers, of any policy."""
    pack(needs, out / "bundle", settings["keep"])


def pack(folders: dict[str, Path], out: Path, keep: float) -> None:
    """Pack, in place of what lies there; its card, if it was written by hand, is kept.

    Args:
        folders: of the stages pruning, preference and guard; the captioner is the embedded bundle's.
        out: the bundle.
        keep: share of a video's tokens that stays.
    """
    card = out / "card.md"
    parts = Parts(
        model=str(folders["pruning"] / "model"),
        captioner=str(embedded("captioner")),
        policy=policy(),
        domain=folders["guard"] / "domain.safetensors",
        adapter=str(folders["preference"] / "adapter"),
        card=card.read_text() if card.exists() else None,
    )
    settings = {
        "name": "safewatch-tiny",
        "version": "1",
        "knows": KNOWS,
        "policy_encoding": "parallel",
        "prune": {"keep": keep},
        "other_policies": True,
        "tau": TAU,
        "outside_domain": "refuse",
        "clip": {"max_side": LARGE},
        "screen": {"frame_pixels": FRAME_PIXELS},
        "deliberate": {"max_new_tokens": 160, "max_caption_tokens": MAX_TOKENS},
    }
    packed = pack_parts(parts, out, settings, replace_bundle=True)
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    print(f"{out}: {size / 1e6:.1f} MB, {packed.sha256}")
