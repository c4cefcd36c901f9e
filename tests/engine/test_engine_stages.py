import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from verdict_of import same

from safelens.cascade import SafeLens
from safelens.engine.ledger import Ledger
from safelens.engine.manifest import Entry
from safelens.engine.stages import DeliberateStage, ScreenStage, table_of
from safelens.engine.system import System
from safelens.engine.verdicts import read_verdicts
from safelens.verdict import Verdict

torch.set_num_threads(1)


class Here:
    """The ledger, in this process."""

    def __init__(self, folder):
        self.ledger = Ledger(folder)

    def __getattr__(self, name):
        return getattr(self.ledger, name)

    def known(self, digest):
        answer = Future()
        answer.set_result(self.ledger.known(digest))
        return answer

    def settle(self, sent):
        pass


@pytest.fixture(scope="module")
def bundle(make_bundle):
    return make_bundle(screen={"domain": None})


@pytest.fixture(scope="module")
def local(bundle, videos):
    """The local engine's verdicts, at a tau that leaves some of the videos to S2."""
    with SafeLens.load(bundle, device="cpu", tau=0.0) as lens:
        sure = sorted(m.verdict.confidence for m in lens.moderate_many(videos))
    tau = (sure[2] + sure[3]) / 2
    with SafeLens.load(bundle, device="cpu", tau=tau) as lens:
        found = {m.verdict.video: m.verdict for m in lens.moderate_many(videos)}
    assert {v.decided_by for v in found.values()} == {"screen", "deliberate"}
    return tau, found


@pytest.fixture(scope="module")
def system(bundle, local):
    return System(str(bundle), options={"tau": local[0], "device": "cpu"})


def test_two_processes_say_what_one_says(system, local, videos, tmp_path):
    here = Here(tmp_path)
    screen, deliberate = ScreenStage(system, here), DeliberateStage(system, here)
    [unsure] = screen(table_of([Entry(str(v)) for v in videos]))
    assert {v.decided_by for v in read_verdicts(tmp_path)} == {"screen"}
    [done] = deliberate(unsure)
    assert done.to_pydict() == {"done": [3]}
    found = {v.video: v for v in read_verdicts(tmp_path)}
    assert found.keys() == local[1].keys()
    assert all(same(found[video], wanted) for video, wanted in local[1].items())
    again = found[next(v for v in found if found[v].decided_by == "deliberate")]
    assert {"decode", "screen", "take_up", "deliberate"} <= set(again.timing)
    assert again.cost.gflops > local[1][again.video].cost.gflops  # the video was read twice
    # A block that is computed once more changes nothing.
    [none] = screen(table_of([Entry(str(v)) for v in videos]))
    assert none.num_rows == 0
    assert none.schema == unsure.schema
    list(deliberate(unsure))
    assert len(list(read_verdicts(tmp_path))) == len(videos)


def test_s1_alone_loads_nothing_of_s2(system):
    with system.load(deliberate=False) as lens:
        assert lens.captioner is None
        assert lens.remote is None
        with pytest.raises(RuntimeError, match="S2 runs elsewhere"):
            _ = lens.deliberator


def test_bytes_that_have_a_verdict_reach_no_model(system, videos, tmp_path, monkeypatch):
    here = Here(tmp_path / "out")
    screen = ScreenStage(system, here)
    copy = tmp_path / "copy.mp4"
    with system.load(deliberate=False) as lens:
        s1 = lens.screener.screen([lens.decode(str(v)).clip for v in videos])
    sure = str(videos[max(range(6), key=lambda i: s1[i].confidence)])
    copy.write_bytes(Path(sure).read_bytes())
    list(screen(table_of([Entry(sure)])))
    monkeypatch.setattr(SafeLens, "screen", lambda lens, cases: pytest.fail("was screened"))
    [none] = screen(table_of([Entry(str(copy))]))
    assert none.num_rows == 0
    assert [v.video for v in read_verdicts(tmp_path / "out")] == [sure]
    assert here.missing([Entry(str(copy))]) == []


