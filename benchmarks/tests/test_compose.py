"""Composition, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.evals.compose import Outcome, measure_compose, tabulate
from benchmarks.evals.compose_items import DOCUMENTS, make_item
from benchmarks.evals.journal import Journal
from qkvshare import Raw
from tests.conftest import some_ids, tiny_tokenizer

from .test_hops import long_llama

__all__ = ["long_llama"]

FILLER = some_ids(700)


def items() -> list[Any]:
    return [make_item(tiny_tokenizer(), FILLER, number, 70) for number in range(2)]


def test_an_item_has_what_its_questions_ask() -> None:
    tokenizer, (item, other) = tiny_tokenizer(), items()
    said = [tokenizer.decode(one) for one in item.documents]
    for at, (single, double, flip) in enumerate(
        zip(*(item.questions[kind::3] for kind in range(3)), strict=True)
    ):
        assert [single.kind, double.kind, flip.kind] == ["single", "double", "flip"]
        answer = tokenizer.decode(single.answer).strip()
        assert [answer in text for text in said] == [n == at for n in range(DOCUMENTS)]
        # The code of a double question stands in another document than its first half.
        code = tokenizer.decode(double.answer)[-4:]
        assert [code in text for text in said] == [n == (at + 1) % DOCUMENTS for n in range(3)]
        # That of a flip stands in the receiver's prompt, and the donor's has another one.
        code = tokenizer.decode(flip.answer)[-4:]
        assert code in tokenizer.decode(item.receiver)
        assert code not in tokenizer.decode(item.donor)
        assert sum(flip.asked) < len(flip.asked) == len(flip.answer)
    assert sorted(item.order) == [0, 1, 2]
    assert item.documents != other.documents


def test_arms(long_llama: Any, tmp_path: Path) -> None:
    """All is computed is dense; resumed is as it was; a part that is the same is no loss."""
    path = tmp_path / "it.partial"
    how: Any = (long_llama, items(), Raw(), None, ["whole", "apart", "apart + first 4", "naive"])
    found = list(measure_compose(*how, Journal(path, {}, False)))
    assert list(found[0]) == [
        "dense",
        "none",
        "wrong",
        "naive",
        "apart",
        "whole",
        "apart + first 4",
    ]
    for outcomes in found:
        assert all(one.kl == 0 for one in outcomes["dense"].answers)
        assert outcomes["naive"].kl_text > outcomes["whole"].kl_text > 0
        assert 0 == outcomes["apart"].computed < outcomes["apart + first 4"].computed < 0.2
    assert list(measure_compose(None, *how[1:], Journal(path, {}, True))) == found


def test_counts_only_what_dense_knows_and_nobody_guesses() -> None:
    def outcome(*right: bool) -> Outcome:
        from benchmarks.evals.compose import Answer

        return Outcome([Answer("single", 0.1, 0.2, one) for one in right], 0.3, 0.5)

    arms = {
        "dense": outcome(True, True, False, True),
        "none": outcome(False, True, False, False),
        "mine": outcome(True, True, True, False),
    }
    row = tabulate("a model", [arms])[2]
    assert (row["right"], row["kept"]) == ({"single": 1}, {"single": 2})
    assert row["kl"]["mean"] == pytest.approx(0.1)
