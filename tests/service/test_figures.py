"""What the dashboard counts, on both databases."""

import time

import pytest
from small import upload, verdict

from safelens.service.console.charts import curve, stacked
from safelens.service.console.figures import figures
from safelens.service.console.what_if import what_if
from safelens.service.decisions import decide
from safelens.service.queue import Queue
from safelens.service.submit import Submissions
from safelens.service.tables import Job


@pytest.fixture
def judged(database, client_key):
    """Write verdicts with decisions: (flagged, score, stage, kind, labels)."""

    def write(cases, first=0):
        queue, submissions = Queue(database, 30.0), Submissions(database, 1000)
        for number, (flagged, score, stage, kind, labels) in enumerate(cases, first):
            job, _ = submissions.submit(client_key, upload(str(number).encode()), None)
            queue.claim("test", 1)
            seconds = {"screen": 1.0} | ({"deliberate": 4.0} if stage == "deliberate" else {})
            made = verdict(flagged=flagged, score=score, decided_by=stage, timing=seconds)
            assert queue.finish("test", job, made)
            if kind:
                with database.writing() as session:
                    decide(session, session.get(Job, job), client_key, kind, labels, None)

    return write


def test_a_period(database, judged):
    judged([
        (True, 0.99, "screen", "confirm", None),
        (True, 0.95, "screen", "overturn", []),
        (False, 0.01, "screen", "overturn", ["violence"]),
        (False, 0.01, "deliberate", "escalate", None),
        (False, 0.01, "screen", None, None),
    ])  # fmt: skip
    now = time.time()
    with database.reading() as session:
        found = figures(session, now - 60, now + 1, 6)
        nothing = figures(session, now - 120, now - 60, 6)
    assert (found.verdicts, found.flagged, found.undecided, found.deliberated) == (5, 2, 0, 1)
    assert (found.reviewed, found.overturned, found.escalated) == (4, 2, 1)
    assert [bar.total for bar in found.bars] == [0, 0, 0, 0, 0, 5]
    assert [(j.label, j.rate) for j in found.judged] == [("violence", 0.5), ("safe", 1.0)]
    assert {s.stage: s.median for s in found.latency} == {"screen": 1, "deliberate": 4, "total": 1}
    assert found.knows == ("SafeWorld only",)
    assert {r.kind for r in stacked(found.bars)} == {"safe", "flagged"}
    assert (nothing.verdicts, nothing.latency, nothing.judged) == (0, (), ())


def test_another_tau_is_told_within_bounds(database, judged):
    right = [(True, 0.99, "screen", "confirm", None)] * 30
    unsure = [(True, 0.91, "screen", "overturn", [])] * 10
    slow = [(False, 0.2, "deliberate", "confirm", None)] * 10
    judged(right + unsure + slow[:9])
    with database.reading() as session:
        few = what_if(session)
    assert (few.points, "49 judged verdicts are too few" in few.reason) == ((), True)
    judged(slow[9:], first=49)
    with database.reading() as session:
        found = what_if(session)
    assert (found.decided, found.by_s2, found.s2_right, found.reason) == (50, 10, 10, None)
    now, stricter, everything = found.points
    assert (now.tau, now.escalated) == (0.91, pytest.approx(0.2))
    assert now.least == now.most == pytest.approx(0.2)
    assert (now.alone, now.wrong, now.seconds) == (40, 10, pytest.approx(1 + 0.2 * 4))
    assert (stricter.tau, stricter.alone, stricter.wrong) == (0.99, 30, 0)
    assert (stricter.least, stricter.most) == (pytest.approx(0), pytest.approx(0.2))
    assert (everything.alone, everything.most) == (0, pytest.approx(0.8))
    assert everything.seconds == pytest.approx(5)
    assert now.guess == now.least
    assert everything.guess == pytest.approx(0)  # S2 was always right
    assert curve(found.points).places[0][0] == 0
