"""Fill a cache from a card: every layer is decoded where it stays.

Memory for all layers is there first, with room for more tokens behind what the card has; codecs
decode into it, run by run, and keys are turned to their positions in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer

from ...card import CacheCard, Run
from ...card.errors import CancelledError, CodecError, PromptError, UnsupportedModelError
from ...codecs import (
    LayerKV,
    Shape,
    decode_runs,
    dtype_of,
    find_codec,
    from_record,
    shapes_of,
)
from ..cache.card_cache import CardCache, Place, rooms
from ..cache.coded import Coded, CodedLayer, Scratch
from ..cache.growing import SPARE
from ..cache.half import HALF, HalfLayer
from ..model.config import device_of
from ..model.rope import Rope, Turn


@dataclass(frozen=True)
class _Plan:
    """Which tokens one layer has in its cache: from ``first`` on, of which those before ``needed``
    come only because their run is decoded as a whole."""

    first: int
    needed: int


def _plan(card: CacheCard, runs: list[Run], number: int, kept: int, known: int) -> _Plan:
    """For layer ``number``, when ``known`` tokens are held. Raises `PromptError`."""
    window = card.manifest.layers[number].window
    needed = 0 if window is None else max(0, kept - window + 1)
    first = card.tokens
    for run in reversed(runs):
        # A sliding layer may have forgotten what is between two runs.
        if first <= needed or run.start < known or run.end != first:
            break
        first = run.end - run.held(number)
    if first == known:
        first = min(first, needed)
    if first > needed:
        raise PromptError(
            f"layer {number} holds {kept - first} of the {kept - needed} tokens in its window of "
            f"{window}: a sliding window cannot roll back its last token. Give at least one "
            "new token, or capture from the prompt, which keeps one token more."
        )
    return _Plan(first, needed)


def go_on(cancelled: Callable[[], bool]) -> None:
    """Raise `CancelledError` once the caller has called it off."""
    if cancelled():
        raise CancelledError("the card was not injected to its end: the caller called it off.")


def fill(
    model: PreTrainedModel,
    cache: CardCache,
    held: CardCache | None,
    bound: Callable[[], None],
    cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Decode each layer where it stays, keys rotated, with room for more tokens behind.

    Layers that keep codes are left alone. ``bound`` looks whether the model is the card's, and
    raises if not. It is called before anything is decoded, or, where another thread does that,
    meanwhile: into memory that nobody else knows of. ``cancelled`` is asked before each layer; once
    it is true `CancelledError` is raised.
    """
    card, kept = cache.card, cache.decoded
    known = 0 if held is None else held.card.tokens
    layers = card.manifest.layers
    runs = card.manifest.runs
    plans = [_plan(card, runs, number, kept, known) for number in range(len(layers))]
    decoder = cast(Any, model).get_decoder()
    devices = [device_of(layer) for layer in decoder.layers]
    far = [device.type != "cpu" for device in devices]
    coded = [isinstance(layer, CodedLayer) for layer in cache.layers]
    shapes = [
        Shape.of(at, 0 if left else card.tokens - plan.first + SPARE)
        for at, plan, left in zip(layers, plans, coded, strict=True)
    ]
    dtypes = [HALF if isinstance(layer, HalfLayer) else dtype_of(card) for layer in cache.layers]
    places = rooms(shapes, devices, dtypes)
    # Found before anything is decoded: torch's threads would have to wait for the decoder's.
    rope = Rope(model)
    turns = {run.start: _turns(rope, run, places) for run in runs if run.start >= known}

    def into(run: Run) -> Iterable[Place]:
        whole = all(run.end - run.held(n) >= plan.first for n, plan in enumerate(plans))
        found = (place(run, number, shape) for number, shape in enumerate(shapes_of(card, run)))
        at_once = whole and not any(coded)
        if not at_once or not find_codec(run.codec.name).background or any(far):
            bound()
        return list(found) if at_once else found

    def place(run: Run, number: int, shape: Shape) -> Place:
        codec, end = find_codec(run.codec.name), run.end - plans[number].first
        room, count = places[number], run.held(number)
        at = end - count
        used = at >= 0 and not coded[number]
        there = (
            LayerKV(*(p.narrow(1, at, count) for p in (room.keys, room.values))) if used else None
        )
        return Place.of(there, shape, dtype_of(card), turns[run.start][number], codec)

    begin = partial(go_on, cancelled)
    decoded = decode_runs(card, into, Place.settle, bound, begin, elsewhere=any(far))
    streams = [stream for run, stream in zip(runs, decoded, strict=True) if run.start >= known]
    for number, (plan, room) in enumerate(zip(plans, places, strict=True)):
        begin()
        for stream in streams:
            next(stream)
        if coded[number]:
            continue
        if held is not None:
            _copy_held(held, number, plan.first, room)
        use = slice(plan.needed - plan.first, kept - plan.first)
        cache.layers[number].take(room, use, kept)
    for stream in streams:
        next(stream, None)  # what is wrong with the end of a run is found there
    bound()  # where all is held


