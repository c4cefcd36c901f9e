"""Which samples are kept: the two criteria of section 4.1 of arXiv 2605.17610.

Knows averages of influence, and what clean samples' are like. Does not know which score they are of.

The paper asks whether an average is above 0. Where the averages of clean samples are known, one may ask
instead whether a sample's is as low as few clean ones are: the validation samples, each against the others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from safelens.curate.influence import Averages


def helps_own_class(found: Averages, least: Averages) -> Tensor:
    """Criterion (i): mean influence on the validation samples of its own class is high enough; (N,)."""
    return found.own > least.own


def harms_everyone(found: Averages, least: Averages) -> Tensor:
    """Criterion (ii): mean influence on the whole validation set is too low; (N,)."""
    return found.all < least.all


def keep(found: Averages, least: Averages) -> Tensor:
    """Algorithm 1, line 4: kept samples, shape (N,)."""
    return helps_own_class(found, least) & ~harms_everyone(found, least)


def zero(found: Averages) -> Averages:
    """The paper's bounds."""
    return Averages(torch.zeros_like(found.own), torch.zeros_like(found.all))


def as_low_as_few_clean(
    clean: Averages, clean_labels: Tensor, labels: Tensor, rate: float
) -> Averages:
    """Bounds that a clean sample of a class passes below with probability `rate` at most, each.

    Of n clean samples of the class the floor(rate (n + 1))-th lowest: for a further one that is
    exchangeable with them this is exact, whatever the distribution (split conformal prediction). Where n is
    too small for the rate there is no bound, and nothing of that class is dropped.

    Args:
        clean: Averages of clean samples, shape (M,).
        clean_labels: Their classes, shape (M,).
        labels: Classes of the samples to be bounded, shape (N,).
        rate: In (0, 1).

    Raises:
        ValueError: Another rate.
    """
    if not 0 < rate < 1:
        raise ValueError(f"rate {rate}: expected more than 0 and less than 1")

    def bound(values: Tensor) -> Tensor:
        found = torch.full((len(labels),), -torch.inf, dtype=values.dtype)
        for number in labels.unique().tolist():
            some = values[clean_labels == number]
            rank = int(rate * (len(some) + 1))
            if rank:
                found[labels == number] = some.sort().values[rank - 1]
        return found

    return Averages(bound(clean.own), bound(clean.all))
