"""The report on the service: what is put together of the stages, and what is sent."""

from pathlib import Path

from benchmarks.service import _parts, stages, together, videos
from safelens.service.sniff import media_type


def kills(**more):
    return {"machine": {"cpu": "x", "load_before": 0.1}, "kills": 50, "lost": 1, "duplicated": 0,
            "audit_entries_lost": 2, **more}  # fmt: skip


def test_the_report_adds_up_what_the_stages_found():
    machine = {"cpu": "x", "load_before": 0.2}
    position = {
        "attack": {"pairs": 90, "changed": 3, "unsafe_to_safe": 1},
        "control": {"pairs": 90, "changed": 4, "unsafe_to_safe": 2},
    }
    found = {
        "overhead": {"machine": machine, "overhead_ms": {"p50": 1.0, "p99": 2.0}},
        "uploads": {"machine": machine, "uploads": {"lost": 0}},
        "sqlite": kills(),
        "postgresql": kills(lost=0),
        "captions": {
            "machine": machine,
            "attack_strings": 9,
            "clips": [],
            "clips_an_attack": 2,
            "positions": {"a": position, "b": position},
        },
        "names": {"machine": machine, "strings": 9, "flips": 1},
    }
    assert set(found) == set(stages())
    report = together(found)
    assert report["overhead_ms"] == {"p50": 1.0, "p99": 2.0}
    assert {key: report[key] for key in ("kills", "lost", "duplicated", "audit_entries_lost")} == {
        "kills": 100, "lost": 1, "duplicated": 0, "audit_entries_lost": 4,
    }  # fmt: skip
    assert (report["attack_strings"], report["attack_pairs"], report["attack_flips"]) == (9, 189, 7)
    assert (report["control_flips"], report["attack_flips_to_safe"]) == (8, 2)
    assert report["control_flips_to_safe"] == 4
    assert report["machine"] == machine
    assert set(report["measured_on"]) == set(found)
    assert "machine" not in report["faults"]["sqlite"]


def test_stages_of_both_databases_are_kept_apart():
    found = stages()
    assert found["sqlite"].digest != found["postgresql"].digest


def test_videos_differ_and_are_videos(tmp_path):
    made = [path.read_bytes() for path in videos(tmp_path, "v", 12)]
    assert len(set(made)) == 12
    assert all(media_type(data[:64]) == "video/mp4" for data in made)
    assert len(list(Path(tmp_path).iterdir())) == 12


def test_parts_cover_few_rows_and_many():
    assert [list(part) for part in _parts(list(range(8)), 4)] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert len(list(_parts([1], 4))) == 4
