from itertools import pairwise

import pytest
from effbench_plugins.site.data import site_data, tidy
from effbench_plugins.site.page import page as render

from effbench.plugin.discovery import discover
from tests.report.test_html import HOSTILE, big_site, hostile_board
from tests.site.conftest import address

__all__ = ["hostile_board"]


def stacks(page):
    """Names of the rows in the order they stand in."""
    return page.locator("table.board > tbody > tr > th .name").all_inner_texts()


def sort_by(page, title):
    page.get_by_role("button", name=title, exact=False).first.click()


def header(page, key):
    return page.locator(f"th[data-key={key}]")


def test_the_overview_lists_every_board_and_leads_to_it(open_page, html, data):
    page = open_page(html)
    links = page.locator("table.overview tbody a")
    assert links.count() == len(data["boards"])
    links.first.click()
    page.get_by_role("heading", level=1, name=data["boards"][0]["title"]).wait_for()
    page.go_back()
    page.get_by_role("heading", level=1, name="All boards").wait_for()


def test_the_overview_counts_claims_and_sets_machines_side_by_side(open_page, html, data):
    page = open_page(html)
    first = page.locator("table.overview").first
    assert "1 supported, 1 refuted" in first.locator("tbody tr").first.inner_text()
    beside = page.get_by_role("region", name="train.tokens_per_s on")
    assert beside.locator("thead").inner_text().split() == ["train.tokens_per_s", "on", "one", "two"]
    assert beside.locator("tbody tr").count() == 7


def test_a_suites_address_is_that_of_its_first_board(open_page, html, data):
    page = open_page(html, "#one/b/")
    page.get_by_role("heading", level=1, name=data["boards"][1]["title"]).wait_for()


def test_sorting_is_by_value_and_what_is_missing_stands_last(open_page, html, data):
    page = open_page(html, address(data))
    assert header(page, "rank").get_attribute("aria-sort") == "ascending"
    sort_by(page, "Training speed")
    assert header(page, "train_speed").get_attribute("aria-sort") == "descending"
    assert header(page, "rank").get_attribute("aria-sort") is None
    down = stacks(page)
    assert down[:3] == ["twelvefold", "ninefold", "double"]
    assert down[-2:] == ["half", "lost"]
    sort_by(page, "Training speed")
    assert header(page, "train_speed").get_attribute("aria-sort") == "ascending"
    up = stacks(page)
    assert up[0] == "half"
    assert up[-2:] == ["twelvefold", "lost"]
    sort_by(page, "Stack")
    assert stacks(page) == sorted(stacks(page))


def test_filters_hide_rows_and_say_so(open_page, html, data):
    page = open_page(html, address(data))
    page.get_by_label("Filter rows").fill("FOLD")
    assert set(stacks(page)) == {"ninefold", "twelvefold"}
    assert page.locator("#count").inner_text() == "2 of 7 rows; the others are filtered out"
    page.get_by_label("Filter rows").fill("")
    page.get_by_label("clearly faster at something").check()
    assert set(stacks(page)) == {"double", "ninefold", "twelvefold"}
    page.get_by_label("clearly smaller in something").check()
    assert stacks(page) == ["double"]
    page.get_by_label("clearly smaller in something").uncheck()
    page.get_by_label("clearly faster at something").uncheck()
    page.get_by_label("ranked", exact=True).check()
    assert "lost" not in stacks(page)


def test_a_link_to_a_row_shows_it_whatever_the_filters(open_page, html, data):
    page = open_page(html, address(data))
    page.get_by_label("Filter rows").fill("twelvefold")
    page.evaluate(f"location.hash = '{address(data, row='half')}'")
    page.locator("tr.inside").wait_for()
    assert "half" in stacks(page)
    assert page.get_by_label("Filter rows").input_value() == ""


