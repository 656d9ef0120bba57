"""The tables of docs/transformations-*.md, made from the tests that show each line.

A test of tests/test_<framework>_*.py that shows what a transformation of that framework does
carries `@pytest.mark.transformation(name, verdict, note="")`. Verdicts: "supported" (the result is
right), "refused" (an error says so), "limit" (right within bounds that the note gives). Several
tests may show one line; they must agree. `make matrix` writes the tables, test_matrix.py compares.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FRAMEWORKS = {"torch": "PyTorch", "jax": "JAX"}
VERDICTS = ("supported", "refused", "limit")


def marked(framework: str) -> list[tuple[str, str, str, str]]:
    """Name, verdict, note and test of every mark, in the order of the files."""
    found = []
    for path in sorted(TESTS.glob(f"test_{framework}_*.py")):
        module = importlib.import_module(path.stem)
        for name, value in vars(module).items():
            for mark in getattr(value, "pytestmark", []):
                if name.startswith("test_") and mark.name == "transformation":
                    transformation, verdict = mark.args
                    if verdict not in VERDICTS:
                        raise ValueError(f"{path.name}::{name}: verdict {verdict!r}")
                    note = mark.kwargs.get("note", "")
                    found.append((transformation, verdict, note, f"{path.name}::{name}"))
    return found


def table(framework: str) -> str:
    """The page of one framework."""
    lines: dict[str, tuple[str, list[str], list[str]]] = {}
    for name, verdict, note, test in marked(framework):
        first, notes, tests = lines.setdefault(name, (verdict, [], []))
        if first != verdict:
            raise ValueError(f"{test} says {verdict} of '{name}', {tests[0]} says {first}")
        tests.append(test)
        if note and note not in notes:
            notes.append(note)
    rows = [("transformation", "verdict", "remarks", "shown by")]
    for name, (verdict, notes, tests) in lines.items():
        shown = ", ".join(f"`{test}`" for test in tests)
        rows.append((name, verdict, "; ".join(notes), shown))
    text = "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], ("---",) * 4, *rows[1:]])
    return (
        f"# Transformations of {FRAMEWORKS[framework]}\n\n"
        "*supported*: the result is right. *refused*: an error says so. *limit*: right within the\n"
        "bounds in the remarks. Written by `make matrix` from the tests in the last column.\n\n"
        f"{text}\n"
    )


def page(framework: str) -> Path:
    """Where the table of one framework is kept."""
    return TESTS.parent / "docs" / f"transformations-{framework}.md"


if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))
    for framework in FRAMEWORKS:
        if list(TESTS.glob(f"test_{framework}_*.py")):
            try:
                page(framework).write_text(table(framework), encoding="utf-8")
                print(page(framework))
            except pytest.skip.Exception as reason:
                print(f"{framework}: left as it is: {reason}")
