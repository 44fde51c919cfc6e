"""Fill a cache from a card: every layer is decoded where it stays.

Memory for all layers is there first, with room for more tokens behind what the card has; codecs
decode into it, run by run, and keys are turned to their positions in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer

from ..card import CacheCard, Run
from ..card.errors import PromptError
from ..codecs import LayerKV, Shape, decode_runs, dtype_of, empty, find_codec, shapes_of
from .cache import CardCache, rooms
from .room import SPARE
from .rope import Rope, Turn


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
    decoder = cast(Any, model).get_decoder()
    devices = [next(layer.parameters()).device for layer in decoder.layers]
    shapes = [
        Shape.of(at, card.tokens - plan.first + SPARE)
        for at, plan in zip(layers, plans, strict=True)
    ]
    places = rooms(shapes, devices, dtype_of(card))
    # Found before anything is decoded: torch's threads would have to wait for the decoder's.
    parts = {
        run.start: _parts(model, run, plans, places)
        for run in card.manifest.runs
        if run.start >= known
    }

    def into(run: Run) -> Iterator[LayerKV]:
        for shape, part in zip(shapes_of(card, run), parts[run.start], strict=True):
            if part is None or part.place.keys.device.type != "cpu":
                yield from empty([shape], dtype_of(card))
            else:
                yield part.place

    streams = {
        run.start: stream
        for run, stream in zip(card.manifest.runs, decode_runs(card, into), strict=True)
    }
    for number, (plan, room) in enumerate(zip(plans, places, strict=True)):
        if held is not None:
            _copy_held(held, number, plan.first, room)
        for start, of_layers in parts.items():
            decoded, part = next(streams[start]), of_layers[number]
            if part is not None:
                part.take(decoded)
        use = slice(plan.needed - plan.first, kept - plan.first)
        cache.layers[number].take(room, use, kept)
    for start in parts:
        next(streams[start], None)  # what is wrong with the end of a run is found there


@dataclass(frozen=True)
class _Part:
    """What one layer needs of a run: where it stays, and how its keys are turned, if they are."""

    place: LayerKV
    turn: Turn | None

    def take(self, decoded: LayerKV) -> None:
        """Bring ``decoded`` to its place, where it is not there already."""
        if decoded is not self.place:
            self.place.keys.copy_(decoded.keys)
            self.place.values.copy_(decoded.values)
        if self.turn is not None:
            self.turn(self.place.keys)


def _parts(
    model: PreTrainedModel, run: Run, plans: list[_Plan], rooms: list[LayerKV]
) -> list[_Part | None]:
    """For each layer; None where none of the run is needed."""
    rope = Rope(model) if find_codec(run.codec.name).pre_rope else None
    positions, parts = lru_cache(torch.arange), list[_Part | None]()
    for number, (plan, room) in enumerate(zip(plans, rooms, strict=True)):
        first = run.end - run.held(number)
        if first < plan.first:
            parts.append(None)
            continue
        at = slice(first - plan.first, run.end - plan.first)
        place = LayerKV(room.keys[:, at], room.values[:, at])
        # All of a run, whatever is used of it: sines of other runs of positions may differ in
        # their last bits.
        turn = None
        if rope is not None:
            turn = rope.turn(number, positions(first, run.end), place.keys)
        parts.append(_Part(place, turn))
    return parts


def _copy_held(held: CardCache, number: int, first: int, room: LayerKV) -> None:
    """Tokens from ``first`` to the end of the held card, to the beginning of ``room``."""
    place, end = cast(DynamicLayer, held.layers[number]), held.card.tokens
    before = held.get_seq_length() - cast(Tensor, place.keys).shape[2]
    if first < end:
        for part, to in ((place.keys, room.keys), (place.values, room.values)):
            to[:, : end - first] = cast(Tensor, part)[0, :, first - before : end - before]
