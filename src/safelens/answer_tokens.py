"""How sure a model behind an endpoint was of its booleans, by the log probabilities of its tokens.

Knows the form in which OpenAI, vLLM and SGLang give them. Knows nothing of requests.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from safelens.policy import Policy
from safelens.prompts import ParseError

_WORD = re.compile(rb"[\s\":]*([a-z]+)", re.IGNORECASE)


def boolean_scores(
    policy: Policy, flags: Mapping[str, bool], logprobs: Sequence[Any]
) -> dict[str, float]:
    """Category id to the probability of true against false, where the answer writes its boolean.

    A category that the answer leaves out is not flagged and gets 0.

    Args:
        policy: gives the categories' names.
        flags: category id to the answer's boolean.
        logprobs: of the answer's tokens, as the endpoint gave them.

    Raises:
        ParseError: they have another form, or a flagged category's boolean is not among the tokens.
    """
    try:
        tokens = [_bytes(token) for token in logprobs]
        starts = list(accumulate(map(len, tokens), initial=0))
        text = b"".join(tokens)
        scores = {}
        for category in policy.categories:
            flag = flags[category.id]
            name = re.escape(json.dumps(category.name, ensure_ascii=False).encode())
            value = b"(true)" if flag else b"(false)"
            found = [m.start(1) for m in re.finditer(name + rb"\s*:\s*" + value, text, re.I)]
            if found:
                at = bisect_right(starts, found[-1]) - 1
                scores[category.id] = _share_of_true(logprobs[at], flag)
            elif flag:
                raise ParseError(f"no token is the boolean of {category.name!r}")
            else:
                scores[category.id] = 0.0
        return scores
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, ParseError):
            raise
        raise ParseError(f"log probabilities of an unknown form ({error!r})") from error


def _share_of_true(token: Mapping[str, Any], flag: bool) -> float:
    """P(true) / (P(true) + P(false)) where the model wrote this token of a boolean.

    Alternatives count by the word that they begin. If the other word is not among them, it counts as the
    least likely of them, and as no likelier than what was written: more than that cannot be known.
    """
    written, own = _probability(token), _bytes(token)
    listed = {_bytes(one): _probability(one) for one in token.get("top_logprobs") or ()}
    mass = {flag: written, not flag: 0.0}
    for data, p in listed.items():
        if data != own and (word := _begins(data)) is not None:
            mass[word] += p
    if mass[not flag] == 0:
        mass[not flag] = min([written, *listed.values()])
    both = mass[True] + mass[False]
    return mass[True] / both if both else 0.5


def _begins(data: bytes) -> bool | None:
    """Which of the words true and false a token begins; None for neither."""
    found = _WORD.match(data)
    word = found[1].lower() if found else b"?"
    return next(
        (flag for flag, whole in ((True, b"true"), (False, b"false")) if whole.startswith(word)),
        None,
    )


def _bytes(token: Mapping[str, Any]) -> bytes:
    # A token may be a part of a letter, which only its bytes tell.
    data = token.get("bytes")
    return bytes(data) if isinstance(data, list) else str(token["token"]).encode()


def _probability(token: Mapping[str, Any]) -> float:
    p = math.exp(token["logprob"])
    if not 0 <= p <= 1.001:
        raise ValueError(f"logprob {token['logprob']}")
    return p
