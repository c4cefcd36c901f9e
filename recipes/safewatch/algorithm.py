"""Algorithm 1 of the paper as stages, each the `safelens` commands that a user would type.

Knows the order of the commands and their arguments. Knows nothing of what they do or cost.

A stage's commands hold `{out}` for its folder and `{name}` for the folder of the stage `name`; they are its
settings, so a changed argument or changed input makes another folder (see `recipes.stages`).
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from recipes.safewatch.config import Config, Training
from recipes.stages import Stage, in_order

LOSES_SOME = {"influence", "captions", "scores", "traces"}
"""Commands that exit with 1 where they finished, but some samples were lost: a video of many cannot be read."""


class StageFailed(Exception):
    """A stage's command failed; the message says which and what to do."""


def algorithm(config: Config) -> list[Stage]:
    """The stages in the order they run; the last makes the bundle."""
    c, many = config, config.processes
    policy = ["--policy", c.policy]
    pixels = ["--frame-pixels", c.frame_pixels]
    root = [] if c.data.videos_root is None else ["--videos-root", c.data.videos_root]
    val = [] if c.data.val is None else ["--val", "{data}/val.jsonl"]

    convert = ["data", "convert", *root, *policy]
    commands = [[*convert, *c.data.train, "--split", "train", "--out", "{out}/train.jsonl"]]
    if c.data.val is not None:
        commands.append([*convert, c.data.val, "--split", "val", "--out", "{out}/val.jsonl"])
    inputs = [*c.data.train, c.data.val] if c.data.val is not None else c.data.train
    data = _stage("data", *commands, read=inputs)

    trained = [*_training(c.embedder, c), *pixels, *policy, "--model", c.model, "--out", "{out}"]
    everything = _stage(  # line 1
        "embedder-all",
        ["train", "embedder", "{data}/train.jsonl", *trained],
        needs=(data,),
        processes=many,
        read=[c.model],
    )
    influence = _stage(  # line 2
        "influence",
        ["curate", "influence", "{data}/train.jsonl", *val, "--model", "{embedder-all}/model",
         "--rank", c.influence.rank, "--batch", c.influence.batch, *pixels, *policy,
         "--out", "{out}"],
        needs=(data, everything),
        processes=many,
    )  # fmt: skip
    kept = _stage(  # lines 3-4
        "filter",
        ["curate", "filter", "{data}/train.jsonl", "{influence}", *val, "--score", c.influence.score,
         *policy, "--gallery", "{out}/gallery.html", "--out", "{out}"],
        needs=(data, influence),
    )  # fmt: skip
    embedder = _stage(  # line 9
        "embedder",
        ["train", "embedder", "{filter}/kept.jsonl", *trained],
        needs=(kept,),
        processes=many,
        read=[c.model],
    )
    probe = _stage(  # line 10
        "probe",
        ["train", "probe", "{filter}/kept.jsonl", "--model", "{embedder}/model",
         "--steps", c.probe.steps, "--lr", c.probe.lr,
         "--false-refusal-rate", c.probe.false_refusal_rate, *pixels, *policy, "--out", "{out}"],
        needs=(kept, embedder),
    )  # fmt: skip
    captions = _stage(  # line 14; before line 13, as a file is added to
        "captions",
        ["curate", "captions", "{filter}/kept.jsonl", "--out", "{out}/captioned.jsonl",
         "--captioner", c.captioner],
        needs=(kept,),
        read=[c.captioner],
    )  # fmt: skip
    unseen = (
        ["--held-out", c.scores.held_out] if c.scores.folds is None else ["--folds", c.scores.folds]
    )
    scores = _stage(  # line 13
        "scores",
        ["curate", "scores", "{captions}/captioned.jsonl", "--out", "{out}/scored.jsonl",
         "--model", "{embedder}/model", *unseen, *pixels, *policy],
        needs=(captions, embedder),
    )  # fmt: skip
    traces = _stage(  # lines 15-16
        "traces",
        ["curate", "traces", "{scores}/scored.jsonl", "--out", "{out}/traces.jsonl", *policy,
         *_generator(c), "--json"],
        needs=(scores,),
    )  # fmt: skip
    separate = c.reasoner.separate
    reasoner = _stage(
        "reasoner",
        ["train", "reasoner", "{traces}/traces.jsonl", *_training(c.reasoner, c), *pixels, *policy,
         "--model", "{embedder}/model", *(["--separate"] if separate else []), "--out", "{out}"],
        needs=(traces, embedder),
        processes=many,
    )  # fmt: skip
    part = ["--reasoner", "{reasoner}/model"] if separate else ["--adapter", "{reasoner}/adapter"]
    said = [["--knows", c.bundle.knows], ["--card", c.bundle.card]]
    bundle = _stage(
        "bundle",
        ["bundle", "pack", "--out", "{out}/bundle", "--replace", "--name", c.name,
         "--model", "{embedder}/model", "--probe", "{probe}/probe",
         "--domain", "{probe}/domain.safetensors", "--captioner", c.captioner, *part, *policy,
         "--tau", c.bundle.tau, "--outside-domain", c.bundle.outside_domain, *pixels,
         *(word for pair in said if pair[1] is not None for word in pair)],
        needs=(embedder, probe, reasoner),
        read=[c.captioner, *([] if c.bundle.card is None else [c.bundle.card])],
    )  # fmt: skip
    return list(in_order(bundle))


