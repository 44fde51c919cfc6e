"""The kernel of attention `qkvshare` against torch's, for what SmolLM2-135M has in a layer.

python -m benchmarks.results.attention [--rounds N]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from qkvshare.kernels.attention import attend

LAYERS, HEADS, KV_HEADS, DIM = 30, 9, 3, 64
NEW, TOKENS = (1, 4, 11), (1035, 4107, 8139)

Layer = tuple[Tensor, Tensor]


def by_torch(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """``[batch, heads, new, dim]``, without copies of grouped heads."""
    return scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)


def by_kernel(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor | None:
    """``[batch, new, heads, dim]``; None where there is no kernel."""
    return attend(query, key, value, mask, DIM**-0.5)


def microseconds(
    function: Callable[..., Tensor | None], layers: list[Layer], *rest: Tensor | None
) -> float:
    """A layer, of all in turn, as a model reads them."""
    query, mask = rest
    start = time.perf_counter()
    for key, value in layers:
        function(query, key, value, mask)
    return (time.perf_counter() - start) * 1e6 / len(layers)


def main() -> None:
    """A row for each number of new tokens and of tokens: medians of both in turn, and of ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print("| new tokens | tokens | torch, µs a layer | `qkvshare`, µs | of torch's time |")
    print("|---|---|---|---|---|")
    for tokens in TOKENS:
        room = (1, KV_HEADS, tokens + 256, DIM)
        layers = [
            (torch.randn(room).narrow(2, 0, tokens), torch.randn(room).narrow(2, 0, tokens))
            for _ in range(LAYERS)
        ]
        for new in NEW:
            query = torch.randn(1, new, HEADS, DIM).transpose(1, 2)
            mask = torch.zeros(1, 1, new, tokens) if new > 1 else None
            if by_kernel(query, *layers[0], mask) is None:
                raise SystemExit("there is no kernel here: torch has threads of another kind.")
            pairs = [
                (
                    microseconds(by_torch, layers, query, mask),
                    microseconds(by_kernel, layers, query, mask),
                )
                for _ in range(rounds + 1)
            ][1:]
            torchs, ours = map(statistics.median, zip(*pairs, strict=True))
            ratio = statistics.median(mine / theirs for theirs, mine in pairs)
            print(f"| {new} | {tokens} | {torchs:,.0f} | {ours:,.0f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
