"""The agent: answers with the model in memory, and keeps the conversation as a card."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event
from typing import Any

from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.context import ServerCallContext
from a2a.server.events import EventQueue
from a2a.server.tasks import TaskStore, TaskUpdater
from a2a.types.a2a_pb2 import ListTasksRequest, Part, Task, TaskState, TaskStatus

from ...card.errors import CardNotFoundError, OverdueError, PromptError, QKVShareError
from ...hf.session.answers import Answer, Keep, Prompt, Sampling
from ...hf.session.session import Session
from ...hf.text.messages import Message
from ...store import Store
from ..limits import Limits
from ..queue import FairQueue
from .callers import tenant_of
from .extension import URI, Announced, answer_parts, card_part, text_of
from .receive import receive
from .wire import Fetch

_EARLIER = 100  # tasks of a conversation that are looked at


@dataclass(kw_only=True, eq=False)
class Agent(AgentExecutor):
    """Answers messages, one at a time, in a thread. See `app`.

    Attributes:
        store_of: gives a tenant's store, or the only one for None.
        handed_on: tenants and digests of the cards that answers have carried since the start.
    """

    session: Session
    store_of: Callable[[str | None], Store]
    tasks: TaskStore
    base_url: str
    sampling: Sampling
    keep: Keep
    inline: int
    fetch: Fetch
    limits: Limits
    handed_on: set[tuple[str | None, str]] = field(default_factory=set)
    _running: dict[str, Event] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Open the queue for the model."""
        self._queue = FairQueue(self.limits.waiting)

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Answer a message; a task that cannot be answered fails with the reason."""
        updater = TaskUpdater(event_queue, str(context.task_id), str(context.context_id))
        if context.current_task is None:
            status = TaskStatus(state=TaskState.TASK_STATE_SUBMITTED)
            history = [] if context.message is None else [context.message]
            task = Task(
                id=updater.task_id, context_id=updater.context_id, status=status, history=history
            )
            await event_queue.enqueue_event(task)
        called_off = self._running[updater.task_id] = Event()
        try:
            await updater.start_work()
            await self._answer(context, updater, called_off)
        except QKVShareError as error:
            await updater.failed(updater.new_agent_message([Part(text=str(error))]))
        finally:
            called_off.set()  # the thread may still run
            del self._running[updater.task_id]

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Cancel a task; nothing of it is kept."""
        updater = TaskUpdater(event_queue, str(context.task_id), str(context.context_id))
        if (called_off := self._running.get(updater.task_id)) is not None:
            called_off.set()
        await updater.cancel()

    async def _answer(
        self, context: RequestContext, updater: TaskUpdater, called_off: Event
    ) -> None:
        tenant = tenant_of(context.call_context)
        prompt, reason = await self._prompt(context, tenant)
        active = URI in context.requested_extensions
        async with self._queue.slot(tenant):
            if called_off.is_set():
                return
            loop = asyncio.get_running_loop()
            end = loop.call_later(self.limits.seconds, called_off.set)  # others wait for the model
            try:
                answer, parts = await asyncio.to_thread(
                    self._generate, prompt, tenant, active, called_off
                )
            finally:
                end.cancel()
        if answer.finish == "cancelled":
            if end.when() <= loop.time():
                raise OverdueError(
                    f"the answer took longer than {self.limits.seconds:g} seconds. Ask for less."
                )
            return
        metadata: dict[str, Any] = {}
        if active or reason:
            about = {"cached_tokens": str(answer.cached_tokens), "reason": reason}
            metadata = {URI: {name: value for name, value in about.items() if value}}
        await updater.add_artifact(
            parts,
            name="answer",
            metadata=metadata,
            last_chunk=True,
            extensions=[URI] if active else [],
        )
        await updater.complete()

    async def _prompt(self, context: RequestContext, tenant: str | None) -> tuple[Prompt, str]:
        """The prompt, and the reason if the message's card is not used."""
        store = self.store_of(tenant)
        sent = [] if context.message is None else list(context.message.parts)
        part, text, reason = card_part(sent), text_of(sent), ""
        card, messages = None, list[Message]()
        if part is not None:
            digest = Announced.read(part).digest
            if (tenant, digest) in self.handed_on and await asyncio.to_thread(has, store, digest):
                card = digest
            else:
                card, reason = await receive(sent, self.session, store, self.fetch)
            if card is not None:
                text = text_of(sent, besides=digest)
        if not text.strip():
            raise PromptError(
                "the message has no text to answer; expected a text part, besides one that only "
                "repeats a card."
            )
        if card is None:
            tasks = await earlier(self.tasks, str(context.context_id), context.call_context)
            card, messages = await asyncio.to_thread(resume, tasks, store)
        messages = [*messages, {"role": "user", "content": text}]
        return await asyncio.to_thread(self.session.prompt, store, messages, card), reason

    def _generate(
        self, prompt: Prompt, tenant: str | None, active: bool, called_off: Event
    ) -> tuple[Answer, list[Part]]:
        """The answer and the parts of its artifact; runs in a thread."""
        store = self.store_of(tenant)
        answer = self.session.answer(
            prompt,
            self.sampling,
            store=store,
            keep=self.keep if active else None,
            cancelled=called_off.is_set,
        )
        card = None
        if answer.card is not None:
            card = store.get(answer.card)
            self.handed_on.add((tenant, answer.card))
        return answer, answer_parts(answer.text, card, self.base_url, self.inline)


async def earlier(tasks: TaskStore, context_id: str, call: ServerCallContext) -> list[Task]:
    """The last completed tasks of a context, the newest first."""
    request = ListTasksRequest(
        context_id=context_id, status=TaskState.TASK_STATE_COMPLETED, page_size=_EARLIER
    )
    return list((await tasks.list(request, call)).tasks)


def resume(tasks: list[Task], store: Store) -> tuple[str | None, list[Message]]:
    """The card to continue from, if one is still in ``store``, and the messages after it."""
    messages: list[Message] = []
    for task in tasks:
        parts = [part for artifact in task.artifacts for part in artifact.parts]
        part = card_part(parts)
        if part is not None and has(store, digest := Announced.read(part).digest):
            return digest, messages
        question = "\n".join(text_of(message.parts) for message in task.history)
        messages[:0] = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": text_of(parts)},
        ]
    return None, messages


def has(store: Store, digest: str) -> bool:
    """Whether the card is still in ``store``."""
    try:
        store.get(digest)
    except CardNotFoundError:
        return False
    return True
