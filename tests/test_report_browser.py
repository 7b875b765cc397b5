"""The pages as a browser shows them: nothing goes wrong, nothing is loaded, and what is to move
moves.
"""

import io
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from browser import watched_page
from dkuxnet.benchmark.compare_runs_page import write_runs_report
from dkuxnet.machine.files import write_json
from dkuxnet.report.page import write_report
from made_run import make_run

HOSTILE = "</script><script>window.taken = 1</script><img src=x onerror='window.taken=2'>"


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """The page of a run with two classes, maps, and names that would like to be scripts."""
    folder = tmp_path_factory.mktemp("browser")
    name = "<img src=x onerror=window.taken=3>"
    run = make_run(
        folder,
        {"a2": 6, "a10": 1, name: 2},
        classes=2,
        logged=40,
        maps=True,
        names=(HOSTILE, "${HOSTILE}"),
    )
    settings = json.loads((run / "settings.json").read_text("utf-8"))
    write_json(run / "settings.json", settings | {"method": settings["method"] | {"note": HOSTILE}})
    lines = (run / "metrics.jsonl").read_text("utf-8").replace('"qd"', json.dumps(HOSTILE))
    (run / "metrics.jsonl").write_text(lines, "utf-8")
    return write_report(run)


@pytest.fixture(scope="module")
def opened(browser, report):
    page, wrong = watched_page(browser)
    page.goto(report.as_uri())
    page.wait_for_selector("#viewer[aria-busy=false]")
    assert page.locator("#curves:visible, .fixed-curves:visible").count() == 0
    page.get_by_text("For developers").click()
    yield page, wrong
    page.close()


