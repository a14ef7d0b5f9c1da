"""What walks the tiles of a step on every thread, and the text of the whole module.

A thread takes the next tile (rows of a sequence that follow each other) and head. For each 64 keys it lays keys and
values out in scratch memory, keys transposed, and lets the tile's rows use them, a few at a time.
"""

from __future__ import annotations

import math

from model.backends.cpu.attention.kernel import KEYS, MASKED, MAX_ROWS, AttentionKernel, Part
from model.backends.cpu.attention.keys import LayOutKeys, Scores, ScoresOfOne
from model.backends.cpu.attention.softmax import Scales, Softmax
from model.backends.cpu.attention.values import LayOutValues, Totals, TotalsOfOne, natural_order
from model.backends.cpu.ir.writer import KINDS, LANES, NUMBER_DECLARATIONS, float_literal

# Where each argument stands in the array of 64-bit words that the kernel gets; addresses come first.
ARGUMENTS = (
    *("query", "out", "keys", "values", "key_scales", "value_scales"),
    *("slots", "tiles", "query_scales", "scratch", "next"),
    *("items", "rows", "heads", "heads_per_key", "num_slots", "window"),
)
# Of a tile: where its sequence's slots begin, its first row in the batch, how many rows, the first one's position.
TILE = ("table", "row", "count", "position")
ATTEND = "attend"
_NUM_ADDRESSES = 11

_DECLARATIONS = """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
declare <16 x i32> @llvm.x86.avx512.vpdpwssd.512(<16 x i32>, <32 x i16>, <32 x i16>)
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
declare i64 @llvm.umin.i64(i64, i64)
declare i64 @llvm.smax.i64(i64, i64)
"""


def module_text(kernel: AttentionKernel) -> str:
    """A module with the function `attend`, which takes the arguments' address and runs on every thread."""
    parts = [NUMBER_DECLARATIONS, _DECLARATIONS]
    parts += [writer(kernel).write() for writer in (LayOutKeys, LayOutValues, Softmax, ScoresOfOne, TotalsOfOne)]
    if kernel.cache_dtype == "int8":
        parts.append(Scales(kernel).write())
    for rows in range(1, MAX_ROWS + 1):
        parts += [Scores(kernel, rows).write(), Totals(kernel, rows).write()]
    return "\n".join([*parts, _Attend(kernel).write()])


