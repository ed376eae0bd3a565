"""How many threads an engine computes with. Imports no torch."""

from __future__ import annotations

# A thread more for every so many bytes of weights. The threads of a program meet after every operation, and where one
# of them has to wait for a processor all others wait for it. On two cores a model of 4 MB is a third slower with one
# thread than with two while nothing else runs, and 20 to 180 times as fast while other programs compute.
WEIGHTS_PER_THREAD_BYTES = 16 << 20


def choose_num_threads(weights_bytes: int, max_threads: int) -> int:
    """Threads for one operation, at most `max_threads`."""
    return max(1, min(max_threads, -(-weights_bytes // WEIGHTS_PER_THREAD_BYTES)))
