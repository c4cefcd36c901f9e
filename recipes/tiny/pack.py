"""Stage: put the trained parts into a bundle.

python -m recipes.tiny.pack WORK OUT
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from recipes.tiny.data import LARGE
from recipes.tiny.parts import FRAME_PIXELS, policy
from safelens.bundle import write_bundle

KNOWS = (
    "SafeWorld, the project's generated pictograms, and nothing of the real world; "
    "its verdicts on other videos mean nothing"
)
TAU = 0.9


def main() -> None:
    """Copy, then write settings and digests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    card = args.out / "card.md"
    kept = card.read_text() if card.exists() else "# tiny\n"
    shutil.rmtree(args.out, ignore_errors=True)
    for name, part in (
        ("model", "embedder/model"),
        ("captioner", "captioner/model"),
        ("deliberate", "reasoner/adapter"),
        ("probe", "probe"),
    ):
        shutil.copytree(args.work / part, args.out / name)
    (args.out / "deliberate" / "README.md").unlink(missing_ok=True)
    adapter = args.out / "deliberate" / "adapter_config.json"
    # peft notes where the base model lay on the machine that trained it
    adapter.write_text(
        json.dumps(json.loads(adapter.read_text()) | {"base_model_name_or_path": None}, indent=2)
    )
    shutil.copy(args.work / "domain.safetensors", args.out)
    for part in args.out.rglob("*"):
        part.chmod(0o755 if part.is_dir() else 0o644)
    (args.out / "policy.yaml").write_text(policy().to_yaml())
    card.write_text(kept)
    digest = write_bundle(
        args.out,
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
    size = sum(p.stat().st_size for p in args.out.rglob("*") if p.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB, {digest}")


if __name__ == "__main__":
    main()
