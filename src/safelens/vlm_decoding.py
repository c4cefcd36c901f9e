"""Answers of several sequences, written in one batch that others join and leave at any time.

Knows how passes are put together and what greedy decoding is. Knows nothing of what is asked: each sequence
has a program, a generator that says which tokens to run next and is sent the logits behind them.

Decoding is bound by reading the weights, once a pass however many tokens are in it. So sequences share
passes, and a program runs tokens that it only guesses: those that the logits do not confirm are taken back.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import torch

from safelens.vlm import VisionLanguageModel
from safelens.vlm_cache import Context
from safelens.vlm_cost import Spent
from safelens.vlm_slots import Slots

SLOTS = 8
"""Sequences that are continued together, unless said otherwise."""
DRAFT = 7
"""Most tokens that are guessed at a time."""
_LONG = 16
"""Steps of more tokens run alone: in a common pass all others would be padded to them."""

Key = TypeVar("Key")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Step:
    """What a program wants to be run next.

    Attributes:
        ids: tokens, at least one.
        read: places among them behind which logits are wanted.
        drop: how many of the tokens run before are taken back first.
        own: how many of the first tokens the model chose itself; the others count as its prompt.
    """

    ids: Sequence[int]
    read: Sequence[int]
    drop: int = 0
    own: int = 0


Program = Generator[Step, torch.Tensor, Result]
"""Is sent logits (len(read), V) for every step, and returns what came of it."""


@dataclass(frozen=True)
class Finished(Generic[Key, Result]):
    """A sequence that has ended.

    Attributes:
        key: what it was admitted with.
        result: what its program returned; None where something failed.
        error: what failed.
        seconds: its share of the passes that it was in.
    """

    key: Key
    result: Result | None
    error: Exception | None
    seconds: float


@dataclass
class _Sequence(Generic[Key, Result]):
    key: Key
    program: Program[Result]
    step: Step
    spent: Spent
    seconds: float


class Decoding(Generic[Key, Result]):
    """A batch of sequences under way.

    Args:
        vlm: the model.
        adapter: LoRA adapter that is switched on for all that is run here.
        slots: most sequences at a time.

    Attributes:
        here: whether it takes this machine, so that other work has to wait for it.

    Raises:
        ValueError: no adapter of that name is loaded.
    """

    here = True

    def __init__(
        self, vlm: VisionLanguageModel, *, adapter: str | None = None, slots: int = SLOTS
    ) -> None:
        self._vlm, self._adapter = vlm, adapter
        self._slots = Slots(slots)
        self._running: list[_Sequence[Key, Result]] = []
        self._finished: list[Finished[Key, Result]] = []

    def __len__(self) -> int:
        """Sequences under way, those that :meth:`step` has yet to give back included."""
        return len(self._running) + len(self._finished)

    @property
    def free(self) -> int:
        """How many sequences can be admitted now."""
        return self._slots.rows - len(self._running)

    @property
    def held_bytes(self) -> int:
        """What the caches of all sequences hold, which a pass reads."""
        return self._slots.bytes

    def admit(self, key: Key, context: Context, program: Program[Result]) -> None:
        """Take a sequence in and run its program's first step, on its own.

        Args:
            key: whatever tells it from others.
            context: one row, which is advanced by the first step and not used after; it is charged all costs.
            program: not begun yet.

        Raises:
            ValueError: no slot is free.
        """
        began = time.perf_counter()
        if not self.free:
            raise ValueError(f"all {self._slots.rows} slots are taken")
        try:
            step = next(program)
            hidden = self._vlm.extend(context, torch.tensor([step.ids]), adapter=self._adapter)
            self._vlm.charge(context.spent, 0, 0, read=len(step.read))
            following = program.send(self._vlm.logits(hidden[0, list(step.read)]))
            self._slots.admit(context)
        except StopIteration as end:
            self._end(key, end.value, None, time.perf_counter() - began)
            return
        except Exception as error:
            self._end(key, None, error, time.perf_counter() - began)
            return
        one = _Sequence(key, program, following, context.spent, 0.0)
        self._running.append(one)
        self._take_back(len(self._running) - 1, step)
        one.seconds = time.perf_counter() - began

    def step(self) -> list[Finished[Key, Result]]:
        """Run every sequence's next step; gives those that have ended, or failed, since the last call.

        Where a pass fails, all that were in it have failed.
        """
        short = [i for i, one in enumerate(self._running) if len(one.step.ids) <= _LONG]
        alone = [[i] for i, one in enumerate(self._running) if len(one.step.ids) > _LONG]
        ended: list[int] = []
        with self._vlm.only(self._adapter):
            for numbers in [short, *alone]:
                if numbers:
                    ended += self._pass(numbers)
        for number in sorted(ended, reverse=True):
            self._slots.remove(number)
            self._running[number] = self._running[-1]
            self._running.pop()
        finished, self._finished = self._finished, []
        return finished

    def _pass(self, numbers: list[int]) -> list[int]:
        """One pass for the steps of some sequences; gives the numbers of those that ended."""
        began = time.perf_counter()
        results: dict[int, Result] = {}
        errors: dict[int, Exception] = {}
        try:
            given = self._run(numbers)
        except Exception as error:
            errors = dict.fromkeys(numbers, error)
        else:
            for number, logits in zip(numbers, given, strict=True):
                one = self._running[number]
                before = one.step
                try:
                    one.step = one.program.send(logits)
                    self._take_back(number, before)
                except StopIteration as end:
                    results[number] = end.value
                except Exception as error:
                    errors[number] = error
        share = (time.perf_counter() - began) / len(numbers)
        for number in numbers:
            one = self._running[number]
            one.seconds += share
            if number in results or number in errors:
                self._end(one.key, results.get(number), errors.get(number), one.seconds)
        return [*results, *errors]

    def _run(self, numbers: list[int]) -> list[torch.Tensor]:
        """The logits that each of some steps asks for."""
        # a step that runs alone needs its own row; a common pass goes through all rows, some unread
        rows = slice(0, len(self._running))
        if len(numbers) == 1:
            rows = slice(numbers[0], numbers[0] + 1)
        steps = {i: self._running[i].step for i in numbers}
        width = max(len(step.ids) for step in steps.values())
        ids = torch.zeros(rows.stop - rows.start, width, dtype=torch.long)
        for i, step in steps.items():
            ids[i - rows.start, : len(step.ids)] = torch.tensor(step.ids)
        hidden = self._vlm.extend_slots(self._slots, rows, ids, adapter=self._adapter)
        read = [hidden[i - rows.start, list(step.read)] for i, step in steps.items()]
        for i, step in steps.items():
            spent = self._running[i].spent
            self._vlm.charge(
                spent,
                len(step.ids),
                self._slots.lengths[i],
                read=len(step.read),
                adapter=self._adapter,
            )
            spent.prompt += len(step.ids) - step.own
            self._slots.advance(i, len(step.ids))
        logits = self._vlm.logits(torch.cat(read))
        return list(logits.split([len(step.read) for step in steps.values()]))

    def _take_back(self, number: int, before: Step) -> None:
        """Count off what the next step drops; the work stays charged."""
        one = self._running[number]
        one.spent.prompt -= min(one.step.drop, len(before.ids) - before.own)
        self._slots.advance(number, -one.step.drop)

    def _end(
        self, key: Key, result: Result | None, error: Exception | None, seconds: float
    ) -> None:
        self._finished.append(Finished(key, result, error, seconds))


def alone(
    vlm: VisionLanguageModel,
    context: Context,
    program: Program[Result],
    *,
    adapter: str | None = None,
) -> Result:
    """Run one program to its end; raises what it or the model raises.

    Args:
        vlm: the model.
        context: as in :meth:`Decoding.admit`.
        program: not begun yet.
        adapter: as in :class:`Decoding`.
    """
    decoding = Decoding[None, Result](vlm, adapter=adapter, slots=1)
    decoding.admit(None, context, program)
    finished: list[Finished[None, Result]] = []
    while not finished:
        finished = decoding.step()
    [one] = finished
    if one.error is not None:
        raise one.error
    return cast(Result, one.result)


@dataclass(frozen=True)
class Written:
    """What greedy decoding wrote.

    Attributes:
        text: in words; what it stopped at left out.
        drop: tokens in the cache that are not of it.
        missing: the last of its tokens, if they are not in the cache.
    """

    text: str
    drop: int
    missing: Sequence[int]


def greedy(
    vlm: VisionLanguageModel,
    spent: Spent,
    logits: torch.Tensor,
    source: Sequence[int],
    *,
    max_new_tokens: int,
    stop: str | None = None,
    answers: Phrases | None = None,
    draft: int = DRAFT,
) -> Generator[Step, torch.Tensor, Written]:
    """Greedy decoding until the end-of-turn token, the ``stop`` text if any, or the budget: part of a program.

    Each pass runs the last token and a guess at those that follow; as many as the model would have chosen
    itself are kept, so the text is that of one token a pass.

    Args:
        vlm: gives end tokens and words.
        spent: is charged the tokens written, those left out of the text not.
        logits: behind the last token that was run, shape (1, V).
        source: tokens that the model may quote, such as those of its prompt.
        max_new_tokens: budget; reaching it is no error.
        stop: text at which decoding ends.
        answers: earlier ones, to which this one is added.
        draft: most tokens that are guessed at a time, at most `DRAFT`.

    Returns:
        The program's next step must drop, and run first, what it says.
    """
    phrases = Phrases(answers)
    phrases.add(source)
    ids: list[int] = []
    guess: Sequence[int] = ()

    def written(keep: int, drop: int, missing: Sequence[int] = ()) -> Written:
        spent.generated += keep
        if answers is not None:
            answers.add([*source[-DRAFT:], *ids[:keep]])
        return Written(vlm.text(ids[:keep]), drop, missing)

    ends = vlm.end_tokens
    while True:
        kept = 0
        for kept, token in enumerate(logits.argmax(-1).tolist()):
            # in the cache: of `ids` all but those behind `kept` guesses, then the guesses not confirmed
            if token in ends or len(ids) == max_new_tokens:
                return written(len(ids), len(guess) - kept)
            ids.append(token)
            confirmed = kept < len(guess) and guess[kept] == token
            if stop is not None and (at := vlm.text(ids).find(stop)) >= 0:
                keep = max(n for n in range(len(ids)) if len(vlm.text(ids[:n])) <= at)
                held = len(ids) - 1 + len(guess) - kept
                return written(keep, held - keep)
            if len(ids) == max_new_tokens:
                drop = len(guess) - kept - confirmed
                return written(len(ids), drop, () if confirmed else ids[-1:])
            if not confirmed:
                break
        drop = len(guess) - kept
        seen = [*source[-DRAFT:], *ids]
        phrases.add(seen, known=len(seen) - kept - 1)
        guess = phrases.after(seen, min(draft, max_new_tokens - len(ids) - 1))
        step = [ids[-1], *guess]
        logits = yield Step(step, range(len(step)), drop=drop, own=len(step))


def reply(
    vlm: VisionLanguageModel, spent: Spent, prompt: Sequence[int], *, max_new_tokens: int
) -> Program[str]:
    """A program: the end of a prompt, and what the model writes behind it, as `greedy` does."""
    logits = yield Step(prompt, [len(prompt) - 1])
    written = yield from greedy(vlm, spent, logits, prompt, max_new_tokens=max_new_tokens)
    return written.text


class Phrases:
    """What followed where, in texts seen before: guesses at how another goes on (prompt lookup decoding).

    An answer quotes its prompt, and answers to one question repeat each other. The longest run of last tokens
    that is known decides, then the newer text.

    Args:
        earlier: texts of others, asked where these do not know.
        most: places to remember; the oldest are forgotten first.
    """

    _LENGTHS = (6, 3, 2)

    def __init__(self, earlier: Phrases | None = None, *, most: int = 50_000) -> None:
        self._earlier, self._most = earlier, most
        self._behind: dict[tuple[int, ...], Sequence[int]] = {}

    def add(self, ids: Sequence[int], known: int = 0) -> None:
        """Remember a text, of which so many first tokens are known from an earlier call."""
        for end in range(max(1, known - DRAFT), len(ids)):
            for length in self._LENGTHS:
                if length <= end:
                    place = tuple(ids[end - length : end])
                    self._behind.pop(place, None)  # so that it counts as new
                    self._behind[place] = tuple(ids[end : end + DRAFT])
        while len(self._behind) > self._most:
            self._behind.pop(next(iter(self._behind)), None)

    def after(self, ids: Sequence[int], most: int) -> Sequence[int]:
        """At most so many tokens that may follow a text; none where nothing is known."""
        for length in self._LENGTHS:
            place = tuple(ids[-length:])
            for phrases in (self, self._earlier):
                if phrases is not None and (found := phrases._behind.get(place)) is not None:
                    return found[: max(0, most)]
        return ()
