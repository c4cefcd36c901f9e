"""Webhooks: a job's end is told to its callback, signed, until it is heard or too old.

Knows the signature of Standard Webhooks (https://www.standardwebhooks.com), and when to try again. A webhook
may come twice: its `webhook-id` stays the same. It carries ids and no verdict, which is asked for with a key.
"""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime
from urllib.parse import urlsplit

import httpcore2
from sqlalchemy import select
from standardwebhooks import Webhook

from safelens.service.addresses import Hosts, Refused, connections, timeouts
from safelens.service.database import Database
from safelens.service.tables import ApiKey, Delivery, Job, VerdictRow

log = logging.getLogger(__name__)

PAUSES_S = (5, 30, 120, 600, 3600, 3 * 3600, 6 * 3600, 12 * 3600)
"""Between attempts; after the last one the webhook is given up."""
_TIMEOUT_S = 10.0
_LEASE_S = 60.0


class Webhooks:
    """The webhooks that a database owes.

    Args:
        database: where they are written.
        hosts: that they may go to.
    """

    def __init__(self, database: Database, hosts: Hosts) -> None:
        self._database = database
        self._hosts = hosts

    def deliver_one(self) -> bool:
        """Try the one that is due longest; False if none is."""
        now = time.time()
        with self._database.writing() as session:
            owed = session.scalar(
                select(Delivery)
                .where(Delivery.state == "pending", Delivery.next_at <= now)
                .order_by(Delivery.next_at)
                .limit(1)
                .with_for_update(skip_locked=True)
            )
            if owed is None:
                return False
            # Whoever dies now has tried: the attempt counts, and others come later.
            owed.attempts += 1
            owed.next_at = now + _LEASE_S
            job = session.get_one(Job, owed.job_id)
            key = session.get_one(ApiKey, job.key_id)
            verdict = session.get_one(VerdictRow, job.id)
        error = self._send(owed.id, job, key, verdict)
        with self._database.writing() as session:
            row = session.get_one(Delivery, owed.id)
            row.last_error = error
            if error is None:
                row.state = "delivered"
            elif owed.attempts > len(PAUSES_S):
                row.state = "failed"
            else:
                row.next_at = time.time() + PAUSES_S[owed.attempts - 1]
        log.info("webhook", extra={"job": job.id, "attempt": owed.attempts, "error": error})
        return True

    def _send(self, message: str, job: Job, key: ApiKey, verdict: VerdictRow) -> str | None:
        """Send it once; None if it was heard, else what happened."""
        assert job.callback_url is not None
        url, body = job.callback_url, payload(job, verdict)
        headers = {
            "Host": urlsplit(url).netloc,
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **signature(key.webhook_secret, message, body),
        }
        try:
            self._hosts.check(url)
            with (
                connections(self._hosts) as pool,
                pool.stream(
                    "POST",
                    url,
                    headers=list(headers.items()),
                    content=body,
                    extensions=timeouts(_TIMEOUT_S),
                ) as answer,
            ):
                heard = 200 <= answer.status < 300
                return None if heard else f"answered with status {answer.status}"
        except (Refused, OSError, httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            return f"{type(error).__name__}: {error}"
        except httpcore2.TimeoutException:
            return f"no answer within {_TIMEOUT_S:g} s"


def payload(job: Job, verdict: VerdictRow) -> bytes:
    """The body."""
    at = datetime.fromtimestamp(verdict.at, UTC).isoformat(timespec="seconds")
    data = {
        "job": job.id,
        "reference": job.reference,
        "status": verdict.status,
        "flagged": verdict.flagged,
        "label": verdict.label,
    }
    return json.dumps({"type": "job.done", "timestamp": at, "data": data}).encode()


def signature(secret: str, message: str, body: bytes) -> dict[str, str]:
    """The headers that prove who sent a body, and when."""
    now = datetime.now(UTC)
    return {
        "webhook-id": message,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign(message, now, body.decode()),
    }
