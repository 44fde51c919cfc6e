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
from ..hf.session.answers import Answer, Keep, Sampling
from ..hf.session.session import Session
from ..store import Entry, Store
from .mcp_calls import cancelled, reporting, told

BIG = 1 << 20  # bytes; as text in a message they are 4/3 of that
_INSTRUCTIONS = (
    "A card is what the model of this server understood of a text, kept under a digest. capture "
    "reads a text once; resume answers from its card, in this or another conversation, without "
    "reading it again, and can keep the conversation as a new card. Hand on digests, not texts."
)
_ADDS = ToolAnnotations(destructive_hint=False, open_world_hint=False)
_LOOKS = ToolAnnotations(read_only_hint=True, open_world_hint=False)

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
    bits_per_value: float
    milliseconds: float


@dataclass(frozen=True)
class Resumed:
    """What was said; ``cached_tokens`` were not read again, ``card`` is the new one, if kept."""

    text: str
    finish: Literal["stop", "length", "cancelled"]
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    milliseconds: float
    card: str | None


@dataclass(frozen=True)
class Inspected:
    """What a card's header says of it, but for its token ids."""

    digest: str
    tokens: int
    bytes: int
    bits_per_value: float
    created: str
    expires: str | None
    identity: dict[str, Any]
    segments: list[dict[str, Any]]
    lineage: list[dict[str, Any]]


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

    def look(digest: str) -> CacheCard:
        return store.peek(digest)

    def place(card: CacheCard) -> str | None:
        if card.nbytes <= big:
            return f"card://{card.digest}"
        return None if link is None else f"{link.rstrip('/')}/{card.digest}"

    def links(card: CacheCard) -> list[ResourceLink]:
        uri, name = place(card), f"{card.digest[:12]}.card"
        if uri is None:
            return []
        return [ResourceLink(uri=uri, name=name, mime_type=MEDIA_TYPE, size=card.nbytes)]

    @mcp.tool(annotations=_ADDS)
    @told(ToolError)
    def capture(
        text: str, agent: Agent = "", budget: Budget = None, waits_on: Tool = None
    ) -> Annotated[CallToolResult, Captured]:
        """Read a text once and keep what the model understood of it as a card."""
        kept = session.read(text, store, Keep(agent, budget, waits_on=waits_on))
        card = look(str(kept.card))
        took = kept.stages_ms["keep"]
        captured = Captured(card.digest, card.tokens, card.nbytes, card.bits_per_value, took)
        return _result(captured, links(card))

    @mcp.tool(annotations=_ADDS)
    async def resume(
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

        def speak(said: Callable[[str], None]) -> Answer:
            asked = [{"role": "user", "content": prompt}]
            return session.answer(
                session.prompt(store, asked, store.find(card)),
                Sampling(max_tokens),
                store=store,
                keep=Keep(agent, budget, waits_on=waits_on) if keep else None,
                said=said,
                cancelled=cancelled,
            )

        with told(ToolError):
            answer = await reporting(context, speak)
            kept = [] if answer.card is None else links(look(answer.card))
        resumed = Resumed(
            text=answer.text,
            finish=answer.finish,
            prompt_tokens=answer.prompt_tokens,
            cached_tokens=answer.cached_tokens,
            new_tokens=answer.new_tokens,
            milliseconds=sum(answer.stages_ms.values()) - answer.stages_ms.get("first", 0.0),
            card=answer.card,
        )
        return _result(resumed, kept)

    @mcp.tool(annotations=_LOOKS)
    @told(ToolError)
    def list_cards(limit: Annotated[int, Field(ge=1, le=1000)] = 50) -> list[Entry]:
        """List the cards that can be resumed, the last used first; times in seconds since 1970."""
        return store.ls()[:limit]

    @mcp.tool(annotations=_LOOKS)
    @told(ToolError)
    def inspect(card: Card) -> Annotated[CallToolResult, Inspected]:
        """Say what a card is: its model, size, codecs, and which agents it went through."""
        found = look(store.find(card))
        return _result(_inspected(found), links(found))

    @mcp.resource("card://{digest}", mime_type=MEDIA_TYPE)
    @told(ResourceError)
    def card(digest: str) -> bytes:
        """A card's file, where it is small enough for a message."""
        found = look(known(store, digest))
        if found.nbytes <= big:
            return found.to_bytes()
        elsewhere = place(found) or (
            "`qkvshare store get`, or start the server with --link. A server on the same store "
            "resumes it by its digest"
        )
        raise ResourceError(
            f"the card {digest[:12]}… has {found.nbytes:,} bytes, a message carries at most "
            f"{big:,}. Get it from {elsewhere}."
        )

    return mcp


def known(store: Store, digest: str) -> str:
    """``digest``, if a card has it: whole, so that nobody comes upon cards by trying."""
    if not is_digest(digest):
        raise CardNotFoundError(
            f"{digest[:80]!r} is not a card's digest; expected its 64 hex digits, see list_cards."
        )
    return store.find(digest)


def _inspected(card: CacheCard) -> Inspected:
    manifest = card.manifest
    return Inspected(
        digest=card.digest,
        tokens=card.tokens,
        bytes=card.nbytes,
        bits_per_value=card.bits_per_value,
        created=manifest.created.isoformat(),
        expires=None if manifest.expires is None else manifest.expires.isoformat(),
        identity=msgspec.to_builtins(manifest.identity),
        segments=[
            {
                "start": run.start,
                "end": run.end,
                "codec": msgspec.to_builtins(run.codec),
                "allocation": msgspec.to_builtins(run.allocation),
            }
            for run in manifest.runs
        ],
        lineage=msgspec.to_builtins(manifest.lineage),
    )


def _result(value: Any, links: list[ResourceLink]) -> CallToolResult:
    text = msgspec.json.encode(value).decode()
    content: list[ContentBlock] = [TextContent(text=text), *links]
    return CallToolResult(content=content, structured_content=msgspec.to_builtins(value))
