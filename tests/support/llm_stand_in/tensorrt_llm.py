"""A stand-in for the package tensorrt_llm: the shape of its LLM API.

It computes nothing: an answer repeats the words of the prompt.
"""

import asyncio
from dataclasses import dataclass, field

KNOWN = {
    *("model", "tokenizer", "backend", "tensor_parallel_size", "pipeline_parallel_size"),
    *("max_batch_size", "max_num_tokens", "max_seq_len", "kv_cache_config"),
}


@dataclass
class SamplingParams:
    max_tokens: int = 32
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    best_of: int | None = None
    seed: int | None = None
    stop: list[str] = field(default_factory=list)


@dataclass
class CompletionOutput:
    text: str
    text_diff: str
    finish_reason: str | None
    stop_reason: str | None = None
    cumulative_logprob: float = -1.5


@dataclass
class RequestOutput:
    outputs: list[CompletionOutput]


class Generation:
    """Awaited it is whole; read it comes word by word."""

    def __init__(self, words: list[str], llm: "LLM") -> None:
        self._words = words
        self._llm = llm

    def __await__(self):
        return self._whole().__await__()

    async def _whole(self) -> RequestOutput:
        self._llm.running += 1
        self._llm.most = max(self._llm.most, self._llm.running)
        # A long answer takes as long as a test waits for anything.
        await asyncio.sleep(0.2 if len(self._words) < 100 else 30)
        self._llm.running -= 1
        text = "".join(self._words)
        return RequestOutput([CompletionOutput(text, text, "length", self._llm.describe())])

    async def __aiter__(self):
        text = ""
        for index, word in enumerate(self._words):
            await asyncio.sleep(0.001 if len(self._words) < 100 else 0.1)
            text += word
            reason = "length" if index == len(self._words) - 1 else None
            yield RequestOutput([CompletionOutput(text, word, reason)])

    def abort(self) -> None:
        self._llm.aborted += 1


class LLM:
    def __init__(self, **arguments: object) -> None:
        unknown = arguments.keys() - KNOWN
        if unknown:
            raise ValueError(f"unknown LLM arguments: {sorted(unknown)}")
        self.running = self.most = self.aborted = self.begun = 0

    def generate_async(self, prompt: str, params: SamplingParams, streaming: bool) -> Generation:
        if params.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {params.max_tokens}")
        self.begun += 1
        words = [f"{word} " for word in prompt.split()]
        answer = (words * params.max_tokens)[: params.max_tokens]
        for stop in params.stop:
            if f"{stop} " in answer:
                answer = answer[: answer.index(f"{stop} ")]
        return Generation(answer, self)

    def describe(self) -> str:
        """What it did so far, in the one place where a request can ask for it: the stop reason."""
        return f"{self.most} at once, {self.aborted} aborted, {self.begun} begun"

    def shutdown(self) -> None:
        pass
