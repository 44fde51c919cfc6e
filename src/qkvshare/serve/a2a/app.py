"""The agent's web application: agent card, JSON-RPC, and the cards of its answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version as package_version
from urllib.parse import urlsplit

from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes
from a2a.server.tasks import TaskStore
from a2a.types.a2a_pb2 import (
    AgentCapabilities,
    AgentCard,
    AgentInterface,
    AgentSkill,
    HTTPAuthSecurityScheme,
    SecurityScheme,
)
from a2a.utils.constants import PROTOCOL_VERSION_0_3, PROTOCOL_VERSION_CURRENT
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...card.container import MEDIA_TYPE
from ...hf.session.answers import Keep, Sampling
from ...hf.session.session import Session
from ...store import Store
from .. import errors
from ..access import Access, Stores, require_host
from ..download import card_response
from ..gate import guard
from ..limits import Limits
from .agent import Agent
from .callers import Contexts, Handler, Tasks
from .extension import Receiver
from .wire import Fetch

_TEXT = ["text/plain", "application/json"]
_BEARER = SecurityScheme(http_auth_security_scheme=HTTPAuthSecurityScheme(scheme="Bearer"))
_FREE = r"/\.well-known/agent(-card)?\.json"  # describes the agent to anybody


def app(
    session: Session,
    store: Store | Stores,
    *,
    base_url: str,
    name: str = "qkvshare",
    description: str = "Answers in text, and hands on its state as a CacheCard.",
    sampling: Sampling | None = None,
    keep: Keep | None = None,
    inline: int = 256 << 10,
    fetch: Fetch | None = None,
    tasks: TaskStore | None = None,
    limits: Limits | None = None,
) -> Starlette:
    """An A2A agent that answers with ``session``.

    Args:
        session: the model.
        store: where it keeps its own cards and those that it receives. Use ``store.under(name)``
            to keep them apart from your other cards. `Stores` with tokens has a store for each
            tenant; then every request needs a token, and sees only its tenant's tasks.
        base_url: where others reach the application; without tokens an address of this machine.
        name, description: for the agent card.
        sampling: how answers are sampled.
        keep: how conversations are kept as cards, for clients that ask for cards.
        inline: the most bytes of a card inside an answer; larger cards are URLs.
        fetch: where cards that come with messages may be fetched from; by default nowhere.
        tasks: where tasks are kept; by default the last ones of each caller, in memory.
        limits: what one message may use.

    Raises `ServeError` if others can reach it without a token.
    """
    access = store.access if isinstance(store, Stores) else Access({})
    require_host(urlsplit(base_url).hostname or "", access)
    base_url, tasks, limits = base_url.rstrip("/"), tasks or Tasks(), limits or Limits()

    def store_of(tenant: str | None) -> Store:
        return store.of(tenant) if isinstance(store, Stores) else store

    agent = Agent(
        session=session,
        store_of=store_of,
        tasks=tasks,
        base_url=base_url,
        sampling=sampling or Sampling(),
        keep=keep or Keep(agent=name),
        inline=inline,
        fetch=fetch or Fetch(),
        limits=limits,
    )
    card = AgentCard(
        name=name,
        description=description,
        version=package_version("qkvshare"),
        supported_interfaces=[
            AgentInterface(url=f"{base_url}/", protocol_binding="JSONRPC", protocol_version=version)
            for version in (PROTOCOL_VERSION_CURRENT, PROTOCOL_VERSION_0_3)
        ],
        security_schemes={"bearer": _BEARER} if access.needed else {},
        security_requirements=[{"schemes": {"bearer": {}}}] if access.needed else [],
        capabilities=AgentCapabilities(
            streaming=True, extensions=[Receiver.of(session.identity).extension()]
        ),
        default_input_modes=[*_TEXT, MEDIA_TYPE],
        default_output_modes=["text/plain", MEDIA_TYPE],
        skills=[AgentSkill(id="answer", name="Answer", description=description, tags=["chat"])],
    )
    handler = Handler(agent, tasks, card)

    async def serve_card(request: Request) -> Response:
        digest, tenant = request.path_params["digest"], getattr(request.state, "tenant", None)
        # Only these: a card names its parents' digests, which may belong to others.
        if (tenant, digest) not in agent.handed_on:
            raise HTTPException(404, "no such card was handed on")
        return card_response(await asyncio.to_thread(store_of(tenant).get, digest), request)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await handler.aclose()

    routes = [
        Route("/cards/{digest}", serve_card),
        *create_agent_card_routes(card),
        *create_jsonrpc_routes(handler, "/", Contexts(), enable_v0_3_compat=True),
    ]
    made = Starlette(routes=routes, lifespan=lifespan)
    errors.install(made, store.root)
    guard(made, access, limits, _FREE)
    return made
