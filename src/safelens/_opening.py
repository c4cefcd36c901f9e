"""Opening a file for decoding, or saying why it cannot be.

Knows what a hostile or broken file must not do or be; knows nothing of streams and frames. Runs in the
decoding process only.
"""

from __future__ import annotations

import os

import av

# An uploaded file must never make the decoder open another one: playlists, file patterns, devices,
# descriptions of network sessions. `tty` would play any text file as a video of its letters.
_REFUSED_FORMATS = {
    *("alsa", "concat", "dash", "fbdev", "hls", "image2", "image2pipe", "imf", "kmsgrab", "lavfi"),
    *(
        "oss",
        "rtp",
        "rtsp",
        "sap",
        "sdp",
        "tedcaptions",
        "tty",
        "video4linux2,v4l2",
        "webm_dash_manifest",
    ),
    *("whip", "whep", "data", "ffmetadata"),
}
_MAGIC = (
    (4, b"ftyp", "an MP4/MOV file"),
    (4, b"moov", "a MOV file"),
    (0, b"\x1a\x45\xdf\xa3", "a Matroska/WebM file"),
    (0, b"RIFF", "a RIFF file"),
    (0, b"OggS", "an Ogg file"),
    (0, b"\x30\x26\xb2\x75", "an ASF/WMV file"),
    (0, b"GIF8", "a GIF"),
    (0, b"\x00\x00\x01\xba", "an MPEG program stream"),
    (0, b"ID3", "an audio file"),
)


def stated_size(path: str) -> tuple[int, int]:
    """Return the (width, height) that a GIF or PNG states; the demuxer hides sizes it finds absurd."""
    with open(path, "rb") as file:
        head = file.read(24)
    if head[:4] == b"GIF8" and len(head) >= 10:
        return int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")
    if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) == 24:
        return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    return 0, 0


class DecodeError(Exception):
    """A file that gives no frames; `detail` is the message without the path."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


def check_pixels(width: int, height: int, limit: int) -> None:
    """Refuse a picture of more than `limit` pixels (`too_large`)."""
    if width * height > limit:
        raise DecodeError(
            "too_large",
            f"its picture is {width} x {height}, {width * height} pixels; at most {limit} are "
            "decoded: scale the video down, or raise ClipOptions.max_pixels",
        )


def open_container(path: str) -> av.container.InputContainer:
    """Open a file for reading, and nothing that it may point to."""
    formats = ",".join(sorted(av.formats_available - _REFUSED_FORMATS))
    try:
        path.encode()
        url = f"file:{path}"
    except UnicodeEncodeError:  # a name that is not UTF-8 goes by its descriptor
        url = f"file:/dev/fd/{os.open(os.fsencode(path), os.O_RDONLY)}"
    try:
        return av.open(
            url,
            container_options={"protocol_whitelist": "file", "format_whitelist": formats},
            metadata_errors="replace",
        )
    except MemoryError:
        raise
    except (av.error.FFmpegError, ValueError) as error:
        raise _unopened(path, error) from None


def _unopened(path: str, error: Exception) -> DecodeError:
    with open(path, "rb") as file:
        head = file.read(16)
    kind = next((name for at, magic, name in _MAGIC if head[at : at + len(magic)] == magic), None)
    reason = getattr(error, "strerror", None) or str(error)
    if kind is None:
        return DecodeError(
            "not_a_video",
            f"is in no known video format ({reason}); pass a video file such as MP4, WebM, MKV, or GIF",
        )
    return DecodeError(
        "unreadable",
        f"begins like {kind} but its header or index is missing or damaged ({reason}); it was "
        "probably cut off or never finished: fetch or export it again",
    )
