"""The JSON of requests and answers: OpenAI's chat completions, and the fields of a hand-off."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic.dataclasses import dataclass

from ..card.errors import UnsupportedParameterError
from ..hf.session.answers import Reuse
from ..hf.tools.reader import Tools
from ..store import Entry
from .fields import REQUEST, STREAM_OPTIONS, admitted
from .messages import ChatMessage, MadeCall, OfferedTool

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# As vLLM takes it.
Salt = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^@/\\\x00]+$")]
Agent = Annotated[str, StringConstraints(max_length=256)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class Transfer(BaseModel):
    """``kv_transfer_params`` of a request. An unknown field is an error.

    ``card``: go on from this card. ``from_agent``: go on from the card that this agent kept last.
    ``keep``: keep the conversation, answer included, as a card; ``budget`` (bits per value of its
    file), ``agent`` (a name in its lineage), ``ttl`` (seconds) and ``waits_on`` (the tool that the
    agent calls now, while which the card is kept) are about that card. ``reuse``: "exact" takes the
    longest card that the prompt begins with; "compose" also what cards have of it anywhere, which
    is approximate. By default as the server says.
    """

    model_config = ConfigDict(extra="forbid")
    card: Digest | None = None
    from_agent: Annotated[Agent, Field(min_length=1)] | None = None
    keep: bool = False
    budget: Annotated[float, Field(gt=0, le=64, allow_inf_nan=False)] | None = None
    agent: Agent = ""
    ttl: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)] | None = None
    waits_on: Annotated[Agent, Field(min_length=1)] | None = None
    reuse: Reuse | None = None

    @model_validator(mode="after")
    def _from_one(self) -> Self:
        if self.card is not None and self.from_agent is not None:
            raise ValueError("give card or from_agent, not both")
        return self


class StreamOptions(BaseModel):
    """``stream_options``."""

    include_usage: bool = False

    @model_validator(mode="before")
    @classmethod
    def _done(cls, data: Any) -> Any:
        return admitted(data, STREAM_OPTIONS, "stream_options")


class ChatRequest(BaseModel):
    """The body of ``POST /v1/chat/completions``: the fields that are done; see `fields`."""

    model_config = ConfigDict(extra="forbid")
    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096, fail_fast=True)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: Annotated[list[OfferedTool], Field(max_length=128, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    cache_salt: Salt | None = None
    kv_transfer_params: Transfer | None = None

    @model_validator(mode="before")
    @classmethod
    def _done(cls, data: Any) -> Any:
        _require_unicode(data)
        if isinstance(data, dict) and data.get("tool_choice") not in (None, "none", "auto"):
            raise UnsupportedParameterError(
                'tool_choice: this server does not force calls; expected "auto" or "none".',
                "tool_choice",
            )
        return admitted(data, REQUEST)

    @property
    def usable_tools(self) -> Tools | None:
        """What the model may call."""
        if not self.tools or self.tool_choice == "none":
            return None
        return Tools([tool.plain() for tool in self.tools], self.parallel_tool_calls is not False)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


def _require_unicode(data: Any) -> None:
    """JSON may spell half of a surrogate pair, which is no character and cannot be answered."""
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("a string has half of a surrogate pair, which is no character") from error
    except RecursionError as error:
        raise ValueError("lists and objects are nested too deep") from error


class CachedTokens(BaseModel):
    """``prompt_tokens_details``.

    A composed answer also has ``composed_tokens``, those of the cached ones that stood behind
    something else in their card, and ``repaired_tokens``, those of cards that were computed anew.
    """

    cached_tokens: int
    composed_tokens: int | None = None
    repaired_tokens: int | None = None


class Usage(BaseModel):
    """Tokens of the prompt, those of the card included, and of the answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class KeptCard(BaseModel):
    """``kv_transfer_params`` of an answer: the card that was kept."""

    card: str


class AnswerMessage(BaseModel):
    """The assistant's message; ``content`` is None where it does nothing but call tools."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    tool_calls: list[MadeCall] | None = None


class CompletionChoice(BaseModel):
    """The only choice."""

    index: Literal[0] = 0
    message: AnswerMessage
    finish_reason: Literal["stop", "length", "tool_calls"]
    logprobs: None = None


class Completion(BaseModel):
    """The body of an answer that is not streamed."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    kv_transfer_params: KeptCard | None = None


@dataclass(frozen=True)
class StoredCard(Entry):
    """A card as it is listed; times in seconds since 1970."""

    digest: Annotated[str, Field(serialization_alias="card")]


class StoredCards(BaseModel):
    """The body of ``GET /v1/cards``."""

    object: Literal["list"] = "list"
    data: list[StoredCard]


class PutCard(BaseModel):
    """The answer to ``POST /v1/cards``; ``card`` is the digest that the card has here."""

    card: str
    tokens: int
    bytes: int


class ErrorDetail(BaseModel):
    """What was wrong."""

    message: str
    type: str
    code: str
    param: str | None = None


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorDetail
