"""Keyframes in place of exact frames, on small videos whose pixels say which frame they are."""

from __future__ import annotations

import re
from pathlib import Path

import av
import numpy as np
import pytest
from small_videos import FORMATS, claim, cut, noise, spelled, steady, write

from safelens import _keyframes
from safelens._decode import Decoded, decode
from safelens._key_source import KeySource
from safelens.bundle import ClipSettings
from safelens.cascade import SafeLens
from safelens.video import ClipOptions, VideoReader, sample_times

GOP_S = 1.2
"""From one keyframe to the next: 12 frames of a tenth of a second."""
EXACT = ClipOptions()
KEYS = ClipOptions(keyframe_shift_s=GOP_S)

_OPEN = "open-gop=1:bframes=3:b-adapt=0:scenecut=0"
_X265 = "log-level=none:keyint=12:min-keyint=12:scenecut=0"
DENSE = {
    **{
        name: FORMATS[name]
        for name in FORMATS
        if name not in ("long-gop.mkv", "mpeg4.avi", "program.mpg")
    },
    "open.mp4": {"options": {"preset": "veryfast", "x264-params": _OPEN}},
    "open.ts": {"options": {"preset": "veryfast", "x264-params": _OPEN}},
    "hevc.mp4": {"codec": "libx265", "options": {"preset": "ultrafast", "x265-params": _X265}},
    "hevc-open.mp4": {
        "codec": "libx265",
        "options": {"preset": "ultrafast", "x265-params": f"{_X265}:{_OPEN}"},
    },
    "hevc-open.ts": {
        "codec": "libx265",
        "options": {"preset": "ultrafast", "x265-params": f"{_X265}:{_OPEN}"},
    },
    "vp8.webm": {"codec": "libvpx", "options": {"deadline": "realtime", "cpu-used": "-8"}},
    "av1.mp4": {
        "codec": "libsvtav1",
        "options": {"preset": "12", "svtav1-params": "keyint=12:scd=0"},
    },
    "interlaced.mp4": {"options": {"flags": "+ildct+ilme", "x264-params": "scenecut=0"}},
}


def by_keyframes(found: Decoded) -> bool:
    return any("stand in" in note for note in found.notes)


def same(one: Decoded, other: Decoded) -> bool:
    fields = ("timestamps", "duration_s", "source_size", "truncated", "notes")
    return np.array_equal(one.frames, other.frames) and all(
        getattr(one, name) == getattr(other, name) for name in fields
    )


def every_frame(path: Path) -> dict[int, np.ndarray]:
    """All frames of a file by what they spell, as a plain decode gives them."""
    with av.open(str(path)) as container:
        pictures = [
            frame.to_ndarray(format="rgb24", interpolation="AREA")
            for frame in container.decode(container.streams.best("video"))
        ]
    return {spelled(picture): picture for picture in pictures}


@pytest.mark.parametrize("name", DENSE)
def test_keyframes_within_the_bound_stand_in_at_their_true_times(name, tmp_path):
    seconds = 12.7
    path = write(tmp_path / name, steady(seconds), **DENSE[name])
    found, exact = decode(str(path), KEYS), decode(str(path), EXACT)
    seen = [spelled(frame) for frame in found.frames]
    times = np.array(found.timestamps)
    np.testing.assert_allclose(times, np.array(seen) / 10, atol=0.0011)
    if name != "intra.avi":
        assert {index % 12 for index in seen} == {0}, "only keyframes"
    wanted = sample_times(seconds - 0.1, KEYS)
    away = np.abs(times[:, None] - wanted).min(axis=0).max()
    assert away <= GOP_S
    if name != "intra.avi":
        assert away > 0.5, "these keyframes are not the exact frames"
    (note,) = found.notes
    said = re.fullmatch(r"(\d+) keyframes stand in for (\d+) times, at most (.*) s away", note)
    assert (int(said[1]), int(said[2])) == (len(seen), len(wanted))
    assert float(said[3]) == pytest.approx(away, abs=0.11)  # the last time wanted is by declaration
    truth = every_frame(path)
    for index, picture in zip(seen, found.frames, strict=True):
        assert np.array_equal(picture, truth[index])
    assert found.duration_s == pytest.approx(exact.duration_s, abs=0.11)
    assert found.source_size == exact.source_size
    assert not found.truncated
    assert not by_keyframes(exact)


