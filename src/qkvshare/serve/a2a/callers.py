"""The callers, known by their tokens, and the tasks that are kept for each of them."""

from __future__ import annotations

from collections import OrderedDict, defaultdict

from a2a.auth.user import UnauthenticatedUser, User
from a2a.server.context import ServerCallContext
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import DefaultServerCallContextBuilder
from a2a.server.tasks import InMemoryTaskStore
from a2a.types.a2a_pb2 import ListTasksRequest, ListTasksResponse, Task
from a2a.utils.errors import UnsupportedOperationError
from starlette.requests import Request

MOST_TASKS = 1000  # of a caller
MOST_BYTES = 64 << 20


class Caller(User):
    """The tenant of a token."""

    def __init__(self, tenant: str) -> None:
        """``tenant``: its name in the file of tokens."""
        self._tenant = tenant

    @property
    def is_authenticated(self) -> bool:
        """True: the gate has checked the token."""
        return True

    @property
    def user_name(self) -> str:
        """The tenant."""
        return self._tenant


class Contexts(DefaultServerCallContextBuilder):
    """Names the caller to the SDK, whose task store then keeps callers apart."""

    def build_user(self, request: Request) -> User:
        """The caller that the gate found; no user where no token is needed."""
        tenant = getattr(request.state, "tenant", None)
        return UnauthenticatedUser() if tenant is None else Caller(tenant)


def tenant_of(context: ServerCallContext) -> str | None:
    """The caller's tenant; None where no token is needed."""
    return context.user.user_name if context.user.is_authenticated else None


class Handler(DefaultRequestHandler):
    """The SDK's handler, but only a caller with a token may list tasks."""

    async def on_list_tasks(
        self, params: ListTasksRequest, context: ServerCallContext
    ) -> ListTasksResponse:
        """The caller's own tasks. Raises `UnsupportedOperationError` without tokens."""
        if tenant_of(context) is None:
            raise UnsupportedOperationError(
                message="this agent has no tokens, so it cannot tell callers apart and lists no "
                "tasks; ask for a task by its id"
            )
        found: ListTasksResponse = await super().on_list_tasks(params, context)
        return found


class Tasks(InMemoryTaskStore):
    """The last tasks of each caller, in memory; the oldest go first."""

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        self._sizes: dict[str, OrderedDict[str, int]] = defaultdict(OrderedDict)

    async def save(self, task: Task, context: ServerCallContext) -> None:
        """Save a task, and drop those that were saved longest ago."""
        await super().save(task, context)
        sizes = self._sizes[context.user.user_name]
        sizes.pop(task.id, None)
        sizes[task.id] = task.ByteSize()
        while len(sizes) > 1 and (len(sizes) > MOST_TASKS or sum(sizes.values()) > MOST_BYTES):
            oldest, _ = sizes.popitem(last=False)
            await super().delete(oldest, context)
