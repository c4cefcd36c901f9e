"""What Prometheus reads: requests, queue, verdicts, seconds per stage.

Knows counters of several processes (prometheus_client's files in `PROMETHEUS_MULTIPROC_DIR`) and what is
counted in the database when it is asked for.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import REGISTRY, Collector
from sqlalchemy import func, select

from safelens.service.database import Database
from safelens.service.tables import Delivery, Job, WorkerRow

if TYPE_CHECKING:
    from collections.abc import Iterator

    from safelens.verdict import Verdict

ALIVE_S = 30.0
"""A worker that has not reported for so long is not counted."""

REQUESTS = Histogram(
    "safelens_request_seconds",
    "Requests by route, method and status",
    ["route", "method", "status"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
VERDICTS = Counter(
    "safelens_verdicts_total",
    "Verdicts that models made",
    ["status", "flagged", "decided_by"],
)
STAGES = Histogram(
    "safelens_stage_seconds",
    "Seconds per video and stage",
    ["stage"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)


def observe(verdict: Verdict) -> None:
    """Count a verdict that was made here."""
    flagged = "null" if verdict.flagged is None else str(verdict.flagged).lower()
    VERDICTS.labels(verdict.status, flagged, verdict.decided_by or "none").inc()
    for stage, seconds in verdict.timing.items():
        STAGES.labels(stage).observe(seconds)


class Store(Collector):
    """Counts what the database holds."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges."""
        open_jobs = GaugeMetricFamily("safelens_jobs", "Jobs without a verdict", labels=["state"])
        states = ("fetching", "queued", "running")
        with self._database.reading() as session:
            counted = dict(
                session.execute(
                    select(Job.state, func.count()).where(Job.state.in_(states)).group_by(Job.state)
                ).all()
            )
            oldest = session.scalar(select(func.min(Job.created_at)).where(Job.state == "queued"))
            alive = WorkerRow.seen_at > time.time() - ALIVE_S
            workers = session.scalar(select(func.count()).where(alive))
            owed = session.scalar(select(func.count()).where(Delivery.state == "pending"))
        for state in states:
            open_jobs.add_metric([state], counted.get(state, 0))
        yield open_jobs
        for name, words, value in (
            ("oldest_queued_seconds", "Age of the oldest job that waits", _age(oldest)),
            ("workers", "Model processes that report", workers or 0),
            ("webhooks_pending", "Webhooks that are owed", owed or 0),
        ):
            yield GaugeMetricFamily(f"safelens_{name}", words, value=value)


def exposition(database: Database) -> bytes:
    """Everything, in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(Store(database))
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        MultiProcessCollector(registry)
        return generate_latest(registry)
    return generate_latest(registry) + generate_latest(REGISTRY)


def _age(since: float | None) -> float:
    return 0.0 if since is None else max(0.0, time.time() - since)
