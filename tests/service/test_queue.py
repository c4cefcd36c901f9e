"""Jobs from acceptance to their one verdict, on both databases."""

import threading
from collections import Counter

import pytest
from small import upload, verdict
from sqlalchemy import func, select, update
from sqlalchemy.exc import DataError

from safelens.service.problems import Problem
from safelens.service.queue import FETCHES, IN_COMPANY, MOST_ATTEMPTS, Queue
from safelens.service.submit import Submissions
from safelens.service.tables import Delivery, Job, VerdictRow
from safelens.verdict import Verdict


@pytest.fixture
def jobs(database):
    return Submissions(database, max_queue=20)


@pytest.fixture
def queue(database):
    return Queue(database, lease_s=30.0)


def submit(jobs, key, count, **fields):
    return [jobs.submit(key, upload(b"%d" % i, **fields), None)[0] for i in range(count)]


def ids(claimed):
    return [job.id for job in claimed.jobs]


def lose(database):
    """All leases are over."""
    with database.writing() as session:
        session.execute(update(Job).values(lease_until=0.0))


def state(database, job):
    with database.reading() as session:
        return session.get(Job, job).state


def test_a_job_ends_in_one_verdict_and_owes_one_webhook(database, jobs, queue, client_key):
    [job] = submit(jobs, client_key, 1, callback_url="http://localhost/")
    assert ids(queue.claim("w", 8)) == [job]
    assert not queue.claim("v", 8).jobs
    assert queue.finish("w", job, verdict("a.mp4"))
    assert not queue.finish("w", job, verdict("a.mp4"))
    assert not queue.claim("w", 8).jobs
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(VerdictRow)) == 1
        assert session.scalar(select(func.count()).select_from(Delivery)) == 1


def test_who_lost_a_job_writes_nothing(database, jobs, queue, client_key):
    [job] = submit(jobs, client_key, 1)
    queue.claim("slow", 8)
    lose(database)
    assert ids(queue.claim("other", 8)) == [job]
    queue.renew("slow", [job])
    assert not queue.finish("slow", job, verdict())
    assert queue.finish("other", job, verdict(flagged=True, score=0.9))
    with database.reading() as session:
        assert session.get(VerdictRow, job).flagged is True


def test_a_known_death_needs_no_waiting_and_an_orderly_end_costs_no_attempt(
    jobs, queue, client_key
):
    submit(jobs, client_key, 1)
    queue.claim("dead", 8)
    queue.release("dead", unharmed=False)
    assert queue.claim("next", 8).jobs[0].attempts == 2
    queue.release("next", unharmed=True)
    assert queue.claim("last", 8).jobs[0].attempts == 2


def test_what_kills_its_process_is_run_alone_and_then_given_up(database, jobs, queue, client_key):
    bad, *others = submit(jobs, client_key, 3)
    with database.writing() as session:
        session.execute(update(Job).where(Job.id == bad).values(attempts=IN_COMPANY))
    assert ids(queue.claim("w", 8)) == [bad]
    assert ids(queue.claim("v", 8)) == others
    with database.writing() as session:
        session.execute(
            update(Job).where(Job.id == bad).values(attempts=MOST_ATTEMPTS, lease_until=0.0)
        )
    assert queue.claim("w", 8).ended == [bad]
    with database.reading() as session:
        found = Verdict.from_json(session.get(VerdictRow, bad).document)
    assert (found.status, found.error.code, found.flagged) == ("model_error", "worker_lost", None)
    assert found.provenance.knows.startswith("SafeWorld")


