"""The page driven as a reader drives it, in a real browser without a window."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_up_search import simulate

from ray_unlearn.report import write_report

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


def column(browser, position: int) -> list[str]:
    rows = "[...document.querySelectorAll('#trials tbody tr:not([hidden])')]"
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
    assert "SimNPO, trial 42 · chosen · on the frontier" in tooltip.text
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


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_never_scrolls_sideways(browser, build_search, width):
    folder = build_search(name="a" * 300, config={"model": "b" * 300})
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    open_report(browser, folder)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_hostile_text_runs_nothing_and_makes_no_element(browser, build_search):
    text = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
    trials = simulate(24, ("simnpo", "npo", "ga"))
    trials[22][0]["error"] = text
    folder = build_search(
        trials, name=text, config={"model": text}, command=["tune", text], git=text, objective_text=text
    )
    open_report(browser, folder)
    assert browser.title.startswith("24 trials")
    assert browser.execute_script("return document.images.length + document.scripts.length") == 2
    assert text in browser.execute_script("return document.body.innerText")
    assert browser.get_log("browser") == []


def test_a_thousand_trials_open_at_once(browser, build_search):
    folder = build_search(simulate(1000, ("simnpo", "npo", "ga")))
    open_report(browser, folder)
    script = "return performance.getEntriesByType('navigation')[0].loadEventEnd"
    assert browser.execute_script(script) < 2000
    assert browser.get_log("browser") == []
