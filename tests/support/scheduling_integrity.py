"""Recomputes what the scheduler and the block manager believe from the sequences alone; tests do it at each step."""

from __future__ import annotations

from collections.abc import Iterable

from model.scheduling.block_manager import BlockKey, BlockManager, Parent
from model.scheduling.callers import Caller
from model.scheduling.scheduler import Scheduler
from model.scheduling.sequence import NO_BLOCK, Sequence, SequenceStatus


def require(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(f"the scheduler is inconsistent: {message}")


def check_scheduler(scheduler: Scheduler) -> None:
    """Raises RuntimeError unless queues, states and blocks agree with each other."""
    residents = scheduler.residents
    sequences = list(residents.sequences.values())
    check_blocks(scheduler.block_manager, sequences)
    following = [seq for followers in residents._followers.values() for seq in followers]
    running = [seq for caller in residents.callers for seq in caller.running]
    idle = [seq for caller in residents.callers for seq in caller.waiting] + following
    require(sorted(seq.seq_id for seq in idle + running) == sorted(residents.sequences), "a sequence in two queues")
    require(all(_is_consistent(caller, sequences) for caller in residents.callers), "callers' queues")
    require(all(seq.status is SequenceStatus.RUNNING for seq in running), "running states")
    require(all(seq.status is SequenceStatus.WAITING for seq in idle), "waiting states")
    leaders = [seq.leader for seq in following]
    require(all(leader is not None and leader.seq_id in residents.sequences for leader in leaders), "a dead leader")
    require(not any(seq.block_table for seq in following), "a follower holds blocks")
    require(residents.num_running == len(running) <= residents.callers.max_num_seqs, "number of running sequences")


def _is_consistent(caller: Caller, sequences: list[Sequence]) -> bool:
    queues = (caller.waiting, caller.running)
    is_sorted = all(queue == sorted(queue, key=lambda seq: seq.order) for queue in queues)
    is_own = all(seq.caller == caller.name for queue in queues for seq in queue)
    return is_sorted and is_own and caller.num_sequences == sum(seq.caller == caller.name for seq in sequences)


def check_blocks(manager: BlockManager, sequences: Iterable[Sequence]) -> None:
    """Raises RuntimeError unless everything follows from the block tables of all living sequences."""
    sequences = list(sequences)
    counts = [0] * manager.num_blocks
    for seq in sequences:
        held = seq.held_blocks
        require(len(set(held)) == len(held) and NO_BLOCK not in held, f"a block twice in {seq}")
        # A block more than is read is kept, but not by those who share the start of another.
        num_passed = manager._num_passed(seq.num_computed_tokens + manager.block_size)
        require(seq.num_passed_blocks <= num_passed, f"a block that is read is gone from {seq}")
        for block in held:
            counts[block] += 1
    require(counts == manager._ref_counts, "reference counts disagree with the block tables")
    used = {block for block, count in enumerate(counts) if count}
    free = set(manager._free)
    require(len(free) == len(manager._free), "a block is free twice")
    evictable, cached = set(manager._evictable), manager._key_of_block.keys()
    require(len(used) + manager.num_free_blocks == manager.num_blocks, "blocks lost or counted twice")
    require(used | free | evictable == set(range(manager.num_blocks)), "block states overlap")
    require(not free & cached and evictable <= cached, "cached and free blocks mixed up")
    require({k: b for b, k in manager._key_of_block.items()} == manager._block_of_key, "keys disagree with blocks")
    require(cached == manager._node_of_block.keys(), "cache nodes disagree with blocks")
    require(all(node % manager.num_blocks == b for b, node in manager._node_of_block.items()), "a node's block")
    keys = {node: manager._key_of_block[block] for block, node in manager._node_of_block.items()}
    for seq in sequences:
        _check_sequence(manager, seq, keys)


def _check_sequence(manager: BlockManager, seq: Sequence, keys: dict[int, BlockKey]) -> None:
    size = manager.block_size
    require(seq.num_computed_tokens <= min(seq.num_tokens, len(seq.block_table) * size), f"no block for {seq}")
    require(len(seq.cache_chain) * size <= seq.num_computed_tokens, f"cached before computed: {seq}")
    parent: Parent = seq.cache_root
    for index, node in enumerate(seq.cache_chain):
        tokens = tuple(seq.token_ids[index * size : (index + 1) * size])
        require(keys.get(node, (parent, tokens)) == (parent, tokens), f"foreign prefix cache node in {seq}")
        own = manager._node_of_block.get(seq.block_table[index], node)
        require(own == node, f"block {index} of {seq} has another's node")
        parent = node
