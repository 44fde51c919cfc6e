"""Agents with a tiny model: one that is a process of its own, others without any network.

    python -m tests.serve.a2a.agents STORE SEED INLINE

serves an agent on a free port, and says where on its first line.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from a2a.client import ClientConfig, create_client
from a2a.client.client import ClientCallContext
from a2a.client.service_parameters import ServiceParametersFactory, with_a2a_extensions
from a2a.types.a2a_pb2 import Message, Part, Role, SendMessageRequest, Task
from a2a.utils.constants import PROTOCOL_VERSION_CURRENT, VERSION_HEADER

from qkvshare import Raw
from qkvshare.hf.session.answers import Keep, Sampling
from qkvshare.hf.session.session import Session
from qkvshare.serve.a2a import app
from qkvshare.serve.listen import config
from qkvshare.store import Store

from ...conftest import greedy_from_text, tiny_model, tiny_tokenizer

SHORT = Sampling(max_tokens=8)
HERE = "http://localhost:8000"


def tiny_resident(seed: int = 0) -> Session:
    """One that says printable characters only: tokenized again they are the same ids."""
    model = tiny_model("llama", seed=seed)
    model.generation_config.suppress_tokens = [*range(4), *range(99, 128)]
    return Session(model, tiny_tokenizer(), codec=Raw())


def served(session: Session, store: Store, **options: Any) -> httpx.AsyncClient:
    """A client that reaches an agent of this process at `HERE`."""
    application = app(session, store, base_url=HERE, sampling=SHORT, **options)
    return httpx.AsyncClient(transport=httpx.ASGITransport(application))


def said(session: Session, *turns: str) -> str:
    """The reference: one model reads all turns, users' and its own, and answers."""
    roles = ["user", "assistant"] * len(turns)
    messages = [{"role": r, "content": t} for r, t in zip(roles, turns, strict=False)]
    new = greedy_from_text(session.model, session.chat.whole(messages).tolist(), 8)
    return str(session.tokenizer.decode(new, skip_special_tokens=True))


def user(*parts: Part | str, context_id: str = "") -> Message:
    """A message to an agent."""
    made = [Part(text=part) if isinstance(part, str) else part for part in parts]
    return Message(
        message_id="m", role=Role.ROLE_USER, parts=made, context_id=context_id, task_id=""
    )


def calling(*uris: str) -> ClientCallContext:
    """With the protocol's version, which the SDK leaves out where it gets its HTTP client."""
    headers = {VERSION_HEADER: PROTOCOL_VERSION_CURRENT}
    parameters = ServiceParametersFactory.create_from(headers, [with_a2a_extensions(list(uris))])
    return ClientCallContext(service_parameters=parameters, timeout=60)


async def sdk(
    message: Message, client: httpx.AsyncClient | None = None, url: str = HERE, *uris: str
) -> Task:
    """What the SDK's own client gets, with the extensions ``uris`` if any."""
    config = ClientConfig(streaming=False, httpx_client=client)
    asked = await create_client(url, client_config=config)
    request = SendMessageRequest(message=message)
    context = calling(*uris)
    (reply,) = [each async for each in asked.send_message(request, context=context)]
    return reply.task


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """To its end, or an error where it hangs."""
    return asyncio.run(asyncio.wait_for(work, 300))


@contextmanager
def process(store: Path, seed: int = 0, inline: int = 0) -> Iterator[str]:
    """An agent in another process; gives its address."""
    command = [sys.executable, "-m", __name__, str(store), str(seed), str(inline)]
    root = Path(__file__).parents[3]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout is not None
        try:
            yield agent.stdout.readline().strip()
        finally:
            agent.terminate()


def main(store: str, seed: str, inline: str) -> None:
    import uvicorn

    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        agent = app(
            tiny_resident(int(seed)),
            Store(store),
            base_url=url,
            sampling=SHORT,
            keep=Keep(agent="reader"),
            inline=int(inline),
        )
        print(url, flush=True)
        uvicorn.Server(config(agent, "127.0.0.1", 0, "warning")).run([listening])


if __name__ == "__main__":
    main(*sys.argv[1:])
