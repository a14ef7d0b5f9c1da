"""The text of the kernel that adds to the rows of a step what their adapters' low-rank factors give, in one pass.

First `hidden = A x` for every row and its adapter, then `out += B hidden`, all threads on all adapters: of the blocks
of factors, counted over the whole step, each thread takes every n-th. A block is read once for each four rows that
share it, and from the cache after the first. However many rows there are, a row's sums are taken in one order: its
result depends on the row and its adapter alone.
"""

from __future__ import annotations

from collections.abc import Callable

from model.backends.cpu.ir.writer import DECLARATIONS, IRWriter
from model.backends.cpu.low_rank.few_rows_ir import MAX_ROWS, OUTPUTS, PARTIAL_SUMS, RANKS, Expand, Shrink

ADAPT = "adapt"
_ARGUMENTS = (
    *("x", "out", "hidden", "rows", "segments", "entries"),
    *("num_segments", "x_stride", "out_stride", "num_inputs", "hidden_stride", "part_stride"),
)
_NUM_ADDRESSES = 6

# A segment: slot of the adapter, first place in `rows`, how many rows.
_SEGMENT_WORDS = 3
# A slot's entry: how many parts; then of each the addresses of A and B, blocks of A, first output, blocks of B.
MAX_PARTS = 3
_PART_WORDS = 5
ENTRY_WORDS = 1 + MAX_PARTS * _PART_WORDS


def module_text(*, is_bf16: bool) -> str:
    """A module with the function `adapt`, which takes the arguments' address and runs on every thread.

    Args:
        is_bf16: whether factors and rows are bfloat16; else float32. Sums are float32 either way.
    """
    heights = range(1, MAX_ROWS + 1)
    functions = [kind(is_bf16, m).function() for kind in (Shrink, Expand) for m in heights]
    return "\n".join([DECLARATIONS, *functions, _Adapt(is_bf16).function()])


class _Adapt(IRWriter):
    """What every thread runs: both products over all adapters of the step, with a barrier in between."""

    def __init__(self, is_bf16: bool) -> None:
        super().__init__()
        self._bytes = 2 if is_bf16 else 4  # of an element

    def function(self) -> str:
        loops = [f"{name}.{phase}" for phase in ("shrink", "expand") for name in ("segment", "part", "block", "run")]
        self.begin(f"{ADAPT}(ptr %arguments)", _ARGUMENTS, _NUM_ADDRESSES, loops)
        self.do("%units = alloca i64")
        self.do(f"%thread = zext i32 {self.emit('call i32 @omp_get_thread_num()')} to i64")
        self.do(f"%threads = zext i32 {self.emit('call i32 @omp_get_num_threads()')} to i64")
        self._phase("shrink", 2, self._shrink)
        self.do("call void @GOMP_barrier()")
        self._phase("expand", 4, self._expand)
        return self.end()

    def _phase(self, phase: str, count_word: int, unit: Callable[[str, str, str, str], None]) -> None:
        """Runs one of the products; a part's word `count_word` says how many blocks it has."""
        self.do("store i64 0, ptr %units")

        def segment() -> None:
            words = self.times(f"%segment.{phase}", _SEGMENT_WORDS)
            slot, first, count = (self._word("%segments", self.plus(words, i)) for i in range(_SEGMENT_WORDS))
            entry = self.times(slot, ENTRY_WORDS)

            def part() -> None:
                words = self.plus(entry, self.plus(self.times(f"%part.{phase}", _PART_WORDS), 1))
                num_blocks = self._word("%entries", self.plus(words, count_word))
                done = self.emit("load i64, ptr %units")
                self.do(f"store i64 {self.plus(done, num_blocks)}, ptr %units")
                start = self.emit(f"sub i64 %threads, {self.emit(f'urem i64 {done}, %threads')}")
                start = self.emit(f"urem i64 {self.plus('%thread', start)}, %threads")
                room = self.plus(num_blocks, self.plus("%threads", -1))
                mine = self.emit(f"udiv i64 {self.emit(f'sub i64 {room}, {start}')}, %threads")
                self.loop(f"block.{phase}", "0", mine, lambda: block(words, start))

            def block(words: str, start: str) -> None:
                index = self.plus(self.times(f"%block.{phase}", "%threads"), start)
                runs = self.emit(f"udiv i64 {self.plus(count, MAX_ROWS - 1)}, {MAX_ROWS}")
                self.loop(f"run.{phase}", "0", runs, lambda: run(words, index))

            def run(words: str, index: str) -> None:
                skipped = self.times(f"%run.{phase}", MAX_ROWS)
                left = self.emit(f"sub i64 {count}, {skipped}")
                height = self.emit(f"call i64 @llvm.umin.i64(i64 {left}, i64 {MAX_ROWS})")
                unit(words, index, self.plus(first, skipped), height)

            self.loop(f"part.{phase}", "0", self._word("%entries", entry), part)

        self.loop(f"segment.{phase}", "0", "%num_segments", segment)

    def _shrink(self, words: str, index: str, place: str, height: str) -> None:
        a = self._factors(words, 0, self.times(index, self.times("%num_inputs", RANKS)))
        hidden = self._hidden(place, "%part.shrink", self.times(index, RANKS))
        turns = self.emit(f"udiv i64 %num_inputs, {PARTIAL_SUMS * 4 // self._bytes}")
        rows = self.address("i64", "%rows", place)
        arguments = f"ptr %x, i64 %x_stride, ptr {rows}, ptr {a}, i64 {turns}, ptr {hidden}, i64 %hidden_stride"
        self.call_by_height("shrink", height, MAX_ROWS, arguments)

    def _expand(self, words: str, index: str, place: str, height: str) -> None:
        ranks = self.times(self._word("%entries", self.plus(words, 2)), RANKS)
        b = self._factors(words, 1, self.times(index, self.times(ranks, OUTPUTS)))
        column = self.plus(self._word("%entries", self.plus(words, 3)), self.times(index, OUTPUTS))
        hidden = self._hidden(place, "%part.expand", "0")
        ranks = self.emit(f"udiv i64 {ranks}, {4 // self._bytes}")
        rows = self.address("i64", "%rows", place)
        arguments = (
            f"ptr %out, i64 %out_stride, ptr {rows}, ptr {b}, i64 {ranks}, ptr {hidden}, i64 %hidden_stride,"
            f" i64 {column}"
        )
        self.call_by_height("expand", height, MAX_ROWS, arguments)

    def _word(self, array: str, index: str) -> str:
        return self.number("i64", array, index)

    def _factors(self, words: str, word: int, elements: str) -> str:
        """The address of a block of factors, so many elements in."""
        base = self.number("ptr", "%entries", self.plus(words, word))
        return self.address("i8", base, self.times(elements, self._bytes))

    def _hidden(self, place: str, part: str, rank: str) -> str:
        at = self.plus(self.times(part, "%part_stride"), self.times(place, "%hidden_stride"))
        return self.address("float", "%hidden", self.plus(at, rank))
