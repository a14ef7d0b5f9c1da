"""The text of the kernels that multiply by a packed weight.

One kernel multiplies M rows of activations with a packed weight (`packing.py` has the layout). The weight is read once,
in order, and each value is expanded in registers and used for all M rows; for more rows than a kernel has, a block
of weights is used again while it is in the cache. Two ways to do the arithmetic:

- bfloat16: AVX512-BF16's dot product of pairs, accumulating in float32. Integers up to 8 bits are exact in bfloat16, so
  nothing is lost before the group's scale is applied, in float32.
- float32: multiply-add on any processor.

Every kernel adds a row's products in one order, input by input and group by group, however many rows it has: a row's
result is the same, bit for bit, alone and in any company. Whoever changes a kernel must keep that.

A new weight format enters in three places: `pack_*` in packing.py says how its values lie in 64-byte vectors (`bits`
of each, `INPUTS_PER_VECTOR` inputs of 16 outputs), weight_ir.py how such a vector becomes numbers, and a
`make_*_linear` beside gptq_linear.py hands packed values, scales and offsets of each group to `PackedLinear`.

It knows nothing of torch; it only writes text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model.backends.cpu.ir.writer import DECLARATIONS, LANES, IRWriter
from model.backends.cpu.linears.weight_ir import WeightWriter, codes_table

VECTORS = 4  # in a block of outputs
BLOCK = LANES * VECTORS
INPUTS_PER_VECTOR = {4: 8, 8: 4, 16: 2, 32: 1}  # how many inputs' weights 64 bytes hold for 16 outputs
UNROLL = {4: 1, 8: 1, 16: 4, 32: 4}  # such vectors in a turn of the innermost loop
MAX_ROWS = 6  # 4 accumulators each and a vector of weights fit into 32 registers
# How many of a block's vectors a pass over its weights takes, by rows, where a vector needs two registers of 16 (AVX2)
# or four of 32 (NEON). The order of sums is the same.
_NARROW_VECTORS = {1: 4, 2: 2, 3: 2}

# Where each argument stands in the array of 64-bit words that a kernel gets.
# All rows are divided into `many` runs of one kernel and `few` of the one for a row less.
ARGUMENTS = (
    *("weight", "scales", "offsets", "bias", "x", "x_sums", "out"),
    *("blocks", "groups", "vectors", "n", "k", "rows", "many", "few", "many_kernel", "few_kernel"),
)
_NUM_ADDRESSES = 7

SHARE = "share"  # the function that OpenMP runs on every thread: its share of the blocks, each for all rows


@dataclass(frozen=True)
class Kernel:
    """What distinguishes one kernel from another.

    Attributes:
        bits: bits of a weight: 4 or 8 (integers with a scale for each group), 16 or 32 (bfloat16 or float32, one group,
            no scales).
        is_bf16: whether activations and results are bfloat16; else both are float32.
        rows: M, from 1 to `MAX_ROWS`.
        has_offsets: whether zeros differ from the middle, so that `scale * (zero - middle) * sum(x)` is taken off.
        wide_results: whether results are float32 where the activations are bfloat16.
        codes: the level of each value of 4 bits, where they are not evenly spaced.
        has_permutes: whether a register holds a whole vector, and the processor looks 16 levels up at once (AVX-512).
    """

    bits: int
    is_bf16: bool
    rows: int
    has_offsets: bool = False
    wide_results: bool = False
    codes: tuple[float, ...] | None = None
    has_permutes: bool = False

    @property
    def vectors_at_once(self) -> int:
        """How many of a block's vectors a pass over its weights takes."""
        return VECTORS if self.has_permutes else _NARROW_VECTORS.get(self.rows, 1)

    @property
    def reloads(self) -> bool:
        """Whether each pair of inputs loads its weights anew, from the cache, for LLVM not to keep them in registers.

        With the accumulators of six rows there is no room for them. Accumulators were spilled to the stack, which
        collides with activations 4 KiB apart: 96 rows of 2,048 inputs took from 2.0 to 3.1 ms by chance, now 1.9.
        """
        return self.bits == 4 and self.is_bf16 and self.rows == MAX_ROWS

    @property
    def name(self) -> str:
        """The name of its function, which takes the arguments' address, first and last block, and the first row."""
        return f"rows{self.rows}"


