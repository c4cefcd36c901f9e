"""Any work on many items, in actors on a Ray cluster: each item's result once, in order.

Knows blocks, and what the death of a process costs them. What the work is, and where results are kept so that an
interrupted run goes on, is the caller's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from safelens.engine.cluster import EngineError, Pool, explained, last_line, placed

Item = TypeVar("Item")
Result = TypeVar("Result")
Taken = TypeVar("Taken", contravariant=True)
Given = TypeVar("Given", covariant=True)

MOST_TRIES = 3
"""Processes that may die on an item; but for the first, each had it alone."""


class Work(Protocol[Taken, Given]):
    """What is done with items; it travels to other processes."""

    def load(self) -> Callable[[Sequence[Taken]], Sequence[Given]]:
        """Load what it takes, once a process; gives the function that is called with each block."""


class Died(Exception):
    """The processes that had an item died."""


class _Actor(Generic[Item, Result]):
    def __init__(self, work: Work[Item, Result]) -> None:
        self._run = work.load()

    def ready(self) -> None:
        """Answers once all is loaded."""

    def run(self, items: Sequence[Item]) -> Sequence[Result]:
        """One block."""
        found = self._run(items)
        assert len(found) == len(items)
        return found


def mapped(
    work: Work[Item, Result], items: Sequence[Item], pool: Pool, *, block: int
) -> Iterator[tuple[Item, Result | Died]]:
    """Every item with its result, in order.

    Where a process dies, its block's items are tried again, one by one.

    Args:
        work: the work.
        items: anything that can be pickled.
        pool: its processes, `most` of them, on the cluster that this process is connected to.
        block: items that a process is given at a time.

    Raises:
        EngineError: the work cannot be loaded, or raised.
    """
    import ray

    pool = placed(pool)
    actor: Any = ray.remote(_Actor)
    options = {"num_cpus": pool.cpus, "num_gpus": pool.gpus, "max_restarts": -1}
    idle = deque(actor.options(**options).remote(work) for _ in range(pool.most))
    every = list(idle)
    todo = deque((range(i, min(i + block, len(items))), 1) for i in range(0, len(items), block))
    under_way: dict[Any, tuple[Any, range, int]] = {}
    found: dict[int, Result | Died] = {}
    after = 0
    try:
        try:
            ray.get([one.ready.remote() for one in every])
        except ray.exceptions.RayError as error:
            raise EngineError(last_line(str(error))) from error
        while after < len(items):
            while idle and todo:
                part, tries = todo.popleft()
                one = idle.popleft()
                under_way[one.run.remote([items[i] for i in part])] = one, part, tries
            [done], _ = ray.wait(list(under_way), num_returns=1)
            one, part, tries = under_way.pop(done)
            idle.append(one)
            try:
                with explained():
                    found.update(zip(part, _got(done), strict=True))
            except Died as error:
                if len(part) == 1 and tries >= MOST_TRIES:
                    found[part[0]] = error
                else:
                    todo.extendleft((range(i, i + 1), tries + 1) for i in reversed(part))
            while after in found:
                yield items[after], found.pop(after)
                after += 1
    finally:
        for one in every:
            ray.kill(one)


def _got(answer: Any) -> Any:
    import ray

    try:
        return ray.get(answer)
    except ray.exceptions.RayActorError as error:
        raise Died(last_line(str(error))) from error
