"""The table of sizes in docs/guide.md: arithmetic from the shapes of models.

python -m benchmarks.results.sizing
"""

from __future__ import annotations

# Layers, KV heads, head dim; weights in billions. As their configurations on the hub have it.
MODELS = {
    "SmolLM2-135M": (30, 3, 64, 0.135),
    "Llama-3.2-1B": (16, 8, 64, 1.24),
    "Qwen3-4B": (36, 8, 128, 4.02),
    "Llama-3.1-8B": (32, 8, 128, 8.03),
}
TOKENS = (8192, 32768)
GIGABIT = 125e6  # bytes a second


def main() -> None:
    """Print it."""
    print(
        "| model | weights, 16 bits | tokens | cache in memory, 16 bits | card, 4 bits "
        "| card, 1 bit | 4-bit card over 1 Gbit/s |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, (layers, heads, dim, weights) in MODELS.items():
        for tokens in TOKENS:
            values = 2 * layers * heads * dim * tokens
            cache, four, one = (_size(values * bits / 8) for bits in (16, 4, 1))
            seconds = values / 2 / GIGABIT
            print(
                f"| {name} | {_size(2e9 * weights)} | {tokens:,} | {cache} | {four} | {one} "
                f"| {seconds:.2g} s |"
            )


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


if __name__ == "__main__":
    main()
