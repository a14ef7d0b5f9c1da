"""Free blocks of the KV cache as ranges, so that a sequence can be given consecutive ones.

It must not know what blocks are for. Pure: the standard library.
"""

from __future__ import annotations

from itertools import pairwise


class FreeExtents:
    """Free blocks as maximal extents [start, end), sorted into classes by the first three bits of their size.

    Nothing walks over the pool; the price is that `largest` may be a fifth smaller than the largest.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = 0
        self._end_of: dict[int, int] = {}
        self._start_of: dict[int, int] = {}
        self._starts_by_class: list[dict[int, None]] = [{} for _ in range(_size_class(num_blocks) + 1)]
        self._add(0, num_blocks)

    def extents(self) -> list[tuple[int, int]]:
        """Returns all (start, end) in ascending order."""
        return sorted(self._end_of.items())

    def largest(self) -> tuple[int, int]:
        """Returns the (start, end) of an extent of the largest class, (0, 0) when nothing is free."""
        for starts in reversed(self._starts_by_class):
            if starts:
                start, _ = starts.popitem()  # unlike iteration, it does not walk over what was deleted before
                starts[start] = None
                return start, self._end_of[start]
        return 0, 0

    def take_at(self, start: int, count: int) -> int:
        """Takes up to `count` blocks from `start` on, if an extent starts exactly there; returns how many."""
        if start not in self._end_of:
            return 0
        end = self._remove(start)
        taken = min(count, end - start)
        if start + taken < end:
            self._add(start + taken, end)
        return taken

    def take_from_largest(self, count: int, room: int) -> tuple[int, int]:
        """Takes up to `count` consecutive blocks of the largest extent; returns the first and how many.

        What is left over beside the `room` the newcomer wants is halved, so that whoever ends at the extent's left
        edge can grow as far as the newcomer.
        """
        start, end = self.largest()
        middle = start + max(0, end - start - max(count, room)) // 2
        if 0 < start < middle:
            self._remove(start)
            self._add(start, middle)
            self._add(middle, end)
            start = middle
        return start, self.take_at(start, count)

    def release(self, block: int) -> tuple[int, int]:
        """Gives one block back; returns the extent it is now in."""
        start = self._start_of.get(block, block)
        if start < block:
            self._remove(start)
        end = self._remove(block + 1) if block + 1 in self._end_of else block + 1
        self._add(start, end)
        return start, end

    def _add(self, start: int, end: int) -> None:
        self._end_of[start] = end
        self._start_of[end] = start
        self._starts_by_class[_size_class(end - start)][start] = None
        self.num_blocks += end - start

    def _remove(self, start: int) -> int:
        end = self._end_of.pop(start)
        del self._start_of[end]
        del self._starts_by_class[_size_class(end - start)][start]
        self.num_blocks -= end - start
        return end

    def check_integrity(self) -> None:
        """Raises RuntimeError unless the extents are maximal, mirrored and in the right classes."""
        extents = self.extents()
        require({end: start for start, end in extents} == self._start_of, "extents are not mirrored")
        require(all(left[1] < right[0] for left, right in pairwise(extents)), "extents touch")
        classes = [(size, start) for size, starts in enumerate(self._starts_by_class) for start in starts]
        require(sorted(classes) == sorted((_size_class(e - s), s) for s, e in extents), "extents misplaced")


def _size_class(size: int) -> int:
    shift = max(0, size.bit_length() - 3)
    return (shift << 2) + (size >> shift)


def require(condition: bool, message: str) -> None:
    """Raises RuntimeError unless the condition holds; what an integrity check is made of."""
    if not condition:
        raise RuntimeError(f"KV cache blocks are inconsistent: {message}")
