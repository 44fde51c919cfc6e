"""Capture with a codec that spends bits row by row: budgets and probes."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.allocators import Salient, UniformAllocator
from benchmarks.codecs import Uniform
from benchmarks.scorers import KeyNorm
from qkvshare import CacheCard, Transform, capture, capture_cache
from qkvshare.allocation import Ladder, Lagrangian, make_allocator
from qkvshare.card.errors import (
    BudgetError,
    CodecError,
    UnsupportedModelError,
)
from qkvshare.codecs import Allocator, BitMap, Demand, Packed
from qkvshare.hf.capture.live import pick_row
from qkvshare.hf.capture.probe import choose_probes
from qkvshare.hf.capture.reading import read
from qkvshare.hf.capture.salience import look_back, salience
from qkvshare.hf.capture.strategy import with_strategy
from qkvshare.scoring import AttentionScorer

from ..conftest import FAMILIES, greedy, some_ids, tiny_model

CONTEXT, NEW = some_ids(200), some_ids(5, seed=1)


def live_cache(model: Any, ids: list[int]) -> Any:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=True).past_key_values


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("allocator", [Lagrangian(), Salient(), UniformAllocator()], ids=str)
def test_budget_of_the_written_file(family: str, allocator: Any, tmp_path: Path) -> None:
    model = tiny_model(family)
    least = None
    try:
        capture(model, None, CONTEXT, codec=Packed(allocator=allocator), bits=0.1)
    except BudgetError as error:
        least = float(str(error).split("tokens is ")[1].split(",")[0])
    assert least is not None
    # Where windows have forgotten tokens, even the widest tier leaves a large budget unspent.
    most = capture(model, None, CONTEXT, codec=Packed(), bits=99).bits_per_value
    budgets = [at for at in (least + 0.01, least + 0.1, least + 1, least + 3.3) if at < most]
    assert len(budgets) >= 2
    for budget in budgets:
        card = capture(model, None, CONTEXT, codec=Packed(allocator=allocator), bits=budget)
        path = card.save(tmp_path / "card")
        assert budget * 0.98 <= 8 * path.stat().st_size / card.values <= budget
        assert CacheCard.load(path).manifest.segments[0].allocation.allocator == allocator.name
        model(**CacheCard.load(path).inputs(model, new=NEW, new_only=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_wide_enough_is_nearly_exact(family: str) -> None:
    """At 8 bits everywhere; the error of a wrong position or mean would be as large as the keys."""
    model = tiny_model(family)
    cache = live_cache(model, CONTEXT)
    card = capture_cache(model, cache, CONTEXT, codec=Packed(), bits=99)
    back = card.inputs(model, new=NEW)["past_key_values"]
    for ours, theirs in zip(cache.layers, back.layers, strict=True):
        for one, two in ((ours.keys, theirs.keys), (ours.values, theirs.values)):
            assert (one - two).norm() < 0.02 * one.norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_probing_leaves_model_and_cache_as_they_were(family: str) -> None:
    model = tiny_model(family)
    before = model.config._attn_implementation
    cache = live_cache(model, CONTEXT)
    kept = copy.deepcopy(cache)
    capture_cache(model, cache, CONTEXT, codec=Packed(), bits=6)
    assert model.config._attn_implementation == before
    for ours, theirs in zip(cache.layers, kept.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)
        assert ours.get_seq_length() == theirs.get_seq_length()


@pytest.mark.parametrize("family", FAMILIES)
def test_salience_of_probes_behind_is_the_models_attention(family: str) -> None:
    """Against the attention weights that eager attention gives for context and probes."""
    model = tiny_model(family)
    probes = np.array(some_ids(6, seed=3), np.int32)
    state = pick_row(model, live_cache(model, CONTEXT), CONTEXT)
    weights = eager_attention(model, CONTEXT + probes.tolist())
    scorer = AttentionScorer(local=0, shared=0.0)
    state = replace(state, scores={scorer: look_back(state, scorer, probes)})
    for number, score in enumerate(salience(state, scorer)):
        kv_heads, held = score.shape
        seen = weights[number][0, :, -6:, len(CONTEXT) - held : len(CONTEXT)]
        window = state.layers[number].window or 1000
        age = torch.arange(held, 0, -1) + torch.arange(6)[:, None]  # from probe back to token
        visible = (age < window).sum(0).clamp(min=1)
        expected = seen.sum(1).view(kv_heads, -1, held).sum(1) / visible
        assert torch.allclose(score, share_of_head(expected), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_salience_of_a_context_read_for_the_card_is_the_models_attention(family: str) -> None:
    model = tiny_model(family)
    scorer = AttentionScorer(count=16, recent=0, local=0, shared=0.0)
    state = read(model, CONTEXT, [scorer])
    weights = eager_attention(model, CONTEXT)
    chosen = scorer.probes(len(CONTEXT))
    for number, score in enumerate(salience(state, scorer)):
        kv_heads, held = score.shape
        seen = weights[number][0][:, chosen]
        age = chosen[:, None] - torch.arange(len(CONTEXT))
        visible = (age >= 0) & (age < (state.layers[number].window or 1000))
        mean = seen.sum(1).view(kv_heads, -1, len(CONTEXT)).sum(1) / visible.sum(0).clamp(min=1)
        expected = mean[:, len(CONTEXT) - held :]
        assert torch.allclose(score, share_of_head(expected), atol=1e-3, rtol=1e-3)


def share_of_head(score: torch.Tensor) -> torch.Tensor:
    return score / score.mean(1, keepdim=True)


def eager_attention(model: Any, ids: list[int]) -> Any:
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    return eager(input_ids=torch.tensor([ids]), output_attentions=True).attentions


@pytest.mark.parametrize("family", FAMILIES)
def test_watching_a_context_being_read_changes_nothing(family: str) -> None:
    model = tiny_model(family)
    plain, watched = read(model, CONTEXT), read(model, CONTEXT, [AttentionScorer()])
    assert not plain.scores
    assert watched.scores
    for one, two in zip(plain.cached, watched.cached, strict=True):
        assert torch.equal(one.keys, two.keys)
        assert torch.equal(one.values, two.values)


def test_attention_that_is_not_sdpa_is_left_alone_and_looked_at_behind() -> None:
    model = tiny_model()
    model.set_attn_implementation("eager")
    state = read(model, CONTEXT, [AttentionScorer()])
    assert not state.scores
    assert len(salience(state, AttentionScorer())) == 3


def test_a_live_cache_is_probed_by_a_sample_of_its_context() -> None:
    ids = np.arange(1000, dtype=np.int32)
    sample = choose_probes(ids)
    assert len(sample) == 32
    assert sample[-1] == 999
    assert np.array_equal(choose_probes(ids[:20]), ids[:20])


def test_strategies_need_a_codec_with_tiers() -> None:
    for wrong in ({"scorer": KeyNorm()}, {"allocator": UniformAllocator()}):
        with pytest.raises(CodecError, match="'uniform' takes no (scorer|allocator)"):
            with_strategy(Uniform(), **wrong)
    with pytest.raises(CodecError, match="'transform' takes no allocator"):
        with_strategy(Transform(), allocator=UniformAllocator())
    assert with_strategy(Packed(), KeyNorm()) == Packed(scorer=KeyNorm())
    assert with_strategy(Uniform()) == Uniform()


def test_a_scorer_that_nobody_asks_is_refused() -> None:
    with pytest.raises(CodecError, match="'uniform' asks no scorer"):
        capture(tiny_model(), None, CONTEXT, codec=Packed(KeyNorm(), UniformAllocator()))


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("codec", [Packed(), Uniform()], ids=str)
def test_budgets_that_are_none(codec: Any, budget: float) -> None:
    with pytest.raises(BudgetError, match="expected a number above 0"):
        capture(tiny_model(), None, CONTEXT, codec=codec, bits=budget)


def test_model_that_cannot_be_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    monkeypatch.setattr(model, "set_attn_implementation", lambda _: None)
    with pytest.warns(UserWarning, match="all tokens count alike.*lets 0 of its 3 attention"):
        card = capture(model, None, CONTEXT)
    allocation = card.manifest.segments[0].allocation
    assert (allocation.scorer, allocation.allocator) == (None, "lagrangian:share=0")
    with pytest.raises(UnsupportedModelError, match="lets 0 of its 3 attention layers"):
        capture(model, None, CONTEXT, codec=Packed(scorer=AttentionScorer()))
    capture(model, None, CONTEXT, codec=Packed(allocator=UniformAllocator()))


def test_manifest_says_who_spent() -> None:
    model = tiny_model()
    allocation = capture(model, None, CONTEXT, codec=Packed()).manifest.segments[0].allocation
    assert (allocation.scorer, allocation.allocator, allocation.budget) == (
        "attention",
        "lagrangian",
        None,
    )
    card = capture(model, None, CONTEXT, codec=Packed(allocator=UniformAllocator()), bits=6.5)
    allocation = card.manifest.segments[0].allocation
    assert (allocation.scorer, allocation.allocator, allocation.budget) == (None, "uniform", 6.5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("added", [1, 3, 40])
def test_appending(family: str, added: int) -> None:
    """Old bytes stay; the new tokens get the parent's rate, however few they are."""
    model = tiny_model(family)
    parent = capture(model, None, CONTEXT, codec=Packed(), bits=9)
    more = some_ids(added, seed=5)
    arguments = parent.inputs(model, new=more, new_only=True)
    cache = model(**arguments).past_key_values
    child = capture_cache(model, cache, CONTEXT + more)
    assert len(child.manifest.segments) == 2
    assert child.manifest.segments[0] == parent.manifest.segments[0]
    assert child.manifest.segments[1].codec.name == "packed"
    assert len(greedy(model, 4, **child.inputs(model, new=NEW))) == 4


