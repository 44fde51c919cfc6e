"""One matrix for all allocators: a new one adds one line to `ALLOCATORS_UNDER_TEST`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qkvshare.allocators import (
    ALLOCATORS,
    Allocator,
    ChunkRouter,
    Controller,
    Demand,
    Features,
    Lagrangian,
    Random,
    Recency,
    Salient,
    Uniform,
    find_allocator,
    make_allocator,
)
from qkvshare.allocators.learned import train
from qkvshare.card.errors import BudgetError, CodecError, ProfileError
from qkvshare.codecs import Energy, Packed, Shape
from qkvshare.codecs.bits import BitMap
from qkvshare.profile import Profile

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
    Uniform(),
    Random(),
    Recency(),
    Salient(),
    Controller(PROFILE),
    ChunkRouter(profile=PROFILE, chunk=16),
]


def make_demand(seed: int, shapes: list[Shape], sinks: int = 0) -> Demand:
    generator = torch.Generator().manual_seed(seed)

    def draw(at: Shape) -> torch.Tensor:
        return torch.randn(at.kv_heads, at.tokens, generator=generator).exp()

    energy = [Energy(draw(at), draw(at)) for at in shapes]
    tokens = max(at.tokens for at in shapes)
    hidden = torch.randn(tokens, HIDDEN, generator=generator)
    return Demand(
        codec=Packed(),
        shapes=shapes,
        energy=energy,
        salience=[draw(at) for at in shapes],
        sinks=sinks,
        sensitivity=[torch.randn(2, at.kv_heads, generator=generator).exp() for at in shapes],
        features=Features(hidden[:, :4], hidden),
    )


def spent(demand: Demand, bits: BitMap) -> int:
    total = 0
    for at, layer in zip(demand.shapes, bits, strict=True):
        assert layer.keys.shape == layer.values.shape == (at.kv_heads, at.tokens)
        for dim, part in ((at.head_dim, layer.keys), (at.v_head_dim, layer.values)):
            assert set(part.unique().tolist()) <= set(demand.codec.tiers)
            total += sum(demand.codec.row_bits(dim, width) for width in part.flatten().tolist())
    return total


def test_matrix_is_complete() -> None:
    assert {allocator.name for allocator in ALLOCATORS_UNDER_TEST} == set(ALLOCATORS)


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


@settings(max_examples=30)
@given(seed=st.integers(0, 999), rate=st.floats(0.5, 5))
def test_lagrangian_is_the_optimum(seed: int, rate: float) -> None:
    """No allocation of as many bits has less weighted distortion: greedy by slope, row by row."""
    allocator, demand = Lagrangian(), make_demand(seed, [Shape(1, 12, 64, 64)])
    tiers, distortion = demand.codec.tiers, demand.codec.distortion
    budget = int(rate * 2 * 12 * 64)
    assert demand.salience is not None
    assert demand.sensitivity is not None
    energy = torch.stack([demand.energy[0].keys, demand.energy[0].values])
    mean = energy.mean((1, 2), keepdim=True)
    worth = energy / mean * (allocator.floor + allocator.share * demand.salience[0])
    worth *= (demand.sensitivity[0][:, :, None] * mean) ** allocator.sensitivity
    flat = worth.flatten().tolist()

    def cost(bits: list[int]) -> float:
        return sum(w * distortion[tiers.index(b)] for w, b in zip(flat, bits, strict=True))

    (layer,) = allocator.allocate(demand, budget)
    found = [*layer.keys.flatten().tolist(), *layer.values.flatten().tolist()]
    steps = sorted(
        (
            (w * (distortion[t] - distortion[t + 1]) / (tiers[t + 1] - tiers[t]), row, t)
            for row, w in enumerate(flat)
            for t in range(len(tiers) - 1)
        ),
        reverse=True,
    )
    best, left = [0] * len(flat), sum(found)
    for _, row, t in steps:  # slopes fall within a row, so tiers come in order
        if tiers[t + 1] - tiers[t] > left:
            break
        best[row], left = tiers[t + 1], left - (tiers[t + 1] - tiers[t])
    # Worth is rounded to 1/32 octave, and the last bits may go to the next in line.
    assert cost(found) <= cost(best) * 1.03 + max(flat) * 0.01


@settings(max_examples=30)
@given(seed=st.integers(0, 999), rate=st.floats(0.5, 7))
def test_a_slope_is_the_finest_that_fits(seed: int, rate: float) -> None:
    demand = make_demand(seed, [Shape(2, 50, 64, 64), Shape(1, 30, 64, 32)])
    budget = int(rate * (2 * 2 * 50 * 64 + 30 * 96))
    ladder = Lagrangian().ladder(demand)
    slope = ladder.slope(budget)
    assert spent(demand, ladder.at(slope)) <= budget < spent(demand, ladder.at(slope - 1))


@given(slope=st.integers(-(2**15), 2**15 - 1))
def test_any_slope_gives_widths(slope: int) -> None:
    """It comes from a file that somebody else has written."""
    demand = make_demand(0, [Shape(2, 20, 64, 64)])
    assert spent(demand, Lagrangian().ladder(demand).at(slope)) <= 8 * 2 * 2 * 20 * 64


def test_uniform_is_uniform() -> None:
    demand = make_demand(1, [Shape(2, 100, 64, 64), Shape(2, 40, 64, 64)])
    for rate in (2.0, 2.3, 3.9):
        bits = Uniform().allocate(demand, int(rate * 2 * 2 * 64 * 140))
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


def test_sensitivity_moves_bits_between_heads() -> None:
    shapes = [Shape(2, 100, 64, 64)] * 2
    even = Energy(torch.ones(2, 100), torch.ones(2, 100))
    flat = [torch.ones(2, 100)] * 2
    fisher = [torch.ones(2, 2), torch.tensor([[1.0, 256.0], [1.0, 1.0]])]
    demand = Demand(Packed(), shapes, [even, even], flat, 0, fisher)
    bits = Lagrangian().allocate(demand, 8 * 100 * 64 * 3)
    assert bits[1].keys[1].float().mean() >= bits[1].keys[0].float().mean() + 1
    alike = Lagrangian(sensitivity=0).allocate(demand, 8 * 100 * 64 * 3)
    assert {int(part.unique()) for layer in alike for part in (layer.keys, layer.values)} == {3}


def test_names() -> None:
    assert find_allocator("random") is Random
    with pytest.raises(CodecError, match=r"no allocator 'best'; known: chunk-router, controller"):
        find_allocator("best")


def test_controller_gives_the_class_it_learned_more_bits() -> None:
    demand = make_demand(0, [Shape(2, 300, 64, 64)])
    assert demand.features is not None
    (layer,) = Controller(PROFILE).allocate(demand, 3 * 2 * 2 * 300 * 64)
    first = demand.features.signals[:, 0]
    assert layer.keys[:, first > 0.5].float().mean() > layer.keys[:, first < -0.5].float().mean()


def test_chunks_are_decided_as_one_and_the_first_stays_exact() -> None:
    demand = make_demand(0, [Shape(2, 160, 64, 64)], sinks=2)
    (layer,) = ChunkRouter(profile=PROFILE, chunk=16).allocate(demand, 3 * 2 * 2 * 160 * 64)
    assert (layer.keys[:, :16] == 8).all()
    for chunk in torch.split(layer.keys, 16, dim=1)[1:]:
        assert int(chunk.max()) - int(chunk.min()) <= 1


def test_learned_allocators_need_a_profile_that_fits() -> None:
    demand = make_demand(0, [Shape(1, 20, 64, 64)])
    with pytest.raises(ProfileError, match="Run qkvshare calibrate"):
        make_allocator("controller").allocate(demand, 9999)
    strange = Profile("0" * 64, {"controller.mean": PROFILE.arrays["chunk-router.mean"]})
    with pytest.raises(ProfileError, match="has no 'controller' for inputs of 4"):
        make_allocator("controller", strange).allocate(demand, 9999)
    with pytest.raises(ProfileError, match="calibrated with weights 000000000000"):
        PROFILE.require("f" * 64)
