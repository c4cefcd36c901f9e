"""`safelens.video` on small videos whose pixels say which frame they are."""

from __future__ import annotations

import csv
import hashlib
import itertools
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import time
import wave
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from small_videos import FORMATS, HEIGHT, WIDTH, bars, claim, cut, noise, spelled, steady, write

from safelens._picture import standard_range
from safelens.video import Clip, ClipOptions, VideoError, VideoReader, sample_times


def check(
    clip: Clip,
    times_ms: list[int],
    options: ClipOptions,
    *,
    tick: float = 0.0011,
    off: float = 0.11,
) -> None:
    """Hold a clip against the truth: the pixels say which frames they are, `times_ms` when."""
    truth = (np.array(times_ms) - times_ms[0]) / 1000
    seen = [spelled(frame) for frame in clip.frames]
    np.testing.assert_allclose(clip.timestamps, truth[seen], atol=tick)
    assert seen[0] == 0
    assert seen[-1] == len(times_ms) - 1
    assert sorted(set(seen)) == seen
    wanted = sample_times(truth[-1], options)
    spacing = wanted[1] - wanted[0]
    nearest = np.abs(truth[:, None] - wanted).min(axis=0)
    taken = np.abs(clip.timestamps[:, None] - wanted).min(axis=0)
    assert (taken <= nearest + 0.12 * spacing + off).all(), (clip.timestamps, wanted)
    assert not clip.truncated
    assert not clip.notes


@pytest.fixture(scope="module")
def reader():
    with VideoReader() as reader:
        yield reader


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("small") / "small.mp4", steady(3))


def error_of(reader: VideoReader, path: Path | str) -> VideoError:
    with pytest.raises(VideoError) as caught:
        reader.read(path)
    assert str(path) in caught.value.message
    return caught.value


# --- the sampling rule ---


@pytest.mark.parametrize(
    ("seconds", "count"),
    [
        (0, 2),
        (0.4, 2),
        (1, 2),
        (1.99, 2),
        (2, 3),
        (9.96, 10),
        (18.9, 19),
        (19, 20),
        (20, 20),
        (1e4, 20),
    ],
)
def test_sample_times_follow_appendix_m(seconds, count):
    times = sample_times(seconds, ClipOptions())
    assert len(times) == count
    assert times[0] == 0
    assert times[-1] == seconds
    if seconds >= 1:
        assert (np.diff(times) >= 1 - 1e-9).all()
    np.testing.assert_allclose(np.diff(times), seconds / (count - 1))


def test_bad_options_and_durations_are_named():
    with pytest.raises(ValueError, match="max_side=0"):
        ClipOptions(max_side=0)
    with pytest.raises(ValueError, match="min_frames=9"):
        ClipOptions(min_frames=9, max_frames=4)
    with pytest.raises(ValueError, match="duration_s=-1"):
        sample_times(-1, ClipOptions())


# --- timestamps against pixels ---


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("seconds", [0.7, 6.3, 31])
def test_timestamps_match_the_pixels(name, seconds, tmp_path, reader):
    # MPEG-2 knows no 10 frames a second.
    times = steady(seconds, step_ms=40 if name == "program.mpg" else 100)
    clip = reader.read(write(tmp_path / name, times, **FORMATS[name]))
    # The duration of a program stream is a guess from its first and last packets.
    check(clip, times, reader.options, tick=0.012, off=0.6 if name == "program.mpg" else 0.11)
    assert clip.duration_s == pytest.approx(seconds, abs=0.11)
    assert clip.source_size == (WIDTH, HEIGHT)


def test_live_webm_declares_no_duration(tmp_path):
    path = write(tmp_path / "live.webm", steady(2), **FORMATS["live.webm"])
    with av.open(str(path)) as container:
        assert container.duration is None


@pytest.mark.parametrize("name", ["variable.mp4", "variable.mkv"])
def test_variable_frame_rate(name, tmp_path, reader):
    steps = np.random.default_rng(3).choice([20, 40, 120, 700], 90)
    times = [0, *np.cumsum(steps).tolist()]
    check(reader.read(write(tmp_path / name, times)), times, reader.options, off=0.4)


