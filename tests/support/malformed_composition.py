"""Malformed recipes of several files, with variables, a matrix, or changes from the command line."""

from __future__ import annotations

from support.malformed import Malformed, Message, case, recipe

BASE = recipe()
WORKLOAD = "benchmark: {workloads: {w: {input_tokens: 1, output_tokens: 1, concurrency: [1]}}}\n"


def over(name: str, text: str, *messages: Message, base: str = BASE, top: str = "extends: base.yaml\n") -> Malformed:
    """A case whose recipe extends base.yaml."""
    return case(name, top + text, *messages, files={"base.yaml": base})


def option(name: str, *texts: str, says: Message) -> Malformed:
    """A case of which one --set is wrong."""
    return case(name, BASE, says, set=texts)


def removal(name: str, text: str, says: Message) -> Malformed:
    """A case of which one --unset is wrong."""
    return case(name, BASE, says, unset=(text,))


def variables(given: str, limits: str = "{}", extra: str = "") -> str:
    """A recipe with variables, and the limits of its engine."""
    return recipe(extra=f"vars: {given}\n{extra}", engine=f"engine:\n  limits: {limits}\n")


def used(given: str) -> str:
    """A recipe whose description is the variable `a`."""
    return variables(given, extra="description: ${vars.a}\n")


def matrix(axes: str, rest: str = "", extra: str = "", **sections: str) -> str:
    """A recipe with a matrix of axes, one a line."""
    return recipe(extra=f"{extra}matrix:\n  axes:\n{axes}{rest}", **sections)


def axis(path: str, values: str, extra: str = "", **sections: str) -> str:
    """A recipe with one axis."""
    return matrix(f"    b: {{path: {path}, values: {values}}}\n", extra=extra, **sections)


def from_env(name: str, marked: str, value: str, *parts: str) -> Malformed:
    """A case about ${env.X}, which holds `value`."""
    return case(name, marked, parts, env={"X": value})


BATCH = "    batch: {path: engine.limits.max_batch_size, values: [4, 8]}\n"
MANY = [
    f"    {name}: {{path: {path}, values: {list(range(1, 31))}}}\n"
    for name, path in (("a", "serving.port"), ("b", "benchmark.repeats"), ("c", "benchmark.seed"))
]
# Each variable is ten times the one before it.
EXPLODING = "".join(f"  a{n}: [{', '.join([chr(34) + f'${{vars.a{n - 1}}}' + chr(34)] * 10)}]\n" for n in range(1, 6))
DEEP = {f"b{n}.yaml": f"extends: {'«' * (n == 14)}b{n + 1}.yaml\n" for n in range(15)} | {"b15.yaml": BASE}

