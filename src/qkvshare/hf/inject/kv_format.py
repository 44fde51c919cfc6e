"""Layers of a cache that hold a card's tokens in another way than as the model's numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...card import Run
from ...card.errors import CodecError, UnsupportedModelError
from ...codecs import Shape, dtype_of, find_codec, from_record
from ..cache.card_cache import CardCache
from ..cache.coded import CodedLayer, CodedRun, Scratch
from ..cache.growing import HalfLayer
from .bound_card import BoundCard
from .fill import go_on


def keep_half(bound: BoundCard, cache: CardCache) -> None:
    """Put `HalfLayer` in place of the empty full layers of ``cache``.

    Raises `CodecError` for a codec that loses nothing, `UnsupportedModelError` for models that do
    not compute in float32.
    """
    if bound.model.dtype != torch.float32:
        raise UnsupportedModelError(
            f"the model computes in {bound.model.dtype}, and so is its cache; 'bfloat16' is for "
            "models in torch.float32. Use kv_format='model'."
        )
    for run in bound.card.manifest.runs:
        if find_codec(run.codec.name).lossless:
            raise CodecError(
                f"a card of the codec {run.codec.name!r} keeps every bit; 'bfloat16' would round "
                "them to 16. Use kv_format='model', or capture with another codec."
            )
    for number, layer in enumerate(bound.card.manifest.layers):
        if layer.window is None:
            cache.layers[number] = HalfLayer(bound.config)


def keep_codes(bound: BoundCard, cache: CardCache, cancelled: Callable[[], bool]) -> None:
    """Put `CodedLayer` in place of the empty full layers of ``cache``; all codes are checked.

    Raises `CodecError` for codecs that predict a layer from others, `CardError` and its family, and
    `CancelledError`.
    """
    card = bound.card
    for run in card.manifest.runs:
        if not find_codec(run.codec.name).independent:
            raise CodecError(
                f"codes of {run.codec.name!r} cannot stay codes: a layer is decoded from those "
                "before it. Use kv_format='model', or capture with the codec 'packed'."
            )
    scratches = dict[torch.device, Scratch]()
    for number, layer in enumerate(card.manifest.layers):
        go_on(cancelled)
        if layer.window is None:
            device = bound.devices[number]
            scratch = scratches.setdefault(device, Scratch(dtype_of(card), device, bound.config))
            runs = [_coded(bound, run, number) for run in card.manifest.runs]
            cache.layers[number] = CodedLayer(number, runs, cache.decoded, scratch)


def _coded(bound: BoundCard, run: Run, number: int) -> CodedRun:
    card = bound.card
    blob = card.blob(number, run.segment)
    blob = blob if run.spans is None else blob[run.spans[number]]
    shape = Shape.of(card.manifest.layers[number], run.held(number))
    codec = from_record(run.codec)
    codec.check([blob], [shape], dtype_of(card))  # now, not while the model reads it
    return CodedRun(codec, blob, run.start, shape, bound.rotation(run, number))
