"""GGUF files, de-quantized once into a folder that transformers loads in seconds."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, logging

from ...card.errors import ModelNotFoundError


def cache_folder() -> Path:
    """Where converted models are kept: ``$QKVSHARE_CACHE``, or the user's cache folder."""
    chosen = os.environ.get("QKVSHARE_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qkvshare"


def gguf_folder(file: Path) -> Path:
    """``file`` as a checkpoint in bfloat16, converted on first use (a minute per GB).

    The folder has the file's digest in its name. Raises `ModelNotFoundError`.
    """
    try:
        with file.open("rb") as read:
            digest = hashlib.file_digest(read, "sha256").hexdigest()
    except OSError as error:
        raise ModelNotFoundError(f"{file} cannot be read: {error}.") from error
    return converted(file, cache_folder() / folder_name(file.stem, digest), torch.bfloat16)


def folder_name(name: str, digest: str) -> str:
    """Of the checkpoint that a GGUF file becomes."""
    return f"{name}-{digest[:12]}"


def converted(file: Path, target: Path, dtype: torch.dtype) -> Path:
    """``target``, a checkpoint of ``file``, which is made now if it is not there.

    Raises `ModelNotFoundError`.
    """
    if not target.exists():
        try:
            _convert(file, target, dtype)
        except MemoryError:
            raise
        except Exception as error:  # files that are damaged raise anything
            raise ModelNotFoundError(
                f"{file} cannot be converted into {target}: "
                f"{' '.join(f'{type(error).__name__}: {error}'.split())[:500]} Give a GGUF file of "
                "an architecture that transformers reads, install 'qkvshare[demo]', and set "
                "QKVSHARE_CACHE to a writable folder with room for the model."
            ) from error
    return target


def _convert(file: Path, target: Path, dtype: torch.dtype) -> None:
    """Whoever finishes first wins; nobody sees half of it."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    folder, name = file.parent, file.name
    source = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=dtype)
    # A model loaded from GGUF refuses to be saved; a fresh one of the same config does not.
    settings = source.config.to_dict()
    settings.pop("quantization_config", None)
    config = AutoConfig.for_model(**settings)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    model.load_state_dict(source.state_dict())
    model.generation_config = source.generation_config

    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=target.parent, prefix=target.name))
    try:
        model.save_pretrained(part)
        AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(part)
        if not target.exists():
            part.rename(target)
    except OSError:
        if not target.exists():  # else another process was faster
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