def append_twice(card: CacheCard, ids: list[int], added: int) -> CacheCard:
    model = tiny_model()
    for seed in (5, 6):
        more = some_ids(added, seed=seed)
        cache = model(**card.inputs(model, new=more, new_only=True)).past_key_values
        ids = ids + more
        card = capture_cache(model, cache, ids, codec=Packed(allocator=allocator_of(card)))
    return card


def allocator_of(card: CacheCard) -> Allocator:
    return make_allocator(card.manifest.segments[0].allocation.allocator)


def test_every_later_segment_has_the_slope_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    slopes: list[int] = []
    at = Ladder.at
    monkeypatch.setattr(Ladder, "at", lambda self, slope: slopes.append(slope) or at(self, slope))
    card = capture(tiny_model(), None, CONTEXT[:150], codec=Packed(), bits=9)
    card = append_twice(card, CONTEXT[:150], 40)
    found = [segment.allocation.slope for segment in card.manifest.segments]
    assert found[0] is not None
    assert found == found[:1] * 3
    assert slopes == found[1:]
    assert all(segment.allocation.budget is None for segment in card.manifest.segments[1:])


def test_an_allocator_without_slopes_goes_on_at_the_rate_last_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    budgets: list[int] = []
    allocate = UniformAllocator.allocate

    def noted(self: UniformAllocator, demand: Demand, budget: int) -> BitMap:
        budgets.append(budget)
        return allocate(self, demand, budget)

    monkeypatch.setattr(UniformAllocator, "allocate", noted)
    codec = Packed(allocator=UniformAllocator())
    card = capture(tiny_model(), None, CONTEXT[:150], codec=codec, bits=9)
    card = append_twice(card, CONTEXT[:150], 40)
    assert {segment.allocation.slope for segment in card.manifest.segments} == {None}
    added = 40 * card.values // card.tokens
    assert budgets[1] == budgets[2]
    assert 7 * added < budgets[1] < 9 * added


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65])
def test_short_contexts(length: int) -> None:
    model = tiny_model()
    card = capture(model, None, CONTEXT[:length], codec=Packed())
    assert len(greedy(model, 4, **card.inputs(model, new=NEW))) == 4
