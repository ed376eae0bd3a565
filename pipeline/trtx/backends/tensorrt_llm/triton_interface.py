"""What Triton's closed `tensorrtllm` backend takes, gives and reads, release by release.

Types and shapes are in the release tables (1.3.0rc3). What earlier releases have of it is here: read from
all_models/inflight_batcher_llm/tensorrt_llm/config.pbtxt at the tags v0.14.0 and v0.16.0 of
triton-inference-server/tensorrtllm_backend, and for the oldest releases at its commit 00abb493. Between two releases
that were read only that is relied on which both have.

The backend looks for tensors and parameters by name and passes over those that it does not know
(inflight_batcher_llm/src/utils.cc and model_instance_state.cc): a name too many does no harm, one too few may.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trtx.backends.tensorrt_llm.releases import Release, is_before
from trtx.backends.triton.config import Tensor, tensors_from_table

# The release whose table has types and shapes of everything.
READ = "1.3.0rc3"
MODEL = "inflight_batcher_llm/tensorrt_llm"

# First release that surely has it → names; what stands in none of these rows is known of READ only.
_INPUTS = {
    "0.12.0": (
        "input_ids input_lengths request_output_len draft_input_ids draft_logits draft_acceptance_threshold end_id "
        "pad_id stop_words_list bad_words_list embedding_bias beam_width temperature runtime_top_k runtime_top_p "
        "runtime_top_p_min runtime_top_p_decay runtime_top_p_reset_ids len_penalty early_stopping repetition_penalty "
        "beam_search_diversity_rate presence_penalty frequency_penalty return_log_probs return_context_logits "
        "return_generation_logits stop streaming prompt_embedding_table prompt_vocab_size lora_task_id lora_weights "
        "lora_config seed min_tokens"
    ),
    "0.14.0": (
        "num_return_sequences decoder_input_ids decoder_input_lengths exclude_input_in_output prompt_table_extra_ids "
        "context_phase_params"
    ),
    "0.16.0": "encoder_input_features encoder_output_lengths cross_attention_mask skip_cross_attn_blocks",
}
_OUTPUTS = {
    "0.12.0": "output_ids sequence_length cum_log_probs output_log_probs context_logits generation_logits",
    "0.14.0": "batch_index sequence_index context_phase_params",
    "0.16.0": "kv_cache_alloc_new_blocks kv_cache_reused_blocks kv_cache_alloc_total_blocks",
}
# Parameters that came later than 0.12: (newest release known not to have it, oldest known to have it).
_PARAMETERS = {
    **dict.fromkeys(
        [
            "encoder_model_path",
            "sink_token_length",
            "cross_kv_cache_fraction",
            "stats_check_period_ms",
            "participant_ids",
            "gpu_weights_percent",
            "enable_context_fmha_fp32_acc",
            "multi_block_mode",
        ],
        ("0.11.0", "0.14.0"),
    ),
    **dict.fromkeys(
        ["eagle_choices", "cuda_graph_mode", "cuda_graph_cache_size", "speculative_decoding_fast_logits"],
        ("0.14.0", "0.16.0"),
    ),
    **dict.fromkeys(
        [
            "enable_trt_overlap",
            "num_nodes",
            "lora_prefetch_dir",
            "lookahead_window_size",
            "lookahead_ngram_size",
            "lookahead_verification_set_size",
            "tokenizer_dir",
            "guided_decoding_backend",
            "xgrammar_tokenizer_info_path",
        ],
        ("0.16.0", READ),
    ),
}
# Names of READ → those up to RENAMED_AFTER. Between that and READ it is not established which one a release reads.
OLD_NAMES = {"seed": "random_seed", "min_tokens": "min_length"}
RENAMED_AFTER = "0.16.0"
# One number a request that the backend reads without its own dimension ([batch] for [batch, 1]) all have dims [1];
# this one is read as [batch, 1].
_NOT_SCALAR = frozenset({"skip_cross_attn_blocks"})


def read_table(release: Release) -> Mapping[str, Any]:
    """The row of the `tensorrt_llm` model: the release's own where it was read, else that of READ."""
    own = release.triton_models.get(MODEL) if release.surface.triton_confidence == "exact" else None
    row: Mapping[str, Any] = own if own is not None else Release.load(READ).triton_models[MODEL]
    return row


def is_exact(release: Release) -> bool:
    """Whether the release's own configuration was read, so that nothing is inferred."""
    return release.surface.triton_confidence == "exact" and MODEL in release.triton_models


def input_names(release: Release, name: str) -> tuple[str, ...]:
    """What an input of READ is called in a release: both names where it is not established which one it reads."""
    if name not in OLD_NAMES or is_exact(release):
        return (name,)
    if not is_before(RENAMED_AFTER, release.version):
        return (OLD_NAMES[name],)
    return (name, OLD_NAMES[name])


def backend_inputs(release: Release, prompt_table_type: str) -> tuple[Tensor, ...]:
    """Inputs of the `tensorrt_llm` model that the release surely has."""
    tensors = tensors_from_table(read_table(release)["input"], prompt_table_type)
    known = tensors if is_exact(release) else tuple(each for each in tensors if _is_known(each.name, _INPUTS, release))
    return tuple(
        replace(
            tensor,
            name=name,
            scalar=tensor.dims == (1,) and tensor.name not in _NOT_SCALAR,
            ragged=tensor.dims != (1,) or tensor.name in _NOT_SCALAR,
        )
        for tensor in known
        for name in input_names(release, tensor.name)
    )


def backend_outputs(release: Release, logits_type: str) -> tuple[Tensor, ...]:
    """Outputs of the `tensorrt_llm` model that the release surely has; the server waits for what is asked of it."""
    tensors = tensors_from_table(read_table(release)["output"], logits_type)
    return tensors if is_exact(release) else tuple(each for each in tensors if _is_known(each.name, _OUTPUTS, release))


def parameter_names(release: Release) -> dict[str, bool]:
    """Parameters of the `tensorrt_llm` model → whether the release surely reads them.

    Those that it is known not to have are left out.
    """
    keys = [row["key"] for row in read_table(release)["parameters"]]
    if is_exact(release):
        return dict.fromkeys(keys, True)
    found = {}
    for key in keys:
        absent, present = _PARAMETERS.get(key, ("0.11.0", "0.12.0"))
        if is_before(absent, release.version):
            found[key] = not is_before(release.version, present)
    return found


def _is_known(name: str, table: Mapping[str, str], release: Release) -> bool:
    return any(name in names.split() and not is_before(release.version, since) for since, names in table.items())
