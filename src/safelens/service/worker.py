"""The model process: takes jobs, moderates them together, ends them with their verdicts.

Knows the loop, and what is loaded. How a video is moderated is `SafeLens.moderate_many`, here as everywhere.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from types import FrameType
from typing import TYPE_CHECKING

from sqlalchemy import delete

from safelens.bundle import BundleError
from safelens.pipeline import UNDER_WAY
from safelens.policy import Policy
from safelens.service import logs, metrics
from safelens.service.conclude import Work, named
from safelens.service.database import Database
from safelens.service.deployments import Deployments, active
from safelens.service.doorbell import Bells
from safelens.service.frames import keep_frames
from safelens.service.media import MediaStore
from safelens.service.queue import Queue
from safelens.service.settings import Settings
from safelens.service.tables import BundleVersion, Deployment, PolicyVersion, WorkerRow

if TYPE_CHECKING:
    from safelens.cascade import Moderation, SafeLens

log = logging.getLogger(__name__)

LOOK_S = 0.2
"""How often a worker looks for jobs that nobody rang for."""


class Worker:
    """One model process.

    Args:
        settings: the service's.
        owner: its id; a fresh one by default.
    """

    def __init__(self, settings: Settings, owner: str | None = None) -> None:
        self.owner = owner or f"worker_{secrets.token_hex(6)}"
        self._settings = settings
        self._database = Database(settings.database_url)
        self._queue = Queue(self._database, settings.lease_s)
        self._media = MediaStore(settings.media_url)
        self._deployments = Deployments(self._database, self._media, settings.bundles)
        self._bells = Bells.inherited()
        self._lens: SafeLens | None = None
        self._loaded: int | None = None
        self._held: frozenset[str] = frozenset()
        """Renewed by another thread, so never changed in place."""
        self._stopping = threading.Event()

    def run(self) -> None:
        """Work until `stop`."""
        reporter = threading.Thread(target=self._report, daemon=True)
        try:
            with self._database.reading() as session:
                first = active(session)
            self._prepare(first)
            reporter.start()
            log.info("ready", extra={"worker": self.owner, "deployment": first.id})
            while not self._stopping.is_set():
                try:
                    busy = self.round()
                except Exception:
                    # What was taken comes back when its lease is over, here or elsewhere.
                    log.exception("round failed", extra={"worker": self.owner})
                    self._forget()
                    self._stopping.wait(1.0)
                    continue
                if not busy:
                    self._wait()
        finally:
            self._stopping.set()
            self._queue.release(self.owner, unharmed=True)
            self._close()
            with self._database.writing() as session:
                session.execute(delete(WorkerRow).where(WorkerRow.id == self.owner))
            self._database.close()

    def stop(self) -> None:
        """End after the video that is being moderated."""
        self._stopping.set()

    def round(self) -> bool:
        """Moderate what waits now, together; False if nothing did."""
        claimed = self._queue.claim(self.owner, UNDER_WAY)
        for job in claimed.ended:
            self._bells.ring_done(job)
        if claimed.jobs:
            self._held = frozenset(job.id for job in claimed.jobs)
            self._moderate(claimed.jobs)
            self._held = frozenset()
        return bool(claimed.jobs or claimed.ended)

    def _moderate(self, jobs: Sequence[Work]) -> None:
        try:
            lens = self._lens
            if lens is None or self._loaded != jobs[0].deployment_id:
                with self._database.reading() as session:
                    lens = self._load(session.get_one(Deployment, jobs[0].deployment_id))
        except Exception as error:
            log.exception("deployment does not load", extra={"deployment": jobs[0].deployment_id})
            self._fail(jobs, error)
            return
        with ExitStack() as stack:
            paths = []
            for job in jobs:
                assert job.media is not None
                paths.append(str(stack.enter_context(self._media.local(job.media))))
            found = lens.moderate_many(paths)
            for job, path, moderation in zip(jobs, paths, found, strict=True):
                self._finish(job, path, moderation)
                if self._stopping.is_set():
                    found.close()  # type: ignore[attr-defined]
                    return

    def _fail(self, jobs: Sequence[Work], error: Exception) -> None:
        """End jobs whose deployment cannot be loaded."""
        for job in jobs:
            self._queue.fail(
                self.owner,
                job.id,
                "bundle_unusable",
                f"{job.name}: deployment {job.deployment_id} cannot be loaded ({error}); have an admin "
                "activate another, and send the video again",
            )
            self._bells.ring_done(job.id)
            self._held -= {job.id}

    def _finish(self, job: Work, path: str, moderation: Moderation) -> None:
        """End a job with its verdict, unless it was lost meanwhile."""
        verdict = named(moderation.verdict, path, job.name)
        frames = keep_frames(moderation, self._media, job.id)
        if self._queue.finish(self.owner, job.id, verdict, frames):
            metrics.observe(verdict)
        self._bells.ring_done(job.id)
        self._held -= {job.id}

    def _forget(self) -> None:
        """Hold no longer what a round that failed had taken."""
        self._held = frozenset()

    def _wait(self) -> None:
        """Until there may be something to do."""
        self._bells.wait_work(LOOK_S)

    def _close(self) -> None:
        if self._lens is not None:
            self._lens.close()

    def _prepare(self, deployment: Deployment) -> None:
        """Load what moderates now, before the first job."""
        self._load(deployment)

    def _load(self, deployment: Deployment) -> SafeLens:
        from safelens.cascade import SafeLens

        if self._lens is None or self._loaded != deployment.id:
            with self._database.reading() as session:
                bundle = session.get_one(BundleVersion, deployment.bundle_sha256)
                policy = session.get_one(PolicyVersion, deployment.policy_sha256)
            if self._lens is not None:
                self._lens.close()
                self._lens = self._loaded = None
            self._lens = SafeLens.load(
                self._deployments.folder(bundle),
                policy=Policy.from_yaml(policy.yaml),
                tau=deployment.tau,
            )
            found = self._lens.provenance.bundle_sha256
            if found != bundle.sha256:
                self._lens.close()
                self._lens = None
                raise BundleError(f"{bundle.source} holds another bundle now, {found}")
            self._loaded = deployment.id
        return self._lens

    def _report(self) -> None:
        """Say again and again that this process lives, and what it holds."""
        pause = min(self._settings.lease_s / 3, 10.0)
        while not self._stopping.is_set():
            try:
                if held := tuple(self._held):
                    self._queue.renew(self.owner, held)
                with self._database.writing() as session:
                    session.merge(
                        WorkerRow(
                            id=self.owner,
                            host=socket.gethostname(),
                            pid=os.getpid(),
                            seen_at=time.time(),
                            deployment_id=self._loaded,
                        )
                    )
            except Exception:
                log.exception("no report", extra={"worker": self.owner})
            self._stopping.wait(pause)


def main() -> None:
    """Run until SIGTERM, or until the parent is gone."""
    from safelens.service.supervise import end_with_parent

    logs.set_up()
    settings, owner = Settings(), os.environ.get("SAFELENS_WORKER")
    worker: Worker
    if settings.engine == "ray":
        from safelens.service.ray_worker import RayWorker

        worker = RayWorker(settings, owner)
    else:
        worker = Worker(settings, owner)

    def stop(_number: int, _frame: FrameType | None) -> None:
        worker.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    worker.run()


if __name__ == "__main__":
    main()
