"""Load what a first request needs, before anybody waits for it."""

from __future__ import annotations

import tempfile
from contextlib import suppress

import numpy as np

from ...card.errors import QKVShareError
from ...store import Store
from ..capture.capture import capture
from ..model.config import text_config
from .answers import Keep, Prompt, Sampling
from .session import Session

# Of a first card, and of what follows it: few, since a model reads them; all kernels take part.
_CONTEXT, _MORE = 48, 4


def warm(session: Session) -> None:
    """Do once what requests ask for: keep a card, go on from it, keep what it grew to.

    About a second. What cannot be done here
    is left for a request to say.
    """
    size = min(_CONTEXT, session.context_tokens // 4)
    ids = (np.arange(size + _MORE) % text_config(session.model).vocab_size).astype(np.int32)
    with suppress(QKVShareError), tempfile.TemporaryDirectory(prefix="qkvshare-") as folder:
        store = Store(folder)
        card = capture(session.model, session.tokenizer, ids[:size], codec=session.codec)
        known = store.get(store.put(card))
        prompt = Prompt(ids, known, named=True)
        keep = Keep() if getattr(session.tokenizer, "chat_template", None) else None
        session.answer(prompt, Sampling(_MORE), store=store, keep=keep)
