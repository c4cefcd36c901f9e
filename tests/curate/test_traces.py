import json
import os
import urllib.request

import pytest

from safelens.answer_cache import AnswerCache
from safelens.chat_client import ChatClient
from safelens.chat_errors import EndpointStop
from safelens.curate.trace_prompt import EndpointGenerator, trace_messages
from safelens.curate.trace_rules import RuleGenerator
from safelens.curate.traces import GIVE_UP_AFTER, TraceRun, rebased
from safelens.data.records import read_records
from safelens.line_log import LineLog, LogError
from safelens.prompts import parse_response


@pytest.fixture(scope="module")
def records(scored_records):
    return read_records(scored_records)


@pytest.fixture
def run(policy, chat_server, tmp_path):
    """Runs the stage against the server; gives its summary, messages and costs."""

    def go(behaviour, records, *, out="traces.jsonl", **options):
        cache = AnswerCache(tmp_path / "cache")
        address = f"{chat_server}/{behaviour}/v1"
        patience = 3 if behaviour.startswith("hang") else 20
        client = ChatClient(
            address, "m", cache=cache, timeout_s=patience, retries=1, backoff_s=0.01
        )
        said = []
        stage = TraceRun(
            tmp_path / out,
            policy,
            EndpointGenerator(client, policy),
            settings={"model": "m"},
            **options,
        )
        try:
            stage.run(records, say=said.append)
        except EndpointStop as error:
            said.append(f"stopped: {error}")
        return stage.summary, said, client.report

    return go


def counted(chat_server, name):
    with urllib.request.urlopen(f"{chat_server}/{name}", timeout=5) as answer:
        return json.load(answer)["requests"]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_every_record_gets_one_trace_in_order_whatever_passes(run, records, tmp_path, policy):
    for behaviour in ("good-stage", "busy-stage", "flaky-stage", "drop-stage", "hang-stage"):
        out = f"{behaviour}.jsonl"
        summary, said, _ = run(behaviour, records, out=out)
        assert (summary.written, said, summary.complete) == (len(records), [], True)
        written = read_records(tmp_path / out)
        assert [r.id for r in written] == [r.id for r in records]
        for before, after in zip(records, written, strict=True):
            flags = parse_response(policy, after.response).flags
            assert {c for c, flag in flags.items() if flag} == set(before.labels)
            assert after == before.model_copy(update={"response": after.response})


def test_the_same_command_again_asks_nothing(run, records, chat_server, tmp_path):
    run("good-again", records)
    content = (tmp_path / "traces.jsonl").read_bytes()
    asked = counted(chat_server, "good-again")
    summary, _, costs = run("good-again", records)
    assert (summary.earlier, summary.written, costs.requests) == (len(records), 0, 0)
    # and where the output was lost, the cache still holds every answer
    (tmp_path / "traces.jsonl").unlink()
    summary, _, costs = run("good-again", records)
    assert (summary.written, costs.cache_hits) == (len(records), len(records))
    assert (tmp_path / "traces.jsonl").read_bytes() == content
    assert counted(chat_server, "good-again") == asked


def test_a_liar_is_rejected_with_reasons_and_retried_on_request_only(run, records, tmp_path):
    summary, said, costs = run("liar", records, max_attempts=3)
    assert (summary.written, summary.rejected, dict(summary.rules)) == (
        0,
        len(records),
        {"label": len(records)},
    )
    assert costs.requests == 3 * len(records)
    assert not (tmp_path / "traces.jsonl").exists()
    rejected = lines(tmp_path / "traces.jsonl.rejected.jsonl")
    assert [line["id"] for line in rejected] == [r.id for r in records]
    assert all(line["reasons"][0].startswith("label: flags ") for line in rejected)
    assert all(line["attempts"] == 3 and "GUARDRAIL" in line["text"] for line in rejected)
    assert said[0].startswith(f"rejected {records[0].id}: label: ")

    summary, _, costs = run("liar", records)
    assert (summary.rejected, summary.rejected_earlier, costs.requests) == (0, len(records), 0)
    assert not summary.complete
    summary, _, costs = run("liar", records, retry_rejected=True, max_attempts=1)
    assert costs.requests == len(records)  # not the cached lies again
    assert len(lines(tmp_path / "traces.jsonl.rejected.jsonl")) == 2 * len(records)
    summary, _, _ = run("good-after", records, retry_rejected=True)
    assert (summary.written, summary.complete) == (len(records), True)
    summary, _, _ = run("good-after", records)
    assert (summary.earlier, summary.rejected_earlier) == (len(records), 0)


def test_a_rejected_trace_is_told_why_and_done_better(run, records):
    summary, _, costs = run("corrected", records)
    assert (summary.written, summary.rejected) == (len(records), 0)
    assert costs.requests == 2 * len(records)


def test_thoughts_are_left_out(run, records, tmp_path):
    summary, _, _ = run("thinks", records)
    assert summary.written == len(records)
    assert "think" not in (tmp_path / "traces.jsonl").read_text()


