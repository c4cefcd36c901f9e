"""Databases and servers for the service's tests: real ones, on real ports."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path

import httpx2
import pytest
from small import verdict

from safelens.policy import Policy
from safelens.service.database import Database
from safelens.service.keys import Keys
from safelens.service.queue import Queue
from safelens.service.settings import Settings
from safelens.service.start import prepare
from safelens.service.tables import BundleVersion, Deployment, PolicyVersion

BACKENDS = ["sqlite", "postgresql"]
SAMPLES = Path(__file__).parents[2] / "samples"


def postgres(name):
    """A program of PostgreSQL's, where Debian keeps them or on the path."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


def free_port():
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        return taken.getsockname()[1]


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory):
    """Address of a PostgreSQL server of this session's own."""
    if not (postgres("initdb") and postgres("postgres")):
        pytest.skip("no PostgreSQL on this machine")
    folder = tmp_path_factory.mktemp("postgresql")
    options = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        import pwd

        user = pwd.getpwnam("postgres" if _has_user("postgres") else "nobody")
        options = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        os.chown(folder, user.pw_uid, user.pw_gid)
        for parent in folder.parents[:3]:
            if parent.stat().st_uid == 0 and parent != Path("/"):
                parent.chmod(parent.stat().st_mode | 0o011)
    data = folder / "data"
    options["cwd"] = folder
    initdb = [
        postgres("initdb"),
        "-D",
        data,
        "-U",
        "safelens",
        "-A",
        "trust",
        "-N",
        "--no-instructions",
    ]
    subprocess.run(initdb, check=True, capture_output=True, **options)
    port = free_port()
    settings = [
        "fsync=off",
        "listen_addresses=127.0.0.1",
        f"port={port}",
        f"unix_socket_directories={folder}",
    ]
    command = [postgres("postgres"), "-D", data, *(part for s in settings for part in ("-c", s))]
    server = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options
    )
    try:
        yield f"postgresql://safelens@127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=30)


def _has_user(name):
    import pwd

    try:
        return bool(pwd.getpwnam(name))
    except KeyError:
        return False


@pytest.fixture(params=BACKENDS)
def database_url(request, tmp_path):
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'service.db'}"
    return new_postgresql(request.getfixturevalue("postgresql"))


def new_postgresql(server):
    """A fresh database on a server."""
    import psycopg

    name = f"test_{time.time_ns()}"
    until = time.monotonic() + 30
    while True:
        try:
            with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}")
            return f"{server}/{name}"
        except psycopg.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


@pytest.fixture
def settings(tmp_path, database_url):
    """Settings of a service whose tables are there, with a bundle active that is nowhere."""
    found = Settings(data=tmp_path / "data", database_url=database_url)
    database = Database(found.database_url)
    database.migrate()
    activate(database)
    database.close()
    return found


def activate(database):
    """Write a deployment of a made-up bundle; `prepare` hashes a real one."""
    policy = Policy.load("default")
    added = {"added_at": 0.0, "added_by": "system"}
    with database.writing() as session:
        session.add(
            PolicyVersion(
                sha256=policy.sha256,
                policy_id=policy.id,
                version="1",
                yaml=policy.to_yaml(),
                **added,
            )
        )
        session.flush()
        session.add(
            BundleVersion(
                sha256="b" * 64,
                name="small",
                version="1",
                source="nowhere",
                knows="SafeWorld only",
                tau=0.9,
                taus={},
                layout="policy_first",
                keyframe_shift_s=0.0,
                policy_sha256=policy.sha256,
                **added,
            )
        )
        session.flush()
        session.add(
            Deployment(
                bundle_sha256="b" * 64,
                policy_sha256=policy.sha256,
                tau=None,
                activated_at=0.0,
                activated_by="system",
            )
        )


@pytest.fixture
def database(settings):
    found = Database(settings.database_url)
    yield found
    found.close()


@pytest.fixture
def client_key(database):
    return Keys(database).add("a client", "client").id


class Served:
    """A running web process, without workers, and keys for it."""

    def __init__(self, settings, url):
        self.settings = settings
        self.url = url
        self.database = Database(settings.database_url)
        self.keys = {r: Keys(self.database).add(r, r) for r in ("client", "moderator", "admin")}

    def http(self, role="client", **options):
        """An HTTP client with a key of that role; None has none."""
        headers = {"Authorization": f"Bearer {self.keys[role].key}"} if role else {}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=30, **options)


@contextmanager
def serving(settings):
    """A web process on a port of its own."""
    from safelens.service.supervise import LISTEN, exported

    with socket.create_server(("127.0.0.1", 0)) as listen:
        process = subprocess.Popen(
            [sys.executable, "-m", "safelens.service.web"],
            env={**os.environ, **exported(settings), LISTEN: str(listen.fileno())},
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=[listen.fileno()],
        )
        served = Served(settings, f"http://127.0.0.1:{listen.getsockname()[1]}")
        try:
            with served.http(None) as http:
                http.get("/healthz", timeout=60)
            yield served
        finally:
            process.terminate()
            process.communicate()
            served.database.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A web process on SQLite, for a module; see `serving`."""
    found = Settings(
        data=tmp_path_factory.mktemp("served"),
        max_upload_mb=1,
        upload_idle_s=1.0,
        upload_s=3.0,
        fetch_hosts=("localhost", "127.0.0.1", "videos.test", "*.cdn.test"),
        callback_hosts=("localhost",),
        internal_hosts=("localhost",),
    )
    prepare(found, bundle=None, policy=None, tau=None)
    with serving(found) as running:
        yield running


@pytest.fixture
def sample():
    """Bytes of a small video."""
    return (SAMPLES / "safe.mp4").read_bytes()


def moderate_all(served, **fields):
    """End every job that waits, as a model process would."""
    queue = Queue(served.database, 30.0)
    while (claimed := queue.claim("test", 32)).jobs:
        for job in claimed.jobs:
            assert queue.finish("test", job.id, verdict(job.name, **fields))


def problem(answer):
    """The code of a problem document; fails if it is none."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    document = json.loads(answer.text)
    assert document["status"] == answer.status_code
    assert document["detail"]
    assert document["title"]
    return document["code"]
