"""One reader, four workers, one who puts their answers together.

    python examples/fan_out.py

The reader reads once. Every worker gets a fork of its card; the forks share the reader's bytes, and
in one process what was decoded for the first worker is not decoded again (``held``). The workers'
answers are merged as text, by an agent that goes on from the reader's card, too.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import qkvshare
from qkvshare.hf.model.load import load_model

QUESTIONS = {
    "worker 1": "What is the ink made from?",
    "worker 2": "Who built the machine?",
    "worker 3": "How much does the machine weigh?",
    "worker 4": "What must be done before it is cleaned?",
}


def ask(
    model: Any, tokenizer: Any, card: qkvshare.CacheCard, question: str, held: Any = None
) -> tuple[str, Any]:
    """The answer, and the cache that it was given from."""
    text = f"\n\nQuestion: {question}\nAnswer:"
    inputs = card.inputs(model, tokenizer, text, cached=held)
    output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answer.strip().splitlines()[0], inputs["past_key_values"]


def main() -> None:
    """Run reader, workers and merger on the embedded model."""
    model, tokenizer = load_model("smollm2-135m")
    text = files("qkvshare.cli").joinpath("manual.txt").read_text()
    card = qkvshare.capture(model, tokenizer, text, bits=4.0, agent="reader")
    answers, held = [], None
    for worker, question in QUESTIONS.items():
        answer, held = ask(model, tokenizer, card.fork(worker), question, held)
        print(f"{worker}: {question} {answer}")
        answers.append(f"{question} {answer}")
    notes = " ".join(answers)
    summary, _ = ask(model, tokenizer, card.fork("merger"), f"{notes} In short?", held)
    print(f"merger: {summary}")


if __name__ == "__main__":
    main()
