"""The SafeWatch report in Markdown. Knows figures and tables; measures nothing."""

from __future__ import annotations

from typing import Any

from recipes.machine import in_words


def written(report: dict[str, Any]) -> str:
    """The page."""
    lines = ["# SafeWatch's modules", "", report["about"], ""]
    lines += [f"Machine: {in_words(report['machine'])}.", ""]
    lines += _order(report) + _pruning(report["pruning"])
    lines += _zero_shot(report["screened"], "S1, the label answers", chance=True)
    lines += _zero_shot(report["written"], "S2, written without captions")
    lines += _explained(report["written"]) + _bundle(report["bundle"])
    if "shape" in report:
        lines += _shape(report["shape"])
    return "\n".join(lines) + "\n"


def _order(report: dict[str, Any]) -> list[str]:
    names = {
        "parallel": "each category alone",
        "laid": "the same, blocks laid in the policy's order",
        "sequential": "one text",
    }
    first = report["order"]["sequential"]
    lines = [
        "## Order of the categories",
        "",
        f"Log-odds of every category on {first['clips']} clips under {first['shuffles']} shuffles of the default policy.",
        "",
        "| policy | largest difference | mean deviation | labels changed | clips whose label changes |",
        "|---|---|---|---|---|",
    ]
    for name, title in names.items():
        one = report["order"][name]
        lines.append(
            f"| {title} | {_mean(one['largest_difference'], '{:.2g}')} | {_mean(one['mean_deviation'], '{:.2g}')} | "
            f"{_mean(one['labels_changed'], '{:.1%}')} | {_mean(one['clips_whose_label_changes'], '{:.1%}')} |"
        )
    lines += [
        "",
        "Log-odds by the category's place in one text, first to last, against its mean:",
        "",
    ]
    lines += [", ".join(_mean(place, "{:+.2f}") for place in first["by_place"]), ""]
    return lines


def _pruning(found: dict[str, Any]) -> list[str]:
    lines = [
        "## Shares of the video's tokens",
        "",
        "S1. Average accuracy of the seven classes under the default policy; balanced accuracy and area under the ROC "
        "curve of booleans under drawn policies; the video is read whole in each case, so S1's own operations hardly "
        "fall: what falls is the cache that S2 goes on with.",
        "",
        "| kept | average accuracy | drawn: balanced | drawn: AUC | tokens a video | GFLOPs |",
        "|---|---|---|---|---|---|",
    ]
    for keep, one in found.items():
        lines.append(
            f"| {float(keep):.0%} | {_mean(one['accuracy']['average'], '{:.1%}')} | "
            f"{_mean(one['drawn']['balanced'], '{:.1%}')} | {_mean(one['drawn']['auroc'], '{:.3f}')} | "
            f"{_mean(one['tokens'], '{:.0f}')} | {_mean(one['gflops'], '{:.3f}')} |"
        )
    return [*lines, ""]


def _zero_shot(found: dict[str, Any], title: str, *, chance: bool = False) -> list[str]:
    policies = list(next(iter(found.values()))["policies"])
    lines = [
        f"## Policies that were never seen: {title}",
        "",
        "| after | unseen: balanced | unseen: AUC | seen: balanced | seen: AUC | "
        + " | ".join(policies)
        + " |",
        "|---|---|---|---|---|" + "---|" * len(policies),
    ]
    for name, one in found.items():
        cells = [
            _mean(one[kind]["all"][key], form)
            for kind in ("unseen", "seen")
            for key, form in (("balanced", "{:.1%}"), ("auroc", "{:.3f}"))
        ]
        cells += [_mean(one["policies"][policy]["average"], "{:.1%}") for policy in policies]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if chance:
        seventh = " | ".join([f"{1 / 7:.1%}"] * len(policies))
        lines.append(f"| *chance* | 50.0% | 0.500 | 50.0% | 0.500 | {seventh} |")
    lines += [
        "",
        "Clips that a policy judges otherwise than the standard one, answered rightly:",
        "",
    ]
    lines += ["| after | " + " | ".join(policies) + " |", "|---|" + "---|" * len(policies)]
    for name, one in found.items():
        cells = [
            _mean(one["policies"][policy]["right_where_they_differ"], "{:.1%}")
            for policy in policies
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _explained(found: dict[str, Any]) -> list[str]:
    lines = [
        "## Explanations",
        "",
        "Of S2 under policies with a category of its own for one kind of clip, word for word as the truth has it:",
        "",
        "| after | right | words |",
        "|---|---|---|",
    ]
    for name, one in found.items():
        if "explanations" in one:
            told = one["explanations"]
            lines.append(
                f"| {name} | {_mean(told['right'], '{:.1%}')} | {_mean(told['words'], '{:.1f}')} |"
            )
    return [*lines, ""]


def _bundle(found: dict[str, Any]) -> list[str]:
    lines = [
        "## The bundle on decoded videos",
        "",
        "| kept | stage | average accuracy | in domain | GFLOPs |",
        "|---|---|---|---|---|",
    ]
    for keep, stages in found.items():
        for stage, one in stages.items():
            lines.append(
                f"| {float(keep):.0%} | {stage} | {_mean(one['average'], '{:.1%}')} | "
                f"{_mean(one['of_domain'], '{:.1%}')} | {_mean(one['gflops'], '{:.2f}')} |"
            )
    return [*lines, ""]


def _shape(found: dict[str, Any]) -> list[str]:
    lines = [
        f"## At the shape of {found['model']}",
        "",
        f"Random weights, {found['dtype']}, {found['frames']} frames of {found['side']} px, "
        f"{found['length']} tokens written. {in_words(found['machine'])}.",
        "",
        "| | whole | a tenth kept |",
        "|---|---|---|",
    ]
    for title, key, form in (
        ("S1, seconds", "s1_seconds", "{:.2f}"),
        ("S1, GFLOPs", "s1_gflops", "{:.0f}"),
        ("S2 of one video, seconds", "s2_seconds", "{:.2f}"),
        ("S2 of several, seconds a video", "s2_together_seconds", "{:.2f}"),
        ("S2, GFLOPs", "s2_gflops", "{:.0f}"),
        ("cache that S2 goes on with, MB", "cache_mb", "{:.0f}"),
    ):
        cells = [form.format(found[which][key]) for which in ("whole", "pruned")]
        lines.append(f"| {title} | {cells[0]} | {cells[1]} |")
    added = found["categories"]
    return [
        *lines,
        "",
        f"S2's latency falls by {found['s2_latency_saving']:.1%} for one video, "
        f"{found['s2_together_saving']:.1%} for {found['together']} at a time.",
        "",
        f"{added['count']} categories: reading one block takes {added['block_seconds']:.3f} s; a policy with one "
        f"more is ready after {added['add_seconds']:.3f} s, {found['add_category_over_block']:.2f} times that.",
        "",
    ]


def _mean(found: Any, form: str) -> str:
    if found is None:
        return "-"
    if not isinstance(found, dict):
        return form.format(found)
    if found["mean"] is None:
        return "-"
    text = form.format(found["mean"])
    return text if found["sd"] is None else f"{text} ± {form.format(found['sd']).lstrip('+')}"
