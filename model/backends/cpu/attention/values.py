"""Totals: values times weights, of values laid out for many rows, or as one row takes them from the cache.

A word has two keys' values in pairs, one key's otherwise. Interleaving two keys' numbers leaves them in another order,
in which totals are kept until a row is finished (`natural_order`).
"""

from __future__ import annotations

from model.backends.cpu.attention.kernel import KEYS, NARROW_VECTORS, VECTORS, AttentionKernel, Part
from model.backends.cpu.ir.numbers import KINDS
from model.backends.cpu.ir.writer import LANES, lanes

# Which of 32 numbers come when two vectors of them are interleaved as processors do it, 128 bits by 128 bits.
_UNPACKED = [8 * part + 4 * half + i for half in (0, 1) for part in range(4) for i in range(4)]


class _Values(Part):
    """What both ways have in common."""

    @property
    def keys_per_word(self) -> int:
        """Whose values one word has."""
        return 2 if self.kernel.has_pairs else 1

    def words_of(self, token: str, *, first_is_there: bool) -> list[str]:
        """The words of one or two keys' values; 0 where there is no such key, which might have left anything there.

        Args:
            token: the key's number among the 64, or the pair's.
            first_is_there: whether only the second of two may not be there.
        """
        keys = [self.times(token, self.keys_per_word)]
        keys += [self.plus(keys[0], 1)] * (self.keys_per_word - 1)
        places, are_there = [], []
        for key in keys:
            self.fetch("%head.values", self.plus(key, KEYS))
            places.append(self.times(self.slot_of(key), self.dim))
            are_there.append(self.emit(f"icmp ult i64 {key}, %left"))
        _, kind = KINDS[self.kernel.cache_dtype]
        words = []
        for first, count in self.parts_of_head():
            numbers = []
            for number, (place, is_there) in enumerate(zip(places, are_there, strict=True)):
                address = self.address(kind, "%head.values", self.plus(place, first))
                value = self.numbers(self.kernel.cache_dtype, address, count)
                # The weight of a key that is not there is 0, which is enough but for floats that are none.
                if not self.is_integer and (number or not first_is_there):
                    value = self.emit(f"select i1 {is_there}, <16 x i32> {value}, <16 x i32> zeroinitializer")
                numbers.append(value)
            words += self._interleaved(*numbers) if self.kernel.has_pairs else numbers
        return words

    def _interleaved(self, a: str, b: str) -> list[str]:
        both = ", ".join(f"<32 x i16> {self.bitcast(each, '16 x i32', '32 x i16')}" for each in (a, b))
        words = []
        for half in (0, 1):
            order = _UNPACKED[half * LANES : (half + 1) * LANES]
            pairs = lanes(lane for i in order for lane in (i, 2 * LANES + i))
            words.append(self.bitcast(self.emit(f"shufflevector {both}, <32 x i32> {pairs}"), "32 x i16", "16 x i32"))
        return words

    def begin_sum(self, slot: str, at: str, shrink: str) -> None:
        """Gives a variable what was summed before these keys, shrunk; integers, which have a unit of their own, 0."""
        if self.is_integer:
            self.write("zeroinitializer", slot, "i32")
        else:
            self.write(self.mul(self.vector("%total", at), shrink), slot)

    def end_sum(self, slot: str, at: str, shrink: str, index: int) -> None:
        """Writes what is summed now, of the `index`-th of the rows at work."""
        total = self.read(slot, self.sum_kind)
        if self.is_integer:
            unit = self.splat("float", self.number("float", "%weight_unit", index))
            total = self.emit(f"sitofp <16 x i32> {total} to <16 x float>")
            total = self.fma(total, unit, self.mul(self.vector("%total", at), shrink))
        self.put(total, "%total", at)


def natural_order(part: Part, vectors: list[str]) -> list[str]:
    """A row's totals in the order of the head's numbers."""
    if not part.kernel.has_pairs:
        return vectors
    order = [_UNPACKED.index(i) for i in range(2 * LANES)]
    results = []
    for first in range(0, len(vectors), 2):
        both = ", ".join(f"<16 x float> {vector}" for vector in vectors[first : first + 2])
        halves = (order[:LANES], order[LANES:])
        results += [part.emit(f"shufflevector {both}, <16 x i32> {lanes(half)}") for half in halves]
    return results


