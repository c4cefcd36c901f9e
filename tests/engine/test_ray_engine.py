"""A real cluster of this machine, its processes killed: every video one verdict, the local engine's."""

import asyncio
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import Counter

import hurt_system
import pytest
import ray.cloudpickle
import torch
from processes import processes
from test_verdicts import lines
from typer.testing import CliRunner
from verdict_of import same

from safelens.cascade import SafeLens
from safelens.cli import app
from safelens.engine.cluster import Pool, connected
from safelens.engine.manifest import Entry, read_manifest
from safelens.engine.online import Online, VideoLost
from safelens.engine.ray_engine import RayEngine
from safelens.engine.verdicts import read_verdicts

# Each killed process imports its models anew, some eight times in all; beside other tests that takes its time.
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
torch.set_num_threads(1)
POOL = Pool(cpus=0.5)
COPIES = 4
# Actors have no path to this folder.
ray.cloudpickle.register_pickle_by_value(hurt_system)


def numbered(video, number):
    """The same video with other bytes: an empty box at the end that players skip."""
    return video.read_bytes() + struct.pack(">I4sI", 12, b"free", number)


@pytest.fixture(scope="module")
def bundle(make_bundle):
    return make_bundle(screen={"domain": None})


@pytest.fixture(scope="module")
def folder(videos, tmp_path_factory):
    """Videos with a manifest."""
    found = tmp_path_factory.mktemp("many")
    names = []
    for number in range(COPIES * len(videos)):
        names.append(f"{number}.mp4")
        (found / names[-1]).write_bytes(numbered(videos[number % len(videos)], number))
    (found / "manifest.csv").write_text("video\n" + "".join(f"{name}\n" for name in names))
    return found


@pytest.fixture(scope="module")
def local(bundle, videos, folder):
    """Tau, which leaves half of the videos to S2, and the local engine's verdicts."""
    with SafeLens.load(bundle, device="cpu", tau=0.0) as lens:
        sure = sorted(m.verdict.confidence for m in lens.moderate_many(videos))
    tau = (sure[2] + sure[3]) / 2
    with SafeLens.load(bundle, device="cpu", tau=tau) as lens:
        entries = read_manifest(str(folder / "manifest.csv"))
        return tau, {
            m.verdict.video: m.verdict for m in lens.moderate_many(e.video for e in entries)
        }


