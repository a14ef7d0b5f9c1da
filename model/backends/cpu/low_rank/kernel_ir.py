"""The text of the kernel for adapters: what the rows of a step get from the low-rank factors of theirs, in one pass.

First `hidden = A x` for every row and its adapter, then `out += B hidden`, all threads on all adapters: of the blocks
of factors, counted over the whole step, each thread takes every so many-th. A block is read once for each four rows
that share it, and from the cache after the first. However many rows there are, a row's sums are taken in one order:
what it gets depends on the row and its adapter alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from model.backends.cpu.ir.writer import FMA_DECLARATION, LANES, IRWriter, everywhere

ADAPT = "adapt"
ARGUMENTS = (
    *("x", "out", "hidden", "rows", "segments", "entries"),
    *("num_segments", "x_stride", "out_stride", "num_inputs", "hidden_stride", "part_stride"),
)
_NUM_ADDRESSES = 6

# A segment: slot of the adapter, first place in `rows`, how many rows.
SEGMENT_WORDS = 3
# What a table has of a slot: how many parts; then of each the addresses of A and B, blocks of A, first output, blocks
# of B.
MAX_PARTS = 3
PART_WORDS = 5
ENTRY_WORDS = 1 + MAX_PARTS * PART_WORDS

RANKS = LANES  # in a block of A
VECTORS = 4
OUTPUTS = VECTORS * LANES  # in a block of B
PARTIAL_SUMS = 4
MAX_ROWS = 4

_DECLARATIONS = """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
declare i64 @llvm.umin.i64(i64, i64)
declare i32 @omp_get_thread_num()
declare i32 @omp_get_num_threads()
declare void @GOMP_barrier()
"""


@dataclass(frozen=True)
class LowRankKernel:
    """A kernel.

    Attributes:
        is_bf16: whether factors and rows are bfloat16; else float32. Sums are float32 either way.
    """

    is_bf16: bool

    @cached_property
    def text(self) -> str:
        """A module with the function `adapt`, which takes the arguments' address and runs on every thread."""
        heights = range(1, MAX_ROWS + 1)
        functions = [_Shrink(self.is_bf16, m).text for m in heights] + [_Expand(self.is_bf16, m).text for m in heights]
        return _DECLARATIONS + FMA_DECLARATION + "\n" + "\n".join([*functions, _Adapt(self.is_bf16).text])


class _Rows(IRWriter):
    """What the functions for a few rows have in common.

    Args:
        is_bf16: see `LowRankKernel`.
        num_rows: of the function.
    """

    def __init__(self, is_bf16: bool, num_rows: int) -> None:
        super().__init__()
        self.is_bf16 = is_bf16
        self.heights = range(num_rows)
        self.element = "i16" if is_bf16 else "float"

    def starts(self, stride: str) -> list[str]:
        """Where each row begins, in elements."""
        starts = []
        for m in self.heights:
            at = self.emit(f"getelementptr i64, ptr %rows, i64 {m}")
            starts.append(self.emit(f"mul i64 {self.emit(f'load i64, ptr {at}')}, {stride}"))
        return starts

    def clear(self, slots: Sequence[str]) -> None:
        for slot in slots:
            self.do(f"%{slot} = alloca <16 x float>")
            self.do(f"store <16 x float> zeroinitializer, ptr %{slot}")

    def widen(self, raw: str, half: int) -> str:
        """The first or second of each pair of bfloat16 as float32."""
        value = (
            self.emit(f"and <16 x i32> {raw}, {everywhere('i32 -65536')}")
            if half
            else self.emit(f"shl <16 x i32> {raw}, {everywhere('i32 16')}")
        )
        return self.emit(f"bitcast <16 x i32> {value} to <16 x float>")


