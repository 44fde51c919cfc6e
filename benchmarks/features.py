"""What learned allocators look at: a second prefill, since a cache has nothing of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from qkvshare.card.digest import TokenIds
from qkvshare.card.errors import UnsupportedModelError
from qkvshare.hf.capture.probe import Watch, watched
from qkvshare.hf.model.config import text_config
from qkvshare.scoring import AttentionProbe, Scorer, evenly_spaced

# Rows of logits made at a time: a vocabulary is large.
_ROWS = 128


@dataclass(frozen=True)
class Features:
    """What learned allocators look at: tokens, not rows.

    Attributes:
        signals: ``[tokens, 4]``: entropy of the next token's distribution in nats, its largest
            probability, rarity of the token in its context in nats, and the log of the variance of
            the attention that it receives.
        hidden: hidden states in the middle of the model, ``[tokens, hidden_size]``.
    """

    signals: Tensor
    hidden: Tensor


@dataclass(frozen=True)
class _Variance(Scorer):
    """Variance over queries and query heads of the attention that a token receives."""

    name = "variance"

    def score(self, probe: AttentionProbe) -> Tensor:
        found = probe.attention()[..., : probe.tokens].flatten(1, 2)
        return found.var(1, correction=0)

    def probes(self, tokens: int) -> Tensor:
        return evenly_spaced(tokens, 64)


def read_features(model: PreTrainedModel, ids: TokenIds) -> Features:
    """Read ``ids``, unless they were the last to be read. Raises `UnsupportedModelError`."""
    return _read(model, ids.tobytes())


@lru_cache(maxsize=1)
def _read(model: PreTrainedModel, content: bytes) -> Features:
    ids: TokenIds = np.frombuffer(content, np.int32)
    tokens = torch.tensor(ids.tolist())[None].to(model.device)
    watch = Watch(model, [_Variance()])
    decoder, head = cast(Any, model).get_decoder(), cast(Any, model).get_output_embeddings()
    with torch.no_grad(), watched(model, watch):
        out = decoder(input_ids=tokens, use_cache=False, output_hidden_states=True)
        entropy, confidence = [], []
        for part in torch.split(out.last_hidden_state[0], _ROWS):
            logs = torch.log_softmax(head(part).float(), dim=-1)
            entropy.append(-(logs.exp() * logs).sum(-1))
            confidence.append(logs.amax(-1).exp())
    seen = watch.scores.get(watch.scorers[0], {})
    layers = text_config(model).num_hidden_layers
    if len(seen) != layers:
        raise UnsupportedModelError(
            f"{type(model).__name__} lets {len(seen)} of its {layers} attention layers be "
            "observed. Choose an allocator that is not learned, such as 'uniform'."
        )
    spread = sum(layer.mean(0) for layer in seen.values())
    _, kind, counts = np.unique(ids, return_inverse=True, return_counts=True)
    rarity = -np.log(counts[kind] / len(ids))
    signals = torch.stack(
        [
            torch.cat(entropy),
            torch.cat(confidence),
            torch.from_numpy(rarity).float().to(model.device),
            cast(Tensor, spread).clamp(min=1e-12).log(),
        ],
        dim=1,
    )
    hidden = out.hidden_states[len(out.hidden_states) // 2][0]
    return Features(signals.float().cpu(), hidden.float().cpu())
