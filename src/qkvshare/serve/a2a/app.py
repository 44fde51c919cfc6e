"""The agent's web application: agent card, JSON-RPC, and the cards that its answers point to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore, TaskStore
from a2a.types.a2a_pb2 import AgentCapabilities, AgentCard, AgentInterface, AgentSkill
from a2a.utils.constants import PROTOCOL_VERSION_CURRENT
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from ...card.errors import CardNotFoundError
from ...card.passing import MEDIA_TYPE, Passing
from ...hf.answers import Keep, Sampling
from ...hf.resident import Resident
from ...store import Store
from .agent import Agent
from .extension import Receiver
from .fetch import Fetch

_MODES = ["text/plain", MEDIA_TYPE]


def app(
    resident: Resident,
    store: Store,
    *,
    base_url: str,
    name: str = "qkvshare",
    description: str = "Answers in text, and hands on what it has read as a CacheCard.",
    sampling: Sampling | None = None,
    keep: Keep | None = None,
    inline: int = 256 << 10,
    fetch: Fetch | None = None,
    tasks: TaskStore | None = None,
) -> Starlette:
    """An A2A agent that answers with ``resident``.

    Args:
        resident: the model.
        store: where it keeps cards, and puts those that others hand on. What is to be apart from
            other cards of yours goes into ``store.under(name)``.
        base_url: where others reach the application.
        name, description: for the agent card.
        sampling: how it speaks.
        keep: how conversations are kept as cards, for those who ask for them.
        inline: bytes up to which a card is put into the answer itself; others are served.
        fetch: where cards that come with messages may be fetched from; by default nowhere.
        tasks: where tasks are kept; by default in memory.

    Whoever reaches it may use it: put authentication in front of what others should not reach.
    """
    base_url, tasks = base_url.rstrip("/"), tasks or InMemoryTaskStore()
    agent = Agent(
        resident,
        store,
        tasks,
        base_url=base_url,
        sampling=sampling or Sampling(),
        keep=keep or Keep(agent=name),
        inline=inline,
        fetch=fetch or Fetch(),
    )
    card = AgentCard(
        name=name,
        description=description,
        version=version("qkvshare"),
        supported_interfaces=[
            AgentInterface(
                url=f"{base_url}/",
                protocol_binding="JSONRPC",
                protocol_version=PROTOCOL_VERSION_CURRENT,
            )
        ],
        capabilities=AgentCapabilities(
            streaming=True, extensions=[Receiver.of(resident.identity).extension()]
        ),
        default_input_modes=_MODES,
        default_output_modes=_MODES,
        skills=[AgentSkill(id="answer", name="Answer", description=description, tags=["chat"])],
    )
    handler = DefaultRequestHandler(agent, tasks, card)

    async def serve_card(request: Request) -> Response:
        digest = request.path_params["digest"]
        # Not all of the store: digests of others stand in cards, as parents.
        if digest not in agent.handed_on:
            raise HTTPException(404, "no such card was handed on")
        try:
            passing = Passing(await asyncio.to_thread(store.get, digest))
        except CardNotFoundError as error:
            raise HTTPException(404, "the card is gone") from error
        headers = {"Content-Length": str(passing.nbytes)}
        return StreamingResponse(passing(), 200, headers, MEDIA_TYPE)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await handler.aclose()

    routes = [
        Route("/cards/{digest}", serve_card),
        *create_agent_card_routes(card),
        *create_jsonrpc_routes(handler, "/"),
    ]
    return Starlette(routes=routes, lifespan=lifespan)
