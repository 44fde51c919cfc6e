"""Hand-off with OpenAI's own client, unchanged: one agent reads, another one answers.

    qkvshare serve -m smollm2-135m
    python examples/openai_client.py

The second agent sends its question and the digest of the first one's card, not the text.
"""

from __future__ import annotations

import os
import time
from importlib.resources import files
from typing import Any

from openai import OpenAI

URL = os.environ.get("QKVSHARE_URL", "http://127.0.0.1:8000/v1")
TOKEN = os.environ.get("QKVSHARE_TOKEN", "none")


def ask(client: OpenAI, content: str, **transfer: Any) -> tuple[Any, float]:
    """The answer, and milliseconds until its first word."""
    begun, first, last, text, kept = time.perf_counter(), 0.0, None, "", None
    for last in client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": content}],
        max_tokens=24,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"kv_transfer_params": transfer},
    ):
        if last.choices and last.choices[0].delta.content:
            first = first or 1e3 * (time.perf_counter() - begun)
            text += last.choices[0].delta.content
        kept = getattr(last, "kv_transfer_params", None) or kept
    return {"text": text, "usage": last.usage, "card": kept and kept["card"]}, first


def main() -> None:
    """Read a manual, and ask from its card and from its text."""
    reader, asker = (OpenAI(base_url=URL, api_key=TOKEN) for _ in range(2))
    manual = files("qkvshare.cli").joinpath("manual.txt").read_text()
    read, _ = ask(
        reader, f"{manual}\n\nSay yes when you have read this.", keep=True, agent="reader"
    )
    question = "What is the ink made from?"
    told, from_card = ask(asker, question, card=read["card"])
    print(f"from the card: {told['text'].strip()}")
    cached, tokens = told["usage"].prompt_tokens_details.cached_tokens, told["usage"].prompt_tokens
    print(f"{cached} of {tokens} tokens cached, first word after {from_card:.0f} ms")
    _, from_text = ask(asker, f"{manual}\n\n{question}")
    print(f"from the text: first word after {from_text:.0f} ms, {from_text / from_card:.1f} times")


if __name__ == "__main__":
    main()
