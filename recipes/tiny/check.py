"""Measure the bundle on fresh SafeWorld videos and on real ones; print the figures of its card.

    python -m recipes.tiny.check [--bundle tiny] [--clips 700] [--videos FOLDER ...] [--out FILE]

Writes the videos once (H.264 and the other formats), runs S1 and S2 on every one, and routes both as the
cascade does; a clip that the domain guard refuses has no answer there, which counts as wrong. A clip with
two labels counts under its first and is right if the answer is one of its labels. Captions count as right
where they name every object of the frame. The folders hold real videos, which the guard must refuse.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from recipes.machine import machine
from safelens.bundle import Bundle
from safelens.cascade import SafeLens
from safelens.data.records import Record, read_records
from safelens.policy import SAFE
from safelens.prompts import parse_response
from safelens.safeworld import sample_scene
from safelens.safeworld.writer import write_dataset
from safelens.verdict import Caption
from safelens.video import Clip, ClipOptions, VideoError, VideoReader

SEED = 4242
"""Of the fresh clips; training draws from other seeds."""


def class_accuracy(truth: list[tuple[str, ...]], answers: list[str | None]) -> dict[str, float]:
    """Accuracy of each class, and their unweighted mean under "average"."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for labels, answer in zip(truth, answers, strict=True):
        wanted = labels or (SAFE,)
        hits[wanted[0]].append(answer in wanted)
    found = {name: float(np.mean(rows)) for name, rows in sorted(hits.items())}
    return found | {"average": float(np.mean(list(found.values())))}


def run(lens: SafeLens, record: Record, clip: Clip) -> dict[str, Any]:
    """S1 and S2 on one clip, both always."""
    s1 = lens.screener.screen([clip])[0]
    assert lens.captioner is not None
    texts = lens.captioner.caption(clip.frames)
    captions = [
        Caption(time_s=float(t), text=x) for t, x in zip(clip.timestamps, texts, strict=True)
    ]
    evidence = {
        name: [(e.start_s, e.end_s) for e in lens.screener.evidence(s1, clip, name)]
        for name in record.labels
    }
    s2 = lens.deliberator.deliberate(s1.context, captions, s1.scores)
    response = parse_response(lens.policy, s2.text)
    flagged = [n for n, flag in s2.flags.items() if flag]
    return {
        "s1": s1.label,
        "s1_confidence": s1.confidence,
        "s1_scores": s1.scores,
        "in_domain": s1.in_domain,
        "familiar": s1.familiar,
        "s2": max(flagged, key=lambda n: s2.scores[n]) if flagged else SAFE,
        "s2_flags": flagged,
        "s2_scores": s2.scores,
        "well_formed": bool(response.description and response.explanation),
        "parsed": response.flags == s2.flags,
        "captions": texts,
        "times": [float(t) for t in clip.timestamps],
        "description": s2.description,
        "explanation": s2.explanation,
        "evidence": evidence,
    }


def overlap(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Whether two intervals of time meet."""
    return a[0] <= b[1] and b[0] <= a[1]


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
    if not (args.work / "records.jsonl").exists():
        write_dataset(args.work, clips=args.clips, seed=SEED, jobs=2)
    records = read_records(args.work / "records.jsonl")[: args.clips]
    settings = Bundle.load(args.bundle).settings
    rows = []
    options = ClipOptions(**settings.clip.model_dump())
    with SafeLens.load(args.bundle) as lens, VideoReader(options) as reader:
        for record in track(records, description="SafeWorld"):
            clip = reader.read(record.video_path(args.work / "records.jsonl"))
            rows.append(run(lens, record, clip) | {"id": record.id})
        real: dict[str, Counter[str]] = defaultdict(Counter)
        for folder in args.videos:
            for path in track(sorted(folder.glob("*.*")), description=folder.name):
                if path.suffix in {".csv", ".md", ".json"}:
                    continue
                try:
                    clip = reader.read(path)
                except VideoError:
                    real[folder.name]["unreadable"] += 1
                    continue
                inside = lens.screener.screen([clip])[0].familiar
                real[folder.name]["in domain" if inside else "out of domain"] += 1
    (args.work / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    report |= figures(records, rows, settings.tau) | {"real": real}
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def figures(records: list[Record], rows: list[dict[str, Any]], tau: float) -> dict[str, Any]:
    """All figures of the card."""
    truth = [tuple(r.labels) for r in records]
    escalated = [row["familiar"] and row["s1_confidence"] < tau for row in rows]
    cascade = [
        (row["s2"] if unsure else row["s1"]) if row["familiar"] else None
        for row, unsure in zip(rows, escalated, strict=True)
    ]
    unsure_only = [i for i, unsure in enumerate(escalated) if unsure]
    named = []
    for record, row in zip(records, rows, strict=True):
        scene = scene_of(record)
        for t, text in zip(row["times"], row["captions"], strict=True):
            named.append(all(o.lower() in text.lower() for o in scene.objects(t)))
    met = [
        any(overlap(span, record.interval) for span in row["evidence"][label])
        for record, row in zip(records, rows, strict=True)
        for label in record.labels[:1]
        if record.interval
    ]
    by_difficulty: dict[str, list[list[bool]]] = defaultdict(list)
    for record, row, final in zip(records, rows, cascade, strict=True):
        wanted = tuple(record.labels) or (SAFE,)
        by_difficulty[record.difficulty or ""].append(
            [row["s1"] in wanted, row["s2"] in wanted, final in wanted]
        )
    return {
        "clips": len(rows),
        "S1": class_accuracy(truth, [r["s1"] for r in rows]),
        "S2": class_accuracy(truth, [r["s2"] for r in rows]),
        "cascade": class_accuracy(truth, cascade),
        "S2 exact label sets": float(
            np.mean([set(r["s2_flags"]) == set(t) for r, t in zip(rows, truth, strict=True)])
        ),
        "tau": tau,
        "escalated": float(np.mean(escalated)),
        "right among escalated": {
            stage: float(np.mean([rows[i][stage] in (truth[i] or (SAFE,)) for i in unsure_only]))
            for stage in ("s1", "s2")
        },
        "S1, S2, cascade by difficulty": {
            k: [round(float(x), 3) for x in np.mean(v, axis=0)] + [len(v)]
            for k, v in sorted(by_difficulty.items())
        },
        "frames whose caption names all objects": float(np.mean(named)),
        "S2 well formed": float(np.mean([r["parsed"] for r in rows])),
        "S2 with description and explanation": float(np.mean([r["well_formed"] for r in rows])),
        "evidence meets the true interval": float(np.mean(met)),
        "fresh clips out of domain": float(np.mean([not r["familiar"] for r in rows])),
    }


def scene_of(record: Record) -> Any:
    """The scene that a record was drawn from."""
    seed, index = record.id.removeprefix("sw").split("-")
    return sample_scene(int(seed), int(index))


if __name__ == "__main__":
    main()
