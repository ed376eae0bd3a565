"""`--junit FILE`: the outcome of every step as JUnit XML, which every CI system shows.

Format: https://github.com/testmoapp/junitxml, the common ground of what CI systems read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from trtx.errors import TrtxError
from trtx.files import disk_errors, write_text

if TYPE_CHECKING:
    from trtx.plan.survey import StepStatus

# What XML 1.0 cannot hold (https://www.w3.org/TR/xml/#charsets). Compiled when needed: that takes 3 ms.
ILLEGAL = "[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"


@contextmanager
def reporting(path: Path | None) -> Iterator[None]:
    """Before anything ran, an error is reported too: a file of an earlier run would speak for this one."""
    if path is not None:
        with disk_errors(path):
            path.unlink(missing_ok=True)
    try:
        yield
    except TrtxError as error:
        if path is not None and not path.exists():
            write_text(path, _make_failed("trtx", error))
        raise


def _make_failed(name: str, error: TrtxError) -> str:
    """A report in which the run itself failed."""
    from xml.etree import ElementTree

    counts = {"tests": "1", "failures": "0", "errors": "1", "skipped": "0", "time": "0.000"}
    root = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(root, "testsuite", {"name": name, **counts})
    case = ElementTree.SubElement(suite, "testcase", classname=name, name="apply", time="0.000")
    ElementTree.SubElement(case, "error", message=_clean(error.what)).text = _clean(error.render())
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def write_junit(path: Path, recipe: str, statuses: Sequence[StepStatus], errors: Mapping[str, TrtxError]) -> None:
    """Write the report; `errors` by step id. Raises EnvironmentProblem when that is not possible."""
    write_text(path, make_junit(recipe, statuses, errors))


def make_junit(recipe: str, statuses: Sequence[StepStatus], errors: Mapping[str, TrtxError]) -> str:
    """One test case a step: done and cached ones passed, failed ones failed, all others were skipped."""
    from xml.etree import ElementTree

    from trtx.plan.survey import State

    suite = ElementTree.Element("testsuite", name=_clean(recipe))
    counts = {"tests": len(statuses), "failures": 0, "errors": 0, "skipped": 0}
    total_s = 0.0
    for status in statuses:
        ran_s = (status.duration_s or 0.0) if status.state in (State.DONE, State.FAILED) else 0.0
        total_s += ran_s
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=_clean(f"{recipe}.{status.step.stage}"),
            name=status.step.id,
            time=f"{ran_s:.3f}",
        )
        properties = ElementTree.SubElement(case, "properties")
        ElementTree.SubElement(properties, "property", name="key", value=status.step.key)
        ElementTree.SubElement(properties, "property", name="state", value=status.state.value)
        if status.state is State.FAILED:
            counts["failures"] += 1
            error = errors.get(status.step.id)
            failure = ElementTree.SubElement(case, "failure", message=_clean(error.what if error else status.reason))
            failure.text = _clean(error.render() if error else status.reason)
        elif status.state not in (State.DONE, State.CACHED):
            counts["skipped"] += 1
            ElementTree.SubElement(case, "skipped", message=_clean(f"{status.state.value}: {status.reason}"))
    suite.attrib.update({name: str(count) for name, count in counts.items()}, time=f"{total_s:.3f}")
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _clean(text: str) -> str:
    return re.sub(ILLEGAL, "?", text)
