"""The same models on the same videos in three ways: as one would at first, as the paper, as SafeLens.

Knows how each way runs. Knows nothing of how runs are measured against each other.

All three read files through the same decoder, and have weights of the same values. What is written is as long in
all of them, if a length is given: then no model ends by itself, and none guesses what it writes, which for
random weights would be too easy.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from safelens import prompts
from safelens.cascade import SafeLens
from safelens.screen import LAST_TOKENS
from safelens.thresholds import Thresholds
from safelens.verdict import Caption
from safelens.video import Clip

Found = TypeVar("Found")


@dataclass
class Done:
    """What a run over some videos took.

    Attributes:
        seconds: of each stage, summed over videos; stages of SafeLens overlap with decoding.
        labels: of each video, None where nothing could be read.
        gflops: of all videos; None where the system does not count them.
        tokens: written.
    """

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    labels: list[str | None] = field(default_factory=list)
    gflops: float | None = None
    tokens: int = 0

    def time(self, stage: str, work: Callable[..., Found], *given: Any) -> Found:
        """Do some work and count its seconds to a stage."""
        began = time.perf_counter()
        found = work(*given)
        self.seconds[stage] += time.perf_counter() - began
        return found


class BenchSystem(Protocol):
    """A way of running the models."""

    name: str

    def run(self, paths: Sequence[Path]) -> Done:
        """Moderate videos, from file to answer."""


class Plain:
    """The library's own processor, model and `generate`; the policy after the video, read for every video anew.

    Args:
        lens: gives models, policy and decoder.
        length: tokens of every answer; None lets the model end by itself.
    """

    def __init__(self, lens: SafeLens, length: int | None) -> None:
        self.lens = lens
        self.vlm = lens.screener.vlm
        self.length = length
        rules, question = prompts.policy_prompt(lens.policy), prompts.question(lens.policy)
        self._asked = f"{rules}\n\n{question}"

    def inputs(self, clip: Clip, more: str) -> Any:
        """The processor's inputs of a chat: the video, the policy, the question, and more text."""
        content = [{"type": "video"}, {"type": "text", "text": self._asked + more}]
        processor = self.vlm.processor
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        metadata = {
            "total_num_frames": round(float(clip.timestamps[-1]) * 1000) + 1,
            "fps": 1000.0,
            "frames_indices": [round(float(t) * 1000) for t in clip.timestamps],
        }
        found = processor(
            text=[text],
            videos=[self.vlm.family.fit(clip.frames, self.vlm.frame_pixels)],
            video_metadata=[metadata],
            do_resize=False,
            do_sample_frames=False,
            return_tensors="pt",
        )
        return found.to(self.vlm.device)

    @torch.inference_mode()
    def states(self, inputs: Any) -> torch.Tensor:
        """Hidden states of a prompt's last tokens, shape (T, D), by the model's own forward pass, its head included."""
        self.vlm.model.model.rope_deltas = None
        hidden: torch.Tensor = self.vlm.model(**inputs, output_hidden_states=True).hidden_states[-1]
        return hidden[0, -LAST_TOKENS:]

    def generate(self, inputs: Any) -> tuple[str, int]:
        """What the model writes behind a prompt, with S2's adapter on, and how many tokens that is."""
        limits: dict[str, Any] = {
            "max_new_tokens": self.length or self.lens.deliberator.max_new_tokens
        }
        if self.length is not None:
            limits["min_new_tokens"] = self.length
        self.vlm.model.model.rope_deltas = None
        with self.vlm.only(self.lens.deliberator.adapter):
            ids = self.vlm.model.generate(**inputs, **limits, do_sample=False)
        written = ids[0, inputs["input_ids"].shape[1] :]
        return self.vlm.text(written.tolist()), len(written)

    def label(self, text: str) -> str | None:
        """The first category that an answer names as violated, "safe", or None where it cannot be read."""
        try:
            flags = prompts.parse_response(self.lens.policy, text).flags
        except prompts.ParseError:
            return None
        return next((name for name, flag in flags.items() if flag), "safe")


class Naive(Plain):
    """Every video is asked about in words."""

    name = "naive"

    def run(self, paths: Sequence[Path]) -> Done:
        """See :class:`BenchSystem`."""
        done = Done()
        for path in paths:
            clip = done.time("decode", clip_of, self.lens, path)
            inputs = done.time("prepare", self.inputs, clip, "")
            text, tokens = done.time("generate", self.generate, inputs)
            done.labels.append(self.label(text))
            done.tokens += tokens
        return done


