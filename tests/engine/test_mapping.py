"""A real cluster of this machine: every item one result, in order, whatever dies."""

import os
import signal
import time
from dataclasses import dataclass

import pytest
import ray.cloudpickle
import test_mapping

from safelens.engine.cluster import EngineError, Pool, connected
from safelens.engine.mapping import MOST_TRIES, Died, blocks_of, mapped

# Actors have no path to this folder.
ray.cloudpickle.register_pickle_by_value(test_mapping)


@dataclass(frozen=True)
class Squares:
    """Its process dies on 7 always and on 12 once."""

    folder: str
    broken: bool = False

    def load(self):
        if self.broken:
            raise ValueError("no such model")

        def run(items):
            for item in items:
                with open(f"{self.folder}/{item}", "a") as tried:
                    tried.write("x")
                if item == 7 or (item == 12 and os.path.getsize(f"{self.folder}/12") == 1):
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(0.01)
            return [item * item for item in items]

        return run


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with connected(None, [Pool(2, 2, cpus=0.5)]):
            yield


def test_an_item_that_kills_costs_the_others_nothing(cluster, tmp_path):
    work = test_mapping.Squares(str(tmp_path))
    found = list(mapped(work, blocks_of(range(20), 4), Pool(2, 2, cpus=0.5)))
    assert [item for item, _ in found] == list(range(20))
    assert isinstance(found[7][1], Died)
    assert [r for i, r in found if i != 7] == [i * i for i in range(20) if i != 7]
    assert (tmp_path / "7").stat().st_size == MOST_TRIES
    assert (tmp_path / "12").stat().st_size == 2
    assert (tmp_path / "16").stat().st_size == 1


def test_work_that_cannot_be_loaded_is_said(cluster, tmp_path):
    work = test_mapping.Squares(str(tmp_path), broken=True)
    with pytest.raises(EngineError, match="no such model"):
        next(mapped(work, blocks_of(range(3), 2), Pool(cpus=0.5)))
