"""The report as plain files: Markdown to paste, CSV to open."""

from __future__ import annotations

import csv
import io

from ray_unlearn.report.frontier import describe_frontier
from ray_unlearn.report.tables import (
    Table,
    all_trials,
    comparison,
    headline,
    held_out,
    notices,
    run_facts,
    shared_settings,
    standfirst,
    tally,
)
from ray_unlearn.report.text import (
    command_line,
    markdown,
    markdown_block,
    spreadsheet_cell,
    without_addresses,
)
from ray_unlearn.results import SearchResults

_MARKDOWN_TRIALS = 20


def render_csv(results: SearchResults) -> str:
    """Every trial in the order of suggestion, every column, full precision."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = list(results.trials[0]) if results.trials else []
    writer.writerow([spreadsheet_cell(name) for name in names])
    for row in results.trials:
        values = {**row, "error": without_addresses(row["error"] or "")}
        writer.writerow([spreadsheet_cell(values.get(name)) for name in names])
    return file.getvalue()


def render_markdown(results: SearchResults) -> str:
    meta = results.meta
    trials, _ = all_trials(results)
    parts = [f"# {markdown(headline(results))}", markdown(standfirst(results))]
    parts += [f"> **{markdown(title)}.** {markdown(text)}" for title, text in notices(results)]
    parts += [
        "![Forget score against utility, one mark a trial](pareto.png)",
        markdown(tally(results)),
        "## The frontier",
        "\n".join(f"- {markdown(sentence)}" for sentence in describe_frontier(results)),
        "## The methods",
        markdown_table(comparison(results)),
    ]
    if (final := held_out(results)) is not None:
        parts += ["## On the held-out split", markdown_table(final)]
    best = Table(trials.columns, trials.rows[:_MARKDOWN_TRIALS])
    cut = f" (the best {len(best.rows)} of {len(trials.rows)}; all are in `trials.csv`)"
    parts += [f"## The trials{cut if len(best.rows) < len(trials.rows) else ''}"]
    if shared := shared_settings(results):
        parts += [f"The same in every trial: {markdown(', '.join(shared))}."]
    parts += [
        markdown_table(best),
        "## What is measured",
        markdown(meta["objective_text"]),
        "\n".join(f"- `{name}`: {markdown(str(note))}" for name, note in meta["metrics"].items()),
        "## To run it again",
        markdown_block(command_line(meta["command"])),
        "\n".join(f"- {markdown(name)}: {markdown(value)}" for name, value in run_facts(results)),
        "Versions: " + ", ".join(f"{markdown(n)} {markdown(str(v))}" for n, v in sorted(meta["versions"].items())),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_table(table: Table) -> str:
    lines = [
        [markdown(column.label) for column in table.columns],
        ["---:" if column.numeric else "---" for column in table.columns],
        *([markdown(_last_line(text)) for text in row] for row in table.texts()),
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]