EXTENDS_CASES = (
    case("a base that is not there", "extends: «bsae.yaml\n", ("no file", "'base.yaml'"), files={"base.yaml": BASE}),
    case("a base in a folder that is not there", "extends: «teams/base.yaml\n", ("no file", "no folder", "relative")),
    case(
        "a base unlike any other", "extends: «zzz.yml\n", ("known: base.yaml, recipe.yaml",), files={"base.yaml": BASE}
    ),
    case("an ambiguous base", "extends: «no\n", ("ambiguous",)),
    case("a folder as base", "extends: «..\n", ("cannot be extended", "is a folder")),
    case("an absolute base", "extends: «/base.yaml\n", ("cannot be '/base.yaml'", "differ", "../base.yaml")),
    case("a base at home", "extends: «~/base.yaml\n", ("home folders differ",)),
    case("a base on the web", "extends: «https://x.org/base.yaml\n", ("cannot be 'https://x.org", "bases are files")),
    case("a base by variable", "extends: «${env.BASE}\n", ("files are read before variables",)),
    case("no base", recipe(extra="extends: «[]\n"), ("names no file",)),
    case("a null as base", recipe(extra="extends: «null\n"), ("names no file",)),
    case("a number as base", recipe(extra="extends: «5\n"), ("name of a file",)),
    case("one wrong base", "extends: [base.yaml, «7]\n", ("name of a file",), files={"base.yaml": BASE}),
    case(
        "a circle of bases",
        "extends: a.yaml\n",
        ("cannot be extended here", "recipe.yaml → a.yaml → b.yaml → recipe.yaml"),
        files={"a.yaml": "extends: b.yaml\n", "b.yaml": "extends: «recipe.yaml\n"},
    ),
    case("a recipe that extends itself", "extends: «recipe.yaml\n", ("recipe.yaml → recipe.yaml",)),
    case("too many levels", "extends: b0.yaml\n", ("at most 16 levels",), files=DEEP),
    over("a base that is no YAML", "", ("this is not YAML", "close the bracket"), base="name: [a\n«"),
    over("a base that is a list", "", ("a recipe is a mapping",), base="«- a\n"),
    over("a base of another version", "", ("schema 'trtx/v0'", "trtx migrate"), base="schema: «trtx/v0\nmodel: 5\n"),
    over("a wrong value of a base", "", ("at least 1, not 0",), base=recipe(serving="serving: {port: «0}\n")),
    over("a wrong key of a base", "", ("key 'prot'", "'port'"), base=recipe(serving="serving: {«prot: 1}\n")),
    over(
        "what a base has and this version lacks",
        "",
        ("dtype: float16 is not available",),
        base=recipe(engine="engine: {dtype: «float16}\n"),
    ),
    over("a wrong value over a base", "serving: {port: «0}\n", ("at least 1",), base=recipe(serving="serving: {}\n")),
    over(
        "values of two files that disagree",
        "engine: {limits: {max_batch_size: 64}}\n",
        ("max_num_tokens 32 is less than max_batch_size 64",),
        base=recipe(engine="engine: {limits: {max_num_tokens: «32, max_seq_len: 256}}\n"),
    ),
    over("deleting what no base has", "quantization: {«int9: null}\n", ("no 'quantization.int9'", "'int8'")),
    over("deleting in what no base has", "serving: {«port: null}\n", ("no 'serving.port'", "no base says")),
    over(
        "deleting in a list",
        WORKLOAD.replace("[1]", "[«{«a: null}]"),
        ("concurrency[0] must be a whole number",),
        ("no 'benchmark.workloads.w.concurrency[0].a'", "lists replace"),
    ),
    over("an item that is null", "package: {emit: [«null]}\n", ("'package.emit[0]' has no value",)),
    over("an empty value over a base", "«engine:\n", ("'engine' has no value", "null takes away")),
    over("deleting what must be there", "model: null\n", ("'model' is missing",), top="«extends: base.yaml\n"),
    over("a key given twice in a base", "", ("twice", "line 2"), base=recipe(name="name: a\n«name: b\n")),
    over(
        "problems of all files at once",
        "serving: {port: «0}\n",
        ("'quantization'",),
        ("at least 1",),
        base=recipe(extra="«quantisation: {}\n"),
    ),
)

