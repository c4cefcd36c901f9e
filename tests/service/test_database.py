"""Tables on both databases: made by migrations, and append-only where they should be."""

import subprocess
import sys
import threading
import time

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError

from safelens.service.audit import record
from safelens.service.database import Database
from safelens.service.tables import AuditEntry


def test_migrations_make_what_the_tables_say(database):
    assert database.drift() == []
    database.migrate()


@pytest.mark.parametrize("change", ["UPDATE audit SET actor = 'x'", "DELETE FROM audit"])
def test_the_audit_log_is_append_only(database, change):
    with database.writing() as session:
        record(session, "system", "test", "nothing", why="none")
    with pytest.raises(DBAPIError, match="append-only"), database.writing() as session:
        session.execute(text(change))
    with database.reading() as session:
        assert (
            session.scalar(select(AuditEntry.actor).where(AuditEntry.action == "test")) == "system"
        )


def test_a_failed_transaction_leaves_nothing(database):
    def half():
        with database.writing() as session:
            record(session, "system", "half", "nothing")
            session.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    with database.reading() as session:
        assert not session.scalar(select(func.count()).where(AuditEntry.action == "half"))


def test_several_processes_may_migrate_at_once(database_url):
    code = f"from safelens.service.database import Database; Database({database_url!r}).migrate()"
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    database = Database(database_url)
    assert database.drift() == []
    database.close()


def test_no_writer_decides_on_a_stale_reading(database):
    """Ten writers count and add one; none may count what another is about to change."""
    counts = []

    def write():
        with database.writing() as session:
            database.lock(session, 1)
            counts.append(session.scalar(select(func.count()).where(AuditEntry.action == "count")))
            time.sleep(0.01)
            record(session, "system", "count", "nothing")

    threads = [threading.Thread(target=write) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(counts) == list(range(10))
