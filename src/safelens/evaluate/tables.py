"""The tables of an evaluation: what stands in which row and column, for every form of report alike.

Knows words, units and digits. Knows nothing of Markdown or HTML.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from safelens.evaluate.cases import NON_ANSWERS
from safelens.evaluate.cost import Costs
from safelens.evaluate.memory import PeakMemory
from safelens.evaluate.results import Compared, Results
from safelens.evaluate.spread import Spread
from safelens.evaluate.sweep import GRID, Sweep

UNKNOWN = "–"
"""Stands for a figure that is undefined or unknown."""


@dataclass(frozen=True)
class Table:
    """One table; its first column names the rows.

    Attributes:
        title: Its heading.
        note: How to read it, or "".
        columns: Their headings.
        rows: Cells, as many in each as there are columns.
    """

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def percent(value: float | None) -> str:
    """A share as per cent with one digit."""
    return UNKNOWN if value is None else f"{100 * value:.1f}"


def number(value: float | None) -> str:
    """A number of 0 or more with three digits, or all before the point."""
    if value is None:
        return UNKNOWN
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}" if value >= 0.001 else f"{value:.1g}"


def all_tables(results: Results) -> list[Table]:
    """Every table of a run: overview, comparison, classes, flag, non-answers, explanations, rubric, costs, groups, sweeps."""
    some = next(iter(results.systems.values())).metrics
    tables = [overview(results)]
    if results.compared is not None:
        tables.append(comparison_table(results.compared))
    tables += [_classes(results), _flag(results), _outcomes(results)]
    if some.explanations.videos:
        tables.append(_explanations(results))
    if any(judged.rubric for judged in results.systems.values()):
        tables.append(rubric_table(results))
    tables += [_costs(results), _stages(results)]
    if len(some.sources) > 1:
        tables.append(_groups(results, "sources", "By source"))
    if some.difficulties:
        tables.append(_groups(results, "difficulties", "By difficulty"))
    if some.scenarios:
        tables.append(_groups(results, "scenarios", "By scenario"))
    return tables + [
        sweep_table(name, swept, results.tau(name)) for name, swept in results.sweeps.items()
    ]


def overview(results: Results) -> Table:
    """The most important figures, a row a system."""
    rows = []
    for name, judged in results.systems.items():
        m, c = judged.metrics, judged.costs
        rows.append(
            (
                name if judged.thresholds is None else f"{name} ({judged.thresholds.short})",
                percent(m.single_label.avg_acc),
                percent(m.single_label.accuracy),
                percent(m.single_label.macro_f1),
                percent(m.multi_label.exact_match),
                percent(m.any_violation.f1),
                percent(m.any_violation.auprc),
                number(c.seconds.mean if c.seconds else None),
                number(c.gflops),
            )
        )
    columns = (
        "System",
        "Avg ACC %",
        "Accuracy %",
        "Macro F1 %",
        "Exact match %",
        "Flag F1 %",
        "Flag AUPRC %",
        "s/video",
        "GFLOPs/video",
    )
    note = (
        "Avg ACC: mean accuracy of the classes that occur. Exact match: all flags right. Flag: whether a "
        "video violates anything. What is not answered counts as wrong."
    )
    return Table("Overview", note, columns, tuple(rows))


def sweep_table(name: str, swept: Sweep, tau: float | None) -> Table:
    """A bundle's cascade at the grid's taus, its own among them, and S2 on everything.

    Args:
        name: The system's.
        swept: Its sweep.
        tau: Its own, which the sweep holds.
    """
    rows = []
    for point in [*(p for p in swept.points if p.tau in (*GRID, tau)), swept.everything]:
        if point.tau is None:
            what = "S2 on everything"
        else:
            what = "above 1" if point.tau > 1 else f"{point.tau:g}"
            what += " (the bundle's)" if point.tau == tau else ""
        seconds, gflops = point.relative["seconds"], point.relative["gflops"]
        rows.append(
            (
                what,
                percent(point.avg_acc),
                percent(point.accuracy),
                percent(point.f1),
                percent(point.escalated),
                number(point.seconds),
                percent(seconds),
                number(point.gflops),
                percent(gflops),
            )
        )
    outside = {
        "refuse": "A clip outside the bundle's domain is refused at every tau.",
        "escalate": "A clip outside the bundle's domain goes to S2 at every tau.",
    }[swept.outside_domain]
    columns = (
        "tau",
        "Avg ACC %",
        "Accuracy %",
        "Flag F1 %",
        "To S2 %",
        "s/video",
        "% of S2's s",
        "GFLOPs",
        "% of S2's GFLOPs",
    )
    return Table(f"{name}: the cascade at every tau", outside, columns, tuple(rows))


def comparison_table(compared: Compared) -> Table:
    """Two systems class by class."""
    c = compared.comparison
    low, high = c.interval
    note = (
        f"First: {compared.first}. Second: {compared.second}. Avg ACC {percent(c.first_avg_acc)} and "
        f"{percent(c.second_avg_acc)}: difference {100 * c.difference:+.1f} points, "
        f"{100 * c.level:g} % interval {100 * low:+.1f} to {100 * high:+.1f} (paired bootstrap by class, "
        f"{c.resamples:,} resamples). Accuracy of all {c.overall.videos} videos: McNemar's exact test, "
        f"p = {_p(c.overall.p_value)}. Holm: p corrected for the number of classes."
    )
    rows = [
        (
            name,
            str(p.videos),
            percent(p.first),
            percent(p.second),
            f"{100 * p.difference:+.1f}",
            f"{100 * p.interval[0]:+.1f} to {100 * p.interval[1]:+.1f}",
            str(p.first_only),
            str(p.second_only),
            _p(p.p_value),
            _p(p.p_holm),
        )
        for name, p in c.classes.items()
    ]
    o = c.overall
    rows.append(
        (
            "all",
            str(o.videos),
            percent(o.first),
            percent(o.second),
            f"{100 * (o.first - o.second):+.1f}",
            UNKNOWN,
            str(o.first_only),
            str(o.second_only),
            _p(o.p_value),
            UNKNOWN,
        )
    )
    columns = (
        "Class",
        "Videos",
        "First %",
        "Second %",
        "Difference",
        "Interval",
        "First alone right",
        "Second alone right",
        "p",
        "p (Holm)",
    )
    title = f"{compared.first} against {compared.second}"
    return Table(title, note, columns, tuple(rows))


def _classes(results: Results) -> Table:
    some = next(iter(results.systems.values())).metrics.single_label.classes
    columns = ("System", *(f"{name} ({some[name].videos})" for name in some))
    rows = [
        (name, *(percent(c.accuracy) for c in judged.metrics.single_label.classes.values()))
        for name, judged in results.systems.items()
    ]
    note = (
        "Share of each class's videos that is answered rightly (its recall); in brackets how many."
    )
    return Table("Accuracy by class, %", note, columns, tuple(rows))


def _flag(results: Results) -> Table:
    rows = []
    for name, judged in results.systems.items():
        flag = judged.metrics.any_violation
        shares = (flag.precision, flag.recall, flag.f1, flag.auprc, flag.auroc, flag.accuracy)
        rows.append((name, *map(percent, shares), str(flag.flagged), str(flag.positives)))
    columns = (
        "System",
        "Precision %",
        "Recall %",
        "F1 %",
        "AUPRC %",
        "AUROC %",
        "Accuracy %",
        "Flagged",
        "Violating",
    )
    note = "AUPRC and AUROC rank decided answers alone; read them beside recall."
    return Table("Does it violate anything?", note, columns, tuple(rows))


def _outcomes(results: Results) -> Table:
    names = ("videos", "decided", *NON_ANSWERS, "left_out")
    rows = [
        (name, *(str(getattr(judged.metrics.counts, key)) for key in names))
        for name, judged in results.systems.items()
    ]
    note = (
        "Only decided answers are answers; the others are never right and never safe. Left out: videos "
        "whose truth is not known, in no figure."
    )
    columns = ("System", *(key.replace("_", " ").capitalize() for key in names))
    return Table("Answers and non-answers", note, columns, tuple(rows))


def _explanations(results: Results) -> Table:
    rows = []
    for name, judged in results.systems.items():
        if judged.stage == "screen":
            continue  # S1 gives no reasons
        e = judged.metrics.explanations
        named = (e.named, e.named_of_all)
        when = (e.moment, e.wrong_moment, e.no_moment, e.moment_of_all)
        shares = (*named, *when, e.moment_of_named, e.by_chance)
        none = " / ".join(str(getattr(e, key)) for key in NON_ANSWERS)
        counts = (e.videos, e.right, e.wrong)
        rows.append((name, *map(str, counts), none, str(e.explained), *map(percent, shares)))
    columns = (
        "System",
        "Violating",
        "Rightly flagged",
        "Otherwise",
        " / ".join(NON_ANSWERS).capitalize(),
        "Explained",
        "Names it %",
        "Names it, of all %",
        "Right moment %",
        "Wrong moment %",
        "No moment %",
        "Right moment, of all %",
        "Right, of moments %",
        "By chance %",
    )
    note = (
        "Violating videos whose truth is known in words and seconds. Of the rightly flagged: whether the "
        "explanation names the object, act or on-screen text that violates, and a moment at which it is "
        "visible. Of all: flagged rightly and named, of all the violating. Of moments: right ones among the "
        "explanations that name one; by chance: the same of a random frame. Without an explanation nothing "
        "is named."
    )
    return Table("Do explanations name what violates, and when?", note, columns, tuple(rows))


def rubric_table(results: Results) -> Table:
    """A judge's grades, a row a system that explains; there must be one."""
    rows = []
    for name, judged in results.systems.items():
        if (r := judged.rubric) is None:
            continue
        grades = (r.overall, r.accuracy, r.specificity, r.conciseness)
        counts = (r.graded, r.unparsed, r.failed, r.unexplained)
        rows.append((name, *map(_spread, grades), *map(str, counts)))
    columns = (
        "System",
        "Overall",
        "Accuracy",
        "Specificity",
        "Conciseness",
        "Graded",
        "Unparsed",
        "Failed",
        "Unexplained",
    )
    judge = next(j.rubric.judge for j in results.systems.values() if j.rubric)
    note = (
        f"Grades from 1 to 10 by {judge}, which reads the truth and the explanation and sees no video: mean "
        "± standard deviation over explanations. Overall: the mean of the three. Unparsed: the judge's answers "
        "were no grades; failed: it gave none. Neither is in the means. Unexplained: decided without a reason."
    )
    return Table("Explanations by a judge's rubric", note, columns, tuple(rows))


