"""One model that stays in memory, and answers from cards, and from text where there is none."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from threading import Lock

import numpy as np
import torch
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from ...card import CacheCard
from ...card.digest import TokenIds
from ...card.errors import CancelledError, CardNotFoundError, PromptError
from ...codecs import Codec
from ...store import Store
from ..cache.complete import complete
from ..cache.growing import FullLayer
from ..cache.layers import empty_cache
from ..cache.observe import observe, require_geometry
from ..model.identity import identify
from ..model.rope import length_limit
from ..text.chat import Chat
from ..text.literal import literal
from ..text.messages import Message, Tool
from ..text.tokens import require_length, require_vocabulary, tokenize, too_long
from ..tools.calls import ToolCall
from ..tools.reader import ToolReader, Tools
from .answers import Answer, Keep, Prompt, Reuse, Sampling
from .generation import generate, left_out
from .keeping import make_kept
from .prompts import composed_cache, named, pieced
from .streaming import AnswerStream, ends_of
from .tiers import Name, Tiers, longest, set_aside


class Session:
    """A model and its tokenizer, for agents that hand their state on through a store.

    Serves one request at a time; any thread may ask.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        codec: Codec | None = None,
        hot_bytes: int = 1 << 30,
        warm_bytes: int = 1 << 28,
        reuse: Reuse = "exact",
    ) -> None:
        """Take a model that is in memory.

        Args:
            model: a causal language model, as `capture` takes it.
            tokenizer: the model's, with a chat template.
            codec: how cards are encoded; by default as `capture` does.
            hot_bytes: the most that decoded caches of cards used last may take; 0 keeps none.
            warm_bytes: the same for the cards' own bytes.
            reuse: see `prompt`; for those that say nothing.
        """
        self.model, self.tokenizer, self.codec, self.reuse = model, tokenizer, codec, reuse
        self.chat = Chat(tokenizer)
        self.identity = identify(model, tokenizer)
        observe(model)  # now, and not while another thread answers
        self._ends, self._lock, self.tiers = ends_of(model), Lock(), Tiers(hot_bytes, warm_bytes)
        if ignored := left_out(model):
            warnings.warn(
                f"the model's generation_config has {', '.join(ignored)}; answers are made without",
                stacklevel=2,
            )

    @property
    def context_tokens(self) -> int:
        """What the model can read at most."""
        return length_limit(self.model) or 2**31

    @property
    def own_sampling(self) -> tuple[float, float]:
        """Temperature and top-p of the model's generation config; greedy where it says nothing."""
        config = self.model.generation_config
        if config is None or not config.do_sample:
            return 0.0, 1.0
        warm = 1.0 if config.temperature is None else config.temperature
        return float(warm), float(config.top_p or 1.0)

    def prompt(
        self,
        store: Store,
        messages: Sequence[Message],
        card: str | None = None,
        reuse: Reuse | None = None,
        tools: Sequence[Tool] = (),
    ) -> Prompt:
        """Find out what has to be read for ``messages``, and ``tools`` that the model may call.

        With ``card``, a digest, they are what follows it, or the whole conversation, if the card's
        tokens are how that begins. Without one the store's longest card of such a beginning is
        taken; to "compose" takes what cards have of it anywhere, which is approximate. What follows
        a card may call the tools that its conversation began with. Raises the `CardError` family,
        `IdentityError`, `PromptError`, `UnsupportedModelError`.
        """
        if card is not None:
            return named(store, self.chat, self.identity, messages, card, tools)
        ids = self.chat.whole(messages, tools)
        if (reuse or self.reuse) == "compose":
            return pieced(store, self.model, self.tokenizer, self.identity, ids)
        return longest(store, ids, self.identity)

    def require(self, card: CacheCard) -> None:
        """Look whether the model can go on from ``card``, by what its header and ids say.

        Raises `IdentityError`, `PromptError`, `CardExpiredError`, `UnsupportedModelError`.
        """
        card.require_fresh()
        card.manifest.identity.require(self.identity)
        require_geometry(self.model, card.manifest.layers, card.manifest.states)
        require_vocabulary(self.model, card.token_ids, "card")
        require_length(self.model, card.tokens)

    def answer(
        self,
        prompt: Prompt,
        sampling: Sampling,
        *,
        store: Store | None = None,
        keep: Keep | None = None,
        tools: Tools | None = None,
        on_text: Callable[[str], None] = lambda piece: None,
        on_call: Callable[[ToolCall], None] = lambda call: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """Read what is new in ``prompt``, generate, and keep the state in ``store`` if asked.

        ``on_text`` gets the text piece by piece, and ``on_call`` the calls of ``tools``; without
        tools a call is text. ``cancelled`` is asked at each layer and token. The answer is no
        longer than what is left of the model's context. Raises what `inject` and `capture` do, what
        ``store.put`` does, `ContextLengthExceededError`, and `UnsupportedModelError` for a model
        whose calls cannot be read.
        """
        if len(prompt.ids) == 0:
            raise PromptError("the prompt is empty; a model goes on from one token at least.")
        require_vocabulary(self.model, prompt.ids, "prompt")
        closing = 0 if keep is None or store is None else len(self.chat.closing)
        left = self.context_tokens - len(prompt.ids) - closing
        if left < 1:
            raise too_long(self.context_tokens, len(prompt.ids), closing)
        sampling = replace(sampling, max_tokens=min(sampling.max_tokens, left))
        answer = Answer("", "cancelled", len(prompt.ids), 0)
        reader = None if tools is None else ToolReader(self.tokenizer, tools, on_text, on_call)
        with self._lock, torch.no_grad():
            begun = time.perf_counter()
            try:
                with answer.timed("inject"):
                    cache = self._cache(prompt, store, cancelled)
                    answer.count(cache)
                with answer.timed("read"):
                    complete(self.model, cache, prompt.ids[:-1], cancelled)
            except CancelledError:
                return answer
            with answer.timed("say"):
                stream = AnswerStream(self.tokenizer, on_text, sampling.stop)
                if reader is not None:
                    stream = reader.stream(sampling.stop)
                new = generate(self.model, prompt.ids, cache, sampling, stream, cancelled)
            answer.stages_ms["first"] = 1e3 * (stream.first_at - begun)
            answer.text, answer.new_tokens = stream.text, len(new)
            if reader is not None:
                reader.end()
                answer.text, answer.calls = reader.text, reader.calls
            if cancelled():
                return answer
            ended = int(new[-1]) in self._ends
            answer.finish = "stop" if ended or stream.stopped else "length"
            if answer.calls and answer.finish == "stop":
                answer.finish = "tool_calls"
            if keep is not None and store is not None:
                with answer.timed("keep"):
                    ids, cache = self._close(prompt, store, stream.ids_of_text(new), cache)
                    self._keep(answer, store, keep, prompt.vouched, ids, cache)
        return answer

    def read(self, source: str | Sequence[Message], store: Store, keep: Keep) -> Answer:
        """Keep a text, or messages, as a card; nothing is generated. Raises as `answer`."""
        if isinstance(source, str):
            ids = literal(self.tokenizer).text(source)
        else:
            ids = tokenize(self.tokenizer, source)
        require_length(self.model, len(ids) + 1)
        answer = Answer("", "stop", len(ids), 0)
        with self._lock, answer.timed("keep"):
            self._keep(answer, store, keep, True, ids)
        return answer

    def _cache(self, prompt: Prompt, store: Store | None, cancelled: Callable[[], bool]) -> Cache:
        """A cache with the first tokens of the prompt, always without the last one.

        Nobody asked for a card that was only found: whatever is wrong with it, it is set aside in
        ``store``, and the text is read instead.
        """
        if (card := prompt.card) is None and prompt.parts is None:
            return empty_cache(self.model)
        try:
            if card is None:
                return composed_cache(self.model, self.tokenizer, prompt, cancelled)
            name = Name(prompt.found or card.digest, card.tokens)
            return self.tiers.resume(self.model, name, card, prompt.ids, self.tokenizer, cancelled)
        except (CancelledError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if prompt.named:
                raise
            set_aside(store, prompt.found, error)
            return empty_cache(self.model)

    def _close(
        self, prompt: Prompt, store: Store, new: TokenIds, cache: Cache
    ) -> tuple[TokenIds, Cache]:
        """End the turn as the chat template does: all ids, and a cache that lacks the last ones."""
        ids = np.concatenate([prompt.ids, new, self.chat.closing])
        surplus = cache.get_seq_length() - len(prompt.ids) - len(new)
        if surplus > 0 and all(type(layer) in (DynamicLayer, FullLayer) for layer in cache.layers):
            cache.crop(-surplus)
        elif surplus > 0:  # other layers have forgotten what came before it
            cache = self._cache(prompt, store, lambda: False)
        return ids, cache

    def _keep(
        self,
        answer: Answer,
        store: Store,
        how: Keep,
        vouched: bool,
        ids: TokenIds,
        cache: Cache | None = None,
    ) -> None:
        """Make a card of ``cache``, or of ``ids`` read now, and note it in ``answer``."""
        card = make_kept(self.model, self.tokenizer, how, self.codec, store.salt, ids, cache)
        answer.card, answer.card_bytes = store.put(card, vouched=vouched), card.nbytes
        self.tiers.keep(card)
        waits_on = answer.calls[0].name if answer.calls else None
        if (waits_on := how.waits_on or waits_on) is not None:
            with suppress(CardNotFoundError):  # evicted or removed since
                store.hold(answer.card, waits_on)
