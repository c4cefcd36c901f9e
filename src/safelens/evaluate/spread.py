"""Several runs' figures as means and standard deviations.

Knows nested dictionaries of numbers. Knows nothing of what they measure.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from safelens.evaluate.cases import EvaluationError


class Spread(TypedDict):
    """One figure over runs, or a grade over explanations.

    Attributes:
        mean: Of those in which it is defined; None if none.
        sd: Sample standard deviation (n - 1 in the denominator); None below two.
        n: In how many it is defined.
    """

    mean: float | None
    sd: float | None
    n: int


def spread(values: Sequence[float | None]) -> Spread:
    """Mean and sample standard deviation of one figure; None among the values is an undefined one."""
    known = [value for value in values if value is not None]
    return Spread(
        mean=statistics.fmean(known) if known else None,
        sd=statistics.stdev(known) if len(known) > 1 else None,
        n=len(known),
    )


def combine(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Puts runs together key by key, such as `Metrics.to_dict()` of several seeds.

    Args:
        runs: Nested dictionaries with the same keys.

    Returns:
        A dictionary of the same shape whose numbers and Nones are replaced by their `Spread`; what is neither
        (names, matrices) is not in it.

    Raises:
        EvaluationError: There is no run, or one lacks a key of another; the message names the keys.
    """
    if not runs:
        raise EvaluationError("no runs to combine; expected at least one")
    return _combine(runs, "")


def _combine(runs: Sequence[Mapping[str, Any]], where: str) -> dict[str, Any]:
    keys = list(runs[0])
    for number, run in enumerate(runs[1:], start=2):
        if differing := sorted(set(keys) ^ set(run)):
            raise EvaluationError(
                f"run 1 and run {number} do not have the same figures: one alone has"
                f" {', '.join(where + key for key in differing)}; combine runs on the same records"
            )
    found: dict[str, Any] = {}
    for key in keys:
        values = [run[key] for run in runs]
        if all(isinstance(value, Mapping) for value in values):
            found[key] = _combine(values, f"{where}{key}.")
        elif all(value is None or isinstance(value, int | float) for value in values):
            found[key] = spread(values)
    return found
