"""The options file: what a recipe says as keys of a release's class, and what that class would refuse."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from support.trtllm_specs import MIXTRAL, make_spec

from trtx.backends.tensorrt_llm.llm_options import make_options
from trtx.backends.tensorrt_llm.releases import Release
from trtx.backends.tensorrt_llm.schema_check import check_schema
from trtx.backends.tensorrt_llm.spec import Lora, Pool, Ranks, Speculation, TrtllmSpec
from trtx.errors import UsageProblem

RELEASE = Release.load("1.3.0rc3")


def pytorch(**changes: Any) -> TrtllmSpec:
    return make_spec("1.3.0rc3", flow="pytorch", **changes)


def values(**changes: Any) -> dict[str, Any]:
    return dict(make_options(pytorch(**changes), RELEASE).values)


def wrong(data: dict[str, Any]) -> list[str]:
    findings = check_schema(RELEASE, "TorchLlmArgs", {"model": "", **data})
    return [str(found) for found in findings if not found.doubt]


def test_the_file_is_yaml_of_what_was_made() -> None:
    options = make_options(pytorch(), RELEASE)
    assert yaml.safe_load(options.to_yaml()) == options.values
    assert options.to_yaml() == make_options(pytorch(), RELEASE).to_yaml()


def test_experts_are_divided_as_the_recipe_says() -> None:
    found = values(shape=MIXTRAL, ranks=Ranks(tensor=4, expert=2))
    assert (found["moe_tensor_parallel_size"], found["moe_expert_parallel_size"]) == (2, 2)
    assert "moe_expert_parallel_size" not in values()


@pytest.mark.parametrize(
    ("speculation", "expected"),
    [
        (
            Speculation(mode="eagle3", max_draft_len=3, draft="file:///d"),
            {
                "decoding_type": "Eagle",
                "max_draft_len": 3,
                "speculative_model_dir": "/d",
                "eagle3_one_model": True,
            },
        ),
        (Speculation(mode="mtp", max_draft_len=2), {"decoding_type": "MTP", "num_nextn_predict_layers": 2}),
        (Speculation(mode="ngram", max_draft_len=4), {"decoding_type": "NGram", "max_draft_len": 4}),
    ],
)
def test_speculative_decoding_has_the_class_of_its_mode(speculation: Speculation, expected: dict[str, Any]) -> None:
    assert values(speculation=speculation)["speculative_config"] == expected


def test_a_draft_that_is_not_packaged_is_said() -> None:
    speculation = Speculation(mode="eagle3", max_draft_len=3, draft="hf://owner/heads")
    options = make_options(pytorch(speculation=speculation), RELEASE)
    assert options.values["speculative_config"]["speculative_model_dir"] == "owner/heads"
    assert options.doubts == (
        "the draft hf://owner/heads is no part of what is packaged: the server has to find owner/heads itself",
    )


def test_a_mode_of_the_other_flow_is_refused() -> None:
    with pytest.raises(UsageProblem, match="medusa is not of the PyTorch flow"):
        values(speculation=Speculation(mode="medusa", max_draft_len=2))


def test_adapters_and_the_second_level_of_the_cache_are_there() -> None:
    lora = Lora(max_rank=8, target_modules=("attn_q",), max_adapters=2)
    pool = Pool(tokens_per_block=64, memory_fraction=0.5, reuse=False, host_bytes=1 << 30)
    found = values(lora=lora, pool=pool)
    assert found["enable_lora"] is True
    assert found["lora_config"] == {"max_lora_rank": 8, "lora_target_modules": ["attn_q"], "max_loras": 2}
    assert found["kv_cache_config"]["host_cache_size"] == 1 << 30
    assert found["kv_cache_config"]["enable_block_reuse"] is False


def test_own_options_join_a_block_and_never_replace_the_recipes_settings() -> None:
    found = values(options={"kv_cache_config": {"sink_token_length": 4}})
    assert found["kv_cache_config"]["sink_token_length"] == 4
    assert found["kv_cache_config"]["free_gpu_memory_fraction"] == 0.9
    for taken in ("max_batch_size", "tensor_parallel_size", "backend", "build_config"):
        with pytest.raises(UsageProblem, match=f"cannot set {taken}"):
            values(options={taken: 1})


def test_what_a_command_line_says_is_left_out() -> None:
    spec = pytorch()
    left = make_options(
        spec, RELEASE, [("max_batch_size",), ("scheduler_config", "capacity_scheduler_policy"), ("no", "such")]
    ).values
    assert "max_batch_size" not in left
    assert "scheduler_config" not in left


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"max_batchsize": 1}, "max_batchsize: TorchLlmArgs of TensorRT-LLM 1.3.0rc3 has no such key; did you mean"),
        ({"max_batch_size": "8"}, "max_batch_size: is text, and must be a whole number"),
        ({"max_batch_size": True}, "max_batch_size: is true or false, and must be a whole number"),
        ({"enable_chunked_prefill": 1}, "enable_chunked_prefill: is a whole number, and must be true or false"),
        ({"dtype": None}, "dtype: is null, and must be text"),
        ({"kv_cache_config": 3}, "kv_cache_config: is a whole number, and KvCacheConfig is a mapping"),
        ({"kv_cache_config": {"tokens": 3}}, "kv_cache_config.tokens: KvCacheConfig of TensorRT-LLM 1.3.0rc3 has no"),
        (
            {"scheduler_config": {"capacity_scheduler_policy": "EVICT"}},
            "scheduler_config.capacity_scheduler_policy: is 'EVICT', and CapacitySchedulerPolicy is one of",
        ),
        ({"guided_decoding_backend": "outlines"}, "guided_decoding_backend: is 'outlines', and must be one of"),
        ({"moe_config": {"backend": "cutlass"}}, "moe_config.backend: is 'cutlass', and must be one of 'AUTO'"),
        ({"pp_partition": [1, "2"]}, "pp_partition[1]: is text, and must be a whole number"),
        ({"pp_partition": 3}, "pp_partition: is a whole number, and must be a list"),
        ({"env_overrides": []}, "env_overrides: is a list, and must be a mapping"),
        ({"speculative_config": {"max_draft_len": 3}}, "speculative_config: needs a decoding_type, one of"),
        ({"speculative_config": {"decoding_type": "Eagel"}}, "there is no 'Eagel'; did you mean 'Eagle'?"),
        (
            {"speculative_config": {"decoding_type": "MTP", "draft": 1}},
            "speculative_config.draft: MTPDecodingConfig of TensorRT-LLM 1.3.0rc3 has no such key",
        ),
    ],
)
def test_what_the_class_would_refuse_is_found(data: dict[str, Any], message: str) -> None:
    found = wrong(data)
    assert len(found) == 1
    assert message in found[0]


def test_what_the_class_takes_is_not_complained_about() -> None:
    taken = {
        "kv_cache_config": {"max_tokens": None, "max_attention_window": [128, 256], "free_gpu_memory_fraction": 1},
        "cuda_graph_config": {"batch_sizes": [1, 2], "enable_padding": True},
        "load_format": "DUMMY",
        "lora_config": None,
        "batch_wait_timeout_ms": 2,
    }
    assert wrong(taken) == []


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(UsageProblem) as refused:
        values(options={"one": 1, "stream_interval": "2"})
    assert "one: " in refused.value.why
    assert "stream_interval: " in refused.value.why
