"""Trimming: smaller by what was dropped, and otherwise the same card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qkvshare import CacheCard, Transform, trim
from qkvshare.card.errors import BudgetError, CardDigestError
from qkvshare.codecs import Packed, decode_runs

from ..cards import make_card
from ..profiles import made_up_profile

RUNS = (600, 80)


def refined(refinements: int) -> CacheCard:
    codec = replace(Transform.of(made_up_profile(2, apart=True)), refinements=refinements)
    return make_card(codec.at(codec.basis.reference + 64), RUNS)


def parts(card: CacheCard) -> list[torch.Tensor]:
    return [
        part
        for segment in range(len(RUNS))
        for layer in decode_runs(card)[segment]
        for part in (layer.keys, layer.values)
    ]


def error(card: CacheCard, exact: CacheCard) -> float:
    pairs = zip(parts(card), parts(exact), strict=True)
    return sum((x - y).square().sum().item() for x, y in pairs)


def test_every_budget_down_to_the_base_is_met(tmp_path: Path) -> None:
    exact, card, base = make_card(runs=RUNS), refined(2), refined(0)
    before, sizes = -1.0, set()
    for budget in torch.linspace(card.bits_per_value, base.bits_per_value + 0.1, 16).tolist():
        smaller = trim(card, budget)
        assert smaller.bits_per_value <= budget
        smaller = CacheCard.load(smaller.save(tmp_path / "card"))
        found = error(smaller, exact)
        assert found >= before
        before = found
        sizes.add(smaller.nbytes)
    assert len(sizes) >= 4
    for one, other in zip(parts(trim(card, base.bits_per_value + 0.1)), parts(base), strict=True):
        assert torch.equal(one, other)


def test_a_trimmed_card_says_what_it_is() -> None:
    card = refined(2)
    smaller = trim(card, card.bits_per_value - 0.1)
    assert smaller.manifest.lineage[-1].parent == card.digest
    assert smaller.manifest.lineage[-1].tokens_added == 0
    assert smaller.manifest.identity == card.manifest.identity
    assert (smaller.token_ids == card.token_ids).all()
    assert smaller.manifest.segments[0].codec == card.manifest.segments[0].codec
    again = trim(smaller, smaller.bits_per_value - 0.1)
    assert again.manifest.lineage[-1].parent == smaller.digest
    assert again.nbytes < smaller.nbytes < card.nbytes


def test_a_card_that_fits_is_left_alone() -> None:
    card = refined(1)
    assert trim(card, card.bits_per_value) is card


def test_what_cannot_be_trimmed_is_refused_with_the_least() -> None:
    card = refined(1)
    with pytest.raises(BudgetError, match=r"without its 4 refinements it has \d+\.\d{3}"):
        trim(card, 0.5)
    with pytest.raises(BudgetError, match="without its 0 refinements"):
        trim(make_card(Packed()), 0.5)


def test_a_damaged_card_is_not_trimmed() -> None:
    card = refined(1)
    damaged = {name: array.copy() for name, array in card.tensors.items()}
    damaged["kv.0001.0000"][-1] ^= 1
    with pytest.raises(CardDigestError):
        trim(CacheCard(card.manifest, damaged), card.bits_per_value - 0.1)
