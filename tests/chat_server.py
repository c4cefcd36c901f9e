"""An OpenAI-compatible server for tests, a process of its own; prints its port, then serves.

The first part of the path says how it behaves, so that one server plays all parts:
`http://127.0.0.1:PORT/BEHAVIOUR/v1/chat/completions`. `GET /BEHAVIOUR` gives what it counted, and
`GET /last/BEHAVIOUR` the last request's body and key. A user's message of several parts is a video to judge.
"""

import hashlib
import json
import math
import re
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COUNTS: Counter[str] = Counter()
SEEN: Counter[str] = Counter()
MOST: Counter[str] = Counter()
LAST: dict[str, dict] = {}
LOCK = threading.Lock()


def good(messages):
    """What a good generator writes, from the last line that the prompt asks for."""
    if isinstance(messages[-1]["content"], list):
        return judged(messages[-1]["content"][-1]["text"])
    if "conciseness" in messages[0]["content"]:
        return graded(messages[1]["content"])
    guardrail = messages[1]["content"].rsplit("\n", 1)[1]
    return (
        "DESCRIPTION: Some people are seen in a place.\n"
        "EXPLANATION: Frame-0 and Frame-1 show what decides, and the scores are weighed with it.\n"
        f"{guardrail}"
    )


def judged(question):
    """An answer in the form that is asked for: the second category is violated."""
    if '"rating"' in question:
        name = re.findall(r'"(O\d+: .*?)"', question)[1]
        answer = {"rating": "Unsafe", "category": name, "rationale": "It is shown."}
        return f"```json\n{json.dumps(answer, indent=1)}\n```"
    template = re.search(r"GUARDRAIL: (\{.*?\})", question).group(1)
    names = re.findall(r'("[^"]+"): bool', template)
    flags = ", ".join(f"{name}: {'true' if i == 1 else 'false'}" for i, name in enumerate(names))
    return f"DESCRIPTION: A place.\nGUARDRAIL: {{{flags}}}\nEXPLANATION: It is shown."


def formed(text, body):
    """The answer in the form that the request's structured output asks for, as a server would force it."""
    if not {"structured_outputs", "response_format"} & set(body):
        return text
    fields = dict(line.split(": ", 1) for line in text.splitlines())
    if "structured_outputs" in body:
        order = ("DESCRIPTION", "EXPLANATION", "GUARDRAIL")
        text = "\n".join(f"{name}: {fields[name]}" for name in order)
        assert re.fullmatch(body["structured_outputs"]["regex"], text)
    else:
        schema = body["response_format"]["json_schema"]["schema"]
        flags = json.loads(fields["GUARDRAIL"])
        assert list(flags) == schema["properties"]["GUARDRAIL"]["required"]
        text = json.dumps({n: flags if n == "GUARDRAIL" else fields[n] for n in schema["required"]})
    return text


def tokens(text):
    """The text's tokens with their probabilities: of true 0.7 against 0.2, of false 0.9 against 0.05."""
    for token in re.findall(r" ?\w+| ?[^\w\s]+|\s", text):
        likely = {token: 0.99}
        if token.strip() == "true":
            likely = {token: 0.6, " True": 0.1, " false": 0.2, " maybe": 0.1}
        elif token.strip() == "false":
            likely = {token: 0.9, " true": 0.05}
        top = [
            {"token": t, "bytes": list(t.encode()), "logprob": math.log(p)}
            for t, p in likely.items()
        ]
        yield top[0] | {"top_logprobs": top}


def graded(answer):
    """The grades that an explanation asks for in its words, such as `GRADES 1 2 3`."""
    grades = re.search(r"GRADES (\d+) (\d+) (\d+)", answer)
    names = ("accuracy", "specificity", "conciseness")
    numbers = map(int, grades.groups() if grades else (5, 6, 7))
    return json.dumps(dict(zip(names, numbers, strict=True)))


