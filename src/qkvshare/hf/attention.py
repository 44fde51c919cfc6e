"""Attention for agents that go on from a long context: few queries, many keys.

``model.set_attn_implementation("qkvshare")``, once anything of ``qkvshare.hf`` is imported. Query
heads that share a KV head are taken together, so keys and values are read once and never repeated;
transformers' own ``sdpa`` does so for a single query only. Many queries at once, as when a context
is read, go to ``sdpa``.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

NAME = "qkvshare"
# From so many queries on a matrix of all scores costs more than repeating keys and values.
_MANY = 64
# Parts that tokens are attended to in where threads would have unequal shares, and from how many
# tokens on.
_PARTS, _WORTH_PARTS = 2, 4096
# Also gives the logarithms of the sums; private, but what `sdpa` itself calls on a processor.
_flash: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


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
    group = heads // kv_heads
    rows = query.reshape(batch, kv_heads, group * new, dim)  # heads of a group, then queries
    seen = None if attention_mask is None else _Seen.of(attention_mask, group, tokens)
    if _uneven(key, value) and (seen is None or seen.added):
        out = _by_parts(rows, key, value, seen, scaling)
    else:
        whole = None if seen is None else seen.whole
        out = F.scaled_dot_product_attention(rows, key, value, attn_mask=whole, scale=scaling)
    return out.view(batch, heads, new, -1).transpose(1, 2).contiguous(), None


@dataclass(frozen=True)
class _Seen:
    """A mask for the heads of a group as more queries of one, made once for all layers.

    Attributes:
        whole: ``[batch, 1, group · new, tokens]``.
        kept: whether the next layer finds it again.
    """

    whole: Tensor
    kept: bool

    @classmethod
    def of(cls, mask: Tensor, group: int, tokens: int) -> _Seen:
        """Kept with the ``mask``, as long as that lives and nobody writes to it."""
        if mask.is_inference():  # which does not say who has written to it
            return cls(mask[:, :, :, :tokens].repeat(1, 1, group, 1), False)
        key = mask._version, group, tokens
        known: tuple[object, _Seen] | None = getattr(mask, "_seen", None)
        if known is None or known[0] != key:
            known = key, cls(mask[:, :, :, :tokens].repeat(1, 1, group, 1), True)
            mask._seen = known  # type: ignore[attr-defined]
        return known[1]

    @property
    def added(self) -> bool:
        """Whether `parts` can be made, once: it is in numbers, of one sequence."""
        return self.kept and self.whole.is_floating_point() and len(self.whole) == 1

    @cached_property
    def parts(self) -> Tensor:
        """Of the parts of `_by_parts`, ``[parts, 1, rows, tokens of a part]``."""
        whole = self.whole[0]
        of = -(-whole.shape[-1] // _PARTS)
        # Where a part has nothing to be seen, its sum must be a number.
        parts = torch.stack([whole[..., at : at + of] for at in _starts(whole.shape[-1])])
        lowest = torch.finfo(parts.dtype).min
        twice = _twice(whole.shape[-1], parts.dtype)
        return parts.clamp_(min=lowest).add_(twice).clamp_(min=lowest)


def _uneven(key: Tensor, value: Tensor) -> bool:
    """Whether torch's fused kernel, which gives each thread some KV heads, would take these and
    have more for one thread than for another."""
    batch, kv_heads, tokens, _ = key.shape
    threads = torch.get_num_threads()
    return (
        _flash is not None
        and torch.backends.cuda.flash_sdp_enabled()  # type: ignore[no-untyped-call]  # here too
        and key.device.type == "cpu"
        and key.shape == value.shape
        and key.stride(3) == value.stride(3) == 1
        and batch == 1
        and threads == _PARTS
        and kv_heads % threads > 0
        and tokens >= _WORTH_PARTS
        and not torch.is_grad_enabled()
    )


def _by_parts(
    rows: Tensor, key: Tensor, value: Tensor, seen: _Seen | None, scaling: float | None
) -> Tensor:
    """The same by parts of the tokens, as if they were more sequences, so that threads have the
    same to do; then the parts' means in the proportion of their sums (FlashDecoding's way)."""
    tokens, parts = key.shape[2], []
    of, start = -(-tokens // _PARTS), _starts(tokens)[1]
    for each in (key, value):
        size = _PARTS, each.shape[1], of, each.shape[3]
        _, head, token, number = each.stride()
        parts.append(each.as_strided(size, (start * token, head, token, number)))
    mask = _twice(tokens, key.dtype) if seen is None else seen.parts
    found, sums = _flash(rows.expand(_PARTS, -1, -1, -1), *parts, attn_mask=mask, scale=scaling)
    first, second = sums
    return torch.lerp(found[1], found[0], torch.sigmoid(first - second)[..., None].to(found.dtype))


def _starts(tokens: int) -> tuple[int, int]:
    """Where two parts of equal length begin; of an odd number one token is in both."""
    return 0, tokens // 2


@lru_cache(maxsize=2)
def _twice(tokens: int, dtype: torch.dtype) -> Tensor:
    """What keeps a token that is in both parts from the second, ``[2, 1, 1, tokens of a part]``."""
    mask = torch.zeros(_PARTS, 1, 1, -(-tokens // _PARTS), dtype=dtype)
    if tokens % _PARTS:
        mask[1, :, :, 0] = torch.finfo(dtype).min
    return mask


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
