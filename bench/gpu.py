"""The benchmark of the CUDA kernels: ceilings, checks, times, peers; the worst rows first.

    make gpu-bench                        `ours`, then `peers`, on the first GPU
    python bench/gpu.py ours              ceilings, checks, and what our kernels take
    python bench/gpu.py peers             PyTorch's and JAX's ways on the same shapes, beside ours
    python bench/gpu.py predict           what the rows should come to; needs no GPU
    python bench/gpu.py ours --place cpu --case "n2 a3>b4 i6x6 k3x3"    a rehearsal on any machine

Needs PyTorch, the extra `bench` and, for the ceilings, nvcc. bench/README.md tells how to read it;
gpu_report.py says what a floor is and what the rows are held to.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rich.console import Console

import unshared
from gpu_report import MODES, DeviceRow, Mode, bar_of, floor_of, summary, table_of, work_of
from unshared import _core, bench, peers, report
from unshared.report import FACES

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
ORDERS = ("oakb", "obka", "bako")  # of weights; the last one has its places innermost
# Of an H200, where none is at hand: measured on one (copy), data sheets, published measurements.
H200 = {
    "read": 4.4e12, "write": 4.3e12, "copy": 4.3e12, "l2": 5.5e12, "float32": 60e12,
    "float64": 30e12, "tf32": 245e12, "bf16": 490e12, "graph": 1e-6, "stream": 2.6e-6,
}  # fmt: skip
FETCHED = 1e8  # bytes of a call up to which a peer's result is brought back and compared
Call = Callable[[], Any]
Variant = tuple[str, str, unshared.Problem]  # layout, order of weights


# --- the machine ----------------------------------------------------------------------------------


class Device(Protocol):
    place: str
    name: str
    cache: int  # bytes of the last one

    def ceilings(self) -> dict[str, float]: ...
    def stream(self) -> AbstractContextManager[Any]: ...
    def clock(self, calls: Sequence[Call]) -> dict[str, Any]: ...
    def extra(self, call: Call) -> int | None: ...


class Gpu:
    """The first GPU. Times are those of replayed graphs: no launch from Python is in them."""

    place = "cuda"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        found = torch.cuda.get_device_properties(0)
        self.name, self.cache = found.name, found.L2_cache_size
        self._stream = torch.cuda.Stream()
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # of JAX, if it comes

    def ceilings(self) -> dict[str, float]:
        nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
        if nvcc is None:
            raise SystemExit("the ceilings need nvcc, and there is none on the PATH")
        library = HERE.parent / "build" / "ceilings.so"
        library.parent.mkdir(exist_ok=True)
        command = [nvcc, "-O3", "-std=c++17", "-arch=native", "-shared", "-Xcompiler", "-fPIC"]
        subprocess.run([*command, str(HERE / "ceilings.cu"), "-o", str(library)], check=True)
        measure = ctypes.CDLL(str(library)).measure
        rates = {}
        for name in H200:
            found = ctypes.c_double()
            if error := measure(name.encode(), ctypes.byref(found)):
                raise RuntimeError(f"the ceiling '{name}' could not be measured: error {error}")
            rates[name] = found.value
        return rates

    def stream(self) -> AbstractContextManager[Any]:
        """Everything is done on one stream, so that it can be captured: gradients, too."""
        return torch.cuda.stream(self._stream)

    def clock(self, calls: Sequence[Call]) -> dict[str, Any]:
        """Of graphs of calls in turn, as many as take 2 ms, the quartiles of their replays."""
        for call in calls:  # whatever is made at a first call is made here
            call()
        each = min(self._timed(calls[0]) for _ in range(3))
        count = math.ceil(min(1000, max(1, 2e-3 / each)) / len(calls)) * len(calls)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            for i in range(count):
                calls[i % len(calls)]()
        graph.replay()
        runs: list[float] = []
        while len(runs) < 5 or (len(runs) < 20 and sum(runs) < self.seconds):
            runs.append(self._timed(graph.replay))
        return bench.quartiles([run / count for run in runs])

    def _timed(self, run: Call) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def extra(self, call: Call) -> int | None:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated() - before)


class Host:
    """A stand-in, this machine's CPU, so that all but CUDA is exercised everywhere."""

    place, name, cache = "cpu", "cpu (a rehearsal)", 1 << 20

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def ceilings(self) -> dict[str, float]:
        flops, memory = _core.measure_flops("float32", 1), _core.measure_bandwidth(1)
        rates = {"float32": flops, "float64": flops / 2, "tf32": flops, "bf16": flops}
        return {**rates, **dict.fromkeys(("read", "write", "copy", "l2"), memory)}

    def stream(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def clock(self, calls: Sequence[Call]) -> dict[str, Any]:
        runs: list[float] = []
        while len(runs) < 5 or (len(runs) < 20 and sum(runs) < self.seconds):
            start = time.perf_counter()
            calls[len(runs) % len(calls)]()
            runs.append(time.perf_counter() - start)
        return bench.quartiles(runs)

    def extra(self, call: Call) -> int | None:
        return None


# --- cases and rows -------------------------------------------------------------------------------


def suite() -> dict[str, str]:
    lines = (HERE / "gpu_suite.txt").read_text(encoding="utf-8").splitlines()
    texts = [line.partition("#")[0].split(maxsplit=1) for line in lines]
    return {text[0]: text[1].strip() for text in texts if text}


def wanted(case: bench.Case, mode: Mode) -> Iterator[Variant]:
    """All memory orders in float32; in other arithmetics channels last, weights by channels."""
    for layout, order, problem in case.variants():
        if mode.name == "float32" or (layout != "first" and order != "bako"):
            yield layout, order, problem


def explained(face: str, problem: unshared.Problem, case: bench.Case, mode: Mode) -> Any:
    """What a GPU would do. `explain` looks at arrays and reads none, so these have no memory."""
    t = {seat: bench.array(np.empty(1, bench.kind_of(mode.dtype)), problem, seat) for seat in "xwy"}
    options = {**case.options, "precision": mode.precision}
    return unshared.explain(face, *case.operands(face, t), **options, place="cuda")


def row_of(
    name: str, case: bench.Case, face: str, mode: Mode, variant: Variant, cold: bool,
    ceilings: dict[str, float], timed: dict[str, Any] | None = None,
) -> DeviceRow:  # fmt: skip
    """A row of ours; without times, one that takes what is predicted."""
    layout, order, problem = variant
    work, said = work_of(problem, face, mode), explained(face, problem, case, mode)
    floor, binds = floor_of(work, mode, ceilings, cold)
    return DeviceRow(
        case=case.text, dtype=mode.name, face=face, layout=layout, order=order, flops=work.flops,
        bytes=work.read + work.written, floor=floor, binds=binds, kernel=said.kernel, name=name,
        cold=cold, weights=work.weights, predicted=said.predicted,
        bar=bar_of(work, mode, binds) if cold else None,
        **(timed or bench.quartiles([said.predicted])),
    )  # fmt: skip


def predictions(
    name: str, case: bench.Case, mode: Mode, ceilings: dict[str, float]
) -> Iterator[DeviceRow]:
    if mode.precision is None:  # there is no model of the others
        for variant in wanted(case, mode):
            for face in FACES:
                yield row_of(name, case, face, mode, variant, True, ceilings)


# --- ours -----------------------------------------------------------------------------------------


class Tensors:
    """The operands of a case in one dtype: the same values in every memory order."""

    def __init__(self, case: bench.Case, dtype: str, place: str) -> None:
        self.case, self.place, self.kind = case, place, getattr(torch, dtype)
        generator = torch.Generator(place).manual_seed(1)
        how = {"generator": generator, "device": place, "dtype": self.kind}
        self.values = {seat: torch.randn(case.problem.shape(seat), **how) for seat in "xwy"}
        self._host: dict[str, torch.Tensor] = {}
        self._expected: dict[str, torch.Tensor] = {}

    def laid_out(self, problem: unshared.Problem) -> dict[str, torch.Tensor]:
        made = {}
        for seat, values in self.values.items():
            flat = torch.empty(values.numel(), device=self.place, dtype=self.kind)
            made[seat] = flat.as_strided(problem.shape(seat), problem.strides(seat))
            made[seat].copy_(values)
        return made

    def call(
        self, face: str, t: dict[str, torch.Tensor], out: torch.Tensor, precision: str | None
    ) -> Call:
        precision = precision if self.place == "cuda" else None  # a CPU knows one arithmetic
        options = {**self.case.options, "out": out, "precision": precision}
        return partial(getattr(unshared, face), *self.case.operands(face, t), **options)

    def expected(self, face: str) -> torch.Tensor:
        """The CPU's result, whose bits are the definition's."""
        if face not in self._expected:
            self._host = self._host or {seat: v.cpu() for seat, v in self.values.items()}
            out = torch.empty_like(self._host[bench.SEATS[face][0]])
            self.call(face, self._host, out, None)()
            self._expected[face] = out.to(self.place)
        return self._expected[face]

    def check(self, face: str, t: dict[str, torch.Tensor], mode: Mode, terms: int) -> str:
        """Of IEEE arithmetic every bit; of others the bound that cpp/unshared.hpp states."""
        want = self.expected(face)
        out = torch.full_like(t[bench.SEATS[face][0]], math.nan)
        self.call(face, t, out, mode.precision)()
        if mode.precision is None:
            return "bits" if torch.equal(bits(out), bits(want)) else "WRONG BITS"
        magnitude = torch.empty_like(out)
        self.call(face, {seat: v.abs() for seat, v in t.items()}, magnitude, None)()
        off = (out.double() - want.double()).abs()
        allowed = bound_of(mode, terms) * magnitude.double()
        if self.kind != torch.float32:  # both results are rounded, each by half an epsilon
            allowed += torch.finfo(self.kind).eps * (want.double().abs() + off)
        return "bound" if bool((off <= allowed).all()) else "OUT OF BOUND"


def bits(t: torch.Tensor) -> torch.Tensor:
    """Every element as whole numbers, in logical order."""
    real = torch.view_as_real(t.resolve_conj()) if t.is_complex() else t
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[real.element_size()]
    return real.contiguous().view(whole)


def bound_of(mode: Mode, terms: int) -> float:
    """The error of a tensor-core mode, as a part of the sum of the products' magnitudes."""
    u = 2.0**-24
    bounds = {
        "fast": (128 + terms / 64) * u,
        "tf32": 2.0**-10 + (64 + terms / 32) * u,
        "3xtf32": (108 + terms / 16) * u,
    }
    return bounds[str(mode.precision)]


def ours(
    name: str, case: bench.Case, mode: Mode, device: Device, ceilings: dict[str, float]
) -> Iterator[DeviceRow]:
    """All memory orders; cold, and hot where everything stays in the last cache."""
    tensors = Tensors(case, mode.dtype, device.place)
    for variant in wanted(case, mode):
        layout, order, problem = variant
        t = tensors.laid_out(problem)
        size = sum(v.numel() * v.element_size() for v in t.values())
        # Before a set of operands comes again, several times the last cache has gone by.
        sets = [t, *(tensors.laid_out(problem) for _ in range(min(64, 4 * device.cache // size)))]
        hot = 2 * size < device.cache and (layout, order) == ("last", ORDERS[0])
        for face in FACES:
            outs = [torch.empty_like(each[bench.SEATS[face][0]]) for each in sets]
            calls = [
                tensors.call(face, each, out, mode.precision)
                for each, out in zip(sets, outs, strict=True)
            ]
            checked = tensors.check(face, t, mode, explained(face, problem, case, mode).terms)
            for cold in (True, False) if hot else (True,):
                timed = device.clock(calls if cold else calls[:1])
                found = row_of(name, case, face, mode, variant, cold, ceilings, timed)
                found.checked, found.extra = checked, device.extra(calls[0])
                yield found


# --- peers ----------------------------------------------------------------------------------------


def others(
    name: str, case: bench.Case, mode: Mode, device: Device, ceilings: dict[str, float],
    note: Callable[[str], None],
) -> Iterator[DeviceRow]:  # fmt: skip
    """Peers in float32, their products in float32 or, as a mode of ours, in TF32."""
    allow_tf32(mode.precision is not None)
    for (x, y), layout in bench.LAYOUTS.items():
        problem = unshared.Problem(f"{case.text} x:{x} y:{y} w:oakb")
        tensors = Tensors(case, mode.dtype, device.place)
        t = tensors.laid_out(problem)
        host = {seat: values.cpu().numpy() for seat, values in t.items()}
        jax_local = partial(peers.jax_local, platform=device.place)
        for make in (*peers.OF_TORCH, *((jax_local,) if layout == "last" else ())):
            of_jax = make is jax_local
            tx, tdy = (host if of_jax else t)["x"], (host if of_jax else t)["y"]
            try:
                peer = make(case, tx, host["w"], tdy, 1)
                for face, call in peer.calls.items():
                    # JAX's calls wait for their results: they are timed as they are.
                    timed = (Host(0.1) if of_jax else device).clock([call])
                    variant = (layout, "own", problem)
                    found = row_of(name, case, face, mode, variant, True, ceilings, timed)
                    found.who, found.shared, found.kernel = peer.name, peer.shared, ""
                    found.predicted = found.bar = None
                    found.extra = None if of_jax else device.extra(call)
                    if not peer.shared and found.bytes < FETCHED:
                        want = tensors.expected(face).cpu().numpy()
                        found.differs = report.difference(peer.logical[face](call()), want)
                        if found.differs > 1e-2:  # TF32 rounds to 1e-3
                            note(f"{name}, {layout}: {face} of {found.who} differs from ours")
                    yield found
            except (peers.PeerError, RuntimeError) as reason:
                what = "JAX" if of_jax else make.__name__
                note(f"{name}, {layout}: without {what} ({str(reason).splitlines()[0]})")


def allow_tf32(allow: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allow
    torch.backends.cudnn.benchmark = True
    precision = "tensorfloat32" if allow else "float32"
    os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = precision  # read when JAX is imported
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_default_matmul_precision", precision)


# --- all of it ------------------------------------------------------------------------------------


class Run:
    """The rows of one command, what could not be had, and the time that is left for it."""

    def __init__(self, device: Device, ceilings: dict[str, float], minutes: float) -> None:
        self.device, self.ceilings = device, ceilings
        self.end = time.monotonic() + 60 * minutes
        self.rows: list[DeviceRow] = []
        self.notes: list[str] = []

    def all_of(
        self, cases: dict[str, bench.Case], modes: Sequence[Mode], how: Callable[..., Iterator[Any]]
    ) -> None:
        """Every case in every mode; one that fails is told and does not end the others."""
        for mode in modes:
            for name, case in cases.items():
                if time.monotonic() > self.end:
                    self.notes.append(f"{name} {mode.name}: not run, the time was over")
                    continue
                before, start = len(self.rows), time.monotonic()
                try:
                    with self.device.stream():
                        for row in how(name, case, mode):
                            self.rows.append(row)
                except Exception as error:
                    traceback.print_exc()
                    said = (str(error).splitlines() or [repr(error)])[0]
                    self.notes.append(f"{name} {mode.name}: {type(error).__name__}: {said}"[:300])
                took, count = time.monotonic() - start, len(self.rows) - before
                print(f"{name} {mode.name}: {count} rows, {took:.1f} s", flush=True)

    def record(self, what: str) -> dict[str, Any]:
        return {
            "command": shlex.join(["python", "bench/gpu.py", *sys.argv[1:]]),
            "what": what,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": self.device.name,
            "versions": {"unshared": unshared.build_info()["version"], "torch": torch.__version__},
            "ceilings": self.ceilings,
            "notes": self.notes,
            "rows": [{**asdict(row), "fraction": row.fraction} for row in self.rows],
        }


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("what", choices=("ours", "peers", "predict"))
    add("--place", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal")
    add("--case", action="append", metavar="TEXT", help="in place of gpu_suite.txt; repeatable")
    add("--only", metavar="NAMES", help="of gpu_suite.txt, such as S0,S6a")
    add("--minutes", type=float, default=8, help="after which no case is begun (%(default)s)")
    add("--seconds", type=float, default=0.2, help="at most, for each row (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="default: bench/results/gpu-<device>-<what>.json")
    args = parser.parse_args(argv)
    texts = dict(enumerate(args.case)) if args.case else suite()
    if args.only:
        texts = {name: texts[name] for name in args.only.split(",") if name in texts}
    args.cases = {str(name): bench.Case(text, ORDERS) for name, text in texts.items()}
    return args


def ceilings_of(device: Device, what: str) -> dict[str, float]:
    return H200 if what == "predict" else device.ceilings()


def load(file: Path) -> list[DeviceRow]:
    """The rows of another command on the same machine, if there are."""
    if not file.exists():
        return []
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    return [DeviceRow(**{k: v for k, v in row.items() if k != "fraction"}) for row in rows]


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(sys.argv[1:] if argv is None else argv)
    if args.what != "predict" and args.place == "cuda":
        if not unshared.build_info()["cuda_available"]:
            built = unshared.build_info()["cuda_built"]
            print("not run:", "no CUDA device" if built else "this build has no CUDA kernels")
            return 2
        device: Device = Gpu(args.seconds)
    else:
        device = Host(args.seconds)
    run = Run(device, ceilings_of(device, args.what), args.minutes)
    print(device.name, run.ceilings, flush=True)
    if args.what == "predict":
        run.all_of(args.cases, MODES, lambda *at: predictions(*at, run.ceilings))
    elif args.what == "ours":
        run.all_of(args.cases, MODES, lambda *at: ours(*at, device, run.ceilings))
    else:
        modes = [mode for mode in MODES if mode.name in ("float32", "float32 tf32")]
        note = run.notes.append
        run.all_of(args.cases, modes, lambda *at: others(*at, device, run.ceilings, note))

    name = "h200" if args.what == "predict" else device.name.lower()
    name = "gpu-" + re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    file = args.json or RESULTS / f"{name}-{args.what}.json"
    file.write_text(json.dumps(run.record(args.what), indent=1) + "\n", encoding="utf-8")
    rows = [*load(RESULTS / f"{name}-ours.json"), *run.rows] if args.what == "peers" else run.rows
    console = Console(width=None if sys.stdout.isatty() else 180, highlight=False)
    if any(row.who == "unshared" for row in rows):
        console.print(table_of(rows), *summary(rows))
    print(*run.notes, f"{len(run.rows)} rows: {file}", sep="\n")
    return 1 if any(row.checked.isupper() for row in run.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
