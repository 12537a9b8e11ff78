"""`ray_unlearn report`: write a search's report again."""

from __future__ import annotations

from pathlib import Path

from ray_unlearn.commands.options import Report
from ray_unlearn.commands.reopen import fetched
from ray_unlearn.records.tables import REPRODUCTION, read_search
from ray_unlearn.report import write_files, write_report


def run(options: Report) -> int:
    for path in report_again(fetched(options.folder)):
        print(path)
    return 0


def report_again(folder: Path) -> list[Path]:
    """Write a search's or a reproduction's report, and what Optuna's view of the search lacks; the files."""
    if (folder / REPRODUCTION).is_file():
        return write_report(folder)
    from ray_unlearn.search.optuna_log import FILE, update_studies

    results = read_search(folder)
    files = write_files(results)
    update_studies(results)
    return [*files, folder / FILE] if (folder / FILE).is_file() else files