class _Attend(Part):
    """What runs on every thread."""

    def write(self) -> str:
        """The function's text."""
        loops = ("clear", "block", "at.work", "soft", "done")
        self.begin(f"{ATTEND}(ptr %arguments)", ARGUMENTS, _NUM_ADDRESSES, loops)
        thread = self.emit("zext i32 " + self.emit("call i32 @omp_get_thread_num()") + " to i64")
        self.do(f"%scratch.first = mul i64 {thread}, {self.kernel.scratch['end']}")
        self.do("%scratch.own = getelementptr i8, ptr %scratch, i64 %scratch.first")
        for name in ("total", "best", "sum", "query", "query_unit"):
            self.do(f"%tile.{name} = getelementptr i8, ptr %scratch.own, i64 {self.kernel.scratch[name]}")
        self.do("br label %item.test")
        self.label("item.test")
        self.do("%item = atomicrmw add ptr %next, i64 1 monotonic")
        self.do("%item.more = icmp ult i64 %item, %items")
        self.do("br i1 %item.more, label %item.body, label %item.end")
        self.label("item.body")
        self._item()
        self.do("br label %item.test")
        self.label("item.end")
        self.end()
        return self.text

    def _item(self) -> None:
        tile = self.emit("udiv i64 %item, %heads")
        self.do("%head = urem i64 %item, %heads")
        first = self.emit(f"mul i64 {tile}, {len(TILE)}")
        for i, name in enumerate(TILE):
            at = self.emit(f"getelementptr i64, ptr %tiles, i64 {self.offset(first, i)}")
            self.do(f"%tile.{name} = load i64, ptr {at}")
        self.do("%num.keys = add i64 %tile.position, %tile.count")
        key_head = self.emit("udiv i64 %head, %heads_per_key")
        self.do(f"%head.slots = mul i64 {key_head}, %num_slots")
        first = self.emit(f"mul i64 %head.slots, {self.dim}")
        for name in ("keys", "values"):
            _, kind = KINDS[self.kernel.cache_dtype]
            self.do(f"%head.{name} = getelementptr {kind}, ptr %{name}, i64 {first}")
        for name in ("key_scales", "value_scales"):
            self.do(f"%head.{name} = getelementptr float, ptr %{name}, i64 %head.slots")
        at = self.emit(f"add i64 {self.emit('mul i64 %head, %rows')}, %tile.row")
        at = self.emit(f"mul i64 {at}, {self.dim}")
        self.do(f"%given.query = getelementptr {'i16' if self.is_bf16 else 'float'}, ptr %query, i64 {at}")
        self.do(f"%first.query = getelementptr i8, ptr %{'tile' if self.is_integer else 'given'}.query, i64 0")
        self.loop("clear", "0", "%tile.count", self._clear)
        num_blocks = self.emit(f"udiv i64 {self.offset('%num.keys', KEYS - 1)}, {KEYS}")
        first = "0"
        if self.kernel.has_window:
            first = self.emit(f"udiv i64 {self._first_seen('%tile.position')}, {KEYS}")
        self.loop("block", first, num_blocks, self._block)
        self.loop("done", "0", "%tile.count", self._finish)

    def _first_seen(self, position: str) -> str:
        """Where the window of a row at a position begins."""
        behind = self.emit(f"sub i64 {self.offset(position, 1)}, %window")
        return self.emit(f"call i64 @llvm.smax.i64(i64 {behind}, i64 0)")

    def _clear(self) -> None:
        at = self.emit(f"mul i64 %clear, {self.padded_dim}")
        for v in range(self.padded_dim // LANES):
            self.put("zeroinitializer", "%tile.total", self.offset(at, v * LANES))
        self.put("zeroinitializer", "%tile.sum", self.emit(f"mul i64 %clear, {LANES}"))
        best = self.emit("getelementptr float, ptr %tile.best, i64 %clear")
        self.do(f"store float {float_literal(MASKED)}, ptr {best}, align 4")
        if self.is_integer:
            self._take_query()

    def _take_query(self) -> None:
        """Turns a row's query into integers."""
        first = self.emit(f"mul i64 %clear, {self.dim}")
        parts = [(at, self.dim - at) for at in range(0, self.dim, LANES)]
        counts = [(self.offset(first, at), str(rest) if rest < LANES else None) for at, rest in parts]
        numbers = [self.load("float32", "%given.query", at, count) for at, count in counts]
        best = "zeroinitializer"
        for each in numbers:
            best = self.larger(self.emit(f"call <16 x float> @llvm.fabs.v16f32(<16 x float> {each})"), best)
        unit, inverse = self.integer_unit(self.largest(best))
        self.do(
            f"store float {unit}, ptr {self.emit('getelementptr float, ptr %tile.query_unit, i64 %clear')}, align 4"
        )
        for each, (at, count) in zip(numbers, counts, strict=True):
            integers = self.to_integers(each, inverse)
            if count is None:
                self.put(integers, "%tile.query", at, "i16")
            else:
                address = self.emit(f"getelementptr i16, ptr %tile.query, i64 {at}")
                self.do(f"call void @tail.store.i16(ptr {address}, i64 {count}, <16 x i16> {integers})")

    def _block(self) -> None:
        self.do(f"%first.key = mul i64 %block, {KEYS}")
        at = self.emit("add i64 %tile.table, %first.key")
        self.do(f"%table = getelementptr i32, ptr %slots, i64 {at}")
        left = self.emit("sub i64 %num.keys, %first.key")
        tail = f"ptr %table, ptr %scratch.own, i64 {left}"
        if self.kernel.cache_dtype == "int8":
            self.do(f"call void @collect.scales(ptr %head.key_scales, ptr %head.value_scales, {tail})")
        is_one = self.emit("icmp eq i64 %tile.count, 1")
        self.do(f"br i1 {is_one}, label %one, label %several")
        self.label("one")
        self.do("call void @scores.of.one(ptr %first.query, ptr %head.keys, ptr %table, ptr %scratch.own)")
        self._softmax("0", "0")
        self.do(f"call void @totals.of.one(ptr %head.values, {tail})")
        self.do("br label %block.done")
        self.label("several")
        self.do("call void @lay.out.keys(ptr %head.keys, ptr %table, ptr %scratch.own)")
        self.do(f"call void @lay.out.values(ptr %head.values, {tail})")
        # Rows before the first of these keys do not see them.
        past = self.emit("icmp ugt i64 %first.key, %tile.position")
        unseeing = self.emit("sub i64 %first.key, %tile.position")
        unseeing = self.emit(f"select i1 {past}, i64 {unseeing}, i64 0")
        first = self.emit(f"udiv i64 {unseeing}, {MAX_ROWS}")
        count = "%tile.count"
        if self.kernel.has_window:  # nor do those whose window begins behind them
            near = self.emit(f"add i64 {self.offset('%first.key', KEYS - 1)}, %window")
            near = self.emit(f"sub i64 {near}, %tile.position")
            count = self.emit(f"call i64 @llvm.umin.i64(i64 {count}, i64 {near})")
        last = self.emit(f"udiv i64 {self.offset(count, MAX_ROWS - 1)}, {MAX_ROWS}")
        self.loop("at.work", first, last, self._rows)
        self.do("br label %block.done")
        self.label("block.done")

    def _rows(self) -> None:
        self.do(f"%work.row = mul i64 %at.work, {MAX_ROWS}")
        left = self.emit("sub i64 %tile.count, %work.row")
        self.do(f"%work.count = call i64 @llvm.umin.i64(i64 {left}, i64 {MAX_ROWS})")
        at = self.emit(f"mul i64 %work.row, {self.dim}")
        kind = "i16" if self.kernel.has_pairs else "float"
        self.do(f"%work.query = getelementptr {kind}, ptr %first.query, i64 {at}")
        self._switch("scores", "ptr %work.query, ptr %scratch.own")

        self.loop("soft", "0", "%work.count", lambda: self._softmax("%soft", self.emit("add i64 %work.row, %soft")))
        self._switch("totals", "ptr %scratch.own, i64 %work.row")

    def _softmax(self, index: str, row: str) -> None:
        position = self.emit(f"add i64 %tile.position, {row}")
        seen = self.emit(f"sub i64 {self.offset(position, 1)}, %first.key")
        is_some = self.emit(f"icmp sgt i64 {seen}, 0")
        seen = self.emit(f"select i1 {is_some}, i64 {seen}, i64 0")
        at = self.emit(f"add i64 %tile.row, {row}")
        at = self.emit(f"getelementptr float, ptr %query_scales, i64 {at}")
        factor = self.emit(f"load float, ptr {at}, align 4")
        if self.is_integer:
            unit = self.emit(f"getelementptr float, ptr %tile.query_unit, i64 {row}")
            factor = self.emit(f"fmul float {factor}, {self.emit(f'load float, ptr {unit}, align 4')}")
        passed = ""
        if self.kernel.has_window:
            before = self.emit(f"sub i64 {self._first_seen(position)}, %first.key")
            passed = f"i64 {self.emit(f'call i64 @llvm.smax.i64(i64 {before}, i64 0)')}, "
        arguments = f"ptr %scratch.own, i64 {index}, i64 {row}, i64 {seen}, {passed}float {factor}"
        self.do(f"call void @softmax({arguments})")

    def _switch(self, name: str, arguments: str) -> None:
        """Calls the function for as many rows as are at work."""
        cases = " ".join(f"i64 {rows}, label %{name}.{rows}" for rows in range(1, MAX_ROWS))
        self.do(f"switch i64 %work.count, label %{name}.{MAX_ROWS} [ {cases} ]")
        for rows in range(1, MAX_ROWS + 1):
            self.label(f"{name}.{rows}")
            self.do(f"call void @{name}{rows}({arguments})")
            self.do(f"br label %{name}.end")
        self.label(f"{name}.end")

    def _finish(self) -> None:
        total = self.total(self.float_at("%tile.sum", self.emit(f"mul i64 %done, {LANES}")))
        inverse = self.splat("float", self.emit(f"fdiv float 1.0, {total}"))
        row = self.emit("add i64 %tile.row, %done")
        to = self.emit(f"add i64 {self.emit(f'mul i64 {row}, %heads')}, %head")
        to = self.emit(f"mul i64 {to}, {self.dim}")
        first = self.emit(f"mul i64 %done, {self.padded_dim}")
        places = range(0, self.padded_dim, LANES)
        totals = natural_order(self, [self.float_at("%tile.total", self.offset(first, at)) for at in places])
        for at in range(0, self.dim, LANES):
            count = str(self.dim - at) if self.dim - at < LANES else None
            self.store(self.kernel.dtype, self.mul(totals[at // LANES], inverse), "%out", self.offset(to, at), count)


def query_factor(scale: float) -> float:
    """What scores are multiplied with before a power of 2 is taken."""
    return scale / math.log(2)
