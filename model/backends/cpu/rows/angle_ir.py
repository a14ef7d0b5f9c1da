"""The text of the kernel for cosines and sines of rotary angles.

torch computes the last few numbers of an array otherwise than those before, so a position's cosines would depend on
what else is in the step. These are within half a unit of float32's last place, up to angles of 2 ** 20.
"""

from __future__ import annotations

import math

from model.backends.cpu.ir.numbers import NumberWriter
from model.backends.cpu.ir.writer import DECLARATIONS, double_literal, everywhere, ints

# Where each argument stands in the array of 64-bit words that the kernel gets; addresses come first.
_ARGUMENTS = ("angles", "cos", "sin", "count")
COS_SIN = "cos_sin"
# pi / 2 in two parts: a multiple of the first, up to 2 ** 20, is exact.
_HALF_PI_HIGH = float.fromhex("0x1.921fb544p+0")
_HALF_PI_LOW = math.pi / 2 - _HALF_PI_HIGH + 6.123233995736766e-17
_SINE = [(-1.0) ** i / math.factorial(2 * i + 1) for i in range(8)]
_COSINE = [(-1.0) ** i / math.factorial(2 * i) for i in range(8)]


def module_text() -> str:
    """A module with the function `cos_sin`, which takes the arguments' address."""
    return DECLARATIONS + _Writer(has_bf16=False).function()


class _Writer(NumberWriter):
    def function(self) -> str:
        self.begin(f"{COS_SIN}(ptr %arguments)", _ARGUMENTS, 3, ("column",))

        def column(at: str, count: str | None) -> None:
            cosine, sine = self._cos_sin(self.load("float32", "%angles", at, count))
            self.store("float32", cosine, "%cos", at, count)
            self.store("float32", sine, "%sin", at, count)

        self.over("column", "%count", column)
        return self.end()

    def _cos_sin(self, angle: str) -> tuple[str, str]:
        x = self.emit(f"fpext <16 x float> {angle} to <16 x double>")
        n = self.emit(f"fmul <16 x double> {x}, {_doubles(2 / math.pi)}")
        n = self.emit(f"call <16 x double> @llvm.roundeven.v16f64(<16 x double> {n})")
        back = self.emit(f"fneg <16 x double> {n}")
        x = self._fma64(back, _doubles(_HALF_PI_HIGH), x)
        x = self._fma64(back, _doubles(_HALF_PI_LOW), x)
        square = self.emit(f"fmul <16 x double> {x}, {x}")
        sine, cosine = (_doubles(series[-1]) for series in (_SINE, _COSINE))
        for i in reversed(range(len(_SINE) - 1)):
            sine, cosine = (
                self._fma64(value, square, _doubles(series[i])) for value, series in ((sine, _SINE), (cosine, _COSINE))
            )
        sine = self.emit(f"fmul <16 x double> {sine}, {x}")
        sine, cosine = (self.emit(f"fptrunc <16 x double> {v} to <16 x float>") for v in (sine, cosine))
        quarter = self.emit(f"fptosi <16 x double> {n} to <16 x i32>")
        is_odd = self._bit(quarter, 1)
        following = self.emit(f"add <16 x i32> {quarter}, {ints(1)}")
        results = []
        # cos: c, -s, -c, s in the four quarters; sin: s, c, -s, -c.
        for even, odd, turn in ((cosine, sine, following), (sine, cosine, quarter)):
            value = self.emit(f"select <16 x i1> {is_odd}, <16 x float> {odd}, <16 x float> {even}")
            opposite = self.emit(f"fneg <16 x float> {value}")
            is_negative = self._bit(turn, 2)
            results.append(self.emit(f"select <16 x i1> {is_negative}, <16 x float> {opposite}, <16 x float> {value}"))
        return results[0], results[1]

    def _bit(self, value: str, bit: int) -> str:
        found = self.emit(f"and <16 x i32> {value}, {ints(bit)}")
        return self.emit(f"icmp ne <16 x i32> {found}, zeroinitializer")

    def _fma64(self, a: str, b: str, c: str) -> str:
        arguments = f"<16 x double> {a}, <16 x double> {b}, <16 x double> {c}"
        return self.emit(f"call <16 x double> @llvm.fma.v16f64({arguments})")


def _doubles(value: float) -> str:
    return everywhere(f"double {double_literal(value)}")
