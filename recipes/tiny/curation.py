"""Stages of Algorithm 1: noisy labels, influence, the filter, captions, scores, traces.

Knows which library step reads and writes what. The steps themselves are `safelens.curate`'s.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.progress import Progress, track

from recipes.tiny.captioner import MAX_TOKENS
from recipes.tiny.data import DrawnReader
from recipes.tiny.parts import (
    labelled_records,
    load_vlm,
    policy,
    sets_of,
    use_all_cores,
    with_captions,
)
from safelens.captioner import Captioner
from safelens.curate.captions import captioned
from safelens.curate.filtering import keep
from safelens.curate.gradients import GradientCollector
from safelens.curate.passes import Collection, InfluenceStore
from safelens.curate.projection import FactoredProjection
from safelens.curate.samples import RecordSamples
from safelens.curate.scores import training_scores
from safelens.curate.trace_rules import RuleGenerator
from safelens.curate.traces import TraceRun
from safelens.data.records import read_records, write_records
from safelens.line_log import LineLog
from safelens.train.embedder import Turns


def draw_labels(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: the labelled data set that a platform would have, some of its labels wrong.

    So many clips of ``train`` from the first asked for, and all of ``held`` where that is needed.
    """
    sets = sets_of(needs)
    noise = {name: settings[name] for name in ("noise", "kind", "seed")}
    first = settings.get("first", 0)
    records = sets["train"].records("train", **noise)[first : first + settings["clips"]]
    if "held" in sets:
        records += sets["held"].records("held", **noise)
    if not settings.get("captions", True):
        records = [record.model_copy(update={"captions": ()}) for record in records]
    write_records(out / "records.jsonl", records)


def find_influence(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: Algorithm 1, line 2: every labelled sample's gradient against the validation set's."""
    use_all_cores()
    vlm = load_vlm(needs["noisy"])
    turns = Turns(vlm, policy())
    sets = sets_of(needs)
    reader = DrawnReader(sets, "small")
    collector = GradientCollector(vlm, turns.layout.head)
    read = settings["read_captions"]
    parts = [labelled_records(needs), sets["val"].records("val")[: settings.get("val")]]
    if read:
        parts = [with_captions(records, needs) for records in parts]
    train, val = (RecordSamples(r, turns, reader, read_captions=read) for r in parts)
    with Progress() as progress:
        bar = progress.add_task("gradients", total=len(train.ids) + len(val.ids))
        work = Collection(
            collector,
            FactoredProjection(collector.layers, settings["rank"], settings["seed"]),
            InfluenceStore(out / "passes", dict(settings)),
            len(policy().labels),
            batch=settings["batch"],
            on_progress=lambda done: progress.advance(bar, done),
        )
        work.validation_pass(val)
        work.training_pass(train, work.validation_means())


def filter_labels(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: Algorithm 1, line 4: what helps its own class and harms not all; what it found, in numbers."""
    records = labelled_records(needs)
    store = InfluenceStore.open(needs["influence"] / "passes")
    found = training_scores([store], [1.0], len(policy().labels))
    score = settings["score"]
    least = found.least(score, settings["false_drop_rate"])
    kept = keep(found.averages[score], least).tolist()
    write_records(out / "records.jsonl", (r for r, good in zip(records, kept, strict=True) if good))
    wrong = [r.mislabelled for r in records]
    dropped = [not good for good in kept]
    both = sum(w and d for w, d in zip(wrong, dropped, strict=True))
    figures = {
        "labelled": len(records),
        "wrong": sum(wrong),
        "dropped": sum(dropped),
        "precision": both / max(1, sum(dropped)),
        "recall": both / max(1, sum(wrong)),
    }
    (out / "filter.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(figures)


def caption(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: Algorithm 1, line 14, for all that is labelled and the validation set; a line a clip."""
    use_all_cores()
    sets = sets_of(needs)
    records = labelled_records(needs) + sets["val"].records("val")
    captioner = Captioner.load(needs["captioner"] / "model", max_new_tokens=MAX_TOKENS)
    log = LineLog(out / "captions.jsonl")
    done = log.ids()
    bare = [r.model_copy(update={"captions": ()}) for r in records if r.id not in done]
    reader = DrawnReader(sets, "large")
    for record, _ in track(
        captioned(bare, reader, captioner, batch=settings["batch"]),
        total=len(bare),
        description="captions",
    ):
        log.add(json.dumps({"id": record.id, "captions": [c.text for c in record.captions]}))
    log.close()


def write_traces(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: Algorithm 1, lines 15-16: responses as reasoning over captions and scores."""
    records = with_captions(read_records(needs["fast"] / "records.jsonl"), needs)
    run = TraceRun(
        out / "records.jsonl", policy(), RuleGenerator(policy()), settings={"generator": "rules"}
    )
    print(run.run(records))
