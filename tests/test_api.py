"""The Python interface: light to import, as strict as the command line, and the same objects in a notebook."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import ray_unlearn as ru
from ray_unlearn.api import as_options
from ray_unlearn.commands import options
from ray_unlearn.config import SearchFailed

CELLS = [
    (
        "import os, signal, sys\nimport ray_unlearn as ru\n"
        "def state():\n    return os.fstat(1).st_ino, sys.stdout, sys.argv, signal.getsignal(2), signal.getsignal(15)\n"
        "before = state()"
    ),
    (
        "search = ru.tune(benchmark='synthetic', methods=['simnpo'], trials=2, concurrent=1, robustness='none', "
        "out=PLACE)\nprint('ended', search.status)"
    ),
    "search",
    (
        "assert before == state(), 'all is as it was'\n"
        "assert search.results.meta['command'][:3] == ['tune', '--benchmark', 'synthetic']\n"
        "assert list(search.trials.trial_id) == ['simnpo-0000', 'simnpo-0001']\n"
        "assert search.best['objective'] == search.trials.objective.max()\n"
        "assert set(search.frontier().trial_id) <= set(search.trials.trial_id)\n"
        "again = ru.open(search.folder)\n"
        "assert again.trials.equals(search.trials) and again.model.is_dir()"
    ),
    "more = search.resume(trials=3)\nassert len(more.trials) == 3",
    "place = search.export()\nassert (place / 'README.md').is_file()",
    "try:\n    search.export(trial='nobody')\nexcept ru.UserError as error:\n    print('refused:', error)",
]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_notebook_searches_reads_goes_on_and_exports(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_code_cell(cell.replace("PLACE", repr(str(tmp_path / "results")))) for cell in CELLS]
    NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()

    def said(number: int) -> str:
        return "".join(output.get("text", "") for output in book.cells[number].outputs)

    assert "searching: 2 trials each of simnpo" in said(1), "progress is in the cell"
    assert "ended complete" in said(1)
    assert "Report:" not in said(1), "the command's last screen is not"
    (shown,) = (output for output in book.cells[2].outputs if output.output_type == "execute_result")
    assert "simnpo-000" in shown["data"]["text/html"]
    assert "chosen" in shown["data"]["text/html"]
    assert said(6).startswith("refused: --trial nobody: no such trial")


def test_importing_it_imports_nothing_heavy():
    code = "import sys, ray_unlearn as ru; ru.tune; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "ray", "transformers", "pandas", "pyarrow", "numpy"} & set(loaded)


def test_an_unknown_name_is_a_type_error_that_names_the_nearest():
    with pytest.raises(TypeError, match="no such argument: trails"):
        ru.tune(benchmark="wmdp", trails=3)
    with pytest.raises(TypeError, match="dry_run"):
        ru.tune(benchmark="wmdp", dry_run=True)
    with pytest.raises(AttributeError, match="nothing"):
        _ = ru.nothing


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"trials": "8"}, "trials='8': must be a whole number"),
        ({"trials": True}, "must be a whole number"),
        ({"utility_floor": "high"}, "must be a number"),
        ({"prune": 1}, "must be True or False"),
        ({"sampler": "best"}, "sampler='best': must be one of tpe"),
        ({"benchmark": 3}, "must be a text or a path"),
        ({"grow_to": 3}, "must be a mapping"),
        ({"methods": [3]}, "must be a text or a path"),
    ],
)
def test_a_value_of_another_kind_is_named(values, says):
    with pytest.raises(ru.UserError, match=says):
        as_options(options.Tune, {"benchmark": "wmdp", **values})


def test_values_become_what_the_command_line_makes_of_them():
    given = {"benchmark": Path("own.toml"), "methods": ["npo"], "out": "~/x", "space": "a.toml", "trials": None}
    made = as_options(options.Tune, given)
    assert made == options.Tune(
        benchmark="own.toml", methods=("npo",), out=Path("~/x").expanduser(), space=(Path("a.toml"),)
    )
    with pytest.raises(ru.UserError, match="evaluate: model must be given"):
        as_options(options.Evaluate, {})


def test_errors_are_exceptions_and_what_the_command_would_say(tmp_path):
    with pytest.raises(ru.UserError, match="holds no search"):
        ru.open(tmp_path)
    with pytest.raises(ru.UserError, match="no_such_method: unknown"):
        ru.tune(benchmark="synthetic", methods=["no_such_method"], out=tmp_path)
    with pytest.raises(ru.UserError, match="--trials 0"):
        ru.tune(benchmark="synthetic", trials=0, out=tmp_path)
    assert ru.SearchFailed is SearchFailed


def test_a_folder_is_read_as_tables(tmp_path):
    from tests.test_results import written

    folder = written(tmp_path)
    meta = json.loads((folder / "search.json").read_text())
    (folder / "search.json").write_text(json.dumps(meta | {"status": "running", "config": {"utility_floor": 0.95}}))
    search = ru.open(folder)
    assert search.status == "running"
    assert list(search.trials.trial_id) == ["ga-0000", "simnpo-0000"]
    assert list(search.curves.step) == [3]
    assert search.finals.empty
    assert search.model is None
