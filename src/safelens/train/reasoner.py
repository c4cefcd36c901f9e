"""Trains the reasoner: a LoRA adapter that continues S1's cache with reasoning and an answer.

Knows how S2 will run: policy, video and question without the adapter (no gradient, exactly S1's
cache), then captions, scores and answer with it. Cross-entropy is on the answer only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from safelens.assembly import Encoding
from safelens.deliberate import ADAPTER
from safelens.policy import Policy
from safelens.reading import Layout
from safelens.safewatch.parallel import ParallelPrompt
from safelens.train.embedder import SEQUENTIAL, LabelledClip, Turns, share_at, true_and_false
from safelens.train.loop import LoopConfig, fit, processes
from safelens.train.sequences import Example, answer_loss, teacher_forced
from safelens.verdict import Caption
from safelens.vlm import Context, VisionLanguageModel


@dataclass(frozen=True)
class AugmentedClip:
    """A clip with what the fast system said of it (Algorithm 1, lines 13-15).

    Attributes:
        clip: the clip and its truth.
        captions: the captioner's, one a frame.
        scores: the probe's probability of each label, from a probe that did not train on the clip.
    """

    clip: LabelledClip
    captions: tuple[Caption, ...]
    scores: dict[str, float]


def add_adapter(
    vlm: VisionLanguageModel, rank: int, alpha: int, name: str = ADAPTER, *, seed: int = 0
) -> None:
    """Put a fresh LoRA adapter on the language model's linear layers; all else is frozen."""
    from peft import LoraConfig

    layers = rf".*language_model.*\.({vlm.family.linear})"
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=layers)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vlm.model.add_adapter(config, adapter_name=name)


def go_on_from(vlm: VisionLanguageModel, source: str | Path, name: str = ADAPTER) -> None:
    """Load an adapter that is trained already, to train it further; all else is frozen.

    Raises:
        ModelLoadError: it is missing, or was made for another model.
    """
    vlm.load_adapter(source, name)
    for key, weight in vlm.model.named_parameters():
        weight.requires_grad_(f".{name}." in key)


def merge_adapter(vlm: VisionLanguageModel) -> None:
    """Add a trained adapter to the weights that it adapts, and take it off."""
    from peft.tuners.lora import LoraLayer

    model = vlm.model
    adapted = [(n, m) for n, m in model.named_modules() if isinstance(m, LoraLayer)]
    for name, layer in adapted:
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    model._hf_peft_config_loaded = False


def train_reasoner(
    vlm: VisionLanguageModel,
    policy: Policy,
    batch_at: Callable[[int], list[AugmentedClip]],
    out: Path,
    config: LoopConfig,
    *,
    start: str | Path | None = None,
    rank: int = 16,
    alpha: int = 32,
    boolean_weight: float = 0.0,
    layout: Layout = "policy_first",
    encoding: Encoding = SEQUENTIAL,
    random_keep: bool = False,
) -> None:
    """Train the adapter and save it to ``out/adapter``.

    Args:
        vlm: the embedder, frozen.
        policy: gives the prompt.
        batch_at: number to a batch of clips; those whose videos have equally many tokens share one
            cache, so batches of equal videos are the fastest.
        out: directory for checkpoint, log and adapter.
        config: see :class:`LoopConfig`.
        start: a trained adapter to go on from, of its own rank; None begins one.
        rank: of a new adapter.
        alpha: of a new adapter.
        boolean_weight: of an added loss on the answer's booleans alone. They are a few tokens of a
            long answer; a small model otherwise learns to explain before it learns to decide.
        layout: order of the prompt.
        encoding: how policy and video are read, in use as here: by the frozen embedder, so blocks are read once.
        random_keep: each batch keeps a share of its own, see :func:`share_at`, not the encoding's.
    """
    turns = Turns(vlm, policy, layout, encoding)
    prompt = encoding.prompt(vlm, policy, layout)
    if start is None:
        add_adapter(vlm, rank, alpha, seed=config.seed)
    else:
        go_on_from(vlm, start)
    flags = true_and_false(vlm)

    def loss_of_batch(number: int) -> dict[str, torch.Tensor]:
        batch = batch_at(number)
        vlm.model.disable_adapters()
        asked = prompt
        if random_keep and encoding.keep is not None and isinstance(prompt, ParallelPrompt):
            asked = prompt.keeping(share_at(number, encoding.keep, config.seed))
        prefilled = asked.prefill([a.clip.video for a in batch])
        contexts = [prefilled.context(row) for row in range(len(batch))]
        alike: dict[tuple[int, int], list[int]] = defaultdict(list)
        for row, context in enumerate(contexts):
            alike[context.length, context.position].append(row)
        vlm.model.enable_adapters()
        whole, booleans = torch.zeros(2, device=vlm.device)
        for rows in alike.values():
            # stacking copies, outside inference mode: autograd may read the result
            stacked = Context.stack([contexts[row] for row in rows])
            found = _losses(turns, stacked, [batch[row] for row in rows], flags)
            share = len(rows) / len(batch)
            whole, booleans = whole + share * found[0], booleans + share * found[1]
        return {"loss": whole + boolean_weight * booleans, "answer": whole, "booleans": booleans}

    fit(vlm.model, loss_of_batch, config, out, title="reasoner")
    vlm.model.enable_adapters()
    if processes().is_main_process:
        vlm.model.save_pretrained(out / "adapter")
    vlm.model.disable_adapters()


def train_separate_reasoner(
    vlm: VisionLanguageModel,
    policy: Policy,
    batch_at: Callable[[int], list[AugmentedClip]],
    out: Path,
    config: LoopConfig,
    *,
    layout: Layout = "policy_first",
    encoding: Encoding = SEQUENTIAL,
    random_keep: bool = False,
) -> None:
    """Train a model of its own that reads the whole prompt, as the paper does.

    Args:
        vlm: the model; its weights that require a gradient are trained in place.
        policy: gives the prompt.
        batch_at: number to batch.
        out: directory for checkpoint and log.
        config: see :class:`LoopConfig`.
        layout: order of the prompt.
        encoding: how policy and video are read.
        random_keep: see :func:`train_reasoner`.
    """
    turns = Turns(vlm, policy, layout, encoding)

    def loss_of_batch(number: int) -> dict[str, torch.Tensor]:
        examples = [
            Example(
                a.clip.video,
                (turns.deliberation(a.clip, a.captions, a.scores, with_question=True),),
            )
            for a in batch_at(number)
        ]
        keep = encoding.keep
        if random_keep and keep is not None:
            keep = share_at(number, keep, config.seed)
        return {"loss": teacher_forced(vlm, turns.opening(keep), examples).losses[0]}

    fit(vlm.model, loss_of_batch, config, out, title="reasoner")


def _losses(
    turns: Turns, context: Context, batch: list[AugmentedClip], flags: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy of the answers that continue a cache, and of their booleans alone."""
    vlm = turns.vlm
    pairs = [turns.deliberation(a.clip, a.captions, a.scores, with_question=False) for a in batch]
    rows = [torch.cat(pair) for pair in pairs]
    ids = torch.nn.utils.rnn.pad_sequence(
        rows, batch_first=True, padding_value=vlm.tokenizer.pad_token_id
    ).to(vlm.device)
    hidden = vlm.run(vlm.text_inputs(ids, context.position), context.cache)
    spans = [(len(prompt), len(row)) for (prompt, _), row in zip(pairs, rows, strict=True)]
    return (
        answer_loss(vlm, hidden, ids, spans),
        answer_loss(vlm, hidden, ids, spans, only=flags),
    )
