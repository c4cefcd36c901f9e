"""Words in captions that say nothing about the video, so that S2 learns to be moved by none.

Knows captions, a tokenizer and the prompt's own words. Knows nothing of models or losses.

A caption repeats what is written in a video, and anyone can write there. A reasoner that has read nothing but
captions of its captioner is unsure of any other words, and may decide otherwise because of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from safelens import prompts
from safelens.policy import SAFE, Policy
from safelens.train.reasoner import AugmentedClip
from safelens.verdict import Caption

_LETTERS = "abcdefghijklmnopqrstuvwxyz" * 3 + "0123456789"
_MARKS = ".,;:!?-_=+*/\\|<>(){}[]\"'`#%&$@~^"
_SCRIPTS = (
    (0xC0, 0x17F), (0x391, 0x3C9), (0x410, 0x44F), (0x5D0, 0x5EA), (0x627, 0x64A), (0x905, 0x939),
    (0x3041, 0x30FE), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0x2190, 0x27BF), (0x1F300, 0x1F64F),
)  # fmt: skip
"""First and last character: Latin with accents, Greek, Cyrillic, Hebrew, Arabic, Devanagari, kana, Chinese, Korean,
signs, pictures."""
_BEARERS = ("poster", "label", "screen", "shirt", "wall", "note")
_SAYS = ('A {} says "{}".', 'A {} reads "{}".', 'On a {}: "{}".', "Text on a {}: {}", "{}: {}")


class CaptionNoise:
    """Puts words that say nothing after, before or between captions, or quotes them in one.

    They are random tokens of the model's vocabulary, made-up words with marks, letters of other scripts, and pieces of
    the prompt itself: the policy, the request, scores and answers, of random values. So they look like what is read
    elsewhere in the prompt, or like nothing; never like a caption, which would say something.

    Args:
        tokenizer: the reasoner's.
        policy: whose prompt is imitated.
        share: of clips whose captions get any.
        longest: tokens at each caption at most; at one alone as many as at all together, or at eight.
    """

    def __init__(
        self, tokenizer: Any, policy: Policy, *, share: float = 0.75, longest: int = 48
    ) -> None:
        self.share = share
        self.longest = longest
        self._tokenizer = tokenizer
        special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        self._ids = [i for i in range(len(tokenizer)) if i not in special]
        self._policy = policy
        self._request = _words(
            prompts.policy_prompt(policy),
            prompts.question(policy),
            prompts.screening_suffix(),
            prompts.deliberation_request(policy, (), dict.fromkeys(policy.labels, 0.0)),
        )

    def __call__(self, captions: Sequence[Caption], rng: random.Random) -> tuple[Caption, ...]:
        """The captions of one clip, for a share of clips with words that say nothing.

        Args:
            captions: as they are.
            rng: source of all choices.
        """
        found = list(captions)
        if not found or rng.random() >= self.share:
            return tuple(found)
        every = rng.random() < 0.5
        rows = range(len(found)) if every else [rng.randrange(len(found))]
        most = self.longest if every else self.longest * min(len(found), 8)
        length = round(most ** rng.random())
        put = rng.choice((_after, _after, _before, _on_a_bearer(rng)))
        same = rng.random() < 0.7
        text = self.text(length, rng)
        for row in rows:
            said = text if same else self.text(length, rng)
            found[row] = found[row].model_copy(update={"text": put(found[row].text, said)})
        return tuple(found)

    def noisy(self, batch: Sequence[AugmentedClip], seed: str) -> list[AugmentedClip]:
        """A batch of the reasoner's training with other captions and the same answers."""
        rng = random.Random(seed)
        return [replace(one, captions=self(one.captions, rng)) for one in batch]

    def text(self, length: int, rng: random.Random) -> str:
        """Words that say nothing, about `length` tokens of them, on one line."""
        make = rng.choice(
            (self._tokens, self._tokens, self._made_up, self._made_up, self._script, self._prompt,
             self._prompt, self._answer, self._scores)
        )  # fmt: skip
        text = make(length, rng)
        if rng.random() < 0.3:
            text = rng.choice((str.upper, str.lower, str.title))(text)
        if rng.random() < 0.15:
            # a short text again and again
            text = " ".join([self._cut(text, max(1, length // 8))] * 8)
        return self._cut(text, length) or rng.choice(_MARKS)

    def _cut(self, text: str, length: int) -> str:
        ids = self._tokenizer.encode(prompts.plain_text(text), add_special_tokens=False)
        return str(self._tokenizer.decode(ids[:length])).strip()

    def _tokens(self, length: int, rng: random.Random) -> str:
        return str(self._tokenizer.decode(rng.choices(self._ids, k=length)))

    def _made_up(self, length: int, rng: random.Random) -> str:
        made = []
        for _ in range(length):
            word = "".join(rng.choices(_LETTERS, k=rng.randint(1, 9)))
            mark = rng.choice(_MARKS) if rng.random() < 0.3 else ""
            made.append(rng.choice((word + mark, mark + word, word.capitalize())))
        return rng.choice((" ", " ", " ", "")).join(made)

    def _script(self, length: int, rng: random.Random) -> str:
        first, last = rng.choice(_SCRIPTS)
        signs = [chr(rng.randint(first, last)) for _ in range(length)]
        return "".join(sign + (" " if rng.random() < 0.2 else "") for sign in signs)

    def _prompt(self, length: int, rng: random.Random) -> str:
        if rng.random() < 0.5:
            return " ".join(rng.choices(self._request, k=length))
        at = rng.randrange(len(self._request))
        return " ".join(self._request[at : at + length])

    def _answer(self, length: int, rng: random.Random) -> str:
        names = [category.id for category in self._policy.categories]
        flagged = rng.sample(names, min(len(names), rng.choice((0, 0, 0, 1, 1, 2))))
        answer = prompts.guardrail_answer(self._policy, flagged)
        if rng.random() < 0.5:
            answer = answer[rng.randrange(len(answer)) :]
        if rng.random() < 0.5:
            told, why = (self._made_up(rng.randint(1, 4), rng) for _ in range(2))
            answer = f"DESCRIPTION: {told} EXPLANATION: {why} {answer}"
        return answer

    def _scores(self, length: int, rng: random.Random) -> str:
        names = [*(category.name for category in self._policy.categories), SAFE]
        some = rng.sample(names, rng.randint(1, len(names)))
        return " ".join(f"{name}: Probability = {rng.random():.3f}" for name in some)


def _words(*texts: str) -> list[str]:
    return [word for text in texts for word in text.split()]


def _after(caption: str, text: str) -> str:
    return f"{caption} {text}"


def _before(caption: str, text: str) -> str:
    return f"{text} {caption}"


def _on_a_bearer(rng: random.Random) -> Callable[[str, str], str]:
    bearer, form = rng.choice(_BEARERS), rng.choice(_SAYS)
    return lambda caption, text: f"{caption} {form.format(bearer, text)}"
