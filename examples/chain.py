"""A chain of three agents: one reads, one picks out, one concludes.

    python examples/chain.py

Each agent goes on from the card of the one before. What was handed over once is never encoded
again: every new card has the old segments, byte for byte, and one more for what was read and said.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import qkvshare
from qkvshare.hf.model.load import load_model

TASKS = {
    "picker": "\n\nThe three most important facts of this text are:\n1.",
    "writer": "\n\nIn one sentence, what is the text about?\nAnswer:",
}


def take_turn(
    model: Any, tokenizer: Any, card: qkvshare.CacheCard, agent: str, task: str
) -> tuple[str, qkvshare.CacheCard]:
    """What ``agent`` says after ``task``, and the card it hands on."""
    inputs = card.inputs(model, tokenizer, task)
    out = model.generate(
        **inputs, min_new_tokens=8, max_new_tokens=40, do_sample=False, return_dict_in_generate=True
    )
    said = out.sequences[0, inputs["input_ids"].shape[1] :]
    return tokenizer.decode(said, skip_special_tokens=True), card.extend(model, out, agent=agent)


def main() -> None:
    """Run the chain on the embedded model."""
    model, tokenizer = load_model("smollm2-135m")
    text = files("qkvshare.cli").joinpath("manual.txt").read_text()
    card = qkvshare.capture(model, tokenizer, text, bits=4.0, agent="reader")
    for agent, task in TASKS.items():
        said, card = take_turn(model, tokenizer, card, agent, task)
        print(f"{agent}: {said.strip()}\n")
    for hop in card.manifest.lineage:
        print(f"hop {hop.hop}: {hop.agent} added {hop.tokens_added} tokens")
    print(f"{card.nbytes:,} bytes, {card.bits_per_value:.2f} bits per value")


if __name__ == "__main__":
    main()
