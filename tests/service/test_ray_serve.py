"""`safelens serve --engine ray` as a user starts it, on a real cluster of this machine, its replicas killed."""

import os
import signal
import struct

import pytest
from processes import processes
from servers import SAMPLES, started
from sqlalchemy import func, select
from typer.testing import CliRunner
from verdict_of import same

from safelens.cascade import SafeLens
from safelens.cli import app
from safelens.service.client import ServiceClient
from safelens.service.conclude import named
from safelens.service.database import Database
from safelens.service.tables import Job, VerdictRow

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
COPIES = 3


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Copies of the samples, each with bytes of its own."""
    folder = tmp_path_factory.mktemp("copies")
    found = []
    for number in range(COPIES):
        for sample in sorted(SAMPLES.glob("*.mp4")):
            path = folder / f"{number}-{sample.name}"
            path.write_bytes(sample.read_bytes() + struct.pack(">I4sI", 12, b"free", number))
            found.append(path)
    return found


@pytest.fixture(scope="module")
def local(videos):
    with SafeLens.load("tiny", device="cpu") as lens:
        verdicts = [m.verdict for m in lens.moderate_many(videos)]
        found = {p.name: named(v, str(p), p.name) for p, v in zip(videos, verdicts, strict=True)}
    assert {v.decided_by for v in found.values()} == {"screen", "deliberate", None}
    return found


def test_killed_replicas_cost_no_job_and_all_say_what_one_machine_says(local, videos, tmp_path):
    options = ["--engine", "ray", "--screen-cpus", "0.5", "--deliberate-cpus", "0.5"]
    with started(tmp_path, *options) as (url, key, log), ServiceClient(url, key) as client:
        jobs = [client.submit(video)["id"] for video in videos]
        client.verdict(jobs[0], timeout_s=60)
        killed = processes(os.getpid(), "ServeReplica:safelens")
        assert len(killed) == 2
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        found = [client.verdict(job, timeout_s=120) for job in jobs]
        assert "video lost" in log.read_text()
        frames = client.job(jobs[0])["frames"]
        assert len(frames) > 1
    for verdict in found:
        assert same(verdict, local[verdict.video])
    database = Database(f"sqlite:///{tmp_path / 'safelens.db'}")
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(VerdictRow)) == len(jobs)
        attempts = session.scalars(select(Job.attempts)).all()
    database.close()
    assert 1 < max(attempts) <= 3
    assert not processes(os.getpid(), "ServeReplica:safelens")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--workers", "2"], "each worker would start a cluster of its own; name one with --ray-"),
        (["--screen-actors", "0"], "--screen-actors 0: expected a number such as 4, or 1:8"),
        (["--bundle", "nothing"], "nothing"),
    ],
)
def test_wrong_use_is_said_before_anything_starts(tmp_path, monkeypatch, options, said):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    words = ["serve", "--data", str(tmp_path), "--port", "0", "--engine", "ray", *options]
    result = CliRunner().invoke(app, words)
    assert (result.exit_code, said in result.stderr) == (2, True)


def test_options_of_the_cluster_need_its_engine(tmp_path):
    words = ["serve", "--data", str(tmp_path), "--port", "0", "--screen-gpus", "0.5"]
    result = CliRunner().invoke(app, words)
    assert (result.exit_code, "--screen-gpus belongs to --engine ray" in result.stderr) == (2, True)
