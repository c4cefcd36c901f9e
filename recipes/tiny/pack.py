"""Stage: put the trained parts into a bundle.

python -m recipes.tiny.pack WORK OUT
"""

from __future__ import annotations

import argparse
from pathlib import Path

from recipes.tiny.data import LARGE
from recipes.tiny.parts import FRAME_PIXELS, policy
from safelens.pack import Parts, pack

KNOWS = (
    "SafeWorld, the project's generated pictograms, and nothing of the real world; "
    "its verdicts on other videos mean nothing"
)
TAU = 0.9


def main() -> None:
    """Pack, in place of what lies there; its card, written by hand, is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    card = args.out / "card.md"
    parts = Parts(
        model=str(args.work / "embedder/model"),
        captioner=str(args.work / "captioner/model"),
        policy=policy(),
        probe=args.work / "probe",
        domain=args.work / "domain.safetensors",
        adapter=str(args.work / "reasoner/adapter"),
        card=card.read_text() if card.exists() else None,
    )
    settings = {
        "name": "tiny",
        "version": "1",
        "knows": KNOWS,
        "tau": TAU,
        "outside_domain": "refuse",
        "clip": {"max_side": LARGE},
        "screen": {"frame_pixels": FRAME_PIXELS},
        "deliberate": {"max_new_tokens": 160, "max_caption_tokens": 48},
    }
    packed = pack(parts, args.out, settings, replace_bundle=True)
    size = sum(p.stat().st_size for p in args.out.rglob("*") if p.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB, {packed.sha256}")


if __name__ == "__main__":
    main()
