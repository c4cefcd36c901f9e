"""Which samples are kept: the two criteria of section 4.1 of arXiv 2605.17610.

Knows averages of influence. Does not know which score they are of.
"""

from __future__ import annotations

from torch import Tensor

from safelens.curate.influence import Averages


def helps_own_class(found: Averages) -> Tensor:
    """Criterion (i): mean influence on the validation samples of its own class is positive; (N,)."""
    return found.own > 0


def harms_everyone(found: Averages) -> Tensor:
    """Criterion (ii): mean influence on the whole validation set is negative; (N,)."""
    return found.all < 0


def keep(found: Averages) -> Tensor:
    """Algorithm 1, line 4: kept samples, shape (N,)."""
    return helps_own_class(found) & ~harms_everyone(found)
