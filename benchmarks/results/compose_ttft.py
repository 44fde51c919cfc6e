"""How long until the first token, when three documents come behind a new prompt?

    python -m benchmarks.results.compose_ttft -m MODEL --text gsm8k-test.jsonl

The documents' cards are files. Each way begins with a prompt and a question as ids, and ends with
the first token: reading everything, or opening the cards, composing them, and reading the question.
All ways take turns; medians of the rounds, and their ratio to reading.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer

from qkvshare import CacheCard, Span, capture, compose
from qkvshare.hf.calibrate.texts import read_text
from qkvshare.hf.compose.repairs import Deviation, First, Narrowed, Nothing, Repair
from qkvshare.hf.model.load import load_model

from ..timing.clock import Clock

_WAYS: dict[str, Repair | None] = {
    "read everything": None,
    "nothing": Nothing(),
    "first 4": First(4),
    "deviation 5%": Deviation(0.05),
    "narrowed 5%": Narrowed(0.05),
    "deviation 15%": Deviation(0.15),
    "narrowed 15%": Narrowed(0.15),
}


def main(
    text: Annotated[Path, typer.Option()],
    model: Annotated[str, typer.Option("-m", "--model")] = "smollm2-135m",
    document_tokens: int = 1024,
    rounds: int = 5,
    bits: float = 4.0,
) -> None:
    """Print a table."""
    loaded, tokenizer = load_model(model)
    ids = tokenizer(read_text(text))["input_ids"]
    prompts = [
        tokenizer(f"You are a careful {role}. Read the notes.\n\n")["input_ids"]
        for role in ("researcher", "auditor, who copies numbers as they are written")
    ]
    parts = [ids[at * document_tokens : (at + 1) * document_tokens] for at in range(3)]
    question = tokenizer("\n\nQuestion: How many are there in all?\nAnswer:")["input_ids"]
    whole = [*prompts[1], *(token for part in parts for token in part), *question]
    took: dict[str, list[float]] = {name: [] for name in _WAYS}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        files = []
        for at, part in enumerate(parts):
            card = capture(loaded, tokenizer, [*prompts[0], *part], bits=bits)
            files.append(card.save(Path(folder) / f"{at}.card"))
        clock = Clock(loaded.device)
        for number in range(rounds + 1):  # the first one warms up
            for name, repair in _WAYS.items():
                clock.settle()
                begun = clock.now()
                if repair is None:
                    given: Any = {"input_ids": torch.tensor([whole])}
                else:
                    spans = [Span(CacheCard.load(file), len(prompts[0])) for file in files]
                    found = compose(
                        loaded, [prompts[1], *spans, question], tokenizer, repair=repair
                    )
                    given = found.inputs
                loaded.generate(**given, max_new_tokens=1, do_sample=False)
                if number:
                    took[name].append(clock.between(begun, clock.now()))
    print(f"| {len(whole)} tokens, {model} | ms | of reading |\n|---|---|---|")
    reading = median(took["read everything"])
    for name, times in took.items():
        print(f"| {name} | {median(times):.0f} | {median(times) / reading:.2f} |")


if __name__ == "__main__":
    typer.run(main)
