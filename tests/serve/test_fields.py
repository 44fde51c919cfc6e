"""What the server does with every field of a request that OpenAI or vLLM have."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import httpx
import msgspec
import openai
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase

from qkvshare.hf.session.session import Session
from qkvshare.serve import fields
from qkvshare.serve.messages import ChatMessage, TextPart
from qkvshare.serve.schema import ChatRequest, StreamOptions

from .server import NAME, make_service, serving_service, talker

ASK = [{"role": "user", "content": "When is it low?"}]
# Of each field that is done, a value.
DONE: dict[str, Any] = {
    "messages": ASK,
    "model": NAME,
    "max_tokens": 4,
    "max_completion_tokens": 4,
    "temperature": 0.5,
    "top_p": 0.9,
    "seed": 1,
    "stop": ["x"],
    "stream": False,
    "stream_options": {"include_usage": True},
    "cache_salt": "red",
    "kv_transfer_params": {"keep": False},
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "top_k": 3,
    "tools": [],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
}


@pytest.fixture(scope="module")
def session() -> Session:
    return talker()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, session: Session) -> Iterator[str]:
    with serving_service(make_service(tmp_path_factory.mktemp("cards"), session)) as address:
        yield address


def post(address: str, content: Any = None, **body: Any) -> httpx.Response:
    """One request; as bytes, or the fields beside those that it must have."""
    given = {"model": NAME, "messages": ASK, "max_tokens": 4, "temperature": 0, **body}
    return httpx.post(
        f"{address}/v1/chat/completions",
        content=json.dumps(given).encode() if content is None else content,
        headers={"Content-Type": "application/json"},
        timeout=60,
    )


def said(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def test_the_table_has_every_field_of_openais_client() -> None:
    assert set(get_type_hints(CompletionCreateParamsBase)) | {"stream"} == set(fields.OPENAI)
    assert not set(fields.OPENAI) & set(fields.VLLM)


@pytest.mark.parametrize(
    ("table", "model"),
    [
        (fields.REQUEST, ChatRequest),
        (fields.MESSAGE, ChatMessage),
        (fields.PART, TextPart),
        (fields.STREAM_OPTIONS, StreamOptions),
    ],
)
def test_the_schema_has_the_fields_that_are_done(table: Any, model: Any) -> None:
    done = {name for name, known in table.items() if known.status == "done"}
    assert done == set(model.model_fields)


def table_of(rules: Mapping[str, fields.Rule]) -> str:
    """The fields as a table of Markdown, for docs/serve.md."""
    lines = ["| field | | |", "|---|---|---|"]
    for name, rule in rules.items():
        allowed = " or ".join(f"`{msgspec.json.encode(each).decode()}`" for each in rule.neutral)
        also = f"; {allowed} is allowed" if allowed else ""
        lines.append(f"| `{name}` | {rule.status} | {rule.meaning}{also} |")
    return "\n".join(lines) + "\n"


def test_the_docs_have_the_table() -> None:
    text = Path(__file__).parents[2].joinpath("docs/serve.md").read_text("utf-8")
    for table in (fields.OPENAI, fields.VLLM, fields.MESSAGE):
        assert table_of(table) in text


@pytest.mark.parametrize("name", fields.REQUEST)
def test_every_field_does_what_the_table_says(address: str, name: str) -> None:
    known = fields.REQUEST[name]
    plain = {"model": NAME, "messages": ASK, "max_tokens": 1}
    if known.status == "done":
        assert post(address, **plain | {name: DONE[name]}).status_code == 200
        return
    # What a request asks for is what the schema holds of it.
    asked = ChatRequest.model_validate(plain)
    if known.status == "ignored":
        for value in (None, "x", 1, {"a": 1}, ["b"], True):
            assert ChatRequest.model_validate({**plain, name: value}) == asked
        return
    for value in (None, *known.neutral):
        assert ChatRequest.model_validate({**plain, name: value}) == asked
    for value in ("qkvshare", 17, {"a": 1}, ["b"]):
        refused = post(address, **{name: value})
        assert refused.status_code == 400
        error = refused.json()["error"]
        assert (error["code"], error["param"]) == ("unsupported_parameter", name)
        assert name in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"guided_json": {}}, "guided_json"),
        ({"min_tokens": 3}, "min_tokens"),
        ({"enable_thinking": False}, "enable_thinking"),
        ({"stream_options": {"continuous_usage_stats": True}}, "continuous_usage_stats"),
        ({"messages": [{**ASK[0], "reasoning_content": "so"}]}, "messages.reasoning_content"),
        ({"messages": [{**ASK[0], "prefix": True}]}, "messages.prefix"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "b": 1}]}]},
            "messages.content.b",
        ),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(
    address: str, body: dict[str, Any], param: str
) -> None:
    refused = post(address, **body)
    assert refused.status_code == 400
    assert param in str(refused.json()["error"]["param"])


def test_what_clients_send_back_of_an_answer_is_taken(address: str) -> None:
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    first = client.chat.completions.create(model=NAME, messages=ASK, max_tokens=4)  # type: ignore[arg-type]
    again = client.chat.completions.create(
        model=NAME,
        max_tokens=4,
        messages=[*ASK, first.choices[0].message.model_dump(), *ASK],  # type: ignore[list-item]
        user="u",
        metadata={"a": "b"},
        store=False,
        parallel_tool_calls=True,
        tool_choice="auto",
        tools=[],
    )
    assert again.choices[0].message.content


def test_sampling_fields_are_done(address: str, session: Session) -> None:
    warm = {"temperature": 1.8, "seed": 3, "max_tokens": 24}
    greedy = said(post(address, max_tokens=24))
    assert said(post(address, **warm)) != greedy
    assert said(post(address, **warm, top_k=1)) == greedy
    assert said(post(address, **warm, min_p=1.0)) == greedy
    for every in (0, -1):
        assert said(post(address, **warm, top_k=every)) == said(post(address, **warm))
    penalized = said(post(address, max_tokens=24, repetition_penalty=1.9))
    assert penalized != greedy
    # The penalty sees the tokens of a card, as it sees those of a text.
    kept = post(address, kv_transfer_params={"keep": True, "agent": "penalized"}).json()
    whole = [*ASK, kept["choices"][0]["message"], *ASK]
    from_card = post(address, messages=whole, repetition_penalty=1.9, max_tokens=24)
    assert from_card.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    other = post(
        address, messages=whole, repetition_penalty=1.9, max_tokens=24, cache_salt="no card"
    )
    assert other.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert said(from_card) == said(other)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "tiny", "messages": [{"role": "user", "content": "hi \\ud83d"}]}',
        b'{"model": "ti\\ud83dny", "messages": [{"role": "user", "content": "hi"}]}',
        b'{"model": "tiny", "\\ud83d": 1, "messages": [{"role": "user", "content": "hi"}]}',
        b'{"model": "tiny", "kv_transfer_params": {"\\ud83d": 1}, "messages": []}',
        b'{"model": "tiny", "stop": "\\udc00", "messages": [{"role": "user", "content": "hi"}]}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\xff"}]}',
        b'{"model": "tiny", "seed": ' + b"9" * 5000 + b"}",
        b'{"model": "tiny", "messages": ' + b"[" * 40_000 + b"}",
        b"[" * 900 + b"]" * 900,
        b"",
        b"null",
        b"[]",
    ],
)
def test_odd_bodies_are_refused(address: str, body: bytes) -> None:
    refused = post(address, body)
    assert refused.status_code == 400
    assert refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("temperature", 1e-320, 200),
        ("temperature", 5e-324, 200),
        ("top_p", 5e-324, 200),
        ("min_p", 5e-324, 200),
        ("max_tokens", 10**400, 400),
        ("temperature", float("nan"), 400),
        ("temperature", float("inf"), 400),
        ("top_p", float("nan"), 400),
        ("repetition_penalty", 1e-320, 400),
        ("repetition_penalty", float("nan"), 400),
        ("seed", -(2**63), 200),
        ("seed", 2**63, 400),
        ("top_k", 2**31 - 1, 200),
        ("stop", "", 400),
    ],
)
def test_odd_numbers_are_taken_or_refused(address: str, name: str, value: Any, status: int) -> None:
    more = {"temperature": 1.0} if name in ("top_p", "min_p", "seed", "top_k") else {}
    assert post(address, **{"max_tokens": 2, **more, name: value}).status_code == status


@pytest.mark.parametrize("digits", ["9" * 5000, "0" * 5000 + "1", "18446744073709551616"])
def test_a_range_of_any_digits_is_answered(address: str, digits: str) -> None:
    kept = post(address, kv_transfer_params={"keep": True}).json()["kv_transfer_params"]["card"]
    url = f"{address}/v1/cards/{kept}"
    length = int(httpx.head(url).headers["Content-Length"])
    for wanted in (f"bytes={digits}-", f"bytes=0-{digits}", f"bytes=-{digits}"):
        answer = httpx.get(url, headers={"Range": wanted})
        assert answer.status_code in (200, 206, 416)
        if digits.startswith("9") and wanted.startswith("bytes=0"):
            assert len(answer.content) == length
