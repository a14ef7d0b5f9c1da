"""Writes text of the demo corpus as JSONL, for `qwen-server quantize --calibration`.

`python -m demo.recipe.evaluation.calibration /tmp/text.jsonl`, then
`qwen-server quantize demo/checkpoint demo/checkpoint-int4 --bits 4 --calibration /tmp/text.jsonl`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from demo.recipe.corpus.stream import CURRICULUM_DOCUMENTS, make_document

# Documents that training does not reach, after its curriculum.
_FIRST = 10**9


def main() -> None:
    """Writes conversations of the training side, one per line."""
    parser = argparse.ArgumentParser(prog="python -m demo.recipe.evaluation.calibration", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    assert _FIRST > CURRICULUM_DOCUMENTS
    with arguments.out.open("w", encoding="utf-8") as file:
        for number in range(_FIRST, _FIRST + arguments.documents):
            turns = make_document(arguments.seed, number).turns
            messages = [{"role": turn.role, "content": turn.text} for turn in turns]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
