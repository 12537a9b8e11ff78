#!/usr/bin/env bash
# A notebook cell prints a line, runs a Ray Tune search with `verbose=0` and prints another line. Expected: both lines
# stand in the cell, for a silent search prints nothing. Seen with Ray 2.60.0: the first line is gone. In a notebook Tune
# takes a reporter that clears the cell's output before it writes, also where nothing is to be written. With a
# `progress_reporter` of one's own that never reports, both lines stay.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" --quiet --disable-pip-version-check install 'ray[tune]==2.60.0' ipykernel==7.4.0 \
    nbclient==0.11.0 nbformat==5.11.1
cd "$place"
env/bin/python - <<'PY'
import nbformat
import ray
from nbclient import NotebookClient

print("ray", ray.__version__)
CELL = """
import ray
from ray import tune

class Silent(tune.ProgressReporter):
    def should_report(self, trials, done=False):
        return False

    def report(self, trials, done, *sys_info):
        pass

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
print("before the search")
how = tune.RunConfig(verbose=0, storage_path=PLACE, progress_reporter=REPORTER)
tune.Tuner(lambda config: {"loss": config["x"]}, param_space={"x": 1.0}, run_config=how).fit()
print("after the search")
ray.shutdown()
"""


def lines(reporter: str) -> list[str]:
    """What stands in the cell when it has run."""
    cell = CELL.replace("REPORTER", reporter).replace("PLACE", repr(f"{__import__('os').getcwd()}/runs"))
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    NotebookClient(book, timeout=300, kernel_name="python3").execute()
    text = "".join(output.get("text", "") for output in book.cells[0].outputs)
    return [line for line in text.splitlines() if line.endswith("the search")]


both = ["before the search", "after the search"]
own, default = lines("Silent()"), lines("None")
print(f"with a reporter that never reports: {own}")
print(f"with verbose=0 alone: expected {both}, seen {default}")
assert own == both, "this has changed"
assert default == ["after the search"], "this has changed"
PY
