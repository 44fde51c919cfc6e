"""What a cache in bfloat16 costs beside what its card has lost already.

python -m benchmarks.results.half --text FILE [--contexts N]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qkvshare import capture
from qkvshare.hf.calibrate.texts import read_text, windows
from qkvshare.hf.model.load import load_model

CONTEXT, FOLLOWING = 1024, 64  # tokens


def said(model: Any, given: Mapping[str, Any]) -> Tensor:
    """Log probabilities ``[tokens, vocabulary]`` of what follows."""
    with torch.no_grad():
        return torch.log_softmax(model(**given).logits[0].double(), -1)


def divergence(right: Tensor, found: Tensor) -> float:
    """Mean KL in nats."""
    return float((right.exp() * (right - found)).sum(-1).mean())


def main() -> None:
    """Mean KL of continuations: from a card, from the same card in bfloat16, and between them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--contexts", type=int, default=8)
    asked = parser.parse_args()
    model, tokenizer = load_model("smollm2-135m")
    ids = tokenizer(read_text(asked.text))["input_ids"]
    sums = [0.0, 0.0, 0.0]
    for run in windows(ids, asked.contexts, CONTEXT + FOLLOWING):
        context, new = run[:CONTEXT], run[CONTEXT:]
        card = capture(model, None, context)
        whole = said(model, {"input_ids": torch.tensor([list(run)])})[CONTEXT:]
        ways = [
            card.inputs(model, new=new, new_only=True, kv_format=at) for at in ("model", "bfloat16")
        ]
        full, half = (said(model, way) for way in ways)
        for number, pair in enumerate(((whole, full), (whole, half), (full, half))):
            sums[number] += divergence(*pair) / asked.contexts
    print("| from text to card | from text to card in bfloat16 | between the two |\n|---|---|---|")
    print("| " + " | ".join(f"{one:.2e}" for one in sums) + " |")


if __name__ == "__main__":
    main()
