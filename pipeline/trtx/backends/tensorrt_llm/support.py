"""Which number formats a release runs: by GPU, by model, and by what its code refuses whatever the documents say.

Documents were read for 1.3.0rc3 alone. What they say of formats that a GPU's tensor cores have is taken for other
releases whose QuantAlgo has the format; what they say of GPUs that came during these releases is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from trtx.backends.tensorrt_llm.releases import Flow, Release
from trtx.backends.tensorrt_llm.surface import Confidence
from trtx.backends.tensorrt_llm.tables import read_table

DOCUMENTED = "1.3.0rc3"
ENGINE_SOURCE = "docs/source/legacy/reference/support-matrix.md of 1.3.0rc3"
PYTORCH_SOURCE = "docs/source/features/quantization.md of 1.3.0rc3"
CUDA_SOURCE = "NVIDIA CUDA 12.8 and 12.9 release notes: new compute capabilities"
# Newest GPUs → the first CUDA that compiles for them.
FIRST_CUDA = {100: (12, 8), 120: (12, 8), 103: (12, 9), 121: (12, 9)}


@dataclass(frozen=True)
class Format:
    """How the documents call an algorithm of a recipe, and QuantAlgo: None where it has no such name.

    `engine` is the arithmetic in the engine flow's table by GPU, `model` the name in its table by model, `pytorch` the
    name in both tables of the PyTorch flow. `conversion` is the --qformat of quantize.py.
    """

    quant_algo: str | None
    engine: str | None
    model: str | None
    pytorch: str | None
    conversion: str | None = None


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "none": Format(None, "BF16", "BF16", None, "full_prec"),
        "fp8": Format("FP8", "FP8", "FP8", "FP8(per tensor)", "fp8"),
        "fp8_dynamic": Format("FP8_PER_CHANNEL_PER_TOKEN", "FP8", None, "FP8(rowwise)", "fp8_pc_pt"),
        "fp8_block_wo": Format("FP8_BLOCK_SCALES", "FP8", None, "FP8(block scaling)"),
        "int8_sq": Format("W8A8_SQ_PER_CHANNEL", "INT8", "W8A8 SQ", None, "int8_sq"),
        "int8_wo": Format("W8A16", "INT8", "W8A16", None, "int8_wo"),
        "int4_wo": Format("W4A16", "INT4", "W4A16", None, "int4_wo"),
        "int4_awq": Format("W4A16_AWQ", "INT4", "W4A16 AWQ", "W4A16 AWQ", "int4_awq"),
        "int4_gptq": Format("W4A16_GPTQ", "INT4", "W4A16 GPTQ", "W4A16 GPTQ"),
        "w4a8_awq": Format("W4A8_AWQ", "FP8", None, "W4A8 AWQ", "w4a8_awq"),
        "nvfp4": Format("NVFP4", "FP4", "NVFP4", "NVFP4", "nvfp4"),
        "nvfp4_awq": Format("NVFP4_AWQ", "FP4", None, "NVFP4"),
        "mxfp4": Format("W4A16_MXFP4", None, None, "MXFP4"),
        "mxfp8": Format(None, None, None, None),
    }
)
KV_FORMATS = MappingProxyType({"fp8": "FP8 KV Cache", "nvfp4": "NVFP4 KV Cache"})

# Names in config.json's `architectures` → rows of the documents: (engine flow, PyTorch flow).
_LLAMA = ("LLaMA", "LLaMA-v2"), ("LLaMA", "LLaMA-v2", "LLaMA 3")
MODEL_ROWS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = MappingProxyType(
    {
        "LlamaForCausalLM": _LLAMA,
        "Llama4ForConditionalGeneration": ((), ("LLaMA 4",)),
        "MistralForCausalLM": (("Mistral",), ("Mistral",)),
        "MixtralForCausalLM": (("Mixtral",), ("Mixtral",)),
        "QWenLMHeadModel": (("Qwen",), ("Qwen",)),
        "Qwen2ForCausalLM": (("Qwen",), ("Qwen-2/2.5",)),
        "Qwen2MoeForCausalLM": (("Qwen",), ()),
        "Qwen3ForCausalLM": ((), ("Qwen-3",)),
        "Qwen3MoeForCausalLM": ((), ("Qwen-3",)),
        "DeepseekV3ForCausalLM": ((), ("DeepSeek-R1",)),
        "GemmaForCausalLM": (("Gemma",), ()),
        "Gemma3ForCausalLM": ((), ("Gemma 3",)),
        "GptOssForCausalLM": ((), ("GPT-OSS",)),
        "GPTJForCausalLM": (("GPT-J",), ()),
        "GPTNeoXForCausalLM": (("GPT-NeoX",), ()),
        "FalconForCausalLM": (("Falcon",), ()),
        "BloomForCausalLM": (("BLOOM",), ()),
        "OPTForCausalLM": (("OPT",), ()),
        "MptForCausalLM": (("MPT",), ()),
        "PhiForCausalLM": (("Phi",), ("Phi",)),
        "Phi3ForCausalLM": (("Phi",), ("Phi",)),
        "ExaoneForCausalLM": ((), ("EXAONE",)),
        "DbrxForCausalLM": (("DBRX",), ()),
    }
)


@dataclass(frozen=True)
class Fact:
    """An answer of the tables and where it comes from."""

    confidence: Confidence
    source: str


@dataclass(frozen=True)
class Verdict:
    """Whether something is supported: True, False, or None where no source says; with the reason for people."""

    supported: bool | None
    confidence: Confidence
    why: str
    source: str


def precisions(release: Release, flow: Flow, sm: int) -> Mapping[str, Fact]:
    """Names of the documents' formats that run on a compute capability (90 for 9.0); empty for a GPU they do not have.

    Formats are named as the flow's own document names them.
    """
    table = read_table("support")
    source = ENGINE_SOURCE if flow == "engine" else PYTORCH_SOURCE
    if flow == "engine":
        names = table["tensorrt_backend"]["by_sm"].get(str(sm), ())
    else:
        backend = table["pytorch_backend"]
        row = next((row for row, sms in backend["sm_of_row"].items() if sm in sms), None)
        names = backend["by_gpu"][row] if row else ()
    if cuda_problem(release, sm):
        return {}
    grade: Confidence = "exact" if release.version == DOCUMENTED else "interval" if sm < 100 else "unknown"
    return {name: Fact(grade, source) for name in names}


def model_precisions(release: Release, flow: Flow, architecture: str) -> Mapping[str, Fact] | None:
    """Names of the formats that the documents have for a model; None for one that they do not list.

    Absence is no refusal by the code: documents lag behind it.
    """
    rows = MODEL_ROWS.get(architecture, ((), ()))[0 if flow == "engine" else 1]
    table = read_table("support")
    by_model = (
        table["tensorrt_backend"]["models_by_precision"]["map"]
        if flow == "engine"
        else table["pytorch_backend"]["by_model"]
    )
    source = "docs/source/legacy/reference/precision.md of 1.3.0rc3" if flow == "engine" else PYTORCH_SOURCE
    grade: Confidence = "exact" if release.version == DOCUMENTED else "interval"
    names = dict.fromkeys(name for row in rows for name in by_model[row])
    return {name: Fact(grade, source) for name in names} if rows else None


def cuda_problem(release: Release, sm: int) -> str | None:
    """Why a release's CUDA cannot compile for a GPU; None when it can, or when its CUDA is not known."""
    first = FIRST_CUDA.get(sm)
    parts = (release.cuda or "").split(".")
    if first is None or len(parts) < 2 or not parts[0].isdigit():
        return None
    minor = int(parts[1]) if parts[1].isdigit() else 0
    if (int(parts[0]), minor) >= first:
        return None
    return f"TensorRT-LLM {release.version} has CUDA {release.cuda}, and sm_{sm} needs CUDA {first[0]}.{first[1]}"


