"""Speculative decoding and LoRA: which flow and release have them, and for which models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from trtx.backends.tensorrt_llm.argv_build import SPECULATION
from trtx.backends.tensorrt_llm.llm_options import DECODING
from trtx.backends.tensorrt_llm.refusals.base import Refusal, Subject
from trtx.backends.tensorrt_llm.spec import Shape
from trtx.errors import did_you_mean

AT = ("engine", "speculative")
MODE = (*AT, "mode")
LORA = ("engine", "lora")
# Modes whose guesses are made by tensors of the checkpoint itself in the engine flow.
HEADS = ("medusa", "eagle")
NEEDS_DRAFT = ("draft-target", "medusa", "eagle", "eagle3")
# Modes of the PyTorch flow → classes of its options file.
CLASSES: Mapping[str, str] = MappingProxyType(
    {
        "draft-target": "DraftTargetDecodingConfig",
        "eagle": "EagleDecodingConfig",
        "eagle3": "EagleDecodingConfig",
        "mtp": "MTPDecodingConfig",
        "ngram": "NGramDecodingConfig",
    }
)
# Its checkpoints have such layers, and its config.json does not count them.
MTP_UNCOUNTED = ("Qwen3NextForCausalLM",)


def check_mode(subject: Subject) -> Iterator[Refusal]:
    wanted = subject.engine.speculative
    if wanted is None:
        return
    modes = SPECULATION if subject.flow == "engine" else DECODING
    if wanted.mode not in modes:
        other = DECODING if subject.flow == "engine" else SPECULATION
        flow = "pytorch" if subject.flow == "engine" else "engine"
        yield Refusal(
            "speculation-flow",
            MODE,
            f"the {subject.flow} flow has no speculative decoding by {wanted.mode}",
            f"it has {', '.join(modes)}",
            f"write engine.flow: {flow}" if wanted.mode in other else "choose one of these",
            "tensorrt_llm/llmapi/llm_args.py of 1.3.0rc3",
        )
        return
    yield from _check_release(subject, wanted.mode)


def _check_release(subject: Subject, mode: str) -> Iterator[Refusal]:
    release = subject.release
    if subject.flow == "engine":
        tool = release.tools.get("trtllm-build")
        option = tool.option("speculative_decoding_mode") if tool else None
        if option is not None and option.takes(SPECULATION[mode]) is None:
            choices = option.choices if isinstance(option.choices, tuple) else ()
            yield Refusal(
                "speculation-release",
                MODE,
                f"{subject.title} builds no engine for speculative decoding by {mode}",
                f"its --speculative_decoding_mode takes {', '.join(str(c) for c in choices if c)}",
                "choose another mode, or a newer release",
                f"the table of {release.version}",
            )
        elif mode in HEADS and subject.shape is not None:
            yield Refusal(
                "speculation-heads",
                MODE,
                f"the checkpoint of an engine with {mode} needs heads, and nothing here writes them",
                "convert_checkpoint.py of medusa and eagle read models of their own, and trtx writes plain ones",
                "use draft-target or lookahead, or engine.flow: pytorch with eagle3",
                "examples/medusa and examples/eagle",
            )
        return
    schema = release.schemas.get(CLASSES[mode])
    if schema is None and release.schemas:
        yield Refusal(
            "speculation-release",
            MODE,
            f"{subject.title} has no class {CLASSES[mode]} for {mode}",
            "its options file cannot say it",
            "choose another mode or release",
            f"the table of {release.version}",
        )


def check_draft(subject: Subject) -> Iterator[Refusal]:
    wanted, shape = subject.engine.speculative, subject.shape
    if wanted is None:
        return
    if wanted.mode in NEEDS_DRAFT and wanted.draft is None:
        yield Refusal(
            "speculation-draft",
            AT,
            f"speculative decoding by {wanted.mode} has no draft",
            "a model or heads guess, and nobody says which",
            "add engine.speculative.draft: hf://owner/name",
            "tensorrt_llm/llmapi/llm_args.py of 1.3.0rc3",
            at_key=True,
        )
    if wanted.mode not in NEEDS_DRAFT and wanted.draft is not None:
        yield Refusal(
            "speculation-draft",
            (*AT, "draft"),
            f"speculative decoding by {wanted.mode} takes no draft",
            "it guesses without another model",
            "remove it",
            "tensorrt_llm/llmapi/llm_args.py of 1.3.0rc3",
            at_key=True,
        )
    if wanted.mode == "mtp" and subject.flow == "pytorch" and shape is not None and not _predicts(shape):
        yield Refusal(
            "speculation-model",
            MODE,
            "the model has no layers for multi-token prediction",
            f"num_nextn_predict_layers of its config.json ({shape.architecture}) is not there, or 0",
            "use ngram, or eagle3 with a draft",
            "tensorrt_llm/_torch/models of 1.3.0rc3",
        )


def _predicts(shape: Shape) -> bool:
    return shape.draft_layers > 0 or shape.architecture in MTP_UNCOUNTED


def check_lora(subject: Subject) -> Iterator[Refusal]:
    lora = subject.engine.lora
    if lora is None:
        return
    tool = subject.release.tools.get("trtllm-build")
    option = tool.option("lora_target_modules") if tool else None
    known = option.choices if option and isinstance(option.choices, tuple) else ()
    for index, module in enumerate(lora.target_modules):
        if known and module not in known:
            yield Refusal(
                "lora-modules",
                (*LORA, "target_modules", index),
                f"{subject.title} has no module {module} for adapters",
                "they have names of its own",
                did_you_mean(module, [str(name) for name in known]),
                f"--lora_target_modules in the table of {subject.release.version}",
            )
        elif option is not None and option.takes(module) == "unknown":
            yield Refusal(
                "flag-not-established",
                (*LORA, "target_modules", index),
                f"whether {subject.title} has the module {module} for adapters is not established",
                option.evidence,
                "read its image: trtx probe IMAGE --write FILE, and name the file in engine.probe",
                f"--lora_target_modules in the table of {subject.release.version}",
                "warning",
            )
    yield from _check_company(subject)


def _check_company(subject: Subject) -> Iterator[Refusal]:
    """What the documents do not say of adapters beside other settings."""
    if subject.engine.speculative is not None and subject.flow == "engine":
        yield Refusal(
            "lora-speculation",
            LORA,
            "whether an engine with speculative decoding serves adapters is not documented",
            "the draft guesses without them",
            "",
            "docs/source/legacy/advanced of 1.3.0rc3",
            "warning",
            at_key=True,
        )
    if subject.algorithm in ("int8_sq", "int4_awq", "w4a8_awq") and subject.flow == "pytorch":
        yield Refusal(
            "lora-format",
            LORA,
            f"whether adapters work on {subject.algorithm} weights in the PyTorch flow is not documented",
            "documented are unquantized and FP8 ones",
            "",
            "docs/source/features/lora.md of 1.3.0rc3",
            "warning",
            at_key=True,
        )


CHECKS = (check_mode, check_draft, check_lora)
