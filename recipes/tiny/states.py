"""Stage: run S1 over drawn clips, and fit probe and domain guard on what it sees.

python -m recipes.tiny.states WORK

The clips are none that captioner or embedder were trained on: on those both are surer, and more often
right, than they will ever be again, and probe and reasoner would learn to trust them too much.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from recipes.tiny.data import DrawnClips
from recipes.tiny.parts import FRAME_PIXELS, SEED, policy
from safelens.domain import DomainGuard
from safelens.policy import SAFE
from safelens.probe import ProbeConfig, RollingAttentionProbe, fit_probe
from safelens.screen import LAST_TOKENS, domain_features, layout_of
from safelens.vlm import VisionLanguageModel

PROBE = {"steps": 1500, "lr": 1e-3, "patience": 20}
"""A learning rate of 1e-4 (the sources') has not converged after 1000 steps on these states."""


@dataclass(frozen=True)
class States:
    """S1's states of clips: question (N, T, D), domain features (N, F), class indices (N,)."""

    question: torch.Tensor
    features: np.ndarray
    labels: torch.Tensor


def collect(
    vlm: VisionLanguageModel, drawn: DrawnClips, rows: np.ndarray, batch: int = 16
) -> States:
    """Screen drawn clips and keep what the probe and the guard read."""
    parts = layout_of(vlm, policy(), "policy_first")
    head = vlm.prefill_text(parts.head)
    question, features = [], []
    for start in track(range(0, len(rows), batch), description="states"):
        some = [int(i) for i in rows[start : start + batch]]
        videos = vlm.encode_videos(
            [drawn.frames(i) for i in some], [np.asarray(drawn.clips[i]["times"]) for i in some]
        )
        prefilled = vlm.prefill_videos(head, videos, parts.tail)
        for row in range(len(some)):
            question.append(prefilled.tail_states(row, LAST_TOKENS).clone())
            features.append(domain_features(prefilled, row, vlm.patch_shape))
    classes = policy().labels
    labels = [classes.index((drawn.clips[int(i)]["labels"] or [SAFE])[0]) for i in rows]
    return States(torch.stack(question), np.stack(features), torch.tensor(labels))


def fit(states: States, rows: np.ndarray, seed: int) -> RollingAttentionProbe:
    """A probe trained on some of the rows."""
    config = ProbeConfig(input_dim=states.question.shape[-1], labels=policy().labels)
    found = fit_probe(
        states.question[rows], None, states.labels[rows], config, seed=seed, balanced=False, **PROBE
    )
    print(f"probe: held-out accuracy {found.held_out_accuracy:.3f}, best step {found.best_step}")
    return found.probe


def out_of_fold(states: States, folds: int = 2) -> torch.Tensor:
    """Scores (N, C) of each clip by a probe that did not train on it."""
    order = np.random.default_rng(SEED).permutation(len(states.labels))
    scores = torch.zeros(len(order), len(policy().labels))
    for k in range(folds):
        held = order[k::folds]
        train = np.setdiff1d(order, held)
        probe = fit(states, torch.from_numpy(train), SEED + k)
        scores[held] = probe.predict(states.question[held])
    return scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    vlm = VisionLanguageModel.load(args.work / "embedder" / "model", frame_pixels=FRAME_PIXELS)
    held, val = DrawnClips.open(args.work / "held"), DrawnClips.open(args.work / "val")
    rows = np.arange(len(held.clips))
    states = collect(vlm, held, rows)
    fresh = collect(vlm, val, np.arange(len(val.clips)))
    fit(states, torch.arange(len(rows)), SEED).save(args.work / "probe")
    probe = RollingAttentionProbe.load(args.work / "probe")
    right = (probe.predict(fresh.question).argmax(1) == fresh.labels).float()
    print(f"probe on drawn validation clips: accuracy {right.mean():.3f}")
    guard = DomainGuard.fit(states.features, fresh.features, false_refusal_rate=0.01)
    guard.save(args.work / "domain.safetensors")
    torch.save(out_of_fold(states), args.work / "scores.pt")
