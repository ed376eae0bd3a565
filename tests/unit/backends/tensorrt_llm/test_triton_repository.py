"""The Triton repository of every release and flow: complete, readable by Triton's own message, wired without a gap."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.engines import write_tokenizer_folder
from support.triton_specs import make_spec, parameters_of, parse_config, write_engine_folder
from support.trtllm_table import PROPERTY, make_note

from trtx.backends.tensorrt_llm.releases import Release, known_releases
from trtx.backends.tensorrt_llm.spec import Lora, Ranks, Speculation
from trtx.backends.tensorrt_llm.triton import TritonServing, write_repository
from trtx.backends.tensorrt_llm.triton_engine import OMITTED_WHEN_EMPTY, backend_parameters
from trtx.backends.tensorrt_llm.triton_interface import parameter_names
from trtx.backends.tensorrt_llm.triton_llmapi import MODEL_YAML
from trtx.backends.triton.config import check_complete
from trtx.errors import StepFailed, UsageProblem, VerificationFailed
from trtx.render import TEMPLATES

RELEASES = known_releases()
# Of containers up to 0.16.
OLDEST_PYTHON = (3, 10)
PYTORCH = [version for version in RELEASES if Release.load(version).pytorch_backend]
MODELS = ("ensemble", "preprocessing", "tensorrt_llm", "postprocessing", "tensorrt_llm_bls")


@pytest.mark.parametrize("version", RELEASES)
def test_every_parameter_of_the_engine_flow_is_decided_and_every_file_is_read_by_triton(
    version: str, tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    release = Release.load(version)
    assert write_repository(make_spec(version), tmp_path) == MODELS
    configs = {name: parse_config(tmp_path / name) for name in MODELS}
    assert all(config.name == name for name, config in configs.items())
    found = parameters_of(configs["tensorrt_llm"])
    asked = parameter_names(release)
    assert asked.keys() - found.keys() <= OMITTED_WHEN_EMPTY
    # What a release may not read is never relied upon.
    assert not any(value for name, value in found.items() if not asked[name])
    assert "${" not in "".join(path.read_text() for path in tmp_path.rglob("*.pbtxt"))
    for name in ("preprocessing", "postprocessing", "tensorrt_llm_bls"):
        for path in (tmp_path / name / "1").glob("*.py"):
            ast.parse(path.read_text(), path.name, feature_version=OLDEST_PYTHON)
        assert all(parameters_of(configs[name]).values())
    num_set = sum(bool(value) for value in found.values())
    row = (version, "engine", len(configs), num_set, len(found) - num_set, len(asked.keys() - found.keys()))
    record_property("triton repository", row)
    record_property(PROPERTY, make_note("Triton repository complete", version, "engine"))


def test_what_runs_in_containers_is_written_for_their_oldest_python() -> None:
    scripts = [
        path for name in ("package_trtllm", "tensorrt_llm", "triton") for path in TEMPLATES.glob(f"{name}/**/*.py")
    ]
    assert {"entrypoint.py", "check_engine.py", "llmapi.py", "bls.py"} <= {path.name for path in scripts}
    for path in scripts:
        ast.parse(path.read_text(), path.name, feature_version=OLDEST_PYTHON)


@pytest.mark.parametrize("version", RELEASES)
def test_the_ensemble_of_every_release_is_wired_without_a_gap(version: str, tmp_path: Path) -> None:
    write_repository(make_spec(version), tmp_path)
    configs = {name: parse_config(tmp_path / name) for name in MODELS}
    ensemble = configs["ensemble"]
    types = {tensor.name: tensor.data_type for tensor in ensemble.input}
    optional = {tensor.name for tensor in ensemble.input if tensor.optional}
    for step in ensemble.ensemble_scheduling.step:
        model = configs[step.model_name]
        inputs = {tensor.name: tensor for tensor in model.input}
        for name, outer in step.input_map.items():
            assert types[outer] == inputs[name].data_type, (step.model_name, name)
            assert inputs[name].optional or outer not in optional, (step.model_name, name)
        assert {tensor.name for tensor in model.input if not tensor.optional} <= step.input_map.keys()
        outputs = {tensor.name: tensor.data_type for tensor in model.output}
        types |= {outer: outputs[name] for name, outer in step.output_map.items()}
    assert all(types[tensor.name] == tensor.data_type for tensor in ensemble.output)
    bls = configs["tensorrt_llm_bls"]
    assert [tensor.name for tensor in bls.input] == [tensor.name for tensor in ensemble.input]
    assert [tensor.name for tensor in bls.output] == [tensor.name for tensor in ensemble.output]


@pytest.mark.parametrize("version", PYTORCH)
def test_the_llmapi_model_of_every_release_with_a_pytorch_backend_is_complete(
    version: str, tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    options = {"kv_cache_config": {"free_gpu_memory_fraction": 0.85}, "enable_chunked_prefill": True}
    assert write_repository(make_spec(version, "pytorch"), tmp_path, options=options) == ("tensorrt_llm",)
    config = parse_config(tmp_path / "tensorrt_llm")
    assert config.model_transaction_policy.decoupled
    assert [tensor.name for tensor in config.input if not tensor.optional] == ["text_input"]
    lines = (tmp_path / "tensorrt_llm" / "1" / MODEL_YAML).read_text().splitlines()[1:]
    arguments = {key: json.loads(value) for key, _, value in (line.partition(": ") for line in lines)}
    fields = Release.load(version).schemas.get("TorchLlmArgs")
    if fields is not None:
        known = Release.load(version).schema_fields("TorchLlmArgs")
        assert arguments.keys() - {"triton_config"} <= known.keys()
    assert arguments["kv_cache_config"] == options["kv_cache_config"]
    assert arguments["triton_config"] == {"max_batch_size": 0, "decoupled": True}
    record_property("triton repository", (version, "pytorch", 1, len(arguments), 0, 0))
    record_property(PROPERTY, make_note("Triton repository complete", version, "pytorch"))


def test_settings_of_a_recipe_become_parameters() -> None:
    serving = TritonServing(engine_dir="/models/engine")
    spec = make_spec("1.3.0rc3", lora=Lora(max_rank=16, target_modules=("attn_qkv",), max_adapters=4))
    found = backend_parameters(spec, Release.load("1.3.0rc3"), serving)
    assert found["gpt_model_path"] == "/models/engine"
    assert found["batch_scheduler_policy"] == "max_utilization"
    assert found["kv_cache_free_gpu_mem_fraction"] == "0.85"
    assert (found["enable_kv_cache_reuse"], found["enable_chunked_context"]) == ("true", "true")
    assert (found["lora_cache_max_adapter_size"], found["lora_cache_optimal_adapter_size"]) == ("16", "8")
    assert found["max_tokens_in_paged_kv_cache"] == ""


def test_tensors_have_the_names_of_their_release(tmp_path: Path) -> None:
    names = {}
    for version in ("0.16.0", "0.20.0", "1.3.0rc3"):
        write_repository(make_spec(version), tmp_path / version)
        config = parse_config(tmp_path / version / "tensorrt_llm")
        names[version] = {tensor.name for tensor in config.input} & {"seed", "random_seed"}
    # Renamed somewhere after 0.16: where it is not known, both get the value.
    assert names == {"0.16.0": {"random_seed"}, "0.20.0": {"seed", "random_seed"}, "1.3.0rc3": {"seed"}}
    step = parse_config(tmp_path / "0.20.0" / "ensemble").ensemble_scheduling.step[1]
    assert (step.input_map["seed"], step.input_map["random_seed"]) == ("seed", "seed")


def test_scalars_lose_their_dimension_and_sequences_may_differ_in_length(tmp_path: Path) -> None:
    write_repository(make_spec("1.2.1"), tmp_path)
    inputs = {tensor.name: tensor for tensor in parse_config(tmp_path / "tensorrt_llm").input}
    assert inputs["temperature"].HasField("reshape")
    assert list(inputs["temperature"].reshape.shape) == []
    assert inputs["input_ids"].allow_ragged_batch
    assert not inputs["input_ids"].HasField("reshape")


def test_a_placeholder_that_is_left_over_is_found(tmp_path: Path) -> None:
    write_repository(make_spec("1.2.1"), tmp_path)
    path = tmp_path / "tensorrt_llm" / "config.pbtxt"
    path.write_text(path.read_text().replace('"max_utilization"', '"${batch_scheduler_policy}"'))
    with pytest.raises(
        StepFailed, match=r"tensorrt_llm/config\.pbtxt:\d+ has no value for \$\{batch_scheduler_policy\}"
    ):
        check_complete(tmp_path)


def test_the_engine_is_held_against_the_spec(tmp_path: Path) -> None:
    engine = write_engine_folder(tmp_path / "engine", "1.2.1", ranks=2)
    spec = make_spec("1.2.1", ranks=Ranks(tensor=2))
    write_repository(spec, tmp_path / "repository", engine=engine)
    with pytest.raises(VerificationFailed, match=r"was built by TensorRT-LLM 1\.2\.1, not 1\.1\.0"):
        write_repository(make_spec("1.1.0"), tmp_path / "other", engine=engine)
    with pytest.raises(VerificationFailed, match="has 2 ranks and the recipe 4"):
        write_repository(make_spec("1.2.1", ranks=Ranks(tensor=4)), tmp_path / "other", engine=engine)
    (engine / "rank1.engine").unlink()
    with pytest.raises(VerificationFailed, match=r"has no rank1\.engine"):
        write_repository(spec, tmp_path / "other", engine=engine)
    with pytest.raises(VerificationFailed, match="neither an engine nor a checkpoint"):
        write_repository(spec, tmp_path / "other", engine=tmp_path / "nothing")
    with pytest.raises(VerificationFailed, match="is an engine of trtllm-build"):
        write_repository(make_spec("1.2.1", "pytorch"), tmp_path / "other", engine=engine)
    (engine / "config.json").write_text('{"architecture": "LlamaForCausalLM"}')
    with pytest.raises(VerificationFailed, match="is not an engine of trtllm-build"):
        write_repository(spec, tmp_path / "other", engine=engine)
    assert not (tmp_path / "other").exists()


def test_a_tokenizer_must_be_there(tmp_path: Path) -> None:
    write_tokenizer_folder(tmp_path / "tokenizer")
    write_repository(make_spec("1.2.1"), tmp_path / "repository", tokenizer=tmp_path / "tokenizer")
    (tmp_path / "empty").mkdir()
    with pytest.raises(VerificationFailed, match="has no tokenizer"):
        write_repository(make_spec("1.2.1"), tmp_path / "other", tokenizer=tmp_path / "empty")


def test_a_flow_that_a_release_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match=r"0\.21\.0 has no llmapi model") as caught:
        write_repository(make_spec("0.21.0", "pytorch"), tmp_path)
    assert "1.0.0" in caught.value.fix


@pytest.mark.parametrize("mode", ["draft-target", "lookahead", "mtp"])
def test_decoding_that_one_model_cannot_do_is_refused(mode: Any, tmp_path: Path) -> None:
    spec = make_spec("1.2.1", speculation=Speculation(mode=mode, max_draft_len=4))
    with pytest.raises(UsageProblem, match=f"no Triton repository for {mode}"):
        write_repository(spec, tmp_path)
    found = backend_parameters(
        make_spec("1.2.1", speculation=Speculation(mode="medusa", max_draft_len=4)),
        Release.load("1.2.1"),
        TritonServing(),
    )
    assert found["decoding_mode"] == "medusa"


def test_options_that_the_repository_decides_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="model cannot be an option"):
        write_repository(make_spec("1.2.1", "pytorch"), tmp_path, options={"model": "elsewhere"})


def test_the_tokenizer_is_beside_the_engine_unless_said_otherwise(tmp_path: Path) -> None:
    write_repository(make_spec("1.2.1"), tmp_path / "a", serving=TritonServing(engine_dir="/e"))
    write_repository(make_spec("1.2.1"), tmp_path / "b", serving=TritonServing(engine_dir="/e", tokenizer_dir="/t"))
    found = [parameters_of(parse_config(tmp_path / name / "preprocessing"))["tokenizer_dir"] for name in "ab"]
    assert found == ["/e", "/t"]


def test_names_with_quotes_and_other_alphabets_stay_what_they_are(tmp_path: Path) -> None:
    odd = '/models/"größe"\\1'
    write_repository(make_spec("1.2.1"), tmp_path, serving=TritonServing(engine_dir=odd))
    assert parameters_of(parse_config(tmp_path / "tensorrt_llm"))["gpt_model_path"] == odd
