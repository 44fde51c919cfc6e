"""Two roles with system prompts of their own read the same notes; the second hardly reads at all.

    qkvshare serve -m smollm2-135m
    python examples/two_roles.py

Both send all of the text. The second prompt begins otherwise, so no card is a prefix of it. With
reuse "compose" the server takes over what the first role's card has of the notes.
"""

from __future__ import annotations

import os
import time
from importlib.resources import files
from typing import Any

from openai import OpenAI

URL = os.environ.get("QKVSHARE_URL", "http://127.0.0.1:8000/v1")
TOKEN = os.environ.get("QKVSHARE_TOKEN", "none")
QUESTIONS = ["What is the ink made from?", "Who designed the machine?"]


def ask(client: OpenAI, role: str, notes: str, question: str, **transfer: Any) -> None:
    """Print the answer, and what the server says of the prompt's tokens."""
    begun = time.perf_counter()
    answer = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[
            {"role": "system", "content": role},
            {"role": "user", "content": f"{notes}\n\n{question}"},
        ],
        max_tokens=24,
        temperature=0,
        extra_body={"kv_transfer_params": transfer},
    )
    took = 1e3 * (time.perf_counter() - begun)
    found = answer.usage.prompt_tokens_details.model_dump()
    composed, repaired = (found.get(f"{name}_tokens") or 0 for name in ("composed", "repaired"))
    print(
        f"{question} {answer.usage.prompt_tokens} tokens, {found['cached_tokens']} cached, "
        f"{composed} composed, {repaired} repaired, {took:.0f} ms: "
        f"{' '.join(answer.choices[0].message.content.split())}"
    )


def main() -> None:
    """The researcher reads; the auditor asks from cards, and once more from text."""
    client = OpenAI(base_url=URL, api_key=TOKEN)
    notes = files("qkvshare.cli").joinpath("manual.txt").read_text()
    ask(client, "You are a careful researcher.", notes, "Say yes when you have read it.", keep=True)
    role = "You are an auditor. Answer in one short sentence, with the words of the text."
    for question in QUESTIONS:
        ask(client, role, notes, question, reuse="compose")
        ask(client, role, notes, question)


if __name__ == "__main__":
    main()
