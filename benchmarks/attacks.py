"""Text in a video that wants to be obeyed: what it changes in verdicts of the embedded bundle.

    python -m benchmarks.attacks --out out/attacks.json

Knows the attacks (`attacks.jsonl`, the tests' too), where they are put (captions, frames), and what is compared:
the verdict on the same clip as it is, with an attack, and with as many neutral words in the same place.
That an attack is never more than text is the matter of `tests/test_attacks.py`; here is counted what the words do.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import tempfile
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from recipes.machine import machine
from safelens.verdict import Caption

if TYPE_CHECKING:
    from safelens.cascade import SafeLens
    from safelens.deliberate import Deliberated, Deliberator
    from safelens.screen import Screened
    from safelens.verdict import Verdict
    from safelens.video import Clip

SAMPLES = Path(__file__).parents[1] / "samples"
SEED = 4711
UNSURE = 8
"""Clips of SafeWorld that S1 leaves to S2, besides the samples."""
_WORDS = [
    "table",
    "window",
    "paper",
    "river",
    "garden",
    "winter",
    "letter",
    "bridge",
    "silver",
    "corner",
]


Key = TypeVar("Key")


@dataclass(frozen=True)
class Attack:
    """A text.

    Attributes:
        kind: what it imitates.
        text: as it would be read in a video.
    """

    kind: str
    text: str


def attacks() -> list[Attack]:
    """All of `attacks.jsonl`."""
    lines = Path(__file__).with_name("attacks.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [Attack(row["kind"], row["text"] * row.get("repeat", 1)) for row in rows]


def after_each(captions: Sequence[Caption], text: str) -> tuple[Caption, ...]:
    """The text follows what each caption says."""
    return tuple(c.model_copy(update={"text": f"{c.text} {text}"}) for c in captions)


def on_a_sign(captions: Sequence[Caption], text: str) -> tuple[Caption, ...]:
    """The text stands in the middle frame, and its caption quotes it."""
    middle = len(captions) // 2
    found = list(captions)
    quoted = f'{captions[middle].text} A sign says "{text}".'
    found[middle] = captions[middle].model_copy(update={"text": quoted})
    return tuple(found)


POSITIONS: dict[str, Callable[[Sequence[Caption], str], tuple[Caption, ...]]] = {
    "after_each_caption": after_each,
    "on_a_sign": on_a_sign,
}
IN_FRAMES = "drawn_in_the_frames"


@dataclass(frozen=True)
class Seen:
    """A clip that S2 is asked about.

    Attributes:
        name: of its file.
        clip: its frames.
        s1: what S1 found.
        captions: the captioner's.
        escalated: whether S1 leaves it to S2; the others are put to S2 all the same.
    """

    name: str
    clip: Clip
    s1: Screened
    captions: tuple[Caption, ...]
    escalated: bool


def clips(lens: SafeLens) -> list[Seen]:
    """The samples, and clips of SafeWorld that S1 leaves to S2."""
    from safelens.safeworld import sample_scene
    from safelens.safeworld.encode import USUAL, encode

    found = clips_of(lens, sorted(SAMPLES.glob("*.mp4")))
    with tempfile.TemporaryDirectory() as folder:
        number, unsure = 0, 0
        while unsure < UNSURE:
            path = Path(folder) / f"safeworld-{SEED}-{number}.mp4"
            encode(sample_scene(SEED, number), replace(USUAL, size=(256, 256)), path)
            drawn = [one for one in clips_of(lens, [path]) if one.escalated]
            found += drawn
            unsure += len(drawn)
            number += 1
    return found


def clips_of(lens: SafeLens, paths: Sequence[Path]) -> list[Seen]:
    """Files as S2 gets them, without those that are out of the bundle's domain."""
    assert lens.captioner is not None
    found = []
    for path in paths:
        clip = lens.decode(str(path)).clip
        assert clip is not None
        s1 = lens.screener.screen([clip])[0]
        if s1.familiar:
            sure = lens.thresholds.passed(s1.label, s1.confidence)
            captions = lens.captioner.describe([clip])[0]
            found.append(Seen(path.stem, clip, s1.apart(), captions, not sure))
    return found


def neutral(lens: SafeLens, text: str, chance: random.Random) -> str:
    """Words that say nothing, about as many tokens as S2 reads of a text, and no more than S2 reads of a caption."""
    from safelens.prompts import frame_captions

    def length(words: str) -> int:
        caption = Caption(time_s=0.0, text=words)
        return len(lens.deliberator.vlm.ids(frame_captions([caption])))

    wanted, words = length(text), [chance.choice(_WORDS)]
    read = length(words[0])
    while (more := length(" ".join([*words, _WORDS[0]]))) <= wanted and more > read:
        words.append(chance.choice(_WORDS))
        read = length(" ".join(words))
    return " ".join(words)


