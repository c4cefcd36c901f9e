"""Databases and servers for the service's tests: real ones, on real ports."""

import pytest
from servers import SAMPLES, activate, serving

from recipes.postgresql import new_database, program, server
from safelens.service.database import Database
from safelens.service.keys import Keys
from safelens.service.settings import Settings
from safelens.service.start import prepare

BACKENDS = ["sqlite", "postgresql"]


@pytest.fixture(scope="session")
def postgresql():
    """Address of a PostgreSQL server of this session's own."""
    if not (program("initdb") and program("postgres")):
        pytest.skip("no PostgreSQL on this machine")
    with server() as address:
        yield address


@pytest.fixture(params=BACKENDS)
def database_url(request, tmp_path):
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'service.db'}"
    return new_database(request.getfixturevalue("postgresql"))


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
