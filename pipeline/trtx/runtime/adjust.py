"""What comes between a row of logits and the choice of its token: processors, penalties, bias, bans.

Legend: V vocabulary, U different tokens that occurred in a sequence. Penalties touch U numbers of V, and what occurred
is counted as tokens come, so that a step costs the same however long the sequence is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from trtx.runtime.request import Request

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class NoTokenLeft(ValueError):
    """What a request asks for leaves no token to choose, or failed; the text says how."""


class Adjustments:
    """The adjustments of one request, kept from step to step."""

    def __init__(self, request: Request) -> None:
        self._request = request
        params = request.params
        self._occurred = Occurrences(request.prompt_ids if params.repetition_penalty != 1 else ())
        self._bias_ids = np.fromiter(params.logit_bias.keys(), np.int64)
        self._bias = np.fromiter(params.logit_bias.values(), np.float32)
        self._stop_ids = np.fromiter(request.stop_ids, np.int64)
        self._single_ids = np.array([ids[0] for ids in request.banned_ids if len(ids) == 1], np.int64)
        self._sequences = [tuple(ids) for ids in request.banned_ids if len(ids) > 1]

    def apply(self, row_V: Floats) -> Floats:
        """The row as adjusted; the argument is changed and may be what is returned.

        Raises NoTokenLeft when a processor failed, or when the largest number of the outcome is not finite.
        """
        params = self._request.params
        if params.logits_processors:
            row_V = self._process(row_V)
        if params.penalizes:
            self._occurred.follow(self._request.output_ids)
            self._penalize(row_V)
        row_V[self._bias_ids] += self._bias
        row_V[self._single_ids] = -np.inf
        if self._sequences:
            row_V[self._completed()] = -np.inf
        if len(self._request.output_ids) < params.min_tokens:
            row_V[self._stop_ids] = -np.inf
        # A NaN anywhere is the maximum.
        if not np.isfinite(row_V.max()):
            raise NoTokenLeft("its logits processors, bias and banned tokens leave no token to choose")
        return row_V

    def _process(self, row_V: Floats) -> Floats:
        logits_V = torch.from_numpy(row_V)
        so_far = [*self._request.prompt_ids, *self._request.output_ids]
        for process in self._request.params.logits_processors:
            try:
                logits_V = torch.as_tensor(process(so_far, logits_V), dtype=torch.float32)
            # It is the caller's code, which may fail in any way, and must not take other requests with it.
            except Exception as error:
                raise NoTokenLeft(f"its logits processor failed: {type(error).__name__}: {error}") from error
            if logits_V.shape != row_V.shape:
                raise NoTokenLeft(f"its logits processor returned the shape {list(logits_V.shape)}, not [{row_V.size}]")
        # What a processor returns may be its own, and is written to below.
        processed_V: Floats = logits_V.detach().cpu().numpy().copy()
        return processed_V

    def _penalize(self, row_V: Floats) -> None:
        """Repetition: Keskar et al. 2019, arXiv:1909.05858; frequency and presence as OpenAI's API defines them."""
        params, seen_U, counts_U = self._request.params, self._occurred.ids, self._occurred.counts
        scores_U = row_V[seen_U]
        if params.repetition_penalty != 1:
            penalty = np.float32(params.repetition_penalty)
            scores_U = np.where(scores_U > 0, scores_U / penalty, scores_U * penalty)
        if params.frequency_penalty:
            scores_U -= np.float32(params.frequency_penalty) * counts_U
        if params.presence_penalty:
            scores_U -= np.float32(params.presence_penalty) * (counts_U > 0)
        row_V[seen_U] = scores_U

    def _completed(self) -> list[int]:
        """The tokens that would complete a banned sequence now."""
        longest = max(map(len, self._sequences)) - 1
        output = self._request.output_ids[-longest:]
        missing = longest - len(output)
        tail = (*(self._request.prompt_ids[-missing:] if missing > 0 else ()), *output)
        return [ids[-1] for ids in self._sequences if tail[-(len(ids) - 1) :] == ids[:-1]]


class Occurrences:
    """Which tokens a sequence has, and how often each is in its output.

    `ids` [U] int64 are different; `counts` [U] float32 are 0 for those of the prompt alone.
    """

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        first = dict.fromkeys(prompt_ids)
        self._place = {token: place for place, token in enumerate(first)}
        self._ids = np.empty(max(16, 2 * len(first)), np.int64)
        self._ids[: len(first)] = list(first)
        self._counts = np.zeros(self._ids.size, np.float32)
        self._followed = 0

    @property
    def ids(self) -> Ints:
        return self._ids[: len(self._place)]

    @property
    def counts(self) -> Floats:
        return self._counts[: len(self._place)]

    def follow(self, output_ids: Sequence[int]) -> None:
        """Count what was added to the output since the last call."""
        for token in output_ids[self._followed :]:
            place = self._place.setdefault(token, len(self._place))
            if place == self._ids.size:
                self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._ids[place] = token
            self._counts[place] += 1
        self._followed = len(output_ids)
