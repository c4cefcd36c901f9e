"""A video file to the frames that the sampling rule asks for.

Knows the plan (which times, when to plan again because a file is shorter or longer than it says) and
what counts as truncated. Keyframes in place of what was asked for are in `_keyframes`, containers in
`_container`, pictures in `_picture`. Runs in the decoding process only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from safelens._container import Source
from safelens._key_source import KeySource
from safelens._keyframes import stand_ins
from safelens._opening import DecodeError
from safelens._picture import Converter
from safelens._webp import decode_webp, is_webp
from safelens.video import ClipOptions, sample_times

__all__ = ["DecodeError", "Decoded", "decode"]

_PLANS = 3
_EPS = 1e-4
# A keyframe this near to the wanted time, as a part of the spacing, stands for it.
_SLACK = 0.1
_FURTHEST_BACK_S = 128.0


@dataclass
class Decoded:
    """The frames of one file and what was learnt about it; see `video.Clip` for the fields."""

    frames: np.ndarray
    timestamps: list[float]
    duration_s: float | None
    source_size: tuple[int, int]
    truncated: bool
    notes: list[str]


@dataclass(frozen=True)
class _About:
    """What a file says of itself."""

    cover: bool
    """It has a cover picture and no other video."""
    declared: float | None
    """Its duration in seconds."""
    own: bool
    """Whether that is the video stream's, and not the file's."""
    overruns: bool
    """Its index points beyond its end."""
    frame_s: float
    """Seconds that a frame is shown."""
    shape: Fraction | None
    """Width of a pixel over its height."""
    notes: tuple[str, ...]
    """What a reader should know of its streams."""

    @classmethod
    def of(cls, source: Source) -> _About:
        declared, own = source.declared() if source.start_known else (None, False)
        if declared is not None and not 0 < declared < 30 * 86400:
            declared = None
        notes = ["cover art only, audio file"] if source.cover else []
        if source.others:
            notes.append(f"{source.others} more video stream(s) in the file were not looked at")
        shape = source.stream.sample_aspect_ratio
        overruns = source.index_overruns()
        return cls(source.cover, declared, own, overruns, source.frame_s, shape, tuple(notes))


@dataclass
class _Pass:
    """One walk through a file."""

    picks: list[tuple[float, np.ndarray]] = field(default_factory=list)
    last_s: float = 0.0
    """Time of the last frame that decoded."""
    length_s: float = 0.0
    """How long that frame is shown, 0 where unknown."""
    decoded: int = 0
    lost: bool = False
    """A jump found no more frames: the end is somewhere before it."""
    overrun: bool = False
    """Frames go on long after the planned end."""
    errors: int = 0
    untimed: bool = False


def decode(path: str, options: ClipOptions) -> Decoded:
    """Return the frames of one file.

    Args:
        path: absolute path of an existing, non-empty file.
        options: what to take and what to refuse.

    Raises:
        DecodeError: no frame can be had, with its code.
        MemoryError: the bound of the process was reached.
    """
    if is_webp(path):
        frames = decode_webp(path, options)
        return _finish(frames.picks, frames.source_size, options, frames.duration_s, frames.notes,
                       truncated=frames.truncated)  # fmt: skip
    kind = KeySource if options.keyframe_shift_s > 0 else Source
    with kind(path, options.max_pixels) as source:
        about = _About.of(source)
        stood_in = _by_keyframes(source, about, options) if isinstance(source, KeySource) else None
    if stood_in is not None:
        return stood_in
    cover, declared, frame_s = about.cover, about.declared, about.frame_s
    span = 0.0 if cover else _first_span(path, options, declared, frame_s)
    for attempt in range(_PLANS):
        convert = Converter(options.max_side, about.shape)
        with Source(path, options.max_pixels) as source:
            got = _walk(source, convert, sample_times(span, options), still=cover)
        if not got.picks:
            raise DecodeError(
                "no_frames",
                f"has a video stream of which no frame decodes ({got.errors} damaged packets); it is "
                "damaged or cut off: fetch or export it again",
            )
        end = _end(path, options, got)
        spacing = span / max(1, len(sample_times(span, options)) - 1)
        if cover or attempt == _PLANS - 1 or abs(end - span) <= max(0.25 * spacing, 1.5 * frame_s):
            break
        span = end
    return _conclude(path, options, about, got, convert, span)


def _by_keyframes(source: KeySource, about: _About, options: ClipOptions) -> Decoded | None:
    """Return keyframes in place of the frames wanted, of a whole file that has them near enough."""
    convert = Converter(options.max_side, about.shape)
    keys = None if about.cover else stand_ins(source, convert, options, about.declared)
    if keys is None:
        return None
    got = _Pass(picks=keys.picks, last_s=keys.last_s, decoded=len(keys.picks))
    found = _conclude(source.path, options, about, got, convert, keys.span)
    found.notes.insert(0, keys.note)
    return None if found.truncated else found


def _conclude(
    path: str, options: ClipOptions, about: _About, got: _Pass, convert: Converter, span: float
) -> Decoded:
    """Say how long the file is and what is missing of it; `span` is the last time that was wanted."""
    notes, declared, frame_s = list(about.notes), about.declared, about.frame_s
    spacing = span / max(1, len(sample_times(span, options)) - 1)
    ends = got.last_s + (got.length_s or frame_s)
    truncated = False
    if about.cover:
        declared = None
    elif declared is None:
        declared = ends if got.decoded > 1 else None
    else:
        missing = declared - ends
        tolerance = max(0.5, 0.02 * declared, 2 * frame_s)
        truncated = about.overruns or missing > tolerance
        if missing > tolerance and not about.own and not about.overruns and got.errors == 0:
            # The sound alone may last as long as declared.
            with Source(path, options.max_pixels) as source:
                truncated = source.measure(everything=True).file_s < declared - tolerance
        if truncated:
            share = f"{100 * min(1.0, ends / declared):.0f} %"
            notes.append(f"truncated: {ends:.1f} s of {declared:.1f} s decoded ({share})")
            if missing <= tolerance:
                notes.append("the file ends before its own index does")
        if not truncated and (missing > tolerance or missing < -frame_s):
            declared = ends
    gap = max((b[0] - a[0] for a, b in zip(got.picks, got.picks[1:], strict=False)), default=0.0)
    if got.errors:
        notes.append(f"{got.errors} damaged packet(s) skipped")
        if not truncated and gap > max(2.5 * spacing, 1.0):
            truncated = True
            notes.append(f"truncated: a gap of {gap:.1f} s could not be decoded")
    if got.untimed and got.decoded > 1:
        notes.append(f"no timestamps in the file: counted at {1 / frame_s:g} frames a second")
    notes += sorted(convert.notes)
    assert convert.source_size is not None
    return _finish(got.picks, convert.source_size, options, declared, notes, truncated=truncated)


def _first_span(path: str, options: ClipOptions, declared: float | None, frame_s: float) -> float:
    """Return the time of the last frame as the file declares it, or measured where it does not."""
    if declared is not None:
        return max(0.0, declared - frame_s)
    with Source(path, options.max_pixels) as source:
        return max(0.0, source.measure().video_s)


def _end(path: str, options: ClipOptions, got: _Pass) -> float:
    """Return the time of the last frame that can be had, as far as a walk could tell."""
    if not (got.lost or got.overrun):
        return got.last_s
    with Source(path, options.max_pixels) as source:
        for _ in source.frames():  # sets the origin
            break
        return max(got.last_s, source.measure(got.last_s).video_s)


def _walk(source: Source, convert: Converter, times: np.ndarray, *, still: bool) -> _Pass:
    """Decode forward, jump where it saves work, and keep the frame nearest to each time."""
    got = _Pass()
    spacing = float(times[-1]) / max(1, len(times) - 1)
    tail = max(1.0, 0.02 * float(times[-1]))
    stream = source.frames()
    position = -np.inf
    before: tuple[float, object] | None = None
    jumped: bool | None = None
    step = 0.0
    i = asked = 0

    def pick(at: float, frame: object, *, replace: bool = False) -> None:
        if replace:
            got.picks.pop()
        if not got.picks or at > got.picks[-1][0]:
            got.picks.append((at, convert(frame)))  # type: ignore[arg-type]

    latest: tuple[float, object] | None = None
    while True:
        item = next(stream, None)
        if item is None:
            if jumped is not None and i < len(times):
                behind = step > times[i] - position
                step = 4 * step if step else 2.0
                if (
                    not behind
                    and step <= _FURTHEST_BACK_S
                    and source.back_off(float(times[i]), position, step)
                ):
                    stream, jumped = source.frames(), False
                    continue
            break
        step = 0.0
        at, frame = item
        if at <= position:
            if jumped is False:
                source.landed_behind()
            jumped = None
            continue
        got.decoded += 1
        position, latest = at, (at, frame)
        if jumped and abs(at - times[i]) > 1.2 * _SLACK * spacing:
            jumped = None  # the index was not exact: decode on to the time wanted
        if still:
            pick(0.0, frame)
            break
        if i >= len(times):
            if at > float(times[-1]) + tail:
                got.overrun = True
                break
            continue
        while i < len(times) and (at >= times[i] - _EPS or jumped):
            nearer = before is not None and abs(before[0] - times[i]) < abs(at - times[i])
            pick(*(before if nearer and before is not None else (at, frame)))
            jumped = None
            i += 1
        jumped = None
        before = (at, frame)
        if asked < i < len(times):  # one jump for each time: an inexact index must not cost many
            asked = i
            slack = 0.0 if i == len(times) - 1 else _SLACK * spacing
            jumped = source.jump(float(times[i]), position, slack)
            if jumped is not None:
                stream, before = source.frames(), None
    got.lost = jumped is not None
    if latest is not None and not still:
        got.last_s = latest[0]
        got.length_s = _length(latest[1], source)
        if not got.overrun:
            # The last frame closes the clip, in place of one that only stood for the same time.
            replace = len(got.picks) > 1 and i >= len(times)
            if latest[0] > got.picks[-1][0]:
                pick(*latest, replace=replace)
    got.errors, got.untimed = source.errors, source.untimed
    return got


def _length(frame: object, source: Source) -> float:
    duration = getattr(frame, "duration", 0) or 0
    return float(duration * (getattr(frame, "time_base", None) or 0))


def _finish(
    picks: list[tuple[float, np.ndarray]],
    source_size: tuple[int, int],
    options: ClipOptions,
    duration_s: float | None,
    notes: list[str],
    *,
    truncated: bool,
) -> Decoded:
    """Repeat frames up to the least number and stack them."""
    if len(picks) < options.min_frames:
        what = "single frame" if len(picks) == 1 else f"only {len(picks)} frames"
        notes.append(f"{what}, repeated to {options.min_frames}")
        at = np.linspace(0, len(picks) - 1, options.min_frames).round().astype(int)
        picks = [picks[k] for k in at]
    return Decoded(
        frames=np.stack([picture for _, picture in picks]),
        timestamps=[float(at) for at, _ in picks],
        duration_s=duration_s,
        source_size=source_size,
        truncated=truncated,
        notes=notes,
    )
