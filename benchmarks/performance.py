"""All figures of docs/performance.md, in one run that can be interrupted.

    python -m benchmarks.performance [--work out/performance] [--device cpu] --out benchmarks/results/cpu.json

Knows which measurements there are and what is put together. Each is a stage, run once, in a process of its own, so
that none finds the memory of another. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.performance_page import written
from recipes.machine import machine
from recipes.stages import Stage, run

TRUE_SHAPE = {"clips": 24, "plain-clips": 3, "repeats": 2, "length": 200}
TINY = {"clips": 24, "repeats": 5}
DECODING = {"repeats": 3}
SCALING = {"videos": 2_000, "repeats": 3}
BOUNDS = {"repeats": 3}
DENSE = "720p-gop250.mp4"
"""The file by which keyframes are measured against torchcodec."""


def bench(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: `safelens bench`."""
    before = machine()
    _python("safelens", out, settings, "bench", *(["--true-shape"] if "length" in settings else []))
    _add(out, before)


def decoding(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: `benchmarks.decoding`, whose files are kept until it is done."""
    _python("benchmarks.decoding", out, settings | {"videos": str(out / "videos")})


def scaling(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: `benchmarks.scaling`."""
    _python("benchmarks.scaling", out, settings)


def bounds(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: `benchmarks.true_shape`."""
    bench = str(needs["true-shape"] / "found.json")
    _python("benchmarks.true_shape", out, settings | {"bench": bench})


def _python(module: str, out: Path, settings: dict[str, Any], *words: str) -> None:
    options = [f"--{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", module, *words, *options, "--out", str(out / "found.json")]
    subprocess.run(command, check=True)


def _add(out: Path, before: dict[str, Any]) -> None:
    file = out / "found.json"
    file.write_text(json.dumps({"machine": before} | json.loads(file.read_text()), indent=1) + "\n")


def stages(device: str) -> dict[str, Stage]:
    """Declare the measurements; nothing is run."""
    true_shape = Stage("true-shape", bench, TRUE_SHAPE | {"device": device})
    return {
        "true_shape": true_shape,
        "bounds": Stage("bounds", bounds, BOUNDS | {"device": device}, (true_shape,)),
        "tiny": Stage("tiny", bench, TINY | {"device": device}),
        "decoding": Stage("decoding", decoding, DECODING),
        "scaling": Stage("scaling", scaling, SCALING),
    }


def together(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One report of all; the headline's ratios are those of the true shape."""
    dense = found["decoding"]["files"][DENSE]["systems"]["keyframes"]["times_faster_than"]
    ratio = {"keyframes_over_torchcodec": dense["torchcodec"]} if "torchcodec" in dense else {}
    return {
        "command": "python -m benchmarks.performance",
        "machine": found["true_shape"]["machine"],
        "ratio": found["true_shape"]["ratio"] | ratio,
        "share_of_limit": found["true_shape"]["share_of_limit"],
    } | found


def main() -> None:
    """Measure what is missing, and write the report and the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("out/performance"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--page", type=Path, default=Path("docs/performance.md"))
    args = parser.parse_args()
    wanted = stages(args.device)
    run(*wanted.values(), root=args.work)
    folders = {name: stage.folder(args.work) for name, stage in wanted.items()}
    report = together(
        {name: json.loads((folder / "found.json").read_text()) for name, folder in folders.items()}
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    picture = args.page.with_suffix(".svg")
    picture.write_text((folders["scaling"] / "found.svg").read_text())
    args.page.write_text(written(report, args.out, picture.name))
    print(args.page.read_text())


if __name__ == "__main__":
    main()
