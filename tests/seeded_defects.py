"""Do the tests bite? Plants one defect after the other in a copy of the sources, runs the tests.

Usage: python tests/seeded_defects.py [part of a name ...]. Needs what `make test` installs; takes
minutes for each defect in a kernel, so it is not part of it. Kernels are compiled for the lowest
and the highest instruction set of this machine, at -O2. A defect that survives, or that no longer
applies to the sources, makes this program fail. Defects in CUDA kernels ("CUDA: ...") are for the
tests that run these in the emulator (tests/emulator/), and are shown to those alone.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import unshared

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Defect:
    name: str
    file: str
    right: str
    wrong: str

    @property
    def cuda(self) -> bool:
        return self.file.startswith("cuda/")


DEFECTS = [
    Defect(
        "swapped axes: height and width of the place",
        "cpp/cpu/gather.hpp",
        "from += w_offset(p.axes[z - 1], across_.first + i, across_.reach[i]);",
        "from += w_offset(p.axes[z], across_.first + i, across_.reach[i]);",
    ),
    Defect(
        "dropped last tap",
        "cpp/cells.hpp",
        "for (; k >= 0 && k < axis.kernel && partner(k) >= 0;",
        "for (; k >= 0 && k < axis.kernel - (axis.kernel > 1) && partner(k) >= 0;",
    ),
    Defect(
        "dropped last input channel",
        "cpp/cpu/gather.hpp",
        "if (!by_input) nest.add(g.summed,",
        "if (!by_input) nest.add(g.summed - (g.summed > 1),",
    ),
    Defect(
        "dropped last output channel",
        "cpp/cpu/gather.hpp",
        "if (by_input) nest.add(g.summed,",
        "if (by_input) nest.add(g.summed - (g.summed > 1),",
    ),
    Defect(
        "work stealing: what was stolen stays with its owner, too",
        "cpp/work_stealing.hpp",
        "compare_exchange_strong(most, word({of_victim.begin, middle}),",
        "compare_exchange_strong(most, word({of_victim.begin, of_victim.end}),",
    ),
    Defect(
        "off by one at the border, in definition and kernels alike",
        "cpp/problem.hpp",
        "return i < input && i * input_dilation == at ? i : -1;",
        "return i < input - (padding_low > 0) && i * input_dilation == at ? i : -1;",
    ),
    Defect(
        "stride and dilation swapped, in definition and kernels alike",
        "cpp/problem.hpp",
        "const std::int64_t at = o * stride + k * dilation - padding_low;",
        "const std::int64_t at = o * dilation + k * stride - padding_low;",
    ),
    Defect(
        "32-bit offset of the input",
        "cpp/cpu/gather.hpp",
        "small += l.low * stride;",
        "small += static_cast<std::int32_t>(l.low * stride);",
    ),
    Defect(
        "32-bit offset of the weights",
        "cpp/cpu/weigh.hpp",
        "int64_t w = s.begin * p.axes[z_].w_place_stride;",
        "int64_t w = static_cast<std::int32_t>(s.begin * p.axes[z_].w_place_stride);",
    ),
    Defect(
        "grad_input, some places at a time: all of them asked of each piece",
        "cpp/cpu/gather.hpp",
        "if (across_.count > 1)",
        "if (z > 0)",
    ),
    Defect(
        "weight gradients: samples taken for neighbours in memory that are not",
        "cpp/cpu/mover.hpp",
        "if (loop[d].memory == lanes * lane_memory && loop[d].scratch == lanes) {",
        "if (loop[d].scratch == lanes) {",
    ),
    Defect(
        "another order of summation: input channels descending",
        "cpp/reference.hpp",
        "for (std::int64_t a = 0; a < p.in_channels; ++a) {",
        "for (std::int64_t a = p.in_channels - 1; a >= 0; --a) {",
    ),
    Defect(
        "accumulate ignored",
        "cpp/cpu/gather.hpp",
        "bool from_zero = !call_.accumulate, first = true;",
        "bool from_zero = true, first = true;",
    ),
    Defect(
        "weight gradient of padded taps left unwritten",
        "cpp/cpu/weigh.hpp",
        "if (here_.taps == 0 || !inside(j)) clear(result + j * last.w_place_stride, j);",
        "",
    ),
    Defect(
        "half types truncated instead of rounded",
        "cpp/scalar.hpp",
        "return {static_cast<std::uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16)};",
        "return {static_cast<std::uint16_t>(u >> 16)};",
    ),
    Defect(
        "complex, lanes over samples: a conjugation without its sign",
        "cpp/cpu/parts.hpp",
        "im_p[2 * t] = at + (re_of_im ? turned : 0);",
        "im_p[2 * t] = at;",
    ),
    Defect(
        "half types, lanes over samples: gaps of a run forgotten",
        "cpp/cpu/widened.hpp",
        "apart = here.memory;",
        "apart = elements;",
    ),
    Defect(
        "half types, lanes over samples: no room for a last vector",
        "cpp/cpu/scatter_plan.hpp",
        "widened_room = widened_reals + L::count;",
        "widened_room = widened_reals;",
    ),
    Defect(
        "complex, lanes over cells: the signs of an imaginary part forgotten",
        "cpp/cpu/products.hpp",
        "im(turned_over<L>(swapped<L>(q), L::load(signs.im)))",
        "im(swapped<L>(q))",
    ),
    Defect(
        "wrong sign of a conjugation",
        "cpp/cpu/products.hpp",
        "im[i + 1] = conjugate_a ? -Real{0} : Real{0};",
        "im[i + 1] = Real{0};",
    ),
    Defect(
        "wrong offset between groups",
        "cpp/problem.cpp",
        "parallel_axis(given_.groups, in_ * p.x_channel_stride,",
        "parallel_axis(given_.groups, out_ * p.x_channel_stride,",
    ),
    Defect(
        "rows beyond a block of the batch dropped",
        "cpp/cpu/gather.hpp",
        "rows_ = lesser(plan_.rows, p.batch - n);",
        "rows_ = lesser(plan_.rows, p.batch - n) - (n > 0);",
    ),
    Defect(
        "a box of pixels that begins amid a place's taps takes the first ones",
        "cpp/cpu/scatter.hpp",
        "r.tap += spacing_[s].tap;\n      r.partner +=",
        "r.partner +=",
    ),
    Defect(
        "a weight whose tap falls into padding multiplied, turned in registers",
        "cpp/cpu/turned.hpp",
        "if (gaps && t.a_step[step] == Turned<T>::gap) return;",
        "if (gaps && t.a_step[step] == Turned<T>::gap) step = 0;",
    ),
    Defect(
        "a table of steps taken for one of positions in memory",
        "cpp/cpu/gather_cell.hpp",
        "if (positions_ > 0 && nest.same(nest_)) return positions_;",
        "if (nest.same(nest_)) return positions_;",
    ),
    Defect(
        "a channel's window written over the one before",
        "cpp/cpu/gather.hpp",
        "if (by_channel) size = ceil_div(size, L::count) * L::count;",
        "",
    ),
    Defect(
        "the last, shared line of what is copied around the caches left out",
        "cpp/cpu/stage.hpp",
        "  __builtin_memcpy(to + at, from + at, static_cast<std::size_t>(bytes - at));\n",
        "",
    ),
    Defect(
        "the last, fewer steps of a place leave others in the table for the next place",
        "cpp/cpu/scatter.hpp",
        "w_step_[most_steps + s] = w_step_[s] + after;",
        "w_step_[(steps < plan_.steps ? steps : most_steps) + s] = w_step_[s] + after;",
    ),
    Defect(
        "a place's second share of channels continues with the first one's gradients",
        "cpp/cpu/scatter.hpp",
        "y + begin * last.y_stride + b * p.y_channel_stride",
        "y + begin * last.y_stride",
    ),
    Defect(
        "odd channels: the last one left unwritten",
        "cpp/cpu/gather_cell.hpp",
        "plan_.direct ? vectors * L::count - columns_ * reals : 0;",
        "plan_.direct ? vectors * L::count - columns_ * reals + 1 : 0;",
    ),
    Defect(
        "odd channels: a tile writes over what lies behind its last one",
        "cpp/cpu/stored.hpp",
        "Stored<T>::store_part(at, v, last); },",
        "Stored<T>::store(at, v); },",
    ),
    Defect(
        "the panel that a first tile keeps has its vectors in another order",
        "cpp/cpu/micro.hpp",
        "L::store(kept + v * L::count, w);",
        "L::store(kept + (V - 1 - v) * L::count, w);",
    ),
    Defect(
        "odd channels: written around the caches as if vectors were whole",
        "cpp/cpu/weigh.hpp",
        "t.around = in_place_ && around_ && t.last == L::count && whole_lines(t.c, t.c_row, V);",
        "t.around = in_place_ && around_ && whole_lines(t.c, t.c_row, V);",
    ),
    Defect(
        "sums copied around the caches as they stand: vectors apart, not columns",
        "cpp/cpu/weigh.hpp",
        "const int64_t most = dense ? columns.count() : padded<Real>(columns.count());",
        "const int64_t most = padded<Real>(columns.count());",
    ),
    Defect(
        "weight gradients of some samples after the others: the last ones alone",
        "cpp/cpu/kernels.cpp",
        "now.accumulate = call.accumulate || n > 0;",
        "now.accumulate = call.accumulate;",
    ),
    Defect(
        "many samples, moved sixteen at a time: the last ones too many",
        "cpp/cpu/mover.hpp",
        "box.lanes = lesser(step, lanes - l);",
        "box.lanes = step;",
    ),
    Defect(
        "a patch keeps the padding of the one before",
        "cpp/cpu/patch.hpp",
        "for (int64_t j = 0; j < p.batch * row; j += L::count) L::store(patch_ + j, L::zero());",
        ";",
    ),
    Defect(
        "what is not finite reaches a patch's padding",
        "cpp/cpu/patch.hpp",
        "if (!whole_)\n        for",
        "if (false)\n        for",
    ),
    Defect(
        "the two factors of complex dy taken for one",
        "cpp/cpu/weigh.hpp",
        "t.second = second();",
        "t.second = 0;",
    ),
    Defect(
        "complex weights turned in registers: a panel's steps of dy, two for each channel",
        "cpp/cpu/scatter.hpp",
        "apart, steps, turned_step_, false, false};",
        "apart, steps, dy_step_, false, false};",
    ),
    Defect(
        "rows of a window staged by themselves stand where the window's would",
        "cpp/cpu/weigh.hpp",
        "    slot_[q] = 0;\n",
        "    slot_[q] = row.slot * plan_.window * p.batch * plan_.x_block;\n",
    ),
    Defect(
        "the rest of a strip's channels starts from zero",
        "cpp/cpu/gather.hpp",
        "from_zero = first = false;",
        "first = false;",
    ),
    Defect(
        "steps that the last piece of turned weights shares with the one before, added twice",
        "cpp/cpu/turned.hpp",
        "if (i >= done && s + i < steps) add(",
        "if (s + i < steps) add(",
    ),
    Defect(
        "the last piece of what is turned while it is staged stands where it does not belong",
        "cpp/cpu/mover.hpp",
        "      j = count - piece;  // ends with the columns\n",
        "",
    ),
    Defect(
        "bfloat16 gradients rounded to nearest away from even",
        "cpp/cpu/stored.hpp",
        "const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));",
        "const __m512i odd = _mm512_set1_epi32(1);",
    ),
    Defect(
        "lanes that see padding not masked",
        "cpp/cpu/along_gather.hpp",
        "if (!this->whole_) t.mask = this->mask_;",
        "",
    ),
    Defect(
        "weights of staged padding +0, not -0",
        "cpp/cpu/along_planes.hpp",
        "for (int64_t l = 0; l < first; ++l) to[l] = -Real{};",
        "for (int64_t l = 0; l < first; ++l) to[l] = Real{};",
    ),
    Defect(
        "weights of padding above and below stay in the chain",
        "cpp/cpu/along_planes.hpp",
        "const int64_t first = in_chain ? lanes.first : lanes_;",
        "const int64_t first = lanes.first;",
    ),
    Defect(
        "groups of a company read the first one's samples",
        "cpp/cpu/along_gather.hpp",
        "small + n * g.small_batch, column, width,",
        "small * 0 + n * g.small_batch, column, width,",
    ),
    Defect(
        "second block of a strip reads the first block's samples",
        "cpp/cpu/gather.hpp",
        "small + n * g.small_batch + pieces.first",
        "small + pieces.first",
    ),
    Defect(
        "a shorter piece of a sum taken for the whole",
        "cpp/cpu/share.hpp",
        "lesser(run_, whole_.loop[d].count - begin_[d])",
        "run_",
    ),
    Defect(
        "the caller's floating-point environment used",
        "cpp/dispatch.cpp",
        "  const DefaultFloats floats;\n",
        "",
    ),
    Defect(
        "overlap of result and operand not seen",
        "cpp/dispatch.cpp",
        "if (read.low < written.high && written.low < read.high)",
        "if (read.low < written.high && written.low < read.high && read.low == written.low)",
    ),
    Defect(
        "a result that overlaps itself accepted",
        "cpp/footprint.cpp",
        "SelfOverlap(layout).found();",
        "SelfOverlap(layout).found() && false;",
    ),
    Defect(
        "JAX: gradient of an operand that all mapped calls share not summed",
        "python/unshared/jax.py",
        'geometry._replace(shared="")).sum(0)',
        'geometry._replace(shared=""))[0]',
    ),
    Defect(
        "JAX: taps before channels in the fused axis of the weights",
        "python/unshared/jax.py",
        "fused: (n + 1, *(n + 2 + places.index(axis) for axis in sorted(places)))",
        "fused: (*(n + 2 + places.index(axis) for axis in sorted(places)), n + 1)",
    ),
    Defect(
        "JAX: partial sums of a divided batch not added up",
        "python/unshared/_partition.py",
        "return jax.lax.psum(part, tuple(summed)) if summed else part",
        "return part",
    ),
    Defect(
        "JAX: buffers not compared with the problem",
        "python/xla.cpp",
        "if (below || !whole || found != expected)",
        "if (below && !whole && found != expected)",
    ),
    Defect(
        "CUDA: a chunk used without a barrier after the wait",
        "cuda/tile.hpp",
        "      t.sync();  // this chunk is there, and nobody uses the one before\n",
        "",
    ),
    Defect(
        "CUDA: tables of a tile overwritten while others use them",
        "cuda/tile.hpp",
        "      t.sync();  // nobody needs the item before any more\n",
        "",
    ),
    Defect(
        "CUDA: a wait for one group of copies too few",
        "cuda/tile.hpp",
        "t.template wait<S::stages - 2>();",
        "t.template wait<S::stages - 1>();",
    ),
    Defect(
        "CUDA: the wrong stage multiplied",
        "cuda/tile.hpp",
        "multiply(t, ring + slot * stage_elements, here, sums)",
        "multiply(t, ring + slot_in * stage_elements, here, sums)",
    ),
    Defect(
        "CUDA: the last step of a chunk that is not full dropped",
        "cuda/tile.hpp",
        "const int here = count - done < chunk ? count - done : chunk;",
        "const int here = count - done < chunk ? (count - done) & ~1 : chunk;",
    ),
    Defect(
        "CUDA: threads without results leave before the barrier",
        "cuda/tile.hpp",
        "    int slot = 0;\n",
        "    if (idle) return;\n    int slot = 0;\n",
    ),
    Defect(
        "CUDA: rows of a tile indexed by the columns' thread",
        "cuda/tile.hpp",
        "line_of<thread_rows, S::rows>(index % row_threads, r)",
        "line_of<thread_rows, S::rows>(index / row_threads, r)",
    ),
    Defect(
        "CUDA: columns read by the rows' lane",
        "cuda/tile.hpp",
        "chunk + S::capacity * row_pitch + t.index() / row_threads * pack;",
        "chunk + S::capacity * row_pitch + t.index() % row_threads * pack;",
    ),
    Defect(
        "CUDA: accumulate ignored",
        "cuda/tile.hpp",
        "if (!operands.accumulate) {",
        "if (product.rows > 0) {",
    ),
    Defect(
        "CUDA: conjugations swapped",
        "cuda/tile.hpp",
        "read<thread_rows, S::rows>(t, rows + s * row_pitch, row, operands.conjugate_second);",
        "read<thread_rows, S::rows>(t, rows + s * row_pitch, row, operands.conjugate_first);",
    ),
    Defect(
        "CUDA: weight gradient of padded taps not zero",
        "cuda/tile.hpp",
        "t.store(to, inside ? sum : operands.accumulate ? t.load_result(to) : T{});",
        "t.store(to, sum);",
    ),
    Defect(
        "CUDA: 32-bit offset of the rows",
        "cuda/tile.hpp",
        "(row + r) * product.row_second * size",
        "static_cast<std::int32_t>((row + r) * product.row_second * size)",
    ),
    Defect(
        "CUDA: what lanes found of a place used without a barrier of the warp",
        "cuda/product.hpp",
        "  t.sync_warp();\n",
        "",
    ),
    Defect(
        "CUDA: results of a last block stored twice",
        "cuda/lane_tiles.hpp",
        "return {begin, static_cast<int>(wanted - begin)};",
        "return {begin, 0};",
    ),
    Defect(
        "CUDA: a lane beyond the last cell",
        "cuda/lanes_gather.hpp",
        "if (cell >= static_cast<Index>(cells.count)) return;",
        "if (cell > static_cast<Index>(cells.count)) return;",
    ),
    Defect(
        "CUDA: 32-bit offset of the samples",
        "cuda/lanes_gather.hpp",
        "row.begin * result_sample + column.begin * result_channel",
        "static_cast<std::int32_t>(row.begin * result_sample) + column.begin * result_channel",
    ),
]


def output(
    command: list[str | Path], cwd: Path, env: dict[str, str] | None = None
) -> tuple[int, str]:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    return done.returncode, done.stdout


class Copy:
    """A copy of the sources with build folders of its own: a defect rebuilds what it touches."""

    def __init__(self, folder: Path) -> None:
        self.tree = folder / "tree"
        self.site = folder / "site"
        self.levels = unshared.build_info()["isa_usable"]
        ignore = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.so", "__pycache__")
        shutil.copytree(ROOT, self.tree, ignore=ignore)

    def run(self, *commands: list[str | Path]) -> None:
        for command in commands:
            code, text = output(command, self.tree)
            if code != 0:
                raise RuntimeError(text[-3000:])

    def failures(self, cuda: bool) -> list[str]:
        """The C++ tests that fail; if none does, the first Python test that does.

        cuda: of the C++ tests of CUDA kernels alone, which are those with the emulator.
        """
        tests = sorted((self.tree / "tests").glob("test_*.cpp"))
        emulated = [test.stem for test in tests if "emulator/" in test.read_text()]
        options = {
            "UNSHARED_CUDA": "OFF",
            "UNSHARED_LEVELS": f"{self.levels[0]};{self.levels[-1]}",
            "CMAKE_CXX_FLAGS_RELEASE": "-O2 -DNDEBUG",
        }
        build = ["cmake", "-G", "Ninja", "-S", ".", "-B", "build/cpp", "-DUNSHARED_TESTS=ON"]
        defined = [f"-D{name}={value}" for name, value in options.items()]
        self.run([*build, *defined], ["cmake", "--build", "build/cpp"])
        run = ["ctest", "--test-dir", "build/cpp", "--no-tests=error", "--timeout", "900"]
        some = ["-R", f"^({'|'.join(emulated)})$"] if cuda else []
        code, text = output([*run, "--parallel", "2", "--stop-on-failure", *some], self.tree)
        listed = text.partition("tests FAILED:")[2].splitlines()
        failed = [line.split()[2] for line in listed if " - " in line]
        if failed or (cuda and code == 0):
            return failed
        if cuda:
            raise RuntimeError(text[-3000:])

        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        quick = ["--no-deps", "--no-build-isolation", "--upgrade", "--target", self.site]
        defined = [f"--config-settings=cmake.define.{n}={value}" for n, value in options.items()]
        self.run([*pip, *quick, *defined, "--config-settings=build-dir=build/wheel", "."])
        code, text = output(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"],
            self.tree,
            {"PYTHONPATH": str(self.site), "CI": "true"},
        )
        if code != 0:
            named = [line for line in text.splitlines() if line.startswith(("FAILED", "ERROR"))]
            failed.append(named[0].split()[1] if named else f"the death of pytest ({code})")
        return failed


def main(names: list[str]) -> int:
    wanted = [d for d in DEFECTS if not names or any(name in d.name for name in names)]
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder))
        if failed := copy.failures(cuda=all(d.cuda for d in wanted)):
            print(f"the sources fail without any defect: {', '.join(failed)}")
            return 1
        for defect in wanted:
            start = time.monotonic()
            file = copy.tree / defect.file
            text = file.read_text()
            if text.count(defect.right) != 1:
                print(f"DOES NOT APPLY  {defect.name}: not found once in {defect.file}")
                survivors.append(defect)
                continue
            file.write_text(text.replace(defect.right, defect.wrong))
            failed = copy.failures(defect.cuda)
            file.write_text(text)
            verdict = "caught by " + ", ".join(failed) if failed else "SURVIVES"
            print(f"{defect.name}: {verdict}  ({time.monotonic() - start:.0f} s)", flush=True)
            if not failed:
                survivors.append(defect)
    print(f"{len(wanted) - len(survivors)} of {len(wanted)} seeded defects caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