def test_claims_of_many_processes_do_not_overlap(jobs, queue, client_key):
    submitted = submit(jobs, client_key, 20)
    taken = []

    def work(owner):
        while claimed := ids(queue.claim(owner, 3)):
            taken.extend(claimed)

    threads = [threading.Thread(target=work, args=(f"w{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    left = ids(queue.claim("last", 20))  # one may have skipped what another was looking at
    assert Counter([*taken, *left]) == Counter(submitted)


def test_the_same_content_is_looked_at_once(database, jobs, queue, client_key):
    first = jobs.submit(client_key, upload(name="first.mp4"), None)[0]
    second = jobs.submit(client_key, upload(name="second.mp4"), None)[0]
    assert ids(queue.claim("w", 8)) == [first]
    queue.finish("w", first, verdict("first.mp4"))
    assert queue.claim("w", 8).ended == [second]
    third = jobs.submit(client_key, upload(name="<b>third</b>.mp4"), None)[0]
    assert state(database, third) == "done"
    with database.reading() as session:
        for job, name in ((second, "second.mp4"), (third, "<b>third</b>.mp4")):
            row = session.get(VerdictRow, job)
            assert row.reused_from == first
            assert Verdict.from_json(row.document).video == name


@pytest.mark.parametrize("status", ["model_error", "video_error"])
def test_an_error_is_not_reused(database, jobs, queue, client_key, status):
    first = jobs.submit(client_key, upload(), None)[0]
    queue.claim("w", 8)
    failed = {"flagged": None, "label": None, "confidence": None, "decided_by": None,
              "categories": [], "error": {"code": "x", "message": "y"}}  # fmt: skip
    queue.finish("w", first, verdict(status=status, **failed))
    assert state(database, jobs.submit(client_key, upload(), None)[0]) == "queued"


def test_a_full_queue_says_so_and_takes_no_more(database, jobs, client_key):
    submit(jobs, client_key, 20)
    with pytest.raises(Problem) as refused:
        jobs.submit(client_key, upload(b"one more"), None)
    assert refused.value.code == "queue_full"
    assert int(refused.value.headers["Retry-After"]) > 0
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 20
    with pytest.raises(Problem, match="20 jobs wait"):
        jobs.submit_batch(client_key, [upload()], None)


def test_the_bound_holds_when_all_come_at_once(database, client_key):
    jobs, refused = Submissions(database, max_queue=5), []

    def send(i):
        try:
            jobs.submit(client_key, upload(b"%d" % i), None)
        except Problem:
            refused.append(i)

    threads = [threading.Thread(target=send, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 7


def test_idempotency(jobs, client_key, database):
    wanted = upload(reference="r")
    first, again = (
        jobs.submit(client_key, wanted, "k"),
        jobs.submit(client_key, upload(reference="r"), "k"),
    )
    assert first == (again[0], False)
    assert again[1]
    with pytest.raises(Problem) as other:
        jobs.submit(client_key, upload(b"another", reference="r"), "k")
    assert other.value.code == "idempotency_conflict"
    batch, repeated = (
        jobs.submit_batch(client_key, [upload(b"x"), upload(b"y")], "b") for _ in range(2)
    )
    assert batch == (repeated[0], False)
    assert repeated[1]


def test_text_that_a_database_cannot_hold_is_told_from_a_failure(database, jobs, client_key):
    if database.is_sqlite:
        job = jobs.submit(client_key, upload(reference="a\0b"), None)[0]
        with database.reading() as session:
            assert session.get(Job, job).reference == "a\0b"
    else:
        with pytest.raises(DataError):
            jobs.submit(client_key, upload(reference="a\0b"), None)


def test_cancelling(database, jobs, queue, client_key):
    waiting, running, done = submit(jobs, client_key, 3)
    jobs.cancel(waiting, client_key)
    assert ids(queue.claim("w", 8)) == [running, done]
    jobs.cancel(running, client_key)
    assert not queue.finish("w", running, verdict())
    assert queue.finish("w", done, verdict())
    with pytest.raises(Problem, match="has its verdict"):
        jobs.cancel(done, client_key)
    assert [state(database, j) for j in (waiting, running, done)] == [
        "cancelled",
        "cancelled",
        "done",
    ]


def test_a_url_is_tried_again_where_that_may_help(database, jobs, queue, client_key):
    wanted = upload(received=None, url="http://videos.test/a.mp4")
    job = jobs.submit(client_key, wanted, None)[0]
    assert not queue.claim("w", 8).jobs
    for attempt in range(FETCHES):
        lose(database)
        assert queue.claim_fetch("f").id == job
        assert queue.claim_fetch("g") is None
        ended = queue.not_fetched("f", job, "fetch_failed", "status 503", passing=True)
        assert ended == (attempt == FETCHES - 1)
    with database.reading() as session:
        found = Verdict.from_json(session.get(VerdictRow, job).document)
    assert (found.status, found.error.code) == ("video_error", "fetch_failed")
    assert found.error.message == "http://videos.test/a.mp4: status 503"
