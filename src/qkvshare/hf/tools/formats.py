"""How families of models write calls of tools.

Each is a response template of transformers, whose parser reads the answer while it is generated.
A tokenizer may have one of its own. Of the others, the chat template shows the family.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

CALLS, CONTENT = "tool_calls", "content"


@dataclass(frozen=True)
class ToolFormat:
    """Where calls begin and end in an answer.

    Attributes:
        shows: what the chat templates of the family have in them.
        calls: the response template's field of calls.
    """

    shows: str
    calls: Mapping[str, Any]

    @property
    def template(self) -> dict[str, Any]:
        """A response template: calls, and all else as it is."""
        fields = {CALLS: dict(self.calls), CONTENT: {"content": "text"}}
        return {"start_anchor_pattern": r"\A", "fields": fields}

    @property
    def opens(self) -> re.Pattern[str]:
        """What begins a call."""
        return re.compile(self._mark("open"))

    @property
    def closes(self) -> re.Pattern[str] | None:
        """What ends a call; None where that is the end of the answer."""
        mark = self._mark("close")
        return re.compile(mark) if mark else None

    def _mark(self, name: str) -> str:
        literals = self.calls.get(name, [])
        literals = [literals] if isinstance(literals, str) else literals
        return str(self.calls.get(f"{name}_pattern", "|".join(map(re.escape, literals))))

    def words(self, tokenizer: PreTrainedTokenizerBase) -> set[int]:
        """Ids of special tokens that an answer's text must keep, since calls are marked by them."""
        plain = re.sub(r"\\(.)", r"\1", "\n".join(map(str, self.calls.values())))
        added = tokenizer.added_tokens_decoder.items()
        return {at for at, token in added if token.special and token.content in plain}


# In the order in which they are looked for, since some templates show two.
FORMATS = (
    # Mistral, newer: [TOOL_CALLS]name[ARGS]{…}
    ToolFormat(
        "[ARGS]",
        {
            "open_pattern": r"\[TOOL_CALLS\](?P<name>[^\[\]{}]+)(?:\[CALL_ID\]\w+)?\[ARGS\]",
            "close_pattern": r"(?=\[TOOL_CALLS\])",
            "content": "text",
            "transform": {"name": "{name}", "arguments": "{content}"},
            "repeats": True,
        },
    ),
    # Mistral: [TOOL_CALLS] [{"name": …, "arguments": …}]
    ToolFormat(
        "[TOOL_CALLS]",
        {"open": "[TOOL_CALLS]", "content": "text", "repeats": True},
    ),
    # Llama 3: the answer is nothing but {"name": …, "parameters": …}
    ToolFormat(
        "<|python_tag|>",
        {
            "open_pattern": r"\A\s*(?:<\|python_tag\|>)?(?=\s*\{\s*\"(?:name|type)\")",
            "content": "text",
            "repeats": True,
        },
    ),
    # Qwen3-Coder, Qwen3.5: <function=name><parameter=key>value</parameter></function>
    ToolFormat(
        "<function=",
        {
            "open_pattern": r"\s*<tool_call>\s*<function=(?P<name>[^>\n]+)>",
            "close_pattern": r"</function>\s*</tool_call>",
            "content": "xml-inline",
            "content_args": {
                "tag_pattern": r"<parameter=(?P<key>[^>\n]+)>\n?(?P<value>.*?)\n?</parameter>"
            },
            "transform": {"function": {"name": "{name}", "arguments": "{content}"}},
            "repeats": True,
        },
    ),
    # Hermes, Qwen2.5, Qwen3, SmolLM3: <tool_call>{"name": …, "arguments": …}</tool_call>
    # Small ones, and Qwen2.5-Coder, leave the tags out, and may write JSON as Markdown has it.
    ToolFormat(
        "<tool_call>",
        {
            "open_pattern": r"\s*<tool_call>|\A\s*(?:```(?:json)?\s*)?(?=\{+\s*\"name\")",
            "close": "</tool_call>",
            "content": "text",
            "repeats": True,
        },
    ),
)


def tool_format(tokenizer: PreTrainedTokenizerBase) -> ToolFormat | None:
    """That of the model with this tokenizer; None where it is not known."""
    own = getattr(tokenizer, "response_template", None)
    if isinstance(own, Mapping) and CALLS in (fields := own.get("fields", {})):
        return ToolFormat("", fields[CALLS])
    shown = str(getattr(tokenizer, "chat_template", None) or "")
    return next((each for each in FORMATS if each.shows in shown), None)
