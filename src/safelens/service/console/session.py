"""Who is at the console: a signed cookie that names an API key, and the token that every form carries.

Knows the cookie's form. The key itself is in no cookie; whoever has signed in is gone as soon as the key is
revoked, or the session is over.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field

from fastapi import Request, Response

from safelens.service.settings import Settings

COOKIE = "safelens_session"
PATH = "/console"
LIFE_S = 12 * 3600.0
"""A shift."""


@dataclass(frozen=True)
class Session:
    """A visit.

    Attributes:
        key: id of the API key that signed in; None before that.
        token: of this visit's forms.
        until: its end, seconds since 1970.
    """

    key: str | None = None
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    until: float = field(default_factory=lambda: time.time() + LIFE_S)


def secret(settings: Settings) -> str:
    """What this service's sessions are signed with; made at the first start. Raises OSError."""
    if settings.console_secret:
        return settings.console_secret
    file = settings.data / "console.secret"
    if not file.exists():
        settings.data.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.name}.{os.getpid()}")
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
            out.write(secrets.token_hex(32))
        with suppress(FileExistsError):
            os.link(part, file)
        part.unlink()
    return file.read_text()


class Sessions:
    """Cookies of one service.

    Args:
        secret: what they are signed with.
    """

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()

    def of(self, request: Request) -> Session | None:
        """The visit that a request belongs to; None where its cookie is missing, forged or over."""
        payload, _, signature = request.cookies.get(COOKIE, "").partition(".")
        if not hmac.compare_digest(signature.encode(), self._sign(payload).encode()):
            return None
        found = Session(**json.loads(base64.urlsafe_b64decode(payload)))
        return found if found.until > time.time() else None

    def keep(self, session: Session, request: Request, response: Response) -> None:
        """Send the cookie."""
        document = json.dumps(vars(session))
        payload = base64.urlsafe_b64encode(document.encode()).decode()
        response.set_cookie(
            COOKIE,
            f"{payload}.{self._sign(payload)}",
            path=PATH,
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="lax",
        )

    def end(self, response: Response) -> None:
        """Take the cookie back."""
        response.delete_cookie(COOKIE, path=PATH)

    def _sign(self, payload: str) -> str:
        return hmac.new(self._secret, payload.encode(), hashlib.sha256).hexdigest()
