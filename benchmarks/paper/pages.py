"""The report in Markdown: our figures, and the paper's beside them, named as the paper's.

Knows tables. Computes nothing but their means and deviations' form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.curation import MAIN, SCREENING
from benchmarks.paper.measured import ALPHA, DELTA, DRAWN, MOST_COST, RESAMPLES
from benchmarks.paper.printed import COLUMNS, DATA, FILTERING, SECONDS, TEST, VALIDATION, Row
from recipes.machine import in_words

CLASSES = ("sexual", "abuse", "violence", "misinformation", "illegal", "extreme", "safe")
OURS = {
    "zero_shot": "before labels",
    "vlm_finetuned": "fine-tuned VLM",
    "s1": "S1",
    "s1_matched": "S1, with the fine-tuned VLM's share of false flags",
    "s1_equal": "S1, told that classes are equally common",
    "s2": "S2",
    "cascade": "cascade",
}
LIKE = {
    "zero_shot": "Qwen3-VL-2B",
    "vlm_finetuned": "Qwen3-VL-2B-ft",
    "s1": "SafeLens-S1",
    "s2": "SafeLens-S2",
    "cascade": "SafeLens",
}
"""Our systems and the paper's of the same kind."""
COUNTED = (*CLASSES, "total")
SETS = {
    "labelled": "labelled, a quarter of the labels confused",
    "kept": "of these kept by influence: training",
    "choice": "to choose tau and temperature",
    "test": "test",
}
PAPER = "paper"
"""What marks a row that was not measured here."""


def written(report: Mapping[str, Any]) -> str:
    """The whole page."""
    lines = [
        "# The paper's tables and figures in miniature",
        "",
        report["about"],
        "",
        f"Machine: {in_words(report['machine'])}. Command: `{report['command']}`.",
        "",
        "Rows marked *paper* are what the paper prints for its models on its videos, in per cent. They stand "
        "there for the shape of a result, not as rivals: SafeWorld's clips are drawn, and the models here have "
        "a few million parameters.",
        "",
        "## Table 2: videos of each class",
        "",
        *table(
            [
                *(
                    (title, "ours", tuple(f"{report['classes'][name][key]:,}" for key in COUNTED))
                    for name, title in SETS.items()
                ),
                *(printed(name, row) for name, row in DATA.items()),
            ],
            (*COLUMNS[:7], "All"),
        ),
        "",
        "## Tables 3 and D: accuracy of each class",
        "",
        *table(
            [
                *(ours(OURS[name], report["systems"][name]) for name in OURS),
                *(printed(f"{n}, SafeWatch-GenAI", TEST[n]) for n in LIKE.values()),
                *(printed(f"{n}, SafeWatch-Real", VALIDATION[n]) for n in LIKE.values()),
            ]
        ),
        "",
        *_cascade(report),
        "",
        "Avg ACC weighs every class alike, where most videos are safe. S1's probabilities are those of the mix that it "
        "was trained on; told that classes are equally common (their shares from the other videos), the same S1 answers "
        "for that mean, with more false flags among safe videos. In between stands S1 moved towards equal shares as far "
        "as it flags no more safe test videos than the fine-tuned VLM: there both are compared at one rate of false flags.",
        "",
        "## Table 8: trained on all labels, and on those that influence kept",
        "",
        f"Ours is S1, embedder and probe, of `reports/curation.md`: {MAIN[1]:.0%} of the labels confused, "
        f"{SCREENING['steps']} steps.",
        "",
        *table(
            [
                *(ours(name, report["trained_on"][name]) for name in ("unfiltered", "filtered")),
                *(printed(f"{name}, SafeWatch-Real", row) for name, row in FILTERING.items()),
            ]
        ),
        "",
        "## Figures 3 and 7: cost per video",
        "",
        "Videos are asked about one at a time. Seconds depend on what else ran on the machine meanwhile, operations do "
        "not.",
        "",
        *_costs(report),
        "",
        "## Figure 4: the cascade over tau",
        "",
        "![Accuracy and cost over tau](paper-tau.svg)",
        "",
        *_sweep(report["sweep"]),
        "",
        "## Calibration",
        "",
        *_calibration(report),
    ]
    return "\n".join(lines) + "\n"


