"""Markdown becomes nodes and nothing else, whole and while it streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.server_process import ServerProcess
from tests.web.driver import ChatPage, text

OpenPage = Callable[..., ChatPage]
SHOW = """async (texts) => {
  const { MarkdownView } = await import("/web/markdown.js");
  return texts.map((text) => { const view = new MarkdownView(); view.update(text); return view.root.innerHTML; });
}"""
LINK = ' target="_blank" rel="noopener noreferrer nofollow">'
CASES = {
    "a\nb": "<p>a<br>b</p>",
    "a\n\nb": "<p>a</p><p>b</p>",
    "## A **b** ##": '<h4 class="h2">A <strong>b</strong></h4>',
    "#nope": "<p>#nope</p>",
    "***both***": "<p><strong><em>both</em></strong></p>",
    "a * b * c, 2**3": "<p>a * b * c, 2**3</p>",
    "snake_case_name and _it_": "<p>snake_case_name and <em>it</em></p>",
    "**中文**后": "<p><strong>中文</strong>后</p>",
    "~~x~~ \\*y\\*": "<p><del>x</del> *y*</p>",
    "`` a`b `` `<b>`": "<p><code>a`b</code> <code>&lt;b&gt;</code></p>",
    "`open": "<p>`open</p>",
    "- a\n- b\n  - c\n- d": "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>",
    "3. a\n\n4. b": '<ol start="3"><li>a</li><li>b</li></ol>',
    "1. a\n\n   b\n2. c": "<ol><li>a<p>b</p></li><li>c</li></ol>",
    "Years:\n1984. was one": "<p>Years:<br>1984. was one</p>",
    "- [x] a\n- [ ] b": '<ul><li class="task-item"><span class="task">☑ </span>a</li>'
    '<li class="task-item"><span class="task">☐ </span>b</li></ul>',
    "> a\n> > b": "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>",
    "a\n\n---\n\nb": "<p>a</p><hr><p>b</p>",
    "[x](https://a.b/c_d_e)": f'<p><a href="https://a.b/c_d_e"{LINK}x</a></p>',
    "[x](https://a.b/c_(d))": f'<p><a href="https://a.b/c_(d)"{LINK}x</a></p>',
    "see https://a.b/c.": f'<p>see <a href="https://a.b/c"{LINK}https://a.b/c</a>.</p>',
    "<https://a.b>": f'<p><a href="https://a.b/"{LINK}https://a.b</a></p>',
    "![cat](https://a.b/c.png)": f'<p><a href="https://a.b/c.png"{LINK}cat</a></p>',
    "[x](javascript:alert(1))": "<p>x</p>",
    "[x](JaVaScRiPt:alert(1)) [y](data:text/html,z) [z](/admin)": "<p>x y z</p>",
    "[x](https://a.b/\"onmouseover=\"1)": f'<p><a href="https://a.b/%22onmouseover=%221"{LINK}x</a></p>',
    "<img src=x onerror=alert(1)>": "<p>&lt;img src=x onerror=alert(1)&gt;</p>",
    "<script>x</script>": "<p>&lt;script&gt;x&lt;/script&gt;</p>",
    "&lt;b&gt; &amp;": "<p>&amp;lt;b&amp;gt; &amp;amp;</p>",
}  # fmt: skip
LONG = """# Title

