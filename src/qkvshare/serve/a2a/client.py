"""Ask another agent, and continue from its answer: by its card if it fits, else by its text."""

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
from ...hf.text.messages import Message as ChatTurn
from ...store import Store
from .extension import URI, Announced, Receiver, card_part, text_of
from .receive import receive
from .wire import Fetch, careful

_NOT_DECLARED = f"the agent does not declare the extension {URI}."


@dataclass(frozen=True)
class Taken:
    """A finished task of another agent, to continue from.

    Attributes:
        task: the task as it came.
        text: the answer.
        messages: the task's text as chat messages.
        card: digest of the card in the receiver's store; None if the text is used.
        reason: why the text is used; empty with a card.
    """

    task: Task
    text: str
    messages: list[ChatTurn]
    card: str | None
    reason: str

    def prompt(self, session: Session, store: Store, text: str) -> Prompt:
        """The task, then ``text``, for ``session.answer``. Raises what ``session.prompt`` does."""
        after: list[ChatTurn] = [{"role": "user", "content": text}]
        if self.card is None:
            return session.prompt(store, [*self.messages, *after])
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
    """Ask the agent at ``url``; put its answer's card into ``store`` if it has the same model.

    Args:
        url: the agent's address; its agent card is below ``/.well-known``.
        text: the question.
        session: the model that will continue.
        store: where its cards are.
        given: parts of an earlier answer, of this agent or another one, to continue from; a card
            among them is sent only if the agent can use it.
        context_id: ``taken.task.context_id``, to continue a conversation.
        fetch: which other origins cards may come from, and how large cards may be.
        client: for another transport, time limits or credentials (which go to the origin of
            ``url`` only); by default an answer has no time limit.

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
                # Do not ask for a card that this model could not use.
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
        except Exception as error:  # the SDK does not check the form of an answer
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
    """Continue from a finished task: put its card into ``store``, or give the reason for its text.

    Args:
        task: the task.
        session: the model that will continue.
        store: where its cards are.
        fetch: where cards may come from; name the agent's own origin.
        client: its headers and credentials go only to the origin of its ``base_url``.

    Raises `AgentError` for a task that has no answer, `PromptError` for parts that are not text,
    and what `receive` raises: the text never silently replaces a card that is damaged, or not the
    one that was announced. To use the text, ``take`` the task without its card part.
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
        message = " ".join(part.text for part in task.status.message.parts if part.text)
        raise AgentError(
            f"the agent's task {task.id} is {state}{': ' + message if message else ''}. "
            "Expected a completed one."
        )
    parts = [part for artifact in task.artifacts for part in artifact.parts]
    messages = [_chat(message) for message in task.history]
    answer = text_of(parts)
    digest, reason = await receive(parts, session, store, fetch, client, home)
    messages.append({"role": "assistant", "content": answer})
    return Taken(task, answer, messages, digest, reason)


async def _send(agent: AgentCard, message: Message, client: httpx.AsyncClient) -> Task:
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


def _chat(message: Message) -> ChatTurn:
    role = "user" if message.role == Role.ROLE_USER else "assistant"
    return {"role": role, "content": text_of(message.parts)}
