"""Every architecture answers like transformers: prompts in chunks, beside single tokens, over a paged pool.

What is proven here is the table of docs/architectures.md; the last test holds the two together.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import compile_all
from support.architectures import CASES, COMPILED, LENGTH, MODELS, VOCAB_SIZE, find_features, make_model
from support.modules import (
    LIMITS,
    convert_quietly,
    load_rank,
    make_eager_engine,
    make_spec,
    run_in_pieces,
    run_ranks,
)
from support.proofs import Proofs, read_committed, write_table

from tests.engine.conftest import Built, calibrate, write_tokenizer
from trtx.backends.inductor.build import find_compiler
from trtx.backends.inductor.check import generate_greedily
from trtx.backends.inductor.evidence import make_tolerances
from trtx.backends.inductor.module import make_module
from trtx.backends.inductor.reference import load_checkpoint, load_model
from trtx.backends.inductor.spec import CompileFacts, CompileJob, make_card
from trtx.errors import UsageProblem, VerificationFailed
from trtx.files import sha256_file, write_json
from trtx.models.attention import AttentionKind
from trtx.models.checkpoint import load_model_config
from trtx.models.formats import QuantFormat
from trtx.models.layout import make_layout
from trtx.runtime.card import CARD_NAME, Program, Rank, load_card
from trtx.runtime.program import Programs, load_programs

FIRST = [(architecture, next(iter(models))) for architecture, (_, models) in MODELS.items()]
# A mixture of experts stands whole on one rank.
CUT = [(architecture, name) for architecture, name in FIRST if name != "experts"]

# Relative distance of logits (L2).
BOUND = 1e-5
# Tokens that are generated greedily, in contexts longer than every window.
NEW_TOKENS = 12


def tokens(count: int) -> torch.Tensor:
    return torch.randint(0, VOCAB_SIZE, (count, LENGTH), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def proofs() -> Proofs:
    return Proofs()


@torch.inference_mode()
def ask(model: Any, tokens_BT: torch.Tensor) -> torch.Tensor:
    """The logits of transformers, all at once."""
    logits: torch.Tensor = model(tokens_BT, use_cache=False).logits
    return logits


def assert_like_transformers(programs: Programs, model: Any) -> None:
    """Logits within BOUND in steps of mixed lengths, and the same greedy tokens."""
    found, expected = run_in_pieces(programs, tokens(3), cuts=(5, 24), num_decoded=7), ask(model, tokens(3))
    assert (found - expected).norm() < BOUND * expected.norm()
    answers = generate_greedily(programs, tokens(3)[:, : LENGTH - NEW_TOKENS], NEW_TOKENS)
    chosen = ask(model, answers)[:, LENGTH - NEW_TOKENS - 1 : -1].argmax(-1)
    assert torch.equal(chosen, answers[:, LENGTH - NEW_TOKENS :])


@pytest.mark.parametrize("attention", ["gather", "native"])
@pytest.mark.parametrize(("architecture", "name"), CASES)
def test_mixed_steps_and_greedy_tokens_are_those_of_transformers(
    tmp_path: Path, proofs: Proofs, architecture: str, name: str, attention: AttentionKind
) -> None:
    model = make_model(tmp_path / "model", architecture, name)
    programs = make_eager_engine(tmp_path, tmp_path / "model", attention=attention)
    assert_like_transformers(programs, model)
    proofs.note(("mixed", architecture, name, attention), architecture, *find_features(programs.card.model))


@pytest.fixture(scope="module")
def compiled(plain: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an engine of every architecture; half of them are compiled by one process, half by another."""
    root, compiler = tmp_path_factory.mktemp("compiled"), find_compiler()
    kernels = load_card(plain.engine).kernels
    assert kernels is not None
    jobs, halves = {}, ([], [])
    for number, (architecture, name) in enumerate(COMPILED.items()):
        folder = root / architecture
        make_model(folder / "model", architecture, name)
        spec = make_spec(convert_quietly(folder / "model", folder / "weights"))
        (folder / "work").mkdir()
        (folder / "engine" / "programs").mkdir(parents=True)
        jobs[architecture] = CompileJob(
            spec=spec,
            program="step",
            kernels=kernels.namespace,
            compiler=str(compiler),
            work=str(folder / "work"),
            package=str(folder / "engine" / "programs" / "step.pt2"),
            facts=str(folder / "facts.json"),
        )
        write_json(folder / "job.json", jobs[architecture].model_dump(mode="json"))
        halves[number % 2].append(str(folder / "job.json"))
    run_together([[sys.executable, compile_all.__file__, *half] for half in halves])
    for architecture, job in jobs.items():
        engine, facts = root / architecture / "engine", CompileFacts.model_validate_json(Path(job.facts).read_bytes())
        shutil.copy(plain.engine / kernels.path, engine / kernels.path)
        program = Program(path="programs/step.pt2", sha256=sha256_file(Path(job.package)), constants=facts.constants)
        card = make_card(job.spec, {"step": program}, {"torch": torch.__version__}, facts.choices.vector_isa, kernels)
        write_json(engine / CARD_NAME, card.model_dump(mode="json", by_alias=True))
    return root


