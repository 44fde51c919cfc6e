"""Two agents over MCP: one captures what it reads, the other resumes from the card.

    python examples/mcp_pair.py

Each agent starts an MCP server of its own, as desktop clients do; the servers share nothing but a
store. What goes from agent to agent is a digest of 64 digits.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from importlib.resources import files
from typing import Any

from mcp import Client, StdioServerParameters


async def call(store: str, tool: str, **arguments: Any) -> Any:
    """What ``tool`` of a new server says."""
    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", "qkvshare", "mcp", "-m", "smollm2-135m", "--store", store],
        env=dict(os.environ),
    )
    async with Client(server) as client:
        result = await client.call_tool(tool, arguments)
    if result.is_error:
        raise RuntimeError(result.content[0].text)
    return result.structured_content


async def main() -> None:
    """Start one agent after the other."""
    text = files("qkvshare.cli").joinpath("manual.txt").read_text()
    with tempfile.TemporaryDirectory() as store:
        card = await call(store, "capture", text=text, agent="reader", budget=4.0)
        print(f"reader: {card['tokens']} tokens in {card['bytes']:,} bytes", flush=True)
        question = "What is the ink made from?"
        said = await call(store, "resume", card=card["digest"], prompt=question, max_tokens=40)
        print(f"answerer: {said['text'].strip()}")
        print(f"{said['cached_tokens']} of {said['prompt_tokens']} tokens came from the card")


if __name__ == "__main__":
    asyncio.run(main())
