"""The tables of the index."""

from __future__ import annotations

VERSION = 2

# No ";" ends a line but at the end of a statement: they are executed one by one.
# What version 2 added. Cards that were put before have no pieces until they are put again.
PIECES = """
CREATE TABLE piece (
    name BLOB NOT NULL, card TEXT NOT NULL REFERENCES card ON DELETE CASCADE,
    start INTEGER NOT NULL, PRIMARY KEY (name, card, start)) WITHOUT ROWID;
CREATE INDEX piece_card ON piece (card);
"""

SCHEMA = """
CREATE TABLE card (
    digest TEXT PRIMARY KEY, agent TEXT NOT NULL, tokens INTEGER NOT NULL, bytes INTEGER NOT NULL,
    put_at REAL NOT NULL, used_at REAL NOT NULL, expires_at REAL, hits INTEGER NOT NULL DEFAULT 0,
    saved_ms REAL NOT NULL, priority REAL NOT NULL DEFAULT 0, yields_at REAL);
CREATE INDEX card_priority ON card (priority);
CREATE INDEX card_agent ON card (agent, put_at);
CREATE INDEX card_expires ON card (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE segment (name TEXT PRIMARY KEY, bytes INTEGER NOT NULL);
CREATE TABLE part (
    card TEXT NOT NULL REFERENCES card ON DELETE CASCADE, number INTEGER NOT NULL,
    segment TEXT NOT NULL REFERENCES segment, PRIMARY KEY (card, number)) WITHOUT ROWID;
CREATE INDEX part_segment ON part (segment);
CREATE TABLE prefix (
    name BLOB NOT NULL, card TEXT NOT NULL REFERENCES card ON DELETE CASCADE,
    block BLOB NOT NULL, length INTEGER NOT NULL, PRIMARY KEY (name, card)) WITHOUT ROWID;
CREATE INDEX prefix_block ON prefix (block, length);
CREATE INDEX prefix_card ON prefix (card);
CREATE TABLE lease (
    holder TEXT PRIMARY KEY, card TEXT NOT NULL REFERENCES card ON DELETE CASCADE,
    until REAL NOT NULL);
CREATE INDEX lease_card ON lease (card);
CREATE TABLE waiting (
    card TEXT PRIMARY KEY, tool TEXT NOT NULL, began REAL NOT NULL, saved_ms REAL NOT NULL,
    bytes INTEGER NOT NULL);
CREATE TABLE waited (
    tool TEXT NOT NULL, began REAL NOT NULL, seconds REAL NOT NULL, saved_ms REAL NOT NULL,
    bytes INTEGER NOT NULL);
CREATE INDEX waited_tool ON waited (tool, began);
CREATE TABLE total (id INTEGER PRIMARY KEY CHECK (id = 0), bytes INTEGER NOT NULL,
    clock REAL NOT NULL, complete INTEGER NOT NULL);
INSERT INTO total VALUES (0, 0, 0, 0);
CREATE TRIGGER card_in AFTER INSERT ON card
    BEGIN UPDATE total SET bytes = bytes + new.bytes; END;
CREATE TRIGGER card_out AFTER DELETE ON card
    BEGIN UPDATE total SET bytes = bytes - old.bytes; END;
CREATE TRIGGER segment_in AFTER INSERT ON segment
    BEGIN UPDATE total SET bytes = bytes + new.bytes; END;
CREATE TRIGGER segment_out AFTER DELETE ON segment
    BEGIN UPDATE total SET bytes = bytes - old.bytes; END;
"""
