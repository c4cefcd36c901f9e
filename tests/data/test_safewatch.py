"""SafeWatch-like SFT entries whose prompts sample, rename, shuffle and renumber categories."""

import json

import pytest

from safelens.data import read_dataset
from safelens.data.names import SAFEWATCH_NAMES, CategoryNames
from safelens.policy import Policy
from safelens.prompts import parse_response


def prompt_for(names: list[str]) -> str:
    keys = ", ".join(f'"C{k}({name})": boolean' for k, name in enumerate(names, start=1))
    listed = "; ".join(f"C{k}: {name}" for k, name in enumerate(names, start=1))
    boxes = "\n".join(
        f"<box>\nC{k}: {name}\n[PROHIBITED] Whatever.\n</box>"
        for k, name in enumerate(names, start=1)
    )
    return (
        f"<video>\n\nYou guard.\n<BEGIN HARMFUL CATEGORIES>\n{listed};\n<END HARMFUL CATEGORIES>\n"
        f"{boxes}\n**Give the result in this form:**\n\nGUARDRAIL = {{{{\n{keys}\n}}}}\n\n"
        '**The second line must begin with "GUARDRAIL:"**\n'
    )


def answer(flags: dict[str, bool], explanation: str = "Someone is struck.") -> str:
    numbered = {f"C{k}({name})": flag for k, (name, flag) in enumerate(flags.items(), start=1)}
    return (
        f"DESCRIPTION: Two people.\nGUARDRAIL: {json.dumps(numbered, indent=4)}\n"
        f"EXPLANATION: {explanation}"
    )


def conversation(flags: dict[str, bool], **fields) -> dict:
    """A raw SFT entry; `flags` are the prompt's names, in its order, and the truth under each."""
    explanation = fields.pop("explanation", "Someone is struck.")
    entry = {
        "id": 1,
        "video": "v.mp4",
        "conversations": [
            {"from": "human", "value": prompt_for(list(flags))},
            {"from": "gpt", "value": answer(flags, explanation)},
        ],
    }
    return entry | fields


def swift(entry: dict) -> dict:
    """The same as a line of swift's data."""
    human, gpt = (turn["value"] for turn in entry["conversations"])
    query = human.replace("<video>\n\n", "")
    return {"query": query, "response": gpt, "history": [], "videos": [entry["video"]]}


def read(tmp_path, policy, entries, name="full.json", **options):
    path = tmp_path / name
    lines = "\n".join(json.dumps(entry) for entry in entries)
    path.write_text(json.dumps(entries) if path.suffix == ".json" else lines)
    return read_dataset(path, policy, **options)


ADAPTIVE = {
    "Adult Material": False,
    "Violence and Harmful Acts": True,
    "Unlawful and Regulated Content": False,
}


def test_names_and_not_numbers_decide_in_an_adaptive_prompt(tmp_path, policy):
    shuffled = {name: ADAPTIVE[name] for name in (*list(ADAPTIVE)[1:], "Adult Material")}
    entries = [conversation(ADAPTIVE), conversation(shuffled, id=2)]
    data = read(tmp_path, policy, entries)
    assert [r.labels for r in data.records] == [("violence",), ("violence",)]
    # C2 in one prompt is C1 in the other; what was not asked for stays unknown.
    assert {r.asked for r in data.records} == {("sexual", "violence", "illegal")}
    assert not any(r.undecided for r in data.records)
    assert data.problems == ()


def test_the_answer_is_rewritten_in_the_policys_names_and_speaks_of_nothing_else(tmp_path, policy):
    entry = conversation(ADAPTIVE, explanation="It breaks C2(Violence and Harmful Acts): a blow.")
    (record,) = read(tmp_path, policy, [entry]).records
    assert record.explanation == "It breaks Threats, Violence & Harm: a blow."
    assert record.response == (
        "DESCRIPTION: Two people.\nEXPLANATION: It breaks Threats, Violence & Harm: a blow.\n"
        'GUARDRAIL: {"Sexual Content": false, "Threats, Violence & Harm": true,'
        ' "Illegal/Regulated Activities": false}'
    )


