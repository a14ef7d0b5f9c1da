"""What the parts of an attention kernel share: its variants, its scratch memory, products and loads."""

from __future__ import annotations

from dataclasses import dataclass

from model.backends.cpu.ir_writer import KINDS, LANES, NumberWriter, everywhere

KEYS = 64  # at a time
TILE_ROWS = 96  # share the keys that were laid out
VECTORS = KEYS // LANES
MAX_ROWS = 6
# How many vectors a pass takes, by rows, where a register holds less than one.
NARROW_VECTORS = {1: 4, 2: 2, 3: 2}
MASKED = -1e30
MAX_HEAD_DIM = 256


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
            "score": MAX_ROWS * KEYS * 4,
            "weight": MAX_ROWS * KEYS * (2 if is_bf16 else 4),
            "shrink": MAX_ROWS * LANES * 4,
            "total": TILE_ROWS * self.padded_dim * 4,
            "best": TILE_ROWS * 4,
            "sum": TILE_ROWS * LANES * 4,
        }
        places, end = {}, 0
        for name, size in sizes.items():
            places[name] = end
            end += -(-size // 64) * 64
        return {**places, "end": end}


class Part(NumberWriter):
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


def ints(value: int) -> str:
    """A constant vector of one 32-bit integer."""
    return everywhere(f"i32 {value}")
