"""Attention for agents that go on from a long context: few queries, many keys.

Query heads that share a KV head are taken together, so keys and values are read once and never
repeated; transformers' own ``sdpa`` does so for a single query only. In float32 on a processor
`kernels.attention` does it, else torch's fused kernel. Many queries at once, as when a context is
read, go to ``sdpa``.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from ..card.errors import UnsupportedModelError
from ..kernels.attention import attend

NAME = "qkvshare"
# What models pass to every attention function and the mask has already: it changes no number.
_HARMLESS = {
    "sliding_window", "position_ids", "cache_position", "output_attentions", "use_cache",
    "output_hidden_states", "output_router_logits", "return_dict", "num_items_in_batch",
    "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "deterministic",
    "token_type_ids", "mm_token_type_ids", "logits_to_keep", "position_embeddings",
}  # fmt: skip
_OF_SDPA = {"position_bias", "cache"}
# From so many queries on a matrix of all scores costs more than repeating keys and values.
_MANY = 64


@contextmanager
def attention(model: PreTrainedModel) -> Iterator[None]:
    """Switch a model to this attention inside the ``with`` block.

    Going on from a long context takes less time then. The last bits of results may change.

    Args:
        model: any model of transformers. Other threads that run it see the switch, too.

    Raises:
        UnsupportedModelError: the model's attention cannot be switched.
    """
    decoder = cast(Any, model).get_decoder()
    before = decoder.config._attn_implementation
    decoder.set_attn_implementation(NAME)
    if decoder.config._attn_implementation != NAME:
        raise UnsupportedModelError(
            f"the attention of {type(decoder).__name__} cannot be switched: the model calls "
            "it directly, not through transformers' AttentionInterface. Use the model as it is."
        )
    try:
        yield
    finally:
        decoder.set_attn_implementation(before)


def attention_forward(
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

    Returns ``[batch, new, heads, v_dim]``. What this function does not do (dropout, biases, sinks,
    a cap on scores, masks for each head) goes to `transformers_attention`, with a warning.

    Raises `UnsupportedModelError` where that cannot do it either.
    """
    layer = getattr(key, "coded", None)  # a `CodedLayer`, of which these are the last tokens
    new, tokens = query.shape[2], key.shape[2] + (0 if layer is None else layer.kept)
    why = _refused(dropout, attention_mask, arguments)
    if why is not None:
        warnings.warn(f"attention 'qkvshare' leaves {why} to transformers.", stacklevel=2)
    causal_alone = attention_mask is None and new > 1
    many = why is not None or causal_alone or new >= _MANY
    if not many:
        scale = query.shape[3] ** -0.5 if scaling is None else scaling
        codes = () if layer is None else layer.codes()
        found = attend(query, key, value, attention_mask, scale, codes)
        if found is not None:
            return found, None
    if layer is not None:
        key, value = layer.numbers()
    if key.dtype == torch.bfloat16 and query.dtype == torch.float32:  # of a `HalfLayer`
        key, value = key.to(query.dtype), value.to(query.dtype)
    if many:
        arguments |= {"dropout": dropout, "scaling": scaling, "is_causal": is_causal}
        return transformers_attention(module, query, key, value, attention_mask, **arguments)
    batch, heads, _, dim = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    rows = query.reshape(batch, kv_heads, group * new, dim)  # heads of a group, then queries
    if attention_mask is not None:
        attention_mask = attention_mask[:, :, :, :tokens].repeat(1, 1, group, 1)
    out = F.scaled_dot_product_attention(rows, key, value, attn_mask=attention_mask, scale=scaling)
    return out.view(batch, heads, new, -1).transpose(1, 2).contiguous(), None


def transformers_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """The attention that transformers itself computes, whatever the model asks for.

    ``sdpa`` ignores arguments that it does not know, such as sinks (``s_aux``). A model that passes
    one gets its own ``eager`` function instead. Shapes are those of `attention_forward`.

    Raises `UnsupportedModelError` for a model that has none.
    """
    unknown = _unknown(arguments)
    if unknown is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **arguments)
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None:
        raise UnsupportedModelError(
            f"{type(module).__name__} passes {unknown!r} to its attention, which 'qkvshare' and "
            "'sdpa' would ignore. Use model.set_attn_implementation('eager')."
        )
    arguments.pop("is_causal", None)  # the mask says it
    mask = _added(attention_mask, query, key.shape[2])
    out: Tensor = eager(module, query, key, value, mask, **arguments)[0]
    return out, None


def _added(mask: Tensor | None, query: Tensor, tokens: int) -> Tensor | None:
    """A mask as ``eager`` takes it: numbers that are added to scores."""
    new = query.shape[2]
    if mask is None:
        if new == 1:
            return None
        mask = torch.ones(new, tokens, dtype=torch.bool, device=query.device).tril(tokens - new)
        mask = mask[None, None]
    if mask.dtype != torch.bool:
        return mask
    added = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device)
    return added.masked_fill_(~mask, torch.finfo(query.dtype).min)


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
    known = next((name for name in _OF_SDPA if arguments.get(name) is not None), None)
    name = known or _unknown(arguments)
    return None if name is None else f"{name!r}"


def _unknown(arguments: dict[str, Any]) -> str | None:
    """An argument that may change the numbers and that neither ``sdpa`` nor we act upon."""
    known = _HARMLESS | _OF_SDPA | {"dropout", "scaling", "is_causal"}
    return next((k for k, v in arguments.items() if v is not None and k not in known), None)


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, mask)
