"""BOS stands once, at the start; EOS that a tokenizer adds stands nowhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from qkvshare import Raw, capture
from qkvshare.card.errors import PromptError

from ..conftest import greedy, greedy_from_text, tiny_tokenizer

BOS, EOS = "<s>", "</s>"
TEXT, QUESTION = "the manual says little", "\n\nQuestion: why?"


def adding(template: str) -> Any:
    """A tokenizer that adds special tokens, as those of Llama (BOS) or T5 (EOS) do."""
    tokenizer = tiny_tokenizer()
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (BOS, EOS)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=ids
    )
    return tokenizer


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("template", ["$A", f"{BOS} $A", f"$A {EOS}", f"{BOS} $A {EOS}"])
def test_a_text_after_a_card_has_none(llama: Any, template: str) -> None:
    tokenizer = adding(template)
    begin = [tokenizer.bos_token_id] if template.startswith(BOS) else []
    card = capture(llama, tokenizer, TEXT, codec=Raw())
    assert card.token_ids.tolist() == begin + plain_ids(tokenizer, TEXT)
    given = card.inputs(llama, tokenizer, QUESTION)
    whole = begin + plain_ids(tokenizer, TEXT + QUESTION)
    assert given["input_ids"][0].tolist() == whole
    assert greedy(llama, **given) == greedy_from_text(llama, whole)
    only = card.inputs(llama, tokenizer, QUESTION, new_only=True)["input_ids"]
    assert torch.equal(only, given["input_ids"][:, card.tokens :])


def test_a_rendered_template_brings_its_own(llama: Any) -> None:
    tokenizer = adding(f"{BOS} $A")
    card = capture(llama, tokenizer, BOS + TEXT, codec=Raw())
    assert card.token_ids.tolist() == plain_ids(tokenizer, BOS + TEXT)
    assert card.token_ids.tolist().count(tokenizer.bos_token_id) == 1


def test_a_text_without_tokenizer(llama: Any) -> None:
    card = capture(llama, tiny_tokenizer(), TEXT, codec=Raw())
    with pytest.raises(PromptError, match="pass tokenizer="):
        card.inputs(llama, new=QUESTION)


def test_messages_that_a_template_refuses(llama: Any) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(PromptError, match="does not take these messages: roles must alternate"):
        capture(llama, tokenizer, [{"role": "user", "content": "a"}])
