"""S2 behind an endpoint: what it is sent, and that whatever the endpoint does, nothing becomes safe by that."""

import base64
import io
import json
import socket
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from safelens import prompts, remote_deliberate
from safelens.cascade import SafeLens
from safelens.chat_errors import EndpointError, EndpointStop
from safelens.prompts import ParseError
from safelens.remote_deliberate import GIVE_UP_AFTER, PAUSE_S, Remote, RemoteDeliberator
from safelens.verdict import Caption, Verdict

torch.set_num_threads(1)


@pytest.fixture
def remote(chat_server):
    """Settings of an endpoint that behaves as asked for; a failure is final unless retries are given."""

    def make(behaviour, **settings):
        usual = {"base_url": f"{chat_server}/{behaviour}/v1", "model": "m", "retries": 0}
        return Remote(**(usual | settings))

    return make


@pytest.fixture
def s2(remote, policy):
    """Makes S2 at such an endpoint, and closes it."""
    made = []

    def make(behaviour, *, layout="policy_first", **settings):
        made.append(RemoteDeliberator(remote(behaviour, **settings), policy, layout=layout))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def told(chat_server):
    """What the server counted of a behaviour, or with `last` the last request."""

    def get(path):
        with urllib.request.urlopen(f"{chat_server}/{path}", timeout=5) as answer:
            return json.load(answer)

    return get


@pytest.fixture
def given(clips, policy):
    """A clip, its captions and S1's scores."""
    captions = [Caption(time_s=t, text=f"A frame at {t}.") for t in clips[0].timestamps.tolist()]
    return clips[0], captions, dict(zip(policy.labels, (0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1)))


def picture(url, kind):
    head, _, data = url.partition(",")
    assert head == f"data:{kind}/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(float)


# -- what is sent -----------------------------------------------------------------------------------


def test_the_policy_first_then_frames_with_times_then_the_words_of_the_local_s2(
    s2, given, policy, told, monkeypatch
):
    monkeypatch.setenv("MY_KEY", "sk-secret")
    s2("good-remote", api_key_env="MY_KEY", max_new_tokens=77).deliberate(*given)
    sent = told("last/good-remote")
    body, clip = sent["body"], given[0]
    assert sent["key"] == "Bearer sk-secret"
    assert set(body) == {"model", "messages", "stream", "temperature", "max_tokens"}
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0, 77)
    first, second = body["messages"]
    assert first == {"role": "system", "content": prompts.policy_prompt(policy)}
    *frames, words = second["content"]
    request = prompts.deliberation_request(policy, given[1], given[2])
    assert words == {"type": "text", "text": prompts.question(policy) + request}
    assert [p["text"] for p in frames[::2]] == [f"<{t:.1f} seconds>" for t in clip.timestamps]
    for part, frame in zip(frames[1::2], clip.frames, strict=True):
        assert np.abs(picture(part["image_url"]["url"], "image") - frame).mean() < 8


def test_what_all_videos_share_comes_before_what_differs(s2, clips, given, told):
    prefixes = []
    for clip in clips[:2]:
        s2("good-prefix").deliberate(clip, given[1], given[2])
        prefixes.append(json.dumps(told("last/good-prefix")["body"]["messages"]))
    same = next(i for i, (a, b) in enumerate(zip(*prefixes, strict=False)) if a != b)
    assert same > len(json.dumps(prompts.policy_prompt(s2("good-prefix").policy)))


def test_frames_as_one_video(s2, given, told):
    s2("good-as-video", frames="video").deliberate(*given)
    body = told("last/good-as-video")["body"]
    part, words = body["messages"][1]["content"]
    assert part["video_url"]["url"].count(",") == len(given[0].frames)
    assert words["text"].startswith("Which categories")
    places = body["media_io_kwargs"]["video"]
    times = [place / places["fps"] for place in places["frames_indices"]]
    assert times == pytest.approx(given[0].timestamps.tolist(), abs=5e-4)


def test_video_first_has_the_policy_after_the_frames(s2, given, policy, told):
    s2("good-order", layout="video_first").deliberate(*given)
    [message] = told("last/good-order")["body"]["messages"]
    assert message["content"][0]["text"] == "<0.0 seconds>"
    assert message["content"][-1]["text"].startswith(
        f"{prompts.policy_prompt(policy)}\n\n{prompts.question(policy)}"
    )


