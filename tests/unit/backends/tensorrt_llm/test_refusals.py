"""What a release refuses is refused when a recipe is planned: where it stands, by which rule, of which release."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.trtllm_recipes import find_all
from support.trtllm_refusals import CASES, Wrong, make_recipe, quantized
from support.trtllm_table import PROPERTY, make_note

from trtx.backends.tensorrt_llm.releases import Release, known_releases
from trtx.recipe.problems import Problem

Note = Callable[[str, object], None]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_wrong_recipe_is_refused_where_it_is_wrong(case: Wrong, record_property: Note) -> None:
    _, found = find_all(case.text, case.model or None)
    errors = [problem for problem in found if problem.severity == "error"]
    shown = "\n\n".join(problem.render() for problem in found)
    if case.severity == "error":
        assert len(errors) == 1, shown
        [problem] = errors
    else:
        assert not errors, shown
        [problem] = [problem for problem in found if f"rule {case.rule} of" in problem.why]
    assert (problem.line, problem.col) == case.mark, shown
    text = problem.render()
    for part in case.parts:
        assert part in text, shown
    if case.rule:
        assert f"rule {case.rule} of TensorRT-LLM {case.release}" in problem.why, shown
        assert problem.fix or case.severity == "warning"
    if case.release in known_releases():
        record_property(PROPERTY, make_note("refusals right", case.release, case.flow))


def test_there_are_at_least_sixty_wrong_combinations_with_a_name_each() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)


# What every release refuses: settings, the rule, and what is said.
EVERYWHERE = (
    ({"target": "parallelism: {tensor: «5}"}, "heads-tp"),
    ({"target": "parallelism: {tensor: 4, «expert: 2}"}, "experts"),
    ({"target": "parallelism: {tensor: 4}\njob: {gpus: «'h100:2'}"}, "world-size"),
    ({"gpu": "«l4-24gb", "engine": "limits: {max_batch_size: 8, max_num_tokens: 8192, max_seq_len: 131072}"},
     "gpu-memory"),
    ({"gpu": "a100", "variant": quantized("«fp8")}, "precision-gpu"),
)  # fmt: skip
ONLY = {
    "engine": (
        ({"engine": "build_options: {«max_output_len: 128}"}, "unknown-flag"),
        ({"engine": "plugins: {streamingllm: «enable}"}, "streamingllm"),
        ({"engine": "profiles: true\nbuild_options: {«opt_num_tokens: 64}"}, "opt-num-tokens-profiles"),
    ),
    "pytorch": (
        ({"engine": "llm_options: {«strem_interval: 2}"}, "yaml-unknown-key"),
        ({"engine": "llm_options: {«max_batch_size: 2}"}, "stated-twice"),
        ({"engine": "«plugins: {gemm_plugin: auto}"}, "settings-of-a-flow"),
    ),
}  # fmt: skip
# One commit of main stands for no release: it has neither versions nor an image.
RELEASES = [version for version in known_releases() if ".dev" not in version]


@pytest.mark.parametrize("flow", ("engine", "pytorch"))
@pytest.mark.parametrize("release", RELEASES)
def test_every_release_refuses_what_no_release_can(release: str, flow: str, record_property: Note) -> None:
    made = Release.load(release)
    if flow == "pytorch" and not made.pytorch_backend:
        cases: list[tuple[dict[str, str], str]] = [({"flow": "«pytorch"}, "pytorch-flow")]
    else:
        cases = [*EVERYWHERE, *ONLY[flow]]
    for settings, rule in cases:
        text = make_recipe(**{"release": release, "flow": flow, **settings})
        case = Wrong(rule, text, "llama-8b", rule, ())
        _, found = find_all(case.text, case.model)
        errors = [problem for problem in found if problem.severity == "error"]
        shown = "\n\n".join(problem.render() for problem in found)
        assert [(problem.line, problem.col) for problem in errors] == [case.mark], shown
        assert f"rule {rule} of TensorRT-LLM {release}" in errors[0].why, shown
        assert errors[0].fix
    record_property(PROPERTY, make_note("refusals right", release, flow, len(cases)))


@pytest.mark.parametrize("flow", ("engine", "pytorch"))
@pytest.mark.parametrize("release", RELEASES)
def test_a_plain_recipe_is_refused_by_no_release_that_has_its_flow(release: str, flow: str) -> None:
    if flow == "pytorch" and not Release.load(release).pytorch_backend:
        return
    _, found = find_all(make_recipe(release, flow, target="parallelism: {tensor: 2}"), "llama-8b")
    assert [problem.render() for problem in found if problem.severity == "error"] == []


def test_one_problem_that_several_engines_share_is_told_once() -> None:
    extra = "  u:\n    gpu: h200\n    parallelism: {tensor: 2}\n"
    text = make_recipe(engine="plugins: {gemm_plugn: auto}", extra=extra)
    _, found = find_all(text, "llama-8b")
    [problem] = [problem for problem in found if problem.severity == "error"]
    assert problem.what.startswith("t/v, u/v: trtllm-build of TensorRT-LLM 1.2.1 has no --gemm_plugn")


def test_a_target_s_own_setting_is_named_where_it_stands() -> None:
    text = make_recipe(engine="plugins: {gemm_plugin: auto}", target="engine: {plugins: {gemm_plugin: int4}}")
    _, found = find_all(text, "llama-8b")
    [problem] = [problem for problem in found if problem.severity == "error"]
    assert problem.path == "targets.t.engine.plugins.gemm_plugin"


def test_without_a_model_what_depends_on_it_is_not_looked_at_and_the_rest_is() -> None:
    text = make_recipe(engine="plugins: {gemm_plugn: auto}", target="parallelism: {tensor: 5}")
    _, found = find_all(text, None)
    assert [rule_of(problem) for problem in found if problem.severity == "error"] == ["unknown-flag"]


def rule_of(problem: Problem) -> str:
    return problem.why.partition("rule ")[2].partition(" of")[0]
