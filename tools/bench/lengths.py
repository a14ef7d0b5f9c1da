"""Distributions of prompt and reply lengths, in the syntax of the command line."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

_NO_LIMIT = 1 << 20
_SHAPES = ("normal", "lognormal")


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of token counts between `low` and `high`.

    Attributes:
        low: at least 1.
        shape: "uniform", "normal" or "lognormal".
        center: mean of a normal distribution, median of a log-normal one.
        spread: standard deviation of the length (normal) or of its logarithm (log-normal).
    """

    low: int
    high: int
    shape: str = "uniform"
    center: float = 0.0
    spread: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """Reads "64", "16:256", "normal:128:32" or "lognormal:128:0.8"; the last two may end in ":MOST".

        Raises:
            ValueError: the text is none of these, or a length is below 1.
        """
        shape, _, rest = text.partition(":")
        if shape in _SHAPES:
            return cls._parse_shape(shape, rest.split(":"))
        low, separator, high = text.partition(":")
        lengths = cls(int(low), int(high) if separator else int(low))
        if not 1 <= lengths.low <= lengths.high:
            raise ValueError(f"{text!r}: lengths are 1 or more, the smaller first")
        return lengths

    @classmethod
    def _parse_shape(cls, shape: str, parts: list[str]) -> Lengths:
        center, spread = float(parts[0]), float(parts[1]) if len(parts) in (2, 3) else math.nan
        high = int(parts[2]) if len(parts) == 3 else _NO_LIMIT
        if not (1 <= center <= _NO_LIMIT and 0 <= spread < math.inf and 1 <= high <= _NO_LIMIT):
            raise ValueError(f"{shape} needs its middle (1 or more) and its spread (0 or more)")
        return cls(1, high, shape, center, spread)

    def draw(self, generator: random.Random) -> int:
        """Returns a random length."""
        if self.shape == "uniform":
            return generator.randint(self.low, self.high)
        if self.shape == "normal":
            value = generator.gauss(self.center, self.spread)
        else:
            # Bound the exponent, so that a huge spread gives a long prompt instead of an overflow.
            value = math.exp(min(generator.gauss(math.log(self.center), self.spread), math.log(_NO_LIMIT)))
        return min(max(round(value), self.low), self.high)

    def capped(self, most: int) -> Lengths:
        """Returns the distribution limited to at most `most`."""
        return replace(self, low=min(self.low, most), high=min(self.high, most))

    def __str__(self) -> str:
        """Returns the text that `parse` reads."""
        if self.shape == "uniform":
            return str(self.low) if self.low == self.high else f"{self.low}:{self.high}"
        limit = "" if self.high == _NO_LIMIT else f":{self.high}"
        return f"{self.shape}:{self.center:g}:{self.spread:g}{limit}"
