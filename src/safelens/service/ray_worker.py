"""A worker without models: it hands its jobs to replicas on a Ray cluster, one by one, and ends each when it is answered.

Knows the loop, and which of the cluster's failures is charged to a job. Leases, verdicts and all that a job's end
means are `Worker`'s.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import func, select

from safelens import __version__
from safelens.bundle import BundleError
from safelens.engine.cluster import EngineError, connected
from safelens.engine.online import NotServed, Online, VideoLost, delete, start_serve
from safelens.engine.system import System
from safelens.policy import Policy
from safelens.service.conclude import Work
from safelens.service.deployments import active, unpacked
from safelens.service.media import MediaStore
from safelens.service.metrics import ALIVE_S
from safelens.service.queue import IN_COMPANY
from safelens.service.settings import Settings
from safelens.service.tables import BundleVersion, Deployment, Job, PolicyVersion, WorkerRow
from safelens.service.worker import LOOK_S, Worker

if TYPE_CHECKING:
    from safelens.cascade import Moderation, SafeLens

log = logging.getLogger(__name__)

_PAUSE_S = 1.0
_LOCK = 3
_OPEN = ("fetching", "queued", "running")


@dataclass(frozen=True)
class StoredSystem(System):
    """A bundle as the service knows it, on whichever machine it is loaded.

    Attributes:
        bundle_sha256: of the bundle; where it was uploaded, `source` is empty and the media store has it.
        media_url: of the media store.
    """

    bundle_sha256: str = ""
    media_url: str = ""

    def load(self, *, deliberate: bool = True) -> SafeLens:
        """As `System.load`; BundleError where the bundle is no longer the one that was activated."""
        source = self.source
        if not source:
            folder = Path(tempfile.gettempdir()) / f"safelens-bundles-{os.getuid()}"
            source = unpacked(self.bundle_sha256, MediaStore(self.media_url), folder)
        lens = System(source, options=self.options).load(deliberate=deliberate)
        if lens.provenance.bundle_sha256 != self.bundle_sha256:
            found = lens.provenance.bundle_sha256
            lens.close()
            raise BundleError(f"{source} holds another bundle now, {found}")
        return lens


@dataclass(frozen=True)
class _Sent:
    job: Work
    path: str
    answer: Future[Moderation]


class RayWorker(Worker):
    """One process that serves a cluster with jobs.

    Args:
        settings: the service's.
        owner: its id; a fresh one by default.
    """

    def __init__(self, settings: Settings, owner: str | None = None) -> None:
        super().__init__(settings, owner)
        self._online: Online | None = None
        self._sent: dict[str, _Sent] = {}
        self._not_before = 0.0
        self._loop = asyncio.new_event_loop()
        self._answered, self._answer = socket.socketpair()
        for end in (self._answered, self._answer):
            end.setblocking(False)

    def run(self) -> None:
        """Work until `stop`. Raises EngineError where the cluster cannot be reached."""
        handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
        threading.Thread(target=self._loop.run_forever, daemon=True, name="safelens-ray").start()
        pools = (self._settings.screen, self._settings.deliberate)
        with connected(self._settings.ray_address or None, pools):
            for number, handler in handlers.items():  # Ray has put its own in their place
                signal.signal(number, handler)
            start_serve()
            super().run()

    def round(self) -> bool:
        """End what was answered, and send what waits; False if there was nothing of either."""
        ended = self._end_answered()
        assert self._online is not None
        room = self._online.under_way - len(self._sent)
        if room <= 0 or time.monotonic() < self._not_before:
            return ended
        claimed = self._queue.claim(self.owner, room)
        for name in claimed.ended:
            self._bells.ring_done(name)
        self._held |= {job.id for job in claimed.jobs}
        if claimed.jobs:
            self._send(claimed.jobs)
        return bool(ended or claimed.jobs or claimed.ended)

    # -- jobs ---------------------------------------------------------------------------------------

    def _send(self, jobs: Sequence[Work]) -> None:
        if jobs[0].deployment_id != self._loaded:
            with self._database.reading() as session:
                deployment = session.get_one(Deployment, jobs[0].deployment_id)
            try:
                self._prepare(deployment)
            except EngineError as error:
                log.exception("deployment does not load", extra={"deployment": deployment.id})
                self._fail(jobs, error)
                return
        online = self._online
        if self._stopping.is_set() or online is None:
            return  # what is held is given back at the end
        for job in jobs:
            assert job.media is not None
            path = self._media.address(job.media)
            suspect = job.attempts > IN_COMPANY
            asked = online.moderate_alone(path) if suspect else online.moderate(path)
            answer = asyncio.run_coroutine_threadsafe(asked, self._loop)
            self._sent[job.id] = _Sent(job, path, answer)
            answer.add_done_callback(self._ring)

    def _ring(self, _answer: object) -> None:
        with suppress(OSError):  # full: there is enough to wake up for
            self._answer.send(b".")

    def _end_answered(self) -> bool:
        with suppress(BlockingIOError):
            self._answered.recv(1 << 16)
        ended = [sent for sent in self._sent.values() if sent.answer.done()]
        for sent in ended:
            del self._sent[sent.job.id]
            about = {"worker": self.owner, "job": sent.job.id}
            try:
                moderation = sent.answer.result()
            except VideoLost as error:
                log.warning("video lost", extra={**about, "reason": str(error)})
                self._give_back(sent.job, unharmed=False)
            except NotServed as error:
                log.warning("not served", extra={**about, "reason": str(error)})
                self._give_back(sent.job, unharmed=True)
                self._not_before = time.monotonic() + _PAUSE_S
            else:
                self._finish(sent.job, sent.path, moderation)
        return bool(ended)

    def _give_back(self, job: Work, *, unharmed: bool) -> None:
        self._queue.release(self.owner, unharmed=unharmed, job=job.id)
        self._held -= {job.id}

    def _forget(self) -> None:
        self._held = frozenset(self._sent)

    def _wait(self) -> None:
        self._bells.wait_work(LOOK_S, self._answered)

    # -- applications -------------------------------------------------------------------------------

    def _prepare(self, deployment: Deployment) -> None:
        """Have a deployment's replicas, once all videos of the last one are answered. Raises EngineError."""
        while self._sent and not self._stopping.is_set():
            if not self._end_answered():
                self._wait()
        online = Online(
            self._name(deployment),
            self._system(deployment),
            self._settings.screen,
            self._settings.deliberate,
        )
        while not self._stopping.is_set():
            # Before others, which may need the place.
            self._end_unused(deployment)
            with self._database.writing() as session:
                self._database.lock(session, _LOCK)
                online.deploy()
            if online.running():
                break
            self._stopping.wait(_PAUSE_S)
        self._online, self._loaded = online, deployment.id

    def _system(self, deployment: Deployment) -> StoredSystem:
        with self._database.reading() as session:
            bundle = session.get_one(BundleVersion, deployment.bundle_sha256)
            policy = session.get_one(PolicyVersion, deployment.policy_sha256)
        options = {"policy": Policy.from_yaml(policy.yaml), "tau": deployment.tau}
        return StoredSystem(
            bundle.source or "",
            options=options,
            bundle_sha256=bundle.sha256,
            media_url=self._settings.media_url,
        )

    def _name(self, deployment: Deployment) -> str:
        """Of a deployment's applications: other replicas, other names."""
        parts = (
            __version__,
            deployment.bundle_sha256,
            deployment.policy_sha256,
            deployment.tau,
            self._settings.screen,
            self._settings.deliberate,
        )
        return f"{self._prefix}{_digest(repr(parts))}"

    @property
    def _prefix(self) -> str:
        """Of all applications of this service: a cluster may serve several."""
        return f"safelens-{_digest(self._settings.database_url)}-"

    def _end_unused(self, *more: Deployment) -> None:
        """End applications that moderate nothing: not active, without a job that waits or runs."""
        with self._database.reading() as session:
            numbers = session.scalars(
                select(Job.deployment_id).where(Job.state.in_(_OPEN)).distinct()
            )
            wanted = [session.get_one(Deployment, number) for number in numbers]
            names = {self._name(found) for found in (*wanted, active(session), *more)}
        delete(lambda name: name.startswith(self._prefix) and name not in names)

    def _close(self) -> None:
        """The last worker of the service takes its replicas with it."""
        with self._database.reading() as session:
            others = session.scalar(
                select(func.count()).where(
                    WorkerRow.id != self.owner, WorkerRow.seen_at > time.time() - ALIVE_S
                )
            )
        if others:
            return
        try:
            delete(lambda name: name.startswith(self._prefix))
        except Exception:
            log.exception("replicas not ended", extra={"worker": self.owner})


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
