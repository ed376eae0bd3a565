"""What the verbs of `trtx cache` share: the store, sizes and ages in words."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from trtx.errors import UsageProblem

if TYPE_CHECKING:
    from trtx.cache.store import Store

# Keys are shown short and identified in full: -o json has them whole.
SHOWN_KEY = 12


def open_store() -> Store:
    """The cache of this environment. Raises EnvironmentProblem when it is of another layout."""
    from trtx.cache.store import Store
    from trtx.paths import cache_dir

    store = Store(cache_dir(os.environ))
    store.check_layout()
    return store


def parse_age(option: str, text: str | None) -> float | None:
    """Seconds of `30d`. Raises UsageProblem that names the option."""
    from trtx.recipe.units import BadUnit, parse_seconds

    try:
        return None if text is None else parse_seconds(text)
    except BadUnit as error:
        raise UsageProblem(f"{option}: {error}", fix=error.fix.replace("400ms", "30d")) from error


def parse_size(option: str, text: str | None) -> int | None:
    """Bytes of `50GB`. Raises UsageProblem that names the option."""
    from trtx.recipe.units import BadUnit, parse_bytes

    try:
        return None if text is None else parse_bytes(text)
    except BadUnit as error:
        raise UsageProblem(f"{option}: {error}", fix=error.fix) from error


def format_age(seconds: float) -> str:
    """`12 s`, `5 min`, `3 h`, `40 d`: the largest unit with a value of at least one, rounded down."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(0, int(seconds))} s"
