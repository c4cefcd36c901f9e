"""`safelens calibrate` from the command line: with answers that are there already, and with a model."""

import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from safelens.bundle import Bundle
from safelens.calibrate import TemperatureFit, class_sets, fit_temperature, tempered
from safelens.calibrated_bundle import Calibration
from safelens.cascade import SafeLens
from safelens.cli import app
from safelens.data.records import Record, write_records
from safelens.evaluate import calibration, safelens_system
from safelens.evaluate.answer_log import AnswerLog
from safelens.evaluate.answers import Answer
from safelens.evaluate.parts import divide_samples
from safelens.evaluate.run import take_samples
from safelens.evaluate.safelens_system import SafeLensSystem
from safelens.policy import SAFE, Policy
from safelens.reliability import ece, reliability

LABELS = Policy.load("default").labels


def run(*arguments):
    return CliRunner().invoke(app, ["calibrate", *map(str, arguments)])


class World:
    """Made-up files, whose answers by `tiny` are put where an earlier run would have left them.

    S1 answers at twice the logits that would be honest. Every tenth video is unfamiliar, the first is
    truncated.
    """

    def __init__(self, folder, count, strength=6.0):
        self.folder, self.work = folder, folder / "work"
        random = np.random.default_rng(5)
        truth = random.integers(0, len(LABELS), count)
        z = random.normal(size=(count, len(LABELS)))
        z[np.arange(count), truth] += strength
        # softmax(z) is honest: the truth is drawn from it.
        honest = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        self.truth = [LABELS[random.choice(len(LABELS), p=row)] for row in honest]
        self.p = tempered(honest, 0.5)
        (folder / "videos").mkdir()
        records = []
        for i, label in enumerate(self.truth):
            path = folder / "videos" / f"{i}.mp4"
            path.write_bytes(b"video %d" % i)
            labels = () if label == SAFE else (label,)
            records.append(Record(id=f"v{i}", video=str(path), labels=labels, source="t"))
        unknown = folder / "videos" / "unknown.mp4"
        unknown.write_bytes(b"unknown")
        records.append(
            Record(id="unknown", video=str(unknown), labels=(), asked=("abuse",), source="t")
        )
        self.data = folder / "records.jsonl"
        write_records(self.data, records)
        self.samples = take_samples(records)

    def keep(self, temperature=1.0, s2=False):
        identity = SafeLensSystem("tiny", "tiny", temperature=temperature).identity()
        log = AnswerLog(self.work / "cache", identity)
        p = self.p if temperature == 1 else tempered(self.p, temperature)  # to the last bit
        for i, sample in enumerate(self.samples[:-1]):
            answers = {"screen": self.screen(i, p[i])}
            if s2:
                right = self.truth[i] if i % 25 else LABELS[i // 25 % 2]
                answers["deliberate"] = self.answer(
                    i, right, 0.9, {"screen": 0.1, "deliberate": 0.9}
                )
            log.add(sample.sha256, answers)
        log.close()

    def screen(self, i, p):
        scores = dict(zip(LABELS, p.tolist(), strict=True))
        label, seconds = LABELS[p.argmax()], {"screen": 0.1}
        if i == 0:
            return Answer(id="0", outcome="undecided", error="cut", scores=scores, seconds=seconds,
                          familiar=True, confidence=p.max())  # fmt: skip
        return self.answer(i, label, p.max(), seconds, familiar=i % 10 != 1, scores=scores)

    def answer(self, i, label, confidence, seconds, **fields):
        flags = () if label == SAFE else (label,)
        seconds = {"decode": 9.0} | seconds
        return Answer(id=str(i), outcome="decided", flags=flags, label=label,
                      confidence=confidence, seconds=seconds, **fields)  # fmt: skip

    def run(self, *arguments, out="out"):
        return run("tiny", self.data, "--out", self.folder / out, "--work", self.work, *arguments)

    def parts(self, temperature):
        return divide_samples(self.samples, Policy.load("default"), temperature=temperature, seed=0)

    def written(self, out="out"):
        return Calibration.model_validate_json((self.folder / out / "calibration.json").read_text())


@pytest.fixture
def no_model(monkeypatch):
    def load(*_args, **_more):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(SafeLens, "load", load)


@pytest.fixture
def world(tmp_path, no_model):
    return World(tmp_path, 500)


def own(world, part):
    """Rows of a part's familiar videos that S1 decides."""
    rows = [int(sample.record.id[1:]) for sample in part]
    return [i for i in rows if i % 10 != 1 and i != 0]


def test_a_promise_is_made_written_and_measured_elsewhere(world):
    world.keep()
    result = world.run("--no-temperature", "--alpha", 0.1)
    assert result.exit_code == 0, result.output
    found, parts = world.written(), world.parts(False)
    assert found.counts == {"temperature": 0, "tau": 334, "test": 166}
    assert found.left_out == {
        "of unknown truth": 1,
        "unfamiliar": 50,
        "cut off, hence undecided": 1,
    }
    assert (found.method, found.target) == ("risk", {"alpha": 0.1, "delta": 0.05})
    assert found.data_sha256 == parts.sha256
    settings = Bundle.load(world.folder / "out").settings
    tau = settings.tau
    assert (settings.taus, settings.screen.temperature) == ({}, 1.0)
    right = np.array([LABELS.index(label) for label in world.truth]) == world.p.argmax(1)
    stands = [i for i in own(world, parts.tau) if world.p[i].max() >= tau]
    assert found.evidence.selected == len(stands) >= 59
    assert found.evidence.errors == sum(~right[stands])
    test = own(world, parts.test)
    alone = [i for i in test if world.p[i].max() >= tau]
    after = found.after
    assert (after.answers, after.alone, after.wrong) == (len(test), len(alone), sum(~right[alone]))
    assert after.ece == found.before.ece == ece(reliability(world.p[test].max(1), right[test]))
    assert after.cascade is None
    assert "at most 0.1 is wrong, with probability 0.95" in result.stdout
    assert "temperature unchanged: not asked for" in result.stdout
    [told] = [line for line in result.stdout.splitlines() if "│ S1 decides alone" in line]
    assert [cell.strip() for cell in told.split("│")[2:4]] == [
        f"{figures.alone} of {len(test)}" for figures in (found.before, after)
    ]
    assert "not counted for S1: 1 of unknown truth, " in result.stdout
    card = (world.folder / "out" / "card.md").read_text()
    assert "## Calibration" in card
    assert (world.folder / "out" / "reliability.svg").is_file()


def test_the_temperature_has_videos_of_its_own(tmp_path, no_model):
    world = World(tmp_path, 500, strength=4.0)  # one answer in six is wrong
    world.keep()
    parts = world.parts(True)
    rows = own(world, parts.temperature)
    truth = class_sets([{world.truth[i]} - {SAFE} for i in rows], LABELS)
    fit = fit_temperature(world.p[rows], truth, LABELS)
    world.keep(fit.temperature)
    result = world.run("--alpha", 0.2)
    assert result.exit_code == 0, result.output
    found = world.written()
    assert found.temperature == fit.temperature == pytest.approx(2, abs=0.5)
    assert found.after.ece < found.before.ece
    right = np.array([LABELS.index(label) for label in world.truth]) == world.p.argmax(1)
    test = own(world, parts.test)
    assert found.before.ece == pytest.approx(ece(reliability(world.p[test].max(1), right[test])))
    settings = Bundle.load(world.folder / "out").settings
    assert settings.screen.temperature == fit.temperature
    assert settings.tau in tempered(world.p, fit.temperature)[own(world, parts.tau)]
    assert f"temperature x {fit.temperature:.4f}" in result.stdout


def test_taus_by_class_are_respected_and_named_by_evaluate(world):
    world.keep(s2=True)
    result = world.run("--no-temperature", "--target", "class-risk", "--alpha", 0.3)
    assert result.exit_code == 0, result.output
    settings = Bundle.load(world.folder / "out").settings
    assert list(settings.taus) == list(LABELS)
    assert settings.tau == 1.01
    assert min(settings.taus.values()) < 1
    assert "wrong in the worst class" in result.stdout
    (world.folder / "systems.yaml").write_text("systems: {s: {kind: safelens, bundle: ./out}}")
    systems = ["--systems", str(world.folder / "systems.yaml"), "--out", str(world.work)]
    told = CliRunner().invoke(app, ["evaluate", str(world.data), *systems, "--limit", "500"])
    assert told.exit_code == 0, told.output
    assert "cascade (tau by class)" in told.stdout
    assert f"s: {settings.thresholds}" in told.stdout
    one = CliRunner().invoke(app, ["evaluate", str(world.data), "--systems", str(write_tiny(world)),
                                   "--out", str(world.work), "--limit", "500"])  # fmt: skip
    assert "cascade (tau 0.9)" in one.stdout


def write_tiny(world):
    (world.folder / "tiny.yaml").write_text("systems: {s: {kind: safelens, bundle: tiny}}")
    return world.folder / "tiny.yaml"


def test_tau_by_cost_and_by_accuracy(world):
    world.keep(s2=True)
    result = world.run("--no-temperature", "--target", "cost", "--most", 0.6)
    assert result.exit_code == 0, result.output
    found = world.written()
    test = [i for s in world.parts(False).test if (i := int(s.record.id[1:])) % 10 != 1]
    tau = found.thresholds.tau
    # tiny refuses what is unfamiliar; the truncated one stands or goes on, and is right with S2 alone.
    alone = [i for i in test if world.p[i].max() >= tau]
    assert found.evidence.cost <= 0.6
    point = found.after.cascade
    assert point.count == len(test)
    assert point.cost == pytest.approx(
        (0.1 * len(alone) + 1.0 * (len(test) - len(alone))) / len(test)
    )
    s1 = {i: i != 0 and LABELS[world.p[i].argmax()] == world.truth[i] for i in test}
    s2 = {i: i % 25 != 0 or LABELS[i // 25 % 2] == world.truth[i] for i in test}
    assert point.right == sum(s1[i] if i in alone else s2[i] for i in test)
    assert "nothing is promised" in result.stdout
    result = world.run("--no-temperature", "--target", "accuracy", "--least", 0.8, out="accurate")
    assert result.exit_code == 0, result.output
    assert world.written("accurate").lower_bound >= 0.8
    assert "right on at least 0.8, with probability 0.95" in result.stdout
    result = world.run("--no-temperature", "--target", "accuracy", "--least", 0.98, out="more")
    assert (result.exit_code, (world.folder / "more").exists()) == (1, False)
    assert "no tau is accurate to 0.98" in result.stderr


def test_what_the_data_cannot_carry_is_refused_with_what_is_needed(tmp_path, no_model):
    small = World(tmp_path, 100)
    result = small.run("--alpha", 0.05)
    assert result.exit_code == 1
    assert "50 videos to choose tau on" in result.stderr
    assert "at least 59 are needed for tau" in result.stderr
    assert "about 118 in all; nothing was written" in result.stderr
    assert not small.work.exists()  # nothing was asked
    small.keep()
    result = small.run("--no-temperature", "--alpha", 0.05)  # 67, but some unfamiliar
    assert result.exit_code == 1
    assert "at least 59 are needed, all right" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_temperature_that_cannot_be_fitted_stays(tmp_path, no_model):
    small = World(tmp_path, 150)
    small.keep()
    result = small.run("--alpha", 0.3)
    assert result.exit_code == 0, result.output
    assert "temperature unchanged: " in result.stdout
    assert "too few to fit a temperature" in result.stdout
    assert small.written().temperature == 1.0


def test_wrong_use_is_said_before_anything_is_asked(world):
    for arguments, said in (
        (
            ("--most", 0.3),
            "--most has no meaning with --target risk, which takes --alpha and --delta",
        ),
        (("--target", "cost", "--alpha", 0.1), "--target cost, which takes --most"),
        (("--alpha", 1.5), "--alpha 1.5: expected a number between 0 and 1"),
    ):
        result = world.run(*arguments)
        assert (result.exit_code, said in result.stderr) == (2, True), result.output
    (world.folder / "out").mkdir()
    result = world.run()
    assert (result.exit_code, "exists; name another" in result.stderr) == (2, True)
    result = run("./gone", world.data, "--out", world.folder / "new")
    assert (result.exit_code, "no such directory" in result.stderr) == (2, True)
    assert not world.work.exists()


@pytest.fixture(scope="module")
def unguarded(make_bundle):
    """A bundle of random parts to which every clip is familiar."""
    return make_bundle(outside_domain="escalate", screen={"domain": None}, tau=0.9)


def test_with_a_model_what_is_measured_is_what_the_new_bundle_does(
    unguarded, videos, tmp_path, monkeypatch
):
    """Interrupted, gone on with, done again without a model; then verdicts beside what was measured."""
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    records = [
        Record(id=p.stem, video=str(p), labels=() if i % 2 else ("abuse",), source="t")
        for i, p in enumerate([*videos, bad])
    ]
    data, work, asked = tmp_path / "records.jsonl", tmp_path / "work", []
    write_records(data, records)
    monkeypatch.setattr(
        calibration, "fit_temperature", lambda *_: TemperatureFit(1.7, 1.0, 0.9)
    )  # seven videos are too few to fit one
    ask, interrupt = safelens_system._ask, [3]

    def counted(lens, clip, stages):
        asked.append((clip.path, tuple(stages)))
        if len(asked) in interrupt:
            raise KeyboardInterrupt
        return ask(lens, clip, stages)

    monkeypatch.setattr(safelens_system, "_ask", counted)

    def calibrated(out, *more):
        return run(unguarded, data, "--out", tmp_path / out, "--work", work, *more)

    cost = ("--target", "cost", "--most", 1)
    assert calibrated("out", *cost).exit_code == 130
    assert not (tmp_path / "out").exists()
    del asked[2:]
    interrupt.clear()
    result = calibrated("out", *cost)
    assert result.exit_code == 0, result.output
    assert "bad: " in result.stderr
    assert len(asked) == len({path for path, _ in asked}) == 6
    found = Calibration.model_validate_json((tmp_path / "out" / "calibration.json").read_text())
    assert found.left_out == {"failed": 1}
    parts = divide_samples(take_samples(records), Policy.load("default"), temperature=True, seed=0)
    fitted = {sample.record.video for sample in parts.temperature}
    assert {path for path, stages in asked if stages == ("screen",)} == fitted - {str(bad)}
    assert calibrated("again", *cost).exit_code == 0
    assert len(asked) == 6
    # Both stages on the videos for tau and test, which S1 asked alone would take up.
    system = SafeLensSystem("s", str(unguarded), screen_only=True, temperature=1.7)
    log = AnswerLog(work / "cache", system.identity())
    assert all(set(answers) == {"screen", "deliberate"} for answers in log.read().values())
    log.close()
    with SafeLens.load(tmp_path / "out", tau=0.0) as lens:
        test = [s.record for s in parts.test if s.record.video != str(bad)]
        verdicts = [lens.moderate(record.video).verdict for record in test]
    assert {verdict.decided_by for verdict in verdicts} == {"screen"}
    right = [v.label in (r.labels or (SAFE,)) for v, r in zip(verdicts, test, strict=True)]
    bins = reliability([verdict.confidence for verdict in verdicts], right)
    assert ece(bins) == pytest.approx(found.after.ece, abs=1e-5)
    assert found.after.ece != pytest.approx(found.before.ece, abs=1e-5)


def test_help_is_quick():
    code = (
        "import sys; from safelens.cli import app\n"
        "try: app(['calibrate', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'scipy', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--target" in done.stdout
