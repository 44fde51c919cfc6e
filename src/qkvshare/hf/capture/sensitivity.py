"""Sensitivity: how much the model's predictions depend on each head's keys and values.

The diagonal of the Fisher information, summed over a head's numbers: the squared change of the
log likelihood, in nats per predicted token, for a change of 1 in keys or values. No text is needed.
The model reads random tokens and then the same ones again; only by looking back can it tell what
comes next, so the heads that find things in a context show themselves. They differ by a factor of
thousands between heads, and far less between contexts, so once a model is enough.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...card import Identity
from ...card.errors import UnsupportedModelError
from ...codecs import LayerKV
from ...codecs.tiered import SINKS
from ..cache.observe import positions
from ..cache.states import keep_gradients
from ..model.config import text_config
from .reading import read

_TOKENS = 64
# Of the mean over all heads: one on which nothing seemed to depend still counts for something.
_LEAST = 1e-6

_known: dict[tuple[str, str | None], list[Tensor]] = {}


def sensitivity(model: PreTrainedModel, identity: Identity) -> list[Tensor]:
    """For each layer ``[2 (keys, values), kv_heads]``, float32, measured once for ``identity``.

    The first time costs about as much as reading 256 tokens. Raises `UnsupportedModelError` for
    models that gradients do not pass.
    """
    adapter = None if identity.adapter is None else identity.adapter.digest
    key = identity.weights, adapter
    if key not in _known:
        with torch.inference_mode(False), torch.enable_grad():  # whatever the caller is in
            _known[key] = _measure(model)
    return _known[key]


def _measure(model: PreTrainedModel) -> list[Tensor]:
    config = text_config(model)
    limit = getattr(config, "max_position_embeddings", None) or 2 * _TOKENS
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (min(_TOKENS, limit // 2),), generator=draw)
    found = fisher(model, ids, ids, draw)
    mean = torch.cat([layer.flatten() for layer in found]).mean()
    if not 0 < mean < torch.inf:
        raise _unmeasurable(model, f"the mean over all heads is {mean:g}")
    return [layer.clamp(min=_LEAST * mean.item()) for layer in found]


def fisher(
    model: PreTrainedModel, ids: Tensor, following: Tensor, draw: torch.Generator
) -> list[Tensor]:
    """Fisher information that predicting ``following`` has of the keys and values of ``ids``.

    For each layer ``[2 (keys, values), kv_heads]``, in nats per predicted token, summed over all
    numbers of all tokens but the first. Raises `UnsupportedModelError`.
    """
    state = read(model, ids.numpy())
    try:
        cached = [
            LayerKV(*(part.clone().requires_grad_() for part in (layer.keys, layer.values)))
            for layer in state.cached
        ]
        after = following[None].to(model.device)
        cache = replace(state, cached=cached).cache()
        keep_gradients(cache)
        more = positions(model, len(ids), len(following))
        out = model(input_ids=after, past_key_values=cache, use_cache=True, **more)
        logits = out.logits[0].float()
        # Labels from the model's own distribution: that is what makes it Fisher information.
        chances = logits.detach().softmax(-1).cpu()
        labels = chances.multinomial(1, generator=draw)[:, 0].to(logits.device)
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        parts = [part for layer in cached for part in (layer.keys, layer.values)]
        found = torch.autograd.grad(loss, parts, allow_unused=True)
        if any(slope is None for slope in found[::2]):
            raise RuntimeError("what it says does not depend on the keys of each layer")
        # Where keys are values, too (DeepSeek V4), nobody reads the values.
        pairs = zip(found, parts, strict=True)
        slopes = [torch.zeros_like(part) if slope is None else slope for slope, part in pairs]
    except (RuntimeError, NotImplementedError) as error:
        raise _unmeasurable(model, str(error)) from error
    # Rotations keep squares: after RoPE the sum is the same as before it.
    sums = [
        slope[:, SINKS:].float().square().sum((1, 2)).cpu() / len(following) for slope in slopes
    ]
    return [torch.stack(pair) for pair in zip(sums[::2], sums[1::2], strict=True)]


def _unmeasurable(model: PreTrainedModel, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the sensitivity of {type(model).__name__} cannot be measured: {why}. Do without it: "
        "allocator=Lagrangian(sensitivity=0), or 'lagrangian:sensitivity=0' on the command line."
    )
