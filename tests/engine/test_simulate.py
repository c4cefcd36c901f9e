"""Against the formulas of queueing theory, which share nothing with the simulation."""

import math

import numpy as np
import pytest

from safelens.engine.simulate import by_the_hour, poisson, simulate

N = 200_000
NEVER = np.full(N, np.nan)
AT_ONCE = np.zeros(N)
"""Decoding that takes no time."""


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def erlang_c(load, servers):
    """Probability that a customer of an M/M/c queue waits (Erlang's C formula); load is in erlangs."""
    terms = [load**k / math.factorial(k) for k in range(servers)]
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    return last / (sum(terms) + last)


def wait_mmc(rate, seconds, servers):
    """Mean wait of an M/M/c queue, seconds."""
    load = rate * seconds
    return erlang_c(load, servers) * seconds / (servers - load)


@pytest.mark.parametrize(("servers", "busy"), [(1, 0.5), (1, 0.8), (4, 0.8), (20, 0.8)])
def test_mmc_waits_as_erlang_says(rng, servers, busy):
    seconds, rate = 2.0, servers * busy / 2.0
    waits = []
    for _ in range(4):  # waits of neighbours are alike, so one run tells less than its length
        found = simulate(
            poisson(rate, N, rng),
            AT_ONCE,
            rng.exponential(seconds, N),
            NEVER,
            screen=servers,
            deliberate=1,
        )
        waits.append(found.delays.mean() - seconds)
        assert found.screen_busy == pytest.approx(busy, rel=0.02)
        assert found.deliberate_busy == 0
    assert np.mean(waits) == pytest.approx(wait_mmc(rate, seconds, servers), rel=0.08)


@pytest.mark.parametrize("busy", [0.3, 0.7, 0.9])
def test_md1_waits_as_pollaczek_and_khinchine_say(rng, busy):
    found = simulate(poisson(busy, N, rng), AT_ONCE, np.ones(N), NEVER, screen=1, deliberate=1)
    assert found.delays.mean() - 1 == pytest.approx(busy / (2 * (1 - busy)), rel=0.06)


def test_md2_waits_as_cosmetatos_says(rng):
    """An approximation of M/D/c from M/M/c, good to a few percent."""
    busy, servers = 0.8, 2
    found = simulate(poisson(busy * 2, N, rng), AT_ONCE, np.ones(N), NEVER, screen=2, deliberate=1)
    mm2 = wait_mmc(busy * servers, 1.0, servers)
    correction = (
        (1 - busy) * (servers - 1) * (math.sqrt(4 + 5 * servers) - 2) / (16 * busy * servers)
    )
    assert found.delays.mean() - 1 == pytest.approx(mm2 * (1 + correction) / 2, rel=0.06)


def test_both_stages_wait_as_two_queues_that_know_nothing_of_each_other(rng):
    """Burke: what leaves an M/M/c queue is a Poisson process, and so is a random part of it."""
    rate, escalated = 3.0, 0.25
    screen_s, deliberate_s = rng.exponential(0.5, N), rng.exponential(4.0, N)
    unsure = rng.random(N) < escalated
    found = simulate(
        poisson(rate, N, rng),
        AT_ONCE,
        screen_s,
        np.where(unsure, deliberate_s, np.nan),
        screen=2,
        deliberate=4,
    )
    first = 0.5 + wait_mmc(rate, 0.5, 2)
    second = 4.0 + wait_mmc(rate * escalated, 4.0, 4)
    assert found.delays[~unsure].mean() == pytest.approx(first, rel=0.05)
    assert found.delays[unsure].mean() == pytest.approx(first + second, rel=0.05)
    assert found.screen_busy == pytest.approx(0.75, rel=0.02)
    assert found.deliberate_busy == pytest.approx(0.75, rel=0.03)


def test_decoding_and_model_of_a_replica_wait_as_two_queues(rng):
    """Burke again; the model never has a video that is not decoded, and one is decoded while it works."""
    rate = 1.2
    decode_s, screen_s = rng.exponential(0.5, N), rng.exponential(1.0, N)
    found = simulate(poisson(rate, N, rng), decode_s, screen_s, NEVER, screen=2, deliberate=1)
    wanted = 0.5 + wait_mmc(rate, 0.5, 2) + 1.0 + wait_mmc(rate, 1.0, 2)
    assert found.delays.mean() == pytest.approx(wanted, rel=0.05)
    assert found.screen_busy == pytest.approx(0.6, rel=0.02)


@pytest.mark.parametrize(("decode", "screen"), [(1.0, 3.0), (3.0, 1.0)])
def test_a_replica_takes_as_long_as_the_slower_of_decoding_and_model(decode, screen):
    arrivals, none = np.zeros(1000), np.full(1000, np.nan)
    # In turns long and short: what a video takes is not the longer of its own two.
    turns = np.tile([0.5, 1.5], 500)
    found = simulate(arrivals, decode * turns, screen * turns[::-1], none, screen=1, deliberate=1)
    assert found.end == pytest.approx(3000, rel=0.01)
    assert found.screen_busy == pytest.approx(1.0, rel=0.01)


def test_a_backlog_is_done_when_the_slower_stage_is():
    arrivals, decoding = np.zeros(1000), np.full(1000, 0.5)
    none = np.full(1000, np.nan)
    found = simulate(arrivals, decoding, np.ones(1000), none, screen=10, deliberate=1)
    assert (found.end, found.screen_busy) == (100.5, pytest.approx(100 / 100.5))
    found = simulate(
        arrivals, decoding, np.ones(1000), np.full(1000, 2.0), screen=10, deliberate=10
    )
    assert found.end == 201.5
    assert found.deliberate_busy == pytest.approx(1.0)


def test_arrivals_by_the_hour(rng):
    found = by_the_hour([1000, 0, 4000], rng)
    counts, _ = np.histogram(found, bins=[0, 3600, 7200, 10800])
    assert counts == pytest.approx([1000, 0, 4000], rel=0.1)
    assert np.all(np.diff(found) >= 0)


def test_what_cannot_be_simulated():
    with pytest.raises(ValueError, match="no videos"):
        simulate(*[np.zeros(0)] * 4, screen=1, deliberate=1)
    with pytest.raises(ValueError, match="0 of S2: expected 1 or more"):
        simulate(*[np.zeros(1)] * 4, screen=1, deliberate=0)
