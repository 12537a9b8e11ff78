"""A search's folder -> one page, pictures and tables that people can pass on. Reads results, nothing else.

report/report.html     everything, in one file that fetches nothing
report/report.md       the same tables as text
report/pareto.png      the picture, for a page
report/pareto.svg      the picture, for a paper
report/trials.csv      every trial, every column, full precision
"""

from __future__ import annotations

from pathlib import Path

from ray_unlearn.report.frontier import describe_frontier, frontier
from ray_unlearn.results import REPRODUCTION, read_search

__all__ = ["describe_frontier", "frontier", "write_report"]


def write_report(folder: Path) -> list[Path]:
    """Writes `folder`/report and returns the files. Raises UserError where `folder` holds no search.

    A reproduction's folder gets its own report, beside its data.
    """
    # Jinja and Matplotlib are imported on use: the sentences alone must not cost a second.
    from ray_unlearn.report.figure import draw_figure
    from ray_unlearn.report.page import render_page
    from ray_unlearn.report.plain import render_csv, render_markdown

    if (folder / REPRODUCTION).is_file():
        from ray_unlearn.report.reproduction import write_reproduction

        return write_reproduction(folder)
    results = read_search(folder)
    place = folder / "report"
    place.mkdir(exist_ok=True)
    texts = {
        "report.html": render_page(results),
        "report.md": render_markdown(results),
        "trials.csv": render_csv(results),
    }
    for name, text in texts.items():
        (place / name).write_text(text, encoding="utf-8", newline="")
    figures = [place / "pareto.png", place / "pareto.svg"]
    draw_figure(results, figures)
    return [place / "report.html", place / "report.md", *figures, place / "trials.csv"]
