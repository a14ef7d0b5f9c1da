"""Weights of scores, with the maximum and the sum of a row carried along."""

from __future__ import annotations

from model.backends.cpu.attention.kernel import KEYS, MASKED, VECTORS, Part
from model.backends.cpu.ir.writer import LANES, floats, lanes


class Scales(Part):
    """Collects the scales of 64 keys and values in int8; zeros for keys that there are not."""

    def function(self) -> str:
        """The function's text."""
        parameters = "ptr %key_scales, ptr %value_scales, ptr %table, ptr %scratch, i64 %left"
        self.begin(f"collect.scales({parameters})", (), 0, ("group", "scan"))
        self.part("scale")
        self.do(f"%bounded = call i64 @llvm.umin.i64(i64 %left, i64 {KEYS})")
        self.loop("group", "0", str(VECTORS), self._group)
        return self.end()

    def _group(self) -> None:
        """16 keys: one load where their slots follow each other, as they do within a block."""
        first = self.times("%group", LANES)
        slots = self.vector("%table", first, "i32")
        slot = self.emit(f"extractelement <16 x i32> {slots}, i32 0")
        numbers = lanes(range(LANES))
        expected = self.emit(f"add <16 x i32> {self.splat('i32', slot)}, {numbers}")
        others = self.emit(f"bitcast <16 x i1> {self.emit(f'icmp ne <16 x i32> {slots}, {expected}')} to i16")
        are_adjacent = self.emit(f"icmp eq i16 {others}, 0")
        self.do(f"br i1 {are_adjacent}, label %adjacent, label %scattered")
        self.label("adjacent")
        slot = self.emit(f"sext i32 {slot} to i64")
        left = self.splat("i32", self.emit(f"trunc i64 {self.emit(f'sub i64 %bounded, {first}')} to i32"))
        are_there = self.emit(f"icmp slt <16 x i32> {numbers}, {left}")
        for number, name in enumerate(("%key_scales", "%value_scales")):
            scales = self.vector(name, slot)
            scales = self.emit(f"select <16 x i1> {are_there}, <16 x float> {scales}, <16 x float> zeroinitializer")
            self.put(scales, "%scale", self.plus(first, number * KEYS))
        self.do("br label %collected")
        self.label("scattered")
        self.loop("scan", first, self.plus(first, LANES), self._scan)
        self.do("br label %collected")
        self.label("collected")

    def _scan(self) -> None:
        slot = self.slot_of("%scan")
        is_there = self.emit("icmp ult i64 %scan, %left")
        for number, name in enumerate(("key_scales", "value_scales")):
            scale = self.number("float", f"%{name}", slot)
            scale = self.emit(f"select i1 {is_there}, float {scale}, float 0.0")
            self.put_number(scale, "%scale", self.plus("%scan", number * KEYS))


class Softmax(Part):
    """Turns a row's scores into weights, and says by how much what was summed before shrinks."""

    def function(self) -> str:
        """The function's text.

        `%index` is the row's among those at work, `%row` in the tile; `%seen` is how many of the 64 keys are not behind
        it, perhaps none or more than 64, and `%passed`, with a window, how many are before that, likewise; `%factor` is
        its query's scale, for powers of 2.
        """
        passed = "i64 %passed, " if self.kernel.has_window else ""
        signature = f"softmax(ptr %scratch, i64 %index, i64 %row, i64 %seen, {passed}float %factor)"
        self.begin(signature, (), 0, ())
        for name in ("scale", "score", "weight", "shrink", "best", "sum", "weight_unit"):
            self.part(name)
        at = self.times("%index", KEYS)
        factor = self.splat("float", "%factor")
        scores, masks = self._masked_scores(at)
        before = self.splat("float", self.number("float", "%best", "%row"))
        best = self.larger(self.splat("float", self._largest_of(scores)), before)
        self.put_number(self.emit(f"extractelement <16 x float> {best}, i32 0"), "%best", "%row")
        shrink = self._power(before, best, factor)
        self.put(shrink, "%shrink", self.times("%index", LANES))
        weights = []
        for score, mask in zip(scores, masks, strict=True):
            weight = self._power(score, best, factor)
            weights.append(self.emit(f"select <16 x i1> {mask}, <16 x float> {weight}, <16 x float> zeroinitializer"))
        weights = self._put_weights(weights, at)
        part = self.add(self.add(weights[0], weights[1]), self.add(weights[2], weights[3]))
        sum_at = self.times("%row", LANES)
        self.put(self.fma(self.vector("%sum", sum_at), shrink, part), "%sum", sum_at)
        return self.end()

    def _masked_scores(self, at: str) -> tuple[list[str], list[str]]:
        """A row's 64 scores, `MASKED` for keys that it does not see, and which it sees."""
        limit = self._limit("%seen")
        first = self._limit("%passed") if self.kernel.has_window else None
        scores, masks = [], []
        for v in range(VECTORS):
            score = self.vector("%score", self.plus(at, v * LANES))
            if self.kernel.cache_dtype == "int8":
                score = self.mul(score, self.vector("%scale", str(v * LANES)))
            places = lanes(range(v * LANES, (v + 1) * LANES))
            mask = self.emit(f"icmp ult <16 x i32> {places}, {limit}")
            if first is not None:
                is_near = self.emit(f"icmp uge <16 x i32> {places}, {first}")
                mask = self.emit(f"and <16 x i1> {mask}, {is_near}")
            masks.append(mask)
            scores.append(self.emit(f"select <16 x i1> {mask}, <16 x float> {score}, <16 x float> {floats(MASKED)}"))
        return scores, masks

    def _largest_of(self, vectors: list[str]) -> str:
        """The largest number of some vectors."""
        best = vectors[0]
        for vector in vectors[1:]:
            best = self.larger(vector, best)
        return self.largest(best)

    def _limit(self, count: str) -> str:
        """A count of the 64 keys in all lanes."""
        limit = self.emit(f"call i64 @llvm.umin.i64(i64 {count}, i64 {KEYS})")
        return self.splat("i32", self.emit(f"trunc i64 {limit} to i32"))

    def _power(self, score: str, best: str, factor: str) -> str:
        return self.exp2(self.mul(self.emit(f"fsub <16 x float> {score}, {best}"), factor))

    def _put_weights(self, weights: list[str], first: str) -> list[str]:
        """Writes weights as the values want them, and returns them as they are to be summed."""
        places = [self.plus(first, v * LANES) for v in range(VECTORS)]
        if self.is_bf16:
            for weight, at in zip(weights, places, strict=True):
                self.store("bfloat16", weight, "%weight", at)
            return [self.rounded("bfloat16", weight) for weight in weights]
        scaled = weights
        if self.kernel.cache_dtype == "int8":
            scales = [self.vector("%scale", str(KEYS + v * LANES)) for v in range(VECTORS)]
            scaled = [self.mul(weight, scale) for weight, scale in zip(weights, scales, strict=True)]
        if self.is_integer:
            self._put_integers(scaled, places)
        else:
            for weight, at in zip(scaled, places, strict=True):
                self.put(weight, "%weight", at)
        return weights

    def _put_integers(self, weights: list[str], places: list[str]) -> None:
        """The largest of the weights, which are not negative, becomes the largest integer."""
        unit, inverse = self.integer_unit(self._largest_of(weights))
        self.put_number(unit, "%weight_unit", "%index")
        for weight, at in zip(weights, places, strict=True):
            self.put(self.to_integers(weight, inverse), "%weight", at, "i16")
