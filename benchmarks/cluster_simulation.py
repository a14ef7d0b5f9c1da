"""Simulates the loss of a zone of a cluster: `python -m benchmarks.cluster_simulation`. Seeded; nothing is measured.

Conversations of several turns arrive at random and are routed to replicas by their prefix, like `route_by_prefix`, or
anywhere. A replica computes prompts one after another at its prefill rate and decodes at its decode rate; a turn whose
conversation is cached computes only its new tokens. When a zone is lost, its conversations move to other replicas,
whose caches are cold for them; replacements serve after the restart time, with empty caches. The rates are flags; their
defaults were measured (RESULTS.md).
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import statistics
from collections import OrderedDict
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from server.cluster.prefix_routing import rank


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A cluster, its load and the loss of a zone. Times are in seconds.

    Attributes:
        load: share of the capacity of all replicas.
        max_seqs: replies that one replica decodes at a time; more wait.
        cached_tokens: capacity of one replica's prefix cache, in tokens.
        max_waiting: requests that may wait at one replica; more are refused and retried.
    """

    num_replicas: int = 100
    num_zones: int = 3
    load: float = 0.5
    by_prefix: bool = True
    prefill_tokens_per_s: float = 39_466
    decode_tokens_per_s: float = 5_018
    max_seqs: int = 64
    cached_tokens: int = 100_000
    restart_s: float = 90
    lost_at: float = 300
    end: float = 900
    turns: int = 6
    think_s: float = 20
    system_tokens: int = 400
    question_tokens: int = 150
    reply_tokens: int = 200
    max_waiting: int = 64
    retry_s: float = 2
    seed: int = 0


class Turn(NamedTuple):
    """A turn of a conversation that has arrived."""

    conversation: int
    number: int
    asked_at: float


@dataclass
class Replica:
    """One server: a queue of prompts, and slots for replies."""

    zone: int
    free_at: float = 0.0
    replies: list[float] = field(default_factory=list)
    cache: OrderedDict[int, int] = field(default_factory=OrderedDict)
    num_cached: int = 0
    begins: list[float] = field(default_factory=list)

    def cached(self, conversation: int) -> int:
        """Returns how many tokens of a conversation are cached."""
        tokens = self.cache.get(conversation, 0)
        if tokens:
            self.cache.move_to_end(conversation)
        return tokens

    def keep(self, conversation: int, tokens: int, most: int) -> None:
        """Caches a conversation's tokens and evicts the least recently used ones."""
        self.num_cached += tokens - self.cache.pop(conversation, 0)
        self.cache[conversation] = tokens
        while self.num_cached > most:
            _, gone = self.cache.popitem(last=False)
            self.num_cached -= gone


