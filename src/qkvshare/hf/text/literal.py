"""Text that others wrote, as token ids of text: special tokens that it spells do not become any.

A chat template separates turns by special tokens. A message that spells one, such as
``<|im_end|>``, could end its turn and forge the next one if it was tokenized as the template is.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from jinja2 import TemplateError
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from ...card.digest import TokenIds
from ...card.errors import PromptError
from .detokenizer import special_ids
from .messages import ASKED, SOME_TOOL, Message, Tool, called


class Literal:
    """Renders messages and tokenizes what was rendered, with the messages' words taken as text.

    Messages that spell no special token, which is nearly all of them, go the tokenizer's usual way.
    In others each such spelling is replaced by a mark that nobody can guess before the template
    sees it. The special tokens found after that are the template's own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """For one tokenizer as it is now; `literal` keeps what this builds."""
        self._tokenizer, added = tokenizer, tokenizer.added_tokens_decoder
        ids = special_ids(tokenizer) | _written_by_template(tokenizer)
        self._ids = {str(tokenizer.convert_ids_to_tokens(at)): at for at in sorted(ids)}
        self._added = {word: added.get(at) for word, at in self._ids.items()}
        # Longest first, since one may begin with another.
        words = sorted((word for word in self._ids if word), key=len, reverse=True)
        self._spelling = re.compile("|".join(map(re.escape, words)) or r"(?!)")
        secret = secrets.token_hex(8)
        self._marks = {word: f"m{secret}x{at}x" for at, word in enumerate(words)}
        self._names = {word: f"\ue000{secret}{at}\ue001" for at, word in enumerate(words)}
        self._named_ids = {name: self._ids[word] for word, name in self._names.items()}
        self._words = {mark: word for word, mark in self._marks.items()}
        self._mark = re.compile(f"m{secret}x[0-9]+x")

    def render(
        self, messages: Sequence[Message], asks: bool = False, tools: Sequence[Tool] = ()
    ) -> str:
        """What the chat template makes of ``messages`` and of ``tools`` that the model may call,
        for `ids`; ``asks`` for an answer, or not.

        Raises `PromptError`.
        """
        try:
            return self._render(messages, asks, tools)
        except (TemplateError, TypeError) as error:
            raise PromptError(
                f"the chat template does not take these messages: {error}. "
                "Expected roles and an order that the model was trained with."
            ) from error

    def _render(self, messages: Sequence[Message], asks: bool, tools: Sequence[Tool]) -> str:
        for said in (*messages, *tools):
            self._require_unsplit(said)
        given, plain = [*messages], _rendered(self._tokenizer, messages, asks, tools)
        hidden, hidden_tools = (_changed(each, self._hide) for each in (given, [*tools]))
        if (hidden, hidden_tools) == (_changed(given, str), _changed([*tools], str)):
            return plain
        marked = _rendered(self._tokenizer, hidden, asks, hidden_tools)
        if self._show(marked) != plain:
            raise PromptError(
                "a message spells a special token of the model, and the chat template changes what "
                "messages say, so that it cannot be told from the template's own. Leave it out."
            )
        return marked

    def ids(self, rendered: str) -> TokenIds:
        """Ids of what `render` gave, none added. Raises `PromptError`."""
        if not self._mark.search(rendered):
            return self._plain(rendered)
        named = self._spelling.sub(lambda found: self._names[found[0]], rendered)
        found = self._copy.encode(self._show(named), add_special_tokens=False).ids
        if self._forbidden.intersection(found):
            raise PromptError(
                "a message spells a special token of the model, and the tokenizer has no other ids "
                "for these words. Leave it out."
            )
        copied = {self._copy.token_to_id(name): at for name, at in self._named_ids.items()}
        return np.array([copied.get(at, at) for at in found], np.int32)

    def text(self, text: str) -> TokenIds:
        """Ids of a text, with the tokens that begin a prompt. Raises `PromptError`."""
        self._require_unsplit({"content": text})
        whole = self._plain("a", True)
        first = find(whole, self._plain("a")) or 0
        return np.concatenate([whole[:first], self.ids(self._hide(text))])

    def _plain(self, text: str, begins: bool = False) -> TokenIds:
        ids = self._tokenizer(text, add_special_tokens=begins)["input_ids"]
        return np.array(ids, np.int32).reshape(-1)

    def _hide(self, text: str) -> str:
        return self._spelling.sub(lambda found: self._marks[found[0]], text)

    def _show(self, text: str) -> str:
        return self._mark.sub(lambda found: self._words[found[0]], text)

    def _require_unsplit(self, message: Message | Tool) -> None:
        """Refuse special tokens that are there only once parts are joined or text is normalized."""
        parts = [*map(_parts, message.values()), *([each] for each in _strings(message))]
        joined = "\n".join("".join(map(self._hide, texts)) for texts in parts)
        if self._normalizes is not None:
            joined += self._normalizes(joined)
        if self._spelling.search(joined):
            raise PromptError(
                "a message spells a special token of the model in several parts, or in characters "
                "that the tokenizer makes others of. Leave it out."
            )

    @cached_property
    def _normalizes(self) -> Callable[[str], str] | None:
        """What the tokenizer does to text before it looks for special tokens, where it does so."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        normalizer = getattr(backend, "normalizer", None)
        if normalizer is None or not any(at and at.normalized for at in self._added.values()):
            return None
        normalize: Callable[[str], str] = normalizer.normalize_str
        return normalize

    @cached_property
    def _forbidden(self) -> set[int]:
        """Ids that text may not have; it may have characters that are unknown."""
        unknown = getattr(self._tokenizer.backend_tokenizer.model, "unk_token", None)
        words = {self._tokenizer.unk_token, unknown}
        return {at for word, at in self._ids.items() if word not in words}

    @cached_property
    def _copy(self) -> Tokenizer:
        """The tokenizer, but special tokens are text, and their `_names` special tokens."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise PromptError(
                "a message spells a special token of the model, and this tokenizer cannot take it "
                "as text. Leave it out, or load the fast tokenizer."
            )
        content: dict[str, Any] = json.loads(backend.to_str())
        for token in content["added_tokens"]:
            token["special"] = token["special"] or token["content"] in self._ids
        copy = Tokenizer.from_str(json.dumps(content))
        copy.no_truncation()
        copy.no_padding()
        copy.encode_special_tokens = True
        copy.add_tokens([_named(name, self._added[word]) for word, name in self._names.items()])
        return copy


