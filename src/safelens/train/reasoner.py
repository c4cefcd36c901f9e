"""Trains the reasoner: a LoRA adapter that continues S1's cache with reasoning and an answer.

Knows how S2 will run: policy, video and question without the adapter (no gradient, exactly S1's
cache), then captions, scores and answer with it. Cross-entropy is on the answer only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from safelens.deliberate import ADAPTER
from safelens.policy import Policy
from safelens.prompts import FALSE, TRUE
from safelens.train.embedder import LabelledClip, Turns
from safelens.train.loop import LoopConfig, fit
from safelens.train.sequences import answer_loss
from safelens.verdict import Caption
from safelens.vlm import Context, VisionLanguageModel

_LINEAR = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"


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


def add_adapter(vlm: VisionLanguageModel, rank: int, alpha: int) -> None:
    """Put a fresh LoRA adapter on the language model's linear layers; all else is frozen."""
    from peft import LoraConfig

    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=rf".*language_model.*\.({_LINEAR})"
    )
    vlm.model.add_adapter(config, adapter_name=ADAPTER)


def train_reasoner(
    vlm: VisionLanguageModel,
    policy: Policy,
    batch_at: Callable[[int], list[AugmentedClip]],
    out: Path,
    config: LoopConfig,
    *,
    rank: int = 16,
    alpha: int = 32,
    boolean_weight: float = 0.0,
) -> None:
    """Train the adapter and save it to ``out/adapter``.

    Args:
        vlm: the embedder, frozen.
        policy: gives the prompt.
        batch_at: step number to a batch of clips whose videos have equally many tokens, so that the
            shared cache needs no padding.
        out: directory for checkpoint, log and adapter.
        config: see :class:`LoopConfig`.
        rank: of the adapter.
        alpha: of the adapter.
        boolean_weight: of an added loss on the answer's booleans alone. They are a few tokens of a
            long answer; a small model otherwise learns to explain before it learns to decide.
    """
    turns = Turns(vlm, policy)
    layout = turns.layout
    head = vlm.prefill_text(layout.head)
    add_adapter(vlm, rank, alpha)
    pad = vlm.tokenizer.pad_token_id
    flags = torch.tensor([int(vlm.ids(flag)[0]) for flag in (TRUE, FALSE)], device=vlm.device)

    def loss_of_step(step: int) -> dict[str, torch.Tensor]:
        batch = batch_at(step)
        vlm.model.disable_adapters()
        prefilled = vlm.prefill_videos(head, [a.clip.video for a in batch], layout.tail)
        if len(set(prefilled.lengths)) > 1:
            raise ValueError(f"videos of a batch differ in tokens: {prefilled.lengths}")
        # stacking copies, outside inference mode: autograd may read the result
        context = Context.stack([prefilled.context(row) for row in range(len(batch))])
        start = context.position
        pairs = [
            turns.deliberation(a.clip, a.captions, a.scores, with_question=False) for a in batch
        ]
        rows = [torch.cat(pair) for pair in pairs]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
        ids = ids.to(vlm.device)
        positions = torch.arange(start, start + ids.shape[1], device=vlm.device)
        vlm.model.enable_adapters()
        hidden = vlm.model.model(
            input_ids=ids,
            position_ids=positions.view(1, 1, -1).expand(3, len(rows), -1),
            past_key_values=context.cache,
            use_cache=True,
        ).last_hidden_state
        spans = [(len(prompt), len(row)) for (prompt, _), row in zip(pairs, rows, strict=True)]
        whole = answer_loss(vlm, hidden, ids, spans)
        booleans = answer_loss(vlm, hidden, ids, spans, only=flags)
        return {"loss": whole + boolean_weight * booleans, "answer": whole, "booleans": booleans}

    fit(vlm.model, loss_of_step, config, out, title="reasoner")
    vlm.model.enable_adapters()
    vlm.model.save_pretrained(out / "adapter")
    vlm.model.disable_adapters()
