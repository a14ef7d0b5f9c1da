"""The text of the kernel for attention over the paged cache: a few query rows of one sequence at a time.

A row's result depends on that row and its keys alone: keys are walked 64 at a time from position 0, with the softmax's
maximum and sum carried along, for a decode as for a row of a chunk. What a row does not see has weight 0 and changes no
bit. So a prompt in chunks of any size, behind cached blocks, and its tokens decoded one by one give the same numbers.

A thread takes the next tile (rows of a sequence that follow each other) and head. For each 64 keys it lays keys and
values out in scratch memory, keys transposed, and lets the tile's rows use them, a few at a time. Two ways to do the
arithmetic:

- `bf16`: AVX512-BF16's dot product of pairs, for bfloat16 queries and cache; weights are rounded to bfloat16, and the
  sum they are divided by is that of the rounded ones.
- `float32`: multiply-add on any processor, keys and values in whatever type they are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from model.backends.cpu.ir_writer import (
    KINDS,
    LANES,
    NUMBER_DECLARATIONS,
    NumberWriter,
    everywhere,
    float_literal,
    floats,
)

# Where each argument stands in the array of 64-bit words that the kernel gets; addresses come first.
ARGUMENTS = (
    *(
        "query",
        "out",
        "keys",
        "values",
        "key_scales",
        "value_scales",
        "slots",
        "tiles",
        "query_scales",
        "scratch",
        "next",
    ),
    *("items", "rows", "heads", "heads_per_key", "num_slots"),
)
# Of a tile: where its sequence's slots begin, its first row in the batch, how many rows, the first one's position.
TILE = ("table", "row", "count", "position")
ATTEND = "attend"
KEYS = 64  # at a time
TILE_ROWS = 96  # share the keys that were laid out
MAX_HEAD_DIM = 256
_NUM_ADDRESSES = 11
_VECTORS = KEYS // LANES
_MAX_ROWS = 6
_NARROW_VECTORS = {1: 4, 2: 2, 3: 2}
_MASKED = -1e30
# Which of 32 numbers come when two vectors of them are interleaved as processors do it, 128 bits by 128 bits.
_UNPACKED = [8 * part + 4 * half + i for half in (0, 1) for part in range(4) for i in range(4)]

_DECLARATIONS = """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
declare i64 @llvm.umin.i64(i64, i64)
"""


@dataclass(frozen=True)
class AttentionKernel:
    """A kernel.

    Attributes:
        dtype: of the results, "float32" or "bfloat16".
        cache_dtype: "float32", "bfloat16" or "int8" (with a scale for each token and head).
        arithmetic: "bf16" (only for a bfloat16 cache; queries are bfloat16) or "float32" (queries are float32).
        head_dim: at most `MAX_HEAD_DIM`; a key fills whole words of 32 bits.
        has_bf16: see `NumberWriter`.
        is_narrow: whether a register holds less than a vector.
    """

    dtype: str
    cache_dtype: str
    arithmetic: str
    head_dim: int
    has_bf16: bool
    is_narrow: bool = False

    @property
    def padded_dim(self) -> int:
        """Of a value in scratch memory."""
        return -(-self.head_dim // LANES) * LANES

    @property
    def scratch(self) -> dict[str, int]:
        """Where each part of a thread's scratch memory begins, in bytes; `end` is its size."""
        is_bf16 = self.arithmetic == "bf16"
        sizes = {
            "key": self.head_dim * KEYS * (2 if is_bf16 else 4),
            "value": self.padded_dim * KEYS * (2 if is_bf16 else 4),
            "scale": 2 * KEYS * 4,
            "score": _MAX_ROWS * KEYS * 4,
            "weight": _MAX_ROWS * KEYS * (2 if is_bf16 else 4),
            "shrink": _MAX_ROWS * LANES * 4,
            "total": TILE_ROWS * self.padded_dim * 4,
            "best": TILE_ROWS * 4,
            "sum": TILE_ROWS * LANES * 4,
        }
        places, end = {}, 0
        for name, size in sizes.items():
            places[name] = end
            end += -(-size // 64) * 64
        return {**places, "end": end}

    @cached_property
    def text(self) -> str:
        """A module with the function `attend`, which takes the arguments' address and runs on every thread."""
        parts = [NUMBER_DECLARATIONS, _DECLARATIONS]
        parts += [writer(self).write() for writer in (_LayOutKeys, _LayOutValues, _Softmax, _ScoresOfOne, _TotalsOfOne)]
        if self.cache_dtype == "int8":
            parts.append(_Scales(self).write())
        for rows in range(1, _MAX_ROWS + 1):
            parts += [_Scores(self, rows).write(), _Totals(self, rows).write()]
        return "\n".join([*parts, _Attend(self).write()])


class _Part(NumberWriter):
    """One function of the module."""

    def __init__(self, kernel: AttentionKernel) -> None:
        super().__init__(has_bf16=kernel.has_bf16)
        self.kernel = kernel
        self.is_bf16 = kernel.arithmetic == "bf16"
        self.dim, self.padded_dim = kernel.head_dim, kernel.padded_dim

    def part(self, name: str) -> None:
        """Gives `%name` the address of a part of `%scratch`."""
        self.do(f"%{name} = getelementptr i8, ptr %scratch, i64 {self.kernel.scratch[name]}")

    def slot_of(self, key: str) -> str:
        """The slot, as 64 bits, of one of the keys that `%table` tells."""
        at = self.emit(f"getelementptr i32, ptr %table, i64 {key}")
        return self.emit(f"sext i32 {self.emit(f'load i32, ptr {at}, align 4')} to i64")

    def fetch(self, base: str, key: str) -> None:
        """Fetches a key or value into the processor's cache."""
        size, kind = KINDS[self.kernel.cache_dtype]
        at = self.emit(f"mul i64 {self.slot_of(key)}, {self.dim}")
        address = self.emit(f"getelementptr {kind}, ptr {base}, i64 {at}")
        for line in range(0, self.dim * size, 64):
            line_address = self.emit(f"getelementptr i8, ptr {address}, i64 {line}")
            self.do(f"call void @llvm.prefetch.p0(ptr {line_address}, i32 0, i32 2, i32 1)")

    def float_at(self, base: str, at: str) -> str:
        """A vector at `base[at]`."""
        address = self.emit(f"getelementptr float, ptr {base}, i64 {at}")
        return self.emit(f"load <16 x float>, ptr {address}, align 4")

    def put(self, value: str, base: str, at: str, kind: str = "float") -> None:
        """Writes a vector to `base[at]`."""
        address = self.emit(f"getelementptr {kind}, ptr {base}, i64 {at}")
        self.do(f"store <16 x {kind}> {value}, ptr {address}, align 4")

    def product(self, total: str, vector: str, word: str) -> str:
        """The total plus a vector times a number in all lanes; both are pairs in bf16."""
        number = self.splat("i32", word)
        if self.is_bf16:
            a, b = (self.emit(f"bitcast <16 x i32> {each} to <32 x bfloat>") for each in (vector, number))
            arguments = f"<16 x float> {total}, <32 x bfloat> {a}, <32 x bfloat> {b}"
            return self.emit(f"call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512({arguments})")
        a, b = (self.emit(f"bitcast <16 x i32> {each} to <16 x float>") for each in (vector, number))
        return self.fma(a, b, total)

    def words_at(self, base: str, at: str) -> str:
        """16 words of 32 bits at `base[at]`."""
        address = self.emit(f"getelementptr i32, ptr {base}, i64 {at}")
        return self.emit(f"load <16 x i32>, ptr {address}, align 4")

    def word_at(self, base: str, at: str) -> str:
        """A word of 32 bits at `base[at]`."""
        return self.emit(f"load i32, ptr {self.emit(f'getelementptr i32, ptr {base}, i64 {at}')}, align 4")


class _LayOutKeys(_Part):
    """Lays out 64 keys so that a vector holds one number (in bf16 two neighbours) of 16 keys.

    On the way it fetches the next 64 keys into the processor's cache, spread over the work there is.
    """

    def write(self) -> str:
        """The function's text: the head's first key in the cache, and the block's first slot in the table."""
        self.begin("lay.out.keys(ptr %head.keys, ptr %table, ptr %scratch)", (), 0, ("group", "word"))
        self.part("key")
        self.loop("group", "0", str(_VECTORS), self._group)
        self.end()
        return self.text

    @property
    def _words_per_key(self) -> int:
        size, _ = KINDS[self.kernel.cache_dtype]
        return self.dim * size // 4

    def _group(self) -> None:
        first = self.emit(f"mul i64 %group, {LANES}")
        rows = self._rows(first)
        whole, rest = divmod(self._words_per_key, LANES)

        def word() -> None:
            self._square(rows, self.emit(f"mul i64 %word, {LANES}"), LANES, first)

        if whole:
            self.loop("word", "0", str(whole), word)
        if rest:
            self._square(rows, str(whole * LANES), rest, first)

    def _rows(self, first: str) -> list[str]:
        """The addresses of 16 keys."""
        rows = []
        for j in range(LANES):
            at = self.emit(f"mul i64 {self.slot_of(self.offset(first, j))}, {self._words_per_key}")
            rows.append(self.emit(f"getelementptr i32, ptr %head.keys, i64 {at}"))
        return rows

    def _square(self, rows: list[str], at: str, count: int, first: str) -> None:
        """16 keys' next `count` words, transposed."""
        self._fetch_next(first, at)
        vectors = []
        for row in rows:
            address = self.emit(f"getelementptr i32, ptr {row}, i64 {at}")
            vector = self.emit(f"load <{count} x i32>, ptr {address}, align 4")
            if count < LANES:
                lanes = ", ".join(f"i32 {min(i, count - 1)}" for i in range(LANES))
                vector = self.emit(
                    f"shufflevector <{count} x i32> {vector}, <{count} x i32> poison, <16 x i32> <{lanes}>"
                )
            vectors.append(vector)
        for half in (1, 2, 4, 8):
            for i in range(LANES):
                if not i & half:
                    vectors[i], vectors[i + half] = self._exchange(vectors[i], vectors[i + half], half)
        for i in range(count):
            self._store(vectors[i], self.offset(at, i), first)

    def _fetch_next(self, first: str, at: str) -> None:
        """Fetches a share of the keys that lie 64 further into the processor's cache, line after line."""
        lines = -(-self._words_per_key // LANES)
        keys = max(1, LANES // lines)
        start = self.emit(f"mul i64 {self.emit(f'udiv i64 {at}, {LANES}')}, {keys}")
        start = self.emit(f"add i64 {first}, {start}")
        for key in range(keys):
            self.fetch("%head.keys", self.offset(start, KEYS + key))

    def _exchange(self, a: str, b: str, half: int) -> tuple[str, str]:
        masks = (
            [LANES + (lane ^ half) if lane & half else lane for lane in range(LANES)],
            [LANES + lane if lane & half else lane ^ half for lane in range(LANES)],
        )
        results = []
        for mask in masks:
            lanes = ", ".join(f"i32 {lane}" for lane in mask)
            results.append(self.emit(f"shufflevector <16 x i32> {a}, <16 x i32> {b}, <16 x i32> <{lanes}>"))
        return results[0], results[1]

    def _store(self, words: str, word: str, first: str) -> None:
        """Takes the same word of 16 keys, the number-th, apart into numbers."""
        size, _ = KINDS[self.kernel.cache_dtype]
        if self.is_bf16 or size == 4:
            self._use(words, word, first)
            return
        per_word = 4 // size
        at = self.emit(f"mul i64 {word}, {per_word}")
        for part in range(per_word):
            bits = 32 // per_word
            value = words
            if part < per_word - 1:
                value = self.emit(f"shl <16 x i32> {value}, {_ints(32 - bits * (part + 1))}")
            if size == 1:
                value = self.emit(f"ashr <16 x i32> {value}, {_ints(24)}")
                value = self.emit(f"sitofp <16 x i32> {value} to <16 x float>")
                value = self.emit(f"bitcast <16 x float> {value} to <16 x i32>")
            else:
                value = self.emit(f"and <16 x i32> {value}, {_ints(-65536)}")
            self._use(value, self.offset(at, part), first)

    def _use(self, numbers: str, number: str, first: str) -> None:
        """Does what there is to do with a number (in bf16 a pair) of 16 keys, from the `first` of the 64 on."""
        at = self.emit(f"mul i64 {number}, {KEYS}")
        self.put(numbers, "%key", self.emit(f"add i64 {at}, {first}"), "i32")


class _ScoresOfOne(_LayOutKeys):
    """One query times keys as they are taken from the cache: laying them out would cost more than it saves.

    All 64 keys advance together, or each product would wait for the one before.
    """

    def write(self) -> str:
        """The function's text."""
        self.begin("scores.of.one(ptr %query, ptr %head.keys, ptr %table, ptr %scratch)", (), 0, ("word",))
        self.part("score")
        for v in range(_VECTORS):
            self.do(f"%acc.{v} = alloca <16 x float>")
            self.do(f"store <16 x float> zeroinitializer, ptr %acc.{v}")
        whole, rest = divmod(self._words_per_key, LANES)
        groups = [(str(v * LANES), self._rows(str(v * LANES))) for v in range(_VECTORS)]

        def squares(at: str, count: int) -> None:
            for first, rows in groups:
                self._square(rows, at, count, first)

        if whole:
            self.loop("word", "0", str(whole), lambda: squares(self.emit(f"mul i64 %word, {LANES}"), LANES))
        if rest:
            squares(str(whole * LANES), rest)
        for v in range(_VECTORS):
            self.put(self.emit(f"load <16 x float>, ptr %acc.{v}"), "%score", str(v * LANES))
        self.end()
        return self.text

    def _use(self, numbers: str, number: str, first: str) -> None:
        slot = f"%acc.{int(first) // LANES}"
        total = self.product(self.emit(f"load <16 x float>, ptr {slot}"), numbers, self.word_at("%query", number))
        self.do(f"store <16 x float> {total}, ptr {slot}")


class _LayOutValues(_Part):
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
            low = self.emit(f"lshr <16 x i32> {words[0]}, {_ints(16)}")
            return self.emit(f"or <16 x i32> {low}, {words[1]}")

        self._vectors(vector)


class _TotalsOfOne(_LayOutValues):
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


class _Scales(_Part):
    """Collects the scales of 64 keys and values in int8; zeros for keys that there are not."""

    def write(self) -> str:
        """The function's text."""
        parameters = "ptr %key_scales, ptr %value_scales, ptr %table, ptr %scratch, i64 %left"
        self.begin(f"collect.scales({parameters})", (), 0, ("scan",))
        self.part("scale")
        self.loop("scan", "0", str(KEYS), self._scan)
        self.end()
        return self.text

    def _scan(self) -> None:
        slot = self.slot_of("%scan")
        is_there = self.emit("icmp ult i64 %scan, %left")
        for number, name in enumerate(("key_scales", "value_scales")):
            scale = self.emit(f"load float, ptr {self.emit(f'getelementptr float, ptr %{name}, i64 {slot}')}, align 4")
            scale = self.emit(f"select i1 {is_there}, float {scale}, float 0.0")
            to = self.emit(f"getelementptr float, ptr %scale, i64 {self.offset('%scan', number * KEYS)}")
            self.do(f"store float {scale}, ptr {to}, align 4")


class _Scores(_Part):
    """Queries times keys, some rows at a time."""

    def __init__(self, kernel: AttentionKernel, rows: int) -> None:
        super().__init__(kernel)
        self.rows = rows
        self.vectors_at_once = _NARROW_VECTORS.get(rows, 1) if kernel.is_narrow else _VECTORS

    def write(self) -> str:
        """The function's text; `%query` is the first row's."""
        firsts = range(0, _VECTORS, self.vectors_at_once)
        self.begin(f"scores{self.rows}(ptr %query, ptr %scratch)", (), 0, [f"d{first}" for first in firsts])
        self.part("key")
        self.part("score")
        for r in range(self.rows):
            for v in range(_VECTORS):
                self.do(f"%acc.{r}.{v} = alloca <16 x float>")
        for first in firsts:
            self._pass(first)
        self.end()
        return self.text

    def _pass(self, first: int) -> None:
        vectors = range(first, first + self.vectors_at_once)
        words_per_row = self.dim // 2 if self.is_bf16 else self.dim
        for r in range(self.rows):
            for v in vectors:
                self.do(f"store <16 x float> zeroinitializer, ptr %acc.{r}.{v}")

        def number() -> None:
            at = self.emit(f"mul i64 %d{first}, {KEYS}")
            keys = {v: self.words_at("%key", self.offset(at, v * LANES)) for v in vectors}
            for r in range(self.rows):
                word = self.word_at("%query", self.offset(f"%d{first}", r * words_per_row))
                for v in vectors:
                    total = self.emit(f"load <16 x float>, ptr %acc.{r}.{v}")
                    self.do(f"store <16 x float> {self.product(total, keys[v], word)}, ptr %acc.{r}.{v}")

        self.loop(f"d{first}", "0", str(words_per_row), number)
        for r in range(self.rows):
            for v in vectors:
                self.put(self.emit(f"load <16 x float>, ptr %acc.{r}.{v}"), "%score", str(r * KEYS + v * LANES))


class _Softmax(_Part):
    """Turns a row's scores into weights, and says by how much what was summed before shrinks."""

    def write(self) -> str:
        """The function's text.

        `%index` is the row's among those at work, `%row` in the tile; `%seen` is how many of the 64 keys it sees,
        perhaps none or more than 64; `%factor` is its query's scale, for powers of 2.
        """
        signature = "softmax(ptr %scratch, i64 %index, i64 %row, i64 %seen, float %factor)"
        self.begin(signature, (), 0, ())
        for name in ("scale", "score", "weight", "shrink", "best", "sum"):
            self.part(name)
        limit = self.emit("call i64 @llvm.umin.i64(i64 %seen, i64 64)")
        limit = self.splat("i32", self.emit(f"trunc i64 {limit} to i32"))
        at = self.emit(f"mul i64 %index, {KEYS}")
        factor = self.splat("float", "%factor")
        scores, masks = [], []
        for v in range(_VECTORS):
            score = self.float_at("%score", self.offset(at, v * LANES))
            if self.kernel.cache_dtype == "int8":
                score = self.mul(score, self.float_at("%scale", str(v * LANES)))
            places = ", ".join(f"i32 {v * LANES + lane}" for lane in range(LANES))
            masks.append(self.emit(f"icmp ult <16 x i32> <{places}>, {limit}"))
            scores.append(
                self.emit(f"select <16 x i1> {masks[-1]}, <16 x float> {score}, <16 x float> {floats(_MASKED)}")
            )
        best_at = self.emit("getelementptr float, ptr %best, i64 %row")
        before = self.splat("float", self.emit(f"load float, ptr {best_at}, align 4"))
        best = scores[0]
        for score in scores[1:]:
            best = self.larger(score, best)
        best = self.larger(self.splat("float", self.largest(best)), before)
        self.do(f"store float {self.emit(f'extractelement <16 x float> {best}, i32 0')}, ptr {best_at}, align 4")
        shrink = self._power(before, best, factor)
        self.put(shrink, "%shrink", self.emit(f"mul i64 %index, {LANES}"))
        weights = []
        for v, score in enumerate(scores):
            weight = self._power(score, best, factor)
            weight = self.emit(f"select <16 x i1> {masks[v]}, <16 x float> {weight}, <16 x float> zeroinitializer")
            weights.append(self._put_weight(weight, self.offset(at, v * LANES), v))
        part = self.add(self.add(weights[0], weights[1]), self.add(weights[2], weights[3]))
        sum_at = self.emit(f"mul i64 %row, {LANES}")
        self.put(self.fma(self.float_at("%sum", sum_at), shrink, part), "%sum", sum_at)
        self.end()
        return self.text

    def _power(self, score: str, best: str, factor: str) -> str:
        return self.exp2(self.mul(self.emit(f"fsub <16 x float> {score}, {best}"), factor))

    def _put_weight(self, weight: str, at: str, v: int) -> str:
        """Writes weights as the values want them, and returns them as they are to be summed."""
        if self.is_bf16:
            self.store("bfloat16", weight, "%weight", at)
            return self.rounded("bfloat16", weight)
        scaled = weight
        if self.kernel.cache_dtype == "int8":
            scaled = self.mul(weight, self.float_at("%scale", str(KEYS + v * LANES)))
        self.put(scaled, "%weight", at)
        return weight


class _Totals(_Part):
    """Adds 64 values, weighed, to what rows have summed, which shrinks first."""

    def __init__(self, kernel: AttentionKernel, rows: int) -> None:
        super().__init__(kernel)
        self.rows = rows
        self.vectors_at_once = _NARROW_VECTORS.get(rows, 1) if kernel.is_narrow else _VECTORS

    def write(self) -> str:
        """The function's text; `%row` is the first one's in the tile."""
        self.begin(f"totals{self.rows}(ptr %scratch, i64 %row)", (), 0, ("chunk", "k", "last.k"))
        for name in ("value", "weight", "shrink", "total"):
            self.part(name)
        for r in range(self.rows):
            for v in range(_VECTORS):
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


class _Attend(_Part):
    """What runs on every thread."""

    def write(self) -> str:
        """The function's text."""
        loops = ("clear", "block", "at.work", "soft", "done", "column")
        self.begin(f"{ATTEND}(ptr %arguments)", ARGUMENTS, _NUM_ADDRESSES, loops)
        thread = self.emit("zext i32 " + self.emit("call i32 @omp_get_thread_num()") + " to i64")
        self.do(f"%scratch.first = mul i64 {thread}, {self.kernel.scratch['end']}")
        self.do("%scratch.own = getelementptr i8, ptr %scratch, i64 %scratch.first")
        for name in ("total", "best", "sum"):
            self.do(f"%{name} = getelementptr i8, ptr %scratch.own, i64 {self.kernel.scratch[name]}")
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
        self.do(f"%first.query = getelementptr {'i16' if self.is_bf16 else 'float'}, ptr %query, i64 {at}")
        self.loop("clear", "0", "%tile.count", self._clear)
        num_blocks = self.emit(f"udiv i64 {self.offset('%num.keys', KEYS - 1)}, {KEYS}")
        self.loop("block", "0", num_blocks, self._block)
        self.loop("done", "0", "%tile.count", self._finish)

    def _clear(self) -> None:
        at = self.emit(f"mul i64 %clear, {self.padded_dim}")
        for v in range(self.padded_dim // LANES):
            self.put("zeroinitializer", "%total", self.offset(at, v * LANES))
        self.put("zeroinitializer", "%sum", self.emit(f"mul i64 %clear, {LANES}"))
        best = self.emit("getelementptr float, ptr %best, i64 %clear")
        self.do(f"store float {float_literal(_MASKED)}, ptr {best}, align 4")

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
        first = self.emit(f"udiv i64 {unseeing}, {_MAX_ROWS}")
        last = self.emit(f"udiv i64 {self.offset('%tile.count', _MAX_ROWS - 1)}, {_MAX_ROWS}")
        self.loop("at.work", first, last, self._rows)
        self.do("br label %block.done")
        self.label("block.done")

    def _rows(self) -> None:
        self.do(f"%work.row = mul i64 %at.work, {_MAX_ROWS}")
        left = self.emit("sub i64 %tile.count, %work.row")
        self.do(f"%work.count = call i64 @llvm.umin.i64(i64 {left}, i64 {_MAX_ROWS})")
        at = self.emit(f"mul i64 %work.row, {self.dim}")
        self.do(f"%work.query = getelementptr {'i16' if self.is_bf16 else 'float'}, ptr %first.query, i64 {at}")
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
        self.do(f"call void @softmax(ptr %scratch.own, i64 {index}, i64 {row}, i64 {seen}, float {factor})")

    def _switch(self, name: str, arguments: str) -> None:
        """Calls the function for as many rows as are at work."""
        cases = " ".join(f"i64 {rows}, label %{name}.{rows}" for rows in range(1, _MAX_ROWS))
        self.do(f"switch i64 %work.count, label %{name}.{_MAX_ROWS} [ {cases} ]")
        for rows in range(1, _MAX_ROWS + 1):
            self.label(f"{name}.{rows}")
            self.do(f"call void @{name}{rows}({arguments})")
            self.do(f"br label %{name}.end")
        self.label(f"{name}.end")

    def _finish(self) -> None:
        total = self.total(self.float_at("%sum", self.emit(f"mul i64 %done, {LANES}")))
        inverse = self.splat("float", self.emit(f"fdiv float 1.0, {total}"))
        row = self.emit("add i64 %tile.row, %done")
        to = self.emit(f"add i64 {self.emit(f'mul i64 {row}, %heads')}, %head")
        to = self.emit(f"mul i64 {to}, {self.dim}")
        first = self.emit(f"mul i64 %done, {self.padded_dim}")

        def column(at: str, count: str | None) -> None:
            value = self.mul(self.float_at("%total", self.emit(f"add i64 {first}, {at}")), inverse)
            self.store(self.kernel.dtype, value, "%out", self.emit(f"add i64 {to}, {at}"), count)

        self.over("column", str(self.dim), column)


def query_factor(scale: float) -> float:
    """What scores are multiplied with before a power of 2 is taken."""
    return scale / math.log(2)


def _ints(value: int) -> str:
    return everywhere(f"i32 {value}")