VARIABLE_CASES = (
    case("an unknown variable", variables("{b: 8}", '{max_batch_size: "«${vars.ba}"}'), ("no variable vars.ba", "'b'")),
    case("a variable of none", recipe(extra="description: a «${vars.x}\n"), ("no variable vars.x", "vars: {x: …}")),
    case("a key of a variable", variables("{a: {b: 8}}", '{max_seq_len: "«${vars.a.c}"}'), ("vars.a.c", "known: b")),
    case("a key of a number", variables("{a: 8}", '{max_seq_len: "«${vars.a.c}"}'), ("vars.a is not a mapping",)),
    case("a variable of the wrong type", variables('{a: «"8"}', '{max_seq_len: "${vars.a}"}'), ("write 8", "through")),
    case("a number for a text by variable", used("{a: «12345}"), ('"12345"', "through ${vars.a} in")),
    case("a variable that is ambiguous", used("{a: «no}"), ("ambiguous",)),
    case("an octal variable", used("{a: «0123}"), ("reads 0123 as 83",)),
    case("a sexagesimal variable", used("{a: «1:30}"), ("as 90",)),
    case("an unknown key in a variable", recipe(extra="vars: {s: {«prot: 1}}\nserving: ${vars.s}\n"), ("'port'",)),
    case(
        "a variable that this version lacks",
        recipe(extra="vars: {a: «float16}\n", engine="engine: {dtype: '${vars.a}'}\n"),
        ("float16 is not available", "${vars.a} in"),
    ),
    case("variables in a circle", used("{a: «'${vars.b}', b: 'x${vars.a}'}"), ("vars.a → vars.b → vars.a",)),
    case("a variable in itself", used("{a: «{b: «'${vars.a}'}}"), ("not a mapping",), ("circle", "vars.a.b")),
    case("a list beside text", variables("{a: [1]}", extra="description: x «${vars.a}\n"), ("is a list", "alone")),
    case(
        "variables without end",
        recipe(extra=f"description: «${{vars.a5}}\nvars:\n  a0: [1, 2]\n{EXPLODING}"),
        ("more than 20000 values",),
    ),
    case("a reference that is not closed", recipe(extra="description: a «${vars.x\n"), ("not closed", "$${")),
    case("a reference to nothing", recipe(extra="description: «${x}\n"), ("${vars.x} or ${env.x}", "$${x}")),
    case("a reference to no variable", recipe(extra="description: «${vars.}\n"), ("write ${vars.NAME}",)),
    case("an escaped reference", recipe(extra='description: «"\\x24{vars.x}"\n'), ("no variable vars.x",)),
    case("variables without a value", recipe(extra="«vars:\ndescription: ${vars.x}\n"), ("no value",)),
    case("a reference with spaces", recipe(extra="description: «${ vars.x }\n"), ("without spaces",)),
    case("a mistyped kind", recipe(extra="description: «${var.x}\n"), ("did you mean ${vars.x}?",)),
    case("a default of a variable", recipe(extra="description: «${vars.x:-2}\n"), ("write ${vars.x}",)),
    case("a wrong form of a default", recipe(extra="description: «${env.X-2}\n"), ("${env.X:-default}",)),
    case("a reference in braces", variables("{x: 8}", "{max_seq_len: «${vars.x}}"), ("without quotes", '"${vars.x}"')),
    case("a reference in brackets", recipe(package="package: {emit: [«${env.X}]}\n"), ("without quotes",)),
    case("a variable's bad name", variables("{«Batch: 8}", extra="description: x${vars.Batch}\n"), ("write 'batch'",)),
    case("variables that are a list", recipe(extra="vars: «[a]\n"), ("vars must be a mapping",)),
    case("a variable named on", recipe(extra="vars: {«on: 1}\n"), ("'on' is not a text", 'write "on":')),
    case("a variable given twice", used("{a: x, «a: y}"), ("twice",)),
    case("a wrong reference in an unused variable", variables("{a: '«${vars.b}'}"), ("no variable vars.b",)),
    case("an unused variable", recipe(extra="vars: {«a: 1}\n"), ("used nowhere", "${vars.a}"), warns=True),
    case(
        "a token by variable",
        recipe(model="model: {source: «'https://${vars.token}@h/m'}\n", extra="vars: {token: hunter2}\n"),
        ("holds credentials",),
    ),
    case(
        "a signed address",
        recipe(model="model: {source: «'https://h/m?X-Amz-Signature=hunter2'}\n"),
        ("holds credentials",),
    ),
    case(
        "a password by variable",
        recipe(model="model: {source: «'s3://${vars.login}@b/m'}\n", extra="vars: {login: key:hunter2}\n"),
        ("holds credentials",),
    ),
)

