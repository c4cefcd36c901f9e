"""The stages of the SafeWatch report: what models of each training stage answer under which policy.

Knows clips, policies and what is measured of an answer. Knows nothing of how results are put together.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from benchmarks.curation import class_accuracy
from recipes.safewatch_tiny.kinds import SEEN, UNSEEN, Kind, kinds_of
from recipes.safewatch_tiny.policies import Ruled, default_policy, explained, ruled, sampled
from recipes.tiny.check import answers_of, by_id, videos
from recipes.tiny.data import DrawnReader
from recipes.tiny.parts import load_vlm, sets_of, use_all_cores
from safelens.assembly import Encoding
from safelens.branches import Span
from safelens.data.records import Record
from safelens.deliberate import ADAPTER, Deliberated, Deliberator
from safelens.evaluate.metrics import measure
from safelens.evaluate.safelens_system import SafeLensSystem
from safelens.policy import SAFE, Policy
from safelens.reading import Prompt
from safelens.safewatch.blocks import PolicyBlocks, compose
from safelens.safewatch.parallel import ParallelPrompt, ParallelText
from safelens.safeworld.policies import POLICIES, labels_under, load_policy
from safelens.screen import Screened, Screener
from safelens.video import Clip
from safelens.vlm import VisionLanguageModel

FIRST = 1_600
"""Clips of ``held`` before this one fitted the domain guard; no model was trained on any."""
KEEPS = (1.0, 0.8, 0.6, 0.4, 0.2, 0.1)
ROWS = 16


@dataclass
class Asked:
    """A trained model, and clips that it has never seen.

    Attributes:
        vlm: the model.
        adapter: S2's, or None.
        encoding: how it reads policies.
        records: with clips of the same number.
    """

    vlm: VisionLanguageModel
    adapter: str | None
    encoding: Encoding
    records: list[Record]
    clips: list[Clip]
    blocks: PolicyBlocks | None

    @classmethod
    def of(cls, settings: dict[str, Any], needs: dict[str, Path]) -> Asked:
        """The model of the stage ``settings["model"]``, with the adapter of ``preference`` if that is needed."""
        use_all_cores()
        vlm, adapter = load_vlm(needs[settings["model"]]), None
        if "preference" in needs:
            adapter = ADAPTER
            vlm.load_adapter(needs["preference"] / "adapter", adapter)
        encoding = Encoding(settings["encoding"], keep=settings.get("keep"))
        records = sets_of(needs)["held"].records("held")[FIRST:][: settings["clips"]]
        reader = DrawnReader(sets_of(needs), "small")
        clips = [reader.read(record.video) for record in records]
        return cls(vlm, adapter, encoding, records, clips, encoding.blocks(vlm))

    def prompt(self, policy: Policy, keep: float | None = None) -> Prompt:
        """A policy put to the model; blocks are shared among policies."""
        if self.blocks is None:
            return self.encoding.prompt(self.vlm, policy, "policy_first")
        return ParallelPrompt(self.blocks, policy, keep=keep or self.encoding.keep)

    def screened(self, prompt: Prompt, policy: Policy, rows: Sequence[int]) -> Iterator[Screened]:
        """S1's reading of the label answers, clip by clip."""
        screener = Screener(self.vlm, policy, prompt=prompt)
        for start in range(0, len(rows), ROWS):
            yield from screener.screen([self.clips[i] for i in rows[start : start + ROWS]])

    def deliberated(self, prompt: Prompt, policy: Policy, rows: Sequence[int]) -> list[Deliberated]:
        """S2's answers, told S1's scores and no captions, as SafeWatch has none."""
        s2 = Deliberator(self.vlm, policy, adapter=self.adapter, max_new_tokens=120, prompt=prompt)
        found: dict[int, Deliberated] = {}
        under_way, waiting = s2.decoding(), enumerate(self.screened(prompt, policy, rows))
        ended = False
        while not ended or len(under_way):
            while under_way.free and not ended:
                number, s1 = next(waiting, (None, None))
                if s1 is None or number is None:
                    ended = True
                else:
                    context = s1.context
                    under_way.admit(number, context, s2.program((), s1.scores, context.spent))
            for one in under_way.step() if len(under_way) else ():
                if one.result is None:
                    raise one.error or RuntimeError("a clip has no answer")
                found[one.key] = one.result
        return [found[i] for i in range(len(rows))]


def log_odds(scores: dict[str, float], policy: Policy) -> list[float]:
    """Of each category, from P(c) = o_c / (1 + sum o) and P(safe) = 1 / (1 + sum o)."""
    return [float(np.log(scores[c.id] / scores[SAFE])) for c in policy.categories]