def _turns(rope: Rope, run: Run, rooms: list[LayerKV]) -> list[Turn | None]:
    """For each layer. Of all tokens of a run, whatever is used of them: sines of other runs of
    positions may differ in their last bits."""
    if not find_codec(run.codec.name).pre_rope:
        return [None] * len(rooms)
    return [
        rope.turn(number, range(run.end - run.held(number), run.end), room.keys)
        for number, room in enumerate(rooms)
    ]


def _copy_held(held: CardCache, number: int, first: int, room: LayerKV) -> None:
    """Tokens from ``first`` to the end of the held card, to the beginning of ``room``."""
    place, end = cast(DynamicLayer, held.layers[number]), held.card.tokens
    before = held.get_seq_length() - cast(Tensor, place.keys).shape[2]
    if first < end:
        for part, to in ((place.keys, room.keys), (place.values, room.values)):
            to[:, : end - first] = cast(Tensor, part)[0, :, first - before : end - before]


def keep_codes(
    model: PreTrainedModel, cache: CardCache, cancelled: Callable[[], bool] = lambda: False
) -> None:
    """Put `CodedLayer` in place of the empty full layers of ``cache``; everything is checked.

    Raises `CodecError` for codecs that predict a layer from others, `CardError` and its family, and
    `CancelledError` as `fill`.
    """
    card = cache.card
    for run in card.manifest.runs:
        if not find_codec(run.codec.name).independent:
            raise CodecError(
                f"codes of {run.codec.name!r} cannot stay codes: a layer is decoded from those "
                "before it. Use kv_format='model', or capture with the codec 'packed'."
            )
    rope, scratches = Rope(model), dict[torch.device, Scratch]()
    decoder = cast(Any, model).get_decoder()
    for number, at in enumerate(card.manifest.layers):
        go_on(cancelled)
        if at.window is None:
            device = device_of(decoder.layers[number])
            scratch = scratches.setdefault(device, Scratch(dtype_of(card), device, decoder.config))
            parts = [_coded(card, run, number, rope, device) for run in card.manifest.runs]
            cache.layers[number] = CodedLayer(parts, cache.decoded, scratch)


def keep_half(model: PreTrainedModel, cache: CardCache) -> None:
    """Put `HalfLayer` in place of the empty full layers of ``cache``.

    Raises `CodecError` for a codec that loses nothing, `UnsupportedModelError` for models that do
    not compute in float32.
    """
    if model.dtype != torch.float32:
        raise UnsupportedModelError(
            f"the model computes in {model.dtype}, and so is its cache; 'bfloat16' is for models "
            "in torch.float32. Use kv_format='model'."
        )
    for run in cache.card.manifest.runs:
        if find_codec(run.codec.name).lossless:
            raise CodecError(
                f"a card of the codec {run.codec.name!r} keeps every bit; 'bfloat16' would round "
                "them to 16. Use kv_format='model', or capture with another codec."
            )
    config = cast(Any, model).get_decoder().config
    for number, at in enumerate(cache.card.manifest.layers):
        if at.window is None:
            cache.layers[number] = HalfLayer(config)


def _coded(card: CacheCard, run: Run, number: int, rope: Rope, device: torch.device) -> Coded:
    blob = card.blob(number, run.segment)
    blob = blob if run.spans is None else blob[run.spans[number]]
    shape = Shape.of(card.manifest.layers[number], run.held(number))
    codec, turn = from_record(run.codec), None
    codec.check([blob], [shape], dtype_of(card))  # now, not while the model reads it
    if codec.pre_rope:
        like = torch.empty(shape.keys[0], 8, shape.head_dim, dtype=dtype_of(card), device=device)
        turn = rope.turn(number, range(run.start, run.end), like)
    return Coded(codec, blob, run.start, shape, turn)
