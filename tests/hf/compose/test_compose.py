"""Parts of cards behind another prompt, in another order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qkvshare import CacheCard, Packed, Raw, Span, capture, capture_cache, compose
from qkvshare.card.errors import (
    CaptureError,
    CardDigestError,
    CardExpiredError,
    IdentityError,
    PromptError,
    UnsupportedModelError,
)
from qkvshare.hf.cache.buffers import allocate
from qkvshare.hf.compose import place as placing
from qkvshare.hf.compose.composition import Composition
from qkvshare.hf.compose.layout import Layout
from qkvshare.hf.compose.place import place
from qkvshare.hf.compose.repairs import All, Budget, Deviation, First, Narrowed, Nothing, budget
from qkvshare.hf.compose.rows import Narrowing

from ...conftest import greedy, greedy_from_text, some_ids, tiny_model
from ...models import tiny

BEFORE, NEW = some_ids(9, seed=3), some_ids(5, seed=4)
ONE, TWO = some_ids(40, seed=1), some_ids(30, seed=2)


def logits(model: Any, ids: list[int], count: int) -> torch.Tensor:
    """Of the last ``count`` tokens, in one reading."""
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([ids])).logits[0, -count:]
    return found


def said(model: Any, parts: list[Any], **how: Any) -> torch.Tensor:
    """Logits of what is read behind a composition."""
    with torch.no_grad():
        inputs = compose(model, parts, new_only=True, **how).inputs
        found: torch.Tensor = model(**inputs).logits[0, -len(parts[-1]) :]
    return found


def composition_of(model: Any, parts: list[Any]) -> Composition:
    """Spans in their places, nothing computed."""
    layout = Layout.of(model, None, parts)
    return Composition(model, layout, *place(model, None, layout))


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.fixture(scope="module")
def cards(llama: Any) -> list[CacheCard]:
    return [capture(llama, None, ids, codec=Raw()) for ids in (ONE, TWO)]


@pytest.mark.parametrize("codec", [Raw(), Packed()])
def test_all_is_what_the_text_gives(llama: Any, codec: Any) -> None:
    one, two = (capture(llama, None, ids, codec=codec) for ids in (ONE, TWO))
    middle = some_ids(3, seed=9)
    parts = [BEFORE, Span(two, 10, 22), Span(one, 5), middle, Span(two, 22), NEW]
    ids = [*BEFORE, *TWO[10:22], *ONE[5:], *middle, *TWO[22:], *NEW]
    assert error(said(llama, parts, repair=All()), logits(llama, ids, len(NEW))) < 1e-5


# One of each kind: bias and norms of queries and keys, partial and interleaved RoPE, layers without
# RoPE, YaRN, sinks, layers with windows beside full ones, windows in all layers, experts.
@pytest.mark.parametrize(
    "name",
    [
        "qwen2",
        "qwen3",
        "stablelm",
        "cohere",
        "smollm3",
        "gpt_oss",
        "gemma3_text",
        "mistral",
        "olmoe",
    ],
)
def test_all_is_what_the_text_gives_whatever_the_layers(name: str) -> None:
    model = tiny.tiny_model(name)
    before, one, two, new = (tiny.some_ids(model, 4 + at, seed=at) for at in range(4))
    a = capture(model, None, one, codec=Raw())
    b = capture(model, None, [*before[:2], *two], codec=Raw())
    parts, ids = [before, a, Span(b, 2), new], [*before, *one, *two, *new]
    expected = logits(model, ids, len(new))
    assert error(said(model, parts, repair=All()), expected) < 1e-5
    assert error(said(model, parts, repair=Nothing()), expected) > 1e-4


def test_without_repair_keys_are_those_at_the_new_place(llama: Any, cards: list[CacheCard]) -> None:
    """The first layer's keys depend on token and position alone, so all of them are exact."""
    composed = compose(llama, [BEFORE, *cards, NEW], repair=Nothing())
    with torch.no_grad():
        whole = llama(torch.tensor([[*BEFORE, *ONE, *TWO]]), use_cache=True).past_key_values
    found = composed.inputs["past_key_values"].layers[0]
    assert torch.allclose(found.keys, whole.layers[0].keys, atol=1e-5)
    assert torch.allclose(found.values, whole.layers[0].values, atol=1e-5)


