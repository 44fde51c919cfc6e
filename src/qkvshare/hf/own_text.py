"""Text for calibration where there is none: what the model itself writes."""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import PreTrainedModel

from .layers import text_config

# Short pieces, many at a time: to write takes a step a token, however many pieces there are.
_PIECE = 272  # tokens


def own_text(model: PreTrainedModel, contexts: int, tokens: int, seed: int = 0) -> list[list[int]]:
    """``contexts`` runs of ``tokens`` ids, sampled from the model's own distribution.

    Each run is of pieces that begin with a random token. The same seed gives the same text on the
    same machine. The caller's random state is left as it is.
    """
    pieces = -(-tokens // _PIECE)
    length = -(-tokens // pieces)
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
        )
    runs = found.view(contexts, pieces * length)[:, :tokens]
    return [run.tolist() for run in runs.cpu()]
