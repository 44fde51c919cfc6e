"""Small models whose text really depends on their context, and cards made of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# What somebody has calibrated on this machine must not change what is tested.
os.environ["QKVSHARE_PROFILES"] = os.devnull

import pytest
import torch
from hypothesis import settings
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

# Machines differ in speed, and a run that must be green tries the same examples each time.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

_ROOT = Path(__file__).parents[1]
_MODELS = (
    "tests/test_readme.py",
    "tests/test_smollm2.py",
    "tests/hf/test_chains.py",
    "tests/hf/test_generate.py",
    "tests/hf/test_generation_options.py",
    "tests/hf/test_states.py",
)
_SERVERS = (
    "tests/serve/",
    "tests/cli/test_ends.py",
    "tests/codecs/test_memory.py",
    "benchmarks/tests/test_hops.py",
    "benchmarks/tests/test_results.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks that follow from what a test uses; `slow` and `nightly` stand beside the tests."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        path = item.path.relative_to(_ROOT).as_posix()
        if "smollm2" in fixtures or path in _MODELS:
            item.add_marker(pytest.mark.model)
        if path.startswith(_SERVERS):
            item.add_marker(pytest.mark.server)
        if "browser" in fixtures:
            item.add_marker(pytest.mark.browser)


VOCABULARY = 128
WINDOW = 8

# With the default initializer_range a small model ignores its context, and every test of a
# hand-off would pass whatever was handed over.
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.6,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}

_CONFIGS: dict[str, Callable[..., Any]] = {
    "llama": LlamaConfig,
    "qwen3": Qwen3Config,
    "mistral": lambda **kw: MistralConfig(**{"sliding_window": WINDOW, **kw}),
    "gemma3": lambda **kw: Gemma3TextConfig(
        **{
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "query_pre_attn_scalar": 8,
            "tie_word_embeddings": False,
            **kw,
        }
    ),
    "phi3": lambda **kw: Phi3Config(**{k: v for k, v in kw.items() if k != "head_dim"}),
}
FAMILIES = list(_CONFIGS)


def tiny_model(family: str = "llama", seed: int = 0, dtype: Any = torch.float32, **kw: Any) -> Any:
    """A random model of a family, evaluation mode."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(_CONFIGS[family](**{**COMMON, **kw}))
    if family == "gemma3":
        # It norms what its layers add and scales embeddings up: the context would be drowned.
        with torch.no_grad():
            model.model.embed_tokens.weight *= 0.05
    return model.to(dtype).eval()


def tiny_tokenizer(template: bool = True) -> PreTrainedTokenizerFast:
    """One token a character."""
    alphabet = [chr(code) for code in range(32, 127)]
    vocabulary = {c: i for i, c in enumerate(["<pad>", "<s>", "</s>", "\n", *alphabet])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    if template:
        tokenizer.chat_template = (
            "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}"
            "{% if add_generation_prompt %}[assistant]{% endif %}"
        )
    return tokenizer


def some_ids(count: int, seed: int = 0) -> list[int]:
    """Random ids from the vocabulary, no special ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY - 29, (count,), generator=generator).tolist()


def greedy(model: Any, tokens: int = 16, **arguments: Any) -> list[int]:
    """What the model says after ``input_ids``."""
    with torch.no_grad():
        output = model.generate(
            **arguments, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
        )
    return output[0, arguments["input_ids"].shape[1] :].tolist()


def greedy_from_text(model: Any, ids: list[int], tokens: int = 16) -> list[int]:
    """The reference: no hand-off."""
    input_ids = torch.tensor([ids])
    return greedy(model, tokens, input_ids=input_ids, attention_mask=torch.ones_like(input_ids))


@pytest.fixture(scope="session")
def llama() -> Any:
    return tiny_model("llama")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory, llama: Any) -> Path:
    """The tiny Llama and its tokenizer as a checkpoint, for the command line."""
    folder = tmp_path_factory.mktemp("llama")
    llama.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2() -> tuple[Any, Any]:
    """The embedded model; every developer install has it, see the Makefile."""
    from qkvshare.hf.model.load import EMBEDDED, load_model

    return load_model(EMBEDDED)
