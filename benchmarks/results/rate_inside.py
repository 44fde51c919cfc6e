"""Where the bits of a `transform` card go, and how far they are from the entropy of what is coded.

python -m benchmarks.results.rate_inside --text FILE --profile smollm2.profile --bits 1.2
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from qkvshare import Transform, capture
from qkvshare.codecs import streams
from qkvshare.codecs.entropy import Tables
from qkvshare.hf.calibrate.texts import read_text, windows
from qkvshare.hf.model.load import load_model
from qkvshare.kernels.rans import ESCAPE, LARGEST, SYMBOLS, TOTAL
from qkvshare.profile import Profile


class Spy:
    """Stands in for `streams.write` and counts what goes through it."""

    def __init__(self) -> None:
        self.write = streams.write
        self.calls: list[dict[str, Any]] = []

    def __call__(self, values: Any, rows: Any, table: Any, tables: Tables) -> streams.Stream:
        """Write, and count."""
        codes, escapes = self.write(values, rows, table, tables)
        found = table[rows]
        inside = np.abs(values) <= LARGEST
        symbols = np.where(inside, values + LARGEST, ESCAPE)
        freq = tables.freq[found, symbols]
        freq = np.where(freq > 0, freq, tables.freq[found, ESCAPE])
        counts = np.bincount((found * SYMBOLS + symbols).ravel(), minlength=tables.freq.size)
        self.calls.append(
            {
                "columns": values.shape[1],
                "tables": len(tables.freq),
                "bytes": len(codes) + len(escapes),
                "escapes": len(escapes),
                "model": -np.log2(freq / TOTAL).sum() / 8,
                "counts": counts.reshape(tables.freq.shape),
                "zeros": float((values == 0).mean()),
            }
        )
        return codes, escapes


def main() -> None:
    """Print the tables of one context, or the sums of several."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--profile", type=Path, required=True)
    parser.add_argument("--bits", type=float, default=1.2)
    parser.add_argument("--contexts", type=int, default=4)
    parser.add_argument("--context-tokens", type=int, default=1024)
    given = parser.parse_args()
    model, tokenizer = load_model("smollm2-135m")
    codec = Transform.of(Profile.load(given.profile))
    ids = tokenizer(read_text(given.text))["input_ids"]
    sums: dict[str, float] = defaultdict(float)
    by_layer: dict[int, float] = defaultdict(float)
    counts: dict[int, Any] = {}
    values = model_bytes = 0.0
    for own in windows(ids, given.contexts, given.context_tokens):
        card = capture(model, None, own, codec=codec, bits=given.bits)
        exact = codec.at(int(card.manifest.segments[0].codec.parameters["step"]))
        spy = Spy()
        streams.write, before = spy, streams.write
        try:
            again = capture(model, None, own, codec=exact)
        finally:
            streams.write = before
        layers, chunks = len(card.manifest.layers), len(streams.chunks(len(own)))
        per_layer = 2 * chunks + 1
        assert len(spy.calls) == layers * per_layer
        for number, call in enumerate(spy.calls):
            layer, place = divmod(number, per_layer)
            kind = "exponents" if place == 2 * chunks else ("keys", "values")[place // chunks]
            sums[kind] += call["bytes"]
            by_layer[layer] += call["bytes"]
            if kind != "exponents":
                model_bytes += call["model"] + call["escapes"]
                known = counts.setdefault(call["tables"], 0)
                counts[call["tables"]] = known + call["counts"]
                sums["zeros"] += call["zeros"] / (layers * 2 * chunks * given.contexts)
        sums["ids"] += 4 * again.tokens
        sums["header"] += again.header_bytes
        sums["total"] += again.nbytes
        values += again.values
    sums["sizes and states"] = sums["total"] - sum(
        sums[name] for name in ("keys", "values", "exponents", "ids", "header")
    )
    print("| | bits per value | share |\n|---|---|---|")
    for name in ("keys", "values", "exponents", "sizes and states", "ids", "header", "total"):
        print(f"| {name} | {8 * sums[name] / values:.4f} | {sums[name] / sums['total']:.1%} |")
    print("\nlayers, bits per value of the layer:")
    print(", ".join(f"{8 * by_layer[at] / values * layers:.2f}" for at in sorted(by_layer)))
    print(f"\nnumbers that are 0: {sums['zeros']:.1%}")
    coded = sums["keys"] + sums["values"]
    empirical = sum(_entropy(found) for found in counts.values()) / 8
    print(f"coded ÷ entropy under its own tables: {coded / model_bytes:.4f}")
    print(f"coded ÷ empirical entropy within its classes: {coded / empirical:.4f}")


def _entropy(counts: Any) -> float:
    """Bits of the symbols, each class under its own frequencies."""
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return float(-(counts * np.log2(np.where(share > 0, share, 1))).sum())


if __name__ == "__main__":
    main()
