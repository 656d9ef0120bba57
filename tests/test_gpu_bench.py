"""The benchmark of CUDA kernels, rehearsed on the CPU: its arithmetic, its checks, its tables.

What only a GPU can show (graphs, ceilings, times) is not here; that ceilings.cu compiles is.
"""

from __future__ import annotations

import functools
import io
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rich", reason="the extra `bench` is not installed")
pytest.importorskip("matplotlib", reason="the extra `bench` is not installed")

from rich.console import Console

import gpu_report
import unshared
from gpu_report import MODES, DeviceRow, Promise

BENCH = Path(__file__).resolve().parents[1] / "bench"
CASE = "n3 a5>b4 i6x5 k3x2 p1"
CEILINGS = {  # powers of two: floors are exact
    "read": 2.0**42, "write": 2.0**41, "l2": 2.0**43, "float32": 2.0**45, "float64": 2.0**44,
    "tf32": 2.0**47, "bf16": 2.0**48,
}  # fmt: skip
ROW = DeviceRow(
    case="n100 a16>b16 i28x28 k3x3", dtype="float32", face="forward", layout="last", order="oakb",
    flops=1e9, bytes=1e6, floor=8e-6, binds="C", fastest=1e-5, low=1e-5, median=1e-5, high=1e-5,
    runs=5, kernel="tile", name="S0", bar=0.65, checked="bits",
)  # fmt: skip


@pytest.fixture
def gpu() -> Any:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    import gpu

    return gpu


def promise(rows: list[DeviceRow], start: str) -> Promise:
    return next(p for p in gpu_report.promises(rows) if p.text.startswith(start))


# --- floors and bars


def test_a_floor_is_the_larger_of_two_times() -> None:
    problem = unshared.Problem("n1 a64>b64 i56x56 k3x3 p1")
    work = gpu_report.work_of(problem, "forward", MODES[0])
    assert work.weights == 56 * 56 * 64 * 64 * 9 * 4
    assert work.read == work.weights + 56 * 56 * 64 * 4 and work.written == 56 * 56 * 64 * 4
    floor, binds = gpu_report.floor_of(work, MODES[0], CEILINGS, cold=True)
    assert (floor, binds) == (work.read / 2**42 + work.written / 2**41, "M")
    assert gpu_report.bar_of(work, MODES[0], binds) == 0.85
    hot, _ = gpu_report.floor_of(work, MODES[0], CEILINGS, cold=False)
    assert hot < floor

    gradient = gpu_report.work_of(problem, "grad_weight", MODES[0])
    assert gradient.written == gradient.weights and gradient.flops == work.flops


def test_arithmetic_has_the_ceiling_of_its_unit() -> None:
    problem = unshared.Problem("n1024 a64>b64 i56x56 k3x3 p1")
    floors = {}
    for mode in MODES:
        work = gpu_report.work_of(problem, "forward", mode)
        floors[mode.name], binds = gpu_report.floor_of(work, mode, CEILINGS, cold=True)
        assert binds == "C"
        tensor = mode.precision is not None
        assert gpu_report.bar_of(work, mode, binds) == (0.75 if tensor else 0.65)
    once = floors["float32"]
    assert floors["float32 3xtf32"] == 3 * floors["float32 tf32"]
    assert floors["bfloat16"] == once and floors["complex64"] == 4 * once
    assert floors["float64"] == 2 * once


# --- promises


def test_without_rows_nothing_is_kept_or_broken() -> None:
    assert {p.verdict for p in gpu_report.promises([])} == {"not run"}


def test_bars_are_counted_and_the_worst_is_named() -> None:
    slow = replace(ROW, median=4e-5, order="obka")
    found = promise([ROW, slow], "multiply-adds")
    assert (found.verdict, found.kept, found.of) == ("BROKEN", 1, 2)
    assert found.worst == "20% S0 forward float32 last obka"
    assert promise([ROW], "multiply-adds").verdict == "kept"
    assert promise([ROW], "large weights").verdict == "not run"


def test_the_seed_case_has_times_of_its_own() -> None:
    hot = [
        replace(ROW, face=face, cold=False, bar=None, median=median)
        for face, median in zip(gpu_report.FACES, (9e-6, 11.9e-6, 11e-6), strict=True)
    ]
    assert promise(hot, "S0, hot: forward").verdict == "kept"
    assert promise(hot, "S0, hot: both").verdict == "BROKEN"  # 22.9 microseconds
    beyond = promise(hot, "S0, S1, S2")
    assert (beyond.kept, beyond.of) == (3, 3)


@pytest.mark.parametrize(
    ("start", "change", "bound"),
    [
        ("channels first", {"layout": "first"}, 1.3),
        ("weights obka", {"order": "obka"}, 1.1),
        ("weights bako", {"order": "bako"}, 2.0),
        ("ours / the best peer", {"who": "a peer", "order": "own"}, 1.0),
    ],
)
def test_ratios_of_rows_that_differ_in_one_thing(
    start: str, change: dict[str, Any], bound: float
) -> None:
    for factor, verdict in ((0.99, "kept"), (1.01, "BROKEN")):
        of_peer = "who" in change
        time = ROW.median / (bound * factor) if of_peer else ROW.median * bound * factor
        assert promise([ROW, replace(ROW, median=time, **change)], start).verdict == verdict
        for alien in ({"name": "S1", "case": "another"}, {"dtype": "float32 tf32"}):
            found = promise([ROW, replace(ROW, median=time, **alien, **change)], start)
            assert found.verdict == "not run", "of another case or arithmetic"


