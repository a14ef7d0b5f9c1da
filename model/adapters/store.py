"""The adapters that are loaded: what they hold on the device, and which slot of the layers' tables each has.

An adapter that is unloaded keeps its slot until the last sequence that uses it has ended. Reading and laying out may go
on in any thread beside the loop; what the layers see changes only in `install`, `unload` and `remove_user`, which the
loop calls between two steps.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.adapters.layers import AdaptedEmbedding, AdaptedLinear
from model.adapters.reader import Adapter, read_adapter
from model.architectures.causal_lm import CausalLM
from model.backends.base import Backend, LinearKernel, LowRankTable
from model.backends.torch_low_rank import in_dtype
from model.contract.config import ModelConfig
from model.contract.errors import AdapterError
from model.contract.files.linears import QWEN2_LINEARS, linear_shapes
from model.distributed.shard import LinearShard

logger = logging.getLogger(__name__)

EMBEDDING, HEAD = "transformer.wte", "lm_head"


@dataclass(frozen=True, slots=True)
class PreparedAdapter:
    """An adapter laid out for the device.

    Attributes:
        linears: layer name -> what `LowRankTable.put` takes.
        embedding: replaces the model's; None keeps it.
        head: replaces the model's output layer; None keeps it.
        has_own_layers: whether it replaces one of the two, here or on another stage.
        rank: the largest rank of its factors.
        num_bytes: its memory on the device.
    """

    linears: dict[str, Any]
    embedding: torch.Tensor | None
    head: LinearKernel | None
    has_own_layers: bool
    rank: int
    num_bytes: int


@dataclass(slots=True)
class _Loaded:
    """An adapter that the layers know; `num_users` sequences use it."""

    slot: int
    num_bytes: int
    num_users: int = 0
    is_leaving: bool = False


class AdapterStore:
    """The adapters of a model, whose layers it replaces with adapted ones.

    Args:
        model: loaded, or a stage of it.
        dtype: the activations' dtype.
        max_adapters: the most adapters loaded at a time.
        max_rank: the largest rank of their factors.
        has_spare_slot: keep a slot more, so that an adapter can take the place of one that requests still use.
    """

    def __init__(
        self,
        model: nn.Module,
        config: ModelConfig,
        backend: Backend,
        dtype: torch.dtype,
        *,
        max_adapters: int,
        max_rank: int,
        has_spare_slot: bool = False,
    ) -> None:
        self._config = config
        self._backend = backend
        self._dtype = dtype
        self._max_rank = max_rank
        self._tables: dict[str, LowRankTable] = {}
        self._shards: dict[str, LinearShard] = {}  # only layers that several ranks share
        self._loaded: dict[int, _Loaded] = {}  # by adapter id
        self._max_adapters = max_adapters
        num_slots = max_adapters + has_spare_slot
        self._free = list(reversed(range(num_slots)))
        self._embeddings: dict[int, torch.Tensor] = {}
        self._heads: dict[int, LinearKernel] = {}
        self._with_own_layers: set[int] = set()
        self._places = {name for name, _ in model.named_modules()}
        self._adapt(model, num_slots)

    def _adapt(self, model: nn.Module, num_slots: int) -> None:
        shapes = linear_shapes(self._config)
        for layer in range(self._config.num_layers):
            for part, (num_inputs, num_outputs) in shapes.items():
                name = f"transformer.h.{layer}.{part}"
                if name not in self._places:
                    continue
                base = model.get_submodule(name)
                shard: LinearShard | None = getattr(base, "shard", None)
                if shard is not None:
                    num_inputs, num_outputs = shard.num_inputs, shard.num_outputs
                    self._shards[name] = shard
                table = self._backend.make_low_rank_table(
                    num_inputs, num_outputs, num_slots, self._max_rank, self._dtype, num_parts=len(QWEN2_LINEARS[part])
                )
                parent, _, attribute = name.rpartition(".")
                setattr(model.get_submodule(parent), attribute, AdaptedLinear(base, table))
                self._tables[name] = table
        if EMBEDDING not in self._places:
            return
        parent, _, attribute = EMBEDDING.rpartition(".")
        embedding = AdaptedEmbedding(model.get_submodule(EMBEDDING), self._embeddings)
        setattr(model.get_submodule(parent), attribute, embedding)

    @property
    def num_bytes(self) -> int:
        """Memory of all adapters that are loaded."""
        return sum(adapter.num_bytes for adapter in self._loaded.values())

    @torch.inference_mode()
    def prepare(self, folder: Path) -> PreparedAdapter:
        """Reads the adapter in a folder and lays it out; changes nothing here.

        Raises:
            AdapterError: it cannot be served; one sentence.
        """
        try:
            return self._lay_out(read_adapter(folder, self._config, self._max_rank))
        except AdapterError as error:
            text = str(error)
            raise AdapterError(text if str(folder) in text else f"{folder}: {text}") from error
        except (MemoryError, RuntimeError) as error:  # torch has no narrower error for memory that cannot be had
            raise AdapterError(f"{folder}: cannot be laid out: {str(error).splitlines()[0][:200]}") from error

    def _lay_out(self, adapter: Adapter) -> PreparedAdapter:
        linears, num_bytes = {}, 0
        for name, updates in adapter.updates.items():
            if name not in self._tables:
                continue  # on another stage
            shard = self._shards.get(name)
            own = updates if shard is None else [part for update in updates for part in update.on(shard)]
            if own:
                linears[name], size = self._tables[name].prepare(own)
                num_bytes += size
        embedding = head = None
        if EMBEDDING in adapter.saved and EMBEDDING in self._places:
            embedding = in_dtype(adapter.saved[EMBEDDING], self._dtype).to(self._backend.device, copy=True)
            num_bytes += embedding.nbytes
        if HEAD in adapter.saved and self._shards:
            raise AdapterError("it has an output layer of its own, which is not split over ranks yet")
        if HEAD in adapter.saved and HEAD in self._places:
            weight = in_dtype(adapter.saved[HEAD], self._dtype).to(self._backend.device, copy=True)
            num_bytes += weight.nbytes
            head = self._backend.prepare_linear(weight, None, wide_results=True)
        rank = max((len(update.a) for updates in adapter.updates.values() for update in updates), default=0)
        return PreparedAdapter(linears, embedding, head, bool(adapter.saved), rank, num_bytes)

    def must_wait(self, replaces: int) -> bool:
        """Whether one more adapter is allowed, but its slot is still used by requests of one that was unloaded."""
        return not self._free and self._num_kept(replaces) < self._max_adapters

    def _num_kept(self, replaces: int) -> int:
        """Adapters that stay when another takes the place of `replaces`."""
        return sum(not adapter.is_leaving and adapter_id != replaces for adapter_id, adapter in self._loaded.items())

    def install(self, adapter_id: int, prepared: PreparedAdapter, replaces: int = 0) -> None:
        """Makes an adapter known to the layers.

        Args:
            adapter_id: requests name it by this.
            prepared: made by `prepare`.
            replaces: the adapter that is unloaded next, and so does not count; 0 for none.

        Raises:
            AdapterError: there are as many as there may be.
        """
        num_kept = self._num_kept(replaces)
        if num_kept >= self._max_adapters or not self._free:
            raise AdapterError(
                f"{num_kept} adapters are loaded, and there may be no more (--max-loras); unload one first"
            )
        slot = self._free.pop()
        self._loaded[adapter_id] = _Loaded(slot, prepared.num_bytes)
        for name, factors in prepared.linears.items():
            self._tables[name].put(slot, factors)
        if prepared.embedding is not None:
            self._embeddings[slot] = prepared.embedding
        if prepared.head is not None:
            self._heads[slot] = prepared.head
        if prepared.has_own_layers:
            self._with_own_layers.add(slot)

    def unload(self, adapter_id: int) -> None:
        """Lets an adapter go as soon as no sequence uses it; unknown ids are ignored."""
        if adapter_id in self._loaded:
            self._loaded[adapter_id].is_leaving = True
            self._drop_if_unused(adapter_id)

    def knows(self, adapter_id: int) -> bool:
        """Whether a new sequence may use an adapter."""
        return adapter_id in self._loaded and not self._loaded[adapter_id].is_leaving

    def add_user(self, adapter_id: int) -> None:
        """Counts a sequence that uses an adapter."""
        self._loaded[adapter_id].num_users += 1

    def remove_user(self, adapter_id: int) -> None:
        """Counts off a sequence that has ended."""
        self._loaded[adapter_id].num_users -= 1
        self._drop_if_unused(adapter_id)

    def _drop_if_unused(self, adapter_id: int) -> None:
        adapter = self._loaded[adapter_id]
        if adapter.num_users or not adapter.is_leaving:
            return
        del self._loaded[adapter_id]
        for table in self._tables.values():
            table.put(adapter.slot, None)
        self._embeddings.pop(adapter.slot, None)
        self._heads.pop(adapter.slot, None)
        self._with_own_layers.discard(adapter.slot)
        self._free.append(adapter.slot)

    def slot_of(self, adapter_id: int) -> int:
        """Returns the slot of an adapter that a sequence uses; -1 for the base model, which is adapter 0."""
        return self._loaded[adapter_id].slot if adapter_id else -1

    def has_own_layers(self, slots: AbstractSequence[int]) -> bool:
        """Whether any of these has an embedding or an output layer of its own: recorded steps know the model's only."""
        return any(slot in self._with_own_layers for slot in slots)

    def logits(self, model: CausalLM, hidden: torch.Tensor, slots: AbstractSequence[int]) -> torch.Tensor:
        """Maps [R, hidden_size] to [R, vocab_size] float32, by each row's own output layer.

        Args:
            model: computes the rows whose adapter keeps the model's output layer.
            hidden: the rows' final hidden states.
            slots: one a row; -1 for no adapter.
        """
        groups: dict[int, list[int]] = {}
        for row, slot in enumerate(slots):
            groups.setdefault(slot if slot in self._heads else -1, []).append(row)
        if groups.keys() <= {-1}:
            return model.logits(hidden)
        out = torch.empty(len(slots), self._config.vocab_size, device=hidden.device)
        for slot, rows in groups.items():
            index = torch.tensor(rows).to(hidden.device, non_blocking=True)
            some = hidden[index]
            out[index] = model.logits(some) if slot < 0 else self._heads[slot](some).float()
        return out
