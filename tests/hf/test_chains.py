"""Hand-off after hand-off: nothing lost, only what is new costs anything."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.codecs import Uniform
from qkvshare import CacheCard, Packed, Raw, Transform, capture, capture_cache
from qkvshare.card.errors import BudgetError, CaptureError, CardThinError
from qkvshare.codecs import Codec

from ..conftest import FAMILIES, WINDOW, greedy, some_ids, tiny_model
from .test_transform import profile_of

CONTEXT, NEW = some_ids(70), some_ids(6, seed=1)
CODECS = [Raw(), Uniform(3), Packed(), "transform"]


def codec_of(family: str, codec: Codec | str) -> Codec:
    return codec if isinstance(codec, Codec) else Transform.of(profile_of(family))


def step(model: Any, card: CacheCard, new: list[int], held: Any = None) -> tuple[CacheCard, Any]:
    """Read ``new`` behind ``card``; the card of both, and the cache they are in."""
    arguments = card.inputs(model, new=new, cached=held, new_only=True)
    with torch.no_grad():
        model(**arguments)
    cache = arguments["past_key_values"]
    return capture_cache(model, cache, [*card.token_ids.tolist(), *new]), cache


def same(one: Any, two: Any) -> bool:
    pairs = zip(one.layers, two.layers, strict=True)
    return one.get_seq_length() == two.get_seq_length() and all(
        torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values) for a, b in pairs
    )


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_after_ten_hops_every_byte_is_that_of_its_first_hop(codec: Codec | str) -> None:
    model = tiny_model()
    card = capture(model, None, CONTEXT, codec=codec_of("llama", codec), agent="reader")
    chain = [card]
    for hop in range(10):
        card, _ = step(model, card, some_ids(6, seed=hop))
        chain.append(card)
    assert [hop.hop for hop in card.manifest.lineage] == list(range(11))
    assert [hop.parent for hop in card.manifest.lineage[1:]] == [at.digest for at in chain[:-1]]
    for earlier in chain:
        known = len(earlier.manifest.segments)
        assert card.manifest.segments[:known] == earlier.manifest.segments
        assert all((card.tensors[name] == earlier.tensors[name]).all() for name in earlier.tensors)


@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_held_parent_gives_the_same_cache(family: str, codec: Codec | str) -> None:
    """Whatever the receiver holds; where its windows have forgotten it, by decoding."""
    model = tiny_model(family)
    first = capture(model, None, CONTEXT, codec=codec_of(family, codec))
    received = first.inputs(model, new=NEW, new_only=True)["past_key_values"]
    for more in (1, WINDOW - 2, WINDOW + 3):
        second, grown = step(model, first, some_ids(more, seed=2))
        for held in (received, grown):
            for new in (NEW, []):
                if not new and family in ("mistral", "gemma3"):
                    continue  # an exact hit needs a token that the window has lost
                whole = second.inputs(model, new=new, new_only=True)["past_key_values"]
                assert same(
                    second.inputs(model, new=new, cached=held, new_only=True)["past_key_values"],
                    whole,
                )


def test_a_thin_card_goes_to_a_receiver_who_holds_the_parent(llama: Any, tmp_path: Path) -> None:
    first = capture(llama, None, CONTEXT, codec=Uniform(3))
    received = first.inputs(llama, new=NEW, new_only=True)["past_key_values"]
    second, _ = step(llama, first, NEW)
    thin = CacheCard.load(second.without(first).save(tmp_path / "thin"))
    whole = second.inputs(llama, new=NEW, new_only=True)["past_key_values"]
    assert same(
        thin.inputs(llama, new=NEW, cached=received, new_only=True)["past_key_values"], whole
    )
    for useless in (
        None,
        live(llama),
        second.fork().inputs(llama, new=[], new_only=True)["past_key_values"],
    ):
        with pytest.raises(CardThinError, match="Put it together"):
            thin.inputs(llama, new=NEW, cached=useless, new_only=True)
    assert same(thin.whole(first).inputs(llama, new=NEW, new_only=True)["past_key_values"], whole)


def live(model: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=torch.tensor([CONTEXT]), use_cache=True).past_key_values


def test_a_cropped_or_batched_cache_is_not_taken_for_the_parent(llama: Any) -> None:
    first = capture(llama, None, CONTEXT, codec=Uniform(2))
    second, _ = step(llama, first, NEW)
    whole = second.inputs(llama, new=NEW, new_only=True)["past_key_values"]
    held = first.inputs(llama, new=NEW, new_only=True)["past_key_values"]
    batched = copy.deepcopy(held)
    batched.batch_repeat_interleave(2)
    held.crop(-3)
    with torch.no_grad():  # read again at full precision: not what the card says
        llama(
            input_ids=torch.tensor([CONTEXT[-3:]]),
            attention_mask=torch.ones(1, len(CONTEXT)),
            past_key_values=held,
        )
    emptied = first.inputs(llama, new=NEW, new_only=True)["past_key_values"]
    emptied.reset()
    for other in (held, batched, emptied):
        assert same(
            second.inputs(llama, new=NEW, cached=other, new_only=True)["past_key_values"], whole
        )


def test_the_chain_of_a_thin_parent_stays_thin(llama: Any) -> None:
    first = capture(llama, None, CONTEXT, codec=Packed(), bits=8)
    received = first.inputs(llama, new=NEW, new_only=True)["past_key_values"]
    second, _ = step(llama, first, NEW)
    thin = second.without(first)
    arguments = thin.inputs(llama, new=NEW, cached=received, new_only=True)
    with torch.no_grad():
        llama(**arguments)
    ids, cache = [*CONTEXT, *NEW, *NEW], arguments["past_key_values"]
    with pytest.raises(BudgetError, match="parent is thin"):
        capture_cache(llama, cache, ids, bits=8)
    third = capture_cache(llama, cache, ids)
    assert (third.thin, len(third.manifest.segments)) == (1, 3)
    assert third.whole(first).thin == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_compacted_chain_is_injected_alike_and_goes_on(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    card = capture(model, None, CONTEXT, codec=Packed())
    for hop in range(3):
        card, _ = step(model, card, some_ids(4, seed=hop))
    small = CacheCard.load(card.compact().save(tmp_path / "small"))
    whole, again = (
        at.inputs(model, new=NEW, new_only=True)["past_key_values"] for at in (card, small)
    )
    assert same(whole, again)
    longer, _ = step(model, small, NEW)
    assert longer.manifest.segments[0] == small.manifest.segments[0]
    assert same(
        longer.inputs(model, new=NEW, new_only=True)["past_key_values"],
        step(model, card, NEW)[0].inputs(model, new=NEW, new_only=True)["past_key_values"],
    )
    assert longer.compact().token_ids.tolist() == longer.token_ids.tolist()


def test_salt_is_handed_on(llama: Any) -> None:
    salt, other = "a" * 64, "b" * 64
    card = capture(llama, None, CONTEXT, salt=salt)
    longer, cache = step(llama, card, NEW)
    assert longer.manifest.salt == salt
    assert longer.manifest.segments[0] == card.manifest.segments[0]
    longer.verify()
    ids = [*CONTEXT, *NEW]
    with pytest.raises(CaptureError, match="has another salt"):
        capture_cache(llama, cache, ids, salt=other)
    with pytest.raises(CaptureError, match="salt is malformed"):
        capture_cache(llama, cache, ids, salt="salt")
    # encoded anew, and still not for others to recognize
    assert capture_cache(llama, cache, ids, anew=True).manifest.salt == salt
    mine = capture_cache(llama, cache, ids, anew=True, salt=other)
    turned = capture(llama, None, ids, parent=card.salted(other), salt=other)
    assert mine.manifest.salt == turned.manifest.salt == other
    said = [greedy(llama, **at.inputs(llama, new=NEW)) for at in (card, card.salted(other))]
    assert said[0] == said[1]


def test_a_card_without_salt_does_not_come_to_have_one(llama: Any) -> None:
    card = capture(llama, None, CONTEXT)
    with pytest.raises(CaptureError, match=r"parent.salted\(salt\)"):
        capture(llama, None, [*CONTEXT, *NEW], parent=card, salt="a" * 64)
