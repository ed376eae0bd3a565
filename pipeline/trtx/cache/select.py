"""Which entries a word on the command line means: a key, the beginning of one, or a glob of step names."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from trtx.cache.index import Row, list_rows
from trtx.cache.store import Store, is_key
from trtx.errors import UsageProblem, did_you_mean

SHOWN = 5
SHOWN_KEY = 16


def find_keys(store: Store, words: Iterable[str]) -> list[str]:
    """The full keys of keys or of their beginnings, in order, each once.

    Raises UsageProblem for a word that means no entry or more than one.
    """
    known: list[str] | None = None
    found: dict[str, None] = {}
    for word in words:
        if is_key(word) and store.entry(word).exists():
            found[word] = None
            continue
        known = store.keys() if known is None else known
        found[_find_one(word, known)] = None
    return list(found)


def _find_one(word: str, known: list[str]) -> str:
    matches = [key for key in known if key.startswith(word)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        more = f" and {len(matches) - SHOWN} more" if len(matches) > SHOWN else ""
        shown = ", ".join(key[: max(SHOWN_KEY, len(word) + 4)] for key in matches[:SHOWN])
        raise UsageProblem(f"'{word}' is the beginning of {len(matches)} keys", why=f"{shown}{more}", fix="write more")
    if not word or word.strip("0123456789abcdef"):
        raise UsageProblem(f"'{word}' is no key", why="keys are hexadecimal digits", fix="`trtx cache ls` lists them")
    nearest = max(known, key=lambda key: _num_common(key, word), default="")
    common = _num_common(nearest, word)
    hint = f"the nearest is {nearest[: max(SHOWN_KEY, common + 4)]}; " if common else ""
    raise UsageProblem(f"there is no entry {word} in the cache", fix=f"{hint}`trtx cache ls` lists them")


def _num_common(key: str, word: str) -> int:
    """How many digits a key and a word begin with together."""
    pairs = enumerate(zip(key, word, strict=False))
    return next((number for number, (one, other) in pairs if one != other), min(len(key), len(word)))


def find_rows(store: Store, words: Iterable[str]) -> list[Row]:
    """Entries by key, by the beginning of a key, or by a glob of step names, such as `build/*/fp8`.

    Raises UsageProblem for a word that means nothing, or for a beginning that is not unique.
    """
    rows = {row.key: row for row in list_rows(store)}
    found: dict[str, Row] = {}
    for word in words:
        steps = [row for row in rows.values() if row.step == word or fnmatchcase(row.step, word)]
        if not steps and _names_steps(word):
            names = sorted({row.step for row in rows.values()})
            raise UsageProblem(f"no entry is of a step '{word}'", fix=did_you_mean(word, names) if names else "")
        found |= {row.key: row for row in steps or [rows[_find_one(word, list(rows))]]}
    return list(found.values())


def _names_steps(word: str) -> bool:
    return "/" in word or any(letter in word for letter in "*?[")
