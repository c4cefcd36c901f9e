"""Two moderators and one video: each sees what the other has open, and only one decision is made on what both saw."""

import threading

import pytest
from servers import moderate_all
from small import upload, verdict
from sqlalchemy import func, select, update
from test_console import browser, sign_in, token

from safelens.service import claims
from safelens.service.api.listing import Filters, list_jobs
from safelens.service.decisions import decide
from safelens.service.keys import Keys
from safelens.service.problems import Problem
from safelens.service.queue import Queue
from safelens.service.submit import Submissions
from safelens.service.tables import Claim, Decision, Job


@pytest.fixture
def moderators(database):
    keys = Keys(database)
    return [keys.caller(keys.add(name, "moderator").key) for name in ("Ada", "Bea")]


@pytest.fixture
def jobs(database, client_key):
    """Ids of two that have verdicts."""
    found = []
    for content in (b"one", b"two"):
        found.append(Submissions(database, 10).submit(client_key, upload(content), None)[0])
        Queue(database, 30).claim("w", 1)
        Queue(database, 30).finish("w", found[-1], verdict(flagged=True, score=0.9))
    return found


def listed(database, caller):
    with database.reading() as session:
        return {job.id for job in list_jobs(session, caller, Filters(), free=True).jobs}


def test_what_one_has_open_is_not_in_another_s_queue(database, moderators, jobs):
    ada, bea = moderators
    assert claims.take(database, jobs[0], ada.id) is None
    assert claims.take(database, jobs[0], ada.id) is None
    assert claims.take(database, jobs[0], bea.id).by == "Ada"
    assert listed(database, ada) == set(jobs)
    assert listed(database, bea) == {jobs[1]}
    with database.reading() as session:
        assert [one.job for one in claims.elsewhere(session, bea.id)] == [jobs[0]]
        assert claims.elsewhere(session, ada.id) == []


def test_a_claim_ends_by_another_by_time_and_by_a_decision(database, moderators, jobs):
    ada, bea = moderators
    claims.take(database, jobs[0], ada.id)
    claims.take(database, jobs[1], ada.id)
    assert claims.take(database, jobs[0], bea.id) is None
    with database.writing() as session:
        session.execute(update(Claim).where(Claim.job_id == jobs[1]).values(until=1.0))
    assert listed(database, bea) == set(jobs)
    assert claims.take(database, jobs[1], bea.id) is None
    with database.writing() as session:
        decide(session, session.get(Job, jobs[1]), bea.id, "confirm", None, None)
    assert listed(database, ada) == set(jobs)


def test_of_two_decisions_on_the_same_page_one_is_written(database, moderators, jobs):
    start, said = threading.Barrier(2), []

    def confirm(moderator):
        start.wait()
        try:
            with database.writing() as session:
                job = session.get(Job, jobs[0])
                decide(session, job, moderator.id, "confirm", None, None, seen=0)
        except Problem as problem:
            said.append((moderator.id, problem))

    threads = [threading.Thread(target=confirm, args=(one,)) for one in moderators]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.reading() as session:
        [row] = session.scalars(select(Decision))
    [(loser, problem)] = said
    assert loser != row.key_id
    assert problem.code == "conflict"
    assert ("Ada" if row.key_id == moderators[0].id else "Bea") in problem.detail
    with database.writing() as session:
        decide(session, session.get(Job, jobs[0]), loser, "escalate", None, None, seen=row.id)
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(Decision)) == 2


def test_two_moderators_at_the_console(served, sample):
    with served.http() as client:
        name = {"name": "claimed.mp4"}
        job = client.post("/v1/jobs", params=name, content=sample + b"claimed").json()["id"]
    moderate_all(served, flagged=True, score=0.9)
    keys = Keys(served.database)
    with browser(served) as ada, browser(served) as bea:
        for http, who in ((ada, "Ada <i>"), (bea, "Bea")):
            sign_in(http, keys.add(who, "moderator").key)
        first = ada.get(f"/console/review/{job}")
        assert "has this video open" not in first.text
        second = bea.get(f"/console/review/{job}")
        assert "Ada &lt;i&gt; has this video open" in second.text
        queue = bea.get("/console/queue").text
        assert "Open with others" in queue
        assert "claimed.mp4</a> (Ada &lt;i&gt;)" in queue
        assert "claimed.mp4" in bea.get("/console/queue", params={"search": "claimed"}).text
        address = f"/console/review/{job}/decision"
        done = bea.post(address, data={"kind": "confirm", "seen": "0", "token": token(second)})
        assert done.status_code == 303
        late = ada.post(address, data={"kind": "escalate", "seen": "0", "token": token(first)})
        assert late.status_code == 409
        assert "Bea has decided on this video meanwhile (confirm)" in late.text
        again = ada.get(f"/console/review/{job}")
        seen = again.text.partition('name="seen" value="')[2].partition('"')[0]
        fields = {"kind": "escalate", "seen": seen, "token": token(again)}
        assert ada.post(address, data=fields).status_code == 303
        assert ada.post(address, data=fields | {"seen": "x"}).status_code == 422
    with served.http("moderator") as api:
        stale = {"kind": "confirm", "seen": 0}
        assert api.post(f"/v1/jobs/{job}/decisions", json=stale).status_code == 409
        kinds = [d["kind"] for d in api.get(f"/v1/jobs/{job}/decisions").json()]
    assert kinds == ["confirm", "escalate"]