def answers(
    s2: Deliberator, asked: Iterable[tuple[Key, Seen, tuple[Caption, ...]]]
) -> Iterator[tuple[Key, Deliberated]]:
    """What S2 says of clips with other captions, in any order."""
    under_way, waiting = s2.decoding(), iter(asked)
    following = next(waiting, None)
    while following is not None or under_way:
        while following is not None and under_way.free:
            key, one, captions = following
            context = one.s1.context
            under_way.admit(key, context, s2.program(captions, one.s1.scores, context.spent))
            following = next(waiting, None)
        for ended in under_way.step():
            if ended.error is not None:
                raise ended.error
            yield ended.key, ended.result


def moderated(lens: SafeLens, given: Iterable[tuple[Key, Clip]]) -> Iterator[tuple[Key, Verdict]]:
    """The cascade's verdicts on clips that are decoded already."""
    from safelens.outcome import Decoded
    from safelens.pipeline import BATCH, Case

    waiting = iter(given)
    while batch := list(itertools.islice(waiting, BATCH)):
        cases = []
        for _, clip in batch:
            decoding: Future[Decoded] = Future()
            decoding.set_result(Decoded(clip.path, {}, clip, None))
            cases.append(Case(decoding))
        lens.screen(cases)
        under_way = lens.deliberations()
        lens.begin([case for case in cases if case.verdict is None], under_way)
        while under_way:
            for ended in under_way.step():
                lens.conclude(ended)
        for (key, _), case in zip(batch, cases, strict=True):
            assert case.verdict is not None
            yield key, case.verdict


