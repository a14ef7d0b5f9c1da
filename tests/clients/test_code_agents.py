"""The guide's agents that write code, with a model that says what a script has it say."""

from __future__ import annotations

import asyncio
import contextlib
import io
from pathlib import Path

import pytest

from tests.docs.guide import Example, examples
from tests.support.light_server import light_server
from tests.support.paths import ROOT


def example_with(word: str) -> Example:
    own = f"run by: {Path(__file__).relative_to(ROOT)}"
    (found,) = (e for e in examples(ROOT / "docs" / "clients.md") if e.how == own and word in e.text)
    return found


async def run(example: Example, script: list[str], checkpoint: Path, folder: Path) -> tuple[str, list[str]]:
    """Runs an example; returns what it printed, and the prompts that the model got."""
    async with light_server(checkpoint, folder, script=script) as server:

        def work() -> str:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(example.at(server.url), str(example.page), "exec"), {"__name__": "guide"})
            return out.getvalue()

        return await asyncio.to_thread(work), server.prompts()


@pytest.mark.filterwarnings("ignore")  # theirs
async def test_a_code_interpreter_with_qwen_agent(demo_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("qwen_agent")
    script = [
        "Thought: I run it.\nAction: python\nAction Input: ```py\nprint(6 * 7)\n```\nObservation: made up",
        " I now know the final answer.\nFinal Answer: It is 42.",
    ]
    printed, prompts = await run(example_with("qwen_agent"), script, demo_checkpoint, tmp_path)
    assert printed.splitlines()[-1] == "It is 42."
    assert "at the beginning and end of the code. Parameters: [" in prompts[0]
    assert prompts[1].endswith("Action: python\nAction Input: ```py\nprint(6 * 7)\n```\nObservation: 42\nThought:")


@pytest.mark.filterwarnings("ignore")
async def test_smolagents_code_agent(demo_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("smolagents")
    script = [
        "Thought: I reckon.\n```python\nprint(6 * 7)\n```",
        "Thought: I know it.\n```python\nfinal_answer('It is 42.')\n```",
    ]
    printed, prompts = await run(example_with("smolagents"), script, demo_checkpoint, tmp_path)
    assert "It is 42." in printed
    assert len(prompts) == 2 and "42" in prompts[1] and "print(6 * 7)" in prompts[1]
