"""Keyframes in place of the frames at the times wanted: a few pictures decoded instead of a whole video.

Knows when keyframes are near enough to every time, and what makes them not to be trusted: then there is no
answer, and `_decode` goes the exact way. Knows nothing of damage beyond that. Runs in the decoding process
only.

Where the container has an index, it says where keyframes are, and only they and the end are read. Where it
has none (MPEG-TS, or a Matroska that was cut or streamed), every packet is read once without decoding: about
as fast as the file's hash, which is taken at the same time, and given up at the first time that has no
keyframe near it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import av
import numpy as np

from safelens._key_source import KeySource
from safelens._picture import Converter
from safelens.video import ClipOptions, sample_times

_Timed = tuple[float, av.Packet]
"""A keyframe's packet and when it is shown, in seconds."""

_MOST_HELD = 256 << 20
"""Bytes of packets that are kept until it is known that all times have a keyframe."""
_LAG_S = 1.0
"""By how much an index may be wrong about when a keyframe is shown."""


@dataclass
class StandIns:
    """The keyframes that stand for the times wanted."""

    picks: list[tuple[float, np.ndarray]]
    """Their true times and pictures."""
    span: float
    """The last time wanted, in seconds."""
    last_s: float
    """When the last frame of the file is shown, decoded or not."""
    note: str
    """What was done, in words."""


def stand_ins(
    source: KeySource, convert: Converter, options: ClipOptions, declared: float | None
) -> StandIns | None:
    """Return keyframes for all times that the sampling rule wants, or None where they will not do.

    They do when every time has one within `options.keyframe_shift_s`, each decodes by itself to a whole
    picture, there are at least `options.min_frames` of them, and the file ends where it says it does.

    Args:
        source: a file, not yet read.
        convert: makes the pictures.
        options: the sampling rule and the bound.
        declared: the duration that the file declares, in seconds.

    Raises:
        MemoryError: the bound of the process was reached.
    """
    if not source.usable():
        return None
    span = source.measure().video_s if declared is None else max(0.0, declared - source.frame_s)
    times = sample_times(span, options)
    chosen = _Chosen(options.keyframe_shift_s)
    if source.index_reaches(float(times[-1]) - chosen.shift):
        last_s = _from_index(source, times, chosen)
    elif declared is not None:
        last_s = _read_through(source, times, chosen)
    else:
        return None  # it has been read to its end, and without an index there is no way back
    tolerance = max(0.25 * span / max(1, len(times) - 1), 1.5 * source.frame_s)
    if last_s is None or source.errors or abs(last_s - span) > tolerance:
        return None
    if len(chosen.packets) < options.min_frames:
        return None
    picks: list[tuple[float, np.ndarray]] = []
    for packet in chosen.packets:
        found = source.alone(packet)
        if found is None or (picks and found[0] <= picks[-1][0]):
            return None
        picks.append((found[0], convert(found[1])))
    away = np.abs(np.array([at for at, _ in picks])[:, None] - times).min(axis=0).max()
    if away > chosen.shift:
        return None
    note = f"{len(picks)} keyframes stand in for {len(times)} times, at most {away:.2f} s away"
    return StandIns(picks, span, last_s, note)


@dataclass
class _Chosen:
    """Packets of keyframes, each near enough to a time or several; they rise with the times."""

    shift: float
    packets: list[av.Packet] = field(default_factory=list)
    held: int = 0
    """Bytes of the packets."""

    def stand(self, wanted: float, keys: Iterable[_Timed | None]) -> bool:
        """Choose the keyframe nearest to a time; False where none is near, or too much would be held."""
        near = [key for key in keys if key is not None and abs(key[0] - wanted) <= self.shift]
        if not near:
            return False
        packet = min(near, key=lambda key: abs(key[0] - wanted))[1]
        if not self.packets or packet is not self.packets[-1]:
            self.packets.append(packet)
            self.held += packet.size
        return self.held <= _MOST_HELD


def _from_index(source: KeySource, times: np.ndarray, chosen: _Chosen) -> float | None:
    """Choose by the index, and read only the keyframes around each time and the end of the file.

    Returns:
        When the last frame is shown, or None at the first time without a keyframe near it.
    """
    known: dict[float, _Timed | None] = {}
    last_s = 0.0
    for wanted in times.tolist():
        near = [k for k in source.around(wanted) if abs(k - wanted) <= chosen.shift + _LAG_S]
        known = {key: known[key] if key in known else source.read(key) for key in near}
        if not chosen.stand(wanted, known.values()):
            return None
        last_s = max([last_s, *(key[0] for key in known.values() if key is not None)])
    # What the index promises must be there.
    return max((at for at, _ in source.packets()), default=last_s)


def _read_through(source: KeySource, times: np.ndarray, chosen: _Chosen) -> float | None:
    """Choose by reading every packet once.

    Returns:
        When the last frame is shown, or None at the first time without a keyframe near it.
    """
    before: _Timed | None = None
    last_s = 0.0
    i = 0
    for at, packet in source.packets():
        last_s = max(last_s, at)
        key = (at, packet) if packet.is_keyframe else None
        # A keyframe decides on all times before it, another packet on those that it has left behind.
        while i < len(times) and times[i] + (0.0 if key else chosen.shift) < at:
            if not chosen.stand(float(times[i]), (before, key)):
                return None
            i += 1
        before = key or before
    left = times[i:].tolist()
    return last_s if all(chosen.stand(wanted, (before,)) for wanted in left) else None
