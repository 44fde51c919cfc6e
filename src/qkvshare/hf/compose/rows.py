"""Compute chosen tokens of a composition anew: their queries look at all keys before them, and
their keys and values take the places of the old ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer

from ...card.digest import TokenIds
from ...card.errors import UnsupportedModelError
from ...codecs import LayerKV
from ..cache.observe import observe

_PIECE = 1024  # rows computed at once, so that masks stay small
# What a decoder gives to each of its layers, and which dimension of it are the rows.
_OF_ROWS = {
    "position_embeddings": -2,
    "attention_mask": -2,
    "position_ids": -1,
    "cache_position": -1,
}


@dataclass(frozen=True)
class Narrowing:
    """After the first ``layers`` layers only some of the rows go on.

    Attributes:
        layers: how many layers are computed for all rows.
        choose: from rows, and how much keys and values of each have changed so far, as a share of
            what they are, both ``[rows]``, to those that go on: indices, ascending.
    """

    layers: int
    choose: Callable[[Tensor, Tensor], Tensor]


class _Enough(Exception):
    """The layers that were wanted are computed."""


class _Rows:
    """Which tokens are being computed, and how much they have changed."""

    def __init__(self, rows: Tensor, layers: int | None = None) -> None:
        """``rows`` ascend; after ``layers`` layers `_Enough` is raised."""
        self.rows, self.left = rows, layers
        self.width = int(rows[-1]) + 1
        self.changes = torch.zeros(len(rows))

    def write(self, buffer: LayerKV, keys: Tensor, values: Tensor) -> None:
        """Put ``[kv_heads, rows, dim]`` in place of what ``buffer`` has."""
        for part, new in ((buffer.keys, keys), (buffer.values, values)):
            rows = self.rows.to(part.device)
            change = (new.float() - part[:, rows].float()).square().sum((0, 2))
            self.changes += (change / new.float().square().sum().clamp(min=1e-30)).cpu()
            part[:, rows] = new
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                raise _Enough


class RowsLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Writes new keys and values to their places in a buffer, and shows all up to the last."""

    def __init__(self, buffer: LayerKV, rows: _Rows) -> None:
        """``buffer`` has ``[kv_heads, tokens, dim]``."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.buffer, self.rows = buffer, rows
        self.shown = buffer.keys[None, :, : rows.width], buffer.values[None, :, : rows.width]
        self.keys, self.values = self.shown
        self.dtype, self.device, self.is_initialized = self.keys.dtype, self.keys.device, True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """As ``DynamicLayer.update``, for ``[1, kv_heads, rows, dim]``."""
        self.rows.write(self.buffer, key_states[0], value_states[0])
        return self.shown


def compute_rows(
    model: PreTrainedModel,
    ids: TokenIds,
    buffers: Sequence[LayerKV],
    rows: Tensor,
    narrowing: Narrowing | None = None,
) -> Tensor:
    """Compute ``rows [count]``, which ascend, of ``ids`` in place.

    Args:
        model: reads them.
        ids: of the whole composition.
        buffers: keys and values of each layer, ``[kv_heads, tokens, dim]``.
        rows: positions.
        narrowing: which rows go on after some layers. It chooses among 1024 rows at a time.

    Returns:
        The rows that were computed in all layers.

    Raises:
        UnsupportedModelError: rows cannot be left out on the way through this model.
        Others: what the model raises, if it cannot be told masks and positions.
    """
    done = []
    for first in range(0, len(rows), _PIECE):
        some = _Rows(rows[first : first + _PIECE])
        with _narrowed(model, some, narrowing) if narrowing else _unchanged():
            _compute(model, ids, buffers, some)
        done.append(some.rows)
    return torch.cat(done) if done else rows


def changes(
    model: PreTrainedModel, ids: TokenIds, buffers: Sequence[LayerKV], rows: Tensor, layers: int
) -> Tensor:
    """How much keys and values of ``rows`` change in the first ``layers`` layers, as shares of what
    they are ``[rows]``. These layers keep what was computed. Of the last of them only keys and
    values are computed, so it costs ``layers - 1`` layers."""
    found = []
    for first in range(0, len(rows), _PIECE):
        some = _Rows(rows[first : first + _PIECE], layers)
        _compute(model, ids, buffers, some)
        found.append(some.changes)
    return torch.cat(found) if found else torch.zeros(0)


def _compute(
    model: PreTrainedModel, ids: TokenIds, buffers: Sequence[LayerKV], some: _Rows
) -> None:
    observed = observe(model)
    cache = copy(observed.empty)
    cache.layers = list(cache.layers)
    for number, buffer in zip(observed.numbers, buffers, strict=True):
        cache.layers[number] = RowsLayer(buffer, some)
    rows = some.rows
    tokens = torch.from_numpy(ids[rows.numpy()]).long()[None].to(model.device)
    try:
        with torch.no_grad():
            model(
                input_ids=tokens,
                position_ids=rows[None].to(model.device),
                attention_mask=_masks(model, rows),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
    except _Enough:
        pass


@contextmanager
def _unchanged() -> Iterator[None]:
    yield


@contextmanager
def _narrowed(model: PreTrainedModel, some: _Rows, narrowing: Narrowing) -> Iterator[None]:
    """Let rows be left out between two layers of the decoder, inside the ``with`` block."""
    decoder = cast(Any, model).get_decoder()
    layers = getattr(decoder, "layers", None)
    numbers = observe(model).numbers
    if layers is None or len(layers) <= max(numbers):
        raise UnsupportedModelError(
            f"the layers of {type(decoder).__name__} are not where rows could be left out between "
            "them. Choose a repair that computes the same rows in all layers, such as First."
        )
    kept: Tensor | None = None

    def before(at: int, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        nonlocal kept
        first, *others = arguments
        if at == numbers[narrowing.layers]:
            kept = narrowing.choose(some.rows, some.changes)
            some.rows, some.changes = some.rows[kept], some.changes[kept]
            first = first[:, kept.to(first.device)]
        assert kept is not None
        return (first, *others), {name: _cut(name, of, kept) for name, of in named.items()}

    hooks = [
        layers[at].register_forward_pre_hook(
            lambda _, arguments, named, at=at: before(at, arguments, named), with_kwargs=True
        )
        for at in range(numbers[narrowing.layers], len(layers))
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _cut(name: str, given: Any, kept: Tensor) -> Any:
    """The rows ``kept`` of what a layer is given as ``name``."""
    if isinstance(given, tuple):
        return tuple(_cut(name, part, kept) for part in given)
    if name not in _OF_ROWS or not isinstance(given, Tensor):
        return given
    return given.index_select(_OF_ROWS[name], kept.to(given.device))


def _masks(model: PreTrainedModel, rows: Tensor) -> Any:
    """Which keys each row sees: ``[1, 1, rows, tokens]``, added to scores. For a model with two
    kinds of layers, one of each by the names of transformers."""
    windows = {layer.window for layer in observe(model).layers}
    found = {window: _mask(model, rows, window) for window in windows}
    if len(found) == 1:
        return next(iter(found.values()))
    return {
        "full_attention" if window is None else "sliding_attention": mask
        for window, mask in found.items()
    }


def _mask(model: PreTrainedModel, rows: Tensor, window: int | None) -> Tensor:
    tokens = torch.arange(int(rows[-1]) + 1)
    sees = tokens[None] <= rows[:, None]
    if window is not None:
        sees &= tokens[None] > rows[:, None] - window
    hidden = torch.zeros(sees.shape, dtype=model.dtype).masked_fill(
        ~sees, torch.finfo(model.dtype).min
    )
    return hidden[None, None].to(model.device)
