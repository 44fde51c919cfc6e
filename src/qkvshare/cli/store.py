"""``qkvshare store``: put, get, ls, rm, gc, stats, audit."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from ..card import CacheCard
from ..store.adopt import with_salt_of
from .options import (
    Card,
    KeyFile,
    Limit,
    Output,
    Root,
    TenantName,
    finite,
    key_of,
    open_store,
    say,
)
from .tables import print_table

store = typer.Typer(help="Where cards live between hand-offs.", no_args_is_help=True)

Digest = Annotated[str, typer.Argument(help="A card's digest, or at least 4 digits of it.")]


@store.command()
def put(
    card: Card,
    root: Root = None,
    tenant: TenantName = None,
    key: KeyFile = None,
    limit: Limit = None,
    ttl: Annotated[
        float | None,
        typer.Option(
            min=0, max=10**10, callback=finite, help="Seconds after which the card may go."
        ),
    ] = None,
    vouch: Annotated[
        bool,
        typer.Option(
            "--vouch", help="Let prompts that begin like the card find it; else it must be named."
        ),
    ] = False,
) -> None:
    """Store a card file (sealed with the same key, if at all), and print its digest."""
    opened = open_store(root, tenant, key, limit)
    known = with_salt_of(opened, CacheCard.load(card, key=key_of(key)))
    typer.echo(opened.put(known, ttl=ttl, vouched=vouch))


@store.command()
def get(
    digest: Digest,
    output: Output,
    root: Root = None,
    tenant: TenantName = None,
    key: KeyFile = None,
) -> None:
    """Write a card to a file, whole (sealed with the same key, if at all)."""
    opened = open_store(root, tenant, key)
    card = opened.get(opened.find(digest))
    card.save(output, key=key_of(key))
    say(f"{output}: {card.tokens} tokens, {output.stat().st_size:,} bytes")


@store.command("ls")
def list_cards(root: Root = None, tenant: TenantName = None, key: KeyFile = None) -> None:
    """List the cards, the last used first."""
    rows = []
    for entry in open_store(root, tenant, key).ls():
        expires = "" if entry.expires_at is None else _time(entry.expires_at)
        row = entry.digest[:12], entry.agent, f"{entry.tokens:,}", f"{entry.bytes:,}"
        rows.append([*row, _time(entry.put_at), expires, str(entry.hits)])
    print_table(["digest", "agent", "tokens", "bytes", "put (UTC)", "expires", "uses"], rows)


@store.command("rm")
def remove(
    digest: Digest, root: Root = None, tenant: TenantName = None, key: KeyFile = None
) -> None:
    """Remove a card."""
    opened = open_store(root, tenant, key)
    opened.remove(opened.find(digest))


@store.command()
def gc(
    root: Root = None, tenant: TenantName = None, key: KeyFile = None, limit: Limit = None
) -> None:
    """Drop expired cards, get below the limit, and clear away what killed writers left."""
    opened = open_store(root, tenant, key, limit)
    before = opened.stats()["bytes"]
    dropped = opened.gc()
    say(f"{len(dropped)} cards dropped, {before - opened.stats()['bytes']:,} bytes freed")


@store.command()
def stats(root: Root = None, tenant: TenantName = None, key: KeyFile = None) -> None:
    """Count cards, segments and bytes."""
    for name, value in open_store(root, tenant, key).stats().items():
        say(f"{name.replace('_', ' ')}: {value:,}")


@store.command()
def audit(root: Root = None, tenant: TenantName = None, key: KeyFile = None) -> None:
    """Read every byte of every card and compare it with its digest."""
    found = open_store(root, tenant, key).audit()
    for digest, problem in {**found.damaged, **found.lost}.items():
        say(f"{digest[:12]}: {problem}")
    say(
        f"{found.cards} cards, {found.segments} segments, {found.bytes:,} bytes: "
        f"{len(found.damaged)} damaged, {len(found.lost)} lost, {found.orphans} files of no card"
    )
    if not found.ok:
        raise typer.Exit(1)


def _time(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
    except (OverflowError, ValueError):
        return "later than can be written"
