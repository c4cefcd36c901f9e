"""The process's own high-water mark, set back for each system."""

import pytest

from safelens.evaluate import memory
from safelens.evaluate.memory import MemoryMeter, PeakMemory


def test_a_peak_is_seen_after_it_is_gone_and_forgotten_by_the_next_meter():
    meter = MemoryMeter()
    before = meter.read().host_bytes
    filled = b"\x01" * 200_000_000
    assert filled[-1] == 1
    del filled
    assert meter.read().host_bytes - before == pytest.approx(200e6, rel=0.1)
    assert MemoryMeter().read().host_bytes < before + 50e6


def test_where_the_mark_cannot_be_set_nothing_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_PROCESS", tmp_path / "none")
    assert MemoryMeter().read() == PeakMemory()


def test_the_larger_of_each_that_was_measured():
    one, other = PeakMemory(host_bytes=3), PeakMemory(host_bytes=2, gpu_bytes=5)
    assert one.or_more(other) == other.or_more(one) == PeakMemory(host_bytes=3, gpu_bytes=5)
    assert PeakMemory().or_more(PeakMemory()) == PeakMemory()
