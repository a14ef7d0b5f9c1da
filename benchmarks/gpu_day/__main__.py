"""Everything that only a GPU can show, in one command: `python -m benchmarks.gpu_day --minutes 25`.

Parts run one after another, what finds the worst first: does it work, is it right, how fast is it. Each is a process
with a limit of its own; what it said and measured is written before the next begins, so that a day that ends early
keeps what it had, and the same command goes on where the last one stopped (`--again` begins anew). After each part the
table between the markers of RESULTS.md is made again from the figures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_day.day import ROOT, parts, run_day


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its status is 0 when every part did."""
    parser = argparse.ArgumentParser(description="Everything that only a GPU can show.")
    parser.add_argument("--minutes", type=float, default=25.0, help="begin nothing that would end later")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "benchmarks" / ".cache" / "gpu_day", help="of all figures"
    )
    parser.add_argument("--again", action="store_true", help="forget what earlier runs have done")
    parser.add_argument("--parts", nargs="+", help="only these, in this order (default: all)")
    parser.add_argument("--small", action="store_true", help="tiny shapes: see the command work, on a CPU too")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "RESULTS.md", help="whose table is made")
    options = parser.parse_args(arguments)
    if options.again:
        for file in options.folder.glob("*.json"):
            file.unlink()
    all_parts = {part.name: part for part in parts(options.device, is_small=options.small)}
    if unknown := set(options.parts or ()) - all_parts.keys():
        parser.error(f"no part {', '.join(sorted(unknown))}; there are: {', '.join(all_parts)}")
    chosen = [all_parts[name] for name in options.parts or all_parts]
    return run_day(chosen, options.folder, options.minutes, options.results) and 1


if __name__ == "__main__":
    sys.exit(main())
