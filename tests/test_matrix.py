"""The committed tables of transformations are those of the tests."""

from __future__ import annotations

import pytest

import matrix


@pytest.mark.parametrize("framework", matrix.FRAMEWORKS)
def test_committed_table_is_the_one_made_from_the_tests(framework: str) -> None:
    pytest.importorskip(framework)
    page = matrix.page(framework)
    committed = page.read_text(encoding="utf-8") if page.exists() else ""
    made = matrix.table(framework) if matrix.marked(framework) else ""
    assert committed == made, "run `make matrix`"
