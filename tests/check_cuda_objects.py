"""What nvcc made of the CUDA kernels, held against written bars. No GPU is needed.

In every kernel and for every target: no local memory and no spills, no atomics, registers within
the budget, matrix instructions where they are meant to be and nowhere else, no division in a loop
that does the arithmetic. Some kernels promise more: tests/cuda_objects.txt has a line for each.
Then the occupancy (cuda_occupancy.cpp), the targets in the fat binary, and its size.

Usage, from the root of the repository (ctest does it, in builds with CUDA):
    check_cuda_objects.py --targets 75-real,80-real,90 [--occupancy PROGRAM] [--cuobjdump TOOL]
                          [--list] [--measured] OBJECTS...
--list prints every kernel's figures, --measured writes them into the table. Without cuobjdump and
nvdisasm (pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm) nothing can be seen: exit status
77, a skipped test.
"""

import argparse
import fnmatch
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

TABLE = Path("tests/cuda_objects.txt")
SKIPPED = 77
FACES = ("forward", "grad_input", "grad_weight")
FMA = ("FFMA", "FFMA2", "DFMA")
MMA = ("HMMA", "DMMA", "IMMA", "HGMMA")
# What the compiler makes of a division: a reciprocal, a multiplication by one, or a call.
DIVISION = re.compile(r"MUFU\.RCP|I2F(\.\w+)*\.RP|U?IMAD\.HI|CALL")
ATOMIC = re.compile(r"(ATOM|ATOMS|ATOMG|RED|REDG|REDS|UREDGR)(\.|$)")
LOCAL = re.compile(r"(LDL|STL)(\.|$)")
INSTRUCTION = re.compile(
    r"^\s+/\*(?P<at>[0-9a-f]{4,})\*/\s+(?:@(?P<guard>!?U?P\w+)\s+)?(?P<text>[A-Z][^;]*);"
)


@dataclass
class Instruction:
    at: int
    opcode: str
    operands: str


@dataclass
class Kernel:
    """One kernel for one target."""

    name: str  # as a C++ type
    target: int
    registers: int
    stack: int
    shared: int
    code: list[Instruction] = field(default_factory=list)

    @property
    def short(self) -> str:
        name = re.sub(r"unshared::(cuda::)?", "", self.name)
        return re.sub(r"\(Face\)(\d)", lambda m: FACES[int(m[1])], name).replace(" >", ">")

    def loops(self) -> list[tuple[int, int]]:
        """First and last address of every loop: a jump back and what it jumps to."""
        jumps = [(i, re.search(r"0x[0-9a-f]+$", i.operands)) for i in self.code]
        return [
            (int(to[0], 16), i.at)
            for i, to in jumps
            if to and i.opcode.startswith("BRA") and int(to[0], 16) < i.at
        ]

    def hot_loops(self) -> list[list[Instruction]]:
        """The loops that multiply and add and hold no other such loop, the busiest first."""
        arithmetic = [i.at for i in self.code if base(i) in FMA + MMA]
        found = {}
        for first, last in sorted(self.loops(), key=lambda loop: loop[1] - loop[0]):
            inner = any(first <= begin and end <= last for begin, end in found)
            if not inner and (count := sum(first <= at <= last for at in arithmetic)):
                found[first, last] = count
        return [
            [i for i in self.code if first <= i.at <= last]
            for first, last in sorted(found, key=found.get, reverse=True)
        ]


@dataclass
class Bar:
    """A line of the table."""

    pattern: str
    registers: int
    stack: int
    promises: list[str]
    kernels: list[Kernel] = field(default_factory=list)


def base(i: Instruction) -> str:
    return i.opcode.split(".")[0]


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def demangled(symbols: list[str]) -> dict[str, str]:
    """The type of the kernel that each `entry` is an instance of."""
    text = subprocess.run(
        ["c++filt"], input="\n".join(symbols), check=True, capture_output=True, text=True
    ).stdout
    found = {}
    for symbol, name in zip(symbols, text.splitlines(), strict=True):
        # void unshared::cuda::entry<TYPE>(TYPE), in older spellings with a blank: entry<TYPE >
        match = re.fullmatch(r".*::entry<(.*?) ?>\((.*)\)", name)
        found[symbol] = match[2] if match else name
    return found


