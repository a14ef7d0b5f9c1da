"""Totals: values times weights, of values laid out for many rows, or as one row takes them from the cache."""

from __future__ import annotations

from collections.abc import Callable

from model.backends.cpu.attention_ir.kernel import (
    KEYS,
    NARROW_VECTORS,
    VECTORS,
    AttentionKernel,
    Part,
    ints,
)
from model.backends.cpu.ir_writer import LANES

# Which of 32 numbers come when two vectors of them are interleaved as processors do it, 128 bits by 128 bits.
_UNPACKED = [8 * part + 4 * half + i for half in (0, 1) for part in range(4) for i in range(4)]


class LayOutValues(Part):
    """Lays out 64 values, in bf16 two keys' side by side; zeros for keys that there are not."""

    def write(self) -> str:
        """The function's text; `%left` is how many of the 64 there are, or more."""
        parameters = "ptr %head.values, ptr %table, ptr %scratch, i64 %left"
        self.begin(f"lay.out.values({parameters})", (), 0, ("token",))
        self.part("value")
        if self.is_bf16:
            self.loop("token", "0", str(KEYS // 2), self._pair)
        else:
            self.loop("token", "0", str(KEYS), self._single)
        self.end()
        return self.text

    def _vectors(self, body: Callable[[int, str | None], str]) -> None:
        for v in range(self.padded_dim // LANES):
            rest = self.dim - v * LANES
            self._use(body(v, str(rest) if rest < LANES else None), v)

    def _use(self, numbers: str, v: int) -> None:
        """Does what there is to do with 16 numbers (in bf16 pairs) of the token's value, or pair's values."""
        at = self.emit(f"mul i64 %token, {self.padded_dim}")
        self.put(numbers, "%value", self.offset(at, v * LANES), "i32")

    def _is_there(self, key: str) -> str:
        return self.emit(f"icmp ult i64 {key}, %left")

    def _single(self) -> None:
        self.fetch("%head.values", self.offset("%token", KEYS))
        at = self.emit(f"mul i64 {self.slot_of('%token')}, {self.dim}")
        is_there = self._is_there("%token")

        def vector(v: int, count: str | None) -> str:
            value = self.load(self.kernel.cache_dtype, "%head.values", self.offset(at, v * LANES), count)
            value = self.emit(f"select i1 {is_there}, <16 x float> {value}, <16 x float> zeroinitializer")
            return self.emit(f"bitcast <16 x float> {value} to <16 x i32>")

        self._vectors(vector)

    def _pair(self) -> None:
        both = []
        for second in (0, 1):
            key = self.offset(self.emit("shl i64 %token, 1"), second)
            self.fetch("%head.values", self.offset(key, KEYS))
            both.append((self.emit(f"mul i64 {self.slot_of(key)}, {self.dim}"), self._is_there(key)))

        def vector(v: int, count: str | None) -> str:
            words = []
            for at, is_there in both:
                value = self.load("bfloat16", "%head.values", self.offset(at, v * LANES), count)
                value = self.emit(f"bitcast <16 x float> {value} to <16 x i32>")
                words.append(self.emit(f"select i1 {is_there}, <16 x i32> {value}, <16 x i32> zeroinitializer"))
            low = self.emit(f"lshr <16 x i32> {words[0]}, {ints(16)}")
            return self.emit(f"or <16 x i32> {low}, {words[1]}")

        self._vectors(vector)


class TotalsOfOne(LayOutValues):
    """Adds values, weighed, to what one row has summed, as they are taken from the cache."""

    def write(self) -> str:
        """The function's text; the row is the tile's first."""
        parameters = "ptr %head.values, ptr %table, ptr %scratch, i64 %left"
        self.begin(f"totals.of.one({parameters})", (), 0, ("token",))
        for name in ("weight", "shrink", "total"):
            self.part(name)
        shrink = self.float_at("%shrink", "0")
        vectors = range(self.padded_dim // LANES)
        totals = [self.mul(self.float_at("%total", str(v * LANES)), shrink) for v in vectors]
        # Interleaving two values leaves their numbers in another order, for which the totals are rearranged.
        self._interleaves = self.is_bf16 and self.dim % (2 * LANES) == 0
        if self._interleaves:
            totals = self._rearranged(totals, _UNPACKED)
        for v, total in enumerate(totals):
            self.do(f"%acc.{v} = alloca <16 x float>")
            self.do(f"store <16 x float> {total}, ptr %acc.{v}")
        count = self.emit(f"call i64 @llvm.umin.i64(i64 %left, i64 {KEYS})")
        if self.is_bf16:
            pair = self._interleaved_pair if self._interleaves else self._pair
            self.loop("token", "0", self.emit(f"lshr i64 {self.offset(count, 1)}, 1"), pair)
        else:
            self.loop("token", "0", count, self._single)
        totals = [self.emit(f"load <16 x float>, ptr %acc.{v}") for v in vectors]
        if self._interleaves:
            totals = self._rearranged(totals, [_UNPACKED.index(i) for i in range(2 * LANES)])
        for v, total in enumerate(totals):
            self.put(total, "%total", str(v * LANES))
        self.end()
        return self.text

    def _rearranged(self, vectors: list[str], order: list[int]) -> list[str]:
        """Each two vectors with their numbers in another order."""
        results = []
        for first in range(0, len(vectors), 2):
            both = ", ".join(f"<16 x float> {vector}" for vector in vectors[first : first + 2])
            for half in (order[:LANES], order[LANES:]):
                lanes = ", ".join(f"i32 {lane}" for lane in half)
                results.append(self.emit(f"shufflevector {both}, <16 x i32> <{lanes}>"))
        return results

    def _interleaved_pair(self) -> None:
        keys = [self.emit("shl i64 %token, 1")]
        keys.append(self.offset(keys[0], 1))
        places = []
        for key in keys:
            self.fetch("%head.values", self.offset(key, KEYS))
            places.append(self.emit(f"mul i64 {self.slot_of(key)}, {self.dim}"))
        is_there = self._is_there(keys[1])
        for v in range(0, self.padded_dim // LANES, 2):
            values = []
            for place in places:
                address = self.emit(f"getelementptr i16, ptr %head.values, i64 {self.offset(place, v * LANES)}")
                values.append(self.emit(f"load <32 x i16>, ptr {address}, align 2"))
            values[1] = self.emit(f"select i1 {is_there}, <32 x i16> {values[1]}, <32 x i16> zeroinitializer")
            for half in (0, 1):
                order = _UNPACKED[half * LANES : (half + 1) * LANES]
                lanes = ", ".join(f"i32 {i}, i32 {2 * LANES + i}" for i in order)
                both = ", ".join(f"<32 x i16> {value}" for value in values)
                mixed = self.emit(f"shufflevector {both}, <32 x i32> <{lanes}>")
                self._use(self.emit(f"bitcast <32 x i16> {mixed} to <16 x i32>"), v + half)

    def _use(self, numbers: str, v: int) -> None:
        total = self.emit(f"load <16 x float>, ptr %acc.{v}")
        total = self.product(total, numbers, self.word_at("%weight", "%token"))
        self.do(f"store <16 x float> {total}, ptr %acc.{v}")


class Totals(Part):
    """Adds 64 values, weighed, to what rows have summed, which shrinks first."""

    def __init__(self, kernel: AttentionKernel, rows: int) -> None:
        super().__init__(kernel)
        self.rows = rows
        self.vectors_at_once = NARROW_VECTORS.get(rows, 1) if kernel.is_narrow else VECTORS

    def write(self) -> str:
        """The function's text; `%row` is the first one's in the tile."""
        self.begin(f"totals{self.rows}(ptr %scratch, i64 %row)", (), 0, ("chunk", "k", "last.k"))
        for name in ("value", "weight", "shrink", "total"):
            self.part(name)
        for r in range(self.rows):
            for v in range(VECTORS):
                self.do(f"%acc.{r}.{v} = alloca <16 x float>")
        whole, rest = divmod(self.padded_dim // LANES, self.vectors_at_once)

        def chunk() -> None:
            self._chunk(self.emit(f"mul i64 %chunk, {self.vectors_at_once * LANES}"), self.vectors_at_once, "k")

        if whole:
            self.loop("chunk", "0", str(whole), chunk)
        if rest:
            self._chunk(str(whole * self.vectors_at_once * LANES), rest, "last.k")
        self.end()
        return self.text

    def _chunk(self, first: str, num_vectors: int, loop: str) -> None:
        places = {}
        for r in range(self.rows):
            shrink = self.float_at("%shrink", str(r * LANES))
            row = self.emit(f"mul i64 {self.offset('%row', r)}, {self.padded_dim}")
            for v in range(num_vectors):
                places[r, v] = self.emit(f"add i64 {row}, {self.offset(first, v * LANES)}")
                total = self.mul(self.float_at("%total", places[r, v]), shrink)
                self.do(f"store <16 x float> {total}, ptr %acc.{r}.{v}")
        words_per_row = KEYS // 2 if self.is_bf16 else KEYS

        def key() -> None:
            at = self.emit(f"add i64 {self.emit(f'mul i64 %{loop}, {self.padded_dim}')}, {first}")
            values = [self.words_at("%value", self.offset(at, v * LANES)) for v in range(num_vectors)]
            for r in range(self.rows):
                word = self.word_at("%weight", self.offset(f"%{loop}", r * words_per_row))
                for v, value in enumerate(values):
                    total = self.emit(f"load <16 x float>, ptr %acc.{r}.{v}")
                    self.do(f"store <16 x float> {self.product(total, value, word)}, ptr %acc.{r}.{v}")

        self.loop(loop, "0", str(words_per_row), key)
        for (r, v), place in places.items():
            self.put(self.emit(f"load <16 x float>, ptr %acc.{r}.{v}"), "%total", place)
