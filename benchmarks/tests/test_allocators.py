"""One matrix for all allocators, of this package and of ours."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.allocators import RandomAllocator, RecencyAllocator, Salient, UniformAllocator
from benchmarks.features import Features
from benchmarks.learned import ChunkRouter, Controller, Learned
from benchmarks.training import train
from qkvshare.allocation import Lagrangian, find_allocator, make_allocator
from qkvshare.card.errors import BudgetError, CodecError, ProfileError
from qkvshare.codecs import Allocator, Demand, Energy, Packed, Shape
from qkvshare.profile import Profile
from tests.test_allocation import make_demand, spent

HIDDEN = 6


def make_profile() -> Profile:
    """Both networks, fitted to the sign of the first of their inputs."""
    inputs = torch.randn(512, HIDDEN, generator=torch.Generator().manual_seed(0))
    labels = (inputs[:, 0] > 0).long()
    arrays = train("controller", inputs[:, :4], labels, (8,), 4)
    return Profile("0" * 64, arrays | train("chunk-router", inputs, labels, (8,), 3))


PROFILE = make_profile()
ALLOCATORS_UNDER_TEST: list[Allocator] = [
    Lagrangian(),
    Lagrangian(floor=0.0, share=1.0),
    Lagrangian(share=0.0),
    UniformAllocator(),
    RandomAllocator(),
    RecencyAllocator(),
    Salient(),
    Controller(PROFILE),
    ChunkRouter(profile=PROFILE, chunk=16),
]


def made_up_features(_: object, demand: Demand) -> Features:
    """Random ones, the same for the same demand."""
    assert demand.ids is not None
    generator = torch.Generator().manual_seed(int(demand.ids[0]))
    hidden = torch.randn(len(demand.ids), HIDDEN, generator=generator)
    return Features(hidden[:, :4], hidden)


@pytest.fixture(autouse=True, scope="module")
def _features_without_a_model() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learned, "features", made_up_features)
        yield


@pytest.mark.parametrize("allocator", ALLOCATORS_UNDER_TEST, ids=str)
@settings(max_examples=30)
@given(
    seed=st.integers(0, 99),
    tokens=st.lists(st.integers(1, 90), min_size=1, max_size=4),
    rate=st.floats(0.3, 8),
)
def test_budget_is_met(allocator: Allocator, seed: int, tokens: list[int], rate: float) -> None:
    """Never more; never less than one row's step short, but for rows at the widest tier."""
    shapes = [Shape(2, count, 64, 64) for count in tokens]
    demand = make_demand(seed, shapes)
    budget = int(rate * sum(2 * 2 * 64 * count for count in tokens))
    found = spent(demand, allocator.allocate(demand, budget))
    assert budget - 2 * 64 * 8 < found <= budget or found == 8 * 2 * 2 * 64 * sum(tokens)


@pytest.mark.parametrize("allocator", ALLOCATORS_UNDER_TEST, ids=str)
def test_sinks_and_the_impossible(allocator: Allocator) -> None:
    demand = make_demand(0, [Shape(2, 100, 64, 64)], sinks=4)
    least = 2 * 2 * 4 * 64 * 8
    bits = allocator.allocate(demand, least + 5000)[0]
    assert (bits.keys[:, :4] == 8).all()
    assert (bits.values[:, :4] == 8).all()
    with pytest.raises(BudgetError, match=f"fewer than the {least}"):
        allocator.allocate(demand, least - 1)


def test_uniform_is_uniform() -> None:
    demand = make_demand(1, [Shape(2, 100, 64, 64), Shape(2, 40, 64, 64)])
    for rate in (2.0, 2.3, 3.9):
        bits = UniformAllocator().allocate(demand, int(rate * 2 * 2 * 64 * 140))
        for layer in bits:
            assert set(layer.keys.unique().tolist()) <= {int(rate), int(rate) + 1}
            assert torch.equal(layer.keys[0], layer.keys[1])
        wide = (bits[0].keys[0] > int(rate)).float()
        assert (wide[:50].mean() - wide[50:].mean()).abs() < 0.1  # evenly over the context


