"""One open video file: choose its stream, walk it, jump in it, measure it.

Knows containers, seeking and damage; knows nothing of the sampling rule. Times are seconds from the
start of the video stream. Runs in the decoding process only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
from av.codec.context import ThreadType

from safelens._opening import DecodeError, check_pixels, open_container, stated_size

_INDEXED = ("mov", "matroska", "avi", "flv", "asf", "mxf")
_MAX_BAD_READS = 64
_BLIND_S = 10.0
_WORTH_S = 0.5


@dataclass
class Extent:
    """What lies in a file, found by reading packets without decoding them."""

    video_s: float
    """When the last video packet is shown."""
    file_s: float
    """End of the last packet of any stream."""


class _Clock:
    """Makes times run on where a file's own clock starts anew (joined or looped recordings)."""

    def __init__(self) -> None:
        self.broken = False
        self._shift = 0.0
        self._last: float | None = None

    def __call__(self, seconds: float, step: float) -> float:
        seconds += self._shift
        if self._last is not None and seconds < self._last - 1.0:
            self.broken = True
            self._shift += self._last + step - seconds
            seconds = self._last + step
        self._last = max(seconds, self._last or 0.0)
        return seconds

    def jumped(self) -> None:
        self._last = None


class Source:
    """A file with one chosen video stream and a reading position."""

    def __init__(self, path: str, max_pixels: int) -> None:
        check_pixels(*stated_size(path), max_pixels)
        self.container = open_container(path)
        try:
            self._choose()
            codec = self.stream.codec_context
            check_pixels(codec.width, codec.height, max_pixels)
            # The same rule for streams that change their size on the way.
            codec.options = {"max_pixels": str(max_pixels)}
            codec.thread_count = min(4, os.cpu_count() or 1)
            codec.thread_type = ThreadType.AUTO
        except BaseException:
            self.container.close()
            raise
        self.path = path
        self.errors = 0
        """Reads and packets that failed."""
        self.untimed = False
        """Whether frames carry no time of their own, so that times are counted from the frame rate."""
        self.frame_s = 1.0 / float(self._rate())
        self._origin: float | None = None
        if self.stream.start_time is not None:
            self._origin = self.stream.start_time * self._tick
        self._count = 0
        self._blind = True
        # Elsewhere the index is only what happened to be read so far.
        self._indexed = any(name in self.container.format.name for name in _INDEXED)
        self._pad: int | None = None
        self._clock = _Clock()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def _choose(self) -> None:
        streams = list(self.container.streams.video)
        if not streams:
            kinds = sorted({stream.type for stream in self.container.streams})
            holds = f"holds only {' and '.join(kinds)}" if kinds else "holds no stream at all"
            raise DecodeError(
                "no_video_stream",
                f"{holds}; pass a file with a picture, or moderate the sound elsewhere",
            )
        moving = [s for s in streams if not _is_picture(s)]
        best = self.container.streams.best("video")
        self.stream = best if best in moving else (moving or streams)[0]
        self.cover = not moving
        self.others = max(0, len(moving) - 1)
        if self.stream.codec_context is None:
            raise DecodeError(
                "unsupported_codec",
                "no decoder knows its video codec; re-encode it, for example to H.264",
            )
        self._tick = float(self.stream.time_base or Fraction(1, 90000))

    def _rate(self) -> Fraction:
        for rate in (self.stream.average_rate, self.stream.guessed_rate):
            if rate and 0.01 <= rate <= 1000:
                return rate
        return Fraction(25)

    @property
    def start_known(self) -> bool:
        """Whether the container gives times at all (raw streams do not; their durations are guesses)."""
        return self.stream.start_time is not None

    def declared(self) -> tuple[float | None, bool]:
        """Return the declared duration in seconds and whether it is the video stream's own."""
        own = self.stream.duration
        if own:
            return own * self._tick, True
        # Matroska and Flash count from zero, wherever the first frame lies.
        from_zero = any(name in self.container.format.name for name in ("matroska", "flv"))
        skipped = max(0.0, self._origin or 0.0) if from_zero else 0.0
        tag = self.stream.metadata.get("DURATION") or self.stream.metadata.get("DURATION-eng")
        if tag:
            try:
                hours, minutes, seconds = tag.split(":")
                return int(hours) * 3600 + int(minutes) * 60 + float(seconds) - skipped, True
            except ValueError:
                pass
        if self.container.duration:
            return self.container.duration / av.time_base - skipped, False
        return None, False

    def index_overruns(self) -> bool:
        """Whether the container's index, or its stated size, points beyond the end of the file."""
        size = os.path.getsize(self.path)
        with open(self.path, "rb") as file:
            head = file.read(8)
        if head[:4] == b"RIFF" and size + 1 < int.from_bytes(head[4:8], "little") + 8 < 1 << 32:
            return True
        index = self.stream.index_entries
        return any(e.pos + e.size > size for e in index[max(0, len(index) - 64) :])

    def frames(self) -> Iterator[tuple[float, av.VideoFrame]]:
        """Decode forward from the present position, stepping over what is damaged."""
        bad_reads = 0
        while bad_reads < _MAX_BAD_READS:
            try:
                for packet in self.container.demux(self.stream):
                    bad_reads = 0
                    yield from self._decode(packet)
                return
            except MemoryError:
                raise
            except EOFError:
                return
            except av.error.FFmpegError:
                self.errors += 1
                bad_reads += 1
        yield from self._decode(None)

    def _decode(self, packet: av.Packet | None) -> Iterator[tuple[float, av.VideoFrame]]:
        try:
            decoded = self.stream.codec_context.decode(packet)
        except MemoryError:
            raise
        except EOFError:
            return
        except av.error.FFmpegError:
            self.errors += 1
            return
        for frame in decoded:
            yield self._time(frame), frame

    def _time(self, frame: av.VideoFrame) -> float:
        if frame.pts is None:
            self.untimed = True
            seconds = self._count * self.frame_s
            self._origin = 0.0
        else:
            seconds = frame.pts * float(frame.time_base or self._tick)
            if self._count == 0 and len(self.stream.index_entries) and self.stream.time_base:
                self._pad = self._lag(frame.pts)
        if self._origin is None or (self._count == 0 and seconds < self._origin):
            self._origin = seconds
        self._count += 1
        return self._clock(seconds - self._origin, self.frame_s)

    def _lag(self, first: int) -> int:
        """Return how far display lags the index, which holds times of decoding in some containers.

        Args:
            first: when the first frame is shown, in units of the stream.
        """
        lag = first - self.stream.index_entries[0].timestamp
        return lag if 0 <= lag * self._tick < max(1.0, 20 * self.frame_s) else 0

    def jump(self, target: float, position: float, slack: float) -> bool | None:
        """Seek towards `target` when that saves decoding.

        Args:
            target: the time wanted.
            position: the time of the last decoded frame.
            slack: how far from the target a keyframe may lie and still be taken for it.

        Returns:
            None: nothing done, go on decoding. False: now before the target. True: now at a keyframe
            that may be taken for the target.
        """
        if self.untimed or self._clock.broken or self._origin is None:
            return None
        index = self.stream.index_entries
        stamp = int((target + self._origin) / self._tick)
        pad = self._pad or 0
        if (
            self._indexed
            and len(index)
            and self._seconds(index[len(index) - 1].timestamp) >= target - _BLIND_S
        ):
            keys = []
            for backward in (True, False):
                at = index.search_timestamp(stamp - pad, backward=backward)
                if at >= 0:
                    keys.append(index[at].timestamp + pad)
            ahead = [k for k in keys if self._seconds(k) > position + _WORTH_S]
            near = [k for k in ahead if abs(self._seconds(k) - target) <= slack]
            if near:
                key = min(near, key=lambda k: abs(k - stamp))
                return True if self._seek(key) else None
            return False if any(k <= stamp for k in ahead) and self._seek(stamp) else None
        if self._blind and target - position > _BLIND_S:
            return False if self._seek(stamp) else None
        return None

    def _seconds(self, stamp: int) -> float:
        return stamp * self._tick - (self._origin or 0.0)

    def landed_behind(self) -> None:
        """Note that a jump led back: this file cannot be jumped in without an index."""
        self._blind = False

    def back_off(self, target: float, position: float, step: float) -> bool:
        """Jump once more, `step` seconds earlier, after a jump that found only the end of the file."""
        if self._origin is None:
            return False
        if target - step <= position:
            self._blind = False
        aim = max(target - step, position)
        return self._seek(int((aim + self._origin) / self._tick))

    def _seek(self, stamp: int) -> bool:
        try:
            self.container.seek(stamp, backward=True, stream=self.stream)
        except MemoryError:
            raise
        except (av.error.FFmpegError, OverflowError):
            self._blind = False
            return False
        self._clock.jumped()
        return True

    def measure(self, after: float = 0.0, *, everything: bool = False) -> Extent:
        """Read packets to the end without decoding.

        Args:
            after: start near this time when the file can be jumped in.
            everything: read the other streams too, for `Extent.file_s`.
        """
        if after > _BLIND_S and self._origin is not None and not self.untimed:
            self._seek(int((after + self._origin) / self._tick))
        video = ends = 0.0
        count = 0
        clock = _Clock()
        streams = [
            s
            for s in self.container.streams
            if s is self.stream or (everything and s.type == "audio")
        ]
        bad_reads = 0
        while bad_reads < _MAX_BAD_READS:
            try:
                for packet in self.container.demux(*streams):
                    bad_reads = 0
                    if packet.size == 0:
                        continue
                    stamp = packet.pts if packet.pts is not None else packet.dts
                    ours = packet.stream is self.stream
                    count += ours
                    if stamp is None:
                        seconds = (count - 1) * self.frame_s if ours else 0.0
                        length = self.frame_s if ours else 0.0
                    else:
                        tick = float(packet.time_base or self._tick)
                        seconds = stamp * tick
                        length = (packet.duration or 0) * tick
                        if self._origin is None and ours:
                            self._origin = seconds
                        seconds -= self._origin or 0.0
                    if ours:
                        seconds = clock(seconds, self.frame_s)
                        video = max(video, seconds)
                    ends = max(ends, seconds + length)
                break
            except MemoryError:
                raise
            except EOFError:
                break
            except av.error.FFmpegError:
                bad_reads += 1
        return Extent(video, ends)


def _is_picture(stream: av.VideoStream) -> bool:
    return bool(int(stream.disposition) & (0x400 | 0x800))  # attached picture, timed thumbnails
