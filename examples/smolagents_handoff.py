"""Hand-off between two agents of smolagents.

    qkvshare serve -m smollm2-135m
    python examples/smolagents_handoff.py

The second agent goes on from the card that the first one's last step left. (The embedded model is
too small to write code that runs; see who has read what.)
"""

from __future__ import annotations

import os
from importlib.resources import files
from typing import Any

from openai import OpenAI
from smolagents import CodeAgent, LogLevel, OpenAIModel
from smolagents.agents import EMPTY_PROMPT_TEMPLATES

URL = os.environ.get("QKVSHARE_URL", "http://127.0.0.1:8000/v1")
TOKEN = os.environ.get("QKVSHARE_TOKEN", "none")
# The built-in ones have 2,000 tokens.
PROMPTS = {
    **EMPTY_PROMPT_TEMPLATES,
    "system_prompt": "You help with manuals. Reply in plain words.",
    "final_answer": {"pre_messages": "Answer now.", "post_messages": "{{task}}"},
}


def agent(**transfer: Any) -> CodeAgent:
    """An agent that takes part in a hand-off."""
    name = OpenAI(base_url=URL, api_key=TOKEN).models.list().data[0].id
    body = {"kv_transfer_params": transfer}
    model = OpenAIModel(
        name, api_base=URL, api_key=TOKEN, temperature=0, max_tokens=24, extra_body=body
    )
    return CodeAgent([], model, prompt_templates=PROMPTS, max_steps=1, verbosity_level=LogLevel.OFF)


def usage(done: CodeAgent) -> tuple[Any, int, int]:
    """Of an agent's first step: the raw answer, tokens cached and in all."""
    raw = done.memory.steps[1].model_output_message.raw
    return raw, raw.usage.prompt_tokens_details.cached_tokens, raw.usage.prompt_tokens


def main() -> None:
    """One reads the manual, one answers."""
    reader = agent(keep=True, agent="reader")
    reader.run(files("qkvshare.cli").joinpath("manual.txt").read_text())
    raw, cached, tokens = usage(reader)
    print(f"reader: {cached} of {tokens} tokens from a card")
    writer = agent(card=raw.kv_transfer_params["card"])
    print(f"writer: {writer.run('What is the ink made from?')}")
    _, cached, tokens = usage(writer)
    print(f"writer: {cached} of {tokens} tokens from a card")


if __name__ == "__main__":
    main()