def order(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: log-odds of every category under shuffles of the policy, and what they do to the label.

    With ``settings["laid"]`` blocks lie in the cache in the shuffled order; as used they lie by name, and no order
    of a policy can be told.
    """
    asked, policy = Asked.of(settings, needs), default_policy().policy
    rng, rows = random.Random(settings["seed"]), range(settings["clips"])
    odds, labels, places = [], [], []
    for number in range(settings["shuffles"] + 1):
        categories = list(policy.categories)
        if number:
            rng.shuffle(categories)
        shuffled = replace(policy, categories=tuple(categories))
        prompt = asked.prompt(shuffled)
        if settings["laid"]:
            assert asked.blocks is not None
            prompt = _Laid(asked.blocks, shuffled)
        screened = list(asked.screened(prompt, shuffled, rows))
        by_name = {c.id: i for i, c in enumerate(categories)}
        found = [dict(zip(by_name, log_odds(s.scores, shuffled), strict=True)) for s in screened]
        odds.append([[one[c.id] for c in policy.categories] for one in found])
        labels.append([s.label for s in screened])
        places.append([by_name[c.id] for c in policy.categories])
    values, where = np.array(odds), np.array(places)
    changed = np.array(labels[1:]) != np.array(labels[0])
    centred = values - values.mean(0, keepdims=True)
    _write(
        out / "order.json",
        {
            "shuffles": settings["shuffles"],
            "clips": settings["clips"],
            "largest_difference": float(np.abs(values[1:] - values[0]).max()),
            "mean_deviation": float(values.std(0).mean()),
            "labels_changed": float(changed.mean()),
            "clips_whose_label_changes": float(changed.any(0).mean()),
            "by_place": [
                float(centred.transpose(0, 2, 1)[where == place].mean())
                for place in range(len(policy.categories))
            ],
        },
    )


class _Laid(ParallelPrompt):
    """A prompt whose blocks lie in the order of a policy."""

    def __init__(self, blocks: PolicyBlocks, policy: Policy) -> None:
        super().__init__(blocks, policy)
        text = replace(ParallelText.of(self.vlm, policy, "policy_first"), policy=policy)
        trunk, laid = blocks.of(text.trunk, text.blocks)
        self.head = compose(trunk, laid)
        lengths = [block.held.length for block in laid]
        ends = itertools.accumulate(lengths)
        where = {
            category.id: (end - length, end)
            for category, length, end in zip(policy.categories, lengths, ends, strict=True)
        }
        self._where = [where[category.id] for category in self.policy.categories]

    def spans(self, length: int) -> list[Span]:
        return self._where


def pruning(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: accuracy and cost at each share of the video's tokens, under the default policy and drawn ones."""
    asked, own = Asked.of(settings, needs), default_policy()
    rows = range(len(asked.records))
    found: dict[str, Any] = {}
    for keep in KEEPS:
        began = time.perf_counter()
        prompt = asked.prompt(own.policy, None if keep == 1 else keep)
        screened = list(asked.screened(prompt, own.policy, rows))
        seconds = time.perf_counter() - began
        truth = [record.labels for record in asked.records]
        accuracy = class_accuracy(truth, [s.label for s in screened])
        tokens = [s.prefilled.lengths[s.row] for s in screened]
        found[f"{keep:g}"] = {
            "accuracy": accuracy,
            "drawn": _drawn(asked, None if keep == 1 else keep, settings["policies"]),
            "gflops": float(np.mean([s.spent.flops for s in screened])) / 1e9,
            "tokens": float(np.mean(tokens)),
            "seconds": seconds / len(rows),
        }
    _write(out / "pruning.json", found)


def _drawn(asked: Asked, keep: float | None, policies: int) -> dict[str, float]:
    """Over drawn policies of kinds that training spoke of: booleans that are right, balanced, and their AUC."""
    rng, rows = random.Random("drawn"), range(0, len(asked.records), 10)
    truth, scores = [], []
    for _ in range(policies):
        under = sampled(rng)
        for s, i in zip(
            asked.screened(asked.prompt(under.policy, keep), under.policy, rows), rows, strict=True
        ):
            labels = under.labels(kinds_of(asked.records[i]))
            truth += [c.id in labels for c in under.policy.categories]
            scores += log_odds(s.scores, under.policy)
    return _separated(truth, scores)


def _separated(truth: Sequence[bool], scores: Sequence[float]) -> dict[str, float]:
    is_true, odds = np.array(truth), np.array(scores)
    rates = [float((odds[is_true] > 0).mean()), float((odds[~is_true] <= 0).mean())]
    return {"balanced": sum(rates) / 2, "auroc": float(roc_auc_score(is_true, odds))}


def zero_shot(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: categories that no training policy spoke of, and SafeWorld's five policies; S1's answer or S2's.

    An unseen category is one of four in a policy; the others are drawn from kinds that training spoke of.
    Half of its clips show it, half are of any other kind.
    """
    asked = Asked.of(settings, needs)
    found: dict[str, Any] = {"unseen": {}, "seen": {}, "policies": {}}
    chosen = {"unseen": UNSEEN, "seen": SEEN[:: max(1, len(SEEN) // len(UNSEEN))][: len(UNSEEN)]}
    explanations: list[tuple[str | None, str]] = []
    for name, kinds in chosen.items():
        truth, scores = [], []
        for kind in kinds:
            rng = random.Random(f"{kind}")
            under, rows = _of_kind(asked, kind, rng, settings["each"])
            column = [
                i for i, c in enumerate(under.policy.categories) if kind in under.blocked[c.id]
            ]
            answers = _answers(asked, under, rows, settings["stage"], explanations)
            truth += [kind in kinds_of(asked.records[i]) for i in rows]
            scores += [odds[column[0]] for odds in answers]
            found[name][f"{kind[0]} {'harm' if kind[1] else 'twin'}"] = _separated(
                truth[-len(rows) :], scores[-len(rows) :]
            )
        found[name]["all"] = _separated(truth, scores)
    rows = list(range(settings["under_policies"]))
    default = [labels_under(asked.records[i], "standard") for i in rows]
    for name in POLICIES:
        policy = load_policy(name)
        wanted = [labels_under(asked.records[i], name) for i in rows]
        said = _labels(asked, policy, rows, settings["stage"])
        moved = [i for i in rows if set(wanted[i]) != set(default[i])]
        right = [said[i] in (wanted[i] or (SAFE,)) for i in rows]
        found["policies"][name] = {
            "average": class_accuracy(wanted, said)["average"],
            "right": float(np.mean(right)),
            "differ_from_standard": len(moved),
            "right_where_they_differ": float(np.mean([right[i] for i in moved])) if moved else None,
        }
    if explanations:
        found["explanations"] = {
            "right": float(np.mean([told == wanted for told, wanted in explanations])),
            "words": float(np.mean([len((told or "").split()) for told, _ in explanations])),
        }
    _write(out / "zero_shot.json", found)


def _of_kind(asked: Asked, kind: Kind, rng: random.Random, each: int) -> tuple[Ruled, list[int]]:
    """A policy in which a kind is a category of its own, and clips half of which show it."""
    others = rng.sample([k for k in SEEN if k != kind], 3)
    names = rng.sample(["Garden Matters", "House Rules", "Red List", "Town Rules"], 4)
    categories = [(name, [k], []) for name, k in zip(names, [kind, *others], strict=True)]
    rng.shuffle(categories)
    every = range(len(asked.records))
    showing = [i for i in every if kind in kinds_of(asked.records[i])]
    rest = [i for i in every if kind not in kinds_of(asked.records[i])]
    count = min(each, len(showing))
    return ruled(categories, rng), rng.sample(showing, count) + rng.sample(rest, count)


def _answers(
    asked: Asked,
    under: Ruled,
    rows: Sequence[int],
    stage: str,
    explanations: list[tuple[str | None, str]],
) -> list[list[float]]:
    """Log-odds of each category, clip by clip."""
    prompt = asked.prompt(under.policy)
    if stage == "screen":
        return [
            log_odds(s.scores, under.policy) for s in asked.screened(prompt, under.policy, rows)
        ]
    found = asked.deliberated(prompt, under.policy, rows)
    explanations += [
        (one.explanation, explained(asked.records[i], under))
        for one, i in zip(found, rows, strict=True)
    ]
    p = [[one.scores[c.id] for c in under.policy.categories] for one in found]
    return torch.tensor(p, dtype=torch.float64).clamp(1e-9, 1 - 1e-9).logit().tolist()


def _labels(asked: Asked, policy: Policy, rows: Sequence[int], stage: str) -> list[str]:
    prompt = asked.prompt(policy)
    if stage == "screen":
        return [s.label for s in asked.screened(prompt, policy, rows)]
    found = []
    for one in asked.deliberated(prompt, policy, rows):
        likely = max(one.scores, key=lambda name: one.scores[name])
        found.append(likely if one.flags[likely] else SAFE)
    return found


def bundle_answers(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: the bundle's two stages on decoded videos, at one share of the video's tokens."""
    use_all_cores()
    system = SafeLensSystem("bundle", str(needs["watch"] / "bundle"), prune=settings["keep"])
    records = videos(needs["videos"] / "data" / "records.jsonl")[: settings["clips"]]
    run = answers_of("system", system, records, out)
    figures: dict[str, Any] = {}
    for stage in ("screen", "deliberate"):
        answers = run.answers[stage]
        measured = measure(records, by_id(answers), system.policy)
        figures[stage] = {
            "average": measured.single_label.avg_acc,
            "gflops": float(np.mean([a.gflops for a in answers if a.gflops is not None])),
            "seconds": float(np.mean([sum(a.seconds.values()) for a in answers])),
            "of_domain": float(np.mean([bool(a.familiar) for a in answers])),
        }
    _write(out / "answers.json", figures)


def _write(file: Path, found: dict[str, Any]) -> None:
    file.write_text(json.dumps(found, indent=1) + "\n")
