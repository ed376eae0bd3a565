"""Files are merged, changed from the command line, and their variables replaced; every value knows where it is from."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.composition import Folder
from support.malformed import recipe

from trtx.recipe.load import load_recipe
from trtx.recipe.override import override
from trtx.recipe.overrides import Overrides
from trtx.recipe.problems import RecipeInvalid
from trtx.recipe.setting import read_path, settle
from trtx.recipe.tree import dotted, read_tree


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_mappings_merge_lists_replace_and_null_deletes(folder: Folder) -> None:
    folder.write("base.yaml", recipe(package="package: {emit: [compose], base: 'python:3.11'}\n"))
    made = folder.load(
        "extends: base.yaml\nquantization: {int8: null}\nengine: {limits: {max_batch_size: 4}}\npackage: {base: ~}\n"
    ).recipe
    assert list(made.quantization) == ["fp32"]
    limits = made.engine.limits
    assert (limits.max_batch_size, limits.max_num_tokens, limits.max_seq_len) == (4, 512, 256)
    assert made.package.base.startswith("docker.io/library/python:3.12")
    over = folder.write("lists.yaml", "extends: base.yaml\ntargets: {cpu: {quantization: [int8]}}\n")
    folder.write("base.yaml", recipe(targets="targets: {cpu: {gpu: cpu, quantization: [fp32, int8]}}\n"))
    assert load_recipe(over).recipe.variants_of("cpu") == ("int8",)


def test_of_several_bases_the_later_wins_and_the_file_wins_over_all(folder: Folder) -> None:
    folder.write("a.yaml", "serving: {port: 1}\nname: a\ndescription: a\n")
    folder.write("b.yaml", "serving: {port: 2}\nname: b\n")
    made = folder.load("extends: [base.yaml, a.yaml, b.yaml]\nname: top\n")
    assert (made.recipe.serving.port, made.recipe.name, made.recipe.description) == (2, "top", "a")
    assert [path.name for path in made.files] == ["recipe.yaml", "base.yaml", "a.yaml", "b.yaml"]
    assert made.points[0].files == made.files


def test_a_base_is_relative_to_the_file_that_names_it(folder: Folder) -> None:
    folder.write("teams/chat.yaml", "extends: ../base.yaml\nname: chat\n")
    assert folder.load("extends: teams/chat.yaml\n").recipe.name == "chat"


def test_a_file_met_twice_is_read_once_and_its_problems_are_said_once(folder: Folder) -> None:
    folder.write("base.yaml", recipe(serving="serving: {port: 0}\n"))
    folder.write("a.yaml", "extends: base.yaml\n")
    folder.write("b.yaml", "extends: base.yaml\n")
    assert folder.refused("extends: [a.yaml, b.yaml]\n").count("must be at least 1") == 1


def test_what_a_base_deletes_another_file_may_say_again(folder: Folder) -> None:
    folder.write("bare.yaml", "extends: base.yaml\nquantization: {int8: null}\n")
    loaded = folder.load("extends: bare.yaml\nquantization: {int8: {algorithm: int8_wo}}\n")
    assert list(loaded.recipe.quantization) == ["fp32", "int8"]


def test_a_value_keeps_its_type_alone_and_becomes_a_text_beside_others(folder: Folder) -> None:
    text = (
        "extends: base.yaml\nvars: {limits: {seq: 128, all: {max_batch_size: 2}}, fast: true, half: 0.5, name: x}\n"
        "engine: {limits: '${vars.limits.all}', kv_cache: {memory_fraction: '${vars.half}'}}\n"
        "description: ${vars.name}-${vars.limits.seq} ${vars.fast} ${vars.half} $${vars.name} $x {}\n"
    )
    folder.write("base.yaml", recipe(engine=""))
    made = folder.load(text).recipe
    assert made.engine.limits.max_batch_size == 2
    assert made.engine.kv_cache.memory_fraction == 0.5
    assert made.description == "x-128 true 0.5 ${vars.name} $x {}"


def test_variables_name_other_variables_and_files_share_them(folder: Folder) -> None:
    folder.write("base.yaml", recipe(extra="vars: {port: 1, all: {port: '${vars.port}'}}\n"))
    assert folder.load("extends: base.yaml\nvars: {port: 8001}\nserving: ${vars.all}\n").recipe.serving.port == 8001


@pytest.mark.parametrize(
    ("field", "env", "expected"),
    [
        ("name: ${env.X}", "0123", "0123"),
        ("name: ${env.X}", "no", "no"),
        ("description: ${env.X}", "{a: b}", "{a: b}"),
        ("serving: {port: '${env.X}'}", "8001", 8001),
        ("serving: '${env.X}'", "{port: 8001}", 8001),
        ("package: {emit: '${env.X}'}", "[compose]", ("compose",)),
        ("engine: {kv_cache: {size: '${env.X}'}}", "2GiB", 2 << 30),
        ("serving: {port: '${env.NONE:-8001}'}", "", 8001),
        ("serving: {port: '${env.X:-8001}'}", "", 8001),
        ("name: ${env.NONE:-0123}", "", "0123"),
        ("serving: {port: '${env.NONE:-${env.X}}'}", "8001", 8001),
        ("serving: '${env.NONE:-{port: 8001}}'", "", 8001),
        ("name: a-${env.X}", "0123", "a-0123"),
    ],
)
def test_the_environment_is_read_as_the_setting_wants_it(
    folder: Folder, field: str, env: str, expected: object
) -> None:
    made = folder.load(f"extends: base.yaml\n{field}\n", env={"X": env}).recipe
    section = field.partition(":")[0]
    value = {
        "name": made.name,
        "description": made.description,
        "serving": made.serving.port,
        "package": made.package.emit,
        "engine": made.engine.kv_cache.size,
    }[section]
    assert value == expected


def test_a_text_without_references_is_left_alone_even_when_it_is_escaped(folder: Folder) -> None:
    assert (
        folder.load(recipe(extra='description: "\\x24{env.X} $${x}"\n'), env={"X": "y"}).recipe.description == "y ${x}"
    )


def test_options_change_values_as_the_setting_wants_them(folder: Folder) -> None:
    loaded = folder.load(
        recipe(),
        set=(
            "name=0123",
            "description=a: b",
            "engine.kv_cache.size=2GiB",
            "targets.cpu.quantization[0]=int8",
            "targets.cpu.quantization.1=fp32",
            'targets."more.cpu".gpu=cpu',
            "package.emit=[compose]",
            "serving.port=${vars.port}",
            "vars.port=1",
            "vars.port=2",
        ),
        unset=("engine.limits.max_num_tokens",),
    )
    made = loaded.recipe
    assert (made.name, made.description, made.serving.port) == ("0123", "a: b", 2)
    assert made.targets["cpu"].quantization == ("int8", "fp32")
    assert made.targets["more.cpu"].gpu == "cpu"
    assert made.engine.limits.max_num_tokens == 2048
    assert folder.origin(loaded, "engine", "limits", "max_num_tokens") == (
        "default, --unset engine.limits.max_num_tokens takes away what the recipe says"
    )


def test_a_section_is_replaced_by_taking_it_away_first(folder: Folder) -> None:
    made = folder.load(recipe(), set=("targets.a.gpu=cpu",), unset=("targets",)).recipe
    assert list(made.targets) == ["a"]


def test_what_follows_a_removed_item_moves_up_with_its_place(folder: Folder) -> None:
    text = recipe(targets="targets: {cpu: {gpu: cpu, quantization: [fp32, int8]}}\n")
    loaded = folder.load(text, unset=("targets.cpu.quantization[0]",))
    assert loaded.recipe.targets["cpu"].quantization == ("int8",)
    assert folder.origin(loaded, "targets", "cpu", "quantization", 0) == "recipe.yaml:9:48"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (("name",), "base.yaml:2:7"),
        (("serving", "port"), "recipe.yaml:2:14, through ${vars.port} in recipe.yaml:3:17"),
        (("description",), "recipe.yaml:4:14, with ${vars.port}"),
        (("engine", "limits", "max_batch_size"), "--set engine.limits.max_batch_size=2"),
        (("engine", "limits", "max_seq_len"), "base.yaml:8:65"),
        (("engine", "dtype"), "recipe.yaml:5:17, from ${env.TYPE} (environment variable TYPE)"),
        (("engine", "backend"), "default"),
        (
            ("engine", "kv_cache", "tokens_per_block"),
            "recipe.yaml:5:61, the default in ${env.BLOCK:-32} (environment variable BLOCK is not set)",
        ),
        (("quantization", "int8"), "default, null in recipe.yaml:6:22 takes away what a base says"),
    ],
)
def test_every_value_knows_where_it_comes_from(folder: Folder, path: tuple[str, ...], expected: str) -> None:
    text = (
        "extends: base.yaml\nvars: {port: 8001}\nserving: {port: '${vars.port}'}\ndescription: on ${vars.port}\n"
        "engine: {dtype: '${env.TYPE}', kv_cache: {tokens_per_block: '${env.BLOCK:-32}'}}\n"
        "quantization: {int8: null}\n"
    )
    loaded = folder.load(text, set=("engine.limits.max_batch_size=2",), env={"TYPE": "float32"})
    assert folder.origin(loaded, *path) == expected


def test_kinds_of_origins_are_named_for_tools(folder: Folder) -> None:
    text = "extends: base.yaml\nvars: {port: 1}\nserving: {port: '${vars.port}'}\ndescription: ${env.X}\n"
    loaded = folder.load(text, set=("engine.dtype=float32",), env={"X": "y"})
    paths = (("name",), ("serving", "port"), ("description",), ("engine", "dtype"), ("engine", "backend"))
    assert [loaded.origin(path).kind for path in paths] == ["file", "variable", "environment", "set", "default"]


@pytest.mark.parametrize("path", [("a", "b"), ("targets", "a.b", "gpu"), ("x", "y", 0, "z"), ("a", "b", 1)])
def test_paths_are_read_as_they_are_written(path: tuple[str | int, ...]) -> None:
    data = {"a": {"b": [1, 2]}, "targets": {"a.b": {}}, "x": {"y": [{}]}}
    if path == ("a", "b"):
        data = {"a": {"b": 1}}
    steps, end = read_path(dotted(path))
    assert (settle(steps, data), end) == (path, len(dotted(path)))


def test_a_problem_with_an_inherited_value_shows_the_line_of_its_file(folder: Folder) -> None:
    folder.write("base.yaml", recipe(serving="serving: {port: 0}\n"))
    shown = folder.refused("extends: base.yaml\n")
    assert shown.startswith(f"{folder.path}/base.yaml:11:17: error: serving.port must be at least 1")
    assert "   11 | serving: {port: 0}\n      |                 ^" in shown


def test_a_secret_of_the_environment_reaches_no_message_and_no_origin(folder: Folder) -> None:
    text = recipe(targets="targets: {a: {gpu: '${env.X}', runner: 'r-${env.X}'}}\n")
    with pytest.raises(RecipeInvalid) as caught:
        folder.load(text, env={"X": "hunter2"})
    assert "hunter2" not in caught.value.render() + str(caught.value.to_json())
    loaded = folder.load(recipe(extra="description: ${env.X}\n"), env={"X": "hunter2"})
    assert "hunter2" not in str(loaded.origin(("description",)))


def test_unused_variables_of_a_base_are_for_other_recipes(folder: Folder) -> None:
    folder.write("base.yaml", recipe(extra="vars: {a: 1}\n"))
    assert folder.load("extends: base.yaml\n").warnings == ()


def test_a_base_that_is_not_utf8_is_explained_where_it_is_not(folder: Folder) -> None:
    (folder.path / "latin.yaml").write_bytes(b"name: a\ndescription: \xe9\n")
    assert f"{folder.path}/latin.yaml:2:14: error: the file is not UTF-8" in folder.refused("extends: latin.yaml\n")


def test_a_recipe_extends_at_most_a_hundred_files(folder: Folder) -> None:
    names = [folder.write(f"b{number}.yaml", "name: b\n").name for number in range(100)]
    assert "a recipe extends at most 100 files" in folder.refused(f"extends: [{', '.join(names)}]\n")


def test_texts_do_not_grow_without_end(folder: Folder) -> None:
    texts = "".join(f"  a{n}: ${{vars.a{n - 1}}}${{vars.a{n - 1}}}\n" for n in range(1, 12))
    shown = folder.refused(recipe(extra=f"description: ${{vars.a11}}\nvars:\n  a0: {'x' * 1000}\n{texts}"))
    assert "the text expands to more than 1048576 characters" in shown


def test_a_default_stands_in_for_a_part_of_a_text(folder: Folder) -> None:
    made = folder.load(recipe(extra="vars: {x: y}\ndescription: a-${env.NONE:-b-${vars.x}}\n")).recipe
    assert made.description == "a-b-y"


def test_what_only_an_unused_variable_wants_of_the_environment_is_not_missed(folder: Folder) -> None:
    loaded = folder.load(recipe(extra="vars: {a: 'x${env.NONE}', b: '${env.NONE}'}\n"))
    assert [warning.what for warning in loaded.warnings] == [
        "the variable 'a' is used nowhere",
        "the variable 'b' is used nowhere",
    ]


def test_a_setting_inside_a_list_is_taken_away() -> None:
    tree = read_tree("recipe.yaml", "gates: {slo: [{max: 1s, min: 2}]}\n")
    changed = override(tree, Overrides(unset=("gates.slo[0].max",)))
    assert (changed.data, changed.problems) == ({"gates": {"slo": [{"min": 2}]}}, [])
    assert tree.data == {"gates": {"slo": [{"max": "1s", "min": 2}]}}


def test_a_change_of_one_alias_leaves_the_others(folder: Folder) -> None:
    text = recipe(quantization="quantization:\n  a: &a {algorithm: none, calibration: {samples: 8}}\n  b: *a\n")
    made = folder.load(text, set=("quantization.b.calibration.samples=9",)).recipe
    assert [variant.calibration.samples for variant in made.quantization.values()] == [8, 9]
