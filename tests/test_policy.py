import dataclasses
import hashlib
import json
import re
import subprocess
import sys

import pytest

from safelens.policy import Category, Policy, PolicyError, Rule, packaged_policies

GOOD = """\
id: house
name: House rules
version: 2
categories:
  - id: noise
    name: Loud "Noise"
    core_value: Let people sleep.
    rules:
      - blocked: Drums after ten.
      - allowed: >
          A lullaby,
          at any hour.
  - id: mess
    name: Mess
    core_value: Keep it clean.
    rules:
      - blocked: Mud.
"""


def problems(text: str) -> list[tuple[int | None, str]]:
    with pytest.raises(PolicyError) as caught:
        Policy.from_yaml(text, source="p.yaml")
    assert all(line.startswith("p.yaml") for line in str(caught.value).splitlines())
    return [(p.line, p.message) for p in caught.value.problems]


def test_default_is_the_papers_policy():
    policy = Policy.load("default")
    assert policy.labels == (
        "sexual",
        "abuse",
        "violence",
        "misinformation",
        "illegal",
        "extreme",
        "safe",
    )
    assert [c.name for c in policy.categories] == [
        "Sexual Content",
        "Harassment & Bullying",
        "Threats, Violence & Harm",
        "False & Deceptive Information",
        "Illegal/Regulated Activities",
        "Hateful Content & Extremism",
    ]
    assert [len(c.rules) for c in policy.categories] == [4, 3, 3, 3, 4, 2]
    assert [r.kind for r in policy.category("sexual").rules] == ["blocked"] * 3 + ["allowed"]
    assert "default" in packaged_policies()
    assert policy.warnings() == []


def test_yaml_is_read():
    policy = Policy.from_yaml(GOOD)
    assert policy == Policy(
        "house",
        "House rules",
        "2",
        (
            Category(
                "noise",
                'Loud "Noise"',
                "Let people sleep.",
                (Rule("blocked", "Drums after ten."), Rule("allowed", "A lullaby, at any hour.")),
            ),
            Category("mess", "Mess", "Keep it clean.", (Rule("blocked", "Mud."),)),
        ),
    )
    assert Policy.from_yaml(policy.to_yaml()) == policy
    with pytest.raises(KeyError, match="noise"):
        policy.category("safe")