def test_a_wrong_result_breaks_a_promise() -> None:
    found = promise([ROW, replace(ROW, checked="WRONG BITS")], "results")
    assert found.verdict == "BROKEN" and "S0 forward" in found.worst


def test_tables_put_the_worst_first() -> None:
    rows = [ROW, replace(ROW, name="S9", median=9e-5), replace(ROW, who="a peer", median=5e-5)]
    console = Console(file=io.StringIO(), width=200)
    console.print(gpu_report.table_of(rows), *gpu_report.summary(rows))
    text = console.file.getvalue()
    assert text.index("S9") < text.index("S0") and "x5.00" in text and "BROKEN" in text


# --- the program


def test_the_suite_can_be_read(gpu: Any) -> None:
    cases = gpu.arguments(["predict"]).cases
    assert {"S0", "S6e", "S10"} <= cases.keys() and len(cases) > 20


def test_rehearsal_of_ours(gpu: Any, tmp_path: Path) -> None:
    file = tmp_path / "ours.json"
    command = ["ours", "--place", "cpu", "--case", CASE, "--seconds", "0.001"]
    assert gpu.main([*command, "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    rows = found["rows"]
    assert not found["notes"]
    assert {row["dtype"] for row in rows} == {mode.name for mode in MODES}
    assert {row["checked"] for row in rows} == {"bits", "bound"}
    both = {(row["layout"], row["order"]) for row in rows if row["dtype"] == "float32"}
    assert len(both) == 6 and {row["cold"] for row in rows} == {True, False}
    assert gpu.load(file)[0] == DeviceRow(**{k: v for k, v in rows[0].items() if k != "fraction"})


def test_a_wrong_result_is_noticed(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = gpu.unshared.forward

    @functools.wraps(right)
    def wrong(*args: Any, out: Any, **options: Any) -> Any:
        poisoned = bool(out.isnan().all())  # as the results that are looked at are, beforehand
        right(*args, out=out, **options)
        if poisoned:
            out[0, 0, 0, 0] += 1
        return out

    monkeypatch.setattr(gpu.unshared, "forward", wrong)
    file = tmp_path / "ours.json"
    command = ["ours", "--place", "cpu", "--case", CASE, "--seconds", "0.001"]
    assert gpu.main([*command, "--json", str(file)]) == 1
    rows = json.loads(file.read_text())["rows"]
    said = {row["checked"] for row in rows if row["face"] == "forward"}
    assert said == {"WRONG BITS", "OUT OF BOUND"}
    assert {row["checked"] for row in rows if row["face"] != "forward"} == {"bits", "bound"}


def test_rehearsal_of_peers(gpu: Any, tmp_path: Path) -> None:
    file = tmp_path / "peers.json"
    command = ["peers", "--place", "cpu", "--case", CASE, "--seconds", "0.001"]
    assert gpu.main([*command, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert {row["layout"] for row in rows} == {"last", "first"}
    assert {row["dtype"] for row in rows} == {"float32", "float32 tf32"}
    who = {row["who"] for row in rows}
    assert {"torch unfold + bmm", "torch conv, shared weights"} <= who and "unshared" not in who
    compared = [row["differs"] for row in rows if not row["shared"]]
    assert compared and max(compared) < 1e-5, "all of these are computed in float32 here"


def test_predictions_need_no_gpu(gpu: Any, tmp_path: Path) -> None:
    file = tmp_path / "predicted.json"
    assert gpu.main(["predict", "--only", "S0,S6a", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert {row["name"] for row in rows} == {"S0", "S6a"}
    assert all(row["median"] == row["predicted"] > row["floor"] for row in rows)


def test_a_case_that_fails_does_not_end_the_others(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no memory\nand a trace")

    monkeypatch.setattr(gpu.Host, "clock", broken)
    file = tmp_path / "ours.json"
    command = ["ours", "--place", "cpu", "--case", CASE, "--case", "n1 a1>b1 i4 k2"]
    assert gpu.main([*command, "--json", str(file)]) == 0
    notes = json.loads(file.read_text())["notes"]
    assert len(notes) == 2 * len(MODES) and notes[0] == "0 float32: RuntimeError: no memory"


def test_without_a_gpu_nothing_is_run(gpu: Any, capsys: pytest.CaptureFixture[str]) -> None:
    if unshared.build_info()["cuda_available"]:
        pytest.skip("this machine has a GPU")
    assert gpu.main(["ours"]) == 2
    assert capsys.readouterr().out.startswith("not run: ")


def test_the_ceilings_compile(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc is on the PATH")
    target = ["-std=c++17", "-arch=sm_80", "-shared", "-Xcompiler", "-fPIC,-Wall,-Wextra"]
    command = [nvcc, *target, "-Werror", "all-warnings", str(BENCH / "ceilings.cu")]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "ceilings.so")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
