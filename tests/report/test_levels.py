"""Forget against the level of utility, on the page and in every table."""

import json
import re

import pyarrow.parquet as pq

from ray_unlearn.records.tables import read_search, write_json
from ray_unlearn.report import write_files
from ray_unlearn.report.verdicts import SEED
from ray_unlearn.search.at_utility import summarise_lines
from tests.test_at_utility import LEVELS, line


def test_the_report_shows_forget_by_level_and_an_older_comparison_is_as_it_was(build_search, tmp_path):
    folder = build_search(compared=True)
    before = {path.name: path.read_bytes() for path in write_files(read_search(folder), tmp_path / "before")}
    assert "at_utility.parquet" not in before
    assert b"At equal utility" not in before["report.html"] + before["report.md"] + before["tables.tex"]
    rows = [r for k in range(8) for r in line("simnpo", k, 0.8, 0.9) + line("npo", k, 0.6, 0.7)]
    summary = summarise_lines(rows, LEVELS, SEED)
    comparison = json.loads((folder / "comparison.json").read_text())
    write_json(folder / "comparison.json", {**comparison, "at_utility": {SEED: summary}})
    after = {path.name: path for path in write_files(read_search(folder), tmp_path / "after")}
    for name in ("report.html", "report.md"):
        text = after[name].read_text()
        assert "At equal utility" in text
        assert "in forget at utility 0.95, by 0.200" in text
    page = after["report.html"].read_text()
    (rest,) = re.findall(r"figures that the search selected on([^<]*)</p>", page)
    assert rest in (".", "; those to quote are further down."), "a sentence of its own"
    assert page.index('id="seeds-heading"') < page.index('id="levels-heading"')
    assert "Forget score where utility is equal" in after["tables.tex"].read_text()
    table = pq.read_table(after["at_utility.parquet"]).to_pylist()
    assert {(r["unit_kind"], r["method"], r["level"], r["forget"]) for r in table} == {
        (SEED, *known) for known in (("simnpo", 0.95, 0.8), ("simnpo", 0.8, 0.9), ("npo", 0.95, 0.6), ("npo", 0.8, 0.7))
    }
