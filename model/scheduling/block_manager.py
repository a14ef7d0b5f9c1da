"""Who owns which block of the KV cache, and which blocks hold a prompt start worth keeping.

It exists so that memory is decided in one place that can be tested without a tensor. It must not know what a block
holds beyond token ids, how large one is in bytes, nor when sequences run: the scheduler decides that.

Pure: the standard library, `model.contract.attention_windows` and `model.scheduling.sequence`.
"""

from __future__ import annotations

from collections import OrderedDict

from model.contract.attention_windows import num_blocks_kept, num_blocks_passed
from model.scheduling.sequence import NO_BLOCK, Sequence

# A cached block's identity: the block before it, or the sequence's `cache_root` for the first, and its own tokens. The
# tokens themselves are the key, not a hash of them: two prompts can never be taken for one another.
Parent = int | tuple[float, str, int]
BlockKey = tuple[Parent, tuple[int, ...]]


class BlockManager:
    """Reference-counted blocks and a prefix cache of full ones.

    A block is in use (its reference count is the number of block tables it is in), or idle but cached, or free. Where a
    block lies does not matter: attention reads block tables. Without a free one, the one that has been idle longest is
    taken from the prefix cache.

    Where no layer reads further back than a window, sequences give back the blocks that it has passed, and get blocks
    for as much of their prompt as the next step may compute; so one may be longer than the pool.

    Args:
        num_blocks: blocks in the pool, each of `block_size` tokens.
        enable_prefix_caching: keep full blocks of ended sequences for prompts that start alike.
        largest_window: how many of the last positions some layer reads; None where one reads all.
        max_step_tokens: the most tokens that a step computes of a sequence; only a window makes it count.
        max_steps_ahead: steps that may be launched and not settled when one is planned; likewise.

    Attributes:
        max_sequence_tokens: the most tokens that a sequence may have when it is alone; None for any number.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        enable_prefix_caching: bool,
        *,
        largest_window: int | None = None,
        max_step_tokens: int = 1,
        max_steps_ahead: int = 0,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self._largest_window = largest_window
        self._max_step_tokens = max_step_tokens
        self._num_unsettled = max_step_tokens * (1 + max_steps_ahead)
        self.prefix_cache_queries_total = 0
        self.prefix_cache_hits_total = 0
        self._ref_counts = [0] * num_blocks
        self._free = list(reversed(range(num_blocks)))  # the last one is taken first: its memory was touched before
        self._evictable: OrderedDict[int, None] = OrderedDict()  # in the order in which they fell idle
        self._block_of_key: dict[BlockKey, int] = {}
        self._key_of_block: dict[int, BlockKey] = {}
        # A node's number is never used again, and ends in its block's: number % num_blocks is where it was.
        self._node_of_block: dict[int, int] = {}
        self._num_nodes = 0
        self._num_evictions = 0
        num_slots = num_blocks * block_size
        always_fits = largest_window is not None and self._num_blocks_kept(1 << 62) <= num_blocks
        self.max_sequence_tokens = None if always_fits else num_slots

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be had: free ones and those that can be evicted."""
        return len(self._free) + len(self._evictable)

    @property
    def num_cached_blocks(self) -> int:
        """Blocks nobody uses that the prefix cache keeps."""
        return len(self._evictable)

    def num_blocks_for(self, num_tokens: int) -> int:
        """Returns how many blocks hold this many tokens."""
        return -(-num_tokens // self.block_size)

    def num_missing_blocks(self, seq: Sequence) -> int:
        """Returns how many blocks a waiting sequence lacks to hold the tokens that it has."""
        return self._num_blocks_kept(seq.num_tokens) - len(seq.held_blocks)

    def _num_blocks_kept(self, num_tokens: int) -> int:
        return num_blocks_kept(num_tokens, self.block_size, self._largest_window, self._num_unsettled)

    def _num_passed(self, num_computed_tokens: int) -> int:
        return num_blocks_passed(num_computed_tokens, self.block_size, self._largest_window)

    def match_prefix(self, seq: Sequence) -> list[int]:
        """Looks up the longest cached start of a sequence.

        One that waits for room is asked about at every step: while nothing is evicted, it goes on where it ended.

        Returns:
            The blocks, at most (num_tokens - 1) // block_size so that one token is left to compute.
        """
        if not self.enable_prefix_caching:
            return []
        if seq.matched_at != self._num_evictions:
            seq.matched_at = self._num_evictions
            seq.matched_blocks = []
        blocks = seq.matched_blocks
        parent: Parent = self._node_of_block[blocks[-1]] if blocks else seq.cache_root
        for start in range(len(blocks) * self.block_size, seq.num_tokens - self.block_size, self.block_size):
            block = self._block_of_key.get((parent, tuple(seq.token_ids[start : start + self.block_size])))
            if block is None:
                break
            blocks.append(block)
            parent = self._node_of_block[block]
        return blocks

    def can_admit(self, seq: Sequence, prefix: list[int], num_reserved_blocks: int) -> bool:
        """Returns whether all of a sequence fits once it adopts `prefix`, with that many blocks to spare."""
        num_missing = self.num_missing_blocks(seq)
        if prefix:
            kept = prefix[self._num_passed(len(prefix) * self.block_size) :]
            num_missing -= sum(self._ref_counts[block] > 0 for block in kept)
        return num_missing + num_reserved_blocks <= self.num_free_blocks

    def adopt_prefix(self, seq: Sequence, prefix: list[int]) -> None:
        """Makes what `match_prefix` found the start of a sequence that has no blocks yet."""
        seq.num_passed_blocks = self._num_passed(len(prefix) * self.block_size)
        for block in prefix[seq.num_passed_blocks :]:
            if self._ref_counts[block] == 0:
                del self._evictable[block]
            self._ref_counts[block] += 1
        seq.block_table.extend([NO_BLOCK] * seq.num_passed_blocks)
        seq.block_table.extend(prefix[seq.num_passed_blocks :])
        seq.cache_chain.extend(self._node_of_block[block] for block in prefix)
        self._touch_passed(seq)
        seq.num_computed_tokens = len(prefix) * self.block_size
        # A preempted sequence mostly finds its own blocks again, which would flatter the hit rate.
        if self.enable_prefix_caching and seq.first_scheduled_time_s is None:
            self.prefix_cache_queries_total += seq.num_tokens
            self.prefix_cache_hits_total += seq.num_computed_tokens

    def fork_prefix(self, leader: Sequence, seq: Sequence) -> None:
        """Shares the full blocks of a leader's computed prompt with a sequence that has none; needs no cache.

        The last prompt token is left to compute: its logits are what the sequence samples from first.
        """
        shared = leader.block_table[: (leader.num_prompt_tokens - 1) // self.block_size]
        for block in shared[leader.num_passed_blocks :]:
            self._ref_counts[block] += 1
        seq.block_table.extend(shared)
        seq.num_passed_blocks = min(len(shared), leader.num_passed_blocks)
        seq.cache_chain.extend(leader.cache_chain[: len(shared)])
        seq.num_computed_tokens = len(shared) * self.block_size

    def allocate(self, seq: Sequence, num_tokens: int) -> bool:
        """Grows a sequence's block table to hold `num_tokens`.

        Returns:
            False, with nothing changed, when there are too few blocks.
        """
        table = seq.block_table
        num_missing = self.num_blocks_for(num_tokens) - len(table)
        if num_missing > self.num_free_blocks:
            return False
        for _ in range(num_missing):
            block = self._free.pop() if self._free else self._evict()
            self._ref_counts[block] = 1
            table.append(block)
        return True

    def secure(self, seq: Sequence) -> bool:
        """Grows a sequence's block table to hold all its tokens, or with a window those of the next step.

        Returns:
            as `allocate`.
        """
        num_tokens = seq.num_tokens
        if self._largest_window is not None:
            num_tokens = min(num_tokens, seq.num_computed_tokens + self._max_step_tokens)
        return self.allocate(seq, num_tokens)

    def trim(self, seq: Sequence) -> None:
        """Takes back the blocks behind a sequence's last token."""
        num_kept = self.num_blocks_for(seq.num_tokens)
        self._release(seq.block_table[num_kept:])
        del seq.block_table[num_kept:]

    def commit(self, seq: Sequence) -> None:
        """Makes a sequence's full computed blocks known to the prefix cache; call after each step.

        A block equal to one already cached stays unknown, but what follows it continues the cached chain.
        """
        if not self.enable_prefix_caching:
            return
        chain, size = seq.cache_chain, self.block_size
        while len(chain) < seq.num_computed_tokens // size:
            index = len(chain)
            parent: Parent = chain[-1] if chain else seq.cache_root
            key = (parent, tuple(seq.token_ids[index * size : (index + 1) * size]))
            block = self._block_of_key.get(key)
            if block is None:
                block = seq.block_table[index]
                self._num_nodes += 1
                self._block_of_key[key] = block
                self._key_of_block[block] = key
                self._node_of_block[block] = self._num_nodes * self.num_blocks + block
            chain.append(self._node_of_block[block])

    def release_passed(self, seq: Sequence, num_settled_tokens: int) -> None:
        """Takes back the blocks that no layer will read again; call after `commit`, and once followers have theirs.

        Args:
            num_settled_tokens: tokens computed in steps that are settled; those in flight may yet be shared with
                followers.
        """
        if self._largest_window is None:
            return
        num_passed = self._num_passed(min(num_settled_tokens, seq.num_computed_tokens))
        if num_passed > seq.num_passed_blocks:
            passed = slice(seq.num_passed_blocks, num_passed)
            self._release(seq.block_table[passed])
            seq.block_table[passed] = [NO_BLOCK] * (num_passed - seq.num_passed_blocks)
            seq.num_passed_blocks = num_passed

    def free(self, seq: Sequence) -> None:
        """Takes all blocks from a sequence; none of it counts as computed any more."""
        self._release(seq.held_blocks)
        self._touch_passed(seq)
        seq.block_table.clear()
        seq.num_passed_blocks = 0
        seq.cache_chain.clear()
        seq.num_computed_tokens = 0

    def _touch_passed(self, seq: Sequence) -> None:
        """Has blocks that a window has passed evicted last: they fell idle first, but what follows is found by them."""
        for node in reversed(seq.cache_chain[: seq.num_passed_blocks]):
            block = node % self.num_blocks
            if block in self._evictable and self._node_of_block[block] == node:
                self._evictable.move_to_end(block)

    def _release(self, blocks: list[int]) -> None:
        """Lets blocks of one sequence go, the tail first: so the least recently used end of a chain is its leaf."""
        for block in reversed(blocks):
            self._ref_counts[block] -= 1
            if self._ref_counts[block] == 0:
                if block in self._key_of_block:
                    self._evictable[block] = None
                else:
                    self._free.append(block)

    def _evict(self) -> int:
        """Forgets the block that has been idle longest, and returns it."""
        self._num_evictions += 1
        block, _ = self._evictable.popitem(last=False)
        del self._block_of_key[self._key_of_block.pop(block)]
        del self._node_of_block[block]
        return block
