"""What a person gets from an evaluation: `metrics.json`, `report.md`, and one page, `report.html`.

Knows how figures, pictures and errors are put on paper. Knows nothing of how figures come about, and asks no
model; videos are decoded again for the page, only those of the errors that it shows.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from safelens.evaluate.cases import NON_ANSWERS, Case
from safelens.evaluate.errors import KINDS, Errors, errors, top_scores
from safelens.evaluate.results import Judged, Results
from safelens.evaluate.tables import all_tables
from safelens.policy import SAFE
from safelens.report import printable

if TYPE_CHECKING:
    from markupsafe import Markup

    from safelens.video import Clip

MOST_ERRORS = 12
"""Shown of each kind and system."""

MOST_PICTURE_BYTES = 9_000_000
"""All contact sheets of a page together; every system has an equal share. As base64 that is 12 MB."""

MOST_TEXT = 1500
"""Characters shown of a text that a model wrote."""

FILES = ("metrics.json", "report.md", "report.html")


def write_report(
    results: Results, out: Path, *, on_done: Callable[[], None] = lambda: None
) -> dict[str, Path]:
    """Write all three files, each in one step.

    Args:
        results: What is told.
        out: Their folder.
        on_done: Called for every error whose video was looked at.

    Returns:
        The files by name.

    Raises:
        OSError: a file cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    figures = json.dumps(results.to_dict(), ensure_ascii=False, allow_nan=False, indent=1)
    texts = (figures + "\n", markdown(results), page(results, on_done=on_done))
    files = {name: out / name for name in FILES}
    for file, text in zip(files.values(), texts, strict=True):
        part = file.with_name(f".{file.name}.part")
        part.write_text(text, "utf-8", errors="backslashreplace")
        os.replace(part, file)
    return files


def errors_shown(results: Results) -> list[tuple[Judged, list[Errors]]]:
    """Of each system's last word, the errors that the page shows."""
    final = [judged for judged in results.systems.values() if judged.final]
    return [(judged, errors(judged.cases, most=MOST_ERRORS)) for judged in final]


def markdown(results: Results) -> str:
    """The tables as Markdown, with what bundles are limited to above them."""
    lines = [f"# Evaluation on {_md(results.data)}", ""]
    for text, names in results.limits.items():
        lines += [f"> **Limits of {_md(', '.join(names))}.** {_md(text)}", ""]
    for table in all_tables(results):
        lines += [f"## {_md(table.title)}", ""]
        lines += [_md(table.note), ""] if table.note else []
        lines.append("| " + " | ".join(map(_md, table.columns)) + " |")
        lines.append("|---|" + "--:|" * (len(table.columns) - 1))
        lines += ["| " + " | ".join(map(_md, row)) + " |" for row in table.rows]
        lines.append("")
    return "\n".join(lines)


def page(results: Results, *, on_done: Callable[[], None] = lambda: None) -> str:
    """The page, which needs nothing but itself.

    Args:
        results: What is told.
        on_done: Called for every error whose video was looked at.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from safelens.evaluate.plots import sweep_plot, tradeoff_plot
    from safelens.video import VideoReader

    environment = Environment(
        loader=PackageLoader("safelens"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"printable": printable, "breakable": _breakable}
    sweeps = {
        name: [draw(name, swept, results.tau(name)) for draw in (sweep_plot, tradeoff_plot)]
        for name, swept in results.sweeps.items()
    }
    chosen = errors_shown(results)
    with VideoReader() as reader:
        sheets = _Sheets(reader.read, MOST_PICTURE_BYTES // len(chosen))
        galleries = [(judged, _gallery(found, sheets, on_done)) for judged, found in chosen]
    return environment.get_template("evaluation.html.j2").render(
        results=results,
        tables=all_tables(results),
        sweeps=sweeps,
        systems=[SystemPlots(judged) for judged in results.systems.values()],
        galleries=galleries,
        kinds=KINDS,
        safe=SAFE,
    )


@dataclass(frozen=True)
class SystemPlots:
    """What the template asks about one system's pictures."""

    judged: Judged

    @property
    def confusion(self) -> list[tuple[str, list[tuple[str, int, float, bool]]]]:
        """Rows of the confusion matrix: (column, videos, share of the row, whether right)."""
        c = self.judged.metrics.single_label.confusion
        rows = []
        for i, (name, counts) in enumerate(zip(c.rows, c.counts, strict=True)):
            total = sum(counts) or 1
            cells = zip(c.columns, counts, strict=True)
            rows.append((name, [(col, n, n / total, i == j) for j, (col, n) in enumerate(cells)]))
        return rows

    @property
    def non_answers(self) -> int:
        """How many of the matrix's last columns are no answers."""
        return len(NON_ANSWERS)

    @property
    def reliability(self) -> str | None:
        """The reliability diagram, if every decided answer has a confidence."""
        from safelens.evaluate.plots import reliability_plot

        bins = self.judged.reliability
        return None if bins is None else reliability_plot(self.judged.name, bins)

    @property
    def precision_recall(self) -> str | None:
        """Precision over recall, if there are scores."""
        from safelens.evaluate.plots import precision_recall_plot

        return precision_recall_plot(self.judged.name, self.judged.cases)


