"""Files of systems: what is wrong is said with its line, before anything is loaded."""

import asyncio
import textwrap
from pathlib import Path

import pytest

from safelens.evaluate.system import SystemsError
from safelens.evaluate.systems import build_systems, read_systems
from safelens.policy import Policy

GOOD = """systems:
  tiny: {kind: safelens, bundle: tiny}
  hub: {kind: vlm, model: Owner/Name, prompt: llavaguard}
  remote:
    kind: openai
    base_url: http://localhost:1/v1
    model: m
    prompt: safewatch
"""


@pytest.fixture
def write(tmp_path):
    def to_file(text):
        (tmp_path / "systems.yaml").write_text(text)
        return tmp_path / "systems.yaml"

    return to_file


def problem(file, policy):
    with pytest.raises(SystemsError) as caught:
        build_systems(read_systems(file), policy)
    return str(caught.value)


def test_a_file_becomes_systems_in_its_order(write, policy):
    systems = build_systems(read_systems(write(GOOD)), policy)
    assert {name: system.stages for name, system in systems.items()} == {
        "tiny": ("screen", "deliberate"),
        "hub": ("generate",),
        "remote": ("request",),
    }


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("systems:\n  a: {kind: safelens, bundel: tiny}", 2, "unknown key 'bundel'"),
        ("systems:\n  a: {kind: safelens}", 2, "'bundle' is missing"),
        ("systems:\n  a: {kind: lens}", 2, "one of safelens, safewatch, vlm, openai"),
        ("systems:\n  a: {bundle: tiny}", 2, "with a kind"),
        ("systems:\n  a: tiny", 2, "with a kind"),
        ("systems:\n  ../a: {kind: safelens, bundle: tiny}", 2, "a name has letters"),
        ("systems:\n  a:\n    kind: vlm\n    model: a/b\n    prompt: gpt", 5, "prompt: .*'gpt'"),
        (
            "systems:\n  a:\n    kind: vlm\n    model: a/b\n    prompt: safelens\n    clip:\n"
            "      max_frame: 3",
            7,
            "unknown key 'clip.max_frame'; expected min_frames",
        ),
        ("systems: {}", 1, "mapping of names"),
        ("other: 1", 1, "mapping of names"),
        ("systems:\n  a: {kind: safelens, bundle: tiny}\nsystem: 1", 3, "unknown key 'system'"),
        ("systems:\n  a: [", 2, "not YAML"),
        ("systems:\n  a: {kind: safelens, bundle: tiny}\n  a: {}", 3, "duplicate key"),
        ("systems:\n  a: {kind: safelens, bundle: nowhere}", 2, "no directory .*nowhere"),
        ("systems:\n  a: {kind: vlm, model: ./gone, prompt: safelens}", 2, "no directory .*gone"),
        ("systems:\n  a: {kind: vlm, model: a/b/c, prompt: safelens}", 2, "no directory"),
        (
            "systems:\n  a: {kind: openai, base_url: localhost, model: m, prompt: safelens}",
            2,
            "base URL 'localhost'",
        ),
        (
            "systems:\n  a: {kind: openai, base_url: http://a, model: m, prompt: safelens, "
            "api_key_env: NO_SUCH_KEY}",
            2,
            "NO_SUCH_KEY is not set",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_line(write, policy, text, line, what):
    file = write(text)
    with pytest.raises(SystemsError, match=what) as caught:
        build_systems(read_systems(file), policy)
    assert str(caught.value).startswith(f"{file}:{line}: ")


def test_every_problem_is_said_at_once(write, policy):
    said = problem(write("systems:\n  a: {kind: lens}\n  b: {kind: safelens, bundel: x}"), policy)
    assert [part.split(": ")[0].rsplit(":", 1)[1] for part in said.splitlines()] == ["2", "3", "3"]
    said = problem(write(GOOD.replace("Owner/Name", "gone").replace("http://", "ftp://")), policy)
    assert [part.split(": ")[1] for part in said.splitlines()] == [
        "system 'hub'",
        "system 'remote'",
    ]


def test_a_bundle_is_checked_and_keeps_its_policy_if_it_has_the_same_categories(
    write, policy, tmp_path
):
    other = Policy.from_yaml(policy.to_yaml().replace("id: abuse", "id: mobbing"))
    file = write("systems:\n  tiny: {kind: safelens, bundle: tiny}")
    with pytest.raises(SystemsError, match=r"--policy that suits both"):
        build_systems(read_systems(file), other)
    with pytest.raises(SystemsError, match="does not match the probe"):
        build_systems(read_systems(file), other, keep_policies=False)
    worded = Policy.from_yaml(policy.to_yaml().replace("Protect users", "Shield users"))
    kept = build_systems(read_systems(file), worded)["tiny"]
    given = build_systems(read_systems(file), worded, keep_policies=False)["tiny"]
    assert (kept.policy.sha256, given.policy.sha256) == (policy.sha256, worded.sha256)
    assert kept.identity() != given.identity()
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemsError, match=r"no bundle\.yaml"):
        build_systems(read_systems(write("systems:\n  a: {kind: safelens, bundle: empty}")), policy)