def test_slide_show_gives_each_picture_once(tmp_path, reader):
    times = [0, 9000, 21000, 30000]
    clip = reader.read(write(tmp_path / "slides.mkv", times))
    assert [spelled(frame) for frame in clip.frames] == [0, 1, 2, 3]
    np.testing.assert_allclose(clip.timestamps, [0, 9, 21, 30], atol=0.002)


@pytest.mark.parametrize("name", ["late.mkv", "late.ts", "late.mp4"])
def test_start_other_than_zero(name, tmp_path, reader):
    times = steady(12, start_ms=7_300)
    options = {"use_editlist": "0"} if name.endswith("mp4") else None
    clip = reader.read(write(tmp_path / name, times, container_options=options))
    check(clip, times, reader.options)


@pytest.mark.parametrize("name", ["hours.mp4", "hours.mkv", "hours.ts"])
def test_hours_long_files_are_sampled_at_their_true_times(name, tmp_path, reader):
    times = [4000 * k for k in range(2700)]
    path = write(tmp_path / name, times, gop=20)
    clip = reader.read(path)
    # Without an index a jump lands on the next keyframe, here up to 80 s further.
    check(clip, times, reader.options, off=82 if name == "hours.ts" else 0)
    assert len(clip.frames) == 20


def test_clock_that_starts_anew(tmp_path, reader):
    path = write(tmp_path / "one.ts", steady(5))
    joined = tmp_path / "joined.ts"
    joined.write_bytes(path.read_bytes() + path.read_bytes())
    clip = reader.read(joined)
    seen = [spelled(frame) for frame in clip.frames]
    assert sum(b < a for a, b in itertools.pairwise(seen)) == 1, "both halves are seen"
    assert clip.timestamps[-1] == pytest.approx(9.9, abs=0.2)
    assert (np.diff(clip.timestamps) > 0.5).all()


def test_more_frames_on_request(tmp_path):
    times = steady(6)
    options = ClipOptions(max_fps=4, max_frames=64, max_side=96)
    with VideoReader(options) as reader:
        clip = reader.read(write(tmp_path / "a.mp4", times))
    check(clip, times, options)
    assert clip.frames.shape == (24, 24, 96, 3)


# --- pictures ---

QUARTERS = {
    "0": (1, 0, 0, 1, lambda p: p),
    "clockwise": (0, 1, -1, 0, lambda p: np.rot90(p, -1)),
    "half": (-1, 0, 0, -1, lambda p: np.rot90(p, 2)),
    "counterclockwise": (0, -1, 1, 0, lambda p: np.rot90(p, 1)),
    "mirrored": (-1, 0, 0, 1, lambda p: p[:, ::-1]),
}


def quadrants(index: int, width: int, height: int) -> np.ndarray:
    """Red, green, blue and white quarters, so that every orientation looks different."""
    picture = np.zeros((height, width, 3), np.uint8)
    y, x = height // 2, width // 2
    picture[:y, :x], picture[:y, x:] = (255, 0, 0), (0, 255, 0)
    picture[y:, :x], picture[y:, x:] = (0, 0, 255), (255, 255, 255)
    return picture


@pytest.mark.parametrize("name", QUARTERS)
def test_orientation_and_colours(name, tmp_path, reader):
    a, b, c, d, truth = QUARTERS[name]
    unit = 1 << 16

    path = write(tmp_path / "turned.mov", steady(1), size=(128, 64), picture=quadrants)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    assert struct.unpack_from(">9i", data, at)[0] == unit, "the track's matrix"
    struct.pack_into(">5i", data, at, a * unit, b * unit, 0, c * unit, d * unit)
    path.write_bytes(data)
    clip = reader.read(path)
    wanted = truth(quadrants(0, 128, 64))
    height, width = wanted.shape[:2]
    assert clip.frames.shape == (2, height, width, 3)
    assert clip.source_size == (width, height)
    away = np.abs(clip.frames[0].astype(int) - wanted.astype(int)).max(axis=2)
    assert np.median(away) <= 6
    assert (away > 40).mean() < 0.1  # only where colours meet


