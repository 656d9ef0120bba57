"""The benchmark's arithmetic and texts, and that it runs. Nothing here depends on a time."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import unshared

pytest.importorskip("rich", reason="the extra `bench` is not installed")
pytest.importorskip("matplotlib", reason="the extra `bench` is not installed")

from rich.console import Console

from unshared import bench, peers, report, sweep
from unshared.report import Row

ROW = Row(
    case="n100 a16>b16 i28x28 k3x3",
    dtype="float32",
    face="forward",
    layout="last",
    order="oakb",
    flops=1e9,
    bytes=1e6,
    floor=0.01,
    binds="C",
    fastest=0.02,
    low=0.02,
    median=0.02,
    high=0.02,
    runs=5,
)


def text_of(blocks: Iterator[Any]) -> str:
    console = Console(file=io.StringIO(), width=140)
    for block in blocks:
        console.print(block)
    return console.file.getvalue()


def line_of(text: str, start: str) -> list[str]:
    return next(line.split() for line in text.splitlines() if line.strip().startswith(start))


# --- the closing tables


def test_mean_is_geometric() -> None:
    assert math.isclose(report.mean([0.5, 2.0, 8.0]), 2)


def test_closing_means_and_the_worst() -> None:
    rows = [
        replace(ROW, median=0.0125),  # 80 %
        replace(ROW, median=0.05, order="obka"),  # 20 %: with the first, 40 %
        replace(ROW, median=0.02, layout="first"),
        replace(ROW, median=0.016, face="grad_input"),
        replace(ROW, median=1.0, who="a peer"),
    ]
    text = text_of(report.closing(rows))
    assert line_of(text, "forward")[:7] == ["forward", "40.0%", "50.0%", "2", "of", "3", "20.0%"]
    assert line_of(text, "forward")[7:] == [*ROW.case.split(), "last", "obka"]
    assert line_of(text, "oakb") == ["oakb", "80.0%", "50.0%", "1", "of", "2"]
    assert line_of(text, "obka") == ["obka", "20.0%", "1", "of", "1"]
    assert line_of(text, "grad_input")[:4] == ["grad_input", "62.5%", "1", "of"]
    assert "grad_weight" not in text and "peer" not in text


def test_closing_leaves_out_short_floors_and_says_so() -> None:
    short = replace(ROW, case="n1 a1>b1 i3x3 k3x3", floor=1e-6, median=1e-4)
    text = text_of(report.closing([ROW, short, replace(short, layout="first")]))
    assert "without 1 case whose floor is under 200 us" in text
    assert line_of(text, "forward")[1:5] == ["50.0%", "1", "of", "1"]
    assert "nothing is left" in text_of(report.closing([short]))


def test_closing_keeps_dtypes_apart() -> None:
    text = text_of(report.closing([ROW, replace(ROW, dtype="float16", median=0.04)]))
    assert "float32, of the floor" in text and "float16, of the floor" in text
    assert "50.0%" in text and "25.0%" in text


def test_peers_are_compared_within_a_layout() -> None:
    fast, slow = replace(ROW, median=0.02), replace(ROW, median=0.08, order="obka")
    peer = replace(ROW, order="own", who="a", median=0.16)
    rows = [
        fast,
        slow,
        replace(ROW, layout="first"),  # no peer ran there
        peer,
        replace(peer, who="b", median=0.64),
        replace(peer, who="conv", shared=True, median=0.04),
    ]
    ratios = report.against(rows)
    assert ratios == [(fast, {False: 8.0, True: 2.0}), (slow, {False: 2.0, True: 0.5})]
    text = text_of(report.closing_peers(rows))
    assert line_of(text, "the best peer")[3:6] == ["4.00", "(2", "rows)"]
    assert line_of(text, "conv, shared")[3:6] == ["1.00", "(2", "rows)"]
    assert f"forward {ROW.case}: last obka 0.50" in text
    assert "oakb" not in text  # not slower
    streams = [replace(row, binds="M") for row in rows]
    assert "although" not in text_of(report.closing_peers(streams))
    assert not list(report.closing_peers([fast, slow]))


# --- sweeps


def test_sizes_stand_around_vectors_and_tiles() -> None:
    for name in sweep.LANES:
        found = sweep.sizes(name, 2)
        assert found == sorted(set(found))
        for edge in (8, 16, 32, 48):
            # An image begins at 8.
            assert {edge, edge + 1} <= set(found) and edge - 1 in {*found, 7}
    assert 1024 in sweep.sizes("batch", 2) and 128 in sweep.sizes("channels", 2)
    assert sweep.sizes("kernel", 2) == list(range(1, 12))


@pytest.mark.parametrize("usable", [1, 2, 16, 20, 64, 1000])
def test_sizes_of_threads_end_with_the_machine(usable: int) -> None:
    found = sweep.sizes("threads", usable)
    assert found == sorted(set(found)) and found[0] == 1 and found[-1] == usable


@pytest.mark.parametrize(
    ("text", "name", "size", "expected"),
    [
        ("n4 a3>b8 i32x30 k4x4 s2", "batch", 7, "n7 a3>b8 i32x30 k4x4 s2"),
        ("n4 a3>b8 i32x30 k4x4 s2", "channels", 7, "n4 a7>b7 i32x30 k4x4 s2"),
        ("n4 a3>b8 i32x30 k4x4 s2", "kernel", 7, "n4 a3>b8 i32x30 k7x7 s2"),
        ("n4 a3>b8 i32x30 k4x4 s2", "image", 7, "n4 a3>b8 i7x7 k4x4 s2"),
        ("n4 a3>b8 i32x30 k4x4 s2", "threads", 7, "n4 a3>b8 i32x30 k4x4 s2"),
        ("n4 a8>b8 g8 i9 k3", "channels", 5, "n4 a5>b5 g5 i9 k3"),
        ("n4 a8>b8 g2 i9 k3", "channels", 6, "n4 a6>b6 g2 i9 k3"),
        ("n4 a8>b8 i9x9x9 k3x3x3", "kernel", 2, "n4 a8>b8 i9x9x9 k2x2x2"),
    ],
)
def test_resized(text: str, name: str, size: int, expected: str) -> None:
    assert sweep.resized(text, name, size) == expected
    unshared.Problem(expected)


def test_swept_holds_memory_orders_and_leaves_out_what_cannot_be() -> None:
    points, absent = bench.swept(bench.Case("n2 a3>b4 i5x5 k3x3"), "kernel", 1, ["oakb"])
    assert [point.size for point in points] == [1, 2, 3, 4, 5] and absent == [6, 7, 8, 9, 10, 11]
    assert all(point.threads == 1 for point in points)
    assert [variant[:2] for variant in points[2].case.variants()] == [("last", "oakb")]

    held = bench.Case("n2 a4>b4 g2 i5 k3 x:nai w:obak")
    points, absent = bench.swept(held, "channels", 1, ["oakb"])
    assert all(size % 2 for size in absent) and 1 in absent
    assert [variant[:2] for variant in points[0].case.variants()] == [("first", "obak")]

    points, absent = bench.swept(bench.Case("n2 a3>b4 i5x5 k3x3"), "threads", 1, ["oakb"])
    assert [point.threads for point in points] == [point.size for point in points] and not absent


def test_vector_widths() -> None:
    assert sweep.vector_width("batch", "float32", "v4") == 16
    assert sweep.vector_width("channels", "complex128", "v3") == 4
    assert sweep.vector_width("image", "bfloat16", "neon") == 4
    assert sweep.vector_width("kernel", "float32", "v4") == 1


@pytest.mark.parametrize(
    ("cost", "width", "expected"),
    [
        ({15: 1.0, 16: 1.0, 17: 1.4, 18: 1.4, 32: 1.0, 33: 1.0}, 16, [17]),
        ({15: 1.0, 16: 1.0, 17: 1.2, 32: 1.0, 33: 1.0}, 16, []),  # not steep enough
        ({15: 1.0, 16: 1.0, 17: 1.4, 32: 1.4, 33: 1.4}, 16, []),  # it stays so
        ({15: 2.0, 16: 1.5, 17: 1.5, 32: 1.0, 33: 1.0}, 16, []),  # small sizes are dear
        ({17: 1.4, 16: 1.0, 40: 1.0}, 16, [17]),  # in any order; the first one far enough
        ({16: 1.0, 17: 9.0, 32: 1.0}, 16, []),  # a vector above: the sweep has ended
        ({3: 1.0, 4: 1.4, 5: 1.0}, 1, [4]),
        ({}, 16, []),
        ({1: 1.0}, 1, []),
    ],
)
def test_cliffs(cost: dict[int, float], width: int, expected: list[int]) -> None:
    assert sweep.cliffs(cost, width) == expected


def test_cliffs_of_rows_are_by_the_flop_and_by_series() -> None:
    rows = [
        replace(ROW, face=face, order=order, size=size, flops=size * 1e6, fastest=size * time)
        for face, order in (("forward", "oakb"), ("forward", "obka"), ("grad_input", "oakb"))
        for size, time in ((1, 1.0), (2, 1.0 if order == "obka" else 1.5), (3, 1.0))
    ]
    steep = sweep.all_cliffs(rows, "kernel", "v4")
    found = [(row.face, row.order, row.size) for row in steep]
    assert found == [("forward", "oakb", 2), ("grad_input", "oakb", 2)]
    text = text_of(sweep.closing(steep))
    assert f"forward float32 last oakb: 2 ({ROW.case}" in text
    assert "none" in text_of(sweep.closing([]))
    assert "cliff" in text_of(sweep.table_of(ROW.case, rows, "kernel", steep))
    sweep.picture(ROW.case, rows, "kernel", steep, "a machine").savefig(io.BytesIO())


# --- cases


def test_orders_can_be_chosen() -> None:
    case = bench.Case("n2 a3>b4 i5x6 k3x2", ["bako"])
    assert [variant[:2] for variant in case.variants()] == [("last", "bako"), ("first", "bako")]
    x, w, y = (case.variants()[0][2].strides(seat) for seat in "xwy")
    assert w[:2] == (5, 1) and x[1] == 1 and y[1] == 1
    held = bench.Case("n2 a3>b4 i5x6 k3x2 x:nia y:nob w:obka", ["bako"])
    assert [variant[:2] for variant in held.variants()] == [("last", "obka")]


def test_every_case_of_the_suite_can_be_timed() -> None:
    lines = [line.split("#")[0].strip() for line in bench.suite()]
    assert len({bench.Case(line).text for line in lines}) == len(lines)


@pytest.mark.parametrize(
    "argv",
    [
        ["--order", "oak"],
        ["--order", "oakk"],
        ["--sweep", "batch", "--suite"],
        ["--sweep", "batch", "--peers"],
        ["--sweep", "batch", "--case", bench.SEED, "--case", bench.SEED],
        ["--beside", "-1"],
    ],
)
def test_options_that_do_not_fit(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.arguments(argv)
    assert argv[0] in capsys.readouterr().err


# --- it runs


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_neighbours_end(error: type[BaseException] | None, monkeypatch: Any) -> None:
    started = []
    popen = subprocess.Popen

    def noted(*args: Any, **options: Any) -> Any:
        started.append(popen(*args, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", noted)
    with pytest.raises(error) if error else nullcontext(), bench.neighbours(2):
        assert [child.poll() for child in started] == [None, None]
        if error:
            raise error
    assert len(started) == 2 and all(child.returncode is not None for child in started)


def test_a_neighbour_ends_when_we_are_gone() -> None:
    pipe = subprocess.PIPE
    child = subprocess.Popen([sys.executable, "-c", bench.NEIGHBOUR], stdin=pipe, stdout=pipe)
    try:
        child.communicate(timeout=10)  # closes its standard input
        assert child.returncode == 0
    finally:
        child.kill()


def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.json"
    dtypes = ["float32", "float16", "bfloat16", "complex64"]
    argv = ["--case", "n1 a1>b4 i8x8 k3x3 x:nia y:nob", "--order", "bako", "--seconds", "0"]
    argv += [word for dtype in dtypes for word in ("--dtype", dtype)]
    assert bench.main([*argv, "--beside", "1", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "1 thread beside 1 busy neighbour" in out
    assert all(f"{dtype}, of the floor" in out for dtype in dtypes)
    record = json.loads(file.read_text())
    assert record["complete"] and record["busy_neighbours"] == 1
    found = [(row["face"], row["order"], row["dtype"]) for row in record["rows"]]
    assert found == [(face, "bako", dtype) for dtype in dtypes for face in report.FACES]


def test_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, drawn = tmp_path / "sweep.json", tmp_path / "sweep.png"
    argv = ["--sweep", "kernel", "--case", "n1 a1>b2 i3 k3", "--seconds", "0"]
    assert bench.main([*argv, "--json", str(file), "--plot", str(drawn)]) == 0
    record = json.loads(file.read_text())
    assert record["sweep"] == "kernel" and isinstance(record["cliffs"], list)
    assert [row["size"] for row in record["rows"]] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert drawn.stat().st_size
    out = capsys.readouterr().out
    assert "Cliffs" in out and "Sizes that the case cannot have: 4" in out


# --- peers


@pytest.fixture
def one_thread() -> Iterator[None]:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("make", [peers.torch_unfold, peers.torch_einsum, peers.torch_grouped])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "text",
    [
        "n3 a2>b5 i7x6 k3x2 s2x1 p1x0 d1x2",
        "n3 a4>b6 g2 i7x6 k3x2",
        "n3 a4>b2 i9 k3 s2 p1",
        "n1 a1>b1 i3x3 k3x3",
    ],
)
def test_peers_agree(make: Any, dtype: str, text: str, rng: np.random.Generator) -> None:
    check_agreement(make, dtype, bench.Case(text), rng)


@pytest.mark.parametrize("text", ["n3 a2>b5 i7x6 k3x2 s2x1 p1:0x0:2", "n3 a4>b2 i9 k3 s2"])
def test_keras_agrees(text: str, rng: np.random.Generator) -> None:
    pytest.importorskip("tf_keras", reason="tf_keras and tensorflow are not installed")
    check_agreement(peers.keras_local, "float32", bench.Case(text), rng)


def check_agreement(make: Any, dtype: str, case: bench.Case, rng: np.random.Generator) -> None:
    for _, _, problem in case.variants():
        t = {}
        for seat in "xwy":
            flat = rng.standard_normal(math.prod(problem.shape(seat))).astype(dtype)
            t[seat] = bench.array(flat, problem, seat)
        peer = make(case, t["x"], t["w"], t["y"], 1)
        for face, call in peer.calls.items():
            ours = getattr(unshared, face)(*case.operands(face, t), **case.options)
            theirs = peer.logical[face](call())
            assert theirs.shape == ours.shape and theirs.dtype == ours.dtype
            # Sums of at most 24 terms of size one, in another order.
            assert report.difference(theirs, ours) < 1e3 * np.finfo(dtype).eps
