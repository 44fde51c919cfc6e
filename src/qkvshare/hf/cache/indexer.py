"""The keys of an indexer, which picks the tokens that sparse attention looks at.

Each token has one such key beside its keys and values (DeepSeek Sparse Attention). A card has them
as one more layer: the first half of a key as its key, the second half as its value.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicIndexedLayer

from ...card.errors import UnsupportedModelError
from ...codecs import LayerKV


class IndexKeys:
    """The indexer's keys of a layer, seen as a layer of full attention with one head."""

    def __init__(self, layer: DynamicIndexedLayer) -> None:
        """Raises `UnsupportedModelError` for keys that a card cannot carry."""
        self.layer: Any = layer
        if layer.indexer_keys is not None and layer.indexer_keys.shape[-1] % 2:
            raise UnsupportedModelError(
                f"the indexer's keys have {layer.indexer_keys.shape[-1]} numbers; a card carries "
                "an even number of them. Hand over text instead."
            )
        if getattr(layer, "indexer_position_ids", None) is not None:
            raise UnsupportedModelError(
                "the model keeps positions beside its indexer's keys, which a card does not carry. "
                "Hand over text instead."
            )

    @property
    def keys(self) -> Tensor | None:
        """``[batch, 1, tokens, dim / 2]``."""
        return self._half(0)

    @property
    def values(self) -> Tensor | None:
        """``[batch, 1, tokens, dim / 2]``."""
        return self._half(1)

    def _half(self, number: int) -> Tensor | None:
        keys: Tensor | None = self.layer.indexer_keys
        return None if keys is None else keys[:, None].chunk(2, -1)[number]

    def get_seq_length(self) -> int:
        """Tokens."""
        return 0 if self.keys is None else self.keys.shape[2]

    def attach(self, buffer: LayerKV, used: slice, seq_len: int) -> None:
        """As `FullLayer.attach`, with a copy."""
        if seq_len == 0:
            return
        keys = torch.cat([buffer.keys[:, used], buffer.values[:, used]], -1)
        self.layer.lazy_initialization_indexer(keys)
        self.layer.indexer_keys = keys
