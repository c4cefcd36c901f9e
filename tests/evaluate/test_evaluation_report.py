"""The report tells the figures as they are, and nothing from outside becomes markup."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from safelens.data.records import Record
from safelens.evaluate import report as module
from safelens.evaluate.answers import Answer
from safelens.evaluate.cases import EvaluationError, pair
from safelens.evaluate.errors import errors
from safelens.evaluate.memory import PeakMemory
from safelens.evaluate.metrics import measure
from safelens.evaluate.report import MOST_ERRORS, markdown, page, write_report
from safelens.evaluate.results import find_name, judge
from safelens.evaluate.routing import route
from safelens.evaluate.run import Run
from safelens.evaluate.tables import all_tables, percent
from safelens.thresholds import Thresholds

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">|`&amp;'
KNOWS = "SafeWorld <b>alone</b>"


class Page(HTMLParser):
    """Tags with attributes, the text, and whether what is opened is closed."""

    VOID = frozenset(("meta", "input", "img", "wbr"))

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def said(name, label, confidence, seconds, **fields):
    flags = () if label == "safe" else (label,)
    scores = {"abuse": confidence, "violence": 0.1, "safe": 0.2}
    scores |= dict.fromkeys(("sexual", "misinformation", "illegal", "extreme"), 0.05)
    return Answer(id=name, outcome="decided", flags=flags, label=label, confidence=confidence,
                  seconds=seconds, scores=scores, gflops=1.5, prompt_tokens=5, **fields)  # fmt: skip


@pytest.fixture(scope="module")
def given(videos, tmp_path_factory):
    """Records, a bundle's run and a plain system's; some videos are unreadable."""
    bad = tmp_path_factory.mktemp("bad") / "bad.mp4"
    bad.write_bytes(b"no video")
    records, screen, deliberate, plain = [], [], [], []
    for i in range(40):
        name = f"{i} {HOSTILE}" if i < 3 else str(i)
        labels = ("abuse",) if i % 2 else ()
        path = str(videos[i % 6] if i % 3 else bad if i % 2 else bad.with_name("gone.mp4"))
        records.append(Record(id=name, video=path, labels=labels, source="test", scenario="x/y_z",
                              difficulty=HOSTILE, description=HOSTILE))  # fmt: skip
        right, wrong = ("abuse", "safe") if labels else ("safe", "abuse")
        s1 = right if i % 5 else wrong
        screen.append(said(name, s1, 0.5 + i / 100, {"screen": 1.0}, familiar=True))
        told = {"text": HOSTILE, "explanation": HOSTILE, "description": "line one\nline two"}
        spent = {"screen": 1.0, "deliberate": 3.0}
        deliberate.append(said(name, wrong, 0.99 - i / 100, spent, **told))
        plain.append(
            Answer(id=name, outcome="unparsed", text=HOSTILE, error=HOSTILE)
            if i == 7
            else said(name, "violence" if labels else "safe", 0.6, {"generate": 2.0})
        )
    cascade = [
        route(s, d, Thresholds(0.7), "escalate") for s, d in zip(screen, deliberate, strict=True)
    ]
    stages = {"screen": screen, "deliberate": deliberate, "cascade": cascade}
    runs = {
        "small": Run(stages, {}, 0, Thresholds(0.7), "escalate", KNOWS),
        "plain": Run({"generate": plain}, {}, 0, memory=PeakMemory(host_bytes=2_500_000_000)),
    }
    return records, runs


@pytest.fixture(scope="module")
def results(given, policy):
    records, runs = given
    return judge(f"data {HOSTILE}", records, runs, policy, to_compare=("small", "plain"))


@pytest.fixture(scope="module")
def written(results, tmp_path_factory):
    done = []
    files = write_report(results, tmp_path_factory.mktemp("out"), on_done=lambda: done.append(1))
    return {name: file.read_text("utf-8") for name, file in files.items()}, len(done)


def test_the_numbers_are_those_of_metrics(given, results, written, policy):
    records, runs = given
    told = json.loads(written[0]["metrics.json"])
    assert list(told["systems"]) == ["small/cascade", "small/screen", "small/deliberate", "plain"]
    for name, stage in (("small/cascade", "cascade"), ("small/screen", "screen")):
        answers = {a.id: a for a in runs["small"].answers[stage]}
        figures = measure(records, answers, policy)
        assert told["systems"][name]["metrics"] == json.loads(json.dumps(figures.to_dict()))
        assert told["systems"][name]["knows"] == KNOWS
        row = next(r for r in all_tables(results)[0].rows if r[0].startswith(name))
        assert row[1] == percent(figures.single_label.avg_acc)
        assert row[5] == percent(figures.any_violation.f1)
    own = next(p for p in told["sweeps"]["small"]["points"] if p["tau"] == 0.7)
    cascade = told["systems"]["small/cascade"]
    assert own["avg_acc"] == pytest.approx(cascade["metrics"]["single_label"]["avg_acc"])
    assert own["seconds"] == pytest.approx(cascade["costs"]["seconds"]["mean"])
    assert told["comparison"]["first"] == "small/cascade"
    assert told["systems"]["plain"]["metrics"]["counts"]["unparsed"] == 1
    assert told["systems"]["plain"]["memory"] == {"host_bytes": 2_500_000_000, "gpu_bytes": None}
    [costs] = [table for table in all_tables(results) if table.title == "Cost per video"]
    assert {row[0]: row[-2:] for row in costs.rows} == {
        **dict.fromkeys(("small/cascade", "small/screen", "small/deliberate"), ("–", "–")),
        "plain": ("2.50", "–"),
    }


def test_page_and_markdown_hold_the_same_tables(results, written):
    files, _ = written
    seen, lines = Page(files["report.html"]), files["report.md"].splitlines()
    for table in all_tables(results):
        for row in table.rows:
            assert any(all(module._md(cell) in line for cell in row) for line in lines), row
            assert all(" ".join(cell.split()) in seen.text.replace("/ ", "/").replace("_ ", "_")
                       for cell in row if "/" not in cell), row  # fmt: skip
    assert files["report.md"].count(module._md(KNOWS)) == 1
    # at the head, at the sweep, at each of three stages, above its errors
    assert seen.text.count(KNOWS) == 6


def test_nothing_from_outside_becomes_markup(written):
    files, _ = written
    seen = Page(files["report.html"])
    tags = {tag for tag, _ in seen.tags}
    assert "script" not in tags
    assert HOSTILE in seen.text
    assert not [a for _, a in seen.tags if any(key.startswith("on") for key in a)]
    assert "<script" not in files["report.md"].replace(r"\<script", "")
    assert "line one\nline two" in files["report.html"]


def test_the_page_needs_nothing_but_itself(written):
    text = written[0]["report.html"]
    for tag, attributes in Page(text).tags:
        assert tag not in ("link", "script", "iframe", "object")
        assert attributes.get("src", "data:").startswith("data:")
        for key in ("href", "xlink:href"):
            assert attributes.get(key, "#").startswith("#")
    assert all(where.startswith("#") for where in re.findall(r"url\(([^)]*)\)", text))
    assert "default-src 'none'" in text
    assert "<text" in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_the_gallery_is_capped_and_worst_first(results, written, monkeypatch):
    files, done = written
    groups = {e.kind: e for e in errors(results.systems["small/cascade"].cases, most=MOST_ERRORS)}
    assert set(groups) == {"false_negative", "false_positive"}
    assert len(groups["false_negative"].worst) <= MOST_ERRORS
    sure = [case.answer.confidence for case in groups["false_positive"].worst]
    assert sure == sorted(sure, reverse=True)
    assert files["report.html"].count("<figure>") == done
    assert "cannot be shown (VideoError)" in files["report.html"]
    pictures = files["report.html"].count("<img")
    monkeypatch.setattr(module, "MOST_PICTURE_BYTES", 2)
    small = page(results)
    assert 0 < small.count("<img") == 2 < pictures
    assert small.count("<figure>") == done
    assert "those of worse errors fill the page" in small


def test_the_same_figures_give_the_same_bytes(results, written):
    assert page(results) == written[0]["report.html"]
    assert markdown(results) == written[0]["report.md"]


def test_an_error_is_of_one_kind(given, policy):
    records, runs = given
    plain = {a.id: a for a in runs["plain"].answers["generate"]}
    found = {e.kind: e.count for e in errors(pair(records, plain, policy), most=3)}
    assert found == {"wrong_category": 19, "no_answer": 1}


def test_systems_by_name():
    known = {"b": ("screen", "deliberate"), "p": ("generate",)}
    assert find_name("b", known) == "b/cascade"
    assert find_name("b/screen", known) == "b/screen"
    assert find_name("p", known) == "p"
    with pytest.raises(EvaluationError, match="no system 'x' to compare; there are b/cascade"):
        find_name("x", known)


def test_the_page_names_no_file(written, given):
    folder = str(Path(given[0][0].video).parent)
    assert all(folder not in text for text in written[0].values())
