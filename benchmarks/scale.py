"""The cascade on Ray beside the local engine: nothing lost or doubled under kill -9, overhead, speedup, the plan.

    python -m benchmarks.scale [--clips 5000] [--work out/scale]

Writes `reports/scale.json`. Knows which runs there are and what is counted; each is `safelens moderate`, as a user
would give it, on SafeWorld clips and the embedded bundle. Can be interrupted: each run is a stage, done once. Nothing
else should run on the machine.

The overhead is that of one worker beside the local engine, both on all cores. The speedup is that of a second machine of
one core: each worker is on a node of its own, whose processes, decoder too, are confined to one core. Ray's head, the
driver and the ledger may use either core. The simulator is given the seconds of one run on such nodes, and foretells
others, of other clips.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from recipes.machine import machine
from recipes.stages import Stage, run
from safelens.cli._progress import progress
from safelens.engine.plan import Measured
from safelens.engine.simulate import simulate
from safelens.engine.verdicts import read_verdicts
from safelens.line_log import LineLog
from safelens.verdict import Verdict

REPORT = Path("reports/scale.json")
WORKER_KILLS, DRIVER_KILLS = 10, 2
WORKERS = ("ScreenStage", "DeliberateStage")
OTHERS = 300
"""Clips of the run from whose seconds the simulator foretells the others."""
STORE_BYTES = 200 << 20
TOLERANCE = 1e-3
"""Scores may differ by this much: batches differ from run to run, and with them the last bits."""


def processes(of: int, title: str) -> list[int]:
    """Ids of a process's descendants that have a word in what they call themselves."""
    parents: dict[int, int] = {}
    titles: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat, name = (entry / "stat").read_text(), (entry / "cmdline").read_text()
            except OSError:  # it has ended
                continue
            parents[int(entry.name)] = int(stat.rsplit(")", 1)[1].split()[1])
            titles[int(entry.name)] = name

    def below(pid: int) -> bool:
        while pid in parents and pid != of:
            pid = parents[pid]
        return pid == of

    return [pid for pid, name in titles.items() if title in name and below(pid)]


def moderate(*words: object, threads: int | None = None) -> list[str]:
    """The command of a run; `threads` bounds the local engine's, as an actor's CPUs do Ray's."""
    before = [] if threads is None else ["env", f"OMP_NUM_THREADS={threads}"]
    return [*before, sys.executable, "-m", "safelens", "moderate", *map(str, words)]


def lines(folder: Path) -> int:
    """How many verdicts the plain files of a folder hold."""
    files = [*folder.glob("verdicts-*.jsonl"), folder / "aside.jsonl"]
    return sum(file.read_bytes().count(b"\n") for file in files if file.exists())


