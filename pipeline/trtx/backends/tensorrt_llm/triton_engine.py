"""The five models of inflight_batcher_llm: text to tokens, the closed backend, tokens to text, and two fronts.

`ensemble` is wired by the server; `tensorrt_llm_bls` calls the backend from Python and gives text that is right while
it streams (a character may be spread over several tokens). Both take and give the same tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from trtx.backends.tensorrt_llm.check_script import CHECK_SCRIPT, read_check_script
from trtx.backends.tensorrt_llm.releases import Release
from trtx.backends.tensorrt_llm.spec import TrtllmSpec
from trtx.backends.tensorrt_llm.triton_interface import (
    OLD_NAMES,
    backend_inputs,
    backend_outputs,
    input_names,
    is_exact,
    parameter_names,
)
from trtx.backends.tensorrt_llm.triton_serving import TritonServing
from trtx.backends.triton.config import Batcher, EnsembleStep, Tensor, TritonModel, read_template

# Where Triton's images have it; the backend starts it for the ranks of its orchestrator mode.
EXECUTOR_WORKER = "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker"
POLICIES = {"guaranteed-no-evict": "guaranteed_no_evict", "max-utilization": "max_utilization"}
# A parameter that is read as text without a look whether it is empty: it is left out where it is not set.
OMITTED_WHEN_EMPTY = frozenset({"lora_prefetch_dir"})

STRING, INT32, BOOL = "TYPE_STRING", "TYPE_INT32", "TYPE_BOOL"
# Inputs of the backend that a front passes on → what they are called there. Those of OLD_NAMES come in beside them.
PASSED = {
    "num_return_sequences": "num_return_sequences",
    "exclude_input_in_output": "exclude_input_in_output",
    "runtime_top_k": "top_k",
    "runtime_top_p": "top_p",
    "temperature": "temperature",
    "len_penalty": "length_penalty",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "return_log_probs": "return_log_probs",
    "return_context_logits": "return_context_logits",
    "return_generation_logits": "return_generation_logits",
    "return_perf_metrics": "return_perf_metrics",
    "return_num_input_tokens": "return_num_input_tokens",
    "return_num_output_tokens": "return_num_output_tokens",
    "beam_width": "beam_width",
    "streaming": "stream",
    "prompt_embedding_table": "prompt_embedding_table",
    "prompt_vocab_size": "prompt_vocab_size",
    "lora_task_id": "lora_task_id",
    "lora_weights": "lora_weights",
    "lora_config": "lora_config",
    "guided_decoding_guide_type": "guided_decoding_guide_type",
    "guided_decoding_guide": "guided_decoding_guide",
}
# Tensors of preprocessing → inputs of the backend.
PREPARED = {
    "INPUT_ID": "input_ids",
    "REQUEST_INPUT_LEN": "input_lengths",
    "REQUEST_OUTPUT_LEN": "request_output_len",
    "OUT_END_ID": "end_id",
    "OUT_PAD_ID": "pad_id",
    "STOP_WORDS_IDS": "stop_words_list",
    "BAD_WORDS_IDS": "bad_words_list",
    "EMBEDDING_BIAS": "embedding_bias",
}
# Inputs of preprocessing → of a front.
ASKED = {
    "QUERY": "text_input",
    "REQUEST_OUTPUT_LEN": "max_tokens",
    "BAD_WORDS_DICT": "bad_words",
    "STOP_WORDS_DICT": "stop_words",
    "EMBEDDING_BIAS_WORDS": "embedding_bias_words",
    "EMBEDDING_BIAS_WEIGHTS": "embedding_bias_weights",
    "END_ID": "end_id",
    "PAD_ID": "pad_id",
}
# Outputs of the backend that fronts do not give out: tokens become text, and the last is for other servers.
KEPT = ("output_ids", "sequence_length", "context_phase_params")

PREPROCESSING_INPUTS = (
    Tensor("QUERY", STRING),
    Tensor("REQUEST_OUTPUT_LEN", INT32),
    Tensor("BAD_WORDS_DICT", STRING, (-1,), optional=True),
    Tensor("STOP_WORDS_DICT", STRING, (-1,), optional=True),
    Tensor("EMBEDDING_BIAS_WORDS", STRING, (-1,), optional=True),
    Tensor("EMBEDDING_BIAS_WEIGHTS", "TYPE_FP32", (-1,), optional=True),
    Tensor("END_ID", INT32, optional=True),
    Tensor("PAD_ID", INT32, optional=True),
)
PREPROCESSING_OUTPUTS = (
    Tensor("INPUT_ID", INT32, (-1,)),
    Tensor("REQUEST_INPUT_LEN", INT32),
    Tensor("BAD_WORDS_IDS", INT32, (2, -1)),
    Tensor("STOP_WORDS_IDS", INT32, (2, -1)),
    Tensor("EMBEDDING_BIAS", "TYPE_FP32", (-1,)),
    Tensor("REQUEST_OUTPUT_LEN", INT32, (-1,)),
    Tensor("OUT_END_ID", INT32),
    Tensor("OUT_PAD_ID", INT32),
)
POSTPROCESSING_INPUTS = (Tensor("TOKENS_BATCH", INT32, (-1, -1)), Tensor("SEQUENCE_LENGTH", INT32, (-1,)))


def engine_models(spec: TrtllmSpec, release: Release, serving: TritonServing) -> tuple[TritonModel, ...]:
    """All models of the repository of an engine."""
    inputs = backend_inputs(release, f"TYPE_{'BF16' if _wants_bf16(spec, release) else 'FP16'}")
    outputs = backend_outputs(release, "TYPE_FP32")
    return (
        _ensemble(spec, release, inputs, outputs),
        _preprocessing(spec, serving),
        TritonModel(
            name="tensorrt_llm",
            backend="tensorrtllm",
            inputs=inputs,
            outputs=outputs,
            max_batch_size=spec.sizes.max_batch_size,
            decoupled=serving.streaming,
            batcher=Batcher(serving.max_queue_delay_us, serving.max_queue_size),
            parameters=backend_parameters(spec, release, serving),
        ),
        _postprocessing(spec, serving),
        _bls(spec, release, serving, inputs, outputs),
    )


def backend_parameters(spec: TrtllmSpec, release: Release, serving: TritonServing) -> dict[str, str]:
    """Every parameter of the `tensorrt_llm` model.

    Empty means that the backend takes its own default. So does what is set here for a release of which it is not
    established that it reads it: such a setting would not be relied upon anyway.
    """
    values = _parameter_values(spec, serving)
    found = {}
    for name, is_sure in parameter_names(release).items():
        value = values[name] if is_sure else ""
        if value or name not in OMITTED_WHEN_EMPTY:
            found[name] = value
    return found


def _parameter_values(spec: TrtllmSpec, serving: TritonServing) -> dict[str, str]:
    """Parameter → value, for the parameters of every release.

    What the backend would take by itself is written out (defaults of model_instance_state.cc), because defaults move;
    "" stands for what a text model on one node has none of.
    """
    lora = spec.lora
    return {
        "max_beam_width": str(spec.sizes.max_beam_width),
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
        "gpt_model_type": "inflight_fused_batching",
        "gpt_model_path": serving.engine_dir,
        "encoder_model_path": "",
        "max_tokens_in_paged_kv_cache": "",
        "max_attention_window_size": "",
        "sink_token_length": "",
        "batch_scheduler_policy": POLICIES[spec.batching.policy],
        "kv_cache_free_gpu_mem_fraction": f"{spec.pool.memory_fraction:g}",
        "cross_kv_cache_fraction": "",
        "kv_cache_host_memory_bytes": str(spec.pool.host_bytes),
        "kv_cache_onboard_blocks": "true",
        "enable_trt_overlap": "false",
        # Answers are the answer; who wants the prompt back has it.
        "exclude_input_in_output": "true",
        "cancellation_check_period_ms": "100",
        "stats_check_period_ms": "100",
        "iter_stats_max_iterations": "1000",
        "request_stats_max_iterations": "0",
        "enable_kv_cache_reuse": _bool(spec.pool.reuse),
        "normalize_log_probs": "true",
        "enable_chunked_context": _bool(spec.batching.chunked_context),
        "gpu_device_ids": "",
        "participant_ids": "",
        "num_nodes": "1",
        "lora_cache_optimal_adapter_size": str(min(8, lora.max_rank)) if lora else "",
        "lora_cache_max_adapter_size": str(lora.max_rank) if lora else "",
        "lora_cache_gpu_memory_fraction": "0.05" if lora else "",
        "lora_cache_host_memory_bytes": str(2**30) if lora else "",
        "lora_prefetch_dir": "",
        "decoding_mode": _decoding_mode(spec),
        "executor_worker_path": EXECUTOR_WORKER,
        "lookahead_window_size": "",
        "lookahead_ngram_size": "",
        "lookahead_verification_set_size": "",
        "medusa_choices": "",
        "eagle_choices": "",
        "gpu_weights_percent": "1.0",
        "enable_context_fmha_fp32_acc": "false",
        "multi_block_mode": "true",
        "cuda_graph_mode": "false",
        "cuda_graph_cache_size": "0",
        "speculative_decoding_fast_logits": "false",
        "tokenizer_dir": "",
        "guided_decoding_backend": "",
        "xgrammar_tokenizer_info_path": "",
    }


def _decoding_mode(spec: TrtllmSpec) -> str:
    if spec.speculation is not None:
        return spec.speculation.mode
    return "top_k_top_p" if spec.sizes.max_beam_width == 1 else "beam_search"


def _ensemble(
    spec: TrtllmSpec, release: Release, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]
) -> TritonModel:
    passed = _passed(release, inputs)
    given = [tensor.name for tensor in outputs if tensor.name not in KEPT]
    steps = (
        EnsembleStep("preprocessing", ASKED, {name: f"_{name}" for name in PREPARED}),
        EnsembleStep(
            "tensorrt_llm",
            {**{own: f"_{name}" for name, own in PREPARED.items()}, **passed},
            {"output_ids": "_TOKENS_BATCH", "sequence_length": "_SEQUENCE_LENGTH", **{name: name for name in given}},
        ),
        EnsembleStep(
            "postprocessing",
            {"TOKENS_BATCH": "_TOKENS_BATCH", "SEQUENCE_LENGTH": "_SEQUENCE_LENGTH"},
            {"OUTPUT": "text_output"},
        ),
    )
    return TritonModel(
        name="ensemble",
        backend=None,
        inputs=_front_inputs(passed, inputs),
        outputs=_front_outputs(outputs),
        max_batch_size=spec.sizes.max_batch_size,
        steps=steps,
    )


def _preprocessing(spec: TrtllmSpec, serving: TritonServing) -> TritonModel:
    return TritonModel(
        name="preprocessing",
        backend="python",
        inputs=PREPROCESSING_INPUTS,
        outputs=PREPROCESSING_OUTPUTS,
        max_batch_size=spec.sizes.max_batch_size,
        instances=serving.tokenizer_instances,
        parameters={
            "tokenizer_dir": serving.tokenizer,
            "add_special_tokens": "true",
            "gpt_model_path": serving.engine_dir,
            "vocab_size": str(spec.shape.vocab_size),
        },
        files={
            "model.py": read_template("tensorrt_llm/preprocessing.py"),
            "tokens.py": read_template("tensorrt_llm/tokens.py"),
            CHECK_SCRIPT: read_check_script(),
        },
    )


def _postprocessing(spec: TrtllmSpec, serving: TritonServing) -> TritonModel:
    return TritonModel(
        name="postprocessing",
        backend="python",
        inputs=POSTPROCESSING_INPUTS,
        outputs=(Tensor("OUTPUT", STRING, (-1,)),),
        max_batch_size=spec.sizes.max_batch_size,
        instances=serving.tokenizer_instances,
        parameters={"tokenizer_dir": serving.tokenizer, "skip_special_tokens": "true"},
        files={
            "model.py": read_template("tensorrt_llm/postprocessing.py"),
            "tokens.py": read_template("tensorrt_llm/tokens.py"),
        },
    )


def _bls(
    spec: TrtllmSpec,
    release: Release,
    serving: TritonServing,
    inputs: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
) -> TritonModel:
    passed = _passed(release, inputs)
    return TritonModel(
        name="tensorrt_llm_bls",
        backend="python",
        inputs=_front_inputs(passed, inputs),
        outputs=_front_outputs(outputs),
        max_batch_size=spec.sizes.max_batch_size,
        decoupled=serving.streaming,
        instances=serving.bls_instances,
        parameters={
            "accumulate_tokens": _bool(serving.accumulate_tokens),
            "tensorrt_llm_model_name": "tensorrt_llm",
            "tokenizer_dir": serving.tokenizer,
            "skip_special_tokens": "true",
            "max_requests": str(spec.sizes.max_batch_size),
            # The wiring, as the ensemble has it: name at the other model=name here, by spaces.
            "preprocessing_inputs": _wiring(ASKED),
            "prepared_inputs": _wiring({own: name for name, own in PREPARED.items()}),
            "passed_inputs": _wiring(passed),
            "given_outputs": " ".join(tensor.name for tensor in outputs if tensor.name not in KEPT),
        },
        files={
            "model.py": read_template("tensorrt_llm/bls.py"),
            "tokens.py": read_template("tensorrt_llm/tokens.py"),
        },
    )


def _passed(release: Release, inputs: tuple[Tensor, ...]) -> dict[str, str]:
    """Inputs of the backend → inputs of a front, for those that a request may set."""
    known = {tensor.name for tensor in inputs}
    passed = {own: front for own, front in PASSED.items() if own in known}
    for name in OLD_NAMES:
        names = input_names(release, name)
        # Both names get the one value where it is not established which of them the backend reads.
        passed |= dict.fromkeys(names, names[0])
    return passed


def _front_inputs(passed: Mapping[str, str], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    asked = [replace(tensor, name=ASKED[tensor.name], ragged=False, scalar=False) for tensor in PREPROCESSING_INPUTS]
    own = {tensor.name: tensor for tensor in inputs}
    fronts: dict[str, Tensor] = {}
    for name, front in passed.items():
        fronts.setdefault(front, replace(own[name], name=front, optional=True, scalar=False, ragged=False))
    return (*asked, *fronts.values())


def _front_outputs(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (Tensor("text_output", STRING, (-1,)), *(tensor for tensor in outputs if tensor.name not in KEPT))


def _wants_bf16(spec: TrtllmSpec, release: Release) -> bool:
    """Prompt embedding tables have the engine's type where the release lets it be chosen."""
    return spec.dtype == "bfloat16" and is_exact(release)


def _wiring(names: Mapping[str, str]) -> str:
    return " ".join(f"{other}={own}" for other, own in names.items())


def _bool(value: bool) -> str:
    return "true" if value else "false"