@pytest.mark.parametrize("name", ["b-frames.mp4", "late.mkv", "late.ts"])
def test_a_start_other_than_zero(name, tmp_path):
    path = write(tmp_path / name, steady(12, start_ms=0 if "mp4" in name else 7300))
    found = decode(str(path), KEYS)
    assert by_keyframes(found)
    seen = np.array([spelled(frame) for frame in found.frames])
    np.testing.assert_allclose(found.timestamps, seen / 10, atol=0.0011)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("long-gop.mkv", FORMATS["long-gop.mkv"]),
        ("long-gop.mp4", {"gop": 250}),
        ("long-gop.ts", {"gop": 250}),
        ("moving.gif", {"codec": "gif", "pix_fmt": "rgb8"}),
        # Every 12th frame is marked as a keyframe, and needs the 12 before it.
        ("refresh.mp4", {"options": {"x264-params": "intra-refresh=1:keyint=12:bframes=0"}}),
    ],
)
def test_keyframes_too_far_apart_or_not_whole_change_nothing(name, options, tmp_path):
    path = write(tmp_path / name, steady(12), **options)
    found = decode(str(path), KEYS)
    assert not by_keyframes(found)
    assert same(found, decode(str(path), EXACT))


@pytest.mark.parametrize("name", ["b-frames.mp4", "cues.mkv", "stream.ts"])
def test_the_bound_decides(name, tmp_path):
    path = write(tmp_path / name, steady(6.3))
    keyframes = np.arange(6) * GOP_S
    furthest = np.abs(sample_times(6.2, EXACT)[:, None] - keyframes).min(axis=1).max()
    assert by_keyframes(decode(str(path), ClipOptions(keyframe_shift_s=furthest + 0.03)))
    below = decode(str(path), ClipOptions(keyframe_shift_s=furthest - 0.03))
    assert same(below, decode(str(path), EXACT))


def test_a_sparse_file_without_an_index_is_given_up_early(tmp_path, monkeypatch):
    path = write(tmp_path / "sparse.ts", steady(31), gop=250)
    read = []
    packets = KeySource.packets
    monkeypatch.setattr(
        KeySource, "packets", lambda self: (read.append(p[0]) or p for p in packets(self))
    )
    decode(str(path), KEYS)
    assert 0 < len(read) < 40, "of 310"
    assert max(read) < sample_times(30.9, EXACT)[1] + GOP_S + 0.5


def test_fewer_keyframes_than_frames_asked_for_are_not_enough(tmp_path):
    path = str(write(tmp_path / "a.mp4", steady(6.3)))
    assert len(decode(path, ClipOptions(keyframe_shift_s=2, min_frames=6)).frames) == 6
    for shift, least in ((2, 7), (86400, 7)):
        options = {"keyframe_shift_s": shift, "min_frames": least}
        found = decode(path, ClipOptions(**options))
        assert same(found, decode(path, ClipOptions(min_frames=least)))
    for seconds in (0.1, 0.7):
        short = str(write(tmp_path / "short.mp4", steady(seconds)))
        assert same(decode(short, ClipOptions(keyframe_shift_s=60)), decode(short, EXACT))


def test_packets_are_not_held_without_bound(tmp_path, monkeypatch):
    path = str(write(tmp_path / "a.ts", steady(6.3)))
    assert by_keyframes(decode(path, KEYS))
    monkeypatch.setattr(_keyframes, "_MOST_HELD", 100)
    assert same(decode(path, KEYS), decode(path, EXACT))


# --- damage ---


@pytest.mark.parametrize(
    ("name", "options"),
    [("front.mp4", {"movflags": "faststart"}), ("cut.mkv", {}), ("front.avi", {})],
)
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_cut_files_are_decoded_exactly(name, options, share, tmp_path):
    kind = FORMATS["intra.avi"] if name.endswith("avi") else {}
    path = write(tmp_path / name, steady(20), picture=noise, container_options=options, **kind)
    whole = decode(str(path), KEYS)
    assert by_keyframes(whole)
    found = decode(str(cut(path, share)), KEYS)
    assert found.truncated
    assert same(found, decode(str(path), EXACT))


