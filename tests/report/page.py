"""Reads a report as a browser and a screen reader do."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any


VOID = {"meta", "link", "br", "img", "input", "hr"}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

# Appended to the page in a frame. It tells the page around it which elements are wider than the frame, which texts of
# plots overlap or are cut, and which numbers there are.
PROBE = """
<script>
const wide = [...document.querySelectorAll("body *")].filter(
  each => each.getBoundingClientRect().right > document.documentElement.clientWidth + 1
    && !each.closest(".scroll, .skip") && !each.closest("details:not([open])"));
const boxes = [...document.querySelectorAll("svg text")].map(each => [each, each.getBoundingClientRect()])
  .filter(([each, box]) => box.width);
const overlaps = [];
for (const [i, [one, a]] of boxes.entries())
  for (const [other, b] of boxes.slice(i + 1))
    if (a.left + 1 < b.right && b.left + 1 < a.right && a.top + 2 < b.bottom && b.top + 2 < a.bottom)
      overlaps.push(one.textContent + " | " + other.textContent);
const cut = boxes.filter(([each, box]) => {
  const plot = each.closest("svg.plot").getBoundingClientRect();
  return box.left < plot.left - 1 || box.right > plot.right + 1 || box.top < plot.top - 1
    || box.bottom > plot.bottom + 1;
});
parent.document.documentElement.dataset.probe = JSON.stringify({
  wide: wide.map(each => each.outerHTML.slice(0, 80)),
  overlaps: overlaps,
  cut: cut.map(([each]) => each.textContent),
  texts: boxes.length,
  width: innerWidth,
  paper: getComputedStyle(document.body).backgroundColor,
  ink: getComputedStyle(document.querySelector("svg text")).fill,
  numbers: [...document.querySelectorAll("data[data-metric]")].map(
    each => [each.dataset.metric, each.dataset.model, Number(each.value), each.textContent])
});
</script>
"""


class Page(HTMLParser):
    """The elements of a page, its text, and its numbers by metric and model."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.numbers: dict[tuple[str, str], float] = {}
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "data" and "data-metric" in attributes:
            self.numbers[attributes["data-metric"], attributes["data-model"]] = float(attributes["value"])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of all elements with this tag."""
        return [attributes for name, attributes in self.elements if name == tag]


def check_page(html: str) -> Page:
    """Check that a page is whole, needs no network, and can be used with a keyboard and a screen reader."""
    page = Page(html)
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [
        attributes[name] for _, attributes in page.elements for name in ("href", "xlink:href") if name in attributes
    ]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert not page.all("script") and not page.all("img") and not page.all("iframe")
    assert not re.search(r"url\((?!#)|@import", html)
    assert page.all("html")[0]["lang"] == "en" and len(page.all("h1")) == 1
    for plot in page.all("svg"):
        assert plot["role"] == "img" and {*plot["aria-labelledby"].split()} <= set(ids)
    for attributes in page.all("div"):
        if attributes.get("class") == "scroll":
            assert attributes["tabindex"] == "0" and attributes["aria-label"]
    assert all("scope" in heading for heading in page.all("th"))
    # A color that the page does not name would be black, in the dark too.
    assert set(re.findall(r"var\(--(\w+)\)", html)) <= set(re.findall(r"--(\w+):", html))
    return page


def probed(file: Path, width: int, dark: bool = False) -> tuple[dict[str, Any], list[str]]:
    """What [`PROBE`] finds on a page in Chromium, and the lines on its console."""
    html = file.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>")
    # A window of Chromium has a least width. A frame has none, and media queries ask for the frame's.
    frame = file.with_name(f"frame_{width}_{dark}.html")
    frame.write_text(f'<!DOCTYPE html><iframe width="{width}" height="900" srcdoc="{escape(html)}"></iframe>')
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--enable-logging=stderr"]
    options += [f"--user-data-dir={file.parent / f'chromium_{width}_{dark}'}"]
    options += ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run(
        [CHROMIUM, *options, frame.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    found = json.loads(Page(done.stdout).all("html")[0]["data-probe"])
    return found, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
