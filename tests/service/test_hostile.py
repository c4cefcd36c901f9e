"""Input that means harm, on a real port. The settings of `served`: at most 1 MB, 1 s without a byte."""

import io
import itertools
import socket
import time
import zipfile
from urllib.parse import urlsplit

import pytest
from servers import moderate_all, problem

from safelens.service.context import Service
from safelens.service.doorbell import Bells
from safelens.service.keys import Caller
from safelens.service.media import MediaStore
from safelens.service.problems import Problem
from safelens.service.rate import RateLimit
from safelens.service.settings import Settings
from safelens.service.sniff import media_type

_number = itertools.count()


@pytest.fixture
def http(served):
    with served.http() as client:
        yield client


def leftovers(served):
    return list(served.settings.incoming.iterdir())


def raw(served, head, *bodies, pause=0.0):
    """Send a request byte by byte, as no HTTP library would; the answer, or what came of it."""
    address = urlsplit(served.url)
    key = served.keys["client"].key
    with socket.create_connection((address.hostname, address.port), timeout=20) as line:
        line.sendall(f"{head}\r\nHost: x\r\nAuthorization: Bearer {key}\r\n".encode())
        try:
            for body in bodies:
                line.sendall(body)
                time.sleep(pause)
        except (BrokenPipeError, ConnectionResetError):
            pass
        answer = b""
        try:
            while chunk := line.recv(65536):
                answer += chunk
                if b'"detail"' in answer:
                    break
        except ConnectionResetError:
            pass
        return answer.decode("latin-1")


def test_an_oversized_upload_is_refused_by_what_it_announces(served, http, sample):
    big = sample[:4096] + bytes(2_000_000)
    assert problem(http.post("/v1/jobs", content=big)) == "too_large"
    assert problem(http.post("/v1/jobs", files={"file": ("a.mp4", big)})) == "too_large"
    assert not leftovers(served)


def test_an_endless_upload_is_stopped_while_it_streams(served, sample):
    sent = 0

    def endless():
        nonlocal sent
        yield b"Transfer-Encoding: chunked\r\n\r\n"
        yield b"1000\r\n" + sample[:4096] + b"\r\n"
        while sent < 50_000_000:
            sent += 0x10000
            yield b"10000\r\n" + bytes(0x10000) + b"\r\n"

    answer = raw(
        served, "POST /v1/jobs HTTP/1.1", *[b for b, _ in zip(endless(), range(200), strict=False)]
    )
    assert " 413 " in answer
    assert '"too_large"' in answer
    assert not leftovers(served)


def test_a_slow_upload_is_ended(served, sample):
    head = f"Content-Length: {len(sample)}\r\n\r\n".encode()
    began = time.monotonic()
    answer = raw(served, "POST /v1/jobs HTTP/1.1", head + sample[:5000])
    assert " 408 " in answer
    assert '"slow_upload"' in answer
    assert time.monotonic() - began < 10
    drops = [sample[i : i + 1] for i in range(15)]
    answer = raw(served, "POST /v1/jobs HTTP/1.1", head, *drops, pause=0.3)
    assert '"slow_upload"' in answer
    assert not leftovers(served)


def test_a_broken_off_upload_leaves_nothing(served, sample):
    address = urlsplit(served.url)
    with socket.create_connection((address.hostname, address.port)) as line:
        key = served.keys["client"].key
        line.sendall(
            f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Length: {len(sample)}\r\n\r\n".encode()
            + sample[:9000]
        )
        time.sleep(0.3)
    until = time.monotonic() + 5
    while leftovers(served) and time.monotonic() < until:
        time.sleep(0.05)
    assert not leftovers(served)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x7fELF" + bytes(5000), b"<html><script>1</script>", b"PK\x03\x04" + bytes(99), b"%PDF-1.7",
     b"#EXTM3U\nfile:///etc/passwd", b"ffconcat version 1.0\nfile /etc/passwd", b"\xff\xd8\xff\xe0JFIF"],
)  # fmt: skip
def test_a_type_is_sniffed_and_not_believed(http, data):
    headers = {"Content-Type": "video/mp4"}
    answer = http.post("/v1/jobs", content=data, headers=headers, params={"name": "a.mp4"})
    assert problem(answer) == "not_a_video"


def test_real_containers_are_known():
    known = {
        b"\x00\x00\x00\x20ftypisom": "video/mp4", b"\x00\x00\x00\x14ftypqt  ": "video/quicktime",
        b"\x1a\x45\xdf\xa3\x01\x00\x42\x82\x84webm": "video/webm", b"RIFF\x00\x00\x00\x00AVI ": "video/x-msvideo",
        b"GIF89a": "image/gif", (b"\x47" + bytes(187)) * 4: "video/mp2t", b"RIFF\x00\x00\x00\x00WAVE": None,
    }  # fmt: skip
    assert {head: media_type(head) for head in known} == known


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("../../../etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("/", "video"),
        ("..", ".."),
        ("a\x00b\r\nSet-Cookie: x", "a\\x00b\\r\\nSet-Cookie: x"),
        ("x" * 1000, "x" * 255),
        ("\u202egpj.exe", "\\u202egpj.exe"),
    ],
)
def test_a_name_is_never_a_path(served, http, sample, given, shown):
    data = sample + b"name%d" % next(_number)
    job = http.post("/v1/jobs", content=data, params={"name": given}).json()
    assert job["name"] == shown
    names = {path.name for path in (served.settings.data / "media" / "videos").iterdir()}
    assert job["id"] in names
    assert all(name.startswith("job_") for name in names)


