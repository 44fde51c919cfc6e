"""One call of an MCP tool: its errors, its progress, and whether the client has cancelled it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from anyio import create_memory_object_stream, create_task_group, from_thread, to_thread
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError, ToolError

from ..card.errors import CardNotFoundError, QKVShareError
from ..hf.session.answers import Answer


@contextmanager
def errors_as(kind: type[ToolError] | type[ResourceError]) -> Iterator[None]:
    """Raise our own errors as ``kind``, with their text; the SDK hides the text of all others."""
    try:
        yield
    except CardNotFoundError as error:
        raise (ResourceNotFoundError if kind is ResourceError else kind)(_named(error)) from error
    except QKVShareError as error:
        raise kind(_named(error)) from error


def _named(error: QKVShareError) -> str:
    return f"{type(error).__name__}: {error}"


async def reporting(
    context: Context[Any, Any], answer: Callable[[Callable[[str], None]], Answer]
) -> Answer:
    """Run ``answer(streaming)`` on a worker thread; each piece of text is a progress message.

    The progress counts characters. The thread never waits for the client, which may be gone.
    """
    send, receive = create_memory_object_stream[str](math.inf)

    async def report() -> None:
        length = 0
        with receive:
            async for piece in receive:
                length += len(piece)
                await context.report_progress(length, None, piece)

    def streaming(piece: str) -> None:
        from_thread.run_sync(send.send_nowait, piece)

    found: Answer | QKVShareError
    async with create_task_group() as group:
        with send:
            group.start_soon(report)
            try:
                found = await to_thread.run_sync(answer, streaming)
            except QKVShareError as error:  # the task group would wrap it in an ExceptionGroup
                found = error
    if isinstance(found, QKVShareError):
        raise found
    return found


def cancelled() -> bool:
    """Whether the client has cancelled the request; for a worker thread."""
    try:
        from_thread.check_cancelled()
    except asyncio.CancelledError:
        return True
    return False
