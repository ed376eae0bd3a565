"""Load on an engine, and what it measured."""
