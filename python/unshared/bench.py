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
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

import unshared
from unshared import _core, report
from unshared.report import FACES, Row

Array = npt.NDArray[Any]
SEED = "n100 a16>b16 i28x28 k3x3"
DTYPES = ("float32", "float64", "float16", "bfloat16", "complex64", "complex128")
SEATS = {"forward": "yxw", "grad_input": "xyw", "grad_weight": "wxy"}  # result, operands
LAYOUTS = {("nia", "nob"): "last", ("nai", "nbo"): "first"}  # where x and y have their channels
ORDERS = ("oakb", "obka", "obak")


class Case:
    """A problem in text form; a memory order it leaves open is one that the benchmark varies."""

    def __init__(self, text: str) -> None:
        text = text.partition("#")[0]
        self.problem = unshared.Problem(text)  # all checking is done there
        orders = {word[0]: word[2:] for word in text.split() if word[1:2] == ":"}
        self.text = " ".join(word for word in str(self.problem).split() if word[1] != ":")
        if "[" in "".join(orders.values()) or self.text.startswith("m"):
            raise ValueError("what can be timed has memory orders in letters and no mapped extent")
        if not self.problem.flops:
            raise ValueError("there is nothing to compute")
        given = (orders.get("x", "nai"), orders.get("y", "nbo"))
        self.layouts = [given] if orders.keys() & {"x", "y"} else list(LAYOUTS)
        self.orders = [orders["w"]] if "w" in orders else list(ORDERS)

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
    names = ("fastest", "low", "median", "high")
    times = (float(q) / 1e9 for q in np.quantile(runs, (0, 0.25, 0.5, 0.75)))
    return {**dict(zip(names, times, strict=True)), "runs": len(runs)}


def array(buffer: Array, problem: unshared.Problem, seat: str) -> Array:
    """The tensor in that seat, in logical order, its memory in the problem's order."""
    strides = [stride * buffer.itemsize for stride in problem.strides(seat)]
    return np.lib.stride_tricks.as_strided(buffer, problem.shape(seat), strides)


