"""`safelens serve` as a user starts it: real processes, the real bundle, real videos."""

import io
import os
import re
import shutil
import signal
import sys
import zipfile
from pathlib import Path

import httpx2
import pytest
import yaml
from servers import SAMPLES, started
from typer.testing import CliRunner

import safelens
from safelens.bundle import BundleError, write_bundle
from safelens.cli import app
from safelens.service.client import ServiceClient
from safelens.service.settings import Settings
from safelens.service.start import prepare
from safelens.verdict import Verdict

TINY = Path(safelens.__file__).parent / "bundles" / "tiny"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """Address, admin's key and log of a service with one worker."""
    with started(tmp_path_factory.mktemp("serve")) as found:
        yield found


@pytest.fixture
def client(service):
    with ServiceClient(service[0], service[1]) as found:
        yield found


def test_a_video_gets_the_verdict_that_it_gets_without_a_service(client, service):
    job = client.submit(SAMPLES / "violence.mp4")
    verdict = client.verdict(job["id"], timeout_s=120)
    assert (verdict.flagged, verdict.label, verdict.video) == (True, "violence", "violence.mp4")
    assert verdict.provenance == client_provenance(client)
    found = client.job(job["id"])
    assert found["knows"] == verdict.provenance.knows
    assert any(frame["evidence"] for frame in found["frames"])
    headers = {"Authorization": f"Bearer {service[1]}"}
    frame = httpx2.get(service[0] + found["frames"][0]["url"], headers=headers)
    assert (frame.headers["content-type"], frame.content[:3]) == ("image/jpeg", b"\xff\xd8\xff")


def client_provenance(client):
    return Verdict.model_fields["provenance"].annotation.model_validate(
        client.deployment()["provenance"]
    )


def test_moderate_on_a_server(service, tmp_path, monkeypatch):
    monkeypatch.setenv("SAFELENS_API_KEY", service[1])
    (tmp_path / "notes.txt").write_text("no video")
    out = tmp_path / "verdicts.jsonl"
    paths = [str(SAMPLES / "safe.mp4"), str(tmp_path / "notes.txt"), str(SAMPLES / "real-film.mp4")]
    command = [
        "moderate",
        *paths,
        str(tmp_path / "gone.mp4"),
        "--server",
        service[0],
        "--out",
        str(out),
    ]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 1, run.output
    assert "Limits of this bundle: SafeWorld" in run.output
    found = [Verdict.from_json(line) for line in out.read_text().splitlines()]
    assert [v.video for v in found] == [*paths, str(tmp_path / "gone.mp4")]
    assert [v.status for v in found] == ["ok", "video_error", "out_of_domain", "video_error"]
    assert [v.error and v.error.code for v in found] == [
        None,
        "not_a_video",
        "out_of_domain",
        "not_found",
    ]
    assert found[1].flagged is None
    again = CliRunner().invoke(app, [*command, "--resume"])
    assert "4 of 4 are in" in again.output


def test_a_server_that_cannot_be_used_is_said(service, tmp_path, monkeypatch):
    video = str(SAMPLES / "safe.mp4")
    monkeypatch.delenv("SAFELENS_API_KEY", raising=False)
    run = CliRunner().invoke(app, ["moderate", video, "--server", service[0]])
    assert (run.exit_code, "SAFELENS_API_KEY" in run.output) == (2, True)
    monkeypatch.setenv("SAFELENS_API_KEY", "wrong")
    run = CliRunner().invoke(app, ["moderate", video, "--server", service[0]])
    assert (run.exit_code, "valid and not revoked" in run.output) == (2, True)
    run = CliRunner().invoke(app, ["moderate", video, "--server", service[0], "--tau", "0.5"])
    assert (run.exit_code, "--tau is about models here" in run.output) == (2, True)


def test_an_uploaded_bundle_moderates_also_after_the_web_process_was_killed(
    client, service, tmp_path
):
    folder = tmp_path / "tiny"
    shutil.copytree(TINY, folder)
    settings = yaml.safe_load((folder / "bundle.yaml").read_text())
    (folder / "bundle.yaml").unlink()
    other = {"version": "2", "policy_encoding": "parallel", "prune": {"keep": 0.5}}
    digest = write_bundle(folder, {k: v for k, v in settings.items() if k != "files"} | other)
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        for path in folder.rglob("*"):
            file.write(path, path.relative_to(tmp_path))
    headers = {"Authorization": f"Bearer {service[1]}"}
    with httpx2.Client(base_url=service[0], headers=headers, timeout=300) as http:
        answer = http.post("/v1/bundles", content=data.getvalue())
        assert answer.status_code == 201, answer.text
        assert answer.json()["sha256"] == digest
        assert http.post("/v1/deployments", json={"bundle_sha256": digest}).status_code == 201
    started = re.findall(r'"runs": "safelens.service.web", "child": (\d+)', service[2].read_text())
    job = client.submit(SAMPLES / "violence.mp4")
    os.kill(int(started[-1]), signal.SIGKILL)
    verdict = client.verdict(job["id"], timeout_s=200)
    assert (verdict.provenance.bundle, verdict.provenance.bundle_sha256) == ("tiny 2", digest)
    assert verdict.provenance == client_provenance(client)
    assert client.job(job["id"])["reused_from"] is None


def test_a_bundle_that_was_replaced_in_place_is_not_taken_for_the_old_one(tmp_path):
    folder = tmp_path / "tiny"
    shutil.copytree(TINY, folder)
    settings = Settings(data=tmp_path / "data")
    prepare(settings, bundle=str(folder), policy=None, tau=None)
    prepare(settings, bundle=None, policy=None, tau=None)
    text = (folder / "bundle.yaml").read_text()
    (folder / "bundle.yaml").write_text(text.replace("tau: 0.9", "tau: 0.8"))
    with pytest.raises(BundleError, match="no longer the bundle tiny 1"):
        prepare(settings, bundle=None, policy=None, tau=None)
    prepare(settings, bundle=str(folder), policy=None, tau=None)


def test_without_the_extra_serve_says_what_to_install(monkeypatch, tmp_path):
    for name in [n for n in sys.modules if n.startswith("safelens.service")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pydantic_settings", None)
    run = CliRunner().invoke(app, ["serve", "--data", str(tmp_path)])
    assert run.exit_code == 2
    assert "pip install 'safelens[service]'" in run.output


def test_keys_are_made_listed_and_revoked_without_the_service(tmp_path):
    def keys(*arguments):
        return CliRunner().invoke(app, ["keys", *arguments, "--data", str(tmp_path)])

    made = keys("add", "a team", "--role", "moderator").output
    identity = re.search(r"^id +(\w+)", made)[1]
    assert re.search(r"^key +slk_", made, re.MULTILINE)
    assert f"{identity}  moderator  valid" in keys("list").output
    assert keys("revoke", identity).exit_code == 0
    assert "revoked" in keys("list").output
    assert keys("revoke", identity).exit_code == 2