def test_html_in_a_name_stays_text(served, http, sample):
    name = '<img src=x onerror="alert(1)">.mp4'
    job = http.post("/v1/jobs", content=sample + b"html", params={"name": name}).json()
    moderate_all(served)
    answer = http.get(f"/v1/jobs/{job['id']}")
    assert answer.json()["verdict"]["video"] == name
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    media = http.get(f"/v1/jobs/{job['id']}/media")
    assert media.headers["content-type"] == "video/mp4"
    assert media.headers["content-disposition"] == "attachment"
    assert "sandbox" in media.headers["content-security-policy"]


@pytest.mark.parametrize(
    "name", ["../x", "videos/../x", "videos/a/b", "/etc/passwd", "videos/A.b", "x/y"]
)
def test_the_media_store_knows_its_names(tmp_path, name):
    with pytest.raises(ValueError, match="no name in the media store"):
        MediaStore(str(tmp_path)).read(name, 0, 1)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/jobs/..%2f..%2fetc%2fpasswd",
        "/v1/jobs/%00",
        "/v1/jobs/x/frames/-1",
        "/v1/policies/..%2fx",
    ],
)
def test_paths_lead_nowhere(http, path):
    assert problem(http.get(path)) in ("not_found", "invalid")


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:1/\r\nX: y", "file:///etc/passwd", "ftp://videos.test/a", "gopher://videos.test/",
        "http://evil.test/a.mp4", "http://videos.test.evil.test/", "http://videos.test@evil.test/",
        "http://user:pass@videos.test/a", "//videos.test/a", "http://[::1/", "http://", "http:///a",
        "http://cdn.test.evil.test/", "http://169.254.169.254/latest", "x" * 3000,
    ],
)  # fmt: skip
def test_urls_that_are_refused_at_once(http, url):
    answer = http.post("/v1/jobs", json={"url": url})
    assert problem(answer) in ("url_refused", "invalid")
    assert problem(http.post("/v1/batches", json={"items": [{"url": url}]})) in (
        "url_refused",
        "invalid",
    )


def test_a_callback_goes_to_allowed_hosts_alone(http, sample):
    data = sample + b"callback"
    for url in ("http://evil.test/", "http://169.254.169.254/", "file:///x"):
        answer = http.post("/v1/jobs", content=data, params={"callback_url": url})
        assert problem(answer) == "url_refused"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"--x\r\n"),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\n" + bytes(5000)),
        ("multipart/form-data; boundary=" + "x" * 500, b"--y"),
        ('multipart/form-data; boundary="', b"--y"),
    ],
)
def test_forms_that_are_none(served, http, kind, body):
    answer = http.post("/v1/jobs", content=body, headers={"Content-Type": kind})
    assert problem(answer) == "bad_request"
    assert not leftovers(served)


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'{"url": 5}', b'{"url": "http://videos.test/", "x": 1}', b"\xff"]
)
def test_json_that_is_none(http, body):
    answer = http.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert problem(answer) == "invalid"


def test_bodies_of_other_routes_are_bounded(served):
    with served.http("admin") as http:
        assert problem(http.post("/v1/policies", content=b"x" * 1_500_000)) == "too_large"
        answer = http.post("/v1/keys", content=b'{"name": "' + b"x" * 1_500_000 + b'"}')
        assert problem(answer) == "too_large"


def archive(*entries):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries:
            file.writestr(name, content)
    return data.getvalue()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"no zip", "no zip archive"),
        (archive(("../evil", b"x")), "leads out"),
        (archive(("/etc/cron.d/evil", b"x")), "leads out"),
        (archive(("a\\..\\b", b"x")), "leads out"),
        (archive(("bomb", bytes(900_000_000 // 100))), "times its size"),
        (archive(*((f"f{n}", b"") for n in range(1001))), "1001 files"),
        (archive(("same", b"1"), ("./same", b"2")), "cannot be unpacked"),
    ],
)
def test_a_bundle_that_is_none(served, data, says):
    with served.http("admin") as http:
        answer = http.post("/v1/bundles", content=data)
    assert problem(answer) == "bad_request"
    assert says in answer.json()["detail"]
    assert not leftovers(served)
    assert not [path for path in served.settings.bundles.glob("*")]


def test_a_key_that_asks_too_often_waits(tmp_path):
    here = Service(Settings(data=tmp_path, requests_per_minute=3), Bells([]))
    for _ in range(3):
        here.count(Caller("a", "client"))
    with pytest.raises(Problem) as refused:
        here.count(Caller("a", "client"))
    assert (refused.value.code, refused.value.status) == ("rate_limited", 429)
    assert 0 < int(refused.value.headers["Retry-After"]) <= 60
    here.count(Caller("b", "client"))
    here.database.close()


def test_a_minute_later_the_key_may_ask_again(monkeypatch):
    now = 100.0
    monkeypatch.setattr("safelens.service.rate.monotonic", lambda: now)
    rate = RateLimit(2)
    assert (rate.hit("a"), rate.hit("a"), rate.hit("a")) == (0.0, 0.0, 60.0)
    now = 159.0
    assert rate.hit("a") == 1.0
    now = 160.0
    assert (rate.hit("a"), rate.hit("a")) == (0.0, 0.0)
    assert rate.hit("a") == 60.0
