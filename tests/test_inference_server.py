"""What asks a model on a server, against a published one: `transformers serve`, with a model of random weights."""

import json
import os
import re
import subprocess
import sys
import time

import pytest
import torch
from typer.testing import CliRunner

from safelens import prompts
from safelens.cascade import SafeLens
from safelens.chat_thread import ChatThread
from safelens.chat_video import as_images
from safelens.cli import app
from safelens.data.records import Record, write_records
from safelens.evaluate.answer_log import read_answers
from safelens.evaluate.styles import STYLES
from safelens.remote_deliberate import Remote
from safelens.video import ClipOptions, VideoReader

torch.set_num_threads(1)
START_S = 400
"""To import its libraries, which takes minutes where others use the processors."""


@pytest.fixture(scope="module")
def server(vlm_dir, tmp_path_factory):
    """The server's address; it takes a free port itself and names it in its log."""
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(vlm_dir),
               "--host", "127.0.0.1", "--port", "0", "--device", "cpu"]  # fmt: skip
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )
    try:
        yield _address(process, log)
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(process, log):
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", log.read_text("utf-8")):
            return found[1]
        time.sleep(0.1)
    pytest.fail(f"the server did not start:\n{log.read_text('utf-8')}")


def prompt(vlm, system, content, question):
    """What the model should be given, made here of the request's own parts."""
    content = [
        {"type": "image", "url": part["image_url"]["url"]} if "image_url" in part else part
        for part in content
    ]
    content.append({"type": "text", "text": question})
    system = [{"type": "text", "text": system}]
    return vlm.processor.apply_chat_template(
        [{"role": "system", "content": system}, {"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


@pytest.mark.timeout(900)
def test_frames_reach_the_model_and_its_garbage_is_never_safe(
    server, vlm, vlm_dir, policy, videos, tmp_path
):
    records = [Record(id=p.stem, video=str(p), labels=(), source="test") for p in videos[:2]]
    write_records(tmp_path / "records.jsonl", records)
    settings = f"kind: openai, base_url: '{server}/v1', model: '{vlm_dir}', prompt: safewatch"
    settings += ", max_new_tokens: 6, concurrency: 2, retries: 0"
    file, out = tmp_path / "systems.yaml", tmp_path / "out"
    sizes = {"few": 2, "many": 4}
    file.write_text(
        "systems:\n"
        + "".join(
            f"  {name}: {{{settings}, clip: {{max_side: 48, max_fps: 2, max_frames: {most}}}}}\n"
            for name, most in sizes.items()
        )
    )
    result = CliRunner().invoke(
        app,
        ["evaluate", str(tmp_path / "records.jsonl"), "--systems", str(file), "--out", str(out)],
    )
    assert result.exit_code == 0, result.output
    told = json.loads((out / "metrics.json").read_text("utf-8"))["systems"]
    read = {}
    for name, most in sizes.items():
        answers = read_answers(out / "answers" / name / "request.jsonl")
        assert [a.id for a in answers] == [r.id for r in records]
        with VideoReader(ClipOptions(max_side=48, max_fps=2, max_frames=most)) as reader:
            clips = [reader.read(path) for path in videos[:2]]
        for answer, clip in zip(answers, clips, strict=True):
            assert len(clip.frames) == most
            assert (answer.outcome, answer.flags, answer.label) == ("unparsed", None, None)
            assert answer.generated_tokens == 6
            style = STYLES["safewatch"]
            words = style.system(policy), as_images(clip)[0], style.question(policy)
            inputs = prompt(vlm, *words)
            assert answer.prompt_tokens == inputs["input_ids"].shape[1]
            # greedy, so the very same frames give the very same garbage
            ids = vlm.model.generate(**inputs, max_new_tokens=6, do_sample=False)
            text = vlm.tokenizer.decode(ids[0, answer.prompt_tokens :])
            assert answer.text.strip() == text.strip() != ""
        read[name] = [a.prompt_tokens for a in answers]
        counts = told[name]["metrics"]["counts"]
        assert (counts["videos"], counts["unparsed"], counts["decided"]) == (2, 2, 0)
        assert told[name]["metrics"]["single_label"]["accuracy"] == 0  # both videos are safe
        assert told[name]["memory"] is None
    assert all(few < many for few, many in zip(read["few"], read["many"], strict=True))


@pytest.mark.timeout(900)
def test_s2_is_asked_as_here_and_its_garbage_is_a_model_error(
    server, vlm, vlm_dir, policy, videos, monkeypatch
):
    replies, ask = [], ChatThread.ask

    def heard(self, messages, **fields):
        replies.append(ask(self, messages, **fields))
        return replies[-1]

    monkeypatch.setattr(ChatThread, "ask", heard)
    settings = {
        "base_url": f"{server}/v1",
        "model": str(vlm_dir),
        "max_new_tokens": 6,
        "retries": 0,
    }
    with SafeLens.zero_shot(
        vlm_dir, tau=1.01, device="cpu", remote=Remote(**settings, logprobs=True)
    ) as lens:
        found = list(lens.moderate_many(videos[:2]))
        scores = [s1.scores for s1 in lens.screener.screen([m.clip for m in found])]
    for moderation, reply, s1 in zip(found, replies, scores, strict=True):
        error = moderation.verdict.error
        assert (moderation.verdict.status, moderation.verdict.flagged) == ("model_error", None)
        assert error.code == "ParseError"
        assert (
            f"{vlm_dir} at {server}/v1 gave no answer that counts: cut off after 6" in error.message
        )
        question = prompts.question(policy) + prompts.deliberation_request(policy, [], s1)
        words = prompts.policy_prompt(policy), as_images(moderation.clip)[0], question
        inputs = prompt(vlm, *words)
        assert reply.prompt_tokens == inputs["input_ids"].shape[1]
        ids = vlm.model.generate(**inputs, max_new_tokens=6, do_sample=False)
        assert reply.text.strip() == vlm.tokenizer.decode(ids[0, reply.prompt_tokens :]).strip()
    forced = Remote(**settings, structured="regex")  # which this server does not know
    with SafeLens.zero_shot(vlm_dir, tau=1.01, device="cpu", remote=forced) as lens:
        verdict = lens.moderate(videos[0]).verdict
    assert (verdict.status, verdict.flagged) == ("model_error", None)
    assert "HTTP 422" in verdict.error.message
    assert "structured_outputs" in verdict.error.message
