"""Waking the other processes of one machine, so that nobody waits for a look at the database.

Knows datagrams between a parent's children. A ring that is lost costs a little time and nothing else: whoever
waits also looks by himself now and then.
"""

from __future__ import annotations

import os
import select
import socket
from contextlib import suppress

_VARIABLE = "SAFELENS_BELLS"
_MOST = 256


class Bells:
    """Two ways: `work`, that there are jobs; `done`, which job ended. Without a parent that made them, silent."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        self._sockets = sockets
        for one in sockets:
            one.setblocking(False)

    @classmethod
    def make(cls) -> Bells:
        """For a parent."""
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
        return cls([end for pair in pairs for end in pair])

    @classmethod
    def inherited(cls) -> Bells:
        """For a child of the process that called `make`; silent in any other."""
        numbers = os.environ.get(_VARIABLE)
        if not numbers:
            return cls([])
        return cls([socket.socket(fileno=int(number)) for number in numbers.split(",")])

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Of all sockets."""
        return tuple(one.fileno() for one in self._sockets)

    def environment(self) -> dict[str, str]:
        """What a child needs to know."""
        return {_VARIABLE: ",".join(map(str, self.descriptors))}

    def ring_work(self) -> None:
        """There is a job."""
        self._send(0, b"job")

    def wait_work(self, seconds: float, *others: socket.socket) -> None:
        """Until there is a job, or another socket can be read, or the time is over."""
        bell = self._sockets[1:2]
        select.select([*bell, *others], [], [], seconds)
        if bell:
            self._receive(1)

    def ring_done(self, job: str) -> None:
        """A job ended."""
        self._send(2, job.encode())

    @property
    def done(self) -> socket.socket | None:
        """Becomes readable when a job ended; read it with `ended`."""
        return self._sockets[3] if self._sockets else None

    def ended(self) -> list[str]:
        """Jobs that ended since."""
        return [ring.decode() for ring in self._receive(3)]

    def _send(self, end: int, ring: bytes) -> None:
        if self._sockets:
            with suppress(OSError):  # full: the other side has enough to wake up for
                self._sockets[end].send(ring)

    def _receive(self, end: int) -> list[bytes]:
        found: list[bytes] = []
        with suppress(OSError):
            while len(found) < _MOST:
                found.append(self._sockets[end].recv(64))
        return found
