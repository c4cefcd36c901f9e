"""The audit log: who did what, when. An entry stands in the transaction of the act itself."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy.orm import Session

from safelens.service.tables import AuditEntry


def record(session: Session, actor: str, action: str, subject: str, **details: Any) -> None:
    """Add an entry.

    Args:
        session: the act's transaction.
        actor: id of an API key, or `system`.
        action: such as `decision.overturn`.
        subject: id of what it was done to.
        details: plain data.
    """
    session.add(
        AuditEntry(at=time.time(), actor=actor, action=action, subject=subject, details=details)
    )
