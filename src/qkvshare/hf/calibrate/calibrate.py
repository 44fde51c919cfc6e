"""Learn what the transform codec needs of a model, from texts that the model reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel

from ...profile import Profile
from ..model.identity import identify
from .basis import fit_basis


def calibrate(
    model: PreTrainedModel,
    texts: Sequence[Sequence[int]],
    following_tokens: int,
    rate: float = 1.0,
    progress: Callable[[str], None] = lambda what: None,
) -> Profile:
    """Learn from ``texts`` (ids); the last ``following_tokens`` of each are the future.

    ``rate`` is the bits per value that the transform codec's predictors are fitted for. What is
    under way is told to ``progress``. The same texts give the same profile.
    """
    basis = fit_basis(model, texts, following_tokens, rate, progress)
    return Profile(identify(model).weights, basis)
