"""Whether what is fast says the same: S1 and S2 as SafeLens runs them, beside the same models without cache or company.

Knows both ways of asking. Knows nothing of time.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from safelens.cascade import SafeLens
from safelens.deliberate import Deliberated, Deliberator
from safelens.screen import LAST_TOKENS
from safelens.video import Clip
from safelens.vlm_cost import Spent

_TOKENS = 40
"""Most that S2 writes here before its answer."""


@torch.inference_mode()
def measure(lens: SafeLens, theirs: SafeLens, clips: Sequence[Clip]) -> dict[str, Any]:
    """Ask both about the same clips.

    Args:
        lens: S1 in one batch on the policy's cache; S2 in one batch, several tokens a pass.
        theirs: S1 in one pass over the whole prompt a clip; S2 alone, a token a pass.
        clips: a few.

    Returns:
        Of S1 clips with the same label, the largest difference of a probability, and of the states that the probe reads
        as a share of their length; of S2 the same of its booleans, and how many texts are the same.
    """
    together = lens.screener.screen(clips)
    own = [one.prefilled.tail_states(one.row, LAST_TOKENS).float() for one in together]
    states = [_uncached(theirs, clip) for clip in clips]
    read = [theirs.screener.reader(s, _no_context, Spent()) for s in states]
    labels = [theirs.policy.labels[int(p.argmax())] for p in read]
    ours = [torch.tensor(list(one.scores.values())) for one in together]
    tokens = min(_TOKENS, *(one.deliberator.max_new_tokens for one in (lens, theirs)))
    answers = _together(lens, clips, tokens)
    alone = [_alone(theirs, clip, tokens) for clip in clips]
    return {
        "clips": len(clips),
        "dtype": str(lens.screener.vlm.model.dtype).removeprefix("torch."),
        "screen": {
            "same_label": sum(a.label == b for a, b in zip(together, labels, strict=True)),
            "largest_difference": max(
                float((a - b.cpu()).abs().max()) for a, b in zip(ours, read, strict=True)
            ),
            "of_states": max(
                float((a - b.float()).norm() / b.float().norm())
                for a, b in zip(own, states, strict=True)
            ),
        },
        "deliberate": {
            "same_flags": sum(a.flags == b.flags for a, b in zip(answers, alone, strict=True)),
            "same_text": sum(a.text == b.text for a, b in zip(answers, alone, strict=True)),
            "largest_difference": max(
                abs(a.scores[name] - b.scores[name])
                for a, b in zip(answers, alone, strict=True)
                for name in a.scores
            ),
        },
    }


def _uncached(lens: SafeLens, clip: Clip) -> torch.Tensor:
    """States that the probe reads, (T, D), by one pass over policy, video and question."""
    vlm, parts = lens.screener.vlm, lens.screener.parts
    [video] = vlm.encode_videos([clip.frames], [clip.timestamps])
    whole = replace(video, ids=torch.cat([vlm.ids(parts.head), video.ids]))
    rows = vlm.video_rows(0, [whole], [vlm.ids(parts.tail)])
    tail = min(LAST_TOKENS, len(vlm.ids(parts.tail)))
    with vlm.only(None):
        return vlm.run(rows.inputs)[0, -tail:]


def _no_context() -> Any:
    raise TypeError("a probe reads no cache")


def _together(lens: SafeLens, clips: Sequence[Clip], tokens: int) -> list[Deliberated]:
    s2 = _brief(lens, tokens, guess=True)
    found: dict[int, Deliberated] = {}
    decoding = s2.decoding()
    for number, s1 in enumerate(lens.screener.screen(clips)):
        context = s1.context
        decoding.admit(number, context, s2.program((), s1.scores, context.spent))
    while len(decoding):
        for ended in decoding.step():
            if ended.error is not None:
                raise ended.error
            assert ended.result is not None
            found[ended.key] = ended.result
    return [found[number] for number in range(len(clips))]


def _alone(lens: SafeLens, clip: Clip, tokens: int) -> Deliberated:
    [s1] = lens.screener.screen([clip])
    return _brief(lens, tokens, guess=False).deliberate(s1.context, (), s1.scores)


def _brief(lens: SafeLens, tokens: int, *, guess: bool) -> Deliberator:
    s2 = copy.copy(lens.deliberator)
    s2.max_new_tokens, s2.guess = tokens, guess
    return s2
