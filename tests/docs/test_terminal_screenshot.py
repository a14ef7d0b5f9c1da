"""The picture of a terminal, without a terminal."""

from __future__ import annotations

from xml.etree import ElementTree

from docs.terminal_screenshot import draw

SVG = "{http://www.w3.org/2000/svg}"


def test_a_screen_as_svg() -> None:
    svg = draw("\x1b[1;32myou>\x1b[0m 你好 <b>\n\nplain\n")
    assert "@font-face" not in svg and "url(http" not in svg
    lengths = {
        (element.text or "").strip("\xa0"): float(element.get("textLength") or 0)
        for element in ElementTree.fromstring(svg).iter(f"{SVG}text")
    }
    one = lengths["plain"] / 5
    assert lengths["you>"] == 4 * one
    assert lengths["你好\xa0<b>"] == (1 + 4 + 4) * one
