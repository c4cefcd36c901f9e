"""What a file is by its first bytes; what a client says it is does not count.

Knows the containers that the decoder opens. Whether one is whole, or hostile, is the decoder's matter.
"""

from __future__ import annotations

HEAD = 4096
"""Bytes that are looked at."""

_ISO_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip", b"moof", b"styp")
_STARTS = {
    b"\x1a\x45\xdf\xa3": "video/x-matroska",
    b"OggS": "video/ogg",
    b"FLV\x01": "video/x-flv",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "video/x-ms-asf",
    b"\x00\x00\x01\xba": "video/mpeg",
    b"\x00\x00\x01\xb3": "video/mpeg",
    b"\x06\x0e\x2b\x34\x02\x05\x01\x01": "application/mxf",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
    b"\x89PNG\r\n\x1a\n": "image/png",
}
_RIFF = {b"AVI ": "video/x-msvideo", b"WEBP": "image/webp"}


def media_type(head: bytes) -> str | None:
    """The media type of a file that begins so; None for what is no video or moving picture."""
    if head[4:8] in _ISO_BOXES:
        return "video/quicktime" if head[8:12] == b"qt  " else "video/mp4"
    if head[:4] == b"RIFF":
        return _RIFF.get(head[8:12])
    for start, kind in _STARTS.items():
        if head.startswith(start):
            return "video/webm" if b"webm" in head[:64] else kind
    for first, packet in ((0, 188), (4, 192)):  # MPEG transport streams, and those of discs
        syncs = head[first::packet][:4]
        if len(syncs) == 4 and set(syncs) == {0x47}:
            return "video/mp2t"
    return None
