"""The text of the kernel that rotates a step's queries and keys and writes keys and values to the cache."""

from __future__ import annotations

from model.backends.cpu.attention.kernel import MAX_HEAD_DIM
from model.backends.cpu.ir.numbers import NumberWriter
from model.backends.cpu.ir.writer import DECLARATIONS, floats

# Where each argument stands in the array of 64-bit words that the kernel gets; addresses come first.
_ARGUMENTS = (
    *("qkv", "cos", "sin", "slots", "keys", "values", "key_scales", "value_scales", "query"),
    *("rows", "heads", "key_heads", "dim", "half", "qkv_stride", "num_slots"),
)
_NUM_ADDRESSES = 9
ROTATE = "rotate"
_LOOPS = ("item", "turn", "rest", "fetch", "query.copy", "key", "key.top", "value", "value.top")


def module_text(dtype: str, cache_dtype: str, query_dtype: str, *, has_bf16: bool) -> str:
    """A module with the function `rotate`, which takes the arguments' address and runs on every thread.

    Args:
        dtype: dtype of activations, "float32" or "bfloat16".
        cache_dtype: "float32", "bfloat16" or "int8" (with a scale for each token and head).
        query_dtype: dtype of the rotated queries.
        has_bf16: see `NumberWriter`.
    """
    return DECLARATIONS + _Writer(dtype, cache_dtype, query_dtype, has_bf16).function()


class _Writer(NumberWriter):
    """Works head by head in `%turned`, float32; `%top` collects the largest magnitude."""

    def __init__(self, dtype: str, cache_dtype: str, query_dtype: str, has_bf16: bool) -> None:
        super().__init__(has_bf16=has_bf16)
        self.dtype, self.cache_dtype, self.query_dtype = dtype, cache_dtype, query_dtype

    def function(self) -> str:
        self.begin(f"{ROTATE}(ptr %arguments)", _ARGUMENTS, _NUM_ADDRESSES, _LOOPS)
        self.do("%top = alloca <16 x float>")
        self.do(f"%turned = alloca [{MAX_HEAD_DIM} x float], align 64")
        units = self.plus("%heads", "%key_heads")
        self.loop("item", *self.share(self.times("%rows", units)), lambda: self._item(units))
        return self.end()

    def _item(self, units: str) -> None:
        """A query head of a row, or a key head with its values."""
        row = self.emit(f"udiv i64 %item, {units}")
        unit = self.emit(f"urem i64 %item, {units}")
        start = self.times(row, "%qkv_stride")
        self._turn(row, self.plus(start, self.times(unit, "%dim")))
        is_query = self.emit(f"icmp ult i64 {unit}, %heads")
        self.do(f"br i1 {is_query}, label %is.query, label %is.key")
        self.label("is.query")
        at = self.plus(self.times(unit, "%rows"), row)
        self._copy("query.copy", self.query_dtype, "%query", self.times(at, "%dim"))
        self.do("br label %is.done")
        self.label("is.key")
        head = self.emit(f"sub i64 {unit}, %heads")
        slot = self.plus(self.times(head, "%num_slots"), self.number("i64", "%slots", row))
        self._cache("key", slot)
        self._fetch("fetch", self.plus(start, self.times(self.plus(units, head), "%dim")), "0", "%dim")
        self._cache("value", slot)
        self.do("br label %is.done")
        self.label("is.done")

    def _turn(self, row: str, first: str) -> None:
        """Puts a rotated head into `%turned`."""
        angles = self.times(row, "%half")

        def low(at: str, count: str | None) -> None:
            angle = self.plus(angles, at)
            cosine, sine = (self.load("float32", name, angle, count) for name in ("%cos", "%sin"))
            other = self.plus(at, "%half")
            a, b = (self.load(self.dtype, "%qkv", self.plus(first, place), count) for place in (at, other))
            turned = self.emit(f"fsub <16 x float> {self.mul(a, cosine)}, {self.mul(b, sine)}")
            self.store("float32", turned, "%turned", at, count)
            self.store("float32", self.add(self.mul(b, cosine), self.mul(a, sine)), "%turned", other, count)

        self.over("turn", "%half", low)
        rotated = self.emit("shl i64 %half, 1")
        self._fetch("rest", first, rotated, self.emit(f"sub i64 %dim, {rotated}"))

    def _fetch(self, name: str, first: str, skipped: str, num_dims: str) -> None:
        """Puts some dims of a head as they are into `%turned`, from `skipped` on."""

        def body(at: str, count: str | None) -> None:
            at = self.plus(at, skipped)
            self.store("float32", self.load(self.dtype, "%qkv", self.plus(first, at), count), "%turned", at, count)

        self.over(name, num_dims, body)

    def _copy(self, name: str, dtype: str, base: str, first: str, factor: str = "") -> None:
        """Writes `%turned` as another type; with a factor divided by it, and rounded to whole numbers."""

        def body(at: str, count: str | None) -> None:
            value = self.load("float32", "%turned", at, count)
            if factor:
                value = self.emit(f"fdiv <16 x float> {value}, {factor}")
                value = self.emit(f"call <16 x float> @llvm.roundeven.v16f32(<16 x float> {value})")
            self.store(dtype, value, base, self.plus(first, at), count)

        self.over(name, "%dim", body)

    def _cache(self, name: str, slot: str) -> None:
        """Writes `%turned` to a slot of the cache, `%keys` or `%values`."""
        first = self.times(slot, "%dim")
        factor = ""
        if self.cache_dtype == "int8":
            self.write("zeroinitializer", "%top")

            def body(at: str, count: str | None) -> None:
                value = self.load("float32", "%turned", at, count)
                value = self.emit(f"call <16 x float> @llvm.fabs.v16f32(<16 x float> {value})")
                self.write(self.larger(value, self.read("%top")), "%top")

            self.over(f"{name}.top", "%dim", body)
            scale = self.emit(f"fdiv float {self.largest(self.read('%top'))}, 127.0")
            self.put_number(scale, f"%{name}_scales", slot)
            factor = self.larger(self.splat("float", scale), floats(1e-30))
        self._copy(name, self.cache_dtype, f"%{name}s", first, factor)
