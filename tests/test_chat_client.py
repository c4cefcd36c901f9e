import asyncio
import json
import socket
import time
import urllib.request
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from safelens import chat_client
from safelens.answer_cache import AnswerCache
from safelens.chat_client import ChatClient, Reply
from safelens.chat_errors import EndpointError, EndpointStop

MESSAGES = [
    {"role": "system", "content": "Write."},
    {"role": "user", "content": 'Last line\nGUARDRAIL: {"Sexual Content": true}'},
]


@pytest.fixture
def client(chat_server, tmp_path):
    def make(behaviour, **options):
        usual = {"cache": AnswerCache(tmp_path / "cache"), "timeout_s": 20, "retries": 2}
        usual |= {"backoff_s": 0.01}
        return ChatClient(f"{chat_server}/{behaviour}/v1", "m", **(usual | options))

    return make


@pytest.fixture
def requests(chat_server):
    def count(behaviour):
        with urllib.request.urlopen(f"{chat_server}/{behaviour}", timeout=5) as answer:
            return json.load(answer)

    return count


def ask(client, *many, fresh=False):
    async def all_of_them():
        async with client:
            return await asyncio.gather(*(client.ask(m, fresh=fresh) for m in many or [MESSAGES]))

    return [reply.text for reply in asyncio.run(all_of_them())]


def test_an_answer_its_cost_and_no_second_request(client, requests, tmp_path):
    first, second = client("good-cost"), client("good-cost")
    (text,) = ask(first)
    assert text.startswith("DESCRIPTION: ")
    assert ask(second) == [text]
    assert requests("good-cost")["requests"] == 1
    costs = first.report.summary(2.0, 10.0)
    assert (costs["requests"], costs["answers"], costs["cache_hits"]) == (1, 1, 0)
    assert (costs["prompt_tokens"], costs["completion_tokens"]) == (1000, 50)
    assert costs["cost"] == 0.0025
    free = second.report.summary(2.0, 10.0)
    assert (free["requests"], free["cache_hits"], free["cost"]) == (0, 1, 0.0)
    assert "cost" not in first.report.summary(None, None)
    assert ask(client("good-cost"), fresh=True) == [text]
    assert requests("good-cost")["requests"] == 2
    for file in (tmp_path / "cache").rglob("*.json"):
        file.write_text("{")  # damaged: asked for again
    assert ask(client("good-cost")) == [text]
    assert requests("good-cost")["requests"] == 3


def test_another_question_model_or_address_is_another_answer():
    keys = {
        AnswerCache.key(url, model, {"messages": text})
        for url in ("http://a/v1", "http://b/v1")
        for model in ("m", "n")
        for text in ("x", "y")
    }
    assert len(keys) == 8


@pytest.mark.parametrize("behaviour", ["flaky", "drop", "half", "garbage", "hang"])
def test_what_passes_is_tried_again(client, requests, behaviour):
    name = f"{behaviour}-once"
    asked = client(name, timeout_s=2 if behaviour == "hang" else 20)
    (text,) = ask(asked)
    assert text.startswith("DESCRIPTION: ")
    assert (asked.report.requests, asked.report.retries, asked.report.answers) == (2, 1, 1)
    assert requests(name)["requests"] == 2


def test_retry_after_is_honoured(client):
    began = time.monotonic()
    asked = client("busy-once")
    ask(asked)
    assert time.monotonic() - began >= 1.0
    assert asked.report.retries == 1


def test_both_forms_of_retry_after():
    read = chat_client._retry_after
    assert (read("7"), read(None), read("soon"), read("-3"), read("")) == (7, 0, 0, 0, 0)
    later = datetime.now(UTC) + timedelta(seconds=30)
    assert 25 < read(format_datetime(later, usegmt=True)) <= 30
    assert read("Wed, 21 Oct 2015 07:28:00 GMT") == 0


def test_in_the_end_it_gives_up_on_this_question_only(client, requests):
    with pytest.raises(EndpointError, match=r"no choices \(3 tries\)"):
        ask(client("empty-always"))
    assert requests("empty-always")["requests"] == 3