def shown(stage: Stage, root: Path) -> list[str]:
    """A stage's commands as a user would type them."""
    folders = {"out": stage.folder(root), **{n.name: n.folder(root) for n in stage.needs}}
    start = "safelens"
    if (processes := stage.settings["processes"]) > 1:
        start = f"accelerate launch --num_processes {processes} -m safelens"
    return [" ".join([start, *_filled(words, folders)]) for words in stage.settings["commands"]]


def run_commands(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    """Run a stage's commands one after the other.

    Raises:
        StageFailed: a command failed.
        KeyboardInterrupt: it was stopped; what it wrote is whole.
    """
    for words in settings["commands"]:
        filled = _filled(words, {"out": out, **needs})
        start = [sys.executable, "-m"]
        if settings["processes"] > 1:
            start += [
                "accelerate.commands.launch",
                "--num_processes",
                str(settings["processes"]),
                "-m",
            ]
        print("$ safelens " + " ".join(filled), flush=True)
        loses_some = filled[1] in LOSES_SOME
        code, said = _run([*start, "safelens", *filled], listen=loses_some)
        if code == 130:
            raise KeyboardInterrupt
        if code == 1 and loses_some and _went_through(said, out):
            continue
        if code:
            raise StageFailed(
                f"safelens {filled[0]} {filled[1]} ended with exit code {code}; what it said is above. "
                "Put that right and run the recipe again: it goes on from here"
            )


def _run(command: list[str], *, listen: bool) -> tuple[int, str]:
    """Exit code, and what was printed where one listens. Ctrl-C reaches the command itself: it is waited for."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE if listen else None, text=True
    ) as process:
        said = ""
        while True:
            try:
                for line in process.stdout or ():
                    said += line
                    print(line, end="", flush=True)
                return process.wait(), said
            except KeyboardInterrupt:
                continue


def _went_through(said: str, out: Path) -> bool:
    """Whether a command that lost samples came to its end: only then it closes with its counts."""
    closing = (said.strip().splitlines() or [""])[-1]
    if closing.startswith("{"):
        counts = json.loads(closing)
        done = ("written", "written_earlier", "rejected", "rejected_earlier", "left_out")
        return bool(sum(counts[name] for name in done) == counts["records"])
    return str(out) in said


def _filled(words: list[str], folders: dict[str, Path]) -> list[str]:
    filled = []
    for word in words:
        for name, folder in folders.items():
            word = word.replace(f"{{{name}}}", str(folder))
        filled.append(word)
    return filled


def _stage(
    name: str,
    *commands: list[Any],
    needs: tuple[Stage, ...] = (),
    processes: int = 1,
    read: list[str] | None = None,
) -> Stage:
    settings = {
        "commands": [[str(word) for word in words] for words in commands],
        "processes": processes,
        "inputs": {path: fingerprint(path) for path in read or []},
    }
    return Stage(name, run_commands, settings, needs)


def fingerprint(path: str) -> str | None:
    """What a path holds: a file's SHA-256, or names and sizes of a folder's files; None for a hub id."""
    place = Path(path)
    if place.is_file():
        with place.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not place.is_dir():
        return None
    files = sorted(p for p in place.rglob("*") if p.is_file() and ".git" not in p.parts)
    listed = "".join(f"{p.relative_to(place).as_posix()} {p.stat().st_size}\n" for p in files)
    return hashlib.sha256(listed.encode()).hexdigest()


def _training(part: Training, config: Config) -> list[Any]:
    accumulate = part.batch // (part.micro_batch * config.processes)
    return [
        *("--epochs", part.epochs, "--batch", part.micro_batch, "--accumulate", accumulate),
        *("--lr", part.lr, "--rank", part.rank, "--bf16" if config.bf16 else "--fp32"),
    ]


def _generator(config: Config) -> list[Any]:
    t = config.traces
    if t.generator == "rules":
        return ["--generator", "rules"]
    key = [] if t.api_key_env is None else ["--api-key-env", t.api_key_env]
    return ["--generator", "openai", "--base-url", t.base_url, "--model", t.model, *key,
            "--concurrency", t.concurrency]  # fmt: skip
