"""Malformed recipes. `«` marks where a problem is expected, and is removed; one message stands for each mark, in order.

A message is a list of parts that the rendered problem must contain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SECTIONS = {
    "schema": "schema: trtx/v1\n",
    "name": "name: tiny\n",
    "model": "model: {source: demo://tiny-llama}\n",
    "quantization": "quantization:\n  fp32: {algorithm: none}\n  int8: {algorithm: int8_wo}\n",
    "engine": "engine:\n  limits: {max_batch_size: 8, max_num_tokens: 512, max_seq_len: 256}\n",
    "targets": "targets:\n  cpu: {gpu: cpu}\n",
    "benchmark": "",
    "gates": "",
    "package": "",
    "serving": "",
    "runners": "",
    "extra": "",
}
Message = tuple[str, ...]


@dataclass(frozen=True)
class Malformed:
    """A recipe with marks, and what must be said at each; `warns` when nothing of it is an error.

    `files` are other files of its folder, `set` and `unset` options of the command line, both with marks, too;
    `env` is the environment. Messages come by text: --set, --unset, then the files by name.
    """

    name: str
    marked: str
    messages: tuple[Message, ...]
    warns: bool = False
    files: Mapping[str, str] = field(default_factory=dict)
    set: tuple[str, ...] = ()
    unset: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return unmarked(self.marked)

    @property
    def marks(self) -> list[tuple[str, int, int]]:
        """Text, line and column of each mark, from 1, without the marks."""
        texts = {
            "--set": "\n".join(self.set),
            "--unset": "\n".join(self.unset),
            "recipe.yaml": self.marked,
            **self.files,
        }
        found: list[tuple[str, int, int]] = []
        for file, text in sorted(texts.items()):
            for number, line in enumerate(text.split("\n"), 1):
                parts = line.split("«")
                found += [(file, number, sum(map(len, parts[: index + 1])) + 1) for index in range(len(parts) - 1)]
        return found


def unmarked(text: str) -> str:
    return text.replace("«", "")


def recipe(**sections: str) -> str:
    """A valid recipe with some sections replaced; `extra` comes last."""
    return "".join({**SECTIONS, **sections}.values())


def case(name: str, marked: str, *messages: Message, warns: bool = False, **around: Any) -> Malformed:
    return Malformed(name, marked, messages, warns, **around)


def variant(settings: str) -> str:
    return recipe(
        quantization=f"quantization:\n  fp32: {{algorithm: none}}\n  int8: {{algorithm: int8_wo{settings}}}\n"
    )


def engine(settings: str) -> str:
    return recipe(engine=f"engine:\n{settings}\n")


def target(settings: str) -> str:
    return recipe(targets=f"targets:\n  cpu: {{gpu: cpu{settings}}}\n")


def workload(settings: str) -> str:
    return recipe(benchmark=f"benchmark:\n  workloads:\n    chat: {{{settings}}}\n")


LONG = "a" * 300

YAML_CASES = (
    case("a tab for indentation", recipe(extra="serving:\n«\tport: 1\n"), ("tab", "only spaces", "use spaces")),
    case("a colon in plain text", recipe(extra="description: one«: two\n"), ("mapping values", "quote")),
    case("an open bracket", recipe(extra="runners: [a, b\n«"), ("','", "line", "close the bracket")),
    case("an open quote", recipe(extra="description: 'one\n«"), ("end of stream", "close the quote")),
    case("a plain text with @", recipe(extra="description: «@one\n"), ("cannot start", "quote")),
    case("bad alignment", recipe(extra="serving:\n  port: 1\n «api: openai\n"), ("key", "align")),
    case("an unknown alias", recipe(extra="serving: «*none\n"), ("undefined alias", "&name")),
    case("an anchor given twice", recipe(extra="serving: &a {}\nrunners: «&a {}\n"), ("occurrence", "own name")),
    case("two documents", recipe(extra="«---\nschema: trtx/v1\n"), ("another document", "one document")),
    case("a bad escape", recipe(extra='description: "«\\q"\n'), ("escape", "single quotes")),
    case("a control character", recipe(extra="description: a«\x01b\n"), ("U+0001", "not allowed")),
    case("an empty file", "«", ("empty", "trtx init")),
    case("only a comment", "«# nothing here\n", ("empty", "trtx init")),
    case("a list", "«- schema: trtx/v1\n", ("mapping", "list", "schema: trtx/v1")),
    case("a text", "«hello\n", ("mapping", "text")),
    case(
        "a Python object", recipe(extra="description: «!!python/object:os.system x\n"), ("python/object", "plain data")
    ),
    case("a tag of one's own", recipe(extra="serving: «!secret {}\n"), ("tag !secret", "remove it")),
    case("an anchor in itself", recipe(extra="runners: &a {«b: *a}\n"), ("contains itself",)),
    case("deep nesting", recipe(extra=f"description: {'[' * 31}«{'[' * 2000}\n"), ("32 levels",)),
    case(
        "a key given twice", recipe(extra="name: a\n").replace("name: a\n", "«name: a\n"), ("twice", "line 2", "remove")
    ),
    case("an empty value", recipe(extra="«package:\n"), ("'package' has no value", "{}")),
    case("a tilde", recipe(model="model: {source: demo://tiny-llama, «revision: ~}\n"), ("revision", "no value")),
    case("the key on", recipe(extra="«on: push\n"), ("'on'", "as true")),
    case("a number as key", recipe(extra="«8: push\n"), ("'8'", "int", '"8":')),
    case("a list as key", recipe(extra="? «[a, b]\n: 1\n"), ("key must be a text",)),
    case("yes", engine("  kv_cache: {reuse: «yes}"), ("ambiguous", "YAML 1.1", "write true")),
    case("no for Norway", recipe(extra="description: «no\n"), ("ambiguous", "false", '"no"')),
    case("an octal number", engine("  limits: {max_batch_size: «010}"), ("010", "reads 010 as 8", "decimal")),
    case("a sexagesimal number", engine("  limits: {max_batch_size: «1:30}"), ("1:30", "as 90")),
    case("infinity", engine("  kv_cache: {memory_fraction: «.inf}"), (".inf", "decimal")),
    case("a number without end", engine(f"  limits: {{max_batch_size: «{'9' * 5000}}}"), ("decimal",)),
    case("merging a text", recipe(extra="serving: {<<: «text}\n"), ("<<",)),
    case(
        "the values of merges",
        recipe(targets="targets:\n  cpu: &a {gpu: cpu}\n  two: {<<: *a, «gqu: cpu}\n"),
        ("unknown key 'gqu'", "'gpu'"),
    ),
)

SCHEMA_CASES = (
    case("no schema", "«" + recipe(schema=""), ("'schema' is missing", "schema: trtx/v1")),
    case("a later schema", recipe(schema="schema: «trtx/v2\n", model="model: 5\n"), ("trtx/v2", "reads trtx/v1")),
    case("an unknown key at the top", recipe(extra="«quantisation: {}\n"), ("'quantisation'", "'quantization'")),
    case("an unknown key inside", engine("  limits: {«max_batchsize: 8}"), ("engine.limits", "'max_batch_size'")),
    case("a key of another level", engine("  «max_batch_size: 8"), ("belongs to engine.limits.max_batch_size",)),
    case("a key of another section", recipe(extra="«tensor: 2\n"), ("belongs to targets.*.parallelism.tensor",)),
    case(
        "a key of another level of a target",
        target(", engine: {«max_seq_len: 8}"),
        ("belongs to targets.cpu.engine.limits.max_seq_len",),
    ),
    case("a missing section", "«" + recipe(model=""), ("'model' is missing", "The model to compile")),
    case("a missing key", recipe(quantization="quantization:\n  «fp8: {kv_cache: fp8}\n"), ("'algorithm'", "fp8")),
    case("no variant", recipe(quantization="quantization: «{}\n"), ("quantization must not be empty",)),
    case("an unknown algorithm", recipe(quantization="quantization:\n  a: {algorithm: «int8_ow}\n"), ("'int8_wo'",)),
    case(
        "an algorithm far from all",
        recipe(quantization="quantization:\n  a: {algorithm: «gguf}\n"),
        ("known:", "int4_awq"),
    ),
    case(
        "a variant's bad name", recipe(quantization="quantization:\n  «FP 8: {algorithm: none}\n"), ("FP 8", "'fp-8'")
    ),
    case("a bad recipe name", recipe(name="name: «My Recipe\n"), ("My Recipe", "'my-recipe'")),
    case("a name that is too long", recipe(name=f"name: «{LONG}\n"), ("63 characters",)),
    case("a model without a scheme", recipe(model="model: {source: «meta-llama/L}\n"), ("hf://meta-llama/L",)),
    case("a model path without a scheme", recipe(model="model: {source: «/models/l}\n"), ("file:///models/l",)),
    case("a scheme in capitals", recipe(model="model: {source: «HF://a/b}\n"), ("lower case",)),
    case("a text for a number", variant(', calibration: {samples: «"12"}'), ("whole number", "write 12")),
    case("a fraction for a number", variant(", calibration: {samples: «1.5}"), ("whole number", "1.5")),
    case("a number for a text", recipe(model="model: {source: demo://tiny-llama, revision: «5}\n"), ("a text", '"5"')),
    case("a text for a flag", engine('  scheduler: {chunked_prefill: «"true"}'), ("true or false", "without quotes")),
    case("a number for a flag", engine("  kv_cache: {reuse: «1}"), ("true or false", "1")),
    case("a flag for a number", engine("  limits: {max_batch_size: «true}"), ("whole number", "true")),
    case("a text for a list", target(", quantization: «fp32"), ("a list", "[fp32]")),
    case("a mapping for a list", target(", quantization: «{a: 1}"), ("a list", "a mapping")),
    case("a list for a mapping", engine("  limits: «[8]"), ("engine.limits must be a mapping", "key: value")),
    case("a text for a runner", recipe(runners="runners: {a: «local}\n"), ("runners.a must be a mapping",)),
    case("an empty list", target(", quantization: «[]"), ("must not be empty",)),
    case(
        "an empty text",
        recipe(runners='runners: {a: {type: slurm, account: «""}}\n'),
        ("runners.a.account must not be empty",),
    ),
    case("zero", engine("  limits: {max_batch_size: «0}"), ("at least 1, not 0", "Sequences in one step")),
    case("more than all the memory", engine("  kv_cache: {memory_fraction: «1.5}"), ("at most 0.95",)),
    case("a fraction of zero", engine("  kv_cache: {memory_fraction: «0.0}"), ("more than 0",)),
    case("a port out of range", recipe(serving="serving: {port: «70000}\n"), ("at most 65535",)),
    case("an odd block size", engine("  kv_cache: {tokens_per_block: «12}"), ("known: 8, 16, 32, 64, 128",)),
    case("a size without a unit", engine("  kv_cache: {size: «2}"), ("needs a unit", "2GiB")),
    case("a size with an unknown unit", engine("  kv_cache: {size: «2gb}"), ("'gb'", "'2GB'")),
    case("a size that is none", engine("  kv_cache: {size: «much}"), ("'much' is not a size", "2GiB")),
    case("a size of nothing", engine("  kv_cache: {size: «0B}"), ("at least 1",)),
    case(
        "a runner with a mistyped type", recipe(runners="runners: {«a: {typ: local}}\n"), ("'type' is missing", "'typ'")
    ),
    case("a runner without a type", recipe(runners="runners: {«a: {}}\n"), ("'type' is missing", "type: local")),
    case("an unknown runner type", recipe(runners="runners: {a: {type: «slrum}}\n"), ("'slurm'",)),
    case("an image with a tag", recipe(package="package: {image: «a/b:1}\n"), ("container image", "without a tag")),
    case("an image in capitals", recipe(package="package: {image: «A B}\n"), ("container image",)),
    case(
        "a workload without tokens",
        workload("concurrency: [1]").replace("chat", "«chat"),
        ("'input_tokens'",),
        ("'output_tokens'",),
    ),
    case(
        "a bad item of a list", workload("input_tokens: 8, output_tokens: 8, concurrency: [1, «x]"), ("concurrency[1]",)
    ),
    case(
        "several at once",
        recipe(name="name: «A\n", engine="engine:\n  «limit: {}\n", extra="«x: 1\n"),
        ("'a'",),
        ("'limits'",),
        ("unknown key 'x'",),
    ),
    case("a size in an override", target(", engine: {kv_cache: {size: «2}}"), ("targets.cpu.engine.kv_cache.size",)),
)

UNAVAILABLE_CASES = (
    case("float16", engine("  dtype: «float16"), ("float16", "bfloat16")),
    case("pipeline parallelism", target(", parallelism: {pipeline: «2}"), ("pipeline: 2", "not available")),
    case("gates", recipe(gates="«gates: {accuracy: {baseline: fp32, max_rise: 2%}}\n"), ("gates", "not available")),
    case("Kubernetes", recipe(package="package: {emit: [compose, «kubernetes]}\n"), ("emit[1]: kubernetes", "compose")),
)

CROSS_CASES = (
    case(
        "a revision of a folder",
        recipe(model="model: {source: file:///m, revision: «main}\n"),
        ("no revisions", "remove it"),
    ),
    case(
        "pickle of a demo",
        recipe(model="model: {source: demo://tiny-llama, allow_pickle: «true}\n"),
        ("means nothing",),
    ),
    case(
        "a password in a URL",
        recipe(model="model: {source: «s3://key:secret@bucket/m}\n"),
        ("credentials", "environment"),
    ),
    case(
        "no calibration text",
        recipe(model="model: {source: hf://a/b}\n", quantization="quantization:\n  «fp8: {algorithm: int8_sq}\n"),
        ("no calibration text", "activations", "calibration: {dataset:"),
    ),
    case(
        "no calibration text for an fp8 cache",
        recipe(
            model="model: {source: hf://a/b}\n", quantization="quantization:\n  «a: {algorithm: none, kv_cache: fp8}\n"
        ),
        ("no calibration text", "fp8 KV cache"),
    ),
    case(
        "an unknown variant",
        target(", quantization: [fp32, «itn8]")
        .replace("  int8: {algorithm: int8_wo}\n", "  int8: {algorithm: int8_wo}\n  int4: {algorithm: int4_wo}\n")
        .replace("«itn8]", "int8, int4, «itn8]"),
        ("'itn8'", "'int8'"),
    ),
    case("a variant listed twice", target(", quantization: [fp32, int8, «fp32]"), ("listed twice",)),
    case("an unknown runner", target(", runner: «cluster"), ("no runner 'cluster'", "local")),
    case("an unknown GPU", recipe(targets="targets:\n  a: {gpu: «h10}\n"), ("'h10'", "'h100'")),
    case("a GPU", recipe(targets="targets:\n  a: {gpu: «l40s}\n"), ("l40s-48gb (sm_89)", "kernels are for sm_90")),
    case(
        "a format without a GPU kernel",
        recipe(quantization="quantization:\n  a: {algorithm: «int8_sq}\n", targets="targets:\n  a: {gpu: h100}\n"),
        ("a/a: an engine of int8_sq cannot be built for h100-sxm-80gb", "use one of none, fp8"),
    ),
    case(
        "float32 on a GPU",
        recipe(targets="targets:\n  a: {gpu: h100, engine: {dtype: «float32}}\n"),
        ("an engine of float32 cannot be built for h100-sxm-80gb", "bfloat16"),
    ),
    case(
        "a format the GPU lacks",
        recipe(quantization="quantization:\n  a: {algorithm: «fp8}\n", targets="targets:\n  a: {gpu: «a100}\n"),
        ("a/a: fp8 does not run on sm_80", "sm_89"),
        ("kernels are for sm_90",),
    ),
    case(
        "fewer tokens than sequences",
        engine("  limits: {max_batch_size: 8, max_num_tokens: «4}"),
        ("less than max_batch_size 8",),
    ),
    case("more sequences than default tokens", engine("  limits: {max_batch_size: «4096}"), ("max_num_tokens 2048",)),
    case(
        "an override that contradicts",
        target(", engine: {limits: {max_num_tokens: «4}}"),
        ("less than max_batch_size 8",),
    ),
    case(
        "a block longer than a sequence",
        engine("  limits: {max_seq_len: «64}\n  kv_cache: {tokens_per_block: «128}"),
        ("less than the 128 tokens of the text that checks",),
        ("more than max_seq_len 64",),
    ),
    case(
        "two sizes of the cache", engine("  kv_cache: {size: 1GiB, «memory_fraction: 0.5}"), ("no effect beside size",)
    ),
    case(
        "a share in an override of a size",
        engine("  kv_cache: {size: 1GiB}").replace(
            "{gpu: cpu}", "{gpu: cpu, engine: {kv_cache: {«memory_fraction: 0.5}}}"
        ),
        ("no effect beside size",),
    ),
    case(
        "a workload that is too long",
        workload("input_tokens: «250, output_tokens: 8, concurrency: [1]"),
        ("max_seq_len 256", "to 258"),
    ),
    case(
        "a prompt that is too long",
        workload("input_tokens: «100, output_tokens: 8, concurrency: [1]").replace(
            "  limits: {max_batch_size: 8, max_num_tokens: 512,",
            "  scheduler: {chunked_prefill: false}\n  limits: {max_batch_size: 8, max_num_tokens: 64,",
        ),
        ("100 tokens", "max_num_tokens 64"),
    ),
    case(
        "a level listed twice",
        workload("input_tokens: 8, output_tokens: 8, concurrency: [1, 2, «1]"),
        ("level 1 is listed twice",),
    ),
    case(
        "too few requests",
        workload("input_tokens: 8, output_tokens: 8, concurrency: [4], requests: «2"),
        ("cannot keep 4", "at least 4"),
    ),
    case(
        "a base image that moves", recipe(package="package: {base: «python:latest}\n"), ("not pinned", "'latest' moves")
    ),
    case("a base image without a tag", recipe(package="package: {base: «localhost:5000/python}\n"), ("neither a tag",)),
)

WARNING_CASES = (
    case(
        "an unused variant",
        target(", quantization: [fp32]").replace("  int8:", "  «int8:"),
        ("used by no target",),
        warns=True,
    ),
    case("an unused runner", recipe(runners="runners: {«a: {type: local}}\n"), ("used by no target",), warns=True),
    case(
        "exclude without weights",
        recipe(quantization="quantization:\n  a: {algorithm: none, «exclude: [x]}\n"),
        ("no effect",),
        warns=True,
    ),
    case(
        "a simulated format",
        recipe(quantization="quantization:\n  a: {algorithm: «fp8}\n"),
        ("cpu/a: fp8 is simulated",),
        warns=True,
    ),
    case(
        "more requests than sequences",
        workload("input_tokens: 8, output_tokens: 8, concurrency: [8, «16]"),
        ("16 requests", "waits"),
        warns=True,
    ),
)

CASES = (*YAML_CASES, *SCHEMA_CASES, *UNAVAILABLE_CASES, *CROSS_CASES, *WARNING_CASES)
