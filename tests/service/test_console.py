"""The console over plain HTTP: who gets in, what a post needs, what a page may load."""

import json
import re

import httpx2
import pytest
from servers import moderate_all

from safelens.service.console.session import COOKIE, Session, Sessions, secret


def browser(served):
    return httpx2.Client(base_url=served.url, timeout=30)


def token(page):
    return re.search(r'name="token" value="([^"]+)"', page.text)[1]


def sign_in(http, key, to="/console/queue"):
    fields = {"token": token(http.get("/console/sign-in")), "key": key, "to": to}
    return http.post("/console/sign-in", data=fields)


@pytest.fixture
def http(served):
    with browser(served) as found:
        assert sign_in(found, served.keys["moderator"].key).status_code == 303
        yield found


@pytest.fixture
def job(served, sample, request):
    with served.http() as client:
        made = client.post("/v1/jobs", content=sample + request.node.name.encode()).json()["id"]
    moderate_all(served, flagged=True, score=0.9)
    return made


def decision(served, job):
    with served.http("moderator") as http:
        return http.get(f"/v1/jobs/{job}").json()["decision"]


@pytest.mark.parametrize("place", ["queue", "review/job_x", "audit", "dashboard", "media/job_x"])
def test_without_a_session_there_is_only_the_sign_in(served, place):
    with browser(served) as http:
        answer = http.get(f"/console/{place}?search=a")
        assert answer.status_code == 303
        assert answer.headers["location"] == f"/console/sign-in?to=/console/{place}%3Fsearch%3Da"
        assert "api key" in http.get(answer.headers["location"]).text.lower()


def test_signing_in_and_out(served):
    with browser(served) as http:
        for key, words in (("slk_wrong", "not valid"), (served.keys["client"].key, "is client")):
            refused = sign_in(http, key)
            assert (refused.status_code, words in refused.text) == (403, True)
            assert http.get("/console/queue").status_code == 303
        answer = sign_in(http, served.keys["moderator"].key, "/console/dashboard?period=week")
        assert answer.headers["location"] == "/console/dashboard?period=week"
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        assert served.keys["moderator"].key not in cookie
        page = http.get("/console/queue")
        assert page.status_code == 200
        old = http.cookies[COOKIE]
        left = http.post("/console/sign-out", data={"token": token(page)})
        assert left.status_code == 303
        assert http.get("/console/queue").status_code == 303
        assert http.get("/console/queue", headers={"Cookie": f"{COOKIE}={old}x"}).status_code == 303
    with served.http("moderator") as api:
        acts = [
            entry["action"] for entry in api.get("/v1/audit", params={"limit": 2}).json()["entries"]
        ]
        assert acts == ["console.sign_out", "console.sign_in"]


@pytest.mark.parametrize("to", ["https://evil.test/", "//evil.test", "/console/\\evil", "/v1/jobs"])
def test_a_sign_in_leads_nowhere_else(served, to):
    with browser(served) as http:
        answer = sign_in(http, served.keys["moderator"].key, to)
        assert answer.headers["location"] == "/console/queue"


def test_a_session_ends_with_its_key_and_its_time(served):
    sessions = Sessions(secret(served.settings))
    from safelens.service.keys import Keys

    keys = Keys(served.database)
    made = keys.add("leaves", "moderator")
    with browser(served) as http:
        sign_in(http, made.key)
        assert http.get("/console/queue").status_code == 200
        keys.revoke(made.id)
        assert http.get("/console/queue").status_code == 303

    class Cookies:
        def __init__(self):
            self.cookies = {}
            self.url = httpx2.URL("https://here")

        def set_cookie(self, name, value, **options):
            assert options["secure"]
            self.cookies[name] = value

    kept = Cookies()
    sessions.keep(Session("a"), kept, kept)
    assert sessions.of(kept).key == "a"
    assert Sessions("another").of(kept) is None
    sessions.keep(Session("a", until=1.0), kept, kept)
    assert sessions.of(kept) is None


