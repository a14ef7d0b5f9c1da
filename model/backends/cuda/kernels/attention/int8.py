"""Numbers of the int8 KV cache, to and from float32, without the slow conversion instructions.

1.5 * 2 ** 23 is a float whose last bit counts one: adding an integer to its bits adds as much to its value.
"""

from __future__ import annotations

import triton
import triton.language as tl

_ANCHOR = tl.constexpr(12582912.0)
_ANCHOR_BITS = tl.constexpr(0x4B400000)


@triton.jit
def int8_from_float(x):
    """Rounds numbers from -127 to 127 to the nearest integer, halves to even, as torch.round does."""
    return ((x + _ANCHOR) - _ANCHOR).to(tl.int8)


@triton.jit
def float_from_int8(x):
    """Converts exactly. An SM converts 16 integers a clock; at full bandwidth more than 20 keys arrive in one."""
    return (x.to(tl.int32) + _ANCHOR_BITS).to(tl.float32, bitcast=True) - _ANCHOR
