"""Tables for a paper: LaTeX with booktabs."""

from __future__ import annotations

from ray_unlearn.records.tables import SearchResults
from ray_unlearn.report import compared, levels
from ray_unlearn.report.tables import Table, best_of_methods, frontier_table, headline
from ray_unlearn.report.text import latex


def render_latex(results: SearchResults) -> str:
    """The comparison over seeds where there is one, else each method's best trial; then the frontier."""
    over_seeds = compared.finalists(results)
    about = f"{headline(results)}."
    if over_seeds is not None:
        seeds = compared.seeds_words(results) or "several seeds"
        first = _table(over_seeds, f"{about} Mean and standard deviation over {seeds}, held-out split.", "comparison")
    else:
        caption = f"{about} Each method's best trial, one seed, selection split."
        first = _table(best_of_methods(results), caption, "best")
    for unit in levels.found(results):
        table = levels.points(results, unit)
        assert table is not None
        caption = f"{about} Forget score where utility is equal, held-out split, one row a level and method."
        first += "\n" + _table(table, caption, f"at-utility-{unit}")
    front = _table(frontier_table(results), f"{about} The frontier of forget score and utility.", "frontier")
    return f"% Needs \\usepackage{{booktabs}}.\n\n{first}\n{front}"


def _table(table: Table, caption: str, label: str) -> str:
    heads = " & ".join(latex(column.label) for column in table.columns)
    rows = "".join(f"{' & '.join(latex(text) for text in texts)} \\\\\n" for texts in table.texts())
    return (
        "\\begin{table}\n\\centering\n"
        f"\\caption{{{latex(caption)}}}\n\\label{{tab:{label}}}\n"
        f"\\begin{{tabular}}{{{''.join('r' if column.numeric else 'l' for column in table.columns)}}}\n"
        f"\\toprule\n{heads} \\\\\n\\midrule\n{rows}\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
    )
