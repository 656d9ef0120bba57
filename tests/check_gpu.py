"""What a machine with a GPU can show: every bit, and everything that only a GPU can do wrong.

    python tests/check_gpu.py            all of it, in less than eight minutes, without a network
    python tests/check_gpu.py --build    the same of this folder, built first
    python tests/check_gpu.py --place cpu    a rehearsal on any machine: the CPU in the GPU's place

Prints a table and writes it, with the machine's data, as JSON. Verdicts: "passed", "FAILED", and
"not run" with the reason; what did not run has not passed. The exit status is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

HERE = Path(__file__).parent
ROOT = HERE.parent
Row = dict[str, Any]
TINY = (
    "n3 a4>b6 g2 i7x8 k3x2 s2x1 p1x0 d1x2",
    "n2 a3>b4 i11 k3",
    "n2 a2>b3 i4x5x6 k2x3x2",
    "n9 a8>b16 i6x5 k3x3 p1 x:nia y:nob w:oakb",
    "n1 a16>b17 i5x5 k3x3",
    "n4 a1>b3 i6x4 k2 e2",
    "n33 a8>b8 i3x3 k2",
    "n3 a5>b7 i5x4 k2 s2",
    "n65 a4>b4 i4x4 k3x3 p1",
    "n2 a3>b2 g1 i8 k3 p2:1 d2",
)


def row(name: str, verdict: str, detail: str) -> Row:
    return {"check": name, "verdict": verdict, "detail": detail}


# --- the machine ----------------------------------------------------------------------------------


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def machine(memory: Any) -> dict[str, Any]:
    import unshared

    cupy = next((d for d in ("cupy-cuda13x", "cupy-cuda12x", "cupy") if _version(d)), "cupy")
    nvcc = shutil.which("nvcc")
    released = ""
    if nvcc:
        said = subprocess.run([nvcc, "--version"], capture_output=True, text=True)
        released = (re.findall(r"release (\S+),", said.stdout) or ["?"])[0]
    return {
        "device": memory.describe() if memory.place == "cuda" else {"name": "cpu (a rehearsal)"},
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "build": unshared.build_info(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("numpy", "torch", "jaxlib", cupy)},
        "nvcc": released or None,
    }


# --- bits -----------------------------------------------------------------------------------------


class Bits:
    """Comparisons with the CPU, and how often which kernel took part."""

    def __init__(self, memory: Any, seed: int) -> None:
        import numpy as np

        self.memory, self.rng = memory, np.random.default_rng(seed)
        self.ran: Counter[str] = Counter()
        self.known: set[str] = set()

    def one(self, face: str, case: Any, dtype: Any, *more: Any, **how: Any) -> None:
        from device import compare

        said = compare(self.memory, face, case, dtype, self.rng, *more, **how)
        for name in (said.kernel, *(name for name, _ in said.declined)):
            self.known.add(f"{face} {name}")
        self.ran[f"{face} {said.kernel}"] += 1

    def cases(self) -> str:
        from arrays import DTYPES
        from cases import CASES, FACES

        count = 0
        for case in CASES:
            for dtype in DTYPES:
                for face in FACES:
                    kinds = ["normal", "wide"] if case.work() < 10**6 else ["normal"]
                    for turn, kind in enumerate(kinds):
                        self.one(face, case, dtype, accumulate=turn == 1, kind=kind)
                        count += 1
        return f"{count} comparisons: {len(CASES)} cases, {len(DTYPES)} dtypes, 3 faces"

    def awkward(self) -> str:
        """Every layout in every seat; subnormals; infinities and NaNs."""
        from arrays import DTYPES, LAYOUTS
        from cases import FACES, parse

        count = 0
        for line in TINY[:3]:
            case = parse(line)
            for dtype in DTYPES:
                for face in FACES:
                    for kind in ("tiny", "nonfinite"):
                        self.one(face, case, dtype, kind=kind)
                    for layout in LAYOUTS.values():
                        for turn in range(3):
                            layouts = [LAYOUTS["contiguous"]] * 3
                            layouts[turn] = layout
                            self.one(face, case, dtype, tuple(layouts))
                    count += 2 + 3 * len(LAYOUTS)
        return f"{count} comparisons"

    def random(self, seconds: float) -> str:
        from arrays import DTYPES, LAYOUTS
        from cases import FACES
        from device import random_case

        names, count, end = sorted(LAYOUTS), 0, time.monotonic() + seconds
        while time.monotonic() < end:
            case, dtype = random_case(self.rng), DTYPES[self.rng.integers(len(DTYPES))]
            layouts = None
            if self.rng.random() < 0.5:
                layouts = tuple(LAYOUTS[names[self.rng.integers(len(names))]] for _ in range(3))
            face = str(self.rng.choice(FACES))
            self.one(face, case, dtype, layouts, accumulate=bool(self.rng.integers(2)))
            count += 1
        return f"{count} problems"

    def kernels(self) -> Row:
        left = sorted(self.known - set(self.ran))
        ran = ", ".join(f"{name} {count}" for name, count in sorted(self.ran.items()))
        if left:
            return row("every kernel has run", "not run", f"{', '.join(left)}; ran: {ran}")
        return row("every kernel has run", "passed", ran)


def checked(name: str, check: Callable[[], str]) -> Row:
    began = time.monotonic()
    try:
        found = row(name, "passed", check())
    except Exception as error:
        traceback.print_exc()
        found = row(name, "FAILED", (str(error).splitlines() or [repr(error)])[0][:300])
    found["seconds"] = round(time.monotonic() - began, 1)
    return found


# --- other programs -------------------------------------------------------------------------------


def all_kernels(seconds: float) -> Row:
    """The C++ tests that run every kernel on the device, where they were built."""
    name, program = "each kernel on all it can do (C++)", ROOT / "build/gpu/unshared_tests"
    if not program.exists():
        return row(name, "not run", "no build/gpu/unshared_tests: cmake --preset gpu, and build")
    command = [program, "--source-file=*test_gpu.cpp", "--no-skip"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, cwd=ROOT)
    except subprocess.TimeoutExpired:
        return row(name, "not run", f"not done after {seconds:.0f} s")
    last = [line for line in done.stdout.splitlines() if "test cases" in line]
    if not last or re.search(r"test cases: +0 ", last[-1]):
        return row(name, "not run", "the program has no such tests")
    told = re.findall(r"MESSAGE: (.*)", done.stdout)
    if told and told[0].startswith("not run"):
        return row(name, "not run", told[0].removeprefix("not run: "))
    return row(name, "FAILED" if done.returncode else "passed", "; ".join([*told, last[-1]])[:300])


def tests(seconds: float) -> list[Row]:
    """test_gpu.py but for the bits, which are above: a line for each of its functions."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junit-xml={file}", "-p", "no:randomly"]
        command += ["-k", "not bits_as and not any_strides and not random_problems", "-m", "gpu"]
        with subprocess.Popen([*command, HERE / "test_gpu.py"], cwd=ROOT) as running:
            try:
                running.wait(seconds)
            except subprocess.TimeoutExpired:
                running.kill()
                return [row("tests/test_gpu.py", "FAILED", f"not done after {seconds} s")]
        if not file.exists():
            return [row("tests/test_gpu.py", "FAILED", "pytest did not finish")]
        found: dict[str, list[tuple[str, str]]] = {}
        for case in ElementTree.parse(file).iter("testcase"):
            function = case.get("name", "").split("[")[0]
            state = next((child for child in case if child.tag != "properties"), None)
            verdict = "passed" if state is None else state.tag
            text = "" if state is None else state.get("message", "")
            found.setdefault(function, []).append((verdict, text))
    rows = []
    for function, results in found.items():
        worst = [r for r in results if r[0] in ("failure", "error")]
        skips = [r for r in results if r[0] == "skipped"]
        verdict = "FAILED" if worst else "not run" if len(skips) == len(results) else "passed"
        detail = f"{len(results)} tests"
        if worst or skips:
            text = (worst or skips)[0][1].splitlines()[0][:200]
            detail = f"{len(worst or skips)} of {len(results)}: {text}"
        rows.append(row(function.removeprefix("test_").replace("_", " "), verdict, detail))
    return rows or [row("tests/test_gpu.py", "FAILED", "pytest found nothing to run")]


