"""Probe scores by probes that did not train on what they score (section 4.2; Algorithm 1, lines 9-13).

Knows states, groups of records that belong together, folds and probes. Knows nothing of files or models.

The paper trains one probe on a held-out subset and scores the rest (`held_out_scores`). Cross-fitting
(`cross_fitted_scores`) leaves no record without scores: each fold is scored by a probe that trained on
the other folds. Either way the reasoner sees scores as wrong, and as unsure, as in use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from safelens.data.records import Record
from safelens.probe import ProbeConfig, fit_probe
from safelens.train.states import States


@dataclass(frozen=True)
class ProbeScores:
    """Scores of N records.

    Attributes:
        scores: Class probabilities, shape (N, C); NaN in rows without scores.
        scored_by: Number of the probe that gave a row its scores, shape (N,); -1 where none did.
        fitted_on: Rows that each probe was fitted on, its own held-out rows for early stopping included.
        accuracies: Each probe's average class accuracy on the rows that it scored, of those that
            it could have been fitted on; NaN where there are none.
        accuracy: The same over all scored rows together.
    """

    scores: Tensor
    scored_by: Tensor
    fitted_on: tuple[Tensor, ...]
    accuracies: tuple[float, ...]
    accuracy: float


def cross_fitted_scores(
    states: States,
    groups: Sequence[int],
    labels: Sequence[str],
    *,
    folds: int = 5,
    trainable: Tensor | None = None,
    seed: int = 0,
    on_fit: Callable[[], None] = lambda: None,
    **fitting: Any,
) -> ProbeScores:
    """Score every record by a probe that was fitted on the other folds.

    Args:
        states: Of the N records.
        groups: Group of each record, N numbers; a group is never divided (see `groups_of`).
        labels: Names of the classes; `states.labels` are indices into them.
        folds: How many, at least 2.
        trainable: True in rows that probes may be fitted on, shape (N,); all decided ones when None.
            The others are only scored.
        seed: Of folds and probes; probe k is fitted with seed + k.
        on_fit: Called after each probe.
        fitting: Options of `fit_probe`: steps, learning rate and the like.

    Raises:
        ValueError: A class has fewer groups than `folds`, or too few records to fit and stop a probe;
            states are no numbers. The message names class or records.
    """
    if folds < 2:
        raise ValueError(f"{folds} folds; expected 2 or more")
    usable = _usable(states, trainable)
    _check_groups(states, groups, labels, usable, folds)
    fold = divide(states.labels, groups, [1 / folds] * folds, usable, seed)
    parts = [((fold != k) & usable, fold == k) for k in range(folds)]
    return _scored(states, labels, parts, usable, seed, on_fit, fitting)


def held_out_scores(
    states: States,
    groups: Sequence[int],
    labels: Sequence[str],
    *,
    share: float = 0.5,
    trainable: Tensor | None = None,
    seed: int = 0,
    on_fit: Callable[[], None] = lambda: None,
    **fitting: Any,
) -> ProbeScores:
    """Fit one probe on a share of the records and score the others (the paper's way).

    Args:
        states: As in `cross_fitted_scores`, like all that is not named here.
        groups: Of the records.
        labels: Names of the classes.
        share: Of each class that the probe is fitted on, in (0, 1).
        trainable: Rows that the probe may be fitted on.
        seed: Of the division and the probe.
        on_fit: Called after the fit.
        fitting: Options of `fit_probe`.

    Raises:
        ValueError: As in `cross_fitted_scores`, with two groups needed in every class.
    """
    if not 0 < share < 1:
        raise ValueError(f"a share of {share} held out; expected more than 0 and less than 1")
    usable = _usable(states, trainable)
    _check_groups(states, groups, labels, usable, 2)
    part = divide(states.labels, groups, [share, 1 - share], usable, seed)
    fitted = (part == 0) & usable
    of_probe = {groups[row] for row in fitted.nonzero()[:, 0].tolist()}
    seen = torch.tensor([group in of_probe for group in groups])
    return _scored(states, labels, [(fitted, ~seen)], usable, seed, on_fit, fitting)


def groups_of(records: Sequence[Record], sha256: Sequence[str]) -> list[int]:
    """Number the groups of records that no fold may divide.

    Records belong together where they share their `group`, the bytes of their video, or the scene of a
    twin; and so do records that are linked through others.

    Args:
        records: N records.
        sha256: Of their videos' bytes.

    Returns:
        N group numbers, from 0 in the order of the first records.
    """
    root = list(range(len(records)))

    def find(row: int) -> int:
        while root[row] != row:
            root[row] = row = root[root[row]]
        return row

    first: dict[tuple[str, str], int] = {}
    for row, (record, digest) in enumerate(zip(records, sha256, strict=True)):
        ties = [("bytes", digest), ("scene", record.twin_of or record.id)]
        if record.group is not None:
            ties.append(("group", record.group))
        for tie in ties:
            a, b = find(row), find(first.setdefault(tie, row))
            root[max(a, b)] = min(a, b)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(find(row), len(numbers)) for row in range(len(records))]


def divide(
    classes: Tensor, groups: Sequence[int], shares: Sequence[float], usable: Tensor, seed: int
) -> Tensor:
    """Divide rows into parts of given shares: groups stay whole, every class is spread alike.

    Groups are taken from the largest to the smallest, those of a size in random order; each goes where
    its classes are furthest from their share. Rows that are not usable count as a class of their own.

    Args:
        classes: Shape (N,), 0 or more where usable.
        groups: N numbers.
        shares: Of the parts, adding up to 1.
        usable: Shape (N,), bool.
        seed: Of the order.

    Returns:
        Number of each row's part, shape (N,).
    """
    kinds = torch.where(usable, classes, -1) + 1
    total = torch.bincount(kinds).double().clamp(min=1)
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    random = torch.Generator().manual_seed(seed)
    order = [list(members)[i] for i in torch.randperm(len(members), generator=random)]
    order.sort(key=lambda group: -len(members[group]))
    filled = torch.zeros(len(shares), len(total), dtype=torch.double)
    aim = torch.tensor(shares, dtype=torch.double)
    found = torch.empty(len(kinds), dtype=torch.long)
    for group in order:
        rows = members[group]
        more = torch.bincount(kinds[rows], minlength=len(total)).double()
        # How full the group's classes would be; among equals the part with the fewest rows.
        fullness = ((filled + more) / total * more).sum(1) / aim
        fullness += 1e-6 * (filled.sum(1) + len(rows)) / aim / len(kinds)
        part = int(fullness.argmin())
        filled[part] += more
        found[rows] = part
    return found


def _scored(
    states: States,
    labels: Sequence[str],
    parts: Sequence[tuple[Tensor, Tensor]],
    usable: Tensor,
    seed: int,
    on_fit: Callable[[], None],
    fitting: dict[str, Any],
) -> ProbeScores:
    """Fit a probe on each part's first rows and score its second ones; both are masks (N,)."""
    for fitted, _ in parts:  # before the first fit, which may take minutes
        _check_rows(states.labels[fitted], states.labels[usable], labels)
    scores = torch.full((len(states.ids), len(labels)), torch.nan)
    scored_by = torch.full((len(states.ids),), -1)
    config = ProbeConfig(input_dim=states.question.shape[-1], labels=tuple(labels))
    accuracies = []
    for number, (fitted, rows) in enumerate(parts):
        fit = fit_probe(
            states.question[fitted],
            None,
            states.labels[fitted],
            config,
            seed=seed + number,
            **fitting,
        )
        scores[rows] = fit.probe.predict(states.question[rows]).cpu()
        scored_by[rows] = number
        accuracies.append(_accuracy(scores, states.labels, rows & usable))
        on_fit()
    return ProbeScores(
        scores,
        scored_by,
        tuple(fitted.nonzero()[:, 0] for fitted, _ in parts),
        tuple(accuracies),
        _accuracy(scores, states.labels, (scored_by >= 0) & usable),
    )


def _accuracy(scores: Tensor, classes: Tensor, rows: Tensor) -> float:
    """Unweighted mean of the class accuracies, of the classes present; NaN without rows."""
    right, truth = (scores[rows].argmax(1) == classes[rows]).float(), classes[rows]
    return float(torch.tensor([right[truth == c].mean() for c in truth.unique()]).mean())


def _usable(states: States, trainable: Tensor | None) -> Tensor:
    bad = ~states.question.isfinite().flatten(1).all(dim=1)
    if bool(bad.any()):
        names = ", ".join(states.ids[i] for i in bad.nonzero()[:, 0])
        raise ValueError(f"states of {names} are no numbers: check the model, or leave them out")
    decided = states.labels >= 0
    return decided if trainable is None else decided & trainable.bool()


def _check_groups(
    states: States, groups: Sequence[int], labels: Sequence[str], usable: Tensor, parts: int
) -> None:
    """Refuse a class that cannot be spread over the parts: a probe would never have seen it."""
    for number, name in enumerate(labels):
        rows = ((states.labels == number) & usable).nonzero()[:, 0].tolist()
        count = len({groups[row] for row in rows})
        if rows and count < parts:
            raise ValueError(
                f"class {name!r} has {len(rows)} records in {count} groups, and {parts} parts "
                "need one each: ask for fewer folds, add records, or leave the class out"
            )


def _check_rows(fitted: Tensor, usable: Tensor, labels: Sequence[str]) -> None:
    for number in usable.unique().tolist():
        count = int((fitted == number).sum())
        if count < 2:
            raise ValueError(
                f"class {labels[number]!r} has {count} records to fit a probe on, which needs 2: "
                "add records or leave the class out"
            )
    if not len(usable):
        raise ValueError("no record can be trained on: each is undecided or of another part")
