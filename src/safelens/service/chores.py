"""What the web process does beside answering: fetching URLs, sending webhooks, removing what is old.

Knows threads and pauses. Several web processes may do the same: each piece of work is claimed in the database.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable

from safelens.service.addresses import Hosts
from safelens.service.database import Database
from safelens.service.doorbell import Bells
from safelens.service.fetch import FetchError, fetch
from safelens.service.media import MediaStore
from safelens.service.queue import Queue
from safelens.service.retention import Retention
from safelens.service.settings import DAY_S, Settings
from safelens.service.tables import Job
from safelens.service.webhooks import Webhooks

log = logging.getLogger(__name__)

_FETCHERS = 4
_PAUSE_S = 0.5
_RETENTION_S = 600.0


class Chores:
    """Threads that work until `stop`.

    Args:
        settings: the service's.
        database: with the work.
        media: for videos.
        bells: to tell that a job may be moderated.
    """

    def __init__(
        self, settings: Settings, database: Database, media: MediaStore, bells: Bells
    ) -> None:
        self._settings = settings
        self._database = database
        self._media = media
        self._bells = bells
        self._owner = f"web_{secrets.token_hex(6)}"
        self._stopping = threading.Event()
        self._queue = Queue(database, settings.lease_s)
        self._fetching: dict[str, str] = {}
        """Job to the owner of its lease."""
        self._hosts = Hosts(settings.fetch_hosts, settings.internal_hosts, "SAFELENS_FETCH_HOSTS")
        callbacks = Hosts(
            settings.callback_hosts, settings.internal_hosts, "SAFELENS_CALLBACK_HOSTS"
        )
        self._webhooks = Webhooks(database, callbacks)
        self._retention = Retention(settings, database, media)
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin."""
        for index in range(_FETCHERS if self._settings.fetch_hosts else 0):
            self._run(f"{self._owner}_{index}", self.fetch_one, _PAUSE_S)
        self._run("leases", self._renew, self._settings.lease_s / 3)
        if self._settings.callback_hosts:
            for _ in range(2):
                self._run("webhooks", self._deliver_one, _PAUSE_S)
        self._run("retention", self._tidy, _RETENTION_S)
        self._run("sweep", self._sweep, DAY_S)

    def stop(self) -> None:
        """End soon; what is under way is claimed anew when its lease is over."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=1.0)

    def fetch_one(self, owner: str) -> bool:
        """Fetch the URL of one job; False if none waits."""
        job = self._queue.claim_fetch(owner)
        if job is None:
            return False
        self._fetching[job.id] = owner
        try:
            self._fetch(owner, job)
        finally:
            del self._fetching[job.id]
        return True

    def _fetch(self, owner: str, job: Job) -> None:
        assert job.url is not None
        settings, media = self._settings, f"videos/{job.id}"
        try:
            received = fetch(
                job.url,
                settings.incoming / f"{job.id}_{secrets.token_hex(4)}",
                self._hosts,
                most_bytes=settings.max_upload_bytes,
                total_s=settings.upload_s,
                idle_s=settings.upload_idle_s,
            )
        except FetchError as error:
            log.info("fetch failed", extra={"job": job.id, "code": error.code})
            if self._queue.not_fetched(
                owner, job.id, error.code, error.message, passing=error.passing
            ):
                self._bells.ring_done(job.id)
            return
        self._media.take(received.path, media)
        if not self._queue.fetched(owner, job.id, received, media):
            self._discard(job)
        self._bells.ring_work()
        self._bells.ring_done(job.id)

    def _discard(self, job: Job) -> None:
        """Remove the video of a job that was cancelled meanwhile."""
        with self._database.reading() as session:
            now = session.get_one(Job, job.id)
        if now.media is None and now.state == "cancelled":
            self._media.delete(f"videos/{job.id}")

    def _renew(self, _name: str) -> bool:
        for job, owner in tuple(self._fetching.items()):
            self._queue.renew(owner, [job])
        return False

    def _deliver_one(self, _name: str) -> bool:
        return self._webhooks.deliver_one()

    def _tidy(self, _name: str) -> bool:
        removed = self._retention.apply()
        log.info("retention", extra={"removed": removed})
        return False

    def _sweep(self, _name: str) -> bool:
        self._retention.sweep()
        return False

    def _run(self, name: str, work: Callable[[str], bool], pause_s: float) -> None:
        def loop() -> None:
            while not self._stopping.is_set():
                try:
                    if work(name):
                        continue
                except Exception:
                    log.exception("chore failed", extra={"chore": name})
                self._stopping.wait(pause_s)

        thread = threading.Thread(target=loop, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()
