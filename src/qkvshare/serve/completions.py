"""``/v1/chat/completions`` and ``/v1/models``, as OpenAI's clients speak to them."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException

from ..card.errors import QKVShareError
from ..hf.session.answers import Answer, Prompt
from ..hf.tools.calls import ToolCall
from . import errors
from .metrics import log
from .schema import ChatRequest, Completion, ErrorBody
from .service import GoneError, Service

# Clients that drop fields which OpenAI does not have can read the kept card's digest here.
CARD_HEADER = "QKVShare-Card"
_REFUSED: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody}
    for status in (400, 401, 403, 404, 408, 409, 410, 413, 415, 421, 422, 429, 504, 507)
}


def router(service: Service) -> APIRouter:
    """The routes, for one server."""
    routes = APIRouter()

    @routes.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model."""
        return {"object": "list", "data": [_model(service.name)]}

    @routes.get("/v1/models/{model:path}", responses={404: {"model": ErrorBody}})
    async def model(model: str) -> dict[str, Any]:
        """The model, if it is the one."""
        _require_model(service, model)
        return _model(service.name)

    @routes.post("/v1/chat/completions", response_model=Completion, responses=_REFUSED)
    async def complete(request: Request, response: Response, ask: ChatRequest) -> Any:
        """Answer the messages, from a card if one is named or matches, and keep one if asked."""
        _require_model(service, ask.model)
        reply = _Reply(service, ask)
        task = asyncio.create_task(service.answer(request, ask, reply.pieces.put_nowait))
        service.running.add(task)
        task.add_done_callback(service.running.discard)
        task.add_done_callback(reply.end)
        try:
            if not ask.stream:
                _, answer = await task
                if answer.card is not None:
                    response.headers[CARD_HEADER] = answer.card
                return reply.whole(answer)
            # An error before the first word still has a status.
            first = await reply.pieces.get()
            if first is None:
                task.result()
        except GoneError:
            return Response(status_code=499)  # nobody receives it
        events = reply.events(task, first, request)
        return StreamingResponse(events, media_type="text/event-stream")

    return routes


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "qkvshare"}


def _require_model(service: Service, name: str) -> None:
    if name != service.name:
        raise HTTPException(404, f"no model {name[:256]!r} here; there is {service.name!r}.")


class _Reply:
    def __init__(self, service: Service, ask: ChatRequest) -> None:
        self._model, self._id = service.name, f"chatcmpl-{uuid.uuid4().hex}"
        self._usage = bool(ask.stream_options and ask.stream_options.include_usage)
        self._created, self._root = int(time.time()), service.stores.root
        self.pieces: asyncio.Queue[str | ToolCall | None] = asyncio.Queue()

    def end(self, task: asyncio.Task[Any]) -> None:
        """Mark the end of the pieces."""
        self.pieces.put_nowait(None)
        if not task.cancelled():
            task.exception()  # asyncio warns of an error that nobody fetches

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The body, all at once: a `Completion`."""
        message: dict[str, Any] = {"content": answer.text}
        if answer.calls:
            message = {
                "content": answer.text or None,
                "tool_calls": [_called(call) for call in answer.calls],
            }
        choice = {"message": message, "finish_reason": answer.finish}
        return {
            "id": self._id,
            "created": self._created,
            "model": self._model,
            "choices": [choice],
            "usage": _usage(answer),
            "kv_transfer_params": None if answer.card is None else {"card": answer.card},
        }

    async def events(
        self,
        task: asyncio.Task[tuple[Prompt, Answer]],
        first: str | ToolCall | None,
        request: Request,
    ) -> AsyncIterator[str]:
        """Server-sent events, one for each piece of text or call; an error is the last one."""
        yield self._chunk({"role": "assistant", "content": ""})
        piece, calls = first, 0
        while piece is not None:
            if isinstance(piece, ToolCall):
                yield self._chunk({"tool_calls": [{"index": calls, **_called(piece)}]})
                calls += 1
            else:
                yield self._chunk({"content": piece})
            piece = await self.pieces.get()
        try:
            _, answer = await task
        except GoneError:
            return
        except QKVShareError as error:
            yield _error(request, errors.body_of(error, self._root))
            return
        except Exception:
            log.exception("an answer failed")
            yield _error(request, errors.body(errors.UNEXPECTED, "internal_error"))
            return
        kept = {} if answer.card is None else {"kv_transfer_params": {"card": answer.card}}
        yield self._chunk({}, answer.finish, **kept)
        if self._usage:
            yield self._event_of([], usage=_usage(answer))
        yield "data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return self._event_of([choice], **more)

    def _event_of(self, choices: list[dict[str, Any]], **more: Any) -> str:
        common = {"id": self._id, "object": "chat.completion.chunk", "created": self._created}
        return _event({**common, "model": self._model, "choices": choices, **more})


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def _error(request: Request, content: dict[str, Any]) -> str:
    request.state.refused = content["error"]["code"]  # for the request log
    return _event(content)


def _called(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _usage(answer: Answer) -> dict[str, Any]:
    found = {"cached_tokens": answer.cached_tokens}
    if answer.composed_tokens or answer.repaired_tokens:
        found["composed_tokens"] = answer.composed_tokens
        found["repaired_tokens"] = answer.repaired_tokens
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.new_tokens,
        "total_tokens": answer.prompt_tokens + answer.new_tokens,
        "prompt_tokens_details": found,
    }
