"""The README's queries run on a search's results as they are printed there."""

import re
from pathlib import Path

import pytest

from ray_unlearn.records.tables import read_search
from ray_unlearn.report.whole import write_whole
from tests.report.made_up_search import simulate, write_folder

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = [b for b in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL) if "results/<search>/report" in b]


def run(block: str, folder: Path) -> dict:
    names: dict = {}
    exec(block.replace("results/<search>", str(folder)), names)
    return names


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("queries") / "search"
    write_folder(place, simulate(24, ("simnpo", "npo", "ga")))
    (place / "report").mkdir()
    write_whole(read_search(place), place / "report")
    return place


def test_there_is_a_query_for_each_of_three_tools():
    assert [re.search(r"import (\w+)", block)[1] for block in BLOCKS] == ["duckdb", "polars", "pandas"]


def test_the_best_of_each_method_is_the_best(folder: Path):
    rows = run(BLOCKS[0], folder)["best"].fetchall()
    trials = [row for row in read_search(folder).trials if row["status"] == "completed"]
    for method, objective, trial in rows:
        best = max((row for row in trials if row["method"] == method), key=lambda row: row["objective"])
        assert (objective, trial) == (best["objective"], best["trial_id"])
    assert len(rows) == 3


def test_a_correlation_is_told_for_each_method(folder: Path):
    rates = run(BLOCKS[1], folder)["rates"]
    assert sorted(rates["method"]) == ["ga", "npo", "simnpo"]
    assert rates["learning_rate"].is_between(-1, 1).all()


def test_every_evaluation_point_stands_in_the_table_of_growth(folder: Path):
    growth = run(BLOCKS[2], folder)["growth"]
    assert growth.notna().sum().sum() == len(read_search(folder).curves)
