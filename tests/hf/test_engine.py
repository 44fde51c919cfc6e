"""What a card does with a model: `CacheCard.inputs` and `CacheCard.extend`."""

from __future__ import annotations

from typing import Any

import pytest

import qkvshare
from qkvshare.card import errors

from ..conftest import greedy, greedy_from_text, some_ids

CONTEXT, NEW = some_ids(40), some_ids(7, seed=1)


def test_a_card_that_is_handed_on(llama: Any) -> None:
    card = qkvshare.capture(llama, None, CONTEXT, codec=qkvshare.Raw())
    out = llama.generate(
        **card.inputs(llama, new=NEW), max_new_tokens=5, return_dict_in_generate=True
    )
    child = card.extend(llama, out, agent="B")
    whole = out.sequences[0].tolist()
    assert child.token_ids.tolist() == whole
    assert child.manifest.segments[0] == card.manifest.segments[0]
    assert child.manifest.lineage[-1].agent == "B"
    assert greedy(llama, **child.inputs(llama, new=NEW)) == greedy_from_text(llama, whole + NEW)


def test_only_an_output_of_this_card_extends_it(llama: Any) -> None:
    card, other = (qkvshare.capture(llama, None, CONTEXT, agent=name) for name in "ab")
    out = llama.generate(
        **other.inputs(llama, new=NEW), max_new_tokens=2, return_dict_in_generate=True
    )
    with pytest.raises(errors.CaptureError, match="not generated from this card"):
        card.extend(llama, out)
    with pytest.raises(errors.CaptureError, match="return_dict_in_generate=True"):
        card.extend(llama, out.sequences)


def test_a_text_needs_a_tokenizer_and_no_text_does_not(llama: Any) -> None:
    card = qkvshare.capture(llama, None, CONTEXT)
    assert card.inputs(llama)["input_ids"].tolist() == [CONTEXT]
    with pytest.raises(errors.PromptError, match="a text needs its tokenizer"):
        card.inputs(llama, new="more")


def test_a_card_in_short(llama: Any) -> None:
    card = qkvshare.capture(llama, None, CONTEXT, agent="A", codec=qkvshare.Packed())
    bits, size = f"{card.bits_per_value:.1f}", f"{card.nbytes / 1e6:.1f}"
    layers = len(card.manifest.layers)
    assert repr(card) == (
        f"CacheCard(40 tokens, {layers} layers, {bits} bits per value, {size} MB, agent 'A')"
    )


def test_all_that_users_need_is_at_the_top() -> None:
    for name in qkvshare.__all__:
        assert getattr(qkvshare, name) is not None
    kinds = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert kinds < set(qkvshare.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'inject'"):
        qkvshare.inject  # noqa: B018


def test_several_sequences_are_refused(llama: Any) -> None:
    card = qkvshare.capture(llama, None, CONTEXT)
    modes: list[dict[str, Any]] = [
        {"num_beams": 2},
        {"do_sample": True, "num_return_sequences": 2},
    ]
    for mode in modes:
        out = llama.generate(
            **card.inputs(llama, new=NEW), max_new_tokens=2, return_dict_in_generate=True, **mode
        )
        with pytest.raises(errors.CaptureError, match="out has 2 sequences or beams"):
            card.extend(llama, out)


def test_a_child_is_bound_to_its_parents_tokenizer(llama: Any, tokenizer: Any) -> None:
    card = qkvshare.capture(llama, tokenizer, "some words")
    out = llama.generate(
        **card.inputs(llama, tokenizer, " more"), max_new_tokens=2, return_dict_in_generate=True
    )
    child = card.extend(llama, out)
    assert child.manifest.identity == card.manifest.identity
    assert child.inputs(llama, tokenizer, "!")["input_ids"].shape[1] > child.tokens
