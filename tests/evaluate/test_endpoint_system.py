"""Models behind an endpoint: what they are sent, and that whatever they do is an answer of some kind."""

import asyncio
import base64
import io
import json
import urllib.request

import numpy as np
import pytest
from PIL import Image

from safelens.bundle import ClipSettings
from safelens.chat_client import ChatClient
from safelens.evaluate.endpoint_system import GIVE_UP_AFTER, EndpointSystem
from safelens.evaluate.styles import STYLES


@pytest.fixture
def system(chat_server, policy):
    def make(
        behaviour, style="safelens", *, frames="images", concurrency=1, key=None, timeout_s=20
    ):
        client = ChatClient(
            f"{chat_server}/{behaviour}/v1",
            "m",
            cache=None,
            api_key=key,
            concurrency=concurrency,
            timeout_s=timeout_s,
            retries=1,
            backoff_s=0.01,
        )
        return EndpointSystem(
            client,
            style,
            policy,
            clip=ClipSettings(),
            frames=frames,
            max_new_tokens=64,
            concurrency=concurrency,
        )

    return make


@pytest.fixture
def last(chat_server):
    def get(behaviour):
        with urllib.request.urlopen(f"{chat_server}/last/{behaviour}", timeout=5) as answer:
            return json.load(answer)

    return get


def ask(system, clips):
    async def all_of_them():
        async with system:
            return [(await system.answer(clip))["request"] for clip in clips]

    return asyncio.run(all_of_them())


def picture(data):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(float)


@pytest.mark.parametrize("style", STYLES)
def test_every_style_is_asked_and_read(system, clips, policy, style):
    [answer] = ask(system(f"good-{style}", style), clips[:1])
    second = policy.categories[1].id
    assert (answer.outcome, answer.flags, answer.label) == ("decided", (second,), second)
    assert answer.explanation == "It is shown."
    assert (answer.prompt_tokens, answer.generated_tokens, answer.gflops) == (1000, 50, None)
    assert answer.seconds["request"] > 0


def test_the_policy_comes_first_then_frames_with_their_times_then_the_question(
    system, clips, policy, last
):
    ask(system("good-sent", key="sk-secret"), clips[:1])
    sent = last("good-sent")
    body = sent["body"]
    assert sent["key"] == "Bearer sk-secret"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0, 64)
    first, second = body["messages"]
    style = STYLES["safelens"]
    assert first == {"role": "system", "content": style.system(policy)}
    *frames, question = second["content"]
    assert question == {"type": "text", "text": style.question(policy)}
    times = [part["text"] for part in frames[::2]]
    assert times == [f"<{t:.1f} seconds>" for t in clips[0].timestamps]
    for part, frame in zip(frames[1::2], clips[0].frames, strict=True):
        head, _, data = part["image_url"]["url"].partition(",")
        assert head == "data:image/jpeg;base64"
        assert np.abs(picture(data) - frame).mean() < 8


def test_frames_as_one_video_with_their_places(system, clips, last):
    ask(system("good-video", frames="video"), clips[3:4])
    body = last("good-video")["body"]
    part = body["messages"][1]["content"][0]
    head, *pictures = part["video_url"]["url"].split(",")
    assert (part["type"], head) == ("video_url", "data:video/jpeg;base64")
    assert len(pictures) == len(clips[3].frames)
    assert np.abs(picture(pictures[0]) - clips[3].frames[0]).mean() < 8
    told = body["media_io_kwargs"]["video"]
    times = [place / told["fps"] for place in told["frames_indices"]]
    assert times == pytest.approx(clips[3].timestamps.tolist(), abs=5e-4)
    assert told["total_num_frames"] > told["frames_indices"][-1]
    assert told["do_sample_frames"] is False


def test_what_passes_is_tried_again_and_what_is_no_answer_is_unparsed(system, clips):
    for behaviour in ("flaky-system", "drop-system", "garbage-system"):
        [answer] = ask(system(behaviour), clips[:1])
        assert answer.outcome == "decided", behaviour
    [answer] = ask(system("mute"), clips[:1])
    assert (answer.outcome, answer.text, answer.label) == ("unparsed", "I cannot judge this.", None)
    assert answer.prompt_tokens == 1000


def test_no_answer_is_a_failure_with_its_reason_and_the_rest_goes_on(system, clips):
    answers = ask(system("picky"), clips[:4])
    assert [a.outcome for a in answers] == ["failed", "decided"] * 2
    assert answers[0].error.startswith(f"{clips[0].path}: ")
    assert "too many images" in answers[0].error
    [answer] = ask(system("hang", timeout_s=0.3), clips[:1])
    assert answer.outcome == "decided"


def test_an_endpoint_that_refuses_all_is_called_down(system, clips):
    one = system("refuse-system", key="sk-secret")
    answers = ask(one, clips[:1] * GIVE_UP_AFTER)
    assert {a.outcome for a in answers} == {"failed"}
    assert "HTTP 401" in one.down
    assert "sk-secret" not in one.down + answers[0].error + json.dumps(one.identity())


def test_what_an_answer_depends_on(system):
    known = system("a").identity()
    assert system("a", key="k", concurrency=4).identity() == known
    for other in (system("b"), system("a", "safewatch"), system("a", frames="video")):
        assert other.identity() != known
