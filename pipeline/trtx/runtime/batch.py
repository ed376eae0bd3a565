"""What one step computes. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from trtx.runtime.request import Request


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens `start` … `start + length - 1` of a request. The last chunk of its known tokens gives the next one."""

    request: Request
    start: int
    length: int
    is_last: bool

    @property
    def num_scored(self) -> int:
        """How many of the first tokens of this chunk have a next one in the prompt whose probability is asked for."""
        if not self.request.scores_prompt:
            return 0
        return max(0, min(self.start + self.length, len(self.request.prompt_ids) - 1) - self.start)


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: a token more for every request in `decodes`, then `chunks` of prompts.

    `decodes` is the same object while nobody joins or leaves. `num_cached` tokens of the requests that start here were
    found in the pool; `num_paused` requests lost their blocks to it.
    """

    decodes: tuple[Request, ...]
    chunks: tuple[Chunk, ...]
    num_cached: int = 0
    num_paused: int = 0

    @property
    def sampled(self) -> tuple[Request, ...]:
        """The requests that get a token from this step, in the order of its rows."""
        if not self.chunks:
            return self.decodes
        return self.decodes + tuple(chunk.request for chunk in self.chunks if chunk.is_last)

    @property
    def scored(self) -> list[Chunk]:
        """The chunks with tokens whose probability is asked for; their rows follow those of `sampled`."""
        return [chunk for chunk in self.chunks if chunk.num_scored]

    @property
    def num_chunk_tokens(self) -> int:
        return sum(chunk.length for chunk in self.chunks)

    @property
    def num_tokens(self) -> int:
        return len(self.decodes) + self.num_chunk_tokens
