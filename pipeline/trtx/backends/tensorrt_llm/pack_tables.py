"""Makes the shipped tables in `data/` from raw ones: `python -m trtx.backends.tensorrt_llm.pack_tables FOLDER`.

FOLDER holds raw tables in the formats `trtllm-surface/1`, `trtllm-surface-derived/1`, `trtllm-release-matrix/1` and
`trtllm-support-matrix/1`; `data/README.md` says what they were read from. Rows that releases share are stored once:
`options.json` and `schemas.json` are pools, and each release's file points into them.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trtx.backends.tensorrt_llm.pack_rows import (
    Json,
    merge_options,
    normalise_option,
    normalise_schema,
    normalise_tools,
)
from trtx.backends.tensorrt_llm.surface import MAPS
from trtx.files import write_text

DATA = Path(__file__).with_name("data")
BEFORE, AFTER = "0.17.0.dev2024121700", "1.3.0rc3"
BETWEEN = ("0.17.0", "0.18.2", "0.19.0", "0.20.0", "0.21.0", "1.0.0", "1.1.0", "1.2.1")
# From here on the PyTorch flow is stable, and its options are checked.
PYTORCH_FROM = "1.0.0"
# Old layout of the examples until 0.18, the new one at the latest with 1.3.0rc3; where it changed is not established.
OLD_LAYOUT = ("0.17.0", "0.18.2")
BOTH_OLD_FIRST = ("0.19.0",)
INTERVAL = f"same in {BEFORE} and {AFTER}"
# First release, tool, flag, where it is documented.
DOCUMENTED = (
    (
        "1.0.0",
        "trtllm-serve serve",
        "--extra_llm_api_options",
        "the PyTorch flow of 1.0 and later is served with it; its other name --config came after autumn 2025",
    ),
)
# Where the fields of the PyTorch flow's options file start, and where each is followed to.
ROOTS = ("TorchLlmArgs", "TrtLlmArgs", "QuantConfig", "LoraConfig", "BuildConfig", "PluginConfig", "SamplingParams")


class Pool:
    """Rows without duplicates, by number."""

    def __init__(self) -> None:
        self.rows: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, row: Any) -> int:
        text = json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        if text not in self._numbers:
            self._numbers[text] = len(self.rows)
            self.rows.append(text)
        return self._numbers[text]

    def text(self) -> str:
        return "[\n" + ",\n".join(self.rows) + "\n]\n"


def order_releases(folder: Path) -> list[str]:
    """Every release with a raw surface, oldest first."""
    order: list[str] = json.loads((folder / "flag_history.json").read_text())["order"]
    return order


def read_raw(folder: Path, version: str) -> tuple[Json, bool]:
    """A raw surface, and whether it is exact."""
    exact = folder / f"{version}.json"
    if exact.exists():
        return json.loads(exact.read_text()), True
    return json.loads((folder / f"{version}.derived.json").read_text()), False


def files_between(version: str, before: Sequence[str], after: Sequence[str]) -> list[str]:
    """Where a derived release may have a script."""
    if version in OLD_LAYOUT:
        return list(before or after)
    both = (*before, *after) if version in BOTH_OLD_FIRST else (*after, *before)
    return list(dict.fromkeys(both))


def derive_tool(before: Json, after: Json) -> Json:
    """A tool of a release between two exact ones: what both have alike is there, what one has is not known."""
    options, rest = [], list(before["options"])
    for new in after["options"]:
        old = next((each for each in rest if each["name"] == new["name"] or {*each["flags"]} & {*new["flags"]}), None)
        if old is None:
            options.append({**new, "confidence": "unknown", "evidence": f"only in {AFTER}"})
        else:
            rest.remove(old)
            options.append(merge_options(old, new, BEFORE, AFTER))
    options += [{**old, "confidence": "unknown", "evidence": f"only in {BEFORE}"} for old in rest]
    return {**after, "options": options, "confidence": "interval"}


def derive_tools(version: str, before: Json, after: Json, own: Json) -> Json:
    """Tools of a derived release: those with a table of their own, and those that releases before and after have."""
    tools = {key: {**tool, "confidence": "interval"} for key, tool in own.items()}
    named = {key.partition(" ")[0] for key in own}
    for key in after:
        if key.partition(" ")[0] not in named and key in before:
            tools[key] = derive_tool(before[key], after[key])
    for key, tool in tools.items():
        old, new = (side.get(key, {}).get("files", []) for side in (before, after))
        tool["files"] = files_between(version, old, new)
        if "subcommands" in tool:
            tool["subcommands"] = [word for word in tool["subcommands"] if f"{key} {word}" in tools]
    return dict(sorted(tools.items()))


def apply_documented(version: str, tools: Json, order: Sequence[str]) -> None:
    """Options whose table says unknown, and that a document of the release names."""
    for first, key, flag, evidence in DOCUMENTED:
        if order.index(version) < order.index(first):
            continue
        for option in tools.get(key, {}).get("options", ()):
            if flag in option["flags"] and option["confidence"] == "unknown":
                option["confidence"], option["evidence"] = "dated", evidence
                option["certain_flags"] = [flag]


def derive_map(before: Iterable[str], after: Iterable[str]) -> Json:
    """Names that a release between two exact ones has."""
    old, new = set(before), set(after)
    return {name: "interval" if name in old and name in new else "unknown" for name in sorted(old | new)}


def referenced_schemas(schemas: Json) -> set[str]:
    """Names of the schemas that the options files are made of."""
    wanted, rest = set(), [name for name in ROOTS if name in schemas]
    while rest:
        name = rest.pop()
        if name in wanted:
            continue
        wanted.add(name)
        schema = schemas[name]
        words = {word for row in schema.get("fields", ()) for word in re.findall(r"\w+", row["type"])}
        words.update(schema.get("bases", ()))
        if name == "DecodingBaseConfig":
            words.update(key for key, value in schemas.items() if "discriminator" in value)
        rest += sorted(word for word in words if word in schemas)
    return wanted


def exact_surface(raw: Json) -> Json:
    """What an exact release's own sources say."""
    quantization = raw["enums"]["quantization"]
    algos = [name for name, _ in quantization["QuantAlgo"]]
    kv = quantization["KV_CACHE_QUANT_ALGO_LIST"]
    schemas = {name: normalise_schema(schema) for name, schema in raw["schemas"].items()}
    models = raw["models"]
    return {
        "tools": normalise_tools(raw["cli"]),
        "schemas": {
            name: schemas[name] for name in sorted(referenced_schemas(schemas) | ({"LlmArgs"} & schemas.keys()))
        },
        "engine_architectures": dict.fromkeys(sorted(models["trt_MODEL_MAP"]["map"]), "exact"),
        "pytorch_architectures": dict.fromkeys(sorted(models["torch_register_auto_model"]), "exact"),
        "quant_algos": dict.fromkeys(algos, "exact"),
        "kv_algos": dict.fromkeys(
            (name for name in algos if f"QuantAlgo.{name}," in kv or f"QuantAlgo.{name}]" in kv), "exact"
        ),
        "env_vars": dict.fromkeys(sorted(raw["env_vars_in_python"]), "exact"),
        "triton_models": {
            "/".join(Path(path).parts[2:-1]): model for path, model in raw["triton_config_pbtxt"].items()
        },
    }


