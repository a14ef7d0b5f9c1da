"""What the parts of an attention kernel share: its variants, its scratch memory, products and loads."""

from __future__ import annotations

from dataclasses import dataclass

from model.backends.cpu.ir.numbers import KINDS, NumberWriter
from model.backends.cpu.ir.writer import LANES, float_literal, ints, lanes

KEYS = 64  # that are taken at a time
TILE_ROWS = 96  # that share keys laid out in scratch memory
VECTORS = KEYS // LANES
MAX_ROWS = 6
# How many vectors a pass takes, by rows, where a register holds less than one.
NARROW_VECTORS = {1: 4, 2: 2, 3: 2}
MASKED = -1e30
# The largest integer of 16 bits. 256 products with an int8, or 64, add up to less than 32 bits hold.
_MAX_INTEGER = 32767.0
MAX_HEAD_DIM = 256


@dataclass(frozen=True)
class AttentionKernel:
    """What distinguishes one kernel from another.

    Attributes:
        dtype: dtype of the results, "float32" or "bfloat16".
        cache_dtype: "float32", "bfloat16" or "int8" (with a scale for each token and head).
        arithmetic: how products are made:
            "bf16": pairs of bfloat16 (AVX512-BF16); for a bfloat16 cache and bfloat16 queries. Weights are rounded to
            bfloat16, and the sum they are divided by is that of the rounded ones.
            "int16": pairs of integers, exactly (AVX512-VNNI); for an int8 cache. Float32 queries, and the weights of 64
            keys, become integers of 16 bits.
            "float32": multiply-add on any processor, whatever the cache; queries are float32.
        head_dim: at most `MAX_HEAD_DIM`; a key fills whole words of 32 bits.
        has_bf16: see `NumberWriter`.
        is_narrow: whether a register holds less than a vector.
        has_window: whether rows read the last `window` positions only.
    """

    dtype: str
    cache_dtype: str
    arithmetic: str
    head_dim: int
    has_bf16: bool
    is_narrow: bool = False
    has_window: bool = False

    @property
    def has_pairs(self) -> bool:
        """Whether a word of 32 bits holds two numbers."""
        return self.arithmetic != "float32"

    @property
    def padded_dim(self) -> int:
        """How many numbers a value takes in scratch memory."""
        full = 2 * LANES if self.has_pairs else LANES
        return -(-self.head_dim // full) * full

    @property
    def scratch(self) -> dict[str, int]:
        """Where each part of a thread's scratch memory begins, in bytes; `end` is its size."""
        size = 2 if self.has_pairs else 4
        sizes = {
            "key": self.head_dim * KEYS * size,
            "value": self.padded_dim * KEYS * size,
            "scale": 2 * KEYS * 4,
            "score": MAX_ROWS * KEYS * 4,
            "weight": MAX_ROWS * KEYS * size,
            "shrink": MAX_ROWS * LANES * 4,
            "total": TILE_ROWS * self.padded_dim * 4,
            "best": TILE_ROWS * 4,
            "sum": TILE_ROWS * LANES * 4,
            # Of integers: the queries, what one of each stands for, and what one of the rows' weights does.
            "query": TILE_ROWS * self.head_dim * 2,
            "query_unit": TILE_ROWS * 4,
            "weight_unit": MAX_ROWS * 4,
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
        self.is_integer = kernel.arithmetic == "int16"
        self.sum_kind = "i32" if self.is_integer else "float"
        self.per_vector = 2 * LANES if kernel.has_pairs else LANES  # numbers, in words
        self.words_per_key = kernel.head_dim // 2 if kernel.has_pairs else kernel.head_dim
        self.dim, self.padded_dim = kernel.head_dim, kernel.padded_dim

    def part(self, name: str) -> None:
        """Gives `%name` the address of a part of `%scratch`."""
        self.do(f"%{name} = getelementptr i8, ptr %scratch, i64 {self.kernel.scratch[name]}")

    def slot_of(self, key: str) -> str:
        """The slot, as 64 bits, of a key, by `%table`."""
        return self.emit(f"sext i32 {self.number('i32', '%table', key)} to i64")

    def fetch(self, base: str, key: str) -> None:
        """Fetches a key or value into the processor's cache."""
        size, kind = KINDS[self.kernel.cache_dtype]
        address = self.address(kind, base, self.times(self.slot_of(key), self.dim))
        for line in range(0, self.dim * size, 64):
            self.do(f"call void @llvm.prefetch.p0(ptr {self.address('i8', address, line)}, i32 0, i32 2, i32 1)")

    def product(self, total: str, a: str, b: str) -> str:
        """The total plus the products of two vectors of words; a word has one number, or two whose products add up."""
        if self.is_integer:
            pairs = (self.bitcast(each, "16 x i32", "32 x i16") for each in (a, b))
            arguments = ", ".join([f"<16 x i32> {total}", *(f"<32 x i16> {each}" for each in pairs)])
            return self.emit(f"call <16 x i32> @llvm.x86.avx512.vpdpwssd.512({arguments})")
        if self.is_bf16:
            return self.dot_bf16(total, a, b)
        a, b = (self.bitcast(each, "16 x i32", "16 x float") for each in (a, b))
        return self.fma(a, b, total)

    def add_product(self, slot: str, a: str, b: str) -> None:
        """Adds products to a variable."""
        self.write(self.product(self.read(slot, self.sum_kind), a, b), slot, self.sum_kind)

    def word(self, base: str, at: str) -> str:
        """The word at `base[at]` in all lanes."""
        return self.splat("i32", self.number("i32", base, at))

    def numbers(self, dtype: str, address: str, count: int) -> str:
        """The first numbers of a key, value or query as a vector of words, then zeros.

        Args:
            dtype: their dtype in memory.
            address: where the first one is.
            count: how many, at most 16, or 32 in pairs.
        """
        _, kind = KINDS[dtype]
        full = self.per_vector
        raw = self.emit(f"load <{count} x {kind}>, ptr {address}, align 1")
        if count < full:
            order = lanes(min(lane, count) for lane in range(full))
            both = f"<{count} x {kind}> {raw}, <{count} x {kind}> zeroinitializer"
            raw = self.emit(f"shufflevector {both}, <{full} x i32> {order}")
        if self.is_integer and dtype == "int8":
            raw = self.emit(f"sext <32 x i8> {raw} to <32 x i16>")
        if self.kernel.has_pairs:
            return self.bitcast(raw, "32 x i16", "16 x i32")
        if dtype == "int8":
            raw = self.emit(f"sitofp <16 x i8> {raw} to <16 x float>")
        elif dtype == "bfloat16":
            wide = self.emit(f"zext <16 x i16> {raw} to <16 x i32>")
            return self.emit(f"shl <16 x i32> {wide}, {ints(16)}")
        return self.bitcast(raw, "16 x float", "16 x i32")

    def parts_of_head(self) -> list[tuple[int, int]]:
        """Where in a head each vector of words begins, and how many numbers it has."""
        return [(first, min(self.per_vector, self.dim - first)) for first in range(0, self.dim, self.per_vector)]

    def key_at(self, number: str) -> str:
        """The address of one of the numbers of the head's keys."""
        _, kind = KINDS[self.kernel.cache_dtype]
        return self.address(kind, "%head.keys", number)

    def integer_unit(self, largest: str) -> tuple[str, str]:
        """The number that an integer of 1 stands for where the largest integer stands for `largest`, and its inverse.

        The inverse is in all lanes, 0 for 0.
        """
        unit = self.emit(f"fmul float {largest}, {float_literal(1 / _MAX_INTEGER)}")
        is_zero = self.emit(f"fcmp oeq float {largest}, 0.0")
        inverse = self.emit(f"fdiv float {float_literal(_MAX_INTEGER)}, {largest}")
        return unit, self.splat("float", self.emit(f"select i1 {is_zero}, float 0.0, float {inverse}"))

    def to_integers(self, numbers: str, inverse: str) -> str:
        """16 numbers as integers of 16 bits."""
        rounded = self.emit(f"call <16 x float> @llvm.roundeven.v16f32(<16 x float> {self.mul(numbers, inverse)})")
        integers = self.emit(f"fptosi <16 x float> {rounded} to <16 x i32>")
        return self.emit(f"trunc <16 x i32> {integers} to <16 x i16>")

    def transposed(self, vectors: list[str]) -> list[str]:
        """16 vectors of words, of which the i-th has the i-th words of these."""
        vectors = list(vectors)
        for half in (1, 2, 4, 8):
            for i in range(LANES):
                if not i & half:
                    vectors[i], vectors[i + half] = self.exchange(vectors[i], vectors[i + half], half)
        return vectors

    def exchange(self, a: str, b: str, half: int) -> tuple[str, str]:
        """Two vectors whose words change places: of each 2 * `half` words, a's last `half` with b's first."""
        masks = (
            [LANES + (lane ^ half) if lane & half else lane for lane in range(LANES)],
            [LANES + lane if lane & half else lane ^ half for lane in range(LANES)],
        )
        first, second = (
            self.emit(f"shufflevector <16 x i32> {a}, <16 x i32> {b}, <16 x i32> {lanes(mask)}") for mask in masks
        )
        return first, second
