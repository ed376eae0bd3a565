"""A progress bar for the hub library that draws nothing and reports bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from huggingface_hub.utils.tqdm import tqdm


def make_bar(advance: Callable[[int], None]) -> type[tqdm]:
    """A tqdm class whose bars call `advance(bytes so far)` and print nothing."""

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
            self._so_far = int(kwargs.get("initial") or 0)

        def update(self, n: float | None = 1) -> bool | None:
            self._so_far += int(n or 0)
            advance(self._so_far)
            return None

    return Bar
