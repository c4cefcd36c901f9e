"""Grades from a real endpoint: kept by content, asked again where they cannot be read, never made up."""

import json
import urllib.request

import pytest

from safelens.data.records import Record
from safelens.endpoint import Endpoint
from safelens.evaluate.answers import Answer
from safelens.evaluate.report import markdown, page
from safelens.evaluate.results import judge
from safelens.evaluate.rubric_judge import GIVE_UP_AFTER, RubricJudge, explained, read_judge
from safelens.evaluate.run import Run
from safelens.evaluate.system import SystemsError


def counted(chat_server, name):
    with urllib.request.urlopen(f"{chat_server}/{name}", timeout=5) as answer:
        return json.load(answer)["requests"]


def said(name, explanation):
    return Answer(id=name, outcome="decided", flags=("abuse",), label="abuse",
                  explanation=explanation)  # fmt: skip


@pytest.fixture(scope="module")
def results(policy):
    """A bundle whose cascade says what S2 says, but for one video, and a system that mostly fails."""
    records = [Record(id=str(i), video="v", labels=("abuse",), source="test") for i in range(4)]
    s1 = [said(r.id, None) for r in records]
    s2 = [said(r.id, f"GRADES {i + 1} {i + 2} {2 * i + 3}") for i, r in enumerate(records)]
    lost = Answer(id="1", outcome="failed", error="lost")
    unread = Answer(id="2", outcome="unparsed", text="GRADES 9 9 9", error="unread",
                    explanation="GRADES 9 9 9")  # fmt: skip
    other = [said("0", "GRADES 8 8 8"), lost, unread, said("3", None)]
    runs = {
        "b": Run({"screen": s1, "deliberate": s2, "cascade": [s1[0], *s2[1:]]}, {}, 0),
        "other": Run({"request": other}, {}, 0),
    }
    return judge("world", records, runs, policy)


@pytest.fixture
def rate(results, chat_server, tmp_path):
    def go(behaviour, **settings):
        usual = {"model": "m", "retries": 0, "timeout_s": 20.0, "concurrency": 1}
        endpoint = Endpoint(base_url=f"{chat_server}/{behaviour}/v1/", **(usual | settings))
        told, done = [], []
        found = RubricJudge("judge.yaml:1: judge", endpoint, tmp_path / "kept").rate(
            results, say=told.append, on_done=lambda: done.append(1)
        )
        assert len(done) == sum(len(explained(results, name)) for name in results.systems)
        return {name: judged.rubric for name, judged in found.systems.items()}, told, found

    return go


def test_every_explanation_is_graded_once_and_no_other_answer(rate, chat_server):
    found, told, _ = rate("good-rubric")
    assert (found["b/screen"], told) == (None, [])
    s2, cascade, other = found["b/deliberate"], found["b/cascade"], found["other"]
    assert (s2.judge, s2.graded, s2.unparsed, s2.failed, s2.unexplained) == ("m", 4, 0, 0, 0)
    assert (s2.accuracy["mean"], s2.specificity["mean"], s2.conciseness["mean"]) == (2.5, 3.5, 6)
    # (1+2+3, 2+3+5, 3+4+7, 4+5+9) / 3
    assert s2.overall == pytest.approx({"mean": 4, "sd": (80 / 27) ** 0.5, "n": 4})
    assert (cascade.graded, cascade.unexplained) == (3, 1)
    assert cascade.overall["mean"] == pytest.approx(14 / 3)
    assert (other.graded, other.unexplained) == (1, 1)
    assert other.overall == {"mean": 8, "sd": None, "n": 1}
    assert counted(chat_server, "good-rubric") == 5  # the cascade's are S2's


def test_what_is_graded_is_kept(rate, chat_server):
    before = rate("good-rubric-again")[0]
    assert rate("good-rubric-again")[0] == before
    assert counted(chat_server, "good-rubric-again") == 5
    # another budget may give other grades
    rate("good-rubric-again", max_new_tokens=9)
    assert counted(chat_server, "good-rubric-again") == 10


def test_the_request_has_a_budget_and_no_temperature(rate, chat_server):
    rate("good-rubric-request", max_new_tokens=77)
    with urllib.request.urlopen(f"{chat_server}/last/good-rubric-request", timeout=5) as answer:
        body = json.load(answer)["body"]
    assert (body["temperature"], body["max_tokens"], body["model"]) == (0, 77, "m")


def test_an_unreadable_answer_is_sent_back_and_done_better(rate, chat_server):
    found, told, _ = rate("corrected-rubric")
    assert (found["b/deliberate"].graded, told) == (4, [])
    assert counted(chat_server, "corrected-rubric") == 10
    assert rate("corrected-rubric")[0] == found
    assert counted(chat_server, "corrected-rubric") == 10  # kept though the first answer was bad


