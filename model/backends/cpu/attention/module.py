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
from model.backends.cpu.ir.numbers import KINDS
from model.backends.cpu.ir.writer import DECLARATIONS, LANES, float_literal

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


def module_text(kernel: AttentionKernel) -> str:
    """A module with the function `attend`, which takes the arguments' address and runs on every thread."""
    parts = [DECLARATIONS]
    parts += [writer(kernel).function() for writer in (LayOutKeys, LayOutValues, Softmax, ScoresOfOne, TotalsOfOne)]
    if kernel.cache_dtype == "int8":
        parts.append(Scales(kernel).function())
    for rows in range(1, MAX_ROWS + 1):
        parts += [Scores(kernel, rows).function(), Totals(kernel, rows).function()]
    return "\n".join([*parts, _Attend(kernel).function()])


class _Attend(Part):
    """What runs on every thread."""

    def function(self) -> str:
        """The function's text."""
        loops = ("clear", "block", "at.work", "soft", "done")
        self.begin(f"{ATTEND}(ptr %arguments)", ARGUMENTS, _NUM_ADDRESSES, loops)
        thread = self.emit(f"zext i32 {self.emit('call i32 @omp_get_thread_num()')} to i64")
        first = self.times(thread, self.kernel.scratch["end"])
        self.do(f"%scratch.own = getelementptr i8, ptr %scratch, i64 {first}")
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
        return self.end()

    def _item(self) -> None:
        tile = self.emit("udiv i64 %item, %heads")
        self.do("%head = urem i64 %item, %heads")
        first = self.times(tile, len(TILE))
        for i, name in enumerate(TILE):
            self.do(f"%tile.{name} = load i64, ptr {self.address('i64', '%tiles', self.plus(first, i))}")
        self.do("%num.keys = add i64 %tile.position, %tile.count")
        key_head = self.emit("udiv i64 %head, %heads_per_key")
        self.do(f"%head.slots = mul i64 {key_head}, %num_slots")
        first = self.times("%head.slots", self.dim)
        for name in ("keys", "values"):
            _, kind = KINDS[self.kernel.cache_dtype]
            self.do(f"%head.{name} = getelementptr {kind}, ptr %{name}, i64 {first}")
        for name in ("key_scales", "value_scales"):
            self.do(f"%head.{name} = getelementptr float, ptr %{name}, i64 %head.slots")
        at = self.times(self.plus(self.times("%head", "%rows"), "%tile.row"), self.dim)
        self.do(f"%given.query = getelementptr {'i16' if self.is_bf16 else 'float'}, ptr %query, i64 {at}")
        self.do(f"%first.query = getelementptr i8, ptr %{'tile' if self.is_integer else 'given'}.query, i64 0")
        self.loop("clear", "0", "%tile.count", self._clear)
        num_blocks = self.emit(f"udiv i64 {self.plus('%num.keys', KEYS - 1)}, {KEYS}")
        first = "0"
        if self.kernel.has_window:
            first = self.emit(f"udiv i64 {self._first_seen('%tile.position')}, {KEYS}")
        self.loop("block", first, num_blocks, self._block)
        self.loop("done", "0", "%tile.count", self._finish)

    def _first_seen(self, position: str) -> str:
        """Where the window of a row at a position begins."""
        return self._at_least_0(self.emit(f"sub i64 {self.plus(position, 1)}, %window"))

    def _at_least_0(self, number: str) -> str:
        return self.emit(f"call i64 @llvm.smax.i64(i64 {number}, i64 0)")

    def _clear(self) -> None:
        at = self.times("%clear", self.padded_dim)
        for v in range(self.padded_dim // LANES):
            self.put("zeroinitializer", "%tile.total", self.plus(at, v * LANES))
        self.put("zeroinitializer", "%tile.sum", self.times("%clear", LANES))
        self.put_number(float_literal(MASKED), "%tile.best", "%clear")
        if self.is_integer:
            self._take_query()

    def _take_query(self) -> None:
        """Turns a row's query into integers."""
        first = self.times("%clear", self.dim)
        parts = [(at, self.dim - at) for at in range(0, self.dim, LANES)]
        counts = [(self.plus(first, at), str(rest) if rest < LANES else None) for at, rest in parts]
        numbers = [self.load("float32", "%given.query", at, count) for at, count in counts]
        best = "zeroinitializer"
        for each in numbers:
            best = self.larger(self.emit(f"call <16 x float> @llvm.fabs.v16f32(<16 x float> {each})"), best)
        unit, inverse = self.integer_unit(self.largest(best))
        self.put_number(unit, "%tile.query_unit", "%clear")
        for each, (at, count) in zip(numbers, counts, strict=True):
            self.store_raw(self.to_integers(each, inverse), "i16", 2, self.address("i16", "%tile.query", at), count)

    def _block(self) -> None:
        self.do(f"%first.key = mul i64 %block, {KEYS}")
        at = self.plus("%tile.table", "%first.key")
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
        unseeing = self._at_least_0(self.emit("sub i64 %first.key, %tile.position"))
        first = self.emit(f"udiv i64 {unseeing}, {MAX_ROWS}")
        count = "%tile.count"
        if self.kernel.has_window:  # nor do those whose window begins behind them
            near = self.plus(self.plus("%first.key", KEYS - 1), "%window")
            near = self.emit(f"sub i64 {near}, %tile.position")
            count = self.emit(f"call i64 @llvm.umin.i64(i64 {count}, i64 {near})")
        last = self.emit(f"udiv i64 {self.plus(count, MAX_ROWS - 1)}, {MAX_ROWS}")
        self.loop("at.work", first, last, self._rows)
        self.do("br label %block.done")
        self.label("block.done")

    def _rows(self) -> None:
        self.do(f"%work.row = mul i64 %at.work, {MAX_ROWS}")
        left = self.emit("sub i64 %tile.count, %work.row")
        self.do(f"%work.count = call i64 @llvm.umin.i64(i64 {left}, i64 {MAX_ROWS})")
        at = self.times("%work.row", self.dim)
        kind = "i16" if self.kernel.has_pairs else "float"
        self.do(f"%work.query = getelementptr {kind}, ptr %first.query, i64 {at}")
        self.call_by_height("scores", "%work.count", MAX_ROWS, "ptr %work.query, ptr %scratch.own")

        self.loop("soft", "0", "%work.count", lambda: self._softmax("%soft", self.plus("%work.row", "%soft")))
        self.call_by_height("totals", "%work.count", MAX_ROWS, "ptr %scratch.own, i64 %work.row")

    def _softmax(self, index: str, row: str) -> None:
        position = self.plus("%tile.position", row)
        seen = self._at_least_0(self.emit(f"sub i64 {self.plus(position, 1)}, %first.key"))
        factor = self.number("float", "%query_scales", self.plus("%tile.row", row))
        if self.is_integer:
            factor = self.emit(f"fmul float {factor}, {self.number('float', '%tile.query_unit', row)}")
        passed = ""
        if self.kernel.has_window:
            before = self.emit(f"sub i64 {self._first_seen(position)}, %first.key")
            passed = f"i64 {self._at_least_0(before)}, "
        arguments = f"ptr %scratch.own, i64 {index}, i64 {row}, i64 {seen}, {passed}float {factor}"
        self.do(f"call void @softmax({arguments})")

    def _finish(self) -> None:
        total = self.total(self.vector("%tile.sum", self.times("%done", LANES)))
        inverse = self.splat("float", self.emit(f"fdiv float 1.0, {total}"))
        row = self.plus("%tile.row", "%done")
        to = self.times(self.plus(self.times(row, "%heads"), "%head"), self.dim)
        first = self.times("%done", self.padded_dim)
        places = range(0, self.padded_dim, LANES)
        totals = natural_order(self, [self.vector("%tile.total", self.plus(first, at)) for at in places])
        for at in range(0, self.dim, LANES):
            count = str(self.dim - at) if self.dim - at < LANES else None
            self.store(self.kernel.dtype, self.mul(totals[at // LANES], inverse), "%out", self.plus(to, at), count)


def query_factor(scale: float) -> float:
    """What scores are multiplied with before a power of 2 is taken."""
    return scale / math.log(2)
