"""The database: SQLite with nothing to set up, or PostgreSQL.

Knows how the two are opened, and how a transaction of each is begun so that two processes never decide on
the same stale reading. Knows no table.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, Select, create_engine, event, make_url, text
from sqlalchemy.orm import Session

_LOCK = 0x5AFE
"""PostgreSQL's advisory lock of whoever migrates."""


class Database:
    """A pool of connections; threads may share it, processes may not.

    Args:
        url: SQLAlchemy's; `postgresql://` and `postgres://` mean psycopg.

    Raises:
        sqlalchemy.exc.ArgumentError: it is no address.
    """

    def __init__(self, url: str) -> None:
        parsed = make_url(url.replace("postgres://", "postgresql://", 1))
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        options: dict[str, Any] = {"pool_pre_ping": not self.is_sqlite}
        if self.is_sqlite:
            if parsed.database:
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            options["connect_args"] = {"timeout": 30}
        self._engine = create_engine(parsed, pool_size=16, max_overflow=48, **options)
        self._writer = self._engine.execution_options(writes=True)
        if self.is_sqlite:
            event.listen(self._engine, "connect", _on_connect)
            event.listen(self._engine, "begin", _on_begin)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """One consistent view; what is changed in it is not kept."""
        with Session(self._engine, expire_on_commit=False) as session:
            yield session

    def row(
        self, statement: Select[*tuple[Any, ...]], **values: Any
    ) -> Row[*tuple[Any, ...]] | None:
        """The first row of one statement. Every request asks for some; a session costs twice as much as they do."""
        with self._engine.connect() as connection:
            return connection.execute(statement, values).first()

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """One transaction, kept if the block ends without an exception.

        SQLite takes its one write lock at the beginning: no reading in it can be stale.
        """
        with Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    def lock(self, session: Session, number: int) -> None:
        """Let one transaction at a time go on from here, until it ends. SQLite's `writing` is that already."""
        if not self.is_sqlite:
            session.execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": number})

    def migrate(self) -> None:
        """Bring the tables to this version; several processes may call it at once.

        Raises:
            alembic.util.CommandError: the database is of a later version than this package.
        """
        from alembic import command

        with self._writer.connect() as connection:
            if not self.is_sqlite:
                connection.execute(text("SELECT pg_advisory_lock(:n)"), {"n": _LOCK})
                connection.commit()
            try:
                command.upgrade(_alembic(connection), "head")
                connection.commit()
            finally:
                if not self.is_sqlite:
                    connection.execute(text("SELECT pg_advisory_unlock(:n)"), {"n": _LOCK})
                    connection.commit()

    def drift(self) -> list[Any]:
        """In what the database differs from `tables`, in Alembic's words; empty if in nothing."""
        from alembic.autogenerate import compare_metadata
        from alembic.migration import MigrationContext

        from safelens.service.tables import Table

        with self._engine.connect() as connection:
            return list(compare_metadata(MigrationContext.configure(connection), Table.metadata))


def _alembic(connection: Connection) -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def _on_connect(connection: Any, _record: Any) -> None:
    # The driver's own BEGIN comes too late; `_on_begin` says it.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _on_begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