class Simulation:
    """Runs a plan once.

    Attributes:
        waits: (arrival, seconds to the first token, found no cache) of each answered turn.
        refused: times of refusals; refused turns are retried.
        lost: times at which replies were cut with their zone; these turns are retried.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.random = random.Random(plan.seed)
        self.replicas = {f"r{index}": Replica(index % plan.num_zones) for index in range(plan.num_replicas)}
        self.alive = set(self.replicas)
        self.events: list[tuple[float, int, object]] = []
        self.running: dict[str, dict[Turn, float]] = {name: {} for name in self.replicas}
        self.orders: dict[int, list[str]] = {}
        self.waits: list[tuple[float, float, bool]] = []
        self.refused: list[float] = []
        self.lost: list[float] = []
        self._number = 0

    def at(self, time: float, event: object) -> None:
        """Schedules an event."""
        self._number += 1
        heapq.heappush(self.events, (time, self._number, event))

    def arrivals_per_s(self) -> float:
        """Returns how many conversations a second make the load. A turn costs its new prompt and its reply."""
        plan = self.plan
        new = plan.question_tokens + plan.system_tokens / plan.turns
        seconds = new / plan.prefill_tokens_per_s + plan.reply_tokens / plan.decode_tokens_per_s
        return plan.load * plan.num_replicas / (plan.turns * seconds)

    def run(self) -> None:
        """Runs the simulation to its end."""
        rate = self.arrivals_per_s()
        time, conversation = 0.0, 0
        while time < self.plan.end:
            time += self.random.expovariate(rate)
            self.at(time, Turn(conversation, 0, time))
            conversation += 1
        self.at(self.plan.lost_at, "lose")
        while self.events:
            now, _, event = heapq.heappop(self.events)
            if now > self.plan.end:
                break
            match event:
                case Turn():
                    self._ask(now, event)
                case "lose":
                    self._lose(now)
                case "restart":
                    self.alive = set(self.replicas)
                case (str(name), Turn() as turn):
                    self._answered(now, name, turn)

    def _ask(self, now: float, turn: Turn) -> None:
        plan = self.plan
        name = self._choose(turn, now)
        replica = self.replicas[name]
        replica.begins = [begin for begin in replica.begins if begin > now]
        if len(replica.begins) >= plan.max_waiting:
            self.refused.append(now)
            self.at(now + plan.retry_s, turn)
            return
        prompt = plan.system_tokens + (turn.number + 1) * plan.question_tokens + turn.number * plan.reply_tokens
        cached = min(replica.cached(turn.conversation), prompt)
        # A turn waits for a slot, then for the prompts before it.
        replica.replies = [end for end in replica.replies if end > now]
        place_at = now
        if len(replica.replies) >= plan.max_seqs:
            place_at = sorted(replica.replies)[len(replica.replies) - plan.max_seqs]
        begin = max(place_at, replica.free_at)
        first = begin + (prompt - cached) / plan.prefill_tokens_per_s
        replica.free_at = first
        replica.begins.append(begin)
        # A reply gets its share of the decode rate, as if the number of running replies stayed the same.
        num = min(len(replica.replies) + 1, plan.max_seqs)
        end = first + plan.reply_tokens * max(num / plan.decode_tokens_per_s, 1 / 180)
        replica.replies.append(end)
        replica.keep(turn.conversation, prompt + plan.reply_tokens, plan.cached_tokens)
        self.running[name][turn] = first
        is_cold = turn.number > 0 and cached == 0
        self.waits.append((turn.asked_at, first - turn.asked_at, is_cold))
        self.at(end, (name, turn))

    def _choose(self, turn: Turn, now: float) -> str:
        if not self.plan.by_prefix:
            first, second = self.random.sample(sorted(self.alive), 2)
            return min(first, second, key=lambda name: self.replicas[name].free_at)
        order = self.orders.get(turn.conversation)
        if order is None:
            order = self.orders[turn.conversation] = rank(str(turn.conversation), list(self.replicas))[:8]
        candidates = [name for name in order if name in self.alive] or [self.random.choice(sorted(self.alive))]
        # Like the router: skip a replica that is much busier than the others.
        busy = {name: sum(end > now for end in self.replicas[name].replies) for name in candidates}
        least = min(busy.values())
        return next(name for name in candidates if busy[name] <= least + 8)

    def _lose(self, now: float) -> None:
        for name, replica in list(self.replicas.items()):
            if replica.zone == 0:
                self.alive.discard(name)
                for turn in self.running[name]:
                    self.lost.append(now)
                    self.at(now + self.plan.retry_s, turn._replace(asked_at=now + self.plan.retry_s))
                self.running[name] = {}
                self.replicas[name] = Replica(0)
        self.at(now + self.plan.restart_s, "restart")

    def _answered(self, now: float, name: str, turn: Turn) -> None:
        if self.running[name].pop(turn, None) is None:
            return  # it was lost
        if turn.number + 1 < self.plan.turns:
            asked_at = now + self.random.expovariate(1 / self.plan.think_s)
            self.at(asked_at, Turn(turn.conversation, turn.number + 1, asked_at))

    def window(self, start: float, end: float) -> dict[str, float]:
        """Returns the figures of the turns that arrived within some time."""
        waits = [wait for asked, wait, _ in self.waits if start <= asked < end]
        cold = [is_cold for asked, _, is_cold in self.waits if start <= asked < end]
        cuts = statistics.quantiles(waits, n=100) if len(waits) > 1 else [0.0] * 99
        refused = sum(start <= time < end for time in self.refused)
        return {
            "turns": len(waits),
            "p50_ms": round(cuts[49] * 1000, 1),
            "p99_ms": round(cuts[98] * 1000, 1),
            "cold": round(sum(cold) / max(1, len(cold)), 4),
            "refused": round(refused / max(1, refused + len(waits)), 4),
        }


def report(plan: Plan) -> dict[str, object]:
    """Runs a plan; returns its figures before, during and after the loss."""
    simulation = Simulation(plan)
    simulation.run()
    lost, back = plan.lost_at, plan.lost_at + plan.restart_s
    warm = min(60.0, plan.lost_at / 2)
    return {
        "plan": asdict(plan),
        "replies cut": len(simulation.lost),
        "before": simulation.window(warm, lost),
        "first 10 s": simulation.window(lost, lost + 10),
        "until they are back": simulation.window(lost + 10, back),
        "the minute after": simulation.window(back, back + 60),
        "later": simulation.window(back + 60, plan.end - 30),
    }


def _cell(seen: Any) -> str:
    return f"{seen['p50_ms']:.0f} / {seen['p99_ms']:.0f}, cold {seen['cold']:.0%}, 429 {seen['refused']:.0%}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in asdict(Plan()).items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=value)
        else:
            parser.add_argument(flag, type=type(value), default=value, help=f"(default: {value})")
    parser.add_argument("--loads", type=float, nargs="*", help="several loads, a table")
    arguments = vars(parser.parse_args())
    loads = arguments.pop("loads") or [arguments["load"]]
    windows = ("before", "first 10 s", "until they are back", "the minute after", "later")
    print("| load | routing | replies cut | " + " | ".join(windows) + " |")
    print("|---|---|---|" + "---|" * len(windows))
    for load in loads:
        seen = report(Plan(**{**arguments, "load": load}))
        cells = [_cell(seen[name]) for name in windows]
        how = "by prefix" if arguments["by_prefix"] else "anywhere"
        print(f"| {load} | {how} | {seen['replies cut']} | " + " | ".join(cells) + " |", flush=True)
    print(json.dumps({name: value for name, value in arguments.items() if name not in ("load", "by_prefix")}))


if __name__ == "__main__":
    main()