def pixels(page, selector: str) -> np.ndarray:
    """(rows, columns, 3) of an element, drawn after what has been asked of it, and at rest: under
    load a software renderer may show a picture later than the page that asked for it.
    """
    page.evaluate(
        "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )
    taken = screenshot(page, selector)
    for _ in range(50):
        before, taken = taken, screenshot(page, selector)
        if np.array_equal(before, taken):
            return taken
    raise AssertionError(f"{selector} does not come to rest")


def screenshot(page, selector: str) -> np.ndarray:
    return np.asarray(
        Image.open(io.BytesIO(page.locator(selector).screenshot())).convert("RGB")
    ).astype(int)


def test_nothing_goes_wrong_and_nothing_is_loaded(opened, report):
    page, wrong = opened
    assert wrong == []
    assert page.evaluate("window.taken") is None
    assert report.stat().st_size < 25e6
    assert (
        page.locator(
            "noscript, .missing:visible, .fixed-curves:visible, .fixed-surfaces img:visible"
        ).count()
        == 0
    )


def test_layers_are_drawn_and_switched(opened):
    page, wrong = opened
    full = pixels(page, "canvas.slices")
    assert full.std() > 10
    without = {}
    for layer in ("Truth", "Prediction"):
        box = page.locator(f"input[data-layer='{layer}']")
        box.uncheck()
        without[layer] = pixels(page, "canvas.slices")
        box.check()
    assert (np.abs(full - without["Truth"]).max(axis=2) > 20).mean() > 0.005
    assert (np.abs(without["Truth"] - without["Prediction"]).max(axis=2) > 20).mean() > 0.005
    # again and again: a busy machine may show the picture before, twice
    assert any(np.array_equal(pixels(page, "canvas.slices"), full) for _ in range(20))
    page.locator("input[data-layer='Uncertainty']").check()
    assert (
        np.abs(full - pixels(page, "canvas.slices")).max(axis=2) > 20
    ).mean() > 0.05  # half of the scan has some
    page.locator("input[data-layer='Uncertainty']").uncheck()
    page.locator("input[data-opacity='label']").fill("0")
    hidden = pixels(page, "canvas.slices")
    assert np.ptp(hidden, axis=2).max() < 12  # grey: no colour is left
    page.locator("input[data-opacity='label']").fill("0.5")
    assert wrong == []


def test_another_case_is_another_picture_in_both_views(opened):
    page, wrong = opened
    before = {
        selector: pixels(page, selector) for selector in ("canvas.slices", "#surfaces canvas")
    }
    assert before["#surfaces canvas"].std() > 10
    page.locator("input[name=case]").last.check()
    page.wait_for_selector("#viewer[data-shown='2'][aria-busy=false]")
    page.wait_for_selector("#surfaces[data-shown='2']")
    for selector, picture in before.items():
        assert not np.array_equal(pixels(page, selector), picture)
    page.locator("input[name=case]").first.check()
    page.wait_for_selector("#viewer[data-shown='0'][aria-busy=false]")
    assert wrong == []


def test_of_cases_chosen_in_a_hurry_the_last_is_shown(opened):
    page, wrong = opened
    before = pixels(page, "canvas.slices")
    page.evaluate(
        "for (const i of [1, 2, 1, 0]) document.querySelectorAll('input[name=case]')[i].click()"
    )
    page.wait_for_selector("#viewer[data-shown='0'][aria-busy=false]")
    page.wait_for_timeout(500)  # for what a loading case could still add
    assert np.array_equal(pixels(page, "canvas.slices"), before) and wrong == []


def test_a_telephone_shows_words_and_pictures_at_a_size_that_can_be_read(browser, report):
    page, wrong = watched_page(browser)
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(report.as_uri())
    width = "element => element.getBoundingClientRect().width"
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert all(place.evaluate(width) > 200 for place in page.locator("dd").all())
    assert all(
        picture.evaluate(width) > 600 for picture in page.locator("figure img:visible").all()
    )
    assert wrong == []
    page.close()


def test_surfaces_turn_by_keys_and_by_dragging(opened):
    page, _ = opened
    canvas = page.locator("#surfaces canvas")
    pictures = [pixels(page, "#surfaces canvas")]
    canvas.press("ArrowRight")
    pictures.append(pixels(page, "#surfaces canvas"))
    canvas.drag_to(
        canvas, source_position={"x": 100, "y": 100}, target_position={"x": 160, "y": 140}
    )
    pictures.append(pixels(page, "#surfaces canvas"))
    page.locator("#surfaces .classes input").first.uncheck()
    pictures.append(pixels(page, "#surfaces canvas"))
    assert all(not np.array_equal(one, other) for one, other in pairwise(pictures))
    left, right = np.split(pictures[0][:, : pictures[0].shape[1] // 2 * 2], 2, axis=1)
    assert (
        (left < 250).any() and (right < 250).any() and not np.array_equal(left, right)
    )  # truth beside prediction


def test_surfaces_lie_as_in_their_picture(opened):
    """The worst prediction is shifted to the patient's left: from the front, to the right."""
    page, _ = opened
    shifts = {}
    for number in (2, 0):
        page.locator("input[name=case]").nth(number).check()
        page.wait_for_selector(f"#surfaces[data-shown='{number}']")
        drawn = pixels(page, "#surfaces canvas").min(axis=2) < 250
        middles = [np.nonzero(half)[1].mean() for half in np.array_split(drawn, 2, axis=1)]
        shifts[number] = middles[1] - middles[0]
    assert shifts[0] > 3 * shifts[2] > 0


def column(page, index: int) -> list[str]:
    return [
        text.strip()
        for text in page.locator(f"table.sortable tbody td:nth-child({index})").all_inner_texts()
    ]


def test_the_table_sorts_by_click_and_by_key(opened):
    page, _ = opened
    heads = page.locator("table.sortable th")
    dice = list(map(float, column(page, 2)))
    assert (
        dice == sorted(dice) and heads.nth(1).get_attribute("aria-sort") == "ascending"
    )  # failures first
    heads.nth(0).get_by_role("button").click()
    assert [name for name in column(page, 1) if name.startswith("a")] == [
        "a2",
        "a2",
        "a10",
        "a10",
    ]  # numbers as numbers
    assert (
        heads.nth(0).get_attribute("aria-sort") == "ascending"
        and heads.nth(1).get_attribute("aria-sort") is None
    )
    heads.nth(5).get_by_role("button").focus()
    page.keyboard.press("Enter")
    distances = list(map(float, column(page, 6)))
    assert (
        distances == sorted(distances, reverse=True) and distances[0] > distances[-1]
    )  # the worst first here too
    page.keyboard.press("Enter")
    assert list(map(float, column(page, 6))) == sorted(distances)
    assert heads.nth(5).get_attribute("aria-sort") == "ascending"


def test_curves_are_switched_and_read(opened):
    page, wrong = opened
    panel = page.locator("#curves .panel").first
    lines = panel.locator("polyline")
    assert lines.count() == 3 and HOSTILE in panel.locator(".switches").inner_text()
    button = panel.get_by_role("button", name="seg")
    button.click()
    assert lines.count() == 2 and button.get_attribute("aria-pressed") == "false"
    button.press("Enter")
    assert lines.count() == 3
    box = panel.locator("svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    middle = panel.locator(".reading").inner_text()
    step = int(middle.split()[1])
    assert 15 <= step <= 25
    assert f"seg {1 / step:.4g}"[:9] in middle  # made so: 1 / step
    panel.locator("svg").press("End")
    assert panel.locator(".reading").inner_text().startswith("step 40 ") and wrong == []


def test_print_shows_pictures_in_their_place(opened):
    page, _ = opened
    page.emulate_media(media="print")
    try:
        assert page.locator("#viewer:visible, #surfaces:visible, #curves:visible").count() == 0
        assert (
            page.locator(".fixed-curves:visible").count() == 1
            and page.locator(".fixed-surfaces img:visible").count() == 3
        )
    finally:
        page.emulate_media(media="screen")


@pytest.mark.parametrize("lacking", ["webgl", "scripts"])
def test_a_page_without_webgl_or_scripts_is_never_blank(browser, report, lacking):
    context = browser.new_context(java_script_enabled=lacking != "scripts")
    try:
        page, wrong = watched_page(context)
        page.add_init_script("""
            const original = HTMLCanvasElement.prototype.getContext;
            HTMLCanvasElement.prototype.getContext = function (kind, ...more) {
              return /webgl/.test(kind) ? null : original.call(this, kind, ...more);
            };""")
        page.goto(report.as_uri())
        page.get_by_text("For developers").click()
        surfaces = page.locator(".fixed-surfaces img")
        assert surfaces.count() == 3 and all(surfaces.nth(i).is_visible() for i in range(3))
        surfaces.first.scroll_into_view_if_needed()
        picture = Image.open(io.BytesIO(surfaces.first.screenshot())).convert("L")
        assert np.asarray(picture).std() > 5
        assert page.locator("canvas:visible").count() == 0
        if lacking == "webgl":
            assert "no WebGL2" in page.locator("#viewer .missing").inner_text()
            assert (
                page.locator("#curves:visible").count() == 1
                and page.locator(".fixed-curves:visible").count() == 0
            )
        else:
            assert (
                page.locator("#viewer:visible").count() == 0
                and page.locator(".fixed-curves:visible").count() == 1
            )
        assert wrong == []
    finally:
        context.close()


def test_runs_side_by_side_sort_their_cases(browser, tmp_path):
    run = make_run(tmp_path, {"one": 1, "two": 4, "three": 2})
    other = make_run(tmp_path / "other", {"one": 2, "two": 1, "three": 1}, run="<b>other")
    page, wrong = watched_page(browser)
    page.goto(write_runs_report([run, other], tmp_path / "page.html").as_uri())
    assert column(page, 1) == ["two", "three", "one"] or column(page, 1)[0] == "two"
    page.locator("table.sortable th").nth(3).get_by_role("button").click()
    dice = list(map(float, column(page, 4)))
    assert dice == sorted(dice) and column(page, 1)[0] == "one"
    assert wrong == []
    page.close()
