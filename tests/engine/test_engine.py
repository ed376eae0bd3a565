"""Engines compiled ahead of time answer like transformers, serve any weights of their shape, and refuse the rest."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.modules import TOKENS_PER_BLOCK, convert_quietly, flatten, run_in_pieces
from torch import Tensor
from transformers import LlamaForCausalLM

from tests.engine.conftest import Built, calibrate, make_model
from trtx.backends.inductor.build import find_compiler, find_namespace
from trtx.backends.inductor.check import check, generate_greedily
from trtx.backends.inductor.compile import CompileJob
from trtx.backends.inductor.evidence import CHECK_NAME, ensure_checked, read_evidence
from trtx.backends.inductor.module import load_eager
from trtx.backends.inductor.process import Child, run_children
from trtx.backends.inductor.spec import EngineSpec
from trtx.errors import UsageProblem, VerificationFailed
from trtx.files import sha256_file, write_json
from trtx.models.formats import QuantFormat
from trtx.models.linear_layout import TensorSpec
from trtx.models.weights_config import load_weights_config
from trtx.models.weights_file import WeightsWriter
from trtx.runtime.card import CARD_NAME, Limits, load_card
from trtx.runtime.program import CompiledPrograms, load_programs, make_pools
from trtx.stages import build as build_stage

NUM_BLOCKS = 1 + 16 * 8


def make_prompts() -> list[Tensor]:
    """16 prompts of different lengths, int64 [1, 3] to [1, 18]."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 256, (1, 3 + i), generator=generator) for i in range(16)]


def generate_by_transformers(model: Path, prompt: Tensor, num_tokens: int) -> list[int]:
    reference = LlamaForCausalLM.from_pretrained(model).eval()
    answer = reference.generate(
        prompt, do_sample=False, max_new_tokens=num_tokens, attention_mask=torch.ones_like(prompt)
    )
    return answer[0, prompt.shape[1] :].tolist()


def generate_in_one_batch(programs: CompiledPrograms, prompts: list[Tensor], num_tokens: int) -> list[list[int]]:
    """Greedy tokens of all prompts: all prompts in one step, then one token of each per step."""
    tables = torch.arange(1, 1 + len(prompts) * 8, dtype=torch.int32).view(-1, 8)
    contexts, new = [0] * len(prompts), [prompt[0] for prompt in prompts]
    answers = []
    for _ in range(num_tokens):
        ends = torch.tensor([len(tokens) for tokens in new]).cumsum(0)
        logits = programs.step(*flatten(new, contexts, tables, TOKENS_PER_BLOCK), ends - 1)
        contexts = [done + len(tokens) for done, tokens in zip(contexts, new, strict=True)]
        new = list(logits.argmax(-1)[:, None])
        answers.append(torch.cat(new))
    return torch.stack(answers, 1).tolist()


def test_greedy_tokens_of_16_prompts_are_those_of_transformers_generate(plain: Built) -> None:
    programs = load_programs(plain.engine, plain.weights, NUM_BLOCKS)
    found = generate_in_one_batch(programs, make_prompts(), 24)
    assert found == [generate_by_transformers(plain.model, prompt, 24) for prompt in make_prompts()]


def test_one_build_serves_every_fine_tune_of_its_shape(plain: Built, tmp_path: Path) -> None:
    other = make_model(tmp_path / "model", seed=1)
    convert_quietly(other, tmp_path / "weights")
    for model, weights in ((plain.model, plain.weights), (other, tmp_path / "weights")):
        programs = load_programs(plain.engine, weights, NUM_BLOCKS)
        prompt = make_prompts()[7]
        found = generate_greedily(programs, prompt, 12)[0, prompt.shape[1] :].tolist()
        assert found == generate_by_transformers(model, prompt, 12)


def test_no_weight_of_any_kind_is_inside_the_programs(fp8: Built) -> None:
    card = load_card(fp8.engine)
    names = set(load_file(fp8.weights / "rank0.safetensors"))
    for program in card.programs.values():
        assert set(program.constants) == {name for name in names if not name.startswith("__pad")}
    assert sum((fp8.engine / program.path).stat().st_size for program in card.programs.values()) < 2_000_000


def test_compiling_again_elsewhere_gives_the_same_bytes(plain: Built, tmp_path: Path) -> None:
    spec = EngineSpec.model_validate(plain.params.model_dump())
    job = CompileJob(
        spec=spec,
        program="step",
        kernels=find_namespace(spec, find_compiler()),
        compiler=str(find_compiler()),
        work=str(tmp_path),
        package=str(tmp_path / "again" / "step.pt2"),
        facts=str(tmp_path / "facts.json"),
    )
    (tmp_path / "again").mkdir()
    write_json(tmp_path / "job.json", job.model_dump(mode="json"))
    module = "trtx.backends.inductor.compile"
    child = Child(module, (str(tmp_path / "job.json"),), tmp_path / "log", {"OMP_NUM_THREADS": "1"})
    assert run_children([child], tmp_path)[0].code == 0, (tmp_path / "log").read_text()
    assert sha256_file(Path(job.package)) == load_card(plain.engine).programs["step"].sha256
    assert str(tmp_path).encode() not in Path(job.package).read_bytes()