def test_every_name_of_safewatch_is_known_and_all_six_asked_is_a_whole_answer(tmp_path, policy):
    entries = [
        conversation({names[k]: k == n for n, names in enumerate(SAFEWATCH_NAMES.values())}, id=k)
        for k in range(4)
    ]
    data = read(tmp_path, policy, entries)
    expected = [("sexual",), ("abuse",), ("violence",), ("misinformation",)]
    assert [r.labels for r in data.records] == expected
    for record in data.records:
        assert record.asked is None
        flags = parse_response(policy, record.response).flags
        assert tuple(c for c, flagged in flags.items() if flagged) == record.labels


def test_a_stock_safe_answer_is_undecided_unless_every_category_was_asked_for(tmp_path, policy):
    stock = "There is nothing wrong with the video."
    sampled = dict.fromkeys(list(ADAPTIVE), False)
    all_six = {names[0]: False for names in SAFEWATCH_NAMES.values()}
    entries = [
        conversation(sampled, explanation=stock),
        conversation(all_six, explanation=stock, id=2),
    ]
    unknown, safe = read(tmp_path, policy, entries).records
    assert unknown.undecided
    assert unknown.labels == safe.labels == ()
    assert not safe.undecided


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        ("DESCRIPTION: Two people.\nEXPLANATION: None.", "unreadable_response"),
        ("DESCRIPTION: x\nGUARDRAIL: {\"C1(Adult Material)\": fal", "unreadable_response"),
        # Silent about two categories that its prompt asks for.
        ('DESCRIPTION: x\nGUARDRAIL: {"C1(Adult Material)": false}', "unreadable_response"),
        ("I cannot help with that.", "unreadable_response"),
    ],
)  # fmt: skip
def test_an_unreadable_response_is_left_out_and_never_safe(tmp_path, policy, response, kind):
    entry = conversation(ADAPTIVE)
    entry["conversations"][1]["value"] = response
    data = read(tmp_path, policy, [entry, conversation(ADAPTIVE, id=2)])
    assert [r.id for r in data.records] == [f"{tmp_path.name}/full-2"]
    (problem,) = data.problems
    assert (problem.kind, problem.left_out) == (kind, True)
    assert problem.id == f"{tmp_path.name}/full-1"
    assert data.left_out == 1


def test_an_unknown_name_is_left_out_until_its_meaning_is_said(tmp_path, policy):
    entries = [conversation({"Ritual Activities": True, "Adult Material": False})]
    data = read(tmp_path, policy, entries)
    assert data.records == ()
    assert data.problems[0].kind == "unknown_name"
    assert "--map \"Ritual Activities\"=ID" in data.problems[0].message  # fmt: skip
    mapped = read(tmp_path, policy, entries, names={"ritual activities": "extreme"})
    assert [r.labels for r in mapped.records] == [("extreme",)]
    # Two names of one category in one prompt: which of the two answers counts is not known.
    twice = read(tmp_path, policy, [conversation({"NSFW Content": True, "Adult Material": False})])
    assert (twice.records, twice.problems[0].kind) == ((), "unknown_name")


def test_fields_come_in_any_order_and_swift_says_the_same(tmp_path, policy):
    entry = conversation(ADAPTIVE)
    raw = read(tmp_path, policy, [entry]).records[0]
    lines = entry["conversations"][1]["value"].partition("\nEXPLANATION: ")
    entry["conversations"][1]["value"] = f"EXPLANATION: {lines[2]}\n{lines[0]}"
    turned = read(tmp_path, policy, [entry], "turned.json").records[0]
    other = read(tmp_path, policy, [swift(entry)], "internvl_swift_sft_val_vgp.jsonl").records[0]
    for record in (turned, other):
        assert record.labels == raw.labels
        assert record.response == raw.response
        assert record.asked == raw.asked
    assert (raw.split, other.split) == ("train", "val")


