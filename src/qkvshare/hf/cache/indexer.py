"""The keys of an indexer, which picks the tokens that sparse attention looks at.

Each token has one such key beside its keys and values (DeepSeek Sparse Attention). A card has them
as one more layer: the first half of a key as its key, the second half as its value.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicIndexedLayer, DynamicLayer

from ...card.errors import UnsupportedModelError
from ...codecs import LayerKV

_POSITIONS = "indexer_position_ids"
_USUAL = {*vars(DynamicLayer()), "dtype", "device"}  # type: ignore[no-untyped-call]


def beside(layer: Any) -> str | None:
    """The attribute in which ``layer`` keeps one key for each token beside its keys and values.

    That is of transformers' own class for it, or of a class that a model adds: full attention that
    keeps its keys and values as ``DynamicLayer`` does, and one thing more. None for other layers.
    """
    if isinstance(layer, DynamicIndexedLayer):
        return "indexer_keys"
    if not isinstance(layer, DynamicLayer) or type(layer).update is not DynamicLayer.update:
        return None
    added = [name for name in vars(layer) if name not in _USUAL]
    if len(added) != 1:
        return None
    keys = vars(layer)[added[0]]
    return added[0] if keys is None or (torch.is_tensor(keys) and keys.dim() in (3, 4)) else None


def of_same_shape(empty: DynamicCache, read: DynamicCache) -> DynamicCache:
    """``empty``, whose indexers have keys and positions of no token yet: so `IndexKeys` can tell
    what the model keeps, which shows only in the cache that has ``read`` a text."""
    for slot, layer in zip(empty.layers, read.layers, strict=True):
        name = beside(layer)
        keys = None if name is None else getattr(layer, name)
        if name is not None and keys is not None:
            setattr(slot, name, keys[:1].narrow(-2, 0, 0).clone())
            if (positions := getattr(layer, _POSITIONS, None)) is not None:
                _require_of_text(positions)
                setattr(slot, _POSITIONS, positions[:, :1, :0].clone())
    return empty


class IndexKeys:
    """The indexer's keys of a layer, seen as a layer of full attention."""

    def __init__(self, layer: Any) -> None:
        """Raises `UnsupportedModelError` for keys that a card cannot carry."""
        self.layer = layer
        self._name = beside(layer)
        assert self._name is not None
        keys = self._all
        if keys is not None and keys.shape[-1] % 2:
            raise UnsupportedModelError(
                f"the indexer's keys have {keys.shape[-1]} numbers; a card carries "
                "an even number of them. Hand over text instead."
            )

    @property
    def _all(self) -> Tensor | None:
        """``[batch, tokens, dim]`` or ``[batch, heads, tokens, dim]``."""
        keys: Tensor | None = getattr(self.layer, str(self._name))
        return keys

    @property
    def keys(self) -> Tensor | None:
        """``[batch, heads, tokens, dim / 2]``."""
        return self._half(0)

    @property
    def values(self) -> Tensor | None:
        """``[batch, heads, tokens, dim / 2]``."""
        return self._half(1)

    def _half(self, number: int) -> Tensor | None:
        if (keys := self._all) is None:
            return None
        return (keys[:, None] if keys.dim() == 3 else keys).chunk(2, -1)[number]

    def get_seq_length(self) -> int:
        """Tokens."""
        return 0 if self.keys is None else self.keys.shape[2]

    def attach(self, buffer: LayerKV, used: slice, seq_len: int) -> None:
        """As `FullLayer.attach`, with a copy; of a layer that `of_same_shape` has made.

        Positions are not in a card: those of a text are 0, 1, 2, …
        """
        if seq_len == 0:
            return
        assert self._all is not None
        keys = torch.cat([buffer.keys[:, used], buffer.values[:, used]], -1)
        keys = keys if self._all.dim() == 3 else keys[None]
        if isinstance(self.layer, DynamicIndexedLayer):
            self.layer.lazy_initialization_indexer(keys)
        setattr(self.layer, str(self._name), keys)
        if (none := getattr(self.layer, _POSITIONS, None)) is not None:
            positions = torch.arange(seq_len, device=keys.device).expand(len(none), 1, seq_len)
            setattr(self.layer, _POSITIONS, positions)


def repeat_index_keys(cache: Any, batch: int) -> None:
    """Give ``batch`` sequences what layers with an indexer keep of the one in the cache."""
    for layer in cache.layers:
        name = beside(layer)
        keys = None if name is None else getattr(layer, name)
        if keys is not None and len(keys) == 1 < batch:
            layer.batch_repeat_interleave(batch)


def _require_of_text(positions: Tensor) -> None:
    """Raise `UnsupportedModelError` unless positions ``[dims, batch, tokens]`` are 0, 1, 2, …"""
    if not torch.equal(
        positions, torch.arange(positions.shape[-1]).to(positions).expand_as(positions)
    ):
        raise UnsupportedModelError(
            "the model keeps positions beside its indexer's keys that are not 0, 1, 2, …, and a "
            "card does not carry them. Hand over text instead."
        )
