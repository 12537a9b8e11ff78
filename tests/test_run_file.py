"""Options in a file: read, refused by line and key, written by every search, and used again."""

import re
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import get_type_hints

import pytest

from ray_unlearn.benchmarks.contract import Request
from ray_unlearn.commands.options import Evaluate, Plan, Tune
from ray_unlearn.commands.parser import parse
from ray_unlearn.commands.reopen import describe_local
from ray_unlearn.commands.run_file import FOR_THE_COMMAND_LINE, OF_ONE_MACHINE, RUN_FILE, write_run_file
from ray_unlearn.commands.shared_options import default_of
from ray_unlearn.config import UserError
from ray_unlearn.records.tables import LOCAL, write_json
from tests.test_compare import CONFIG

README = (Path(__file__).parents[1] / "README.md").read_text()
WHOLE = """
benchmark = "wmdp"
methods = ["simnpo", "npo"]
trials = 60
trial-timeout = 90          # whole numbers are numbers
utility_floor = 0.9
prune = true
sampler = "gp"
grow-to = {GPU = 16, CPU = 64}
space = ["spaces/simnpo.toml"]
under = "relearn"
"""


def tune(tmp_path: Path, text: str, *words: str) -> Tune:
    (tmp_path / "run.toml").write_text(text)
    return parse(["tune", "--config", str(tmp_path / "run.toml"), *words])[1]


def test_every_kind_of_option_is_read(tmp_path):
    found = tune(tmp_path, WHOLE)
    assert found == Tune(
        **{"config": (tmp_path / "run.toml",), "benchmark": "wmdp", "methods": ("simnpo", "npo"), "trials": 60},
        **{"trial_timeout": 90.0, "utility_floor": 0.9, "prune": True, "sampler": "gp", "under": ("relearn",)},
        **{"grow_to": {"GPU": 16.0, "CPU": 64.0}, "space": (tmp_path / "spaces" / "simnpo.toml",)},
    )


def test_the_command_line_wins_over_the_file_and_later_files_over_earlier_ones(tmp_path):
    (tmp_path / "later.toml").write_text("trials = 7\nseed = 3\n")
    words = ("--config", str(tmp_path / "later.toml"), "--seed", "5", "--no-prune")
    found = tune(tmp_path, WHOLE, *words)
    assert (found.trials, found.seed, found.prune, found.sampler) == (7, 5, False, "gp")
    assert parse(["tune", "--seed", "5", "--config", str(tmp_path / "later.toml")])[1].seed == 5, "in any order"


def test_what_must_be_given_may_stand_in_the_file_and_one_file_serves_several_commands(tmp_path):
    (tmp_path / "run.toml").write_text('benchmark = "wmdp"\nmodel = "owner/name"\ntrials = 9\nprune = true\n')
    _, plan, _ = parse(["plan", "--config", str(tmp_path / "run.toml")])
    assert (type(plan), plan.benchmark, plan.model, plan.trials) == (Plan, "wmdp", "owner/name", 9)
    assert parse(["evaluate", "--config", str(tmp_path / "run.toml")])[1] == Evaluate(
        config=(tmp_path / "run.toml",), benchmark="wmdp", model="owner/name"
    )