def derived_surface(version: str, raw: Json, before: Json, after: Json, order: Sequence[str]) -> Json:
    """A release between two exact ones, from its raw table and from theirs."""
    pytorch = order.index(version) >= order.index(PYTORCH_FROM)
    tools = derive_tools(version, before["tools"], after["tools"], normalise_tools(raw["cli"]))
    apply_documented(version, tools, order)
    maps = {
        name: derive_map(before[name], after[name])
        for name in ("engine_architectures", "quant_algos", "kv_algos", "env_vars")
    }
    return {
        "tools": tools,
        "schemas": derive_schemas(before["schemas"], after["schemas"]) if pytorch else {},
        **maps,
        "pytorch_architectures": dict.fromkeys(after["pytorch_architectures"], "unknown") if pytorch else {},
        "triton_models": after["triton_models"],
    }


def derive_schemas(before: Json, after: Json) -> Json:
    """The schemas of the later release; fields that the earlier one's have alike are taken to be there between."""
    old_args = {row["name"]: row for row in before["LlmArgs"]["fields"]}
    result = {}
    for name, schema in after.items():
        old = (
            old_args
            if name in ("TorchLlmArgs", "TrtLlmArgs", "BaseLlmArgs")
            else {row["name"]: row for row in before.get(name, {}).get("fields", ())}
        )
        sure = {
            row["name"]: "interval"
            for row in schema.get("fields", ())
            if row["name"] in old and old[row["name"]].get("default") == row.get("default")
        }
        result[name] = {"schema": schema, "confidence": "interval" if name in before else "unknown", "sure": sure}
    return result