def test_generate_goes_on(llama: Any, cards: list[CacheCard]) -> None:
    composed = compose(llama, [BEFORE, *cards, NEW], repair=All())
    assert greedy(llama, **composed.inputs) == greedy_from_text(llama, [*BEFORE, *ONE, *TWO, *NEW])


def test_what_stands_behind_the_same_tokens_is_exact(llama: Any, cards: list[CacheCard]) -> None:
    """Taken over as it is, whether the tokens before it come from a card or are read."""
    one, two = cards
    for first in ([one], [Span(one, 0, 20), Span(one, 20)], [ONE[:7], Span(one, 7)]):
        parts = [*first, TWO, NEW]
        composed = compose(llama, parts, repair=All())
        assert (composed.taken, composed.repaired) == (0, 0)
        assert greedy(llama, **composed.inputs) == greedy_from_text(llama, [*ONE, *TWO, *NEW])
    composed = compose(llama, [one, two, NEW], repair=First(4))
    assert (composed.exact, composed.repaired, composed.taken) == (40, 4, 26)
    assert (composed.read, composed.left) == (0, len(NEW))


def test_a_seam_is_where_something_else_stood_before(llama: Any, cards: list[CacheCard]) -> None:
    one, two = cards
    for start, seams in ((9, 2), (10, 3)):
        parts = [BEFORE, Span(one, 3, 9), Span(one, start, 20), Span(two, 5), NEW]
        assert compose(llama, parts, repair=First(2)).repaired == 2 * seams


@pytest.mark.parametrize("way", [Nothing(), First(), Budget(1e3), Deviation(), Narrowed(), All()])
def test_where_nothing_has_changed_nothing_is_repaired(
    llama: Any, cards: list[CacheCard], way: Any
) -> None:
    """Also of one token, and with text before it."""
    one, _ = cards
    for parts in ([one, NEW], [Span(one, 0, 1), NEW], [ONE[:3], Span(one, 3, 4)]):
        composed = compose(llama, parts, repair=way)
        ids = composed.inputs["input_ids"][0].tolist()
        assert (composed.taken, composed.repaired) == (0, 0)
        assert greedy(llama, **composed.inputs) == greedy_from_text(llama, ids)


def test_the_last_token_is_read_where_nothing_follows(llama: Any, cards: list[CacheCard]) -> None:
    composed = compose(llama, [BEFORE, *cards], repair=All())
    assert composed.left == 1
    assert greedy(llama, **composed.inputs) == greedy_from_text(llama, [*BEFORE, *ONE, *TWO])


def test_more_repair_is_nearer(llama: Any, cards: list[CacheCard]) -> None:
    parts, ids = [BEFORE, *cards, NEW], [*BEFORE, *ONE, *TWO, *NEW]
    expected = logits(llama, ids, len(NEW))
    ways = [Nothing(), Deviation(0.3), Narrowed(0.5), Deviation(0.7), All()]
    errors = [error(said(llama, parts, repair=way), expected) for way in ways]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-5 < errors[-2]


@pytest.mark.parametrize("name", ["qwen2", "gemma3_text", "smollm3", "gpt_oss"])
def test_narrowed_to_all_is_all(name: str) -> None:
    """Rows that go on get their own positions and masks, in each kind of layer."""
    model = tiny.tiny_model(name)
    before, one, new = (tiny.some_ids(model, 6 + at, seed=at) for at in range(3))
    card = capture(model, None, one, codec=Raw())
    composition = composition_of(model, [before, card, new])
    composition.compute(composition.changed, Narrowing(1, lambda rows, _: torch.arange(len(rows))))
    whole = composition_of(model, [before, card, new])
    whole.compute(whole.changed)
    for found, expected in zip(composition.buffers, whole.buffers, strict=True):
        known = composition.layout.cached
        assert torch.allclose(found.keys[:, :known], expected.keys[:, :known], atol=1e-5)
        assert torch.allclose(found.values[:, :known], expected.values[:, :known], atol=1e-5)


