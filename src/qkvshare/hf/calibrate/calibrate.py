"""Learn what learned allocators and the transform codec need, from texts that the model reads.

The oracle they are to imitate sees the future: a token is worth as many bits as the attention that
the following tokens pay to it deserves. By rate-distortion theory four times the attention deserves
one bit more; widths are spread around five bits, the average that "Don't Waste Bits!"
(arXiv:2604.04722) reports.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...allocators import chunk_router, controller
from ...allocators.learned import train
from ...profile import Profile
from ...scorers import Attention
from ..capture.allocate import salience
from ..capture.state import read
from ..model.identity import identify
from .basis import fit_basis

_AVERAGE = 5.0  # bits
# As it is: of the queries that come, nothing is evened out.
_ORACLE = Attention(local=0, shared=0.0)


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
    learned = _train(model, texts, following_tokens, progress)
    return Profile(identify(model).weights, learned | basis)


def _train(
    model: PreTrainedModel,
    texts: Sequence[Sequence[int]],
    following_tokens: int,
    progress: Callable[[str], None],
) -> dict[str, npt.NDArray[np.float32]]:
    """The learned allocators' arrays."""
    signals, hidden, deserved = [], [], []
    for number, ids in enumerate(texts, 1):
        progress(f"allocators: context {number} of {len(texts)}")
        state = read(model, ids[:-following_tokens])
        future = torch.tensor(ids[-following_tokens:], dtype=torch.int32).numpy()
        worth = torch.zeros(len(state.ids))
        for layer in salience(state, _ORACLE, future):
            worth[len(worth) - layer.shape[1] :] += layer.mean(0).cpu()
        deserved.append(torch.log2(worth.clamp(min=1e-9)) / 2)
        signals.append(state.features.signals)
        hidden.append(state.features.hidden)
    bits = torch.cat(deserved)
    arrays: dict[str, npt.NDArray[np.float32]] = {}
    for kind, inputs in ((controller, signals), (chunk_router, hidden)):
        labels = _labels(bits, kind.WIDTHS)
        name = kind.__name__.rpartition(".")[2].replace("_", "-")
        arrays |= train(name, torch.cat(inputs), labels, kind.SIZES, len(kind.WIDTHS))
    return arrays


def _labels(bits: Tensor, widths: Sequence[int]) -> Tensor:
    """The width nearest to each of ``bits``, moved together until the average is right."""
    among = torch.tensor(widths, dtype=torch.float32)
    low, high = -100.0, 100.0
    for _ in range(40):
        middle = (low + high) / 2
        nearest = (bits[:, None] + middle - among).abs().argmin(1)
        low, high = (low, middle) if among[nearest].mean() > _AVERAGE else (middle, high)
    return nearest
