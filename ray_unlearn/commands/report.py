"""`ray_unlearn report`: write a search's report again."""

from __future__ import annotations

from pathlib import Path

from ray_unlearn.commands.checks import check_writable
from ray_unlearn.commands.options import Report
from ray_unlearn.commands.reopen import fetched
from ray_unlearn.records.tables import REPRODUCTION, read_search
from ray_unlearn.report import write_files, write_report
from ray_unlearn.report.together import put_together


def run(options: Report) -> int:
    first, *others = map(fetched, options.folders)
    for path in report_together([first, *others], options.out) if others else report_again(first, options.out):
        print(path)
    return 0


def report_together(folders: list[Path], out: Path | None = None) -> list[Path]:
    """Write one report of several searches into `out`, or together/report beside the first one; the files."""
    results = put_together([read_search(folder) for folder in folders], folders[0].absolute().parent / "together")
    check_writable(out or results.folder / "report", *_way_out(out))
    return write_files(results, out)


def report_again(folder: Path, out: Path | None = None) -> list[Path]:
    """Write a search's or a reproduction's report, and what Optuna's view of the search lacks; the files.

    out: the folder for all of them, in place of the search's own. Raises UserError where nothing can be written there.
    """
    if (folder / REPRODUCTION).is_file():
        check_writable(out or folder, *_way_out(out))
        return write_report(folder, out)
    from ray_unlearn.search.optuna_log import FILE, update_studies

    results = read_search(folder)
    check_writable(out or folder / "report", *_way_out(out))
    files = write_files(results, out)
    update_studies(results, out)
    view = (out or folder) / FILE
    return [*files, view] if view.is_file() else files


def _way_out(out: Path | None) -> tuple[str, str]:
    return ("--out", "Give another folder") if out else ("report", "Give a folder with --out")
