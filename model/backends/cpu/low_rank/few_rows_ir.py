"""The text of an adapter's two products for a few rows that share it, from one block of factors each."""

from __future__ import annotations

from model.backends.cpu.ir.writer import LANES, IRWriter

RANKS = LANES  # in a block of A
VECTORS = 4
OUTPUTS = VECTORS * LANES  # in a block of B
PARTIAL_SUMS = 4
MAX_ROWS = 4


class _FewRows(IRWriter):
    """What both products have in common.

    Args:
        is_bf16: whether factors and rows are bfloat16; else float32. Sums are float32 either way.
        num_rows: M, from 1 to `MAX_ROWS`.
    """

    def __init__(self, is_bf16: bool, num_rows: int) -> None:
        super().__init__()
        self.is_bf16 = is_bf16
        self.rows = range(num_rows)
        self.element = "i16" if is_bf16 else "float"
        self.per_word = 2 if is_bf16 else 1  # inputs, or ranks, in 32 bits

    def row_starts(self, stride: str) -> list[str]:
        """Where each row begins, in elements."""
        return [self.times(self.number("i64", "%rows", m), stride) for m in self.rows]

    def make_sums(self, count: int) -> None:
        """Makes so many sums a row, `%acc.ROW.NUMBER`."""
        for m in self.rows:
            for i in range(count):
                self.do(f"%acc.{m}.{i} = alloca <16 x float>")
                self.write("zeroinitializer", f"%acc.{m}.{i}")


    def factors(self, base: str, index: str) -> str:
        """16 words of a block of factors."""
        return self.emit(f"load <16 x i32>, ptr {self.address('<16 x i32>', base, index)}, align 64")


class Shrink(_FewRows):
    """`hidden[16] = A[16, K] x`, each in four partial sums; a turn takes a word of inputs for each of them."""

    def function(self) -> str:
        """The function's text."""
        signature = "ptr %x, i64 %x_stride, ptr %rows, ptr %a, i64 %turns, ptr %h, i64 %h_stride"
        self.begin(f"shrink{len(self.rows)}({signature})", (), 0, ("turn",))
        self.make_sums(PARTIAL_SUMS)
        starts = self.row_starts("%x_stride")
        self.loop("turn", "0", "%turns", lambda: self._turn(starts))
        for m in self.rows:
            sums = [self.read(f"%acc.{m}.{t}") for t in range(PARTIAL_SUMS)]
            total = self.add(self.add(sums[0], sums[1]), self.add(sums[2], sums[3]))
            self.put(total, "%h", self.times("%h_stride", m))
        return self.end()

    def _turn(self, starts: list[str]) -> None:
        first = self.times("%turn", PARTIAL_SUMS * self.per_word)
        block = self.times("%turn", PARTIAL_SUMS)
        for t in range(PARTIAL_SUMS):
            factor = self.factors("%a", self.plus(block, t))
            for m, start in enumerate(starts):
                place = self.plus(start, self.plus(first, t * self.per_word))
                word = self.emit(f"load i32, ptr {self.address(self.element, '%x', place)}, align {4 // self.per_word}")
                total, x = self.read(f"%acc.{m}.{t}"), self.splat("i32", word)
                if self.is_bf16:
                    total = self.dot_bf16(total, factor, x)
                else:
                    factors, inputs = (self.bitcast(each, "16 x i32", "16 x float") for each in (factor, x))
                    total = self.fma(factors, inputs, total)
                self.write(total, f"%acc.{m}.{t}")


class Expand(_FewRows):
    """`out[64] += B[64, R] hidden`; `ranks` counts pairs of them in bfloat16."""

    def function(self) -> str:
        """The function's text."""
        signature = "ptr %out, i64 %out_stride, ptr %rows, ptr %b, i64 %ranks, ptr %h, i64 %h_stride, i64 %column"
        self.begin(f"expand{len(self.rows)}({signature})", (), 0, ("rank",))
        self.make_sums(VECTORS)
        starts = self.row_starts("%out_stride")
        self.loop("rank", "0", "%ranks", self._rank)
        for m, start in enumerate(starts):
            row = self.plus(start, "%column")
            for v in range(VECTORS):
                self._add_to_out(self.read(f"%acc.{m}.{v}"), self.plus(row, v * LANES))
        return self.end()

    def _rank(self) -> None:
        block = self.times("%rank", VECTORS)
        factors = [self.factors("%b", self.plus(block, v)) for v in range(VECTORS)]
        first = self.times("%rank", self.per_word)
        for half in range(self.per_word):
            values = [
                self.half_of_words(words, half) if self.is_bf16 else self.bitcast(words, "16 x i32", "16 x float")
                for words in factors
            ]
            for m in self.rows:
                place = self.plus(self.times("%h_stride", m), self.plus(first, half))
                hidden = self.splat("float", self.number("float", "%h", place))
                for v, value in enumerate(values):
                    self.write(self.fma(value, hidden, self.read(f"%acc.{m}.{v}")), f"%acc.{m}.{v}")

    def _add_to_out(self, value: str, place: str) -> None:
        if not self.is_bf16:
            self.put(self.add(self.vector("%out", place), value), "%out", place)
            return
        at = self.address("i16", "%out", place)
        raw = self.emit(f"zext <16 x i16> {self.emit(f'load <16 x i16>, ptr {at}, align 2')} to <16 x i32>")
        total = self.add(self.half_of_words(raw, 0), value)
        rounded = self.emit(f"fptrunc <16 x float> {total} to <16 x bfloat>")
        self.do(f"store <16 x bfloat> {rounded}, ptr {at}, align 2")
