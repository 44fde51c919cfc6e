"""Fit the transform codec's basis to keys and values that a model has made."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..kernels.rans import SYMBOLS, quantize
from .basis import PartBasis
from .basis_arrays import KINDS
from .entropy import CLASSES, DEAD, SHIFT, Tables, classes, make_tables, shifted, tally
from .refining import REFINED, refine, refined_classes, refined_tables, tally_refined

_RIDGE = 3e-3  # of the features' mean square
_SEARCH = 2048  # tokens, to find the step for a rate
_COUNTED = 10_000  # tokens at least, for scales and classes
_TRIALS = 4  # at most, with all tokens
_NEAR = 0.06  # of the rate
_LEAST = 1e-3  # bits per value, where nothing is left to say
_FALL = 0.75  # octaves that the rate falls by in an octave of the step, at about one bit
_FAR = 64 * 24  # of the step's exponent
# A token counts for its squared error to this power: bits grow with its logarithm, so that few
# tokens that are always predicted badly would otherwise cost all others.
_HARD, _MOST = -0.5, 16.0
Part = Tensor  # [tokens, columns], half precision


def fit(
    layers: Sequence[tuple[Part, Part]],
    weights: Sequence[tuple[Tensor, Tensor]],
    sources: Sequence[tuple[int, ...]],
    rate: float,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, npt.NDArray[Any]]:
    """A profile's arrays, for keys and values of ``layers``.

    ``weights`` ``[columns]`` are the errors' weights, and ``rate`` the bits per value at which
    predictors see their decoded features.
    """
    few = _some(layers, _SEARCH)
    blank = make_tables(np.zeros((CLASSES, SYMBOLS)), np.zeros((CLASSES, SYMBOLS)))
    low, high = -_FAR, _FAR  # exponents of the step; the rate falls as it grows
    while high - low > 8:
        number = (low + high) // 2
        found = _pass(few, weights, sources, number, blank, None)[2]
        low, high = (number, high) if found > rate else (low, number)
        progress()
    # Few tokens are predicted better than they should be: more will need a coarser step.
    number, found = high, rate
    for _ in range(_TRIALS):
        number += round(64 * math.log2(max(found, _LEAST) / rate) / _FALL)
        parts, scales, found, counted = _pass(layers, weights, sources, number, blank, None)
        progress()
        if abs(found / rate - 1) < _NEAR:
            break
    tables = make_tables(*counted)
    counted_on = _some(layers, _COUNTED)
    refs, total = [], (np.zeros((CLASSES, SYMBOLS)), np.zeros((CLASSES, SYMBOLS)))
    refined = np.zeros((REFINED, SYMBOLS)), np.zeros((REFINED, SYMBOLS))
    for octave in (-2, -1, 0, 1, 2):
        finer = number + 64 * octave
        _, scales, _, counted = _pass(counted_on, weights, sources, finer, tables, parts, refined)
        refs.append(scales)
        for all_, one in zip(total, counted, strict=True):
            all_ += one
        progress()
    return _arrays(parts, refs, sources, number, make_tables(*total), refined_tables(*refined))


def _some(layers: Sequence[tuple[Part, Part]], tokens: int) -> list[tuple[Part, ...]]:
    """At least so many tokens, from everywhere, or all."""
    return [tuple(part[:: max(1, len(part) // tokens)] for part in pair) for pair in layers]


def _pass(
    layers: Any, weights: Any, sources: Any, number: int, tables: Tables, fitted: Any,
    refined: Any = None,
) -> tuple[Any, Any, float, Any]:  # fmt: skip
    """Through all layers at one step; fits where ``fitted`` is None.

    Returns the parts, the scales, the bits per value if it fits (entropy column by column) and the
    counts; what a refinement would say is added to ``refined``, counts and sums.
    """
    known: dict[tuple[int, int], Tensor] = {}
    counts, sums = np.zeros((CLASSES, SYMBOLS)), np.zeros((CLASSES, SYMBOLS))
    parts, scales = list[list[PartBasis]](), list[list[npt.NDArray[np.int16]]]()
    bits, values_seen = 0.0, 0
    unit = np.float32(2.0 ** (number / 64))
    errors: dict[int, Tensor] = {}  # of the tokens, by layer
    for layer, pair in enumerate(layers):
        parts.append([])
        scales.append([])
        past = errors[sources[layer][0]] if sources[layer] else torch.ones(len(pair[0]))
        for kind in (0, 1):
            x = pair[kind].float()
            given = [known[layer, 0]] if kind else []
            given += [known[s, at] for s in sources[layer] for at in (0, 1)]
            if fitted is None:
                shares = past.clamp(1 / _MOST, _MOST) ** _HARD
                part = _fit_part(x, given, weights[layer][kind], shares / shares.mean())
            else:
                part = fitted[layer][kind]
            guess = part.mean + (torch.cat(given, 1) @ part.predictor if given else 0)
            left = (x - guess) @ part.forward
            square = left.square().mean(1)
            past = (past * square / square.median().clamp(min=1e-30)).sqrt()
            z = left.numpy()
            mean = np.abs(z).mean(0)
            scale = np.rint(256 * np.log2(np.maximum(mean, 1e-20))).clip(-32000, 32000)
            scale = scale.astype(np.int16)
            base = classes(np.stack([scale] * 5), number, number)
            rows = np.full(len(z), SHIFT, np.int32)
            units = np.full(len(z), unit, np.float32)
            values, out = np.empty(z.shape, np.int32), np.empty_like(z)
            table, activity = shifted(base), np.empty(len(z), np.int32)
            quantize(z, rows, table, units, np.float32(DEAD), tables.points, values, out, activity)
            tally(z, values, rows, table, units, counts, sums)
            if refined is not None:
                half, found = units / np.float32(2), refined_classes(out, rows, table, 1)
                tally_refined(z, out, half, refine(z, out, half, DEAD), found, *refined)
            bits += _entropy(values) if fitted is None else 0.0
            values_seen += values.size
            known[layer, kind] = guess + torch.from_numpy(out) @ part.back
            parts[-1].append(part)
            scales[-1].append(scale)
        errors[layer] = past
        needed = {s for later in sources[layer + 1 :] for s in later}
        known = {key: value for key, value in known.items() if key[0] in needed}
    return parts, scales, bits / values_seen, (counts, sums)


def _entropy(values: npt.NDArray[np.int32]) -> float:
    """Bits of all columns, each under its own frequencies."""
    total = 0.0
    for column in values.T:
        share = np.unique(column, return_counts=True)[1] / len(column)
        total -= len(column) * float((share * np.log2(share)).sum())
    return total


def _fit_part(x: Tensor, given: list[Tensor], weight: Tensor, shares: Tensor) -> PartBasis:
    """Ridge regression on what is known, then the principal axes of what is left, weighted.

    ``shares [tokens]``, with mean 1, are what each token counts for.
    """
    each, roots = shares / len(x), shares.sqrt()[:, None]
    own, features = each @ x, torch.cat([x[:, :0], *given], 1)
    center = each @ features
    rows = (features - center).mul_(roots)
    square = (rows.T @ rows).double()
    # Where nothing was decoded but means, features are all 0.
    square += torch.eye(len(square)) * (square.diagonal().mean() * _RIDGE + 1e-9)
    answer = (rows.T @ ((x - own) * roots)).double()
    predictor = torch.linalg.solve(square, answer).float().half().float()
    mean = own - center @ predictor
    rest = x - mean - features @ predictor
    root = weight.sqrt()
    spread = torch.cov((rest * roots * root).double().T)
    spread += torch.eye(len(spread)) * (spread.diagonal().mean() * 1e-9 + 1e-30)
    _, axes = torch.linalg.eigh(spread)
    axes = axes.flip(1).float()  # largest first
    back = (axes.T / root).half().float()
    return PartBasis(predictor, mean, back, np.zeros((5, x.shape[1]), np.int16), own)


def _arrays(
    parts: Any, refs: Any, sources: Any, number: int, tables: Tables, refined: Tables
) -> dict[str, npt.NDArray[Any]]:
    out: dict[str, npt.NDArray[Any]] = {
        "transform.reference": np.array([number], np.int32),
        "transform.sources": np.array([[*s, -1, -1][:2] for s in sources], np.int32),
        "transform.freq": tables.freq.astype(np.int16),
        "transform.points": tables.points,
        "transform.expected": tables.expected,
        "transform.refined.freq": refined.freq.astype(np.int16),
        "transform.refined.points": refined.points,
    }
    for layer, pair in enumerate(parts):
        for kind, part in enumerate(pair):
            name = f"transform.{layer}.{KINDS[kind]}"
            out[f"{name}.predictor"] = part.predictor.numpy().astype(np.float16)
            out[f"{name}.back"] = part.back.numpy().astype(np.float16)
            out[f"{name}.mean"] = part.mean.numpy()
            out[f"{name}.scales"] = np.stack([ref[layer][kind] for ref in refs])
    return out
