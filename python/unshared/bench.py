"""The benchmark: how long a call takes, beside the least time this machine would need for it.

That floor is the larger of two: the flops at the measured peak of multiply-adds, and x, w and y
moved once each at the measured bandwidth of memory, on as many threads as the call. bench/README.md
tells how to read it. The packages imported here and in `report` are the extra `bench`.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

import unshared
from unshared import _core, report, sweep
from unshared.report import FACES, Row

Array = npt.NDArray[Any]
SEED = "n100 a16>b16 i28x28 k3x3"
DTYPES = ("float32", "float64", "float16", "bfloat16", "complex64", "complex128")
SEATS = {"forward": "yxw", "grad_input": "xyw", "grad_weight": "wxy"}  # result, operands
LAYOUTS = {("nia", "nob"): "last", ("nai", "nbo"): "first"}  # where x and y have their channels
ORDERS = ("oakb", "obka", "obak")
NEIGHBOUR = """
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
print(flush=True)
while True: pass
"""  # ends with its standard input, that is, with us


class Case:
    """A problem in text form; a memory order it leaves open is one that the benchmark varies."""

    def __init__(self, text: str, orders: Sequence[str] = ORDERS) -> None:
        text = text.partition("#")[0]
        self.problem = unshared.Problem(text)  # all checking is done there
        self.held = held = {word[0]: word[2:] for word in text.split() if word[1:2] == ":"}
        self.text = " ".join(word for word in str(self.problem).split() if word[1] != ":")
        if "[" in "".join(held.values()) or self.text.startswith("m"):
            raise ValueError("what can be timed has memory orders in letters and no mapped extent")
        if not self.problem.flops:
            raise ValueError("there is nothing to compute")
        given = (held.get("x", "nai"), held.get("y", "nbo"))
        self.layouts = [given] if held.keys() & {"x", "y"} else list(LAYOUTS)
        self.orders = [held["w"]] if "w" in held else list(orders)

        parts = {word[0]: word[1:].split("x") for word in self.text.split()}

        def each(letter: str, idle: str) -> list[str]:
            found = parts.get(letter, [idle])
            return found * len(parts["i"]) if len(found) == 1 else found

        self.kernel = tuple(map(int, parts["k"]))
        pairs = [(pair.split(":") * 2)[:2] for pair in each("p", "0")]
        self.options: dict[str, Any] = {
            "stride": [int(s) for s in each("s", "1")],
            "padding": [(int(low), int(high)) for low, high in pairs],
            "dilation": [int(d) for d in each("d", "1")],
            "input_dilation": [int(e) for e in each("e", "1")],
            "groups": int(parts.get("g", ["1"])[0]),
        }

    def variants(self) -> list[tuple[str, str, unshared.Problem]]:
        """Each memory order once: with a single tap or channel, some of them are the same."""
        found: dict[unshared.Problem, tuple[str, str]] = {}
        for x, y in self.layouts:
            for w in self.orders:
                problem = unshared.Problem(f"{self.text} x:{x} y:{y} w:{w}")
                found.setdefault(problem, (LAYOUTS.get((x, y), f"{x} {y}"), w))
        return [(layout, w, problem) for problem, (layout, w) in found.items()]

    def operands(self, face: str, t: dict[str, Array]) -> list[Any]:
        """What the function of that name takes ahead of its options."""
        sizes = {"grad_input": [self.problem.shape("x")[2:]], "grad_weight": [self.kernel]}
        return [*(t[seat] for seat in SEATS[face][1:]), *sizes.get(face, [])]


class Point(NamedTuple):
    """What is timed at a time; `size` is that of the dimension that is swept."""

    case: Case
    threads: int
    size: int | None = None


def swept(
    case: Case, name: str, threads: int, orders: Sequence[str]
) -> tuple[list[Point], list[int]]:
    """The case at each size, channels last unless it says otherwise; sizes it cannot have."""
    held = case.held if case.held.keys() & {"x", "y"} else {"x": "nia", "y": "nob", **case.held}
    points, absent = [], []
    for size in sweep.sizes(name, unshared.build_info()["threads"]):
        words = [sweep.resized(case.text, name, size), *(f"{k}:{v}" for k, v in held.items())]
        try:
            now = Case(" ".join(words), orders)
        except ValueError:
            absent.append(size)
        else:
            points.append(Point(now, size if name == "threads" else threads, size))
    return points, absent


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Processes that keep a CPU busy each, and end however this one does."""
    with ExitStack() as stack:
        for _ in range(count):
            child = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", NEIGHBOUR],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is ours to answer
            )
            stack.enter_context(child)  # waits
            stack.callback(child.kill)
            if child.stdout is None or not child.stdout.readline():  # a line when it has begun
                raise RuntimeError("a busy neighbour could not be started")
        yield


