"""Write the reference of the command line from the application itself, when the site is built."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
import typer


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put the verbs into their page; mkdocs calls this for each page."""
    if page.file.src_uri != "reference/cli.md":
        return markdown
    return markdown.replace("{{ verbs }}", reference())


def reference() -> str:
    """All verbs with their arguments and options, as Markdown."""
    from qkvshare.cli.app import app

    return "\n".join(_command(typer.main.get_command(app), "qkvshare"))


def _command(command: Any, name: str) -> Iterator[str]:
    if isinstance(command, click.Group) or hasattr(command, "commands"):
        for verb, inner in command.commands.items():
            yield from _command(inner, f"{name} {verb}")
        return
    yield f"## `{name}`\n"
    yield f"{command.help or ''}\n"
    yield "| option | meaning |\n|---|---|"
    for parameter in command.params:
        names = ", ".join(f"`{each}`" for each in (*parameter.opts, *parameter.secondary_opts))
        text = " ".join((getattr(parameter, "help", None) or "").split()).replace("|", "\\|")
        default = parameter.default
        shown = default not in (None, "", False, (), []) and not callable(default)
        yield f"| {names} | {text}{f' Default: `{default}`.' if shown else ''} |"
    yield ""