@pytest.mark.parametrize(
    ("size", "shape", "shown"),
    [
        ((640, 360), None, (256, 144)),
        ((360, 640), None, (144, 256)),
        ((64, 48), None, (64, 48)),
        ((320, 240), Fraction(2), (256, 96)),
        ((320, 240), Fraction(1, 2), (160, 240)),
    ],
)
def test_size_and_pixel_shape(size, shape, shown, tmp_path, reader):
    def prepare(stream):
        if shape:
            stream.codec_context.sample_aspect_ratio = shape

    path = write(tmp_path / "a.mkv", [0, 500], size=size, picture=quadrants, prepare=prepare)
    clip = reader.read(path)
    assert clip.frames.shape[1:3] == shown[::-1]
    assert clip.source_size == size


def test_odd_sizes_and_deep_colour(tmp_path, reader):
    def ramp(index, width, height):
        levels = np.linspace(0, 255, width).round().astype(np.uint8)
        return np.broadcast_to(levels[None, :, None], (height, width, 3)).copy()

    path = write(
        tmp_path / "deep.mkv", [0, 500], size=(161, 81), pix_fmt="yuv444p10le", picture=ramp
    )
    clip = reader.read(path)
    assert clip.frames.shape == (2, 81, 161, 3)
    assert np.abs(clip.frames[1].astype(int) - ramp(0, 161, 81)).mean() < 3