_known: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[object, Literal]] = WeakKeyDictionary()


def literal(tokenizer: PreTrainedTokenizerBase) -> Literal:
    """The `Literal` of a tokenizer, made anew when its special tokens or its template change."""
    now = str(getattr(tokenizer, "chat_template", None)), str(tokenizer.added_tokens_decoder)
    known = _known.get(tokenizer)
    if known is None or known[0] != now:
        known = _known[tokenizer] = now, Literal(tokenizer)
    return known[1]


def find(ids: TokenIds, part: TokenIds) -> int | None:
    """Where in ``ids`` the ids ``part`` begin."""
    places = range(len(ids) - len(part) + 1)
    return next((at for at in places if np.array_equal(ids[at : at + len(part)], part)), None)


def _written_by_template(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids of added tokens that separate turns, special or not (DeepSeek's are not)."""
    if getattr(tokenizer, "chat_template", None) is None:
        return set()
    text = ""
    for messages, tools in (([ASKED], []), ([ASKED, *called(["123456789"])], [SOME_TOOL])):
        try:
            text += _rendered(tokenizer, messages, True, tools)
        except Exception:  # a template may refuse anything; rendering the real messages says why
            continue
    added = tokenizer.added_tokens_decoder.items()
    return {at for at, token in added if token.content.strip() and token.content in text}


def _named(name: str, token: Any) -> AddedToken:
    """``token`` under another name, with its rules for the spaces beside it."""
    rules = {rule: getattr(token, rule, False) for rule in ("lstrip", "rstrip", "single_word")}
    return AddedToken(name, special=False, normalized=False, **rules)


def _parts(value: Any) -> list[str]:
    """The texts of a message's content, which templates may join."""
    if isinstance(value, (list, tuple)):
        return [str(part.get("text") or "") for part in value if isinstance(part, dict)]
    return [value] if isinstance(value, str) else []


def _rendered(
    tokenizer: Any, messages: Sequence[Message], asks: bool, tools: Sequence[Tool]
) -> str:
    return str(
        tokenizer.apply_chat_template(
            [*messages], tools=[*tools] or None, tokenize=False, add_generation_prompt=asks
        )
    )


def _strings(value: Any) -> list[str]:
    """All that a message or a tool says, names of fields too."""
    found = list[str]()

    def note(each: str) -> str:
        found.append(each)
        return each

    _changed(value, note)
    return found


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    """Messages, or a part of one, with each string in them changed, names of fields too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_changed(name, change): _changed(each, change) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_changed(each, change) for each in value]
    return value
