"""The parent of the service's processes: starts them, and starts anew what dies.

Knows processes, their sockets and signals. The listening socket is the parent's own: while a web process is
started anew, connections wait instead of being refused.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import FrameType

from safelens.service.database import Database
from safelens.service.doorbell import Bells
from safelens.service.queue import Queue
from safelens.service.settings import Settings

log = logging.getLogger(__name__)

_LOOK_S = 0.1
_STEADY_S = 30.0
"""A process that lived so long is started anew at once."""
_LONGEST_PAUSE_S = 30.0
_GRACE_S = 30.0
LISTEN = "SAFELENS_LISTEN"
WORKER = "SAFELENS_WORKER"


@dataclass
class _Child:
    module: str
    process: subprocess.Popen[bytes] | None = None
    owner: str = ""
    """Of its leases, if it is a worker."""
    started: float = 0.0
    not_before: float = 0.0
    pause: float = field(default=0.5)


class Supervisor:
    """The service on this machine.

    Args:
        settings: of all processes.
        listen: where the web process answers; None runs none.
        workers: how many model processes run.
    """

    def __init__(self, settings: Settings, listen: socket.socket | None, workers: int) -> None:
        self._settings = settings
        self._listen = listen
        self._bells = Bells.make()
        self._children = [_Child("safelens.service.worker") for _ in range(workers)]
        if listen is not None:
            self._children.insert(0, _Child("safelens.service.web"))
        self._stopping = threading.Event()

    def run(self) -> None:
        """Until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        database = Database(self._settings.database_url)
        queue = Queue(database, self._settings.lease_s)
        environment = self._environment()
        try:
            while not self._stopping.is_set():
                for child in self._children:
                    if child.process is not None and child.process.poll() is not None:
                        self._bury(child, queue)
                    if child.process is None and time.monotonic() >= child.not_before:
                        self._start(child, environment)
                self._stopping.wait(_LOOK_S)
        finally:
            self._end()
            database.close()

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping.set()

    def _environment(self) -> dict[str, str]:
        counters = self._settings.data / "metrics"
        counters.mkdir(parents=True, exist_ok=True)
        for old in counters.glob("*.db"):
            old.unlink(missing_ok=True)
        environment = dict(os.environ) | self._bells.environment()
        environment["PROMETHEUS_MULTIPROC_DIR"] = str(counters)
        environment |= exported(self._settings)
        if self._listen is not None:
            environment[LISTEN] = str(self._listen.fileno())
        return environment

    def _start(self, child: _Child, environment: Mapping[str, str]) -> None:
        child.owner = f"worker_{secrets.token_hex(6)}"
        inherited = list(self._bells.descriptors)
        if self._listen is not None:
            inherited.append(self._listen.fileno())
        child.process = subprocess.Popen(
            [sys.executable, "-m", child.module],
            env={**environment, WORKER: child.owner},
            stdin=subprocess.PIPE,  # it ends when this process does
            pass_fds=inherited,
        )
        child.started = time.monotonic()
        log.info("started", extra={"runs": child.module, "child": child.process.pid})

    def _bury(self, child: _Child, queue: Queue) -> None:
        assert child.process is not None
        lived = time.monotonic() - child.started
        child.pause = 0.5 if lived > _STEADY_S else min(2 * child.pause, _LONGEST_PAUSE_S)
        child.not_before = time.monotonic() + (0.0 if lived > _STEADY_S else child.pause / 2)
        log.warning(
            "died",
            extra={
                "runs": child.module,
                "child": child.process.pid,
                "status": child.process.returncode,
            },
        )
        if child.process.stdin is not None:
            child.process.stdin.close()
        child.process = None
        if child.module.endswith("worker"):
            queue.release(child.owner, unharmed=False)

    def _end(self) -> None:
        running = [child.process for child in self._children if child.process is not None]
        for process in running:
            process.terminate()
        until = time.monotonic() + _GRACE_S
        for process in running:
            try:
                process.wait(timeout=max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def exported(settings: Settings) -> dict[str, str]:
    """The settings as the environment of another process."""
    plain = settings.model_dump(mode="json")
    texts = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in plain.items()
    }
    address = texts.pop("database_url")
    variables = {f"SAFELENS_{name.upper()}": value for name, value in texts.items()}
    return variables | {"DATABASE_URL": address}


def end_with_parent() -> None:
    """Let this process end when the one that started it does, however that ended."""

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent").start()
