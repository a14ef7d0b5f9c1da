"""Scores: queries times keys, of keys laid out for many rows, or as one row takes them from the cache.

A score of floats is 16 sums, each of every 16th word of the key, added up from first to last. One row has them in the
lanes of a vector; rows that share keys, whose lanes are keys, have one after another. Integers are exact in any order.
"""

from __future__ import annotations

from model.backends.cpu.attention.kernel import KEYS, NARROW_VECTORS, VECTORS, AttentionKernel, Part
from model.backends.cpu.ir.writer import LANES


class LayOutKeys(Part):
    """Lays out 64 keys so that a vector holds the same word of 16 keys.

    On the way it fetches the next 64 keys into the processor's cache, spread over the work there is.
    """

    def function(self) -> str:
        """The function's text: the head's first key in the cache, and the block's first slot in the table."""
        self.begin("lay.out.keys(ptr %head.keys, ptr %table, ptr %scratch)", (), 0, ("group", "part"))
        self.part("key")
        self.loop("group", "0", str(VECTORS), self._group)
        return self.end()

    def _group(self) -> None:
        """16 keys."""
        first = self.times("%group", LANES)
        rows = [self.times(self.slot_of(self.plus(first, j)), self.dim) for j in range(LANES)]
        whole, rest = divmod(self.dim, self.per_vector)

        def square(part: str, count: int) -> None:
            self._fetch_next(first, part)
            at = self.times(part, self.per_vector)
            addresses = [self.key_at(self.plus(row, at)) for row in rows]
            words = [self.numbers(self.kernel.cache_dtype, address, count) for address in addresses]
            start = self.plus(self.times(part, LANES * KEYS), first)
            for i, word in enumerate(self.transposed(words)[: -(-count * LANES // self.per_vector)]):
                self.put(word, "%key", self.plus(start, i * KEYS), "i32")

        if whole:
            self.loop("part", "0", str(whole), lambda: square("%part", self.per_vector))
        if rest:
            square(str(whole), rest)

    def _fetch_next(self, first: str, part: str) -> None:
        """Fetches a share of the keys that lie 64 further."""
        keys = max(1, LANES // -(-self.dim // self.per_vector))
        start = self.plus(first, self.times(part, keys))
        for key in range(keys):
            self.fetch("%head.keys", self.plus(start, KEYS + key))


class ScoresOfOne(Part):
    """One query times 64 keys as they are taken from the cache: laying them out would cost more than it saves."""

    def function(self) -> str:
        """The function's text."""
        self.begin("scores.of.one(ptr %query, ptr %head.keys, ptr %table, ptr %scratch)", (), 0, ("group",))
        self.part("score")
        size, kind = (2, "i16") if self.kernel.has_pairs else (4, "float")
        query_dtype = "bfloat16" if size == 2 else "float32"
        query = []
        for first, count in self.parts_of_head():
            query.append(self.numbers(query_dtype, self.address(kind, "%query", first), count))
        self.loop("group", "0", str(VECTORS), lambda: self._group(query))
        return self.end()

    def _group(self, query: list[str]) -> None:
        """16 keys."""
        first = self.times("%group", LANES)
        sums = []
        for j in range(LANES):
            self.fetch("%head.keys", self.plus(first, KEYS + j))
            at = self.times(self.slot_of(self.plus(first, j)), self.dim)
            total = "zeroinitializer"
            for (number, count), words in zip(self.parts_of_head(), query, strict=True):
                key = self.numbers(self.kernel.cache_dtype, self.key_at(self.plus(at, number)), count)
                total = self.product(total, key, words)
            sums.append(total)
        self.put(self._sums_of(sums), "%score", first)

    def _sums_of(self, keys: list[str]) -> str:
        """Each of 16 keys' 16 sums, added up."""
        if self.is_integer:
            for half in (1, 2, 4, 8):
                pairs = [self.exchange(a, b, half) for a, b in zip(keys[::2], keys[1::2], strict=True)]
                keys = [self.emit(f"add <16 x i32> {a}, {b}") for a, b in pairs]
            return self.emit(f"sitofp <16 x i32> {keys[0]} to <16 x float>")
        words = self.transposed([self.bitcast(key, "16 x float", "16 x i32") for key in keys])
        sums = [self.bitcast(each, "16 x i32", "16 x float") for each in words]
        total = sums[0]
        for each in sums[1:]:
            total = self.add(total, each)
        return total


class Scores(Part):
    """Queries times 64 keys that were laid out, some rows at a time."""

    def __init__(self, kernel: AttentionKernel, rows: int) -> None:
        super().__init__(kernel)
        self.rows = rows
        # Registers are for a total and, but for integers, one of its 16 sums.
        narrow = NARROW_VECTORS.get(rows, 1)
        self.vectors_at_once = narrow if kernel.is_narrow else VECTORS
        if not self.is_integer and (kernel.is_narrow or rows > 3):
            self.vectors_at_once = max(1, self.vectors_at_once // 2)

    def function(self) -> str:
        """The function's text; `%query` is the first row's."""
        self.begin(f"scores{self.rows}(ptr %query, ptr %scratch)", (), 0, ("pass", "longer", "lane"))
        self.part("key")
        self.part("score")
        for r in range(self.rows):
            for v in range(self.vectors_at_once):
                self.do(f"%total.{r}.{v} = alloca <16 x {self.sum_kind}>")
        self.loop("pass", "0", str(VECTORS // self.vectors_at_once), self._pass)
        return self.end()

    def _pass(self) -> None:
        """Some vectors of keys."""
        first = self.times("%pass", self.vectors_at_once * LANES)
        places = [(r, v) for r in range(self.rows) for v in range(self.vectors_at_once)]
        for r, v in places:
            self.write("zeroinitializer", f"%total.{r}.{v}", self.sum_kind)
        whole, rest = divmod(self.words_per_key, LANES)
        if rest:
            self.loop("longer", "0", str(rest), lambda: self._lane("%longer", first, whole + 1))
        if whole:
            self.loop("lane", str(rest), str(LANES), lambda: self._lane("%lane", first, whole))
        for r, v in places:
            total = self.read(f"%total.{r}.{v}", self.sum_kind)
            if self.is_integer:
                total = self.emit(f"sitofp <16 x i32> {total} to <16 x float>")
            self.put(total, "%score", self.plus(first, r * KEYS + v * LANES))

    def _lane(self, lane: str, first: str, num_words: int) -> None:
        """One of a score's 16 sums: every 16th word from the lane's on."""
        places = [(r, v) for r in range(self.rows) for v in range(self.vectors_at_once)]
        zeros = dict.fromkeys(places, "zeroinitializer")
        before = {(r, v): self.read(f"%total.{r}.{v}", self.sum_kind) for r, v in places}
        sums = before if self.is_integer else zeros
        for word in range(0, num_words * LANES, LANES):
            word_at = self.plus(lane, word)
            at = self.plus(self.times(word_at, KEYS), first)
            keys = [self.vector("%key", self.plus(at, v * LANES), "i32") for v in range(self.vectors_at_once)]
            for r in range(self.rows):
                query = self.word("%query", self.plus(word_at, r * self.words_per_key))
                for v, key in enumerate(keys):
                    sums[r, v] = self.product(sums[r, v], key, query)
        for (r, v), total in sums.items():
            total = total if self.is_integer else self.add(before[r, v], total)
            self.write(total, f"%total.{r}.{v}", self.sum_kind)
