"""How the console puts numbers, times and outcomes. Knows no page and no table."""

from __future__ import annotations

from datetime import UTC, datetime

STATES = {
    "fetching": "being fetched",
    "queued": "waiting",
    "running": "running",
    "cancelled": "cancelled",
}
STATUSES = {
    "ok": "ok",
    "partial": "partial",
    "out_of_domain": "out of domain",
    "video_error": "video error",
    "model_error": "model error",
}
STAGES = {"screen": "S1", "deliberate": "S2"}
STAGE_NAMES = {
    "decode": "Decode",
    "screen": "Screen (S1)",
    "evidence": "Evidence",
    "caption": "Caption",
    "deliberate": "Deliberate (S2)",
}
DECISIONS = {"confirm": "confirmed", "overturn": "overturned", "escalate": "escalated"}
ORDERS = {
    "priority": "Risk and uncertainty",
    "risk": "Risk",
    "uncertainty": "Uncertainty",
    "newest": "Newest",
}


def outcome(state: str, status: str | None, flagged: bool | None) -> str:
    """What became of a job: open, error, undecided, flagged or safe."""
    if state != "done":
        return "open"
    if status in ("video_error", "model_error"):
        return "error"
    return "undecided" if flagged is None else "flagged" if flagged else "safe"


def clock(seconds: float) -> str:
    """A place in a video: 1:05.2."""
    return f"{int(seconds // 60)}:{seconds % 60:04.1f}"


def when(at: datetime | float) -> str:
    """A time in UTC, to the minute."""
    return _time(at).strftime("%Y-%m-%d %H:%M")


def iso(at: datetime | float) -> str:
    """A time for machines."""
    return _time(at).isoformat(timespec="seconds")


def percent(share: float | None) -> str:
    """A share; a dash where there is nothing to divide."""
    return "–" if share is None else f"{100 * share:.1f} %"


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def plainly(value: object) -> str:
    """Plain data in a line."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {plainly(part)}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(plainly, value)) or "none"
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "none"}[value]
    return str(value)


def _time(at: datetime | float) -> datetime:
    return at if isinstance(at, datetime) else datetime.fromtimestamp(at, UTC)
