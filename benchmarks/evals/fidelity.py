"""Fidelity: how far the receiver's next-token distributions are from those without hand-off.

For each context: read it, hand it over by a card on disk, and let the text go on as expected
(teacher forcing). KL is full precision ‖ card in nats per token, top-1 the share of equal argmax,
ΔNLL the change of the true token's negative log likelihood in nats.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .handoff import Setting, hand_over, log_probabilities, read_context


@dataclass(frozen=True)
class Fidelity:
    """One context under one setting."""

    bits_per_value: float
    kl: float
    top1: float
    delta_nll: float


def measure_fidelity(
    model: Any,
    contexts: Sequence[Sequence[int]],
    context_tokens: int,
    settings: Sequence[Setting],
) -> Iterator[list[Fidelity]]:
    """For each context (ids; what is behind ``context_tokens`` is the continuation): one result
    for each setting."""
    with tempfile.TemporaryDirectory() as folder:
        for ids in contexts:
            known, rest = list(ids[:context_tokens]), list(ids[context_tokens:])
            state = read_context(model, known, settings)
            after = torch.tensor([rest], device=model.device)
            reference = log_probabilities(model, input_ids=after, past_key_values=state.cache())
            results = []
            for card in hand_over(state, settings, Path(folder)):
                found = log_probabilities(model, **card.inputs(model, new=rest, new_only=True))
                results.append(_compare(reference, found, rest, card.bits_per_value))
            yield results


def _compare(reference: Tensor, found: Tensor, ids: Sequence[int], bits: float) -> Fidelity:
    following = torch.tensor(ids[1:], device=found.device)[:, None]  # the last has none
    loss = reference[:-1].gather(1, following) - found[:-1].gather(1, following)
    return Fidelity(
        bits_per_value=bits,
        kl=(reference.exp() * (reference - found)).sum(-1).mean().item(),
        top1=(reference.argmax(-1) == found.argmax(-1)).float().mean().item(),
        delta_nll=loss.mean().item() if len(loss) else 0.0,
    )
