"""How precise must recurrent states be? On small hybrid models that this script trains first.

    python -m benchmarks.results.states --text gsm8k-train.jsonl --held-out gsm8k-test.jsonl

No trained hybrid model comes in a package, so each is trained for some minutes, byte by byte. Then
contexts are handed over with keys and values, or states, or both rounded, and the KL of the next 64
bytes is taken against going on without a hand-off.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy, kl_div
from transformers import AutoModelForCausalLM, GraniteMoeHybridConfig, Qwen3_5TextConfig

from qkvshare import CacheCard, Packed, Raw, capture
from qkvshare.codecs import Codec
from qkvshare.hf.calibrate.texts import read_text

CONTEXT, AFTER = 512, 64
COMMON: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
# A gated delta rule with states of 64 × 64 a head, and Mamba 2 with states of 64 × 64.
CONFIGS: dict[str, Any] = {
    "qwen3_5": lambda: Qwen3_5TextConfig(
        **COMMON,
        intermediate_size=512,
        num_hidden_layers=4,
        layer_types=["linear_attention", "linear_attention", "linear_attention", "full_attention"],
        head_dim=64,
        linear_num_key_heads=4,
        linear_num_value_heads=4,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
    ),
    "granitemoehybrid": lambda: GraniteMoeHybridConfig(
        **COMMON,
        num_hidden_layers=4,
        layer_types=["mamba", "mamba", "mamba", "attention"],
        intermediate_size=512,
        shared_intermediate_size=512,
        num_local_experts=0,
        num_experts_per_tok=0,
        position_embedding_type="rope",
        mamba_n_heads=8,
        mamba_d_head=64,
        mamba_d_state=64,
        mamba_n_groups=1,
        mamba_chunk_size=64,
    ),
}


def train(kind: str, text: bytes, steps: int, rows: int = 8, length: int = 256) -> Any:
    """A model that has read ``steps × rows × length`` bytes of ``text``."""
    torch.manual_seed(0)
    make: Any = AutoModelForCausalLM
    model = make.from_config(CONFIGS[kind]()).train()
    data = torch.from_numpy(np.frombuffer(text, np.uint8).astype(np.int64))
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(adam, 3e-3, total_steps=steps)
    for step in range(steps):
        starts = torch.randint(len(data) - length - 1, (rows,))
        ids = torch.stack([data[at : at + length + 1] for at in starts])
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss: Any = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        rate.step()
        adam.zero_grad()
        if step % 50 == 0:
            print(f"{kind}: step {step}, {loss.item():.3f} nats a byte", flush=True)
    print(f"{kind}: {steps} steps, {loss.item():.3f} nats a byte", flush=True)
    return model.eval()


FORGOTTEN = "recurrent states all zero, keys and values as they are"  # do they matter at all?


def ways() -> Iterator[tuple[str, Codec, float | None, int]]:
    """Name, codec, bits per value of the context, bits per number of states."""
    yield FORGOTTEN, Raw(), None, 32
    yield "states 8, keys and values as they are", Raw(), None, 8
    yield "states 4, keys and values as they are", Raw(), None, 4
    for bits in (4.0, 3.0):
        yield f"states as they are, packed {bits:g}", Packed(), bits, 32
    yield "states 8, packed 4", Packed(), 4.0, 8
    yield "states 4, packed 4", Packed(), 4.0, 4


def measure(model: Any, text: bytes, contexts: int) -> None:
    """Print a table of KL and top-1, means over contexts."""
    data = np.frombuffer(text, np.uint8).astype(np.int32)
    stride = (len(data) - CONTEXT - AFTER) // contexts
    print("| way | bits per value | state KB | KL | top-1 |\n|---|---|---|---|---|")
    for name, codec, bits, state_bits in ways():
        found = []
        for at in range(0, contexts * stride, stride):
            ids, after = np.split(data[at : at + CONTEXT + AFTER], [CONTEXT])
            card = capture(model, None, ids, codec=codec, bits=bits, state_bits=state_bits)
            off = _off(model, card, after, forgotten=name == FORGOTTEN)
            found.append([card.bits_per_value, card.state_bytes / 1e3, *off])
        mean = np.mean(found, 0)
        print(f"| {name} | {mean[0]:.2f} | {mean[1]:,.0f} | {mean[2]:.6f} | {mean[3]:.3f} |")


def _off(model: Any, card: CacheCard, after: Any, forgotten: bool) -> tuple[float, float]:
    """KL of the next tokens in nats, and how often the likeliest is the same."""
    whole = torch.from_numpy(np.concatenate([card.token_ids, after])).long()[None]
    with torch.no_grad():
        expected = model(input_ids=whole).logits[0, -len(after) :].log_softmax(-1)
        inputs = card.inputs(model, new=after, new_only=True)
        for layer in inputs["past_key_values"].layers if forgotten else ():
            for state in getattr(layer, "recurrent_states", {}).values():
                state.zero_()
        found = model(**inputs).logits[0, -len(after) :].log_softmax(-1)
    kl = kl_div(found, expected, log_target=True, reduction="none").sum(-1).mean()
    return float(kl), float((found.argmax(-1) == expected.argmax(-1)).float().mean())


def main() -> None:
    """Train and measure each kind of model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--contexts", type=int, default=16)
    given = parser.parse_args()
    for kind in CONFIGS:
        model = train(kind, read_text(given.text).encode(), given.steps)
        measure(model, read_text(given.held_out).encode(), given.contexts)


if __name__ == "__main__":
    main()
