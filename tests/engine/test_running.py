import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch

from safelens.engine.running import Running
from safelens.engine.system import System

torch.set_num_threads(1)


@pytest.fixture
def lens(bundle_dir):
    with System(str(bundle_dir), options={"device": "cpu"}).load(deliberate=False) as found:
        yield found


def test_each_who_adds_a_video_gets_its_case_once_it_is_over(lens, videos):
    running = Running(lens, deliberate=False)
    names = [str(v) for v in videos]
    with ThreadPoolExecutor(len(names)) as askers:
        asked = list(askers.map(running.add, [*names, *names]))
    assert [a.result(timeout=60).video.path for a in asked] == [*names, *names]
    running.wait_until_empty()
    running.check()


def test_it_is_empty_only_when_the_last_video_is_over(lens, videos, monkeypatch):
    may = threading.Event()
    decode = lens.decode
    monkeypatch.setattr(lens, "decode", lambda path: may.wait(60) and decode(path))
    running = Running(lens, deliberate=False)
    asked = running.add(str(videos[0]))
    empty = threading.Thread(target=running.wait_until_empty)
    empty.start()
    empty.join(timeout=0.2)
    assert empty.is_alive()
    may.set()
    empty.join(timeout=60)
    assert asked.done()


def test_who_waits_for_a_pipeline_that_ended_is_told(lens, videos):
    def known(digest):
        answer = Future()
        answer.set_exception(OSError("the ledger is gone"))
        return answer

    running = Running(lens, deliberate=False, known=known)
    asked = running.add(str(videos[0]))
    with pytest.raises(OSError, match="the ledger is gone"):
        asked.result(timeout=60)
    running.wait_until_empty()
    with pytest.raises(RuntimeError, match="the pipeline ended"):
        running.add(str(videos[1]))