class _Shrink(_Rows):
    """`hidden[16] = A[16, K] x` for some rows, each in four partial sums."""

    def __init__(self, is_bf16: bool, num_rows: int) -> None:
        super().__init__(is_bf16, num_rows)
        signature = "ptr %x, i64 %x_stride, ptr %rows, ptr %a, i64 %turns, ptr %h, i64 %h_stride"
        self.begin(f"shrink{num_rows}({signature})", (), 0, ("turn",))
        self.clear([f"acc.{m}.{t}" for m in self.heights for t in range(PARTIAL_SUMS)])
        starts = self.starts("%x_stride")
        self.loop("turn", "0", "%turns", lambda: self._turn(starts))
        for m in self.heights:
            sums = [self.emit(f"load <16 x float>, ptr %acc.{m}.{t}") for t in range(PARTIAL_SUMS)]
            total = self.add(self.add(sums[0], sums[1]), self.add(sums[2], sums[3]))
            offset = self.emit(f"mul i64 %h_stride, {m}")
            at = self.emit(f"getelementptr float, ptr %h, i64 {offset}")
            self.do(f"store <16 x float> {total}, ptr {at}, align 4")
        self.end()

    def _turn(self, starts: list[str]) -> None:
        inputs = 2 if self.is_bf16 else 1
        first = self.emit(f"mul i64 %turn, {PARTIAL_SUMS * inputs}")
        block = self.emit(f"mul i64 %turn, {PARTIAL_SUMS}")
        for t in range(PARTIAL_SUMS):
            at = self.emit(f"getelementptr <16 x float>, ptr %a, i64 {self.offset(block, t)}")
            raw = self.emit(f"load <16 x float>, ptr {at}, align 64")
            factor = self.emit(f"bitcast <16 x float> {raw} to <32 x bfloat>") if self.is_bf16 else raw
            for m in self.heights:
                place = self.emit(f"add i64 {starts[m]}, {self.offset(first, t * inputs)}")
                self._multiply_add(f"%acc.{m}.{t}", factor, place)

    def _multiply_add(self, slot: str, factor: str, place: str) -> None:
        total = self.emit(f"load <16 x float>, ptr {slot}")
        at = self.emit(f"getelementptr {self.element}, ptr %x, i64 {place}")
        if self.is_bf16:
            both = self.splat("i32", self.emit(f"load i32, ptr {at}, align 2"))
            x = self.emit(f"bitcast <16 x i32> {both} to <32 x bfloat>")
            total = self.emit(
                "call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512("
                f"<16 x float> {total}, <32 x bfloat> {factor}, <32 x bfloat> {x})"
            )
        else:
            total = self.fma(factor, self.splat("float", self.emit(f"load float, ptr {at}, align 4")), total)
        self.do(f"store <16 x float> {total}, ptr {slot}")


class _Expand(_Rows):
    """`out[64] += B[64, R] hidden` for some rows; `ranks` counts pairs of them in bfloat16."""

    def __init__(self, is_bf16: bool, num_rows: int) -> None:
        super().__init__(is_bf16, num_rows)
        signature = "ptr %out, i64 %out_stride, ptr %rows, ptr %b, i64 %ranks, ptr %h, i64 %h_stride, i64 %column"
        self.begin(f"expand{num_rows}({signature})", (), 0, ("rank",))
        self.clear([f"acc.{m}.{v}" for m in self.heights for v in range(VECTORS)])
        starts = self.starts("%out_stride")
        self.loop("rank", "0", "%ranks", self._rank)
        for m in self.heights:
            row = self.emit(f"add i64 {starts[m]}, %column")
            for v in range(VECTORS):
                self._add_to_out(self.emit(f"load <16 x float>, ptr %acc.{m}.{v}"), self.offset(row, v * LANES))
        self.end()

    def _rank(self) -> None:
        block = self.emit(f"mul i64 %rank, {VECTORS}")
        factors = []
        for v in range(VECTORS):
            at = self.emit(f"getelementptr <16 x i32>, ptr %b, i64 {self.offset(block, v)}")
            factors.append(self.emit(f"load <16 x i32>, ptr {at}, align 64"))
        halves = 2 if self.is_bf16 else 1
        first = self.emit(f"mul i64 %rank, {halves}")
        for half in range(halves):
            values = [
                self.widen(raw, half) if self.is_bf16 else self.emit(f"bitcast <16 x i32> {raw} to <16 x float>")
                for raw in factors
            ]
            for m in self.heights:
                place = self.emit(f"add i64 {self.emit(f'mul i64 %h_stride, {m}')}, {self.offset(first, half)}")
                at = self.emit(f"getelementptr float, ptr %h, i64 {place}")
                hidden = self.splat("float", self.emit(f"load float, ptr {at}, align 4"))
                for v in range(VECTORS):
                    total = self.emit(f"load <16 x float>, ptr %acc.{m}.{v}")
                    self.do(f"store <16 x float> {self.fma(values[v], hidden, total)}, ptr %acc.{m}.{v}")

    def _add_to_out(self, value: str, place: str) -> None:
        at = self.emit(f"getelementptr {self.element}, ptr %out, i64 {place}")
        if not self.is_bf16:
            old = self.emit(f"load <16 x float>, ptr {at}, align 4")
            self.do(f"store <16 x float> {self.add(old, value)}, ptr {at}, align 4")
            return
        raw = self.emit(f"zext <16 x i16> {self.emit(f'load <16 x i16>, ptr {at}, align 2')} to <16 x i32>")
        total = self.add(self.widen(raw, 0), value)
        rounded = self.emit(f"fptrunc <16 x float> {total} to <16 x bfloat>")
        self.do(f"store <16 x bfloat> {rounded}, ptr {at}, align 2")


