"""Weights of scores, with the maximum and the sum of a row carried along."""

from __future__ import annotations

from model.backends.cpu.attention_ir.kernel import KEYS, MASKED, VECTORS, Part
from model.backends.cpu.ir_writer import LANES, floats


class Scales(Part):
    """Collects the scales of 64 keys and values in int8; zeros for keys that there are not."""

    def write(self) -> str:
        """The function's text."""
        parameters = "ptr %key_scales, ptr %value_scales, ptr %table, ptr %scratch, i64 %left"
        self.begin(f"collect.scales({parameters})", (), 0, ("scan",))
        self.part("scale")
        self.loop("scan", "0", str(KEYS), self._scan)
        self.end()
        return self.text

    def _scan(self) -> None:
        slot = self.slot_of("%scan")
        is_there = self.emit("icmp ult i64 %scan, %left")
        for number, name in enumerate(("key_scales", "value_scales")):
            scale = self.emit(f"load float, ptr {self.emit(f'getelementptr float, ptr %{name}, i64 {slot}')}, align 4")
            scale = self.emit(f"select i1 {is_there}, float {scale}, float 0.0")
            to = self.emit(f"getelementptr float, ptr %scale, i64 {self.offset('%scan', number * KEYS)}")
            self.do(f"store float {scale}, ptr {to}, align 4")


class Softmax(Part):
    """Turns a row's scores into weights, and says by how much what was summed before shrinks."""

    def write(self) -> str:
        """The function's text.

        `%index` is the row's among those at work, `%row` in the tile; `%seen` is how many of the 64 keys it sees,
        perhaps none or more than 64; `%factor` is its query's scale, for powers of 2.
        """
        signature = "softmax(ptr %scratch, i64 %index, i64 %row, i64 %seen, float %factor)"
        self.begin(signature, (), 0, ())
        for name in ("scale", "score", "weight", "shrink", "best", "sum"):
            self.part(name)
        limit = self.emit("call i64 @llvm.umin.i64(i64 %seen, i64 64)")
        limit = self.splat("i32", self.emit(f"trunc i64 {limit} to i32"))
        at = self.emit(f"mul i64 %index, {KEYS}")
        factor = self.splat("float", "%factor")
        scores, masks = [], []
        for v in range(VECTORS):
            score = self.float_at("%score", self.offset(at, v * LANES))
            if self.kernel.cache_dtype == "int8":
                score = self.mul(score, self.float_at("%scale", str(v * LANES)))
            places = ", ".join(f"i32 {v * LANES + lane}" for lane in range(LANES))
            masks.append(self.emit(f"icmp ult <16 x i32> <{places}>, {limit}"))
            scores.append(
                self.emit(f"select <16 x i1> {masks[-1]}, <16 x float> {score}, <16 x float> {floats(MASKED)}")
            )
        best_at = self.emit("getelementptr float, ptr %best, i64 %row")
        before = self.splat("float", self.emit(f"load float, ptr {best_at}, align 4"))
        best = scores[0]
        for score in scores[1:]:
            best = self.larger(score, best)
        best = self.larger(self.splat("float", self.largest(best)), before)
        self.do(f"store float {self.emit(f'extractelement <16 x float> {best}, i32 0')}, ptr {best_at}, align 4")
        shrink = self._power(before, best, factor)
        self.put(shrink, "%shrink", self.emit(f"mul i64 %index, {LANES}"))
        weights = []
        for v, score in enumerate(scores):
            weight = self._power(score, best, factor)
            weight = self.emit(f"select <16 x i1> {masks[v]}, <16 x float> {weight}, <16 x float> zeroinitializer")
            weights.append(self._put_weight(weight, self.offset(at, v * LANES), v))
        part = self.add(self.add(weights[0], weights[1]), self.add(weights[2], weights[3]))
        sum_at = self.emit(f"mul i64 %row, {LANES}")
        self.put(self.fma(self.float_at("%sum", sum_at), shrink, part), "%sum", sum_at)
        self.end()
        return self.text

    def _power(self, score: str, best: str, factor: str) -> str:
        return self.exp2(self.mul(self.emit(f"fsub <16 x float> {score}, {best}"), factor))

    def _put_weight(self, weight: str, at: str, v: int) -> str:
        """Writes weights as the values want them, and returns them as they are to be summed."""
        if self.is_bf16:
            self.store("bfloat16", weight, "%weight", at)
            return self.rounded("bfloat16", weight)
        scaled = weight
        if self.kernel.cache_dtype == "int8":
            scaled = self.mul(weight, self.float_at("%scale", str(KEYS + v * LANES)))
        self.put(scaled, "%weight", at)
        return weight
