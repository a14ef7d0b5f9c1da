"""How much may be stored, and what goes first where more is to be.

One owner may fill half. What is expendable is dropped, the oldest first: an owner's own where their half is full, else
that of whoever holds most. Nothing else is ever dropped for room.
"""

from __future__ import annotations

import sqlite3
from collections import Counter

from server.store.errors import StoreFullError

# Of an object or an entry beside its bytes: rows and their indexes.
ROW_BYTES = 256
# Of an object, also where a stranger wrote no number.
NUM_BYTES = "CAST(num_bytes AS INTEGER)"


class Room:
    """Counts what each owner holds; used on the store's thread only.

    Args:
        connection: to the database, whose objects are counted.
        max_bytes: of all owners together.
    """

    def __init__(self, connection: sqlite3.Connection, max_bytes: int) -> None:
        self._connection = connection
        self._max_bytes = max_bytes
        rows = connection.execute(f"SELECT owner, SUM({NUM_BYTES}) FROM objects GROUP BY owner")
        self._held: Counter[str] = Counter(dict(rows))

    def snapshot(self) -> Counter[str]:
        """Returns what is held now, for `restore`."""
        return self._held.copy()

    def restore(self, held: Counter[str]) -> None:
        """Goes back to it, with changes that were taken back."""
        self._held = held

    @property
    def num_bytes(self) -> int:
        """Held by all."""
        return self._held.total()

    def take(self, owner: str, num_bytes: int, *, key: int = 0) -> None:
        """Takes room that is about to be used, making it where it must be.

        Args:
            owner: whose it will be.
            num_bytes: more than before; negative gives back.
            key: of the object that grows, which is not dropped for itself.

        Raises:
            StoreFullError: there is none.
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
