"""The points of a matrix: which cells there are, and the recipe of each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from trtx.errors import did_you_mean
from trtx.recipe.cells import Cell, make_cells
from trtx.recipe.graft import adopt, fork, put
from trtx.recipe.lookup import value_at
from trtx.recipe.matrix import Axis, Exclusion, read_matrix
from trtx.recipe.problems import Path, Problem
from trtx.recipe.schema import Recipe
from trtx.recipe.tree import Tree, dotted

MAX_CELLS = 10_000
# Combinations looked at, those that are excluded among them.
MAX_COMBINATIONS = 20 * MAX_CELLS


@dataclass
class Point:
    """The recipe with one value of every axis in place; None when it is invalid, which `problems` explain."""

    tree: Tree
    recipe: Recipe | None
    problems: list[Problem]
    cells: list[Cell] = field(default_factory=list)


@dataclass
class Expansion:
    """The points that have cells, all cells in order, and what is wrong."""

    points: list[Point] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


Pair = tuple[str, str]
# Target, variant, and the names of the values of the axes that change this cell.
Combination = tuple[str, str, dict[str, str]]


def expand(tree: Tree, make_point: Callable[[Tree], Point]) -> Expansion:
    """Every point of the matrix of a tree. `make_point` resolves and validates a tree without a matrix."""
    plain = fork(tree)
    plain.problems = []
    if "matrix" not in tree.data:
        return _expand_plain(make_point(plain))
    found = fork(plain)
    axes, exclusions = read_matrix(found)
    plain.data = {key: value for key, value in tree.data.items() if key != "matrix"}
    if not axes or len(axes) < len(tree.data["matrix"]["axes"]) or not all(axis.values for axis in axes):
        # What else is wrong cannot be told from what these axes would have provided.
        return Expansion(problems=found.problems)
    made = _Matrix(tree, plain, axes, exclusions, make_point)
    if found.problems:
        return Expansion(problems=[*found.problems, *made.point({}).problems])
    return made.expand()


def _expand_plain(point: Point) -> Expansion:
    point.cells = make_cells(point.recipe) if point.recipe else []
    return Expansion([point], point.cells, point.problems)


class _Matrix:
    """Makes each point once, when a cell asks for it."""

    def __init__(
        self,
        tree: Tree,
        plain: Tree,
        axes: Sequence[Axis],
        exclusions: Sequence[Exclusion],
        make_point: Callable[[Tree], Point],
    ) -> None:
        self.tree, self.plain, self.axes, self.exclusions = tree, plain, axes, exclusions
        self.make_point = make_point
        self.ranks = {axis.name: {name: rank for rank, name in enumerate(axis.values)} for axis in axes}
        self.first = {axis.name: next(iter(axis.values)) for axis in axes}
        self.points: dict[tuple[str, ...], Point] = {}

    def expand(self) -> Expansion:
        pairs = self.pairs()
        if not pairs:
            self.try_each_value()
            return self.finish([], [])
        problems = list(self.check_axes(pairs))
        useful: set[int] = set()
        kept: list[Combination] = []
        for combination in itertools.islice(self.combinations(pairs), MAX_COMBINATIONS):
            hits = [index for index, exclusion in enumerate(self.exclusions) if exclusion.covers(*combination)]
            useful.update(hits)
            if not hits:
                kept.append(combination)
            if len(kept) > MAX_CELLS:
                what = f"the matrix has more than {MAX_CELLS} cells"
                problem = self.tree.problem_at(("matrix",), what, fix="use fewer values, or exclude some", at_key=True)
                return Expansion(problems=[problem])
        if not kept:
            fix = "remove an entry"
            problems.append(self.tree.problem_at(("matrix", "exclude"), "every cell is excluded", fix=fix, at_key=True))
        unused = [index for index in range(len(self.exclusions)) if index not in useful]
        problems += [self.explain_useless(self.exclusions[index], pairs) for index in unused]
        return self.finish(self.make_cells(kept), problems)

    def finish(self, cells: list[Cell], problems: list[Problem]) -> Expansion:
        points = [point for point in self.points.values() if point.cells or point.recipe is None]
        found = [*problems, *(problem for point in points for problem in point.problems)]
        return Expansion(
            points,
            cells,
            [problem for problem in dict.fromkeys(found) if problem.severity == "error"],
            [problem for problem in dict.fromkeys(found) if problem.severity == "warning"],
        )

    def make_cells(self, kept: Sequence[Combination]) -> list[Cell]:
        cells: list[Cell] = []
        axes = {axis.name: axis for axis in self.axes}
        for target, variant, values in kept:
            point = self.point(values)
            if point.recipe is not None:
                choices = tuple(axes[name].choice(values[name]) for name in sorted(values))
                point.cells.append(Cell(target, variant, choices, recipe=point.recipe))
                cells.append(point.cells[-1])
        return cells

    def pairs(self) -> dict[Pair, list[dict[str, str]]]:
        """Every target and variant in the order of the file, with the values of structural axes that make them.

        A structural axis can change which cells there are. A cell that it does not change exists once.
        """
        structural = [axis for axis in self.axes if axis.is_structural]
        pairs: dict[Pair, list[dict[str, str]]] = {}
        for chosen in itertools.islice(_choose(structural), MAX_CELLS):
            recipe = self.point(chosen).recipe
            for cell in make_cells(recipe) if recipe else ():
                values = {
                    axis.name: chosen[axis.name] for axis in structural if axis.affects(cell.target, cell.variant)
                }
                if all(chosen[name] == self.first[name] for name in chosen if name not in values):
                    pairs.setdefault((cell.target, cell.variant), []).append(values)
        return pairs

    def combinations(self, pairs: dict[Pair, list[dict[str, str]]]) -> Iterator[Combination]:
        """Every cell there could be: pairs in their order, then values in theirs, the last axis fastest."""
        for (target, variant), settings in pairs.items():
            free = [axis for axis in self.axes if not axis.is_structural and axis.affects(target, variant)]
            if len(settings) == 1:
                found: Iterable[dict[str, str]] = (settings[0] | more for more in _choose(free))
            else:
                found = sorted((known | more for known in settings for more in _choose(free)), key=self.rank)
            yield from ((target, variant, values) for values in found)

    def rank(self, values: dict[str, str]) -> tuple[int, ...]:
        return tuple(self.ranks[axis.name][values[axis.name]] for axis in self.axes if axis.name in values)

    def point(self, values: dict[str, str]) -> Point:
        """The recipe with these values; axes that are not named have their first one."""
        chosen = self.first | values
        key = tuple(chosen.values())
        if key not in self.points:
            tree = fork(self.plain)
            for axis in self.axes:
                self.set_value(tree, axis, axis.values[chosen[axis.name]])
            self.points[key] = self.make_point(tree)
        return self.points[key]

    def set_value(self, tree: Tree, axis: Axis, place: Path) -> None:
        value, known = value_at(place, self.tree.data), tree.places.get(axis.path, axis.steps[-1])
        put(tree, axis.path, value, axis.steps)
        adopt(tree, self.tree, value, place, axis.path, kind="matrix", note=f"axis {axis.name}")
        changed = tree.places[axis.path]._replace(key=known.key, key_source=known.key_source or known.source)
        tree.places[axis.path] = changed

    def try_each_value(self) -> None:
        """Nothing is valid as it is: look at every value, for all problems at once."""
        for axis in self.axes:
            for name in axis.values:
                self.point({axis.name: name})

    def check_axes(self, pairs: Iterable[Pair]) -> Iterator[Problem]:
        for axis in self.axes:
            if not any(axis.affects(*pair) for pair in pairs):
                what = f"the axis '{axis.name}' changes no cell"
                why = f"no target builds what {dotted(axis.touched[0])} belongs to"
                yield self.tree.problem_at(("matrix", "axes", axis.name), what, why=why, fix="remove it", at_key=True)

    def explain_useless(self, exclusion: Exclusion, pairs: Iterable[Pair]) -> Problem:
        """A glob that names nothing is wrong; an entry that covers nothing is said to."""
        for key, glob, names in (
            ("target", exclusion.target, dict.fromkeys(pair[0] for pair in pairs)),
            ("variant", exclusion.variant, dict.fromkeys(pair[1] for pair in pairs)),
        ):
            if not any(fnmatchcase(name, glob) for name in names):
                path: Path = (*exclusion.path, key)
                return self.tree.problem_at(path, f"no {key} matches '{glob}'", fix=did_you_mean(glob, names))
        what = "this entry excludes nothing"
        return replace(self.tree.problem_at(exclusion.path, what, fix="remove it"), severity="warning")


def _choose(axes: Sequence[Axis]) -> Iterator[dict[str, str]]:
    """Every combination of values, the last axis fastest; one empty combination without axes."""
    names = [axis.name for axis in axes]
    for values in itertools.product(*(axis.values for axis in axes)):
        yield dict(zip(names, values, strict=True))
