"""SafeLens's influence beside plain autograd, Captum and kronfluence: agreement, time and memory.

    python -m benchmarks.influence [--train N --val M --repeats R] --out reports/influence.json

Knows what is compared and how it is measured. Knows nothing of how a system computes its numbers.

All systems get the embedded bundle's Qwen3-VL, the same drawn SafeWorld clips, already decoded, and as many
threads. SafeLens does what `safelens curate influence` does: both passes, with projections stored, and
both scores. The others compute the full matrix of dot products, the work of our passes alone, so ratios
are to those. Each run is a process of its own; systems take turns within a repeat, and the order moves on
by one a repeat. The clock runs from loaded model and samples to scores; memory is the process's highest
resident set in that time above where it began.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.references import REFERENCES, Problem, autograd_gradients
from recipes.machine import machine
from safelens.bundle import Bundle
from safelens.curate.filtering import keep, zero
from safelens.curate.gradients import GradientCollector
from safelens.curate.influence import Averages
from safelens.curate.passes import Collection, InfluenceStore
from safelens.curate.projection import FactoredProjection
from safelens.curate.scores import DAMPING, training_scores
from safelens.safeworld import sample_scene
from safelens.train.embedder import Turns
from safelens.train.sequences import Example
from safelens.video import ClipOptions, sample_times
from safelens.vlm import VisionLanguageModel

SEED = 909
"""Of the drawn clips; the bundle was trained on other worlds."""
SIDE = 48
RANK = 16
"""Of the whitened score, as `safelens curate` has it."""
PACKAGES = {
    "safelens": ("pyarrow.parquet", "safetensors.torch"),
    "captum": ("captum.influence",),
    "kronfluence": ("kronfluence.analyzer",),
}
"""Imported before the clock."""
HANDICAPS = {
    "safelens": "Also projects and stores every gradient; what it costs to whiten them is in the totals, "
    "not in the passes.",
    "autograd": "One sample at a time; runs the policy anew for each.",
    "captum": "Runs the policy anew for each sample. Holds every validation gradient. Layer inputs are "
    "made to ask for gradients, which its hooks need behind frozen blocks.",
    "kronfluence": "Runs the policy anew for each sample. Holds every validation gradient, so that one "
    "pass over the training samples is enough.",
}
"""What keeps a system from being compared on quite equal terms."""


@dataclass(frozen=True)
class Drawn:
    """Samples that pass between processes: frames (T, 48, 48, 3), times (T,), classes of the policy."""

    frames: list[np.ndarray]
    times: list[np.ndarray]
    classes: list[str]


def draw(count: int, seed: int, classes: Sequence[str]) -> Drawn:
    """Clips of a world, the classes in turn."""
    names = [classes[i % len(classes)] for i in range(count)]
    scenes = [sample_scene(seed, i, label=name) for i, name in enumerate(names)]
    times = [sample_times(s.duration_s - 1 / s.fps, ClipOptions()) for s in scenes]
    frames = [
        np.stack([s.render(float(t), SIDE) for t in at])
        for s, at in zip(scenes, times, strict=True)
    ]
    return Drawn(frames, times, names)


@dataclass(frozen=True)
class Part:
    """Encoded samples, in the form that `safelens.curate.passes` reads."""

    ids: list[str]
    labels: list[int]
    examples: list[Example]

    def example(self, row: int) -> Example:
        """A sample."""
        return self.examples[row]


def load(
    train: Drawn, val: Drawn, batch: int, dtype: torch.dtype = torch.float32
) -> tuple[Problem, Part, Part]:
    """The model, and the samples as it reads them."""
    bundle = Bundle.load("tiny")
    vlm = VisionLanguageModel.load(
        bundle.path(bundle.settings.screen.model), dtype=dtype, frame_pixels=SIDE * SIDE
    )
    turns = Turns(vlm, bundle.policy)

    def part(drawn: Drawn) -> Part:
        videos = vlm.encode_videos(drawn.frames, drawn.times)
        examples = [
            Example(v, (turns.screening(() if name == "safe" else (name,)),))
            for v, name in zip(videos, drawn.classes, strict=True)
        ]
        labels = [bundle.policy.labels.index(name) for name in drawn.classes]
        return Part([str(i) for i in range(len(examples))], labels, examples)

    collector = GradientCollector(vlm, turns.layout.head)
    parts = part(train), part(val)
    problem = Problem(
        collector, turns.layout.head, vlm, parts[0].examples, parts[1].examples, batch
    )
    return problem, *parts


def safelens(problem: Problem, train: Part, val: Part) -> dict[str, Any]:
    """Both passes as shipped; averages of both scores, the stored projections, when the passes ended.

    The passes alone do the others' work; whitening comes after them.
    """
    classes = max(train.labels) + 1
    with tempfile.TemporaryDirectory() as folder:
        # its own collector, so that running the policy once is on the clock
        collector = GradientCollector(problem.vlm, problem.head)
        store = InfluenceStore(Path(folder) / "store", {})
        project = FactoredProjection(collector.layers, RANK, seed=0)
        work = Collection(collector, project, store, classes, batch=problem.batch)
        work.validation_pass(val)
        work.training_pass(train, work.validation_means())
        passed = time.perf_counter(), _peak()
        found = training_scores([store], [1.0], classes, damping=DAMPING)
        z = {p: np.array(store.rows(p)["z"].to_pylist()) for p in ("train", "val")}
    return {"averages": found.averages, "z": z, "passed": passed}


def gradient_errors(problem: Problem, exact: Problem) -> dict[str, Any]:
    """Relative errors of all samples' gradients against plain autograd in float64.

    Args:
        problem: In float32.
        exact: The same in float64.

    Returns:
        Of ours, and of plain autograd in float32: the worst, the median, and the worst of each layer.
    """
    plain, wanted = problem.losses(), exact.losses()
    examples = problem.train + problem.val
    errors: dict[str, list[Tensor]] = {"safelens": [], "autograd": []}
    for rows in torch.arange(len(examples)).split(problem.batch):
        mine = problem.collector([examples[i] for i in rows]).weights()
        found = {
            "safelens": torch.cat([w.flatten(1) for w in mine], dim=1),
            "autograd": autograd_gradients(plain, rows),
        }
        truth = autograd_gradients(wanted, rows)
        sizes = [w[0].numel() for w in mine]
        for name, gradients in found.items():
            pairs = zip(
                (gradients, *gradients.split(sizes, dim=1)),
                (truth, *truth.split(sizes, dim=1)),
                strict=True,
            )
            errors[name].append(torch.stack([_relative(a, b) for a, b in pairs], dim=1))
    return {
        name: {
            "samples": len(examples),
            "worst": float(every[:, 0].max()),
            "median": float(every[:, 0].median()),
            "worst_by_layer": dict(
                zip(problem.collector.layers, every[:, 1:].amax(0).tolist(), strict=True)
            ),
        }
        for name, parts in errors.items()
        for every in [torch.cat(parts)]
    }


def _relative(found: Tensor, wanted: Tensor) -> Tensor:
    return (found.double() - wanted).norm(dim=1) / wanted.norm(dim=1)


def run(system: str, train: Drawn, val: Drawn, batch: int, threads: int) -> dict[str, Any]:
    """One system in this process: what it found, and what that cost."""
    torch.set_num_threads(threads)
    for package in PACKAGES.get(system, ()):
        import_module(package)
    problem, *parts = load(train, val, batch)
    problem.collector(problem.train[:batch])  # kernels are chosen and buffers made before the clock
    before = _reset_peak()
    start = time.perf_counter()
    if system == "safelens":
        found = safelens(problem, *parts)
    elif system == "gradients":
        exact, *_ = load(train, val, batch, torch.float64)
        found = {"errors": gradient_errors(problem, exact)}
    else:
        found = {"matrix": REFERENCES[system](problem)}
    marks = {"": (time.perf_counter(), _peak())}
    if "passed" in found:
        marks["passes_"] = found.pop("passed")
    costs: dict[str, float | None] = {}
    for name, (ended, peak) in marks.items():
        costs[f"{name}seconds"] = ended - start
        costs[f"{name}extra_mib"] = (
            None if before is None or peak is None else (peak - before) / 1024
        )
    tokens = [len(e.video.ids) + sum(map(len, e.turns[0])) for e in problem.train]
    about = {
        "head_tokens": len(problem.vlm.ids(problem.head)),
        "own_tokens_mean": statistics.fmean(tokens),
        "layers": len(problem.collector.layers),
        "numbers_in_a_gradient": problem.collector.dimension,
    }
    return found | costs | {"about": about, "labels": _labels(parts)}


def apart(*args: Any) -> dict[str, Any]:
    """`run` in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(run, *args).result()