ENVIRONMENT_CASES = (
    case(
        "a variable that is not set", recipe(extra="description: by «${env.WHO}\n"), ("WHO is not set", "WHO:-default")
    ),
    from_env(
        "a number that is none",
        recipe(serving="serving: {port: «'${env.X}'}\n"),
        "hunter2",
        "must be a whole number",
        "the value of ${env.X}",
        "environment variable X",
    ),
    from_env("a number out of bounds", recipe(serving="serving: {port: «'${env.X}'}\n"), "99999", "at most 65535"),
    from_env(
        "a choice that is none",
        recipe(engine="engine: {dtype: «'${env.X}'}\n"),
        "bfloat17",
        "cannot be the value of ${env.X}",
        "known:",
    ),
    from_env(
        "off in the environment",
        recipe(engine="engine: {kv_cache: {reuse: '«${env.X}'}}\n"),
        "Off",
        "X holds no plain value",
        "yes, no, on",
    ),
    from_env("an octal of the environment", recipe(serving="serving: {port: '«${env.X}'}\n"), "010000", "octal"),
    from_env("an empty variable", recipe(serving="serving: {port: '«${env.X}'}\n"), "", "no plain value", "is empty"),
    from_env("a bracket of the environment", recipe(package="package: {emit: '«${env.X}'}\n"), "[compose", "no plain"),
    from_env(
        "a size that is none of the environment",
        recipe(engine="engine: {kv_cache: {size: «'${env.X}'}}\n"),
        "much",
        "cannot be the value of ${env.X}",
        "2GiB",
    ),
    from_env("an unknown device", recipe(targets="targets: {a: {gpu: «'${env.X}'}}\n"), "h10000", "device '${env.X}'"),
    from_env("half a device", recipe(targets="targets: {a: {gpu: «'h${env.X}'}}\n"), "10000", "device 'h${env.X}'"),
    from_env("a key of the environment", recipe(serving="serving: «${env.X}\n"), "{hunter2: 1}", "key '${env.X}'"),
    from_env(
        "a password of the environment",
        recipe(model="model: {source: «'s3://${env.X}@b/m'}\n"),
        "key:hunter2",
        "holds credentials",
    ),
    from_env(
        "a value of the environment that this version lacks",
        recipe(engine="engine: {dtype: «'${env.X}'}\n"),
        "float16",
        "engine.dtype: ${env.X} is not available",
    ),
    case(
        "a default of the wrong type", recipe(serving="serving: {port: «'${env.PORT:-x}'}\n"), ("whole number", "PORT")
    ),
    case(
        "a default that is ambiguous", recipe(engine="engine: {kv_cache: {reuse: '${env.R:-«no}'}}\n"), ("ambiguous",)
    ),
)

