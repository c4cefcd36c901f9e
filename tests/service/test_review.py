"""Decisions, the audit log, and decisions as records; versions, and retention."""

import os
import time

import pytest
from servers import moderate_all, problem
from small import upload, verdict
from sqlalchemy import update
from typer.testing import CliRunner

from safelens.cli import app
from safelens.data.records import read_records
from safelens.policy import Policy
from safelens.service.conclude import Frames
from safelens.service.keys import Keys
from safelens.service.media import MediaStore
from safelens.service.queue import Queue
from safelens.service.retention import Retention
from safelens.service.settings import DAY_S, Settings
from safelens.service.submit import Submissions
from safelens.service.tables import Job, VerdictRow


@pytest.fixture
def http(served):
    with served.http("moderator") as client:
        yield client


def done(served, http, data, **fields):
    job = http.post("/v1/jobs", content=data).json()["id"]
    moderate_all(served, **fields)
    return job


def decide(http, job, kind, labels=None, note=None):
    return http.post(
        f"/v1/jobs/{job}/decisions", json={"kind": kind, "labels": labels, "note": note}
    )


NOTHING = {"status": "out_of_domain", "label": None, "confidence": None, "decided_by": None,
           "categories": [], "flagged": None, "evidence": []}  # fmt: skip


def test_every_decision_is_kept_and_the_last_one_counts(served, http, sample):
    job = done(served, http, sample + b"decide", flagged=True, score=0.9)
    assert decide(http, job, "confirm").json()["labels"] == ["violence"]
    assert decide(http, job, "overturn", [], "a film").json()["labels"] == []
    assert decide(http, job, "escalate", note="<script>").status_code == 201
    kinds = [d["kind"] for d in http.get(f"/v1/jobs/{job}/decisions").json()]
    assert kinds == ["confirm", "overturn", "escalate"]
    assert http.get(f"/v1/jobs/{job}").json()["decision"] == "escalate"
    listed = http.get("/v1/jobs", params={"decision": "escalate"}).json()["jobs"]
    assert [j["id"] for j in listed] == [job]
    page = http.get("/v1/audit", params={"subject": job, "limit": 2}).json()
    assert [e["action"] for e in page["entries"]] == ["decision.escalate", "decision.overturn"]
    assert page["entries"][1]["details"]["verdict"]["label"] == "violence"
    rest = http.get("/v1/audit", params={"subject": job, "before": page["next"]}).json()
    assert [e["action"] for e in rest["entries"]] == ["decision.confirm"]


def test_decisions_that_make_no_sense(served, http, sample):
    waiting = http.post("/v1/jobs", content=sample + b"waiting").json()["id"]
    assert problem(decide(http, waiting, "confirm")) == "conflict"
    job = done(served, http, sample + b"unknown", **NOTHING)
    answer = decide(http, job, "confirm")
    assert problem(answer) == "conflict"
    assert "decided nothing" in answer.json()["detail"]
    for labels in (None, ["nonsense"], ["violence", "violence"], ["safe"]):
        assert problem(decide(http, job, "overturn", labels)) == "invalid"
    assert problem(decide(http, job, "escalate", ["violence"])) == "invalid"
    assert problem(decide(http, "job_none", "confirm")) == "not_found"


def test_feedback_becomes_a_data_set(served, http, sample, tmp_path, monkeypatch):
    right = done(served, http, sample + b"1", flagged=True, score=0.9)
    wrong = done(served, http, sample + b"2", flagged=True, score=0.9)
    open_ = done(served, http, sample + b"3")
    decide(http, right, "confirm")
    decide(http, wrong, "confirm")
    decide(http, wrong, "overturn", ["abuse", "sexual"])
    decide(http, open_, "escalate")
    monkeypatch.setenv("SAFELENS_API_KEY", served.keys["moderator"].key)
    out = tmp_path / "feedback"
    for _ in range(2):
        run = CliRunner().invoke(app, ["feedback", "--server", served.url, "--out", str(out)])
        assert run.exit_code == 0, run.output
    found = {r.id: r for r in read_records(out / "records.jsonl")}
    assert (found[right].labels, found[wrong].labels) == (("violence",), ("abuse", "sexual"))
    assert open_ not in found
    assert (out / found[right].video).read_bytes() == sample + b"1"
    checked = CliRunner().invoke(app, ["data", "stats", str(out / "records.jsonl")])
    assert checked.exit_code == 0, checked.output
    monkeypatch.setenv("SAFELENS_API_KEY", served.keys["client"].key)
    denied = CliRunner().invoke(app, ["feedback", "--server", served.url, "--out", str(out)])
    assert (denied.exit_code, "moderator" in denied.output) == (1, True)


# -- versions ----------------------------------------------------------------------------------------


