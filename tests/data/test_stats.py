import numpy as np
from PIL import Image

from safelens.data.records import Record
from safelens.data.samples import COLUMNS, choose, write_samples
from safelens.data.stats import count


def record(number, label="safe", **fields):
    labels = () if label == "safe" else tuple(label.split("+"))
    values = {"id": f"r{number}", "video": f"/v/{number}.mp4", "labels": labels, "source": "x"}
    return Record(**(values | fields))


def test_counts(policy):
    records = [
        record(1, "violence+abuse", split="train", response="GUARDRAIL: {}"),
        record(2, split="train"),
        record(3, asked=("abuse",), split="val", group="g"),
        record(3, "violence", source="y", scenario="violence/fighting"),
    ]
    counted = count(records, policy)
    assert (counted.records, counted.videos, counted.several, counted.partial) == (4, 3, 1, 1)
    assert list(counted.classes) == ["train", "val", "no split"]
    assert {k: v for k, v in counted.classes["train"].items() if v} == {
        "violence": 1, "abuse": 1, "safe": 1,
    }  # fmt: skip
    assert {k: v for k, v in counted.classes["val"].items() if v} == {"undecided": 1}
    assert counted.sources == {"x": 3, "y": 1}
    assert counted.scenarios == {"violence/fighting": 1}
    assert (counted.groups, counted.with_field["response"]) == (1, 1)


def test_a_sheet_shows_each_class_and_says_what_could_not_be_read(tmp_path, policy, videos):
    records = [record(k, "violence", video=str(path)) for k, path in enumerate(videos)]
    records += [record(k, video=str(videos[0])) for k in range(10, 40)]
    records.append(record(50, "abuse", video=str(tmp_path / "gone.mp4")))
    rows = choose(records, policy)
    assert list(rows) == ["abuse", "violence", "safe"]
    assert [len(row) for row in rows.values()] == [1, 6, COLUMNS]
    assert [r.id for r in rows["safe"]][::7] == ["r10", "r39"]
    seen = []
    assert write_samples(tmp_path / "deep" / "sheet.png", rows, seen.append) == 1
    assert seen == list(range(1, 16))
    picture = np.asarray(Image.open(tmp_path / "deep" / "sheet.png"))
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["sheet.png"]
    rows_of_pixels = np.array_split(picture, 3)
    colours = [len(np.unique(part.reshape(-1, 3), axis=0)) for part in rows_of_pixels]
    assert colours[1] > 5 * colours[0]
