"""Which videos a temperature is fitted on, which tau is chosen on, and which measure both.

Knows records, their truth, and which of them belong together. Runs nothing, and knows no answers: what is
in a part does not depend on what any system says of it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from safelens.curate.crossfit import divide, groups_of
from safelens.evaluate.cases import pair
from safelens.evaluate.run import Sample
from safelens.policy import Policy

SHARES = {"temperature": 0.25, "tau": 0.5, "test": 0.25}
"""Of the videos, by what they serve for."""


@dataclass(frozen=True)
class Parts:
    """Samples by what they serve for; no video and no group is in two parts.

    Attributes:
        temperature: Empty where none is to be fitted.
        tau: What tau is chosen on.
        test: What both are measured on.
        groups: By part, how many groups its videos come from.
        left_out: Records that are in no part, by reason.
        sha256: Of the videos in the parts and their truth.
    """

    temperature: tuple[Sample, ...]
    tau: tuple[Sample, ...]
    test: tuple[Sample, ...]
    groups: dict[str, int]
    left_out: dict[str, int]
    sha256: str

    @property
    def counts(self) -> dict[str, int]:
        """How many videos each part has."""
        return {"temperature": len(self.temperature), "tau": len(self.tau), "test": len(self.test)}


def divide_samples(
    samples: Sequence[Sample], policy: Policy, *, temperature: bool, seed: int
) -> Parts:
    """Divide samples by `SHARES`, every class alike, what belongs together into one part.

    Each video serves once: a second record of the same bytes would count one draw twice.

    Args:
        samples: Records, their videos absolute.
        policy: Whose categories their labels are.
        temperature: Whether a part is set aside for the temperature; if not, it goes to the others.
        seed: Of the division.

    Raises:
        EvaluationError: No record has a known truth, or a label is none of the policy's.
    """
    cases = pair([sample.record for sample in samples], {}, policy)
    truth = {case.record.id: frozenset(case.truth) for case in cases}
    classes = {case.record.id: policy.labels.index(case.label) for case in cases}
    left_out = Counter({"of unknown truth": len(cases.left_out)})
    by_video: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.sha256 is None:
            left_out["unreadable"] += 1
        elif sample.record.id in truth:
            by_video.setdefault(sample.sha256, []).append(sample)
    used: list[Sample] = []
    for same in by_video.values():
        if len({truth[sample.record.id] for sample in same}) > 1:
            left_out["of one video with other labels"] += len(same)
        else:
            left_out["copies of others"] += len(same) - 1
            used.append(same[0])
    # Records that are left out link others all the same.
    read = [sample for sample in samples if sample.sha256 is not None]
    numbers = groups_of([s.record for s in read], [s.sha256 or "" for s in read])
    group_of = dict(zip((s.record.id for s in read), numbers, strict=True))
    groups = [group_of[sample.record.id] for sample in used]
    names = [name for name in SHARES if temperature or name != "temperature"]
    whole = sum(SHARES[name] for name in names)
    part = divide(
        torch.tensor([classes[sample.record.id] for sample in used], dtype=torch.long),
        groups,
        [SHARES[name] / whole for name in names],
        torch.ones(len(used), dtype=torch.bool),
        seed,
    ).tolist()
    rows = {name: [i for i, p in enumerate(part) if p == k] for k, name in enumerate(names)}
    of = {name: tuple(used[i] for i in rows.get(name, ())) for name in SHARES}
    lines = sorted(json.dumps([sample.sha256, sorted(truth[sample.record.id])]) for sample in used)
    return Parts(
        temperature=of["temperature"],
        tau=of["tau"],
        test=of["test"],
        groups={name: len({groups[i] for i in rows.get(name, ())}) for name in SHARES},
        left_out=dict(+left_out),
        sha256=hashlib.sha256("\n".join(lines).encode()).hexdigest(),
    )
