"""A hand-off between two processes that share nothing but a file.

    python examples/two_processes.py

The first process reads a manual and writes a card; the second loads the same model, opens the card
and answers at once. Give the file to another machine and it works the same there.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

import qkvshare
from qkvshare.hf.model.load import load_model


def read(path: Path) -> None:
    """The sender."""
    model, tokenizer = load_model("smollm2-135m")
    text = files("qkvshare.cli").joinpath("manual.txt").read_text()
    card = qkvshare.capture(model, tokenizer, text, bits=4.0, agent="reader", ttl=3600)
    card.save(path)
    print(f"reader: {card.tokens} tokens in {path.stat().st_size:,} bytes", flush=True)


def answer(path: Path) -> None:
    """The receiver: a wrong model, a damaged or an expired card would be refused here."""
    model, tokenizer = load_model("smollm2-135m")
    card = qkvshare.CacheCard.load(path)
    question = "\n\nQuestion: What is the ink made from?\nAnswer:"
    inputs = card.inputs(model, tokenizer, question)
    output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    said = output[0, inputs["input_ids"].shape[1] :]
    print("answerer:", tokenizer.decode(said).strip(), flush=True)


def main() -> None:
    """Start one process after the other."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "manual.card")
        for role in ("read", "answer"):
            subprocess.run([sys.executable, __file__, role, path], check=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        {"read": read, "answer": answer}[sys.argv[1]](Path(sys.argv[2]))
    else:
        main()
