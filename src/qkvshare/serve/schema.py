"""What requests and answers look like: OpenAI's chat completions, and the fields of a hand-off."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# As vLLM takes it.
Salt = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^@/\\\x00]+$")]


class TextPart(BaseModel):
    """A piece of a message; other kinds than text are refused."""

    type: Literal["text"]
    text: str


class Turn(BaseModel):
    """A message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(max_length=4096, fail_fast=True)] | None = None

    def plain(self) -> dict[str, str]:
        """As chat templates take it."""
        parts = self.content if isinstance(self.content, list) else []
        text = "".join(part.text for part in parts) if parts else self.content or ""
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": str(text)}


class Transfer(BaseModel):
    """``kv_transfer_params`` of a request. An unknown field is an error: it asks for something.

    ``card``: go on from this card. ``keep``: keep the conversation, answer included, as a card;
    ``budget`` (bits per value of its file), ``agent`` (a name in its lineage) and ``ttl`` (seconds)
    are about that card.
    """

    model_config = ConfigDict(extra="forbid")
    card: Digest | None = None
    keep: bool = False
    budget: Annotated[float, Field(gt=0, le=64)] | None = None
    agent: Annotated[str, Field(max_length=256)] = ""
    ttl: Annotated[float, Field(gt=0, le=1e9)] | None = None


class StreamOptions(BaseModel):
    """``stream_options``."""

    include_usage: bool = False


class ResponseFormat(BaseModel):
    """``response_format``: nothing but text."""

    type: Literal["text"]


class Ask(BaseModel):
    """The body of ``POST /v1/chat/completions``.

    What would change the answer and is not supported is refused; fields that are unknown here
    change nothing and are ignored, as clients send many.
    """

    model: str
    messages: Annotated[list[Turn], Field(min_length=1, max_length=4096, fail_fast=True)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: (
        Annotated[str, Field(min_length=1, max_length=256)]
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=16)]
        | None
    ) = None
    n: Literal[1] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    logprobs: Literal[False] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    cache_salt: Salt | None = None
    kv_transfer_params: Transfer = Transfer()

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class CachedTokens(BaseModel):
    """``prompt_tokens_details``."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens of the prompt (with those of the card), and said."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class Kept(BaseModel):
    """``kv_transfer_params`` of an answer: the card that was kept."""

    card: str


class Said(BaseModel):
    """The assistant's message."""

    role: Literal["assistant"] = "assistant"
    content: str


class Choice(BaseModel):
    """The only one."""

    index: Literal[0] = 0
    message: Said
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class Completion(BaseModel):
    """The body of an answer that is not streamed."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    kv_transfer_params: Kept | None = None


class StoredCard(BaseModel):
    """A card as it is listed; times in seconds since 1970."""

    card: str
    agent: str
    tokens: int
    bytes: int
    put_at: float
    used_at: float
    expires_at: float | None
    hits: int


class StoredCards(BaseModel):
    """The body of ``GET /v1/cards``."""

    object: Literal["list"] = "list"
    data: list[StoredCard]


class PutCard(BaseModel):
    """The body of an answer to ``POST /v1/cards``: under which digest the card is here."""

    card: str
    tokens: int
    bytes: int


class Refusal(BaseModel):
    """What was wrong."""

    message: str
    type: str
    code: str
    param: None = None


class Refused(BaseModel):
    """The body of every answer that is not one."""

    error: Refusal