def test_a_bundle_for_other_policies_judges_by_the_given_one_at_any_share(
    write, policy, make_bundle
):
    folder = make_bundle(policy_encoding="parallel", other_policies=True, tau=0.5)
    other = Policy.from_yaml(policy.to_yaml().replace("id: abuse", "id: mobbing"))
    file = write(
        f"systems:\n  all: {{kind: safelens, bundle: {folder}}}\n"
        f"  some: {{kind: safelens, bundle: {folder}, prune: 0.25}}"
    )
    systems = build_systems(read_systems(file), other)
    assert {system.policy.sha256 for system in systems.values()} == {other.sha256}
    assert systems["all"].thresholds.tau == 0.9  # nothing was calibrated for its classes
    assert systems["some"].identity()["settings"]["prune"] == {"keep": 0.25, "layer": None}
    assert systems["all"].identity() != systems["some"].identity()
    own = build_systems(read_systems(file), policy)["all"]
    assert (own.policy.sha256, own.thresholds.tau) == (policy.sha256, 0.5)


def test_only_categories_that_are_read_alone_say_what_to_prune(write, policy):
    said = problem(write("systems:\n  a: {kind: safelens, bundle: tiny, prune: 0.5}"), policy)
    assert "policy_encoding: parallel" in said
    wrong = "systems:\n  a: {kind: safelens, bundle: tiny, prune: 0}"
    with pytest.raises(SystemsError, match="prune"):
        read_systems(write(wrong))


def test_any_model_is_read_as_safewatch_reads(write, policy, vlm_dir, captioner_dir, clips):
    other = Policy.from_yaml(policy.to_yaml().replace("id: abuse", "id: mobbing"))
    file = write(
        f"systems:\n  bare: {{kind: safewatch, model: {vlm_dir}}}\n"
        f"  told: {{kind: safewatch, model: {vlm_dir}, captioner: {captioner_dir}, prune: null}}"
    )
    systems = build_systems(read_systems(file), other)
    about = {name: system.identity() for name, system in systems.items()}
    assert (about["bare"]["prune"], about["told"]["prune"]) == (0.1, None)
    assert about["bare"]["captioner"] is None
    assert about["told"]["captioner"]

    async def ask():
        async with systems["bare"] as system:
            system._lens.deliberator.max_new_tokens = 4
            prompt = system._lens.screener.prompt
            assert (type(prompt).__name__, prompt.keep) == ("ParallelPrompt", 0.1)
            return await system.answer(clips[0])

    answers = asyncio.run(ask())
    assert set(answers) == {"screen", "deliberate"}
    assert set(answers["screen"].scores) == set(other.labels)
    wrong = "systems:\n  a: {kind: safewatch, model: a/b, prune: 2}"
    with pytest.raises(SystemsError, match="prune"):
        read_systems(write(wrong))


def test_some_of_the_systems(write):
    file = read_systems(write(GOOD))
    assert list(file.only(["remote", "tiny"]).settings) == ["tiny", "remote"]
    assert list(file.only([]).settings) == ["tiny", "hub", "remote"]
    with pytest.raises(SystemsError, match=r"no system 'tinny'; it names tiny, hub, remote"):
        file.only(["tinny"])


def test_the_page_shows_what_is_read_and_true_defaults(write, policy, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "systems.md").read_text()
    example = page[page.index("    systems:\n") :].split("\n\n")[0]
    read = read_systems(write(textwrap.dedent(example)))
    monkeypatch.setenv("MY_KEY", "k")
    assert list(build_systems(read, policy)) == ["tiny", "watch", "plain", "remote"]
    for settings in read.settings.values():
        needed = {"kind", "bundle", "model", "prompt", "base_url", "api_key_env"}
        bare = {k: v for k, v in settings.model_dump().items() if k in needed}
        assert type(settings).model_validate(bare) == settings


def test_no_file(tmp_path):
    with pytest.raises(SystemsError, match="cannot be read"):
        read_systems(tmp_path / "none.yaml")