def test_sha256_is_of_the_content_not_the_layout():
    policy = Policy.from_yaml(GOOD)
    canonical = json.dumps(
        policy.to_dict(), ensure_ascii=False, sort_keys=True, separators=(",", ":")
    )
    assert policy.sha256 == hashlib.sha256(canonical.encode()).hexdigest()
    assert Policy.from_yaml("# note\n" + GOOD.replace("Mud.", "'Mud.'")).sha256 == policy.sha256
    assert Policy.from_yaml(GOOD.replace("Mud.", "Mud!")).sha256 != policy.sha256


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("id: mess", "id: noise", 13, ["duplicate id", "noise", "category 1"]),
        ("name: Mess", 'name: LOUD  "noise"', 14, ["duplicate name", "category 1"]),
        ("id: mess", "id: safe", 13, ["safe", "reserved"]),
        ("name: Mess", "name: Safe", 14, ["Safe", "reserved"]),
        ("id: mess", "id: Big Mess", 13, ["Big Mess", "expected a lower-case word"]),
        ("id: mess", "id: 7", 13, ["found 7", "expected a lower-case word"]),
        ("core_value: Keep", "corevalue: Keep", 15, ["unknown key", "corevalue", "core_value"]),
        ("      - blocked: Mud.\n", "", 16, ["found nothing", "at least one"]),
        ("rules:\n      - blocked: Mud.", "rules: []", 16, ["empty list", "at least one"]),
        ("- blocked: Mud.", "- forbidden: Mud.", 17, ["forbidden", "- blocked: TEXT"]),
        ("- blocked: Mud.", "- Mud.", 17, ["Mud.", "- blocked: TEXT"]),
        ("- blocked: Mud.", "- blocked: yes", 17, ["found true", "expected text", "quote"]),
        ("- blocked: Mud.", "- blocked:", 17, ["found nothing", "expected text"]),
        ("- blocked: Mud.", "- blocked: 2026-01-01", 17, ["timestamp", "expected text"]),
        ("- blocked: Mud.", "- blocked: '<|im_end|>'", 17, ["control token"]),
        ("- blocked: Mud.", "- {blocked: a, allowed: b}", 17, ["2 keys", "- blocked: TEXT"]),
        ("name: Mess", "name: Mess\n    name: Dirt", 15, ["duplicate key", "name"]),
        ("name: Mess\n", 'name: "a\\nb"\n', 14, ["several lines", "one line"]),
        ("name: Mess\n", 'name: "a\\x07b"\n', 14, ["control character"]),
        ("    name: Mess\n", "", 13, ["without the key 'name'"]),
        ("version: 2\n", "", 1, ["without the key 'version'"]),
        ("name: House rules", "name: [a]", 2, ["found a list", "expected text"]),
        ("name: Mess", "name: &a Mess\n    other: *a", 15, ["alias", "*a"]),
        ("name: Mess", "name: Mess: Dirt", 14, ["not YAML"]),
        ("name: Mess", "\tname: Mess", 14, ["not YAML"]),
        ("version: 2", "version: 2\x00", 3, ["not YAML", "printable"]),
        ("- blocked: Mud.", "- ? [a]\n        : b", 17, ["key that is not text"]),
    ],
)
def test_an_error_has_its_line_and_what_was_expected(old, new, line, words):
    assert GOOD.count(old) == 1
    found = problems(GOOD.replace(old, new))
    assert any(n == line and all(w in message for w in words) for n, message in found), found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty|nothing"),
        ("- a", "a list.*expected a mapping"),
        ("just text", "expected a mapping"),
        ("id: a\nname: b\nversion: 1\ncategories: []", "0 categories.*1 to 100"),
        ("id: a\nname: b\nversion: 1\ncategories: none", "expected a list"),
        ("id: a\nname: b\nversion: 1\ncategories: [null]", "expected a category"),
        ("a: 1\n---\nb: 2", "not YAML"),
        ("[" * 5000, "nested more than 20"),
        ("{a: " * 5000 + "1" + "}" * 5000, "nested"),
    ],
)
def test_what_is_no_policy_at_all(text, words):
    found = problems(text)
    assert re.search(words, found[0][1]), found


def test_every_problem_is_reported_in_file_order():
    found = problems(GOOD.replace("id: noise", "id: safe").replace("blocked: Mud", "bad: Mud"))
    assert [line for line, _ in found] == [5, 17]


def test_files(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text("\ufeff" + GOOD, encoding="utf-8")
    assert Policy.load(file) == Policy.from_yaml(GOOD)
    with pytest.raises(PolicyError, match=r"none\.yaml: cannot be read .*default"):
        Policy.load(tmp_path / "none.yaml")
    with pytest.raises(PolicyError, match="cannot be read"):
        Policy.load(tmp_path)
    with pytest.raises(PolicyError, match="cannot be read"):
        Policy.load("a\0b")
    file.write_bytes(b"id: a\nname: \xff\n")
    with pytest.raises(PolicyError, match=r"p\.yaml:2: not UTF-8"):
        Policy.load(file)
    file.write_bytes(b"#" * 1_000_001)
    with pytest.raises(PolicyError, match="at most 1000000"):
        Policy.load(file)


def test_a_policy_made_in_code_is_checked_too():
    policy = Policy.from_yaml(GOOD)
    with pytest.raises(PolicyError, match=r"categories\[1\]\.id: duplicate id"):
        dataclasses.replace(policy, categories=policy.categories[:1] * 2)
    with pytest.raises(PolicyError, match="1 to 100"):
        dataclasses.replace(policy, categories=())


@pytest.mark.parametrize("count", [1, 100])
def test_any_number_of_categories(count):
    rules = (Rule("allowed", "x"),)
    categories = tuple(Category(f"c{i}", f"N {i}", "v", rules) for i in range(count))
    policy = Policy("many", "Many", "1", categories)
    assert len(Policy.from_yaml(policy.to_yaml()).labels) == count + 1
    assert len(policy.warnings()) == count
    extra = tuple(Category(f"d{i}", f"M {i}", "v", rules) for i in range(101))
    with pytest.raises(PolicyError, match="101 categories"):
        Policy("many", "Many", "1", extra)


def test_no_heavy_import():
    code = (
        "import sys, safelens.policy, safelens.prompts, safelens.verdict, safelens.cli;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'av', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
