"""Inject or read again: by measured costs, and said in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from qkvshare import Raw, capture
from qkvshare.card.errors import IdentityError, PromptError
from qkvshare.hf.inject.inject import prefill
from qkvshare.hf.session import costs
from qkvshare.hf.session.costs import Costs, choose, measured, operations

from ..conftest import FAMILIES, greedy, some_ids, tiny_model

CONTEXT, NEW = some_ids(90), some_ids(7, seed=1)


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("QKVSHARE_CACHE", str(tmp_path))
    return tmp_path / "costs"


def given(model: Any, monkeypatch: pytest.MonkeyPatch, **changed: float) -> None:
    """Costs as if they had been measured."""
    made = Costs(**{"step": 50.0, "billion": 5.0, "inject": 20.0, "token": 0.02} | changed)
    monkeypatch.setattr(costs, "measured", lambda *_: made)


def test_a_longer_text_and_a_slower_link(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    card = capture(llama, None, CONTEXT, codec=Raw())
    given(llama, monkeypatch, step=0.0, billion=0.0)
    assert choose(llama, card, 7).policy == "prefill"
    given(llama, monkeypatch, step=0.0, billion=1e6)
    assert choose(llama, card, 7).policy == "inject"
    near, far = choose(llama, card, 7, link=1e6), choose(llama, card, 7, link=0.01)
    assert (near.policy, far.policy) == ("inject", "prefill")
    crossing = 8 * card.nbytes / (1e6 * 0.01) * 1000
    assert far.inject == pytest.approx(choose(llama, card, 7).inject + crossing)
    assert str(far).startswith("prefill: ")
    assert "ms expected from the card" in str(far)


def test_another_model_is_refused_before_anything_is_measured(llama: Any, folder: Path) -> None:
    with pytest.raises(IdentityError):
        choose(tiny_model(seed=1), capture(llama, None, CONTEXT), 7)
    assert not folder.exists()


def test_a_weights_pass_is_the_least(llama: Any) -> None:
    made = Costs(step=50.0, billion=5.0, inject=20.0, token=0.02)
    assert made.reading(llama, 1) == 50.0
    long = made.reading(llama, 100_000)
    assert long == 5.0 * operations(llama, 100_000) / 1e9 > 50.0


def test_operations_count_weights_and_attention() -> None:
    model = tiny_model()
    config, tokens = model.config, 40
    table = config.vocab_size * config.hidden_size
    # The projection of one row of logits is not counted where it shares the table.
    weights = sum(part.numel() for part in model.parameters()) - table
    heads = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    assert operations(model, tokens) == 2 * weights * tokens + heads * tokens * tokens // 2
    more = operations(model, 1, known=1000) - operations(model, 1)
    assert more == heads * 1000


def test_measured_once(llama: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = measured(llama, Raw())
    assert first.step > 0
    assert first.billion > 0
    (file,) = folder.iterdir()
    assert msgspec.json.decode(file.read_bytes(), type=Costs) == first
    monkeypatch.setattr(costs, "_measure", lambda *_: pytest.fail("measured again"))
    assert measured(llama, Raw()) == first
    file.write_text("{")
    monkeypatch.setattr(costs, "_measure", lambda *_: first)
    assert measured(llama, Raw()) == first
    assert msgspec.json.decode(file.read_bytes(), type=Costs) == first


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("new", [NEW, []], ids=["new", "exact hit"])
def test_prefill_gives_what_inject_gives(family: str, new: list[int]) -> None:
    model = tiny_model(family)
    card = capture(model, None, CONTEXT, codec=Raw())
    read = prefill(card, model, new=new)
    assert torch.equal(read["input_ids"], card.inputs(model, new=new)["input_ids"])
    assert greedy(model, **read) == greedy(model, **card.inputs(model, new=new))


def test_prefill_refuses_what_inject_refuses(llama: Any) -> None:
    card = capture(llama, None, CONTEXT)
    with pytest.raises(PromptError, match="repeats the card"):
        prefill(card, llama, new=CONTEXT + NEW)
    prefill(card.without(card), llama, new=NEW)  # the bytes are not needed
