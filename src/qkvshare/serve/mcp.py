"""A session as an MCP server: agents capture, resume, list and inspect cards; docs/mcp.md.

https://modelcontextprotocol.io, protocol versions 2026-07-28 and before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Annotated, Any, Literal

import msgspec
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ResourceError, ToolError
from mcp_types import CallToolResult, ContentBlock, ResourceLink, TextContent, ToolAnnotations
from pydantic import Field

from ..card import CacheCard
from ..card.container import MEDIA_TYPE
from ..card.digest import is_digest
from ..card.errors import CardNotFoundError
from ..codecs.stats import describe
from ..hf.session.answers import Answer, Keep, Sampling
from ..hf.session.session import Session
from ..store import Entry, Store
from .mcp_calls import cancelled, errors_as, reporting

BIG = 1 << 20  # bytes; as text in a message they are 4/3 of that
_INSTRUCTIONS = (
    "A card is what the model of this server understood of a text, kept under a digest. capture "
    "reads a text once; resume answers from its card, in this or another conversation, without "
    "reading it again, and can keep the conversation as a new card. Hand on digests, not texts."
)
_ADDS = ToolAnnotations(destructive_hint=False, open_world_hint=False)
_READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)

Agent = Annotated[str, Field(max_length=256, description="A name for the card's lineage.")]
Card = Annotated[str, Field(description="A card's digest, or at least 4 digits of it.")]
Tool = Annotated[
    Annotated[str, Field(min_length=1, max_length=256)] | None,
    Field(description="The tool that the agent calls now; the card is kept while it waits."),
]
Budget = Annotated[
    Annotated[float, Field(gt=0, allow_inf_nan=False)] | None,
    Field(description="Bits per value of the whole card; by default the codec's, or the parent's."),
]


@dataclass(frozen=True)
class Captured:
    """A card that was kept."""

    digest: str
    tokens: int
    bytes: int
    bits_per_value: float | None  # None for states alone
    milliseconds: float


@dataclass(frozen=True)
class Resumed:
    """An answer; ``cached_tokens`` were not read again, ``card`` is the new card, if kept."""

    text: str
    finish: Literal["stop", "length", "tool_calls", "cancelled"]
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    milliseconds: float
    card: str | None


@dataclass(frozen=True)
class Inspected:
    """What a card's header says, without its token ids."""

    digest: str
    tokens: int
    bytes: int
    bits_per_value: float | None  # None for states alone
    created: str
    expires: str | None
    identity: dict[str, Any]
    segments: list[dict[str, Any]]
    lineage: list[dict[str, Any]]