def check_gpu(release: Release, flow: Flow, sm: int, algorithm: str) -> Verdict:
    """Whether an algorithm of a recipe runs on a compute capability. Raises KeyError for an unknown algorithm."""
    form = FORMATS[algorithm]
    if problem := cuda_problem(release, sm):
        return Verdict(False, "exact", problem, CUDA_SOURCE)
    known = precisions(release, flow, sm)
    source = ENGINE_SOURCE if flow == "engine" else PYTORCH_SOURCE
    if not known:
        return Verdict(None, "unknown", f"the documents do not list sm_{sm} for this flow", source)
    if algorithm == "none":
        return Verdict(True, "exact", "unquantized", source)
    return _check_format(release, known, form, algorithm, sm, source)


def _check_format(
    release: Release, known: Mapping[str, Fact], form: Format, algorithm: str, sm: int, source: str
) -> Verdict:
    name = form.engine if source == ENGINE_SOURCE else form.pytorch
    if name is None:
        return Verdict(False, "exact", f"this flow has no format that is {algorithm}", source)
    algo = release.quant_algos.get(form.quant_algo or "")
    if algo is None:
        why = f"QuantAlgo of {release.version} has no {form.quant_algo}"
        return Verdict(False, "exact", why, "tensorrt_llm/quantization/mode.py")
    fact = known.get(name)
    if fact is None:
        return Verdict(False, "exact" if sm < 100 else "interval", f"sm_{sm} has no {name} in this flow", source)
    grade: Confidence = "unknown" if "unknown" in (algo, fact.confidence) else fact.confidence
    return Verdict(True, grade, f"sm_{sm} has {name}", source)


def check_model(release: Release, flow: Flow, architecture: str, algorithm: str) -> Verdict:
    """Whether the documents have an algorithm for a model. Raises KeyError for an unknown algorithm."""
    form = FORMATS[algorithm]
    known = model_precisions(release, flow, architecture)
    source = "docs/source/legacy/reference/precision.md of 1.3.0rc3" if flow == "engine" else PYTORCH_SOURCE
    name = form.model if flow == "engine" else form.pytorch
    if algorithm == "none":
        return Verdict(True, "exact", "unquantized", source)
    if known is None or name is None:
        return Verdict(None, "unknown", f"the documents do not say whether {architecture} has {algorithm}", source)
    if name in known:
        return Verdict(True, known[name].confidence, f"{architecture} has {name}", source)
    return Verdict(False, known[next(iter(known))].confidence, f"{architecture} is not listed with {name}", source)
