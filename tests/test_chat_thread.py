import os
import signal
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from safelens.chat_client import ChatClient
from safelens.chat_thread import ChatThread

MESSAGES = [
    {"role": "system", "content": "Write."},
    {"role": "user", "content": "Last line\nGUARDRAIL: {}"},
]


@pytest.fixture
def chat(chat_server):
    made = []

    def make(behaviour):
        made.append(ChatThread(ChatClient(f"{chat_server}/{behaviour}/v1", "m", cache=None)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def running():
    return {thread for thread in threading.enumerate() if thread.name == "safelens-chat"}


def test_one_thread_answers_all_and_ends_with_close(chat):
    before = running()
    asked = chat("slow-thread")
    assert running() == before  # nothing runs before it is needed
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda _: asked.ask(MESSAGES, temperature=0), range(8)))
    assert {reply.text[:12] for reply in replies} == {"DESCRIPTION:"}
    assert len(running() - before) == 1
    asked.close()
    asked.close()
    assert running() == before


def test_who_still_waits_when_it_closes_gets_no_answer(chat):
    asked = chat("hang-thread")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(asked.ask, MESSAGES)
        while not running():
            time.sleep(0.01)
        time.sleep(0.2)
        asked.close()
        with pytest.raises(CancelledError):
            waiting.result(timeout=10)


def test_ctrl_c_does_not_wait_for_the_answer(chat):
    asked = chat("hang-interrupted")
    began = time.monotonic()
    threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        asked.ask(MESSAGES)
    asked.close()
    assert time.monotonic() - began < 15