# -- what comes back --------------------------------------------------------------------------------


@pytest.mark.parametrize("structured", ["none", "regex", "json_schema"])
def test_every_form_of_an_answer_is_read(s2, given, policy, told, structured):
    """The server refuses to answer where the form that is asked for is not that of its answer."""
    found = s2(f"good-{structured}", structured=structured).deliberate(*given)
    second = policy.categories[1].id
    assert found.flags == {c.id: c.id == second for c in policy.categories}
    assert found.scores == {name: float(flag) for name, flag in found.flags.items()}
    assert (found.description, found.explanation) == ("A place.", "It is shown.")
    assert (found.spent.prompt, found.spent.generated) == (1000, 50)
    asked = set(told(f"last/good-{structured}")["body"])
    fields = {"none": set(), "regex": {"structured_outputs"}, "json_schema": {"response_format"}}
    assert asked & {"structured_outputs", "response_format"} == fields[structured]
    assert found.text.startswith("{" if structured == "json_schema" else "DESCRIPTION: ")


@pytest.mark.parametrize("structured", ["none", "regex", "json_schema"])
def test_scores_are_the_booleans_probabilities_where_they_are_asked_for(
    s2, given, policy, told, structured
):
    name = f"good-logprobs-{structured}"
    found = s2(name, structured=structured, logprobs=True).deliberate(*given)
    body = told(f"last/{name}")["body"]
    assert (body["logprobs"], body["top_logprobs"]) == (True, 5)
    likely = {True: 0.7 / 0.9, False: 0.05 / 0.95}
    assert found.scores == pytest.approx({n: likely[flag] for n, flag in found.flags.items()})


def test_thoughts_are_no_answer(s2, given, policy):
    found = s2("thinks-remote").deliberate(*given)
    assert [name for name, flag in found.flags.items() if flag] == [policy.categories[1].id]
    assert "</think>" not in found.text


def test_a_server_that_does_not_count_tokens(s2, given):
    spent = s2("unmetered-remote").deliberate(*given).spent
    assert (spent.prompt, spent.generated) == (0, 0)


@pytest.mark.parametrize(
    ("behaviour", "settings", "why"),
    [
        (
            "mute",
            {},
            r"no line begins with 'GUARDRAIL.* 'I cannot judge this\.'; --structured makes",
        ),
        ("mute", {"structured": "regex"}, r"'I cannot judge this\.'$"),
        ("null", {}, "wrote nothing"),
        ("cut", {}, r"cut off after 50 tokens; raise --max-new-tokens, .* thoughts off$"),
        ("whole", {}, "cut off after 50 tokens"),
        ("filter", {}, "stopped because of 'content_filter'"),
        ("quiet", {"logprobs": True}, r"sent no log probabilities; leave out --logprobs$"),
    ],
)
def test_what_is_no_whole_answer_is_an_error_that_says_why(s2, given, behaviour, settings, why):
    asked = s2(behaviour, **settings)
    with pytest.raises(ParseError, match=why) as caught:
        asked.deliberate(*given)
    assert str(caught.value).startswith("m at http://127.0.0.1:")


# -- an endpoint that fails -------------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", ["busy", "flaky", "drop", "hang"])
def test_what_passes_is_tried_again(s2, given, told, behaviour):
    name = f"{behaviour}-remote"
    limit = 1.5 if behaviour == "hang" else 20
    began = time.monotonic()
    assert s2(name, retries=1, timeout_s=limit).deliberate(*given).description == "A place."
    assert told(name)["requests"] == 2
    if behaviour == "busy":  # "Retry-After: 1"
        assert time.monotonic() - began >= 1


def test_no_answer_in_time_or_at_all_names_the_endpoint(s2, given, remote):
    with pytest.raises(EndpointError, match=r"^m at http.*: no answer within 0.2 s \(1 tries\)$"):
        s2("hang-late", timeout_s=0.2).deliberate(*given)
    with pytest.raises(EndpointError, match=r"HTTP 500: oops"):
        s2("flaky-final").deliberate(*given)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(EndpointError, match=f"^m at {nobody}: ConnectError"):
        s2("good", base_url=nobody).deliberate(*given)


