"""A Ray cluster of three nodes in network namespaces of this machine, one of them cut off in the middle of a run.

    python -m benchmarks.scale_nodes [--clips 200] [--work out/scale_nodes]

Adds the key `nodes` to `reports/scale.json`. Needs root on Linux and `ip` (Debian: iproute2). Makes a bridge, three
namespaces and a virtual cable to each, starts Ray's head in one and a worker in each of the others, and runs `safelens
moderate --engine ray` from the head. When a third of the verdicts are there, the cable of a worker that runs actors is
unplugged: its processes go on, and reach nobody. Takes everything away at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.scale import REPORT, STORE_BYTES, WORKERS, compared, lines, local, moderate, world
from recipes.machine import machine
from recipes.stages import Stage, run

BRIDGE = "slbridge"
NODES = ("slhead", "slnode1", "slnode2")
PORT = 6379
CPUS = 2
LONGEST_S = 900.0


def ip(*words: str, within: str | None = None) -> str:
    """`ip` of iproute2, if given in a namespace. Raises subprocess.CalledProcessError."""
    before = [] if within is None else ["ip", "netns", "exec", within]
    done = subprocess.run([*before, "ip", *words], check=True, capture_output=True, text=True)
    return done.stdout


def check() -> None:
    """Say what is missing on this machine. Raises SystemExit."""
    if os.geteuid() != 0:
        raise SystemExit("this makes network namespaces, which needs root")
    if shutil.which("ip") is None:
        raise SystemExit("ip is not there; install iproute2 (Debian: apt-get install iproute2)")
    there = {line.split()[0] for line in ip("netns", "list").splitlines() if line}
    if there & set(NODES) or f": {BRIDGE}:" in ip("link"):
        raise SystemExit(
            f"there is something by the name of {BRIDGE} or {', '.join(NODES)}; remove it first"
        )


@dataclass
class Network:
    """Nodes that see each other and nothing else.

    Attributes:
        addresses: by node.
    """

    addresses: dict[str, str] = field(
        default_factory=lambda: {name: f"10.231.7.{i + 1}" for i, name in enumerate(NODES)}
    )

    def make(self) -> None:
        """Bridge, namespaces, cables. Raises subprocess.CalledProcessError."""
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("link", "set", BRIDGE, "up")
        for name, address in self.addresses.items():
            ip("netns", "add", name)
            ip("link", "add", f"{name}b", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"{name}b", "master", BRIDGE, "up")
            ip("addr", "add", f"{address}/24", "dev", "eth0", within=name)
            ip("link", "set", "lo", "up", within=name)
            ip("link", "set", "eth0", "up", within=name)

    def unplug(self, name: str) -> None:
        """Nothing comes or goes any more; nobody is told."""
        ip("link", "set", f"{name}b", "down")

    def pids(self, name: str) -> list[int]:
        """Processes of a node."""
        return [int(pid) for pid in ip("netns", "pids", name).split()]

    def remove(self) -> None:
        """Kill what runs there, and take it down, as far as it was made."""
        for name in NODES:
            if any(line.split()[0] == name for line in ip("netns", "list").splitlines() if line):
                for pid in self.pids(name):
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                ip("netns", "del", name)
        if f": {BRIDGE}:" in ip("link"):
            ip("link", "del", BRIDGE)


@contextmanager
def network() -> Iterator[Network]:
    """A network as long as the block runs."""
    found = Network()
    try:
        found.make()
        yield found
    finally:
        found.remove()


def start(net: Network, name: str, folder: Path, log: Path) -> subprocess.Popen[bytes]:
    """Ray on a node. The head runs no actors that ask for a CPU, so that all are on the others."""
    ray = Path(sys.executable).with_name("ray")
    words = [str(ray), "start", "--block", "--node-ip-address", net.addresses[name]]
    if name == NODES[0]:
        words += ["--head", "--port", str(PORT), "--num-cpus", "0", "--include-dashboard", "false"]
        words += ["--temp-dir", str(folder)]
    else:
        words += ["--address", f"{net.addresses[NODES[0]]}:{PORT}", "--num-cpus", str(CPUS)]
    words += ["--object-store-memory", str(STORE_BYTES), "--disable-usage-stats"]
    with log.open("ab") as out:
        return subprocess.Popen(within(name, words), stdout=out, stderr=out)


def within(name: str, words: list[str]) -> list[str]:
    """A command in a node's namespace."""
    return ["ip", "netns", "exec", name, *words]


