"""The decoding benchmark on a small file: what is compared is what it says."""

import numpy as np
import pytest

from benchmarks.decoding import _figures, run
from benchmarks.decoding_videos import Camera, Video, make

SMALL = Video("small.mp4", 6, (160, 96), 10, 10, 1.0)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make(SMALL, tmp_path_factory.mktemp("videos"), threads=1)


def test_every_system_decodes_the_same_times(path):
    runs = {name: [run(name, str(path), SMALL, 4)] for name in ("exact", "keyframes", "pyav_seek")}
    found = _figures(SMALL, path, runs)["systems"]
    assert [found[name]["frames"] for name in runs] == [4, 4, 4]
    assert found["exact"]["largest_error_s"] < 0.25
    assert found["pyav_seek"]["largest_error_s"] <= 0.051
    assert 0.25 < found["keyframes"]["largest_error_s"] <= SMALL.shift_s
    assert "keyframes stand in" in found["keyframes"]["notes"][0]
    assert not found["exact"]["notes"]
    faster = found["keyframes"]["times_faster_than"]["pyav_seek"]
    assert faster["min"] == pytest.approx(
        found["pyav_seek"]["seconds"][0] / found["keyframes"]["seconds"][0]
    )


def test_files_are_made_once_and_move(path):
    before = path.stat().st_mtime_ns
    assert make(SMALL, path.parent, threads=1).stat().st_mtime_ns == before
    camera = Camera(SMALL.size)
    first, again, later = camera.picture(0), Camera(SMALL.size).picture(0), camera.picture(2)
    assert first.shape == (144, 160)
    assert np.array_equal(first, again)
    assert np.abs(first.astype(int) - later).mean() > 5
