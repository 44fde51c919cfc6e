"""Messages and tools as chat templates take them, and some that show what a template writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]
Tool = dict[str, Any]

ASKED: Message = {"role": "user", "content": "some words"}
SOME_TOOL: Tool = {
    "type": "function",
    "function": {
        "name": "some_tool",
        "description": "does something",
        "parameters": {"type": "object", "properties": {"of": {"type": "string"}}},
    },
}


def called(ids: Sequence[str]) -> list[Message]:
    """The assistant calls `SOME_TOOL` once for each of ``ids``; then what each call gave."""
    function = {"name": "some_tool", "arguments": {"of": "it"}}
    calls = [{"id": at, "type": "function", "function": function} for at in ids]
    gave = [{"role": "tool", "tool_call_id": at, "content": "something"} for at in ids]
    return [{"role": "assistant", "content": "", "tool_calls": calls}, *gave]
