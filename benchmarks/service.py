"""The service under load and under kill -9, with the embedded bundle: overhead, memory, lost and doubled verdicts.

    python -m benchmarks.service                        # SQLite
    python -m benchmarks.service --postgresql postgresql://user@host/name    # an empty database, in addition

Writes `reports/service.json`. Knows processes and counts; what it runs is `safelens serve`, as a user would.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from safelens.service.client import ServiceClient, ServiceError
from safelens.service.database import Database
from safelens.service.tables import AuditEntry, Job, VerdictRow

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "reports" / "service.json"
SAMPLES = sorted((ROOT / "samples").glob("*.mp4"))
WAIT_S = 1800.0
_STARTED = re.compile(r'"runs": "safelens\.service\.(web|worker)", "child": (\d+)')


class Service:
    """A running `safelens serve`; a context manager.

    Args:
        folder: its data.
        database_url: None for SQLite.
    """

    def __init__(self, folder: Path, database_url: str | None = None) -> None:
        self._log = folder / "log"
        self.database_url = database_url or f"sqlite:///{folder / 'safelens.db'}"
        environment = os.environ | {
            "DATABASE_URL": self.database_url,
            "SAFELENS_REQUESTS_PER_MINUTE": "1000000",
        }
        command = [sys.executable, "-m", "safelens", "serve", "--port", "0", "--data", str(folder)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, env=environment, stderr=log)
        address = self._wait_for(r"listening on (http://\S+)")
        self.key = (folder / "admin.key").read_text().strip()
        self.url = address
        with self.client() as client:
            until = time.monotonic() + WAIT_S
            while time.monotonic() < until:
                with contextlib.suppress(ServiceError):
                    client.verdict(client.submit(SAMPLES[0])["id"], timeout_s=60)
                    return
        raise SystemExit(f"the service does not start; see {self._log}")

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=120)

    def client(self) -> ServiceClient:
        """A client that does not give up soon."""
        return ServiceClient(self.url, self.key, timeout_s=120, retries=12)

    def child(self, kind: str) -> int:
        """The process that runs `web` or `worker` now."""
        found = [pid for what, pid in _STARTED.findall(self._log.read_text()) if what == kind]
        return int(found[-1])

    def _wait_for(self, pattern: str) -> str:
        until = time.monotonic() + WAIT_S
        while not (found := re.search(pattern, self._log.read_text())):
            if self._process.poll() is not None or time.monotonic() > until:
                raise SystemExit(self._log.read_text())
            time.sleep(0.1)
        return found[1]


def videos(folder: Path, count: int) -> list[Path]:
    """Real videos of different content: samples, each with another unused box at its end."""
    found = []
    for number in range(count):
        path = folder / f"{number}.mp4"
        box = struct.pack(">I4sQ", 16, b"free", random.getrandbits(63))
        path.write_bytes(SAMPLES[number % len(SAMPLES)].read_bytes() + box)
        found.append(path)
    return found


def overhead(service: Service, files: list[Path]) -> dict[str, float]:
    """Milliseconds between sending a video and having its verdict that no stage of the engine took."""
    spent = []
    with service.client() as client:
        for file in files:
            began = time.perf_counter()
            verdict = client.verdict(client.submit(file)["id"])
            spent.append(1000 * (time.perf_counter() - began - sum(verdict.timing.values())))
    cuts = statistics.quantiles(spent, n=100, method="inclusive")
    return {"p50": round(cuts[49], 2), "p99": round(cuts[98], 2), "videos": len(files)}


def uploads(service: Service, files: list[Path]) -> dict[str, Any]:
    """All at once; the web process's memory in MB, and jobs without a verdict."""
    web, peak, over = service.child("web"), [_resident_mb(service.child("web"))], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            peak.append(_resident_mb(web))

    watcher = threading.Thread(target=watch)
    watcher.start()
    with service.client() as client, ThreadPoolExecutor(len(files)) as pool:
        jobs = [job["id"] for job in pool.map(client.submit, files)]
        lost = sum(client.job(job)["state"] != "done" for job in _ended(client, jobs))
    over.set()
    watcher.join()
    memory = {"before": peak[0], "peak": max(peak)}
    return {"count": len(jobs), "lost": lost, "web_resident_mb": memory}


def faults(service: Service, files: Iterator[Path], kills: int, seed: int) -> dict[str, int]:
    """Kill -9 of web or worker at random moments while videos come in and moderators decide."""
    chance, accepted, decided, over = random.Random(seed), [], [], threading.Event()

    def send() -> None:
        with service.client() as client:
            for file in files:
                if over.is_set():
                    return
                accepted.append(client.submit(file)["id"])
                first = client.job(accepted[len(decided)])
                if first["state"] == "done" and first["decision"] is None:
                    with contextlib.suppress(ServiceError):  # nothing decided, nothing to confirm
                        client.decide(first["id"], "escalate")
                    decided.append(first["id"])
                time.sleep(0.1)

    sender = threading.Thread(target=send)
    sender.start()
    for _ in range(kills):
        time.sleep(chance.uniform(1.0, 8.0))
        with contextlib.suppress(ProcessLookupError):
            os.kill(service.child(chance.choice(("web", "worker"))), signal.SIGKILL)
    over.set()
    sender.join()
    with service.client() as client:
        _ended(client, accepted)
    return {"kills": kills, **_counted(service.database_url, accepted, decided)}


def _counted(url: str, accepted: list[str], decided: list[str]) -> dict[str, int]:
    database = Database(url)
    with database.reading() as session:
        verdicts = list(session.scalars(select(VerdictRow.job_id)))
        jobs = session.scalar(select(func.count()).select_from(Job)) or 0
        audited = set(
            session.scalars(
                select(AuditEntry.subject).where(AuditEntry.action == "decision.escalate")
            )
        )
    database.close()
    return {
        "accepted": len(accepted),
        "lost": len(set(accepted) - set(verdicts)),
        "duplicated": len(verdicts) - len(set(verdicts)) + jobs - len(set(accepted)) - 1,
        "audit_entries": len(decided),
        "audit_entries_lost": len(set(decided) - audited),
    }


def _ended(client: ServiceClient, jobs: list[str]) -> list[str]:
    for job in jobs:
        client.verdict(job, timeout_s=WAIT_S)
    return jobs


def _resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--postgresql", metavar="URL", help="an empty database")
    parser.add_argument("--videos", type=int, default=200, help="for the overhead")
    parser.add_argument("--uploads", type=int, default=500, help="at once")
    parser.add_argument("--kills", type=int, default=50, help="on each database")
    parser.add_argument("--out", type=Path, default=REPORT)
    asked = parser.parse_args()
    report = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with Service(_new(folder, "load")) as service:
            sent = videos(_new(folder, "a"), asked.videos)
            report["overhead_ms"] = overhead(service, sent)
            report["uploads"] = uploads(service, videos(_new(folder, "b"), asked.uploads))
        targets = {"sqlite": None, "postgresql": asked.postgresql}
        report["faults"] = {}
        for number, (name, url) in enumerate(targets.items()):
            if name == "postgresql" and url is None:
                continue
            with Service(_new(folder, name), url) as service:
                endless = (
                    file
                    for turn in range(1_000_000)
                    for file in videos(_new(folder, f"{name}-{turn}"), 20)
                )
                report["faults"][name] = faults(service, endless, asked.kills, number)
    for key in ("kills", "lost", "duplicated"):
        report[key] = sum(found[key] for found in report["faults"].values())
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def _new(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


if __name__ == "__main__":
    main()