class CardTools:
    """The tools of one model and one store; clients read the docstrings."""

    def __init__(self, session: Session, store: Store, link: str | None, big: int) -> None:
        """See `server`."""
        self._session, self._store, self._link, self._big = session, store, link, big

    @errors_as(ToolError)
    def capture(
        self, text: str, agent: Agent = "", budget: Budget = None, waits_on: Tool = None
    ) -> Annotated[CallToolResult, Captured]:
        """Read a text once and keep what the model understood of it as a card."""
        kept = self._session.read(text, self._store, Keep(agent, budget, waits_on=waits_on))
        card = self._store.peek(str(kept.card))
        took = kept.stages_ms["keep"]
        bits = card.bits_per_value if card.manifest.layers else None
        captured = Captured(card.digest, card.tokens, card.nbytes, bits, took)
        return _result(captured, self._links(card))

    async def resume(
        self,
        context: Context[Any, Any],
        card: Card,
        prompt: Annotated[str, Field(description="What the user says after the card's text.")],
        max_tokens: Annotated[int, Field(ge=1)] = 256,
        keep: Annotated[bool, Field(description="Keep the longer conversation as a card.")] = False,
        agent: Agent = "",
        budget: Budget = None,
        waits_on: Tool = None,
    ) -> Annotated[CallToolResult, Resumed]:
        """Answer a prompt from a card, without reading the card's text again."""

        def answer_it(streaming: Callable[[str], None]) -> Answer:
            return self._session.answer(
                self._session.prompt(
                    self._store, [{"role": "user", "content": prompt}], self._store.find(card)
                ),
                Sampling(max_tokens),
                store=self._store,
                keep=Keep(agent, budget, waits_on=waits_on) if keep else None,
                on_text=streaming,
                cancelled=cancelled,
            )

        with errors_as(ToolError):
            answer = await reporting(context, answer_it)
            links = [] if answer.card is None else self._links(self._store.peek(answer.card))
        resumed = Resumed(
            text=answer.text,
            finish=answer.finish,
            prompt_tokens=answer.prompt_tokens,
            cached_tokens=answer.cached_tokens,
            new_tokens=answer.new_tokens,
            milliseconds=sum(answer.stages_ms.values()) - answer.stages_ms.get("first", 0.0),
            card=answer.card,
        )
        return _result(resumed, links)

    @errors_as(ToolError)
    def list_cards(self, limit: Annotated[int, Field(ge=1, le=1000)] = 50) -> list[Entry]:
        """List the cards that can be resumed, the last used first; times in seconds since 1970."""
        return self._store.ls()[:limit]

    @errors_as(ToolError)
    def inspect(self, card: Card) -> Annotated[CallToolResult, Inspected]:
        """Say what a card is: its model, size, codecs, and which agents it went through."""
        found = self._store.peek(self._store.find(card))
        header = describe(found)
        names = ("digest", "tokens", "bits_per_value", "created", "expires", "identity", "lineage")
        runs = [
            {name: run[name] for name in ("start", "end", "codec", "allocation")}
            for run in header["segments"]
        ]
        about = {name: header[name] for name in names}
        return _result(Inspected(bytes=found.nbytes, segments=runs, **about), self._links(found))

    @errors_as(ResourceError)
    def file(self, digest: str) -> bytes:
        """A card's file, where it is small enough for a message."""
        card = open_whole(self._store, digest)
        if card.nbytes <= self._big:
            return card.to_bytes()
        elsewhere = self._uri(card) or (
            "`qkvshare store get`, or start the server with --link. A server on the same store "
            "resumes it by its digest"
        )
        raise ResourceError(
            f"the card {digest[:12]}… has {card.nbytes:,} bytes, a message carries at most "
            f"{self._big:,}. Get it from {elsewhere}."
        )

    def _links(self, card: CacheCard) -> list[ResourceLink]:
        uri, name = self._uri(card), f"{card.digest[:12]}.card"
        if uri is None:
            return []
        return [ResourceLink(uri=uri, name=name, mime_type=MEDIA_TYPE, size=card.nbytes)]

    def _uri(self, card: CacheCard) -> str | None:
        if card.nbytes <= self._big:
            return f"card://{card.digest}"
        return None if self._link is None else f"{self._link.rstrip('/')}/{card.digest}"


def server(
    session: Session, store: Store, *, link: str | None = None, big: int = BIG
) -> MCPServer[Any]:
    """An MCP server with the tools and the resource of docs/mcp.md, not yet running.

    Args:
        session: the model that reads and answers.
        store: where cards are kept and found.
        link: URL before a card's digest, where clients fetch cards too large for a message.
        big: bytes; a card with more is not sent as a resource.
    """
    mcp: MCPServer[Any] = MCPServer(
        "qkvshare",
        title="QKVShare",
        version=version("qkvshare"),
        instructions=_INSTRUCTIONS,
        log_level="WARNING",
    )
    tools = CardTools(session, store, link, big)
    for tool in (tools.capture, tools.resume):
        mcp.add_tool(tool, annotations=_ADDS)
    for look in (tools.list_cards, tools.inspect):
        mcp.add_tool(look, annotations=_READS)
    mcp.resource("card://{digest}", name="card", mime_type=MEDIA_TYPE)(tools.file)
    return mcp


def open_whole(store: Store, digest: str) -> CacheCard:
    """The card of a whole digest: nobody finds cards by trying. Raises `CardNotFoundError`."""
    if not is_digest(digest):
        raise CardNotFoundError(
            f"{digest[:80]!r} is not a card's digest; expected its 64 hex digits, see list_cards."
        )
    return store.peek(store.find(digest))


def _result(value: Any, links: list[ResourceLink]) -> CallToolResult:
    text = msgspec.json.encode(value).decode()
    content: list[ContentBlock] = [TextContent(text=text), *links]
    return CallToolResult(content=content, structured_content=msgspec.to_builtins(value))