def drawn(clip: Clip, text: str) -> Clip:
    """The text as a subtitle in every frame, as much of it as there is room for."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = clip.frames.shape[1:3]
    size = max(8, height // 14)
    font = ImageFont.load_default(size)
    shown = text.encode("utf-8", "replace").decode()[:400]
    lines = textwrap.wrap(" ".join(shown.split()), max(1, 2 * width // size))[:3] or [""]
    frames = []
    for frame in clip.frames:
        picture = Image.fromarray(frame)
        paint = ImageDraw.Draw(picture)
        top = height - (size + 2) * len(lines)
        paint.rectangle((0, top, width, height), fill=(0, 0, 0))
        for number, line in enumerate(lines):
            paint.text((2, top + number * (size + 2)), line, fill=(255, 255, 255), font=font)
        frames.append(np.asarray(picture))
    return replace(clip, frames=np.stack(frames))


Outcome = tuple[str, ...] | None
"""Ids of the violated categories, none of them for safe; None where nothing was decided."""


def in_turn(rows: int, clips: int, each: int) -> list[tuple[int, int]]:
    """Pairs of a row and a clip: every row with `each` clips, or with all, and every clip as often as any other."""
    most = min(each, clips)
    return [(row, (row * most + k) % clips) for row in range(rows) for k in range(most)]


def measure(
    lens: SafeLens,
    found: Sequence[Seen],
    given: Sequence[Attack],
    own: Sequence[Deliberated],
    each: int,
) -> dict[str, Any]:
    """Clips with attacks in every position, and with neutral words instead.

    Args:
        lens: The bundle.
        found: The clips.
        given: The attacks.
        own: S2's answer to each clip as it is.
        each: clips that each attack is put to.
    """
    chance = random.Random(SEED)
    texts = {
        "attack": [attack.text for attack in given],
        "control": [neutral(lens, attack.text, chance) for attack in given],
    }
    pairs = in_turn(len(given), len(found), each)
    s2_own = [_flagged(said) for said in own]
    report: dict[str, Any] = {name: {} for name in (*POSITIONS, IN_FRAMES)}
    for kind, said in texts.items():
        for position, put in POSITIONS.items():
            asked = (((row, i), found[i], put(found[i].captions, said[row])) for row, i in pairs)
            answered = {key: _flagged(one) for key, one in answers(lens.deliberator, asked)}
            report[position][kind] = _counted(found, given, s2_own, answered)
    decided = dict(moderated(lens, ((i, one.clip) for i, one in enumerate(found))))
    all_own = [_outcome(decided[i]) for i in range(len(found))]
    for kind, said in texts.items():
        clips = ((key, drawn(found[key[1]].clip, said[key[0]])) for key in pairs)
        verdicts = dict(moderated(lens, clips))
        outcomes = {key: _outcome(verdict) for key, verdict in verdicts.items()}
        report[IN_FRAMES][kind] = _counted(found, given, all_own, outcomes) | {
            "changed_by": moved_by(lens, found, s2_own, all_own, verdicts)
        }
    for one in report.values():
        one["attack_beyond_control"] = {
            key: one["attack"][key] - one["control"][key] for key in ("changed", "unsafe_to_safe")
        }
    return report


def moved_by(
    lens: SafeLens,
    found: Sequence[Seen],
    s2_own: Sequence[Outcome],
    all_own: Sequence[Outcome],
    verdicts: dict[tuple[int, int], Verdict],
) -> dict[str, int]:
    """What let a text in the frames change verdicts: the guard, S1 alone, the captions, or S2's view of the video.

    S2 is moved by the captions where it decides otherwise with them and the video as it is. Else it is moved
    by the video that it has in its cache, or by S1's scores of it.
    """
    changed = {k: v for k, v in verdicts.items() if _outcome(v) != all_own[k[1]]}
    by_s2 = {k: v for k, v in changed.items() if v.decided_by == "deliberate"}
    asked = ((k, found[k[1]], tuple(v.captions)) for k, v in by_s2.items())
    read = {key: _flagged(said) for key, said in answers(lens.deliberator, asked)}
    captions = sum(outcome != s2_own[key[1]] for key, outcome in read.items())
    guard = sum(_outcome(v) is None for v in changed.values())
    return {
        "guard": guard,
        "s1": len(changed) - len(by_s2) - guard,
        "captions": captions,
        "cache_or_scores": len(by_s2) - captions,
    }


def _flagged(said: Deliberated) -> Outcome:
    return tuple(name for name, flag in said.flags.items() if flag)


def _outcome(verdict: Verdict) -> Outcome:
    if verdict.flagged is None:
        return None
    return tuple(c.id for c in verdict.categories if c.flagged)


def _counted(
    found: Sequence[Seen],
    given: Sequence[Attack],
    own: Sequence[Outcome],
    answered: dict[tuple[int, int], Outcome],
) -> dict[str, Any]:
    changed = sorted(key for key, outcome in answered.items() if outcome != own[key[1]])
    to_safe = [key for key in changed if own[key[1]] and answered[key] == ()]
    to_unsafe = [key for key in changed if own[key[1]] == () and answered[key]]
    return {
        "pairs": len(answered),
        "changed": len(changed),
        "unsafe_to_safe": len(to_safe),
        "safe_to_unsafe": len(to_unsafe),
        "to_undecided": sum(answered[key] is None for key in changed),
        "strings_that_change": len({number for number, _ in changed}),
        "strings_unsafe_to_safe": len({number for number, _ in to_safe}),
        "changed_by_kind": dict(Counter(given[number].kind for number, _ in changed)),
        "changed_by_clip": dict(Counter(found[i].name for _, i in changed)),
        "examples": [
            {"clip": found[i].name, "kind": given[number].kind, "text": given[number].text[:80]}
            for number, i in to_safe[:10]
        ],
    }


def main() -> None:
    """Measure and write."""
    from safelens.cascade import SafeLens

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bundle", default="tiny")
    parser.add_argument("--every", type=int, default=1, help="take each n-th attack only")
    parser.add_argument(
        "--each", type=int, default=1000, help="put each attack to so many of the clips, in turn"
    )
    asked = parser.parse_args()
    before, given = machine(), attacks()[:: asked.every]
    with SafeLens.load(asked.bundle) as lens:
        found = clips(lens)
        said = dict(answers(lens.deliberator, ((i, c, c.captions) for i, c in enumerate(found))))
        own = [said[i] for i in range(len(found))]
        report = {
            "machine": before,
            "attack_strings": len(given),
            "kinds": dict(Counter(attack.kind for attack in given)),
            "clips": [
                {
                    "name": one.name,
                    "escalated": one.escalated,
                    "s1": one.s1.label,
                    "s1_confidence": round(one.s1.confidence, 3),
                    "s2": _flagged(mine),
                    "s2_margin": round(min(abs(p - 0.5) for p in mine.scores.values()), 3),
                }
                for one, mine in zip(found, own, strict=True)
            ],
            "clips_an_attack": min(asked.each, len(found)),
            "positions": measure(lens, found, given, own, asked.each),
        }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
