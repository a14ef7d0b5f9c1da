"""How much may be stored, and what is dropped to make room.

One owner may fill half. Expendable objects are dropped, the oldest first: an owner's own where their half is full, else
those of the owner who holds most. Nothing else is ever dropped for room.
"""

from __future__ import annotations

import sqlite3
from collections import Counter

from server.store.errors import StoreFullError

# What rows and indexes of an object or an entry take beside its bytes.
ROW_BYTES = 256
# An object's size, also in a file in which it is no number.
NUM_BYTES = "CAST(num_bytes AS INTEGER)"


class Room:
    """Counts the bytes of each owner; used on the store's thread only.

    Args:
        max_bytes: most bytes of all owners together.
    """

    def __init__(self, connection: sqlite3.Connection, max_bytes: int) -> None:
        self._connection = connection
        self._max_bytes = max_bytes
        rows = connection.execute(f"SELECT owner, SUM({NUM_BYTES}) FROM objects GROUP BY owner")
        self._held: Counter[str] = Counter(dict(rows))

    def snapshot(self) -> Counter[str]:
        """Returns the counts, for `restore`."""
        return self._held.copy()

    def restore(self, held: Counter[str]) -> None:
        """Restores the counts of a snapshot, for changes that are rolled back."""
        self._held = held

    @property
    def num_bytes(self) -> int:
        """Bytes of all owners."""
        return self._held.total()

    def take(self, owner: str, num_bytes: int, *, key: int = 0) -> None:
        """Counts bytes that are about to be stored, and drops objects to make room for them.

        Args:
            num_bytes: bytes more than before; negative gives back.
            key: key of the object that grows, which is not dropped for itself.

        Raises:
            StoreFullError: there is no room.
        """
        self._held[owner] += num_bytes
        if num_bytes <= 0:
            return
        while self._held[owner] > self._max_bytes // 2:
            self._drop_oldest([owner], key, "you have stored as much as one may here")
        while self._held.total() > self._max_bytes:
            self._drop_oldest([name for name, _ in self._held.most_common()], key, "the store is full")

    def _drop_oldest(self, owners: list[str], spared: int, why: str) -> None:
        for owner in owners:
            row = self._connection.execute(
                f"SELECT key, {NUM_BYTES} FROM objects WHERE expendable AND owner = ? AND key <> ?"
                " ORDER BY key LIMIT 1",
                (owner, spared),
            ).fetchone()
            if row is not None:
                self._connection.execute("DELETE FROM objects WHERE key = ?", (row[0],))
                self._held[owner] -= row[1]
                return
        raise StoreFullError(
            f"There is no room for this: {why} (--max-store-bytes {self._max_bytes}, of which one key may fill half);"
            " delete files that are not needed any more."
        )
