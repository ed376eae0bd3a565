from __future__ import annotations

from itertools import product

from trtx.runtime.prefix import DIGEST_BYTES, block_digest, extend_digests, root_digest
from trtx.runtime.request import Request, SamplingParams


def chain(tokens: list[int], salt: bytes = b"", size: int = 4) -> list[bytes]:
    request = Request(0, tokens, SamplingParams(), frozenset(), 0.0, salt=salt)
    extend_digests(request, len(tokens) // size, size)
    return request.digests


def test_digests_say_which_tokens_precede_a_block_and_in_which_order() -> None:
    one, other = chain([1, 2, 3, 4, 5, 6, 7, 8]), chain([4, 3, 2, 1, 5, 6, 7, 8])
    assert one[0] != other[0]
    assert one[1] != other[1]
    assert chain([1, 2, 3, 4, 9, 9, 9, 9])[0] == one[0]


def test_no_two_different_chains_of_small_numbers_meet() -> None:
    # Token ids that look like one another as bytes, short and long.
    numbers = (0, 1, 255, 256, 65536)
    found = {chain(list(tokens), size=2)[-1] for tokens in product(numbers, repeat=4)}
    found |= {chain(list(tokens), size=2)[-1] for tokens in product(numbers, repeat=2)}
    assert len(found) == 5**4 + 5**2


def test_a_salt_changes_every_digest_and_is_no_parent() -> None:
    tokens = list(range(8))
    plain, salted = chain(tokens), chain(tokens, b"user 7")
    assert not set(plain) & set(salted)
    assert chain(tokens[4:], salt=plain[0]) != plain[1:]
    assert root_digest(b"") != root_digest(b"\0")


def test_digests_have_256_bits() -> None:
    assert len(block_digest(root_digest(b""), [1, 2, 3, 4])) == DIGEST_BYTES == 32


def test_a_chain_grows_over_the_end_of_the_prompt_into_the_output() -> None:
    request = Request(0, [1, 2, 3, 4, 5], SamplingParams(), frozenset(), 0.0)
    extend_digests(request, 1, 4)
    request.output_ids += [6, 7, 8, 9]
    extend_digests(request, 2, 4)
    assert request.digests == chain([1, 2, 3, 4, 5, 6, 7, 8])
