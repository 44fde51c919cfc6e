"""The texts that `rate.md` measures, made of what anybody can install.

    apt-get install jargon-text debian-handbook
    python -m benchmarks.results.rate_texts FOLDER --gsm8k gsm8k-train.jsonl

For every kind two files: `KIND.txt` to measure with, and `KIND-train.txt`, of other parts of the
same source, to calibrate with. `mixture.txt` has prose, code and documentation in turn, and
`mixture-train.txt` the same and GSM8K's training problems.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import html
import itertools
import json
import random
import re
import sysconfig
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

DOC = Path("/usr/share/doc")
PIECE = 4000  # characters of one kind before the next
SIZE = 1000 * PIECE


def prose() -> list[str]:
    """The Jargon File's paragraphs, without its lists of words."""
    text = gzip.decompress((DOC / "jargon-text" / "jargon.txt.gz").read_bytes())
    paragraphs = re.split(r"\n\s*\n", text.decode(errors="replace"))
    plain = (re.sub(r"\s+", " ", paragraph).strip() for paragraph in paragraphs)
    return [paragraph for paragraph in plain if len(paragraph) > 200]


def code() -> list[str]:
    """Modules of Python's standard library."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return [file.read_text(encoding="utf-8", errors="replace") for file in files]


def documentation() -> list[str]:
    """Python's language reference."""
    return [topics[name] for name in sorted(topics)]


def french() -> list[str]:
    """The Debian handbook in French."""
    files = sorted((DOC / "debian-handbook" / "html" / "fr-FR").glob("*.html"))
    found = []
    for file in files:
        marked = re.findall(r"<p\b.*?</p>|<div class=\"para\">.*?</div>", file.read_text(), re.S)
        plain = (html.unescape(re.sub(r"<[^>]+>", "", part)) for part in marked)
        found.append("\n\n".join(re.sub(r"\s+", " ", part).strip() for part in plain))
    return found


def tool_output() -> list[str]:
    """JSON as tools print it: what every entry of the standard library's folder is."""
    root, found = Path(sysconfig.get_path("stdlib")), []
    for folder in sorted(path for path in root.rglob("*") if path.is_dir()):
        if {"site-packages", "__pycache__"} & set(folder.parts):
            continue
        entries = [
            {"name": at.name, "type": at.suffix[1:], "size": at.stat().st_size}
            for at in sorted(folder.glob("*.*"))
        ]
        answer = {"tool": "list", "path": str(folder.relative_to(root)), "entries": entries}
        found.append(json.dumps(answer, indent=1))
    return found


def noise() -> list[str]:
    """Nothing that a model could expect: random bytes in base 64."""
    draw = random.Random(0)
    return [base64.encodebytes(draw.randbytes(4000)).decode() for _ in range(100)]


KINDS: dict[str, Callable[[], list[str]]] = {
    "prose": prose,
    "code": code,
    "documentation": documentation,
    "french": french,
    "json": tool_output,
    "noise": noise,
}


def pieces(texts: list[str]) -> list[str]:
    """Cut ``texts`` where lines end, into about `PIECE` characters."""
    whole, out = "\n\n".join(texts)[:SIZE], []
    while whole:
        end = whole.rfind("\n", 0, PIECE) if len(whole) > PIECE else -1
        end = end if end > PIECE // 2 else min(PIECE, len(whole))
        out.append(whole[:end])
        whole = whole[end:]
    return out


def main() -> None:
    """Write all files."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gsm8k", type=Path, required=True, help="training problems, as JSONL")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    problems = map(json.loads, given.gsm8k.read_text().splitlines())
    gsm8k = [f"Question: {one['question']}\nAnswer: {one['answer']}" for one in problems]
    parts: dict[str, dict[str, list[str]]] = {"": {}, "-train": {"gsm8k": pieces(gsm8k)}}
    for kind, texts in KINDS.items():
        whole = texts()
        # Whole documents go to one side or the other.
        sides = {"": whole[::2], "-train": whole[1::2]}
        for side, own in sides.items():
            cut = pieces(own)
            (given.folder / f"{kind}{side}.txt").write_text("\n\n".join(cut))
            if kind in ("prose", "code", "documentation"):
                parts[side][kind] = cut
    for side, kinds in parts.items():
        turns = itertools.chain.from_iterable(zip(*kinds.values(), strict=False))
        (given.folder / f"mixture{side}.txt").write_text("\n\n".join(turns))


if __name__ == "__main__":
    main()
