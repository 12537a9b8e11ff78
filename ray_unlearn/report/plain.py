"""The report as plain files: Markdown to paste, CSV to open."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from ray_unlearn.provenance import without_addresses
from ray_unlearn.records.tables import SearchResults
from ray_unlearn.report import budgets, compared, levels, parameters, weighting
from ray_unlearn.report.answers import answers
from ray_unlearn.report.frontier import describe_frontier
from ray_unlearn.report.tables import (
    Table,
    again,
    all_trials,
    best_of_methods,
    budget,
    budget_words,
    headline,
    held_out,
    notices,
    robustness,
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
    visible,
)

_MARKDOWN_TRIALS, _MARKDOWN_EXAMPLES, _MARKDOWN_TEXT = 20, 10, 160
"""Trials and examples in the Markdown, and characters of one of an example's texts."""


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
        _list(describe_frontier(results)),
        "## The methods",
        markdown_table(best_of_methods(results)),
        *_with_fewer_trials(results),
        *_over_searches(results),
        "## Over several seeds",
        *_over_seeds(results),
        *_at_equal_utility(results),
    ]
    if (final := held_out(results)) is not None:
        parts += ["## On the held-out split", markdown_table(final)]
    if (attacked := robustness(results)) is not None:
        parts += ["## Under attack", markdown_table(attacked)]
    if (told := answers(results)) is not None:
        some = told[0].select(range(min(_MARKDOWN_EXAMPLES, len(told[0].rows))))
        title = f"## What it answers now (the {len(some.rows)} best remembered of {told[1]:,} examples)"
        parts += [title, markdown_table(some, _MARKDOWN_TEXT)]
    parts += ["## Which settings matter"]
    if (shares := parameters.importance(results)) is not None:
        parts += [markdown_table(shares)]
    parts += [markdown(parameters.importance_words(results)), _list(parameters.edges(results))]
    if found := weighting.weightings(results):
        said = weighting.allocation_words(found) + weighting.smoothing_words(found)
        parts += [
            "## How the forget loss weighs its examples",
            _list(said),
            markdown_table(weighting.thirds_table(found)),
        ]
    parts += ["## What was spent", markdown(budget_words(results)), markdown_table(budget(results))]
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
        "## To reproduce it",
        markdown_block(command_line(meta["command"])),
        markdown_block(again(results)),
        _list([str(note) for note in meta.get("notes") or []]),
        "\n".join(f"- {markdown(name)}: {markdown(value)}" for name, value in run_facts(results)),
        "Versions: " + ", ".join(f"{markdown(n)} {markdown(str(v))}" for n, v in sorted(meta["versions"].items())),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _with_fewer_trials(results: SearchResults) -> list[str]:
    table = budgets.best_by_budget(results)
    if table is None:
        return []
    told = [budgets.budget_sentence(results), budgets.CAVEAT]
    return ["## With fewer trials", *map(markdown, filter(None, told)), markdown_table(table)]


def _over_searches(results: SearchResults) -> list[str]:
    table = compared.searches(results)
    if table is None:
        return []
    notes = compared.warnings(compared.over_searches(results))
    return [
        "## Methods over whole searches",
        "Each search with a seed of its own; of each, the method's best trial on the held-out split: mean ± standard "
        "deviation.",
        markdown_table(table),
        *[f"> **Warning.** {markdown(text)}" for text in notes],
        _list(compared.method_sentences(results)),
    ]


def _over_seeds(results: SearchResults) -> list[str]:
    table = compared.finalists(results)
    if table is None:
        return ["The finalists have not been compared over several seeds: `ray_unlearn compare <folder>` does that."]
    found = [
        markdown(f"Mean ± standard deviation over {compared.seeds_words(results) or 'several seeds'}."),
        markdown_table(table),
    ]
    found += [f"> **Warning.** {markdown(text)}" for text in compared.warnings(results.comparison)]
    found += [_list(compared.setting_sentences(results))]
    differences = compared.differences(results)
    return found if differences is None else [*found, markdown_table(differences)]


def _at_equal_utility(results: SearchResults) -> list[str]:
    parts = [f"## At equal utility\n\n{markdown(levels.ABOUT)}"] if levels.found(results) else []
    for told in levels.told(results):
        table = levels.points(results, told["unit"])
        parts += [markdown(told["what"]), markdown_table(table) if table else "", _list(told["sentences"])]
        parts += [f"> {markdown(text)}" for text in told["notes"]]
    return parts


def _list(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {markdown(sentence)}" for sentence in sentences)


def markdown_table(table: Table, longest: int = 10**9) -> str:
    """longest: characters of a cell."""
    lines = [
        [markdown(column.label) for column in table.columns],
        ["---:" if column.numeric else "---" for column in table.columns],
        *(
            [
                markdown(visible(text if column.kind == "long" else _last_line(text), longest))
                for column, text in zip(table.columns, row, strict=True)
            ]
            for row in table.texts()
        ),
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]