class Bench:
    """The ceilings of this machine, and what was measured under them."""

    def __init__(self, threads: int, seconds: float, dtypes: Sequence[str]) -> None:
        self.threads, self.seconds, self.dtypes = threads, seconds, dtypes
        self.ceilings = self.measure_ceilings()
        self.versions = {"python": platform.python_version(), "numpy": np.__version__}
        self.versions["unshared"] = unshared.build_info()["version"]
        self.rows: list[Row] = []
        self.notes: dict[str, list[str]] = {}  # what to know, and the cases it is about

    def measure_ceilings(self) -> dict[str, float]:
        """Flop/s by dtype, and byte/s as `memory`."""
        peaks = {dtype: _core.measure_flops(dtype, self.threads) for dtype in self.dtypes}
        return {**peaks, "memory": _core.measure_bandwidth(self.threads)}

    def work(self, case: Case, dtype: str, flops: float, moved: float) -> dict[str, Any]:
        """What all rows of a case and dtype have in common."""
        times = (flops / self.ceilings[dtype], "C"), (moved / self.ceilings["memory"], "M")
        floor, binds = max(times)
        size = {"flops": flops, "bytes": moved, "floor": floor, "binds": binds}
        return {"case": case.text, "dtype": dtype, **size}

    def run(self, case: Case, dtype: str, peers: bool) -> Iterator[None]:
        """Add the rows of a case; yields after each memory order, for the progress bar."""
        sizes = {seat: math.prod(case.problem.shape(seat)) for seat in "xwy"}
        # Values do not matter to time, so a short random sequence may repeat.
        base = np.random.default_rng(0).standard_normal(1_000_003)
        kind = importlib.import_module("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
        flat = {seat: np.resize(base.astype(kind), size).copy() for seat, size in sizes.items()}
        scratch = np.full(max(sizes.values()), 0, kind)  # not zeros(): that maps smaller pages
        rows: list[Row] = []
        for layout, order, problem in case.variants():
            t = {seat: array(flat[seat], problem, seat) for seat in "xwy"}
            for face in FACES:
                out = array(scratch, problem, SEATS[face][0])
                operands, options = case.operands(face, t), {**case.options, "out": out}
                said = unshared.explain(face, *operands, **options)
                function = partial(getattr(unshared, face), num_threads=self.threads)
                timed = clock(partial(function, *operands, **options), self.seconds)
                work = self.work(case, dtype, said.flops, said.bytes)
                row = Row(
                    face=face, layout=layout, order=order, kernel=said.kernel, **work, **timed
                )
                rows.append(row)
            if peers and all(row.layout != layout or row.who == "unshared" for row in rows):
                rows += self.run_peers(case, dtype, layout, t)
            yield
        self.rows += sorted(rows, key=lambda r: (FACES.index(r.face), r.who != "unshared"))

    def run_peers(self, case: Case, dtype: str, layout: str, t: dict[str, Array]) -> Iterator[Row]:
        """The peers in this order of x and y; the order of the weight is their own."""
        from unshared import peers

        work = self.work(case, dtype, case.problem.flops, case.problem.bytes(dtype))
        for make in peers.PEERS:
            try:
                if dtype not in ("float32", "float64"):
                    raise peers.PeerError(f"not timed in {dtype}")
                peer = make(case, t["x"], t["w"], t["y"], self.threads)
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
    add("--dtype", action="append", choices=DTYPES, help="may be repeated (float32)")
    add("--threads", type=int, default=1, help="0: all this process may use (%(default)s)")
    add("--peers", action="store_true", help="also what is installed of NumPy, PyTorch, JAX")
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
    args.threads = args.threads or unshared.build_info()["threads"]
    args.cases = []
    for text in [*args.case, *(suite() if args.suite else [])] or [SEED]:
        try:
            args.cases.append(Case(text))
        except ValueError as error:
            parser.error(f"case '{text}': {error}")
    args.dtypes = list(dict.fromkeys(args.dtype or ["float32"]))
    if "bfloat16" in args.dtypes and importlib.util.find_spec("ml_dtypes") is None:
        parser.error("NumPy has bfloat16 only with the package ml_dtypes")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = arguments(argv)
    # A pipe or a file has no width of its own, and a row needs some 120 characters.
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    facts = report.machine()
    load = [os.getloadavg()[0]]
    bench = Bench(args.threads, args.seconds, args.dtypes)
    head = report.headline(facts, bench.versions["unshared"], args.threads, bench.ceilings)
    print(head, f"Load average {load[0]:.2f}.", sep="\n", flush=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    interrupted = False
    # Drawn between rows only: a thread that redraws would be timed along.
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        pairs = [(case, dtype) for case in args.cases for dtype in args.dtypes]
        task = progress.add_task("", total=sum(len(case.variants()) for case, _ in pairs))
        try:
            for case, dtype in pairs:
                progress.update(task, description=case.text, refresh=True)
                first = len(bench.rows)
                for _ in bench.run(case, dtype, args.peers):
                    progress.update(task, advance=1, refresh=True)
                console.print(report.table_of(bench.rows[first:]))
        except KeyboardInterrupt:
            interrupted = True
            bench.note("Interrupted: the figures are of what was finished before.")
    after = bench.measure_ceilings()
    load.append(os.getloadavg()[0])
    drift = max(abs(after[name] / rate - 1) for name, rate in bench.ceilings.items())
    if drift > 0.1:
        bench.note(f"Not a quiet machine: afterwards its ceilings are {report.rates(after)}.")
    notes = [f"{text} {'; '.join(cases)}".strip() for text, cases in bench.notes.items()]
    print(*notes, f"Load average {load[1]:.2f}, of which this run is a part.", sep="\n")
    if args.json:
        record = {
            "command": shlex.join(["python", "-m", "unshared", "bench", *argv]),
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "complete": not interrupted,
            "machine": facts,
            "versions": bench.versions,
            "threads": args.threads,
            "ceilings": {"before": bench.ceilings, "after": after},
            "load_average": {"before": load[0], "after": load[1]},
            "notes": notes,
            "rows": [{**asdict(row), "fraction": row.fraction} for row in bench.rows],
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"All rows: {args.json}")
    if bench.rows and args.plot:
        report.picture(bench.rows, head).savefig(args.plot)
        print(f"The picture: {args.plot}")
    if bench.rows:
        print(report.closing(bench.rows))
    return 130 if interrupted else 0
