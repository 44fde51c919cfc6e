"""What `gpu.md` says, measured on one GPU in one call: parity, bandwidth, first token.

python -m benchmarks.results.gpu --json gpu.json            # under 10 minutes on an H100
python -m benchmarks.results.gpu --tiny --json tiny.json  # on a processor, of a toy model
python -m benchmarks.results.gpu --floors                   # arithmetic alone

The model is Llama-3.1-8B's configuration with *random* weights in bfloat16: times do not depend on
their values, and nothing is said about quality. The file is written anew after each step.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from typing import Any

from .gpu_kernels import Bench, Machine, bandwidth, parity

LLAMA: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
TINY = {
    **LLAMA, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64, "vocab_size": 256,
}  # fmt: skip
NEW = 11

# An H100 SXM by its data sheet: HBM3, PCIe 5.0 x16, dense bfloat16.
SHEET = Machine(3.35e12, 64e9, 989e12)


def floor_ms(path: str, config: dict[str, Any], tokens: int, card: float, at: Machine) -> float:
    """What a path cannot be below: bytes over bandwidth, operations over rate.

    ``card`` in bytes. Weights but for the table of embeddings are read once, and so is the cache.
    """
    dim, layers, wide = config["head_dim"], config["num_hidden_layers"], config["hidden_size"]
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    layer = wide * dim * (2 * heads + 2 * kv) + 3 * wide * config["intermediate_size"]
    weights = layers * layer + wide * config["vocab_size"]
    cache = 2 * 2 * layers * kv * dim * tokens
    go_on = (2 * weights + cache) / at.memory
    seen = tokens + NEW
    # Logits are made of the last token alone; of attention half is masked.
    read = 2 * layers * layer * seen + 2 * layers * heads * dim * seen * seen
    before = {
        "re-prefill": max(read / at.matrices, go_on) - go_on,
        "resident": 0.0,
        "full-precision-file": cache / at.link,
        "card-gpu": (card + cache) / at.memory,
        "hf-quantized": (card + cache) / at.memory,
    }
    floor = before.get(path, max(card / at.link, (card + cache) / at.memory))
    return float(1e3 * (go_on + floor))


def floors() -> Iterator[str]:
    """The table of `gpu.md`."""
    paths = ("re-prefill", "resident", "full-precision-file", "card-pinned", "card-gpu")
    yield "| tokens | " + " | ".join(f"`{path}`, ms" for path in paths) + " |"
    yield "|---" * (1 + len(paths)) + "|"
    for tokens in (1024, 2048, 4096, 8192, 16384, 32768):
        card = 2 * 32 * 8 * 128 * tokens * 4 / 8
        cells = (f"{floor_ms(path, LLAMA, tokens, card, SHEET):.1f}" for path in paths)
        yield f"| {tokens} | " + " | ".join(cells) + " |"


def first_token(bench: Bench, machine: Machine, lengths: list[int], rounds: int) -> None:
    """Every path at every length; others' are left out where they do not run."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from benchmarks.cli.ttft import row_of
    from benchmarks.evals.handoff import Setting
    from benchmarks.timing.cards import Card, CardFile
    from benchmarks.timing.peers import Hqq, Quanto
    from benchmarks.timing.routes import FullPrecisionFile, RePrefill, Resident
    from benchmarks.timing.staged import CardPinned, CardStaged
    from benchmarks.timing.ttft import Plan, measure_ttft
    from qkvshare.codecs import Packed

    config = TINY if bench.tiny else LLAMA
    name = "toy" if bench.tiny else "Llama-3.1-8B, random weights"
    torch.manual_seed(0)
    with torch.device(bench.device):
        auto: Any = AutoModelForCausalLM  # has no types
        model = auto.from_config(LlamaConfig(**config), dtype=torch.bfloat16)
    model = model.to(bench.device).eval()
    ids = torch.randint(1, config["vocab_size"], (max(lengths) + NEW,)).tolist()
    ours = [RePrefill, Resident, FullPrecisionFile, CardStaged, CardPinned, Card, CardFile]
    jobs: list[tuple[int, list[Any]]] = []
    for tokens in lengths:  # a file of more would take longer than all else
        jobs.append((tokens, [at for at in ours if at is not FullPrecisionFile or tokens <= 8192]))
    # Others' at the paper's lengths, before what takes longest.
    jobs[-1:-1] = [(tokens, [peer]) for tokens in lengths[:2] for peer in (Hqq, Quanto)]
    for tokens, routes in jobs:
        settings = [Setting(Packed(), 4.0)] if len(routes) > 1 else []
        try:
            (found,) = measure_ttft(model, ids, [tokens], NEW, Plan(routes, settings, rounds))
        except Exception as error:  # not ours: no compiler for their kernels, no package
            if settings:
                raise
            bench.add("left out", path=str(routes[0]), tokens=tokens, why=str(error))
            continue
        for timing in found:
            row = row_of(name, NEW, None, timing)
            floor = floor_ms(row["path"], config, tokens, timing.nbytes, machine)
            share = floor / row["ttft_ms"]["median"]
            bench.add("ttft", **row, floor_ms=floor, of_floor=share)
        del found
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()


def main() -> None:
    """All steps, or the floors."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", default="-")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--floors", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--context-tokens", type=int, nargs="*")
    given = parser.parse_args()
    if given.floors:
        print("\n".join(floors()))
        return
    if given.tiny:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    import torch

    if not given.tiny and not torch.cuda.is_available():
        sys.exit("no GPU was found; --tiny runs all of it on a processor, in an interpreter.")
    device = torch.device("cpu" if given.tiny else "cuda:0")
    bench = Bench(device, given.tiny, given.json, [])
    name = "interpreter" if given.tiny else torch.cuda.get_device_name(device)
    bench.add("device", name=name, cuda=torch.version.cuda, processors=os.cpu_count())
    parity(bench)
    machine = bandwidth(bench)
    lengths = [16] if given.tiny else [1024, 8192, 2048, 4096, 16384, 32768]  # the paper's first
    first_token(bench, machine, given.context_tokens or lengths, 1 if given.tiny else given.rounds)
    if given.json == "-":
        from benchmarks.evals.results import write_rows

        write_rows("-", bench.rows)


if __name__ == "__main__":
    main()