def test_pools_are_changed_in_place_and_padding_stays_in_the_null_block(plain: Built) -> None:
    programs = load_programs(plain.engine, plain.weights, 4)
    addresses = [pool.data_ptr() for pool in programs._pools]
    # Two tokens of a sequence in block 2, and three of padding.
    programs.step(
        torch.tensor([5, 6, 1, 1, 1]),
        torch.tensor([0, 1, 0, 0, 0]),
        torch.tensor([16, 17, 0, 0, 0]),
        torch.tensor([[2], [0]], dtype=torch.int32),
        torch.tensor([0, 2, 5], dtype=torch.int32),
        torch.tensor([2, 1], dtype=torch.int32),
        torch.tensor([1]),
    )
    assert [pool.data_ptr() for pool in programs._pools] == addresses
    for pool in programs._pools:
        written = pool.abs().sum((2, 3)).nonzero().tolist()
        assert written == [[0, 0], [2, 0], [2, 1]]


def test_an_fp8_engine_answers_like_its_eager_module(fp8: Built) -> None:
    tokens = torch.randint(0, 256, (3, 40), generator=torch.Generator().manual_seed(0))
    compiled = run_in_pieces(load_programs(fp8.engine, fp8.weights, 40), tokens, (9, 21), 6)
    eager = run_in_pieces(load_eager(fp8.engine, fp8.weights, 40), tokens, (9, 21), 6)
    assert (compiled - eager).norm() < 0.02 * eager.norm()


@pytest.mark.parametrize("name", ["plain", "fp8"])
def test_the_build_leaves_evidence_with_every_figure_within_its_bound(
    name: str, request: pytest.FixtureRequest
) -> None:
    built: Built = request.getfixturevalue(name)
    evidence = read_evidence(built.engine / CHECK_NAME)
    assert evidence is not None
    assert evidence.passed
    assert evidence.weights_key == "weights-key"
    assert set(evidence.figures) == set(evidence.tolerances)
    assert built.summary["figures"] == evidence.figures
    assert built.summary["simulated"] is (name == "fp8")


def test_a_pair_that_was_never_checked_is_checked_when_it_is_joined(plain: Built, tmp_path: Path) -> None:
    other = make_model(tmp_path / "model", seed=2)
    checkpoint = calibrate(other, tmp_path / "checkpoint", QuantFormat())
    convert_quietly(checkpoint, tmp_path / "weights")
    evidence = ensure_checked(
        plain.engine,
        tmp_path / "weights",
        checkpoint,
        other,
        "another key",
        plain.engine / CHECK_NAME,
        tmp_path / "out.json",
    )
    assert evidence.weights_key == "another key"
    assert read_evidence(tmp_path / "out.json") == evidence


def corrupt_weights(weights: Path, target: Path) -> Path:
    """A copy of a weights folder in which one of a matrix's numbers is another."""
    shutil.copytree(weights, target)
    tensors = load_file(weights / "rank0.safetensors")
    tensors["layers.1.mlp.down.weight"][3, 4] += 1
    specs = [TensorSpec(t.name, t.shape, t.dtype) for t in load_weights_config(weights).ranks[0].tensors]
    with WeightsWriter(target / "rank0.safetensors", specs) as writer:
        for spec in specs:
            writer.write(spec.name, tensors[spec.name])
    return target


def test_one_wrong_weight_fails_the_build_step(plain: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = load_card(plain.engine)

    def copy_engine(spec: EngineSpec, output: Path, work: Path, say: object, replay: object) -> object:
        shutil.copytree(plain.engine, output, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CHECK_NAME))
        return card

    monkeypatch.setattr(build_stage, "build", copy_engine)
    weights = corrupt_weights(plain.weights, tmp_path / "weights")
    context = plain.context(tmp_path / "output", weights=weights)
    with pytest.raises(VerificationFailed) as caught:
        build_stage.run(plain.params, context)
    assert "logits_vs_checkpoint" in caught.value.what
    assert "bound 0.0001" in caught.value.why
    assert not (context.output / CHECK_NAME).exists()


