"""Messages and tools of a chat request, and how chat templates take them."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from ..card.errors import PromptError
from ..hf.text.messages import Message, Tool
from .fields import MESSAGE, PART, admitted

ToolName = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class TextPart(BaseModel):
    """A piece of a message; other kinds than text are refused."""

    type: Literal["text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _done(cls, data: Any) -> Any:
        return admitted(data, PART, "messages.content")


class MadeFunction(BaseModel):
    """Which function was called; ``arguments`` is a JSON object in a string."""

    model_config = ConfigDict(extra="forbid")
    name: ToolName
    arguments: Annotated[str, Field(max_length=1 << 20)]


class MadeCall(BaseModel):
    """A call that an assistant has made."""

    model_config = ConfigDict(extra="forbid")
    id: Annotated[str, Field(max_length=256)]
    type: Literal["function"] = "function"
    function: MadeFunction
    index: int | None = None

    def plain(self) -> dict[str, Any]:
        """As chat templates take it: arguments as an object. Raises `PromptError`."""
        try:
            arguments = json.loads(self.function.arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise _no_arguments(self.id, str(error)) from error
        if not isinstance(arguments, dict):
            raise _no_arguments(self.id, f"found {type(arguments).__name__}")
        function = {"name": self.function.name, "arguments": arguments}
        return {"id": self.id, "type": "function", "function": function}


class Function(BaseModel):
    """A function that the model may call. ``parameters`` is a JSON schema; that a call obeys it is
    not made sure, whatever ``strict`` says."""

    model_config = ConfigDict(extra="forbid")
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class OfferedTool(BaseModel):
    """One of ``tools``."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["function"]
    function: Function

    def plain(self) -> Tool:
        """As chat templates take it."""
        function = self.function.model_dump(exclude_none=True, exclude={"strict"})
        return {"type": "function", "function": function}


class ChatMessage(BaseModel):
    """A message of the request."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(max_length=4096, fail_fast=True)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None
    tool_calls: Annotated[list[MadeCall], Field(max_length=128, fail_fast=True)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _done(cls, data: Any) -> Any:
        return admitted(data, MESSAGE, "messages")

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        if self.content is None and self.role != "assistant":
            raise ValueError(f"the {self.role}'s message has no content")
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"the {self.role}'s message has tool_calls; an assistant calls tools")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("the tool's message has no tool_call_id")
        return self

    def plain(self) -> Message:
        """As chat templates take it."""
        parts = self.content if isinstance(self.content, list) else []
        text = "".join(part.text for part in parts) if parts else self.content or ""
        role = "system" if self.role == "developer" else self.role
        plain: Message = {"role": role, "content": str(text)}
        if self.name is not None:
            plain["name"] = self.name
        if self.tool_call_id is not None:
            plain["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            plain["tool_calls"] = [call.plain() for call in self.tool_calls]
        return plain


def _no_arguments(call: str, why: str) -> PromptError:
    return PromptError(
        f"the arguments of the call {call[:80]!r} are no JSON object: {why}. Send them as the "
        "answer had them."
    )