def _spread(value: Spread) -> str:
    if value["mean"] is None:
        return UNKNOWN
    return f"{value['mean']:.2f}" + ("" if value["sd"] is None else f" ± {value['sd']:.2f}")


def _costs(results: Results) -> Table:
    rows = []
    for name, judged in results.systems.items():
        c, s = judged.costs, judged.costs.seconds
        times = (s.mean, s.median, s.p95) if s else (None, None, None)
        peak = judged.memory or PeakMemory()
        gigabytes = (n and n / 1e9 for n in (peak.host_bytes, peak.gpu_bytes))
        figures = (*times, c.gflops, c.prompt_tokens, c.generated_tokens, *gigabytes)
        rows.append((name, *map(number, figures)))
    columns = (
        "System",
        "s, mean",
        "s, median",
        "s, 95 %",
        "GFLOPs",
        "Prompt tokens",
        "Generated tokens",
        "Peak memory, GB",
        "Peak GPU memory, GB",
    )
    note = (
        "Seconds on the machine that the answers were made on, decoding included. Mean GFLOPs are of all models, "
        "tokens of vision-language models: a bundle's captioner has none. Failed answers are not in. Peak memory: "
        "of the process that ran the whole system, libraries included; on a GPU, of tensors."
    )
    return Table("Cost per video", note, columns, tuple(rows))


