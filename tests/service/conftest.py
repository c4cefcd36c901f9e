"""Databases and servers for the service's tests: real ones, on real ports."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from servers import SAMPLES, activate, free_port, has_user, new_postgresql, postgres, serving

from safelens.service.database import Database
from safelens.service.keys import Keys
from safelens.service.settings import Settings
from safelens.service.start import prepare

BACKENDS = ["sqlite", "postgresql"]


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory):
    """Address of a PostgreSQL server of this session's own."""
    if not (postgres("initdb") and postgres("postgres")):
        pytest.skip("no PostgreSQL on this machine")
    folder = tmp_path_factory.mktemp("postgresql")
    options = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        import pwd

        user = pwd.getpwnam("postgres" if has_user("postgres") else "nobody")
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


@pytest.fixture(params=BACKENDS)
def database_url(request, tmp_path):
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'service.db'}"
    return new_postgresql(request.getfixturevalue("postgresql"))


@pytest.fixture
def settings(tmp_path, database_url):
    """Settings of a service whose tables are there, with a bundle active that is nowhere."""
    found = Settings(data=tmp_path / "data", database_url=database_url)
    database = Database(found.database_url)
    database.migrate()
    activate(database)
    database.close()
    return found


@pytest.fixture
def database(settings):
    found = Database(settings.database_url)
    yield found
    found.close()


@pytest.fixture
def client_key(database):
    return Keys(database).add("a client", "client").id


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
