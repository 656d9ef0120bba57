"""One problem as a line of text: `n4 a3>b8 i32x32 k4x4 s2 p0`; the lines of cases.txt.

Letters: n batch, a input channels > b output channels (totals), g groups, i input, k kernel, s
stride, p padding (`1` or `low:high`), d dilation, e input dilation; axes are joined by `x`, one
number stands for every axis. `x:nia`, `y:nob`, `w:oakb` give memory orders, outermost axis first.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

import oracle
import unshared
from oracle import Pairs, Sizes

FACES = ("forward", "grad_input", "grad_weight")
# the seat a face fills, and the seats of its two operands
RESULT = {"forward": "y", "grad_input": "x", "grad_weight": "w"}
OPERANDS = {"forward": ("x", "w"), "grad_input": ("y", "w"), "grad_weight": ("x", "y")}
DEFAULT_ORDER = {"x": "nai", "w": "obak", "y": "nbo"}


@dataclass(frozen=True)
class Case:
    """Sizes and options of one problem, and the memory order of its three tensors."""

    n: int
    a: int
    b: int
    i: Sizes
    k: Sizes
    s: Sizes
    p: Pairs
    d: Sizes
    e: Sizes
    g: int = 1
    x: str = "nai"
    y: str = "nbo"
    w: str = "obak"

    @property
    def out(self) -> Sizes:
        return oracle.out_sizes(self.i, self.k, self.s, self.p, self.d, self.e)

    @property
    def options(self) -> dict[str, object]:
        """Keyword arguments, the same for the library and for the oracle."""
        return {
            "stride": self.s,
            "padding": self.p,
            "dilation": self.d,
            "input_dilation": self.e,
            "groups": self.g,
        }

    def shape(self, seat: str) -> Sizes:
        if seat == "x":
            return (self.n, self.a, *self.i)
        if seat == "y":
            return (self.n, self.b, *self.out)
        return (*self.out, self.b, self.a // self.g, *self.k)

    def order(self, seat: str) -> Sizes:
        """Logical axes from the outermost in memory to the innermost."""
        return axes_of(seat, getattr(self, seat), len(self.i))

    def sizes(self, face: str) -> tuple[Sizes, ...]:
        """The third positional argument of a face, as a tuple to splice in."""
        return {"forward": (), "grad_input": (self.i,), "grad_weight": (self.k,)}[face]

    def terms(self, face: str) -> int:
        """At most this many products meet in one result element."""
        if face == "forward":
            return self.a // self.g * math.prod(self.k)
        if face == "grad_input":
            return self.b // self.g * math.prod(self.k)
        return self.n

    def work(self) -> int:
        """Multiply-adds of one face."""
        return self.n * math.prod(self.out) * self.b * (self.a // self.g) * math.prod(self.k)

    def with_(self, **change: object) -> Case:
        return replace(self, **change)

    def __str__(self) -> str:
        def joined(values: tuple) -> str:
            texts = [f"{v[0]}:{v[1]}" if isinstance(v, tuple) else str(v) for v in values]
            texts = [t.split(":")[0] if len(set(t.split(":"))) == 1 else t for t in texts]
            return texts[0] if len(set(texts)) == 1 else "x".join(texts)

        words = [f"n{self.n}", f"a{self.a}>b{self.b}"]
        words += [f"g{self.g}"] if self.g != 1 else []
        words += ["i" + "x".join(map(str, self.i)), "k" + "x".join(map(str, self.k))]
        for letter, default in zip("spde", "1011", strict=True):
            text = joined(getattr(self, letter))
            words += [letter + text] if text != default else []
        for seat, order in DEFAULT_ORDER.items():
            words += [f"{seat}:{getattr(self, seat)}"] if getattr(self, seat) != order else []
        return " ".join(words)


def axes_of(seat: str, letters: str, axes: int) -> Sizes:
    """`nia` and 2 spatial axes -> (0, 2, 3, 1)."""
    spatial = tuple(range(axes))
    if seat == "w":
        where = {
            "o": spatial,
            "b": (axes,),
            "a": (axes + 1,),
            "k": tuple(axes + 2 + j for j in spatial),
        }
    else:
        where = {"n": (0,), "a": (1,), "b": (1,), "i": tuple(2 + j for j in spatial)}
        where["o"] = where["i"]
    if sorted(letters) != sorted(DEFAULT_ORDER[seat]):
        raise ValueError(f"order {letters!r} of {seat}")
    return tuple(axis for letter in letters for axis in where[letter])


def parse(line: str) -> Case:
    """The problem a line describes; anything unknown or double is an error."""
    found: dict[str, object] = {}
    texts: dict[str, str] = {}
    for word in line.split("#")[0].split():
        if match := re.fullmatch(r"a(\d+)>b(\d+)", word):
            new: dict[str, object] = {"a": int(match[1]), "b": int(match[2])}
        elif match := re.fullmatch(r"([ng])(\d+)", word):
            new = {match[1]: int(match[2])}
        elif match := re.fullmatch(r"([xyw]):([a-z]+)", word):
            new = {match[1]: match[2]}
        elif match := re.fullmatch(r"([ikspde])([\d:x]+)", word):
            new = {match[1]: None}
            texts[match[1]] = match[2]
        else:
            raise ValueError(f"word {word!r} in case {line!r}")
        if found.keys() & new.keys():
            raise ValueError(f"{word!r} stands twice in case {line!r}")
        found |= new
    missing = {f.name for f in fields(Case)} - found.keys() - set("gxyw" + "spde")
    if missing:
        raise ValueError(f"{sorted(missing)} missing in case {line!r}")
    axes = texts["i"].count("x") + 1
    for letter, default in {"i": "", "k": "", "s": "1", "p": "0", "d": "1", "e": "1"}.items():
        parts = texts.get(letter, default).split("x")
        parts = parts * axes if len(parts) == 1 else parts
        if len(parts) != axes:
            raise ValueError(f"{letter} has {len(parts)} axes, not {axes}, in case {line!r}")
        if letter == "p":
            found["p"] = tuple(
                tuple(map(int, (part + ":" + part).split(":")[:2])) for part in parts
            )
        else:
            found[letter] = tuple(map(int, parts))
    case = Case(**found)  # type: ignore[arg-type]
    for seat in "xyw":
        case.order(seat)
    return case


def _read() -> list[Case]:
    text = Path(__file__).with_name("cases.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.split("#")[0].strip()]
    return [parse(line) for line in lines]


CASES = _read()


def library(face: str, case: Case, first: object, second: object, **more: object) -> object:
    """The library's result for a case."""
    return getattr(unshared, face)(first, second, *case.sizes(face), **case.options, **more)


def exact(face: str, case: Case, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The exact value, for integer data, in float64 or complex128."""
    return oracle.exact(face, first, second, *case.sizes(face), **case.options)


def chain(
    face: str, case: Case, first: np.ndarray, second: np.ndarray, start: np.ndarray | None = None
) -> np.ndarray:
    """The canonical chain, for any data, in the dtype of the operands."""
    return oracle.chain(face, first, second, *case.sizes(face), start=start, **case.options)
