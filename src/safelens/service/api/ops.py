"""`/healthz`, `/readyz`, `/metrics`: for those who run the service."""

from __future__ import annotations

import logging
import time

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy import func, select

from safelens.service import metrics
from safelens.service.context import Client, Here
from safelens.service.deployments import active
from safelens.service.problems import Problem, documented
from safelens.service.tables import WorkerRow

router = APIRouter(tags=["operation"])
log = logging.getLogger(__name__)


@router.get("/healthz")
def health() -> dict[str, str]:
    """Whether the web process answers."""
    return {"status": "ok"}


@router.get("/readyz", responses=documented("not_ready"))
def ready(here: Here) -> dict[str, str]:
    """Whether a video sent now would be moderated: database, media store, active bundle, a worker."""
    since = time.time() - metrics.ALIVE_S
    try:
        with here.database.reading() as session:
            active(session)
            workers = session.scalar(
                select(func.count()).select_from(WorkerRow).where(WorkerRow.seen_at > since)
            )
        here.media.check()
    except Problem:
        raise
    except Exception as error:
        log.exception("not ready")
        raise Problem("not_ready", f"the store does not answer ({type(error).__name__})") from error
    if not workers:
        raise Problem("not_ready", "no model process reports; it may still be loading its models")
    return {"status": "ready"}


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def prometheus(here: Here, caller: Client) -> Response:
    """Prometheus' text format; any key will do."""
    return Response(metrics.exposition(here.database), media_type=CONTENT_TYPE_LATEST)
