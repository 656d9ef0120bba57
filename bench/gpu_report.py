"""What bench/gpu.py makes of its rows: floors, bars, promises, tables. Nothing is measured here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

import unshared
from unshared import bench, report
from unshared.report import FACES, Row, human

LARGE = 2e8  # bytes of weights from which on streaming them is held to a bar
SHOWN = 40  # rows, the worst


class Mode(NamedTuple):
    """An arithmetic: dtype, `precision`, and the ceiling that its products stand under."""

    dtype: str
    size: int  # bytes of an element
    precision: str | None = None
    unit: str = "float32"
    products: int = 1  # of the unit, for each product

    @property
    def name(self) -> str:
        return self.dtype if self.precision is None else f"{self.dtype} {self.precision}"


MODES = (
    Mode("float32", 4),
    Mode("float32", 4, "3xtf32", "tf32", 3),
    Mode("float32", 4, "tf32", "tf32"),
    Mode("bfloat16", 2),
    Mode("bfloat16", 2, "fast", "bf16"),
    Mode("float64", 8, None, "float64"),
    Mode("complex64", 8),
)


@dataclass
class DeviceRow(Row):
    """A row of the benchmark, and what is told of a GPU besides; its dtype is a mode's name."""

    name: str = ""  # of the case
    cold: bool = True  # whether the operands come from memory, not from a cache
    weights: float = 0  # bytes
    predicted: float | None = None  # seconds, by the model that chooses kernels
    bar: float | None = None  # the fraction of the floor it is held to
    checked: str = ""  # against the CPU: "bits", "bound", or what was wrong
    extra: int | None = None  # bytes that were allocated beside operands


# --- floors and bars ------------------------------------------------------------------------------


class Work(NamedTuple):
    """What a call has to do, whatever computes it."""

    flops: float
    read: float  # bytes
    written: float
    weights: float  # bytes, read or written


def work_of(problem: unshared.Problem, face: str, mode: Mode) -> Work:
    moved = {seat: float(math.prod(problem.shape(seat)) * mode.size) for seat in "xwy"}
    result, *operands = bench.SEATS[face]
    flops = problem.flops * (4 if mode.dtype.startswith("complex") else 1)
    return Work(flops, sum(moved[seat] for seat in operands), moved[result], moved["w"])


def floor_of(work: Work, mode: Mode, ceilings: dict[str, float], cold: bool) -> tuple[float, str]:
    """Seconds, and what makes them: C computing, M memory - or the last cache, if all is there."""
    computing = work.flops * mode.products / ceilings[mode.unit]
    reads, writes = ("read", "write") if cold else ("l2", "l2")
    moving = work.read / ceilings[reads] + work.written / ceilings[writes]
    return max((computing, "C"), (moving, "M"))


def bar_of(work: Work, mode: Mode, binds: str) -> float | None:
    """What a cold row is held to: large weights as a stream, arithmetic by its unit."""
    if binds == "M":
        return 0.85 if work.weights > LARGE else None
    return 0.65 if mode.unit in ("float32", "float64") else 0.75


# --- promises -------------------------------------------------------------------------------------


class Promise(NamedTuple):
    text: str
    kept: int  # of the rows or pairs it is about
    of: int
    worst: str = ""

    @property
    def verdict(self) -> str:
        return "not run" if not self.of else "kept" if self.kept == self.of else "BROKEN"


def judged(text: str, found: Sequence[tuple[float, str]], bound: float) -> Promise:
    """Values that should not be above a bound, each with the name of what it is of."""
    value, where = max(found, default=(0.0, ""))
    worst = f"{value:.3g} {where}" if found else ""
    return Promise(f"{text} <= {bound:g}", sum(v <= bound for v, _ in found), len(found), worst)


def label(row: DeviceRow) -> str:
    return f"{row.name} {row.face} {row.dtype} {row.layout} {row.order}"


def ratios(
    rows: Sequence[DeviceRow],
    over: Callable[[DeviceRow], bool],
    under: Callable[[DeviceRow], bool],
    but: str,
) -> list[tuple[float, str]]:
    """Times over times of rows that are alike `but` for one field."""

    def key(row: DeviceRow) -> tuple[object, ...]:
        fields = {"name", "face", "dtype", "layout", "order", "cold"} - {but}
        return tuple(getattr(row, field) for field in sorted(fields))

    base = {key(row): row.median for row in rows if under(row)}
    return [
        (row.median / base[key(row)], label(row)) for row in rows if over(row) and key(row) in base
    ]