def test_pickers_change_the_board_and_the_address(open_page, html, data):
    page = open_page(html, address(data))
    page.get_by_label("Suite").focus()
    page.get_by_label("Suite").select_option("b")
    page.get_by_role("heading", level=1, name=data["boards"][1]["title"]).wait_for()
    assert page.evaluate("document.activeElement.id") == "pick-suite"  # whoever walks through it stays in it
    assert page.evaluate("location.hash").startswith("#one/b/")
    page.get_by_label("Suite").select_option("a")
    page.get_by_role("heading", level=1, name=data["boards"][0]["title"]).wait_for()
    page.get_by_label("Machine").select_option("two")
    page.get_by_role("heading", level=1, name="a: other machine").wait_for()
    assert page.get_by_label("Model and workload").input_value() == data["boards"][3]["name"]
    page.get_by_label("Suite").select_option("")
    page.get_by_role("heading", level=1, name="All boards").wait_for()
    assert page.locator("table.overview tbody a").count() == 1  # of this machine


def test_a_link_to_a_row_opens_focuses_and_scrolls_to_it(open_page, html, data):
    page = open_page(html, address(data, row="same"))
    page.locator("tr.inside").wait_for()
    focused = page.evaluate("document.activeElement.innerText")
    assert focused == "same"
    top = page.locator("button.name[aria-expanded=true]").bounding_box()["y"]
    assert 0 <= top < 800
    inside = page.locator("tr.inside")
    rows = inside.locator("table tbody tr")
    assert rows.count() == 3
    values = data["boards"][0]["details"][data["boards"][0]["rows"]["stack"].index("same")]["cells"][0]["values"]
    assert f"{values['train.tokens_per_s'][1] / 1000:.3g}".rstrip("0").rstrip(".") + "K" in rows.nth(1).inner_text()
    assert ".r3.json" in inside.inner_text()
    page.get_by_role("button", name="same").first.click()
    page.locator("tr.inside").wait_for(state="detached")
    page.go_back()
    page.locator("tr.inside").wait_for()
    assert page.evaluate("document.activeElement.innerText") == "same"


@pytest.mark.parametrize(
    "wrong", ["#%E0%A4%A", "#no/such/board", "#one/a/nothing/row", "#main", "#/////", "#<img src=x onerror=alert(1)>"]
)
def test_an_address_of_nothing_shows_the_overview(open_page, html, wrong):
    assert open_page(html, wrong).locator("h1").inner_text() == "All boards"


def test_a_row_that_is_not_there_leaves_the_board(open_page, html, data):
    page = open_page(html, address(data, row="nobody"))
    assert page.locator("tr.inside").count() == 0
    assert len(stacks(page)) == 7


def tab_to(page, what, limit=80):
    """Presses Tab until the focus is on something with this text or label."""
    for _ in range(limit):
        page.keyboard.press("Tab")
        text = page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.innerText || ''")
        if text.startswith(what):
            return
    raise AssertionError(f"Tab never reaches {what!r}")


def test_everything_works_with_the_keyboard_alone(open_page, html, data):
    page = open_page(html, address(data))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Skip to the leaderboard"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    assert page.locator("h1").inner_text() == data["boards"][0]["title"]  # still there
    tab_to(page, "Training speed")
    page.keyboard.press("Enter")
    assert header(page, "train_speed").get_attribute("aria-sort") == "descending"
    assert page.locator("#announce").inner_text() == "Sorted by Training speed, descending"
    tab_to(page, "twelvefold")
    page.keyboard.press("Enter")
    page.locator("tr.inside").wait_for()
    assert page.evaluate("document.activeElement.innerText") == "twelvefold"
    page.keyboard.press("Enter")
    page.locator("tr.inside").wait_for(state="detached")
    assert page.evaluate("document.activeElement.innerText") == "twelvefold"
    tab_to(page, "Scatter plot")
    page.keyboard.press("ArrowRight")
    assert page.locator("#announce").inner_text().startswith("half: Training speed")
    page.keyboard.press("Enter")
    page.locator("tr.inside").wait_for()
    assert page.evaluate("document.activeElement.innerText") == "half"


