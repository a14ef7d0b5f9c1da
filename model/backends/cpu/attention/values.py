"""Totals: values times weights, of values laid out for many rows, or as one row takes them from the cache.

A word has two keys' values in pairs, one key's otherwise. Interleaving two keys' numbers leaves them in another order,
in which totals are kept until a row is finished (`natural_order`).
"""

from __future__ import annotations

from model.backends.cpu.attention.kernel import KEYS, NARROW_VECTORS, VECTORS, AttentionKernel, Part
from model.backends.cpu.ir.writer import KINDS, LANES

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
        keys = [self.emit(f"mul i64 {token}, {self.keys_per_word}")]
        keys += [self.offset(keys[0], 1)] * (self.keys_per_word - 1)
        places, are_there = [], []
        for key in keys:
            self.fetch("%head.values", self.offset(key, KEYS))
            places.append(self.emit(f"mul i64 {self.slot_of(key)}, {self.dim}"))
            are_there.append(self.emit(f"icmp ult i64 {key}, %left"))
        _, kind = KINDS[self.kernel.cache_dtype]
        words = []
        for first, count in self.parts_of_head():
            numbers = []
            for number, (place, is_there) in enumerate(zip(places, are_there, strict=True)):
                address = self.emit(f"getelementptr {kind}, ptr %head.values, i64 {self.offset(place, first)}")
                value = self.numbers(self.kernel.cache_dtype, address, count)
                # The weight of a key that is not there is 0, which is enough but for floats that are none.
                if not self.is_integer and (number or not first_is_there):
                    value = self.emit(f"select i1 {is_there}, <16 x i32> {value}, <16 x i32> zeroinitializer")
                numbers.append(value)
            words += self._interleaved(*numbers) if self.kernel.has_pairs else numbers
        return words

    def _interleaved(self, a: str, b: str) -> list[str]:
        both = ", ".join(f"<32 x i16> {self.emit(f'bitcast <16 x i32> {each} to <32 x i16>')}" for each in (a, b))
        words = []
        for half in (0, 1):
            order = _UNPACKED[half * LANES : (half + 1) * LANES]
            lanes = ", ".join(f"i32 {i}, i32 {2 * LANES + i}" for i in order)
            mixed = self.emit(f"shufflevector {both}, <32 x i32> <{lanes}>")
            words.append(self.emit(f"bitcast <32 x i16> {mixed} to <16 x i32>"))
        return words

    def begin_sum(self, slot: str, at: str, shrink: str) -> None:
        """Gives a variable what was summed before these keys, shrunk; integers, which have a unit of their own, 0."""
        if self.is_integer:
            self.do(f"store <16 x i32> zeroinitializer, ptr {slot}")
        else:
            self.do(f"store <16 x float> {self.mul(self.float_at('%total', at), shrink)}, ptr {slot}")

    def end_sum(self, slot: str, at: str, shrink: str, index: int) -> None:
        """Writes what is summed now, of the `index`-th of the rows at work."""
        total = self.emit(f"load <16 x {self.sum_kind}>, ptr {slot}")
        if self.is_integer:
            unit = self.emit(f"getelementptr float, ptr %weight_unit, i64 {index}")
            unit = self.splat("float", self.emit(f"load float, ptr {unit}, align 4"))
            total = self.emit(f"sitofp <16 x i32> {total} to <16 x float>")
            total = self.fma(total, unit, self.mul(self.float_at("%total", at), shrink))
        self.put(total, "%total", at)


def natural_order(part: Part, vectors: list[str]) -> list[str]:
    """A row's totals in the order of the head's numbers."""
    if not part.kernel.has_pairs:
        return vectors
    order = [_UNPACKED.index(i) for i in range(2 * LANES)]
    results = []
    for first in range(0, len(vectors), 2):
        both = ", ".join(f"<16 x float> {vector}" for vector in vectors[first : first + 2])
        for half in (order[:LANES], order[LANES:]):
            lanes = ", ".join(f"i32 {lane}" for lane in half)
            results.append(part.emit(f"shufflevector {both}, <16 x i32> <{lanes}>"))
    return results


class LayOutValues(_Values):
    """Lays out 64 values; zeros for keys that there are not."""

    def write(self) -> str:
        """The function's text; `%left` is how many of the 64 there are, or more."""
        parameters = "ptr %head.values, ptr %table, ptr %scratch, i64 %left"
        self.begin(f"lay.out.values({parameters})", (), 0, ("token",))
        self.part("value")

        def token() -> None:
            at = self.emit(f"mul i64 %token, {self.padded_dim}")
            for v, words in enumerate(self.words_of("%token", first_is_there=False)):
                self.put(words, "%value", self.offset(at, v * LANES), "i32")

        self.loop("token", "0", str(KEYS // self.keys_per_word), token)
        self.end()
        return self.text


class TotalsOfOne(_Values):
    """Adds values, weighed, to what one row has summed, as they are taken from the cache."""

    def write(self) -> str:
        """The function's text; the row is the tile's first."""
        parameters = "ptr %head.values, ptr %table, ptr %scratch, i64 %left"
        self.begin(f"totals.of.one({parameters})", (), 0, ("token",))
        for name in ("weight", "shrink", "total", "weight_unit"):
            self.part(name)
        shrink = self.float_at("%shrink", "0")
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
        rounded = self.offset(count, self.keys_per_word - 1)
        self.loop("token", "0", self.emit(f"udiv i64 {rounded}, {self.keys_per_word}"), token)
        for v in vectors:
            self.end_sum(f"%acc.{v}", str(v * LANES), shrink, 0)
        self.end()
        return self.text


class Totals(_Values):
    """Adds 64 values, weighed, to what rows have summed, which shrinks first."""

    def __init__(self, kernel: AttentionKernel, rows: int) -> None:
        super().__init__(kernel)
        self.rows = rows
        self.vectors_at_once = NARROW_VECTORS.get(rows, 1) if kernel.is_narrow else VECTORS

    def write(self) -> str:
        """The function's text; `%row` is the first one's in the tile."""
        self.begin(f"totals{self.rows}(ptr %scratch, i64 %row)", (), 0, ("chunk", "k", "last.k"))
        for name in ("value", "weight", "shrink", "total", "weight_unit"):
            self.part(name)
        for r in range(self.rows):
            for v in range(VECTORS):
                self.do(f"%acc.{r}.{v} = alloca <16 x {self.sum_kind}>")
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
        places, shrinks = {}, []
        for r in range(self.rows):
            shrinks.append(self.float_at("%shrink", str(r * LANES)))
            row = self.emit(f"mul i64 {self.offset('%row', r)}, {self.padded_dim}")
            for v in range(num_vectors):
                places[r, v] = self.emit(f"add i64 {row}, {self.offset(first, v * LANES)}")
                self.begin_sum(f"%acc.{r}.{v}", places[r, v], shrinks[r])
        words_per_row = KEYS // self.keys_per_word

        def key() -> None:
            at = self.emit(f"add i64 {self.emit(f'mul i64 %{loop}, {self.padded_dim}')}, {first}")
            values = [self.words_at("%value", self.offset(at, v * LANES)) for v in range(num_vectors)]
            for r in range(self.rows):
                weight = self.word("%weight", self.offset(f"%{loop}", r * words_per_row))
                for v, value in enumerate(values):
                    self.add_product(f"%acc.{r}.{v}", value, weight)

        self.loop(loop, "0", str(words_per_row), key)
        for (r, v), place in places.items():
            self.end_sum(f"%acc.{r}.{v}", place, shrinks[r], r)
