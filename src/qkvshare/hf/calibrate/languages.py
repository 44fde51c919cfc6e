"""Text for calibration in many languages: what a model's own text and most given texts lack.

The passages of `languages.txt` were written for this package; there is none in French, which
docs/results/rate.md measures as a language that calibration has not seen.
"""

from __future__ import annotations

from importlib.resources import files

from transformers import PreTrainedTokenizerBase


def languages(tokenizer: PreTrainedTokenizerBase, contexts: int, tokens: int) -> list[list[int]]:
    """``contexts`` runs of ``tokens`` ids, spread over all passages.

    Where the passages are too short, runs overlap, and begin again at the first one.
    """
    text = files(__package__).joinpath("languages.txt").read_text(encoding="utf-8")
    ids: list[int] = tokenizer(text)["input_ids"]
    around = ids * (1 + -(-tokens // len(ids)))
    starts = (run * len(ids) // contexts for run in range(contexts))
    return [around[start : start + tokens] for start in starts]