def module_text(kernels: Sequence[Kernel]) -> str:
    """A module with these kernels, which have the same codes, and the function that shares their work among threads."""
    functions = [_Writer(kernel).function() for kernel in kernels]
    return "\n".join([DECLARATIONS, codes_table(kernels[0].codes), _share(), *functions])


def _share() -> str:
    writer = IRWriter()
    writer.begin(f"{SHARE}(ptr %arguments)", ARGUMENTS, _NUM_ADDRESSES, ("block", "run"))
    writer.loop("block", *writer.share("%blocks"), lambda: multiply_block(writer, "%arguments", "%block", "run"))
    return writer.end()


def multiply_block(writer: IRWriter, arguments: str, block: str, loop: str) -> None:
    """Writes the calls that make 64 outputs of a product for all rows.

    Args:
        writer: writes the function.
        arguments: the address of the product's `ARGUMENTS`.
        block: the number of the 64 outputs.
        loop: a name among the function's loops.
    """

    def argument(name: str, kind: str = "i64") -> str:
        return writer.number(kind, arguments, ARGUMENTS.index(name))

    many, run = argument("many"), f"%{loop}"
    kernels = [argument(f"{name}_kernel", "ptr") for name in ("many", "few")]
    fewer = writer.plus(argument("rows"), -1)

    def call() -> None:
        is_many = writer.emit(f"icmp ult i64 {run}, {many}")
        kernel = writer.emit(f"select i1 {is_many}, ptr {kernels[0]}, ptr {kernels[1]}")
        num_higher = writer.emit(f"call i64 @llvm.umin.i64(i64 {run}, i64 {many})")
        row = writer.plus(writer.times(run, fewer), num_higher)
        writer.do(f"call void {kernel}(ptr {arguments}, i64 {block}, i64 {writer.plus(block, 1)}, i64 {row})")

    writer.loop(loop, "0", writer.plus(many, argument("few")), call)