def by_hand(matrix: Tensor, train: Tensor, val: Tensor) -> Averages:
    """The two averages of a full matrix (N, M), row by row as Algorithm 1 writes them."""
    own = torch.stack([matrix[i, val == label].mean() for i, label in enumerate(train)])
    return Averages(own, matrix.mean(1))


def whitened_matrix(z: dict[str, np.ndarray]) -> Tensor:
    """Cosines <a, b> / |a||b| under (C + damping * tr(C)/k)^-1 of all projections, shape (N, M)."""
    train, val = torch.from_numpy(z["train"]).double(), torch.from_numpy(z["val"]).double()
    moment = train.T @ train / len(train)
    k = len(moment)
    damped = moment + DAMPING * moment.trace() / k * torch.eye(k, dtype=torch.float64)
    solved = torch.linalg.solve(damped, val.T)
    lengths = (train * torch.linalg.solve(damped, train.T).T).sum(1).sqrt()
    others = (val.T * solved).sum(0).sqrt()
    return train @ solved / lengths[:, None] / others


def agreement(mine: Averages, matrix: Tensor, labels: tuple[Tensor, Tensor]) -> dict[str, float]:
    """How far streaming averages and decisions are from a full matrix's."""
    wanted = by_hand(matrix, *labels)
    ours, theirs = torch.stack([mine.own, mine.all]), torch.stack([wanted.own, wanted.all])
    kept = keep(wanted, zero(wanted))
    return {
        "decision_agreement": float((keep(mine, zero(mine)) == kept).double().mean()),
        "kept": float(kept.double().mean()),
        "largest_error": float((ours - theirs).abs().max() / theirs.abs().max()),
        "smallest_margin": float(theirs.abs().min() / theirs.abs().max()),
        "correlation": float(torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1]),
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    classes = Bundle.load("tiny").policy.labels
    work = (
        draw(args.train, SEED, classes),
        draw(args.val, SEED + 1, classes),
        args.batch,
        args.threads,
    )
    report: dict[str, Any] = {"machine": machine(args.threads)}
    versions = {name: _version(name) for name in ("captum", "kronfluence")}
    systems = ["safelens", "autograd", *(n for n, v in versions.items() if v != "not installed")]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in systems}
    failed: dict[str, str] = {}
    for repeat in range(args.repeats):
        turn = repeat % len(systems)
        for name in systems[turn:] + systems[:turn]:
            if name in failed:
                continue
            try:
                runs[name].append(apart(name, *work))
            except Exception as error:
                if name == "safelens":
                    raise
                failed[name] = f"{type(error).__name__}: {error}"
    first = {name: found[0] for name, found in runs.items() if found and name not in failed}
    labels = first["safelens"]["labels"]
    report["work"] = first["safelens"]["about"] | {
        "train": args.train,
        "val": args.val,
        "batch": args.batch,
        "dtype": "float32",
        "model": "the embedded bundle's Qwen3-VL, last block's linear layers",
    }
    report["gradients"] = apart("gradients", *work)["errors"]
    mine = first["safelens"]["averages"]
    exact = first["autograd"]["matrix"]
    report["streaming"] = {
        "tracin": agreement(mine["tracin"], exact, labels),
        "whitened": agreement(
            mine["whitened"], whitened_matrix(first["safelens"]["z"]) ** 3, labels
        ),
    }
    report["libraries"] = {}
    for name, found in versions.items():
        if name not in first:
            report["libraries"][name] = {"version": found, "failed": failed.get(name)}
            continue
        matrix = first[name]["matrix"]
        error = float((matrix - exact).abs().max() / exact.abs().max())
        report["libraries"][name] = {
            "version": found,
            "matrix_error": error,
            "streaming": agreement(mine["tracin"], matrix, labels),
        }
    report["cost"] = {
        name: _cost(found, runs["safelens"]) | {"handicap": HANDICAPS.get(name)}
        for name, found in runs.items()
        if name in first
    }
    return report


