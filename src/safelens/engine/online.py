"""S1 and S2 as two Ray Serve applications, each with replicas of its own that grow with its own queue.

Knows Ray Serve, and what a replica does with the videos that reach it: one pipeline, the local engine's, that never
ends (`running`). Who asks, and what becomes of the answers, is not known here.

    path ── Replica("screen") ──▶ sure: verdict and frames
                              └─▶ unsure: frames, S1's numbers ── Replica("deliberate") ──▶ verdict
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from safelens.cascade import Moderation
from safelens.engine.cluster import EngineError, Pool, last_line, placed
from safelens.engine.running import Running
from safelens.engine.system import System
from safelens.outcome import Decoded
from safelens.pipeline import BATCH, UNDER_WAY, Unsure
from safelens.verdict import Stage, Verdict

_UPSCALE_S, _DOWNSCALE_S = 10.0, 300.0
_GRACE_S = 120.0
"""So long a replica that is no longer needed may take for the videos that it has."""
_CONSTRUCTIONS = 3
"""So often a replica may fail to load before the application counts as unusable."""


class VideoLost(Exception):
    """The process that had the video died, or what it worked with did."""


class NotServed(Exception):
    """The cluster takes no videos at the moment; this says nothing of the video."""


@dataclass(frozen=True)
class Passed:
    """A video that S1 leaves to S2.

    Attributes:
        video: its frames.
        finding: what S1 found, pickled, so that who passes it on needs none of S1's libraries.
    """

    video: Decoded
    finding: bytes

    @classmethod
    def of(cls, unsure: Unsure) -> Passed:
        """From S1's replica."""
        return cls(unsure.video, pickle.dumps(unsure.finding, protocol=5))

    def unsure(self) -> Unsure:
        """In S2's."""
        return Unsure(self.video, pickle.loads(self.finding))


class Replica:
    """One process of a stage.

    Args:
        stage: whose.
        system: is built here.
    """

    def __init__(self, stage: Stage, system: System) -> None:
        self._stage = stage
        deliberate = stage == "deliberate"
        self._running = Running(system.load(deliberate=deliberate), deliberate=deliberate)

    async def __call__(self, video: str | Passed) -> Moderation | Passed | Verdict:
        """A video's verdict.

        Returns:
            Of S1 a `Moderation`, or what to ask S2; of S2 a `Verdict`.
        """
        asked = video.unsure() if isinstance(video, Passed) else video
        case = await asyncio.wrap_future(self._running.add(asked))
        if case.verdict is None:
            return Passed.of(case.unsure)
        if self._stage == "deliberate":
            return case.verdict
        return Moderation(case.verdict, case.video.clip)

    def check_health(self) -> None:
        """Serve asks this, and starts anew what raises."""
        self._running.check()


class Online:
    """Both applications, as whoever sends them videos sees them.

    Args:
        name: of the applications in the cluster; the same name is the same system and pools.
        system: built by every replica.
        screen: replicas of S1.
        deliberate: replicas of S2.
    """

    def __init__(self, name: str, system: System, screen: Pool, deliberate: Pool) -> None:
        self.name = name
        self._system = system
        self._pools: dict[Stage, Pool] = {"screen": screen, "deliberate": deliberate}
        self._handles: dict[Stage, Any] = {}

    @property
    def under_way(self) -> int:
        """How many videos keep all replicas busy, and let their number grow."""
        return sum(UNDER_WAY * pool.most for pool in self._pools.values())

    def deploy(self) -> None:
        """Ask the cluster for what of the applications is not there; two processes must not do so at a time."""
        from ray import serve

        there = serve.status().applications
        wanted = [
            serve.RunTarget(self._application(stage, pool), self._app(stage), route_prefix=None)
            for stage, pool in self._pools.items()
            if self._app(stage) not in there
        ]
        if wanted:
            serve.run_many(wanted, wait_for_applications_running=False)

    def running(self) -> bool:
        """Whether all replicas have loaded that there are at least.

        Raises:
            EngineError: they cannot; the applications are gone then.
        """
        from ray import serve

        there = serve.status().applications
        found = [there.get(self._app(stage)) for stage in self._pools]
        for app in found:
            if app is not None and app.status == "DEPLOY_FAILED":
                reasons = [d.message for d in app.deployments.values() if d.message]
                delete(lambda name: name == self.name)
                raise EngineError(last_line("\n".join(reasons) or app.message))
        if not all(app is not None and app.status == "RUNNING" for app in found):
            return False
        self._handles = {stage: serve.get_app_handle(self._app(stage)) for stage in self._pools}
        return True

    async def moderate(self, path: str) -> Moderation:
        """One video through both stages.

        Args:
            path: a path or address that leads to the same file on every machine.

        Raises:
            VideoLost: a process died that had it.
            NotServed: it did not come so far.
        """
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        try:
            found = await self._handles["screen"].remote(path)
            if isinstance(found, Moderation):
                return found
            verdict = await self._handles["deliberate"].remote(found)
        except RayServeException as error:
            raise NotServed(str(error)) from error
        except RayError as error:
            raise VideoLost(last_line(str(error))) from error
        return Moderation(verdict, found.video.clip)

    async def moderate_alone(self, path: str) -> Moderation:
        """One video in a process of its own, which ends with it; slow, and for suspects.

        Raises:
            VideoLost: the process died.
        """
        import ray

        # Asks for nothing, since the replicas may hold all there is.
        run = ray.remote(num_cpus=0, max_retries=0, max_calls=1)(_alone)
        try:
            return await run.remote(self._system, path)
        except ray.exceptions.RayError as error:
            raise VideoLost(last_line(str(error))) from error

    def _app(self, stage: Stage) -> str:
        return f"{self.name}-{stage}"

    def _application(self, stage: Stage, pool: Pool) -> Any:
        from ray import serve

        pool = placed(pool)
        made: Any = serve.deployment(
            name=_TITLES[stage],
            ray_actor_options={"num_cpus": pool.cpus, "num_gpus": pool.gpus},
            max_ongoing_requests=UNDER_WAY,
            max_constructor_retry_count=_CONSTRUCTIONS,
            graceful_shutdown_timeout_s=_GRACE_S,
            autoscaling_config={
                "min_replicas": pool.least,
                "initial_replicas": pool.least,
                "max_replicas": pool.most,
                "target_ongoing_requests": 2 * BATCH,
                "upscale_delay_s": _UPSCALE_S,
                "downscale_delay_s": _DOWNSCALE_S,
            },
        )
        return made(Replica).bind(stage, self._system)


_TITLES: dict[Stage, str] = {"screen": "Screen", "deliberate": "Deliberate"}


def start_serve() -> None:
    """Let the cluster have Ray Serve, without its HTTP server. Raises EngineError."""
    from ray import serve

    for again in (True, False):
        try:
            serve.start(proxy_location="Disabled")
            return
        except Exception as error:  # another process was first, or the cluster is in trouble
            if not again:
                raise EngineError(f"Ray Serve does not start: {last_line(str(error))}") from error


def delete(unwanted: Callable[[str], bool]) -> None:
    """End applications of this kind; `unwanted` is asked with the names that `Online` got."""
    from ray import serve

    for app in serve.status().applications:
        name, _, stage = app.rpartition("-")
        if stage in _TITLES and unwanted(name):
            serve.delete(app, _blocking=False)


def _alone(system: System, path: str) -> Moderation:
    with system.load() as lens:
        return lens.moderate(path)