UNNAMED = """() => [...document.querySelectorAll('button, a, input, select, canvas, [role=region], summary')].filter((e) => {
  const label = e.labels?.length ? [...e.labels].map((l) => l.textContent).join('') : '';
  return !(e.getAttribute('aria-label') || label || e.textContent || '').trim();
}).map((e) => e.outerHTML.slice(0, 120))"""
DANGLING = """() => ['aria-describedby', 'aria-labelledby', 'aria-controls', 'for'].flatMap((name) =>
  [...document.querySelectorAll(`[${name}]`)].map((e) => e.getAttribute(name)).filter((id) => !document.getElementById(id)))"""
TWICE = """() => [...document.querySelectorAll('[id]')].map((e) => e.id).filter((id, i, ids) => ids.indexOf(id) < i)"""
UNHEADED = "() => [...document.querySelectorAll('th')].filter((e) => !['row', 'col'].includes(e.scope)).length"
UNCAPTIONED = "() => [...document.querySelectorAll('table')].filter((t) => !t.caption || !t.tHead).length"
CUT = """() => [...document.querySelectorAll('.region')].filter((e) => e.tabIndex !== 0).length"""
LEVELS = "() => [...document.querySelectorAll('h1, h2, h3, h4')].map((e) => Number(e.tagName[1]))"


@pytest.mark.parametrize("place", [None, 0, 1, 2])
def test_names_headers_and_landmarks_are_there_for_screen_readers(open_page, html, data, place):
    row = None if place is None else data["boards"][place]["ids"][0]
    page = open_page(html, "" if place is None else address(data, place, row))
    for check in (UNNAMED, DANGLING, TWICE):
        assert page.evaluate(check) == []
    for check in (UNHEADED, UNCAPTIONED, CUT):
        assert page.evaluate(check) == 0
    levels = page.evaluate(LEVELS)
    assert levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    for landmark in ("banner", "main", "contentinfo"):
        assert page.get_by_role(landmark).count() == 1
    assert page.get_by_role("navigation").count() >= 1
    assert page.locator("html").get_attribute("lang") == "en"


def test_no_element_but_those_of_this_page_comes_from_a_record(open_page, hostile_board):
    data = site_data([hostile_board], discover())
    board = data["boards"][0]
    said = dict.fromkeys(["source", "says", "stack", "metric", "relation", "evidence", "where"], HOSTILE)
    board["claims"] = tidy([said | {"verdict": "UNCLEAR", "value": float("nan"), "rounds": 1}])
    page = open_page(render(data))
    for row in range(len(board["ids"])):
        page.locator(f"button.name[data-row='{row}']").click()
        page.locator("tr.inside").wait_for()
        assert page.locator("script").count() == render(data).count("<script")
        assert page.locator("main script, main img, main iframe, main object, main style").count() == 0
    text = page.locator("body").inner_text()
    assert "</script><script>alert(1)</script>" in text
    for word in ("NaN", "Infinity", "undefined", "null", "[object", "\u202e"):
        assert word not in text
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("width", [320, 360])
@pytest.mark.parametrize("place", [None, 0, 1, 2])
def test_a_phone_never_scrolls_sideways(open_page, html, data, place, width):
    row = None if place is None else data["boards"][place]["ids"][0]
    page = open_page(html, "" if place is None else address(data, place, row), width=width)
    for summary in page.locator("summary").all():
        if summary.is_visible():
            summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".region").first.evaluate(
        "e => e.scrollWidth > e.clientWidth"
    )  # the table does, in a region of its own


