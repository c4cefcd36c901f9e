"""kill -9 of web and worker processes under load, on both databases: every accepted job, one verdict."""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from servers import SAMPLES
from sqlalchemy import func, select

from safelens.service.client import ServiceClient
from safelens.service.keys import Keys
from safelens.service.settings import Settings
from safelens.service.supervise import LISTEN, exported
from safelens.service.tables import AuditEntry, Job, VerdictRow

KILLS = 5
JOBS = 40


class Processes:
    """One web process and two workers, started anew when they were killed."""

    def __init__(self, settings, listen):
        self.listen = listen
        self.environment = {**os.environ, **exported(settings), LISTEN: str(listen.fileno())}
        stub = str(Path(__file__).with_name("stub_worker.py"))
        self.commands = [["-m", "safelens.service.web"], [stub], [stub]]
        self.running = [self.start(command) for command in self.commands]

    def start(self, command):
        return subprocess.Popen(
            [sys.executable, *command],
            env=self.environment,
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=[self.listen.fileno()],
        )

    def kill(self, index):
        self.running[index].send_signal(signal.SIGKILL)
        self.running[index].communicate()
        self.running[index] = self.start(self.commands[index])

    def end(self):
        for process in self.running:
            process.kill()
            process.communicate()


def test_no_job_is_lost_or_judged_twice(settings, database):
    found = Settings(**(settings.model_dump() | {"lease_s": 1.0}))
    key = Keys(database).add("load", "moderator")
    sample = (SAMPLES / "safe.mp4").read_bytes()
    accepted, decided = [], []

    with socket.create_server(("127.0.0.1", 0), backlog=256) as listen:
        processes = Processes(found, listen)
        url = f"http://127.0.0.1:{listen.getsockname()[1]}"

        def send(numbers):
            folder = settings.data / f"sender{numbers[0]}"
            folder.mkdir(parents=True)
            with ServiceClient(url, key.key, retries=10) as client:
                for number in numbers:
                    video = folder / f"{number}.mp4"
                    video.write_bytes(sample + number.to_bytes(4, "big"))
                    accepted.append(client.submit(video)["id"])
                for job in accepted[:5]:
                    client.verdict(job, timeout_s=60)
                decided.extend(client.decide(job, "confirm")["id"] for job in accepted[:5])

        senders = [threading.Thread(target=send, args=(range(n, JOBS, 4),)) for n in range(4)]
        try:
            for sender in senders:
                sender.start()
            chance = random.Random(7)
            for kill in range(KILLS):
                time.sleep(chance.uniform(0.5, 1.2))
                processes.kill(0 if kill in (1, 3) else chance.choice((1, 2)))
            for sender in senders:
                sender.join(timeout=120)
            with ServiceClient(url, key.key) as client:
                for job in accepted:
                    client.verdict(job, timeout_s=60)
        finally:
            processes.end()

    assert len(accepted) == len(set(accepted)) == JOBS
    with database.reading() as session:
        states = dict(session.execute(select(Job.state, func.count()).group_by(Job.state)).all())
        verdicts = set(session.scalars(select(VerdictRow.job_id)))
        acts = select(AuditEntry.details).where(AuditEntry.action == "decision.confirm")
        audited = {details["decision"] for details in session.scalars(acts)}
    assert states == {"done": JOBS}
    assert verdicts == set(accepted)
    assert decided
    assert set(decided) <= audited
