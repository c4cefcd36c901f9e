"""The HTTP API on a real port, without models: what goes in and comes out, and who may."""

import base64
import itertools

import pytest
from servers import moderate_all, problem
from small import verdict

from safelens.service.client import ServiceClient, ServiceError
from safelens.verdict import Verdict

_number = itertools.count()


@pytest.fixture
def fresh(sample):
    """Bytes of a video that nobody has sent yet."""
    return sample + next(_number).to_bytes(8, "big")


@pytest.fixture
def http(served):
    with served.http() as client:
        yield client


def send(http, data, **params):
    answer = http.post("/v1/jobs", content=data, params=params)
    assert answer.status_code == 202, answer.text
    return answer.json()


def test_a_file_becomes_a_job_and_a_verdict(served, http, fresh):
    job = send(http, fresh, name="a.mp4", reference="mine")
    assert (job["state"], job["name"], job["reference"]) == ("queued", "a.mp4", "mine")
    assert job["verdict"] is None
    moderate_all(served)
    found = http.get(f"/v1/jobs/{job['id']}", params={"wait": 5}).json()
    assert Verdict.model_validate(found["verdict"]).flagged is False
    assert (found["state"], found["status"], found["reused_from"]) == ("done", "ok", None)
    assert found["knows"].startswith("SafeWorld")


def test_a_form_is_read_too_and_its_name_is_kept(http, fresh):
    answer = http.post("/v1/jobs", files={"file": ("clip.mp4", fresh, "text/plain")})
    assert (answer.status_code, answer.json()["name"]) == (202, "clip.mp4")
    assert answer.json()["media_type"] == "video/mp4"
    assert answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"
    assert problem(http.post("/v1/jobs", files={"other": ("a.mp4", fresh)})) == "bad_request"


def test_the_same_video_again_reuses_its_verdict_and_says_so(served, http, fresh):
    first = send(http, fresh, name="first.mp4")
    moderate_all(served)
    second = send(http, fresh, name="second.mp4")
    assert (second["state"], second["reused_from"]) == ("done", first["id"])
    assert second["verdict"]["video"] == "second.mp4"


def test_an_idempotency_key_makes_one_job(http, fresh):
    headers = {"Idempotency-Key": f"k{next(_number)}"}
    first, again = (http.post("/v1/jobs", content=fresh, headers=headers) for _ in range(2))
    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json()["id"] == again.json()["id"]
    other = http.post("/v1/jobs", content=fresh + b"x", headers=headers)
    assert problem(other) == "idempotency_conflict"


def test_a_job_can_be_cancelled_until_it_is_done(served, http, fresh):
    job = send(http, fresh)
    assert http.post(f"/v1/jobs/{job['id']}/cancel").json()["state"] == "cancelled"
    done = send(http, fresh + b"2")
    moderate_all(served)
    assert problem(http.post(f"/v1/jobs/{done['id']}/cancel")) == "conflict"


def test_a_batch_is_all_or_nothing(http):
    urls = [{"url": f"http://videos.test/{n}.mp4", "reference": str(n)} for n in range(3)]
    answer = http.post("/v1/batches", json={"items": urls})
    assert answer.status_code == 202, answer.text
    batch = answer.json()
    assert [job["name"] for job in batch["jobs"]] == ["2.mp4", "1.mp4", "0.mp4"]
    cancelled = http.post(f"/v1/batches/{batch['id']}/cancel").json()
    assert cancelled["states"].get("fetching", 0) == 0
    bad = http.post("/v1/batches", json={"items": [*urls, {"url": "http://elsewhere.test/x"}]})
    assert problem(bad) == "url_refused"


def test_uploads_join_a_batch_of_the_same_client(served, http, fresh):
    batch = http.post("/v1/batches", json={}).json()["id"]
    job = send(http, fresh, batch=batch)
    assert http.get(f"/v1/batches/{batch}").json()["jobs"][0]["id"] == job["id"]
    with served.http("moderator") as other:
        answer = other.post("/v1/jobs", content=fresh, params={"batch": batch})
        assert problem(answer) == "not_found"


