"""No object file that is compiled once per instruction set may define a weak symbol.

Inline functions and templates with external linkage become weak symbols; the linker keeps one copy
of each, maybe one compiled for an instruction set that this machine lacks. So the kernels must
leave none. Usage: check_objects.py and the object files.
"""

import subprocess
import sys


def shared_symbols(path: str) -> list[str]:
    """The weak, vague and unique definitions of an object file, as nm prints them."""
    listing = subprocess.run(
        ["nm", "--defined-only", "--demangle", path], check=True, capture_output=True, text=True
    ).stdout
    symbols = [line.split(maxsplit=2) for line in listing.splitlines()]
    return [name for _, kind, name in symbols if kind in "WwVvu"]


def main(paths: list[str]) -> int:
    if not paths:
        print("no object files were given")
        return 2
    found = {path: shared_symbols(path) for path in paths}
    for path, symbols in found.items():
        print(f"{path}: {', '.join(symbols) or 'no shared symbol'}")
    return 1 if any(found.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