def sanitizer(tool: str, seconds: float) -> Row:
    name = f"compute-sanitizer {tool}"
    program = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if program is None:
        return row(name, "not run", "there is no compute-sanitizer")
    command = [program, "--tool", tool, "--error-exitcode", "9", "--print-limit", "5"]
    try:
        done = subprocess.run(
            [*command, sys.executable, __file__, "--tiny"],
            capture_output=True, text=True, timeout=seconds, env=os.environ,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return row(name, "not run", f"not done after {seconds:.0f} s")
    text = done.stdout + done.stderr
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", text)
    compared = re.findall(r"tiny: (\d+) comparisons", text)
    if not summary or not compared:  # it could not reach the device, for instance
        said = [line.strip("= ") for line in text.splitlines() if line.startswith("=====")]
        lines = [*said[1:], *text.strip().splitlines()[-1:], "it said nothing"]
        return row(name, "not run", f"status {done.returncode}: {lines[0][:200]}")
    verdict = "FAILED" if done.returncode else "passed"
    return row(name, verdict, f"{summary[-1]}; {compared[0]} comparisons")


def tiny(memory: Any) -> int:
    """What compute-sanitizer watches."""
    from arrays import DTYPES
    from cases import FACES, parse

    bits, count = Bits(memory, 0), 0
    for line in TINY:
        for turn, dtype in enumerate(DTYPES):
            for face in FACES:
                bits.one(face, parse(line), dtype, accumulate=turn % 2 == 1)
                count += 1
    print(f"tiny: {count} comparisons", flush=True)
    return 0


# --- all of it ------------------------------------------------------------------------------------


def build() -> None:
    site = ROOT / "build/gpu-site"
    command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-q"]
    command += ["--upgrade", "--target", str(site), "-C", "build-dir=build/gpu-wheel"]
    subprocess.run([*command, "-C", "cmake.define.UNSHARED_CUDA=ON", "."], cwd=ROOT, check=True)
    os.environ["PYTHONPATH"] = f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    sys.path.insert(0, str(site))


def table(rows: list[Row]) -> str:
    wide = max(len(r["check"]) for r in rows)
    return "\n".join(f"{r['verdict']:8} {r['check']:{wide}} {r['detail']}" for r in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--place", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--build", action="store_true", help="build and use this folder")
    parser.add_argument("--seconds", type=float, default=60, help="for random problems")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--json", type=Path, help="default: build/gpu-test-<device>.json")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.build:
        build()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

    import unshared
    from device import Gpu, Host

    if asked.place == "cuda" and not unshared.build_info()["cuda_available"]:
        built = unshared.build_info()["cuda_built"]
        print("not run:", "no CUDA device" if built else "this build has no CUDA kernels")
        return 2
    memory = Gpu() if asked.place == "cuda" else Host()
    if asked.tiny:
        return tiny(memory)

    began = time.monotonic()
    report: dict[str, Any] = {"machine": machine(memory), "seed": asked.seed}
    print(json.dumps(report), flush=True)
    bits = Bits(memory, asked.seed)
    rows = [
        checked("bits: the cases", bits.cases),
        checked("bits: layouts, subnormals, NaNs", bits.awkward),
        checked("bits: random problems", lambda: bits.random(asked.seconds)),
    ]
    rows += [bits.kernels()]
    if asked.place == "cuda":
        rows += [all_kernels(120), *tests(180)]
        rows += [sanitizer(t, 60) for t in ("memcheck", "racecheck", "initcheck", "synccheck")]
    else:
        rows += [row("all that needs a device", "not run", "this is a rehearsal on the CPU")]
    report |= {"seconds": round(time.monotonic() - began), "checks": rows}

    device = re.sub(r"[^a-z0-9]+", "-", report["machine"]["device"]["name"].lower()).strip("-")
    file = asked.json or ROOT / "build" / f"gpu-test-{device}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    counts = Counter(r["verdict"] for r in rows)
    print(f"\n{table(rows)}\n\n{dict(counts)} in {report['seconds']} s, seed {asked.seed}: {file}")
    return 1 if counts["FAILED"] else 0


if __name__ == "__main__":
    sys.exit(main())