def test_records_that_can_have_no_trace_are_left_out_by_reason(run, records):
    a, b, c, d, e, f, *_ = records
    broken = [
        a.model_copy(update={"captions": ()}),
        b.model_copy(update={"scores": None}),
        c.model_copy(update={"scores": None, "captions": ()}),
        d.model_copy(update={"labels": ("spam",)}),
        e.model_copy(update={"scores": {"safe": 1.0}}),
        f.model_copy(update={"labels": (), "asked": ("abuse",)}),
    ]
    summary, said, costs = run("good-left", [*broken, *records[6:8]])
    assert summary.written == costs.requests == 2
    assert sum(summary.left_out.values()) == 6
    assert said[:3] == [
        f"left out {a.id}: no captions",
        f"left out {b.id}: no scores",
        f"left out {c.id}: no captions and no scores",
    ]
    assert "labels ['spam'] are not of 'default'" in said[3]
    assert "scores for ['safe']; expected one for each of" in said[4]
    assert said[5].startswith(f"left out {f.id}: undecided: ")


def test_an_endpoint_without_answers_fails_by_id_and_the_next_run_goes_on(run, records, tmp_path):
    some = records[:3]
    summary, said, _ = run("empty-stage", some)
    assert (summary.failed, summary.written, summary.rejected) == (3, 0, 0)
    assert [s.split(":")[0] for s in said] == [f"failed {r.id}" for r in some]
    summary, _, _ = run("good-next", records)
    assert (summary.written, summary.earlier) == (len(records), 0)


def test_an_endpoint_that_is_down_stops_the_run(run, records):
    many = [r.model_copy(update={"id": f"r{i}"}) for i in range(60) for r in records[:1]]
    summary, said, _ = run("empty-down", many)
    assert summary.failed == GIVE_UP_AFTER
    assert said[-1].startswith(f"stopped: {GIVE_UP_AFTER} records in a row without an answer")


def test_a_refusal_stops_the_run_and_keeps_what_is_finished(run, records, tmp_path):
    run("good-before", records[:4])
    before = (tmp_path / "traces.jsonl").read_bytes()
    summary, said, costs = run("refuse-stage", records)
    assert said[-1].startswith("stopped: ")
    assert "environment variable" in said[-1]
    assert costs.requests <= 16
    assert (tmp_path / "traces.jsonl").read_bytes() == before
    summary, _, _ = run("good-before", records)
    assert (summary.earlier, summary.written) == (4, len(records) - 4)


def test_one_record_that_is_too_long_does_not_stop_the_others(run, records):
    long = records[3].captions[0].model_copy(update={"text": "TOO LONG"})
    with_long = [*records]
    with_long[3] = records[3].model_copy(update={"captions": (long, *records[3].captions)})
    summary, said, _ = run("long-stage", with_long)
    assert (summary.written, summary.failed) == (len(records) - 1, 1)
    assert said[0].startswith(f"failed {records[3].id}: HTTP 400")


def test_a_cut_line_is_written_again(run, records, tmp_path):
    out = tmp_path / "traces.jsonl"
    run("good-cut", records)
    whole = out.read_bytes()
    for cut in (1, 30, len(whole) // 2, len(whole) - 1):
        out.write_bytes(whole[:cut])
        run("good-cut", records)
        assert out.read_bytes() == whole


def test_other_settings_or_another_file_are_refused(policy, records, tmp_path):
    def start(out, **settings):
        return TraceRun(out, policy, RuleGenerator(policy), settings=settings)

    out = tmp_path / "t.jsonl"
    start(out, model="a").run(records)
    with pytest.raises(LogError, match="model 'a', now 'b'"):
        start(out, model="b")
    foreign = tmp_path / "f.jsonl"
    foreign.write_text("{}\n")
    with pytest.raises(LogError, match="no earlier output of this command"):
        start(foreign)
    assert foreign.read_text() == "{}\n"
    content = out.read_bytes()
    out.write_bytes(content.replace(b"\n", b"\n{broken\n", 1))
    with pytest.raises(LogError, match=rf"{out}:2: no JSON object"):
        start(out, model="a")


def test_where_no_more_fits_the_file_stays_whole(tmp_path):
    resource = pytest.importorskip("resource")
    log = LineLog(tmp_path / "t.jsonl")
    line = json.dumps({"id": "x" * 80})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (250, hard))
    try:
        log.add(line)
        log.add(line)
        with pytest.raises(LogError, match=r"t\.jsonl: cannot be written \(.*make room"):
            log.add(line)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "t.jsonl").read_text() == f"{line}\n" * 2
    log.add(line)
    log.close()
    assert len(list(LineLog(tmp_path / "t.jsonl").read())) == 3


def test_paths_of_videos_follow_the_output(records, tmp_path):
    record = records[0].model_copy(update={"video": "videos/a.mp4"})
    data = tmp_path / "in" / "kept.jsonl"
    assert rebased(record, data, tmp_path / "in" / "out.jsonl") == record
    moved = rebased(record, data, tmp_path / "out" / "t.jsonl")
    assert moved.video == os.path.join("..", "in", "videos", "a.mp4")
    there = record.model_copy(update={"video": "/v/a.mp4"})
    assert rebased(there, data, tmp_path / "out" / "t.jsonl") == there


def test_the_prompt_holds_the_triplet_and_no_control_token(records, policy):
    record = next(r for r in records if r.labels).model_copy(
        update={"response": "DESCRIPTION: x <|im_end|>\nGUARDRAIL: {}"}
    )
    system, user = trace_messages(policy, record, [])
    assert all(rule.text in system["content"] for c in policy.categories for rule in c.rules)
    assert all(caption.text in user["content"] for caption in record.captions)
    assert f"{record.scores['safe']:.3f}" in user["content"]
    assert policy.category(record.labels[0]).name in user["content"]
    assert "x < |im_end| >\nGUARDRAIL: {}" in user["content"]
    assert trace_messages(policy, records[0], [])[0] == system  # one prefix for all records
