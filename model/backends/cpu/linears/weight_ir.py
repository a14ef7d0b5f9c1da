"""How 64 bytes of a packed weight become numbers in registers: `packing.py` has the layout."""

from __future__ import annotations

import struct

from model.backends.cpu.ir.writer import IRWriter, everywhere, float_literal, ints, lanes

CODES = "codes"  # the table's name


def codes_table(codes: tuple[float, ...] | None) -> str:
    """The levels of 4-bit values in memory, for processors that look them up there."""
    table = ", ".join(f"float {float_literal(level)}" for level in codes or (0.0,) * 16)
    return f"@{CODES} = private constant [16 x float] [{table}], align 64\n"


class WeightWriter(IRWriter):
    """Writes the expansion of weights.

    Args:
        bits: bits of a weight; see `Kernel`, likewise the others.
        codes: the levels of 4-bit values, or None.
        has_permutes: whether the processor looks 16 levels up in a register.
    """

    def __init__(self, bits: int, codes: tuple[float, ...] | None, *, has_permutes: bool) -> None:
        super().__init__()
        self._bits, self._codes, self._has_permutes = bits, codes, has_permutes

    def pair(self, raw: str, first: int) -> str:
        """Weights of inputs `first` and `first + 1` as bfloat16, side by side in a word for each output."""
        if self._bits == 16:
            return raw
        if self._bits == 8:
            low, high = (
                self.bitcast(self._from_byte(raw, index), "16 x float", "16 x i32") for index in (first, first + 1)
            )
            low = self.emit(f"lshr <16 x i32> {low}, {ints(16)}")
            return self.emit(f"or <16 x i32> {low}, {high}")
        words = self.bitcast(raw, "16 x i32", "32 x i16")
        if first:
            words = self.emit(f"lshr <32 x i16> {words}, {lanes([2 * first] * 32, 'i16')}")
        # The permutation reads five bits; the table is twice the same, so the fifth does not matter.
        levels = self._codes or tuple(q - 8.0 for q in range(16))
        table = lanes([_bf16_bits(level) for level in (*levels, *levels)], "i16")
        found = self.emit(f"call <32 x i16> @llvm.x86.avx512.permvar.hi.512(<32 x i16> {table}, <32 x i16> {words})")
        return self.bitcast(found, "32 x i16", "16 x i32")

    def single(self, raw: str, index: int) -> str:
        """Weights of one input as float32."""
        if self._bits == 32:
            return self.bitcast(raw, "16 x i32", "16 x float")
        if self._bits == 16:
            return self.half_of_words(raw, index)
        if self._bits == 8:
            return self._from_byte(raw, index)
        place = 16 * (index % 2) + 4 * (index // 2)
        value = self.emit(f"lshr <16 x i32> {raw}, {ints(place)}")
        value = self.emit(f"and <16 x i32> {value}, {ints(15)}")
        if self._codes is not None:
            return self._look_up(value, self._codes)
        value = self.emit(f"sub <16 x i32> {value}, {ints(8)}")
        return self.emit(f"sitofp <16 x i32> {value} to <16 x float>")

    def _from_byte(self, raw: str, index: int) -> str:
        if index < 3:
            raw = self.emit(f"shl <16 x i32> {raw}, {ints(24 - 8 * index)}")
        value = self.emit(f"ashr <16 x i32> {raw}, {ints(24)}")
        return self.emit(f"sitofp <16 x i32> {value} to <16 x float>")

    def _look_up(self, indices: str, codes: tuple[float, ...]) -> str:
        """The levels of 16 values."""
        if self._has_permutes:
            table = "<" + ", ".join(f"float {float_literal(level)}" for level in codes) + ">"
            arguments = f"<16 x float> {table}, <16 x i32> {indices}"
            return self.emit(f"call <16 x float> @llvm.x86.avx512.permvar.sf.512({arguments})")
        places = self.emit(f"getelementptr float, ptr @{CODES}, <16 x i32> {indices}")
        return self.emit(
            f"call <16 x float> @llvm.masked.gather.v16f32.v16p0(<16 x ptr> {places}, i32 4,"
            f" <16 x i1> {everywhere('i1 true')}, <16 x float> poison)"
        )


def _bf16_bits(value: float) -> int:
    """The bits of the nearest bfloat16, ties to even; small integers are exact."""
    bits: int = struct.unpack("<I", struct.pack("<f", value))[0]
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
