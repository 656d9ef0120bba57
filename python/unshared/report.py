"""What `bench` reports: the row, the table, the closing tables, the picture, the machine.

Nothing is timed here, and every figure shown is a field of a `Row`, so that the JSON file, which
holds all rows, and the picture cannot tell another story than the table.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table

import unshared

Array = npt.NDArray[Any]
FACES = ("forward", "grad_input", "grad_weight")
SHADES = {"last": ("#08519c", "#3182bd", "#9ecae1"), "first": ("#a63603", "#e6550d", "#fdae6b")}
OTHER = ("#3f3f3f", "#7f7f7f", "#bfbfbf")
LONG = {"last": "channels last", "first": "channels first"}
COLOURS = ("#006d2c", "#7a0177", "#b8860b", "#008b8b", "#8b4513", "#9a9a9a")  # of the peers
SHORT = 2e-4  # seconds: with a floor below it, the call and the caches are timed, not a kernel
BAR = 0.65  # of the floor: the rows under it are counted


@dataclass
class Row:
    """One measurement; times in seconds, the median and the quartiles around it."""

    case: str
    dtype: str
    face: str
    layout: str  # channels last, channels first, or the orders of x and y
    order: str  # of the weight
    flops: float
    bytes: float
    floor: float  # the least seconds that flops and bytes allow under the measured ceilings
    binds: str  # which of the two makes the floor: C computing, M memory
    fastest: float
    low: float
    median: float
    high: float
    runs: int
    who: str = "unshared"
    kernel: str = ""  # of ours
    shared: bool = False  # a convolution: another function, so the floor is not its own
    differs: float | None = None  # a peer's result from ours, relative to the largest element
    threads: int = 1
    size: int | None = None  # of the dimension that is swept, in a sweep

    @property
    def fraction(self) -> float:
        return self.floor / self.median


def human(seconds: float) -> str:
    """Three digits: 4.71 us, 12.3 ms."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size or unit == "us":
            break
    value = seconds / size
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"


def rates(ceilings: dict[str, float]) -> str:
    return ", ".join(
        f"{name} {rate / 1e9:.1f} {'GB/s' if name == 'memory' else 'GFLOP/s'}"
        for name, rate in ceilings.items()
    )


def plural(count: int, thing: str) -> str:
    return f"{count} {thing}{'s' if count != 1 else ''}"


def headline(
    facts: dict[str, Any], version: str, threads: int, beside: int, ceilings: dict[str, float]
) -> str:
    on = f"{facts['cpu']}, {facts['cpus_usable']} CPUs, {facts['isa']}"
    count = plural(threads, "thread")
    if beside:
        count += f" beside {plural(beside, 'busy neighbour')}"
    return f"{on}; unshared {version}, {count}; ceilings: {rates(ceilings)}"


def difference(found: Array, ours: Array) -> float:
    """The largest, relative to our largest element."""
    largest = max(np.max(np.abs(ours)), np.finfo(ours.dtype).tiny)
    return float(np.max(np.abs(found - ours)) / largest)


