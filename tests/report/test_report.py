from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest
from made_up_search import (
    METRICS,
    NUM_TOKENS,
    START_NLL,
    build_meta,
    build_row,
    comparison,
    examples,
    on_the_line,
    simulate,
    weights,
    write_folder,
)

from ray_unlearn.config import UserError
from ray_unlearn.provenance import without_addresses
from ray_unlearn.records.tables import SearchResults, Writer, curve_schema, read_search, trial_schema, write_json
from ray_unlearn.report import compared, describe_frontier, frontier, page, parameters, weighting, write_report
from ray_unlearn.report.answers import answers
from ray_unlearn.report.page import render_page
from ray_unlearn.report.papers import render_latex
from ray_unlearn.report.plain import render_csv, render_markdown
from ray_unlearn.report.tables import best_of_methods, budget, budget_words, headline, held_out, robustness
from ray_unlearn.report.text import (
    command_line,
    latex,
    markdown,
    mean_and_spread,
    score,
    setting,
    spreadsheet_cell,
    visible,
)

HOSTILE = ["<script>alert(1)</script>", "</script><b>bold</b>", "=cmd()", "a|b", "![x](http://x.invalid)", "$x_{$"]


class Page(HTMLParser):
    """Elements with their attributes and text, by a parser that knows what a script element is."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data):
        if self._open:
            self.texts[self._open[-1]][-1] += data

    @property
    def policy(self) -> str:
        found = [a["content"] for t, a in self.elements if a.get("http-equiv") == "Content-Security-Policy"]
        assert len(found) == 1
        return found[0] or ""


def page_of(folder: Path) -> str:
    """The page, with the other texts beside it in the folder and no pictures, which take longest."""
    results = read_search(folder)
    (folder / "report").mkdir(exist_ok=True)
    texts = {
        "report.html": render_page(results),
        "report.md": render_markdown(results),
        "trials.csv": render_csv(results),
        "tables.tex": render_latex(results),
    }
    for name, text in texts.items():
        (folder / "report" / name).write_text(text, newline="")
    return texts["report.html"]


def points(*scores: tuple[str, float, float, float], **changes):
    """(method, forget, utility, objective) -> trials without curves."""
    return [
        (build_row(i, method, forget=f, utility=u, objective=o, **changes), [])
        for i, (method, f, u, o) in enumerate(scores)
    ]


def test_a_report_is_eleven_files_and_all_exist(build_search):
    folder = build_search()
    paths = write_report(folder)
    assert {path.name for path in paths} == {
        "report.html",
        "report.md",
        "pareto.png",
        "pareto.svg",
        "pareto.pdf",
        "trials.csv",
        "frontier.parquet",
        "tables.tex",
        "trials.parquet",
        "curves.parquet",
        "finals.parquet",
    }
    assert all(path.stat().st_size > 0 for path in paths)
    assert (folder / "report/pareto.png").read_bytes().startswith(b"\x89PNG")
    ElementTree.parse(folder / "report/pareto.svg")
    assert (folder / "report/pareto.pdf").read_bytes().startswith(b"%PDF")


def test_pictures_for_papers_have_text_and_no_headline(build_search):
    folder = build_search()
    write_report(folder)
    svg = (folder / "report/pareto.svg").read_text()
    assert "Forget score" in svg
    assert "SimNPO" in svg
    assert headline(read_search(folder)) not in svg


def test_writing_a_report_again_changes_nothing(build_search):
    folder = build_search()
    first = {path: path.read_bytes() for path in write_report(folder)}
    assert {path: path.read_bytes() for path in write_report(folder)} == first


def test_the_page_refers_to_nothing_outside_itself(build_search):
    text = page_of(build_search())
    page = Page(text)
    for tag, attributes in page.elements:
        assert not {"src", "srcset", "style", "action", "data"} & set(attributes), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert (attributes.get("href") or "#").startswith("#")
        assert tag not in {"link", "img", "iframe", "object", "embed", "base"}
    style = page.texts["style"][0]
    assert "url(" not in style
    assert "@import" not in style


def test_the_policy_allows_exactly_the_style_and_the_script_that_are_there(build_search):
    text = page_of(build_search())
    policy = Page(text).policy
    style = re.findall(r"<style>(.*?)</style>", text, re.S)
    script = re.findall(r"<script>(.*?)</script>", text, re.S)
    assert len(style) == len(script) == 1
    for content, directive in ((style[0], "style-src"), (script[0], "script-src")):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text_on_the_page(build_search, text):
    trials = points(("simnpo", 0.9, 0.9, 0.9), ("npo", 0.5, 0.95, 0.7))
    trials += [(build_row(2, "ga", status="failed", error=f"first line\n{text}"), [])]
    folder = build_search(
        trials,
        chosen=trials[0][0]["trial_id"],
        name=text,
        config={"model": text, "data": text, "benchmark": text, "methods": ["simnpo", "npo", "ga"]},
        objective_text=text,
        metrics={**dict.fromkeys(METRICS, text), text: text},
        spaces={"simnpo": {"ranges": {text: {"low": 0.1, "high": 1.0, "log": True}}, "fixed": {text: text}}},
        versions={text: text},
        command=["ray_unlearn", "tune", "--model", text],
        git=text,
    )
    page = Page(page_of(folder))
    assert [tag for tag, _ in page.elements].count("script") == 2
    assert not any(tag in {"b", "img"} for tag, _ in page.elements)
    assert text in page.texts["dd"]
    assert any(text in title for title in page.texts["h1"])
    data = json.loads(page.texts["script"][0])
    assert data["parallel"][0]["axes"][0]["name"] == text


def test_data_on_the_page_holds_no_angle_bracket(build_search):
    name = "</script><!-- &amp;"
    spaces = {"simnpo": {"ranges": {name: {"low": 0.1, "high": 1.0, "log": True}}}}
    text = page_of(build_search(points(("simnpo", 0.9, 0.9, 0.9)), spaces=spaces))
    data = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[0]
    assert "<" not in data
    assert ">" not in data
    assert json.loads(data)["parallel"][0]["axes"][0]["name"] == name


@pytest.mark.parametrize("text", ["=cmd()", "+1+1", "-2", "@SUM(A1)", "\t=1", "  =1"])
def test_a_spreadsheet_sees_text_and_no_formula(build_search, text):
    trials = points(("simnpo", 0.9, 0.9, 0.9), gamma=-0.5)
    trials.append((build_row(1, "ga", status="failed", error=text), []))
    folder = build_search(trials)
    page_of(folder)
    rows = list(csv.DictReader(io.StringIO((folder / "report/trials.csv").read_text())))
    assert rows[1]["error"] == f"'{text}"
    assert float(rows[0]["gamma"]) == -0.5
    assert float(rows[0]["learning_rate"]) == 1.2e-5
    assert rows[1]["forget"] == ""


def test_a_spreadsheet_cell_leaves_numbers_and_plain_text_alone():
    assert [spreadsheet_cell(value) for value in (-1.5, 3, None, "linear")] == [-1.5, 3, "", "linear"]


def test_hostile_text_stays_text_in_markdown(build_search):
    error = "a|b <img src=x> `code` **bold** ![x](http://x.invalid)"
    trials = points(("simnpo", 0.9, 0.9, 0.9))
    trials.append((build_row(1, "ga", status="failed", error=error), []))
    folder = build_search(trials, command=["tune", "```", "<b>"])
    page_of(folder)
    text = (folder / "report/report.md").read_text()
    row = next(line for line in text.splitlines() if "ga-0001" in line)
    assert "a\\|b &lt;img src=x&gt; \\`code\\` \\*\\*bold\\*\\* !\\[x\\](http://x.invalid)" in row
    widths = {
        len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("| ") and "id" in line
    }
    assert len(re.findall(r"(?<!\\)\|", row)) in widths
    assert "````\ntune '```' '<b>'\n````" in text


def test_markdown_keeps_names_readable():
    assert markdown("learning_rate _x_") == "learning_rate \\_x\\_"


def test_the_sentences_name_the_chosen_trial_first_and_both_ends(build_search):
    trials = points(
        ("simnpo", 0.90, 0.97, 0.934),
        ("npo", 0.95, 0.80, 0.73),
        ("ga", 0.30, 0.99, 0.46),
        ("npo", 0.60, 0.98, 0.744),
        ("ga", 0.20, 0.50, 0.15),
    )
    folder = build_search(trials, chosen="simnpo-0000")
    sentences = describe_frontier(read_search(folder))
    assert len(sentences) == 4
    assert sentences[0].startswith("Chosen: simnpo-0000 (SimNPO) has forget score 0.900 and keeps 0.970 of")
    assert "learning_rate 1.2e-05" in sentences[0]
    assert "the highest objective, 0.934, and utility at or above the floor of 0.95" in sentences[0]
    assert sentences[1].startswith("Forgets most: npo-0001 (NPO)")
    assert "0.05 more forgotten" in sentences[1]
    assert "under the utility floor of 0.95" in sentences[1]
    assert sentences[2].startswith("Keeps most utility: ga-0002 (GA)")
    assert sentences[3].startswith("Between: npo-0003 (NPO)")
    text = page_of(folder)
    assert "simnpo-0000 (SimNPO) has forget score 0.900" in text
    assert "Chosen: simnpo-0000 (SimNPO)" in (folder / "report/report.md").read_text()


def test_a_chosen_trial_off_the_frontier_is_said_to_be(build_search):
    folder = build_search(points(("simnpo", 0.8, 0.96, 0.8), ("npo", 0.9, 0.97, 0.93)), chosen="simnpo-0000")
    sentences = describe_frontier(read_search(folder))
    assert sentences[0].startswith("Chosen: simnpo-0000 (SimNPO)")
    assert "another trial is better" in sentences[0]
    assert len(sentences) == 2


def test_one_trial_may_be_chosen_and_both_ends(build_search):
    folder = build_search(points(("simnpo", 0.9, 0.97, 0.93)), chosen="simnpo-0000")
    (sentence,) = describe_frontier(read_search(folder))
    assert sentence.startswith("Chosen, forgets most, keeps most utility: simnpo-0000 (SimNPO)")


def test_only_completed_trials_are_on_the_frontier(build_search):
    trials = points(("simnpo", 0.5, 0.9, 0.6), ("npo", 0.4, 0.8, 0.5))
    trials.append((build_row(2, "ga", status="pruned", forget=0.99, utility=0.99, objective=0.99), []))
    trials.append((build_row(3, "ga", status="failed", error="out of memory"), []))
    nan = build_row(4, "ga", forget=float("nan"), utility=1.0, objective=float("nan"))
    trials.append((nan, []))
    results = read_search(build_search(trials))
    assert [row["trial_id"] for row in frontier(results)] == ["simnpo-0000"]
    data = json.loads(Page(page_of(results.folder)).texts["script"][0])
    assert sorted(point["row"] for point in data["points"]) == [0, 1, 2]
    assert "out of memory" in page_of(results.folder)


def test_a_damaged_file_is_named_and_the_others_are_reported(build_search):
    folder = build_search()
    path = next(iter(sorted((folder / "trials").rglob("*.parquet"))))
    path.write_bytes(path.read_bytes()[:-20])
    text = page_of(folder)
    name = str(path.relative_to(folder))
    assert name in text
    assert "1 file could not be read" in text
    assert "47 trials" in text
    assert "could not be read" in (folder / "report/report.md").read_text()


def test_mini_scale_is_said_loudly_and_full_scale_is_not(build_search, tmp_path):
    folder = build_search()
    text = page_of(folder)
    assert "Mini scale." in text
    assert "Generated data and a tiny model" in text
    meta = json.loads((folder / "search.json").read_text())
    meta["config"]["scale"] = "full"
    (folder / "search.json").write_text(json.dumps(meta))
    assert "Mini scale" not in page_of(folder)


@pytest.mark.parametrize("status", ["running", "partial"])
def test_a_search_without_any_trial_still_has_a_report(build_search, status):
    folder = build_search([], status=status, finished=None, retrained=None)
    assert len(write_report(folder)) == 11
    assert describe_frontier(read_search(folder)) == ["No trial has completed yet, so there is no frontier."]
    assert ("Still running" in page_of(folder)) == (status == "running")


def test_a_search_whose_trials_all_failed_still_has_a_report(build_search):
    trials = [(build_row(i, "simnpo", status="failed", error="NaN"), []) for i in range(3)]
    folder = build_search(trials)
    text = page_of(folder)
    assert "3 failed (not plotted)" in text
    assert "No trial is chosen yet." in text


def records(table):
    return [dict(zip([c.key for c in table.columns], row, strict=True)) for row in table.rows]


def test_the_methods_are_ranked_by_their_best_trial_and_what_they_cost_is_counted(build_search):
    trials = points(("ga", 0.5, 0.9, 0.6), ("simnpo", 0.9, 0.97, 0.93), ("simnpo", 0.8, 0.9, 0.8))
    trials.append((build_row(3, "npo", status="failed", error="NaN"), []))
    results = read_search(build_search(trials))
    rows = records(best_of_methods(results))
    assert [row["method"] for row in rows] == ["SimNPO", "GA", "NPO"]
    assert [row["frontier"] for row in rows] == [1, 0, 0]
    assert rows[2]["objective"] is None
    spent = records(budget(results))
    assert [(row["method"], row["trials"], row["failed"]) for row in spent] == [
        ("SimNPO", 2, 0),
        ("NPO", 1, 1),
        ("GA", 1, 0),
    ]
    assert [row["device_seconds"] for row in spent] == [50.0, 25.0, 25.0]
    assert budget_words(results).startswith("Not equal in trials: between 1 and 2 a method; epochs between 10")


def test_points_on_lines_are_candidates_and_count_as_no_trial(build_search):
    trials = points(("simnpo", 0.95, 0.90, 0.87), ("npo", 0.6, 0.97, 0.74))
    plain = build_search(trials)
    before = records(budget(read_search(plain))), budget_words(read_search(plain))
    trials.append(on_the_line(trials[0][0], 0.5, forget=0.90, utility=0.96, objective=0.93))
    folder = write_folder(plain.parent / "with-a-point", trials, chosen="simnpo-0000@0.5")
    results = read_search(folder)
    after = records(budget(results))
    assert [row.pop("points") for row in after] == [1, None, None]
    assert (after, budget_words(results)) == before
    assert [row["trial_id"] for row in frontier(results)] == ["simnpo-0000", "simnpo-0000@0.5", "npo-0001"]
    assert describe_frontier(results)[0].startswith("Chosen: simnpo-0000 at alpha 0.5 (SimNPO) has forget score 0.900")
    text = page_of(folder)
    assert "2 trials of SimNPO" in text
    assert "a point on the line from the starting model" in text
    statuses = [point["status"] for point in json.loads(Page(text).texts["script"][0])["points"]]
    assert sorted(statuses) == ["completed", "completed", "interpolated"]
    assert "a point on the line from the starting model" not in page_of(plain)


def test_held_out_scores_stand_beside_what_was_selected(build_search):
    results = read_search(build_search())
    table = held_out(results)
    assert table is not None
    assert [row[0] for row in table.rows] == ["SimNPO", "NPO", "GA", "Starting model", "Retrained model"]
    for row in table.rows[:3]:
        assert row[3] == pytest.approx(0.97 * row[2])
    assert table.rows[3][2] == 0.0


def test_a_final_run_that_failed_lends_its_selection_scores_to_no_one(build_search):
    trials = points(("simnpo", 0.9, 0.97, 0.93), ("npo", 0.8, 0.96, 0.87))
    broken = trials[0][0] | {"status": "failed", "error": "out of memory"}
    folder = build_search(trials, [broken, trials[1][0]], chosen="simnpo-0000")
    table = held_out(read_search(folder))
    assert table is not None
    assert [row[0] for row in table.rows] == ["NPO", "SimNPO"]
    assert table.rows[1][2:6] == [0.93, None, None, None]
    assert table.rows[1][-1] == "out of memory"
    assert "out of memory" in page_of(folder)


def test_a_search_of_before_is_reported_by_its_own_rule(build_search):
    trials = points(("simnpo", 0.99, 0.94, 0.954), ("simnpo", 0.9, 0.96, 0.929))
    results = read_search(build_search(trials, chosen="simnpo-0001", config={"ranking": "scaled"}))
    assert best_of_methods(results).rows[0][1] == 0.929
    chosen, most = describe_frontier(results)
    assert "highest objective, 0.929, of all trials with utility at or above the floor" in chosen
    assert most.startswith("Forgets most: simnpo-0000 (SimNPO)")


def test_the_best_of_a_method_has_its_highest_objective(build_search):
    trials = points(("simnpo", 0.99, 0.94, 0.954), ("simnpo", 0.9, 0.96, 0.929))
    results = read_search(build_search(trials, chosen="simnpo-0000"))
    assert best_of_methods(results).rows[0][1] == 0.954
    assert "the highest objective, 0.954, but its utility is under the floor of 0.95" in describe_frontier(results)[0]


def test_a_chosen_trial_under_the_floor_is_said_to_be(build_search):
    folder = build_search(points(("simnpo", 0.9, 0.8, 0.71)), chosen="simnpo-0000")
    assert "but no trial keeps its utility at or above the floor of 0.95" in describe_frontier(read_search(folder))[0]


def test_machine_addresses_are_left_out(build_search):
    trials = points(("simnpo", 0.9, 0.9, 0.9))
    trials.append((build_row(1, "ga", status="failed", error="(pid=12, ip=node-17.lab) at 10.1.2.3:80"), []))
    folder = build_search(trials, config={"methods": ["simnpo", "ga"], "address": "ray://secret-node:10001"})
    for path in write_report(folder):
        content = path.read_bytes()
        for secret in (b"secret-node", b"10.1.2.3", b"node-17"):
            assert secret not in content, (path.name, secret)
    assert "--address ADDRESS" in page_of(folder)


def test_a_command_is_quoted_without_its_address():
    assert command_line(["tune", "--address=ray://a:1", "--out", "my dir"]) == "tune --address=ADDRESS --out 'my dir'"
    home = Path.home()
    assert command_line(["tune", "--model", f"{home}/a b", f"--out={home}/c"]) == "tune --model ~/'a b' --out ~/c"
    assert "bucket" not in command_line(["tune", "--copy-to", "s3://bucket/p?endpoint_override=10.0.0.1"])
    assert without_addresses("versions 2.60.0 and 3.11.9 stay") == "versions 2.60.0 and 3.11.9 stay"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.9, "0.900"), (0.01234, "0.0123"), (1.0, "1.00"), (12345.6, "12,300"), (123.0, "123"), (None, "–")],
)
def test_scores_have_three_significant_digits(value, text):
    assert score(value) == text


def test_settings_are_written_as_one_types_them():
    assert setting("learning_rate", 1.2e-5) == "1.2e-05"
    assert setting("beta", 2.5) == "2.5"
    assert setting("epochs", 10) == "10"
    assert setting("gamma", None) == "–"


def test_a_folder_without_a_search_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no search"):
        write_report(tmp_path)


def test_the_page_without_data_is_small(build_search):
    assert len(page_of(build_search([])).encode()) < 100_000


def test_a_thousand_trials_make_a_page_under_three_megabytes(build_search, tmp_path):
    results = SearchResults(tmp_path, build_meta(), [row for row, _ in simulate(1000, ("simnpo", "npo"))], [], [])
    assert len(render_page(results).encode()) < 3_000_000


def test_the_report_needs_neither_torch_nor_ray():
    code = (
        "import sys, ray_unlearn.report, ray_unlearn.report.page, ray_unlearn.report.figure;"
        "print([name for name in ('torch', 'ray', 'deepspeed', 'matplotlib.pyplot') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_setting_has_an_axis_and_logarithmic_ones_are_logarithmic(build_search):
    spaces = {
        "simnpo": {
            "ranges": {
                "beta": {"low": 1.0, "high": 5.0, "log": False},
                "learning_rate": {"low": 1e-6, "high": 1e-2, "log": True},
            }
        }
    }
    trials = points(("simnpo", 0.9, 0.9, 0.7), ("simnpo", 0.8, 0.9, 0.6), beta=2.0, learning_rate=1e-4)
    trials.append((build_row(2, "simnpo", status="failed", error="NaN"), []))
    results = read_search(build_search(trials, spaces=spaces))
    assert list(parameters.axes(results, "simnpo")) == ["beta", "learning_rate"]
    assert parameters.axes(results, "npo") == {}
    lines = parameters.lines(results, "simnpo")
    assert list(lines) == ["simnpo-0000", "simnpo-0001"]
    assert lines["simnpo-0000"] == pytest.approx([0.25, 0.5, 0.7])


def test_a_best_point_at_the_edge_of_its_range_is_warned_of(build_search):
    spaces = {"simnpo": {"ranges": {"learning_rate": {"low": 1e-6, "high": 1e-2, "log": True}}}}
    for rate, end in ((1.4e-6, "lower"), (7e-3, "upper"), (2e-6, ""), (5e-3, "")):
        trials = points(("simnpo", 0.9, 0.9, 0.9), learning_rate=rate)
        results = SearchResults(Path("x"), build_meta(spaces=spaces), [row for row, _ in trials], [], [])
        found = parameters.edges(results)
        assert len(found) == bool(end), rate
        assert all(f"within 5 % of the {end} end of its range" in text for text in found)


def test_importance_is_shown_largest_first_and_its_absence_has_a_reason(build_search):
    folder = build_search()
    table = parameters.importance(read_search(folder))
    assert [row[1:] for row in table.rows[:3]] == [["learning_rate", 0.6], ["beta", 0.25], ["retain_weight", 0.15]]
    assert table.texts()[0][2] == "60 %"
    assert "needs 20 completed trials" not in page_of(folder)
    assert "fANOVA" in page_of(folder)
    meta = json.loads((folder / "search.json").read_text())
    meta["importances_of_chance"] = {"simnpo": 0.7, "npo": 0.5}
    write_json(folder / "search.json", meta)
    assert "SimNPO's are not told from noise: the largest is 60%" in parameters.importance_words(read_search(folder))
    assert "NPO's are not" not in parameters.importance_words(read_search(folder)).replace("SimNPO's", "")
    meta["importances"].pop("npo")
    write_json(folder / "search.json", meta)
    assert "There are none for NPO: parameter importance needs 20 completed trials" in page_of(folder)
    meta.pop("importances")
    write_json(folder / "search.json", meta)
    assert "There are none: parameter importance needs 20 completed trials of a method." in page_of(folder)


def test_finalists_over_seeds_are_told_with_their_spread_and_without_them_the_command_is(build_search, tmp_path):
    folder = build_search(compared=True)
    results = read_search(folder)
    table = compared.finalists(results)
    assert [row[0] for row in table.rows] == ["SimNPO", "NPO", "GA"]
    assert table.texts()[0][:4] == ["SimNPO", "simnpo-0042", "3", "0.948 ± 0.012"]
    assert table.ranks()[0][3] == pytest.approx(0.948, abs=1e-3)
    data = json.loads(Page(page_of(folder)).texts["script"][0])
    assert [panel["label"] for panel in data["intervals"]] == ["objective", "forget", "utility"]
    assert [row["method"] for row in data["intervals"][0]["rows"]] == [0, 1, 2]
    assert [row["label"] for row in data["intervals"][0]["rows"]] == ["SimNPO", "NPO", "GA"]
    for name in ("report.html", "report.md"):
        text = (folder / "report" / name).read_text()
        assert "0.948 ± 0.012" in text
        assert "Three seeds are few." in text
        assert "simnpo and ga are not told apart." in text
        assert "ray_unlearn compare &lt;folder&gt;" not in text
    assert "3 seeds: 1, 2 and 3" in (folder / "report/tables.tex").read_text()
    assert "one run with one seed" not in (folder / "report/report.html").read_text()
    (folder / "comparison.json").unlink()
    assert "<code>ray_unlearn compare &lt;folder&gt;</code>" in page_of(folder)


@pytest.mark.parametrize("content", ["{", "[1]", "7"])
def test_a_damaged_comparison_is_named_and_the_rest_is_reported(build_search, content):
    folder = build_search()
    (folder / "comparison.json").write_text(content)
    assert read_search(folder).damaged == ["comparison.json"]
    assert "48 trials" in page_of(folder)


def test_several_finalists_of_a_method_are_told_apart(build_search):
    trials = points(("simnpo", 0.9, 0.97, 0.93), ("simnpo", 0.8, 0.98, 0.88))
    folder = build_search(trials)
    over_seeds = comparison([row for row, _ in trials])
    over_seeds["differences"][0]["p"] = 0.031
    write_json(folder / "comparison.json", over_seeds)
    rows = compared.intervals(read_search(folder), {"simnpo": 0})[0]["rows"]
    assert [row["label"] for row in rows] == ["simnpo-0000", "simnpo-0001"]
    assert records(compared.differences(read_search(folder)))[0]["p"] == 0.031


def test_a_comparison_that_says_little_still_makes_a_page(build_search):
    folder = build_search()
    row = {"method": "simnpo", "trial_id": "simnpo-0042", "n": 1, "objective": {"mean": 0.9, "std": None}}
    write_json(folder / "comparison.json", {"finalists": [row]})
    assert "several seeds" in page_of(folder)


def test_every_model_stands_before_and_after_each_attack(build_search):
    results = read_search(build_search())
    table = robustness(results)
    assert [c.key for c in table.columns] == ["metric", "model", "plain", "relearned", "quantised"]
    assert [row[1] for row in table.rows[:5]] == ["Starting model", "Retrained model", "SimNPO", "NPO", "GA"]
    assert [row[0] for row in table.rows] == ["forget_accuracy"] * 5 + ["retain_accuracy"] * 5
    plain, relearned = table.rows[2][2:4]
    assert relearned == pytest.approx(plain + 0.6 * (0.7 - plain))
    assert not any("relearned" in column.key for column in held_out(results).columns)


def test_finals_without_attacks_have_no_section_on_them(build_search):
    trials = points(("simnpo", 0.9, 0.97, 0.93))
    folder = build_search(trials, [trials[0][0]])
    assert robustness(read_search(folder)) is None
    assert "Under attack" not in page_of(folder)


def test_answers_are_those_of_the_chosen_model_beside_the_start_and_the_rest_is_counted(build_search):
    folder = build_search()
    table, total = answers(read_search(folder))
    assert (len(table.rows), total) == (50, 64)
    rows = records(table)
    known = [row["probability"] for row in rows]
    assert known == sorted(known, reverse=True)
    assert rows[0]["probability_before"] == pytest.approx(rows[0]["probability"] * 0.95 / 0.2)
    assert rows[0]["before"].startswith("Reagent")
    assert rows[0]["now"] == "It is not known."
    assert "50 of 64 are shown; the other 14 are" in page_of(folder)


def test_answers_of_a_benchmark_that_generates_none_have_no_column(build_search):
    trials = points(("simnpo", 0.9, 0.97, 0.93))
    folder = build_search(trials, chosen="simnpo-0000")
    nothing = {"answer": None, "reference": None, "probability": None}
    writer = Writer(folder, trial_schema("wmdp", [], []), curve_schema("wmdp", []))
    writer.write_examples("simnpo-0000", "report", [row | nothing for row in examples(0.2, 3)])
    table, total = answers(read_search(folder))
    assert {"before", "now", "reference", "probability"}.isdisjoint(column.key for column in table.columns)
    assert [row[0] for row in table.rows] == [0, 1, 2]
    assert total == 3


def test_hostile_and_unseen_characters_of_answers_are_shown_as_text(build_search):
    trials = points(("simnpo", 0.9, 0.97, 0.93))
    folder = build_search(trials, chosen="simnpo-0000")
    texts = {
        "prompt": "<script>alert(1)</script> ![x](http://x.invalid) | `code`",
        "reference": "bell \x07, null \x00, \u202eevil\u202c, 文字, é, line\nbreak",
        "answer": "x" * 100_000,
    }
    writer = Writer(folder, trial_schema("wmdp", [], []), curve_schema("wmdp", []))
    writer.write_examples("simnpo-0000", "report", examples(0.2, 2, {**texts, "probability": 1.0}))
    text = page_of(folder)
    parsed = Page(text)
    assert [tag for tag, _ in parsed.elements].count("script") == 2
    cells = parsed.texts["td"]
    assert texts["prompt"] in cells
    assert "bell ⟨U+0007⟩, null ⟨U+0000⟩, ⟨U+202E⟩evil⟨U+202C⟩, 文字, é, line\nbreak" in cells
    assert f"{'x' * 600} … (100,000 characters)" in cells
    assert len(text) < 200_000
    line = next(line for line in (folder / "report/report.md").read_text().splitlines() if "script" in line)
    assert "&lt;script&gt;" in line
    assert "!\\[x\\]" in line
    assert "x" * 161 not in line


def test_weights_are_sorted_into_thirds_by_length_and_difficulty(build_search):
    results = read_search(build_search())
    simnpo, npo, ga = weighting.weightings(results)
    assert [w.method for w in (simnpo, npo, ga)] == ["simnpo", "npo", "ga"]
    for w in (simnpo, npo, ga):
        for name in weighting.BY:
            assert [third.name for third in w.thirds[name]] == list(weighting.BY[name][1])
            assert sum(third.share for third in w.thirds[name]) == pytest.approx(1)
            assert sum(third.num_examples for third in w.thirds[name]) == 60
            assert all(sum(row) == pytest.approx(1) for row in w.shares[name])
    # By hand: the share of the answers of at most 15 tokens, epoch by epoch.
    epochs = weights("simnpo")
    short = [sum(w for w, n in zip(row, NUM_TOKENS, strict=True) if n <= 15) / sum(row) for row in epochs]
    assert [row[0] for row in simnpo.shares["num_tokens"]] == pytest.approx(short)
    assert simnpo.thirds["num_tokens"][0].share == pytest.approx(sum(short) / len(short))
    assert simnpo.thirds["num_tokens"][0].high == 15
    # NPO starts with every ratio to the reference at 1, GA stays there.
    assert npo.evenness[0] == pytest.approx(1)
    assert npo.evenness[-1] < 0.95
    assert ga.evenness == pytest.approx([1.0] * 6)
    assert simnpo.evenness[0] < 0.9
    share = [w / sum(epochs[0]) for w in epochs[0]]
    assert simnpo.evenness[0] == pytest.approx(-sum(w * math.log(w) for w in share) / math.log(60))


def test_what_the_weights_show_is_said_from_the_weights(build_search):
    folder = build_search()
    found = weighting.weightings(read_search(folder))
    short, _, long = found[0].thirds["num_tokens"]
    said = weighting.allocation_words(found)
    assert said[0].startswith(f"SimNPO gives an example {score(short.mean)} times an even share to the third with the")
    assert any(f"differs most in SimNPO ({score(short.mean / long.mean)} times)" in text for text in said)
    said = weighting.smoothing_words(found)
    assert "NPO's weights have evenness 1.000 in epoch 1 and" in said[1]
    assert said[1].endswith("they become less even.")
    assert said[2].endswith("this hardly changes.")
    assert said[3].startswith("In the first epoch NPO and GA tell the examples apart least")
    text = page_of(folder)
    assert said[3] in text
    drawn = json.loads(Page(text).texts["script"][0])["weighting"]
    assert len(drawn["thirds"]) == 2
    assert len(drawn["shares"]) == 6


def test_examples_that_are_all_alike_are_in_no_thirds(build_search):
    trials = points(("simnpo", 0.9, 0.97, 0.93))
    folder = build_search(trials)
    writer = Writer(folder, trial_schema("wmdp", [], []), curve_schema("wmdp", []))
    writer.write_weights("simnpo-0000", [[1.0, 2.0, 3.0]], [5, 5, 5], START_NLL[:3])
    (found,) = weighting.weightings(read_search(folder))
    assert found.thirds["num_tokens"] == []
    assert len(found.thirds["start_nll"]) == 3
    assert "in the one epoch recorded" in weighting.smoothing_words([found])[0]
    assert "How the forget loss weighs" in page_of(folder)


@pytest.mark.parametrize("part", ["examples", "weights"])
def test_a_damaged_file_of_a_finalist_is_named_and_the_others_are_read(build_search, part):
    folder = build_search()
    first, *others = sorted((folder / part).glob("*.parquet"))
    first.write_bytes(b"no Parquet")
    others[0].write_bytes(next((folder / "finals").glob("*.parquet")).read_bytes())
    results = read_search(folder)
    assert results.damaged == [f"{part}/{path.name}" for path in (first, others[0])]
    read = {row["trial_id"] for row in results.examples} if part == "examples" else set(results.weights)
    assert read == {path.stem for path in others[1:]}
    assert first.name in page_of(folder)


def test_a_search_without_examples_and_weights_is_read(build_search):
    results = read_search(build_search(points(("simnpo", 0.9, 0.97, 0.93))))
    assert (results.examples, results.weights, results.comparison, results.damaged) == ([], {}, None, [])


def test_more_trials_than_a_page_holds_leave_the_best_and_the_frontier_and_say_so(build_search, monkeypatch):
    folder = build_search()
    monkeypatch.setattr(page, "TRIALS_SHOWN", 3)
    text = page_of(folder)
    front = {row["trial_id"] for row in frontier(read_search(folder))}
    parsed = Page(text)
    data = json.loads(parsed.texts["script"][0])
    shown = len(data["tables"]["trials"])
    assert 3 < len(front) <= shown < 48
    assert {trial_id for trial_id in front if f">{trial_id}<" in text} == front
    assert len(data["points"]) + len(data["others"]) == 46
    assert f"Only the best {shown} trials can be pointed at; the other {48 - shown} are marks" in text
    assert len(list(csv.DictReader(io.StringIO((folder / "report/trials.csv").read_text())))) == 48
    monkeypatch.undo()
    assert "can be pointed at" not in page_of(folder)


def test_the_frontier_is_a_parquet_file_with_the_trials_types_and_checksums(build_search):
    folder = build_search()
    write_report(folder)
    path = folder / "report/frontier.parquet"
    table = pq.ParquetFile(path, page_checksum_verification=True).read()
    assert table.column("trial_id").to_pylist() == [row["trial_id"] for row in frontier(read_search(folder))]
    written = pq.read_table(next((folder / "trials").rglob("*.parquet")), partitioning=None)
    assert set(table.column_names) == set(written.column_names)
    assert all(table.schema.field(name).type == written.schema.field(name).type for name in table.column_names)


def test_each_table_of_a_search_is_one_file_that_says_what_it_holds(build_search):
    folder = build_search()
    write_report(folder)
    results = read_search(folder)
    for name, rows in (("trials", results.trials), ("finals", results.finals)):
        table = pq.ParquetFile(folder / f"report/{name}.parquet", page_checksum_verification=True).read()
        assert [{**row, "error": None} for row in table.to_pylist()] == [{**row, "error": None} for row in rows]
        told = json.loads(table.schema.metadata[b"ray_unlearn"])
        assert (told["search"], told["metrics"]) == (results.meta["name"], results.meta["metrics"])
    errors = pq.read_table(folder / "report/trials.parquet")["error"].to_pylist()
    assert any("NaN" in error and "10.1.2.3" not in error for error in errors if error)
    curves = pq.read_table(folder / "report/curves.parquet").to_pylist()
    assert sorted(curves, key=lambda row: (row["trial_id"], row["epoch"])) == sorted(
        results.curves, key=lambda row: (row["trial_id"], row["epoch"])
    )
    numbers = {row["trial_id"]: row["number"] for row in results.trials}
    places = [(numbers[row["trial_id"]], row["epoch"]) for row in curves]
    assert places == sorted(places)
    one = pq.read_table(next((folder / "trials").rglob("*.parquet")), partitioning=None)
    assert pq.read_schema(folder / "report/trials.parquet").remove_metadata() == one.schema.remove_metadata()


def test_latex_tables_hold_text_and_nothing_that_latex_would_act_on(build_search):
    folder = build_search(config={"benchmark": r"50 %_of \input{x} #1 ^2 ~ $x$ & {y}"})
    page_of(folder)
    text = (folder / "report/tables.tex").read_text()
    assert text.count("\\begin{table}") == text.count("\\bottomrule") == 2
    assert r"50 \%\_of \textbackslash{}input\{x\} \#1 \textasciicircum{}2 \textasciitilde{} \$x\$ \& \{y\}" in text
    for block in re.findall(r"\\begin{tabular}{(\w+)}(.*?)\\end{tabular}", text, re.S):
        rows = [line for line in block[1].splitlines() if line.endswith(r"\\")]
        assert len(rows) > 3
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(block[0]) - 1}
    assert latex("a\nb") == "a b"


def test_notes_and_what_to_type_next_are_on_the_page(build_search):
    folder = build_search(notes=["The retrained model is missing <here>."])
    text = page_of(folder)
    assert "The retrained model is missing &lt;here&gt;." in text
    assert f"ray_unlearn report results/{folder.name}" in text
    assert f"ray_unlearn export results/{folder.name} --trial simnpo-0042" in text
    assert "The retrained model is missing" in (folder / "report/report.md").read_text()


def test_means_are_written_with_their_spread():
    texts = [
        mean_and_spread({"mean": m, "std": s}) for m, s in ((0.9123, 0.0041), (12.34, 0.5), (0.9, None), (None, 1))
    ]
    assert texts == ["0.912 ± 0.004", "12.3 ± 0.5", "0.900", "–"]


def test_what_cannot_be_seen_is_shown_by_its_code():
    assert visible("a\x1b[0m\u200b\tb\n", 99) == "a⟨U+001B⟩[0m⟨U+200B⟩\tb\n"
    assert visible("abcdef", 3) == "abc … (6 characters)"
