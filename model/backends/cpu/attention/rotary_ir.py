"""The text of the kernel that rotates a step's queries and keys and writes keys and values to the cache."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from model.backends.cpu.ir.writer import NUMBER_DECLARATIONS, NumberWriter, floats

# Where each argument stands in the array of 64-bit words that the kernel gets; addresses come first.
ARGUMENTS = (
    *("qkv", "cos", "sin", "slots", "keys", "values", "key_scales", "value_scales", "query"),
    *("rows", "heads", "key_heads", "dim", "half", "qkv_stride", "num_slots"),
)
ROTATE = "rotate"
MAX_HEAD_DIM = 1024
_NUM_ADDRESSES = 9
_LOOPS = ("item", "turn", "rest", "fetch", "query.copy", "key", "key.top", "value", "value.top")


@dataclass(frozen=True)
class RotaryKernel:
    """A kernel.

    Attributes:
        dtype: of activations, "float32" or "bfloat16".
        cache_dtype: "float32", "bfloat16" or "int8" (with a scale for each token and head).
        query_dtype: of the rotated queries.
        has_bf16: see `NumberWriter`.
    """

    dtype: str
    cache_dtype: str
    query_dtype: str
    has_bf16: bool

    @cached_property
    def text(self) -> str:
        """A module with the function `rotate`, which takes the arguments' address and runs on every thread."""
        return NUMBER_DECLARATIONS + _Writer(self).write()


class _Writer(NumberWriter):
    def __init__(self, kernel: RotaryKernel) -> None:
        super().__init__(has_bf16=kernel.has_bf16)
        self.kernel = kernel

    def write(self) -> str:
        """The function's text."""
        self.begin(f"{ROTATE}(ptr %arguments)", ARGUMENTS, _NUM_ADDRESSES, _LOOPS)
        self.do("%top = alloca <16 x float>")
        self.do(f"%turned = alloca [{MAX_HEAD_DIM} x float], align 64")
        self._rotate()
        self.end()
        return self.text

    def _rotate(self) -> None:
        """Rotates a row's queries and keys, writes the query, and key and value to the cache."""
        units = self.emit("add i64 %heads, %key_heads")

        def item() -> None:
            row = self.emit(f"udiv i64 %item, {units}")
            unit = self.emit(f"urem i64 %item, {units}")
            start = self.emit(f"mul i64 {row}, %qkv_stride")
            first = self.emit(f"add i64 {start}, {self.emit(f'mul i64 {unit}, %dim')}")
            self._turn(row, first)
            is_query = self.emit(f"icmp ult i64 {unit}, %heads")
            self.do(f"br i1 {is_query}, label %is.query, label %is.key")
            self.label("is.query")
            at = self.emit(f"add i64 {self.emit(f'mul i64 {unit}, %rows')}, {row}")
            self._copy("query.copy", self.kernel.query_dtype, "%query", self.emit(f"mul i64 {at}, %dim"))
            self.do("br label %is.done")
            self.label("is.key")
            head = self.emit(f"sub i64 {unit}, %heads")
            slot = self.emit(f"load i64, ptr {self.emit(f'getelementptr i64, ptr %slots, i64 {row}')}")
            slot = self.emit(f"add i64 {self.emit(f'mul i64 {head}, %num_slots')}, {slot}")
            self._cache("key", slot)
            value_head = self.emit(f"add i64 {self.emit('add i64 %heads, %key_heads')}, {head}")
            self._fetch(self.emit(f"add i64 {start}, {self.emit(f'mul i64 {value_head}, %dim')}"))
            self._cache("value", slot)
            self.do("br label %is.done")
            self.label("is.done")

        self.loop("item", *self.share(self.emit(f"mul i64 %rows, {units}")), item)

    def _turn(self, row: str, first: str) -> None:
        """Puts a rotated head into `%turned`."""
        angles = self.emit(f"mul i64 {row}, %half")
        dtype = self.kernel.dtype

        def low(at: str, count: str | None) -> None:
            angle = self.emit(f"add i64 {angles}, {at}")
            cosine, sine = (self.load("float32", name, angle, count) for name in ("%cos", "%sin"))
            other = self.emit(f"add i64 {at}, %half")
            a, b = (self.load(dtype, "%qkv", self.emit(f"add i64 {first}, {place}"), count) for place in (at, other))
            turned = self.emit(f"fsub <16 x float> {self.mul(a, cosine)}, {self.mul(b, sine)}")
            self.store("float32", turned, "%turned", at, count)
            self.store("float32", self.add(self.mul(b, cosine), self.mul(a, sine)), "%turned", other, count)

        self.over("turn", "%half", low)
        rotated = self.emit("shl i64 %half, 1")

        def rest(at: str, count: str | None) -> None:
            at = self.emit(f"add i64 {at}, {rotated}")
            value = self.load(dtype, "%qkv", self.emit(f"add i64 {first}, {at}"), count)
            self.store("float32", value, "%turned", at, count)

        self.over("rest", self.emit(f"sub i64 %dim, {rotated}"), rest)

    def _fetch(self, first: str) -> None:
        """Puts a head's values into `%turned`."""

        def body(at: str, count: str | None) -> None:
            value = self.load(self.kernel.dtype, "%qkv", self.emit(f"add i64 {first}, {at}"), count)
            self.store("float32", value, "%turned", at, count)

        self.over("fetch", "%dim", body)

    def _copy(self, name: str, dtype: str, base: str, first: str, factor: str = "") -> None:
        """Writes `%turned`, rounded to what keys are rounded to; with a factor divided by it, and to whole numbers."""

        def body(at: str, count: str | None) -> None:
            value = self.load("float32", "%turned", at, count)
            if factor:
                value = self.emit(f"fdiv <16 x float> {value}, {factor}")
                value = self.emit(f"call <16 x float> @llvm.roundeven.v16f32(<16 x float> {value})")
            self.store(dtype, value, base, self.emit(f"add i64 {first}, {at}"), count)

        self.over(name, "%dim", body)

    def _cache(self, name: str, slot: str) -> None:
        """Writes `%turned` to a slot of the cache, `%keys` or `%values`."""
        dtype = self.kernel.cache_dtype
        first = self.emit(f"mul i64 {slot}, %dim")
        if dtype != "int8":
            self._copy(name, dtype, f"%{name}s", first)
            return
        self.do("store <16 x float> zeroinitializer, ptr %top")
        scan = f"{name}.top"

        def body(at: str, count: str | None) -> None:
            value = self.load("float32", "%turned", at, count)
            value = self.emit(f"call <16 x float> @llvm.fabs.v16f32(<16 x float> {value})")
            best = self.emit("load <16 x float>, ptr %top")
            self.do(f"store <16 x float> {self.larger(value, best)}, ptr %top")

        self.over(scan, "%dim", body)
        scale = self.emit(f"fdiv float {self.largest(self.emit('load <16 x float>, ptr %top'))}, 127.0")
        address = self.emit(f"getelementptr float, ptr %{name}_scales, i64 {slot}")
        self.do(f"store float {scale}, ptr {address}")
        factor = self.larger(self.splat("float", scale), floats(1e-30))
        self._copy(name, dtype, f"%{name}s", first, factor)