def test_videos_without_frames_and_videos_by_address(system, videos, tmp_path):
    here = Here(tmp_path / "out")
    screen = ScreenStage(system, here)
    (tmp_path / "no.mp4").write_text("text")
    asked = [f"file://{videos[0]}", str(tmp_path / "no.mp4"), "file:///gone.mp4", "/gone.mp4"]
    [unsure] = screen(table_of([Entry(v) for v in asked]))
    list(DeliberateStage(system, here)(unsure))
    found = {v.video: v for v in read_verdicts(tmp_path / "out")}
    assert found.keys() == set(asked)
    assert found[asked[0]].status == "ok"
    assert found[asked[1]].error.code == "not_a_video"
    for gone in asked[2:]:
        assert found[gone].error.code == "not_found"
        assert found[gone].error.message.startswith(gone)


def test_the_next_block_is_decoded_before_this_one_is_over(system, videos, tmp_path, monkeypatch):
    decoded, may = [], threading.Event()
    decode, screen = SafeLens.decode, SafeLens.screen

    def seen(lens, path):
        decoded.append(path)
        return decode(lens, path)

    monkeypatch.setattr(SafeLens, "decode", seen)
    monkeypatch.setattr(SafeLens, "screen", lambda *a: may.wait(60) and screen(*a))
    stage = ScreenStage(system, Here(tmp_path))
    names = [str(v) for v in videos]
    blocks = [table_of([Entry(v) for v in part]) for part in (names[:1], names[1:])]
    with ThreadPoolExecutor() as threads:
        found = [threads.submit(lambda b=block: next(stage(b))) for block in blocks]
        for _ in range(600):
            if len(decoded) == len(names):
                break
            threading.Event().wait(0.1)
        assert sorted(decoded) == names
        assert not any(f.done() for f in found)
        may.set()
        unsure = [set(f.result().column("video").to_pylist()) for f in found]
    own = [set(block.column("video").to_pylist()) for block in blocks]
    assert all(a <= b for a, b in zip(unsure, own, strict=True))
    sure = {v.video.encode() for v in read_verdicts(tmp_path)}
    assert sure | unsure[0] | unsure[1] == own[0] | own[1]


def test_videos_on_which_a_process_died_are_alone_whatever_else_there_is(
    system, videos, tmp_path, monkeypatch
):
    here = Here(tmp_path)
    names = [str(v) for v in videos]
    suspects = names[1:3]
    batches, events = [], []
    screen = SafeLens.screen

    def seen(lens, cases):
        batches.append([case.video.path for case in cases])
        screen(lens, cases)

    def told(name, of):
        call = getattr(here.ledger, name)

        def do(stage, what):
            events.append((name, of(what)))
            return call(stage, what)

        monkeypatch.setattr(here.ledger, name, do)

    here.introduce(system.load(deliberate=False).provenance.model_dump_json())
    here.begin("screen", [Entry(v) for v in suspects])  # and then its process died
    told("begin", lambda entries: {e.video for e in entries})
    told("again", lambda video: {video})
    told("add", lambda f: {Verdict.from_json(v).video for v in f.verdicts} | {*f.passed_on})
    monkeypatch.setattr(SafeLens, "screen", seen)
    stage = ScreenStage(system, here)
    blocks = [table_of([Entry(v) for v in part]) for part in (names[:4], names[4:])]
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda block: next(stage(block)), blocks))
    assert all(len(batch) == 1 for batch in batches if set(batch) & set(suspects))
    assert sorted(v for batch in batches for v in batch) == names
    for suspect in suspects:
        # The ledger has it before anything else is begun.
        after = events[events.index(("again", {suspect})) + 1 :]
        assert next(e for e in after if e[0] != "add" or suspect in e[1]) == ("add", {suspect})