def test_lists_are_filtered_ordered_and_paged(served, http, fresh):
    for n in range(5):
        send(http, fresh + bytes([n]), name=f"{n}.mp4", reference="page")
    moderate_all(served)
    risky = send(http, fresh + b"risky", name="50%.mp4", reference="page")
    moderate_all(served, flagged=True, score=0.8)
    query = {"reference": "page", "limit": 2, "order": "risk"}
    seen, after = [], None
    while True:
        page = http.get("/v1/jobs", params=query | ({"after": after} if after else {})).json()
        seen += [job["id"] for job in page["jobs"]]
        if (after := page["next"]) is None:
            break
    assert len(seen) == len(set(seen)) == 6
    assert seen[0] == risky["id"]

    def names(**filters):
        found = http.get("/v1/jobs", params={"reference": "page", **filters}).json()["jobs"]
        return [job["name"] for job in found]

    assert names(flagged=True) == names(search="50%") == names(label="violence") == ["50%.mp4"]
    assert names(search="%") == ["50%.mp4"]
    assert names(decision="none", status="ok", limit=2) == ["50%.mp4", "4.mp4"]
    assert problem(http.get("/v1/jobs", params={"after": "nonsense"})) == "invalid"


def test_a_client_sees_its_own_jobs_alone(served, http, fresh):
    with served.http("admin") as admin:
        other = send(admin, fresh)["id"]
        mine = send(http, fresh + b"x")["id"]
        for path in ("", "/media", "/frames/0"):
            assert problem(http.get(f"/v1/jobs/{other}{path}")) == "not_found"
        assert admin.get(f"/v1/jobs/{mine}").status_code == 200
        assert other not in {job["id"] for job in http.get("/v1/jobs").json()["jobs"]}


def test_the_video_can_be_had_in_parts(http, fresh):
    job = send(http, fresh)["id"]
    whole = http.get(f"/v1/jobs/{job}/media")
    assert (whole.content, whole.headers["content-type"]) == (fresh, "video/mp4")
    part = http.get(f"/v1/jobs/{job}/media", headers={"Range": "bytes=5-9"})
    assert (part.status_code, part.content) == (206, fresh[5:10])
    assert problem(http.get(f"/v1/jobs/{job}/frames/0")) == "not_found"


# -- OpenAI's shape ----------------------------------------------------------------------------------


def moderation(http, served, data, **fields):
    """Ask for a moderation while somebody moderates."""
    import threading
    import time

    ended = threading.Event()

    def work():
        while not ended.is_set():
            moderate_all(served, **fields)
            time.sleep(0.02)

    thread = threading.Thread(target=work)
    thread.start()
    url = "data:video/mp4;base64," + base64.b64encode(data).decode()
    asked = {"input": [{"type": "video_url", "video_url": {"url": url}}], "model": "any"}
    try:
        return http.post("/v1/moderations", json=asked)
    finally:
        ended.set()
        thread.join()


def test_moderations_have_openais_shape(served, http, fresh):
    answer = moderation(http, served, fresh, flagged=True, score=0.7).json()
    [result] = answer["results"]
    assert (result["flagged"], result["categories"]) == (True, {"violence": True})
    assert result["category_scores"] == {"violence": 0.7}
    assert result["category_applied_input_types"] == {"violence": ["video"]}
    assert result["safelens"]["knows"].startswith("SafeWorld")


def test_what_is_not_decided_is_an_error_there_and_never_unflagged(served, http, fresh):
    fields = {"status": "out_of_domain", "label": None, "confidence": None, "decided_by": None,
              "categories": [], "flagged": None}  # fmt: skip
    answer = moderation(http, served, fresh, **fields)
    assert problem(answer) == "undecided"
    assert "SafeWorld" in answer.json()["knows"]


@pytest.mark.parametrize("given", ["How do I kill a process?", [{"type": "text", "text": "hello"}]])
def test_text_is_not_moderated(http, given):
    assert problem(http.post("/v1/moderations", json={"input": given})) == "invalid"


# -- keys, roles, operation --------------------------------------------------------------------------


