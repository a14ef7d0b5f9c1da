"""Scores: queries times keys, of keys laid out for many rows, or as one row takes them from the cache."""

from __future__ import annotations

from model.backends.cpu.attention_ir.kernel import (
    KEYS,
    NARROW_VECTORS,
    VECTORS,
    AttentionKernel,
    Part,
    ints,
)
from model.backends.cpu.ir_writer import KINDS, LANES


class LayOutKeys(Part):
    """Lays out 64 keys so that a vector holds one number (in bf16 two neighbours) of 16 keys.

    On the way it fetches the next 64 keys into the processor's cache, spread over the work there is.
    """

    def write(self) -> str:
        """The function's text: the head's first key in the cache, and the block's first slot in the table."""
        self.begin("lay.out.keys(ptr %head.keys, ptr %table, ptr %scratch)", (), 0, ("group", "word"))
        self.part("key")
        self.loop("group", "0", str(VECTORS), self._group)
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
                value = self.emit(f"shl <16 x i32> {value}, {ints(32 - bits * (part + 1))}")
            if size == 1:
                value = self.emit(f"ashr <16 x i32> {value}, {ints(24)}")
                value = self.emit(f"sitofp <16 x i32> {value} to <16 x float>")
                value = self.emit(f"bitcast <16 x float> {value} to <16 x i32>")
            else:
                value = self.emit(f"and <16 x i32> {value}, {ints(-65536)}")
            self._use(value, self.offset(at, part), first)

    def _use(self, numbers: str, number: str, first: str) -> None:
        """Does what there is to do with a number (in bf16 a pair) of 16 keys, from the `first` of the 64 on."""
        at = self.emit(f"mul i64 {number}, {KEYS}")
        self.put(numbers, "%key", self.emit(f"add i64 {at}, {first}"), "i32")


class ScoresOfOne(LayOutKeys):
    """One query times keys as they are taken from the cache: laying them out would cost more than it saves.

    All 64 keys advance together, or each product would wait for the one before.
    """

    def write(self) -> str:
        """The function's text."""
        self.begin("scores.of.one(ptr %query, ptr %head.keys, ptr %table, ptr %scratch)", (), 0, ("word",))
        self.part("score")
        for v in range(VECTORS):
            self.do(f"%acc.{v} = alloca <16 x float>")
            self.do(f"store <16 x float> zeroinitializer, ptr %acc.{v}")
        whole, rest = divmod(self._words_per_key, LANES)
        groups = [(str(v * LANES), self._rows(str(v * LANES))) for v in range(VECTORS)]

        def squares(at: str, count: int) -> None:
            for first, rows in groups:
                self._square(rows, at, count, first)

        if whole:
            self.loop("word", "0", str(whole), lambda: squares(self.emit(f"mul i64 %word, {LANES}"), LANES))
        if rest:
            squares(str(whole * LANES), rest)
        for v in range(VECTORS):
            self.put(self.emit(f"load <16 x float>, ptr %acc.{v}"), "%score", str(v * LANES))
        self.end()
        return self.text

    def _use(self, numbers: str, number: str, first: str) -> None:
        slot = f"%acc.{int(first) // LANES}"
        total = self.product(self.emit(f"load <16 x float>, ptr {slot}"), numbers, self.word_at("%query", number))
        self.do(f"store <16 x float> {total}, ptr {slot}")


class Scores(Part):
    """Queries times keys, some rows at a time."""

    def __init__(self, kernel: AttentionKernel, rows: int) -> None:
        super().__init__(kernel)
        self.rows = rows
        self.vectors_at_once = NARROW_VECTORS.get(rows, 1) if kernel.is_narrow else VECTORS

    def write(self) -> str:
        """The function's text; `%query` is the first row's."""
        firsts = range(0, VECTORS, self.vectors_at_once)
        self.begin(f"scores{self.rows}(ptr %query, ptr %scratch)", (), 0, [f"d{first}" for first in firsts])
        self.part("key")
        self.part("score")
        for r in range(self.rows):
            for v in range(VECTORS):
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
