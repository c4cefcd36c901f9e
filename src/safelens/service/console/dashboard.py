"""`/console/dashboard`: how much, how fast, how right."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from safelens.service.console.access import SignedIn
from safelens.service.console.charts import curve, stacked
from safelens.service.console.figures import figures
from safelens.service.console.page import page
from safelens.service.console.queue import labels
from safelens.service.console.session import PATH
from safelens.service.console.what_if import what_if
from safelens.service.context import Here
from safelens.service.settings import DAY_S

router = APIRouter(prefix=PATH, include_in_schema=False)

_HOUR_S = DAY_S / 24
PERIODS: dict[str, tuple[str, float, int]] = {
    "hour": ("Last hour", _HOUR_S, 12),
    "day": ("Last 24 hours", DAY_S, 24),
    "week": ("Last 7 days", 7 * DAY_S, 14),
    "month": ("Last 30 days", 30 * DAY_S, 30),
}
"""Name, length in seconds, and in how many parts its volume is shown."""


@router.get("/dashboard")
def dashboard(
    request: Request,
    here: Here,
    visitor: SignedIn,
    period: Annotated[Literal["hour", "day", "week", "month"], Query()] = "day",
) -> Response:
    """The page."""
    _, length, parts = PERIODS[period]
    until = time.time()
    with here.database.reading() as session:
        found = figures(session, until - length, until, parts)
        other = what_if(session)
        names = labels(session)
    points = [asdict(point) for point in other.points]
    return page(
        request,
        "dashboard",
        visitor,
        period=period,
        periods=PERIODS,
        f=found,
        volume=stacked(found.bars),
        other=other,
        curve=curve(other.points) if other.points else None,
        points=json.dumps(points),
        labels=names,
        knows=found.knows,
    )
