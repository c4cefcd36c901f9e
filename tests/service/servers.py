"""Servers and databases for the service's tests, and what is asked of them."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx2
from small import verdict

from safelens.policy import Policy
from safelens.service.database import Database
from safelens.service.keys import Keys
from safelens.service.queue import Queue
from safelens.service.tables import BundleVersion, Deployment, PolicyVersion

SAMPLES = Path(__file__).parents[2] / "samples"


def activate(database):
    """Write a deployment of a made-up bundle; `prepare` hashes a real one."""
    policy = Policy.load("default")
    added = {"added_at": 0.0, "added_by": "system"}
    with database.writing() as session:
        session.add(
            PolicyVersion(
                sha256=policy.sha256,
                policy_id=policy.id,
                version="1",
                yaml=policy.to_yaml(),
                **added,
            )
        )
        session.flush()
        session.add(
            BundleVersion(
                sha256="b" * 64,
                name="small",
                version="1",
                source="nowhere",
                knows="SafeWorld only",
                tau=0.9,
                taus={},
                layout="policy_first",
                keyframe_shift_s=0.0,
                policy_encoding="sequential",
                policy_sha256=policy.sha256,
                **added,
            )
        )
        session.flush()
        session.add(
            Deployment(
                bundle_sha256="b" * 64,
                policy_sha256=policy.sha256,
                tau=None,
                activated_at=0.0,
                activated_by="system",
            )
        )


class Served:
    """A running web process, without workers, and keys for it."""

    def __init__(self, settings, url):
        self.settings = settings
        self.url = url
        self.database = Database(settings.database_url)
        self.keys = {r: Keys(self.database).add(r, r) for r in ("client", "moderator", "admin")}

    def http(self, role="client", **options):
        """An HTTP client with a key of that role; None has none."""
        headers = {"Authorization": f"Bearer {self.keys[role].key}"} if role else {}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=30, **options)


@contextmanager
def serving(settings):
    """A web process on a port of its own."""
    from safelens.service.supervise import LISTEN, exported

    with socket.create_server(("127.0.0.1", 0)) as listen:
        process = subprocess.Popen(
            [sys.executable, "-m", "safelens.service.web"],
            env={**os.environ, **exported(settings), LISTEN: str(listen.fileno())},
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=[listen.fileno()],
        )
        served = Served(settings, f"http://127.0.0.1:{listen.getsockname()[1]}")
        try:
            with served.http(None) as http:
                http.get("/healthz", timeout=60)
            yield served
        finally:
            process.terminate()
            process.communicate()
            served.database.close()


@contextmanager
def started(data, *options, **environment):
    """`safelens serve` as a user starts it, when it is ready: its address, the admin's key, its log."""
    log = data / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "safelens", "serve", "--port", "0", "--data", data, *options],
            env=os.environ | environment,
            stderr=out,
        )
    try:
        until = time.monotonic() + 240
        while not (found := re.search(r"listening on (http://\S+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until
            time.sleep(0.1)
        with httpx2.Client(base_url=found[1], timeout=60) as http:
            while http.get("/readyz").status_code != 200:
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.2)
        yield found[1], (data / "admin.key").read_text().strip(), log
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 0, log.read_text()


def moderate_all(served, **fields):
    """End every job that waits, as a model process would."""
    queue = Queue(served.database, 30.0)
    while (claimed := queue.claim("test", 32)).jobs:
        for job in claimed.jobs:
            assert queue.finish("test", job.id, verdict(job.name, **fields))


def problem(answer):
    """The code of a problem document; fails if it is none."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    document = json.loads(answer.text)
    assert document["status"] == answer.status_code
    assert document["detail"]
    assert document["title"]
    return document["code"]
