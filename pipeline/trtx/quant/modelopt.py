"""Quantization with NVIDIA ModelOpt: a model folder → a unified Hugging Face checkpoint, perplexity before and after.

Shape suffixes: B sequences, T tokens; K windows, U tokens of a window and the one after it.
"""

from __future__ import annotations

import copy
import math
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trtx.errors import UsageProblem, VerificationFailed
from trtx.files import write_json
from trtx.models.formats import ALGORITHMS, QuantFormat, is_excluded
from trtx.models.linear_layout import AWQ
from trtx.models.sources.transfer import saving
from trtx.quant.block_rounding import rounding_on_cpu
from trtx.quant.checkpoint_folder import (
    check_finite,
    copy_tokenizer,
    copy_weights,
    load_model,
    load_tokenizer,
    write_plain_format,
)
from trtx.quant.kv_scales import add_scales, take_int8_scales
from trtx.quant.modelopt_experts import disabled_experts, exporting_experts
from trtx.quant.perplexity import MAX_HELD_OUT_TOKENS, MAX_WINDOW, make_windows, mean_nats, perplexity_of
from trtx.quant.rows import encode_rows, make_batches, read_rows

CALIBRATION_NAME, HELD_OUT_NAME = "trtx_calibration.json", "trtx_heldout.safetensors"

# A quantized model that is this much worse is broken, whatever the recipe's gates say.
MAX_PERPLEXITY_RATIO = 2.0

Say = Callable[[str], None]
Progress = Callable[[int, int, str], None]


def quantize_checkpoint(
    folder: Path,
    data: Path,
    output: Path,
    quantization: QuantFormat,
    *,
    max_length: int,
    batch_size: int,
    seed: int,
    say: Say,
    progress: Progress,
    max_heldout_tokens: int = MAX_HELD_OUT_TOKENS,
) -> dict[str, Any]:
    """Quantize the model in `folder` and write the checkpoint, its figures and its held-out windows into `output`.

    `data` holds calibration.jsonl and heldout.jsonl; rows longer than `max_length` tokens are cut, and perplexity is
    measured on at most `max_heldout_tokens` tokens. The perplexity
    after is that of ModelOpt's fake quantization of exactly the exported numbers. Without any quantization the weights
    are linked or copied as they are, and both figures are one.

    Returns the content of trtx_calibration.json. Raises UsageProblem for a model or text that does not suit the format,
    VerificationFailed for damaged weights or an unusable result, EnvironmentProblem when memory or disk run out.
    """
    set_seed(seed)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    check_finite(model)
    length = min(max_length, model.config.max_position_embeddings)
    texts = read_rows(data / "heldout.jsonl")
    held_out = encode_rows(tokenizer, texts)
    windows_KU = make_windows(held_out, min(length, MAX_WINDOW), max_heldout_tokens)
    is_plain = quantization.algorithm == "none" and quantization.kv_cache == "auto"
    batches = (
        []
        if is_plain
        else make_batches(encode_rows(tokenizer, read_rows(data / "calibration.jsonl")), length, batch_size)
    )
    passes = count_passes(quantization, len(windows_KU), batch_size, len(batches), model.config.num_hidden_layers)
    run = Forward(model, progress, passes)

    before = mean_nats(run.logits, windows_KU, batch_size)
    say(f"perplexity {perplexity_of(before):.4f} on {windows_KU[:, 1:].numel()} held-out tokens, {describe(model)}")
    if is_plain:
        after = before
        copy_weights(folder, output, model)
        write_plain_format(output)
    else:
        with known_warnings(), rounding_on_cpu() if model.device.type == "cpu" else nullcontext():
            insert_quantizers(model, quantization, run, batches)
            after = mean_nats(run.logits, windows_KU, batch_size)
        say(f"perplexity {perplexity_of(after):.4f} as {quantization.algorithm}, KV cache {quantization.kv_cache}")
        check_damage(before, after)
        export_checkpoint(model, output, quantization)
    copy_tokenizer(folder, output, tokenizer)
    with saving(output):
        save_file({"tokens": windows_KU}, output / HELD_OUT_NAME)

    bytes_per_token = sum(len(text.encode()) for text in texts) / sum(map(len, held_out))
    report = {
        "quantization": quantization.model_dump(mode="json"),
        "perplexity": {"before": perplexity_of(before), "after": perplexity_of(after)},
        "bits_per_byte": {
            which: nats / math.log(2) / bytes_per_token for which, nats in (("before", before), ("after", after))
        },
        "tokens": windows_KU[:, 1:].numel(),
        "window": windows_KU.shape[1] - 1,
        "calibration_tokens": sum(batch.numel() for batch in batches),
        "device": describe(model),
        "modelopt": None if is_plain else version("nvidia-modelopt"),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }
    write_json(output / CALIBRATION_NAME, report)
    return report


def count_passes(
    quantization: QuantFormat, num_windows: int, batch_size: int, num_batches: int, num_layers: int
) -> int:
    """Forward passes of a whole calibration, for the progress display: AWQ observes, then searches; GPTQ goes through
    the model once for every layer; formats whose scales are those of each block at hand observe nothing."""
    measured = math.ceil(num_windows / batch_size)
    if num_batches == 0:
        return measured
    special = {**dict.fromkeys(AWQ, 2), "int4_gptq": num_layers, "mxfp4": 0, "mxfp8": 0}
    if quantization.kv_cache != "auto":
        special |= {"mxfp4": 1, "mxfp8": 1}
    return 2 * measured + special.get(quantization.algorithm, 1) * num_batches


