"""The table before anything is run: each stage's command, samples, tokens, operations, memory, disk, hours.

Knows how samples and lengths follow from data, policy and settings. The formulas are those of `costs`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.safewatch.algorithm import algorithm, shown
from recipes.safewatch.checks import Found, disk, look
from recipes.safewatch.config import Assume, Config
from recipes.safewatch.costs import (
    Lengths,
    Model,
    captioner_flops,
    captioner_weights,
)
from recipes.stages import Stage
from safelens import prompts
from safelens.policy import Policy
from safelens.screen import LAST_TOKENS
from safelens.verdict import Caption

CHARACTERS_A_TOKEN = 4.0
"""Of English text, where no tokenizer is at hand; an assumption."""
RECORD_BYTES, TRACE_BYTES = 1000, 20_000
"""Of a record, and of one with captions and a trace, with what the generator's cache holds; assumptions."""


@dataclass(frozen=True)
class Row:
    """One stage's costs.

    Attributes:
        stage: its name.
        samples: clips (or frames) that a model runs.
        tokens: of a sample, policy included; 0 where no language model runs.
        steps: optimizer steps; 0 where nothing is trained.
        flops: operations of the whole stage.
        memory: bytes on one GPU; 0 where none is used.
        host: bytes of main memory beyond the usual; 0 where little.
        disk: bytes that it leaves.
        gpus: that share the work.
        float32: computes in float32, as its command does, at another rate.
    """

    stage: str
    samples: int = 0
    tokens: int = 0
    steps: int = 0
    flops: float = 0.0
    memory: float = 0.0
    host: float = 0.0
    disk: float = 0.0
    gpus: int = 1
    float32: bool = False

    def hours(self, a: Assume) -> float:
        """Of its operations at the assumed rate."""
        rate = a.flops_per_second_float32 if self.float32 else a.flops_per_second
        return self.flops / (rate * a.utilisation * self.gpus) / 3600


@dataclass(frozen=True)
class Plan:
    """All that is known before anything is run.

    Attributes:
        config: the settings.
        stages: in their order.
        rows: their costs, in the same order.
        found: what was looked at.
        assumed: what the figures rest on that was not read off models and data.
    """

    config: Config
    stages: list[Stage]
    rows: list[Row]
    found: Found
    assumed: list[str]


def plan(config: Config) -> Plan:
    """Look at everything and reckon the costs; runs no model and needs no GPU."""
    from transformers import Florence2Config, Qwen3VLConfig

    found, assumed, a = look(config), [], config.assume
    shape, eyes = found.model, found.captioner
    if shape is None:
        shape = Qwen3VLConfig(**a.model_shape)
        assumed.append("assume.model_shape stands for the model's configuration")
    if eyes is None:
        eyes = Florence2Config(**a.captioner_shape)
        assumed.append("assume.captioner_shape stands for the captioner's configuration")
    tokenizer = _tokenizer(config.model) if found.model is not None else None
    if tokenizer is None:
        assumed.append(f"tokens of texts: {CHARACTERS_A_TOKEN:.0f} characters each (no tokenizer)")
    policy = found.policy or Policy.load("default")
    n = lengths(config, shape, policy, tokenizer)
    train = a.records if found.train is None else found.train
    val = a.validation if found.validation is None else found.validation
    if found.train is None or found.validation is None:
        assumed.append(f"assume.records and assume.validation: {train} and {val} samples")
    assumed.append(
        f"every clip has {a.frames} square frames, captions {a.caption_tokens} tokens, traces "
        f"{a.trace_tokens}, and the filter keeps {a.kept:.0%}"
    )
    rows = _rows(config, Model(shape), eyes, n, train, val)
    disk(config.root, sum(row.disk for row in rows), found)
    return Plan(config, algorithm(config), rows, found, assumed)


def lengths(config: Config, shape: Any, policy: Policy, tokenizer: Any) -> Lengths:
    """Tokens of each part of a sequence of the longest clip, from the texts that the model reads."""

    def count(text: str) -> int:
        if tokenizer is None:
            return math.ceil(len(text) / CHARACTERS_A_TOKEN)
        return len(tokenizer.encode(text, add_special_tokens=False))

    a, vision = config.assume, shape.vision_config
    factor = vision.patch_size * vision.spatial_merge_size
    side = max(1, round(math.sqrt(config.frame_pixels) / factor)) * vision.spatial_merge_size
    steps = math.ceil(a.frames / vision.temporal_patch_size)
    a_step = count("<10.5 seconds>") + 2 + side * side // vision.spatial_merge_size**2
    even = dict.fromkeys(policy.labels, 1 / len(policy.labels))
    caption = [Caption(time_s=float(i), text="x") for i in range(a.frames)]
    request = count(prompts.deliberation_request(policy, caption, even))
    return Lengths(
        head=count(
            f"<|im_start|>system\n{prompts.policy_prompt(policy)}<|im_end|>\n<|im_start|>user\n"
        ),
        video=steps * a_step,
        question=count(prompts.question(policy)),
        closing=count(f"{prompts.screening_suffix()}<|im_end|>\n<|im_start|>assistant\n"),
        answer=count(prompts.guardrail_answer(policy, ())) + 1,
        request=request + a.frames * (a.caption_tokens - 1),
        trace=a.trace_tokens + count(prompts.guardrail_answer(policy, ())),
        grid=(steps, side, side),
    )


