"""Changes that the command line makes to a recipe: `--set PATH=VALUE` and `--unset PATH`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Overrides:
    """The texts of the options, in the order given."""

    set: tuple[str, ...] = ()
    unset: tuple[str, ...] = ()


NO_OVERRIDES = Overrides()
