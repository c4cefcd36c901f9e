"""The service with the embedded bundle under load, under kill -9 and under attack; all figures of reports/service.json.

    python -m benchmarks.service [--work out/service]

Each measurement is a stage, run once: an interrupted run goes on where it was. Nothing else should run on the
machine; the report says how busy it was. What is run is `safelens serve`, as a user would, on SQLite and on a
PostgreSQL server of its own.
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
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

from sqlalchemy import select

from recipes.machine import machine, resident_mb
from recipes.postgresql import new_database, server
from recipes.stages import Stage, run
from safelens.service.client import ServiceClient, ServiceError
from safelens.service.database import Database
from safelens.service.tables import AuditEntry, Job, VerdictRow

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "reports" / "service.json"
SAMPLES = sorted((ROOT / "samples").glob("*.mp4"))
WAIT_S = 1800.0
AHEAD = 48
"""Videos under way while processes are killed: more than a worker takes at a time."""
OVERHEAD = (
    "from sending a video to having its verdict, at one client, less the engine's time: what its stages took in the "
    "service (decode, screen, evidence, caption, deliberate), and what `SafeLens.moderate` takes beside its stages on "
    "the same videos in one process"
)
OVER_STAGES = "the same, less the stages alone"
_STARTED = re.compile(r'"runs": "safelens\.service\.(web|worker)", "child": (\d+)')


class Service:
    """A running `safelens serve`; a context manager.

    Args:
        folder: its data.
        database_url: None for SQLite.
        options: of `safelens serve`.
    """

    def __init__(self, folder: Path, database_url: str | None = None, *options: str) -> None:
        folder.mkdir(parents=True)
        self._options = options
        self._folder, self._log = folder, folder / "log"
        self.database_url = database_url or f"sqlite:///{folder / 'safelens.db'}"
        self._environment = os.environ | {
            "DATABASE_URL": self.database_url,
            "SAFELENS_REQUESTS_PER_MINUTE": "1000000",
        }
        self.url = self._start("0")
        self.key = (folder / "admin.key").read_text().strip()
        self.warm_up: list[str] = []
        with ServiceClient(self.url, self.key, timeout_s=120, retries=1) as client:
            until = time.monotonic() + WAIT_S
            while time.monotonic() < until:
                self.check()
                with contextlib.suppress(ServiceError):
                    self.warm_up.append(client.submit(SAMPLES[0])["id"])
                    client.verdict(self.warm_up[-1], timeout_s=60)
                    return
        raise SystemExit(f"the service does not start; see {self._log}")

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=120)

    def client(self) -> ServiceClient:
        """A client that does not give up, however often the server is killed while a busy machine starts it."""
        return ServiceClient(self.url, self.key, timeout_s=120, retries=1000)

    def child(self, kind: str) -> int:
        """The process that runs `web` or `worker` now."""
        found = [pid for what, pid in _STARTED.findall(self._log.read_text()) if what == kind]
        return int(found[-1])

    def check(self) -> None:
        """Raise SystemExit if it has ended, which nobody asked it to."""
        if (status := self._process.poll()) is not None:
            raise SystemExit(f"the service ended with status {status}; see {self._log}")

    def kill(self, kind: str) -> bool:
        """`kill -9` of web, worker or their parent, which is then started anew; False if it was dead already."""
        if kind == "parent":
            self._process.kill()
            self._process.wait()
            self._start(self.url.rpartition(":")[2])
            return True
        try:
            os.kill(self.child(kind), signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def _start(self, port: str) -> str:
        """Start it, again and again while the port is still that of children who lost their parent."""
        data = ["--data", str(self._folder), "--port", port]
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until:
            with self._log.open("ab") as log:
                told = log.tell()
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "safelens", "serve", *data, *self._options],
                    env=self._environment,
                    stderr=log,
                )
            while self._process.poll() is None:
                if found := re.search(r"listening on (http://\S+)", self._log.read_text()[told:]):
                    return found[1]
                time.sleep(0.1)
        raise SystemExit(self._log.read_text()[-2000:])


def videos(folder: Path, name: str, number: int) -> list[Path]:
    """Real videos of different content: samples, each with another unused box at its end."""
    found = []
    for index in range(number):
        path = folder / f"{name}-{index}.mp4"
        box = struct.pack(">I4sQ", 16, b"free", random.getrandbits(63))
        path.write_bytes(SAMPLES[index % len(SAMPLES)].read_bytes() + box)
        found.append(path)
    return found


# -- stages ------------------------------------------------------------------------------------------


def overhead(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: one client, one video after the other; then the engine alone on the same videos."""
    before, found, spent, sent = machine(), _fresh(out), [], []
    files = videos(found, "video", settings["videos"])
    with Service(found / "data") as service, service.client() as client:
        for file in files:
            began = time.perf_counter()
            job = client.submit(file)["id"]
            sent.append(1000 * (time.perf_counter() - began))
            verdict = client.verdict(job)
            spent.append(1000 * (time.perf_counter() - began - sum(verdict.timing.values())))
    beside = _beside_stages(files)
    figures = _quantiles([s - b for s, b in zip(spent, beside, strict=True)]) | {
        "videos": len(files),
        "what": OVERHEAD,
        "over_stages": _quantiles(spent) | {"what": OVER_STAGES},
        "engine_beside_stages": _quantiles(beside),
        "submit": _quantiles(sent),
    }
    _write(out, before, {"overhead_ms": figures})