class _Writer(WeightWriter):
    """Writes one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.bits, kernel.codes, has_permutes=kernel.has_permutes)
        self.kernel = kernel
        self.rows = range(kernel.rows)
        self.vectors = range(VECTORS)  # of the pass that is being written

    def function(self) -> str:
        kernel = self.kernel
        firsts = range(0, VECTORS, kernel.vectors_at_once)
        loops = [f"{name}{first}" for first in firsts for name in ("group", "step")]
        parameters = "ptr %arguments, i64 %first, i64 %last, i64 %row"
        self.begin(f"{kernel.name}({parameters})", ARGUMENTS, _NUM_ADDRESSES, ("block", *loops))
        for m in self.rows:
            for v in range(VECTORS):
                self.do(f"%acc.{m}.{v} = alloca <16 x float>")
                self.do(f"%part.{m}.{v} = alloca <16 x float>")
        self.loop("block", "%first", "%last", self._block)
        return self.end()

    def _block(self) -> None:
        self.do(f"%column = mul i64 %block, {BLOCK}")
        self.do("%block.groups = mul i64 %block, %groups")
        for first in range(0, VECTORS, self.kernel.vectors_at_once):
            self.vectors = range(first, first + self.kernel.vectors_at_once)
            self._pass(str(first))

    def _pass(self, suffix: str) -> None:
        """Some of the block's vectors, over all groups."""
        for v in self.vectors:
            bias = self.vector("%bias", self.plus("%column", v * LANES))
            for m in self.rows:
                self.write(bias, f"%acc.{m}.{v}")
        self.loop(f"group{suffix}", "0", "%groups", lambda: self._group(suffix))
        for m in self.rows:
            row = self.times("%n", self.plus("%row", m))
            for v in self.vectors:
                value = self.read(f"%acc.{m}.{v}")
                self._store(value, self.plus(self.plus(row, "%column"), v * LANES))

    def _store(self, value: str, at: str) -> None:
        if self.kernel.is_bf16 and not self.kernel.wide_results:
            value = self.emit(f"fptrunc <16 x float> {value} to <16 x bfloat>")
            self.do(f"store <16 x bfloat> {value}, ptr {self.address('i16', '%out', at)}, align 2")
        else:
            self.put(value, "%out", at)

    def _group(self, suffix: str) -> None:
        for m in self.rows:
            for v in self.vectors:
                self.write("zeroinitializer", f"%part.{m}.{v}")
        place = self.plus("%block.groups", f"%group{suffix}")
        self.loop(f"step{suffix}", "0", "%vectors", lambda: self._step(f"%group{suffix}", place, f"%step{suffix}"))
        self._add_group(f"%group{suffix}", self.times(place, BLOCK))

    def _add_group(self, group: str, scale_at: str) -> None:
        """Adds the group's sums, times its scales, to the accumulators."""
        for v in self.vectors:
            at = self.plus(scale_at, v * LANES)
            scale = self.vector("%scales", at) if self.kernel.bits < 16 else None
            offset = self.vector("%offsets", at) if self.kernel.has_offsets else None
            for m in self.rows:
                value = self.read(f"%part.{m}.{v}")
                total = self.read(f"%acc.{m}.{v}")
                total = self.fma(value, scale, total) if scale else self.add(value, total)
                if offset:
                    x_sum = self.plus(self.times("%groups", self.plus("%row", m)), group)
                    total = self.fma(self.splat("float", self.number("float", "%x_sums", x_sum)), offset, total)
                self.write(total, f"%acc.{m}.{v}")

    def _step(self, group: str, place: str, step: str) -> None:
        """A few times 64 bytes of weights for each vector of outputs, times all rows.

        Args:
            group: the group's number.
            place: the number of the block's group among all blocks' groups.
            step: the step's number within the group.
        """
        bits = self.kernel.bits
        stride = 2 if self.kernel.is_bf16 else 1
        weights = self.times(self.plus(self.times(place, "%vectors"), step), UNROLL[bits] * VECTORS * 64)
        inputs = self.times(self.plus(self.times(group, "%vectors"), step), UNROLL[bits] * INPUTS_PER_VECTOR[bits])
        for part in range(UNROLL[bits]):
            places = {v: self.plus(weights, 64 * (part * VECTORS + v)) for v in self.vectors}
            raw = {} if self.kernel.reloads else {v: self._load(places[v]) for v in self.vectors}
            for first in range(0, INPUTS_PER_VECTOR[bits], stride):
                k = self.plus(inputs, part * INPUTS_PER_VECTOR[bits] + first)
                activations = [self._activation(m, k) for m in self.rows]
                for v in self.vectors:
                    words = raw[v] if raw else self._load(places[v], "volatile ")
                    weight = self.pair(words, first) if self.kernel.is_bf16 else self.single(words, first)
                    for m, x in enumerate(activations):
                        total = self.read(f"%part.{m}.{v}")
                        total = self.dot_bf16(total, weight, x) if self.kernel.is_bf16 else self.fma(weight, x, total)
                        self.write(total, f"%part.{m}.{v}")

    def _load(self, at: str, how: str = "") -> str:
        return self.emit(f"load {how}<16 x i32>, ptr {self.address('i8', '%weight', at)}, align 64")

    def _activation(self, m: int, k: str) -> str:
        """An input of a row, or in bfloat16 two of them in a word, in all lanes."""
        at = self.plus(self.times("%k", self.plus("%row", m)), k)
        if not self.kernel.is_bf16:
            return self.splat("float", self.number("float", "%x", at))
        return self.splat("i32", self.emit(f"load i32, ptr {self.address('i16', '%x', at)}, align 2"))
