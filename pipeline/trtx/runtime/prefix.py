"""Names for the content of full blocks, so that requests that begin alike can share them. Imports no torch.

The keys and values of a block follow from its tokens and all that precede them. Its digest is therefore taken over the
digest of the block before it and its own token ids; the chain begins with a salt, which keeps apart what must never be
shared (other adapters, other images behind the same tokens, other users). A collision would show one user the text of
another, so digests are 256 bits of BLAKE2b (RFC 7693), for which none can be constructed.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

from trtx.runtime.request import Request

DIGEST_BYTES = 32

# Nothing but a first block has this as its parent: personalized digests differ from all others.
_ROOT = b"trtx-salt"


def root_digest(salt: bytes) -> bytes:
    """What the first block of a sequence has instead of a parent."""
    return blake2b(salt, digest_size=DIGEST_BYTES, person=_ROOT).digest()


def block_digest(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The digest of a full block after its parent's; unambiguous, because parents have one length."""
    return blake2b(parent + array("q", token_ids).tobytes(), digest_size=DIGEST_BYTES).digest()


def extend_digests(request: Request, num_blocks: int, tokens_per_block: int) -> None:
    """Bring `request.digests` to at least `num_blocks` full blocks, whose tokens must all be known."""
    digests = request.digests
    for index in range(len(digests), num_blocks):
        parent = digests[-1] if digests else root_digest(request.salt)
        start = index * tokens_per_block
        digests.append(block_digest(parent, request.token_ids(start, start + tokens_per_block)))