def test_the_wrong_perplexity_is_named_with_its_bound(plain: Built, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(plain.checkpoint, checkpoint)
    path = checkpoint / "trtx_calibration.json"
    facts = json.loads(path.read_text())
    facts["perplexity"]["after"] *= 1.001
    path.write_text(json.dumps(facts))
    evidence = check(plain.engine, plain.weights, checkpoint, plain.model, "key")
    assert not evidence.passed
    assert evidence.figures["perplexity_vs_modelopt"] == pytest.approx(0.001, rel=0.02)


def test_an_engine_without_held_out_text_cannot_be_checked(plain: Built, tmp_path: Path) -> None:
    shutil.copytree(plain.checkpoint, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("trtx_heldout*"))
    with pytest.raises(VerificationFailed, match=r"has no trtx_heldout\.safetensors"):
        check(plain.engine, plain.weights, tmp_path / "checkpoint", plain.model, "key")


def copy_engine_with(plain: Built, target: Path, **changes: object) -> Path:
    shutil.copytree(plain.engine, target)
    card = load_card(target).model_copy(update=changes)
    write_json(target / CARD_NAME, card.model_dump(mode="json", by_alias=True))
    return target


def test_an_engine_too_short_for_the_text_cannot_be_checked(plain: Built, tmp_path: Path) -> None:
    limits = Limits(max_batch_size=4, max_num_tokens=64, max_seq_len=32)
    engine = copy_engine_with(plain, tmp_path / "engine", limits=limits)
    with pytest.raises(UsageProblem, match="max_seq_len of 32 is less than 48"):
        check(engine, plain.weights, plain.checkpoint, plain.model, "key")


def test_weights_of_another_layout_are_refused_at_load(plain: Built, fp8: Built) -> None:
    with pytest.raises(VerificationFailed, match="were not made for this engine"):
        load_programs(plain.engine, fp8.weights, 8)


def test_programs_of_another_layout_are_refused_at_load(plain: Built, fp8: Built, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    shutil.copytree(plain.engine, engine)
    shutil.copytree(fp8.engine / "programs", engine / "programs", dirs_exist_ok=True)
    with pytest.raises(VerificationFailed, match="is not the one its card names"):
        load_programs(engine, plain.weights, 8)


def test_a_flipped_byte_in_a_program_is_found_before_it_is_mapped(plain: Built, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    shutil.copytree(plain.engine, engine)
    path = engine / "programs" / "step.pt2"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(VerificationFailed, match="the step program"):
        load_programs(engine, plain.weights, 8)


def test_a_missing_program_is_named(plain: Built, tmp_path: Path) -> None:
    shutil.copytree(plain.engine, tmp_path / "engine", ignore=shutil.ignore_patterns("step.pt2"))
    with pytest.raises(VerificationFailed, match="the step program"):
        load_programs(tmp_path / "engine", plain.weights, 8)


def test_loading_leaves_no_unpacked_programs_behind(
    plain: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    load_programs(plain.engine, plain.weights, 8)
    assert list(tmp_path.iterdir()) == []


def test_inputs_of_another_type_are_refused_instead_of_misread(plain: Built) -> None:
    programs = load_programs(plain.engine, plain.weights, 8)
    inputs = make_one_token_step()
    for index, given in enumerate(inputs):
        wrong = given.int() if given.dtype == torch.int64 else given.long()
        with pytest.raises(TypeError, match="the program's inputs are"):
            programs.step(*inputs[:index], wrong, *inputs[index + 1 :])


def make_one_token_step() -> list[Tensor]:
    """A sequence of one token in block 1."""
    tables, last = torch.tensor([[1]], dtype=torch.int32), torch.tensor([0])
    return [*flatten([torch.tensor([1])], [0], tables, TOKENS_PER_BLOCK), last]


def test_two_threads_at_once_are_refused_instead_of_waiting_for_ever(plain: Built) -> None:
    programs = load_programs(plain.engine, plain.weights, 8)
    refused: list[str] = []

    def call() -> None:
        try:
            programs.step(*make_one_token_step())
        except RuntimeError as error:
            refused.append(str(error))

    with programs._busy:
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    assert refused == ["an engine's programs may be called by one thread at a time"]
    call()
    assert len(refused) == 1


def test_two_threads_in_one_program_take_turns_and_end(plain: Built) -> None:
    programs = load_programs(plain.engine, plain.weights, 8)
    starts, tables = torch.tensor([0, 1]).int(), torch.tensor([[1]]).int()
    one = torch.tensor([1]).int()
    inputs = [torch.tensor([5]), torch.tensor([0]), torch.tensor([8]), tables, starts, one, torch.tensor([0])]
    expected = programs.step(*inputs)
    found: list[Tensor] = []

    def call() -> None:
        pools = make_pools(programs.card.kv_cache, 8)
        found.extend(programs._program([*inputs, *pools])[0] for _ in range(20))

    callers = [threading.Thread(target=call) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 40
    assert all(torch.equal(logits, expected) for logits in found)


def test_a_flipped_byte_in_the_kernels_is_found_before_they_are_loaded(plain: Built, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    shutil.copytree(plain.engine, engine)
    path = engine / "programs" / "kernels.so"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(VerificationFailed, match="the kernel library"):
        load_programs(engine, plain.weights, 8)
