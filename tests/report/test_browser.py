"""The page driven as a reader drives it, in a real browser without a window."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_up_search import build_meta, comparison, examples, simulate

from ray_unlearn.records.tables import SearchResults, Writer, curve_schema, trial_schema, write_json
from ray_unlearn.report import write_report
from ray_unlearn.report.page import TRIALS_SHOWN, render_page

selenium = pytest.importorskip("selenium", reason="the browser test needs selenium")
BROWSER, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="the browser test needs chromium and chromedriver"),
    pytest.mark.timeout(120),
]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER or ""
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1280,900",
        f"--user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def open_report(browser, folder: Path) -> None:
    write_report(folder)
    browser.get((folder / "report" / "report.html").as_uri())


def column(browser, position: int, table: str = "trials") -> list[str]:
    rows = f"[...document.querySelectorAll('#{table} tbody tr:not([hidden])')]"
    return browser.execute_script(f"return {rows}.map(row => row.cells[arguments[0]].textContent)", position)


def test_a_reader_can_point_filter_sort_and_switch_the_theme(browser, build_search):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    open_report(browser, build_search())
    find, find_all = browser.find_element, browser.find_elements
    tooltip = find(By.ID, "tooltip")
    marks = "#plot path.mark"

    # Only trials with scores are on the plot: 48 less 2 that failed.
    assert len(find_all(By.CSS_SELECTOR, marks)) == 46
    assert not tooltip.is_displayed()
    ActionChains(browser).move_to_element(find(By.CSS_SELECTOR, "#plot circle.ring")).perform()
    assert tooltip.is_displayed()
    assert "SimNPO, simnpo-0042 · chosen · on the frontier" in tooltip.text
    assert "learning_rate" in tooltip.text
    ActionChains(browser).move_to_element(find(By.TAG_NAME, "h1")).perform()
    assert not tooltip.is_displayed()

    plot = find(By.ID, "plot")
    plot.send_keys(Keys.ARROW_RIGHT)
    first = tooltip.text
    plot.send_keys(Keys.ARROW_RIGHT)
    assert tooltip.is_displayed()
    assert tooltip.text != first
    plot.send_keys(Keys.ESCAPE)
    assert not tooltip.is_displayed()

    simnpo = find(By.CSS_SELECTOR, ".legend [data-method='0']")
    before = find(By.CSS_SELECTOR, "#plot .staircase").get_attribute("d")
    simnpo.click()
    assert simnpo.get_attribute("aria-pressed") == "false"
    assert not find_all(By.CSS_SELECTOR, f"{marks}[data-method='0']")
    assert find_all(By.CSS_SELECTOR, f"{marks}[data-method='1']")
    assert "SimNPO" not in column(browser, 1)
    assert find(By.CSS_SELECTOR, "#plot .staircase").get_attribute("d") != before
    simnpo.click()
    assert find(By.CSS_SELECTOR, "#plot .staircase").get_attribute("d") == before

    heads = find_all(By.CSS_SELECTOR, "#trials thead th")
    names = [head.text.split()[0] for head in heads]
    utility = heads[names.index("utility")]
    for direction in ("descending", "ascending"):
        utility.find_element(By.TAG_NAME, "button").click()
        assert utility.get_attribute("aria-sort") == direction
        texts = column(browser, names.index("utility"))
        values = [float(text) for text in texts if text != "–"]
        assert values == sorted(values, reverse=direction == "descending")
        assert texts[-2:] == ["–", "–"], "trials without a score come last, both ways"

    ground = "return getComputedStyle(document.body).backgroundColor"
    light = browser.execute_script(ground)
    find(By.ID, "theme").click()
    assert browser.execute_script(ground) != light
    find(By.ID, "theme").click()
    assert browser.execute_script(ground) == light

    zoom = find(By.ID, "zoom")
    zoom.click()
    assert zoom.get_attribute("aria-pressed") == "true"
    assert "outside this view" in find(By.ID, "outside").text
    assert find_all(By.CSS_SELECTOR, marks)

    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.get_log("browser") == []


def test_all_figures_are_linked_filtered_and_readable_in_both_themes(browser, build_search):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    open_report(browser, build_search(compared=True))
    find, find_all = browser.find_element, browser.find_elements
    tooltip = find(By.ID, "tooltip")
    run = browser.execute_script

    # A line of the parallel coordinates: the same trial's mark, row and curve are shown, and its details beside it.
    best = find(By.CSS_SELECTOR, "#parallel .m0 .line.best")
    run("arguments[0].scrollIntoView({block: 'center'})", best)
    place = run(
        "const at = arguments[0].getPointAtLength(30), m = arguments[0].getScreenCTM();"
        "return [at.x * m.a + m.e, at.y * m.d + m.f].map(Math.round)",
        best,
    )
    actions = ActionChains(browser)
    actions.w3c_actions.pointer_action.move_to_location(*place)
    actions.perform()
    assert tooltip.is_displayed()
    assert tooltip.text.startswith("SimNPO, simnpo-0042 · chosen · on the frontier")
    assert run("return arguments[0].closest('#parallel') !== null", tooltip)
    assert len(find_all(By.CSS_SELECTOR, "#plot path.mark.active")) == 1
    assert run("return document.querySelector('#trials tr.active').cells[0].textContent") == "42"
    drawn = (
        "return [...document.querySelectorAll(arguments[0])].map(p => p.getAttribute('d')).filter(d => d.length > 5)"
    )
    assert len(run(drawn, "#parallel .over")) == len(run(drawn, "#curves .over")) == 1
    ActionChains(browser).move_to_element(find(By.CSS_SELECTOR, "#settings-heading")).perform()
    assert not tooltip.is_displayed()
    assert run(drawn, ".over") == []
    assert not find_all(By.CSS_SELECTOR, "#plot path.mark.active")

    # Hiding a method hides it in every figure and every table.
    figures = ("plot", "parallel", "intervals", "thirds-figure", "epochs-figure", "curves")
    tables = ("methods", "finalists", "held-out", "robustness", "importance", "thirds", "epochs", "budget", "trials")
    npo = find(By.CSS_SELECTOR, ".legend [data-method='1']")
    for figure in figures:
        assert find_all(By.CSS_SELECTOR, f"#{figure} .m1"), figure
    run("arguments[0].click()", npo)
    for figure in figures:
        assert not find_all(By.CSS_SELECTOR, f"#{figure} .m1"), figure
        assert find_all(By.CSS_SELECTOR, f"#{figure} .m0"), figure
    for table in tables:
        assert run(f"return document.querySelectorAll('#{table} tr[data-method]').length") > 0, table
        assert run(f"return document.querySelectorAll('#{table} tr[data-method=\"1\"]:not([hidden])').length") == 0
    run("arguments[0].click()", npo)
    for figure in figures:
        assert find_all(By.CSS_SELECTOR, f"#{figure} .m1"), figure

    # The tables sort by numbers and by words.
    for table, name, position in (
        ("finalists", "objective", 3),
        ("robustness", "as it is", 2),
        ("importance", "share", 2),
    ):
        head = find(By.CSS_SELECTOR, f"#{table} thead th:nth-child({position + 1}) button")
        assert name in head.text
        for direction in (-1, 1):
            run("arguments[0].click()", head)
            values = [float(text.split()[0]) for text in column(browser, position, table)]
            assert values == sorted(values, key=lambda value: direction * value), table
    run("arguments[0].click()", find(By.CSS_SELECTOR, "#robustness thead th:nth-child(2) button"))
    assert column(browser, 1, "robustness") == sorted(column(browser, 1, "robustness"))

    # Every figure has a name for those who cannot see it, and its ink changes with the theme.
    assert run(
        "return [...document.querySelectorAll('svg[role=img]')].every(s => s.ariaLabel || s.querySelector('title'))"
    )
    texts = "#parallel .axis, #intervals .named, #thirds-figure .tick"
    ink = f"return [...document.querySelectorAll('{texts}')].map(text => getComputedStyle(text).fill)"
    light = run(ink)
    run("document.getElementById('theme').click()")
    assert light
    assert all(before != after for before, after in zip(light, run(ink), strict=True))

    assert run("return performance.getEntriesByType('resource').length") == 0
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_never_scrolls_sideways(browser, build_search, width):
    folder = build_search(name="a" * 300, config={"model": "b" * 300}, compared=True)
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    open_report(browser, folder)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_hostile_text_runs_nothing_and_makes_no_element(browser, build_search):
    text = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
    trials = simulate(24, ("simnpo", "npo", "ga"))
    trials[22][0]["error"] = text
    spaces = {"simnpo": {"ranges": {text: {"low": 0.1, "high": 1.0, "log": True}, "beta": {"low": 0.1, "high": 9.0}}}}
    folder = build_search(
        trials,
        name=text,
        config={"model": text, "benchmark": text, "data": text},
        command=["tune", text],
        git=text,
        objective_text=text,
        spaces=spaces,
        notes=[text],
        chosen=trials[0][0]["trial_id"],
        importances={"simnpo": {text: 1.0}},
    )
    schemas = trial_schema("wmdp", [], []), curve_schema("wmdp", [])
    told = examples(0.2, 3, {"prompt": text, "reference": f"\x00\x1b{text}", "answer": text * 500, "set": text})
    Writer(folder, *schemas).write_examples(trials[0][0]["trial_id"], "report", told)
    over_seeds = comparison([trials[0][0]])
    over_seeds["warnings"] = [text]
    over_seeds["finalists"][0]["trial_id"] = text
    over_seeds["differences"] = [{"better": text, "other": text, "verdict": text, "sentence": text}]
    write_json(folder / "comparison.json", over_seeds)
    open_report(browser, folder)
    assert browser.title.startswith("24 trials")
    assert browser.execute_script("return document.images.length + document.scripts.length") == 2
    seen = browser.execute_script("return document.body.textContent")
    assert f"⟨U+0000⟩⟨U+001B⟩{text}" in seen
    assert f"… ({500 * len(text):,} characters)" in seen
    sheets = ("#answers td", "#finalists td", "#differences td", "#importance td")
    for place in (*sheets, ".notice", "#parallel .axis", "li"):
        found = browser.execute_script(f"return [...document.querySelectorAll({place!r})].map(n => n.textContent)")
        assert any(text in one for one in found), place
    browser.execute_script("document.querySelectorAll('.sheet button').forEach(button => button.click())")
    browser.execute_script("document.querySelectorAll('.method').forEach(button => button.click())")
    assert browser.title.startswith("24 trials")
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("num_trials", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_trials_open_at_once(browser, tmp_path, num_trials):
    trials = simulate(num_trials, ("simnpo", "npo", "ga"))
    rows, curves = [row for row, _ in trials], [point for _, curve in trials for point in curve]
    path = tmp_path / "report.html"
    path.write_text(render_page(SearchResults(tmp_path, build_meta(), rows, curves, [])))
    # Seconds of the page's own thread, whatever else the machine is doing.
    browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    browser.get(path.as_uri())
    browser.execute_script("return document.body.offsetHeight")
    metrics = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    assert next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration") < 2
    others = browser.find_elements("css selector", "#plot path.other")
    assert bool(others) == (num_trials > TRIALS_SHOWN)
    assert len(browser.find_elements("css selector", "#trials tbody tr")) >= min(num_trials, TRIALS_SHOWN)
    assert browser.get_log("browser") == []