def pack_surface(version: str, surface: Json, exact: bool, options: Pool, schemas: Pool) -> Json:
    """A release's file: numbers of the rows in the pools instead of rows."""
    grades: list[list[str]] = []
    tools = {}
    for key, tool in surface["tools"].items():
        packed = {name: value for name, value in tool.items() if name != "options"}
        packed["options"] = [pack_option(option, options, grades) for option in tool["options"]]
        tools[key] = packed
    rows: Json = {}
    for name, schema in surface["schemas"].items():
        if exact:
            rows[name] = [schemas.number(schema)]
        else:
            rows[name] = [schemas.number(schema["schema"]), schema["confidence"], schema["sure"]]
    triton = {name: schemas.number(model) for name, model in surface["triton_models"].items()}
    packed = {**surface, "tools": tools, "schemas": rows, "triton_models": triton}
    packed.update({name: group_names(surface[name]) for name in MAPS})
    return {"version": version, "confidence": "exact" if exact else "derived", "grades": grades, **packed}


def group_names(names: Mapping[str, str]) -> Json:
    """Name → confidence as confidence → names."""
    groups: Json = {}
    for name, confidence in names.items():
        groups.setdefault(confidence, []).append(name)
    return groups


def pack_option(option: Mapping[str, Any], options: Pool, grades: list[list[str]]) -> Any:
    """The number of a row, with that of its confidence and evidence where it is not exact."""
    row = {name: value for name, value in option.items() if name not in ("confidence", "evidence")}
    if "confidence" not in option:
        return options.number(row)
    grade = [option["confidence"], option["evidence"]]
    if grade not in grades:
        grades.append(grade)
    return [options.number(row), grades.index(grade)]


def dump(value: Json) -> str:
    """JSON with a line for each tool, so that differences can be read."""
    lines = []
    for key, part in value.items():
        if key == "tools":
            rows = ",\n".join(f"{json.dumps(name)}:{compact(tool)}" for name, tool in part.items())
            lines.append(f'"tools":{{\n{rows}\n}}')
        else:
            lines.append(f"{json.dumps(key)}:{compact(part)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def pack_modelopt(raw: Json) -> Json:
    """The options of ModelOpt's hf_ptq.py by ModelOpt release."""
    return {
        tag: {
            "file": part["file"],
            "options": [normalise_option(option) for option in part["options"]],
            "formats": sorted(part.get("QUANT_CFG_CHOICES") or ()),
            "kv_formats": sorted(part.get("KV_QUANT_CFG_CHOICES") or ()),
        }
        for tag, part in raw["tags"].items()
        if part.get("options")
    }


def main(folder: Path) -> None:
    """Write every table."""
    order = order_releases(folder)
    raws = {version: read_raw(folder, version) for version in order}
    surfaces = {version: exact_surface(raw) for version, (raw, exact) in raws.items() if exact}
    for version in BETWEEN:
        surfaces[version] = derived_surface(version, raws[version][0], surfaces[BEFORE], surfaces[AFTER], order)
    options, schemas = Pool(), Pool()
    for version in order:
        packed = pack_surface(version, surfaces[version], raws[version][1], options, schemas)
        write_text(DATA / f"surface-{version}.json", dump(packed))
    write_text(DATA / "options.json", options.text())
    write_text(DATA / "schemas.json", schemas.text())
    matrix = json.loads((folder / "release_matrix.json").read_text())
    write_text(
        DATA / "releases.json", dump({"order": order, "releases": matrix["releases"], "triton": matrix["triton"]})
    )
    support = json.loads((folder / "support_matrix.json").read_text())
    write_text(
        DATA / "support.json", dump({key: support[key] for key in ("version", "pytorch_backend", "tensorrt_backend")})
    )
    modelopt = pack_modelopt(json.loads((folder / "modelopt_hf_ptq.json").read_text()))
    write_text(DATA / "hf_ptq.json", dump({"tools": modelopt}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
