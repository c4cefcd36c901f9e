"""Runs of a system: nothing is asked twice, nothing that failed is kept, whatever ends the run."""

import asyncio
import shutil

import pytest

from safelens.bundle import ClipSettings
from safelens.data.records import Record
from safelens.evaluate.answer_log import read_answers
from safelens.evaluate.answers import Answer
from safelens.evaluate.run import run_system, take_samples
from safelens.evaluate.system import answered
from safelens.line_log import LogError


class Scripted:
    """A system that does on each video, by its position, what it is told; counts what it is asked."""

    stages = ("generate",)
    clip = ClipSettings(max_side=48)

    def __init__(self, does=(), concurrency=1, name="scripted", local=True):
        self.does = list(does)
        self.local = local
        self.concurrency = concurrency
        self.name = name
        self.down = None
        self.asked = []
        self.entered = 0

    def identity(self):
        return {"name": self.name}

    async def __aenter__(self):
        self.entered += 1
        return self

    async def __aexit__(self, *_):
        pass

    async def answer(self, clip):
        self.asked.append(clip.path)
        await asyncio.sleep(0)
        does = self.does.pop(0) if self.does else "decide"
        if does == "fill":
            assert (b"\x01" * 200_000_000)[-1] == 1
        if does == "raise":
            raise RuntimeError("out of memory")
        if does == "interrupt":
            raise KeyboardInterrupt
        if does == "down":
            self.down = "nobody listens"
        if does == "unparsed":
            text, why = "No.", "cannot be read"
            return {"generate": Answer(id=clip.sha256, outcome=does, text=text, error=why)}
        return {"generate": answered(clip, ["abuse"], "abuse", seconds={"generate": 0.1})}


def record(path, name=None):
    return Record(id=name or path.stem, video=str(path), labels=(), source="test")


@pytest.fixture
def samples(videos):
    return take_samples([record(path) for path in videos[:4]])


def outcomes(run):
    return [answer.outcome for answer in run.answers["generate"]]


def test_a_second_run_asks_nothing_and_loads_nothing(samples, tmp_path):
    first, second = Scripted(concurrency=3), Scripted()
    run = run_system("a", first, samples, tmp_path)
    assert (len(first.asked), run.earlier) == (4, 0)
    again = run_system("b", second, samples, tmp_path)
    assert (second.asked, second.entered, again.earlier) == ([], 0, 4)
    assert again.answers == run.answers
    assert [a.id for a in run.answers["generate"]] == [s.record.id for s in samples]
    assert read_answers(run.files["generate"]) == run.answers["generate"]
    assert run.files["generate"] == tmp_path / "answers" / "a" / "generate.jsonl"
    assert all(set(a.seconds) == {"decode", "generate"} for a in run.answers["generate"])
    other = Scripted(name="another")
    run_system("a", other, samples, tmp_path)
    assert len(other.asked) == 4


def test_the_same_video_under_other_names_is_asked_once(videos, tmp_path):
    copy = shutil.copy(videos[0], tmp_path / "copy.mp4")
    records = [record(videos[0]), record(tmp_path / "copy.mp4"), record(videos[0], "again")]
    system, done = Scripted(concurrency=2), []
    run = run_system(
        "a", system, take_samples(records), tmp_path, on_done=lambda: done.append(copy)
    )
    assert len(system.asked) == 1
    assert [a.id for a in run.answers["generate"]] == ["0", "copy", "again"]
    assert len(done) == 3
    moved = Scripted()
    run_system("a", moved, take_samples([record(tmp_path / "copy.mp4", "new")]), tmp_path)
    assert moved.asked == []


def test_failures_are_tried_again_and_unparsed_answers_are_not(samples, tmp_path):
    said = []
    first = Scripted(["unparsed", "raise"])
    run = run_system("a", first, samples, tmp_path, say=said.append)
    assert outcomes(run) == ["unparsed", "failed", "decided", "decided"]
    failure = run.answers["generate"][1]
    assert "RuntimeError: out of memory" in failure.error
    assert samples[1].record.video in failure.error
    assert said == [f"{samples[1].record.id}: {failure.error}"]
    second = Scripted()
    run = run_system("a", second, samples, tmp_path)
    assert second.asked == [samples[1].record.video]
    assert outcomes(run) == ["unparsed", "decided", "decided", "decided"]


def test_what_cannot_be_read_fails_and_is_named(videos, tmp_path):
    bad, gone = tmp_path / "bad.mp4", tmp_path / "gone.mp4"
    bad.write_bytes(b"no video at all")
    records = [record(videos[0]), record(bad), record(gone), record(tmp_path, "folder")]
    run = run_system("a", Scripted(), take_samples(records), tmp_path / "out")
    assert outcomes(run) == ["decided", "failed", "failed", "failed"]
    errors = [answer.error for answer in run.answers["generate"][1:]]
    for error, path in zip(errors, (bad, gone, tmp_path), strict=True):
        assert error.startswith(f"{path}: ")
        assert error.count(str(path)) == 1


def test_an_interrupted_run_goes_on_where_it_was(samples, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_system("a", Scripted(["decide", "interrupt"]), samples, tmp_path)
    assert not (tmp_path / "answers").exists()
    [cache] = (tmp_path / "cache").glob("*.jsonl")
    with cache.open("ab") as file:
        file.write(b'{"video": "torn')  # what a kill leaves of a line
    rest = Scripted()
    run = run_system("a", rest, samples, tmp_path)
    assert samples[0].record.video not in rest.asked
    assert len(rest.asked) == 3
    assert outcomes(run) == ["decided"] * 4
    assert cache.read_bytes().count(b"\n") == 4


def test_a_system_that_is_down_is_asked_no_more(samples, tmp_path):
    system = Scripted(["down"])
    run = run_system("a", system, samples, tmp_path)
    # the one that was being decoded meanwhile is still asked
    assert len(system.asked) <= 2
    assert "not asked: nobody listens" in run.answers["generate"][-1].error
    assert outcomes(run)[-1] == "failed"


def test_a_file_of_answers_that_is_none(samples, tmp_path):
    run_system("a", Scripted(), samples, tmp_path)
    [cache] = (tmp_path / "cache").glob("*.jsonl")
    cache.write_text('{"video": "a", "answers": {"generate": {"id": "a", "outcome": "well"}}}\n')
    with pytest.raises(LogError, match=rf"{cache}:1: no answers"):
        run_system("a", Scripted(), samples, tmp_path)


def test_peak_memory_is_kept_with_the_answers(samples, tmp_path):
    less = run_system("a", Scripted(), samples[:1], tmp_path / "less").memory
    first = run_system("a", Scripted(["decide", "fill"]), samples[:2], tmp_path).memory
    assert first.host_bytes > less.host_bytes + 150_000_000
    # what follows takes less, or asks nothing: the system's peak is the first run's
    assert run_system("a", Scripted(), samples, tmp_path).memory == first
    assert run_system("a", Scripted(), samples, tmp_path).memory == first
    assert run_system("a", Scripted(local=False), samples, tmp_path / "else").memory is None
