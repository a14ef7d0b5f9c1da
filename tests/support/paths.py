"""Where the repository and the published test data lie, whichever folder a test is in."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "data" / "golden"
TEXTS = ROOT / "tests" / "data" / "text"
