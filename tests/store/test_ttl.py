"""Time to live: the closed form against brute force, and what a store relies on."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkvshare.card.errors import QKVShareError
from qkvshare.store.ttl import Ttl, Wait, curve

# Whole numbers, so that a fine grid contains every duration.
durations = st.lists(st.integers(0, 40) | st.just(math.inf), min_size=1, max_size=20)
some = st.integers(1, 300).map(float)
chances = st.sampled_from([0.0, 0.25, 0.5, 1.0])


def gain(seen, benefit, cost, returns, until):
    """The formula as it is written."""
    seen = np.array(seen, float)
    waited = returns * np.minimum(seen, until).mean() + (1 - returns) * until
    return returns * (seen <= until).mean() * benefit - cost * waited


def wait(seconds=1.0, began=0.0, saved_ms=1000.0, size=10**6):
    return Wait(began, seconds, saved_ms, size)


def best_ttl(seen, benefit, cost, returns=1.0):
    found = curve(tuple(seen), returns)
    return float(found.best(np.array([benefit]), np.array([cost]))[0])


def observed(policy, tool, wait):
    return replace(policy, waits={**policy.waits, tool: (*policy.waits.get(tool, ()), wait)})


def taught(seen, policy=None, tool="shell"):
    policy = policy or Ttl(enough=1)
    for number, seconds in enumerate(seen):
        policy = observed(policy, tool, wait(float(seconds), float(number)))
    return policy


class TestBest:
    @given(durations, some, some, chances)
    def test_nothing_on_a_fine_grid_is_better(self, seen, benefit, cost, returns):
        found = best_ttl(seen, benefit, cost, returns)
        most = max(gain(seen, benefit, cost, returns, at / 4) for at in range(4 * 41))
        assert gain(seen, benefit, cost, returns, found) == pytest.approx(most, abs=1e-9)

    @given(durations, some, some, some, chances)
    def test_grows_with_the_benefit_and_falls_with_the_cost(
        self, seen, benefit, more, cost, returns
    ):
        found = best_ttl(seen, benefit, cost, returns)
        assert best_ttl(seen, benefit + more, cost, returns) >= found
        assert best_ttl(seen, benefit, cost + more, returns) <= found

    @given(durations, some, st.sampled_from([0.0, 0.5, 0.99]))
    def test_is_0_where_the_soonest_return_costs_more_than_it_saves(self, seen, cost, share):
        benefit = share * cost * min(*seen, 1e6)
        assert best_ttl(seen, benefit, cost) == 0

    @given(durations, some, some, chances, st.sampled_from([0.125, 0.5, 4.0, 64.0]))
    def test_units_do_not_matter(self, seen, benefit, cost, returns, scale):
        found = best_ttl(seen, benefit, cost, returns)
        assert best_ttl(seen, benefit * scale, cost * scale, returns) == found
        longer = best_ttl([scale * at for at in seen], benefit, cost / scale, returns)
        assert longer == scale * found

    @given(durations, some, some)
    def test_half_a_chance_is_as_many_more_who_never_come(self, seen, benefit, cost):
        padded = [*seen, *[math.inf] * len(seen)]
        assert best_ttl(seen, benefit, cost, 0.5) == best_ttl(padded, benefit, cost)

    @given(durations, some)
    def test_where_room_is_free_the_longest_return_is_waited_for(self, seen, benefit):
        finite = [at for at in seen if at < math.inf]
        assert best_ttl(seen, benefit, 0) == max(finite, default=0)

    def test_nothing_seen_nothing_held(self):
        assert best_ttl([], 1000, 1) == 0

    @pytest.mark.parametrize("seen", [[-1.0], [1.0, math.nan]])
    def test_no_duration_below_0(self, seen):
        with pytest.raises(QKVShareError, match="none below 0"):
            best_ttl(seen, 1, 1)

    def test_no_chance_above_1(self):
        with pytest.raises(QKVShareError, match="chance"):
            best_ttl([1.0], 1, 1, returns=1.5)


class TestPolicy:
    def test_one_tool_at_a_time(self):
        policy = taught([1] * 9, taught([100] * 9, Ttl(price=1e-6), "build"), "read")
        assert policy.ttl("read", 1000, 10**6) == 1
        assert policy.ttl("build", 1000, 10**6) == 100

    def test_a_tool_seen_too_little_is_taken_for_all(self):
        policy = taught([7] * 8, Ttl(price=1e-6))
        assert policy.ttl("new", 1000, 10**6) == 7
        assert taught([50], policy, "new").ttl("new", 10**5, 10**6) == 50
        assert taught([50], policy, "new").ttl("new", 10, 10**6) == 7

    def test_before_anything_is_seen_until_it_has_cost_what_it_saves(self):
        assert Ttl(price=1e-6).ttl("new", 1000, 10**6) == pytest.approx(1000)
        assert Ttl(price=1e-6).ttl("new", 1000, 2 * 10**6) == pytest.approx(500)

    def test_in_the_background_a_card_is_held_no_longer(self):
        policy = taught([1, 5, 20, 60, math.inf], Ttl(price=3e-5, enough=1))
        here = policy.ttl("shell", 1000, 10**6, state="foreground")
        assert policy.ttl("shell", 1000, 10**6, state="background") < here

    def test_a_card_that_saves_nothing_is_not_held(self):
        assert Ttl().ttl("shell", 0, 10**6) == 0
        assert taught([1] * 9, Ttl(price=1e-6)).ttl("shell", -5, 10**6) == 0


class TestPrice:
    @staticmethod
    def busy(seed=0, calls=200):
        rng, policy = np.random.default_rng(seed), Ttl()
        for number in range(calls):
            tool = ("read", "shell", "user")[number % 3]
            seconds = rng.lognormal(("read", "shell", "user").index(tool) * 2, 1)
            if tool == "user" and rng.random() < 0.5:
                seconds = math.inf
            size = int(rng.integers(6, 47)) * 10**6
            policy = observed(policy, tool, Wait(float(number), seconds, size / 2000, size))
        return policy

    @staticmethod
    def held(policy, now):
        """Bytes on average, each tool over the time its waits came in."""
        total = 0.0
        for tool, waits in policy.waits.items():
            area = sum(
                at.bytes * min(at.seconds, policy.ttl(tool, at.saved_ms, at.bytes)) for at in waits
            )
            total += area / (now - waits[0].began)
        return total

    def test_at_the_price_the_cards_fit_and_no_price_is_asked_without_need(self):
        policy, before = self.busy(), math.inf
        for limit in (10**12, 4 * 10**8, 10**8, 10**7):
            priced = policy.priced(limit, 200.0)
            if limit == 10**12:
                assert priced.price == 0
                assert priced.ttl("user", 1000, 10**6) == math.inf
                continue
            assert self.held(priced, 200.0) <= limit
            assert self.held(Ttl(policy.waits, priced.price * 0.9), 200.0) <= before
            assert priced.price > 0
            before = self.held(priced, 200.0)

    def test_the_price_is_the_least_at_which_they_fit(self):
        priced = self.busy().priced(10**8, 200.0)
        assert self.held(Ttl(priced.waits, priced.price * 0.99), 200.0) > 10**8

    def test_without_waits_room_is_free(self):
        assert Ttl().priced(10**6, 5.0).price == 0
