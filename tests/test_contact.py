import base64
import io

import numpy as np
import pytest
from PIL import Image

from safelens.contact import contact_sheet, data_url, evidence_frames, grid, shown_frames
from safelens.verdict import Evidence, Region
from safelens.video import Clip


def clip(frames, times=None, path="clip.mp4"):
    times = np.arange(len(frames), dtype=np.float64) if times is None else np.asarray(times)
    size = (frames.shape[2], frames.shape[1])
    return Clip(path, "0" * 64, frames, times, float(len(frames)), size, False)


def flat(colours, height=90, width=120):
    frames = np.zeros((len(colours), height, width, 3), np.uint8)
    frames[:] = np.array(colours, np.uint8)[:, None, None]
    return frames


def evidence(start, end):
    return Evidence(start_s=start, end_s=end, category="abuse", score=0.5)


def picture(jpeg):
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")).astype(int)


def reddish(pixels):
    """Pixels near the outline's red."""
    return (np.abs(pixels - [214, 40, 46]) < 30).all(-1)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([], []),
        ([(1, 2)], [1]),  # the frame at 2 s begins the next moment
        ([(1, 2.5)], [1, 2]),
        ([(3, 4)], [3, 4]),  # the last frame has no next moment
        ([(4, 4)], [4]),
        ([(2, 2)], [2]),
        ([(1.6, 1.8)], [2]),  # between frames: the nearer one
        ([(0, 1), (3, 3.5)], [0, 3]),
        ([(9, 12)], [4]),  # beyond the clip
    ],
)
def test_which_frames_the_evidence_speaks_of(parts, expected):
    marked = evidence_frames(np.arange(5.0), [evidence(a, b) for a, b in parts])
    assert np.flatnonzero(marked).tolist() == expected


def test_a_sheet_shows_every_frame_in_order_and_outlines_the_evidence():
    colours = [(0, 0, 220), (0, 160, 0), (230, 230, 230), (120, 120, 0)]
    sheet = picture(contact_sheet(clip(flat(colours)), [evidence(1, 2)]))
    step = (sheet.shape[1] - 8) // 4
    for k, colour in enumerate(colours):
        tile = sheet[8:-8, 8 + k * step : k * step + step]
        assert np.abs(tile[30:60, 30:60] - colour).max() < 12
        # A closed outline in red around the second frame alone.
        top_row = sheet[5:11, 8 + k * step + 20 : k * step + step - 20]
        assert reddish(top_row).any(0).mean() == (1.0 if k == 1 else 0.0)
    # Each frame has its time in a badge at its lower left.
    assert (sheet[-24:-10, 12:50].max() - sheet[-24:-10, 12:50].min()) > 150


def test_a_region_is_a_box_with_its_category_in_its_frames_alone():
    grey = flat([(90, 90, 90)] * 4)
    box = {"left": 0.5, "right": 1.0, "top": 0.25, "bottom": 0.75}
    region = Region(start_s=1, end_s=2, category="abuse", score=0.2, **box)
    plain, drawn = (picture(contact_sheet(clip(grey), (), r)) for r in ((), [region]))
    yellow = (np.abs(drawn - [255, 204, 0]) < 40).all(-1)
    step = (drawn.shape[1] - 8) // 4
    rows, columns = np.nonzero(yellow)
    width, height = step - 8, drawn.shape[0] - 16
    assert abs(columns.min() - (8 + step + width / 2)) <= 2
    assert abs(columns.max() - (8 + step + width)) <= 3
    assert rows.min() >= 8 + height // 4 - 2
    assert rows.max() <= 8 + 3 * height // 4 + 2
    for k in (0, 2, 3):
        same = slice(8 + k * step, k * step + step)
        assert np.abs(plain[:, same] - drawn[:, same]).max() < 12


def test_sheets_of_odd_shapes_stay_within_bounds():
    for count, height, width in [(1, 2, 2), (2, 4, 400), (7, 400, 4), (20, 48, 64), (200, 8, 8)]:
        frames = np.full((count, height, width, 3), 128, np.uint8)
        whole = Region(
            start_s=0, end_s=99, category="a", score=0.1, left=0, top=0, right=0.01, bottom=0.01
        )
        image = Image.open(io.BytesIO(contact_sheet(clip(frames), [evidence(0, 99)], [whole])))
        assert image.format == "JPEG"
        assert 60 <= image.width <= 1152
        assert image.height < 2000


def test_grids_are_even_and_long_clips_are_thinned_out():
    assert [grid(n) for n in (1, 2, 8, 9, 20, 48)] == [
        (1, 1), (2, 1), (8, 1), (5, 2), (7, 3), (16, 3),
    ]  # fmt: skip
    assert shown_frames(5).tolist() == [0, 1, 2, 3, 4]
    many = shown_frames(1000)
    assert (len(many), many[0], many[-1]) == (48, 0, 999)
    assert set(np.diff(many)) == {21, 22}


def test_a_clip_without_frames_is_refused():
    with pytest.raises(ValueError, match=r"x\.mp4: a clip without frames"):
        contact_sheet(clip(np.zeros((0, 4, 4, 3), np.uint8), [], "x.mp4"))


def test_data_urls_hold_the_picture():
    jpeg = contact_sheet(clip(flat([(1, 2, 3)])))
    head, _, data = data_url(jpeg).partition(",")
    assert head == "data:image/jpeg;base64"
    assert base64.b64decode(data) == jpeg
