"""python -m recipes.safewatch CONFIG [--plan]: Algorithm 1, or what it would cost and lack."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from recipes.safewatch.algorithm import StageFailed, algorithm
from recipes.safewatch.config import ConfigError, load
from recipes.stages import run


def main() -> int:
    """Exit code 0; 1: the plan found problems, or a stage failed; 2: wrong settings; 130: interrupted."""
    parser = argparse.ArgumentParser(prog="python -m recipes.safewatch", description=__doc__)
    parser.add_argument(
        "config", type=Path, help="YAML file, such as recipes/safewatch/safewatch.yaml"
    )
    parser.add_argument("--plan", action="store_true", help="print costs and problems; run nothing")
    args = parser.parse_args()
    try:
        config = load(args.config)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.plan:
        from recipes.safewatch.plan import plan, show

        made = plan(config)
        show(made)
        return 1 if made.found.problems else 0
    try:
        [bundle] = run(algorithm(config)[-1], root=Path(config.root))
    except StageFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; give the same command again to go on", file=sys.stderr)
        return 130
    print(bundle / "bundle")
    return 0


if __name__ == "__main__":
    sys.exit(main())