def test_policies_are_checked_kept_activated_and_rolled_back(served, sample):
    policy = Policy.load("default")
    changed = policy.to_yaml().replace("version: '1'", "version: '2'")
    with served.http("admin") as admin:
        bad = admin.post("/v1/policies", content=b"id: X\nname: 5\n")
        assert problem(bad) == "invalid"
        assert {p["line"] for p in bad.json()["problems"]} >= {1, 2}
        added = admin.post("/v1/policies", content=changed.encode()).json()
        assert (added["policy_id"], added["version"]) == ("default", "2")
        again = admin.post("/v1/policies", content=changed.encode() + b"# a comment").json()
        assert again["sha256"] == added["sha256"]
        assert admin.get(f"/v1/policies/{added['sha256']}").json()["yaml"].startswith("id: default")
        before = admin.get("/v1/deployments/active").json()
        new = {
            "bundle_sha256": before["bundle_sha256"],
            "policy_sha256": added["sha256"],
            "tau": 0.5,
        }
        assert admin.post("/v1/deployments", json=new).status_code == 201
        job = admin.post("/v1/jobs", content=sample + b"versions").json()
        assert job["deployment"]["policy_sha256"] == added["sha256"]
        assert (job["deployment"]["policy"], job["deployment"]["tau"]) == ("default 2", 0.5)
        back = admin.post(f"/v1/deployments/{before['id']}/activate").json()
        assert back["policy_sha256"] == before["policy_sha256"]
        assert back["id"] > job["deployment"]["id"]
        assert admin.get("/v1/deployments/active").json()["id"] == back["id"]
        assert problem(admin.post("/v1/deployments/999/activate")) == "not_found"
        wrong = {"bundle_sha256": before["bundle_sha256"], "policy_sha256": "none"}
        assert problem(admin.post("/v1/deployments", json=wrong)) == "not_found"
        one = Policy(policy.id, policy.name, "3", policy.categories[:1])
        short = admin.post("/v1/policies", content=one.to_yaml().encode()).json()["sha256"]
        misfit = admin.post("/v1/deployments", json=new | {"policy_sha256": short})
        assert problem(misfit) == "invalid"
        assert "does not match the probe" in misfit.json()["detail"]


# -- retention ---------------------------------------------------------------------------------------


def test_media_goes_by_rule_and_verdicts_stay(database, settings, tmp_path):
    rules = Settings(
        data=settings.data,
        database_url=settings.database_url,
        retain_days={"safe": 1, "violence": 30},
    )
    media, queue = MediaStore(settings.media_url), Queue(database, 30)
    jobs, key = Submissions(database, 10), Keys(database).add("k", "client").id
    ages = {"safe": 2, "young": 0.5, "flagged": 20, "old": 40}
    ids = {}
    for name, days in ages.items():
        job = ids[name] = jobs.submit(key, upload(name.encode()), None)[0]
        media.write(b"video", f"videos/{job}")
        media.write(b"frames", f"frames/{job}")
        queue.claim("w", 1)
        found = verdict(flagged=name in ("flagged", "old"), score=0.1 if days < 3 else 0.9)
        queue.finish("w", job, found, Frames([{"time_s": 0}], f"frames/{job}"))
        with database.writing() as session:
            session.execute(
                update(Job).where(Job.id == job).values(finished_at=time.time() - days * DAY_S)
            )
    shared = jobs.submit(key, upload(b"old"), None)[0]  # reuses the verdict, and its frames
    retention = Retention(rules, database, media)
    assert retention.apply() == 2
    assert retention.apply() == 0
    kept = {path.name for path in (settings.data / "media" / "videos").iterdir()}
    assert kept == {ids["young"], ids["flagged"]}
    frames = {path.name for path in (settings.data / "media" / "frames").iterdir()}
    assert frames == {ids["young"], ids["flagged"], ids["old"]}
    with database.reading() as session:
        assert session.get(VerdictRow, ids["safe"]).status == "ok"
        assert session.get(VerdictRow, shared).frames_media == f"frames/{ids['old']}"


def test_what_dead_processes_left_is_swept(database, settings):
    media = MediaStore(settings.media_url)
    job, _ = Submissions(database, 9).submit(Keys(database).add("k", "client").id, upload(), None)
    settings.incoming.mkdir(parents=True)
    (settings.incoming / "half").write_bytes(b"x")
    (settings.incoming / "new").write_bytes(b"x")
    for name in (f"videos/{job}", "videos/job_orphan", "videos/job_fresh"):
        media.write(b"video", name)
    old = time.time() - 2 * DAY_S
    folder = settings.data / "media" / "videos"
    for path in (settings.incoming / "half", folder / job, folder / "job_orphan"):
        os.utime(path, (old, old))
    media.write(b"frames", "frames/job_orphan")
    os.utime(folder.parent / "frames" / "job_orphan", (old, old))
    Retention(settings, database, media).sweep()
    assert not list((folder.parent / "frames").iterdir())
    assert {path.name for path in settings.incoming.iterdir()} == {"new"}
    assert {path.name for path in folder.iterdir()} == {job, "job_fresh"}


def test_media_in_another_store(tmp_path):
    """fsspec's in-memory store goes the way that S3 would."""
    media = MediaStore("memory://bucket/prefix")
    (tmp_path / "video").write_bytes(b"0123456789")
    media.take(tmp_path / "video", "videos/job_1")
    media.write(b"frames", "frames/job_1")
    assert not (tmp_path / "video").exists()
    assert media.size("videos/job_1") == 10
    assert media.read("videos/job_1", 2, 5) == b"234"
    assert b"".join(media.stream("videos/job_1", 1, 4)) == b"123"
    with media.local("videos/job_1") as path:
        assert path.read_bytes() == b"0123456789"
    assert list(media.older("videos", -1.0)) == ["videos/job_1"]
    media.delete("videos/job_1")
    media.delete("videos/job_1")
    with pytest.raises(FileNotFoundError):
        media.size("videos/job_1")
    media.check()
