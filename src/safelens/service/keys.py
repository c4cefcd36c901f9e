"""API keys: who may ask, and for what.

Knows how a key is made, checked and revoked. Of a key itself only the SHA-256 is kept: 256 random bits need no
slow hash.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass
from typing import Literal, get_args

from sqlalchemy import bindparam, select

from safelens.service.audit import record
from safelens.service.database import Database
from safelens.service.tables import ApiKey

Role = Literal["client", "moderator", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
"""Each may do what those before it may."""

_PREFIX = "slk"
_KEY = select(ApiKey.id, ApiKey.role, ApiKey.sha256, ApiKey.revoked_at).where(
    ApiKey.id == bindparam("key")
)


@dataclass(frozen=True)
class NewKey:
    """A key at its making, the only time that it is to be seen.

    Attributes:
        id: names it in logs, lists and the audit log.
        key: what its owner sends.
        webhook_secret: what its owner checks webhooks with.
    """

    id: str
    key: str
    webhook_secret: str


@dataclass(frozen=True)
class Caller:
    """Whose request it is."""

    id: str
    role: Role

    def may(self, role: Role) -> bool:
        """Whether the caller has this role or a higher one."""
        return ROLES.index(self.role) >= ROLES.index(role)


class Keys:
    """The keys in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, name: str, role: Role, *, actor: str = "system") -> NewKey:
        """Make a key."""
        identity, secret = secrets.token_hex(6), secrets.token_hex(32)
        signing = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        new = NewKey(identity, f"{_PREFIX}_{identity}_{secret}", signing)
        row = ApiKey(
            id=identity,
            name=name,
            role=role,
            sha256=_digest(secret),
            webhook_secret=signing,
            created_at=time.time(),
        )
        with self._database.writing() as session:
            session.add(row)
            record(session, actor, "key.add", identity, name=name, role=role)
        return new

    def revoke(self, identity: str, *, actor: str = "system") -> bool:
        """End a key at once; False where there is none, or it was revoked before."""
        with self._database.writing() as session:
            row = session.get(ApiKey, identity)
            if row is None or row.revoked_at is not None:
                return False
            row.revoked_at = time.time()
            record(session, actor, "key.revoke", identity)
        return True

    def caller(self, key: str) -> Caller | None:
        """Whose key it is; None where it is nobody's, or revoked."""
        prefix, _, rest = key.partition("_")
        identity, _, secret = rest.partition("_")
        if prefix != _PREFIX or not key.isascii():
            return None
        row = self._database.row(_KEY, key=identity)
        known = row.sha256 if row is not None else _digest("")
        right = hmac.compare_digest(known, _digest(secret))
        if row is None or not right or row.revoked_at is not None:
            return None
        return caller_of(row.id, row.role)

    def holder(self, identity: str) -> ApiKey | None:
        """A key by its id, unless it is revoked."""
        with self._database.reading() as session:
            row = session.get(ApiKey, identity)
        return row if row is not None and row.revoked_at is None else None

    def all(self) -> list[ApiKey]:
        """All keys, oldest first."""
        with self._database.reading() as session:
            return list(session.scalars(select(ApiKey).order_by(ApiKey.created_at)))


def caller_of(identity: str, role: str) -> Caller:
    """Who asks with a key."""
    return next(Caller(identity, known) for known in ROLES if known == role)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
