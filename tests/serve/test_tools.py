"""Agents that call tools: through OpenAI's client, from a model that writes what it is told to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch

from qkvshare import Raw
from qkvshare.hf.cache.complete import complete
from qkvshare.hf.session import session as sessions
from qkvshare.hf.session.session import Session
from qkvshare.serve.service import Service

from ..conftest import tiny_model, tiny_tokenizer
from .server import NAME, make_service, serving_service, talker

# As Qwen2.5 has it, in short.
TEMPLATE = (
    "{% if messages[0].role == 'tool' %}{{ raise_exception('nobody called a tool') }}{% endif %}"
    "{% if tools %}[system]{% for tool in tools %}{{ tool | tojson }}{{ '\\n' }}{% endfor %}"
    "write <tool_call>{}</tool_call>{{ '\\n' }}{% endif %}"
    "{% for m in messages %}"
    "{% if m.role == 'tool' %}[user]<result>{{ m.content }}</result>"
    "{% elif m.tool_calls %}[assistant]{{ m.content }}{% for c in m.tool_calls %}"
    '{{ \'\\n<tool_call>\\n\' }}{"name": "{{ c.function.name }}", '
    "\"arguments\": {{ c.function.arguments | tojson }}}{{ '\\n</tool_call>' }}{% endfor %}"
    "{% else %}[{{ m.role }}]{{ m.content }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        "strict": True,
    },
}
CALL = '\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}\n</tool_call>'
ASK: list[Any] = [{"role": "user", "content": "What is the weather like in Oslo?"}]
KEEP = {"kv_transfer_params": {"keep": True, "agent": "asker"}}


@pytest.fixture(scope="module")
def session() -> Session:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return Session(tiny_model("llama", max_position_embeddings=8192), tokenizer, codec=Raw())


@pytest.fixture
def service(tmp_path: Path, session: Session) -> Service:
    return make_service(tmp_path, session)


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with serving_service(service) as address:
        yield openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


@pytest.fixture
def writes(session: Session, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the model write a text."""
    text = ""

    def generate(model: Any, ids: Any, cache: Any, sampling: Any, stream: Any, _: Any) -> Any:
        told = session.tokenizer(text, add_special_tokens=False)["input_ids"]
        stream.put(torch.tensor([[0]]))
        new = list[int]()
        for token in [*told, model.generation_config.eos_token_id]:
            new.append(token)
            stream.put(torch.tensor([token]))
            if stream.stopped:
                break
        stream.end()
        complete(model, cache, np.concatenate([ids, np.array(new[:-1], np.int32)]))
        return np.array(new, np.int32)

    def tell(what: str) -> None:
        nonlocal text
        text = what

    monkeypatch.setattr(sessions, "generate", generate)
    session.model.generation_config.eos_token_id = 2
    session._ends[:] = [2]
    return tell


def ask(client: openai.OpenAI, messages: Any = ASK, **more: Any) -> Any:
    more = {"tools": [TOOL], **more}
    return client.chat.completions.create(model=NAME, messages=messages, max_tokens=64, **more)


def test_a_call_comes_back_and_its_result_goes_on_from_the_card(
    client: openai.OpenAI, service: Service, writes: Callable[[str], None]
) -> None:
    """Nothing of the first request is read again, the call of the tool included."""
    writes("I look." + CALL)
    first = ask(client, extra_body=KEEP)
    (choice,) = first.choices
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "I look."
    assert (call.function.name, json.loads(call.function.arguments)) == (
        "weather",
        {"city": "Oslo", "days": 2},
    )
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    writes("Take an umbrella.")
    second = ask(client, [*ASK, choice.message.model_dump(exclude_none=True), result])
    assert second.choices[0].message.content == "Take an umbrella."
    assert second.choices[0].finish_reason == "stop"
    (card,) = service.stores.of(None).ls()
    assert second.usage.prompt_tokens_details.cached_tokens == card.tokens
    new = len("[user]<result>rain</result>\n[assistant]")
    assert second.usage.prompt_tokens == card.tokens + new
    # The same behind a named card, without all that it has.
    third = ask(client, [result], extra_body={"kv_transfer_params": {"card": card.digest}})
    assert third.usage.prompt_tokens == second.usage.prompt_tokens
    assert third.usage.prompt_tokens_details.cached_tokens == card.tokens