def test_a_path_is_beside_the_file_and_a_name_is_a_name(tmp_path):
    (tmp_path / "models").mkdir()
    found = tune(tmp_path, 'model = "models"\ndata = "there"\nbenchmark = "own.toml"\n')
    assert (found.model, found.data) == ("models", tmp_path / "there")
    (tmp_path / "own.toml").touch()
    found = tune(tmp_path, 'model = "./models"\nbenchmark = "own.toml"\n')
    assert (Path(found.model or ""), found.benchmark) == (tmp_path / "models", str(tmp_path / "own.toml"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("\n# more\ntraisl = 3\n", "run.toml, line 3: traisl: no such option. Did you mean train or trials?"),
        ('trials = "3"\n', "run.toml, line 1: trials = '3': must be a whole number"),
        ("trials = true\n", "line 1: trials = True: must be a whole number"),
        ("prune = 1\n", "prune = 1: must be true or false"),
        ('sampler = "best"\n', "sampler = 'best': must be one of tpe, gp"),
        ("methods = [1]\n", "methods = [1]: must be a list of names"),
        ("grow-to = 3\n", "grow-to = 3: must be a table of numbers"),
        ("benchmark = 3\n", "must be a text in quotes"),
        ("trust-remote-code = true\n", "line 1: trust-remote-code: is for the command line alone"),
        ('resume = "x"\n', "resume: is for the command line alone"),
        ("[space.beta]\nlow = 1\n", "line 1: space = {'beta': {'low': 1}}: must be a list of paths"),
        ("trials = \n", "cannot be read as TOML"),
    ],
)
def test_what_is_wrong_is_named_by_file_line_and_key(tmp_path, text, says):
    with pytest.raises(UserError) as error:
        tune(tmp_path, text)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"--config nowhere.toml: no such file"):
        parse(["tune", "--config", "nowhere.toml"])


def test_what_a_search_writes_gives_its_options_again(tmp_path):
    space = tmp_path / "mine.toml"
    space.write_text('method = "npo"\n')
    asked = Tune(benchmark="wmdp", methods=("npo",), under=("quantise",), grow_to={"GPU": 8.0}, space=(space,), lora=4)
    folder = tmp_path / "search"
    folder.mkdir()
    resolved = {"trials": 20, "space": ("spaces/0-mine.toml",)}
    write_run_file(folder, asked, resolved, {"spaces/0-mine.toml": space})
    again = parse(["tune", "--config", str(folder / RUN_FILE)])[1]
    assert again == Tune(
        **{"config": (folder / RUN_FILE,), "benchmark": "wmdp", "methods": ("npo",), "under": ("quantise",)},
        **{"grow_to": {"GPU": 8.0}, "lora": 4, "trials": 20, "space": (folder / "spaces" / "0-mine.toml",)},
    )
    assert again.space[0].read_text() == space.read_text()


def test_where_model_and_data_are_is_known_on_the_machine_of_the_search_alone(tmp_path):
    asked = Tune(benchmark="wmdp", model="/home/somebody/model", data=Path("/data"), address="ray://x", out=Path("/o"))
    write_run_file(tmp_path, asked, {}, {})
    text = (tmp_path / RUN_FILE).read_text()
    assert not re.search("somebody|/data|ray://|/o", text)
    assert parse(["tune", "--config", str(tmp_path / RUN_FILE)])[1].model is None
    config = replace(CONFIG, definition="/own.toml", data="/data")
    write_json(tmp_path / LOCAL, describe_local(config, Request("full", "/m"), None))
    again = parse(["tune", "--config", str(tmp_path / RUN_FILE)])[1]
    assert (again.model, again.data, again.benchmark) == ("/m", Path("/data"), "wmdp")
    (tmp_path / LOCAL).write_text("{}")
    with pytest.raises(UserError, match=r"local.json: cannot be read"):
        parse(["tune", "--config", str(tmp_path / RUN_FILE)])


def shown_options() -> set[str]:
    """The options of `tune` that the README shows."""
    known = {option.name for option in fields(Tune)}
    return {name for word in re.findall(r"--([a-z][a-z-]+)", README) if (name := word.replace("-", "_")) in known}


def test_every_option_of_the_readme_is_in_the_run_file(tmp_path):
    write_run_file(tmp_path, Tune(), {}, {})
    written = {key.replace("-", "_") for key in tomllib.loads((tmp_path / RUN_FILE).read_text())}
    exempt = {*FOR_THE_COMMAND_LINE, *OF_ONE_MACHINE}
    unset = {option.name for option in fields(Tune) if default_of(option) is None}
    assert len(shown_options()) > 20
    assert shown_options() <= written | exempt | unset
    assert written == {option.name for option in fields(Tune)} - exempt - unset
    assert shown_options() <= set(get_type_hints(Tune))