def test_narrowed_rows_are_those_that_were_chosen(llama: Any, cards: list[CacheCard]) -> None:
    """Text is computed to the end; what it costs is counted in tokens × layers."""
    composition = composition_of(llama, [BEFORE, cards[0], NEW])
    before = [layer.values[:, :49].clone() for layer in composition.buffers]
    seen = list[list[int]]()

    def choose(rows: torch.Tensor, changes: torch.Tensor) -> torch.Tensor:
        seen.append(rows.tolist())
        assert (changes[1:] > 0).any()
        return torch.tensor([2, 5])

    rows = torch.tensor([10, 14, 20, 30, 31, 48])
    composition.compute(rows, Narrowing(1, choose))
    assert seen == [rows.tolist()]
    changed = [
        (layer.values[:, :49] != old).any(2).any(0).nonzero()[:, 0].tolist()
        for layer, old in zip(composition.buffers, before, strict=True)
    ]
    # The first layer's values depend on the token alone, so only text is new there.
    assert changed[0] == [*range(9)]
    assert all(layer == [*range(9), 20, 48] for layer in changed[1:])
    layers = len(composition.buffers)
    assert composition.anew.nonzero()[:, 0].tolist() == [20, 48]
    assert composition.cost == pytest.approx((6 + 2 * (layers - 1)) / (40 * layers))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_order_of_any_parts(llama: Any, data: st.DataObject) -> None:
    """Each token is counted once, and with `All` the answer is that of the text."""
    cards = [capture(llama, None, ids, codec=Raw()) for ids in (ONE[:12], TWO[:9])]
    parts, ids = list[Any](), list[int]()
    for number in data.draw(st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=4)):
        if number == 2:
            parts.append(some_ids(data.draw(st.integers(1, 6)), seed=len(parts)))
            ids += parts[-1]
            continue
        start = data.draw(st.integers(0, cards[number].tokens - 1))
        span = Span(cards[number], start, data.draw(st.integers(start + 1, cards[number].tokens)))
        parts.append(span)
        ids += span.token_ids.tolist()
    parts, ids = [*parts, NEW], [*ids, *NEW]
    if not any(isinstance(part, Span) for part in parts):
        with pytest.raises(PromptError, match="nothing to compose"):
            compose(llama, parts)
        return
    composed = compose(llama, parts, repair=All())
    counts = composed.exact, composed.taken, composed.repaired, composed.read, composed.left
    assert sum(counts) == len(ids)
    assert composed.inputs["input_ids"][0].tolist() == ids
    assert error(said(llama, parts, repair=All()), logits(llama, ids, len(NEW))) < 1e-5


