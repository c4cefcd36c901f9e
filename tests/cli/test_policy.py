import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from safelens.cli import app
from safelens.policy import Policy
from safelens.prompts import policy_prompt, question, screening_suffix

DEFAULT = Policy.load("default")


def run(*args):
    return CliRunner().invoke(app, list(args), env={"COLUMNS": "160"})


@pytest.fixture
def bad(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text(DEFAULT.to_yaml().replace("- id: abuse", "- id: sexual"), encoding="utf-8")
    return file


def test_show_prints_every_category_and_rule():
    result = run("policy", "show", "default")
    assert result.exit_code == 0
    for category in DEFAULT.categories:
        assert category.id in result.output
        assert category.name in result.output
    assert result.output.count("[BLOCKED]") == 18
    assert result.output.count("[ALLOWED]") == 1
    assert DEFAULT.sha256 in result.output


def test_show_prompt_prints_exact_texts():
    result = run("policy", "show", "default", "--prompt")
    assert result.exit_code == 0
    for text in (policy_prompt(DEFAULT), question(DEFAULT), screening_suffix().strip()):
        assert text in result.output


def test_show_json(tmp_path):
    data = json.loads(run("policy", "show", "default", "--json", "--prompt").output)
    assert data["labels"] == list(DEFAULT.labels)
    assert data["sha256"] == DEFAULT.sha256
    assert data["prompts"]["system message"] == policy_prompt(DEFAULT)
    assert "prompts" not in json.loads(run("policy", "show", "default", "--json").output)


def test_markup_in_a_policy_is_printed_not_obeyed(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text(DEFAULT.to_yaml().replace("Sexual Content", "Red [/red] [bold]x"))
    for args in ([], ["--prompt"]):
        result = run("policy", "show", str(file), *args)
        assert result.exit_code == 0
        assert "[/red] [bold]x" in result.output


def test_check(bad, tmp_path):
    result = run("policy", "check", "default")
    assert (result.exit_code, result.output) == (0, "default: ok, 6 categories\n")
    line = bad.read_text().splitlines().index("- id: sexual", 10) + 1
    for command in ("check", "show"):
        result = run("policy", command, str(bad))
        assert result.exit_code == 2
        assert f"{bad}:{line}: duplicate id" in result.stderr
        assert result.stdout == ""
    result = run("policy", "check", "default", str(bad), str(tmp_path / "none"))
    assert result.exit_code == 2
    assert "default: ok" in result.stdout
    assert "none: cannot be read" in result.stderr


def test_check_json(bad):
    result = run("policy", "check", "--json", "default", str(bad))
    assert result.exit_code == 2
    good, failed = map(json.loads, result.stdout.splitlines())
    assert good["ok"]
    assert good["labels"][-1] == "safe"
    assert not failed["ok"]
    assert "duplicate id" in failed["problems"][0]["message"]
    assert failed["problems"][0]["line"] > 1


def test_check_warns_of_a_category_that_blocks_nothing(tmp_path):
    file = tmp_path / "p.yaml"
    text = (
        "id: a\nname: A\nversion: 1\ncategories:\n- id: b\n  name: B\n  core_value: C\n  rules:\n"
    )
    file.write_text(text + "  - allowed: All.\n")
    result = run("policy", "check", str(file))
    assert result.exit_code == 0
    assert "no blocked rule" in result.stderr
    assert "1 category\n" in result.stdout


def test_usage():
    assert run("nonsense").exit_code == 2
    assert run("policy", "check").exit_code == 2
    assert "policy" in run("--help").output
    assert run("--version").output.startswith("safelens ")


def test_help_needs_nothing_heavy():
    code = (
        "import sys\nfrom safelens.cli import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'av')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done