@contextmanager
def nodes_of_one_core(count: int) -> Iterator[str]:
    """A Ray cluster of so many nodes on this machine, each confined to a core, and a head without; gives its address.

    Raises:
        SystemExit: there are fewer cores.
    """
    from ray.cluster_utils import Cluster

    cores = os.sched_getaffinity(0)
    if len(cores) < count:
        raise SystemExit(f"{count} nodes of one core, and there are {len(cores)} cores")
    store = {"object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **store})
    try:
        for core in sorted(cores)[:count]:
            os.sched_setaffinity(0, {core})  # what a node starts inherits it
            cluster.add_node(num_cpus=1, **store)
            os.sched_setaffinity(0, cores)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        os.sched_setaffinity(0, cores)
        cluster.shutdown()


# -- stages -------------------------------------------------------------------------------------------


def world(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: the clips, and manifests of all and of parts."""
    from safelens.safeworld.writer import Progress, write_dataset

    with progress("clips", settings["clips"]) as bar:

        def on_progress(found: Progress) -> None:
            bar.at(found.done)

        write_dataset(
            out / "world", clips=settings["clips"], seed=71, jobs=2, on_progress=on_progress
        )
    videos = sorted((out / "world" / "videos").iterdir())
    for first, last in ([0, settings["clips"]], *settings["parts"]):
        part = [str(v.absolute()) for v in videos[first:last]]
        name = f"{first}-{last}"
        (out / f"{name}.jsonl").write_text("".join(json.dumps({"video": v}) + "\n" for v in part))
        (out / f"{name}.txt").write_text("".join(f"{v}\n" for v in part))


def local(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: the local engine's verdicts."""
    with (needs["world"] / f"0-{settings['clips']}.txt").open("rb") as names:
        command = moderate("-", "--out", out / "verdicts.jsonl", "--resume", "--json")
        done = subprocess.run(command, stdin=names, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise SystemExit(f"the local engine ended with {done.returncode}; see {out}")


def killed(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: two workers of each stage; kill -9 of a worker or the driver whenever so many more are done."""
    card = out / "kills.json"
    kills = json.loads(card.read_text()) if card.exists() else []
    plan = ["worker"] * settings["worker_kills"] + ["driver"] * settings["driver_kills"]
    random.Random(3).shuffle(plan)
    manifest = needs["world"] / f"0-{settings['clips']}.jsonl"
    command = moderate(
        *(manifest, "--engine", "ray", "--out", out / "verdicts"),
        *("--screen-actors", 2, "--screen-cpus", 0.5),
        *("--deliberate-actors", 2, "--deliberate-cpus", 0.5),
    )
    chance = random.Random(5)
    while True:
        with (out / "log").open("ab") as log:
            driver = subprocess.Popen(command, stdout=log, stderr=log)
        for what in plan[len(kills) :]:
            target = settings["clips"] * (len(kills) + 1) // (len(plan) + 1)
            while lines(out / "verdicts") < target and driver.poll() is None:
                time.sleep(0.2)
            victims = [driver.pid]
            if what == "worker":
                title = chance.choice(WORKERS)
                while not (victims := processes(driver.pid, title)) and driver.poll() is None:
                    time.sleep(0.2)
            if driver.poll() is not None:
                break
            victim = chance.choice(victims)
            os.kill(victim, signal.SIGKILL)
            kills.append({"what": what, "done": lines(out / "verdicts")})
            card.write_text(json.dumps(kills))
            if what == "driver":
                break
        code = driver.wait()
        if code >= 0:
            break
    if code not in (0, 1):  # 1: some could not be read or were set aside, which is counted
        raise SystemExit(f"the run ended with {code}; see {out / 'log'}")


def timed(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Stage: seconds of runs over parts of the clips; `nodes` of one core each, or without any on all cores."""
    card = out / "found.json"
    found: dict[str, float] = json.loads(card.read_text()) if card.exists() else {}
    nodes = settings.get("nodes")
    with nullcontext() if nodes is None else nodes_of_one_core(nodes) as address:
        there = [] if nodes is None else ["--ray-address", address]
        for repeat in range(settings["repeats"]):
            for first, last in settings["parts"]:
                part = f"{first}-{last}"
                key = f"{repeat}/{part}"
                if key in found:
                    continue
                target = out / key.replace("/", "-")
                words: list[object] = ["--tau", settings["tau"], "--out", target]
                if settings["engine"] == "local":
                    target.unlink(missing_ok=True)
                    command = moderate("-", "--json", *words, threads=1)
                else:
                    for file in target.glob("*"):
                        file.unlink()
                    manifest = needs["world"] / f"{part}.jsonl"
                    ray = ["--engine", "ray", *there, *settings["ray"]]
                    command = moderate(manifest, *ray, *words)
                with (needs["world"] / f"{part}.txt").open("rb") as names:
                    began = time.perf_counter()
                    subprocess.run(command, stdin=names, stdout=subprocess.DEVNULL, check=True)
                    found[key] = time.perf_counter() - began
                card.write_text(json.dumps(found))
                print(f"  {key}: {found[key]:.1f} s", flush=True)


# -- what is counted ------------------------------------------------------------------------------------


def compared(wanted: Path, found: Path) -> dict[str, Any]:
    """Verdicts of the killed runs beside the local engine's; all by the video's SHA-256."""
    ours = [v.sha256 or v.video for v in read_verdicts(found)]
    count = Counter(ours)
    by_key = {v.sha256 or v.video: v for v in read_verdicts(found)}
    theirs = {
        v.sha256 or v.video: v
        for v in (Verdict.model_validate(line) for line in LineLog(wanted).read())
    }
    different = [k for k, v in theirs.items() if k in by_key and not same(v, by_key[k])]
    return {
        "videos": len(theirs),
        "missing": sum(key not in count for key in theirs),
        "duplicated": sum(n > 1 for n in count.values()),
        "escalated": sum(v.decided_by == "deliberate" for v in theirs.values()),
        "set_aside": sum(v.status == "model_error" for v in by_key.values()),
        "different": len(different),
        "tolerance": TOLERANCE,
        "copies_of_one_clip": len(ours) - len(count),
    }


def same(a: Verdict, b: Verdict) -> bool:
    """Whether two verdicts say the same."""
    if (a.status, a.flagged, a.label, a.decided_by) != (b.status, b.flagged, b.label, b.decided_by):
        return False
    if a.explanation != b.explanation or a.captions != b.captions:
        return False
    return all(
        abs(x.score - y.score) <= TOLERANCE for x, y in zip(a.categories, b.categories, strict=True)
    )


def seconds_a_clip(folder: Path, counts: list[int]) -> list[float]:
    """Of each repeat: the longer run's time over the shorter one's, by the clips that it had more.

    So starting and loading do not count.
    """
    found = json.loads((folder / "found.json").read_text())
    few, many = counts
    repeats = len(found) // 2
    return [(found[f"{r}/0-{many}"] - found[f"{r}/0-{few}"]) / (many - few) for r in range(repeats)]


def median(values: list[float]) -> float:
    """The middle one."""
    return sorted(values)[len(values) // 2]


def ran(folder: Path, counts: list[int], screen: int) -> dict[str, float]:
    """A timed run as it was: seconds a clip, and the share of them in which a stage's replicas worked."""
    own = Measured.of(read_verdicts(folder / f"0-0-{counts[1]}"))
    seconds = median(seconds_a_clip(folder, counts))
    worked = max(float(own.decode_s.mean()), float(own.screen_s.mean()))
    second = own.escalated * float(own.deliberate_s.mean())
    return {
        "seconds_a_clip": seconds,
        "screen_busy": worked / (screen * seconds),
        "deliberate_busy": second / seconds,
    }


def foretold(measured: Measured, counts: list[int], screen: int) -> dict[str, float]:
    """The same as the simulator says it."""
    import numpy as np

    rng = np.random.default_rng(0)
    few, many = (
        simulate(np.zeros(n), *measured.draw(n, rng), screen=screen, deliberate=1) for n in counts
    )
    return {
        "seconds_a_clip": (many.end - few.end) / (counts[1] - counts[0]),
        "screen_busy": many.screen_busy,
        "deliberate_busy": many.deliberate_busy,
    }


def simulator(folders: dict[str, Path], counts: list[int]) -> dict[str, Any]:
    """Three runs on nodes of one core as they were and as the simulator foretells them, from another run's seconds.

    That one was of other clips, with one replica of each stage. Of which share S2 is asked, where S1 is never
    sure to decide alone, is taken from it too.
    """
    [rates] = folders["rates"].glob("0-*-*")
    measured = Measured.of(read_verdicts(rates))
    alone = replace(measured, escalated=0.0)
    found: dict[str, Any] = {
        "from": {
            "clips": len(measured.screen_s),
            "decode_s": float(measured.decode_s.mean()),
            "screen_s": float(measured.screen_s.mean()),
            "deliberate_s": float(measured.deliberate_s.mean()),
            "escalated": measured.escalated,
        }
    }
    for name, given, screen in (
        ("one_core_s1", alone, 1),
        ("one_core_2_s1", alone, 2),
        ("one_core_both", measured, 1),
    ):
        was, will = ran(folders[name], counts, screen), foretold(given, counts, screen)
        ratio = {key: will[key] / was[key] for key in was if was[key]}
        found[name] = {"measured": was, "simulated": will, "ratio": ratio}
    return found


# -- all of it --------------------------------------------------------------------------------------------


def stages(clips: int, counts: list[int], repeats: int) -> dict[str, Stage]:
    """Declare the runs; nothing is run."""
    parts = [[0, count] for count in counts]
    others = [[counts[1], counts[1] + OTHERS]]
    drawn = Stage("world", world, {"clips": clips, "parts": parts + others})
    kills = {"worker_kills": WORKER_KILLS, "driver_kills": DRIVER_KILLS}
    needs = (drawn,)
    one = ["--screen-cpus", 1, "--deliberate-cpus", 1]
    # At tau 0 all is S1's, and S2's process has nothing to do.
    s1 = {"parts": parts, "repeats": repeats, "tau": 0.0}
    alone = s1 | {"engine": "ray", "ray": ["--screen-cpus", 1, "--deliberate-cpus", 0]}
    two = {"ray": [*alone["ray"], "--screen-actors", 2], "nodes": 2}
    both = {"engine": "ray", "ray": one, "tau": 0.9, "nodes": 2}
    return {
        "local": Stage("local", local, {"clips": clips}, needs),
        "killed": Stage("killed", killed, {"clips": clips} | kills, needs),
        "local_s1": Stage("timed", timed, s1 | {"engine": "local"}, needs),
        "ray_s1": Stage("timed", timed, s1 | {"engine": "ray", "ray": one}, needs),
        "one_core_s1": Stage("timed", timed, alone | {"nodes": 1}, needs),
        "one_core_2_s1": Stage("timed", timed, alone | two, needs),
        "one_core_both": Stage("timed", timed, both | {"parts": parts, "repeats": repeats}, needs),
        "rates": Stage("timed", timed, both | {"parts": others, "repeats": 1}, needs),
    }


def main() -> None:
    """Run what is missing, and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=5000)
    parser.add_argument("--counts", type=int, nargs=2, default=[50, 550], help="of timed runs")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("out/scale"))
    parser.add_argument("--out", type=Path, default=REPORT)
    args = parser.parse_args()
    before = machine()
    wanted = stages(args.clips, args.counts, args.repeats)
    run(*wanted.values(), root=args.work)
    folders = {name: stage.folder(args.work) for name, stage in wanted.items()}
    kills = Counter(k["what"] for k in json.loads((folders["killed"] / "kills.json").read_text()))
    rates = {
        name: seconds_a_clip(folder, args.counts)
        for name, folder in folders.items()
        if name not in ("local", "killed", "rates")
    }
    middle = {name: median(found) for name, found in rates.items()}
    report = {
        "command": f"python -m benchmarks.scale --clips {args.clips}",
        "machine": before,
        **compared(folders["local"] / "verdicts.jsonl", folders["killed"] / "verdicts"),
        "worker_kills": kills["worker"],
        "driver_kills": kills["driver"],
        "overhead_vs_local": middle["ray_s1"] / middle["local_s1"] - 1,
        "speedup_2_workers": middle["one_core_s1"] / middle["one_core_2_s1"],
        "seconds_a_clip": rates,
        "simulator": simulator(folders, args.counts),
    }
    if args.out.exists() and "nodes" in (there := json.loads(args.out.read_text())):
        report["nodes"] = there["nodes"]  # of benchmarks.scale_nodes
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(args.out.read_text())


if __name__ == "__main__":
    main()
