"""Videos and media in an S3-compatible store: a real server that speaks it, on a real port."""

import time
from concurrent.futures import Future

import pytest
import s3fs
import torch
from moto.server import ThreadedMotoServer

from safelens.cascade import SafeLens
from safelens.engine.ledger import Ledger
from safelens.engine.manifest import Entry, read_manifest
from safelens.engine.stages import ScreenStage, table_of
from safelens.engine.system import System
from safelens.engine.verdicts import read_verdicts
from safelens.remote_file import local_file, missing_package
from safelens.service.media import MediaStore
from safelens.video import VideoError

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def endpoint():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint, monkeypatch, request):
    """Address of an empty bucket, found as a user's own would be: by the environment."""
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", endpoint),
    ):
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    name = request.node.name.replace("_", "-")[:60].strip("-")
    s3fs.S3FileSystem().mkdir(name)
    yield f"s3://{name}"
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_video_is_a_file_here_as_long_as_it_is_read(bucket):
    assert missing_package(bucket) is None
    s3fs.S3FileSystem().pipe_file(f"{bucket}/a b.mp4", b"bytes")
    with local_file(f"{bucket}/a b.mp4") as file, open(file, "rb") as found:
        assert found.read() == b"bytes"
    with pytest.raises(FileNotFoundError):
        open(file, "rb").close()


def test_what_cannot_be_fetched_is_said(bucket, monkeypatch):
    with pytest.raises(VideoError) as gone, local_file(f"{bucket}/gone.mp4"):
        pass
    assert (gone.value.code, f"{bucket}/gone.mp4" in gone.value.message) == ("not_found", True)
    with pytest.raises(VideoError) as no_bucket, local_file("s3://no-such-bucket/a.mp4"):
        pass
    assert no_bucket.value.code == "not_found"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(VideoError) as nobody, local_file(f"{bucket}/a.mp4"):
        pass
    assert (nobody.value.code, "check address and network" in nobody.value.message) == (
        "unreadable",
        True,
    )


def test_a_manifest_and_its_videos_in_a_store_get_the_verdicts_of_files(
    bucket, make_bundle, videos, tmp_path
):
    bundle = make_bundle(screen={"domain": None})
    store = s3fs.S3FileSystem()
    for number, video in enumerate(videos[:2]):
        store.put_file(str(video), f"{bucket}/videos/{number}.mp4")
    store.pipe_file(f"{bucket}/many.csv", b"video\nvideos/0.mp4\nvideos/1.mp4\nvideos/2.mp4\n")
    entries = read_manifest(f"{bucket}/many.csv")
    assert entries == [Entry(f"{bucket}/videos/{n}.mp4") for n in range(3)]

    class Here:
        def __init__(self):
            self.ledger = Ledger(tmp_path)

        def __getattr__(self, name):
            return getattr(self.ledger, name)

        def known(self, digest):
            answer = Future()
            answer.set_result(self.ledger.known(digest))
            return answer

        def settle(self, sent):
            pass

    options = {"tau": 0.0, "device": "cpu"}
    list(ScreenStage(System(str(bundle), options=options), Here())(table_of(entries)))
    found = {v.video: v for v in read_verdicts(tmp_path)}
    assert found.pop(entries[2].video).error.code == "not_found"
    with SafeLens.load(bundle, **options) as lens:
        wanted = [m.verdict for m in lens.moderate_many(videos[:2])]
    assert [found[e.video].sha256 for e in entries[:2]] == [v.sha256 for v in wanted]
    assert [found[e.video].label for e in entries[:2]] == [v.label for v in wanted]


def test_the_services_media_lie_in_a_store(bucket, tmp_path):
    media = MediaStore(f"{bucket}/media")
    media.check()
    data = bytes(range(256)) * 4000
    (tmp_path / "upload").write_bytes(data)
    media.take(tmp_path / "upload", "videos/job_1")
    assert not (tmp_path / "upload").exists()
    assert media.size("videos/job_1") == len(data)
    assert media.read("videos/job_1", 100, 200) == data[100:200]
    assert b"".join(media.stream("videos/job_1", 5, 600_000)) == data[5:600_000]
    with media.local("videos/job_1") as path:
        assert path.read_bytes() == data
    with local_file(media.address("videos/job_1")) as path, open(path, "rb") as file:
        assert file.read() == data
    media.write(b"frames", "frames/job_1")
    time.sleep(1.1)  # S3 tells whole seconds
    assert list(media.older("videos", 0.0)) == ["videos/job_1"]
    assert list(media.older("videos", 3600.0)) == []
    assert list(media.older("bundles", 0.0)) == []
    media.delete("videos/job_1")
    media.delete("videos/job_1")
    with pytest.raises(FileNotFoundError):
        media.size("videos/job_1")
    assert media.read("frames/job_1", 0, 6) == b"frames"


def test_a_folders_address_is_its_path(tmp_path):
    assert MediaStore(str(tmp_path)).address("videos/job_1") == f"{tmp_path}/videos/job_1"
