"""How a model in memory generates: settings of our own, and those of the model that we follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, GenerationConfig, PreTrainedModel, StoppingCriteria

from ...card.digest import TokenIds
from ..cache.counting import as_argument
from .answers import Sampling
from .streaming import AnswerStream

# Below this a temperature divides by next to nothing; it asks for the likeliest token.
_GREEDY = 1e-5
# Of a model's generation config: what says which tokens may come, and how likely each is.
FOLLOWED = (
    "bos_token_id", "eos_token_id", "pad_token_id", "bad_words_ids", "begin_suppress_tokens",
    "encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "suppress_tokens",
    "exponential_decay_length_penalty", "forced_eos_token_id", "min_length", "min_new_tokens",
    "no_repeat_ngram_size", "remove_invalid_values", "renormalize_logits", "repetition_penalty",
    "sequence_bias", "watermarking_config",
)  # fmt: skip
SAMPLED = ("top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
# What would change the text and is not done here, with the values that ask for nothing.
LEFT_OUT: dict[str, tuple[Any, ...]] = {
    "constraints": (None,),
    "dola_layers": (None,),
    "force_words_ids": (None,),
    "guidance_scale": (None, 1.0),
    "num_beams": (None, 1),
    "penalty_alpha": (None, 0),
    "stop_strings": (None, []),
    "token_healing": (None, False),
}


def generation_config(model: PreTrainedModel, sampling: Sampling) -> GenerationConfig:
    """The whole settings for one answer: one sequence, with the cache that is given."""
    own = model.generation_config  # None for some
    settings = {name: getattr(own, name, None) for name in FOLLOWED}
    ends = settings["eos_token_id"]
    if settings["pad_token_id"] is None and ends is not None:
        settings["pad_token_id"] = ends[0] if isinstance(ends, (list, tuple)) else ends
    settings |= {"do_sample": False, "num_beams": 1, "num_return_sequences": 1, "use_cache": True}
    if sampling.temperature >= _GREEDY:
        settings |= {name: getattr(own, name, None) for name in SAMPLED}
        asked = {"top_k": sampling.top_k, "min_p": sampling.min_p}
        settings |= {name: value for name, value in asked.items() if value is not None}
        settings |= {"do_sample": True, "temperature": sampling.temperature}
        settings |= {"top_p": sampling.top_p, "top_k": settings["top_k"] or 0}
    if sampling.repetition_penalty is not None:
        settings["repetition_penalty"] = sampling.repetition_penalty
    settings |= {"max_new_tokens": sampling.max_tokens, "return_dict_in_generate": False}
    given = {name: at for name, at in settings.items() if at is not None}
    return GenerationConfig(**given)  # type: ignore[no-untyped-call]


def left_out(model: PreTrainedModel) -> list[str]:
    """What of the model's generation config answers are made without, as ``name=value``."""
    own = model.generation_config
    found = {name: getattr(own, name, None) for name in LEFT_OUT}
    return [f"{name}={at!r}" for name, at in found.items() if at not in LEFT_OUT[name]]


def generate(
    model: PreTrainedModel,
    ids: TokenIds,
    cache: Cache,
    sampling: Sampling,
    stream: AnswerStream,
    cancelled: Callable[[], bool],
) -> TokenIds:
    """The ids generated after ``ids``, of which ``cache`` has all but the last.

    Afterwards it has all generated ids but the last, too.
    """
    if sampling.seed is not None:
        torch.manual_seed(sampling.seed)
    # All ids, since penalties look at them; the cache says which of them need not be read.
    whole = torch.from_numpy(ids.astype(np.int64))[None].to(model.device)
    settings, own = generation_config(model, sampling), model.generation_config
    called: Any = model
    # `generate` takes what is not set from the model's own config, so that must not be there.
    model.generation_config = settings
    try:
        output: Any = called.generate(
            input_ids=whole,
            attention_mask=torch.ones_like(whole),
            **as_argument(model, cache),
            generation_config=settings,
            streamer=stream,
            stopping_criteria=[_Until(lambda: stream.stopped or cancelled())],
        )
    finally:
        model.generation_config = own
    new: TokenIds = output[0, len(ids) :].cpu().numpy().astype(np.int32)
    return new


class _Until(StoppingCriteria):
    def __init__(self, ended: Callable[[], bool]) -> None:
        self._ended = ended

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self._ended(), device=input_ids.device)
