"""A video in a request's body to a file, raw or as a form's part `file`, while it arrives.

Knows the two forms. Bounds of time and size are kept by `middleware` and `sink`; memory is one chunk.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from starlette.requests import ClientDisconnect, Request
from streaming_form_data import StreamingFormDataParser
from streaming_form_data.parser import ParseFailedException
from streaming_form_data.targets import BaseTarget

from safelens.report import printable
from safelens.service.problems import Problem
from safelens.service.sink import FileSink, Received, SinkError

_LONGEST_NAME = 255


async def receive(request: Request, into: Path, most_bytes: int) -> tuple[Received, str | None]:
    """Read the body.

    Args:
        request: its body is not read yet.
        into: the file to write; it is removed where this raises.
        most_bytes: of the video.

    Returns:
        The video, and the form's name of the file, if it has one.

    Raises:
        Problem: too_large, not_a_video, bad_request.
        OSError: the file cannot be written.
    """
    with ExitStack() as stack:
        try:
            sink = stack.enter_context(FileSink(into, most_bytes))
            form = _Form(request, sink) if _is_form(request) else None
            async for chunk in request.stream():
                if form is not None:
                    form.write(chunk)
                elif chunk:
                    sink.write(chunk)
            if form is not None and not form.found:
                raise Problem(
                    "bad_request", "the form has no part `file`; expected the video there"
                )
            return sink.finish(), None if form is None else form.name
        except SinkError as error:
            raise Problem(error.code, str(error)) from error
        except ParseFailedException as error:
            raise Problem("bad_request", f"the form cannot be read ({error})") from error
        except ClientDisconnect as error:
            raise Problem("bad_request", "the upload was broken off") from error


def clean_name(name: str | None) -> str:
    """A client's file name as people may read it: no folders, no control characters, not endless."""
    last = (name or "").replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    return printable(last.strip())[:_LONGEST_NAME] or "video"


def _is_form(request: Request) -> bool:
    kind = request.headers.get("content-type", "")
    return kind.partition(";")[0].strip().lower() == "multipart/form-data"


class _Part(BaseTarget):
    """The form's part that is the video."""

    def __init__(self, sink: FileSink) -> None:
        super().__init__()
        self._sink = sink
        self.parts = 0

    def on_start(self) -> None:
        self.parts += 1
        if self.parts > 1:
            raise Problem(
                "bad_request", "the form has several parts `file`; send one video a request"
            )

    def on_data_received(self, chunk: bytes) -> None:
        self._sink.write(chunk)


class _Form:
    def __init__(self, request: Request, sink: FileSink) -> None:
        self._part = _Part(sink)
        self._parser = StreamingFormDataParser(headers=dict(request.headers))
        self._parser.register("file", self._part)

    @property
    def found(self) -> bool:
        return self._part.parts > 0

    @property
    def name(self) -> str | None:
        return self._part.multipart_filename

    def write(self, chunk: bytes) -> None:
        self._parser.data_received(chunk)