def test_a_post_needs_its_own_session_s_token(served, http, job):
    address = f"/console/review/{job}/decision"
    page = http.get(f"/console/review/{job}")
    with browser(served) as other:
        sign_in(other, served.keys["admin"].key)
        foreign = token(other.get("/console/queue"))
    for fields in ({}, {"token": ""}, {"token": "wrong"}, {"token": foreign}):
        answer = http.post(address, data={"kind": "confirm", **fields})
        assert (answer.status_code, "cross_site" in answer.text) == (403, True)
    with browser(served) as nobody:
        data = {"kind": "confirm", "token": token(page)}
        assert nobody.post(address, data=data).status_code == 401
    assert decision(served, job) is None
    done = http.post(address, data={"kind": "confirm", "token": token(page)})
    assert done.status_code == 303
    assert decision(served, job) == "confirm"


def test_decisions_that_make_no_sense_are_said(served, http, job):
    sent = {"token": token(http.get(f"/console/review/{job}"))}
    for fields, words in (
        ({"kind": "overturn"}, "needs what is true"),
        ({"kind": "overturn", "label": "nonsense"}, "expected different ones"),
        ({"kind": "nonsense"}, "expected confirm"),
        ({"kind": "confirm", "note": "x" * 2001}, "short note"),
    ):
        answer = http.post(f"/console/review/{job}/decision", data=sent | fields)
        assert answer.status_code == 422
        assert words in answer.text
    assert decision(served, job) is None
    http.post(f"/console/review/{job}/decision", data=sent | {"kind": "overturn", "label": "safe"})
    assert decision(served, job) == "overturn"


def test_no_page_loads_or_runs_what_is_not_the_console_s(served, http, job):
    for place in ("sign-in", "queue", f"review/{job}", "audit", "dashboard", "review/none"):
        answer = http.get(f"/console/{place}")
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["cache-control"] == "no-store"
        assert not re.search(r"<script(?![^>]* src=\"/console/)", answer.text)
        assert not re.search(r"\s(style|on\w+)=", answer.text)
        assert "//" not in re.sub(
            r'xmlns="[^"]*"', "", " ".join(re.findall(r'(?:src|href)="[^"]*"', answer.text))
        )


def test_media_by_ranges(http, job, sample):
    whole = http.get(f"/console/media/{job}")
    assert whole.content.startswith(sample)
    part = http.get(f"/console/media/{job}", headers={"Range": "bytes=4-11"})
    assert (part.status_code, part.content) == (206, sample[4:12])
    assert "sandbox" in part.headers["content-security-policy"]


def test_the_queue_is_ordered_by_risk_and_uncertainty(served, http, sample):
    scores = {"sure": 0.02, "unsure": 0.45, "worst": 0.99}
    with served.http() as client:
        for name, score in scores.items():
            client.post(
                "/v1/jobs", params={"name": f"order-{name}"}, content=sample + name.encode()
            )
            moderate_all(served, flagged=score > 0.5, score=score)
    page = http.get("/console/queue", params={"search": "order-"}).text
    assert re.findall(r">order-(\w+)", page) == ["worst", "unsure", "sure"]
    assert "tiny" not in page
    page = http.get("/console/queue", params={"search": "order-", "order": "uncertainty"}).text
    assert re.findall(r">order-(\w+)", page) == ["unsure", "sure", "worst"]
    none = http.get("/console/queue", params={"search": "order-", "flagged": "nonsense"})
    assert none.status_code == 422
    assert "<h1>" in none.text


def test_figures_and_too_few_decisions(served, http, job):
    page = http.get("/console/dashboard", params={"period": "hour"}).text
    assert "judged verdicts are too few: below 50" in page
    assert "Flag rate" in page


def test_the_api_takes_no_cookie(http):
    assert http.get("/v1/jobs").status_code == 401
    assert json.loads(http.get("/v1/jobs").text)["code"] == "unauthorized"
