"""Loading and writing the folders of Hugging Face checkpoints around quantization."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from trtx.errors import EnvironmentProblem, UsageProblem, VerificationFailed
from trtx.files import disk_errors, link_or_copy, read_json, write_json
from trtx.models.sources.select import TOKENIZER_FILES
from trtx.models.sources.transfer import saving

FORMAT_NAME = "hf_quant_config.json"
GENERATION_NAME = "generation_config.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"

# transformers 5 writes this class name, which transformers 4 does not know; both know the other.
NEW_TOKENIZER_CLASS, OLD_TOKENIZER_CLASS = "TokenizersBackend", "PreTrainedTokenizerFast"


def load_model(folder: Path) -> Any:
    """The model in its own dtype, on the GPU if there is one; no code of the checkpoint is run.

    Raises UsageProblem for a model transformers does not know or that is quantized already, VerificationFailed for
    damaged or incomplete weights, EnvironmentProblem when memory does not suffice.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # progress is reported through the step's own file
    config = read_json(folder / "config.json")
    if "quantization_config" in config:
        raise UsageProblem(
            "the model is quantized already",
            why="its config.json has a quantization_config",
            fix="name the model it was made from",
        )
    # Pickled weights get this far only where the recipe allows them; torch loads them as data only.
    use_safetensors = any(folder.glob("*.safetensors"))
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype="auto",
            trust_remote_code=False,
            use_safetensors=use_safetensors,
            local_files_only=True,
            output_loading_info=True,
            # transformers' fused attention leaves out the caps on scores of Gemma 2.
            attn_implementation="eager" if config.get("attn_logit_softcapping") else None,
        )
    except (SafetensorError, EOFError) as error:
        raise _damaged(error) from error
    except MemoryError as error:
        raise EnvironmentProblem("the model does not fit into memory", fix="use a machine with more") from error
    except (OSError, RuntimeError) as error:
        raise _damaged(error) from error
    except (ValueError, KeyError, ImportError) as error:
        raise UsageProblem(
            "transformers cannot load the model",
            why=_short(error),
            fix="use an architecture that transformers itself has: code of checkpoints is never run",
        ) from error
    if missing := sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"])):
        raise VerificationFailed(
            f"the model's weights are incomplete: {len(missing)} tensors are missing or of another shape",
            why=f"the first is {missing[0]}",
            fix="fetch or save the model again",
        )
    return _to_device(model.eval())


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder. Raises UsageProblem when transformers cannot load it."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise UsageProblem(
            "transformers cannot load the tokenizer", why=_short(error), fix="save it again with save_pretrained"
        ) from error


def check_finite(model: Any) -> None:
    """Raise VerificationFailed for the first parameter with a number that is not finite."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise VerificationFailed(
                f"the model's weights are damaged: {name} holds numbers that are not finite",
                why="NaN or infinity spreads into every result",
                fix="fetch or save the model again",
            )


def copy_weights(folder: Path, output: Path, model: Any) -> None:
    """The untouched weights and config.json of a model; pickled weights are rewritten as safetensors."""
    if not any(folder.glob("*.safetensors")):
        with saving(output):
            model.save_pretrained(output)
        return
    for path in sorted(folder.glob("*.safetensors*")):
        link_or_copy(path, output / path.name)
    link_or_copy(folder / "config.json", output / "config.json")


def copy_tokenizer(folder: Path, output: Path, tokenizer: Any) -> None:
    """Tokenizer files, chat template and generation config, readable by transformers 4 and 5.

    A tokenizer without tokenizer.json, the one file the engine reads, is converted.
    """
    with disk_errors(output):
        if not (folder / "tokenizer.json").is_file():
            tokenizer.save_pretrained(output)
        for pattern in (*TOKENIZER_FILES, GENERATION_NAME):
            for path in sorted(folder.glob(pattern)):
                target = output / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    path = output / TOKENIZER_CONFIG_NAME
    config = read_json(path) if path.is_file() else {}
    if config.get("tokenizer_class") in (None, NEW_TOKENIZER_CLASS):
        write_json(path, config | {"tokenizer_class": OLD_TOKENIZER_CLASS})


def write_plain_format(output: Path) -> None:
    """hf_quant_config.json of a checkpoint that is not quantized, in ModelOpt's form."""
    quantization: dict[str, Any] = {"quant_algo": None, "kv_cache_quant_algo": None, "exclude_modules": []}
    write_json(output / FORMAT_NAME, {"producer": {"name": "trtx"}, "quantization": quantization})


def _to_device(model: Any) -> Any:
    if not torch.cuda.is_available():
        return model
    try:
        return model.to("cuda")
    except torch.cuda.OutOfMemoryError as error:
        raise EnvironmentProblem(
            "the model does not fit into the GPU's memory",
            why=_short(error),
            fix="calibrate on a larger GPU, or with CUDA_VISIBLE_DEVICES='' on the CPU",
        ) from error


def _damaged(error: Exception) -> VerificationFailed:
    return VerificationFailed(
        "the model's weights cannot be read", why=_short(error), fix="fetch or save the model again"
    )


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
