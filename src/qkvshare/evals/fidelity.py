"""Fidelity: how far the receiver's next-token distributions are from those without hand-off.

For each context: read it, hand it over by a card on disk, and let the text go on as expected
(teacher forcing). KL is full precision ‖ card in nats per token, top-1 the share of equal argmax,
ΔNLL the change of the true token's negative log likelihood in nats.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ..card import CacheCard
from ..codecs import Codec
from ..hf.capture import capture
from ..hf.inject import inject


@dataclass(frozen=True)
class Score:
    """One context under one codec."""

    bits_per_value: float
    kl: float
    top1: float
    delta_nll: float


def measure(
    model: Any,
    contexts: Sequence[Sequence[int]],
    context_tokens: int,
    settings: Sequence[tuple[Codec, float | None]],
) -> Iterator[list[Score]]:
    """For each context (ids, the tokens after ``context_tokens`` are the continuation): a score
    for each setting, a codec and the budget it must meet."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for ids in contexts:
            known, rest = list(ids[:context_tokens]), list(ids[context_tokens:])
            cache = DynamicCache(config=model.config)
            tokens = torch.tensor([known], device=model.device)
            model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            # The reference reads on in a copy; the cards are made of the untouched original.
            after = torch.tensor([rest], device=model.device)
            reference = _distribution(
                model(input_ids=after, past_key_values=copy.deepcopy(cache), use_cache=True)
            )
            scores = []
            for codec, budget in settings:
                card = capture(model, token_ids=known, cache=cache, codec=codec, budget=budget)
                file = CacheCard.load(card.save(Path(folder) / "card"))
                found = _distribution(model(**inject(model, file, rest)))
                scores.append(_score(reference, found, rest, file.bits_per_value))
            yield scores


def _distribution(output: Any) -> Tensor:
    """Log probabilities ``[tokens, vocabulary]`` of the only sequence."""
    return torch.log_softmax(output.logits[0].float(), dim=-1)


def _score(reference: Tensor, found: Tensor, ids: Sequence[int], bits: float) -> Score:
    following = torch.tensor(ids[1:], device=found.device)[:, None]  # the last has none
    loss = reference[:-1].gather(1, following) - found[:-1].gather(1, following)
    return Score(
        bits_per_value=bits,
        kl=(reference.exp() * (reference - found)).sum(-1).mean().item(),
        top1=(reference.argmax(-1) == found.argmax(-1)).float().mean().item(),
        delta_nll=loss.mean().item() if len(loss) else 0.0,
    )