def test_bad_entries_are_named_and_the_rest_is_read(tmp_path, policy):
    good = conversation(ADAPTIVE)
    entries = [
        swift(good) | {"videos": ["a.mp4", "b.mp4"]},
        swift(good) | {"history": [["hello", "hi"]]},
        swift(good) | {"response": None},
        swift(good),
    ]
    data = read(tmp_path, policy, entries, "swift.jsonl")
    assert [r.id for r in data.records] == [f"{tmp_path.name}/swift-4"]
    assert [p.kind for p in data.problems] == ["bad_entry"] * 3
    assert [p.id for p in data.problems] == [f"{tmp_path.name}/swift-{k}" for k in (1, 2, 3)]


def test_ids_that_restart_inside_a_file_lose_nothing(tmp_path, policy):
    entries = [conversation(ADAPTIVE), conversation(dict.fromkeys(ADAPTIVE, True))]
    data = read(tmp_path, policy, entries)
    assert len({r.id for r in data.records}) == 2
    assert [(p.kind, p.left_out) for p in data.problems] == [("duplicate_id", False)]


def benchmark(tmp_path, place, entries):
    path = tmp_path / "bench" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries))
    return tmp_path / "bench"


def test_the_benchmark_in_its_folders(tmp_path, policy):
    root = benchmark(
        tmp_path,
        "real/C3/fighting_benchmark.json",
        [{"video_path": "videos/a.mp4", "labels": [1, 3], "subcategories": ["fighting"]}],
    )
    benchmark(
        tmp_path,
        "genai/C1/benign_benchmark.json",
        [{"video_path": "videos/b.mp4", "labels": [], "subcategories": []}],
    )
    data = read_dataset(root, policy)
    safe, fight = data.records
    # The category that the entry is filed under is the class of single-label scores.
    assert (fight.labels, fight.label) == (("violence", "sexual"), "violence")
    assert (fight.scenario, fight.source, fight.split) == (
        "violence/fighting", "safewatch-bench/real", "test",
    )  # fmt: skip
    assert (safe.labels, safe.undecided, safe.source) == ((), False, "safewatch-bench/genai")
    assert fight.video == str(root / "videos/a.mp4")
    one = read_dataset(root / "real/C3/fighting_benchmark.json", policy).records
    assert one == (fight,)


@pytest.mark.parametrize("labels", [[7], [0], [True], ["?"], [[1]], [None], []])
def test_a_label_outside_the_benchmark_is_left_out(tmp_path, policy, labels):
    root = benchmark(
        tmp_path,
        "real/C3/fighting_benchmark.json",
        [{"video_path": "a.mp4", "labels": labels, "subcategories": ["fighting"]}],
    )
    data = read_dataset(root, policy)
    assert data.records == ()
    assert data.problems[0].kind == "unknown_label"


def test_truth_files_of_adaptive_data_are_refused(tmp_path, policy):
    path = tmp_path / "full_gt.json"
    path.write_text(json.dumps([{"video_path": "a.mp4", "labels": [1], "subcategories": []}]))
    with pytest.raises(ValueError, match="renumbered for every prompt"):
        read_dataset(path, policy)


def test_another_policy_gets_what_it_has(policy):
    text = policy.to_yaml().replace("name: Sexual Content", "name: Adult Material")
    names = CategoryNames(Policy.from_yaml(text))
    assert names.find("C4(NSFW Content)") == names.numbered(1) == "sexual"
    violence_only = Policy("one", "One", "1", (policy.category("violence"),))
    assert CategoryNames(violence_only).numbered(1) is None
    assert CategoryNames(violence_only).numbered(3) == "violence"
    with pytest.raises(ValueError, match="has no 'sexual'"):
        CategoryNames(violence_only, {"nsfw": "sexual"})