def lie(messages):
    text = good(messages)
    if "accuracy" in text:
        return text.replace("accuracy", "truth")
    return text.replace(": true", ": false") if ": true" in text else text.replace("false", "true")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        name = self.path.strip("/")
        if name.startswith("last/"):
            self.reply(200, json.dumps(LAST[name.removeprefix("last/")]).encode())
            return
        with LOCK:
            counts = {"requests": COUNTS[name], "at_once": MOST[name]}
        self.reply(200, json.dumps(counts).encode())

    def do_POST(self):
        name = self.path.split("/")[1]
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.loads(raw)
        key = f"{name}/{hashlib.sha256(raw).hexdigest()}"
        with LOCK:
            COUNTS[name] += 1
            LAST[name] = {"body": body, "key": self.headers.get("Authorization")}
            COUNTS[f"now/{name}"] += 1
            MOST[name] = max(MOST[name], COUNTS[f"now/{name}"])
            SEEN[key] += 1
            first = SEEN[key] == 1
        try:
            self.behave(name, body, first)
        finally:
            with LOCK:
                COUNTS[f"now/{name}"] -= 1

    def behave(self, name, body, first):
        messages = body["messages"]
        self.logprobs = body.get("logprobs", False)
        kind = name.split("-")[0]
        if kind == "busy" and first:
            self.reply(429, b'{"error": "slow down"}', {"Retry-After": "1"})
        elif kind == "flaky" and first:
            self.reply(500, b"oops")
        elif kind == "hang" and first:
            time.sleep(30)
            self.close_connection = True
        elif kind == "drop" and first:
            self.close_connection = True
        elif kind == "half" and first:
            self.send_response(200)
            self.send_header("Content-Length", "5000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.close_connection = True
        elif kind == "garbage" and first:
            self.reply(200, b'{"choices": [{"mess')
        elif kind == "empty":
            self.reply(200, b'{"choices": []}')
        elif kind == "refuse":
            said = {"error": f"no such key: {self.headers.get('Authorization')}"}
            self.reply(401, json.dumps(said).encode())
        elif kind == "mute":
            self.answer("I cannot judge this.")
        elif kind == "null":
            self.answer(None)
        elif kind == "cut":
            text = good(messages)
            self.answer(text[: text.index("true") + 4], finish="length")
        elif kind == "whole":  # and yet the budget is used up
            self.answer(good(messages), finish="length")
        elif kind == "filter":
            self.answer(good(messages), finish="content_filter")
        elif kind == "quiet":
            self.logprobs = False
            self.answer(good(messages))
        elif kind == "mends" and COUNTS[name] <= 8:
            self.reply(400, b'{"error": "still loading"}')
        elif kind == "picky" and COUNTS[name] % 2:
            self.reply(400, b'{"error": "too many images"}')
        elif kind == "absent":
            self.reply(404, b'{"error": "model not found"}')
        elif kind == "strict":
            self.reply(400, b'{"error": "maximum context length is 4 tokens"}')
        elif kind == "long" and "TOO LONG" in messages[1]["content"]:
            time.sleep(0.3)
            self.reply(400, b'{"error": "maximum context length is 4096 tokens"}')
        elif kind == "liar" or (kind == "corrected" and len(messages) == 2):
            self.answer(lie(messages))
        elif kind == "thinks":
            self.answer(f"{lie(messages)}\n</think>\n\n{good(messages)}")
        elif kind == "unmetered":
            self.answer(good(messages), usage={"prompt_tokens": "many"})
        elif kind == "odd":
            self.answer(good(messages).replace("people", "peo\ud800ple"))
        else:
            if kind == "slow":
                time.sleep(0.1)
            while kind == "crowd" and MOST[name] < 3:  # answers nobody before there are three
                time.sleep(0.02)
            self.answer(formed(good(messages), body))

    def answer(self, text, usage=None, finish="stop"):
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": finish}
        if self.logprobs:
            choice["logprobs"] = {"content": list(tokens(text))}
        value = {
            "choices": [choice],
            "usage": usage or {"prompt_tokens": 1000, "completion_tokens": 50},
        }
        self.reply(200, json.dumps(value).encode())

    def reply(self, status, data, headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # 5 by default: more connections at once are reset


if __name__ == "__main__":
    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    threading.Thread(target=lambda: (sys.stdin.read(), server.shutdown()), daemon=True).start()
    server.serve_forever()
