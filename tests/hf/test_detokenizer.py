"""Text that is streamed is what all ids decode to, for each family of tokenizers."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from qkvshare.hf.session.streaming import AnswerStream
from qkvshare.hf.text.detokenizer import Detokenizer

WORDS = ["▁", "▁▁", "▁if", "▁a", ":", "if", "\n", "▁b", "b", "é", "▁🙂", "."]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_REPLACE = decoders.Replace("▁", " ")
SPECIAL = ["<s>", "</s>"]


def _byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["Ġif", "Ġa", "if", "ĠĠ", "ðŁ", "ĻĤ", "ï¿½"]
    vocabulary = {word: at for at, word in enumerate([*alphabet, *words])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentence_piece(decoder: Any, before: Any, normalizer: Any = None) -> Tokenizer:
    vocabulary = {word: at for at, word in enumerate(["<unk>", *BYTES, *WORDS])}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoder
    if before is not None:
        backend.pre_tokenizer = before
    if normalizer is not None:
        backend.normalizer = normalizer
    return backend


def _llama2() -> Tokenizer:
    strip = decoders.Strip(content=" ", left=1)
    steps = [_REPLACE, decoders.ByteFallback(), decoders.Fuse(), strip]
    spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _sentence_piece(decoders.Sequence(steps), None, spaces)


def _gemma() -> Tokenizer:
    steps = [_REPLACE, decoders.ByteFallback(), decoders.Fuse()]
    return _sentence_piece(decoders.Sequence(steps), None, normalizers.Replace(" ", "▁"))


def _metaspace(scheme: str) -> Tokenizer:
    return _sentence_piece(
        decoders.Metaspace(prepend_scheme=scheme), pre_tokenizers.Metaspace(prepend_scheme=scheme)
    )


def _word_piece() -> Tokenizer:
    words = ["[UNK]", "it", "is", "##n", "'", "t", "##t", ".", ",", "##s", "é", "n't", "do", "not"]
    backend = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return backend


def _ends_of_words() -> Tokenizer:
    words = ["<unk>", "if</w>", "i", "f</w>", "a</w>", ".</w>"]
    vocabulary = {word: at for at, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocabulary, [], end_of_word_suffix="</w>"))
    backend.decoder = decoders.BPEDecoder(suffix="</w>")
    return backend


MAKERS = {
    "byte level (GPT-2, Llama 3, Qwen)": _byte_level,
    "bytes and a space before (Llama 2, Mistral, Phi-3)": _llama2,
    "bytes (Gemma)": _gemma,
    "metaspace, always": lambda: _metaspace("always"),
    "metaspace, first": lambda: _metaspace("first"),
    "metaspace, never": lambda: _metaspace("never"),
    "WordPiece": _word_piece,
    "ends of words": _ends_of_words,
}
FAMILIES = list(MAKERS)


@cache
def family(name: str) -> PreTrainedTokenizerFast:
    backend = MAKERS[name]()
    backend.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    backend.add_tokens([AddedToken("<think>", special=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def streamed(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> tuple[str, int]:
    """The text in pieces, and of how many ids it is."""
    detokenizer = Detokenizer(tokenizer)
    text = "".join(map(detokenizer.add, ids)) + detokenizer.end()
    assert text == detokenizer.text
    return text, detokenizer.marks[-1][0]


def decoded(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))


@pytest.mark.parametrize("name", FAMILIES)
@given(data=st.data())
def test_pieces_are_what_all_ids_decode_to(name: str, data: st.DataObject) -> None:
    tokenizer = family(name)
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=24))
    text, whole = streamed(tokenizer, ids)
    # At the end only bytes that are no character are left out, and special tokens after them.
    assert text == decoded(tokenizer, ids[:whole])
    if whole < len(ids):
        assert not text.endswith("\ufffd")
    left = decoded(tokenizer, ids)[len(text) :]
    assert whole == len(ids) or not left.replace("\ufffd", "")


@pytest.mark.parametrize("name", [name for name in FAMILIES if "bytes" in name])
@given(text=st.text(st.sampled_from("if a:\n\t  bé🙂.漢"), max_size=24))
def test_text_comes_back(name: str, text: str) -> None:
    tokenizer = family(name)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert streamed(tokenizer, ids) == (decoded(tokenizer, ids), len(ids))
    assert streamed(tokenizer, ids)[0] == text


def test_indented_lines_keep_all_their_spaces() -> None:
    """A streamer that decodes each line by itself loses the space that decoders drop at a start."""
    tokenizer = family("bytes and a space before (Llama 2, Mistral, Phi-3)")
    pieces: list[str] = []
    stream = AnswerStream(tokenizer, pieces.append)
    stream.put(torch.tensor([[1, 2]]))
    for token in tokenizer("if a:\n    b", add_special_tokens=False)["input_ids"]:
        stream.put(torch.tensor([token]))
    stream.end()
    assert "".join(pieces) == stream.text == "if a:\n    b"


@pytest.mark.parametrize("name", [name for name in FAMILIES if "byte" in name])
def test_a_cut_character_is_left_out(name: str) -> None:
    tokenizer = family(name)
    ids = tokenizer("a\n🙂", add_special_tokens=False)["input_ids"]
    for cut in range(1, len(ids)):
        text, whole = streamed(tokenizer, ids[:cut])
        assert "a\n".startswith(text)
        assert text == decoded(tokenizer, ids[:whole])
    assert streamed(tokenizer, ids)[0] == "a\n🙂"


def test_the_ids_of_the_text_end_before_a_stop_string() -> None:
    tokenizer = family("byte level (GPT-2, Llama 3, Qwen)")
    stream = AnswerStream(tokenizer, lambda piece: None, ["a:"])
    stream.put(torch.tensor([[1]]))
    ids = tokenizer("if a: b", add_special_tokens=False)["input_ids"]
    for token in ids:
        stream.put(torch.tensor([token]))
    stream.end()
    assert stream.text == "if "
    assert decoded(tokenizer, stream.ids_of_text(np.array(ids, np.int32)).tolist()) == "if "
