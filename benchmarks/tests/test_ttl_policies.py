"""What a card of an agent that waits is worth holding: the index against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.results.ttl_policies import observed, rate, worth
from qkvshare.store.ttl import Ttl, Wait

# Whole numbers, so that ages can be durations.
durations = st.lists(st.integers(0, 40) | st.just(math.inf), min_size=1, max_size=20)
some = st.integers(1, 300).map(float)
chances = st.sampled_from([0.0, 0.25, 0.5, 1.0])


def taught(seen, policy=None):
    policy = policy or Ttl(enough=1)
    for number, seconds in enumerate(seen):
        policy = observed(policy, "shell", Wait(float(number), float(seconds), 1000.0, 10**6))
    return policy


@given(durations, chances, st.integers(0, 20))
def test_is_the_best_return_on_holding_from_here(seen, returns, pick):
    """At an age that is a duration: the conditional ratio, by its definition."""
    ages = [0, *(at for at in seen if at < math.inf)]
    age, seen = ages[pick % len(ages)], np.array(seen, float)
    ratios = [0.0]
    for until in seen[(seen > age) & np.isfinite(seen)]:
        back = returns * ((seen > age) & (seen <= until)).sum()
        gone = returns * (seen <= age).sum()
        spans = np.minimum(seen[seen > age], until) - age
        held = returns * spans.sum() + (1 - returns) * len(seen) * (until - age)
        assert gone + back <= len(seen)
        ratios.append(back / held)
    found = rate(tuple(seen), returns, np.array([float(age)]))
    assert found[0] == pytest.approx(max(ratios))


@given(durations, some, some, st.integers(0, 40))
def test_a_card_expires_when_its_worth_falls_to_the_price(seen, saved, price, age):
    policy = Ttl(taught(seen).waits, price=price / 1e6, enough=1)
    until = policy.ttl("shell", saved, 10**6)
    here = worth(policy, "shell", saved, 10**6, age)[0]
    if age < until:
        assert here > policy.price * (1 - 1e-9)
    assert worth(policy, "shell", saved, 10**6, until)[0] <= policy.price * (1 + 1e-9)


def test_of_many_cards_at_once():
    policy = taught([1, 2, 30])
    ages = [0.0, 5.0, 31.0]
    each = [worth(policy, "shell", 900, 10**6, age)[0] for age in ages]
    assert worth(policy, "shell", [900] * 3, [10**6] * 3, ages).tolist() == each
    assert each[0] > each[1] > each[2] == 0


def test_half_the_bytes_are_worth_twice():
    policy = taught([1, 2, 30])
    whole, half = worth(policy, "shell", [900, 900], [2 * 10**6, 10**6], [0, 0])
    assert half == 2 * whole


def test_forgets_the_oldest():
    policy = taught(range(10), Ttl(last=3))
    assert [wait.seconds for wait in policy.waits["shell"]] == [7, 8, 9]


def test_in_the_background_a_card_goes_first():
    policy = taught([1, 5, 20, 60, math.inf], Ttl(price=3e-5, enough=1))
    here, behind = (
        worth(policy, "shell", 1000, 10**6, 0, state)[0] for state in ("foreground", "background")
    )
    assert here > behind