def kernels_of(cuobjdump: str, path: str) -> list[Kernel]:
    usage = re.findall(
        r"arch = sm_(\d+)|Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)",
        output(cuobjdump, "-res-usage", path),
    )
    names = demangled([symbol for _, symbol, *_ in usage if symbol])
    kernels, target = {}, 0
    for arch, symbol, registers, stack, shared, local in usage:
        if arch:
            target = int(arch)
            continue
        # From sm_90 on what the system reserves of the shared memory is counted, too.
        own = int(shared) - (1024 if target >= 90 and int(shared) >= 1024 else 0)
        kernels[target, symbol] = Kernel(
            names[symbol], target, int(registers), int(stack) + int(local), own
        )
    if not kernels:
        return []
    into = None
    for line in output(cuobjdump, "-sass", path).splitlines():
        if match := re.match(r"\s*code for sm_(\d+)", line):
            target = int(match[1])
        elif match := re.match(r"\s*Function : (\S+)", line):
            into = kernels[target, match[1]].code
        elif (match := INSTRUCTION.match(line)) and match["guard"] != "!PT":  # never executed
            opcode, _, operands = match["text"].strip().partition(" ")
            into.append(Instruction(int(match["at"], 16), opcode, operands.strip()))
    return list(kernels.values())


def bars_of(text: str) -> tuple[list[Bar], dict[str, float]]:
    bars, limits = [], {}
    for line in text.splitlines():
        line = line.partition("#")[0]
        if limit := re.fullmatch(r"(\S+) at most ([\d.]+) (\S+)", line.strip()):
            limits[limit[1]] = float(limit[2])
        elif line.strip():
            pattern, registers, stack, *promises = re.split(r"\s{2,}", line.strip())
            bars.append(Bar(pattern, int(registers), int(stack), promises))
    return bars, limits


def divides(i: Instruction) -> bool:
    if not DIVISION.match(i.opcode):
        return False
    called = re.search(r"0x[0-9a-f]+$", i.operands)  # some jumps over the next one look like calls
    return not called or abs(int(called[0], 16) - i.at) > 0x20


def share(loop: list[Instruction]) -> int:
    """How many of a hundred instructions multiply and add."""
    return 100 * sum(base(i) in FMA + MMA for i in loop) // len(loop)


def wide(code: list[Instruction], bases: tuple[str, ...]) -> bool:
    return any(base(i) in bases and re.search(r"\.128(\.|$)", i.opcode) for i in code)


def breaches(kernel: Kernel, bar: Bar) -> list[str]:
    """What a kernel does that its bar forbids, or fails to do."""
    code, hot = kernel.code, kernel.hot_loops()
    found = []

    def forbid(what: str, instructions: list[Instruction]) -> None:
        if instructions:
            counted = Counter(i.opcode for i in instructions).most_common(3)
            found.append(f"{what}: " + ", ".join(f"{n} {opcode}" for opcode, n in counted))

    if not code:
        return ["no machine code was found"]
    if kernel.registers > bar.registers:
        found.append(f"{kernel.registers} registers, its budget is {bar.registers}")
    if kernel.stack > bar.stack:
        found.append(f"{kernel.stack} bytes of local memory, allowed are {bar.stack}")
    forbid("an atomic operation", [i for i in code if ATOMIC.match(i.opcode)])
    if bar.stack == 0:
        forbid("an access to local memory", [i for i in code if LOCAL.match(i.opcode)])
    if "divides" not in bar.promises:
        loops = {i.at: i for loop in hot for i in loop}.values()
        forbid("a division in a main loop", [i for i in loops if divides(i)])
    if "mma" not in bar.promises:
        forbid("a matrix instruction", [i for i in code if base(i) in MMA])
    if kernel.target < 80:  # no promise of speed there
        return found
    promised = {
        "load128": wide(code, ("LDG", "LDGSTS")) or any(base(i) == "UBLKCP" for i in code),
        "shared128": any(wide(loop, ("LDS",)) for loop in hot),
        "store128": wide(code, ("STG",)),
        "mma": any(base(i) in MMA for i in code),
        "divides": True,
    }
    for promise in bar.promises:
        if least := re.fullmatch(r"fma>=(\d+)", promise):
            most = share(hot[0]) if hot else 0
            if most < int(least[1]):
                found.append(f"{most} % of its main loop multiply and add, promised are {least[1]}")
        elif not promised[promise]:
            found.append(f"it promises {promise}, which it does not do")
    return found


def figures(bar: Bar) -> str:
    """Of the kernels of a line: registers for each target, the least share of the main loop."""
    registers = {k.target: 0 for k in sorted(bar.kernels, key=lambda k: k.target)}
    for k in bar.kernels:
        registers[k.target] = max(registers[k.target], k.registers)
    shares = [share(hot[0]) for k in bar.kernels if k.target >= 80 and (hot := k.hot_loops())]
    count = len({k.name for k in bar.kernels})
    text = " ".join(f"{n:3}" for n in registers.values())
    return f"{text}  {min(shares, default=0):3} %  {count}"