def alive(net: Network) -> int:
    """How many nodes the head counts as alive."""
    code = (
        f"import ray; ray.init('{net.addresses[NODES[0]]}:{PORT}', log_to_driver=False); "
        "print(sum(n['Alive'] for n in ray.nodes()))"
    )
    done = subprocess.run(
        within(NODES[0], [sys.executable, "-c", code]), capture_output=True, text=True, check=False
    )
    return int(done.stdout.split()[-1]) if done.returncode == 0 and done.stdout.split() else 0


def actors(net: Network, name: str) -> list[str]:
    """The stages' actors of a node, by what they call themselves."""
    found = []
    for pid in net.pids(name):
        try:
            title = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:  # it has ended
            continue
        found += [word for word in WORKERS if word in title]
    return found


def cut(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: the run; what happened is in `found.json`."""
    verdicts = out / "verdicts"
    if verdicts.exists():
        shutil.rmtree(verdicts)
    with (
        tempfile.TemporaryDirectory(prefix="slray", ignore_cleanup_errors=True) as folder,
        network() as net,
    ):
        for name in NODES:
            start(net, name, Path(folder), out / f"{name}.log")
            time.sleep(8 if name == NODES[0] else 1)
        until = time.monotonic() + 90
        while (there := alive(net)) < len(NODES):
            if time.monotonic() > until:
                raise SystemExit(f"{there} of {len(NODES)} nodes came up; see {out}")
        found = _moderated(net, out, verdicts, settings, needs["world"])
    (out / "found.json").write_text(json.dumps(found, indent=1) + "\n")


def _moderated(
    net: Network, out: Path, verdicts: Path, settings: dict[str, Any], clips: Path
) -> dict[str, Any]:
    manifest = clips / f"0-{settings['clips']}.jsonl"
    command = moderate(
        *(manifest, "--engine", "ray", "--ray-address", f"{net.addresses[NODES[0]]}:{PORT}"),
        *("--out", verdicts, "--screen-actors", 2, "--screen-cpus", 0.5),
        *("--deliberate-actors", 2, "--deliberate-cpus", 0.5),
    )
    began = time.monotonic()
    with (out / "driver.log").open("ab") as log:
        driver = subprocess.Popen(within(NODES[0], command), stdout=log, stderr=log)
    victim, lost = "", []
    while driver.poll() is None and lines(verdicts) < settings["clips"] // 3:
        time.sleep(0.1)
    before = lines(verdicts)
    placed = {name: actors(net, name) for name in NODES[1:]}
    if driver.poll() is None:
        victim = max(placed, key=lambda name: len(placed[name]))
        lost = placed[victim]
        net.unplug(victim)
    cut_at = time.monotonic()
    try:
        code = driver.wait(timeout=LONGEST_S)
    except subprocess.TimeoutExpired:
        driver.kill()
        code = None
    return {
        "exit_code": code,
        "cut_off": victim,
        "actors": placed,
        "actors_cut_off": len(lost),
        "verdicts_before": before,
        "seconds_before": round(cut_at - began, 1),
        "seconds_after": round(time.monotonic() - cut_at, 1),
        "nodes_alive_after": alive(net),
    }


def main() -> None:
    """Run what is missing, and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--work", type=Path, default=Path("out/scale_nodes"))
    parser.add_argument("--out", type=Path, default=REPORT)
    args = parser.parse_args()
    check()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the network is removed
    # All nodes need the same: Ray's head asks for a token as soon as one lies in the home folder.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    before = machine()
    drawn = Stage("world", world, {"clips": args.clips, "parts": []})
    here = Stage("local", local, {"clips": args.clips}, (drawn,))
    away = Stage("cut", cut, {"clips": args.clips}, (drawn,))
    run(here, away, root=args.work)
    there = away.folder(args.work)
    found = json.loads((there / "found.json").read_text())
    if found["exit_code"] not in (0, 1) or not found["actors_cut_off"]:
        raise SystemExit(f"nothing was shown: {found}; see {there}")
    report = json.loads(args.out.read_text()) if args.out.exists() else {}
    report["nodes"] = {
        "command": f"python -m benchmarks.scale_nodes --clips {args.clips}",
        "machine": before,
        **compared(here.folder(args.work) / "verdicts.jsonl", there / "verdicts"),
        **found,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["nodes"], indent=1))


if __name__ == "__main__":
    main()
