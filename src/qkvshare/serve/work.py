"""From a chat request to what the model's thread does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..card.errors import CardError, CardNotFoundError, PromptError
from ..hf.session.answers import Answer, Keep, Prompt, Sampling
from ..hf.session.session import Session
from ..hf.text.tokens import too_long
from ..hf.tools.calls import ToolCall
from ..store import Store
from .limits import Limits
from .schema import ChatRequest, Transfer

Cancelled = Callable[[], bool]
Work = Callable[[Cancelled], tuple[Prompt, Answer]]


def work_of(
    ask: ChatRequest,
    session: Session,
    limits: Limits,
    store: Store,
    streaming: Callable[[str | ToolCall], None],
) -> Work:
    """What the model's thread does for ``ask``, after the checks that need no model.

    ``streaming`` gets the text piece by piece, and calls of tools, on the event loop that calls
    this. Raises `PromptError`.
    """
    loop, sampling = asyncio.get_running_loop(), _sampling(ask, session, limits)
    transfer = ask.kv_transfer_params or Transfer()
    kept = Keep(transfer.agent, transfer.budget, transfer.ttl, transfer.waits_on)
    keep = kept if transfer.keep else None
    salted = store if ask.cache_salt is None else store.under(ask.cache_salt)
    messages = [message.plain() for message in ask.messages]

    tools = ask.usable_tools

    def hand_on(piece: str | ToolCall) -> None:
        loop.call_soon_threadsafe(streaming, piece)

    def work(cancelled: Cancelled) -> tuple[Prompt, Answer]:
        card = transfer.card
        if transfer.from_agent is not None:
            card = latest(salted, transfer.from_agent)
        prompt = session.prompt(
            salted, messages, card, transfer.reuse, tools.offered if tools else ()
        )
        context = limits.context or session.context_tokens
        if len(prompt.ids) > context:
            raise too_long(context, len(prompt.ids))
        answer = session.answer(
            prompt,
            sampling,
            store=salted,
            keep=keep,
            tools=tools,
            on_text=hand_on,
            on_call=hand_on,
            cancelled=cancelled,
        )
        return prompt, answer

    return work


def _sampling(ask: ChatRequest, session: Session, limits: Limits) -> Sampling:
    wanted = ask.max_completion_tokens or ask.max_tokens
    if wanted is not None and wanted > limits.tokens:
        raise PromptError(
            f"the request asks for {wanted} tokens; at most {limits.tokens} are allowed here."
        )
    temperature, top_p = session.own_sampling
    return Sampling(
        max_tokens=wanted or limits.tokens,
        temperature=temperature if ask.temperature is None else ask.temperature,
        top_p=ask.top_p or top_p,
        top_k=None if ask.top_k is None else max(0, ask.top_k),
        min_p=ask.min_p,
        repetition_penalty=ask.repetition_penalty,
        seed=None if ask.seed is None else ask.seed % 2**63,
        stop=ask.stops,
    )


def latest(store: Store, agent: str) -> str:
    """Digest of the card that ``agent`` kept last under the store's salt.

    Raises `CardNotFoundError`.
    """
    kept = [entry for entry in store.ls() if entry.agent == agent]
    for entry in sorted(kept, key=lambda entry: entry.put_at, reverse=True):
        try:
            card = store.peek(entry.digest)
        except CardError:  # removed since, or damaged
            continue
        # A card from elsewhere may name any agent, so somebody must vouch for it.
        if card.manifest.salt == store.salt and store.vouched(entry.digest):
            return entry.digest
    raise CardNotFoundError(
        f"agent {agent[:80]!r} has kept no card here that somebody vouches for; expected the agent "
        "of an earlier request with keep, and its cache_salt. Or name a card."
    )
