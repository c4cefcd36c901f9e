"""What violates is told from the scene's own truth, and from no other text."""

import random

import pytest

from safelens.data.records import Record
from safelens.safeworld import sample_scene
from safelens.safeworld.decisive import decisive, stems
from safelens.safeworld.writer import clip_id, scene_of

SEED = 5


def record_of(scene, **changes):
    t = scene.truth
    record = Record(id=clip_id(scene.seed, scene.index, twin=t.twin), video="v.mp4", source="safeworld",
                    labels=t.labels, true_labels=t.labels, description=t.description,
                    explanation=t.explanation)  # fmt: skip
    return record.model_copy(update=changes)


@pytest.fixture(scope="module")
def violating():
    return [s for s in (sample_scene(SEED, i) for i in range(300)) if s.truth.labels]


@pytest.fixture(scope="module")
def first_of():
    """What violates the first scene of a scenario."""
    drawn = [sample_scene(SEED, i) for i in range(800)]
    records = {s.truth.scenario: record_of(s) for s in reversed(drawn) if s.truth.labels}

    def one(scenario):
        [(_, found)] = decisive(records[scenario]).items()
        return found

    return one


def share(values):
    values = list(values)
    assert len(values) > 100
    return sum(values) / len(values)


def test_the_truth_names_what_violates_and_other_texts_do_not(violating):
    rng = random.Random(0)
    told = [(s, one) for s in violating for one in decisive(record_of(s)).values()]
    assert share(one.named_in(s.truth.explanation) for s, one in told) == 1
    assert share(one.named_in(s.truth.description) for s, one in told) == 1
    assert share(one.named_in(s.twin().truth.explanation) for s, one in told) == 0
    assert share(one.named_in(s.twin().truth.description) for s, one in told) < 0.08
    others = [
        rng.choice([o for o in violating if not kinds(o) & kinds(s)]).truth.explanation
        for s, _ in told
    ]
    assert share(one.named_in(text) for (_, one), text in zip(told, others, strict=True)) < 0.08
    # and what single frames show of it is found, though put in other words
    shown = [
        " ".join(s.caption(s.truth.interval[0] + k * (s.truth.interval[1] - s.truth.interval[0]) / 8)
                 for k in range(1, 8))
        for s, _ in told
    ]  # fmt: skip
    assert share(one.named_in(text) for (_, one), text in zip(told, shown, strict=True)) > 0.85


def kinds(scene):
    return set(scene.truth.scenario.split("+"))


def test_every_violation_of_a_clip_with_two_scenes_has_its_own_words():
    doubles = [s for s in (sample_scene(SEED, i) for i in range(600)) if len(s.truth.labels) == 2]
    assert len(doubles) >= 5
    for scene in doubles:
        found = decisive(record_of(scene))
        sentences = dict(zip(scene.truth.labels, scene.truth.explanation.split(". "), strict=True))
        assert tuple(found) == scene.truth.labels
        for label, one in found.items():
            assert one.named_in(sentences[label])
        a, b = scene.truth.labels
        assert not found[a].words & found[b].words or found[a].words != found[b].words


@pytest.mark.parametrize(
    ("scenario", "names", "does_not"),
    [
        ("abuse/animal_abuse", "He hits the animal.", "Animal abuse: a person is cruel to a dog."),
        ("abuse/animal_abuse", "A dog and a stick.", "A person throws a ball to a dog."),
        ("violence/shooting", "A pistol is aimed at someone.", "Violence. A camera flashes."),
        ("violence/street_fight", "They punch each other.", "It violates the policy on violence."),
        ("violence/vandalism", "The window is smashed.", "A ball flies at the window."),
        ("illegal/arson", "A torch is thrown.", "Someone pours water on a house: illegal."),
        ("illegal/drugs", "Pills change hands.", "An illegal sale of an apple for money."),
        ("illegal/shoplifting", "The box was stolen.", "Coins are paid at the till."),
        ("extreme/torture", "A bound person by a masked one.", "Extreme violence is shown."),
    ],
)
def test_objects_and_acts_count_and_the_category_does_not(first_of, scenario, names, does_not):
    one = first_of(scenario)
    assert one.phrase is None
    assert (one.named_in(names), one.named_in(does_not), one.named_in("")) == (True, False, False)


def test_on_screen_text_is_quoted_whole_or_not_at_all(first_of):
    one = first_of("abuse/cyberbullying")
    assert one.phrase is not None
    assert one.named_in(f"The phone reads “{one.phrase.title()}”, an insult.")
    assert one.named_in(one.phrase.replace(" ", "\n"))
    assert not one.named_in(one.phrase[:-1])
    assert not one.named_in(one.phrase + "S")
    assert not one.named_in(one.phrase.partition(" ")[2])
    assert not one.named_in("The phone shows an insult: online bullying.")


def test_only_violating_records_of_this_world_have_decisive_words(violating):
    scene = violating[0]
    assert decisive(record_of(scene)) is not None
    assert decisive(record_of(scene.twin())) is None
    assert decisive(record_of(scene, explanation="Another world's reason.")) is None
    assert decisive(record_of(scene, id="video 7")) is None
    assert decisive(record_of(scene, source="other")) is None
    # labels that are noise do not matter, the true ones do
    assert decisive(record_of(scene, labels=())) is not None
    assert decisive(record_of(scene, true_labels=("spam",))) is None


def test_ids_lead_back_to_their_scenes(violating):
    scene = violating[0]
    assert scene_of(clip_id(SEED, scene.index)) == scene
    assert scene_of(clip_id(SEED, scene.index, twin=True)).truth == scene.twin().truth
    assert scene_of(clip_id(3, 1234567)).index == 1234567
    for name in ("sw3-12", "sw3-000001-twins", "xsw3-000001", "sw3-000001\n", "sw٣-000001"):
        assert scene_of(name) is None


def test_stems_make_one_of_the_forms_and_of_one_meaning():
    assert stems("strikes") == stems("striking") == stems("struck") == stems("HIT") != set()
    assert stems("fires") == stems("burning") == stems("Flames") != stems("firm")
    assert stems("passes") == stems("past") != stems("pastor")
    assert stems("a red person shows that it is") == set()