def test_an_endpoint_that_is_down_is_left_alone_and_tried_again_after_a_pause(
    s2, given, told, monkeypatch
):
    now = [0.0]
    monkeypatch.setattr(remote_deliberate, "time", SimpleNamespace(monotonic=lambda: now[0]))
    down, mends = s2("refuse-down"), s2("mends-remote")
    for asked, why in ((down, "HTTP 401"), (mends, "HTTP 400")):
        for _ in range(GIVE_UP_AFTER):
            with pytest.raises(EndpointStop, match=why):
                asked.deliberate(*given)
        with pytest.raises(EndpointStop, match=f"not asked: 8 videos in a row .*{why}.*--resume"):
            asked.deliberate(*given)
    assert told("refuse-down")["requests"] == told("mends-remote")["requests"] == GIVE_UP_AFTER
    now[0] += PAUSE_S
    assert [mends.deliberate(*given).description for _ in range(2)] == ["A place."] * 2
    for why in ("HTTP 401", "not asked: 9 videos"):
        with pytest.raises(EndpointStop, match=why):
            down.deliberate(*given)
    assert told("refuse-down")["requests"] == GIVE_UP_AFTER + 1


def test_answers_that_cannot_be_read_do_not_make_an_endpoint_down(s2, given, told):
    asked = s2("mute-often")
    for _ in range(GIVE_UP_AFTER + 1):
        with pytest.raises(ParseError, match="cannot judge"):
            asked.deliberate(*given)
    assert told("mute-often")["requests"] == GIVE_UP_AFTER + 1


