"""Makes the README's picture of the chat page from a running server: `python -m docs.page_screenshot URL page.png`.

Needs the package playwright and a chromium. The picture shows real replies of whatever checkpoint the server has.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

MAX_BYTES = 150_000
TIMEOUT_MS = 120_000
PROMPTS = ("Who are you?",)


def main() -> int:
    """Takes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of a running server")
    parser.add_argument("file", type=Path, help="PNG to write")
    parser.add_argument("--prompt", action="append", help="said after the calculator's example (repeatable)")
    parser.add_argument("--panel", default="server", choices=("settings", "tools", "server", "none"))
    parser.add_argument("--scheme", default="light", choices=("light", "dark"))
    parser.add_argument("--locale", default="en-US", help="zh-CN for the Chinese interface")
    parser.add_argument("--width", type=int, default=1200)
    parser.add_argument("--height", type=int, default=900)
    parser.add_argument("--chromium", help="path of the browser (default: the one that is installed)")
    options = parser.parse_args()
    options.prompt = options.prompt or PROMPTS
    path = options.chromium or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        parser.error("no chromium is installed; name one with --chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        context = browser.new_context(
            viewport={"width": options.width, "height": options.height},
            color_scheme=options.scheme,
            locale=options.locale,
        )
        context.set_default_timeout(TIMEOUT_MS)
        page = context.new_page()
        take(page, options)
        browser.close()
    size = options.file.stat().st_size
    print(f"{options.file}: {size} bytes")
    if size > MAX_BYTES:
        print(f"more than {MAX_BYTES}: make the picture smaller (--width, --height)", file=sys.stderr)
        return 1
    return 0


def take(page: Any, options: argparse.Namespace) -> None:
    """Has a conversation: the example that calls the calculator, and then the prompts."""
    page.goto(options.url)
    page.wait_for_selector("#model:not(:empty)")
    if options.panel != "none":
        page.click(f"#open-{options.panel}")
    page.locator(".example").last.click()  # brings its tool along
    wait(page)
    for prompt in options.prompt:
        page.fill("#composer-input", prompt)
        page.press("#composer-input", "Enter")
        wait(page)
    if options.panel == "server":
        page.wait_for_timeout(4500)  # two more readings of the live panel
    page.mouse.move(0, 0)
    page.screenshot(path=options.file)


def wait(page: Any) -> None:
    """Waits until nothing more is being written."""
    for _ in range(3):  # a call that the page answers is followed by another reply
        page.wait_for_selector("#stop", state="hidden")
        page.wait_for_timeout(150)


if __name__ == "__main__":
    sys.exit(main())
