"""The same from Python: searches, evaluations and what they leave, as objects.

    import ray_unlearn as ru

    search = ru.tune(benchmark="wmdp", scale="mini", methods=["simnpo", "npo"], trials=8)
    search.trials.sort_values("objective")
    search.best["trial_id"], search.frontier(), search.compare(seeds=8), search.export()

Keyword arguments are the command line's options, with underscores; checks, defaults and errors are the same. What is
wrong is raised: UserError where the user can mend it, SearchFailed where something broke on the way, KeyboardInterrupt.
Progress goes to standard output, line by line where that is no terminal. Imports nothing heavy until it is called.
"""

from __future__ import annotations

import difflib
import html
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from ray_unlearn.commands import options
from ray_unlearn.commands.parser import begin, split_names
from ray_unlearn.commands.shared_options import Names, default_of
from ray_unlearn.config import UserError
from ray_unlearn.interruption import exit_code, go_on, is_ending
from ray_unlearn.wording import listing

if TYPE_CHECKING:
    import pandas

    from ray_unlearn.records.tables import SearchResults

FOR_THE_COMMAND_LINE = ("config", "dry_run", "as_json")
"""Options that no function takes: what they are for is a line of Python here."""


@dataclass(frozen=True)
class Search:
    """A search's folder. Everything is read from it when it is asked for, so it may still be running."""

    folder: Path

    def __post_init__(self) -> None:
        """Raises UserError where the folder holds no search."""
        _ = self.results

    @property
    def results(self) -> SearchResults:
        """All tables as plain rows (records/tables.py says what the columns are)."""
        from ray_unlearn.records.tables import read_search

        return read_search(self.folder)

    @property
    def status(self) -> str:
        """ "complete", "partial", "running" or "refused"."""
        return str(self.results.meta.get("status"))

    @property
    def trials(self) -> pandas.DataFrame:
        """One row a trial, in the order of suggestion; points on lines (`--harvest`) have rows of their own."""
        return _frame(self.results.trials)

    @property
    def curves(self) -> pandas.DataFrame:
        """One row an evaluation point."""
        return _frame(self.results.curves)

    @property
    def finals(self) -> pandas.DataFrame:
        """The best trial of each method, the starting and the retrained model, on the held-out half."""
        return _frame(self.results.finals)

    @property
    def best(self) -> dict[str, Any] | None:
        """The chosen trial's row: the highest objective, as everywhere; None where no trial has one."""
        from ray_unlearn.metrics.ranking import Ranking

        results = self.results
        return Ranking.of(results.meta["config"]).best(results.trials)

    @property
    def model(self) -> Path | None:
        """The folder of the chosen trial's model, where it was kept."""
        return place if (place := self.folder / "model").is_dir() else None

    def frontier(self) -> pandas.DataFrame:
        """The trials that no other one beats on both forget and utility, most forgotten first."""
        from ray_unlearn.report.frontier import frontier

        return _frame(frontier(self.results))

    def resume(self, **changes: Any) -> Search:
        """Go on with it, to more `trials` if that is asked for. Raises what `tune` raises."""
        return tune(resume=str(self.folder), **changes)

    def compare(self, **values: Any) -> dict[str, Any]:
        """As `ray_unlearn compare`: seeds=8, searches=8, at_utility=[0.95], ...; the content of comparison.json."""
        from ray_unlearn.commands.compare import compare

        with _begun(options.Compare, {"folder": str(self.folder), **values}) as asked:
            _, code = compare(asked)
            if code == exit_code():
                raise KeyboardInterrupt
        return self.results.comparison or {}

    def export(self, trial: str = "best", **values: Any) -> Path:
        """As `ray_unlearn export`: a trial's model with its card; the folder."""
        from ray_unlearn.commands.export import export

        with _begun(options.Export, {"folder": str(self.folder), "trial": trial, **values}) as asked:
            return export(asked)

    def _repr_html_(self) -> str:
        from ray_unlearn.report.ending import HEAD, find_candidates

        results = self.results
        cells, left = find_candidates(results)
        rows = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in cells)
        head = "".join(f"<th>{name}</th>" for name in HEAD)
        more = f"<p>{left} more: see {html.escape(str(self.folder / 'report' / 'report.html'))}</p>" if left else ""
        title = html.escape(f"{results.meta['name']}: {results.meta.get('status')}, {len(results.trials)} trials")
        return f"<p>{title}</p><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{more}"


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured on the whole benchmark."""

    folder: Path
    metrics: Mapping[str, Mapping[str, float]]
    """By model ("model", and "start" and "retrained" where they are known), its metrics by name."""
    scores: Mapping[str, float]
    """forget, utility and objective, where a starting model was given."""
    harness: Mapping[str, Mapping[str, float]]
    """By task of lm-evaluation-harness, its metrics."""

    @property
    def table(self) -> pandas.DataFrame:
        """One row a metric, one column a model."""
        import pandas

        return pandas.DataFrame(self.metrics)


def tune(**values: Any) -> Search:
    """Run a search as `ray_unlearn tune` does, or with resume=FOLDER what is left of one; Ctrl-C (a notebook's Stop)
    ends it early, with what had ended by then. Raises UserError, SearchFailed; TypeError for an unknown argument."""
    from ray_unlearn.commands.tune import search

    with _begun(options.Tune, values) as asked:
        ended = search(asked)
    assert ended is not None  # there are no dry runs here
    return Search(Path(ended.folder))


def open(folder: str | Path) -> Search:
    """The search in that folder. Raises UserError where there is none."""
    return Search(Path(folder))


def evaluate(**values: Any) -> Evaluation:
    """Score a model on a whole benchmark as `ray_unlearn evaluate` does. Raises what `tune` raises."""
    from ray_unlearn.commands.evaluate import evaluate as run
    from ray_unlearn.config import SearchFailed

    with _begun(options.Evaluate, values) as asked:
        done = run(asked)
    if done.failed:
        raise SearchFailed(f"{done.failed}. The scores are in {done.folder}")
    metrics = {who: dict(profile.metrics) for who, profile in done.evaluation.profiles.items()}
    return Evaluation(Path(done.folder), metrics, dict(done.evaluation.scores), done.harness)


@contextmanager
def _begun(kind: type, values: Mapping[str, Any]) -> Iterator[Any]:
    """The command's options, checked. Behind it this process lives on, and so Ray ends with the command."""
    asked = as_options(kind, values)
    begin(asked)
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    words, sys.argv = sys.argv, ["ray_unlearn", *_words(kind, values)]  # what is recorded as the command
    try:
        yield asked
    finally:
        sys.argv = words
        if is_ending():
            import ray

            go_on()
            ray.shutdown()
        for number, handler in handlers.items() if is_main else ():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # Ray leaves its own


def _words(kind: type, values: Mapping[str, Any]) -> list[str]:
    """The command line that means the same."""
    found = [kind.__name__.lower()]
    for name, value in values.items():
        if value is None or value is False:
            continue
        found.append(f"--{name.replace('_', '-')}")
        if value is not True:
            found.append(",".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
    return found


def as_options(kind: type, values: Mapping[str, Any]) -> Any:
    """The dataclass of a command's options from keyword arguments: lists become tuples, texts become paths where paths
    are wanted. Raises TypeError for an unknown name."""
    hints = get_type_hints(kind)
    names = [option.name for option in fields(kind) if option.name not in FOR_THE_COMMAND_LINE]
    for name in values:
        if name not in names:
            close = difflib.get_close_matches(name, names, 1)
            raise TypeError(f"no such argument: {name}. {f'Did you mean {close[0]}?' if close else ', '.join(names)}")
    if lacking := [o.name for o in fields(kind) if default_of(o) is MISSING and o.name not in values]:
        raise UserError(f"{kind.__name__.lower()}: {listing(lacking)} must be given")
    return kind(**{name: _converted(name, value, hints[name]) for name, value in values.items()})


def _converted(name: str, value: Any, hint: Any) -> Any:
    """The value as the command line would have made it. Raises UserError where it is of another kind."""
    if hint == Names and isinstance(value, str):
        return split_names(value)
    if get_origin(hint) is tuple:
        items = [value] if isinstance(value, str | Path | int | float) else value
        return tuple(_converted(name, item, get_args(hint)[0]) for item in items)
    union = get_args(hint) if NoneType in get_args(hint) else (hint,)
    kinds = [part for part in union if part is not NoneType]
    if value is None and len(kinds) < len(union):
        return None
    kind = kinds[0]
    if get_origin(kind) is Literal:
        is_right, wanted = value in get_args(kind), f"one of {', '.join(map(str, get_args(kind)))}"
    elif get_origin(kind) is not None:
        is_right, wanted = isinstance(value, Mapping), "a mapping"
    elif kind in (Path, str):
        is_right, wanted = isinstance(value, str | Path), "a text or a path"
        value = (Path(value).expanduser() if kind is Path else str(value)) if is_right else value
    else:
        is_right = isinstance(value, (float, int) if kind is float else kind)
        is_right = is_right and isinstance(value, bool) == (kind is bool)
        wanted = {bool: "True or False", int: "a whole number", float: "a number"}[kind]
    if not is_right:
        raise UserError(f"{name}={value!r}: must be {wanted}")
    return value


def _frame(rows: list[dict[str, Any]]) -> pandas.DataFrame:
    import pandas

    return pandas.DataFrame(rows)
