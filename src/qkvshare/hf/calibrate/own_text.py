"""Text for calibration where there is none: what the model itself writes."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from ..model.config import text_config

# Short pieces, many at a time: to write takes a step a token, however many pieces there are.
_PIECE = 272  # tokens
# Every second run is sampled hotter: it strays into other languages and odd spellings, and what is
# learned from it holds for text that the model would seldom write.
_HOT = 1.3


class _Temperatures(LogitsProcessor):
    """Another temperature for each sequence of a batch, ``[batch, 1]``."""

    def __init__(self, temperatures: Tensor) -> None:
        self._temperatures = temperatures

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores / self._temperatures


def own_text(model: PreTrainedModel, contexts: int, tokens: int, seed: int = 0) -> list[list[int]]:
    """``contexts`` runs of ``tokens`` ids, sampled from the model's own distribution.

    Each run is of pieces that begin with a random token; every second run is sampled at a higher
    temperature. The same seed gives the same text on the same machine. The caller's random state is
    left as it is.
    """
    pieces = -(-tokens // _PIECE)
    length = -(-tokens // pieces)
    rows = torch.arange(contexts * pieces, device=model.device)[:, None]
    heat = _Temperatures(torch.where(rows // pieces % 2 == 1, _HOT, 1.0))
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        first = torch.randint(text_config(model).vocab_size, (contexts * pieces, 1))
        found = cast(Any, model).generate(
            first.to(model.device),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=length - 1,
            min_new_tokens=length - 1,
            eos_token_id=None,
            pad_token_id=0,
            logits_processor=LogitsProcessorList([heat]),
        )
    runs = found.view(contexts, pieces * length)[:, :tokens]
    return [run.tolist() for run in runs.cpu()]