@pytest.mark.parametrize("name", ["b-frames.mp4", "cues.mkv", "stream.ts", "hevc.mp4"])
def test_a_damaged_keyframe_is_not_shown(name, tmp_path):
    """The exact way is taken. What FFmpeg's threads paint over the damage differs from run to run (HEVC)."""
    path = write(tmp_path / name, steady(12), picture=noise, **DENSE.get(name, {}))
    with av.open(str(path)) as container:
        packets = container.demux(container.streams.video[0])
        keys = [(p.pos, p.size, p.pts * p.time_base) for p in packets if p.size and p.is_keyframe]
        began = float(min(shown for _, _, shown in keys))
    at, size, shown = keys[5]
    damaged = float(shown) - began, float(keys[6][2]) - began
    data = bytearray(path.read_bytes())
    assert by_keyframes(decode(str(path), KEYS))
    for place in range(at + size // 3, at + size // 3 + 500, 100):
        data[place] ^= 0x55
    path.write_bytes(data)
    found, exact = decode(str(path), KEYS), decode(str(path), EXACT)
    assert not by_keyframes(found)
    assert (found.timestamps, found.notes) == (exact.timestamps, exact.notes)
    for time, one, other in zip(found.timestamps, found.frames, exact.frames, strict=True):
        assert np.array_equal(one, other) or damaged[0] <= time < damaged[1]


def test_a_clock_that_starts_anew_is_followed_exactly(tmp_path):
    path = write(tmp_path / "one.ts", steady(5))
    joined = tmp_path / "joined.ts"
    joined.write_bytes(path.read_bytes() * 2)
    assert same(decode(str(joined), KEYS), decode(str(joined), EXACT))


def test_an_index_that_calls_every_frame_a_keyframe_is_not_believed(tmp_path):
    path = write(tmp_path / "a.avi", steady(12), codec="mpeg4")
    data = bytearray(path.read_bytes())
    index = data.index(b"idx1") + 8
    flags = range(index + 4, index + 16 * 120, 16)
    assert {data[at] for at in flags} == {0, 0x10}
    for at in flags:
        data[at] = 0x10
    path.write_bytes(data)
    assert same(decode(str(path), KEYS), decode(str(path), EXACT))


@pytest.mark.parametrize("claimed_s", [5.0, 3000.0])
def test_a_wrong_declared_duration_is_found_out(claimed_s, tmp_path):
    path = claim(write(tmp_path / "a.mkv", steady(40)), 40, claimed_s)
    assert same(decode(str(path), KEYS), decode(str(path), EXACT))


# --- settings ---


def test_a_clip_tells_what_was_done(tmp_path):
    path = write(tmp_path / "a.mp4", steady(6.3))
    with VideoReader(KEYS) as reader:
        clip = reader.read(path)
    (note,) = clip.notes
    assert re.fullmatch(r"6 keyframes stand in for 7 times, at most 0\.\d\d s away", note)
    assert len(clip.frames) == len(clip.timestamps) == 6


def test_settings_that_change_nothing_are_those_of_before():
    assert "keyframe_shift_s" not in ClipSettings().model_dump()
    settings = ClipSettings(max_side=64).with_keyframes(1.5)
    assert ClipOptions(**settings.model_dump()).keyframe_shift_s == 1.5
    assert settings.with_keyframes(None) == settings
    assert settings.with_keyframes(0) == ClipSettings(max_side=64)
    for wrong in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="keyframe_shift_s"):
            settings.with_keyframes(wrong)
        with pytest.raises(ValueError, match="keyframe_shift_s"):
            ClipOptions(keyframe_shift_s=wrong)


def test_a_system_samples_as_asked_and_says_so(bundle_dir, vlm_dir, tmp_path):
    path = write(tmp_path / "a.mp4", steady(6.3))
    with SafeLens.load(bundle_dir, keyframe_shift_s=GOP_S, device="cpu") as lens:
        found = lens.moderate(path)
    assert found.verdict.provenance.keyframe_shift_s == GOP_S
    assert found.clip is not None
    assert "stand in" in found.clip.notes[0]
    with SafeLens.load(bundle_dir, device="cpu") as lens:
        assert lens.provenance.keyframe_shift_s is None
    with SafeLens.zero_shot(vlm_dir, keyframe_shift_s=GOP_S, device="cpu") as lens:
        assert lens.provenance.keyframe_shift_s == GOP_S
        assert lens.moderate(path).clip.notes == found.clip.notes
