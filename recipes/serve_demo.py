"""`make serve-demo`: service and console on this machine, with sample traffic and a moderator who knows the truth.

The traffic is samples/ and clips of SafeWorld. What SafeWorld says of its own clips is sent as a moderator's
decisions, so that the dashboard has something to show; the samples are left for who looks.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import httpx2

from safelens.data.records import read_records
from safelens.safeworld.writer import write_dataset
from safelens.service.client import ServiceClient

SAMPLES = Path(__file__).parents[1] / "samples"
CLIPS = 72
LEFT_OPEN = 6
SEED = 20_260
_MODERATOR = "demo moderator"


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("out/serve-demo"))
    parser.add_argument("--port", default="8080")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    options.data.mkdir(parents=True, exist_ok=True)
    log = options.data / "log"
    with log.open("wb") as out:
        command = [sys.executable, "-m", "safelens", "serve", "--port", options.port]
        server = subprocess.Popen([*command, "--data", str(options.data)], stderr=out)
    try:
        url = _listening(server, log)
        key = (options.data / "admin.key").read_text().strip()
        print(f"console  {url}/console\nAPI key  {key}\nlog      {log}", flush=True)
        with ServiceClient(url, key) as client, httpx2.Client(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60
        ) as http:  # fmt: skip
            if not any(row["name"] == _MODERATOR for row in http.get("/v1/keys").json()):
                _traffic(client, http, options.data / "world")
        print("All of the sample traffic is in. Ctrl-C ends the service.", flush=True)
        server.wait()
    except KeyboardInterrupt:
        pass
    finally:
        server.terminate()
        server.wait()


def _listening(server: subprocess.Popen[bytes], log: Path) -> str:
    while server.poll() is None:
        if found := re.search(r"listening on (http://\S+)", log.read_text()):
            with httpx2.Client(base_url=found[1], timeout=60) as http:
                http.get("/healthz")
            return found[1]
        time.sleep(0.2)
    sys.exit(log.read_text())


def _traffic(client: ServiceClient, http: httpx2.Client, world: Path) -> None:
    for path in sorted(SAMPLES.glob("*.mp4")):
        client.submit(path)
    print(f"drawing {CLIPS} clips of SafeWorld", flush=True)
    write_dataset(world, clips=CLIPS, seed=SEED)
    records = list(read_records(world / "records.jsonl"))
    jobs = [client.submit(world / record.video)["id"] for record in records]
    print(f"moderating {len(jobs)} of them, which takes a minute or two", flush=True)
    made = http.post("/v1/keys", json={"name": _MODERATOR, "role": "moderator"}).json()
    as_moderator = {"Authorization": f"Bearer {made['key']}"}
    for job, record in list(zip(jobs, records, strict=True))[LEFT_OPEN:]:
        verdict = client.verdict(job, timeout_s=900)
        flagged = [category.id for category in verdict.categories if category.flagged]
        decision = _decision(verdict.flagged, flagged, record.labels)
        http.post(f"/v1/jobs/{job}/decisions", json=decision, headers=as_moderator)


def _decision(
    decided: bool | None, flagged: Iterable[str], truth: Iterable[str]
) -> dict[str, object]:
    note = "by SafeWorld's own truth"
    if decided is None:
        return {"kind": "escalate", "note": note}
    if set(flagged) == set(truth):
        return {"kind": "confirm", "note": note}
    return {"kind": "overturn", "labels": sorted(truth), "note": note}


if __name__ == "__main__":
    main()
