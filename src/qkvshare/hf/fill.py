"""Fill a cache from a card: every layer is decoded where it stays.

Memory for all layers is there first, with room for more tokens behind what the card has; codecs
decode into it, run by run, and keys are turned to their positions in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer

from ..card import CacheCard, Run
from ..card.errors import PromptError
from ..codecs import LayerKV, Shape, decode_runs, dtype_of, empty, find_codec, shapes_of
from .cache import CardCache, rooms
from .layers import decoder_layer
from .room import SPARE
from .rope import Rope


@dataclass(frozen=True)
class _Plan:
    """Which tokens one layer has in its cache: from ``first`` on, of which those before ``needed``
    come only because their run is decoded as a whole."""

    first: int
    needed: int


def _plan(card: CacheCard, number: int, kept: int, known: int) -> _Plan:
    """For layer ``number``, when ``known`` tokens are held. Raises `PromptError`."""
    window = card.manifest.layers[number].window
    needed = 0 if window is None else max(0, kept - window + 1)
    first = card.tokens
    for run in reversed(card.manifest.runs):
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


def fill(model: PreTrainedModel, cache: CardCache, held: CardCache | None) -> None:
    """Decode each layer where it stays, keys rotated, with room for more tokens behind."""
    card, kept = cache.card, cache.decoded
    known = 0 if held is None else held.card.tokens
    layers = card.manifest.layers
    plans = [_plan(card, number, kept, known) for number in range(len(layers))]
    devices = [next(decoder_layer(model, n).parameters()).device for n in range(len(layers))]
    shapes = [
        Shape.of(at, card.tokens - plan.first + SPARE)
        for at, plan in zip(layers, plans, strict=True)
    ]
    places = rooms(shapes, devices, dtype_of(card))

    def place(run: Run, number: int) -> LayerKV | None:
        """Where ``run`` lies in a layer's room; None where none of it is needed."""
        start = run.end - run.held(number) - plans[number].first
        end = run.end - plans[number].first
        room = places[number]
        return LayerKV(room.keys[:, start:end], room.values[:, start:end]) if start >= 0 else None

    def into(run: Run) -> Iterator[LayerKV]:
        for number, shape in enumerate(shapes_of(card, run)):
            there = place(run, number)
            if there is None or there.keys.device.type != "cpu":
                (there,) = empty([shape], dtype_of(card))
            yield there

    streams = [
        (run, stream, find_codec(run.codec.name).pre_rope)
        for run, stream in zip(card.manifest.runs, decode_runs(card, into), strict=True)
        if run.start >= known
    ]
    rope = Rope(model)
    for number, (plan, room) in enumerate(zip(plans, places, strict=True)):
        if held is not None:
            _copy_held(held, number, plan.first, room)
        for run, stream, before_rope in streams:
            part, there = next(stream), place(run, number)
            if there is None:
                continue
            if there.keys.device.type != "cpu":
                there.keys.copy_(part.keys)
                there.values.copy_(part.values)
            if before_rope:
                # All of a run, whatever is used of it: sines of other runs of positions may
                # differ in their last bits.
                first = run.end - run.held(number)
                rope.rotate_(number, there.keys, torch.arange(first, run.end))
        use = slice(plan.needed - plan.first, kept - plan.first)
        cache.layers[number].take(room, use, kept)
    for _, stream, _ in streams:
        next(stream, None)  # what is wrong with the end of a run is found there


def _copy_held(held: CardCache, number: int, first: int, room: LayerKV) -> None:
    """Tokens from ``first`` to the end of the held card, to the beginning of ``room``."""
    place, end = cast(DynamicLayer, held.layers[number]), held.card.tokens
    before = held.get_seq_length() - cast(Tensor, place.keys).shape[2]
    if first < end:
        for part, to in ((place.keys, room.keys), (place.values, room.values)):
            to[:, : end - first] = cast(Tensor, part)[0, :, first - before : end - before]
