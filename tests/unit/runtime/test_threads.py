from __future__ import annotations

import pytest

from trtx.runtime.threads import choose_num_threads

MIB = 1 << 20


@pytest.mark.parametrize(
    ("weights_bytes", "num_cpus", "expected"),
    [(1, 8, 1), (16 * MIB, 8, 1), (16 * MIB + 1, 8, 2), (600 * MIB, 8, 8), (600 * MIB, 1, 1), (0, 4, 1)],
)
def test_threads_grow_with_the_weights_up_to_the_processors(weights_bytes: int, num_cpus: int, expected: int) -> None:
    assert choose_num_threads(weights_bytes, num_cpus, {}) == expected


def test_what_the_user_set_stays() -> None:
    assert choose_num_threads(600 * MIB, 8, {"OMP_NUM_THREADS": "3"}) is None
    assert choose_num_threads(600 * MIB, 8, {"OMP_NUM_THREADS": ""}) == 8
