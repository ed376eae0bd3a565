"""`trtx/v0`, the recipe language before its first release, into `trtx/v1`.

| trtx/v0 | trtx/v1 |
|---|---|
| `quantizations`, a list whose items have an `id` | `quantization`, a mapping by name |
| `max_batch_size`, `max_num_tokens` and `max_seq_len` right in an `engine` | the same below `engine.limits` |
| `targets.*.device` | `targets.*.gpu` |
| `targets.*.quantizations` | `targets.*.quantization` |
| `${` means itself | `$${` means `${`, which begins a reference |
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from trtx.recipe import edits
from trtx.recipe.edits import Edit, Entry, Layout, entries, find_entry, mappings
from trtx.recipe.migrate import Unfit

LIMITS = ("max_batch_size", "max_num_tokens", "max_seq_len")
ENGINES = (("engine",), ("targets", "*", "engine"))
RENAMED = (
    ((), "quantizations", "quantization"),
    (("targets", "*"), "quantizations", "quantization"),
    (("targets", "*"), "device", "gpu"),
)


def convert(data: dict[str, Any]) -> dict[str, Any]:
    """What the file must say afterwards: plain data in, plain data out. Raises Unfit for what is no `trtx/v0`."""
    made: dict[str, Any] = _escape(data)
    variants = made.pop("quantizations", None)
    if not isinstance(variants, list):
        raise Unfit(("quantizations",), "'quantizations' must be a list")
    names: list[str] = []
    for index, item in enumerate(variants):
        if not isinstance(item, dict) or not isinstance(item.get("id"), str):
            raise Unfit(("quantizations", index), "an item of 'quantizations' has no id")
        if item["id"] in names:
            raise Unfit(("quantizations", index, "id"), f"two items of 'quantizations' have the id '{item['id']}'")
        names.append(item.pop("id"))
    made |= {"schema": "trtx/v1", "quantization": dict(zip(names, variants, strict=True))}
    targets = made.get("targets")
    for target in targets.values() if isinstance(targets, dict) else ():
        if isinstance(target, dict):
            for _, old, new in RENAMED[1:]:
                if old in target:
                    target[new] = target.pop(old)
            _group_limits(target.get("engine"))
    _group_limits(made.get("engine"))
    return made


def _escape(value: Any) -> Any:
    """A copy in which every `${` of a text is written so that it stays one."""
    if isinstance(value, dict):
        return {key: _escape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_escape(inner) for inner in value]
    return value.replace("${", "$${") if isinstance(value, str) else value


def _group_limits(engine: Any) -> None:
    if isinstance(engine, dict) and (found := {name: engine.pop(name) for name in LIMITS if name in engine}):
        engine["limits"] = {**engine.get("limits", {}), **found}


def escape_references(layout: Layout) -> Iterator[Edit]:
    for token in layout.tokens:
        if isinstance(token, yaml.ScalarToken):
            start, end = token.start_mark.index, token.end_mark.index
            for match in re.finditer(r"\$\{", layout.text[start:end]):
                yield Edit(start + match.start(), start + match.start(), "$")


def rename_keys(layout: Layout) -> Iterator[Edit]:
    for path, old, new in RENAMED:
        for mapping in mappings(layout.root, path):
            if entry := find_entry(mapping, old):
                yield edits.rename(layout, entry, new)


def name_schema(layout: Layout) -> Iterator[Edit]:
    entry = find_entry(layout.root, "schema")
    if entry is not None:
        start, end = layout.value_start(entry), layout.end(entry)
        yield Edit(start, end, layout.raw(entry).replace("trtx/v0", "trtx/v1"))


def indent_variants(layout: Layout) -> Iterator[Edit]:
    """Items that stand as far left as the key of their list get room, since a mapping needs it."""
    found = _variants(layout)
    if found is None or found[1].flow_style:
        return
    key, items = found[0].key, found[1]
    dash = layout.token(yaml.BlockEntryToken, after=items.start_mark.index)
    if dash is not None and items.value and dash.start_mark.column <= key.start_mark.column:
        yield from edits.indent_lines(layout, dash.start_mark.index, layout.content_end(items), 2)


def name_variants(layout: Layout) -> Iterator[Edit]:
    """`- id: fp32` becomes `fp32:`."""
    found = _variants(layout)
    if found is None:
        return
    items = found[1]
    if items.flow_style:
        opening = layout.token(yaml.FlowSequenceStartToken, after=items.start_mark.index)
        yield Edit(opening.start_mark.index, opening.end_mark.index, "{")
        yield Edit(items.end_mark.index - 1, items.end_mark.index, "}")
    for item in items.value:
        entry = find_entry(item, "id") if isinstance(item, yaml.MappingNode) else None
        if entry is None:
            continue
        name = entry.value.value if entry.is_alias else layout.raw(entry)
        if items.flow_style:
            yield Edit(item.start_mark.index, item.start_mark.index, f"{name}: ")
            yield from edits.remove_entry(layout, item, entry)
        else:
            yield from _name_block_item(layout, item, entry, name)


def _name_block_item(layout: Layout, item: yaml.MappingNode, entry: Entry, name: str) -> Iterator[Edit]:
    dash = layout.token_before(yaml.BlockEntryToken, item.start_mark.index + 1)
    start, first = dash.start_mark.index, item.start_mark.index
    follows = layout.text[dash.end_mark.index : first]
    if item.flow_style or "\n" in follows:
        yield Edit(start, dash.end_mark.index, f"{name}:")
        yield from edits.remove_entry(layout, item, entry)
    elif entry.key.start_mark.index == first:
        yield Edit(start, layout.end(entry), f"{name}:")
    elif first == item.value[0][0].start_mark.index:
        yield Edit(start, first, f"{name}:{layout.newline}{' ' * layout.column(first)}")
        yield from edits.remove_entry(layout, item, entry)
    else:  # An anchor stands between the dash and the first key, which is on the next line.
        yield Edit(start, dash.end_mark.index, f"{name}:")
        yield from edits.remove_entry(layout, item, entry)


def _variants(layout: Layout) -> tuple[Entry, yaml.SequenceNode] | None:
    entry = find_entry(layout.root, "quantization")
    if entry is None or entry.is_alias or not isinstance(entry.value, yaml.SequenceNode):
        return None
    return entry, entry.value


def group_limits(layout: Layout) -> Iterator[Edit]:
    """Put the limits of every engine below a key of their own."""
    done: set[int] = set()
    for path in ENGINES:
        for engine in mappings(layout.root, path):
            flat = [entry for entry in entries(engine) if entry.key.value in LIMITS]
            if flat and id(engine) not in done and isinstance(flat[0].value, yaml.ScalarNode):
                done.add(id(engine))
                yield from (_group_flow if engine.flow_style else _group_block)(layout, engine, flat)


def _group_flow(layout: Layout, engine: yaml.MappingNode, flat: list[Entry]) -> Iterator[Edit]:
    first, *others = flat
    words = [layout.text[entry.key.start_mark.index : layout.end(entry)] for entry in flat]
    yield Edit(first.key.start_mark.index, layout.end(first), f"limits: {{{', '.join(words)}}}")
    for entry in others:
        yield from edits.remove_entry(layout, engine, entry)


def _group_block(layout: Layout, engine: yaml.MappingNode, flat: list[Entry]) -> Iterator[Edit]:
    """Every limit with the comments above it moves below the first one, whose own comments stay above `limits`."""
    start = layout.line_start(flat[0].key.start_mark.index)
    column = flat[0].key.start_mark.column
    moved = [layout.text[start : layout.line_end(layout.end(flat[0]))]]
    for entry in flat[1:]:
        line = layout.line_start(entry.key.start_mark.index)
        begin = _first_comment(layout, line, column, start)
        end = layout.line_end(layout.end(entry))
        moved.append(layout.text[begin:end])
        yield Edit(begin, end, "")
    lines = [line for block in moved for line in block.splitlines()]
    text = "".join(f"  {line}{layout.newline}" for line in lines)
    yield Edit(start, start + len(moved[0]), f"{' ' * column}limits:{layout.newline}{text}")


def _first_comment(layout: Layout, line: int, column: int, bound: int) -> int:
    """Where the comment lines that stand right above a line begin."""
    while line > bound:
        above = layout.line_start(line - 1)
        if above <= bound or not re.match(rf" {{{column}}}#", layout.text[above:line]):
            break
        line = above
    return line


# Each is made on the text that the one before it left.
STEPS = (escape_references, rename_keys, indent_variants, name_variants, group_limits, name_schema)
CHANGES = {
    escape_references: "`${` in texts is written `$${`",
    rename_keys: "`quantizations` is named `quantization`, and `device` of targets `gpu`",
    name_variants: "variants are a mapping by name",
    group_limits: "limits of engines stand below `limits`",
}