def _stages(results: Results) -> Table:
    stages = list(dict.fromkeys(s for j in results.systems.values() for s in j.costs.stages))
    rows = [
        (name, *(_stage(judged.costs, stage) for stage in stages))
        for name, judged in results.systems.items()
    ]
    note = "Mean / median / 95 % of the videos that entered the stage; in brackets how many did."
    columns = ("System", *(stage.capitalize() for stage in stages))
    return Table("Seconds by stage", note, columns, tuple(rows))


def _stage(c: Costs, stage: str) -> str:
    t = c.stages.get(stage)
    if t is None:
        return UNKNOWN
    return f"{number(t.mean)} / {number(t.median)} / {number(t.p95)} ({t.videos})"


def _groups(results: Results, kind: str, title: str) -> Table:
    names: Iterable[str] = getattr(next(iter(results.systems.values())).metrics, kind)
    rows = []
    for group in names:
        found = [getattr(judged.metrics, kind)[group] for judged in results.systems.values()]
        cells = [f"{percent(g.accuracy)} / {percent(g.recall)}" for g in found]
        rows.append((group, str(found[0].videos), str(found[0].violating), *cells))
    note = "Accuracy % / recall %: share answered rightly, and share of the violating whose class is flagged."
    return Table(title, note, ("", "Videos", "Violating", *results.systems), tuple(rows))


def _p(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"
