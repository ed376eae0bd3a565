"""What the ranks that share each layer tell one another while a program runs: partial sums, and columns of logits.

A program knows no group: its operators take that of the thread that they are called in, so that one process may have
programs of several engines, each with a group of its own (trtx.runtime.ranks makes them).

Legend: R ranks of a group.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from torch import Tensor


class Group(Protocol):
    """Ranks that run one program over their own shares. Each must make the same calls in the same order."""

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of x over the ranks, a new tensor of the same bits on each. Raises RuntimeError without one."""
        ...

    def all_gather(self, x: Tensor) -> Tensor:
        """The ranks' x [..., N] side by side, [..., R·N]. Raises RuntimeError without an answer."""
        ...


_here = threading.local()


@contextmanager
def use_group(group: Group) -> Iterator[None]:
    """Let programs that this thread calls meet in a group."""
    before = getattr(_here, "group", None)
    _here.group = group
    try:
        yield
    finally:
        _here.group = before


def all_reduce(x: Tensor) -> Tensor:
    return _group().all_reduce(x)


def all_gather(x: Tensor, ranks: int) -> Tensor:
    return _group().all_gather(x)


def _group() -> Group:
    group: Group | None = getattr(_here, "group", None)
    if group is None:
        raise RuntimeError("this program is one rank's: it runs inside trtx.kernels.collectives.use_group only")
    return group
