"""Digests of the library's results on fixed random real data; `python digest.py` prints them as
JSON.

Run in child processes that differ in instruction set or thread settings: equal digests are equal
bits.
"""

from __future__ import annotations

import hashlib
import json
import sys
import zlib

import numpy as np

import unshared
from arrays import DTYPES, FLOAT32, Layout, bits, reals
from cases import CASES, FACES, OPERANDS, RESULT, Case, library

LARGE = 2_000_000  # multiply-adds; larger problems run in float32 only


def operands(case: Case, face: str, dtype: np.dtype, kind: str = "normal") -> list[np.ndarray]:
    """Random reals that depend on the case's text alone, in its memory orders."""
    rng = np.random.default_rng(zlib.crc32(f"{case} {face} {dtype}".encode()))
    arrays = []
    for seat in OPERANDS[face]:
        order = Layout(case.order(seat)).axes(len(case.shape(seat)))
        plain = reals(rng, tuple(case.shape(seat)[axis] for axis in order), dtype, kind)
        arrays.append(plain.transpose(np.argsort(order)))
    return arrays


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(bits(array).tobytes()).hexdigest()


def digests() -> dict[str, str]:
    """One digest for every case, face and dtype (with `out` in the case's memory order)."""
    found = {}
    for case in CASES:
        for dtype in DTYPES if case.work() <= LARGE else [FLOAT32]:
            for face in FACES:
                first, second = operands(case, face, dtype)
                shape = case.shape(RESULT[face])
                order = case.order(RESULT[face])
                out = np.empty([shape[axis] for axis in order], dtype)
                out = out.transpose(np.argsort(order))
                library(face, case, first, second, out=out)
                found[f"{case} | {face} | {dtype}"] = digest(out)
    return found


if __name__ == "__main__":
    info = {str(key): str(value) for key, value in unshared.build_info().items()}
    json.dump({"info": info, "digests": digests()}, sys.stdout)