def test_a_budget_of_time_is_spent_as_far_as_it_goes(
    llama: Any, cards: list[CacheCard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token takes a millisecond in each of three layers. Text and first tokens are 17, and the
    look at 70 takes two layers. Where 210 ms are left then, all are computed, else 16 at a time."""
    parts, now = [BEFORE, *cards, NEW], 0.0
    compute, deviation = Composition.compute, Composition.deviation

    def computed(self: Composition, rows: torch.Tensor) -> None:
        nonlocal now
        now += 0.001 * len(self.buffers) * (len(rows) + (0 if self.anew.any() else 9))
        compute(self, rows)

    def looked(self: Composition, layers: int) -> torch.Tensor:
        nonlocal now
        now += 0.001 * layers * len(self.changed)
        return deviation(self, layers)

    monkeypatch.setattr(Composition, "compute", computed)
    monkeypatch.setattr(Composition, "deviation", looked)
    monkeypatch.setattr(budget, "_PIECE", 16)
    monkeypatch.setattr(budget, "perf_counter", lambda: now)
    for milliseconds, repaired in ((0, 8), (150, 8), (192, 8), (240, 24), (290, 40), (402, 70)):
        found = compose(llama, parts, repair=Budget(milliseconds))
        assert found.repaired == repaired, milliseconds
    monkeypatch.undo()
    found = said(llama, parts, repair=Budget(1e6))
    assert error(found, logits(llama, [*BEFORE, *ONE, *TWO, *NEW], len(NEW))) < 1e-5


def test_a_span_begins_and_ends_within_segments(llama: Any) -> None:
    card = capture(llama, None, ONE, codec=Packed(), checkpoints=[7, 20])
    ids = [*BEFORE, *ONE[5:25], *NEW]
    found = said(llama, [BEFORE, Span(card, 5, 25), NEW], repair=Nothing())
    whole = capture(llama, None, ONE, codec=Raw())
    expected = said(llama, [BEFORE, Span(whole, 5, 25), NEW], repair=Nothing())
    assert error(found, expected) < 0.3
    found = said(llama, [BEFORE, Span(card, 5, 25), NEW], repair=All())
    assert error(found, logits(llama, ids, len(NEW))) < 1e-5


def test_no_card_is_made_of_it(llama: Any, cards: list[CacheCard]) -> None:
    composed = compose(llama, [BEFORE, *cards, NEW])
    ids = torch.tensor([[*BEFORE, *ONE, *TWO]])
    with pytest.raises(CaptureError, match="composed"):
        capture_cache(llama, composed.inputs["past_key_values"], ids)


def test_the_cache_refuses_other_uses(llama: Any, cards: list[CacheCard]) -> None:
    inputs = compose(llama, [BEFORE, *cards, NEW]).inputs
    with pytest.raises(PromptError):
        llama(**inputs)


def test_wrong_parts(llama: Any, cards: list[CacheCard]) -> None:
    one, _ = cards
    for start, end in ((5, 5), (7, 3), (-1, 4), (0, 41), (40, None)):
        with pytest.raises(PromptError, match="of a card of 40 tokens"):
            Span(one, start, end)
    with pytest.raises(PromptError, match="nothing to compose"):
        compose(llama, [BEFORE, NEW])
    with pytest.raises(PromptError, match="tokenizer"):
        compose(llama, [one, "a text"])
    with pytest.raises(PromptError):
        compose(llama, [[10**6], one])
    other = capture(tiny_model("llama", seed=1), None, ONE)
    with pytest.raises(IdentityError):
        compose(llama, [BEFORE, one, other, NEW])
    with pytest.raises(CardExpiredError):
        compose(llama, [BEFORE, capture(llama, None, ONE, ttl=-1), NEW])


def test_a_damaged_card(llama: Any, cards: list[CacheCard], tmp_path: Any) -> None:
    path = cards[0].save(tmp_path / "it.card")
    data = np.fromfile(path, np.uint8)
    data[-9] ^= 1
    data.tofile(path)
    with pytest.raises(CardDigestError):
        compose(llama, [BEFORE, CacheCard.load(path), NEW])


@pytest.mark.parametrize(
    "name", ["gpt2", "bloom", "bart", "mamba", "qwen3_next", "deepseek_v32", "bert"]
)
def test_models_whose_keys_cannot_be_moved(name: str) -> None:
    model = tiny.tiny_model(name)
    card = capture(model, None, tiny.some_ids(model, 20, seed=1), codec=Raw())
    with pytest.raises(UnsupportedModelError, match="cannot be composed"):
        compose(model, [tiny.some_ids(model, 4, seed=2), card, tiny.some_ids(model, 4, seed=3)])


def test_what_a_window_has_forgotten() -> None:
    """The last tokens are enough for what comes after them, and not for what is repaired."""
    model = tiny_model("gemma3")
    card = capture(model, None, ONE, codec=Raw())
    compose(model, [BEFORE, card, NEW], repair=Nothing())
    with pytest.raises(UnsupportedModelError, match="has forgotten"):
        compose(model, [BEFORE, card, NEW], repair=Deviation(0.3))
    with pytest.raises(UnsupportedModelError, match="has forgotten"):
        compose(model, [BEFORE, Span(card, 0, 20), NEW], repair=Nothing())
    whole = compose(model, [BEFORE, card, NEW], repair=All())
    assert greedy(model, **whole.inputs) == greedy_from_text(model, [*BEFORE, *ONE, *NEW])


def test_what_is_not_there_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where fresh memory holds NaN: nothing times a NaN is a NaN."""
    model = tiny_model("gemma3")
    card = capture(model, None, ONE, codec=Raw())
    parts = [BEFORE, card, some_ids(3, seed=9), Span(card, 33), NEW]
    expected = said(model, parts, repair=Nothing())

    def full_of_nan(wanted: Any) -> Any:
        buffers = allocate(wanted)
        for buffer in buffers:
            buffer.keys.fill_(torch.nan)
            buffer.values.fill_(torch.nan)
        return buffers

    monkeypatch.setattr(placing, "allocate", full_of_nan)
    assert torch.equal(said(model, parts, repair=Nothing()), expected)
    # The end of the first part is forgotten where the second begins.
    with pytest.raises(UnsupportedModelError, match="has forgotten"):
        compose(model, [Span(card, 0, 20), TWO[:2], Span(card, 33), NEW], repair=Deviation(0.5))