def test_the_card_is_held_while_its_tool_works(
    client: openai.OpenAI,
    service: Service,
    writes: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = list[tuple[str, str]]()
    store = service.stores.of(None)
    monkeypatch.setattr(type(store), "hold", lambda _, card, tool: held.append((card, tool)))
    writes(CALL)
    answer = ask(client, extra_body=KEEP)
    assert held == [(answer.kv_transfer_params["card"], "weather")]
    writes("No call.")
    ask(client, extra_body=KEEP)
    assert len(held) == 1


def test_a_call_is_streamed(client: openai.OpenAI, writes: Callable[[str], None]) -> None:
    writes("I look." + CALL + CALL)
    said, calls, ends = "", dict[int, Any](), list[str]()
    for chunk in ask(client, stream=True):
        (choice,) = chunk.choices
        said += choice.delta.content or ""
        for call in choice.delta.tool_calls or []:
            calls[call.index] = call.function
        ends += [choice.finish_reason] if choice.finish_reason else []
    assert (said, ends) == ("I look.", ["tool_calls"])
    assert [calls[at].name for at in (0, 1)] == ["weather", "weather"]
    assert json.loads(calls[1].arguments)["city"] == "Oslo"


def test_what_is_no_call_is_text(client: openai.OpenAI, writes: Callable[[str], None]) -> None:
    for told, more in (
        ("<tool_call>\nweather(Oslo)\n</tool_call>", {}),
        (CALL.strip(), {"tool_choice": "none"}),
        (CALL.strip(), {"tools": []}),
    ):
        writes(told)
        (choice,) = ask(client, **more).choices
        assert (choice.message.content, choice.message.tool_calls) == (told, None)
        assert choice.finish_reason == "stop"


def test_one_call_where_several_are_not_wanted(
    client: openai.OpenAI, writes: Callable[[str], None]
) -> None:
    writes(CALL + CALL)
    assert len(ask(client).choices[0].message.tool_calls) == 2
    answer = ask(client, parallel_tool_calls=False)
    assert len(answer.choices[0].message.tool_calls) == 1
    assert answer.usage.completion_tokens < len(CALL) + 2


def test_tools_are_shown_to_the_model(client: openai.OpenAI, session: Session) -> None:
    """As its chat template shows them, and no special token can be spelt in them."""
    shown = session.tokenizer.decode(session.chat.whole(ASK, [TOOL]))
    assert '"description": "of a city"' in shown
    spelt = {"type": "function", "function": {"name": "f", "description": "a</s>b", "</s>": "<s>"}}
    ids = session.chat.whole(ASK, [spelt])
    assert not {1, 2} & {*ids.tolist()}
    assert "</s>" in session.tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tool_choice": "required"}, "does not force"),
        ({"tool_choice": {"type": "function", "function": {"name": "weather"}}}, "does not force"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "name"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "no tool_call_id"),
        ({"messages": [{**ASK[0], "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        ]}]}, "an assistant calls tools"),
        ({"messages": [*ASK, {"role": "assistant", "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": "[1]"}}
        ]}]}, "no JSON object"),
        ({"messages": [*ASK, {"role": "assistant", "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{"}}
        ]}]}, "no JSON object"),
    ],
)  # fmt: skip
def test_wrong_tools_are_refused(client: openai.OpenAI, change: Any, words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        ask(client, **change)


def test_models_that_know_no_tools_are_refused(tmp_path: Path) -> None:
    with serving_service(make_service(tmp_path, talker())) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.BadRequestError, match="does not take tools"):
            ask(client)
        assert ask(client, tool_choice="none").choices[0].message.content
