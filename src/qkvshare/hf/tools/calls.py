"""Calls of tools, as a model writes them."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_CHARACTERS = string.ascii_letters + string.digits


def _new_id() -> str:
    # Nine letters and digits, as the templates of Mistral insist on.
    return "".join(secrets.choice(_CHARACTERS) for _ in range(9))


@dataclass(frozen=True)
class ToolCall:
    """``arguments`` are JSON, in the order in which the model wrote them."""

    name: str
    arguments: str
    id: str = field(default_factory=_new_id)


def calls_in(value: Any) -> list[ToolCall]:
    """The calls in what a parser found: a text with JSON, or what it made of that.

    A call is an object with a ``name`` and its ``arguments`` (Llama: ``parameters``), or a function
    with these. Several are a list, or stand one behind the other. Raises `ValueError`.
    """
    if isinstance(value, str):
        text = value.strip(" \n\t;`")
        if text.startswith("{{"):  # some templates show calls so by mistake, and models follow
            text = text[1:].removesuffix("}")
        return [call for each in _objects(text) for call in calls_in(each)]
    if isinstance(value, list):
        return [call for each in value for call in calls_in(each)]
    if not isinstance(value, dict):
        raise ValueError(f"found {type(value).__name__}, expected a call")
    if isinstance(value.get("function"), dict):
        return calls_in(value["function"])
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(value.get("name"), str) or not isinstance(arguments, dict):
        raise ValueError("a call has no name, or its arguments are no object")
    return [ToolCall(value["name"], json.dumps(arguments, ensure_ascii=False))]


def _objects(text: str) -> Iterator[Any]:
    """JSON values, between which there may be spaces and semicolons."""
    if not text:
        raise ValueError("there is no call")
    while text:
        value, end = json.JSONDecoder().raw_decode(text)
        yield value
        text = text[end:].lstrip(" \n\t;")
