"""What of a verdict must not depend on the engine."""

import pytest


def same(found, wanted):
    """Whether two verdicts say the same; times and, of what S2 was asked, costs are the engine's."""
    assert found.sha256 == wanted.sha256
    assert found.provenance == wanted.provenance
    if wanted.decided_by != "deliberate":
        assert found.cost == wanted.cost
    exact = {"timing", "cost", "categories", "confidence", "in_domain", "evidence", "regions"}
    assert found.model_dump(exclude=exact) == wanted.model_dump(exclude=exact)
    assert [(c.id, c.flagged) for c in found.categories] == [
        (c.id, c.flagged) for c in wanted.categories
    ]
    for name in ("confidence", "in_domain"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), abs=1e-3)
    assert [c.score for c in found.categories] == pytest.approx(
        [c.score for c in wanted.categories], abs=1e-3
    )
    for name in ("evidence", "regions"):
        for a, b in zip(getattr(found, name), getattr(wanted, name), strict=True):
            assert a.model_dump() == pytest.approx(b.model_dump(), abs=1e-3)
    return True
