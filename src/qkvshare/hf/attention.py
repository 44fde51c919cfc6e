"""Attention for agents that go on from a long context: few queries, many keys.

``model.set_attn_implementation("qkvshare")``, once anything of ``qkvshare.hf`` is imported. Query
heads that share a KV head are taken together, so keys and values are read once and never repeated;
transformers' own ``sdpa`` does so for a single query only. Many queries at once, as when a context
is read, go to ``sdpa``.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "qkvshare"
# From so many queries on a matrix of all scores costs more than repeating keys and values.
_MANY = 64


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: ``query [batch, heads, new, dim]``, ``key`` and ``value``
    ``[batch, kv_heads, tokens, dim]``, mask ``[batch, 1, new, tokens]``, boolean or added.

    Returns ``[batch, new, heads, v_dim]``. What it has not been made for (dropout, biases, sinks,
    masks for each head) is given to ``sdpa``, with a warning.
    """
    new, tokens = query.shape[2], key.shape[2]
    why = _refused(dropout, attention_mask, arguments)
    if why is not None:
        warnings.warn(f"attention 'qkvshare' leaves {why} to 'sdpa'.", stacklevel=2)
    causal_alone = attention_mask is None and new > 1
    if why is not None or causal_alone or new >= _MANY:
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,
            **arguments,
        )
    batch, heads, _, dim = query.shape
    kv_heads = key.shape[1]
    scale = dim**-0.5 if scaling is None else scaling
    rows = (query * scale).reshape(batch, kv_heads, -1, dim)  # heads of a group, then queries
    scores = torch.matmul(rows, key.transpose(-1, -2))
    if attention_mask is not None:
        grid = scores.view(batch, kv_heads, -1, new, tokens)
        mask = attention_mask[:, None, :, :, :tokens]
        if mask.dtype == torch.bool:
            # Not -inf: a padded query sees nothing, and its row must not become NaN.
            grid.masked_fill_(~mask, torch.finfo(scores.dtype).min)
        else:
            grid.add_(mask)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    out = torch.matmul(weights, value).view(batch, heads, new, -1)
    return out.transpose(1, 2).contiguous(), None


def _refused(dropout: float, mask: Tensor | None, arguments: dict[str, Any]) -> str | None:
    """What this attention cannot do, in words."""
    if dropout > 0:
        return "dropout"
    if mask is not None and mask.shape[1] != 1:
        return "masks of single heads"
    for name in ("softcap", "position_bias", "s_aux", "cache"):
        if arguments.get(name) is not None:
            return f"{name!r}"
    return None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
