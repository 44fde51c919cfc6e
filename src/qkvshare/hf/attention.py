"""Attention for agents that go on from a long context: few queries, many keys.

``model.set_attn_implementation("qkvshare")``, once anything of ``qkvshare.hf`` is imported. Query
heads that share a KV head are taken together, so keys and values are read once and never repeated;
transformers' own ``sdpa`` does so for a single query only. In float32 on a processor
`cpu_attention` does it, else torch's fused kernel. Many queries at once, as when a context is read,
go to ``sdpa``.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from ..kernels.cpu_attention import attend

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
    layer = getattr(key, "coded", None)  # a `CodedLayer`, of which these are the last tokens
    new, tokens = query.shape[2], key.shape[2] + (0 if layer is None else layer.kept)
    why = _refused(dropout, attention_mask, arguments)
    if why is not None:
        warnings.warn(f"attention 'qkvshare' leaves {why} to 'sdpa'.", stacklevel=2)
    causal_alone = attention_mask is None and new > 1
    many = why is not None or causal_alone or new >= _MANY
    if not many:
        scale = query.shape[3] ** -0.5 if scaling is None else scaling
        codes = None if layer is None else layer.codes()
        found = attend(query, key, value, attention_mask, scale, codes)
        if found is not None:
            return found, None
    if layer is not None:
        key, value = layer.numbers()
    if key.dtype == torch.bfloat16 and query.dtype == torch.float32:  # of a `HalfLayer`
        key, value = key.to(query.dtype), value.to(query.dtype)
    if many:
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
    group = heads // kv_heads
    rows = query.reshape(batch, kv_heads, group * new, dim)  # heads of a group, then queries
    seen = None if attention_mask is None else _repeated(attention_mask, group, tokens)
    out = F.scaled_dot_product_attention(rows, key, value, attn_mask=seen, scale=scaling)
    return out.view(batch, heads, new, -1).transpose(1, 2).contiguous(), None


def _repeated(mask: Tensor, group: int, tokens: int) -> Tensor:
    """A mask for the heads of a group as more queries of one, ``[batch, 1, group · new, tokens]``.

    Kept with the ``mask`` for the next layer, as long as that lives and nobody writes to it.
    """
    if mask.is_inference():  # which does not say who has written to it
        return mask[:, :, :, :tokens].repeat(1, 1, group, 1)
    key = mask._version, group, tokens
    known: tuple[object, Tensor] | None = getattr(mask, "_seen", None)
    if known is None or known[0] != key:
        known = key, mask[:, :, :, :tokens].repeat(1, 1, group, 1)
        mask._seen = known  # type: ignore[attr-defined]
    return known[1]


def mask(*, q_length: int, kv_length: int, **arguments: Any) -> Tensor | None:
    """As transformers asks for it; for few queries in numbers, which otherwise every layer would
    make of it."""
    few = 1 < q_length < min(_MANY, kv_length)
    make = eager_mask if few else sdpa_mask
    made: Tensor | None = make(q_length=q_length, kv_length=kv_length, **arguments)
    return made


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
AttentionMaskInterface.register(NAME, mask)
