"""Tools that a model calls: how its template writes calls, and how they are read from an answer."""
