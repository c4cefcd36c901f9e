"""Any work on many items, here or in actors on a Ray cluster: each item's result once, in order.

Knows blocks, and what the death of a process costs them. What the work is, and where results are kept so that an
interrupted run goes on, is the caller's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from itertools import accumulate, chain
from typing import Any, Generic, Protocol, TypeVar

from safelens.engine.cluster import EngineError, Pool, connected, explained, last_line, placed

Item = TypeVar("Item")
Result = TypeVar("Result")
Taken = TypeVar("Taken", contravariant=True)
Given = TypeVar("Given", covariant=True)

MOST_TRIES = 3
"""Processes that may die on an item; but for the first, each had it alone."""


class Work(Protocol[Taken, Given]):
    """What is done with items; it travels to other processes."""

    def load(self) -> Callable[[Sequence[Taken]], Iterable[Given]]:
        """Load what it takes, once a process; gives the function that is called with each block."""


class Died(Exception):
    """The processes that had an item died."""


Blocks = Sequence[Sequence[Item]]
Results = Generator[tuple[Item, Result | Died], None, None]
Run = Callable[[Blocks[Item]], Results[Item, Result]]
"""Blocks of items to each item with its result, in order."""


def blocks_of(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """The items, `size` at a time."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def here(run: Callable[[Sequence[Item]], Iterable[Result]]) -> Run[Item, Result]:
    """What a work's `load` gives, run in this process, a block after the other."""

    def found(blocks: Blocks[Item]) -> Results[Item, Result]:
        for block in blocks:
            yield from zip(block, run(block), strict=True)

    return found


def run_of(work: Work[Item, Result], pool: Pool | None, address: str | None) -> Run[Item, Result]:
    """A work as an engine runs it: the same function, in this process or in a pool's.

    Args:
        work: the work; loaded here and now where there is no pool, and raises what its `load` raises.
        pool: the processes; None for this one.
        address: of the cluster, which is there while results are taken; for errors see `mapped` and `connected`.
    """
    if pool is None:
        return here(work.load())

    def found(blocks: Blocks[Item]) -> Results[Item, Result]:
        with connected(address, [pool]):
            yield from mapped(work, blocks, pool)

    return found


class _Actor(Generic[Item, Result]):
    def __init__(self, work: Work[Item, Result]) -> None:
        self._run = work.load()

    def ready(self) -> None:
        """Answers once all is loaded."""

    def run(self, items: Sequence[Item]) -> list[Result]:
        """One block."""
        found = list(self._run(items))
        assert len(found) == len(items)
        return found


def mapped(work: Work[Item, Result], blocks: Blocks[Item], pool: Pool) -> Results[Item, Result]:
    """Every item with its result, in order.

    Where a process dies, another takes its place, and its block's items are tried again, one by one.

    Args:
        work: the work.
        blocks: items that a process is given at a time; anything that can be pickled.
        pool: its processes, `most` of them, on the cluster that this process is connected to.

    Raises:
        EngineError: the work cannot be loaded, or raised.
    """
    import ray

    pool = placed(pool)
    actor: Any = ray.remote(_Actor)
    # One that died is not restarted but replaced: what is sent to a restarting actor fails without having been tried.
    options = {"num_cpus": pool.cpus, "num_gpus": pool.gpus, "max_restarts": 0}
    shared = ray.put(work)
    every: list[Any] = []
    loading: dict[Any, Any] = {}

    def start() -> None:
        every.append(actor.options(**options).remote(shared))
        loading[every[-1].ready.remote()] = every[-1]

    items = list(chain.from_iterable(blocks))
    ends = list(accumulate(map(len, blocks)))
    todo = deque((range(end - len(b), end), 1) for b, end in zip(blocks, ends, strict=True))
    idle: list[Any] = []
    under_way: dict[Any, tuple[Any, range, int]] = {}
    found: dict[int, Result | Died] = {}
    after = died_loading = 0
    try:
        for _ in range(pool.most):
            start()
        while after < len(items):
            while idle and todo:
                part, tries = todo.popleft()
                one = idle.pop()
                under_way[one.run.remote([items[i] for i in part])] = one, part, tries
            [done], _ = ray.wait([*under_way, *loading], num_returns=1)
            if done in loading:
                one = loading.pop(done)
                try:
                    ray.get(done)
                except ray.exceptions.RayActorError as error:
                    died_loading += 1
                    if error.actor_init_failed or died_loading == MOST_TRIES:
                        raise EngineError(last_line(str(error))) from error
                    start()
                else:
                    died_loading = 0
                    idle.append(one)
                continue
            one, part, tries = under_way.pop(done)
            try:
                with explained():
                    found.update(zip(part, _got(done), strict=True))
                idle.append(one)
            except Died as error:
                ray.kill(one)
                start()
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