def test_wrong_and_revoked_keys(served):
    with served.http(None) as http:
        for key in ("x", "slk_", "slk_x_y", "nonsense", served.keys["client"].key[:-1], "slk_é_x"):
            headers = [("Authorization", f"Bearer {key}".encode())]
            assert problem(http.get("/v1/jobs", headers=headers)) == "unauthorized"
        assert problem(http.get("/v1/jobs")) == "unauthorized"
    with served.http("admin") as admin:
        made = admin.post("/v1/keys", json={"name": "short-lived", "role": "client"}).json()
        headers = {"Authorization": f"Bearer {made['key']}"}
        with served.http(None) as other:
            assert other.get("/v1/jobs", headers=headers).status_code == 200
            assert admin.delete(f"/v1/keys/{made['id']}").status_code == 204
            assert problem(other.get("/v1/jobs", headers=headers)) == "unauthorized"
        listed = admin.get("/v1/keys").text
        assert made["id"] in listed
        assert made["key"] not in listed
        assert made["webhook_secret"] not in listed
        actions = [
            e["action"]
            for e in admin.get("/v1/audit", params={"subject": made["id"]}).json()["entries"]
        ]
        assert actions == ["key.revoke", "key.add"]


@pytest.mark.parametrize(
    ("role", "method", "path", "status"),
    [
        ("client", "GET", "/v1/audit", 403),
        ("client", "GET", "/v1/records", 403),
        ("client", "POST", "/v1/jobs/x/decisions", 403),
        ("moderator", "GET", "/v1/keys", 403),
        ("moderator", "POST", "/v1/policies", 403),
        ("moderator", "POST", "/v1/deployments/1/activate", 403),
        ("moderator", "GET", "/v1/audit", 200),
        ("client", "GET", "/v1/deployments/active", 200),
    ],
)
def test_roles(served, role, method, path, status):
    with served.http(role) as http:
        body = {"kind": "confirm"} if path.endswith("decisions") else None
        assert http.request(method, path, json=body).status_code == status


def test_health_readiness_and_metrics(served, http):
    with served.http(None) as anybody:
        assert anybody.get("/healthz").json() == {"status": "ok"}
        answer = anybody.get("/readyz")
        assert problem(answer) == "not_ready"
        assert "no model process" in answer.json()["detail"]
        assert problem(anybody.get("/metrics")) == "unauthorized"
        assert problem(anybody.get("/nowhere")) == "not_found"
        assert problem(anybody.delete("/healthz")) == "method_not_allowed"
    text = http.get("/metrics").text
    assert 'safelens_jobs{state="queued"}' in text
    assert "safelens_request_seconds_bucket" in text


def test_the_openapi_document_names_every_route(http):
    paths = http.get("/openapi.json").json()["paths"]
    assert {"/v1/jobs", "/v1/moderations", "/v1/batches", "/v1/deployments"} < set(paths)
    content = paths["/v1/jobs"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "multipart/form-data", "application/octet-stream"}


# -- the Python client -------------------------------------------------------------------------------


def test_the_client_sends_waits_and_lists(served, fresh, tmp_path):
    video = tmp_path / "my video.mp4"
    video.write_bytes(fresh)
    with ServiceClient(served.url, served.keys["client"].key) as client:
        job = client.submit(video, reference="by client")
        with pytest.raises(ServiceError) as late:
            client.verdict(job["id"], timeout_s=0.1)
        assert late.value.code == "too_slow"
        moderate_all(served)
        assert client.verdict(job["id"]) == verdict("my video.mp4")
        assert [j["id"] for j in client.jobs(reference="by client", limit=1)] == [job["id"]]
        with pytest.raises(ServiceError) as refused:
            client.decide(job["id"], "confirm")
        assert refused.value.code == "forbidden"
        client.media(job["id"], tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == fresh


def test_the_client_says_what_is_wrong(served):
    with ServiceClient(served.url, "wrong", retries=0) as client, pytest.raises(ServiceError) as e:
        client.deployment()
    assert (e.value.code, e.value.status) == ("unauthorized", 401)
    nobody = ServiceClient("http://127.0.0.1:1", "k", retries=0)
    with nobody, pytest.raises(ServiceError, match="does not answer"):
        nobody.deployment()