def promises(rows: Sequence[DeviceRow]) -> list[Promise]:
    """What the kernels are held to, as far as there are rows."""
    ours = [row for row in rows if row.who == "unshared"]
    held = [row for row in ours if row.bar is not None]
    found = []
    for bar in (0.85, 0.75, 0.65):
        some = [(-row.fraction, label(row)) for row in held if row.bar == bar]
        kept = sum(-value >= bar for value, _ in some)
        value, where = max(some, default=(0.0, ""))
        text = {0.85: "large weights as a stream", 0.75: "tensor cores", 0.65: "multiply-adds"}
        worst = f"{-value:.0%} {where}" if some else ""
        found.append(Promise(f"{text[bar]}: of the floor >= {bar:.0%}", kept, len(some), worst))

    hot = [row for row in ours if not row.cold]
    small = [row for row in hot if row.name in ("S0", "S1", "S2") and row.dtype == "float32"]
    late = [(1e6 * (row.median - row.floor), label(row)) for row in small]
    found.append(judged("S0, S1, S2, hot: microseconds beyond the floor", late, 4))
    seed = {row.face: 1e6 * row.median for row in small if row.name == "S0"}
    if len(seed) == len(FACES):
        both = seed["grad_input"] + seed["grad_weight"]
        found.append(judged("S0, hot: forward, microseconds", [(seed["forward"], "S0")], 10))
        found.append(judged("S0, hot: both gradients, microseconds", [(both, "S0")], 22))

    first = ratios(ours, lambda r: r.layout == "first", lambda r: r.layout == "last", "layout")
    found.append(judged("channels first / last", first, 1.3))
    for order, bound in (("obka", 1.1), ("bako", 2)):

        def other(row: DeviceRow, order: str = order) -> bool:
            return row.order == order

        pairs = ratios(ours, other, lambda r: r.order == "oakb", "order")
        found.append(judged(f"weights {order} / oakb", pairs, bound))

    best = [
        (1 / ratio, label(row))
        for row, ratios_of in report.against([r for r in rows if r.cold])
        if isinstance(row, DeviceRow) and (ratio := ratios_of.get(False))
    ]
    found.append(judged("ours / the best peer", best, 1))
    wrong = [row for row in ours if row.checked not in ("", "bits", "bound")]
    checked = [row for row in ours if row.checked]
    where = label(wrong[0]) if wrong else ""
    found.append(Promise("results as the CPU's", len(checked) - len(wrong), len(checked), where))
    return found


# --- tables ---------------------------------------------------------------------------------------


def table_of(rows: Sequence[DeviceRow]) -> Table:
    """Ours, the farthest from the floor first: the top is what to work on next."""
    ours = sorted((r for r in rows if r.who == "unshared"), key=lambda row: row.fraction)
    best = {id(row): ratios_of for row, ratios_of in report.against(rows)}
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.title = f"{len(ours)} rows" + (f", the worst {SHOWN}" if len(ours) > SHOWN else "")
    for name in ("case", "face", "mode", "x, y", "w", ""):
        table.add_column(name, no_wrap=True)
    for name in ("median", "floor", "of floor", "bar", "predicted", "peer", "conv"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("kernel", "checked"):
        table.add_column(name, no_wrap=True)
    for row in ours[:SHOWN]:
        ratios_of = best.get(id(row), {})
        factors = (f"x{ratios_of[kind]:.2f}" if kind in ratios_of else "" for kind in (False, True))
        table.add_row(
            row.name, row.face, row.dtype, row.layout, row.order, "cold" if row.cold else "hot",
            human(row.median), f"{human(row.floor)} {row.binds}", f"{row.fraction:.0%}",
            "" if row.bar is None else f"{row.bar:.0%}",
            "" if row.predicted is None else human(row.predicted),
            *factors, row.kernel, row.checked,
        )  # fmt: skip
    return table


def summary(rows: Sequence[DeviceRow]) -> Iterator[Table]:
    """The mean fraction of the floor by arithmetic and face; then the promises."""
    ours = [row for row in rows if row.who == "unshared" and row.cold]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("of the floor, cold, geometric mean", *FACES):
        table.add_column(name, justify="right" if name in FACES else "left", no_wrap=True)
    for mode in MODES:
        fractions = [
            [row.fraction for row in ours if row.dtype == mode.name and row.face == face]
            for face in FACES
        ]
        if any(fractions):
            table.add_row(mode.name, *(f"{report.mean(f):.0%}" if f else "" for f in fractions))
    yield table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("verdict", "promise", "kept", "worst"):
        table.add_column(name, justify="right" if name == "kept" else "left", no_wrap=True)
    for promise in promises(rows):
        table.add_row(
            promise.verdict, promise.text, f"{promise.kept} of {promise.of}", promise.worst
        )
    yield table
