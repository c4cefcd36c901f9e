import threading
import time

import pytest

from safelens.remote_batch import LOOK_S, RemoteBatch


class Gate:
    """Deliberates on a name once that may go; fails on "bad"."""

    concurrency = 2

    def __init__(self):
        self.may = {name: threading.Event() for name in ("a", "b", "bad")}

    def deliberate(self, clip, captions, scores):
        assert self.may[clip].wait(30)
        if clip == "bad":
            raise RuntimeError("refused")
        return (clip, captions, scores)


def ended(batch):
    found = []
    while not found:
        found = batch.step()
    return found


def test_what_ends_first_is_given_back_first_and_makes_room():
    gate = Gate()
    batch = RemoteBatch(gate)
    assert (len(batch), batch.free) == (0, 2)
    batch.admit(1, "a", ("caption",), {"safe": 1.0})
    batch.admit(2, "b", (), {})
    assert (len(batch), batch.free) == (2, 0)
    with pytest.raises(ValueError, match="all 2 requests"):
        batch.admit(3, "bad", (), {})
    began = time.monotonic()
    assert batch.step() == []  # and other work can go on
    assert LOOK_S / 2 < time.monotonic() - began < 30
    gate.may["b"].set()
    [one] = ended(batch)
    assert (one.key, one.result, one.error) == (2, ("b", (), {}), None)
    assert (len(batch), batch.free) == (1, 1)
    batch.admit(3, "bad", (), {})
    gate.may["bad"].set()
    [failed] = ended(batch)
    assert (failed.key, failed.result, str(failed.error)) == (3, None, "refused")
    gate.may["a"].set()
    [last] = ended(batch)
    assert last.result == ("a", ("caption",), {"safe": 1.0})
    assert last.seconds >= LOOK_S / 2
    assert len(batch) == 0