MATRIX_CASES = (
    case("a matrix of nothing", recipe(extra="matrix: {axes: «{}}\n"), ("must not be empty",)),
    case("a matrix that is a list", recipe(extra="matrix: «[a]\n"), ("matrix must be a mapping",)),
    case("an unknown key of a matrix", matrix(BATCH, "  «exlude: []\n"), ("'exlude'", "'exclude'")),
    case("an axis without a path", matrix("    «batch: {values: [4]}\n"), ("'path' is missing",)),
    case(
        "an unknown key of an axis",
        matrix("    b: {path: serving.port, «vals: [1]}\n").replace(" b:", " «b:"),
        ("'values' is missing",),
        ("'vals'", "'values'"),
    ),
    case("an axis without values", axis("engine.dtype", "«[]"), ("not empty", "[8, 32]")),
    case("values that are a text", axis("engine.dtype", "«x"), ("must be a list",)),
    case("values by reference", axis("engine.dtype", "«'${vars.v}'"), ("cannot be a reference",)),
    case(
        "values without a value",
        axis("engine.dtype", "«~")
        .replace("{path: engine.dtype, values", "{path: engine.dtype, «values")
        .replace("«~", "~"),
        ("no value",),
    ),
    case("all variables as an axis", axis("«vars", "[1]"), ("name of a variable is missing",)),
    case("a value that makes no name", axis("description", "[x, «'???']"), ("its text makes none",)),
    case(
        "a wrong reference in a value",
        axis("description", "{a: x, b: «'${x}'}").replace("«'$", "'«$"),
        ("${vars.x} or",),
    ),
    case("an ambiguous exclusion", matrix(BATCH, "  exclude: [{batch: «no}]\n"), ("ambiguous",)),
    case("an unknown path", axis("engine.limits.«max_batch", "[4]"), ("'max_batch'", "'max_batch_size'")),
    case("an unknown section", axis("«engin.dtype", "[4]"), ("'engin'", "'engine'")),
    case("an unknown target", axis("targets.«cpv.gpu", "[cpu]"), ("no 'cpv' in targets", "'cpu'")),
    case("a path that is none", axis("engine.«.dtype", "[4]"), ("name is missing",)),
    case("a path with a value", axis("'engine.dtype«=1'", "[4]"), ("a path has no value",)),
    case(
        "a path through a reference",
        axis("engine.limits.«max_seq_len", "[4]", extra="vars: {l: {}}\n", engine="engine: {limits: '${vars.l}'}\n"),
        ("has no settings inside", "${vars.l}"),
    ),
    case("a schema that varies", axis("«schema", "[trtx/v1]"), ("'schema' cannot vary",)),
    case("an axis named target", matrix("    «target: {path: engine.dtype, values: [auto]}\n"), ("cannot be named",)),
    case("a wrong name of a value", axis("engine.dtype", "{«A B: auto}"), ("'A B'", "'a-b'")),
    case("two values of one name", axis("description", "[a/b, «a b]"), ("the name 'a-b'", "a/b")),
    case("a list without a name", axis("package.emit", "[«[compose]]"), ("has no name",)),
    case("a reference without a name", axis("engine.dtype", "[«'${env.X}']"), ("has no name", "named before")),
    case("an ambiguous value of an axis", axis("engine.kv_cache.reuse", "[false, «no]"), ("ambiguous",)),
    case("an axis key named on", axis("engine.kv_cache.reuse", "{a: false, «on: false}"), ("'on'", 'write "on":')),
    case("a wrong value of an axis", axis("engine.limits.max_batch_size", "[4, «0]"), ("at least 1", "axis b")),
    case(
        "wrong values of two axes",
        matrix(
            "    a: {path: serving.port, values: [«0]}\n    b: {path: engine.limits.max_seq_len, values: [256, «0]}\n"
        ),
        ("at least 1",),
        ("at least 2",),
    ),
    case(
        "a wrong value by two ways",
        axis("vars.n", "[8, «0]", extra="vars: {n: 8}\nserving: {port: '${vars.n}'}\n"),
        ("at least 1", "axis b, through ${vars.n}"),
    ),
    case("what one point lacks", axis("engine.dtype", "[auto, «float16]"), ("float16 is not available",)),
    case("a point that does not fit", axis("engine.limits.max_num_tokens", "[512, «4]"), ("4 is less than",)),
    case(
        "two axes of one path",
        matrix(BATCH + "    other: {path: «engine.limits.max_batch_size, values: [1]}\n"),
        ("'batch' and 'other' both vary",),
    ),
    case("an axis in another", matrix(BATCH + "    o: {path: «engine.limits, values: {a: {}}}\n"), ("both vary",)),
    case(
        "a variable that varies and is not used",
        axis("«vars.bacth", "[4]", extra="vars: {batch: 8}\ndescription: x ${vars.batch}\n"),
        ("changes nothing", "'batch'"),
    ),
    case(
        "an axis of a variant that no target builds",
        axis(
            "quantization.int8.kv_cache", "[auto]", targets="targets: {cpu: {gpu: cpu, quantization: [fp32]}}\n"
        ).replace("    b:", "    «b:"),
        ("changes no cell",),
    ),
    case("an unknown axis in exclude", matrix(BATCH, "  exclude: [{«bacth: 4}]\n"), ("no axis 'bacth'", "'batch'")),
    case("an unknown value in exclude", matrix(BATCH, "  exclude: [{batch: «5}]\n"), ("no such value", "4, 8")),
    case("an unknown target in exclude", matrix(BATCH, "  exclude: [{target: «cpv}]\n"), ("no target matches 'cpv'",)),
    case("an unknown variant in exclude", matrix(BATCH, "  exclude: [{variant: «fp8}]\n"), ("no variant matches",)),
    case("a target that is a list", matrix(BATCH, "  exclude: [{target: «[cpu]}]\n"), ("must be a text",)),
    case("an empty exclusion", matrix(BATCH, "  exclude: [«{}]\n"), ("must not be empty",)),
    case("everything excluded", matrix(BATCH, "  «exclude: [{batch: 4}, {batch: 8}]\n"), ("every cell is excluded",)),
    case(
        "an exclusion of nothing",
        matrix(
            "    kv: {path: quantization.int8.kv_cache, values: [auto]}\n" + BATCH,
            "  exclude: [«{kv: auto, variant: fp32}]\n",
        ),
        ("excludes nothing",),
        warns=True,
    ),
    case(
        "too many cells",
        matrix("".join(MANY), benchmark=WORKLOAD).replace("matrix:", "«matrix:"),
        ("more than 10000 cells",),
    ),
)

