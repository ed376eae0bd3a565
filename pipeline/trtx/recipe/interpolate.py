"""Variables: every `${…}` of a tree is replaced by what it names.

A value that is exactly one reference becomes what that names, of any type; beside other text it becomes a text. What
an environment variable holds is read as the setting wants it, and never repeated in a message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trtx.errors import did_you_mean
from trtx.recipe.graft import fork, paths_in
from trtx.recipe.lookup import value_at, wants_text
from trtx.recipe.problems import Mark, Path, Place, Problem, Source
from trtx.recipe.template import BadTemplate, Reference, read_template
from trtx.recipe.tree import MAX_CHARS, MAX_VALUES, TOP, Tree, Unreadable, dotted, read_value

# Why YAML does not take a text of the environment, by the trap it fell into; without the text.
TRAPS = {
    "bool": "YAML 1.1 reads words such as yes, no, on and off as true or false, and YAML 1.2 as texts",
    "int": "YAML 1.1 reads numbers such as 012 and 1:30 as octal and sexagesimal",
    "float": "YAML 1.1 reads numbers such as 1:30.5 and .inf in ways of its own",
    "null": "it is empty, or null",
}


class Broken(Exception):
    """A value cannot be made, and that is reported."""


class Resolver:
    """Replaces the references of one tree. `used` are the paths of all variables that were looked at."""

    def __init__(self, tree: Tree, environ: Mapping[str, str]) -> None:
        self.raw = tree
        self.environ = environ
        self.tree = fork(tree)
        self.used: set[Path] = set()
        self.num_values = 0
        self.is_rehearsal = False

    def resolve(self) -> Tree:
        """The tree without references and without `vars`. What is wrong is in its problems; raises Unreadable."""
        self.tree.data = {
            # Which language a file is in cannot depend on how the language reads it.
            key: value if key == "schema" else self.build(value, (key,), (key,), ())
            for key, value in self.raw.data.items()
            if key != "vars"
        }
        return self.tree

    def rehearse(self) -> list[Problem]:
        """What would be wrong with the variables that nothing used, wherever they were used."""
        self.is_rehearsal = True
        used, given = {path[1] for path in self.used}, self.raw.data.get("vars")
        for name, value in given.items() if isinstance(given, dict) else ():
            if name not in used:
                self.build(value, ("vars", name), ("vars", name), ())
        return self.tree.problems

    def build(self, value: Any, old: Path, new: Path, trail: tuple[Path, ...]) -> Any:
        """The value that stands at `old` as it will stand at `new`; `trail` are the references that led to it."""
        if trail:
            self.count(trail)
        if isinstance(value, str):
            if "${" not in value:
                return value
            try:
                return self.fill(value, old, new, trail)
            except Broken:
                self.tree.broken.add(new)
                return None
        if isinstance(value, dict):
            return {key: self.build(inner, (*old, key), (*new, key), trail) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.build(inner, (*old, index), (*new, index), trail) for index, inner in enumerate(value)]
        return value

    def count(self, trail: tuple[Path, ...]) -> None:
        """Keep expansion finite. Raises Unreadable."""
        self.num_values += 1
        if self.num_values > MAX_VALUES:
            what = f"the variables expand to more than {MAX_VALUES} values"
            raise Unreadable(self.raw.problem_at(trail[0], what, fix="use fewer of them"))

    def fill(self, text: str, old: Path, new: Path, trail: tuple[Path, ...]) -> Any:
        pieces = self.pieces(text, old)
        if len(pieces) == 1 and isinstance(pieces[0], Reference):
            return self.value_of(pieces[0], old, new, trail)
        made = self.join(pieces, text, old, new, trail)
        place = self.tree.places.get(new)
        names = ", ".join(dict.fromkeys(piece.raw for piece in pieces if isinstance(piece, Reference)))
        if place is not None and names:
            is_env = new in self.tree.hidden
            kind = "environment" if is_env else "variable" if place.kind == "file" else place.kind
            note = f"{place.note}, with {names}" if place.note else f"with {names}"
            self.tree.places[new] = place._replace(kind=kind, note=note)
        return made

    def pieces(self, text: str, old: Path) -> tuple[str | Reference, ...]:
        try:
            return read_template(text)
        except BadTemplate as error:
            raise self.refuse(old, error.part, str(error), why=error.why, fix=error.fix) from None

    def join(
        self, pieces: tuple[str | Reference, ...], text: str, old: Path, new: Path, trail: tuple[Path, ...]
    ) -> str:
        """Pieces as one text. One that holds something of the environment is as secret as that."""
        secrets = len(self.tree.secrets)
        made = "".join(piece if isinstance(piece, str) else self.text_of(piece, old, new, trail) for piece in pieces)
        if len(made) > MAX_CHARS:
            raise Unreadable(self.raw.problem_at(old, f"the text expands to more than {MAX_CHARS} characters"))
        if len(self.tree.secrets) > secrets:
            self.hide(made, text, new)
        return made

    def text_of(self, reference: Reference, old: Path, new: Path, trail: tuple[Path, ...]) -> str:
        """What a reference inside a text stands for."""
        if reference.kind == "env":
            return self.env_text(reference, old, new, trail)
        value, place = self.find_variable(reference, old, trail)
        if isinstance(value, dict | list):
            kind = "a mapping" if isinstance(value, dict) else "a list"
            what = f"{reference.raw} is {kind}, which cannot stand beside other text"
            raise self.refuse(old, reference.raw, what, fix="use it alone, or name one of its values")
        self.count((*trail, old))
        if isinstance(value, str):
            return self.join(self.pieces(value, place), value, place, new, (*trail, old))
        return str(value).lower() if isinstance(value, bool) else str(value)

    def value_of(self, reference: Reference, old: Path, new: Path, trail: tuple[Path, ...]) -> Any:
        """What a reference that stands alone names, with its type; its places become those of the value."""
        if reference.kind == "env":
            return self.env_value(reference, old, new, trail)
        value, place = self.find_variable(reference, old, trail)
        first = trail[0] if trail else old
        note = f"through {self.shown(reference, trail)} in {self.raw.place(first).where}"
        key = self.tree.places.get(new)
        for inner in paths_in(value, place):
            stands = self.raw.place(inner)
            kind = "variable" if stands.kind == "file" else stands.kind
            note_here = ", ".join(filter(None, [stands.note, note]))
            self.tree.places[(*new, *inner[len(place) :])] = stands._replace(kind=kind, note=note_here)
        if key is not None:
            stands = self.tree.places[new]
            self.tree.places[new] = stands._replace(key=key.key, key_source=key.key_source or key.source)
        return self.build(value, place, new, (*trail, old))

    def shown(self, reference: Reference, trail: tuple[Path, ...]) -> str:
        """The reference in the recipe that a chain of references began with."""
        return str(value_at(trail[0], self.raw.data)) if trail else reference.raw

    def find_variable(self, reference: Reference, old: Path, trail: tuple[Path, ...]) -> tuple[Any, Path]:
        """The value of a variable as written, and its place."""
        path: Path = ("vars", *reference.names)
        value: Any = self.raw.data
        for index, part in enumerate(path):
            if self.raw.is_broken(path[: index + 1]):
                self.used.add(path)
                raise Broken
            if not isinstance(value, dict) or part not in value:
                raise self.no_variable(reference, old, path, index, value)
            value = value[part]
        self.used.add(path)
        circle = next((n for n, link in enumerate((*trail, old)) if link[: len(path)] == path), None)
        if circle is not None:
            raise self.in_circle([dotted(link) for link in (*trail, old)[circle:]])
        return value, path

    def no_variable(self, reference: Reference, old: Path, path: Path, index: int, around: Any) -> Broken:
        name = dotted(path[: max(index, 1) + 1])
        what, why = f"there is no variable {name}", ""
        if index > 1 and not isinstance(around, dict):
            why, fix = f"{dotted(path[:index])} is not a mapping", f"write ${{{dotted(path[:index])}}}"
        elif isinstance(around, dict) and around and index > 0:
            fix = did_you_mean(str(path[index]), map(str, around))
        else:
            fix = f"add `vars: {{{path[1]}: …}}`"
        return self.refuse(old, reference.raw, what, why=why, fix=fix)

    def in_circle(self, names: list[str]) -> Broken:
        """A circle is reported once, whichever of its variables is met first."""
        first = names.index(min(names))
        names = [*names[first:], *names[:first]]
        what = f"variables name each other in a circle: {' → '.join([*names, names[0]])}"
        path = tuple(names[0].split("."))
        return self.report(self.raw.problem_at(path, what, fix="give one of them a value"))

    def env_text(self, reference: Reference, old: Path, new: Path, trail: tuple[Path, ...]) -> str:
        """The text of an environment variable, or its default."""
        if self.is_rehearsal:
            raise Broken
        name = reference.names[0]
        text = self.environ.get(name)
        if not text and reference.default is not None:
            return self.join(self.pieces(reference.default, old), reference.raw, old, new, trail)
        if text is None:
            raise self.unset(reference, old)
        self.hide(text, reference.raw, new)
        return text

    def env_value(self, reference: Reference, old: Path, new: Path, trail: tuple[Path, ...]) -> Any:
        """The value of an environment variable, or of its default, as the setting at `new` wants it."""
        if self.is_rehearsal:
            raise Broken
        text = self.environ.get(reference.names[0])
        if not text and reference.default is not None:
            return self.default_value(reference, old, new, trail)
        if text is None:
            raise self.unset(reference, old)
        name = f"environment variable {reference.names[0]}"
        if wants_text(new, self.raw.data):
            value: Any = text
        else:
            try:
                read = read_value(Source(name, text.splitlines()), TOP, text, new)
                traps, value = read.traps or (["other"] if read.problems else []), read.data
            except Unreadable:
                traps, value = ["other" if text.strip() else "null"], None
            if traps:
                why = TRAPS.get(traps[0], "it holds something that cannot be read as YAML")
                raise self.refuse(
                    old,
                    reference.raw,
                    f"the {name} holds no plain value",
                    why=why,
                    fix=f"set {name[21:]} to a plain value, such as true, 8 or [a, b]",
                )
        self.came_from_env(reference, f"from {reference.raw} ({name})", value, old, new, trail)
        self.hide(value, reference.raw, new)
        return value

    def default_value(self, reference: Reference, old: Path, new: Path, trail: tuple[Path, ...]) -> Any:
        pieces = self.pieces(reference.default or "", old)
        if len(pieces) == 1 and isinstance(pieces[0], Reference):
            return self.value_of(pieces[0], old, new, trail)
        value: Any = self.join(pieces, reference.raw, old, new, trail)
        if not wants_text(new, self.raw.data):
            place = self.raw.place(old)
            mark = _find(place, reference.default or reference.raw)
            try:
                read = read_value(place.source, mark, value, new)
            except Unreadable as error:
                raise self.report(error.problem) from None
            for problem in read.problems:
                self.report(problem)
            self.tree.broken |= read.broken
            value = read.data
        note = f"the default in {reference.raw} (environment variable {reference.names[0]} is not set)"
        self.came_from_env(reference, note, value, old, new, trail)
        return value

    def came_from_env(
        self, reference: Reference, note: str, value: Any, old: Path, new: Path, trail: tuple[Path, ...]
    ) -> None:
        """Everything in the value stands where the reference does."""
        if trail:
            note += f", through {self.shown(reference, trail)} in {self.raw.place(trail[0]).where}"
        stands, key = self.raw.place(old), self.tree.places.get(new)
        for path in paths_in(value, new):
            self.tree.places[path] = stands._replace(key=None, kind="environment", note=note)
        if key is not None:
            place = self.tree.places[new]
            self.tree.places[new] = place._replace(key=key.key, key_source=key.key_source or key.source)

    def hide(self, value: Any, shown: str, path: Path) -> None:
        """Keep a value of the environment out of messages."""
        for inner in paths_in(value, path):
            self.tree.hidden[inner] = shown
            leaf = value_at(inner[len(path) :], value)
            for text in (str(leaf), *inner[len(path) :]) if not isinstance(leaf, dict | list) else ():
                # One letter is no secret, and would be found in every message.
                if isinstance(text, str) and (len(text) > 1 or text.isdecimal()):
                    self.tree.secrets[text.lower() if isinstance(leaf, bool) else text] = shown

    def unset(self, reference: Reference, old: Path) -> Broken:
        name = reference.names[0]
        what = f"the environment variable {name} is not set"
        return self.refuse(old, reference.raw, what, fix=f"set it, or write ${{env.{name}:-default}}")

    def refuse(self, old: Path, part: str, what: str, *, why: str = "", fix: str = "") -> Broken:
        """Report a problem with a part of the text at `old`."""
        place = self.raw.place(old)
        return self.report(place.source.problem(_find(place, part), what, why=why, fix=fix, path=old))

    def report(self, problem: Problem) -> Broken:
        if problem not in self.tree.problems:
            self.tree.problems.append(problem)
        return Broken()


def _find(place: Place, part: str) -> Mark:
    """Where a part of a value stands; the value itself where it is written in some other way."""
    for number in range(place.value.line, min(place.value.line + 100, len(place.source.lines) + 1)):
        start = place.value.col - 1 if number == place.value.line else 0
        at = place.source.lines[number - 1].find(part, start)
        if at >= 0:
            return Mark(number, at + 1, len(part))
    return place.value
