"""Time to the first word at the client: from a card, and from the text.

    python -m tests.serve.time_handoff --text FILE --tokens 4096

Agent A reads a document and keeps it; agent B, another client of `openai` on the same server, asks
from the card and, in turn, with the whole text. Each text is asked under a cache_salt of its own,
so that nothing of it is found. The embedded model; medians.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from openai import OpenAI

from qkvshare.hf.calibrate.texts import read_text
from qkvshare.hf.model.load import load_model

from .load import wait_for

QUESTION = {"role": "user", "content": "What was that about?"}


def first_word(client: OpenAI, messages: Any, **body: Any) -> tuple[float, Any]:
    """Milliseconds, and the usage."""
    begun, first, usage = time.perf_counter(), 0.0, None
    for chunk in client.chat.completions.create(
        model="smollm2-135m",
        messages=messages,
        max_tokens=8,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=body,
    ):
        if not first and chunk.choices and chunk.choices[0].delta.content:
            first = 1e3 * (time.perf_counter() - begun)
        usage = chunk.usage or usage
    return first, usage


def main() -> None:
    """Run, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    _, tokenizer = load_model("smollm2-135m")
    ids = tokenizer(read_text(chosen.text))["input_ids"][: chosen.tokens]
    document = {"role": "user", "content": tokenizer.decode(ids)}
    with tempfile.TemporaryDirectory() as folder, Path(folder, "log").open("w") as log:
        command = [sys.executable, "-m", "qkvshare", "serve", "-m", "smollm2-135m", "--port", "0"]
        process = subprocess.Popen([*command, "--store", f"{folder}/cards"], stderr=log, stdout=log)
        try:
            url = wait_for(process, Path(folder, "log"))
            a, b = (OpenAI(base_url=f"{url}/v1", api_key="none", timeout=600) for _ in range(2))
            kept = a.chat.completions.create(
                model="smollm2-135m",
                messages=[document],
                max_tokens=8,
                temperature=0,
                extra_body={"kv_transfer_params": {"keep": True}},
            )
            said = {"role": "assistant", "content": kept.choices[0].message.content}
            from_card, from_text = [], []
            for _ in range(chosen.rounds):
                ms, usage = first_word(b, [QUESTION], kv_transfer_params=kept.kv_transfer_params)
                from_card.append(ms)
                salt = uuid.uuid4().hex
                ms, whole = first_word(b, [document, said, QUESTION], cache_salt=salt)
                from_text.append(ms)
                assert whole.prompt_tokens_details.cached_tokens == 0
        finally:
            process.terminate()
            process.wait(30)
    cached = usage.prompt_tokens_details.cached_tokens
    card, text = statistics.median(from_card), statistics.median(from_text)
    print(f"{cached} of {usage.prompt_tokens} tokens cached, medians of {chosen.rounds}:")
    print(f"from the card {card:,.0f} ms, from the text {text:,.0f} ms: {text / card:.1f} times")


if __name__ == "__main__":
    main()
