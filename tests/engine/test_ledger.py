import pytest
from test_verdicts import PROVENANCE, A, good, lines

from safelens.engine.ledger import MOST_TRIES, Found, Ledger
from safelens.engine.manifest import Entry
from safelens.engine.verdicts import read_verdicts
from safelens.line_log import LogError

ENTRIES = [Entry("a"), Entry("b"), Entry("c")]


@pytest.fixture
def ledger(tmp_path):
    found = Ledger(tmp_path)
    found.introduce(PROVENANCE.model_dump_json())
    yield found
    found.close()


def test_what_has_a_verdict_is_not_begun(ledger):
    ledger.add("screen", Found([good("b", A)]))
    assert ledger.missing(ENTRIES) == [Entry("a"), Entry("c")]
    assert ledger.begin("screen", ENTRIES) == (["a", "c"], [])
    assert ledger.known(A)
    assert ledger.outcomes() == {"safe": 1}


def test_a_video_on_which_processes_die_is_tried_alone_and_then_set_aside(ledger, tmp_path):
    assert ledger.begin("screen", ENTRIES).together == ["a", "b", "c"]
    ledger.add("screen", Found([good("a", A)]))
    for _ in range(MOST_TRIES - 1):
        assert ledger.begin("screen", ENTRIES).alone[0] == "b"
        ledger.again("screen", "b")
    assert ledger.begin("screen", ENTRIES) == ([], ["c"])
    aside = list(read_verdicts(tmp_path))[-1]
    assert (aside.video, aside.status, aside.flagged) == ("b", "model_error", None)
    assert aside.error.code == "worker_died"
    assert "screened it died 3 times, the last 2 with this video alone" in aside.error.message


def test_a_video_that_was_survived_is_no_suspect(ledger):
    ledger.begin("screen", ENTRIES)
    ledger.add("screen", Found(passed_on=["a"]))
    assert ledger.begin("screen", ENTRIES) == (["a"], ["b", "c"])
    assert ledger.begin("deliberate", ENTRIES).together == ["a", "b", "c"]


def test_who_was_passed_on_is_no_suspect_to_the_next_ledger_either(ledger, tmp_path):
    """A driver that dies while S2 has a video says nothing about S1's earlier tries."""
    ledger.begin("screen", ENTRIES)
    for _ in range(MOST_TRIES - 1):
        ledger.again("screen", "a")
    ledger.add("screen", Found(passed_on=["a", "b"]))
    ledger.close()
    again = Ledger(tmp_path)
    assert again.begin("screen", ENTRIES) == (["a", "b", "c"], [])
    again.close()


def test_tries_outlive_the_process_and_are_forgotten_when_asked(ledger, tmp_path):
    ledger.begin("screen", ENTRIES)
    ledger.again("screen", "a")
    ledger.close()
    again = Ledger(tmp_path)
    assert again.begin("screen", ENTRIES) == (["b", "c"], ["a"])
    again.again("screen", "a")
    assert again.begin("screen", ENTRIES[:1]) == (
        [],
        [],
    )  # set aside, though nobody introduced themselves
    assert next(iter(read_verdicts(tmp_path))).provenance == PROVENANCE
    again.close()
    anew = Ledger(tmp_path)
    anew.forget_failed()
    assert anew.begin("screen", ENTRIES) == (["a", "b", "c"], [])
    anew.close()


def test_what_is_sent_twice_is_written_once(ledger, tmp_path):
    for _ in range(2):
        ledger.add("deliberate", Found([good("a", A)], copies=[Entry("b", A)]))
    assert lines(tmp_path) == ["a"]
    assert lines(tmp_path, "copies.jsonl") == ["b"]


def test_processes_must_agree(ledger):
    with pytest.raises(LogError, match="made with other settings"):
        ledger.introduce(PROVENANCE.model_copy(update={"tau": 0.1}).model_dump_json())
