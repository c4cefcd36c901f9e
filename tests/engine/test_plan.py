import numpy as np
import pytest
from test_verdicts import failed, good

from safelens.engine.plan import Measured, PlanError, Price, plan_backlog, plan_stream
from safelens.verdict import Verdict

EVEN = Measured(np.array([0.2]), np.array([0.5]), np.array([4.0]), 0.25)


def test_seconds_come_from_the_verdicts_of_a_run():
    a = {"decode": 0.4, "screen": 0.1, "evidence": 0.2}
    b = {"decode": 0.1, "screen": 0.3, "take_up": 0.2, "caption": 1.0, "deliberate": 2.0}
    found = [
        Verdict.from_json(good("a", "a" * 64, timing=a)),
        Verdict.from_json(good("b", "b" * 64, timing=b, decided_by="deliberate")),
        Verdict.from_json(failed("c")),
    ]
    measured = Measured.of(found)
    assert measured.decode_s.tolist() == pytest.approx([0.4, 0.1])
    assert measured.screen_s.tolist() == pytest.approx([0.3, 0.3])
    assert measured.deliberate_s.tolist() == pytest.approx([3.2])
    assert measured.escalated == 0.5
    assert Measured.of(found, decoders=4).decode_s.tolist() == pytest.approx([0.1, 0.025])
    with pytest.raises(PlanError, match="no video of these verdicts was screened"):
        Measured.of(found[2:])


def test_decoding_and_model_are_drawn_of_one_video():
    measured = Measured(np.arange(9.0), 10 * np.arange(9.0), np.array([1.0]), 0.5)
    decode_s, screen_s, deliberate_s = measured.draw(1000, np.random.default_rng(3))
    assert np.array_equal(screen_s, 10 * decode_s)
    assert len(set(decode_s)) == 9
    assert np.isnan(deliberate_s).mean() == pytest.approx(0.5, abs=0.05)


def test_where_decoding_is_slower_replicas_are_as_many_as_it_needs():
    slow = Measured(np.array([2.0]), np.array([0.5]), np.array([4.0]), 0.25)
    plan = plan_backlog(slow, Price(2.0), videos=10_000, hours=1.0)
    assert plan.screen == pytest.approx(6, abs=1)  # 20,000 s in 3,600 s


def test_a_backlog_takes_as_many_replicas_as_there_is_work():
    plan = plan_backlog(EVEN, Price(2.0, 0.5, 1.0), videos=100_000, hours=2.0)
    # 50,000 s of S1 and about 100,000 s of S2, in 7,200 s
    assert plan.screen == pytest.approx(7, abs=1)
    assert plan.deliberate == pytest.approx(14, abs=1)
    assert plan.hours <= 2.0
    assert plan.gpus == np.ceil(plan.screen / 2 + plan.deliberate)
    assert plan.cost == pytest.approx(plan.gpus * plan.hours * 2.0)
    assert min(plan.screen_busy, plan.deliberate_busy) > 0.8


def test_ten_million_videos_are_as_many_times_a_part_of_them():
    small = plan_backlog(EVEN, Price(2.0), videos=300_000, hours=1.0)
    large = plan_backlog(EVEN, Price(2.0), videos=10_000_000, hours=100 / 3)
    assert (large.screen, large.deliberate) == (small.screen, small.deliberate)
    assert large.cost == pytest.approx(small.cost * 100 / 3)


def test_a_stream_is_planned_for_its_peak():
    quiet = plan_stream(EVEN, Price(2.0), curve=[3600] * 3, delay_s=20.0)
    peak = plan_stream(EVEN, Price(2.0), curve=[3600, 14_400, 3600], delay_s=20.0)
    assert quiet.delay_s <= 20.0
    assert peak.delay_s <= 20.0
    # 1 video a second is 0.5 replicas' work of S1 and 1 of S2; 4 at the peak
    assert quiet.screen >= 1
    assert quiet.deliberate >= 2
    assert peak.screen >= 2
    assert peak.deliberate >= 4
    assert peak.cost > quiet.cost
    patient = plan_stream(EVEN, Price(2.0), curve=[3600] * 3, delay_s=200.0)
    assert patient.gpus <= quiet.gpus


def test_no_cheaper_plan_is_good(monkeypatch):
    wanted = {"curve": [7200], "delay_s": 12.0, "share": 0.9}
    price = Price(1.0, 0.5, 1.0)
    plan = plan_stream(EVEN, price, **wanted)
    from safelens.engine.simulate import by_the_hour, simulate

    rng = np.random.default_rng(0)
    arrivals = by_the_hour([7200], rng)
    work = EVEN.draw(len(arrivals), rng)
    good_ones = [
        price.gpus(a, b)
        for a in range(1, 8)
        for b in range(1, 12)
        if np.quantile(simulate(arrivals, *work, screen=a, deliberate=b).delays, 0.9) <= 12.0
    ]
    assert plan.gpus == min(good_ones)


def test_what_cannot_be_planned():
    with pytest.raises(PlanError, match=r"they take 4\.7 s without waiting"):
        plan_stream(EVEN, Price(1.0), curve=[3600], delay_s=1.0)
    with pytest.raises(PlanError, match="expected numbers above 0"):
        plan_backlog(EVEN, Price(1.0), videos=0, hours=1.0)
    with pytest.raises(PlanError, match="expected hours with videos"):
        plan_stream(EVEN, Price(1.0), curve=[0], delay_s=10.0)
