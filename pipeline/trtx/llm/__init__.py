"""The Python API: `from trtx import LLM, SamplingParams`, in the shape that vLLM's and TensorRT-LLM's users know."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from trtx.errors import UsageProblem
from trtx.llm.model import check_card, find_engine
from trtx.runtime.driver import EngineDriver
from trtx.runtime.engine import DEFAULT_MEMORY_FRACTION, Engine
from trtx.runtime.generation import Generation, GenerationFailed
from trtx.runtime.owner import EngineFailed
from trtx.runtime.params import RequestRefused, SamplingParams
from trtx.runtime.report import describe_engine
from trtx.runtime.request import Request
from trtx.runtime.results import CompletionOutput, Logprob, RequestOutput
from trtx.runtime.tokenizer import Tokenizer

__all__ = [
    "LLM",
    "CompletionOutput",
    "EngineFailed",
    "Generation",
    "GenerationFailed",
    "Logprob",
    "RequestOutput",
    "RequestRefused",
    "SamplingParams",
]

# A text, its token ids, or either in a dictionary under `prompt` or `prompt_token_ids`.
Prompt = str | Sequence[int] | Mapping[str, Any]
Message = Mapping[str, Any]


class LLM:
    """An engine in this process, in a thread of its own.

    `model` is a deployment folder, an engine folder, `recipe.yaml` or `recipe.yaml:target/variant`, or a folder with a
    Hugging Face model. Of the latter two what is not in the cache is built first, as `trtx apply` would build it and
    with its messages on stderr. `dtype`, `quantization` and the limits say how a Hugging Face model is built; for
    anything that has been built they must say what it is, or be left out.

    The KV cache takes `kv_cache_bytes`, or `kv_cache_fraction` of the memory that is free now, weights included.

    All methods may be called from any thread, and outputs awaited in any event loop. A process forked from this one
    cannot use it: start others by spawn, or make one LLM in each. `shutdown` or the end of a `with` block ends the
    thread; so does the end of the process.

    Raises UsageProblem for a model that is none of these or another than was asked for, EnvironmentProblem when it does
    not fit this machine or its memory, VerificationFailed when its parts are damaged.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: str | None = None,
        quantization: str | None = None,
        max_batch_size: int | None = None,
        max_num_tokens: int | None = None,
        max_seq_len: int | None = None,
        kv_cache_bytes: int | None = None,
        kv_cache_fraction: float = DEFAULT_MEMORY_FRACTION,
    ) -> None:
        limits = {"max_batch_size": max_batch_size, "max_num_tokens": max_num_tokens, "max_seq_len": max_seq_len}
        asked = {name: limit for name, limit in limits.items() if limit is not None}
        folder = find_engine(model, dtype=dtype, quantization=quantization, limits=asked)
        check_card(folder, dtype=dtype, quantization=quantization, limits=asked)
        num_threads = torch.get_num_threads()
        engine = Engine.load(folder, kv_cache_bytes=kv_cache_bytes, memory_fraction=kv_cache_fraction)
        # Loading sets it for the thread it runs in, which is the caller's.
        torch.set_num_threads(num_threads)
        self._start(engine)

    @classmethod
    def of(cls, engine: Engine) -> LLM:
        """The same around an engine that was loaded before."""
        llm = cls.__new__(cls)
        llm._start(engine)
        return llm

    def _start(self, engine: Engine) -> None:
        self._engine = engine
        self._driver = EngineDriver(engine)
        # Also when nobody says goodbye: collected or not, the thread ends before the interpreter does.
        self._end = weakref.finalize(self, self._driver.stop)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Complete prompts together, and return their outputs in order; one prompt is a list of one.

        Several parameters are one for each prompt. `use_tqdm` shows on a terminal how many are done.

        Raises RequestRefused before anything runs, GenerationFailed when a logits processor fails.
        """
        listed = _list_prompts(prompts)
        params = _spread(sampling_params, len(listed))
        with _progress(len(listed), shown=use_tqdm) as advance:
            return self._run([self._prepare(prompt, one) for prompt, one in zip(listed, params, strict=True)], advance)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or several.

        The model's chat template writes the prompts; `tools` and `chat_template_kwargs` are given to it as they are.

        Raises RequestRefused when there is no template or it refuses the messages.
        """
        several = [messages] if messages and isinstance(messages[0], Mapping) else messages
        variables = {**({"tools": list(tools)} if tools else {}), **(chat_template_kwargs or {})}
        render = self._engine.tokenizer.render_chat
        prompts = [render(one, **variables) for one in several]  # type: ignore[arg-type]
        return self.generate(prompts, sampling_params, use_tqdm)

    def generate_async(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, streaming: bool = True
    ) -> Generation:
        """Start one prompt and return at once: `await` the whole, or read it as it comes with `async for`.

        Without `streaming` the latter gives the whole, too. Raises RequestRefused when the engine could never run it.
        """
        text, requests = self._prepare(prompt, sampling_params or SamplingParams())
        return Generation(self._driver, requests, text, streaming=streaming)

    @property
    def tokenizer(self) -> Tokenizer:
        """The engine's tokenizer: `encode`, `decode`, `render_chat`."""
        return self._engine.tokenizer

    def get_stats(self) -> dict[str, Any]:
        """What the engine has counted since it started, how full it is now, and its last steps, one by one."""
        return describe_engine(self._engine)

    def shutdown(self) -> None:
        """End the engine's thread; what runs or is asked for later raises EngineFailed. May be called twice."""
        self._end()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def _prepare(self, prompt: Prompt, params: SamplingParams) -> tuple[str | None, list[Request]]:
        """The text of a prompt, where it is one, and a request for every choice."""
        if isinstance(prompt, Mapping):
            prompt = _open_prompt(prompt)
        text = prompt if isinstance(prompt, str) else None
        ids = self._engine.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        return text, [self._engine.make_request(ids, choice) for choice in params.choices()]

    def _run(
        self, prepared: Sequence[tuple[str | None, list[Request]]], advance: Callable[[], None]
    ) -> list[RequestOutput]:
        generations: list[Generation] = []
        try:
            for text, requests in prepared:
                generations.append(Generation(self._driver, requests, text, on_end=advance))
            return [generation.result() for generation in generations]
        except BaseException:
            for generation in generations:
                generation.abort()
            raise


def _list_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if prompts and all(isinstance(item, int) for item in prompts):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def _open_prompt(prompt: Mapping[str, Any]) -> str | Sequence[int]:
    known = {"prompt", "prompt_token_ids"}
    if unknown := prompt.keys() - known:
        raise RequestRefused(f"a prompt has no {min(unknown)}", param="prompt", fix="give prompt or prompt_token_ids")
    found: str | Sequence[int] = prompt["prompt_token_ids"] if "prompt_token_ids" in prompt else prompt["prompt"]
    return found


def _spread(params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> Sequence[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise UsageProblem(f"{len(params)} sampling parameters for {count} prompts", fix="give one, or one for each")
    return params


@contextmanager
def _progress(total: int, *, shown: bool) -> Iterator[Callable[[], None]]:
    """A bar on a terminal's stderr; what is yielded moves it and may be called in any thread."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    console = Console(stderr=True)
    if not shown or not console.is_terminal:
        yield lambda: None
        return
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("requests", total=total)
        yield lambda: progress.advance(task)
