"""Tools: a call arrives, its result is typed or worked out by the page, and the model goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.support.server_process import ServerProcess
from tests.web.driver import SHORT, ChatPage, sse

OpenPage = Callable[..., ChatPage]
COLOUR = """{"type": "function", "function": {"name": "get_colour", "description": "The colour of a fruit",
 "parameters": {"type": "object", "properties": {"fruit": {"enum": ["apple", "lime"]}}, "required": ["fruit"],
 "additionalProperties": false}}}"""


def test_a_pasted_tool_whose_result_is_typed(server: ServerProcess, open_page: OpenPage) -> None:
    """The random checkpoint cannot choose to call, so it is forced to; the server does the rest for real."""
    chat = open_page(server, {"sampling": {"max_tokens": 60, "temperature": 0}})
    chat.open_panel("Tools")
    schema = chat.page.get_by_label("Function schemas, as JSON")
    for wrong, sentence in (("{", "This is not JSON"), ("[]", "no function"), ('{"type": "object"}', "needs a name")):
        schema.fill(wrong)
        chat.button("Add").click()
        assert sentence in chat.page.locator("#schema-problem").inner_text()
    schema.fill(COLOUR)
    chat.button("Add").click()
    chat.field("May the model call?").select_option(label="It must call get_colour")
    chat.say("Which colour?")
    result = chat.page.get_by_label("Result of get_colour")
    result.wait_for()
    call = chat.page.get_by_role("region", name="Call of get_colour")
    assert call.locator("pre").first.inner_text() in ('{\n  "fruit": "apple"\n}', '{\n  "fruit": "lime"\n}')
    assert "called a tool" in chat.stats()
    chat.until("document.activeElement.id.startsWith('result')")
    result.fill("red")
    result.press("Enter")
    assert chat.reply()
    assert call.get_by_text("answered").count() == 1
    assert call.locator("pre").last.inner_text() == "red"
    assert chat.replies.count() == 2
    chat.page.reload()
    assert call.locator("pre").last.inner_text() == "red"


def test_the_calculator_answers_by_itself(server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(server, SHORT)
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "calculator", "arguments": ""}}
    pieces = [{"index": 0, "function": {"arguments": text}} for text in ('{"expr', 'ession": "37 ', '* 12"}')]
    requests = chat.answer_with(
        sse(
            {"content": "I should calculate."},
            {"tool_calls": [call]},
            *({"tool_calls": [p]} for p in pieces),
            reason="tool_calls",
        ),
        sse({"content": "It is 444."}),
    )
    chat.page.get_by_role("button", name="What is 37 * 12?").click()
    chat.page.get_by_text("It is 444.", exact=True).wait_for()
    chat.reply()
    assert requests[0]["tools"][0]["function"]["name"] == "calculator"
    assert requests[0]["tool_choice"] == "auto"
    assert [m["role"] for m in requests[1]["messages"]] == ["user", "assistant", "tool"]
    assert requests[1]["messages"][2] == {"role": "tool", "tool_call_id": "call_1", "content": "444"}
    assert requests[1]["messages"][1]["content"] == "I should calculate."
    assert chat.page.locator(".thought .label").is_visible()
    assert chat.page.locator(".call-outcome pre").inner_text() == "444"


def test_forced_calls_and_answers_by_themselves_end(server: ServerProcess, open_page: OpenPage) -> None:
    """A call is forced once only; a model that never stops calling is stopped."""
    function = {"name": "current_time", "arguments": '{"time_zone": "x"}'}
    call = {"index": 0, "type": "function", "function": function}
    chat = open_page(server, SHORT)
    chat.open_panel("Tools")
    chat.button("+ current_time").click()
    chat.field("May the model call?").select_option(label="It must call one")
    bodies = [sse({"tool_calls": [{**call, "id": f"c{i}"}]}, reason="tool_calls") for i in range(20)]
    requests = chat.answer_with(*bodies)
    chat.say("time?")
    chat.page.get_by_label("Result of current_time").wait_for()
    assert [r["tool_choice"] for r in requests] == ["required"] + ["auto"] * 6
    assert "no time zone" in requests[-1]["messages"][-1]["content"]
    chat.button("Let the page answer").click()
    chat.until("document.querySelectorAll('.call').length === 8")


EXPRESSIONS = {
    "2 * (3 + 4)": "14",
    "-2^2": "-4",
    "2**3**2": "512",
    "0.1 + 0.2": "0.3",
    "37 × 12 ÷ 3": "148",
    "sqrt(16) + max(1, 2)": "6",
    "10 % 4": "2",
    "1 / 0": "nothing can be divided by zero",
    "2 +": "the expression ends too early",
    "alert(1)": '"alert" is unknown',
    "constructor": '"constructor" is unknown',
    "[]": '"[" is not arithmetic',
    "9" * 600: "the expression is longer than 500 characters",
    "(" * 499: "the expression ends too early",
}


def test_the_calculator(modules: Any) -> None:
    values = modules.evaluate(
        """async (expressions) => {
          const { calculate } = await import("/web/calculator.js");
          return expressions.map((text) => { try { return calculate(text); } catch (error) { return error.message; } });
        }""",
        list(EXPRESSIONS),
    )
    assert dict(zip(EXPRESSIONS, values, strict=True)) == EXPRESSIONS


SPELLINGS = [
    '{"name": "f"}',
    '[{"name": "f"}]',
    '{"functions": [{"name": "f"}]}',
    '{"tools": [{"type": "function", "function": {"name": "f"}}]}',
    '[{"name_for_model": "f", "description_for_model": "d", "parameters": []}]',
]


def test_every_way_to_write_schemas(modules: Any) -> None:
    names = modules.evaluate(
        """async (texts) => {
          const { readSchemas } = await import("/web/tools.js");
          return texts.map((text) => readSchemas(text).map(({ name }) => name));
        }""",
        SPELLINGS,
    )
    assert names == [["f"]] * len(SPELLINGS)