class _Adapt(IRWriter):
    """What every thread runs: both products over all adapters of the step, with a barrier in between."""

    def __init__(self, is_bf16: bool) -> None:
        super().__init__()
        self._bytes = 2 if is_bf16 else 4
        self._per_word = 2 if is_bf16 else 1
        loops = [f"{name}.{phase}" for phase in ("shrink", "expand") for name in ("segment", "part", "block", "run")]
        self.begin(f"{ADAPT}(ptr %arguments)", ARGUMENTS, _NUM_ADDRESSES, loops)
        self.do("%units = alloca i64")
        for name in ("thread", "threads"):
            call = "omp_get_thread_num" if name == "thread" else "omp_get_num_threads"
            self.do(f"%{name} = zext i32 {self.emit(f'call i32 @{call}()')} to i64")
        self._phase("shrink", 2, self._shrink)
        self.do("call void @GOMP_barrier()")
        self._phase("expand", 4, self._expand)
        self.end()

    def _phase(self, phase: str, count_word: int, unit: Callable[[str, str, str, str], None]) -> None:
        """Runs one of the products; a part's word `count_word` says how many blocks it has."""
        self.do("store i64 0, ptr %units")

        def segment() -> None:
            words = self.emit(f"mul i64 %segment.{phase}, {SEGMENT_WORDS}")
            slot, first, count = (self._word("%segments", self.offset(words, i)) for i in range(SEGMENT_WORDS))
            entry = self.emit(f"mul i64 {slot}, {ENTRY_WORDS}")

            def part() -> None:
                words = self.emit(f"mul i64 %part.{phase}, {PART_WORDS}")
                words = self.emit(f"add i64 {entry}, {self.offset(words, 1)}")
                num_blocks = self._word("%entries", self.offset(words, count_word))
                done = self.emit("load i64, ptr %units")
                self.do(f"store i64 {self.emit(f'add i64 {done}, {num_blocks}')}, ptr %units")
                start = self.emit(f"sub i64 %threads, {self.emit(f'urem i64 {done}, %threads')}")
                start = self.emit(f"urem i64 {self.emit(f'add i64 %thread, {start}')}, %threads")
                room = self.emit(f"add i64 {num_blocks}, {self.emit('sub i64 %threads, 1')}")
                mine = self.emit(f"udiv i64 {self.emit(f'sub i64 {room}, {start}')}, %threads")
                self.loop(f"block.{phase}", "0", mine, lambda: block(words, start))

            def block(words: str, start: str) -> None:
                index = self.emit(f"add i64 {self.emit(f'mul i64 %block.{phase}, %threads')}, {start}")
                runs = self.emit(f"udiv i64 {self.offset(count, MAX_ROWS - 1)}, {MAX_ROWS}")
                self.loop(f"run.{phase}", "0", runs, lambda: run(words, index))

            def run(words: str, index: str) -> None:
                skipped = self.emit(f"mul i64 %run.{phase}, {MAX_ROWS}")
                left = self.emit(f"sub i64 {count}, {skipped}")
                height = self.emit(f"call i64 @llvm.umin.i64(i64 {left}, i64 {MAX_ROWS})")
                unit(words, index, self.emit(f"add i64 {first}, {skipped}"), height)

            self.loop(f"part.{phase}", "0", self._word("%entries", entry), part)

        self.loop(f"segment.{phase}", "0", "%num_segments", segment)

    def _shrink(self, words: str, index: str, place: str, height: str) -> None:
        a = self._address(words, 0, self.emit(f"mul i64 {index}, {self.emit(f'mul i64 %num_inputs, {RANKS}')}"))
        hidden = self._hidden(place, "%part.shrink", self.emit(f"mul i64 {index}, {RANKS}"))
        turns = self.emit(f"udiv i64 %num_inputs, {PARTIAL_SUMS * self._per_word}")
        rows = self.emit(f"getelementptr i64, ptr %rows, i64 {place}")
        arguments = f"ptr %x, i64 %x_stride, ptr {rows}, ptr {a}, i64 {turns}, ptr {hidden}, i64 %hidden_stride"
        self._call("shrink", height, arguments)

    def _expand(self, words: str, index: str, place: str, height: str) -> None:
        ranks = self.emit(f"mul i64 {self._word('%entries', self.offset(words, 2))}, {RANKS}")
        b = self._address(words, 1, self.emit(f"mul i64 {index}, {self.emit(f'mul i64 {ranks}, {OUTPUTS}')}"))
        column = self.emit(f"mul i64 {index}, {OUTPUTS}")
        column = self.emit(f"add i64 {self._word('%entries', self.offset(words, 3))}, {column}")
        hidden = self._hidden(place, "%part.expand", "0")
        ranks = self.emit(f"udiv i64 {ranks}, {self._per_word}")
        rows = self.emit(f"getelementptr i64, ptr %rows, i64 {place}")
        arguments = (
            f"ptr %out, i64 %out_stride, ptr {rows}, ptr {b}, i64 {ranks}, ptr {hidden}, i64 %hidden_stride,"
            f" i64 {column}"
        )
        self._call("expand", height, arguments)

    def _call(self, name: str, height: str, arguments: str) -> None:
        heights = range(1, MAX_ROWS + 1)
        cases = " ".join(f"i64 {m}, label %{name}.{m}" for m in heights)
        self.do(f"switch i64 {height}, label %{name}.done [ {cases} ]")
        for m in heights:
            self.label(f"{name}.{m}")
            self.do(f"call void @{name}{m}({arguments})")
            self.do(f"br label %{name}.done")
        self.label(f"{name}.done")

    def _word(self, array: str, index: str) -> str:
        return self.emit(f"load i64, ptr {self.emit(f'getelementptr i64, ptr {array}, i64 {index}')}")

    def _address(self, words: str, word: int, elements: str) -> str:
        """Of a factor's block, so many elements in."""
        base = self.emit(f"inttoptr i64 {self._word('%entries', self.offset(words, word))} to ptr")
        num_bytes = self.emit(f"mul i64 {elements}, {self._bytes}")
        return self.emit(f"getelementptr i8, ptr {base}, i64 {num_bytes}")

    def _hidden(self, place: str, part: str, rank: str) -> str:
        at = self.emit(f"mul i64 {part}, %part_stride")
        at = self.emit(f"add i64 {at}, {self.emit(f'mul i64 {place}, %hidden_stride')}")
        at = self.emit(f"add i64 {at}, {rank}")
        return self.emit(f"getelementptr float, ptr %hidden, i64 {at}")