def table(rows: Sequence[tuple[str, str, Row]], columns: Sequence[str] = COLUMNS) -> list[str]:
    """Lines of a table; a row is its name, whose it is, and the cells of the columns."""
    head = ["", "", *columns]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + [
        f"| {name} | {source} | " + " | ".join(row) + " |" for name, source, row in rows
    ]


def ours(name: str, found: Mapping[str, Any]) -> tuple[str, str, Row]:
    """A row that was measured here, from its classes' and means' values."""
    cells = [per_cent(found[key]) for key in (*CLASSES, "avg_acc", "macro_f1")]
    return name, "ours", tuple(cells)


def printed(name: str, row: Row) -> tuple[str, str, Row]:
    """A row that the paper prints."""
    return name, PAPER, row


def per_cent(found: Mapping[str, Any]) -> str:
    """Mean and deviation in per cent, as the paper writes them."""
    return form(found, 100, "{:.1f}")


def form(found: Mapping[str, Any], scale: float, text: str) -> str:
    """Mean and deviation of values over seeds."""
    mean, deviation = found["mean"], found["sd"]
    if mean is None:
        return "-"
    tail = "" if deviation is None else "±" + text.format(scale * deviation)
    return text.format(scale * mean) + tail


def _cascade(report: Mapping[str, Any]) -> list[str]:
    cost = report["cascade_cost_over_s2"]
    taus = ", ".join(f"{tau:.3g}" for tau in report["tau"])
    return [
        f"Tau of the seeds ({taus}): the most accurate on {report['chosen_on']} other videos among those that cost "
        f"at most {MOST_COST:.0%} of S2 on everything. The cascade sends {per_cent(report['escalated'])} % to S2 "
        f"and costs {per_cent(cost['gflops'])} % of S2's operations, {per_cent(cost['seconds'])} % of its seconds."
    ]


def _costs(report: Mapping[str, Any]) -> list[str]:
    lines = ["| | seconds | GFLOPs | seconds, paper (B200) |", "|---|---|---|---|"]
    for name, title in OURS.items():
        of = report["costs"][name]
        paper = SECONDS.get(LIKE.get(name, ""))
        cells = [form(of["seconds"], 1, "{:.3f}"), form(of["gflops"], 1, "{:.2f}")]
        lines.append(f"| {title} | {' | '.join(cells)} | {'-' if paper is None else paper} |")
    return lines


def _sweep(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| tau | Avg ACC | to S2 | seconds | GFLOPs |", "|---|---|---|---|---|"]
    for row in rows[::2]:
        cells = [f"{row['avg_acc']:.1%}", f"{row['escalated']:.1%}"]
        cells += [
            "-" if row[key] is None else text.format(row[key])
            for key, text in (("seconds", "{:.3f}"), ("gflops", "{:.2f}"))
        ]
        lines.append(f"| {row['tau']:.2f} | " + " | ".join(cells) + " |")
    return lines


def _calibration(report: Mapping[str, Any]) -> list[str]:
    lines = [
        f"Calibration error (ECE) of S1's confidence on {report['videos']['choice']} videos, the temperature of each "
        "half used on the other; faultless is what confidences without any error show. Risk: tau by Learn then Test on "
        f"{DRAWN} videos (alpha {ALPHA:.0%}, delta {DELTA:.0%}), error among S1's own answers on all others; how often it is at most alpha in {RESAMPLES} resamples.",
        "",
        "| seed | temperatures | ECE before | after | faultless | promise held | refused | mean risk | S1 alone |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for number, one in enumerate(report["calibration"]):
        cells = [", ".join(f"{t:.2f}" for t in one["temperature"])]
        cells += [f"{one[key]:.3f}" for key in ("ece_before", "ece", "ece_faultless")]
        cells += [
            "-" if one[key] is None else f"{one[key]:.1%}"
            for key in ("risk_holds", "refused", "risk", "decided_alone")
        ]
        lines.append(f"| {number} | " + " | ".join(cells) + " |")
    return lines