def _cost(found: list[dict[str, Any]], ours: list[dict[str, Any]]) -> dict[str, Any]:
    """All runs, and a system's cost over that of SafeLens's passes in the same repeat."""
    out: dict[str, Any] = {}
    for key in ("seconds", "extra_mib", "passes_seconds", "passes_extra_mib"):
        if key in found[0]:
            out[key] = [r[key] for r in found]
    for key in ("seconds", "extra_mib"):
        if None not in out[key]:
            pairs = zip(found, ours, strict=True)
            ratios = [a[key] / b[f"passes_{key}"] for a, b in pairs]
            spread = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
            out[f"{key}_over_passes"] = spread
    return out


def _labels(parts: Sequence[Part]) -> tuple[Tensor, Tensor]:
    train, val = (torch.tensor(part.labels) for part in parts)
    return train, val


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _reset_peak() -> int | None:
    """Begin a new peak of resident memory; where it begins, in KiB, or None where that is not Linux.

    `getrusage` would give the same peak, but that of loading the model hides what comes after it.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _resident("VmRSS")


def _peak() -> int | None:
    """Highest resident memory since `_reset_peak`, in KiB; None where that is not Linux."""
    return _resident("VmHWM") if Path("/proc/self/status").exists() else None


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(x for x in lines if x.startswith(field)).split()[1])


def main() -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=int, default=64)
    parser.add_argument("--val", type=int, default=28)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    report = measure(args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
