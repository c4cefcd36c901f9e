import json

import pytest
from pydantic import ValidationError

from safelens.verdict import (
    Caption,
    CategoryScore,
    Cost,
    ErrorInfo,
    Evidence,
    Provenance,
    Verdict,
)

PROVENANCE = Provenance(package="0.1.0", bundle="tiny", policy="default", policy_sha256="ab" * 32)
ERROR = ErrorInfo(code="not_found", message="no such file; check the path")


def categories(*flags):
    names = ("abuse", "violence", "illegal")
    return [
        CategoryScore(id=n, name=n.title(), flagged=f, score=0.5)
        for n, f in zip(names, flags, strict=False)
    ]


def decided(**changes):
    fields = {
        "video": "a.mp4",
        "status": "ok",
        "flagged": True,
        "label": "violence",
        "confidence": 0.9,
        "categories": categories(False, True),
        "decided_by": "screen",
        "provenance": PROVENANCE,
    }
    return Verdict(**(fields | changes))


def undecided(status, **changes):
    return Verdict(**({"video": "a.mp4", "status": status, "provenance": PROVENANCE} | changes))


def test_json_round_trip_on_one_line():
    verdict = decided(
        sha256="cd" * 32,
        in_domain=0.75,
        description="A man\nwaves.",
        captions=[Caption(time_s=0.5, text="A man.")],
        evidence=[Evidence(start_s=0.5, end_s=1.5, category="violence", score=0.8)],
        timing={"screen": 0.01},
        cost=Cost(gflops=1.5, prompt_tokens=100, generated_tokens=7),
    )
    line = verdict.to_json()
    assert "\n" not in line
    assert Verdict.from_json(line) == verdict
    data = json.loads(line)
    assert list(data) == [
        "schema",
        "video",
        "sha256",
        "status",
        "flagged",
        "label",
        "confidence",
        "categories",
        "decided_by",
        "in_domain",
        "description",
        "explanation",
        "captions",
        "evidence",
        "error",
        "timing",
        "cost",
        "provenance",
    ]
    assert data["schema"] == "safelens.verdict/1"
    assert list(data["provenance"])[-2:] == ["knows", "remote"]


def test_a_verdict_that_was_written_before_some_fields_were_there():
    fields = json.loads(decided().to_json())
    for name in ("remote", "keyframe_shift_s"):
        assert fields["provenance"].pop(name) is None
    assert Verdict.from_json(json.dumps(fields)) == decided()


def test_json_schema():
    schema = Verdict.model_json_schema()
    assert schema["properties"]["schema"]["const"] == "safelens.verdict/1"
    assert schema["properties"]["status"]["enum"] == [
        "ok",
        "partial",
        "out_of_domain",
        "video_error",
        "model_error",
    ]


def test_verdicts_that_are_honest():
    decided(flagged=False, label="safe", categories=categories(False, False))
    decided(categories=categories(True, True), label="abuse")
    decided(status="partial")
    undecided("partial", decided_by="screen", categories=categories(None, None))
    undecided("out_of_domain", categories=categories(None), in_domain=0.01)
    undecided("out_of_domain", error=ErrorInfo(code="out_of_domain", message="use --model"))
    undecided("video_error", error=ERROR)
    undecided("model_error", error=ERROR)


@pytest.mark.parametrize("status", ["out_of_domain", "video_error", "model_error"])
@pytest.mark.parametrize(
    "changes",
    [
        {"flagged": False},
        {"flagged": True},
        {"label": "safe"},
        {"confidence": 0.5},
        {"decided_by": "screen"},
        {"categories": categories(False)},
        {"categories": categories(None, True)},
    ],
)
def test_what_decides_nothing_says_nothing(status, changes):
    undecided(status, error=ERROR)
    with pytest.raises(ValidationError, match="decides nothing"):
        undecided(status, error=ERROR, **changes)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"flagged": None}, "without flagged"),
        ({"label": None}, "without label"),
        ({"confidence": None}, "without confidence"),
        ({"decided_by": None}, "without decided_by"),
        ({"categories": []}, "without categories"),
        ({"categories": categories(None, True)}, "undecided"),
        ({"flagged": False}, "flagged is False"),
        ({"label": "abuse"}, "label 'abuse'"),
        ({"label": "safe"}, "label 'safe'"),
        ({"categories": categories(False, True) + categories(False)}, "twice"),
        ({"error": ERROR}, "expected none"),
        ({"confidence": 1.01}, "less than or equal"),
        ({"confidence": float("nan")}, "finite"),
        ({"timing": {"screen": float("inf")}}, "finite"),
        ({"timing": {"screen": -1.0}}, "greater than or equal"),
        ({"surprise": 1}, "Extra"),
        ({"schema": "safelens.verdict/2"}, "safelens.verdict/1"),
        (
            {
                "status": "partial",
                "flagged": False,
                "label": "safe",
                "categories": categories(False),
            },
            "did not decode",
        ),
        ({"status": "partial", "flagged": None}, "decides nothing"),
    ],
)
def test_decisions_that_mislead_are_refused(changes, match):
    with pytest.raises(ValidationError, match=match):
        decided(**changes)


@pytest.mark.parametrize("status", ["video_error", "model_error"])
def test_an_error_says_what_it_is(status):
    with pytest.raises(ValidationError, match="without error"):
        undecided(status)


def test_evidence_runs_forward():
    with pytest.raises(ValidationError, match="before it starts"):
        Evidence(start_s=2.0, end_s=1.0, category="abuse", score=0.5)


def test_a_file_name_that_is_no_text():
    verdict = undecided(
        "video_error", error=ERROR, video=b"a\xff.mp4".decode(errors="surrogateescape")
    )
    assert json.loads(verdict.to_json())["video"] == "a\\udcff.mp4"


def test_a_verdict_stays_as_it_was_checked():
    with pytest.raises(ValidationError, match="frozen"):
        decided().flagged = False