def test_salience_moves_bits() -> None:
    shape = Shape(1, 100, 64, 64)
    even = Energy(torch.ones(1, 100), torch.ones(1, 100))
    salience = torch.ones(1, 100)
    salience[0, 50:60] = 30
    demand = Demand(Packed(), [shape], [even], [salience], 0)
    for allocator in (Lagrangian(), Salient(ratio=0.1)):
        (bits,) = allocator.allocate(demand, 2 * 100 * 64 * 3)
        assert bits.keys[0, 50:60].float().mean() > bits.keys[0].float().mean() + 0.5


def test_names() -> None:
    assert {at.name for at in ALLOCATORS_UNDER_TEST} == {
        Lagrangian.name,
        *sorted(entry_points(group="qkvshare.allocators").names),
    }
    assert find_allocator("random") is RandomAllocator
    with pytest.raises(CodecError, match=r"no allocator 'best'; known: chunk-router, controller"):
        find_allocator("best")


def test_controller_gives_the_class_it_learned_more_bits() -> None:
    demand = make_demand(0, [Shape(2, 300, 64, 64)])
    (layer,) = Controller(PROFILE).allocate(demand, 3 * 2 * 2 * 300 * 64)
    first = made_up_features(PROFILE, demand).signals[:, 0]
    assert layer.keys[:, first > 0.5].float().mean() > layer.keys[:, first < -0.5].float().mean()


def test_chunks_are_decided_as_one_and_the_first_stays_exact() -> None:
    demand = make_demand(0, [Shape(2, 160, 64, 64)], sinks=2)
    (layer,) = ChunkRouter(profile=PROFILE, chunk=16).allocate(demand, 3 * 2 * 2 * 160 * 64)
    assert (layer.keys[:, :16] == 8).all()
    for chunk in torch.split(layer.keys, 16, dim=1)[1:]:
        assert int(chunk.max()) - int(chunk.min()) <= 1


def test_learned_allocators_need_a_profile_that_fits() -> None:
    demand = make_demand(0, [Shape(1, 20, 64, 64)])
    with pytest.raises(ProfileError, match="Run python -m benchmarks train"):
        make_allocator("controller").allocate(demand, 9999)
    strange = Profile("0" * 64, {"controller.mean": PROFILE.arrays["chunk-router.mean"]})
    with pytest.raises(ProfileError, match="has no 'controller' for inputs of 4"):
        make_allocator("controller", strange).allocate(demand, 9999)
    with pytest.raises(ProfileError, match="calibrated with weights 000000000000"):
        PROFILE.require("f" * 64)


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.pop("controller.0.bias"),
        lambda arrays: arrays.pop("controller.deviation"),
        lambda arrays: arrays.update({"controller.1.bias": np.zeros(3, np.float32)}),
        lambda arrays: arrays.update({"controller.0.weight": np.zeros((5, 9), np.float32)}),
        lambda arrays: arrays.update({"controller.0.weight": np.zeros((5, 4), np.int32)}),
        lambda arrays: arrays.update({"controller.mean": np.full(4, np.nan, np.float32)}),
    ],
)
def test_network_that_cannot_be(change: Any) -> None:
    sizes = {"mean": 4, "deviation": 4, "0.weight": (5, 4), "0.bias": 5, "1.weight": (4, 5)}
    arrays = {
        f"controller.{k}": np.ones(of, np.float32) for k, of in (sizes | {"1.bias": 4}).items()
    }
    demand = make_demand(0, [Shape(1, 20, 64, 64)])
    change(arrays)
    with pytest.raises(ProfileError, match="has no 'controller'"):
        make_allocator("controller", Profile("1" * 64, arrays)).allocate(demand, 9999)