Some *text* with `code`, a [link](https://a.b) and https://c.d/e.

1. one
2. two
   - nested
     ```python
     print("**no**")
     ```

   more of two
3. three

| a | b |
|---|--:|
| 1 | `x|y` |

> quote
> - item

- after

text

- on

~~~
open <b>fence</b>
"""


def test_markdown(modules: Any) -> None:
    shown = modules.evaluate(SHOW, list(CASES))
    assert dict(zip(CASES, shown, strict=True)) == CASES


def test_code_and_tables(server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(server, permissions=["clipboard-read", "clipboard-write"])
    code = '```js\nif (a < b) {\n    c("<b>");\n}\n```'
    chat.answer_with(text(f"{code}\n\n| A | B |\n|:-:|--:|\n| 1 \\| 2 | `x|y` |\n| 3 |"))
    chat.ask("code")
    block = chat.replies.locator(".code")
    assert block.locator("code").inner_text() == 'if (a < b) {\n    c("<b>");\n}'
    block.get_by_role("button", name="Copy").click()
    block.get_by_role("button", name="Copied").wait_for()
    assert chat.page.evaluate("navigator.clipboard.readText()") == 'if (a < b) {\n    c("<b>");\n}'
    assert chat.replies.locator("th").all_inner_texts() == ["A", "B"]
    assert chat.replies.locator("td").all_inner_texts() == ["1 | 2", "x|y", "3", ""]
    assert chat.replies.locator("td").nth(1).get_attribute("class") == "align-end"


def test_streamed_is_as_whole_at_every_character(modules: Any) -> None:
    texts = [LONG, *CASES]
    differing = modules.evaluate(
        """async (texts) => {
          const { MarkdownView } = await import("/web/markdown.js");
          const differing = [];
          for (const text of texts) {
            const grown = new MarkdownView();
            for (let end = 0; end <= text.length; end += 1) {
              grown.update(text.slice(0, end));
              const whole = new MarkdownView();
              whole.update(text.slice(0, end));
              if (grown.root.innerHTML !== whole.root.innerHTML) differing.push(text.slice(0, end));
            }
          }
          return differing;
        }""",
        texts,
    )
    assert differing == []


def test_the_line_under_a_reply(modules: Any) -> None:
    parts = """async (message) => (await import("/web/message-view.js")).statsParts(message)"""
    stats = {"first_ms": 41, "rate": 152.6, "completion_tokens": 12, "prompt_tokens": 9, "cached_tokens": 4}
    shown = ["first token 41 ms", "153 tokens/s", "12 tokens", "prompt 9 (4 cached)", "token limit reached"]
    assert modules.evaluate(parts, {"stats": stats, "finish": "length"}) == shown
    del shown[1]
    assert modules.evaluate(parts, {"stats": {**stats, "rate": None}, "finish": "length"}) == shown


def test_what_was_shown_stays_the_same_node(modules: Any) -> None:
    assert modules.evaluate(
        """async () => {
          const { MarkdownView } = await import("/web/markdown.js");
          const view = new MarkdownView();
          view.update("first\\n\\nsecond\\n\\n```\\nlet");
          const [first, , code] = view.root.children;
          const text = code.querySelector("code");
          view.update("first\\n\\nsecond\\n\\n```\\nlet a = 1;\\n```\\n\\nthird");
          return view.root.children.length === 4 && view.root.children[0] === first &&
            view.root.children[2] === code && view.root.contains(text) && text.textContent === "let a = 1;";
        }"""
    )


AWKWARD = ["*a ", "**a", "_a ", "`", "[", "[a](", "![", "<", "> ", "- ", "| a ", "  - a\n", "~~a", "#", "\\", "h"]


@pytest.mark.parametrize("piece", AWKWARD)
def test_awkward_text_takes_no_long(modules: Any, piece: str) -> None:
    milliseconds = modules.evaluate(
        """async (text) => {
          const { MarkdownView } = await import("/web/markdown.js");
          const started = performance.now();
          new MarkdownView().update(text);
          return performance.now() - started;
        }""",
        piece * (30_000 // len(piece)),
    )
    assert milliseconds < 1500  # 20 to 100 on an idle machine; what is not linear takes minutes


def test_a_reply_cannot_inject(server: ServerProcess, open_page: OpenPage) -> None:
    chat = open_page(server)
    evil = (
        '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script><svg onload="window.hacked=1">'
        "\n\n[a](javascript:window.hacked=1) ![b](https://evil.example/pixel.png)\n\n"
        '```"><img src=x onerror=window.hacked=1>\n<img src=x onerror=window.hacked=1>\n```\n\n'
        "| <img src=x onerror=window.hacked=1> |\n|---|\n| <iframe srcdoc='<script>parent.hacked=1</script>'> |\n"
    )
    chat.answer_with(text(evil))
    chat.ask(evil)
    chat.page.reload()
    assert chat.replies.count() == 1
    assert chat.page.evaluate("window.hacked") is None
    messages = chat.page.locator("#messages")
    assert messages.locator("img, script, iframe, svg:not(.icon), [onerror], [onload]").count() == 0
    assert messages.locator("a").evaluate_all("links => links.map((link) => link.href)") == [
        "https://evil.example/pixel.png"
    ]
    assert '<img src=x onerror="window.hacked=1">' in messages.inner_text()


def test_the_browser_itself_refuses_markup(server: ServerProcess, open_page: OpenPage) -> None:
    """The last line of defence: were there a bug, the policy would still not let a text become markup."""
    chat = open_page(server)
    failed = chat.page.evaluate(
        """() => {
          try { document.querySelector("#messages").innerHTML = "<img src=x onerror='window.hacked=1'>"; }
          catch (error) { return error.name; }
        }"""
    )
    assert failed == "TypeError"
    chat.problems.clear()  # the browser's line about the refusal