def test_nobody_listens(client):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    asked = ChatClient(
        address, "m", cache=client("good")._cache, timeout_s=1, retries=1, backoff_s=0.01
    )
    with pytest.raises(EndpointError, match=r"ConnectError.*2 tries"):
        ask(asked)


def test_refusals_stop_at_once_and_say_what_to_change(client, requests, tmp_path):
    key = "sk-very-secret-0123456789"
    asked = client("refuse-key", api_key=key)
    with pytest.raises(EndpointStop, match="environment variable") as caught:
        ask(asked)
    assert "HTTP 401" in str(caught.value)
    assert key not in str(caught.value)
    assert key not in repr(asked)
    assert requests("refuse-key")["requests"] == 1
    with pytest.raises(EndpointStop, match="model's name"):
        ask(client("absent"))
    with pytest.raises(EndpointStop, match="maximum context length"):
        ask(client("strict"))
    ask(client("good-key", api_key=key))
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert kept
    assert not any(key.encode() in path.read_bytes() for path in kept)


def test_a_request_that_is_refused_after_others_were_answered_fails_alone(client):
    asked = client("long")
    too_long = [MESSAGES[0], {"role": "user", "content": "TOO LONG"}]

    async def both():
        async with asked:
            await asked.ask(MESSAGES)
            await asked.ask(too_long)

    with pytest.raises(EndpointError, match="4096 tokens"):
        asyncio.run(both())


@pytest.mark.parametrize(
    "url", ["localhost:8000/v1", "ftp://a/v1", "http://", "http://a:port/v1", "", "http://[/v1"]
)
def test_an_address_that_is_none(url, tmp_path):
    with pytest.raises(EndpointStop, match="base URL"):
        ChatClient(url, "m", cache=AnswerCache(tmp_path))


def test_secrets_in_the_address_are_refused_and_not_repeated(tmp_path):
    for url in ("http://user:hunter2@a/v1", "http://a/v1?key=hunter2"):
        with pytest.raises(EndpointStop, match="environment variable") as caught:
            ChatClient(url, "m", cache=AnswerCache(tmp_path))
        assert "hunter2" not in str(caught.value)
    with pytest.raises(EndpointStop, match="characters") as caught:
        ChatClient("http://a/v1", "m", cache=AnswerCache(tmp_path), api_key="hunter2\n")
    assert "hunter2" not in str(caught.value)


def test_why_it_stopped_and_its_tokens_are_told_and_kept(client):
    video = [{"role": "user", "content": [{"type": "text", "text": 'GUARDRAIL: {"A": bool}'}]}]

    async def twice():
        async with client("whole-kept") as asked:
            return [await asked.ask(video, logprobs=True) for _ in range(2)]

    first, again = asyncio.run(twice())
    assert (first.finish, "".join(t["token"] for t in first.logprobs)) == ("length", first.text)
    assert replace(first, seconds=0.0) == again


def test_concurrency_is_bounded_and_used(client, requests):
    questions = [
        [MESSAGES[0], {"role": "user", "content": f"{i}\nGUARDRAIL: {{}}"}] for i in range(12)
    ]
    ask(client("slow-many", concurrency=4), *questions)
    assert requests("slow-many") == {"requests": 12, "at_once": 4}


def test_odd_answers(client):
    asked = client("unmetered")
    ask(asked)
    assert (asked.report.unmetered, asked.report.prompt_tokens) == (1, 0)
    assert "peo?ple" in ask(client("odd"))[0]
    read = chat_client._read
    nothing = read(b'{"choices": [{"message": {"content": null}, "logprobs": 3}], "usage": [1]}')
    assert chat_client._reply(nothing, 0.5) == Reply("", None, None, 0.5, None, None)
    for bad in (b"[]", b"1", b"[" * 200_000, b'{"choices": {}}', b'{"choices": [1]}', b"\xff"):
        with pytest.raises(ValueError, match=r"no |without"):
            read(bad)