class LayOutValues(_Values):
    """Lays out 64 values; zeros for keys that there are not."""

    def function(self) -> str:
        """The function's text; `%left` is how many of the 64 there are, or more."""
        parameters = "ptr %head.values, ptr %table, ptr %scratch, i64 %left"
        self.begin(f"lay.out.values({parameters})", (), 0, ("token",))
        self.part("value")

        def token() -> None:
            at = self.times("%token", self.padded_dim)
            for v, words in enumerate(self.words_of("%token", first_is_there=False)):
                self.put(words, "%value", self.plus(at, v * LANES), "i32")

        self.loop("token", "0", str(KEYS // self.keys_per_word), token)
        return self.end()


class TotalsOfOne(_Values):
    """Adds values, weighed, to what one row has summed, as they are taken from the cache."""

    def function(self) -> str:
        """The function's text; the row is the tile's first."""
        parameters = "ptr %head.values, ptr %table, ptr %scratch, i64 %left"
        self.begin(f"totals.of.one({parameters})", (), 0, ("token",))
        for name in ("weight", "shrink", "total", "weight_unit"):
            self.part(name)
        shrink = self.vector("%shrink", "0")
        vectors = range(self.padded_dim // LANES)
        for v in vectors:
            self.do(f"%acc.{v} = alloca <16 x {self.sum_kind}>")
            self.begin_sum(f"%acc.{v}", str(v * LANES), shrink)

        def token() -> None:
            words = self.words_of("%token", first_is_there=True)
            weight = self.word("%weight", "%token")
            for v in vectors:
                self.add_product(f"%acc.{v}", words[v], weight)

        count = self.emit(f"call i64 @llvm.umin.i64(i64 %left, i64 {KEYS})")
        rounded = self.plus(count, self.keys_per_word - 1)
        self.loop("token", "0", self.emit(f"udiv i64 {rounded}, {self.keys_per_word}"), token)
        for v in vectors:
            self.end_sum(f"%acc.{v}", str(v * LANES), shrink, 0)
        return self.end()


class Totals(_Values):
    """Adds 64 values, weighed, to what rows have summed, which shrinks first."""

    def __init__(self, kernel: AttentionKernel, rows: int) -> None:
        super().__init__(kernel)
        self.rows = rows
        self.vectors_at_once = NARROW_VECTORS.get(rows, 1) if kernel.is_narrow else VECTORS

    def function(self) -> str:
        """The function's text; `%row` is the first one's in the tile."""
        self.begin(f"totals{self.rows}(ptr %scratch, i64 %row)", (), 0, ("chunk", "k", "last.k"))
        for name in ("value", "weight", "shrink", "total", "weight_unit"):
            self.part(name)
        for r in range(self.rows):
            for v in range(VECTORS):
                self.do(f"%acc.{r}.{v} = alloca <16 x {self.sum_kind}>")
        whole, rest = divmod(self.padded_dim // LANES, self.vectors_at_once)

        def chunk() -> None:
            self._chunk(self.times("%chunk", self.vectors_at_once * LANES), self.vectors_at_once, "k")

        if whole:
            self.loop("chunk", "0", str(whole), chunk)
        if rest:
            self._chunk(str(whole * self.vectors_at_once * LANES), rest, "last.k")
        return self.end()

    def _chunk(self, first: str, num_vectors: int, loop: str) -> None:
        places, shrinks = {}, []
        for r in range(self.rows):
            shrinks.append(self.vector("%shrink", str(r * LANES)))
            row = self.times(self.plus("%row", r), self.padded_dim)
            for v in range(num_vectors):
                places[r, v] = self.plus(row, self.plus(first, v * LANES))
                self.begin_sum(f"%acc.{r}.{v}", places[r, v], shrinks[r])
        words_per_row = KEYS // self.keys_per_word

        def key() -> None:
            at = self.plus(self.times(f"%{loop}", self.padded_dim), first)
            values = [self.vector("%value", self.plus(at, v * LANES), "i32") for v in range(num_vectors)]
            for r in range(self.rows):
                weight = self.word("%weight", self.plus(f"%{loop}", r * words_per_row))
                for v, value in enumerate(values):
                    self.add_product(f"%acc.{r}.{v}", value, weight)

        self.loop(loop, "0", str(words_per_row), key)
        for (r, v), place in places.items():
            self.end_sum(f"%acc.{r}.{v}", place, shrinks[r], r)
