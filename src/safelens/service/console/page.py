"""A page as a browser gets it: template, escaping, headers; and problems as pages.

Knows no page's content. No script or style stands in a page itself, and nothing is loaded from elsewhere.
"""

from __future__ import annotations

from functools import cache
from typing import Any
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from safelens.report import in_words, printable
from safelens.service.console import words
from safelens.service.console.access import Visitor
from safelens.service.console.session import PATH
from safelens.service.problems import Problem

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "media-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # A page that a signed-out neighbour finds with the back button would show verdicts.
    "Cache-Control": "no-store",
}


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("safelens.service.console"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "printable": printable,
        "clock": words.clock,
        "when": words.when,
        "iso": words.iso,
        "percent": words.percent,
        "bytes": words.size,
        "plainly": words.plainly,
    }
    environment.globals |= {"words": words, "in_words": in_words}
    return environment


def page(
    request: Request, template: str, visitor: Visitor | None, *, status: int = 200, **values: Any
) -> HTMLResponse:
    """A page.

    Args:
        request: what it answers.
        template: its name without `.html.j2`.
        visitor: who sees it; None for nobody who has signed in.
        status: HTTP's.
        values: what the template names.
    """
    template_ = _templates().get_template(f"{template}.html.j2")
    html = template_.render(visitor=visitor, path=request.url.path, **values)
    return HTMLResponse(html.encode("utf-8", "backslashreplace"), status, headers=_HEADERS)


def on_problem(request: Request, problem: Problem) -> Response:
    """A problem of the console's routes: to the sign-in, or a page that says what is wrong."""
    if problem.code == "unauthorized" and request.method == "GET":
        query = f"?{request.url.query}" if request.url.query else ""
        return RedirectResponse(f"{PATH}/sign-in?to={quote(request.url.path + query)}", 303)
    return page(request, "problem", None, status=problem.status, problem=problem.document())
