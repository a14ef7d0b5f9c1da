"""The plot of speed by context length."""

from __future__ import annotations

import math
from xml.etree import ElementTree

from benchmarks.context.plot import draw


def test_points_of_both_and_of_one_alone() -> None:
    rows = [
        {"length": 512, "decode": 20.0, "peer_decode": 10.0, "prefill": 100.0, "peer_prefill": math.nan},
        {"length": 4096, "decode": 15.0, "peer_decode": 5.0, "prefill": 90.0, "peer_prefill": math.nan},
    ]
    root = ElementTree.fromstring(draw({"shape": "1.8b", "kv_cache_dtype": "int8", "rows": rows}))
    lines = root.findall("{*}polyline")
    assert [len(line.get("points", "").split()) for line in lines] == [2, 2, 2], "the peer's prefill is not known"
    heights = [float(point.split(",")[1]) for point in lines[0].get("points", "").split()]
    assert heights[0] < heights[1], "what is faster is higher"
    assert any(text.text == "4,096" for text in root.findall("{*}text"))