def run_together(commands: list[list[str]]) -> None:
    """Run commands side by side; each must end well."""
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for command in commands]
    for process in running:
        said, _ = process.communicate()
        assert process.returncode == 0, said.decode()


@pytest.mark.parametrize(("architecture", "name"), COMPILED.items())
def test_compiled_programs_answer_like_transformers(
    compiled: Path, tmp_path: Path, proofs: Proofs, architecture: str, name: str
) -> None:
    folder = compiled / architecture
    programs = load_programs(folder / "engine", folder / "weights", num_blocks=40)
    assert_like_transformers(programs, make_model(tmp_path, architecture, name))
    proofs.note(("compiled", architecture), architecture, "compiled ahead of time")


@pytest.mark.parametrize(("architecture", "name"), FIRST)
def test_bfloat16_stays_near_float32(tmp_path: Path, proofs: Proofs, architecture: str, name: str) -> None:
    expected = ask(make_model(tmp_path / "model", architecture, name), tokens(2))
    found = run_in_pieces(make_eager_engine(tmp_path, tmp_path / "model", "bfloat16"), tokens(2), (9,), 4)
    assert (found - expected).norm() < 0.05 * expected.norm()
    proofs.note(("bfloat16", architecture), architecture, "bfloat16")


@pytest.mark.parametrize(("architecture", "name"), CUT)
def test_ranks_of_every_cut_compute_what_one_computes(
    tmp_path: Path, proofs: Proofs, architecture: str, name: str
) -> None:
    make_model(tmp_path / "model", architecture, name)
    answers = []
    # All numbers of heads, of columns and of rows divide by 2 or by 3.
    cut = 3 if load_model_config(tmp_path / "model").num_heads == 3 else 2
    for tensor, pipeline in ((1, 1), (cut, 2)):
        weights = tmp_path / f"{tensor}-{pipeline}"
        convert_quietly(tmp_path / "model", weights, "float32", tensor, pipeline)
        ranks = [load_rank(weights, rank)[0] for rank in range(tensor * pipeline)]
        answers.append(run_ranks(ranks, tensor, tokens(2)[:, :9]))
    assert (answers[1] - answers[0]).norm() < BOUND * answers[0].norm()
    proofs.note(("cut", architecture), architecture, "weights cut for tensor × pipeline ranks")


@pytest.mark.parametrize("architecture", ["MixtralForCausalLM", "Qwen3MoeForCausalLM"])
def test_a_mixture_of_experts_is_not_cut_yet(tmp_path: Path, architecture: str) -> None:
    make_model(tmp_path / "model", architecture, "experts")
    with pytest.raises(UsageProblem, match="2 tensor-parallel ranks yet"):
        convert_quietly(tmp_path / "model", tmp_path / "weights", "float32", 2, 1)


def test_matrices_that_modelopt_does_not_quantize_are_refused_at_plan_time(tmp_path: Path) -> None:
    make_model(tmp_path, "GPT2LMHeadModel", "learned positions")
    with pytest.raises(UsageProblem, match="GPT2LMHeadModel cannot be quantized with fp8"):
        make_layout(load_model_config(tmp_path), QuantFormat(algorithm="fp8"), "float32")


