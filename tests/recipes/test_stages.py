"""Stages run once, after what they need, and go on where they were interrupted."""

from pathlib import Path
from typing import Any

import pytest

from recipes.stages import Stage, in_order, run


def draw(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    (out / "numbers").write_text(" ".join(str(n) for n in range(settings["count"])))
    with (out / "calls").open("a") as calls:
        calls.write("call\n")


def total(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    (out / "begun").touch()
    if settings.get("stop") and not (out / "seen").exists():
        (out / "seen").touch()
        raise KeyboardInterrupt
    numbers = (needs["draw"] / "numbers").read_text().split()
    (out / "total").write_text(str(sum(map(int, numbers))))


def other_total(out: Path, settings: dict[str, Any], needs: dict[str, Path]) -> None:
    (out / "total").write_text("0")


def test_a_finished_stage_is_not_run_again(tmp_path: Path) -> None:
    drawn = Stage("draw", draw, {"count": 4})
    for _ in range(2):
        [folder] = run(Stage("total", total, {}, (drawn,)), root=tmp_path)
    assert (folder / "total").read_text() == "6"
    assert (drawn.folder(tmp_path) / "calls").read_text() == "call\n"


def test_other_settings_source_or_needs_make_another_folder() -> None:
    drawn = Stage("draw", draw, {"count": 4})
    one = Stage("total", total, {}, (drawn,))
    others = [
        Stage("total", total, {"x": 1}, (drawn,)),
        Stage("total", other_total, {}, (drawn,)),
        Stage("total", total, {}, (Stage("draw", draw, {"count": 5}),)),
    ]
    assert len({stage.digest for stage in [one, *others]}) == 4
    assert Stage("total", total, {}, (Stage("draw", draw, {"count": 4}),)).digest == one.digest


def test_an_interrupted_stage_goes_on_in_its_folder(tmp_path: Path) -> None:
    goal = Stage("total", total, {"stop": True}, (Stage("draw", draw, {"count": 3}),))
    with pytest.raises(KeyboardInterrupt):
        run(goal, root=tmp_path)
    assert not goal.done(tmp_path)
    [folder] = run(goal, root=tmp_path)
    assert (folder / "total").read_text() == "3"
    assert (folder / "begun").exists()


def test_shared_needs_come_once_and_first() -> None:
    drawn = Stage("draw", draw, {"count": 3})
    left, right = Stage("left", total, {}, (drawn,)), Stage("right", total, {}, (drawn,))
    names = [stage.name for stage in in_order(Stage("both", total, {}, (left, right)), drawn)]
    assert names == ["draw", "left", "right", "both"]