def wait_for(found, seconds=240):
    """What a function gives, once it gives something."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := found():
            return value
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def check(out, wanted):
    """Every video once, in the plain files too, and each as the local engine has it."""
    found = {v.video: v for v in read_verdicts(out)}
    assert all(same(found[video], verdict) for video, verdict in wanted.items())
    written = Counter(lines(out) + lines(out, "aside.jsonl"))
    assert written.keys() == found.keys()
    assert set(written.values()) == {1}
    return found


def test_killed_processes_and_a_poisoned_video(bundle, folder, local, tmp_path):
    tau, wanted = local
    out, poison = tmp_path / "out", folder / "poison.mp4"
    poison.write_bytes(numbered(folder / "0.mp4", 99))
    options = {"tau": tau, "device": "cpu"}
    system = hurt_system.HurtSystem(str(bundle), options=options, wait_s=0.1)
    entries = [Entry(video) for video in wanted]
    entries.insert(5, Entry(str(poison)))
    killed = []

    def kill():
        for stage, count in (("ScreenStage", 3), ("Ledger", 6), ("DeliberateStage", 1)):
            wait_for(lambda count=count: len(lines(out)) >= count)
            found = processes(os.getpid(), stage)
            for pid in found:
                os.kill(pid, signal.SIGKILL)
            killed.append((stage, len(found)))

    killer = threading.Thread(target=kill, daemon=True)
    with connected(None, (POOL, POOL)):
        engine = RayEngine(system, out, screen=POOL, deliberate=POOL)
        killer.start()
        result = engine.run(engine.missing(entries))
        killer.join(timeout=60)
        engine.close()
        online = Online("nothing", system, POOL, POOL)
        with pytest.raises(VideoLost):
            asyncio.run(online.moderate_alone(str(poison)))
        alone = asyncio.run(online.moderate_alone(str(folder / "0.mp4")))
    assert same(alone.verdict, wanted[alone.verdict.video])
    assert len(alone.clip.frames) > 1
    assert killed == [("ScreenStage", 1), ("Ledger", 1), ("DeliberateStage", 1)]
    assert result.missing == 0
    found = check(out, wanted)
    assert found.keys() == wanted.keys() | {str(poison)}
    aside = found[str(poison)]
    assert (aside.status, aside.flagged, aside.error.code) == ("model_error", None, "worker_died")


def command(folder, bundle, tau, out, *more):
    words = ["moderate", str(folder / "manifest.csv"), "--engine", "ray", "--bundle", str(bundle)]
    words += ["--tau", str(tau), "--device", "cpu", "--out", str(out), "--screen-cpus", "0.5"]
    return [*words, "--deliberate-cpus", "0.5", *more]


def test_a_killed_driver_loses_nothing_and_the_next_run_does_what_is_missing(
    bundle, folder, local, tmp_path
):
    tau, wanted = local
    out = tmp_path / "out"
    words = [sys.executable, "-m", "safelens", *command(folder, bundle, tau, out)]
    first = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        wait_for(lambda: lines(out))
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    before = len(list(read_verdicts(out)))
    second = subprocess.run(words, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    found = re.search(rf"(\d+) of {len(wanted)} have a verdict already", second.stderr)
    assert found is not None
    assert int(found[1]) >= before  # what outlived the driver may have gone on for a moment
    assert second.stdout.startswith(f"{len(wanted)} videos in ")
    assert second.stdout.endswith("Limits of this bundle: drawings\n")
    check(out, wanted)
    kept = {p: p.stat().st_mtime_ns for p in out.glob("verdicts-*")}
    third = subprocess.run(words, capture_output=True, text=True, check=False)
    assert third.returncode == 0, third.stderr
    assert f"{len(wanted)} of {len(wanted)} have a verdict already" in third.stderr
    assert kept == {p: p.stat().st_mtime_ns for p in out.glob("verdicts-*")}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--engine ray writes a folder of verdicts; name it with --out"),
        (["--out", "{out}", "--json"], "--json does not go with --engine ray"),
        (["--out", "{out}", "--report", "a.html"], "--report does not go with --engine ray"),
        (["--out", "{file}"], "is a file; --engine ray writes a folder"),
        (
            ["--out", "{out}", "--screen-actors", "0"],
            "--screen-actors 0: expected a number such as",
        ),
        (["--out", "{out}", "--screen-actors", "4:2"], "--screen-actors 4:2: expected"),
        (["--out", "{out}", "--bundle", "nothing"], "nothing"),
        (["--out", "{out}", "--policy", "nothing"], "nothing"),
        (["--out", "{out}", "--base-url", "http://a/v1"], "S2 on a server needs --served-model"),
    ],
)
def test_wrong_use_is_said_before_a_cluster_starts(tmp_path, options, said):
    manifest, file = tmp_path / "m.jsonl", tmp_path / "file"
    manifest.write_text('{"video": "a.mp4"}\n')
    file.write_text("")
    words = [o.format(out=tmp_path / "out", file=file) for o in options]
    result = CliRunner().invoke(app, ["moderate", str(manifest), "--engine", "ray", *words])
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_bad_manifest_is_named_with_its_line(tmp_path):
    manifest = tmp_path / "m.jsonl"
    manifest.write_text('{"video": "a.mp4"}\n{}\n')
    words = ["moderate", str(manifest), "--engine", "ray", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert f"{manifest}:2: expected an object" in result.stderr
