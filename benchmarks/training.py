"""Train the allocators of `learned`, from texts that the model reads.

The oracle they are to imitate sees the future: a token is worth as many bits as the attention that
the following tokens pay to it deserves. By rate-distortion theory four times the attention deserves
one bit more; widths are spread around five bits, the average that "Don't Waste Bits!"
(arXiv:2604.04722) reports.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qkvshare.hf.capture.reading import read
from qkvshare.hf.capture.salience import look_back
from qkvshare.hf.model.identity import identify
from qkvshare.profile import Profile
from qkvshare.scoring import AttentionScorer

from .features import read_features
from .learned import ChunkRouter, Controller

_EPOCHS, _BATCH, _RATE, _DECAY = 40, 512, 1e-3, 1e-2
_AVERAGE = 5.0  # bits
# As it is: of the queries that come, nothing is evened out.
_ORACLE = AttentionScorer(local=0, shared=0.0)


def train_allocators(
    model: PreTrainedModel,
    texts: Sequence[Sequence[int]],
    following_tokens: int,
    progress: Callable[[str], None] = lambda what: None,
) -> Profile:
    """Learn from ``texts`` (ids); the last ``following_tokens`` of each are the future.

    What is under way is told to ``progress``. The same texts give the same profile.
    """
    signals, hidden, deserved = [], [], []
    for number, ids in enumerate(texts, 1):
        progress(f"allocators: context {number} of {len(texts)}")
        state = read(model, ids[:-following_tokens])
        future = np.array(ids[-following_tokens:], np.int32)
        worth = torch.zeros(len(state.ids))
        for layer in look_back(state, _ORACLE, future):
            mean = layer.mean().clamp(min=1e-30)
            worth[len(worth) - layer.shape[1] :] += (layer / mean).mean(0).cpu()
        deserved.append(torch.log2(worth.clamp(min=1e-9)) / 2)
        features = read_features(model, state.ids)
        signals.append(features.signals)
        hidden.append(features.hidden)
    bits = torch.cat(deserved)
    arrays: dict[str, npt.NDArray[np.float32]] = {}
    for kind, inputs in ((Controller, signals), (ChunkRouter, hidden)):
        labels = _labels(bits, kind.widths)
        arrays |= train(kind.name, torch.cat(inputs), labels, kind.sizes, len(kind.widths))
    return Profile(identify(model).weights, arrays)


def _labels(bits: Tensor, widths: Sequence[int]) -> Tensor:
    """The width nearest to each of ``bits``, moved together until the average is right."""
    among = torch.tensor(widths, dtype=torch.float32)
    low, high = -100.0, 100.0
    for _ in range(40):
        middle = (low + high) / 2
        nearest = (bits[:, None] + middle - among).abs().argmin(1)
        low, high = (low, middle) if among[nearest].mean() > _AVERAGE else (middle, high)
    return nearest


def train(
    name: str, inputs: Tensor, labels: Tensor, sizes: Sequence[int], classes: int
) -> dict[str, npt.NDArray[np.float32]]:
    """Fit a network to ``labels [tokens]`` by cross entropy; arrays for `Learned.classify`."""
    mean, deviation = inputs.mean(0), inputs.std(0).clamp(min=1e-6)
    x = (inputs - mean) / deviation
    widths = [x.shape[1], *sizes, classes]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(one, two) for one, two in pairwise(widths)]
        optimizer = torch.optim.AdamW(
            [part for layer in layers for part in layer.parameters()], _RATE, weight_decay=_DECAY
        )
        for _ in range(_EPOCHS):
            for batch in torch.split(torch.randperm(len(x)), _BATCH):
                out = x[batch]
                for layer in layers[:-1]:
                    out = layer(out).relu()
                loss = nn.functional.cross_entropy(layers[-1](out), labels[batch])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    arrays = {"mean": mean, "deviation": deviation}
    for number, layer in enumerate(layers):
        arrays |= {f"{number}.weight": layer.weight.detach(), f"{number}.bias": layer.bias.detach()}
    return {f"{name}.{key}": value.float().numpy().copy() for key, value in arrays.items()}
