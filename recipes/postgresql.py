"""A PostgreSQL server for as long as it is needed, in tests and measurements.

Knows where Debian keeps its programs, and that they refuse to run as root. Knows nothing of tables.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def program(name: str) -> str | None:
    """Where a program of PostgreSQL's lies; None where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


@contextmanager
def server() -> Iterator[str]:
    """A server of its own; its address, with `{}` in place of a database's name.

    Its folder is none of pytest's: each session of pytest that begins closes the folder of all sessions to other
    users, also while PostgreSQL, which is no root, makes its files there. It listens on a socket in the folder: a
    free port may be taken before it is used.

    Raises:
        FileNotFoundError: PostgreSQL is not installed.
        RuntimeError: it cannot make its files; its own words.
    """
    initdb, postgres = program("initdb"), program("postgres")
    if initdb is None or postgres is None:
        raise FileNotFoundError("no PostgreSQL on this machine: expected initdb and postgres")
    with tempfile.TemporaryDirectory(prefix="safelens-pg-", ignore_cleanup_errors=True) as name:
        folder, options = Path(name), _user() | {"cwd": name}
        if "user" in options:
            os.chown(folder, options["user"], options["group"])
        data = str(folder / "data")
        make = [initdb, "-D", data, "-U", "safelens", "-A", "trust", "-N", "--no-instructions"]
        made = subprocess.run(make, capture_output=True, text=True, **options)
        if made.returncode:
            raise RuntimeError(f"initdb failed in {folder}: {made.stderr.strip()}")
        settings = ("fsync=off", "listen_addresses=", f"unix_socket_directories={folder}")
        command = [postgres, "-D", data, *(word for s in settings for word in ("-c", s))]
        with (folder / "log").open("wb") as log:
            running = subprocess.Popen(command, stdout=log, stderr=log, **options)
        try:
            yield f"postgresql://safelens@/{{}}?host={folder}"
        finally:
            running.send_signal(signal.SIGINT)
            running.wait(timeout=30)


def new_database(address: str) -> str:
    """Address of a fresh database on a server that is there or about to be. Raises psycopg.OperationalError."""
    import psycopg

    name, until = f"safelens_{time.time_ns()}", time.monotonic() + 30
    while True:
        try:
            with psycopg.connect(address.format("postgres"), autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}".encode())
            return address.format(name)
        except psycopg.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def _user() -> dict[str, Any]:
    """Who it runs as, where that is not us."""
    if os.geteuid() != 0:
        return {}
    import pwd

    users = {user.pw_name: user for user in pwd.getpwall()}
    user = users.get("postgres", users.get("nobody"))
    assert user is not None
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
