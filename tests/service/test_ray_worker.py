"""The worker that serves a cluster, without the cluster: what each of its failures costs a job."""

import zipfile

import pytest
from small import upload, verdict
from sqlalchemy import select

from safelens.bundle import Bundle, BundleError
from safelens.cascade import Moderation
from safelens.engine.cluster import EngineError
from safelens.engine.online import NotServed, VideoLost
from safelens.service import ray_worker
from safelens.service.deployments import active
from safelens.service.media import MediaStore
from safelens.service.queue import IN_COMPANY, MOST_ATTEMPTS
from safelens.service.ray_worker import RayWorker, StoredSystem
from safelens.service.submit import Submissions
from safelens.service.tables import Job, VerdictRow

BACKENDS = ["sqlite"]


class Cluster:
    """Both applications; `does` says what becomes of a video, by its path."""

    under_way = 4

    def __init__(self, does):
        self.does, self.sent, self.alone, self.deployed, self.fails = does, [], [], 0, False

    def __call__(self, *_made):
        return self

    def deploy(self):
        self.deployed += 1

    def running(self):
        if self.fails:
            raise EngineError("BundleError: broken")
        return True

    async def moderate(self, path):
        self.sent.append(path)
        return self.does(path)

    async def moderate_alone(self, path):
        self.alone.append(path)
        return self.does(path)


@pytest.fixture
def worker(settings, database, monkeypatch):
    found = RayWorker(settings)
    monkeypatch.setattr(ray_worker, "delete", lambda unwanted: None)
    monkeypatch.setattr(ray_worker, "_PAUSE_S", 0.05)
    ray_worker.threading.Thread(target=found._loop.run_forever, daemon=True).start()
    yield found
    found._loop.call_soon_threadsafe(found._loop.stop)


@pytest.fixture
def serve(worker, database, client_key, monkeypatch):
    """Accept some videos, and give each what a function makes of it, until none waits."""

    def run(does, count=1, rounds=60):
        cluster = Cluster(does)
        monkeypatch.setattr(ray_worker, "Online", cluster)
        with database.reading() as session:
            worker._prepare(active(session))
        submissions = Submissions(database, 100)
        for number in range(count):
            wanted = upload(f"video {number}".encode(), name=f"{number}.mp4")
            submissions.submit(client_key, wanted, None)
        for _ in range(rounds):
            if not worker.round():
                worker._wait()
            with database.reading() as session:
                jobs = session.scalars(select(Job).order_by(Job.name)).all()
            if all(job.state == "done" for job in jobs):
                return cluster, jobs
        return cluster, jobs

    return run


def answered(path):
    return Moderation(verdict(path), None)


def documents(database):
    with database.reading() as session:
        return list(session.scalars(select(VerdictRow)))


def test_every_job_is_sent_once_and_no_more_than_keep_the_replicas_busy(serve, worker, database):
    def found(path):
        assert len(worker._sent) <= Cluster.under_way
        return answered(path)

    cluster, jobs = serve(found, count=10)
    assert {job.state for job in jobs} == {"done"}
    assert sorted(cluster.sent) == sorted(worker._media.address(job.media) for job in jobs)
    assert {row.status for row in documents(database)} == {"ok"}
    assert not worker._held
    assert not cluster.alone


def test_a_video_whose_process_dies_again_and_again_is_tried_alone_and_then_ends(serve, database):
    def dies(path):
        raise VideoLost("died")

    cluster, _ = serve(dies)
    assert (len(cluster.sent), len(cluster.alone)) == (IN_COMPANY, MOST_ATTEMPTS - IN_COMPANY)
    [row] = documents(database)
    assert (row.status, row.flagged) == ("model_error", None)
    assert '"worker_lost"' in row.document


def test_a_cluster_that_takes_no_videos_costs_them_nothing(serve, database):
    refused = []

    def refuses(path):
        if len(refused) < 2 * MOST_ATTEMPTS:
            refused.append(path)
            raise NotServed("no replicas")
        return answered(path)

    cluster, jobs = serve(refuses, rounds=200)
    assert len(refused) == 2 * MOST_ATTEMPTS
    assert [(job.state, job.attempts) for job in jobs] == [("done", 1)]
    assert not cluster.alone


def test_a_bundle_that_no_replica_can_load_ends_the_jobs(serve, worker, database, client_key):
    cluster, _ = serve(answered, count=0, rounds=1)
    worker._loaded, cluster.fails = None, True
    Submissions(database, 100).submit(client_key, upload(b"one more"), None)
    worker.round()
    [row] = documents(database)
    assert row.status == "model_error"
    assert "deployment 1 cannot be loaded (BundleError: broken)" in row.document
    assert not worker._held


def test_jobs_of_a_round_that_failed_come_back(serve, worker, database, client_key, monkeypatch):
    serve(answered, count=0, rounds=1)
    Submissions(database, 100).submit(client_key, upload(b"one"), None)
    monkeypatch.setattr(worker._media, "address", lambda name: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        worker.round()
    worker._forget()
    assert not worker._held  # so its lease is not renewed
    monkeypatch.undo()


def test_applications_are_named_by_what_runs_in_them(worker, database):
    with database.reading() as session:
        deployment = active(session)
    name = worker._name(deployment)
    assert name.startswith(worker._prefix)
    deployment.tau = 0.5
    assert worker._name(deployment) != name


def test_an_uploaded_bundle_is_loaded_from_the_media_store_on_any_machine(
    make_bundle, tmp_path, monkeypatch
):
    monkeypatch.setattr(ray_worker.tempfile, "gettempdir", lambda: str(tmp_path / "elsewhere"))
    folder = make_bundle()
    sha256 = Bundle.load(folder).sha256
    with zipfile.ZipFile(tmp_path / "bundle.zip", "w") as archive:
        for path in folder.rglob("*"):
            archive.write(path, path.relative_to(folder))
    media = str(tmp_path / "media")
    MediaStore(media).take(tmp_path / "bundle.zip", f"bundles/{sha256}")
    options = {"tau": 0.5, "device": "cpu"}
    system = StoredSystem("", options=options, bundle_sha256=sha256, media_url=media)
    with system.load(deliberate=False) as lens:
        assert (lens.provenance.bundle_sha256, lens.thresholds.tau) == (sha256, 0.5)
    moved = StoredSystem(str(folder), options=options, bundle_sha256="0" * 64, media_url=media)
    with pytest.raises(BundleError, match=f"holds another bundle now, {sha256}"):
        moved.load(deliberate=False)
