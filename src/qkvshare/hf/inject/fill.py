"""A card and the model it belongs to; and filling a cache from it: plan, memory, decode, attach.

Each layer is decoded where it stays, with room for more tokens behind the card's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from ...card import CacheCard, Run
from ...card.errors import CancelledError, PromptError
from ...codecs import LayerKV, Shape, decode_runs, dtype_of, find_codec
from ...codecs.states import decode_states
from ..cache.buffers import Buffer, Target, allocate
from ..cache.card_cache import CardCache
from ..cache.coded import CodedLayer
from ..cache.growing import STEP, FullLayer, HalfLayer
from ..cache.layers import attach
from ..cache.observe import require_geometry
from ..cache.own import own_class
from ..cache.states import put_states
from ..model.config import text_config
from ..model.identity import identify
from ..model.rope import Rope
from ..model.rotation import Rotation
from ..text.tokens import require_vocabulary


class BoundCard:
    """Proof that a card is a model's: to make one is to compare their identities.

    Whatever makes memory for a card or decodes it takes one of these, so that no order of
    calls decodes a card into the cache of another model.

    Attributes:
        card: its layers are the model's.
        model: it is what the card's identity says, weight for weight.
        devices: where each layer of the card belongs.
        config: the decoder's.
    """

    def __init__(
        self,
        card: CacheCard,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        """Raises `IdentityError`, and `UnsupportedModelError` for state no card can carry."""
        card.manifest.identity.require(identify(model, tokenizer))
        observed = require_geometry(model, card.manifest.layers, card.manifest.states)
        self.card, self.model = card, model
        self.config = text_config(model)
        self.devices, self._observed = observed.devices, observed
        self._rope = Rope(model, observed.numbers)

    def cache(self, decoded: int) -> CardCache:
        """A cache for the first ``decoded`` tokens of the card: without keys and values yet, with
        the states after those tokens. Raises the `CardError` family."""
        observed, kind = self._observed, own_class(self.model, CardCache)
        cache: CardCache = kind(self.card, decoded, observed.empty, observed.numbers)
        cache.stepwise = observed.stepwise
        if (states := self.card.manifest.states) and decoded:
            put_states(cache, states, self._states(), decoded)
        return cache

    def decodes(self, tokens: int) -> int:
        """How many of the card's first ``tokens`` can be in a cache: all, or all but the card's
        last one where the model keeps states, which are those before it."""
        return min(tokens, self.card.tokens - bool(self.card.manifest.states))

    def _states(self) -> list[Tensor]:
        """The card's snapshot, where the model keeps it. Raises the `CardError` family."""
        manifest, last = self.card.manifest, len(self.card.manifest.segments) - 1
        segment, blob = manifest.segments[last], self.card.state_blob(last)
        tensors = decode_states(blob, manifest.snapshot(segment), segment.state_bits)
        for state, tensor in zip(manifest.states, tensors, strict=True):
            if state.dtype == "int64":  # a convolution over token ids
                require_vocabulary(self.model, tensor.numpy().ravel(), "state")
        return [at.to(to) for at, to in zip(tensors, self._observed.state_devices, strict=True)]

    @property
    def shares_layers(self) -> bool:
        """Whether a layer keeps something else beside keys and values."""
        numbers = self._observed.numbers
        states = any(state.layer in numbers for state in self.card.manifest.states)
        return states or len(set(numbers)) < len(numbers)

    @property
    def stepwise(self) -> bool:
        """See `Observed`."""
        return self._observed.stepwise

    def rotation(self, run: Run, layer: int, moved: int = 0) -> Rotation | None:
        """What brings a layer's keys to their positions once ``run`` is decoded, or to others,
        ``moved`` tokens later; None if nothing.

        Of all tokens of the run, whichever are needed: sines of another range of positions may
        differ in their last bits.
        """
        of = self.card.manifest.layers[layer]
        if of.placed or not find_codec(run.codec.name).pre_rope:
            return None
        first, end = run.end - run.held(layer) + moved, run.end + moved
        # Tokens that stand before the part that is wanted may come to stand before the beginning.
        at = range(first, end) if first >= 0 else torch.arange(first, end)
        return self._rope.rotation(layer, at, of.head_dim, self.devices[layer])

    def move(self, layer: int, keys: Tensor, start: int, moved: int) -> Tensor:
        """Keys as cached, from position ``start`` on, to positions ``moved`` tokens later."""
        before = range(start, start + keys.shape[1])
        plain = self._rope.unrotate(layer, keys, before)
        after = range(start + moved, start + moved + keys.shape[1])
        return self._rope.rotate(layer, plain, after).to(keys.dtype)


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
