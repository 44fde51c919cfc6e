"""What was said before in a context, from the finished tasks that the agent keeps."""

from __future__ import annotations

from a2a.server.context import ServerCallContext
from a2a.server.tasks import TaskStore
from a2a.types.a2a_pb2 import ListTasksRequest, Task, TaskState

from ...card.errors import CardNotFoundError
from ...hf.text.tokens import Message as Turn
from ...store import Store
from .parts import Announced, card_part, text_of

_TURNS = 100


async def earlier(tasks: TaskStore, context_id: str, call: ServerCallContext) -> list[Task]:
    """The context's last tasks that were completed, the newest first."""
    request = ListTasksRequest(
        context_id=context_id, status=TaskState.TASK_STATE_COMPLETED, page_size=_TURNS
    )
    return list((await tasks.list(request, call)).tasks)


def resume(tasks: list[Task], store: Store) -> tuple[str | None, list[Turn]]:
    """The card to go on from, if one is still in ``store``, and the turns that came after it."""
    turns: list[Turn] = []
    for task in tasks:
        parts = [part for artifact in task.artifacts for part in artifact.parts]
        part = card_part(parts)
        if part is not None and holds(store, digest := Announced.read(part).digest):
            return digest, turns
        asked = "\n".join(text_of(message.parts) for message in task.history)
        turns[:0] = [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": text_of(parts)},
        ]
    return None, turns


def holds(store: Store, digest: str) -> bool:
    """Whether the card is still in ``store``."""
    try:
        store.get(digest)
    except CardNotFoundError:
        return False
    return True
