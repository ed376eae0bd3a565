"""Triton's model repository for one engine, or one checkpoint, of a TensorRT-LLM release.

    engine flow    ensemble/ preprocessing/ tensorrt_llm/ postprocessing/ tensorrt_llm_bls/   (inflight_batcher_llm)
    PyTorch flow   tensorrt_llm/ with 1/model.yaml                                            (llmapi)

Names, types and shapes of tensors are those of the release's own repository, so that its clients work. The Python
models are trtx's own, under templates/triton/tensorrt_llm: they need numpy and tokenizers, or transformers where a
tokenizer has no tokenizer.json. Every parameter of the release is decided here, and none is left to a placeholder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trtx.backends.tensorrt_llm.engine_record import check_engine_folder
from trtx.backends.tensorrt_llm.releases import Release
from trtx.backends.tensorrt_llm.spec import TrtllmSpec
from trtx.backends.tensorrt_llm.triton_engine import engine_models
from trtx.backends.tensorrt_llm.triton_llmapi import llmapi_model
from trtx.backends.tensorrt_llm.triton_serving import TritonServing
from trtx.backends.triton.config import TritonModel, check_complete, write_model
from trtx.errors import UsageProblem, VerificationFailed

__all__ = ["TritonServing", "make_models", "write_repository"]

# Modes of speculative decoding that need more than parameters of the one model.
UNSUPPORTED_MODES = {
    "draft-target": "the draft model has an engine and a model of the repository of its own",
    "lookahead": "the backend wants window, n-gram and verification sizes, which no setting has",
    "mtp": "only the PyTorch backend has it",
    "ngram": "only the PyTorch backend has it",
    "eagle3": "only the PyTorch backend has it",
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


def write_repository(
    spec: TrtllmSpec,
    output: Path,
    *,
    engine: Path | None = None,
    tokenizer: Path | None = None,
    serving: TritonServing | None = None,
    options: Mapping[str, Any] | None = None,
    release: Release | None = None,
) -> tuple[str, ...]:
    """Write the repository of an engine or a checkpoint into `output`; returns the names of its models.

    `engine` and `tokenizer` are folders on this machine, which are checked where given: the engine's (the PyTorch
    flow's checkpoint) and the tokenizer's. `options` are the LLM arguments of the PyTorch flow; what they leave out of
    parallelism and limits is taken from the spec. `release` replaces the shipped tables of `spec.release`.

    Raises UsageProblem when the release has no such flow, VerificationFailed when the engine or the tokenizer is not
    there or is another than the spec says, StepFailed when a value is missing.
    """
    release = release or Release.load(spec.release)
    serving = serving or TritonServing()
    _check_flow(spec, release)
    if engine is not None:
        check_engine_folder(spec, engine)
    if tokenizer is not None:
        check_tokenizer_folder(tokenizer)
    models = make_models(spec, release, serving, options or {})
    for model in models:
        write_model(output, model)
    check_complete(output)
    return tuple(model.name for model in models)


def make_models(
    spec: TrtllmSpec, release: Release, serving: TritonServing, options: Mapping[str, Any]
) -> tuple[TritonModel, ...]:
    """The models of the repository; pure."""
    if spec.flow == "pytorch":
        return (llmapi_model(spec, release, serving, options),)
    return engine_models(spec, release, serving)


def check_tokenizer_folder(folder: Path) -> None:
    """Raise VerificationFailed for a folder in which the Python models would find no tokenizer."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise VerificationFailed(
            f"{folder} has no tokenizer",
            why=f"none of {', '.join(TOKENIZER_FILES)} is in it; an engine folder has no tokenizer of its own",
            fix="copy the tokenizer's files of the Hugging Face model into it",
        )


def _check_flow(spec: TrtllmSpec, release: Release) -> None:
    if spec.flow == "pytorch" and not release.pytorch_backend:
        raise UsageProblem(
            f"TensorRT-LLM {release.version} has no llmapi model for Triton",
            why="its PyTorch backend is not ready to serve; 1.0.0 is the first release whose is",
            fix="use flow: engine, or release 1.0.0 or later",
        )
    if spec.flow == "engine" and not release.engine_backend:
        raise UsageProblem(
            f"TensorRT-LLM {release.version} has no tensorrtllm backend for Triton",
            why="the TensorRT engine backend was removed after 1.3.0rc20",
            fix="use flow: pytorch, or release 1.2.1 or earlier",
        )
    mode = spec.speculation.mode if spec.speculation else None
    if spec.flow == "engine" and mode in UNSUPPORTED_MODES:
        raise UsageProblem(
            f"trtx writes no Triton repository for {mode} decoding with an engine",
            why=UNSUPPORTED_MODES[mode],
            fix="serve the engine with trtllm-serve, or choose eagle or medusa",
        )
