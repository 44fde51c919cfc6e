"""Fill a cache from a card: plan, memory, decode, attach.

Each layer is decoded where it stays, with room for more tokens behind the card's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from ...card import CacheCard, Run
from ...card.errors import CancelledError, PromptError
from ...codecs import LayerKV, Shape, decode_runs, dtype_of, find_codec
from ..cache.buffers import Buffer, Target, allocate
from ..cache.card_cache import CardCache
from ..cache.coded import CodedLayer
from ..cache.growing import STEP, FullLayer, HalfLayer
from ..cache.layers import attach
from ..model.rotation import Rotation
from .bound import BoundCard


@dataclass
class Slot:
    """One layer of a cache, and which of the card's tokens it gets.

    Attributes:
        number: of the layer, among the card's.
        layer: of the cache; None where it has its tokens already, as codes.
        first: the first token in ``buffer``.
        needed: the first token that the layer keeps. Those before it come along only because
            their run is decoded as a whole.
        wanted: memory for the tokens from ``first`` on, and for `STEP` more.
        buffer: that memory.
        rotations: what brings keys to their positions, by the first token of their run.
    """

    number: int
    layer: FullLayer | None
    first: int
    needed: int
    wanted: Buffer
    rotations: dict[int, Rotation | None]
    buffer: LayerKV = field(init=False)

    @classmethod
    def plan(
        cls, bound: BoundCard, cache: CardCache, number: int, runs: list[Run], known: int
    ) -> Slot:
        """For layer ``number``, when ``known`` tokens are cached and ``runs`` are decoded."""
        card, layer, device = bound.card, cache.of_card[number], bound.devices[number]
        first, needed = _first_tokens(card, number, cache.decoded, known)
        coded = isinstance(layer, CodedLayer)
        shape = Shape.of(card.manifest.layers[number], 0 if coded else card.tokens - first + STEP)
        dtype = torch.bfloat16 if isinstance(layer, HalfLayer) else dtype_of(card)
        return cls(
            number,
            None if coded else layer,
            first,
            needed,
            Buffer(shape, dtype, device),
            {run.start: bound.rotation(run, number) for run in runs},
        )

    def holds(self, run: Run) -> bool:
        """Whether the buffer has a place for all that ``run`` holds of this layer."""
        return self.layer is not None and run.end - run.held(self.number) >= self.first

    def target(self, card: CacheCard, run: Run) -> Target:
        """Where to decode this layer of ``run``. Raises `CardFormatError` without memory."""
        count, here = run.held(self.number), None
        if self.holds(run):
            at = slice(run.end - count - self.first, run.end - self.first)
            here = LayerKV(self.buffer.keys[:, at], self.buffer.values[:, at])
        shape = Shape.of(card.manifest.layers[self.number], count)
        codec = find_codec(run.codec.name)
        return Target.of(here, shape, dtype_of(card), self.rotations[run.start], codec)

    def copy(self, cached: CardCache) -> None:
        """Copy the tokens that ``cached`` has to the beginning of the buffer."""
        layer, end = cast(DynamicLayer, cached.of_card[self.number]), cached.card.tokens
        before = cached.get_seq_length() - cast(Tensor, layer.keys).shape[2]
        if self.first < end:
            for part, to in ((layer.keys, self.buffer.keys), (layer.values, self.buffer.values)):
                found = cast(Tensor, part)[0, :, self.first - before : end - before]
                to[:, : end - self.first] = found

    def attach(self, seq_len: int) -> None:
        """Make the buffer the state of the layer, which has seen ``seq_len`` tokens."""
        if self.layer is not None:
            used = slice(self.needed - self.first, seq_len - self.first)
            attach(self.layer, self.buffer, used, seq_len)


def fill(
    bound: BoundCard,
    cache: CardCache,
    cached: CardCache | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Decode the card into the layers of ``cache``, but for those that keep codes.

    What ``cached`` has of it is copied. ``cancelled`` is asked before each layer.

    Raises:
        CancelledError: the caller called it off.
        PromptError: a sliding window cannot be rolled back as far as ``cache`` asks for.
        CardError, CodecError: the card is damaged, or cannot be decoded here.
    """
    card = bound.card
    assert cache.card is card
    known = 0 if cached is None else cached.card.tokens
    runs = [run for run in card.manifest.runs if run.start >= known]
    slots = [Slot.plan(bound, cache, at, runs, known) for at in range(len(cache.numbers))]
    buffers = allocate([slot.wanted for slot in slots])
    for slot, buffer in zip(slots, buffers, strict=True):
        slot.buffer = buffer

    def targets(run: Run) -> Iterable[Target]:
        found = (slot.target(card, run) for slot in slots)
        return list(found) if all(slot.holds(run) for slot in slots) else found

    begin = partial(go_on, cancelled)
    elsewhere = any(device.type != "cpu" for device in bound.devices)
    # Side by side, since runs may share bytes.
    streams = decode_runs(card, targets, Target.settle, begin, elsewhere, runs)
    for _ in zip(*streams, strict=True):
        pass
    for slot in slots:
        if cached is not None:
            slot.copy(cached)
        slot.attach(cache.decoded)


def go_on(cancelled: Callable[[], bool]) -> None:
    """Raise `CancelledError` once the caller has called it off."""
    if cancelled():
        raise CancelledError("the card was not injected to its end: the caller called it off.")


def _first_tokens(card: CacheCard, number: int, kept: int, known: int) -> tuple[int, int]:
    """`Slot.first` and `Slot.needed` of a layer. Raises `PromptError`."""
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
    return first, needed