def clock(call: Callable[[], Any], seconds: float) -> dict[str, Any]:
    """Warm up, then time every run: five at least, and until `seconds` have passed."""
    now = time.perf_counter_ns
    start = now()
    call()
    while now() - start < 5e7:
        call()
    runs: list[int] = []
    gc.collect()
    gc.disable()
    try:
        start = now()
        while len(runs) < 5 or now() - start < 1e9 * seconds:
            begin = now()
            call()
            runs.append(now() - begin)
    finally:
        gc.enable()
    return quartiles([run / 1e9 for run in runs])


def quartiles(runs: Sequence[float]) -> dict[str, Any]:
    """What a row tells of the times of its runs, in seconds."""
    names = ("fastest", "low", "median", "high")
    times = (float(q) for q in np.quantile(runs, (0, 0.25, 0.5, 0.75)))
    return {**dict(zip(names, times, strict=True)), "runs": len(runs)}


def aligned(values: Array) -> Array:
    """A copy that begins on a line of the cache, as the tensors of PyTorch and JAX do."""
    line = 64 // values.itemsize
    made = np.empty(len(values) + line, values.dtype)
    made = made[-made.ctypes.data % 64 // values.itemsize :][: len(values)]
    made[:] = values
    return made


def kind_of(dtype: str) -> np.dtype[Any]:
    """NumPy's dtype of that name, or the one ml_dtypes adds."""
    return np.dtype(importlib.import_module("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype)


def array(buffer: Array, problem: unshared.Problem, seat: str) -> Array:
    """The tensor in that seat, in logical order, its memory in the problem's order."""
    strides = [stride * buffer.itemsize for stride in problem.strides(seat)]
    return np.lib.stride_tricks.as_strided(buffer, problem.shape(seat), strides)


class Bench:
    """The ceilings of this machine, and what was measured under them."""

    def __init__(self, threads: Sequence[int], seconds: float, dtypes: Sequence[str]) -> None:
        self.seconds, self.dtypes = seconds, dtypes
        self.ceilings = {count: self.measure_ceilings(count) for count in threads}
        self.versions = {"python": platform.python_version(), "numpy": np.__version__}
        self.versions["unshared"] = unshared.build_info()["version"]
        self.rows: list[Row] = []
        self.notes: dict[str, list[str]] = {}  # what to know, and the cases it is about
        alone = _core.measure_flops(dtypes[0], 1)
        for count, found in self.ceilings.items():
            if count > 1 and found[dtypes[0]] < alone:
                text = f"The peak of {count} threads came out below that of one: another program "
                self.note(f"{text}holds the CPUs, and these fractions of a floor mean nothing.")

    def measure_ceilings(self, threads: int) -> dict[str, float]:
        """Flop/s by dtype, and byte/s as `memory`."""
        # On several threads one attempt may see a neighbour all along.
        attempts = 3 if threads > 1 else 1
        peaks = {
            dtype: max(_core.measure_flops(dtype, threads) for _ in range(attempts))
            for dtype in self.dtypes
        }
        return {**peaks, "memory": _core.measure_bandwidth(threads)}

    def work(self, point: Point, dtype: str, flops: float, moved: float) -> dict[str, Any]:
        """What all rows of a case and dtype have in common."""
        case, threads, size = point
        ceilings = self.ceilings[threads]
        floor, binds = max((flops / ceilings[dtype], "C"), (moved / ceilings["memory"], "M"))
        given = {"case": case.text, "dtype": dtype, "threads": threads, "size": size}
        return {**given, "flops": flops, "bytes": moved, "floor": floor, "binds": binds}

    def run(self, point: Point, dtype: str, peers: bool) -> Iterator[None]:
        """Add the rows of a case; yields after each memory order, for the progress bar."""
        case = point.case
        sizes = {seat: math.prod(case.problem.shape(seat)) for seat in "xwy"}
        # Values do not matter to time, so a short random sequence may repeat.
        base = np.random.default_rng(0).standard_normal(1_000_003)
        kind = kind_of(dtype)
        flat = {seat: aligned(np.resize(base.astype(kind), size)) for seat, size in sizes.items()}
        scratch = aligned(np.full(max(sizes.values()), 0, kind))
        rows: list[Row] = []
        for layout, order, problem in case.variants():
            t = {seat: array(flat[seat], problem, seat) for seat in "xwy"}
            for face in FACES:
                out = array(scratch, problem, SEATS[face][0])
                operands, options = case.operands(face, t), {**case.options, "out": out}
                said = unshared.explain(face, *operands, **options)
                function = partial(getattr(unshared, face), num_threads=point.threads)
                timed = clock(partial(function, *operands, **options), self.seconds)
                work = self.work(point, dtype, said.flops, said.bytes)
                row = Row(
                    face=face, layout=layout, order=order, kernel=said.kernel, **work, **timed
                )
                rows.append(row)
            if peers and all(row.layout != layout or row.who == "unshared" for row in rows):
                rows += self.run_peers(point, dtype, layout, t)
            yield
        self.rows += sorted(rows, key=lambda r: (FACES.index(r.face), r.who != "unshared"))

    def run_peers(
        self, point: Point, dtype: str, layout: str, t: dict[str, Array]
    ) -> Iterator[Row]:
        """The peers in this order of x and y; the order of the weight is their own."""
        from unshared import peers

        if dtype not in ("float32", "float64"):
            self.note(f"Peers are not timed in {dtype}.")
            return
        case, threads, _ = point
        work = self.work(point, dtype, case.problem.flops, case.problem.bytes(dtype))
        for make in peers.PEERS:
            try:
                peer = make(case, t["x"], t["w"], t["y"], threads)
            except peers.MissingError as reason:
                self.note(f"Without {make.__name__}: {reason}.")
                continue
            except peers.PeerError as reason:
                self.note(f"Without {make.__name__} ({reason}):", case.text)
                continue
            self.versions[peer.name] = peer.version
            for face, call in peer.calls.items():
                more: dict[str, Any] = {"who": peer.name, "shared": peer.shared}
                if not peer.shared:
                    ours = getattr(unshared, face)(*case.operands(face, t), **case.options)
                    differs = report.difference(peer.logical[face](call()), ours)
                    more["differs"] = differs
                    if differs > 1e-3:
                        self.note(f"{face} of {peer.name} differs by {differs:.0e}:", case.text)
                timed = clock(call, self.seconds)
                yield Row(face=face, layout=layout, order="own", **work, **more, **timed)

    def note(self, text: str, case: str = "") -> None:
        cases = self.notes.setdefault(text, [])
        if case and case not in cases:
            cases.append(case)


def suite() -> list[str]:
    """The lines of suite.txt, of the installed package or of the repository."""
    beside = Path(__file__).with_name("suite.txt")
    path = beside if beside.exists() else Path(__file__).parents[2] / "bench" / "suite.txt"
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.partition("#")[0].strip()]


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m unshared bench",
        description="Time the three faces in several memory orders, beside the floor of this "
        "machine: what the flops and bytes of a call would take at its measured ceilings.",
    )
    add = parser.add_argument
    add("--case", action="append", default=[], metavar="TEXT", help=f"a problem, such as '{SEED}'; "
        "may be repeated; memory orders such as x:nia or w:oakb hold that one fixed")  # fmt: skip
    add("--suite", action="store_true", help="the shapes of real models in suite.txt")
    add("--sweep", choices=list(sweep.SIZES), help="one case at many sizes: where are cliffs?")
    add("--dtype", action="append", choices=DTYPES, help="may be repeated (float32)")
    add("--order", action="append", metavar="ORDER", help="of weights, such as bako; may be "
        f"repeated ({', '.join(ORDERS)}; in a sweep {ORDERS[0]})")  # fmt: skip
    add("--threads", type=int, default=1, help="0: all this process may use (%(default)s)")
    add("--beside", type=int, default=0, metavar="N", help="with N busy processes as neighbours")
    add("--peers", action="store_true", help="also what is installed of NumPy, PyTorch, JAX, Keras")
    add("--seconds", type=float, default=0.3, help="at least, for each row (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write every row, and what it was measured on")
    add("--plot", type=Path, metavar="FILE", help="draw the rows, a PNG")
    args = parser.parse_args(argv)
    if not 0 <= args.threads <= 4096:
        parser.error("--threads must be 0 to 4096")
    for option, path in (("--json", args.json), ("--plot", args.plot)):
        if path is not None and not path.parent.is_dir():
            parser.error(f"{option} must name a file in an existing folder, not {path}")
    if args.plot is not None and args.plot.suffix != ".png":
        parser.error(f"--plot must name a .png file, not {args.plot}")
    if not 0 <= args.beside <= 4096:
        parser.error("--beside must be 0 to 4096")
    for order in args.order or ():
        if sorted(order) != sorted("oakb"):
            parser.error(f"--order must have each of o, a, k and b once, unlike '{order}'")
    if args.sweep and (args.suite or args.peers or len(args.case) > 1):
        parser.error("--sweep takes one case, and neither --suite nor --peers")
    args.threads = args.threads or unshared.build_info()["threads"]
    cases = []
    for text in [*args.case, *(suite() if args.suite else [])] or [SEED]:
        try:
            cases.append(Case(text, args.order or ORDERS))
        except ValueError as error:
            parser.error(f"case '{text}': {error}")
    args.base = cases[0].text
    args.points, args.absent = [Point(case, args.threads) for case in cases], []
    if args.sweep:
        orders = args.order or ORDERS[:1]
        args.points, args.absent = swept(cases[0], args.sweep, args.threads, orders)
        if not args.points:
            parser.error(f"no size of {args.sweep} suits '{cases[0].text}'")
    args.dtypes = list(dict.fromkeys(args.dtype or ["float32"]))
    if "bfloat16" in args.dtypes and importlib.util.find_spec("ml_dtypes") is None:
        parser.error("NumPy has bfloat16 only with the package ml_dtypes")
    return args


def measure(bench: Bench, args: argparse.Namespace, console: Console) -> None:
    """Time all that was asked for; a table as soon as a case is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    # Drawn between rows only: a thread that redraws would be timed along.
    progress = Progress(*columns, console=console, transient=True, auto_refresh=False)
    pairs = [(point, dtype) for point in args.points for dtype in args.dtypes]
    task = progress.add_task("", total=sum(len(point.case.variants()) for point, _ in pairs))
    with progress, neighbours(args.beside):
        for point, dtype in pairs:
            progress.update(task, description=point.case.text, refresh=True)
            first = len(bench.rows)
            for _ in bench.run(point, dtype, args.peers):
                progress.update(task, advance=1, refresh=True)
            if not args.sweep:
                console.print(report.table_of(bench.rows[first:]))


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = arguments(argv)
    # A pipe or a file has no width of its own, and a row needs some 120 characters.
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    facts = report.machine()
    load = [os.getloadavg()[0]]
    counts = sorted({point.threads for point in args.points})
    most = counts[-1]  # of threads: whose ceilings are shown
    bench = Bench(counts, args.seconds, args.dtypes)
    version = bench.versions["unshared"]
    head = report.headline(facts, version, most, args.beside, bench.ceilings[most])
    print(head, f"Load average {load[0]:.2f}.", sep="\n", flush=True)
    interrupted = False
    try:
        measure(bench, args, console)
    except KeyboardInterrupt:
        interrupted = True
        bench.note("Interrupted: the figures are of what was finished before.")
    if args.absent:
        bench.note(f"Sizes that the case cannot have: {', '.join(map(str, args.absent))}.")
    after = bench.measure_ceilings(most)
    load.append(os.getloadavg()[0])
    before = bench.ceilings[most]
    drift = max(abs(after[name] / rate - 1) for name, rate in before.items())
    if drift > 0.1:
        bench.note(f"Not a quiet machine: afterwards its ceilings are {report.rates(after)}.")
    notes = [f"{text} {'; '.join(cases)}".strip() for text, cases in bench.notes.items()]
    print(*notes, f"Load average {load[1]:.2f}, of which this run is a part.", sep="\n")
    steep = sweep.all_cliffs(bench.rows, args.sweep, facts["isa"]) if args.sweep else []
    if args.json:
        record = {
            "command": shlex.join(["python", "-m", "unshared", "bench", *argv]),
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "complete": not interrupted,
            "machine": facts,
            "versions": bench.versions,
            "threads": most,
            "busy_neighbours": args.beside,
            "ceilings": {"before": before, "after": after},
            "load_average": {"before": load[0], "after": load[1]},
            "notes": notes,
            "rows": [{**asdict(row), "fraction": row.fraction} for row in bench.rows],
        }
        if args.sweep:
            record["sweep"] = args.sweep
            record["cliffs"] = [asdict(row) for row in steep]
        if len(counts) > 1:
            record["ceilings_by_threads"] = bench.ceilings
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"All rows: {args.json}")
    if bench.rows and args.plot:
        drawn = (
            sweep.picture(args.base, bench.rows, args.sweep, steep, head)
            if args.sweep
            else report.picture(bench.rows, head)
        )
        drawn.savefig(args.plot)
        print(f"The picture: {args.plot}")
    shown = (
        (*sweep.table_of(args.base, bench.rows, args.sweep, steep), *sweep.closing(steep))
        if args.sweep
        else (*report.closing(bench.rows), *report.closing_peers(bench.rows))
    )
    for block in shown:
        console.print(block, soft_wrap=isinstance(block, str))
    return 130 if interrupted else 0
