"""Models without attention: a card of states alone, and a cache that counts tokens itself."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qkvshare import (
    CacheCard,
    Packed,
    Raw,
    UnsupportedModelError,
    capture,
    capture_cache,
    load_cache,
    save_cache,
)
from qkvshare.card import Key
from qkvshare.card.errors import BudgetError, CaptureError, PromptError
from qkvshare.codecs.stats import describe, sizes, token_bits
from qkvshare.codecs.trimming import trim
from qkvshare.hf.cache.counting import CountingCache, as_argument, cache_in
from qkvshare.hf.cache.layers import empty_cache
from qkvshare.hf.cache.observe import observe
from qkvshare.hf.calibrate.calibrate import calibrate
from qkvshare.hf.check import cache_bytes, check
from qkvshare.hf.inject.inject import prefill
from qkvshare.hf.session.costs import operations
from tests.models.tiny import greedy, some_ids, tiny_model

# It reads one token at a time behind what it has read; many at once.
NAMES = ["mamba", "mamba2"]
CONTEXT = 72


@cache
def tiny(name: str) -> Any:
    return tiny_model(name)


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> Any:
    return tiny(request.param)


@pytest.fixture
def mamba2() -> Any:
    return tiny("mamba2")


@pytest.fixture
def ids(model: Any) -> list[int]:
    return some_ids(model, CONTEXT, 1)


NEW = [5, 90, 33, 7, 61]


def from_text(model: Any, ids: list[int], tokens: int = 24) -> list[int]:
    rows = torch.tensor([ids])
    return greedy(model, tokens, input_ids=rows, attention_mask=torch.ones_like(rows))[0]


def raw(model: Any, ids: list[int], **how: Any) -> CacheCard:
    return capture(model, None, ids, codec=Raw(), **how)


def test_what_a_card_of_states_says(model: Any, ids: list[int], tmp_path: Path) -> None:
    card = capture(model, None, ids)
    assert card.manifest.layers == []
    assert {state.kind for state in card.manifest.states} == {"conv", "recurrent"}
    assert card.values == 0
    assert np.isnan(card.bits_per_value)
    assert "8 states, " in repr(card)
    assert describe(card)["bits_per_value"] is None
    assert sizes(card)["states"] == card.state_bytes > 0
    assert sizes(card)["total"] == card.nbytes == len(card.save(tmp_path / "card").read_bytes())
    assert token_bits(card) is None
    card.verify()
    key = Key(b"k" * 32)
    sealed = CacheCard.load(card.save(tmp_path / "sealed", key=key), key=key)
    said = greedy(model, 8, **sealed.inputs(model, new=NEW))[0]
    assert said == greedy(model, 8, **card.inputs(model, new=NEW))[0]


def test_what_makes_no_sense_is_refused(mamba2: Any) -> None:
    ids = some_ids(mamba2, CONTEXT, 1)
    for codec in (Packed(), Raw()):
        with pytest.raises(BudgetError, match=r"keys and values, and the model keeps none"):
            capture(mamba2, None, ids, codec=codec, bits=4)
    with pytest.raises(BudgetError, match=r"states alone"):
        trim(raw(mamba2, ids), 4)
    with pytest.raises(UnsupportedModelError, match=r"nothing to calibrate"):
        calibrate(mamba2, [ids], 8)
    with pytest.raises(UnsupportedModelError, match=r"no keys and values"):
        raw(mamba2, ids).inputs(mamba2, new=NEW, kv_format="codes")


def test_a_plain_forward_reads_the_new_tokens_only(model: Any, ids: list[int]) -> None:
    card = raw(model, ids)
    given = card.inputs(model, new=NEW, new_only=True)
    if observe(model).stepwise:
        assert given["input_ids"].tolist() == [NEW[-1:]]
    with torch.no_grad():
        found = model(**given).logits[0, -1]
        expected = model(input_ids=torch.tensor([ids + NEW])).logits[0, -1]
    assert torch.allclose(found, expected, atol=1e-5)
    # It can be gone on from, by generate too.
    whole = [*ids, *NEW, 9]
    rows = torch.tensor([whole])
    assert greedy(model, 8, **{**given, "input_ids": rows, "attention_mask": rows > -1})[0] == (
        from_text(model, whole, 8)
    )


def test_the_whole_ids_in_a_plain_forward_are_refused(model: Any, ids: list[int]) -> None:
    given = raw(model, ids).inputs(model, new=NEW)
    with pytest.raises(PromptError, match=r"tokens are read after"):
        model(**given)
    # Nothing was read: the first layer refused.
    assert greedy(model, 8, **given)[0] == from_text(model, ids + NEW, 8)


def test_generate_reads_what_is_new_once(model: Any, ids: list[int]) -> None:
    given = raw(model, ids).inputs(model, new=NEW)
    said = greedy(model, 8, **given)[0]
    with pytest.raises(PromptError, match=r"nothing is left to read"):
        greedy(model, 8, **given)
    whole = [*ids, *NEW, *said, 3, 4, 5]
    rows = torch.tensor([whole])
    again: dict[str, Any] = {**given, "input_ids": rows, "attention_mask": torch.ones_like(rows)}
    assert cache_in(given).get_seq_length() == len(ids) + len(NEW) + 7
    assert greedy(model, 8, **again)[0] == from_text(model, whole, 8)
    with pytest.raises(PromptError, match=r"new_only=True"):
        greedy(model, 8, **raw(model, ids).inputs(model, new=NEW, new_only=True))


def test_new_ids_alone_are_refused(model: Any, ids: list[int]) -> None:
    given: dict[str, Any] = {**raw(model, ids).inputs(model, new=NEW)}
    with pytest.raises(PromptError, match=r"nothing is left to read"):
        greedy(model, 8, **{**given, "input_ids": torch.tensor([NEW])})
    many = some_ids(model, 2 * CONTEXT, 3)
    given = {**raw(model, ids).inputs(model, new=many)}
    # The cache of a model that reads one token at a time has all but the last.
    what = "nothing is left" if observe(model).stepwise else "reads 144 ids, expected the 216"
    with pytest.raises(PromptError, match=what):
        greedy(model, 8, **{**given, "input_ids": torch.tensor([many])})


def test_chunks_of_a_prompt_are_refused(mamba2: Any) -> None:
    ids = some_ids(mamba2, CONTEXT, 1)
    given = raw(mamba2, ids).inputs(mamba2, new=NEW)
    # By transformers itself before 5.24, where it takes the cache for none.
    with pytest.raises((PromptError, ValueError), match=r"prefill|nothing is left to read"):
        greedy(mamba2, 8, **given, prefill_chunk_size=4)


def test_a_card_read_again_is_the_same(model: Any, ids: list[int]) -> None:
    given = prefill(raw(model, ids), model, new=NEW)
    assert greedy(model, 24, **given)[0] == from_text(model, ids + NEW)


def test_samples_have_a_state_each(model: Any, ids: list[int]) -> None:
    given, rows = raw(model, ids).inputs(model, new=NEW), torch.tensor([ids + NEW])
    how: Any = {"max_new_tokens": 8, "num_return_sequences": 3, "do_sample": True}
    torch.manual_seed(0)
    found = model.generate(**given, **how)
    torch.manual_seed(0)
    expected = model.generate(input_ids=rows, attention_mask=torch.ones_like(rows), **how)
    assert torch.equal(found, expected)
    card = raw(model, ids)
    out = model.generate(**card.inputs(model), **how, return_dict_in_generate=True)
    with pytest.raises(CaptureError, match=r"3 sequences or beams"):
        card.extend(model, out)


def test_a_live_cache_is_read_again_whatever_it_holds(model: Any, ids: list[int]) -> None:
    live = empty_cache(model)
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]), use_cache=True, **as_argument(model, live))
    assert live.get_seq_length() == len(ids)
    with pytest.raises(CaptureError, match=r"the cache holds 1 × 72 tokens"):
        capture_cache(model, live, ids[:-1])
    pad = torch.tensor([[0] * 3 + ids, ids + NEW[:3]])
    card = capture_cache(model, empty_cache_of(model, pad), pad, attention_mask=pad > 0, row=0)
    assert card.token_ids.tolist() == [at for at in ids if at]
    card = capture_cache(model, live, ids, codec=Raw())
    assert greedy(model, 24, **card.inputs(model, new=NEW))[0] == from_text(model, ids + NEW)


def empty_cache_of(model: Any, rows: torch.Tensor) -> Any:
    """The cache of a batch as transformers makes it, which counts nothing."""
    with torch.no_grad():
        out = model.generate(
            input_ids=rows,
            attention_mask=torch.ones_like(rows),
            max_new_tokens=1,
            return_dict_in_generate=True,
        )
    return out.past_key_values


def test_a_saved_cache_goes_on(model: Any, ids: list[int], tmp_path: Path) -> None:
    card = raw(model, ids)
    given = card.inputs(model, new=NEW)
    said = greedy(model, 8, **given)[0]
    path = save_cache(cache_in(given), [*ids, *NEW, *said], tmp_path / "cache", model)
    loaded, of = load_cache(path, model)
    assert loaded.get_seq_length() == of.shape[1] == len(ids) + len(NEW) + 8
    rows = torch.cat([of, torch.tensor([NEW])], 1)
    found = greedy(model, 24, input_ids=rows, **as_argument(model, loaded))[0]
    assert found == from_text(model, rows[0].tolist())
    loaded.reset()
    assert loaded.get_seq_length() == 0


def test_a_cache_whose_count_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that asks its cache in a way that is not known here is refused."""
    monkeypatch.delattr(CountingCache, "get_conv_state")
    monkeypatch.delattr(CountingCache, "has_previous_state")
    with pytest.raises(UnsupportedModelError, match=r"does not tell how many tokens"):
        observe(copy.deepcopy(tiny("mamba2")))


def test_check_and_costs(model: Any, ids: list[int]) -> None:
    found = check(model, np.array(ids, np.int32), np.array(NEW, np.int32))
    assert (found.differs, found.layer) == (None, None)
    assert cache_bytes(found.layers, torch.float32) == 0
    assert found.bits["raw"] == found.bits["packed"] == "states alone"
    assert operations(model, 8) == operations(model, 8, 100) > 0
