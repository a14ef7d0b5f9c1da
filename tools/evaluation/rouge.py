"""Rouge-L as the published tool-use table uses it ("Tool Input (Rouge-L)").

The measure is that of Lin, "ROUGE: A Package for Automatic Evaluation of Summaries" (2004), sentence level, F-measure
with equal weights: with L the length of the longest common subsequence of tokens, P = L / len(reply),
R = L / len(reference), F = 2 P R / (P + R). As in the published evaluation (QwenLM/Qwen, eval/evaluate_plugin.py) both
sides are the arguments as JSON with sorted keys, and arguments that are not JSON count as empty. That script
splits text with the model's own tokenizer; here, where the model is behind HTTP, tokens are words, single digits,
single Chinese characters and single punctuation marks, so figures of different models can be compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

# White space separates and is dropped; a run of letters is one token, anything else is one token a character.
_TOKEN = re.compile(r"[^\W\d_\u3000-\u9fff]+|\S")


def rouge_l(reply: str, reference: str) -> float:
    """Returns the F-measure, from 0 to 1; two empty texts are equal."""
    ours, theirs = _TOKEN.findall(reply), _TOKEN.findall(reference)
    if not ours or not theirs:
        return float(ours == theirs)
    common = _longest_common_subsequence(ours, theirs)
    return 2 * common / (len(ours) + len(theirs))


def canonical_json(value: Any) -> str:
    """Returns arguments as the text that the measure compares."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Returns its length, computing one row of the usual table at a time."""
    row = [0] * (len(b) + 1)
    for token in a:
        diagonal = 0
        for column, other in enumerate(b, start=1):
            above = row[column]
            row[column] = diagonal + 1 if token == other else max(above, row[column - 1])
            diagonal = above
    return row[-1]
