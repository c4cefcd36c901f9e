"""Runs a system over records: what was answered before is taken up, the rest is asked.

Knows records, videos and files, and that a bundle's two answers make a cascade. Knows nothing else of any
system, and nothing of right or wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safelens.data.records import Record
from safelens.engine.cluster import Pool
from safelens.evaluate.answer_log import AnswerLog, Answers, write_answers
from safelens.evaluate.answers import Answer
from safelens.evaluate.asking import Sample, ask, identity_of
from safelens.evaluate.memory import PeakMemory
from safelens.evaluate.routing import OutsideDomain, route
from safelens.evaluate.safelens_system import Cascade
from safelens.evaluate.system import System, failed
from safelens.thresholds import Thresholds
from safelens.video import VideoError, file_digest

CASCADE = "cascade"
"""Beside the stages of a bundle: what it says as a whole, at its own thresholds."""


def take_samples(
    records: Iterable[Record], *, on_done: Callable[[], None] = lambda: None
) -> list[Sample]:
    """Read every record's video once for its digest, which says whether it is known already."""
    samples = []
    for record in records:
        try:
            samples.append(Sample(record, file_digest(record.video)))
        except VideoError as error:
            samples.append(Sample(record, None, error.message))
        on_done()
    return samples


@dataclass(frozen=True)
class Run:
    """What a system said of all records.

    Attributes:
        answers: stage to answers, one a record, in the records' order and with their ids. Of a bundle
            "screen", "deliberate" and "cascade", or "screen" alone; of others one stage.
        files: stage to the file that holds them.
        earlier: records on whose video an earlier run has the answers.
        thresholds: of a bundle.
        outside_domain: of a bundle.
        knows: what a bundle is limited to, in words for a reader; to be shown wherever its answers are.
        memory: the most that the system took, in this run or in those that answered before; None of an endpoint.
    """

    answers: dict[str, list[Answer]]
    files: dict[str, Path]
    earlier: int
    thresholds: Thresholds | None = None
    outside_domain: OutsideDomain | None = None
    knows: str | None = None
    memory: PeakMemory | None = None


def run_system(
    name: str,
    system: System,
    samples: Sequence[Sample],
    out: Path,
    *,
    pool: Pool | None = None,
    say: Callable[[str], None] = lambda message: None,
    on_done: Callable[[], None] = lambda: None,
) -> Run:
    """Have a system answer on all records; nothing that was answered before is asked again.

    Args:
        name: the system's; its answers go to `out/answers/NAME/STAGE.jsonl`.
        system: what is run; it is entered only where something is left to ask.
        samples: the records, from `take_samples`.
        out: answers by content are kept in `out/cache`, each as soon as it is there: an interrupted or killed
            run goes on when it is started again. Failed ones are not kept.
        pool: processes on the cluster that this one is connected to, to ask a system that runs its models itself.
        say: told of each video that failed.
        on_done: called for every record.

    Raises:
        SystemsError: the system's models cannot be loaded.
        EngineError: nor in a process of the cluster.
        LogError: a file cannot be read or written.
        OSError: a file of answers cannot be written.
    """
    log = AnswerLog(out / "cache", identity_of(system, pool))
    try:
        stages = set(system.stages)
        # A bundle's S1 may have been asked alone before.
        found = {video: a for video, a in log.read().items() if stages <= a.keys()}
        earlier = sum(sample.sha256 in found for sample in samples)
        unknown: dict[str, Sample] = {}
        for sample in samples:
            if sample.sha256 is not None and sample.sha256 not in found:
                unknown.setdefault(sample.sha256, sample)
        for _ in range(len(samples) - len(unknown)):
            on_done()

        def settle(sample: Sample, answers: Answers, memory: PeakMemory | None) -> None:
            assert sample.sha256 is not None
            found[sample.sha256] = answers
            reasons = [a.error for a in answers.values() if a.outcome == "failed"]
            if reasons:
                say(f"{sample.record.id}: {reasons[0]}")
            else:
                log.add(sample.sha256, answers, memory)
            on_done()

        if unknown:
            ask(system, list(unknown.values()), settle, pool)
    finally:
        log.close()
    lost = [sample for sample in samples if sample.sha256 is None]
    for sample in lost:
        say(f"{sample.record.id}: {sample.error}")
    rows = [_named(system, sample, found) for sample in samples]
    answers = {stage: [row[stage] for row in rows] for stage in system.stages}
    thresholds: Thresholds | None = None
    outside: OutsideDomain | None = None
    knows: str | None = None
    if isinstance(system, Cascade):
        thresholds, outside = system.thresholds, system.outside_domain
        knows = system.knows
        if "deliberate" in system.stages:
            answers[CASCADE] = [
                route(row["screen"], row["deliberate"], thresholds, outside) for row in rows
            ]
    files = {stage: out / "answers" / name / f"{stage}.jsonl" for stage in answers}
    for stage, file in files.items():
        write_answers(file, answers[stage])
    return Run(answers, files, earlier, thresholds, outside, knows, log.peak)


def _named(system: System, sample: Sample, found: dict[str, Answers]) -> dict[str, Answer]:
    """A record's answers under its own id."""
    record = sample.record
    if sample.sha256 is None:
        why = (sample.error or "").removeprefix(f"{record.video}: ")
        return {stage: failed(record.id, record.video, why) for stage in system.stages}
    answers = found[sample.sha256]
    return {s: answers[s].model_copy(update={"id": record.id}) for s in system.stages}
