"""Measure the bundle on fresh SafeWorld videos and on real ones; print the figures of its card.

    python -m recipes.tiny.check [--bundle tiny] [--clips 700] [--videos FOLDER ...] [--out FILE]

Writes the videos once (H.264 and the other formats), has S1 and S2 answer on every one, and routes both as the
cascade does; what it refuses counts as wrong. Captions count as right where they name every object of the frame.
The folders hold real videos, which the guard must refuse. Answers are kept in --work: an interrupted run
goes on.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from recipes.machine import machine
from safelens.data.records import Record, read_records
from safelens.evaluate.answers import Answer
from safelens.evaluate.cases import pair
from safelens.evaluate.explanations import explanations
from safelens.evaluate.metrics import measure
from safelens.evaluate.run import CASCADE, Run, run_system, take_samples
from safelens.evaluate.safelens_system import SafeLensSystem
from safelens.evaluate.system import System
from safelens.policy import Policy
from safelens.safeworld.writer import scene_of, write_dataset

SEED = 4242
"""Of the fresh clips; training draws from other seeds."""
STAGES = ("screen", "deliberate", CASCADE)


def main() -> None:
    """Run everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", default="tiny")
    parser.add_argument("--work", type=Path, default=Path("out/check"))
    parser.add_argument("--clips", type=int, default=700)
    parser.add_argument("--videos", type=Path, nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=Path("recipes/tiny/check.json"))
    args = parser.parse_args()
    command = f"python -m recipes.tiny.check --clips {args.clips}"
    if args.videos:
        command += " --videos " + " ".join(folder.name for folder in args.videos)
    report: dict[str, Any] = {"machine": machine(), "command": command, "seed": SEED}
    file = args.work / "records.jsonl"
    if not file.exists():
        write_dataset(args.work, clips=args.clips, seed=SEED, jobs=2)
    records = videos(file)[: args.clips]
    both = SafeLensSystem("bundle", args.bundle)
    alone = SafeLensSystem("bundle", args.bundle, screen_only=True)
    run = answers_of("SafeWorld", both, records, args.work)
    assert run.thresholds is not None
    report |= figures(records, run.answers, both.policy) | {"tau": run.thresholds.tau}
    report["real"] = {
        folder.name: real(answers_of(folder.name, alone, films(folder), args.work))
        for folder in args.videos
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def videos(file: Path) -> list[Record]:
    """The records of a file, their videos absolute."""
    return [
        r.model_copy(update={"video": str(r.video_path(file).resolve())})
        for r in read_records(file)
    ]


def answers_of(name: str, system: System, records: Sequence[Record], work: Path) -> Run:
    """What a system answers, with a progress bar; kept in `work`."""
    with Progress() as progress:
        bar = progress.add_task(name, total=len(records))
        return run_system(
            name,
            system,
            take_samples(records),
            work,
            say=progress.console.print,
            on_done=lambda: progress.advance(bar),
        )


def films(folder: Path) -> list[Record]:
    """The videos of a folder as records without a label."""
    return [
        Record(id=path.name, video=str(path.resolve()), labels=(), source="real")
        for path in sorted(folder.glob("*.*"))
        if path.suffix not in {".csv", ".md", ".json"}
    ]


def real(run: Run) -> dict[str, int]:
    """How many videos of a folder the guard lets in, refuses, or never saw because they cannot be read."""
    kinds = {True: "in domain", False: "out of domain", None: "unreadable"}
    return dict(Counter(kinds[answer.familiar] for answer in run.answers["screen"]))


def figures(
    records: Sequence[Record], answers: Mapping[str, Sequence[Answer]], policy: Policy
) -> dict[str, Any]:
    """All figures of the card.

    Args:
        records: Fresh SafeWorld clips.
        answers: Of "screen", "deliberate" and "cascade", in the records' order.
        policy: Whose classes are meant.
    """
    measured = {stage: measure(records, by_id(answers[stage]), policy) for stage in STAGES}
    s1, s2, final = (answers[stage] for stage in STAGES)
    escalated = [f is two for f, two in zip(final, s2, strict=True)]
    unsure = [i for i, went in enumerate(escalated) if went]
    right = {
        stage: [a.label in (r.labels or ("safe",)) for r, a in zip(records, some, strict=True)]
        for stage, some in (("s1", s1), ("s2", s2))
    }
    found: dict[str, Any] = {"clips": len(records)}
    for name, stage in zip(("S1", "S2", "cascade"), STAGES, strict=True):
        of = measured[stage].single_label
        classes = {label: of.classes[label].accuracy for label in sorted(of.classes)}
        found[name] = classes | {"average": of.avg_acc}
    difficulties = measured["screen"].difficulties
    return found | {
        "S2 exact label sets": measured["deliberate"].multi_label.exact_match,
        "escalated": float(np.mean(escalated)),
        "right among escalated": {
            stage: float(np.mean([rows[i] for i in unsure])) for stage, rows in right.items()
        },
        "S1, S2, cascade by difficulty": {
            kind: [round(measured[stage].difficulties[kind].accuracy, 3) for stage in STAGES]
            + [difficulties[kind].videos]
            for kind in sorted(difficulties)
        },
        "frames whose caption names all objects": float(np.mean(_named(records, s2))),
        "S2 with description and explanation": float(
            np.mean([bool(a.description and a.explanation) for a in s2])
        ),
        "explanations": asdict(explanations(pair(records, by_id(s2), policy))),
        "evidence meets the true interval": float(np.mean(_met(records, s1))),
        "fresh clips out of domain": float(np.mean([not a.familiar for a in s1])),
    }


def by_id(answers: Sequence[Answer]) -> dict[str, Answer]:
    """Answers by the record's id."""
    return {answer.id: answer for answer in answers}


def _named(records: Sequence[Record], answers: Sequence[Answer]) -> list[bool]:
    """Of every frame, whether its caption names all that is in it."""
    found = []
    for record, answer in zip(records, answers, strict=True):
        scene = scene_of(record.id)
        assert scene is not None
        for caption in answer.captions:
            names = scene.objects(caption.time_s)
            found.append(all(name.lower() in caption.text.lower() for name in names))
    return found


def _met(records: Sequence[Record], answers: Sequence[Answer]) -> list[bool]:
    """Of rightly flagged clips, whether some evidence overlaps the true interval."""
    return [
        any(e.start_s <= record.interval[1] and record.interval[0] <= e.end_s for e in evidence)
        for record, answer in zip(records, answers, strict=True)
        if record.interval
        and (evidence := [e for e in answer.evidence if e.category in record.labels])
    ]


if __name__ == "__main__":
    main()