OPTION_CASES = (
    option("a set value of the wrong type", "serving.port=1", "engine.dtype=«x", says=("cannot be", "bfloat16")),
    option("a set key that is unknown", "engine.«limit.max_batch_size=4", says=("unknown key 'limit'", "'limits'")),
    option("a set value that is ambiguous", "engine.kv_cache.reuse=«no", says=("ambiguous",)),
    option("a set number that is octal", "serving.port=«010", says=("010 as 8",)),
    option("a set value without end", "package.emit=«[compose", says=("close the bracket",)),
    option("a set reference in brackets", "package.emit=[«${env.X}]", says=("without quotes",)),
    option("a set reference to nothing", "serving.port=«${vars.x}", says=("no variable vars.x",)),
    option("a set path without a value", "serving.por«t", says=("no value", "--set serving.port=VALUE")),
    option("a set path with nothing after it", "serving.port«=", says=("no value", "--unset serving.port")),
    option("a set value that is null", "serving.port«=null", says=("no value", "--unset serving.port")),
    option("nothing to set", "«=5", says=("path of a setting is missing",)),
    option("a set path with spaces", "serving« port=5", says=("names with dots",)),
    option("a set path with two dots", "serving.«.port=5", says=("name is missing",)),
    option("a setting inside a text", "name.«first=5", says=("name has no settings inside",)),
    option("a setting inside a list", "targets.cpu.quantization.«a=5", says=("is a list", "quantization[0]")),
    option("an index of a mapping", "engine«[0]=5", says=("engine is not a list",)),
    option("an index beyond the end", "targets.cpu.quantization«[3]=fp32", says=("has 0 items", "[0] adds one")),
    option("extends from the command line", "«extends=base.yaml", says=("extends cannot be changed",)),
    option("a schema from the command line", "«schema=trtx/v0", says=("schema cannot be changed", "language")),
    option("a set variable that nothing uses", "vars.«batch=5", says=("used nowhere",)),
    option("a set value that this version lacks", "engine.dtype=«float16", says=("float16 is not available",)),
    option("a set value that does not fit", "engine.limits.max_num_tokens=«4", says=("less than max_batch_size 8",)),
    option("a set axis without a path", "matrix.axes.«a.values=[1]", says=("'path' is missing",)),
    case(
        "options and a file at once",
        recipe(serving="serving: {port: «0}\n"),
        ("unknown key 'x'",),
        ("whole number",),
        ("no 'nmae' here", "'name'"),
        ("at least 1",),
        set=("«x=1", "engine.limits.max_seq_len=«y"),
        unset=("«nmae",),
    ),
    removal("taking away what is not there", "engine.«limit", ("no 'engine.limit' here", "'limits'")),
    removal(
        "taking away an item that is not there", "targets.cpu.«quantization[0]", ("no 'targets.cpu.quantization'",)
    ),
    removal("taking away with a value", "engine«=5", ("takes a path without a value", "--unset engine")),
    removal("taking away extends", "«extends", ("extends cannot be changed",)),
)

COMPOSED = (*EXTENDS_CASES, *VARIABLE_CASES, *ENVIRONMENT_CASES, *MATRIX_CASES, *OPTION_CASES)
