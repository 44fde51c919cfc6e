"""What composing loses with a model is tried before it is relied upon."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qkvshare import CacheCard, Span, capture, compose
from qkvshare.card.errors import IdentityError, UnsupportedModelError
from qkvshare.hf.compose import trial
from qkvshare.hf.compose.composition import Composition
from qkvshare.hf.compose.repairs import All, First, Repair

from ...conftest import some_ids, tiny_model

BEFORE, CONTEXT, NEW = (some_ids(n, seed=n) for n in (20, 150, 5))


class Broken(Repair):
    """What a model would make of parts that are worth nothing elsewhere."""

    def repair(self, composition: Composition) -> None:
        composition.read()
        for layer in composition.buffers:
            layer.values.mul_(-3)


@pytest.fixture
def sure() -> Any:
    """A model whose predictions depend on what it has read."""
    model = tiny_model(layers=3, seed=5)
    with torch.no_grad():
        model.lm_head.weight.mul_(40)
    return model


@pytest.fixture
def card(sure: Any) -> CacheCard:
    return capture(sure, None, CONTEXT)


def test_the_loss_is_told_once_a_part_is_long_enough(sure: Any, card: CacheCard) -> None:
    assert compose(sure, [BEFORE, Span(card, 5, 60), NEW]).expected_loss is None
    assert compose(sure, [card, Span(card, 5, 60), NEW]).expected_loss is None  # that is exact
    for part in (card, Span(card, 5), Span(card, 5, 60)):  # tried once
        loss = compose(sure, [BEFORE, part, NEW]).expected_loss
        assert loss is not None
        assert 0 < loss < trial._tried[sure].worth / 2


def test_with_everything_anew_nothing_is_lost(
    sure: Any, card: CacheCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "First", All)
    found = compose(sure, [BEFORE, Span(card, 5), NEW])
    assert found.expected_loss == pytest.approx(0, abs=1e-4)


def test_a_model_that_loses_most_of_a_part_is_refused(
    sure: Any, card: CacheCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until a text shows that it does not; a text that is passed is the last that is tried."""
    monkeypatch.setattr(trial, "First", Broken)
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match=r"loses .* behind another prompt.*Capture"):
            compose(sure, [BEFORE, card, NEW])
    for way in (First, Broken):
        monkeypatch.setattr(trial, "First", way)
        assert compose(sure, [BEFORE, card, NEW]).expected_loss is not None


def test_a_card_of_another_model_is_refused_before_anything_is_tried(
    sure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tried(*_: Any) -> None:
        raise AssertionError("the model has read a text of another one")

    monkeypatch.setattr(trial, "_try", tried)
    other = capture(tiny_model(layers=3, seed=6), None, CONTEXT)
    with pytest.raises(IdentityError):
        compose(sure, [BEFORE, other, NEW])


def test_windows_that_forget_the_piece_are_not_tried() -> None:
    """The piece is shorter than half a window; where that is too short, there is no trial."""
    model = tiny_model(layers=2, window=64)
    card = capture(model, None, CONTEXT[:60])
    assert compose(model, [BEFORE[:3], card, NEW]).expected_loss is None
