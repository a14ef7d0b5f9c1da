"""Domains: the purposes of tools, each with descriptions and questions in both languages.

`domains.txt` lists them. `# key : nouns : verbs : English name/Chinese name`, then `d`/`D` descriptions, `s` arguments
(`!` = required, `a.b` = b inside an object a), `q`/`Q` questions and `r` what a result holds. Lower case English, upper
case Chinese.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from demo.recipe.corpus.split import HELD_OUT

# Domains that only the evaluation uses, chosen to be of different kinds.
HELD_OUT_DOMAINS = frozenset(
    (
        "wallpaper blood_pressure waste_sorting morse license_plate typhoon babysitter unsubscribe "
        "feature_flag gift_card repair_visit split_bill anagram moving_house karaoke"
    ).split()
)


@dataclass
class Domain:
    """A purpose of tools."""

    key: str
    nouns: list[str]
    verbs: list[str]
    human: str
    human_zh: str
    slots: list[str] = field(default_factory=list)
    result: str = "text"
    lines: dict[str, list[str]] = field(default_factory=lambda: {"d": [], "D": [], "q": [], "Q": []})

    def slot_map(self) -> dict[str, tuple[str, bool]]:
        """Template name -> (slot key, required). `from:count!` names a slot otherwise than its key."""
        found = {}
        for item in self.slots:
            name, _, key = item.rstrip("!").partition(":")
            found[name] = (key or name.split(".")[-1], item.endswith("!"))
        return found


@cache
def all_domains() -> dict[str, Domain]:
    """Returns all listed domains by key."""
    domains: dict[str, Domain] = {}
    for line in Path(__file__).with_name("domains.txt").read_text(encoding="utf-8").splitlines():
        mark, _, rest = line.partition(" ")
        if mark == "#":
            key, nouns, verbs, human = (p.strip() for p in rest.split(" : "))
            english, _, chinese = human.partition("/")
            domain = domains[key] = Domain(key, nouns.split(), verbs.split(), english, chinese)
        elif mark == "s":
            domain.slots = rest.split()
        elif mark == "r":
            domain.result = rest
        else:
            domain.lines[mark].append(rest)
    return domains


def domains_of(split: str) -> dict[str, Domain]:
    """Returns the domains of one side of the split, by key."""
    return {k: domain for k, domain in all_domains().items() if (k in HELD_OUT_DOMAINS) == (split == HELD_OUT)}


def trained_lines(lines: list[str]) -> list[str]:
    """Returns the wordings for training. Of three or more, the last is kept for the evaluation."""
    return lines[:-1] if len(lines) > 2 else lines
