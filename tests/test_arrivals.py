import threading
import time

import pytest
import torch

from safelens.arrivals import Arrivals
from safelens.cascade import SafeLens
from safelens.pipeline import UNDER_WAY, Pipeline

torch.set_num_threads(1)


def test_what_has_come_is_taken_in_order_and_nothing_is_waited_for():
    arrivals = Arrivals()
    assert arrivals.take(5) == []
    assert not arrivals.news.done()
    for number in range(3):
        arrivals.add(number)
    assert arrivals.news.done()
    assert arrivals.take(2) == [0, 1]
    assert arrivals.news.done()
    assert arrivals.take(2) == [2]
    assert not arrivals.news.done()
    arrivals.add(3)
    arrivals.end()
    assert not arrivals.over
    assert arrivals.take(1) == [3]
    assert arrivals.over
    assert arrivals.news.done()
    with pytest.raises(RuntimeError, match="nothing is taken"):
        arrivals.add(4)


def test_a_pipeline_that_serves_requests_says_what_one_over_a_list_says(make_bundle, videos):
    """Twice as many as may be under way come while it works, and after it had nothing to do."""
    bundle = make_bundle(screen={"domain": None})
    asked = [str(videos[n % len(videos)]) for n in range(2 * UNDER_WAY)]
    with SafeLens.load(bundle, device="cpu", tau=0.0) as lens:
        wanted = {m.verdict.video: m.verdict.label for m in lens.moderate_many(videos)}
        arrivals, idle = Arrivals(), threading.Event()

        def send():
            arrivals.add(asked[0])
            idle.wait(60)
            time.sleep(0.05)
            for path in asked[1:]:
                arrivals.add(path)
            arrivals.end()

        sender = threading.Thread(target=send)
        sender.start()
        found = []
        for case in Pipeline(lens, arrivals).run():
            found.append((case.video.path, case.verdict.label))
            idle.set()
        sender.join()
    assert sorted(found) == sorted((path, wanted[path]) for path in asked)