def table_of(rows: Sequence[Row]) -> Table:
    """The rows of one case and dtype."""
    table = Table(
        title=f"{rows[0].case}  {rows[0].dtype}",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in ("face", "x, y", "w"):
        table.add_column(name, no_wrap=True)
    for name in ("median", "quartiles", "GFLOP/s", "GB/s", "floor", "of floor"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    table.add_column("kernel", no_wrap=True)
    for before, row in zip([None, *rows], rows, strict=False):
        if before and before.face != row.face:
            table.add_section()
        colour = "green" if row.fraction >= 0.7 else "yellow" if row.fraction >= 0.4 else "red"
        bounds = [
            human(row.floor),
            f"[{colour}]{row.fraction:.1%}",
            row.binds,
        ]
        table.add_row(
            "" if before and before.face == row.face else row.face,
            row.layout,
            row.order,
            human(row.median),
            f"{human(row.low)} .. {human(row.high)}",
            f"{row.flops / row.median / 1e9:.1f}",
            # A shared convolution has the same flops, yet other bytes and another floor.
            "" if row.shared else f"{row.bytes / row.median / 1e9:.1f}",
            *(["", "", ""] if row.shared else bounds),
            row.kernel if row.who == "unshared" else row.who,
            style="" if row.who == "unshared" else "cyan",
        )
    return table


def mean(values: Iterable[float]) -> float:
    """Geometric: of ratios."""
    return math.exp(fmean(map(math.log, values)))


def cells(rows: Sequence[Row], layouts: Sequence[str]) -> Iterator[str]:
    """The mean fraction in each layout, and how many are low."""
    for layout in layouts:
        fractions = [row.fraction for row in rows if row.layout == layout]
        yield f"{mean(fractions):.1%}" if fractions else ""
    yield f"{sum(row.fraction < BAR for row in rows)} of {len(rows)}"


def closing(rows: Sequence[Row]) -> Iterator[Table | str]:
    """For each dtype, the mean fraction of the floor by face, layout and weight order."""
    for dtype in dict.fromkeys(row.dtype for row in rows):
        ours = [row for row in rows if row.who == "unshared" and row.dtype == dtype]
        counted = [row for row in ours if row.floor >= SHORT]
        short = {(row.case, row.threads) for row in ours if row.floor < SHORT}
        title = f"{dtype}, of the floor, geometric mean"
        if short:
            title += f"; without {plural(len(short), 'case')} whose floor is under {human(SHORT)}"
        if not counted:
            yield f"{title}: nothing is left"
            continue
        yield title
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        layouts = list(dict.fromkeys(row.layout for row in counted))
        for name in ("", *layouts, f"under {BAR:.0%}"):
            table.add_column(name, justify="right" if name else "left", no_wrap=True)
        table.add_column("worst")

        for face in FACES:
            found = [row for row in counted if row.face == face]
            if not found:
                continue
            worst = min(found, key=lambda row: row.fraction)
            where = f"{worst.fraction:.1%} {worst.case} {worst.layout} {worst.order}"
            table.add_row(face, *cells(found, layouts), where)
            orders = list(dict.fromkeys(row.order for row in found))
            for order in orders if len(orders) > 1 else ():
                of_order = [row for row in found if row.order == order]
                table.add_row(f"  {order}", *cells(of_order, layouts))
        yield table


def against(rows: Sequence[Row]) -> list[tuple[Row, dict[bool, float]]]:
    """Each row of ours that has peers, and how many times as long they take in the same layout:
    under False the best that computes the same, under True a convolution with shared weights."""

    def place(row: Row) -> tuple[str, ...]:
        return row.case, row.dtype, row.face, row.layout

    others: dict[tuple[str, ...], dict[bool, float]] = {}
    for row in rows:
        if row.who != "unshared":
            best = others.setdefault(place(row), {})
            best[row.shared] = min(row.median, best.get(row.shared, math.inf))
    return [
        (row, {kind: time / row.median for kind, time in others[place(row)].items()})
        for row in rows
        if row.who == "unshared" and place(row) in others
    ]


def closing_peers(rows: Sequence[Row]) -> Iterator[Table | str]:
    """For each dtype, the mean time of peers over ours; where a shared convolution is faster."""
    pairs = against(rows)
    for dtype in dict.fromkeys(row.dtype for row, _ in pairs):
        yield f"{dtype}, time of others / ours, geometric mean"
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for name in ("", *FACES):
            table.add_column(name, justify="right" if name else "left", no_wrap=True)
        for kind, name in ((False, "the best peer"), (True, "conv, shared weights")):
            texts = []
            for face in FACES:
                found = (p for p in pairs if p[0].dtype == dtype and p[0].face == face)
                ratios = [ratios[kind] for _, ratios in found if kind in ratios]
                texts.append(f"{mean(ratios):.2f} ({plural(len(ratios), 'row')})" if ratios else "")
            table.add_row(name, *texts)
        yield table
        slower: dict[str, list[str]] = {}
        for row, ratios_of in pairs:
            if row.dtype == dtype and row.binds == "C" and ratios_of.get(True, 1) < 1:
                places = slower.setdefault(f"{row.face} {row.case}", [])
                places.append(f"{row.layout} {row.order} {ratios_of[True]:.2f}")
        if slower:
            yield "Slower than with shared weights, although computing binds:"
            yield from (f"  {name}: {', '.join(places)}" for name, places in slower.items())


def machine() -> dict[str, Any]:
    """What a time cannot be read without."""
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else ""
    caches = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (
            (folder / name).read_text(encoding="ascii").strip()
            for name in ("level", "type", "size")
        )
        if kind != "Instruction":
            caches[f"L{level}"] = size
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "cpu": model or platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "cpus_usable": usable or os.cpu_count(),
        "caches": caches,
        "isa": unshared.build_info()["isa"],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def picture(rows: Sequence[Row], caption: str) -> Figure:
    """Bars: above, how much of the floor is reached; below, where there are peers, the times."""
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(f"{row.case}  {row.dtype}", []).append(row)
    faces = [face for face in FACES if any(row.face == face for row in rows)]
    others = sorted((row for row in rows if row.who != "unshared"), key=lambda row: row.shared)
    peers = list(dict.fromkeys(row.who for row in others))

    def ours(found: Sequence[Row], face: str) -> list[Row]:
        return [row for row in found if row.face == face and row.who == "unshared"]

    def fastest(found: Sequence[Row], face: str) -> list[Row]:
        """Of each who, in the memory order that suits it best."""
        best: dict[str, Row] = {}
        for row in sorted(found, key=lambda row: row.median):
            if row.face == face:
                best.setdefault(row.who, row)
        return [best[who] for who in ("unshared", *peers) if who in best]

    heights = [sum(len(ours(found, faces[0])) + 2 for found in cases.values())]
    if peers:
        heights.append(sum(len(fastest(found, faces[0])) + 2 for found in cases.values()))
    figure = Figure(figsize=(15, 0.19 * sum(heights) + 2.4), dpi=110, layout="constrained")
    figure.suptitle(
        "How near to what the machine can do", x=0.01, ha="left", fontsize=17, weight="bold"
    )
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=9, color="#444444")
    grid = figure.subplots(
        len(heights), len(faces), sharex="row", sharey="row", squeeze=False, height_ratios=heights
    )

    def draw(axes: Any, named: bool, groups: dict[str, list[tuple[float, str, str, str]]]) -> None:
        """One panel of groups of bars: length, its label, colour, name."""
        ticks: dict[float, str] = {}
        y = 0.0
        for count, (title, bars) in enumerate(groups.items()):
            if count % 2:
                axes.axhspan(y - 1, y + len(bars) + 1, color="#f3f3f3", zorder=0)
            if named:
                place = {"xycoords": ("axes fraction", "data"), "va": "center", "ha": "left"}
                axes.annotate(title, (0.004, y), fontsize=8.5, weight="bold", **place)
            for length, label, colour, name in bars:
                y += 1
                ticks[y] = name
                axes.barh(y, length, height=0.84, color=colour)
                offset = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
                axes.annotate(label, (length, y), fontsize=7, color="#333333", **offset)
            y += 2
        axes.set_ylim(y - 1, -1)
        axes.set_yticks(list(ticks), list(ticks.values()), fontsize=7)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)

    for column, face in enumerate(faces):
        groups: dict[str, list[tuple[float, str, str, str]]] = {}
        for case, found in cases.items():
            used: dict[str, int] = {}
            for row in ours(found, face):
                shade = used[row.layout] = used.get(row.layout, -1) + 1
                colour = SHADES.get(row.layout, OTHER)[shade % 3]
                label = f"{row.fraction:.0%} {row.binds}  {human(row.median)}"
                bar = (
                    row.fraction,
                    label,
                    colour,
                    f"{LONG.get(row.layout, row.layout)} {row.order}",
                )
                groups.setdefault(case, []).append(bar)
        axes = grid[0][column]
        draw(axes, column == 0, groups)
        axes.set_title(face, loc="left", fontsize=12)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xlim(0, 1.25 * max(1.0, *(row.fraction for row in rows if not row.shared)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xlabel("of the floor; it is made by C computing, M memory", fontsize=8)

    palette = {row.who: COLOURS[-1 if row.shared else peers.index(row.who) % 5] for row in others}
    for column, face in enumerate(faces if peers else ()):
        groups = {}
        for case, found in cases.items():
            for row in fastest(found, face):
                colour = palette.get(row.who, SHADES["last"][0])
                bar = (1e3 * row.median, human(row.median), colour, row.who)
                groups.setdefault(case, []).append(bar)
        axes = grid[1][column]
        axes.set_xscale("log")
        draw(axes, column == 0, groups)
        times = [1e3 * row.median for row in rows]
        axes.set_xlim(min(times) / 2, max(times) * 4)
        axes.set_xlabel("ms, each in the memory order that suits it best", fontsize=8)
    return figure
