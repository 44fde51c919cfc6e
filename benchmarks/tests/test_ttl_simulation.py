"""The simulation behind docs/results/ttl.md, small."""

from __future__ import annotations

import math

import pytest

from benchmarks.results import ttl
from benchmarks.results.ttl_trace import Times

LIMIT, SEEDS = 128 * 10**6, range(3)


@pytest.fixture(scope="module")
def traces():
    return [ttl.World(4, minutes=8).calls(seed) for seed in SEEDS]


def test_never_holds_more_than_the_limit_and_every_return_has_one_end(traces):
    for make in ttl.POLICIES.values():
        for calls, run in zip(traces, ttl.played(traces, make, LIMIT), strict=True):
            assert run.peak <= LIMIT
            back = [call for call in calls if math.isfinite(call.seconds)]
            assert run.returns == len(back) > 100
            assert run.hits + run.evicted + run.expired + run.refused == run.returns
            least, most = (
                sum(getattr(call, of) for call in back) for of in ("card_ms", "again_ms")
            )
            assert least * (1 - 1e-9) <= run.paid_ms <= most * (1 + 1e-9)


def test_nobody_pays_less_than_who_knows(traces):
    paid = {
        name: sum(run.paid_ms for run in ttl.played(traces, make, LIMIT))
        for name, make in ttl.POLICIES.items()
    }
    assert min(paid, key=paid.__getitem__) == "oracle"
    assert max(paid, key=paid.__getitem__) == "drop always"


def test_with_room_for_all_nothing_is_paid_twice(traces):
    for name in ("keep forever", "LRU", "GDSF", "learned TTL", "least worth", "oracle"):
        runs = ttl.played(traces, ttl.POLICIES[name], 10**12)
        assert all(run.hits == run.returns for run in runs), name


def test_the_same_seed_gives_the_same(traces):
    again = [ttl.World(4, minutes=8).calls(seed) for seed in SEEDS]
    assert again == traces
    assert traces[0] != traces[1]
    learned = ttl.POLICIES["learned TTL, state"]
    assert ttl.played(again, learned, LIMIT) == ttl.played(traces, learned, LIMIT)


def test_reads_the_measured_times():
    short, long = (Times().at(tokens) for tokens in (1024, 8128))
    assert 0 < short[1] < short[0] < long[0]
    assert long[0] / long[1] > short[0] / short[1] > 1
    assert long[2] > short[2] > 10**6
