"""What agents with other prompts are asked of the same documents.

There are three kinds of questions. A *single* one needs one document. A *double* one needs two: one
says that somebody has the code of somebody else, whose code stands in the other. A *flip* depends
on the receiver's prompt: a document gives a colour, and each agent's code book has its code.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .facts import NAMES

DOCUMENTS = 3
_COLOURS = ("red", "blue", "green", "white", "black", "yellow")
_DONOR = "You are a careful research assistant. Read the notes and answer with exact facts.\n"
_RECEIVER = (
    "Role: auditor. Another team member has collected the notes below. Check them and reply in "
    "short; copy numbers exactly as they are written.\n"
)


@dataclass(frozen=True)
class Question:
    """``text [tokens]``, and behind it ``answer [tokens]``, of which those ``asked`` must be right;
    the others lead from one of them to the next."""

    kind: str
    text: list[int]
    answer: list[int]
    asked: list[bool]


@dataclass(frozen=True)
class Item:
    """Token ids of what two agents read.

    Attributes:
        donor: the prompt of the agent that read the documents.
        receiver: that of the agent that gets what the donor has made of them.
        documents: in the order in which the receiver has them.
        order: the order in which the donor read them.
        questions: to the receiver.
        text: any other text, for how much the receiver's predictions change.
    """

    donor: list[int]
    receiver: list[int]
    documents: list[list[int]]
    order: list[int]
    questions: list[Question]
    text: list[int]


def make_item(tokenizer: Any, filler: Sequence[int], number: int, tokens: int) -> Item:
    """Item ``number``, with documents of about ``tokens`` tokens of ``filler`` and facts."""
    rng = random.Random(number)

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    names = rng.sample(NAMES, 3 * DOCUMENTS)
    colours = rng.sample(_COLOURS, DOCUMENTS)
    codes = [str(rng.randint(1000, 9999)) for _ in range(DOCUMENTS)]
    books = [[str(rng.randint(1000, 9999)) for _ in colours] for _ in range(2)]
    questions, documents = [], []
    at = (DOCUMENTS + 1) * tokens * number
    for n in range(DOCUMENTS):
        owner, other, badge = names[3 * n : 3 * n + 3]
        # The code that ``other`` has is said in another document.
        shared = (n + 1) % DOCUMENTS
        facts = [
            f"\nThe access code of {owner} is {codes[n]}.\n",
            f"\nThe access code of {other} is the same as that of {names[3 * shared]}.\n",
            f"\nThe badge of {badge} is {colours[n]}.\n",
        ]
        rest = [*filler[at + n * tokens : at + (n + 1) * tokens]]
        cuts = sorted(rng.sample(range(8, max(12, len(rest) - 8)), len(facts)), reverse=True)
        for cut, fact in zip(cuts, facts, strict=True):
            rest[cut:cut] = ids(fact)
        documents.append(rest)
        to, code = names[3 * shared], codes[shared]
        asked = (
            ("single", f"The access code of {owner} is", [f" {codes[n]}"]),
            (
                "double",
                f"The access code of {other} is the same as that of",
                [f" {to}", f". The access code of {to} is", f" {code}"],
            ),
            (
                "flip",
                f"The badge of {badge} is",
                [f" {colours[n]}", f". The code of {colours[n]} is", f" {books[1][n]}"],
            ),
        )
        for kind, text, pieces in asked:
            answer, right = list[int](), list[bool]()
            for number, piece in enumerate(map(ids, pieces)):
                answer += piece
                right += [number % 2 == 0] * len(piece)
            questions.append(Question(kind, ids(f"\n\nAnswer: {text}"), answer, right))
    donor, receiver = (
        tokenizer(f"{role}{_said(colours, book)}\n")["input_ids"]
        for role, book in zip((_DONOR, _RECEIVER), books, strict=True)
    )
    order = rng.sample(range(DOCUMENTS), DOCUMENTS)
    after = [*filler[at + DOCUMENTS * tokens :][:64]]
    return Item(donor, receiver, documents, order, questions, after)


def _said(colours: Sequence[str], book: Sequence[str]) -> str:
    pairs = zip(colours, book, strict=True)
    return "".join(f"The code of {colour} is {code}.\n" for colour, code in pairs)