def test_thoughts_before_the_grades_are_left_out(rate):
    assert rate("thinks-rubric")[0]["other"].overall["mean"] == 8


def test_what_is_never_readable_is_unparsed_in_no_mean_and_asked_again(rate, chat_server):
    found, told, _ = rate("mute-rubric")
    s2 = found["b/deliberate"]
    assert (s2.graded, s2.unparsed, s2.failed) == (0, 4, 0)
    assert s2.overall == {"mean": None, "sd": None, "n": 0}
    assert len(told) == 5
    assert "0: unparsed: no JSON: 'I cannot judge this.' (3 answers)" in told
    assert counted(chat_server, "mute-rubric") == 15
    rate("mute-rubric")
    assert counted(chat_server, "mute-rubric") == 30


def test_failures_are_no_grades_and_asked_again(rate, chat_server):
    found, told, _ = rate("flaky-rubric")
    assert (found["b/deliberate"].graded, found["b/deliberate"].failed) == (0, 4)
    assert (len(told), "HTTP 500" in told[0]) == (5, True)
    found, told, _ = rate("flaky-rubric")  # which answers what it has failed on before
    assert (found["b/deliberate"].graded, told) == (4, [])
    assert rate("flaky-rubric-retried", retries=1, concurrency=5)[0] == found


def test_a_refusal_ends_the_asking(rate, chat_server):
    found, told, _ = rate("refuse-rubric")
    assert (found["b/deliberate"].failed, found["other"].failed) == (4, 1)
    assert counted(chat_server, "refuse-rubric") == 1
    assert "not asked: " in told[-1]
    assert "401" in told[-1]


def test_an_endpoint_that_is_down_is_given_up(policy, chat_server, tmp_path):
    records = [Record(id=str(i), video="v", labels=(), source="test") for i in range(20)]
    run = Run({"request": [said(r.id, f"Because of {r.id}.") for r in records]}, {}, 0)
    endpoint = Endpoint(
        base_url=f"{chat_server}/empty-rubric/v1", model="m", retries=0, concurrency=1
    )
    grader = RubricJudge("x", endpoint, tmp_path)
    found = grader.rate(judge("d", records, {"one": run}, policy)).systems["one"].rubric
    assert (found.failed, found.graded) == (20, 0)
    assert counted(chat_server, "empty-rubric") == GIVE_UP_AFTER


def test_a_damaged_file_of_grades_is_asked_for_again(rate, chat_server, tmp_path):
    found = rate("good-rubric-damaged")[0]
    files = sorted((tmp_path / "kept").glob("*/*.json"))
    assert len(files) == 5
    files[0].write_text('{"text": "no grades"}')
    files[1].write_text("{")
    assert rate("good-rubric-damaged")[0] == found
    assert counted(chat_server, "good-rubric-damaged") == 7


def test_both_reports_and_the_figures_have_the_grades(rate):
    _, _, found = rate("good-rubric-report")
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert told["systems"]["b/screen"]["rubric"] is None
    assert told["systems"]["b/deliberate"]["rubric"]["overall"]["mean"] == 4
    row = "| b/deliberate | 4.00 ± 1.72 | 2.50 ± 1.29 | 3.50 ± 1.29 | 6.00 ± 2.58 | 4 | 0 | 0 | 0 |"
    assert row in markdown(found)
    assert "| other | 8.00 | 8.00 | 8.00 | 8.00 | 1 | 0 | 0 | 1 |" in markdown(found)
    assert "Explanations by a judge&#39;s rubric" in page(found)
    assert "4.00 ± 1.72" in page(found)


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        (
            "base_url: http://a/v1\nmodel: m\nmodle: m",
            3,
            "unknown key 'modle'; expected base_url, model",
        ),
        ("model: m", 1, "'base_url' is missing"),
        ("base_url: http://a/v1\nmodel: m\nretries: -1", 3, "retries: .*found -1"),
        ("base_url: http://a/v1\nmodel: m\ntimeout_s: .inf", 3, "timeout_s"),
        ("base_url: localhost\nmodel: m", 1, "base URL 'localhost'"),
        ("base_url: http://a\nmodel: m\napi_key_env: NO_SUCH_KEY", 1, "NO_SUCH_KEY is not set"),
        ("- a", 1, "expected a mapping of base_url"),
        ("model: [", 1, "not YAML"),
    ],
)
def test_what_is_wrong_in_the_file_is_said_with_its_line(tmp_path, text, line, what):
    file = tmp_path / "judge.yaml"
    file.write_text(text)
    with pytest.raises(SystemsError, match=what) as caught:
        read_judge(file, tmp_path)
    assert str(caught.value).startswith(f"{file}:{line}: ")


def test_no_file_is_no_judge(tmp_path):
    with pytest.raises(SystemsError, match="cannot be read"):
        read_judge(tmp_path / "judge.yaml", tmp_path)