def uploads(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: all uploads at once; memory of web and worker until the last verdict."""
    before, found = machine(), _fresh(out)
    with Service(found / "data") as service:
        files = videos(found, "video", settings["uploads"])
        pids = {kind: service.child(kind) for kind in ("web", "worker")}
        memory, over, began = [], threading.Event(), time.monotonic()

        def watch() -> None:
            while not over.wait(0.25):
                now = {kind: resident_mb(pid) for kind, pid in pids.items()}
                memory.append({"s": round(time.monotonic() - began, 1)} | now)

        watcher = threading.Thread(target=watch)
        watcher.start()
        with service.client() as client, ThreadPoolExecutor(len(files)) as pool:
            jobs = [job["id"] for job in pool.map(client.submit, files)]
            accepted = time.monotonic() - began
            _ended(client, jobs)
            lost = sum(client.job(job)["state"] != "done" for job in jobs)
        over.set()
        watcher.join()
    half = [row for row in memory if row["s"] > accepted]
    flat = {
        kind: {
            "before": memory[0][kind],
            "peak": max(row[kind] for row in memory),
            "median_of_each_quarter_after_acceptance": [
                statistics.median(row[kind] for row in part) for part in _parts(half, 4)
            ],
        }
        for kind in pids
    }
    figures = {
        "at_once": len(jobs),
        "lost": lost,
        "accepted_after_s": round(accepted, 1),
        "done_after_s": memory[-1]["s"],
        "resident_mb": flat,
        "resident_mb_over_time": memory[:: max(1, len(memory) // 60)],
    }
    _write(out, before, {"uploads": figures})


def faults(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: `kill -9` at random moments while videos come in and moderators decide."""
    before, found = machine(), _fresh(out)
    with contextlib.ExitStack() as stack:
        url = None
        if settings["database"] == "postgresql":
            url = new_database(stack.enter_context(server()))
        service = stack.enter_context(Service(found / "data", url))
        sender = _Sender(service, found)
        sender.start()
        chance, killed = (
            random.Random(settings["seed"]),
            dict.fromkeys(("web", "worker", "parent"), 0),
        )
        while sum(killed.values()) < settings["kills"] and sender.is_alive():
            time.sleep(chance.uniform(*settings["pause_s"]))
            service.check()
            kind = chance.choices(tuple(killed), (5, 5, 1))[0]
            killed[kind] += service.kill(kind)
        sender.over.set()
        sender.join()
        if sender.error is not None:
            raise sender.error
        with service.client() as client:
            _ended(client, sender.accepted)
        counted = _counted(service, sender.accepted, sender.decided)
        _write(out, before, {"kills": sum(killed.values()), "killed": killed} | counted)


def attacked_captions(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: `benchmarks.attacks`."""
    file = out / "found.json"
    words = ["--each", str(settings["each"]), "--out", str(file)]
    subprocess.run([sys.executable, "-m", "benchmarks.attacks", *words], check=True)


def attacked_names(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: the attacks as names of uploads, each of other bytes of one video, under a tau that leaves all to S2."""
    from benchmarks.attacks import attacks

    before, found = machine(), _fresh(out)
    texts = [attack.text for attack in attacks()]
    video = (ROOT / "samples" / settings["video"]).read_bytes()
    to_s2 = ("--bundle", "tiny", "--tau", "1.01")
    with Service(found / "data", None, *to_s2) as service, service.client() as client:
        jobs = []
        for number, text in enumerate(["video.mp4", *texts]):
            file = found / f"{number}.mp4"
            file.write_bytes(video + struct.pack(">I4sQ", 16, b"free", number))
            name = text.encode("utf-8", "replace").decode()[:1024]
            jobs.append(client.submit(file, name=name)["id"])
        own, *others = [client.verdict(job, timeout_s=WAIT_S) for job in jobs]
    changed = [v for v in others if (v.status, v.label) != (own.status, own.label)]
    _write(
        out, before, {"strings": len(others), "decided_by": own.decided_by, "flips": len(changed)}
    )


class _Sender(threading.Thread):
    """Sends videos, never too many at a time, and decides on what is done, until `over`.

    Attributes:
        accepted: jobs.
        decided: those that a moderator has decided on.
        error: why it ended before `over`.
    """

    def __init__(self, service: Service, folder: Path) -> None:
        super().__init__(name="sender")
        self._service, self._folder = service, folder
        self.over = threading.Event()
        self.accepted: list[str] = []
        self.decided: list[str] = []
        self.error: Exception | None = None

    def run(self) -> None:
        """Until `over`."""
        try:
            with self._service.client() as client:
                for _ in count():
                    for file in videos(self._folder, "video", 20):
                        if self.over.is_set():
                            return
                        self.accepted.append(client.submit(file)["id"])
                        if len(self.accepted) > AHEAD:
                            job = self.accepted[-AHEAD]
                            client.verdict(job, timeout_s=WAIT_S)
                            if len(self.accepted) % 2:
                                client.decide(job, "escalate")
                                self.decided.append(job)
        except Exception as error:
            self.error = error


def _beside_stages(files: Sequence[Path]) -> list[float]:
    """Milliseconds that the engine takes for each video beside its stages."""
    from safelens import SafeLens

    found = []
    lens = SafeLens.load("tiny")
    try:
        for file in [*files[: len(SAMPLES)], *files]:
            began = time.perf_counter()
            timing = lens.moderate(file).verdict.timing
            found.append(1000 * (time.perf_counter() - began - sum(timing.values())))
    finally:
        lens.close()
    return found[-len(files) :]


def _counted(service: Service, accepted: list[str], decided: list[str]) -> dict[str, int]:
    database = Database(service.database_url)
    with database.reading() as session:
        verdicts = list(session.scalars(select(VerdictRow.job_id)))
        jobs = set(session.scalars(select(Job.id)))
        acts = select(AuditEntry.subject).where(AuditEntry.action == "decision.escalate")
        audited = set(session.scalars(acts))
    database.close()
    return {
        "accepted": len(accepted),
        "lost": len(set(accepted) - set(verdicts)),
        "duplicated": len(verdicts) - len(set(verdicts)) + len(accepted) - len(set(accepted)),
        "jobs_that_nobody_knows_of": len(jobs - set(accepted) - set(service.warm_up)),
        "decided": len(decided),
        "audit_entries_lost": len(set(decided) - audited),
    }


def _ended(client: ServiceClient, jobs: Sequence[str]) -> None:
    for job in jobs:
        client.verdict(job, timeout_s=WAIT_S)


def _quantiles(milliseconds: Sequence[float]) -> dict[str, float]:
    cuts = statistics.quantiles(milliseconds, n=100, method="inclusive")
    return {"p50": round(cuts[49], 2), "p99": round(cuts[98], 2)}


def _parts(rows: Sequence[Any], number: int) -> Iterator[Sequence[Any]]:
    size = max(1, len(rows) // number)
    for start in range(0, size * number, size):
        yield rows[start : start + size] or rows[-1:]


def _fresh(out: Path) -> Path:
    """A folder of this call's own: an interrupted service's database is of no use."""
    folder = out / f"run-{time.time_ns()}"
    folder.mkdir()
    return folder


def _write(out: Path, before: dict[str, Any], found: dict[str, Any]) -> None:
    (out / "found.json").write_text(json.dumps({"machine": before} | found, indent=1) + "\n")


# -- the report --------------------------------------------------------------------------------------


def stages() -> dict[str, Stage]:
    """Declare the measurements; nothing is run."""
    kill = {"kills": 50, "pause_s": [1.0, 12.0]}
    return {
        "overhead": Stage("overhead", overhead, {"videos": 200}),
        "uploads": Stage("uploads", uploads, {"uploads": 500}),
        "sqlite": Stage("sqlite", faults, kill | {"database": "sqlite", "seed": 1}),
        "postgresql": Stage("postgresql", faults, kill | {"database": "postgresql", "seed": 2}),
        "captions": Stage("captions", attacked_captions, {"each": 4}),
        "names": Stage("names", attacked_names, {"video": "hard.mp4"}),
    }


def together(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One report of all.

    A flip is a pair of a string and a video, in one position, whose verdict is not that of the video alone; the
    control's strings are neutral words.
    """
    killed = {
        name: {key: value for key, value in found[name].items() if key != "machine"}
        for name in ("sqlite", "postgresql")
    }
    positions = found["captions"]["positions"]
    return {
        "command": "python -m benchmarks.service",
        "machine": found["overhead"]["machine"],
        "measured_on": {
            name: {key: one["machine"][key] for key in ("cpu", "load_before")}
            for name, one in found.items()
        },
        "overhead_ms": found["overhead"]["overhead_ms"],
        "uploads": found["uploads"]["uploads"],
        **{
            key: sum(one[key] for one in killed.values())
            for key in ("kills", "lost", "duplicated", "audit_entries_lost")
        },
        "faults": killed,
        "attack_strings": found["captions"]["attack_strings"],
        "attack_pairs": found["names"]["strings"] + _sum(positions, "attack", "pairs"),
        "attack_flips": found["names"]["flips"] + _sum(positions, "attack", "changed"),
        "control_flips": _sum(positions, "control", "changed"),
        "attack_flips_to_safe": _sum(positions, "attack", "unsafe_to_safe"),
        "control_flips_to_safe": _sum(positions, "control", "unsafe_to_safe"),
        "attacks": {
            "file_names": {k: v for k, v in found["names"].items() if k != "machine"},
            "captions": {
                key: found["captions"][key] for key in ("clips", "clips_an_attack", "positions")
            },
        },
    }


def _sum(positions: dict[str, dict[str, dict[str, int]]], kind: str, key: str) -> int:
    return sum(one[kind][key] for one in positions.values())


def main() -> None:
    """Measure what is missing, and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("out/service"))
    parser.add_argument("--only", nargs="+", choices=list(stages()), help="stages; no report")
    parser.add_argument("--out", type=Path, default=REPORT)
    asked = parser.parse_args()
    wanted = stages()
    run(*(wanted[name] for name in asked.only or wanted), root=asked.work)
    if asked.only:
        return
    found = {
        name: json.loads((stage.folder(asked.work) / "found.json").read_text())
        for name, stage in wanted.items()
    }
    report = together(found)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(report, indent=1) + "\n")
    print(
        json.dumps({k: v for k, v in report.items() if k not in ("uploads", "attacks")}, indent=1)
    )


if __name__ == "__main__":
    main()
