"""What of a request depends on the model: its ids must be in the vocabulary, its bad words become ids. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from trtx.runtime.params import RequestRefused, SamplingParams
from trtx.runtime.tokenizer import Tokenizer


def check_ids(prompt_ids: Sequence[int], params: SamplingParams, vocab_size: int) -> None:
    """Raise RequestRefused for an id that the model does not have, and for more than one choice at once."""
    if params.n != 1:
        raise RequestRefused(
            "n must be 1 for a single request", param="n", fix="make a request for each of SamplingParams.choices()"
        )
    groups: dict[str, Sequence[int]] = {
        "prompt": prompt_ids,
        "stop_token_ids": params.stop_token_ids,
        "logit_bias": list(params.logit_bias),
        "bad_words_ids": [token for ids in params.bad_words_ids for token in ids],
    }
    for param, ids in groups.items():
        # The prompt is long and nearly always right.
        if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
            wrong = next(token for token in ids if not 0 <= token < vocab_size)
            raise RequestRefused(
                f"{param} has the token id {wrong}, and the vocabulary ends at {vocab_size - 1}", param=param
            )


def find_banned_ids(params: SamplingParams, tokenizer: Tokenizer) -> list[Sequence[int]]:
    """The sequences of ids that must not appear: `bad_words_ids`, and `bad_words` with and without a space before."""
    words = dict.fromkeys(form for word in params.bad_words for form in (word, f" {word.lstrip()}"))
    found = [tuple(tokenizer.encode(word, add_special_tokens=False)) for word in words]
    return list(dict.fromkeys([*map(tuple, params.bad_words_ids), *filter(None, found)]))
