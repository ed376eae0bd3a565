from __future__ import annotations

import pytest

from trtx.runtime.threads import choose_num_threads

MIB = 1 << 20


@pytest.mark.parametrize(
    ("weights_bytes", "max_threads", "expected"),
    [(1, 8, 1), (16 * MIB, 8, 1), (16 * MIB + 1, 8, 2), (600 * MIB, 8, 8), (600 * MIB, 1, 1), (0, 4, 1)],
)
def test_threads_grow_with_the_weights_up_to_what_is_allowed(
    weights_bytes: int, max_threads: int, expected: int
) -> None:
    assert choose_num_threads(weights_bytes, max_threads) == expected