def write_figures(bars: list[Bar]) -> None:
    """Puts this build's figures behind the # of every line of the table."""
    by_pattern = {bar.pattern: bar for bar in bars}
    lines = TABLE.read_text().splitlines()
    for n, line in enumerate(lines):
        text = line.partition("#")[0].rstrip()
        if bar := by_pattern.get(re.split(r"\s{2,}", text)[0]):
            lines[n] = f"{text:<69}  # {figures(bar)}"
    TABLE.write_text("\n".join(lines) + "\n")


def targets_of(cuobjdump: str, path: str) -> set[str]:
    """The targets in a fat binary, written as CMake writes them."""
    listing = output(cuobjdump, "--list-elf", "--list-ptx", path)
    found = set(re.findall(r"\.sm_(\d+a?)\.(cubin|ptx)", listing))
    return {f"{sm}-{'real' if kind == 'cubin' else 'virtual'}" for sm, kind in found}


def wanted_targets(text: str) -> set[str]:
    names = re.split(r"[,; ]+", text)
    if not re.match(r"\d", text):  # native, all, all-major: as the machine and nvcc have it
        return set()
    return {
        name if "-" in name else f"{name}-{kind}" for name in names for kind in ("real", "virtual")
    }


def occupancy(program: str, kernels: list[Kernel]) -> list[str]:
    lines = [f"{k.target} {k.registers} {k.shared} {k.name}\n" for k in kernels]
    done = subprocess.run(
        [program, "tests/cases.txt", "bench/suite.txt"],
        input="".join(lines), capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(done.stdout, done.stderr, sep="", end="")
    return [] if done.returncode == 0 else ["occupancy: see above"]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--targets", default="")
    parser.add_argument("--not-run", metavar="WHY")
    parser.add_argument("--occupancy")
    parser.add_argument("--cuobjdump", default="cuobjdump")
    parser.add_argument("--measured", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("objects", nargs="*")
    options = parser.parse_args()
    if options.not_run:
        print("NOT RUN:", options.not_run)
        return SKIPPED
    tool = shutil.which(options.cuobjdump)
    if tool:  # it looks for nvdisasm on the PATH
        os.environ["PATH"] += os.pathsep + str(Path(tool).parent)
    if not tool or not shutil.which("nvdisasm"):
        print("NOT RUN: no cuobjdump and nvdisasm, so nothing was seen of the CUDA kernels' code")
        return SKIPPED

    bars, limits = bars_of(TABLE.read_text())
    failures, kernels = [], []
    for path in options.objects:
        kernels += kernels_of(tool, path)
        found, wanted = targets_of(tool, path), wanted_targets(options.targets)
        if wanted and found != wanted:
            failures.append(f"{path} holds {sorted(found)}, not {sorted(wanted)}")
    for kernel in kernels:
        bar = next((b for b in bars if fnmatch.fnmatchcase(kernel.short, b.pattern)), None)
        if bar is None:
            failures.append(f"{kernel.short}: no line of {TABLE} is about it")
            bar = Bar("*", 255, 0, [])
        bar.kernels.append(kernel)
        if options.list:
            print(f"{kernel.short:<60} sm_{kernel.target} {figures(Bar('', 0, 0, [], [kernel]))}")
        failures += [f"{kernel.short}, sm_{kernel.target}: {b}" for b in breaches(kernel, bar)]
    if options.measured:
        write_figures([bar for bar in bars if bar.kernels])

    for bar in bars:
        print(f"{bar.pattern:<55} {figures(bar) if bar.kernels else 'no such kernel'}")
    size = sum(Path(path).stat().st_size for path in options.objects) / 2**20
    count = len({k.name for k in kernels})
    print(f"{count} kernels in {len(options.objects)} objects of {size:.1f} MiB together")
    for what, value in (("kernels", count), ("objects", size)):
        if value > limits[what]:
            failures.append(f"{what}: {value:.0f}, at most {limits[what]:.0f} are allowed")
    if options.occupancy:
        launched = [  # those for tensor cores are empty before sm_80, and never started there
            k for bar in bars for k in bar.kernels if k.target >= 80 or "mma" not in bar.promises
        ]
        failures += occupancy(options.occupancy, launched)
    failures = list(dict.fromkeys(failures))
    print(*failures, sep="\n")
    print(f"{len(failures)} bars are broken" if failures else "every bar holds")
    return 1 if failures or not kernels else 0


if __name__ == "__main__":
    sys.exit(main())
