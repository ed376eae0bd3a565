"""Putting trees together: values move with their places, and nothing that another tree shares is changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from trtx.errors import did_you_mean
from trtx.recipe.problems import Path, Place
from trtx.recipe.tree import DELETE, Tree, dotted


def fork(tree: Tree) -> Tree:
    """A tree to change by the functions of this module; its values are shared, and copied where they change."""
    return replace(
        tree,
        places=dict(tree.places),
        problems=list(tree.problems),
        broken=set(tree.broken),
        hidden=dict(tree.hidden),
        secrets=dict(tree.secrets),
        removed=dict(tree.removed),
    )


def paths_in(value: Any, path: Path) -> Iterator[Path]:
    """The path of a value and of everything in it."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths_in(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from paths_in(inner, (*path, index))


def forget(tree: Tree, value: Any, path: Path) -> None:
    """Drop what is known about a value that goes away."""
    for inner in paths_in(value, path):
        tree.places.pop(inner, None)
        tree.hidden.pop(inner, None)
        tree.broken.discard(inner)


def adopt(tree: Tree, source: Tree, value: Any, old: Path, new: Path, **changes: Any) -> None:
    """Take over what `source` knows about a value at `old`, which now stands at `new`; places with changed fields."""
    for inner in paths_in(value, old):
        path = (*new, *inner[len(old) :])
        if inner in source.places:
            tree.places[path] = source.places[inner]._replace(**changes)
        if inner in source.broken:
            tree.broken.add(path)


def put(tree: Tree, path: Path, value: Any, steps: tuple[Place, ...]) -> None:
    """Put a value at a path, which must lead through mappings, lists and what is missing; makes the latter.

    A missing value before an index becomes a list, any other a mapping; `steps` are the places of the path's parts, for
    what is made and for the key. The places of what is in the value are for the caller.
    """
    tree.data = _put(tree, tree.data, (), path, value, steps)


def _put(tree: Tree, node: Any, done: Path, rest: Path, value: Any, steps: tuple[Place, ...]) -> Any:
    if not rest:
        forget(tree, node, done)
        return value
    part, inner = rest[0], (*done, rest[0])
    if done not in tree.places:
        tree.places[done] = steps[len(done) - 1]
    if isinstance(part, int):
        items = list(node or ())
        child = items[part] if part < len(items) else None
        items[part : part + 1] = [_put(tree, child, inner, rest[1:], value, steps)]
        return items
    known = dict(node or {})
    known[part] = _put(tree, known.get(part), inner, rest[1:], value, steps)
    return known


def take(tree: Tree, path: Path, note: str) -> None:
    """Take away the value at a path, which must be there; what follows in a list moves up."""
    tree.data = _take(tree, tree.data, (), path)
    tree.removed[path] = note


def _take(tree: Tree, node: Any, done: Path, rest: Path) -> Any:
    part, inner = rest[0], (*done, rest[0])
    if isinstance(part, int):
        items = list(node)
        if len(rest) > 1:
            items[part] = _take(tree, items[part], inner, rest[1:])
            return items
        before = fork(tree)
        for index in range(part, len(items)):
            forget(tree, items[index], (*done, index))
        del items[part]
        for index in range(part, len(items)):
            adopt(tree, before, items[index], (*done, index + 1), (*done, index))
        return items
    known = dict(node)
    if len(rest) > 1:
        known[part] = _take(tree, known[part], inner, rest[1:])
    else:
        forget(tree, known.pop(part), inner)
    return known


def merge(base: Tree, over: Tree) -> Tree:
    """`over` on `base`: mappings merge, everything else replaces, null takes away. Problems are those of the merge."""
    merged = fork(base)
    merged.source, merged.problems = over.source, []
    merged.places[()] = over.place(())
    merged.data = _merge(merged, base.data, over, over.data, ())
    return merged


def _merge(merged: Tree, under: dict[str, Any], over: Tree, above: dict[str, Any], path: Path) -> dict[str, Any]:
    result = dict(under)
    for key, value in above.items():
        inner = (*path, key)
        old = result.get(key)
        if value is DELETE:
            if key in result:
                forget(merged, result.pop(key), inner)
                merged.removed[inner] = f"null in {over.places[inner].where} takes away what a base says"
            else:
                _nothing_to_delete(merged, over, inner, under)
            continue
        merged.removed.pop(inner, None)
        if isinstance(value, dict) and isinstance(old, dict):
            merged.places[inner] = over.places[inner]
            result[key] = _merge(merged, old, over, value, inner)
            continue
        forget(merged, old, inner)
        result[key] = _without_deletes(merged, over, value, inner)
        adopt(merged, over, result[key], inner, inner)
    return result


def _without_deletes(merged: Tree, over: Tree, value: Any, path: Path) -> Any:
    """A value that no base has, so that a null in it deletes nothing."""
    if isinstance(value, dict):
        kept: dict[str, Any] = {}
        for key, inner in value.items():
            if inner is DELETE:
                _nothing_to_delete(merged, over, (*path, key), {})
            else:
                kept[key] = _without_deletes(merged, over, inner, (*path, key))
        return kept
    if isinstance(value, list):
        return [_without_deletes(merged, over, inner, (*path, index)) for index, inner in enumerate(value)]
    return value


def _nothing_to_delete(merged: Tree, over: Tree, path: Path, siblings: dict[str, Any]) -> None:
    if any(isinstance(part, int) for part in path):
        why = "lists replace those of a base, so there is nothing in them to take away"
    else:
        why = "null takes away what a base says, and no base says anything here"
    fix = did_you_mean(str(path[-1]), siblings) if siblings else "remove it"
    problem = over.problem_at(path, f"there is no '{dotted(path)}' to delete", why=why, fix=fix, at_key=True)
    merged.problems.append(problem)
    merged.broken.add(path)
