"""The report: one HTML page about many verdicts that needs nothing but itself.

Knows how a verdict is put into words and pictures for a reader. Knows nothing of models or of how a
verdict came about. A page grows in a file beside it, one video at a time, so memory stays bounded.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import tempfile
import time
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from types import TracebackType

    from safelens.cascade import Moderation
    from safelens.verdict import Verdict
    from safelens.video import Clip

Outcome = Literal["flagged", "safe", "undecided", "error"]

OUTCOMES: dict[Outcome, str] = {
    "flagged": "Flagged",
    "undecided": "Not decided",
    "error": "Error",
    "safe": "Safe",
}
"""What can become of a video, in the order in which a reader wants to know."""

_STAGES = {
    "decode": "Decode",
    "screen": "Screen (S1)",
    "caption": "Caption",
    "deliberate": "Deliberate (S2)",
}
_ROUTES = {
    "screen": "S1 alone decided",
    "deliberate": "S2 deliberated",
    None: "nothing was decided",
}
_MISLEADING = "\u2028\u2029\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def outcome(verdict: Verdict) -> Outcome:
    """What became of a video. What was not decided is never "safe"."""
    if verdict.status in ("video_error", "model_error"):
        return "error"
    if verdict.flagged is None:
        return "undecided"
    return "flagged" if verdict.flagged else "safe"


def in_words(verdict: Verdict) -> str:
    """The verdict in one short sentence."""
    partial = " (only the part that decoded was judged)" if verdict.status == "partial" else ""
    if verdict.flagged:
        names = [c.name for c in verdict.categories if c.flagged and c.id == verdict.label]
        names += [c.name for c in verdict.categories if c.flagged and c.id != verdict.label]
        return f"Violates the policy: {', '.join(names)}{partial}"
    if verdict.flagged is False:
        return "Safe: no category of the policy is violated"
    return {
        "partial": "Not decided: the part that decoded shows no violation, the rest is unseen",
        "out_of_domain": "Not decided: the video is unlike anything this bundle knows",
        "video_error": "Not decided: the video could not be read",
        "model_error": "Not decided: the model failed",
    }[verdict.status]


def printable(text: str) -> str:
    """Text from outside with control and direction-changing characters made visible."""
    return "".join(
        char.encode("unicode_escape").decode("ascii")
        if char in _MISLEADING or unicodedata.category(char) in ("Cc", "Cs")
        else char
        for char in text
    )


@dataclass
class Tally:
    """Counts over verdicts, for the head of a report or the end of a run."""

    videos: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    routes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    knows: dict[str, None] = field(default_factory=dict)
    """What the bundles are limited to, in their own words; the keys, in order."""

    def add(self, verdict: Verdict) -> None:
        """Count one verdict."""
        self.videos += 1
        self.outcomes[outcome(verdict)] += 1
        self.statuses[verdict.status] += 1
        self.routes[_ROUTES[verdict.decided_by]] += 1
        self.seconds += sum(verdict.timing.values())
        if verdict.label is not None:
            names = {c.id: c.name for c in verdict.categories}
            self.labels[names.get(verdict.label, verdict.label.capitalize())] += 1
        if verdict.provenance.knows:
            self.knows[verdict.provenance.knows] = None


class ReportWriter:
    """Writes one self-contained page; use as a context manager, or call `close`.

    Each video's section goes to an unnamed file at once; `close` puts the page together, with the
    counts first, and only then does it appear under its name.

    Args:
        path: the page, `.html`; its folder exists.
        title: the page's heading.

    Raises:
        OSError: the folder cannot be written.

    Example:
        with ReportWriter("report.html") as report:
            for moderation in lens.moderate_many(paths):
                report.add(moderation)
    """

    def __init__(self, path: str | Path, title: str = "SafeLens report") -> None:
        from jinja2 import Environment, PackageLoader, StrictUndefined

        self.path = Path(path)
        self.title = title
        self.tally = Tally()
        self._began = time.perf_counter()
        self._sections = tempfile.TemporaryFile(dir=self.path.parent)  # noqa: SIM115
        environment = Environment(
            loader=PackageLoader("safelens"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters["printable"] = printable
        self._parts: Any = environment.get_template("report.html.j2").module

    def __enter__(self) -> ReportWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def add(self, moderation: Moderation) -> None:
        """Write one video's section.

        Raises:
            ValueError: the report is closed.
            OSError: the disk is full.
        """
        if self._sections.closed:
            raise ValueError(f"{self.path}: this report is closed; open a new one")
        self.tally.add(moderation.verdict)
        section = Section(moderation.verdict, moderation.clip, self.tally.videos)
        self._sections.write(_encode(self._parts.video(section)))

    def close(self) -> None:
        """Put the page together; it holds all videos that were added. Closing twice does nothing.

        Raises:
            OSError: the page cannot be written.
        """
        if self._sections.closed:
            return
        script = str(self._parts.script())
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        head = self._parts.head(
            title=self.title,
            tally=self.tally,
            outcomes=OUTCOMES,
            elapsed=time.perf_counter() - self._began,
            made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
            script_hash=f"sha256-{digest}",
        )
        part = self.path.with_name(f".{self.path.name}.part")
        try:
            with self._sections, part.open("wb") as page:
                page.write(_encode(head))
                self._sections.seek(0)
                shutil.copyfileobj(self._sections, page, 1 << 20)
                page.write(_encode(self._parts.foot(script)))
            os.replace(part, self.path)
        finally:
            part.unlink(missing_ok=True)


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class Section:
    """What the template asks about one video.

    Attributes:
        v: the verdict.
        clip: its frames, or None where there are none.
        number: of the section, from 1.
    """

    v: Verdict
    clip: Clip | None
    number: int

    @cached_property
    def outcome(self) -> Outcome:
        """See `outcome`."""
        return outcome(self.v)

    @property
    def badge(self) -> str:
        """The status, or what became of the video where the status is no more than "ok"."""
        status = self.v.status.replace("_", " ")
        if self.outcome in ("flagged", "safe"):
            return OUTCOMES[self.outcome].lower() + ("" if self.v.status == "ok" else f", {status}")
        return status

    @property
    def words(self) -> str:
        """See `in_words`."""
        return in_words(self.v)

    @property
    def seconds(self) -> float:
        """Of all stages together."""
        return sum(self.v.timing.values())

    @property
    def name(self) -> str:
        """The file's name without its folders."""
        return self.v.video.rsplit("/", 1)[-1] or self.v.video

    @property
    def covered(self) -> bool:
        """Frames are blurred at first, unless the video was found safe."""
        return self.outcome != "safe"

    @cached_property
    def sheet(self) -> str | None:
        """The contact sheet's `data:` address."""
        from safelens.contact import contact_sheet, data_url

        if self.clip is None or len(self.clip.frames) == 0:
            return None
        return data_url(contact_sheet(self.clip, self.v.evidence, self.v.regions))

    @property
    def sheet_in_words(self) -> str:
        """What the contact sheet shows, for who cannot see it."""
        from safelens.contact import evidence_frames, shown_frames

        assert self.clip is not None
        times = self.clip.timestamps[shown_frames(len(self.clip.frames))]
        marked = evidence_frames(times, self.v.evidence)
        text = f"{len(times)} frames at " + ", ".join(f"{t:.1f}" for t in times) + " seconds"
        if marked.any():
            text += "; evidence at " + ", ".join(f"{t:.1f}" for t in times[marked]) + " seconds"
        if self.v.regions:
            seen = (
                f"{r.category} at {r.start_s:.1f} to {r.end_s:.1f} seconds" for r in self.v.regions
            )
            text += "; boxes where the policy looked most: " + ", ".join(seen)
        return text

    @property
    def stages(self) -> list[tuple[str, float | None]]:
        """Every stage of the way with its seconds, or None where the video did not go."""
        known = [(name, self.v.timing.get(key)) for key, name in _STAGES.items()]
        others = [(key, s) for key, s in self.v.timing.items() if key not in _STAGES]
        return known + [(key.replace("_", " ").capitalize(), s) for key, s in others]

    @property
    def route(self) -> str:
        """Why the video went the way it went."""
        from safelens.verdict import LABELS_READ

        labels = self.v.provenance.screen_reader == "labels" and self.v.decided_by is not None
        return self._way + (f" {LABELS_READ}" if labels else "")

    @property
    def _way(self) -> str:
        tau, taus = self.v.provenance.tau, self.v.provenance.taus or {}
        if self.v.decided_by == "screen":
            tau = taus.get(self.v.label or "", tau)
            if tau is None or self.v.confidence is None:
                return "S1's answer stands."
            return f"S1's answer stands: its confidence {self.v.confidence:.3f} is not below tau, {tau:g}."
        if self.v.decided_by == "deliberate":
            # The verdict does not keep what S1 answered, hence not which class's tau it missed.
            bound = "its class's tau" if taus else f"tau, {tau:g}"
            at = "" if tau is None else f" (below {bound}, or the clip looked unfamiliar)"
            return f"S1 was not sure enough{at}, so S2 read the captions and decided."
        return {
            "video_error": "It ended before any model saw the video.",
            "out_of_domain": "The domain guard refused S1's answer.",
        }.get(self.v.status, "It ended before a decision.")

    @cached_property
    def length_s(self) -> float:
        """Seconds that the time line spans; 0 when no moment of the video is known."""
        known = [e.end_s for e in self.v.evidence] + [c.time_s for c in self.v.captions]
        if self.clip is not None:
            known += [float(self.clip.timestamps[-1]), self.clip.duration_s or 0.0]
        return max(known, default=0.0)

    @property
    def lines(self) -> list[tuple[str, list[tuple[float, float, str]]]]:
        """The time line: a category's name and its stretches as (left %, width %, words)."""
        names = {c.id: c.name for c in self.v.categories}
        found: dict[str, list[tuple[float, float, str]]] = {}
        whole = self.length_s or 1.0
        for e in self.v.evidence:
            words = f"{e.start_s:.1f} to {e.end_s:.1f} s, score {e.score:.2f}"
            place = 100 * e.start_s / whole, 100 * (e.end_s - e.start_s) / whole, words
            found.setdefault(names.get(e.category, e.category), []).append(place)
        return list(found.items())

    @property
    def source(self) -> str:
        """The file in words: size, length and what was odd about it."""
        if self.clip is None:
            return ""
        width, height = self.clip.source_size
        length = "" if self.clip.duration_s is None else f", {self.clip.duration_s:.1f} s"
        return "; ".join((f"{width}×{height}{length}", *self.clip.notes))
