from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from made_up_search import METRICS, build_row

from ray_unlearn.config import UserError
from ray_unlearn.report import describe_frontier, frontier, write_report
from ray_unlearn.report.tables import best_of_methods, held_out
from ray_unlearn.report.text import (
    command_line,
    duration,
    markdown,
    score,
    setting,
    spreadsheet_cell,
    without_addresses,
)
from ray_unlearn.results import read_search

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
    write_report(folder)
    return (folder / "report" / "report.html").read_text()


def points(*scores: tuple[str, float, float, float], **changes):
    """(method, forget, utility, objective) -> trials without curves."""
    return [
        (build_row(i, method, forget=f, utility=u, objective=o, **changes), [])
        for i, (method, f, u, o) in enumerate(scores)
    ]


def test_a_report_is_five_files_and_all_exist(build_search):
    folder = build_search()
    paths = write_report(folder)
    assert {path.name for path in paths} == {
        "report.html",
        "report.md",
        "pareto.png",
        "pareto.svg",
        "trials.csv",
    }
    assert all(path.stat().st_size > 0 for path in paths)
    assert (folder / "report/pareto.png").read_bytes().startswith(b"\x89PNG")
    ElementTree.parse(folder / "report/pareto.svg")


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
    assert any(text in str(value) for row in data["rows"] for value in row)


def test_data_on_the_page_holds_no_angle_bracket(build_search):
    trials = points(("simnpo", 0.9, 0.9, 0.9))
    trials.append((build_row(1, "ga", status="failed", error="</script><!-- &amp;"), []))
    text = page_of(build_search(trials))
    data = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[0]
    assert "<" not in data
    assert ">" not in data
    assert any("</script><!-- &amp;" in row for row in json.loads(data)["rows"])


@pytest.mark.parametrize("text", ["=cmd()", "+1+1", "-2", "@SUM(A1)", "\t=1", "  =1"])
def test_a_spreadsheet_sees_text_and_no_formula(build_search, text):
    trials = points(("simnpo", 0.9, 0.9, 0.9), gamma=-0.5)
    trials.append((build_row(1, "ga", status="failed", error=text), []))
    folder = build_search(trials)
    write_report(folder)
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
    write_report(folder)
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
    assert sentences[0].startswith("Chosen: SimNPO, trial 0, has forget score 0.900 and keeps 0.970 of")
    assert "learning_rate 1.2e-05" in sentences[0]
    assert "the highest objective, 0.934, of all trials with utility at or above the floor of 0.95" in sentences[0]
    assert sentences[1].startswith("Forgets most: NPO, trial 1")
    assert "0.05 more forgotten" in sentences[1]
    assert "under the utility floor of 0.95" in sentences[1]
    assert sentences[2].startswith("Keeps most utility: GA, trial 2")
    assert sentences[3].startswith("Between: NPO, trial 3")
    text = page_of(folder)
    assert "SimNPO, trial 0, has forget score 0.900" in text
    assert "Chosen: SimNPO, trial 0" in (folder / "report/report.md").read_text()


def test_a_chosen_trial_off_the_frontier_is_said_to_be(build_search):
    folder = build_search(points(("simnpo", 0.8, 0.96, 0.8), ("npo", 0.9, 0.97, 0.93)), chosen="simnpo-0000")
    sentences = describe_frontier(read_search(folder))
    assert sentences[0].startswith("Chosen: SimNPO, trial 0")
    assert "another trial is better" in sentences[0]
    assert len(sentences) == 2


def test_one_trial_may_be_chosen_and_both_ends(build_search):
    folder = build_search(points(("simnpo", 0.9, 0.97, 0.93)), chosen="simnpo-0000")
    (sentence,) = describe_frontier(read_search(folder))
    assert sentence.startswith("Chosen, forgets most, keeps most utility: SimNPO")


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
    assert "out of memory" in str(data["rows"])


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
    assert len(write_report(folder)) == 5
    assert describe_frontier(read_search(folder)) == ["No trial has completed yet, so there is no frontier."]
    assert ("Still running" in page_of(folder)) == (status == "running")


def test_a_search_whose_trials_all_failed_still_has_a_report(build_search):
    trials = [(build_row(i, "simnpo", status="failed", error="NaN"), []) for i in range(3)]
    folder = build_search(trials)
    text = page_of(folder)
    assert "3 failed (not plotted)" in text
    assert "No trial is chosen yet." in text


def test_the_comparison_counts_and_ranks_the_methods(build_search):
    trials = points(("ga", 0.5, 0.9, 0.6), ("simnpo", 0.9, 0.97, 0.93), ("simnpo", 0.8, 0.9, 0.8))
    trials.append((build_row(3, "npo", status="failed", error="NaN"), []))
    table = best_of_methods(read_search(build_search(trials)))
    rows = [dict(zip([c.key for c in table.columns], row, strict=True)) for row in table.rows]
    assert [row["method"] for row in rows] == ["SimNPO", "GA", "NPO"]
    assert rows[0]["device_seconds"] == 50.0
    assert [row["frontier"] for row in rows] == [1, 0, 0]
    assert [row["failed"] for row in rows] == [0, 0, 1]
    assert rows[2]["objective"] is None


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


def test_the_best_of_a_method_is_above_the_floor_where_it_can_be(build_search):
    results = read_search(
        build_search(points(("simnpo", 0.99, 0.94, 0.954), ("simnpo", 0.9, 0.96, 0.929)), chosen="simnpo-0001")
    )
    assert best_of_methods(results).rows[0][1] == 0.929
    chosen, most = describe_frontier(results)
    assert "highest objective, 0.929, of all trials with utility at or above the floor" in chosen
    assert most.startswith("Forgets most: SimNPO, trial 0")


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


def test_durations_read_as_spoken():
    assert [duration(s) for s in (4.26, 45, 750, 9000, 200_000)] == ["4.3 s", "45 s", "12 min", "2.5 h", "2.3 days"]


def test_a_folder_without_a_search_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no search"):
        write_report(tmp_path)


def test_the_page_without_data_is_small(build_search):
    assert len(page_of(build_search([])).encode()) < 100_000


def test_the_report_needs_neither_torch_nor_ray():
    code = (
        "import sys, ray_unlearn.report, ray_unlearn.report.page, ray_unlearn.report.figure;"
        "print([name for name in ('torch', 'ray', 'deepspeed', 'matplotlib.pyplot') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
