"""The cascade on Ray Data: a pool of actors for S1, one for S2, sized and placed apart.

Knows Ray. What a stage does is the matter of `stages`; what is done and written, of `ledger`.

Ray restarts a process that died and gives its block to another; the ledger then says what of the block is left.
Verdicts never travel through Ray's datasets, whose blocks may be computed twice.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safelens.engine.cluster import Pool, explained, placed
from safelens.engine.ledger import Begun, Found, Ledger
from safelens.engine.manifest import Entry
from safelens.engine.system import System
from safelens.engine.verdicts import Form
from safelens.verdict import Stage

_BLOCK = 32
_AT_ONCE = 2
"""Blocks that a process works on: while one ends, the next one's videos are decoded."""
_MOST_BLOCKS = 20_000
_ASK = 10_000
_UNSURE_BATCH = 16
_LOOK_S = 0.5


class _Client:
    """The ledger as a stage's process sees it."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def _ask(self, name: str, *arguments: Any) -> Any:
        import ray

        return ray.get(getattr(self._actor, name).remote(*arguments))

    def introduce(self, provenance: str) -> None:
        self._ask("introduce", provenance)

    def begin(self, stage: Stage, entries: Sequence[Entry]) -> Begun:
        return Begun(*self._ask("begin", stage, list(entries)))

    def again(self, stage: Stage, video: str) -> None:
        self._ask("again", stage, video)

    def known(self, digest: str) -> Future[bool]:
        answer: Future[bool] = self._actor.known.remote(digest).future()
        return answer

    def add(self, stage: Stage, found: Found) -> Any:
        return self._actor.add.remote(stage, found)

    def settle(self, sent: Sequence[Any]) -> None:
        import ray

        ray.get(list(sent))


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        outcomes: verdicts in the folder, by what they say.
        missing: videos that have none.
    """

    outcomes: dict[str, int]
    missing: int


class RayEngine:
    """One run on a cluster that `connected` gives.

    Args:
        system: built by every actor.
        out: folder of verdicts, on this machine.
        screen: actors of S1.
        deliberate: actors of S2.
        form: of the verdicts' shards.
        retry: try again what was set aside.

    Raises:
        EngineError: the folder cannot be used.
    """

    def __init__(
        self,
        system: System,
        out: Path,
        *,
        screen: Pool,
        deliberate: Pool,
        form: Form = "jsonl",
        retry: bool = False,
    ) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._system = system
        self._pools = placed(screen), placed(deliberate)
        here = ray.get_runtime_context().get_node_id()
        # Restarted after a kill, it reads its folder again; a call that it did not answer is made again.
        actor: Any = ray.remote(Ledger)
        pinned = actor.options(
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
        )
        self._ledger = pinned.remote(out.absolute(), form=form)
        with explained():
            if retry:
                ray.get(self._ledger.forget_failed.remote())
            ray.get(self._ledger.outcomes.remote())

    def missing(self, entries: Sequence[Entry]) -> list[Entry]:
        """Those without a verdict."""
        import ray

        parts = [list(entries[i : i + _ASK]) for i in range(0, len(entries), _ASK)]
        with explained():
            return [Entry(*e) for part in parts for e in ray.get(self._ledger.missing.remote(part))]

    def run(
        self,
        entries: Sequence[Entry],
        on_progress: Callable[[dict[str, int]], None] = lambda outcomes: None,
    ) -> Result:
        """Moderate videos; returns when each has a verdict, or nothing more can be done.

        Args:
            entries: those that are missing.
            on_progress: is given the verdicts in the folder by what they say, now and then, from a thread.

        Raises:
            EngineError: a model cannot be loaded, or a verdict cannot be written.
            KeyboardInterrupt: Ctrl-C; the folder can be continued.
        """
        import ray

        if not entries:
            return Result(ray.get(self._ledger.outcomes.remote()), 0)
        over = threading.Event()

        def look() -> None:
            while not over.wait(_LOOK_S):
                on_progress(ray.get(self._ledger.outcomes.remote()))

        watch = threading.Thread(target=look, daemon=True, name="safelens-progress")
        watch.start()
        try:
            with explained():
                for _ in self._dataset(entries).iter_batches(batch_size=None):
                    pass
        finally:
            over.set()
            watch.join()
        with explained():
            outcomes = ray.get(self._ledger.outcomes.remote())
        return Result(outcomes, len(self.missing(entries)))

    def close(self) -> None:
        """Finish the files."""
        import ray

        with explained():
            ray.get(self._ledger.close.remote())
        ray.kill(self._ledger)

    def _dataset(self, entries: Sequence[Entry]) -> Any:
        import logging

        import ray

        from safelens.engine.stages import DeliberateStage, ScreenStage, table_of

        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)

        screen, deliberate = self._pools
        rows = max(
            min(_BLOCK, math.ceil(len(entries) / (4 * screen.most))),
            math.ceil(len(entries) / _MOST_BLOCKS),
        )
        blocks = [table_of(entries[i : i + rows]) for i in range(0, len(entries), rows)]
        made = (self._system, _Client(self._ledger))
        found: Any = ray.data.from_arrow(blocks)
        found = found.map_batches(
            ScreenStage, batch_size=None, fn_constructor_args=made, **_options(screen)
        )
        return found.map_batches(
            DeliberateStage,
            batch_size=_UNSURE_BATCH,
            fn_constructor_args=made,
            **_options(deliberate),
        )


def _options(pool: Pool) -> dict[str, Any]:
    from ray.data import ActorPoolStrategy

    return {
        "batch_format": "pyarrow",
        "zero_copy_batch": True,
        "compute": ActorPoolStrategy(
            min_size=pool.least,
            max_size=pool.most,
            max_tasks_in_flight_per_actor=_AT_ONCE + 1,
            max_concurrent_calls_per_actor=_AT_ONCE,
            enable_true_multi_threading=True,
        ),
        "num_cpus": pool.cpus,
        "num_gpus": pool.gpus,
    }
