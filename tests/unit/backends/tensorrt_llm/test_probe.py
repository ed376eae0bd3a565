"""`trtx probe` reads a release from its sources: what can be known is exact, the rest is unknown, nothing is run."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.trtllm_sources import VERSION, write_sources

from trtx.backends.tensorrt_llm.parser import parse
from trtx.backends.tensorrt_llm.probe import probe_folder
from trtx.backends.tensorrt_llm.probe_image import unpack_sources
from trtx.backends.tensorrt_llm.releases import Release
from trtx.backends.tensorrt_llm.source_tree import SourceTree, parse_module
from trtx.backends.tensorrt_llm.static_values import read_value
from trtx.backends.tensorrt_llm.surface import Option, Surface, Unresolved, surface_from_json, surface_to_json
from trtx.cli.main import main
from trtx.errors import UsageProblem


@pytest.fixture(scope="module")
def surface(tmp_path_factory: pytest.TempPathFactory) -> Surface:
    return probe_folder(write_sources(tmp_path_factory.mktemp("sources")))[0]


def option(surface: Surface, tool: str, word: str) -> Option:
    found = surface.tools[tool].option(word)
    assert found is not None, word
    return found


@pytest.mark.parametrize(
    ("flag", "default"),
    [
        ("--max_input_len", 1024),  # A pydantic field of another module.
        ("--max_num_tokens", 8192),  # Computed from constants.
        ("--workers", Unresolved("os.cpu_count()")),
        ("--seed", -7),
        ("--ratio", 0.25),
        ("--names", ["a", "b", "c"]),
        ("--decoder_len", 1),  # Made by a loop over known words.
        ("--kv_cache_type", None),  # SUPPRESS
        ("--fast", False),
        ("--nccl_plugin", "auto"),
        ("--gemm_swiglu_plugin", "disable"),
        ("--gemm_plugin", Unresolved("gemm_plugin in tensorrt_llm/plugin/plugin.py")),  # The helper treats it by name.
        ("--context_fmha", "enable"),
        ("--tokens_per_block", 32),
    ],
)
def test_defaults_are_found_or_left_unknown(surface: Surface, flag: str, default: Any) -> None:
    assert option(surface, "trtllm-build", flag).default == default


@pytest.mark.parametrize(
    ("tool", "flag", "choices"),
    [
        ("trtllm-build", "--kv_cache_type", ("continuous", "paged")),
        ("trtllm-build", "--log_level", ("info", "debug")),
        ("trtllm-build", "--cluster", Unresolved("make_clusters()")),
        ("trtllm-build", "--lora_target_modules", ("attn_q", "attn_k")),
        ("trtllm-build", "--gemm_plugin", ("auto", "float16", "disable")),
        ("trtllm-build", "--gemm_swiglu_plugin", ("fp8", "disable")),
        ("trtllm-build", "--context_fmha", ("enable", "disable")),
        ("trtllm-serve serve", "--backend", ("pytorch", "tensorrt")),
        ("trtllm-serve serve", "--log_level", ("info", "debug")),
        ("llama/convert_checkpoint.py", "--weight_only_precision", ("int8", "int4")),
    ],
)
def test_choices_are_found_or_left_unknown(surface: Surface, tool: str, flag: str, choices: Any) -> None:
    assert option(surface, tool, flag).choices == choices


def test_switches_have_their_spellings(surface: Surface) -> None:
    strip = option(surface, "trtllm-build", "--no-strip")
    assert (strip.name, strip.off_flags, strip.default) == ("strip", ("--no-strip",), True)
    chunked = option(surface, "trtllm-serve serve", "--no-chunked")
    assert (chunked.name, chunked.flags, chunked.default) == ("enable_chunked", ("--chunked",), True)
    assert option(surface, "trtllm-build", "--old").deprecated


def test_fields_that_are_no_options_of_the_builder_are_left_out(surface: Surface) -> None:
    assert surface.tools["trtllm-build"].option("hidden_switch") is None
    assert surface.tools["trtllm-build"].option("dtype") is None


def test_click_commands_are_found_with_their_types(surface: Surface) -> None:
    serve = surface.tools["trtllm-serve"]
    assert (serve.subcommands, serve.default_command) == (("disaggregated", "serve"), "serve")
    assert option(surface, "trtllm-serve serve", "model").positional
    gpus = option(surface, "trtllm-serve serve", "--gpus")
    assert (gpus.type, gpus.minimum, gpus.maximum) == ("int", 1, 8)
    assert option(surface, "trtllm-serve serve", "--fraction").type == "float"
    assert option(surface, "trtllm-serve serve", "--modules").multiple
    assert option(surface, "trtllm-serve serve", "--role").stability == "prototype"
    assert option(surface, "trtllm-serve serve", "--backend").choice_aliases == {"trt": "tensorrt"}
    assert option(surface, "trtllm-serve serve", "--tp_size").name == "tensor_parallel_size"
    assert surface.tools["trtllm-bench"].subcommands == ("build", "prepare-dataset")
    assert option(surface, "trtllm-bench build", "-tp").name == "tp_size"
    assert option(surface, "trtllm-bench prepare-dataset token-norm-dist", "--num-requests").required


def test_options_files_are_read_with_bounds_literals_and_other_names(surface: Surface) -> None:
    base = {field.name: field for field in surface.schemas["BaseLlmArgs"].fields}
    assert base["model"].required
    assert base["load_format"].choices == ("auto", "dummy", "other")
    assert base["gpus"].default == Unresolved("torch.cuda.device_count()")
    assert "private" not in base
    cache = {field.name: field for field in surface.schemas["KvCacheConfig"].fields}
    assert (cache["free_gpu_memory_fraction"].minimum, cache["free_gpu_memory_fraction"].maximum) == (0, 1)
    assert cache["policy"].default == "STATIC_BATCH"
    decoding = {field.name: field for field in surface.schemas["DecodingBaseConfig"].fields}
    assert decoding["speculative_model"].aliases == ("speculative_model_dir",)
    assert surface.schemas["MedusaDecodingConfig"].discriminator == "Medusa"
    torch = {field.name: field for field in surface.schemas["TorchLlmArgs"].fields}
    assert torch["attn_backend"].status == "beta"
    assert (torch["stops"].type, torch["stops"].default) == ("List[int]", [])
    assert "Unrelated" not in surface.schemas


def test_models_algorithms_and_variables_are_read(surface: Surface) -> None:
    assert set(surface.engine_architectures) == {"LlamaForCausalLM", "MixtralForCausalLM"}
    assert set(surface.pytorch_architectures) == {"LlamaForCausalLM", "MistralForCausalLM"}
    assert list(surface.quant_algos) == ["W8A16", "FP8", "INT8", "NVFP4"]
    assert list(surface.kv_algos) == ["FP8", "INT8"]
    assert set(surface.env_vars) == {"OVERRIDE_QUANT_ALGO", "TLLM_SWITCH", "TLLM_OTHER", "TLLM_THIRD"}


def test_a_surface_survives_json(surface: Surface) -> None:
    assert surface_from_json(json.loads(json.dumps(surface_to_json(surface)))) == surface


@pytest.mark.parametrize(
    ("package", "scripts", "start"),
    [
        ("", "", "."),
        ("", "", "tensorrt_llm"),
        ("usr/local/lib/python3.12/dist-packages", "app/tensorrt_llm", "."),
        ("usr/local/lib/python3.12/dist-packages", "app/tensorrt_llm", "usr/local/lib/python3.12/dist-packages"),
        ("opt/venv/lib/python3.10/site-packages", "srv/sources", "."),
    ],
)
def test_sources_are_found_wherever_an_image_has_them(package: str, scripts: str, start: str, tmp_path: Path) -> None:
    write_sources(tmp_path, package=package, scripts=scripts)
    surface, covered, _ = probe_folder(tmp_path / start)
    assert surface.version == VERSION
    assert len(surface.tools["trtllm-build"].options) == 21
    has_scripts = "quantize.py" in surface.tools
    assert has_scripts == ("examples" in covered) == (start in (".", "tensorrt_llm"))


def test_what_cannot_be_read_is_said_and_the_rest_is_read(tmp_path: Path) -> None:
    surface, _, problems = probe_folder(write_sources(tmp_path))
    assert "broken/convert_checkpoint.py" not in surface.tools
    assert any(problem.startswith("examples/models/core/broken/convert_checkpoint.py: ") for problem in problems)


def test_a_folder_without_the_package_or_without_a_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="holds no TensorRT-LLM"):
        probe_folder(tmp_path)
    (tmp_path / "tensorrt_llm").mkdir()
    (tmp_path / "tensorrt_llm/version.py").write_text("__version__ = make_version()\n")
    with pytest.raises(UsageProblem, match=r"the version of the TensorRT-LLM in .* cannot be read"):
        probe_folder(tmp_path)
    (tmp_path / "tensorrt_llm/version.py").write_text("__version__ = '../../x'\n")
    with pytest.raises(UsageProblem, match="cannot be read"):
        probe_folder(tmp_path)


def test_the_verb_writes_a_probe_that_replaces_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sources(tmp_path / "tree")
    assert main(["probe", str(tmp_path / "tree"), "--write", str(tmp_path / "probe.json"), "-o", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((tmp_path / "probe.json").read_text())
    assert (document["schema"], document["covered"]) == ("trtx.probe/v1", ["tensorrt_llm", "examples"])
    release = Release.load(VERSION, probed=tmp_path / "probe.json")
    assert (release.confidence, release.image, release.engine_backend) == ("exact", None, True)
    assert parse(release, "trtllm-build", ["--decoder_len", "3"]).values["decoder_len"] == 3
    assert parse(release, "trtllm-serve", ["m", "--backend", "trt"]).uncertain == ()
    with pytest.raises(UsageProblem, match="refuses its command line"):
        parse(release, "trtllm-build", ["--max_batch_size", "3"])


def test_a_probe_is_of_one_release(tmp_path: Path) -> None:
    write_sources(tmp_path / "tree")
    assert main(["probe", str(tmp_path / "tree"), "--write", str(tmp_path / "probe.json")]) == 0
    with pytest.raises(UsageProblem) as problem:
        Release.load("1.2.1", probed=tmp_path / "probe.json")
    assert problem.value.what.endswith("describes TensorRT-LLM 9.8.7, not 1.2.1")


def test_scripts_that_an_installation_does_not_have_stay_as_shipped(tmp_path: Path) -> None:
    write_sources(tmp_path, package="site-packages", scripts="elsewhere")
    version = tmp_path / "site-packages/tensorrt_llm/version.py"
    version.write_text('__version__ = "1.2.1"\n')
    assert main(["probe", str(tmp_path / "site-packages"), "--write", str(tmp_path / "probe.json")]) == 0
    release = Release.load("1.2.1", probed=tmp_path / "probe.json")
    assert (release.confidence, release.tensorrt) == ("exact", "10.14.1.48")
    assert len(release.tool("trtllm-build").options) == 21
    assert len(release.tool("quantize.py").options) == 30
    assert "trtllm-refit" not in release.tools


def test_people_see_how_the_shipped_table_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sources(tmp_path)
    (tmp_path / "tensorrt_llm/version.py").write_text('__version__ = "1.2.1"\n')
    assert main(["probe", str(tmp_path)]) == 0
    shown = " ".join(capsys.readouterr().err.split())
    assert "trtllm-build: not as shipped" in shown
    assert "+--decoder_len" in shown


EXPRESSIONS: list[tuple[str, Any]] = [
    ("1 << 10", 1024),
    ("2 ** 12", 4096),
    ("10 ** 10 ** 10", Unresolved("10 ** 10 ** 10")),
    ("'a' * 10 ** 9", Unresolved("'a' * 10 ** 9")),
    ("1 / 0", Unresolved("1 / 0")),
    ("list(range(3))", [0, 1, 2]),
    ("range(10 ** 9)", Unresolved("range(10 ** 9)")),
    ("[w.upper() for w in ['a', 'b']]", ["A", "B"]),
    ("[w for w in WORDS if w]", Unresolved("[w for w in WORDS if w]")),
    ("LOOP", Unresolved("LOOP")),
    ("f'{WORDS[0]}_x'", "one_x"),
    ("[*WORDS, 'three']", ["one", "two", "three"]),
    ("list(Kind)", ["a", "b"]),
    ("[kind.name for kind in Kind]", ["A", "B"]),
    ("Kind.B.value", "b"),
    ("list(Kind.__members__)", ["A", "B"]),
    ("Kind.C", Unresolved("Kind.C")),
    ("list(Auto)", Unresolved("list(Auto)")),
    ("Settings.inherited", 5),
    ("Settings.missing", Unresolved("Settings.missing")),
    ("__import__('os').getcwd()", Unresolved("__import__('os').getcwd()")),
    ("'1' if WORDS else '2'", Unresolved("'1' if WORDS else '2'")),
    ("{'a': open('x')}['a']", Unresolved("{'a': open('x')}['a']")),
    ("-(-3)", 3),
    ("not True", False),
]
CONSTANTS = """
from enum import Enum, auto
WORDS = ["one", "two"]
LOOP = LOOP
class Kind(Enum):
    A = "a"
    B = "b"
