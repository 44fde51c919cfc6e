"""Rows that machines read: means with bootstrap intervals, in one envelope for every verb."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from qkvshare.card.files import replace


def interval(values: Sequence[float], draws: int = 2000) -> dict[str, Any]:
    """Mean and its 95 % bootstrap interval (percentiles, over contexts, fixed seed)."""
    data = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(0).integers(0, len(data), (draws, len(data)))
    low, high = np.percentile(data[picks].mean(axis=1), [2.5, 97.5])
    return {"mean": float(data.mean()), "ci95": [float(low), float(high)]}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles and number of measured times."""
    low, median, high = np.percentile(values, [25, 50, 75]).tolist()
    return {"median": median, "p25": low, "p75": high, "n": len(values)}


def write_rows(target: str, rows: list[dict[str, Any]]) -> None:
    """Write the envelope to a path, or to stdout for ``-``. Raises `OutputError`."""
    import torch

    packages = ("qkvshare", "torch", "transformers", "numpy")
    envelope = {
        "schema": 1,
        "command": ["qkvshare", *sys.argv[1:]],
        "environment": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            **{name: _version(name) for name in packages},
        },
        "rows": rows,
    }
    text = msgspec.json.format(msgspec.json.encode(envelope), indent=2).decode() + "\n"
    if target == "-":
        sys.stdout.write(text)
        return
    replace(Path(target), lambda part: part.write_text(text, encoding="utf-8"))


def _version(package: str) -> str:
    """Also of a checkout that was never installed: results are not lost for that."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