class PaperStyle(Plain):
    """Two models one after the other, each reading the whole prompt: the paper's own arrangement.

    Args:
        lens: see :class:`Plain`; the screen must have a probe.
        length: see :class:`Plain`.
        unsure: videos that S2 is asked about, the same that SafeLens asks it about.
    """

    name = "paper"

    def __init__(self, lens: SafeLens, length: int | None, unsure: Collection[Path]) -> None:
        super().__init__(lens, length)
        self._unsure = unsure

    def run(self, paths: Sequence[Path]) -> Done:
        """See :class:`BenchSystem`."""
        done = Done()
        for path in paths:
            clip = done.time("decode", clip_of, self.lens, path)
            scores = done.time("screen", self._screen, clip)
            if path not in self._unsure:
                done.labels.append(max(scores, key=lambda name: scores[name]))
                continue
            captions = done.time("caption", self._captions, clip)
            text, tokens = done.time("deliberate", self._deliberate, clip, captions, scores)
            done.labels.append(self.label(text))
            done.tokens += tokens
        return done

    def _screen(self, clip: Clip) -> dict[str, float]:
        states = self.states(self.inputs(clip, prompts.screening_suffix()))
        reader: Any = self.lens.screener.reader
        logits = reader.probe(states[None].to(reader.probe.mean))[0].float()
        p = (logits / reader.temperature).softmax(-1).tolist()
        return dict(zip(self.lens.policy.labels, p, strict=True))

    def _captions(self, clip: Clip) -> tuple[Caption, ...]:
        if self.lens.captioner is None:
            return ()
        [captions] = self.lens.captioner.describe([clip])
        return captions

    def _deliberate(
        self, clip: Clip, captions: Sequence[Caption], scores: dict[str, float]
    ) -> tuple[str, int]:
        request = prompts.deliberation_request(self.lens.policy, captions, scores)
        return self.generate(self.inputs(clip, request))


class Ours:
    """SafeLens, as `safelens moderate` runs it.

    Args:
        lens: its tau decides who is unsure.
        length: see :class:`Plain`.
    """

    name = "ours"

    def __init__(self, lens: SafeLens, length: int | None) -> None:
        self.lens = lens
        if length is not None:
            answer = prompts.guardrail_answer(lens.policy, [])
            forced = len(lens.deliberator.vlm.ids("\n" + answer))
            lens.deliberator.max_new_tokens = length - forced
            lens.deliberator.guess = False

    def run(self, paths: Sequence[Path]) -> Done:
        """See :class:`BenchSystem`."""
        done, gflops = Done(), 0.0
        for found in self.lens.moderate_many(paths):
            verdict = found.verdict
            if verdict.error is not None:
                raise RuntimeError(verdict.error.message)
            for stage, seconds in verdict.timing.items():
                done.seconds[stage] += seconds
            done.labels.append(verdict.label)
            gflops += verdict.cost.gflops or 0.0
            done.tokens += verdict.cost.generated_tokens
        return replace(done, gflops=gflops)


def as_the_library_has_them(lens: SafeLens) -> None:
    """Undo what SafeLens changes in models so that they run faster."""
    from safelens.packed import unpack
    from safelens.vlm_patches import convolve_patches

    model = lens.screener.vlm.model
    for one in [model] if lens.captioner is None else [model, lens.captioner.model]:
        unpack(one)
        convolve_patches(one)
        one.set_attn_implementation("sdpa")


def few_of(paths: Sequence[Path], unsure: Collection[Path], count: int) -> list[Path]:
    """So many of some videos, as large a share of them unsure as of all, as near as can be."""
    wanted = round(count * len(unsure) / len(paths))
    some = [path for path in paths if path in unsure][:wanted]
    sure = [path for path in paths if path not in unsure][: count - len(some)]
    return [path for path in paths if path in (*some, *sure)]


def clip_of(lens: SafeLens, path: Path) -> Clip:
    """A video's frames.

    Raises:
        VideoError: it has none.
    """
    video = lens.decode(str(path))
    if video.error is not None:
        raise video.error
    assert video.clip is not None
    return video.clip


def share_unsure(lens: SafeLens, paths: Sequence[Path], share: float) -> set[Path]:
    """Set tau so that S1 is unsure of a share of some videos, its guard put aside; gives those videos.

    Raises:
        VideoError: one has no frames.
    """
    lens.screener.guard = None
    confidence = {path: lens.screener.screen([clip_of(lens, path)])[0].confidence for path in paths}
    ranked = sorted(confidence, key=lambda path: confidence[path])
    count = round(share * len(ranked))
    lens.thresholds = Thresholds(confidence[ranked[count]] if count < len(ranked) else 1.01)
    return set(ranked[:count])
