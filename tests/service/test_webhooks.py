"""Webhooks to a real server: signed, tried again, and never to where they must not go."""

import http.server
import threading
import time

import pytest
from small import upload, verdict
from sqlalchemy import update
from standardwebhooks import Webhook, WebhookVerificationError

from safelens.service.addresses import Hosts
from safelens.service.keys import Keys
from safelens.service.queue import Queue
from safelens.service.submit import Submissions
from safelens.service.tables import Delivery
from safelens.service.webhooks import PAUSES_S, Webhooks

HERE = Hosts(("localhost",), ("localhost",), "SETTING")


class Callback(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.heard.append((dict(self.headers), body))
        status = self.server.answers.pop(0) if self.server.answers else 204
        self.send_response(status)
        self.send_header("Location", "http://169.254.169.254/")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def callback():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Callback)
    server.heard, server.answers = [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def owed(database, callback):
    """A job that is done and whose webhook is owed; its key."""
    key = Keys(database).add("caller", "client")
    url = f"http://localhost:{callback.server_port}/hook?token=t"
    job = Submissions(database, 10).submit(key.id, upload(callback_url=url, reference="r"), None)[0]
    queue = Queue(database, 30)
    queue.claim("w", 1)
    queue.finish("w", job, verdict(flagged=True, score=0.9))
    return job, key


def due(database):
    with database.writing() as session:
        session.execute(update(Delivery).values(next_at=0.0))


def delivery(database):
    with database.reading() as session:
        return session.query(Delivery).one()


def test_a_webhook_is_signed_and_sent_once(database, callback, owed):
    job, key = owed
    hooks = Webhooks(database, HERE)
    assert hooks.deliver_one()
    assert not hooks.deliver_one()
    [(headers, body)] = callback.heard
    data = Webhook(key.webhook_secret).verify(body, headers)["data"]
    assert data == {
        "job": job,
        "reference": "r",
        "status": "ok",
        "flagged": True,
        "label": "violence",
    }
    assert delivery(database).state == "delivered"


def test_a_forged_webhook_is_told_from_a_real_one(database, callback, owed):
    Webhooks(database, HERE).deliver_one()
    [(headers, body)] = callback.heard
    check = Webhook(owed[1].webhook_secret)
    changed = body.replace(b"true", b"false")
    older = headers | {"webhook-timestamp": str(int(time.time()) - 3600)}
    moved = headers | {"webhook-id": "msg_other"}
    for wrong_body, wrong_headers in ((changed, headers), (body, older), (body, moved), (body, {})):
        with pytest.raises(WebhookVerificationError):
            check.verify(wrong_body, wrong_headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(Keys(database).add("other", "client").webhook_secret).verify(body, headers)


def test_it_is_tried_again_under_the_same_id_until_it_is_heard(database, callback, owed):
    callback.answers = [500, 302, 429]
    hooks = Webhooks(database, HERE)
    for _ in range(4):
        due(database)
        assert hooks.deliver_one()
    assert delivery(database).state == "delivered"
    assert len({headers["webhook-id"] for headers, _ in callback.heard}) == 1
    assert len(callback.heard) == 4


def test_it_is_given_up_in_the_end(database, callback, owed):
    callback.answers = [500] * 100
    hooks = Webhooks(database, HERE)
    for _ in range(len(PAUSES_S) + 1):
        due(database)
        assert hooks.deliver_one()
    assert (delivery(database).state, delivery(database).last_error) == (
        "failed",
        "answered with status 500",
    )
    due(database)
    assert not hooks.deliver_one()


def test_it_goes_to_no_private_address(database, callback, owed):
    hooks = Webhooks(database, Hosts(("localhost",), (), "SETTING"))
    assert hooks.deliver_one()
    assert not callback.heard
    assert "not public" in delivery(database).last_error
