"""The text of one request as its tokens come: decoding, special tokens, stop strings. Imports no torch."""

from __future__ import annotations

from trtx.runtime.request import Request
from trtx.runtime.stops import StopStrings
from trtx.runtime.tokenizer import TextStream, Tokenizer


class OutputText:
    """Turns the tokens of one request into pieces of text, and finds where a stop string ends it."""

    def __init__(self, tokenizer: Tokenizer, request: Request) -> None:
        self._request = request
        params = request.params
        self._stream = TextStream(tokenizer, skip_special_tokens=params.skip_special_tokens)
        self._stops = StopStrings(params.stop, include=params.include_stop_str_in_output)

    def push(self, token_id: int) -> tuple[str, str | None]:
        """The text to give out after a token that the request has taken, and the stop string that was met.

        The piece is empty while a character or a possible stop string is incomplete; what was held back comes with the
        last token. A token that ends the sequence is shown where `include_stop_str_in_output` asks for it.
        """
        request, params = self._request, self._request.params
        if not params.detokenize:
            return "", None
        shown = request.finish_reason != "stop" or params.include_stop_str_in_output
        piece = self._stream.push(token_id) if shown else ""
        if request.finished:
            piece += self._stream.flush()
        # Text of the first min_tokens passes unread.
        if len(request.output_ids) <= params.min_tokens:
            return piece, None
        piece, stop = self._stops.push(piece)
        return (piece + self._stops.flush() if request.finished and stop is None else piece), stop
