"""A search's folder -> one page, pictures and tables that people can pass on. Reads results, nothing else.

report/report.html     everything, in one file that fetches nothing
report/report.md       the same tables as text
report/pareto.png      the picture, for a page
report/pareto.pdf, pareto.svg   the picture, for a paper: no headline, text that can be searched and set anew
report/trials.csv      every trial, every column, full precision
report/trials.parquet, curves.parquet, finals.parquet    the same typed, and all curves and finals: see whole.py
report/at_utility.parquet  every point at equal utility, where they were compared, see levels.py
report/frontier.parquet    the frontier's rows, typed and checksummed
report/tables.tex      the comparison and the frontier, for a paper
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from ray_unlearn.records.tables import REPRODUCTION, SearchResults, read_search, trial_schema, write_table
from ray_unlearn.report.frontier import describe_frontier, frontier, parameter_names

__all__ = ["describe_frontier", "frontier", "write_files", "write_report"]


def write_report(folder: Path, out: Path | None = None) -> list[Path]:
    """Writes `folder`/report, or `out`, and returns the files. Raises UserError where `folder` holds no search.

    A reproduction's folder gets its own report, beside its data.
    """
    if (folder / REPRODUCTION).is_file():
        from ray_unlearn.report.reproduction import write_reproduction

        return write_reproduction(folder, out)
    return write_files(read_search(folder), out)


def write_files(results: SearchResults, out: Path | None = None) -> list[Path]:
    """The same of a search that has been read."""
    # Jinja and Matplotlib are imported on use: the sentences alone must not cost a second.
    from ray_unlearn.report.figure import draw_figure
    from ray_unlearn.report.levels import write_levels
    from ray_unlearn.report.page import render_page
    from ray_unlearn.report.papers import render_latex
    from ray_unlearn.report.plain import render_csv, render_markdown
    from ray_unlearn.report.whole import write_whole

    place = out or results.folder / "report"
    place.mkdir(parents=True, exist_ok=True)
    texts = {
        "report.html": render_page(results),
        "report.md": render_markdown(results),
        "trials.csv": render_csv(results),
        "tables.tex": render_latex(results),
    }
    for name, text in texts.items():
        (place / name).write_text(text, encoding="utf-8", newline="")
    figures = [place / "pareto.png", place / "pareto.svg", place / "pareto.pdf"]
    draw_figure(results, figures[:1])
    draw_figure(results, figures[1:], for_paper=True)
    front = place / "frontier.parquet"
    write_table(front, _schema(results), frontier(results))
    written = [place / "report.html", place / "report.md", *figures, place / "trials.csv", front, place / "tables.tex"]
    return [*written, *write_whole(results, place), *write_levels(results, place)]


def _schema(results: SearchResults) -> pa.Schema:
    """Of the trials, from what their rows have."""
    metrics = [name for name in (results.trials[0] if results.trials else {}) if "/" in name]
    return pa.schema([*trial_schema("", parameter_names(results), []), *((name, pa.float64()) for name in metrics)])
