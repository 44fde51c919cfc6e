"""Ask another agent, and go on from its answer: from the card if it fits, else from the text."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import httpx
from a2a.client import A2ACardResolver, ClientConfig, ClientFactory
from a2a.client.client import ClientCallContext
from a2a.client.service_parameters import ServiceParametersFactory, with_a2a_extensions
from a2a.types.a2a_pb2 import (
    AgentCard,
    Artifact,
    Message,
    Part,
    Role,
    SendMessageRequest,
    Task,
    TaskState,
)
from a2a.utils.constants import PROTOCOL_VERSION_CURRENT, VERSION_HEADER

from ...card.container import MEDIA_TYPE
from ...card.errors import AgentError, QKVShareError
from ...hf.session.answers import Prompt
from ...hf.session.session import Session
from ...hf.text.tokens import Message as Turn
from ...store import Store
from .extension import URI, Receiver
from .fetch import Fetch
from .parts import Announced, card_part, text_of
from .receive import receive
from .wire import careful

_NOT_DECLARED = f"the agent does not declare the extension {URI}."


@dataclass(frozen=True)
class Taken:
    """A task of another agent, taken over.

    Attributes:
        task: as it came.
        text: the answer.
        turns: what the task says in text, as chat messages.
        card: digest of the card in the receiver's store; None where the text is used.
        reason: why it is; empty with a card.
    """

    task: Task
    text: str
    turns: list[Turn]
    card: str | None
    reason: str

    def prompt(self, session: Session, store: Store, text: str) -> Prompt:
        """For ``session.answer``: all of it, then ``text``. Raises as ``session.prompt``."""
        after: list[Turn] = [{"role": "user", "content": text}]
        if self.card is None:
            return session.prompt(store, [*self.turns, *after])
        return session.prompt(store, after, self.card)


async def ask(
    url: str,
    text: str,
    *,
    session: Session,
    store: Store,
    given: Iterable[Part] = (),
    context_id: str = "",
    fetch: Fetch | None = None,
    client: httpx.AsyncClient | None = None,
) -> Taken:
    """Ask the agent at ``url``, and take its answer's card into ``store`` if both models are one.

    Args:
        url: where the agent's card is, below ``/.well-known``.
        text: the question.
        session: the model that is to go on.
        store: where it has its cards.
        given: parts of an earlier answer, of this agent or another one, to go on from; its card
            is sent on only where the agent can use it.
        context_id: ``taken.task.context_id``, to go on with a conversation.
        fetch: which other origins may be asked and cards be fetched from; how large cards may be.
        client: for another transport, time limits, credentials (which are sent to the origin of
            ``url`` alone); by default an answer may take as long as it does.

    Raises `AgentError` and what `take` raises.
    """
    slow = httpx.Timeout(30.0, read=None)
    fetch = fetch or Fetch()
    near = replace(fetch, origins=(*fetch.origins, url))
    async with nullcontext(client) if client else httpx.AsyncClient(timeout=slow) as http:
        try:
            async with careful(http, url, fetch.origins, fetch.seconds, whole=True) as known:
                async with asyncio.timeout(fetch.seconds):
                    agent = await A2ACardResolver(known, url).get_agent_card()
                theirs = Receiver.declared(agent)
                # Who could not use a card does not ask for one.
                refused = _NOT_DECLARED if theirs is None else theirs.refuses(session.identity, ())
                message = Message(
                    message_id=str(uuid.uuid4()),
                    role=Role.ROLE_USER,
                    parts=[*_sendable(theirs, list(given)), Part(text=text)],
                    context_id=context_id,
                    extensions=[] if refused else [URI],
                )
                task = await _send(agent, message, known)
        except QKVShareError:
            raise
        except Exception as error:  # the SDK trusts the form of what it gets
            what = f"{type(error).__name__}: {error}"[:500]
            raise AgentError(f"the agent at {url} cannot be asked: {what}") from error
        taken = await _take(task, session, store, near, http, url)
    return replace(taken, reason=refused) if taken.card is None and refused else taken


async def take(
    task: Task,
    session: Session,
    store: Store,
    *,
    fetch: Fetch,
    client: httpx.AsyncClient | None = None,
) -> Taken:
    """Go on from a finished task: put its card into ``store``, or say why its text is used.

    ``fetch`` says where cards may come from: name the agent's own origin. Raises `AgentError` for
    a task that has no answer, `PromptError` for an answer with parts that cannot be read as text,
    and what `receive` raises: a card that is damaged, or not the one
    that was announced, is never silently replaced by the text (``take`` the task again without
    its card part for that). What ``client`` adds to requests of its own, credentials above all, is
    sent only to the origin of its ``base_url``.
    """
    home = "" if client is None else str(client.base_url)
    return await _take(task, session, store, fetch, client, home)


async def _take(
    task: Task,
    session: Session,
    store: Store,
    fetch: Fetch,
    client: httpx.AsyncClient | None,
    home: str,
) -> Taken:
    if task.status.state != TaskState.TASK_STATE_COMPLETED:
        state = TaskState.Name(task.status.state).removeprefix("TASK_STATE_").lower()
        said = " ".join(part.text for part in task.status.message.parts if part.text)
        raise AgentError(
            f"the agent's task {task.id} is {state}{': ' + said if said else ''}. "
            "Expected a completed one."
        )
    parts = [part for artifact in task.artifacts for part in artifact.parts]
    turns = [_turn(message) for message in task.history]
    answer = text_of(parts)
    digest, reason = await receive(parts, session, store, fetch, client, home)
    turns.append({"role": "assistant", "content": answer})
    return Taken(task, answer, turns, digest, reason)


async def _send(agent: AgentCard, message: Message, client: httpx.AsyncClient) -> Task:
    """Send the message and wait for the finished task."""
    context = ClientCallContext(
        service_parameters=ServiceParametersFactory.create_from(
            {VERSION_HEADER: PROTOCOL_VERSION_CURRENT},
            [with_a2a_extensions(list(message.extensions))],
        )
    )
    asked = ClientFactory(ClientConfig(streaming=False, httpx_client=client)).create(agent)
    request = SendMessageRequest(message=message)
    (reply,) = [each async for each in asked.send_message(request, context=context)]
    if reply.HasField("message"):  # an agent that keeps no tasks
        task = Task(artifacts=[Artifact(parts=reply.message.parts)])
        task.status.state = TaskState.TASK_STATE_COMPLETED
    else:
        task = reply.task
    if not task.history:
        task.history.append(message)
    return task


def _sendable(agent: Receiver | None, parts: list[Part]) -> list[Part]:
    """``parts`` without a card that the agent could not use."""
    found = card_part(parts)
    if found is None:
        return parts
    announced = Announced.read(found)
    if agent is not None and not agent.refuses(announced.identity, announced.codecs):
        return parts
    return [part for part in parts if part.media_type != MEDIA_TYPE]


def _turn(message: Message) -> Turn:
    role = "user" if message.role == Role.ROLE_USER else "assistant"
    return {"role": role, "content": text_of(message.parts)}
