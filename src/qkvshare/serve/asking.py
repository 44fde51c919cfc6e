"""From a request to what the model's thread is to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..card.errors import CardError, CardNotFoundError, PromptError
from ..hf.session.answers import Answer, Keep, Prompt, Sampling
from ..hf.session.session import Session
from ..hf.text.tokens import too_long
from ..store import Store
from .limits import Limits
from .schema import Ask, Transfer

Cancelled = Callable[[], bool]


class Asked:
    """One request, checked as far as that is possible before its turn."""

    def __init__(self, session: Session, limits: Limits, ask: Ask, store: Store) -> None:
        """``store``: the tenant's. Raises `PromptError`."""
        self._resident, self._limits, self._ask = session, limits, ask
        self._transfer = ask.kv_transfer_params or Transfer()
        self._store = store if ask.cache_salt is None else store.under(ask.cache_salt)
        self._messages = [turn.plain() for turn in ask.messages]
        asked = ask.max_completion_tokens or ask.max_tokens
        if asked is not None and asked > limits.tokens:
            raise PromptError(f"{asked} tokens to say; at most {limits.tokens} are allowed here.")
        temperature, top_p = session.own_sampling
        self._sampling = Sampling(
            max_tokens=asked or limits.tokens,
            temperature=temperature if ask.temperature is None else ask.temperature,
            top_p=ask.top_p or top_p,
            top_k=None if ask.top_k is None else max(0, ask.top_k),
            min_p=ask.min_p,
            repetition_penalty=ask.repetition_penalty,
            seed=None if ask.seed is None else ask.seed % 2**63,
            stop=ask.stops,
        )

    def work(
        self, said: Callable[[str], None], loop: asyncio.AbstractEventLoop
    ) -> Callable[[Cancelled], tuple[Prompt, Answer]]:
        """For the model's thread; ``said`` gets the text on ``loop``."""

        def hand_on(piece: str) -> None:
            loop.call_soon_threadsafe(said, piece)

        def work(cancelled: Cancelled) -> tuple[Prompt, Answer]:
            prompt = self._prompt()
            answer = self._resident.answer(
                prompt,
                self._sampling,
                store=self._store,
                keep=self._keep(),
                said=hand_on,
                cancelled=cancelled,
            )
            return prompt, answer

        return work

    def _prompt(self) -> Prompt:
        card = self._transfer.card
        if self._transfer.from_agent is not None:
            card = latest(self._store, self._transfer.from_agent)
        prompt = self._resident.prompt(self._store, self._messages, card)
        context = self._limits.context or self._resident.context_tokens
        if len(prompt.ids) > context:
            raise too_long(context, len(prompt.ids))
        return prompt

    def _keep(self) -> Keep | None:
        asked = self._transfer
        return Keep(asked.agent, asked.budget, asked.ttl) if asked.keep else None


def latest(store: Store, agent: str) -> str:
    """Digest of the card that ``agent`` kept last under the store's salt.

    Raises `CardNotFoundError`.
    """
    kept = [entry for entry in store.ls() if entry.agent == agent]
    for entry in sorted(kept, key=lambda entry: entry.put_at, reverse=True):
        try:
            card = store.folder.open_card(entry.digest)
        except CardError:  # removed meanwhile, or damaged
            continue
        # A card from elsewhere may name any agent, so somebody must vouch for it.
        if card.manifest.salt == store.salt and store.vouched(entry.digest):
            return entry.digest
    raise CardNotFoundError(
        f"agent {agent[:80]!r} has kept no card here that somebody vouches for; expected the agent "
        "of an earlier request with keep, and its cache_salt. Or name a card."
    )
