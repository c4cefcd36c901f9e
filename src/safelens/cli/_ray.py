"""`safelens moderate --engine ray`: its options, its inputs, and what it says at the end.

Knows what is typed. Ray is the matter of `safelens.engine`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safelens.cli._options import FAILED, INTERRUPTED, fail
from safelens.cli._paths import UsageError, expand
from safelens.cli._progress import progress

if TYPE_CHECKING:
    from safelens.engine.cluster import Pool
    from safelens.engine.manifest import Entry
    from safelens.engine.ray_engine import RayEngine, Result
    from safelens.engine.system import System
    from safelens.remote_deliberate import Remote


class ShardsName(StrEnum):
    """What full shards of verdicts are."""

    jsonl = "jsonl"
    parquet = "parquet"


Address = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="ADDRESS",
        help="With --engine ray: the cluster, such as auto or ray-head:6379.",
        show_default="RAY_ADDRESS, or one is started here",
    ),
]
ScreenActors = Annotated[
    str | None,
    typer.Option(
        "--screen-actors",
        metavar="N[:M]",
        help="With --engine ray: processes that decode and run S1; N:M grows with their queue.",
        show_default="1",
    ),
]
ScreenCpus = Annotated[
    float | None,
    typer.Option("--screen-cpus", min=0.0, help="CPUs of each, and its threads.", show_default="1"),
]
ScreenGpus = Annotated[
    float | None,
    typer.Option(
        "--screen-gpus",
        min=0.0,
        help="GPUs of each; 0.25 puts four on one.",
        show_default="0.5 where there is one",
    ),
]
DeliberateActors = Annotated[
    str | None,
    typer.Option(
        "--deliberate-actors",
        metavar="N[:M]",
        help="With --engine ray: processes that run S2.",
        show_default="1",
    ),
]
DeliberateCpus = Annotated[
    float | None,
    typer.Option("--deliberate-cpus", min=0.0, help="CPUs of each.", show_default="1"),
]
DeliberateGpus = Annotated[
    float | None,
    typer.Option(
        "--deliberate-gpus",
        min=0.0,
        help="GPUs of each.",
        show_default="0.5 where there is one",
    ),
]
Shards = Annotated[
    ShardsName | None,
    typer.Option(
        "--shards", help="With --engine ray: form of full shards in --out.", show_default="jsonl"
    ),
]


class MapEngine(StrEnum):
    """Where the model of a command that curates or evaluates runs."""

    local = "local"
    ray = "ray"


MapEngineOption = Annotated[
    MapEngine,
    typer.Option(
        "--engine",
        help="Where the model runs. local: here. ray: in several processes on a cluster; paths must lead to the same "
        "files on all its machines.",
    ),
]
Actors = Annotated[
    int | None,
    typer.Option("--actors", min=1, help="With --engine ray: processes.", show_default="1"),
]
ActorCpus = Annotated[
    float | None,
    typer.Option("--actor-cpus", min=0.0, help="CPUs of each, and its threads.", show_default="1"),
]
ActorGpus = Annotated[
    float | None,
    typer.Option(
        "--actor-gpus", min=0.0, help="GPUs of each.", show_default="0.5 where there is one"
    ),
]
RAY_OPTIONS = (
    *("ray_address", "screen_actors", "screen_cpus", "screen_gpus"),
    *("deliberate_actors", "deliberate_cpus", "deliberate_gpus", "shards"),
)
_LOCAL = {
    "report": "write the page from some of the verdicts with the local engine",
    "as_json": "read the verdicts from --out",
    "server": "the server's engine decides",
}


def check_ray_options(given: Mapping[str, Any], *, ray: bool) -> None:
    """Raises UsageError where options do not go with the engine."""
    if not ray:
        for name in RAY_OPTIONS:
            if given[name] is not None:
                raise UsageError(f"--{name.replace('_', '-')} belongs to --engine ray")
        return
    for name, instead in _LOCAL.items():
        if given[name]:
            option = {"as_json": "json"}.get(name, name)
            raise UsageError(f"--{option} does not go with --engine ray; {instead}")
    if given["out"] is None:
        raise UsageError("--engine ray writes a folder of verdicts; name it with --out")
    if given["out"].is_file():
        raise UsageError(f"--out {given['out']}: is a file; --engine ray writes a folder")


def moderate_on_ray(given: Mapping[str, Any], remote: Remote | None) -> int:
    """Moderate on a cluster; gives the exit code.

    Raises:
        UsageError: an input or option cannot be used.
    """
    try:
        import ray  # noqa: F401
    except ModuleNotFoundError:
        raise UsageError(
            "--engine ray needs Ray; install it with: pip install 'safelens[ray]'"
        ) from None
    from safelens.engine.cluster import EngineError, connected
    from safelens.engine.ray_engine import RayEngine

    entries = read_inputs(given["paths"], null=given["null"], leave_out=given["out"])
    system, knows = _system(given, remote)
    screen, deliberate = pools(given)
    began = time.perf_counter()
    try:
        with connected(given["ray_address"], (screen, deliberate)):
            engine = RayEngine(
                system,
                given["out"],
                screen=screen,
                deliberate=deliberate,
                form="parquet" if given["shards"] is ShardsName.parquet else "jsonl",
                retry=given["resume"],
            )
            result = _run(engine, entries)
            engine.close()
    except EngineError as error:
        fail(f"{error}\n{given['out']} holds what was done; the same command goes on", FAILED)
    except KeyboardInterrupt:
        fail(f"stopped; {given['out']} holds what was done, the same command goes on", INTERRUPTED)
    counts = ", ".join(f"{count} {word}" for word, count in sorted(result.outcomes.items()))
    typer.echo(f"{len(entries)} videos in {time.perf_counter() - began:.1f} s: {counts}")
    typer.echo(f"verdicts: {given['out']}")
    if knows is not None:
        typer.echo(f"Limits of this bundle: {knows}")
    if result.missing:
        typer.echo(f"{result.missing} have no verdict; the same command goes on", err=True)
    return FAILED if result.missing or result.outcomes.get("error") else 0


def _run(engine: RayEngine, entries: list[Entry]) -> Result:
    left = engine.missing(entries)
    done = len(entries) - len(left)
    if done:
        typer.echo(f"{done} of {len(entries)} have a verdict already", err=True)
    with progress("moderating", len(entries)) as bar:
        before: list[int] = []

        def on_progress(outcomes: dict[str, int]) -> None:
            total = sum(outcomes.values())
            before[:] = before or [total]
            bar.at(min(len(entries), done + total - before[0]))
            bar.note(", ".join(f"{outcomes[k]} {k}" for k in ("flagged", "error") if k in outcomes))

        return engine.run(left, on_progress)


def read_inputs(paths: Iterable[str], *, null: bool, leave_out: Path) -> list[Entry]:
    """Manifests, videos, folders and addresses as entries, each video once.

    Raises:
        UsageError: something cannot be read.
    """
    from safelens.engine.manifest import Entry, ManifestError, is_manifest, merged, read_manifest
    from safelens.remote_file import is_address, missing_package

    found: list[Entry] = []
    try:
        for path in paths:
            if is_manifest(path):
                found += read_manifest(path)
            elif is_address(path):
                found.append(Entry(path))
            else:
                inside = expand([path], null=null, leave_out=[leave_out])
                found += [Entry(file) for file in inside]
        found = merged(found)
        for protocol in sorted({e.video.split("://")[0] for e in found if is_address(e.video)}):
            missing = missing_package(f"{protocol}://")
            if missing is not None:
                raise UsageError(f"{protocol}:// addresses cannot be read here: {missing}")
    except (ManifestError, ValueError) as error:
        raise UsageError(str(error)) from error
    if not found:
        raise UsageError(f"no videos in {', '.join(paths)}")
    return found


def _system(given: Mapping[str, Any], remote: Remote | None) -> tuple[System, str | None]:
    """What every actor builds, looked at as far as that needs no model; and what its bundle is limited to, if it is."""
    from safelens.bundle import Bundle, BundleError
    from safelens.engine.system import System
    from safelens.policy import Policy, PolicyError

    try:
        policy = None if given["policy"] is None else Policy.load(given["policy"])
        knows = None
        if given["model"] is None:
            found = Bundle.load(given["bundle"] or "tiny")
            found.check_policy(policy or found.policy)
            knows = found.settings.knows
    except (PolicyError, BundleError) as error:
        raise UsageError(str(error)) from error
    cache = given["policy_cache"]
    options = {
        "policy": policy,
        "tau": given["tau"],
        "prune": given["prune"],
        "policy_cache": None if cache is None else Path(cache).absolute(),
        "keyframe_shift_s": given["keyframes"],
        "device": given["device"],
        "remote": remote,
    }
    if given["model"] is None:
        return System(given["bundle"] or "tiny", options=options), knows
    options["policy"] = policy or "default"
    options["captioner"] = given["captioner"]
    for name in ("layout", "policy_encoding"):
        if given[name] is not None:
            options[name] = given[name].value
    return System(given["model"], zero_shot=True, options=options), knows


def pools(given: Mapping[str, Any]) -> tuple[Pool, Pool]:
    """S1's processes and S2's, as the options have them. Raises UsageError."""
    return _pool(given, "screen"), _pool(given, "deliberate")


def map_pool(
    engine: MapEngine,
    ray_address: str | None,
    actors: int | None,
    actor_cpus: float | None,
    actor_gpus: float | None,
) -> Pool | None:
    """The processes of such a command; None where it works here. Ends the command where options do not fit."""
    if engine is MapEngine.local:
        names = ("ray-address", "actors", "actor-cpus", "actor-gpus")
        for name, value in zip(names, (ray_address, actors, actor_cpus, actor_gpus), strict=True):
            if value is not None:
                fail(f"--{name} belongs to --engine ray")
        return None
    try:
        import ray  # noqa: F401
    except ModuleNotFoundError:
        fail("--engine ray needs Ray; install it with: pip install 'safelens[ray]'")
    from safelens.engine.cluster import Pool

    count = actors or 1
    return Pool(count, count, cpus=1.0 if actor_cpus is None else actor_cpus, gpus=actor_gpus)


def _pool(given: Mapping[str, Any], stage: str) -> Pool:
    from safelens.engine.cluster import Pool

    text = given[f"{stage}_actors"] or "1"
    least, _, most = text.partition(":")
    try:
        bounds = int(least), int(most or least)
    except ValueError:
        bounds = 0, 0
    if not 1 <= bounds[0] <= bounds[1]:
        raise UsageError(f"--{stage}-actors {text}: expected a number such as 4, or 1:8")
    cpus = given[f"{stage}_cpus"]
    return Pool(*bounds, cpus=1.0 if cpus is None else cpus, gpus=given[f"{stage}_gpus"])