def test_a_refused_key_is_in_no_message(s2, given, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret-4711")
    asked = s2("refuse-remote", api_key_env="MY_KEY")
    with pytest.raises(EndpointStop, match=r"v1: HTTP 401.*environment variable") as caught:
        asked.deliberate(*given)
    assert "sk-secret" not in str(caught.value)
    assert "sk-secret" not in repr(asked.provenance)
    assert s2("x/", base_url=f"{asked.provenance.base_url}/").provenance == asked.provenance


def test_threads_share_it_and_no_more_requests_than_allowed_are_open(s2, clips, given, told):
    asked = s2("slow-remote", concurrency=3)
    assert asked.concurrency == 3
    with ThreadPoolExecutor(9) as pool:
        found = list(pool.map(lambda i: asked.deliberate(clips[i % 6], [], given[2]), range(9)))
    assert {f.description for f in found} == {"A place."}
    assert told("slow-remote") == {"requests": 9, "at_once": 3}


def test_what_cannot_be_used_is_known_at_once(policy, remote, monkeypatch):
    with pytest.raises(EndpointStop, match="base URL 'localhost'"):
        RemoteDeliberator(remote("x", base_url="localhost"), policy)
    with pytest.raises(EndpointStop, match="NO_SUCH_KEY is not set"):
        RemoteDeliberator(remote("x", api_key_env="NO_SUCH_KEY"), policy)
    monkeypatch.setitem(sys.modules, "safelens.chat_client", None)
    with pytest.raises(EndpointStop, match=r"httpx2.*safelens\[remote\]"):
        RemoteDeliberator(remote("x"), policy)


# -- in the cascade ---------------------------------------------------------------------------------


def test_verdicts_of_a_cascade_whose_s2_is_remote(remote, vlm_dir, videos, policy):
    settings = remote("good-cascade", logprobs=True)
    with SafeLens.zero_shot(vlm_dir, tau=1.01, device="cpu", remote=settings) as lens:
        found = [m.verdict for m in lens.moderate_many(videos[:2])]
        clip = lens.moderate(videos[0]).clip
        here = lens.screener.screen([clip])[0].spent.prompt
    for verdict in found:
        assert (verdict.status, verdict.decided_by) == ("ok", "deliberate")
        assert (verdict.label, verdict.explanation) == (policy.categories[1].id, "It is shown.")
        assert verdict.confidence == pytest.approx(0.7 / 0.9)
        assert verdict.evidence
        assert verdict.cost.gflops is None
        assert verdict.cost.generated_tokens == 50
        assert verdict.timing["deliberate"] > 0
        told = verdict.provenance.remote
        assert (told.engine, told.model, told.scores) == ("openai", "m", "logprobs")
        assert told.base_url == settings.base_url
        assert Verdict.from_json(verdict.to_json()) == verdict
    assert found[0].cost.prompt_tokens > 1000 + here  # the moments are asked for too


def test_nothing_that_fails_is_safe_and_the_rest_goes_on(remote, vlm_dir, videos):
    for behaviour, code in (("picky-cascade", "EndpointStop"), ("mute", "ParseError")):
        settings = remote(behaviour)
        with SafeLens.zero_shot(vlm_dir, tau=1.01, device="cpu", remote=settings) as lens:
            found = [m.verdict for m in lens.moderate_many(videos[:4])]
        good = [v for v in found if v.status == "ok"]
        bad = [v for v in found if v.status == "model_error"]
        assert (len(good), len(bad)) == ((2, 2) if code == "EndpointStop" else (0, 4))
        assert all(v.flagged is None and v.label is None for v in bad)
        assert {v.error.code for v in bad} <= {code, "EndpointError"}
        assert all(f"m at {settings.base_url}" in v.error.message for v in bad)


def test_several_videos_are_asked_about_at_once_and_come_in_order(remote, vlm_dir, videos, told):
    settings = remote("crowd-cascade", concurrency=3)
    with SafeLens.zero_shot(vlm_dir, tau=1.01, device="cpu", remote=settings) as lens:
        found = [m.verdict for m in lens.moderate_many(videos)]
    assert [v.video for v in found] == [str(path) for path in videos]
    assert {v.status for v in found} == {"ok"}
    assert told("crowd-cascade") == {"requests": 6, "at_once": 3}


def test_s1_does_not_wait_for_the_server(remote, vlm_dir, videos, monkeypatch):
    """The first answer is held back until all videos are screened, though the server takes one at a time."""
    screened, all_of_them = [], threading.Event()
    with SafeLens.zero_shot(
        vlm_dir, tau=1.01, device="cpu", remote=remote("patient-cascade", concurrency=1)
    ) as lens:
        screen, ask = lens.screener.screen, lens.remote.deliberate

        def watched(clips):
            found = screen(clips)
            screened.extend(clips)
            if len(screened) == len(videos):
                all_of_them.set()
            return found

        def held(*args):
            assert all_of_them.wait(60)
            return ask(*args)

        monkeypatch.setattr("safelens.pipeline.BATCH", 1)
        monkeypatch.setattr(lens.screener, "screen", watched)
        monkeypatch.setattr(lens.remote, "deliberate", held)
        found = [m.verdict for m in lens.moderate_many(videos)]
    assert [v.status for v in found] == ["ok"] * len(videos)


def test_s1s_answers_need_no_endpoint(remote, vlm_dir, videos, told):
    settings = remote("refuse-unasked")
    with SafeLens.zero_shot(vlm_dir, tau=0.0, device="cpu", remote=settings) as lens:
        verdict = lens.moderate(videos[0]).verdict
    assert (verdict.status, verdict.decided_by) == ("ok", "screen")
    assert verdict.cost.gflops > 0
    assert told("refuse-unasked")["requests"] == 0


def test_a_bundle_whose_reasoner_is_not_loaded(remote, make_bundle, vlm_dir, videos, monkeypatch):
    from safelens.vlm import VisionLanguageModel

    loaded, load = [], VisionLanguageModel.load.__func__

    def counted(cls, source, **options):
        loaded.append(source)
        return load(cls, source, **options)

    monkeypatch.setattr(VisionLanguageModel, "load", classmethod(counted))
    monkeypatch.setattr(VisionLanguageModel, "load_adapter", None)
    folder = make_bundle(
        more={"reasoner": vlm_dir},
        deliberate={"model": "reasoner"},
        screen={"domain": None},
        tau=1.01,
    )
    with SafeLens.load(folder, device="cpu", remote=remote("good-bundle")) as lens:
        verdict = lens.moderate(videos[0]).verdict
        with pytest.raises(RuntimeError, match="runs elsewhere"):
            _ = lens.deliberator
    assert loaded == [str(folder / "model")]
    assert (verdict.status, verdict.decided_by) == ("ok", "deliberate")
    assert len(verdict.captions) > 1
    assert verdict.provenance.bundle == "small 1"
    assert verdict.provenance.remote.model == "m"