def test_matrices_that_a_checkpoint_has_fused_keep_the_scales_of_awq_beside_them(tmp_path: Path) -> None:
    sizes = {"vocab_size": 258, "hidden_size": 128, "intermediate_size": 128, "initializer_range": 0.05}
    make_model(tmp_path / "model", "Phi3ForCausalLM", "fused", num_attention_heads=2, **sizes)
    write_tokenizer(tmp_path / "model")
    checkpoint = calibrate(tmp_path / "model", tmp_path / "checkpoint", QuantFormat(algorithm="int4_awq"))
    found = run_in_pieces(make_eager_engine(tmp_path, checkpoint), tokens(2), (9,), 4)
    expected = load_checkpoint(checkpoint, LIMITS.max_seq_len).logits(tokens(2))
    assert (found - expected).norm() < BOUND * expected.norm()
    scales = load_file(tmp_path / "weights" / "rank0.safetensors")["layers.0.attention.qkv.pre_quant_scale"]
    assert scales.unique().numel() > 1


@pytest.mark.parametrize(("architecture", "name"), FIRST)
def test_the_reference_of_the_check_is_the_model_itself(tmp_path: Path, architecture: str, name: str) -> None:
    expected = ask(make_model(tmp_path, architecture, name), tokens(1))
    for load in (load_model, load_checkpoint):
        assert torch.equal(load(tmp_path, LIMITS.max_seq_len).logits(tokens(1)), expected)


def test_the_reference_of_an_engine_for_long_sequences_has_the_long_factors_for_short_ones(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "Phi3ForCausalLM", "long longrope, partial rotary")
    programs = make_eager_engine(tmp_path, tmp_path / "model")
    short = tokens(1)[:, :12]
    found = run_in_pieces(programs, short, (), 1)
    expected = load_checkpoint(tmp_path / "model", LIMITS.max_seq_len).logits(short)
    assert (found - expected).norm() < BOUND * expected.norm()
    assert (ask(model, short) - expected).norm() > 0.01 * expected.norm()
    assert "perplexity_vs_modelopt" not in make_tolerances(programs.card)


def test_a_checkpoint_that_lacks_a_weight_is_no_reference(tmp_path: Path) -> None:
    make_model(tmp_path, "Qwen3ForCausalLM", "norms of heads")
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.self_attn.q_norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(VerificationFailed, match="has not all weights") as caught:
        load_checkpoint(tmp_path, 64)
    assert "q_norm" in caught.value.why


def test_a_gpt2_saved_without_its_head_is_the_same_model(tmp_path: Path) -> None:
    model = make_model(tmp_path / "whole", "GPT2LMHeadModel", "learned positions")
    model.transformer.save_pretrained(tmp_path / "bare")
    (tmp_path / "bare" / "config.json").write_bytes((tmp_path / "whole" / "config.json").read_bytes())
    found = []
    for name in ("whole", "bare"):
        convert_quietly(tmp_path / name, tmp_path / f"{name} weights")
        found.append(load_file(tmp_path / f"{name} weights" / "rank0.safetensors"))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_an_engine_for_more_tokens_than_the_model_has_positions_is_refused(tmp_path: Path) -> None:
    make_model(tmp_path, "GPT2LMHeadModel", "learned positions")
    with pytest.raises(UsageProblem, match="max_seq_len 65 is more than the model's 64 positions"):
        make_module(load_model_config(tmp_path), QuantFormat(), "float32", Rank(), max_seq_len=65)


def test_the_table_of_the_documentation_is_what_was_just_proven(proofs: Proofs) -> None:
    mixed = {("mixed", *case, attention) for case in CASES for attention in ("gather", "native")}
    by_architecture = {(what, architecture) for what in ("compiled", "bfloat16") for architecture in MODELS}
    all_tests = mixed | by_architecture | {("cut", architecture) for architecture, _ in CUT}
    if os.environ.get("TRTX_WRITE_DOCS") and proofs.passed == all_tests:
        write_table(proofs.render())
    if not proofs.passed >= all_tests:
        pytest.skip(f"{len(all_tests - proofs.passed)} tests of this file did not pass or were not asked for")
    assert read_committed() == proofs.render(), "CONTRIBUTING.md says how the table is written"
