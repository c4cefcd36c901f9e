"""One open video file, read by its keyframes: find them, jump to them, decode each by itself.

Knows indexes and packets; knows neither the sampling rule nor which keyframes will do. Runs in the
decoding process only.
"""

from __future__ import annotations

from collections.abc import Iterator

import av
from av.codec.context import ThreadType

from safelens._container import Source, _Clock

# Codecs whose packets marked as keyframes need no other; in some animations (GIF, APNG) they do.
_ALONE = {
    *("av1", "h263", "h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4", "vp8", "vp9", "vvc"),
}
# Containers whose index says which frames are keyframes; Flash Video's also lists the end of the file.
_INDEXED = ("mov", "matroska", "avi")


class KeySource(Source):
    """A file whose frames are decoded one by one, by `alone` only."""

    def __init__(self, path: str, max_pixels: int) -> None:
        super().__init__(path, max_pixels)
        codec = self.stream.codec_context
        # Threads that work on several frames at a time would have only one.
        codec.thread_type = ThreadType.SLICE
        # Damage that the decoder could paint over is an error here.
        codec.options = {**codec.options, "err_detect": "explode"}

    def usable(self) -> bool:
        """Whether keyframes decode alone, and the file gives times."""
        codec = self.stream.codec_context.codec
        return (codec.intra_only or codec.canonical_name in _ALONE) and self._origin is not None

    def index_reaches(self, target: float) -> bool:
        """Whether the container has an index of keyframes that goes on to `target` or beyond."""
        name = self.container.format.name
        if not any(known in name for known in _INDEXED):
            return False
        if "matroska" in name:
            self._seek(self._first)  # reads the index, which often lies at the end of the file
        index = self.stream.index_entries
        return bool(len(index)) and self._seconds(index[len(index) - 1].timestamp) >= target

    @property
    def _first(self) -> int:
        return round((self._origin or 0.0) / self._tick)

    def around(self, target: float) -> list[float]:
        """Return the times of the keyframes before and after a time, of those that the index knows.

        They are right within a few frames: some indexes hold times of decoding.
        """
        index, lag = self.stream.index_entries, self._lag(self._first)
        stamp = self._first + int(target / self._tick) - lag
        at = index.search_timestamp(stamp, backward=True)
        if at < 0:
            at = index.search_timestamp(stamp, backward=False)
        found: list[float] = []
        while at >= 0 and len(found) < 2:
            key = index[at].timestamp
            found.append(self._seconds(key + lag))
            after = index.search_timestamp(key + 1, backward=False)
            at = after if after > at else -1
        return found

    def read(self, key: float) -> tuple[float, av.Packet] | None:
        """Jump to a keyframe and return its true time and its packet; None where there is none.

        Args:
            key: its time, as `around` gives it.
        """
        jumped = self._seek(self._first + round(key / self._tick))
        found = next(self.packets(), None) if jumped else None
        return found if found is not None and found[1].is_keyframe else None

    def packets(self) -> Iterator[tuple[float, av.Packet]]:
        """Read the stream's packets from the present position on, each with the time it is shown.

        Ends early, and counts an error, where the file cannot be read, a packet has no time, or the
        file's clock starts anew.
        """
        clock = _Clock()
        try:
            for packet in self.container.demux(self.stream):
                if packet.size == 0:
                    continue
                stamp = packet.pts if packet.pts is not None else packet.dts
                seconds = self._seconds(stamp or 0)
                clock(seconds, self.frame_s)
                if stamp is None or clock.broken:
                    self.errors += 1
                    return
                yield seconds, packet
        except MemoryError:
            raise
        except EOFError:
            return
        except av.error.FFmpegError:
            self.errors += 1

    def alone(self, packet: av.Packet) -> tuple[float, av.VideoFrame] | None:
        """Decode a keyframe's packet, and no other.

        Returns:
            Its time and picture; None where it does not give one whole picture by itself.
        """
        errors = self.errors
        self.stream.codec_context.flush_buffers()
        self._clock.jumped()
        found = [*self._decode(packet), *self._decode(None)]
        whole = len(found) == 1 and self.errors == errors and not self.untimed
        return found[0] if whole and found[0][1].key_frame and not found[0][1].is_corrupt else None