def test_downscaling_averages(tmp_path, reader):
    def checks(index, width, height):
        y, x = np.mgrid[:height, :width]
        return np.repeat((((x // 2 + y // 2) % 2) * 255).astype(np.uint8)[..., None], 3, axis=2)

    path = write(tmp_path / "a.mkv", [0, 500], codec="ffv1", size=(1024, 512), picture=checks)
    inner = reader.read(path).frames[0][4:-4, 4:-4]
    assert inner.mean() == pytest.approx(127.5, abs=3)
    assert inner.std() < 6


def test_transparent_areas_become_grey(tmp_path, reader):
    frames = [Image.new("RGBA", (40, 30), (0, 0, 0, 0)) for _ in range(2)]
    for k, frame in enumerate(frames):
        frame.paste((255, 0, 0, 255), (0, 0, 20, 30 - k))
    for name in ("a.gif", "a.webp"):
        frames[0].save(
            tmp_path / name, save_all=True, append_images=frames[1:], duration=500, lossless=True, disposal=2
        )  # fmt: skip
        picture = reader.read(tmp_path / name).frames[0]
        assert picture[5, 5].tolist() == [255, 0, 0]
        assert picture[5, 35].tolist() == [128, 128, 128]


def test_hdr_white_agrees_between_pq_and_hlg():
    # ITU-R BT.2408: reference white is 58 % of the PQ and 75 % of the HLG signal.
    def level(signal, hlg):
        return standard_range(np.full((1, 1, 3), round(signal * 65535), np.uint16), hlg=hlg)[0, 0]

    assert np.abs(level(0.58, False).astype(int) - level(0.75, True)).max() <= 3
    assert 220 <= level(0.58, False)[0] <= 250
    assert level(0, False).tolist() == level(0, True).tolist() == [0, 0, 0]
    ramp = [int(level(s, False)[0]) for s in np.linspace(0, 1, 30)]
    assert ramp == sorted(ramp)


# --- stills and animations ---


@pytest.mark.parametrize("name", ["still.jpg", "still.png", "still.gif", "still.webp"])
def test_still_pictures_are_doubled(name, tmp_path, reader):
    Image.fromarray(bars(5)).save(tmp_path / name)
    clip = reader.read(tmp_path / name)
    assert clip.frames.shape[0] == 2
    assert [spelled(frame) for frame in clip.frames] == [5, 5]
    assert clip.timestamps.tolist() == [0, 0]
    assert clip.notes == ("single frame, repeated to 2",)


@pytest.mark.parametrize("name", ["moving.gif", "moving.webp"])
def test_animations(name, tmp_path, reader):
    times = steady(12, step_ms=300)
    pictures = [Image.fromarray(bars(k)) for k in range(len(times))]
    pictures[0].save(
        tmp_path / name, save_all=True, append_images=pictures[1:], duration=300, lossless=True
    )
    clip = reader.read(tmp_path / name)
    check(clip, times, reader.options)
    assert clip.duration_s == pytest.approx(12, abs=0.01)


def test_webp_that_was_cut(tmp_path, reader):
    pictures = [Image.fromarray(bars(k)) for k in range(40)]
    path = tmp_path / "cut.webp"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=300, lossless=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    clip = reader.read(path)
    assert clip.truncated
    seen = [spelled(frame) for frame in clip.frames]
    np.testing.assert_allclose(clip.timestamps, np.array(seen) * 0.3, atol=1e-6)
    assert 15 <= seen[-1] <= 22


# --- damage ---


@pytest.mark.parametrize(
    ("name", "options"),
    [("front.mp4", {"movflags": "faststart"}), ("cut.mkv", {}), ("front.avi", {})],
)
@pytest.mark.parametrize("seconds", [8, 60])
def test_cut_files_give_what_is_there(name, options, seconds, tmp_path, reader):
    kind = FORMATS["intra.avi"] if name.endswith("avi") else {}
    times = steady(seconds)
    path = cut(write(tmp_path / name, times, picture=noise, container_options=options, **kind))
    clip = reader.read(path)
    assert clip.truncated
    assert any(note.startswith("truncated: ") for note in clip.notes)
    seen = [spelled(frame) for frame in clip.frames]
    # The very last packet may be cut itself; its picture is then only partly right.
    np.testing.assert_allclose(clip.timestamps[:-1], np.array(seen[:-1]) / 10, atol=0.012)
    assert clip.timestamps[-1] == pytest.approx(seconds / 2, rel=0.3)
    spacing = np.diff(clip.timestamps)
    assert spacing.max() < 2 * spacing.mean(), "evenly spread over what is there"
    if not name.endswith("avi"):  # without its index, an AVI's duration is taken from its size
        assert clip.duration_s == pytest.approx(seconds, abs=0.2)


def test_cut_file_without_index_says_so(tmp_path, reader):
    error = error_of(reader, cut(write(tmp_path / "back.mp4", steady(4))))
    assert error.code == "unreadable"
    assert "cut off" in error.message
    assert error.sha256 == hashlib.sha256((tmp_path / "back.mp4").read_bytes()).hexdigest()


def test_damage_in_the_middle_is_stepped_over(tmp_path, reader):
    path = write(tmp_path / "a.mp4", steady(12), picture=noise)
    data = bytearray(path.read_bytes())
    third = len(data) // 3
    data[third : third + 3000] = os.urandom(3000)
    path.write_bytes(data)
    clip = reader.read(path)
    assert len(clip.frames) >= 8
    assert clip.timestamps[-1] == pytest.approx(11.9, abs=0.01)


@pytest.mark.parametrize("claimed_s", [1.0, 3000.0])
def test_wrong_declared_duration(claimed_s, tmp_path, reader):
    times = steady(40)
    clip = reader.read(claim(write(tmp_path / "a.mkv", times), 40, claimed_s))
    seen = [spelled(frame) for frame in clip.frames]
    assert len(seen) == 20
    assert (seen[0], seen[-1]) == (0, 399)
    assert np.diff(seen).max() <= 30
    np.testing.assert_allclose(clip.timestamps, np.array(seen) / 10, atol=0.002)
    assert clip.truncated == (claimed_s > 40)


# --- refusals ---


def test_every_refusal_has_its_code(tmp_path, reader):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("these are only words\n" * 50)
    (tmp_path / "words.txt").write_text("these are only words\n" * 50)
    os.mkfifo(tmp_path / "pipe.mp4")
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    for name, code in {
        "missing.mp4": "not_found",
        "empty.mp4/a.mp4": "not_found",
        "": "is_directory",
        "empty.mp4": "empty_file",
        "text.mp4": "not_a_video",
        "words.txt": "not_a_video",
        "pipe.mp4": "not_a_file",
        "sound.wav": "no_video_stream",
    }.items():
        assert error_of(reader, tmp_path / name).code == code, name
    with pytest.raises(VideoError) as caught:
        reader.read("a\0b")
    assert caught.value.code == "not_found"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permission(small, tmp_path, reader):
    path = tmp_path / "mine.mp4"
    path.write_bytes(small.read_bytes())
    path.chmod(0)
    assert error_of(reader, path).code == "no_permission"


def test_playlists_open_no_other_file(small, tmp_path, reader):
    (tmp_path / "a.ffconcat").write_text(f"ffconcat version 1.0\nfile '{small}'\n")
    (tmp_path / "a.m3u8").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{small}\n#EXT-X-ENDLIST\n"
    )
    for name in ("a.ffconcat", "a.m3u8"):
        assert error_of(reader, tmp_path / name).code == "not_a_video"


def test_names_with_odd_characters(small, tmp_path, reader):
    for name in ("a%03d.mp4", "- b:c?.mp4", "näme\n.mp4", os.fsdecode(b"latin-\xe9.mp4")):
        path = tmp_path / name
        path.write_bytes(small.read_bytes())
        assert len(reader.read(path).frames) == 3


@pytest.mark.parametrize("name", ["a.gif", "a.png", "b.png"])
def test_gigantic_pictures_are_refused(name, tmp_path, reader):
    path = tmp_path / name
    Image.new("RGB", (8, 8)).save(path)
    data = bytearray(path.read_bytes())
    if name == "a.gif":
        struct.pack_into("<HH", data, 6, 65535, 65535)
    else:
        side = 30000 if name == "a.png" else 7000
        struct.pack_into(">II", data, 16, side, side)
        struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    path.write_bytes(data)
    error = error_of(reader, path)
    assert error.code == "too_large"
    assert str(reader.options.max_pixels) in error.message


# --- the process ---


@pytest.fixture(scope="module")
def slow(tmp_path_factory) -> Path:
    """A file that takes seconds: one keyframe, large pictures, no way to jump."""
    path = tmp_path_factory.mktemp("slow") / "slow.mkv"
    picture = av.VideoFrame.from_ndarray(noise(1, 1920, 1080), "rgb24").reformat(format="yuv420p")
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        picture.pts = 0
        packet = stream.encode(picture)[0]
        data = bytes(packet)
        for k in range(120):
            again = av.Packet(data)
            again.stream, again.time_base, again.is_keyframe = stream, Fraction(1, 10), k == 0
            again.pts = again.dts = k
            out.mux(again)
    return path


def test_slow_files_are_killed_and_the_next_is_read(slow, small):
    with VideoReader(ClipOptions(timeout_s=2.0)) as reader:
        assert len(reader.read(small).frames) == 3
        assert error_of(reader, slow).code == "timeout"
        assert len(reader.read(small).frames) == 3
        assert reader.starts == 2


def test_memory_is_bounded(small, tmp_path):
    path = write(
        tmp_path / "large.mkv",
        [0, 500],
        codec="ffv1",
        pix_fmt="yuv420p",
        size=(6000, 4800),
        picture=lambda k, w, h: np.full((h, w, 3), 7, np.uint8),
    )
    with VideoReader(ClipOptions(max_memory_mb=64)) as reader:
        assert len(reader.read(small).frames) == 3
        error = error_of(reader, path)
        assert error.code == "out_of_memory"
        assert "64 MB" in error.message
        assert len(reader.read(small).frames) == 3
    with VideoReader(ClipOptions(max_memory_mb=1500)) as reader:
        assert len(reader.read(path).frames) == 2


def worker_pid(reader: VideoReader) -> int:
    assert reader._worker is not None
    return reader._worker.process.pid


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int, seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


def test_one_process_serves_many_files_and_is_replaced_when_it_dies(small, slow):
    with VideoReader() as reader:
        first = reader.read(small)
        reader.read(small)
        assert reader.starts == 1
        pid = worker_pid(reader)
        os.kill(pid, signal.SIGKILL)
        reader._worker.process.wait(
            60
        )  # a killed process may be a zombie before it can be waited for
        again = reader.read(small)
        assert reader.starts == 2
        np.testing.assert_array_equal(first.frames, again.frames)
        threading.Timer(0.3, os.kill, (worker_pid(reader), signal.SIGSEGV)).start()
        assert error_of(reader, slow).code == "decoder_crashed"
        assert len(reader.read(small).frames) == 3
        assert reader.starts == 3
        pid = worker_pid(reader)
    assert gone(pid, 0)
    with pytest.raises(RuntimeError, match="closed"):
        reader.read(small)


def test_threads_share_a_reader(tmp_path):
    paths = [write(tmp_path / f"{k}.mp4", steady(1 + k)) for k in range(4)]
    found: dict[int, list[int]] = {}

    def work(k: int) -> None:
        found[k] = [len(reader.read(paths[k]).frames) for _ in range(5)]

    with VideoReader() as reader:
        threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert reader.starts == 1
    assert found == {k: [max(2, 1 + k)] * 5 for k in range(4)}


def test_no_process_outlives_a_killed_owner(small):
    code = (
        "import os, sys; from safelens.video import VideoReader; r = VideoReader(); "
        f"r.read({str(small)!r}); print(r._worker.process.pid, flush=True); "
        "os.fork() or __import__('time').sleep(20); os.kill(os.getpid(), 9)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    assert alive(pid)
    owner.kill()
    owner.wait()
    assert gone(pid)


def test_a_reader_that_is_forgotten_leaves_no_process(small):
    reader = VideoReader()
    reader.read(small)
    pid = worker_pid(reader)
    del reader
    assert gone(pid)


def test_what_is_imported_where(small):
    code = (
        "import sys; import safelens.video; print([m for m in ('av', 'torch', 'PIL') if m in sys.modules]);"
        "import safelens._decode_worker; print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split("\n")[:2] == ["[]", "False"]


def test_clip_carries_hash_and_errors_travel(small, reader):
    clip = reader.read(str(small))
    assert clip.sha256 == hashlib.sha256(small.read_bytes()).hexdigest()
    assert clip.path == str(small)
    assert clip.frames.dtype == np.uint8
    assert "(3, 48, 192, 3)" in repr(clip)
    error = VideoError("timeout", "a.mp4: slow", sha256="ab")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.code, copy.message, copy.sha256) == ("timeout", "a.mp4: slow", "ab")


# --- real files ---


@pytest.mark.shared
def test_awkward_files_do_what_the_manifest_says(shared_videos, reader):
    rows = list(csv.DictReader((shared_videos / "awkward" / "manifest.csv").open()))
    assert len(rows) > 100
    wrong = []
    for row in rows:
        path = shared_videos / "awkward" / row["file"]
        try:
            clip = reader.read(path)
        except VideoError as error:
            if row["expected"] == "video" or error.code in ("timeout", "decoder_crashed"):
                wrong.append((row["file"], error.code))
            continue
        if row["expected"] != "video":
            wrong.append((row["file"], clip))
    assert not wrong


@pytest.mark.shared
def test_awkward_timestamps_and_pixels_match_a_plain_decode(shared_videos, reader):
    rows = csv.DictReader((shared_videos / "awkward" / "manifest.csv").open())
    checked = 0
    for row in rows:
        path = shared_videos / "awkward" / row["file"]
        if row["expected"] != "video" or path.stat().st_size > 300_000:
            continue
        clip = reader.read(path)
        if any("cover art" in note for note in clip.notes):
            continue
        with av.open(str(path)) as container:
            stream = container.streams.best("video")
            frames = []
            for packet in container.demux(stream):
                try:
                    frames += [f for f in packet.decode() if f.pts is not None]
                except av.FFmpegError:
                    continue
            truth = {float((f.pts - (stream.start_time or 0)) * f.time_base): f for f in frames}
        if stream.start_time is None:
            truth = {at - min(truth): f for at, f in truth.items()}
        times = np.array(sorted(truth))
        assert clip.timestamps[0] == pytest.approx(times[0], abs=1e-6), path
        assert clip.timestamps[-1] == pytest.approx(times[-1], abs=1e-6), path
        for at, picture in zip(clip.timestamps, clip.frames, strict=True):
            nearest = times[np.abs(times - at).argmin()]
            assert nearest == pytest.approx(at, abs=1e-6), path
            frame = truth[nearest]
            if clip.notes or frame.rotation or frame.format.name == "bgra":
                continue
            height, width = picture.shape[:2]
            plain = frame.reformat(width, height, "rgb24", interpolation="AREA").to_ndarray()
            assert np.abs(plain.astype(int) - picture).mean() < 1, path
            checked += 1
    assert checked > 100


@pytest.mark.shared
@pytest.mark.parametrize("folder", ["plain", "fights"])
def test_ordinary_videos_decode_whole(folder, shared_videos, reader):
    paths = [p for p in sorted((shared_videos / folder).iterdir()) if p.suffix in (".mp4", ".webm")]
    assert paths
    for path in paths[:: 1 if folder == "plain" else 8]:
        clip = reader.read(path)
        assert not clip.truncated, clip
        assert 2 <= len(clip.frames) <= 20
        assert (np.diff(clip.timestamps) > 0).all()
