"""A recipe file is read or refused with one message; what it leaves out has defaults that stand in the schema."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.malformed import recipe

from trtx.errors import TrtxError, UsageProblem
from trtx.recipe.cells import make_cells
from trtx.recipe.load import load_recipe, parse_recipe
from trtx.recipe.problems import Mark, Problem, RecipeInvalid
from trtx.recipe.schema import Recipe


def parse(text: str) -> Recipe:
    return parse_recipe(Path("recipe.yaml"), text).recipe


def refused(path: Path) -> str:
    with pytest.raises(UsageProblem) as caught:
        load_recipe(path)
    assert caught.value.exit_code == 2
    return caught.value.render()


def test_a_missing_file_names_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe())
    assert f"did you mean '{tmp_path}/recipe.yaml'?" in refused(tmp_path / "recpie.yaml")


def test_a_missing_file_without_neighbours_names_init(tmp_path: Path) -> None:
    assert "trtx init" in refused(tmp_path / "none" / "recipe.yaml")


def test_a_folder_lists_its_recipes(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(recipe())
    assert "is a folder" in refused(tmp_path)
    assert "it holds a.yaml" in refused(tmp_path)


def test_a_name_that_is_too_long_for_a_file_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in refused(tmp_path / ("x" * 300))


def test_bytes_that_are_not_utf8_are_located(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(recipe().encode() + "description: é\n".encode("latin-1"))
    assert f"{path}:11:14: error: the file is not UTF-8" in refused(path)


def test_utf16_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(recipe().encode("utf-16"))
    assert "looks like UTF-16" in refused(path)


def test_a_file_without_end_is_refused_before_it_fills_the_memory() -> None:
    assert "/dev/zero:1:1: error: the file is larger than 1 MiB" in refused(Path("/dev/zero"))


def test_a_name_that_cannot_be_written_in_plans_and_locks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.yaml")
    path.write_text(recipe())
    assert "is not UTF-8" in refused(path) and "rename it" in refused(path)


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + recipe().encode())
    assert load_recipe(path).recipe.name == "tiny"


def test_windows_line_ends_are_no_problem() -> None:
    assert parse(recipe().replace("\n", "\r\n")).name == "tiny"


def test_a_password_is_not_repeated_in_a_message(tmp_path: Path) -> None:
    from trtx.hardware import support
    from trtx.recipe.checks import read_recipe

    path = tmp_path / "recipe.yaml"
    path.write_text(recipe(model="model: {source: s3://key:hunter2@bucket/m}\n"))
    with pytest.raises(RecipeInvalid) as caught:
        read_recipe(path, support)
    assert "hunter2" not in caught.value.render()


def test_all_problems_come_in_the_order_of_the_file_with_their_number() -> None:
    with pytest.raises(RecipeInvalid) as caught:
        parse(recipe(extra="zzz: 1\n", name="name: A\n", serving="serving: {port: 0}\n"))
    assert [problem.line for problem in caught.value.problems] == sorted(p.line for p in caught.value.problems)
    assert caught.value.render().endswith("\n\nerror: 3 problems in recipe.yaml")


def test_a_problem_of_the_plan_points_into_the_recipe() -> None:
    loaded = parse_recipe(Path("recipe.yaml"), recipe())
    problem = loaded.problem(("engine", "limits", "max_seq_len"), "too long", why="a", fix="b")
    assert (problem.line, problem.col) == (8, 65)
    assert problem.render().startswith("recipe.yaml:8:65: error: too long\n")
    with pytest.raises(RecipeInvalid, match="1 problem in"):
        loaded.refuse(("targets", "cpu", "gpu"), "does not fit")


def test_a_long_line_is_cut_around_the_caret() -> None:
    source = "x" * 500 + "WRONG" + "y" * 500
    lines = Problem("f", Mark(1, 501, 5), "what", source=source).render().splitlines()
    assert len(lines[1]) < 120
    assert lines[1][lines[2].index("^") :].startswith("WRONG")


def test_defaults_apply_to_everything_left_out() -> None:
    made = parse(recipe(engine="", targets="targets: {cpu: {gpu: cpu}}\n"))
    assert made.engine.limits.max_batch_size == 8
    assert made.engine.kv_cache.size is None
    assert made.package.emit == ("compose",)
    assert made.serving.port == 8000
    assert made.benchmark is None
    assert made.targets["cpu"].runner == "local"
    assert made.quantization["fp32"].calibration.dataset == "demo://docs"


def test_recipes_cannot_be_changed() -> None:
    with pytest.raises(Exception, match="frozen"):
        parse(recipe()).name = "other"  # type: ignore[misc]


def test_units_become_plain_numbers() -> None:
    made = parse(recipe(engine="engine: {kv_cache: {size: 1.5 GiB}}\n"))
    assert made.engine.kv_cache.size == 3 << 29


def test_a_target_overrides_parts_of_the_engine_and_keeps_the_rest() -> None:
    made = parse(recipe(targets="targets: {a: {gpu: cpu, engine: {limits: {max_batch_size: 2}}}, b: {gpu: cpu}}\n"))
    a, b = made.engine_for("a"), made.engine_for("b")
    assert (a.limits.max_batch_size, a.limits.max_seq_len, a.kv_cache) == (2, 256, made.engine.kv_cache)
    assert b == made.engine


def test_cells_come_in_the_order_of_the_file() -> None:
    targets = "targets: {z: {gpu: cpu}, a: {gpu: cpu, quantization: [int8, fp32]}}\n"
    cells = make_cells(parse(recipe(targets=targets)))
    assert [cell.name for cell in cells] == ["z/fp32", "z/int8", "a/int8", "a/fp32"]
    assert (cells[0].target, cells[0].variant) == ("z", "fp32")


@pytest.mark.parametrize(("levels", "requests"), [("[1]", 8), ("[1, 4, 8]", 32)])
def test_requests_follow_from_the_highest_concurrency(levels: str, requests: int) -> None:
    text = f"benchmark: {{workloads: {{w: {{input_tokens: 1, output_tokens: 1, concurrency: {levels}}}}}}}\n"
    made = parse(recipe(benchmark=text))
    assert made.benchmark is not None
    assert made.benchmark.workloads["w"].num_requests == requests


def test_an_error_of_a_recipe_is_a_usage_problem() -> None:
    with pytest.raises(TrtxError) as caught:
        parse("")
    assert caught.value.exit_code == 2
