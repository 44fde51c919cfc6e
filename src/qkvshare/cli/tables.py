"""Tables that fit the terminal: no cell is cut, and wide tables continue below."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from . import plain
from .options import out

_BORDER = 3  # terminal columns that a column takes beside its text


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]], keys: int = 1) -> None:
    """Print ``rows`` on stdout, as several tables if one would be too wide.

    Args:
        titles: one for each column.
        rows: the cells. A cell stays on one line if it fits beside the keys.
        keys: how many first columns each table repeats.
    """
    cells = [[plain(cell) for cell in column] for column in zip(*rows, strict=True)]
    cells = cells or [[] for _ in titles]
    columns = list(zip(titles, cells, strict=True))
    whole = [_widest([title, *column]) for title, column in columns]
    # Titles may break between words.
    least = [_widest([*title.split(), *column]) for title, column in columns]
    for group in _groups(least, keys, out.width):
        table = Table()
        widths = next((at for at in (whole, least) if _fits(at, group, out.width)), None)
        for number in group:
            width = None if widths is None else widths[number]
            table.add_column(titles[number], width=width, overflow="fold")
        for row in zip(*(cells[number] for number in group), strict=True):
            table.add_row(*(Text(cell) for cell in row))  # a Text has no markup
        out.print(table)


def _widest(texts: Sequence[str]) -> int:
    return max(map(cell_len, texts))


def _fits(widths: Sequence[int], group: Sequence[int], columns: int) -> bool:
    return sum(widths[number] + _BORDER for number in group) < columns


def _groups(widths: Sequence[int], keys: int, columns: int) -> list[list[int]]:
    """Columns of each table: the keys, and as many others as fit, at least one."""
    groups: list[list[int]] = []
    for number in range(keys, len(widths)):
        if groups and _fits(widths, [*groups[-1], number], columns):
            groups[-1].append(number)
        else:
            groups.append([*range(keys), number])
    return groups
