"""Decode spans of cards to where they come to stand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...card import Run
from ...codecs import LayerKV, Shape, decode_runs, dtype_of, find_codec
from ..cache.buffers import Buffer, Target, allocate
from ..cache.growing import STEP
from ..cache.observe import observe
from ..inject.bound import BoundCard
from .layout import Layout, Placed


def place(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, layout: Layout
) -> tuple[list[LayerKV], list[Tensor]]:
    """Buffers ``[kv_heads, cached + STEP, dim]`` of all layers, with the spans in their places; and
    for each layer which tokens it has ``[cached]``: sliding layers forget some.

    Raises:
        IdentityError: a card is of another model or tokenizer.
        CardError, CodecError: a card is damaged, expired or thin.
        UnsupportedModelError: keys of the model cannot be moved.
    """
    observed = observe(model)
    buffers = allocate(
        [
            Buffer(Shape.of(layer, layout.cached + STEP), model.dtype, device)
            for layer, device in zip(observed.layers, observed.devices, strict=True)
        ]
    )
    held = [torch.zeros(layout.cached, dtype=torch.bool) for _ in buffers]
    for placed in layout.spans:
        placed.span.card.require_fresh()
        _place(BoundCard(placed.span.card, model, tokenizer), placed, layout.cached, buffers, held)
    for buffer, there in zip(buffers, held, strict=True):
        if not there.all():
            # A mask hides what is not there, but nothing times a NaN is a NaN.
            missing = (~there).nonzero()[:, 0].to(buffer.keys.device)
            buffer.keys[:, missing], buffer.values[:, missing] = 0, 0
    return buffers, held


def _place(
    bound: BoundCard,
    placed: Placed,
    cached: int,
    buffers: Sequence[LayerKV],
    held: Sequence[Tensor],
) -> None:
    card, span, moved = bound.card, placed.span, placed.moved
    end = min(span.stop, cached - moved)  # the composition's last token is read, see `Layout`
    runs = [run for run in card.manifest.runs if run.start < end and run.end > span.start]
    decoded = dict[int, list[Target]]()

    def targets(run: Run) -> Iterable[Target]:
        codec, made = find_codec(run.codec.name), list[Target]()
        for number, (layer, buffer) in enumerate(zip(card.manifest.layers, buffers, strict=True)):
            shape = Shape.of(layer, count := run.held(number))
            first, here = run.end - count, None
            if span.start <= first and run.end <= end:
                at = slice(first + moved, run.end + moved)
                here = LayerKV(buffer.keys[:, at], buffer.values[:, at])
            else:  # more than what is wanted
                device = bound.devices[number]
                here = LayerKV(
                    *(
                        torch.empty(of, dtype=dtype_of(card), device=device)
                        for of in (shape.keys, shape.values)
                    )
                )
            rotation = bound.rotation(run, number, moved)
            made.append(Target.of(here, shape, dtype_of(card), rotation, codec))
        decoded[run.start] = made
        return made

    elsewhere = any(device.type != "cpu" for device in bound.devices)
    streams = decode_runs(card, targets, Target.settle, elsewhere=elsewhere, runs=runs)
    for _ in zip(*streams, strict=True):
        pass
    for run in runs:
        for number, target in enumerate(decoded[run.start]):
            assert target.buffer is not None
            first = run.end - run.held(number)
            start, stop = max(first, span.start), min(run.end, end)
            if start >= stop:
                continue
            to = slice(start + moved, stop + moved)
            held[number][to] = True
            keys, values = (
                part[:, start - first : stop - first]
                for part in (target.buffer.keys, target.buffer.values)
            )
            if moved and not find_codec(run.codec.name).pre_rope:
                keys = bound.move(number, keys, start, moved)
            for part, into in ((keys, buffers[number].keys), (values, buffers[number].values)):
                if part.data_ptr() != into[:, to].data_ptr():
                    into[:, to] = part
