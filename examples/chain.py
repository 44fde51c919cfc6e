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
    arguments = card.inputs(model, tokenizer, task)
    out = model.generate(
        **arguments, max_new_tokens=40, do_sample=False, return_dict_in_generate=True
    )
    # generate has not read the last token that it said, so it is not in the cache.
    ids = out.sequences[0, :-1]
    longer = qkvshare.capture(
        model, tokenizer, token_ids=ids, cache=out.past_key_values, agent=agent
    )
    said = out.sequences[0, arguments["input_ids"].shape[1] :]
    return tokenizer.decode(said, skip_special_tokens=True), longer


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
