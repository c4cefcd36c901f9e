"""Fetching URLs from real servers on loopback, which a service may only do where the operator said so."""

import http.server
import socket
import threading

import pytest

from safelens.service.addresses import Hosts, Refused, is_public
from safelens.service.fetch import FetchError, fetch, name_of

VIDEO = b"\x00\x00\x00\x20ftypisom" + bytes(50_000)


class Videos(http.server.BaseHTTPRequestHandler):
    """Answers by the first part of the path."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        kind, _, rest = self.path[1:].partition("/")
        self.server.asked.append((self.path, self.headers["Host"]))
        if kind == "redirect":
            self.answer(302, b"", Location=f"http://{rest}" if rest else "/video")
        elif kind == "loop":
            self.answer(302, b"", Location="/loop")
        elif kind == "status":
            self.answer(int(rest), b"no")
        elif kind == "packed":
            self.answer(200, VIDEO, **{"Content-Encoding": "gzip"})
        elif kind == "html":
            self.answer(200, b"<html>" + bytes(5000), **{"Content-Type": "video/mp4"})
        elif kind == "endless":
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
            try:
                self.wfile.write(VIDEO)
                while True:
                    self.wfile.write(bytes(100_000))
            except OSError:
                self.close_connection = True
        elif kind == "stalls":
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.write(VIDEO)
            self.server.release.wait(5)
            self.close_connection = True
        else:
            self.answer(200, VIDEO)

    def answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def videos():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Videos)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # clients break off on purpose
    server.asked, server.release = [], threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.release.set()
    server.shutdown()


INTERNAL = Hosts(("localhost", "127.0.0.1"), ("localhost", "127.0.0.1"), "SETTING")


def get(videos, path, into, hosts=INTERNAL, host="localhost", **bounds):
    url = f"http://{host}:{videos.server_port}{path}"
    usual = {"most_bytes": 1_000_000, "total_s": 5.0, "idle_s": 0.5}
    return fetch(url, into, hosts, **(usual | bounds))


def test_a_video_is_fetched_also_over_redirects(videos, tmp_path):
    received = get(videos, "/redirect/", tmp_path / "v")
    assert (received.size, received.kind) == (len(VIDEO), "video/mp4")
    assert received.path.read_bytes() == VIDEO
    assert videos.asked[-1] == ("/video", f"localhost:{videos.server_port}")


@pytest.mark.parametrize(
    ("path", "code", "passing"),
    [
        ("/status/404", "fetch_failed", False),
        ("/status/503", "fetch_failed", True),
        ("/loop", "fetch_failed", False),
        ("/packed", "fetch_failed", False),
        ("/html", "not_a_video", False),
        ("/endless", "too_large", False),
        ("/stalls", "fetch_failed", True),
        ("/redirect/evil.test/x.mp4", "url_refused", False),
        ("/redirect/169.254.169.254/latest", "url_refused", False),
    ],
)
def test_servers_that_do_not_give_one(videos, tmp_path, path, code, passing):
    with pytest.raises(FetchError) as error:
        get(videos, path, tmp_path / "v")
    assert (error.value.code, error.value.passing) == (code, passing)
    assert not list(tmp_path.iterdir())


def test_an_allowed_host_at_a_private_address_is_not_asked(videos, tmp_path):
    before = len(videos.asked)
    for host in ("localhost", "127.0.0.1"):
        with pytest.raises(FetchError, match="not public") as error:
            get(videos, "/video", tmp_path / "v", Hosts((host,), (), "SETTING"), host)
        assert error.value.code == "url_refused"
    assert len(videos.asked) == before


def test_a_redirect_from_an_internal_host_to_a_private_address(videos, tmp_path):
    """`127.0.0.1` is allowed, but only `localhost` may lie on loopback."""
    hosts = Hosts(("localhost", "127.0.0.1"), ("localhost",), "SETTING")
    with pytest.raises(FetchError, match="not public"):
        get(videos, f"/redirect/127.0.0.1:{videos.server_port}/video", tmp_path / "v", hosts)


def test_dns_is_asked_once_and_that_answer_is_used(videos, tmp_path, monkeypatch):
    """A name that is public when it is checked and loopback a moment later."""
    answers = [["8.8.8.8"], ["127.0.0.1"]]
    asked, connected = [], []
    real = socket.create_connection

    def resolve(host, port, *args, **kwargs):
        if host != "rebinds.test":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]
        asked.append(host)
        found = answers[min(len(asked), 2) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in found]

    def connect(address, *args, **kwargs):
        connected.append(address[0])
        if address[0] == "8.8.8.8":
            raise ConnectionRefusedError
        return real(address, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(FetchError) as error:
        get(
            videos,
            "/video",
            tmp_path / "v",
            Hosts(("rebinds.test",), (), "SETTING"),
            "rebinds.test",
        )
    assert (error.value.code, asked, connected) == ("fetch_failed", ["rebinds.test"], ["8.8.8.8"])


def test_one_private_address_among_several_is_enough(monkeypatch):
    found = [(2, 1, 6, "", (a, 80)) for a in ("8.8.8.8", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: found)
    with pytest.raises(Refused, match=r"10\.0\.0\.1"):
        Hosts(("videos.test",), (), "SETTING").resolve("videos.test", 80)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2606:4700:4700::1111", True), ("127.0.0.1", False), ("127.9.9.9", False),
        ("10.1.2.3", False), ("172.16.0.1", False), ("192.168.1.1", False), ("169.254.169.254", False),
        ("100.64.0.1", False), ("0.0.0.0", False), ("255.255.255.255", False), ("224.0.0.1", False),
        ("::1", False), ("::", False), ("fe80::1", False), ("fd00::1", False), ("::ffff:127.0.0.1", False),
        ("::ffff:10.0.0.1", False), ("64:ff9b::7f00:1", False), ("2002:7f00:1::", False), ("ff02::1", False),
        ("192.0.2.1", False), ("198.18.0.1", False),
    ],
)  # fmt: skip
def test_public_addresses(address, public):
    assert is_public(address) is public


def test_names():
    hosts = Hosts(("a.test", "*.b.test"), (), "SETTING")
    for good in ("http://a.test/x", "https://A.TEST./", "http://x.b.test:99/", "http://y.x.b.test"):
        hosts.check(good)
    for bad in ("http://b.test/", "http://aa.test/", "http://xb.test", "http://a.test.evil/"):
        with pytest.raises(Refused, match="SETTING"):
            hosts.check(bad)
    assert name_of("http://a.test/x/clip%20one.mp4?token=secret") == "clip one.mp4"
    assert name_of("http://a.test/") == "a.test"
