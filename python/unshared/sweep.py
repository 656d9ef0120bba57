"""Sweeps: one dimension of a case goes through many sizes, for `bench --sweep`.

Here stand the sizes, what a case becomes at one of them, what counts as a cliff, and how a sweep is
shown. The rows are those of any other run, with `size` filled in; `bench` times them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table

from unshared.report import FACES, Row, human

AROUND = (47, 48, 49, 63, 64, 65)  # one below, at and one above multiples of every vector and tile
SIZES: dict[str, Sequence[int]] = {
    "threads": (*range(1, 17), 24, 32, 48, 64, 96, 128, 192, 256),
    "batch": (*range(1, 41), *AROUND, 128, 256, 512, 1024),
    "channels": (*range(1, 41), *AROUND, 96, 128),
    "kernel": range(1, 12),
    "image": range(8, 65),
}
LANES = ("batch", "channels", "image")  # what vectors and tiles may run along
CLIFF = 1.3
COLOURS = ("#08519c", "#e6550d", "#31a354", "#756bb1", "#636363")
Series = dict[tuple[str, str, str], list[Row]]  # by dtype, layout and order


def sizes(name: str, usable: int) -> list[int]:
    """What `--sweep NAME` goes through; of threads no more than there are CPUs, and those."""
    if name != "threads":
        return list(SIZES[name])
    return [*(size for size in SIZES[name] if size < usable), usable]


def resized(text: str, name: str, size: int) -> str:
    """A case in text form, its dimension `name` of that size; threads are not part of it.

    All spatial axes change together, and both channel counts. Where every channel is a group of its
    own, that stays so.
    """
    words = {word[0]: word for word in text.split()}
    if name == "batch":
        words["n"] = f"n{size}"
    elif name == "channels":
        a, b = words["a"][1:].split(">b")
        if words.get("g") == f"g{a}" == f"g{b}":
            words["g"] = f"g{size}"
        words["a"] = f"a{size}>b{size}"
    elif name in ("kernel", "image"):
        letter = name[0]
        words[letter] = letter + "x".join([str(size)] * (words["i"].count("x") + 1))
    return " ".join(words.values())


def vector_width(name: str, dtype: str, isa: str) -> int:
    """By how much a size has to grow to fill one vector more; 1 where no vector runs along it."""
    if name not in LANES:
        return 1
    register = {"v4": 64, "v3": 32}.get(isa, 16)
    # Half types are summed in float32; real and imaginary parts have vectors of their own.
    return register // (8 if dtype in ("float64", "complex128") else 4)


def cliffs(cost: Mapping[int, float], width: int) -> list[int]:
    """Sizes whose cost is over 1.3 times that of the next below and of those a vector above.

    Parameters
    ----------
    cost : time per flop by size
    width : how far above to look; the first size at least that far counts, and where there is none
        (at the end of a sweep) nothing can be told
    """
    found = []
    for below, size in pairwise(sorted(cost)):
        above = min((s for s in cost if s >= size + width), default=None)
        if above is not None and cost[size] > CLIFF * max(cost[below], cost[above]):
            found.append(size)
    return found


def series(rows: Sequence[Row], face: str) -> Series:
    found: Series = {}
    for row in rows:
        if row.face == face:
            found.setdefault((row.dtype, row.layout, row.order), []).append(row)
    return found


def all_cliffs(rows: Sequence[Row], name: str, isa: str) -> list[Row]:
    """The rows that are cliffs, by their fastest runs: noise only ever adds to a time."""
    found = []
    for face in FACES:
        for (dtype, *_), line in series(rows, face).items():
            cost = {row.size: row.fastest / row.flops for row in line if row.size is not None}
            steep = cliffs(cost, vector_width(name, dtype, isa))
            found += [row for row in line if row.size in steep]
    return found


def table_of(base: str, rows: Sequence[Row], name: str, steep: Sequence[Row]) -> Iterator[Table]:
    """A line for each size, one table for each dtype and memory order."""
    for key in series(rows, FACES[0]):
        title = f"{base}  {' '.join(key)}: a sweep of {name}"
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for column in (name, *(column for face in FACES for column in (face, "of floor"))):
            table.add_column(column, justify="right", no_wrap=True)
        lines: dict[int | None, list[str]] = {}
        for face in FACES:
            for row in series(rows, face).get(key, []):
                fraction = f"{row.fraction:.1%} {row.binds}"
                fraction = f"[red]cliff {fraction}" if row in steep else fraction
                lines.setdefault(row.size, []).extend((human(row.median), fraction))
        for size, cells in lines.items():
            table.add_row(str(size), *cells)
        yield table


def closing(steep: Sequence[Row]) -> Iterator[str]:
    """The cliffs, named."""
    yield f"Cliffs (a flop takes over {CLIFF} times as long as one size below and a vector above):"
    named: dict[str, list[str]] = {}
    for row in steep:
        key = f"{row.face} {row.dtype} {row.layout} {row.order}"
        named.setdefault(key, []).append(f"{row.size} ({row.case}, {row.kernel})")
    yield from (f"  {key}: {', '.join(found)}" for key, found in named.items())
    if not named:
        yield "  none"


def picture(
    base: str, rows: Sequence[Row], name: str, steep: Sequence[Row], caption: str
) -> Figure:
    """A panel for each face: time and floor above, the fraction of the floor below."""
    figure = Figure(figsize=(16, 8), dpi=110, layout="constrained")
    figure.suptitle(f"{base}: a sweep of {name}", x=0.01, ha="left", fontsize=15, weight="bold")
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=9, color="#444444")
    times, fractions = figure.subplots(2, len(FACES), sharex=True, sharey="row")
    for column, face in enumerate(FACES):
        above, below = times[column], fractions[column]
        for count, (key, line) in enumerate(series(rows, face).items()):
            colour = COLOURS[count % len(COLOURS)]
            at: list[Any] = [row.size for row in line]
            style = {"color": colour, "marker": ".", "linewidth": 1}
            above.plot(at, [1e3 * row.median for row in line], label=" ".join(key), **style)
            spread = ([1e3 * getattr(row, end) for row in line] for end in ("fastest", "high"))
            above.fill_between(at, *spread, color=colour, alpha=0.2, linewidth=0)
            floors = [1e3 * row.floor for row in line]
            above.plot(at, floors, color=colour, linestyle=":", label="its floor")
            below.plot(at, [row.fraction for row in line], **style)
            marked = [row for row in line if row in steep]
            ring = {"s": 60, "facecolors": "none", "edgecolors": "red", "zorder": 3}
            where: list[Any] = [row.size for row in marked]
            above.scatter(where, [1e3 * row.median for row in marked], **ring)
            below.scatter(where, [row.fraction for row in marked], **ring)
            for row in marked:
                offset = {"xytext": (0, -14), "textcoords": "offset points", "ha": "center"}
                below.annotate(str(row.size), (row.size, row.fraction), fontsize=7, **offset)
        above.set_title(face, loc="left", fontsize=12)
        above.set_yscale("log")
        above.set_xscale("log", base=2)
        every = sorted({row.size for row in rows if row.size is not None})
        ticks = [size for size in every if math.log2(size) % 1 == 0 or size == every[-1]]
        below.set_xticks(ticks, [str(size) for size in ticks])
        below.axhline(1, color="black", linewidth=0.8)
        below.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        below.set_xlabel(name)
        for axes in (above, below):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
    fractions[0].set_ylim(0, 1.1 * max(row.fraction for row in rows))
    times[0].set_ylabel("ms, the median; shaded: fastest to upper quartile")
    fractions[0].set_ylabel("of the floor; red rings: cliffs")
    times[0].legend(fontsize=8)
    return figure
