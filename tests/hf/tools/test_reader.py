"""Calls of tools, read from answers while they come."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkvshare.card.errors import UnsupportedModelError
from qkvshare.hf.tools.formats import tool_format
from qkvshare.hf.tools.reader import ToolReader, Tools

from ...conftest import tiny_tokenizer

SHOWN = {
    "hermes": "<tool_call>",
    "xml": "<tool_call> <function=",
    "llama": "<|python_tag|>",
    "mistral": "[TOOL_CALLS]",
    "mistral, newer": "[TOOL_CALLS] [ARGS]",
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "parameters": {
                "type": "object",
                "properties": {"x": {"type": "integer"}, "s": {"type": "string"}},
            },
        },
    }
]
# Family, answer, content, calls.
ANSWERS: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    ("hermes", "No call.", "No call.", []),
    (
        "hermes",
        'Let me see.\n<tool_call>\n{"name": "f", "arguments": {"x": 1.0}}\n</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>',
        "Let me see.",
        [("f", '{"x": 1.0}'), ("g", "{}")],
    ),
    (
        "hermes",
        '<tool_call>[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"ä": [1]}}]'
        "</tool_call>",
        "",
        [("f", "{}"), ("g", '{"ä": [1]}')],
    ),
    # Whole, though nobody closed it.
    ("hermes", '<tool_call>\n{"name": "f", "arguments": {}}', "", [("f", "{}")]),
    # What is no call is said as it was written.
    ("hermes", "a <tool_call>\nf()\n</tool_call> b", "a <tool_call>\nf()\n</tool_call> b", []),
    ("hermes", '<tool_call>\n{"name": "f", "argum', '<tool_call>\n{"name": "f", "argum', []),
    ("hermes", "<tool_call></tool_call>", "<tool_call></tool_call>", []),
    (
        "hermes",
        '<tool_call>{"name": 1, "arguments": {}}</tool_call>',
        '<tool_call>{"name": 1, "arguments": {}}</tool_call>',
        [],
    ),
    (
        "hermes",
        '<tool_call>x</tool_call>\n<tool_call>{"name": "f", "arguments": {}}</tool_call>',
        "<tool_call>x</tool_call>",
        [("f", "{}")],
    ),
    # Without tags, where it is nothing else and names a tool that is offered.
    ("hermes", '{"name": "f", "arguments": {}}', "", [("f", "{}")]),
    ("hermes", '```json\n{"name": "f", "arguments": {"x": 1}}\n```', "", [("f", '{"x": 1}')]),
    ("hermes", '{{"name": "f", "arguments": {"x": 1}}}', "", [("f", '{"x": 1}')]),
    ("hermes", '{"name": "g", "arguments": {}}', '{"name": "g", "arguments": {}}', []),
    ("hermes", '{"name": "f"} is one', '{"name": "f"} is one', []),
    ("hermes", '```json\n{"a": 1}\n```', '```json\n{"a": 1}\n```', []),
    ("llama", '{"name": "g", "parameters": {}}', '{"name": "g", "parameters": {}}', []),
    ("llama", '{"name": "f", "parameters": {"s": "1"}}', "", [("f", '{"s": "1"}')]),
    (
        "llama",
        '<|python_tag|>{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}',
        "",
        [("f", "{}"), ("g", "{}")],
    ),
    ("llama", '{"a": 1} is JSON', '{"a": 1} is JSON', []),
    ("llama", 'See {"name": "f", "parameters": {}}', 'See {"name": "f", "parameters": {}}', []),
    ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}}]', "", [("f", '{"x": 1}')]),
    (
        "mistral, newer",
        'Now.[TOOL_CALLS]f[ARGS]{"x": 2}[TOOL_CALLS]g[CALL_ID]a1[ARGS]{}',
        "Now.",
        [("f", '{"x": 2}'), ("g", "{}")],
    ),
    (
        "xml",
        "ok\n<tool_call>\n<function=f>\n<parameter=x>\n7\n</parameter>\n<parameter=s>\n7\n"
        "</parameter>\n</function>\n</tool_call>",
        "ok",
        [("f", '{"x": 7, "s": "7"}')],
    ),
    (
        "xml",
        "<tool_call>\n<function=f>\n<parameter=x>\n7",
        "<tool_call>\n<function=f>\n<parameter=x>\n7",
        [],
    ),
]


def tokenizer_of(family: str) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template += f"{{# {SHOWN[family]} #}}"
    return tokenizer


def read(tokenizer: Any, pieces: list[str], parallel: bool = True) -> tuple[str, list[Any]]:
    """Content and calls, as they were passed on."""
    said, calls = list[str](), list[Any]()
    reader = ToolReader(tokenizer, Tools(TOOLS, parallel), said.append, calls.append)
    for piece in pieces:
        reader.feed(piece)
    reader.end()
    assert ("".join(said), calls) == (reader.text, reader.calls)
    return reader.text, [(call.name, call.arguments) for call in calls]


@pytest.mark.parametrize(("family", "answer", "content", "calls"), ANSWERS)
def test_calls_are_found_however_the_answer_is_cut(
    family: str, answer: str, content: str, calls: Any
) -> None:
    tokenizer = tokenizer_of(family)
    for size in (1, 3, 1000):
        pieces = [answer[at : at + size] for at in range(0, len(answer), size)]
        assert read(tokenizer, pieces) == (content, calls)


PIECES = st.sampled_from(
    ["<tool_call>", "</tool_call>", '{"name": "f", "arguments": {}}', "\n", "<", "tool", "a", "["]
)


@given(pieces=st.lists(PIECES, max_size=12), family=st.sampled_from([*SHOWN]))
def test_nothing_else_is_lost(pieces: list[str], family: str) -> None:
    """Whatever is written: pieces make no difference, and without a call all of it is content."""
    tokenizer, whole = tokenizer_of(family), "".join(pieces)
    found = read(tokenizer, pieces)
    assert found == read(tokenizer, [whole])
    if not found[1]:
        assert found[0] == whole


def test_one_call_if_not_several() -> None:
    one = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    two = '<tool_call>[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]</tool_call>'
    for answer in (one + one + "more", two):
        assert read(tokenizer_of("hermes"), [answer], parallel=False) == ("", [("f", "{}")])


def test_ids_are_what_the_strictest_template_takes() -> None:
    reader = ToolReader(tokenizer_of("hermes"), Tools(TOOLS), print, print)
    reader.feed('<tool_call>{"name": "f", "arguments": {}}</tool_call>' * 2)
    one, other = (call.id for call in reader.calls)
    assert one != other
    assert len(one) == 9
    assert one.isalnum()


def test_a_tokenizers_own_template_goes_first() -> None:
    """That of the model's makers, as transformers has it."""
    tokenizer = tokenizer_of("hermes")
    tokenizer.response_template = {
        "start_anchor": "@",
        "fields": {
            "tool_calls": {
                "open": "<<",
                "close": ">>",
                "content": "json",
                "repeats": True,
                "transform": {"type": "function", "function": "{content}"},
            },
            "content": {"content": "text"},
        },
    }
    assert read(tokenizer, ['Now <<{"name": "f", "argu', 'ments": {"x": 1}}>> then']) == (
        "Now  then",
        [("f", '{"x": 1}')],
    )
    broken = 'Now <<{"name">> then <<{"name": "f", "arguments": {}}>>'
    assert read(tokenizer, [broken[:9], broken[9:]]) == (broken, [])


def test_marks_that_are_special_tokens_are_kept() -> None:
    tokenizer = tokenizer_of("mistral")
    tokenizer.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]", "[INST]"]})
    form = tool_format(tokenizer)
    assert form is not None
    assert form.words(tokenizer) == {tokenizer.convert_tokens_to_ids("[TOOL_CALLS]")}
    stream = ToolReader(tokenizer, Tools(TOOLS), print, print).stream([])
    ids = tokenizer('[INST][TOOL_CALLS] [{"name": "f", "arguments": {}}]')["input_ids"]
    import torch

    stream.put(torch.tensor([[1]]))
    for token in ids:
        stream.put(torch.tensor([token]))
    stream.end()
    assert stream.text == '[TOOL_CALLS] [{"name": "f", "arguments": {}}]'


def test_a_family_that_nobody_knows_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="not known here"):
        ToolReader(tiny_tokenizer(), Tools(TOOLS), print, print)
