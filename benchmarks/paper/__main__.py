"""The paper's tables and figures in miniature on SafeWorld, each beside what the paper prints.

    python -m benchmarks.paper [--work out/tiny] [--seeds 3] [--grid] [--out reports]

Trains a bundle a seed by the recipe of `recipes.tiny`, asks every system about videos that nothing was trained
on, and writes paper.json, paper.md and the pictures. Every stage's result is kept in --work; an interrupted run
goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.paper.backbones import PAIRS, pair
from benchmarks.paper.grid import grid_figures
from benchmarks.paper.grid_pages import written_grid
from benchmarks.paper.measured import figures
from benchmarks.paper.pages import written
from benchmarks.paper.pictures import grid_picture, tau_picture
from benchmarks.paper.stages import CHOSEN_ON, ZERO_SHOT, Seed, seed_of
from recipes.machine import machine
from recipes.stages import Stage, run


def stages_of(seed: Seed) -> list[Stage]:
    """What the report needs of one seed."""
    return [
        seed.test,
        seed.choice,
        seed.screened,
        seed.tuned,
        seed.filtered,
        seed.unfiltered,
    ]


def main() -> None:
    """Run what is missing, then write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("out/tiny"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--grid",
        action="store_true",
        help="train and ask the pairs of embedder and reasoner of three families too",
    )
    parser.add_argument("--out", type=Path, default=Path("reports"))
    args = parser.parse_args()
    goals = [stage for number in range(args.seeds) for stage in stages_of(seed_of(number))]
    if args.grid:
        goals += [pair(*names) for names in PAIRS]
    run(ZERO_SHOT, *goals, root=args.work)
    report = {
        "command": "python -m benchmarks.paper" + (" --grid" if args.grid else ""),
        "about": (
            f"Mean and standard deviation over {args.seeds} seed(s) of training, all on the same labels and videos. "
            "Every system answers on every video; what is no answer is wrong."
        ),
        "machine": machine(),
        "chosen_on": CHOSEN_ON,
    } | figures(args.seeds, args.work)
    args.out.mkdir(exist_ok=True)
    page = written(report)
    if args.grid:
        report["grid"] = grid_figures(args.work)
        page += "\n" + written_grid(report["grid"])
        (args.out / "paper-grid.svg").write_text(grid_picture(report["grid"]["s2"]))
    (args.out / "paper.json").write_text(json.dumps(report, indent=1) + "\n")
    (args.out / "paper.md").write_text(page)
    (args.out / "paper-tau.svg").write_text(tau_picture(report["sweep"]))
    print(page)


if __name__ == "__main__":
    main()
