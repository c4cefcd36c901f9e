"""What tells a violating clip of SafeWorld from its safe twin, in words, and whether a text names it.

Knows the truth's wording and words that mean the same. Knows nothing of who wrote the text, or of labels
that it argues for.

Two scenes of one world differ only in what violates. So the words that the violating scene's description
and explanation have, and its twin's have not, are what the violation is called: "struck" and "stick", not "dog".
Of the explanation only what stands before the colon counts, which says what is to be seen; what follows
judges it ("animal abuse"), and a text may say that of any video of the category. Where context alone decides,
as in a fight without ring and referee, no words are left, and those of the explanation count that its
twin's explanation has not. Where on-screen text decides, all of it must be quoted, word for word.

Share of texts that name what violates, over the 1,290 violations in 3,000 scenes
(`benchmarks/decisive_words.py`): the scene's own explanation or description 100 %; captions of its frames
95 % (no single frame tells a blow from a helping hand); its twin's explanation 0 %, by construction, and
its twin's description 4 %, where context alone decides; the explanation of another scenario 3 %, of another
of the same category 10 %, as dogs and children are struck alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from safelens.data.records import Record
from safelens.safeworld.scene import Truth


@dataclass(frozen=True)
class Decisive:
    """How what violates is called.

    Attributes:
        words: Stems, any of which names it; empty where `phrase` decides.
        phrase: On-screen text that decides, or None.
    """

    words: frozenset[str]
    phrase: str | None

    def named_in(self, text: str) -> bool:
        """Whether a text names it.

        A text that denies it ("no gun is shown") or that lists whatever might be there is not found out.
        """
        if self.phrase is None:
            return not self.words.isdisjoint(stems(text))
        letters = r"\W+".join(map(re.escape, self.phrase.split()))
        return re.search(rf"(?<!\w){letters}(?!\w)", text, re.IGNORECASE) is not None


def decisive(record: Record) -> dict[str, Decisive] | None:
    """By violated category what violates it; None unless the record is of a violating clip of this SafeWorld.

    The twin's words are drawn again from the seed and number in the record's id. A record whose truth
    differs from the scene so found, as of another version of the world, has none.
    """
    if record.source != "safeworld" or not record.true_labels:
        return None
    if (scene := _drawn_again(record.id)) is None:
        return None
    truth, found = scene
    told = (record.true_labels, record.description, record.explanation)
    return found if told == (truth.labels, truth.description, truth.explanation) else None


def stems(text: str) -> set[str]:
    """Stems of the words that tell scenes apart, one for words of one meaning."""
    found = re.findall(r"\w+", text.casefold())
    short = {re.sub(r"(?<=\w{3})(?:ing|es|ed|e|(?<!s)s)$", "", word) for word in found}
    return {_SAME.get(stem, stem) for stem in short} - _IDLE


@lru_cache(maxsize=1 << 14)  # several systems are measured on the same records
def _drawn_again(name: str) -> tuple[Truth, dict[str, Decisive]] | None:
    from safelens.safeworld.writer import scene_of

    if (scene := scene_of(name)) is None:
        return None
    truth, twin = scene.truth, scene.twin().truth
    pairs = zip(truth.labels, _scenes(truth), _scenes(twin), strict=False)
    return truth, {label: _told_apart(one, other) for label, one, other in pairs}


def _scenes(truth: Truth) -> list[tuple[str, str]]:
    """Description and explanation of each scene in the clip; both have a sentence a scene."""
    if "+" not in truth.scenario:
        return [(truth.description, truth.explanation)]
    sentences = (re.split(r"(?<=\.) ", text) for text in (truth.description, truth.explanation))
    return list(zip(*sentences, strict=True))


def _told_apart(one: tuple[str, str], other: tuple[str, str]) -> Decisive:
    (told, why), (twin_told, twin_why) = one, other
    shown, twin_shown = (re.findall(r"the text ([A-Z ]*[A-Z])", text) for text in (told, twin_told))
    if shown and shown != twin_shown:
        return Decisive(frozenset(), shown[0])
    seen = stems(why.partition(":")[0])
    words = (seen | stems(told)) - stems(f"{twin_told} {twin_why}")
    return Decisive(frozenset(words or seen - stems(twin_why)), None)


def _table(groups: Iterable[str]) -> dict[str, str]:
    return {stem: group.split()[0] for group in groups for stem in group.split()}


_SAME = _table(
    (
        "strik struck hit hitt beat beaten slap slapp kick punch blow fight fought attack",
        "gun pistol rifl handgun firearm weapon",
        "shot shoot",
        "fall fell fallen lie lying",
        "break brok broken shatter smash crack",
        "rock ston",
        "fir burn burnt flam blaz ablaz ignit arson",
        "explosion explod blast",
        "laugh mock ridicul taunt ha",
        "cry cri weep tear",
        "pill drug tablet",
        "payment unpaid steal stol stolen theft shoplift",
        "banknot money cash",
        "mosaic censor pixelat blur",
        "polic policeman officer cop",
        "gon vanish disappear",
        "torment tortur",
        "tied tie bound",
        "past pass",
        "bon skull",
    )
)
"""Stems of one meaning, or of an act and of what a frame shows of it."""
_IDLE = frozenset(
    re.findall(
        r"\w+",
        "a an and as at by both for from in is it no not of on once only or that the then to two up out who "
        "with without whil behind befor under along all orange purple red blue green yellow person peopl "
        "adult child video pictur sign show say claim set caus follow gather stand walk point throw fly carri "
        "exchang hat pink",
    )
)
"""Stems that a text may hold whatever it is about: actors and their colours, and what any scene does."""