def _rows(c: Config, model: Model, eyes: Any, n: Lengths, train: int, val: int) -> list[Row]:
    kept = max(1, round(train * c.assume.kept))
    weights = model.weights[0]
    e, r, whole = c.embedder, c.reasoner, n.head + n.screening
    trained, adapter = model.trained(e.rank), model.trained(r.rank)
    model_disk = 4.0 * weights
    memory = model.training_bytes(
        n, n.head + n.screening, n.answer, e.micro_batch, e.rank, bf16=c.bf16, past=0
    )
    reading = model.reading_bytes(n, 8)
    screened = model.screening_flops(n)
    a_clip = model.embedder_flops(n, e.micro_batch, e.rank)

    def training(name: str, samples: int) -> Row:
        runs = round(samples * e.epochs)
        return Row(
            name, runs, whole, max(1, runs // e.batch), runs * a_clip, memory,
            disk=model_disk + 24.0 * trained, gpus=c.processes, float32=not c.bf16,
        )  # fmt: skip

    t = model.text
    block = t.hidden_size * (
        2 * t.head_dim * (t.num_attention_heads + t.num_key_value_heads) + 3 * t.intermediate_size
    )
    gradients = 4.0 * block * c.influence.batch * 3
    sums = 8.0 * block * 7
    influence = Row(
        "influence", train + val, whole, 0, (train + val) * model.influence_flops(n),
        model.reading_bytes(n, c.influence.batch) + gradients, host=3 * sums * c.processes,
        disk=sums * c.processes + (train + val) * (28.0 * c.influence.rank**2 + 200),
        gpus=c.processes, float32=True,
    )  # fmt: skip
    states = 2.0 * kept * LAST_TOKENS * t.hidden_size
    frames = kept * c.assume.frames
    runs = round(kept * r.epochs)
    new = n.request + n.trace
    followed, past = (n.head + n.read + new, 0) if r.separate else (new, n.head + n.read)
    reasoner_flops = model.reasoner_flops(n, r.micro_batch, r.rank, separate=r.separate)
    eyes_weights = captioner_weights(eyes)
    part = model_disk if r.separate else 4.0 * adapter
    return [
        Row("data", disk=RECORD_BYTES * float(train + val)),
        training("embedder-all", train),
        influence,
        Row("filter", host=28.0 * c.influence.rank**2 * (train + val), disk=RECORD_BYTES * float(train)),
        training("embedder", kept),
        Row("probe", kept, n.head + n.read, c.probe.steps, kept * screened, reading, host=2 * states,
            float32=True),
        Row("captions", frames, 0, 0, frames * captioner_flops(eyes, c.assume.caption_tokens),
            4.0 * eyes_weights, disk=TRACE_BYTES * float(kept)),
        Row("scores", kept, n.head + n.read, 0, kept * screened, reading, host=2 * states,
            disk=TRACE_BYTES * float(kept), float32=True),
        Row("traces", kept, disk=2.0 * TRACE_BYTES * kept),
        Row("reasoner", runs, n.head + n.read + new, max(1, runs // r.batch), runs * reasoner_flops,
            model.training_bytes(n, followed, n.trace, r.micro_batch, r.rank, bf16=c.bf16, past=past),
            disk=part + 24.0 * adapter, gpus=c.processes, float32=not c.bf16),
        Row("bundle", disk=model_disk + part + 4.0 * eyes_weights),
    ]  # fmt: skip


def _tokenizer(source: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, local_files_only=Path(source).is_dir())
    except (OSError, ValueError):
        return None


def show(made: Plan) -> None:
    """Print commands, the table, what it rests on, what was found, and all problems."""
    from rich.console import Console
    from rich.table import Table

    console, a = Console(soft_wrap=True), made.config.assume

    def line(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    for stage in made.stages:
        line(f"[{stage.name}]")
        for command in shown(stage, Path(made.config.root)):
            line(f"  {command}")
    table = Table()
    names = ("stage", "samples", "tokens", "steps", "PFLOP", "GPU GB", "host GB", "disk GB", "GPUs")
    for name in (*names, "hours *"):
        table.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    for row in made.rows:
        hours = "endpoint's" if row.stage == "traces" else _number(row.hours(a))
        table.add_row(
            row.stage, *(f"{n:,}" if n else "" for n in (row.samples, row.tokens, row.steps)),
            _number(row.flops / 1e15), *(_number(b / 1e9) for b in (row.memory, row.host, row.disk)),
            str(row.gpus) if row.flops else "", hours,
        )  # fmt: skip
    total = sum(row.hours(a) for row in made.rows)
    table.add_row("all", *[""] * 3, _number(sum(r.flops for r in made.rows) / 1e15), "", "",
                  _number(sum(r.disk for r in made.rows) / 1e9), "", _number(total))  # fmt: skip
    Console(width=max(console.width, 130)).print(table)
    line(
        f"* assumption, not a measurement: {a.flops_per_second:.3g} operations a second and GPU "
        f"({a.flops_per_second_float32:.3g} in float32: influence, probe, scores), of which "
        f"{a.utilisation:.0%} are reached; decoding of videos and the traces' endpoint not counted"
    )
    for title, texts in (
        ("assumed: ", made.assumed),
        ("found: ", made.found.lines),
        ("", made.found.unchecked),  # each says itself that it is not checked
        ("problem: ", made.found.problems),
    ):
        for text in texts:
            line(f"{title}{text}")
    line(f"{len(made.found.problems)} problems, {len(made.found.unchecked)} things not checked")


def _number(value: float) -> str:
    return "" if not value else f"{value:,.0f}" if value >= 100 else f"{value:.2g}"