class Forward:
    """Forward passes of one model, counted for the progress display."""

    def __init__(self, model: Any, progress: Progress, total: int) -> None:
        self.model, self.progress, self.total, self.done = model, progress, total, 0

    def logits(self, tokens_BT: Tensor) -> Tensor:
        """Logits [B, T, V]."""
        logits_BTV: Tensor = self.pass_through(tokens_BT).logits
        return logits_BTV

    @torch.no_grad()
    def pass_through(self, tokens_BT: Tensor) -> Any:
        """What the model gives for tokens; None while ModelOpt calibrates it layer by layer."""
        answer = self.model(input_ids=tokens_BT.to(self.model.device), use_cache=False)
        self.done += 1
        self.progress(min(self.done, self.total), self.total, "forward passes")
        return answer


def insert_quantizers(model: Any, quantization: QuantFormat, run: Forward, batches: Sequence[Tensor]) -> None:
    """Make the model compute in the format's numbers (fake quantization), calibrated on `batches`.

    Afterwards the scales are those of the export: where several matrices share an input ModelOpt gives them one
    input scale, which changes their weights' numbers too. Its export does so anyway, but only after we have measured.

    Raises UsageProblem when a matrix does not divide into the format's groups.
    """
    with known_warnings():
        import modelopt.torch.quantization as mtq
        from modelopt.torch.export.unified_export_hf import requantize_resmooth_fused_llm_layers

    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    excluded = [name for name in linears if is_excluded(name, quantization.exclude)]
    check_groups({name: linears[name] for name in linears if name not in excluded}, quantization)
    config = make_config(mtq, quantization, excluded)
    config["quant_cfg"].extend(disabled_experts(model, quantization))
    with known_warnings():
        mtq.quantize(model, config, lambda _: [run.pass_through(batch_BT) for batch_BT in batches])
    with exporting_experts():
        requantize_resmooth_fused_llm_layers(model)


def make_config(mtq: Any, quantization: QuantFormat, excluded: Sequence[str]) -> dict[str, Any]:
    """ModelOpt's configuration of a format: its own list of quantizer rules, of which later ones win."""
    name = ALGORITHMS[quantization.algorithm].modelopt_config
    nothing = {"quant_cfg": [{"quantizer_name": "*", "enable": False}], "algorithm": "max"}
    config: dict[str, Any] = copy.deepcopy(getattr(mtq, name)) if name else nothing
    rules = config["quant_cfg"]
    for module in excluded:
        rules.extend(
            {"quantizer_name": f"{module}.{which}_quantizer", "enable": False}
            for which in ("weight", "input", "output")
        )
    if quantization.kv_cache == "fp8":
        rules.extend(copy.deepcopy(mtq.FP8_KV_CFG["quant_cfg"]))
    elif quantization.kv_cache == "int8":
        rules.append({"quantizer_name": "*[kv]_bmm_quantizer", "cfg": {"num_bits": 8, "axis": None}})
    if quantization.kv_cache != "auto":
        config["algorithm"] = config["algorithm"] or "max"  # MX formats need none for the weights
    if quantization.algorithm == "int4_gptq":
        config["algorithm"] = {"method": "gptq", "layerwise": {"enable": True}}
    return config


def check_groups(linears: dict[str, nn.Linear], quantization: QuantFormat) -> None:
    """Raise UsageProblem for a matrix whose columns do not divide into the format's groups."""
    group = quantization.columns_per_scale
    for name, linear in linears.items():
        if group is not None and linear.in_features % group:
            raise UsageProblem(
                f"{name} cannot be quantized as {quantization.algorithm}",
                why=f"its {linear.in_features} columns do not divide into groups of {group}",
                fix=f"add '{name.rpartition('.')[2]}' to `exclude`, or choose int8_wo or fp8",
            )


def check_damage(before: float, after: float) -> None:
    """Raise VerificationFailed for a result nobody could use; arguments are mean nats per token."""
    if math.isfinite(after) and after - before <= math.log(MAX_PERPLEXITY_RATIO):
        return
    raise VerificationFailed(
        "quantization destroyed the model",
        why=f"its perplexity went from {perplexity_of(before):.2f} to {perplexity_of(after):.2f} on held-out text",
        fix="calibrate on more text, or text more like the model's own; exclude layers; or choose another algorithm",
    )


def export_checkpoint(model: Any, output: Path, quantization: QuantFormat) -> None:
    """Write the unified Hugging Face checkpoint. The model is packed in place and cannot be run afterwards."""
    from modelopt.torch.export import export_hf_checkpoint

    int8_scales = take_int8_scales(model) if quantization.kv_cache == "int8" else {}
    with saving(output), torch.inference_mode(), known_warnings(), exporting_experts():
        export_hf_checkpoint(model, export_dir=output)
    if int8_scales:
        add_scales(output, int8_scales)


@contextmanager
def known_warnings() -> Iterator[None]:
    """Hide what ModelOpt 0.47 always says and what means nothing to a user."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="To copy construct from a tensor")
        warnings.filterwarnings("ignore", message="lm_head is not calibrated, skip smoothing")
        warnings.filterwarnings("ignore", message="Skipping pattern fuse prequant")
        warnings.filterwarnings("ignore", message="Using a non-tuple sequence for multidimensional indexing")
        # Formats whose scales are those of each block need no largest weight of a whole expert.
        warnings.filterwarnings("ignore", message="Expert .* weight quantizer was not calibrated")
        yield


def describe(model: Any) -> str:
    """`cpu`, or the name of the GPU."""
    return torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "cpu"


def set_seed(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)