@dataclass(frozen=True)
class ShownError:
    """What the template asks about one error.

    Attributes:
        case: Record and answer.
        sheet: The contact sheet's `data:` address, or None.
        no_sheet: Why there is none.
    """

    case: Case
    sheet: str | None
    no_sheet: str

    @property
    def decided_by(self) -> str:
        """Of a bundle's cascade, which stage's answer this is; else ""."""
        seconds = {} if self.case.answer is None else self.case.answer.seconds
        if "screen" not in seconds:
            return ""
        return "S2" if "deliberate" in seconds else "S1"

    @property
    def texts(self) -> list[tuple[str, str]]:
        """What the system wrote, each piece by its name."""
        a = self.case.answer
        if a is None:
            return []
        pieces = [("It saw", a.description), ("Its reasons", a.explanation)]
        if not a.description and not a.explanation:
            pieces.append(("It wrote", a.text))
        pieces.append(("Error", a.error))
        return [(name, _short(text)) for name, text in pieces if text]

    @property
    def truths(self) -> list[tuple[str, str]]:
        """What the record says of the video beside its labels."""
        r = self.case.record
        told = [("Scenario", r.scenario), ("Difficulty", r.difficulty), ("Shown", r.description)]
        return [(name, _short(text)) for name, text in told if text]

    @property
    def scores(self) -> str:
        """The highest scores."""
        return ", ".join(f"{name} {score:.2f}" for name, score in top_scores(self.case))


@dataclass
class _Sheets:
    """Contact sheets within a budget of bytes."""

    read: Callable[[str], Clip]
    budget: int
    left: int = field(init=False, default=0)

    def begin(self) -> None:
        """A system of its own share."""
        self.left = self.budget

    def of(self, case: Case) -> tuple[str | None, str]:
        """A `data:` address, or None and why; whatever a video does, the report goes on."""
        from safelens.contact import contact_sheet, data_url

        if self.left <= 0:
            return None, "No picture: those of worse errors fill the page."
        try:
            evidence = case.answer.evidence if case.answer else ()
            jpeg = contact_sheet(self.read(case.record.video), evidence, quality=60)
        except Exception as error:
            return None, f"No picture: the video cannot be shown ({type(error).__name__})."
        self.left -= len(jpeg)
        return data_url(jpeg), ""


def _gallery(
    chosen: list[Errors], sheets: _Sheets, on_done: Callable[[], None]
) -> list[tuple[Errors, list[ShownError]]]:
    sheets.begin()
    found = []
    for group in chosen:
        shown = []
        for case in group.worst:
            shown.append(ShownError(case, *sheets.of(case)))
            on_done()
        found.append((group, shown))
    return found


def _short(text: str) -> str:
    lines = "\n".join(printable(line) for line in text[:MOST_TEXT].splitlines())
    return lines + ("…" if len(text) > MOST_TEXT else "")


def _breakable(text: str) -> Markup:
    """Text from outside whose lines may also break behind "/" and "_"."""
    from markupsafe import Markup, escape

    parts = re.split(r"(?<=[/_])", printable(text))
    return Markup("<wbr>").join(escape(part) for part in parts)


def _md(text: str) -> str:
    """Text from outside as Markdown shows it, on one line, without markup or HTML."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", printable(text)).replace("&", "&amp;")