def background(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_dark_as_the_system_says_or_as_chosen_and_remembered(open_page, html, data):
    light, dark = (background(open_page(html, address(data), scheme=scheme)) for scheme in ("light", "dark"))
    assert light != dark
    page = open_page(html, address(data))
    page.locator("#front-words a").first.wait_for()
    drawn = page.locator("canvas").first.screenshot()
    page.get_by_role("button", name="Dark theme").click()
    assert background(page) == dark
    assert page.locator("canvas").first.screenshot() != drawn
    page.reload()
    assert background(page) == dark
    page.get_by_role("button", name="Light theme").click()
    assert background(page) == light


def test_the_page_works_where_storage_is_refused(open_page, html, data):
    page = open_page(
        html, address(data), before="Object.defineProperty(window, 'localStorage', { get() { throw new Error('refused'); } })"
    )
    before = background(page)
    page.get_by_role("button", name="Dark theme").click()
    assert background(page) != before


INKED = "(c) => c.width > 100 && c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v) => v > 0)"


@pytest.mark.parametrize("place", [0, 1, 2])
def test_plots_are_drawn(open_page, html, data, place):
    page = open_page(html, address(data, place))
    page.wait_for_function("charts.size > 0 && [...charts].every((chart) => chart.drawn)")
    assert page.locator("canvas").count() >= 1
    assert all(canvas.evaluate(INKED) for canvas in page.locator("canvas").all())


def test_the_front_is_of_the_chosen_columns(open_page, html, data):
    page = open_page(html, address(data))
    page.get_by_label("Across").select_option("train_speed")
    page.get_by_label("Up", exact=True).select_option("train_memory")
    assert page.locator("#front-words a").all_inner_texts() == ["half", "double", "ninefold", "twelvefold"]
    page.get_by_label("Up", exact=True).select_option("decode_speed")
    assert page.locator("#front-words a").all_inner_texts() == ["twelvefold"]
    page.locator("#front-words a").first.click()
    page.locator("tr.inside").wait_for()
    assert page.evaluate("document.activeElement.innerText") == "twelvefold"


def test_lengths_are_a_plot_and_the_same_as_a_table(open_page, html, data):
    page = open_page(html, address(data, 1))
    part = page.locator("#lengths")
    part.get_by_label("Show").select_option(label="Training step, × baseline (below 1 is cheaper)")
    part.get_by_text("The same as a table").click()
    lean = part.locator("#lengths-numbers tr", has_text="lean").inner_text()
    assert "[" in lean
    assert "×" in lean
    part.get_by_label("lean").uncheck()
    assert page.evaluate("[...charts].at(-1).drawn.data.datasets.find((d) => d.label === 'lean').hidden") is True


def test_claims_are_filtered_by_verdict(open_page, html, data):
    page = open_page(html, address(data))
    assert page.locator("table.claims tbody tr").count() == 2
    page.get_by_label("Verdict", exact=True).select_option("REFUTED")
    assert page.locator("table.claims tbody th").all_inner_texts()[0].startswith("it is slower")
    assert page.locator("table.claims tbody tr").count() == 1


def test_probabilities_of_the_front_are_told_where_they_are_known(open_page, html, data):
    page = open_page(html, address(data))
    page.get_by_text("How sure the front over").click()
    rows = page.get_by_role("region", name="Probabilities of the front").locator("tbody tr")
    assert "98 %" in rows.nth(0).inner_text()
    assert "–" in rows.nth(1).inner_text()


def test_jumping_within_the_page_keeps_the_address(open_page, html, data):
    page = open_page(html, address(data))
    page.locator(".contents").get_by_text("How each number is defined").click()
    assert page.evaluate("location.hash") == address(data)
    assert page.evaluate("document.activeElement.id") == "metrics-title"


def test_a_thousand_cells_of_ten_rounds_are_no_burden(open_page):
    data = big_site(discover())
    page = open_page(render(data), address(data, 7))
    sort_by(page, "Training speed")
    assert len(stacks(page)) == len(data["boards"][7]["ids"])
    page.locator("button.name").first.click()
    assert page.locator("tr.inside details").count() == 4
