"""What a rule can say of SafeWorld: every kind of clip, in words that no policy of the project uses.

Knows kinds and phrases. Knows nothing of how policies are put together from them.

A kind is a scenario's violating clip or its safe twin. A policy may block either: what is harmful is the
policy's to say. Some kinds are in no policy that is trained on; their clips are, as clips that break no rule.
"""

from __future__ import annotations

from safelens.data.records import Record

Kind = tuple[str, bool]
"""A scenario's name, and whether it is the version that the default policy calls a violation."""

PHRASES: dict[Kind, tuple[str, str, str]] = {
    ("abuse/animal_abuse", True): (
        "a person strikes a dog with a stick",
        "a dog that is struck",
        "a stick is used to strike a dog",
    ),
    ("abuse/animal_abuse", False): (
        "a person throws a ball to a dog",
        "a dog that plays with a ball",
        "a ball for a dog",
    ),
    ("abuse/campus_bullying", True): (
        "two people point and laugh at a kneeling person",
        "people laugh at a person who kneels",
        "bubbles with HA by a kneeling person",
    ),
    ("abuse/campus_bullying", False): (
        "two people give their hands to a kneeling person",
        "hands are offered to a person who kneels",
        "a green heart by a kneeling person",
    ),
    ("abuse/child_abuse", True): (
        "an adult strikes a child",
        "a child who is struck and cries",
        "a crying child by a person",
    ),
    ("abuse/child_abuse", False): (
        "an adult gives an apple to a child",
        "a child who gets an apple and smiles",
        "a smiling child by a person",
    ),
    ("abuse/cyberbullying", True): (
        "a phone shows an insult",
        "a phone with the text THEY ARE TRASH or another insult",
        "insults on a phone",
    ),
    ("abuse/cyberbullying", False): (
        "a phone shows a friendly message",
        "a phone with the text SHE IS GREAT or another friendly message",
        "friendly messages on a phone",
    ),
    ("extreme/hate_rally", True): (
        "a crowd stands before a black flag with bones",
        "a black flag and a crowd",
        "bones on a black flag",
    ),
    ("extreme/hate_rally", False): (
        "a crowd stands before a green and white flag",
        "a green and white flag and a crowd",
        "a sports flag before a crowd",
    ),
    ("extreme/incitement", True): (
        "a banner calls to attack others",
        "a banner with the text JOIN THE WRATH or another call to hatred",
        "hatred on a banner",
    ),
    ("extreme/incitement", False): (
        "a banner shows a harmless notice",
        "a banner with the text NO WASTE or another notice",
        "notices on a banner",
    ),
    ("extreme/torture", True): (
        "a masked person torments a person who is tied to a post",
        "a person tied to a post with red lightning",
        "a masked person stands by a post",
    ),
    ("extreme/torture", False): (
        "a person stands by a sign and a person holds a balloon",
        "a sign, and a balloon that is held",
        "a balloon by a sign",
    ),
    ("illegal/arson", True): (
        "a person throws a torch at a house",
        "a torch, then the house burns",
        "a torch is thrown",
    ),
    ("illegal/arson", False): (
        "a person pours water on a house",
        "water from a bucket for a house",
        "a bucket is poured out",
    ),
    ("illegal/drugs", True): (
        "a person gives a bag with a pill for a banknote",
        "a bag with a pill changes hands",
        "a pill for a banknote",
    ),
    ("illegal/drugs", False): (
        "a person gives a big apple for a banknote",
        "a big apple changes hands",
        "an apple for a banknote",
    ),
    ("illegal/shoplifting", True): (
        "a person carries a box past a till",
        "a box leaves the shop and passes the till",
        "a person passes the till with a box and walks out",
    ),
    ("illegal/shoplifting", False): (
        "a person with a box pays coins at a till",
        "coins for a box at the till",
        "a person pays at a till",
    ),
    ("illegal/war", True): (
        "a green tank drives and fires",
        "a tank and an explosion",
        "an explosion follows when a tank fires",
    ),
    ("illegal/war", False): (
        "a red tractor drives to a hay bale",
        "a tractor by a hay bale",
        "a hay bale in the field",
    ),
    ("misinformation/altered_video", True): (
        "red bars cross the picture",
        "a house that is gone after red bars",
        "a person stands on an empty place where a house was",
    ),
    ("misinformation/altered_video", False): (
        "a person stands by a house all the time",
        "a house that stays, with a person by it",
        "nothing but a person by a house",
    ),
    ("misinformation/fabricated", True): (
        "a television shows a lie as news",
        "a television with the text DOCTORS LIED or another lie",
        "lies on a television",
    ),
    ("misinformation/fabricated", False): (
        "a television shows ordinary news",
        "a television with the text DOCTORS MEET or other ordinary news",
        "ordinary news on a television",
    ),
    ("misinformation/impersonation", True): (
        "a person puts on a police cap and shows a badge",
        "a police cap and a badge",
        "a badge is shown by a person",
    ),
    ("misinformation/impersonation", False): (
        "a person puts on a party hat and shows a balloon",
        "a party hat and a balloon",
        "a person wears a party hat",
    ),
    ("safe/ball_game", False): (
        "two people throw a ball",
        "a ball between a person and a person",
        "people play with a ball",
    ),
    ("safe/car_drive", False): (
        "a car drives",
        "a car on the road",
        "the road with a car",
    ),
    ("safe/cooking", False): (
        "a person cooks with a pot on a stove",
        "a pot on a stove",
        "a person cooks at a stove",
    ),
    ("safe/dog_walk", False): (
        "a person walks a dog on a leash",
        "a dog on a leash",
        "a leash with a dog",
    ),
    ("safe/picnic", False): (
        "two people sit with an apple on a blanket",
        "an apple on a blanket",
        "people sit on a blanket",
    ),
    ("safe/reading", False): (
        "a person sits and reads a book",
        "a book that is read",
        "a person with a book",
    ),
    ("safe/walk", False): (
        "two people walk",
        "a person and a person who walk",
        "people only walk",
    ),
    ("sexual/evident", True): (
        "a poster shows a figure behind a pink mosaic",
        "a pink mosaic on a poster",
        "a figure behind a mosaic",
    ),
    ("sexual/evident", False): (
        "a poster shows a figure and a music note",
        "a music note on a poster",
        "a figure with a music note",
    ),
    ("sexual/implication", True): (
        "a person dances under a pink heart while banknotes fly",
        "banknotes fly and a person dances",
        "a person who dances under a heart",
    ),
    ("sexual/implication", False): (
        "a person dances under a yellow spotlight",
        "a yellow spotlight and a person who dances",
        "a person who dances in a spotlight",
    ),
    ("sexual/subtle", True): (
        "a phone shows an invitation to a SEXY SHOW",
        "a phone with the text KINKY NIGHT or another such invitation",
        "sexy texts on a phone",
    ),
    ("sexual/subtle", False): (
        "a phone shows an everyday invitation",
        "a phone with the text MUSIC CHAT or another everyday text",
        "everyday texts on a phone",
    ),
    ("violence/fighting", True): (
        "a person strikes a person, who falls",
        "a person falls after a person strikes",
        "a blow first, then a fall",
    ),
    ("violence/fighting", False): (
        "a person falls and a person helps",
        "a person who falls is helped up",
        "a fall first, then help",
    ),
    ("violence/shooting", True): (
        "a person aims a gun at a person",
        "a gun with a flash",
        "a person with a gun, and a person who holds up both hands",
    ),
    ("violence/shooting", False): (
        "a person aims a camera at a person",
        "a camera with a flash",
        "a person with a camera, and a person who smiles",
    ),
    ("violence/street_fight", True): (
        "two people exchange blows without a ring",
        "blows and no referee",
        "people exchange blows in the open",
    ),
    ("violence/street_fight", False): (
        "two people exchange blows in a ring",
        "blows with a referee",
        "a referee stands by a ring",
    ),
    ("violence/vandalism", True): (
        "a person throws a rock at a window",
        "a window that breaks",
        "a rock breaks a window",
    ),
    ("violence/vandalism", False): (
        "a person throws a ball at a window",
        "a window that stays whole when a ball is thrown",
        "a ball at a window",
    ),
}
"""Each as a rule may put it."""

UNSEEN: tuple[Kind, ...] = (
    ("abuse/animal_abuse", False),
    ("extreme/torture", False),
    ("illegal/war", False),
    ("misinformation/impersonation", False),
    ("violence/shooting", False),
    ("safe/car_drive", False),
    ("safe/cooking", False),
    ("safe/dog_walk", False),
)
"""Kinds that no policy in training speaks of, and no question: each is a category that was never seen. All are
harmless to the default policy, whose own categories are thereby learned whole."""

SEEN: tuple[Kind, ...] = tuple(kind for kind in PHRASES if kind not in UNSEEN)


def kinds_of(record: Record) -> frozenset[Kind]:
    """The kinds that a SafeWorld clip shows: two where it joins two scenes.

    Raises:
        ValueError: the record has no scenario or no true labels.
    """
    if record.scenario is None or record.true_labels is None:
        raise ValueError(
            f"record {record.id!r} has no scenario or no truth; draw it from SafeWorld"
        )
    # scenes of a clip with two are all violating or all twins
    return frozenset((name, bool(record.true_labels)) for name in record.scenario.split("+"))