class Auto(Enum):
    A = auto()
class Base:
    inherited: int = 5
class Settings(Base):
    pass
"""


@pytest.mark.parametrize(("expression", "value"), EXPRESSIONS)
def test_expressions_are_computed_or_kept_and_never_run(expression: str, value: Any, tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(f"{CONSTANTS}\nVALUE = {expression}\n")
    tree = SourceTree((tmp_path,))
    module = tree.module("m.py")
    assert module is not None
    assert read_value(tree, module, module.assigned["VALUE"]) == value


def test_imports_are_followed_and_circles_end(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("from b import x, y\n")
    (tmp_path / "b.py").write_text("from a import x\ny = 2\n")
    tree = SourceTree((tmp_path,))
    module = tree.module("a.py")
    assert module is not None
    value = parse_module("m.py", "V = [y]\nW = x\n").assigned
    assert read_value(tree, module, value["V"]) == [2]
    assert read_value(tree, module, value["W"]) == Unresolved("x")


def make_tar(add: Callable[[tarfile.TarFile], None]) -> io.BytesIO:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        add(archive)
    stream.seek(0)
    return stream


def add_file(archive: tarfile.TarFile, name: str, content: bytes = b"x = 1\n", **fields: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(content) if info.isreg() else None)


@pytest.mark.parametrize("name", ["../evil.py", "/etc/evil.py", "a/../../evil.py"])
def test_archives_never_leave_their_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "inside"
    with pytest.raises(UsageProblem, match="the image's archive is refused"):
        unpack_sources(make_tar(lambda archive: add_file(archive, name)), folder)
    assert not list(tmp_path.rglob("evil.py"))


def test_only_python_files_are_taken_from_an_archive(tmp_path: Path) -> None:
    def fill(archive: tarfile.TarFile) -> None:
        add_file(archive, "tensorrt_llm/a.py")
        add_file(archive, "tensorrt_llm/libs/big.so")
        add_file(archive, "tensorrt_llm/link.py", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add_file(archive, "tensorrt_llm/hard.py", b"", type=tarfile.LNKTYPE, linkname="tensorrt_llm/a.py")
        add_file(archive, "tensorrt_llm/huge.py", bytes(5 << 20))

    assert unpack_sources(make_tar(fill), tmp_path) == 1
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.py"]


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    whole = make_tar(lambda archive: add_file(archive, "a.py", b"x = 1\n" * 1000)).getvalue()
    with pytest.raises(UsageProblem, match="the image's archive is damaged"):
        unpack_sources(io.BytesIO(whole[:2000]), tmp_path)

    def clash(archive: tarfile.TarFile) -> None:
        add_file(archive, "a.py")
        add_file(archive, "a.py/b.py")

    with pytest.raises(UsageProblem, match="the image's archive is damaged"):
        unpack_sources(make_tar(clash), tmp_path)
