"""Learn a profile: what the transform codec needs of a model, from texts that the model reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...card import Layer
from ...card.errors import UnsupportedModelError
from ...codecs.fitting import fit
from ...codecs.tiered import SINKS
from ...profile import Profile
from ..cache.observe import observe
from ..capture.reading import read
from ..capture.sensitivity import fisher, sensitivity
from ..model.identity import identify

# Every so many texts the Fisher information is taken: it costs more than reading.
_EVERY = 4
_LEAST = 1e-4  # of the mean weight


def calibrate(
    model: PreTrainedModel,
    texts: Sequence[Sequence[int]],
    following_tokens: int,
    rate: float = 1.0,
    progress: Callable[[str], None] = lambda what: None,
) -> Profile:
    """Learn from ``texts`` (ids); the last ``following_tokens`` of each are the future.

    ``rate`` is the bits per value that the transform codec's predictors are fitted for. What is
    under way is told to ``progress``. The same texts give the same profile. Raises
    `UnsupportedModelError`.
    """
    if not observe(model).layers:
        raise UnsupportedModelError(
            f"{type(model).__name__} keeps no keys and values, so there is nothing to calibrate. "
            "Cards of it need no profile."
        )
    progress("transform: sensitivity")
    identity = identify(model)
    copying = torch.stack(sensitivity(model, identity))
    draw = torch.Generator().manual_seed(0)
    reading, taken = torch.zeros_like(copying), 0
    columns: list[tuple[list[Tensor], list[Tensor]]] = []
    for number, text in enumerate(texts):
        progress(f"transform: context {number + 1} of {len(texts)}")
        ids = torch.tensor(text)
        if number % _EVERY == 0:
            known, after = ids[:-following_tokens], ids[-following_tokens:]
            with torch.inference_mode(False), torch.enable_grad():
                reading += torch.stack(fisher(model, known, after, draw))
            taken += 1
        state = read(model, ids.numpy())
        columns = columns or [([], []) for _ in state.layers]
        for layer, pair in enumerate(columns):
            cached = state.layer(layer, SINKS, True)
            for part, into in zip((cached.keys, cached.values), pair, strict=True):
                into.append(part.transpose(0, 1).flatten(1).half().cpu())
    layers = [(torch.cat(keys), torch.cat(values)) for keys, values in columns]
    weights = _weights(copying, reading / taken, state.layers, layers)
    wide = []
    for number, at in enumerate(state.layers):
        keys, values = (weights[number, kind] for kind in (0, 1))
        wide.append((keys.repeat_interleave(at.head_dim), values.repeat_interleave(at.v_head_dim)))
    passes = count(1)
    sources = _sources(state.layers)
    arrays = fit(layers, wide, sources, rate, lambda: progress(f"transform: pass {next(passes)}"))
    return Profile(identity.weights, arrays)


def _weights(
    copying: Tensor,
    reading: Tensor,
    shapes: Sequence[Layer],
    layers: Sequence[tuple[Tensor, Tensor]],
) -> Tensor:
    """Weight of each head's squared error, ``[layers, 2 (keys, values), kv_heads]``, mean 1.

    ``sqrt(Fisher / mean energy)``: see docs/codec-transform.md.
    """
    fisher = copying / copying.mean() + reading / reading.mean()
    energies = [
        [part.float().square().mean(0).view(at.kv_heads, -1).mean(1) for part in pair]
        for at, pair in zip(shapes, layers, strict=True)
    ]
    energy = torch.stack([torch.stack(pair) for pair in energies])
    weights = (fisher / energy.clamp(min=1e-30)).sqrt()
    return (weights / weights.mean()).clamp(min=_LEAST)


def _sources(layers: Sequence[Layer]) -> list[tuple[int, ...]]:
    """For each layer the two nearest below it that hold the same tokens."""
    out = []
    for number, layer in enumerate(layers):
        alike = [at for at in range(number - 1, -1, -1) if layers[at].window == layer.window]
        out.append(tuple(alike[:2]))
    return out
