"""A prompt of parallel blocks as one masked run of the library's model, without a cache."""

import torch

from safelens import prompts
from safelens.policy import Category, Policy, Rule

MARK = "\u241d"


def few_categories():
    """A policy of three categories of different length."""
    texts = [("Arms", "Guns."), ("Fraud", "Lies, and much else that is not true."), ("Abuse", "A.")]
    categories = tuple(
        Category(name.lower(), name, "Safety.", (Rule("blocked", text),)) for name, text in texts
    )
    return Policy(id="few", name="Few", version="1", categories=categories)


def encoded(vlm, clips):
    return vlm.encode_videos([c.frames for c in clips], [c.timestamps for c in clips])


def pieces_of(vlm, prompt, video, layout, answer=None):
    """(kind, ids, rotary positions) of every piece of the prompt, in the order of one masked run.

    Args:
        answer: token ids behind the question.
    """
    blocks = [
        ("block", vlm.ids(prompts.category_block(category)))
        for category in prompt.policy.categories
    ]
    head, tail = vlm.ids(prompt.parts.head), vlm.ids(prompt.parts.tail)
    if layout == "policy_first":
        trunk, rest = map(vlm.ids, prompt.parts.head.split(MARK))
        order = [("text", trunk), *blocks, ("text", rest), ("video", video.ids), ("tail", tail)]
    else:
        trunk, tail = map(vlm.ids, prompt.parts.tail.split(MARK))
        order = [("text", head), ("video", video.ids), ("text", trunk), *blocks, ("tail", tail)]
    if answer is not None:
        order[-1] = ("tail", torch.cat([order[-1][1], answer]))
    pieces, at, longest = [], 0, 0
    for kind, ids in order:
        if kind == "block":
            pieces.append((kind, ids, torch.arange(len(ids)).expand(*vlm.family.axes, -1) + at))
            longest = max(longest, len(ids))
            continue
        at, longest = at + longest, 0
        own = torch.arange(len(ids)).expand(*vlm.family.axes, -1)
        if kind == "video":
            own = vlm.family.positions(ids, video)
        pieces.append((kind, ids, own + at))
        at += int(own.max()) + 1
    return pieces


@torch.no_grad()
def direct(vlm, prompt, video, layout, hidden_places=None, **more):
    """As :func:`masked`, without gradient."""
    return masked(vlm, prompt, video, layout, hidden_places, **more)


def masked(vlm, prompt, video, layout, hidden_places=None, answer=None, alone=None, **more):
    """One run of everything, without a cache; gives the tail's states and what else was asked for.

    Args:
        hidden_places: bool (L,) of the video's tokens that the tail does not see.
        answer: token ids behind the question, which belong to the tail.
        alone: how many of the tail's last tokens see one block only, and that block's number.
    """
    pieces = pieces_of(vlm, prompt, video, layout, answer)
    which = torch.cat([torch.full((len(ids),), i) for i, (_, ids, _) in enumerate(pieces)])
    kind = [pieces[i][0] for i in which.tolist()]
    block = torch.tensor([k == "block" for k in kind])
    seen = torch.ones(len(which), len(which), dtype=torch.bool).tril()
    seen &= ~(block[:, None] & block[None] & (which[:, None] != which[None]))
    tail = torch.tensor([k == "tail" for k in kind])
    place = torch.tensor([k == "video" for k in kind]).nonzero()[:, 0]
    if hidden_places is not None:
        seen[tail.nonzero(), place[hidden_places][None]] = False
    if alone is not None:
        count, number = alone
        own = which == which[block].unique()[number]
        seen[-count:] &= ~block | own
    mask = torch.zeros(seen.shape, dtype=torch.float64).masked_fill_(~seen, -1e300)
    out = vlm.model.model(
        input_ids=torch.cat([ids for _, ids, _ in pieces])[None],
        position_ids=torch.cat([p for _, _, p in pieces], dim=-1).unsqueeze(-2),
        attention_mask=mask[None, None],
        use_cache=False,
        **vlm.family.visual([video]),
        **more,
    )
    return out.last_hidden_state[0, tail], out, block, place, which
