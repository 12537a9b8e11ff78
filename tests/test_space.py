import tomllib
from dataclasses import replace

import pytest

from ray_unlearn.benchmarks import BENCHMARKS, OWN_DATA, load_benchmark
from ray_unlearn.benchmarks.contract import Benchmark
from ray_unlearn.config import UserError
from ray_unlearn.files import read_toml
from ray_unlearn.models.sizes import scaled
from ray_unlearn.search.sampling import MethodStudy, first_points
from ray_unlearn.search.space import Range, build_trial, check_trials, file_method, folder, load_space
from ray_unlearn.training.losses import METHODS, TOKEN, Method

GOOD = """
method = "simnpo"
[fixed]
epochs = 4
[space.learning_rate]
low = 1e-6
high = 1e-4
log = true
at_parameters = 7e9
[space.beta]
low = 1.0
high = 4.0
[[warm_start]]
learning_rate = 1e-5
beta = 2.5
at_parameters = 7e9
[on.wmdp-mini.fixed]
beta = 3.0
"""


def named(benchmark: str) -> Benchmark:
    """The benchmark of that name, or own data called so."""
    return load_benchmark(benchmark) if benchmark in BENCHMARKS else replace(load_benchmark(OWN_DATA), name=benchmark)


def load(tmp_path, text, method="simnpo", benchmark="tofu", scale="full", size=7_000_000_000):
    file = tmp_path / "space.toml"
    file.write_text(text)
    return load_space(METHODS[method], named(benchmark), scale, size, file)


@pytest.mark.parametrize("benchmark", ["wmdp", "tofu", "synthetic"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_shipped_space_that_fits_its_signature(method, benchmark):
    space = load_space(METHODS[method], named(benchmark), "mini", 500_000)
    assert space.ranges
    assert space.warm_starts


def test_every_shipped_file_names_a_method():
    for file in folder().glob("*.toml"):
        assert tomllib.loads(file.read_text())["method"] == file.stem


def test_a_learning_rate_is_moved_to_the_models_size(tmp_path):
    same, small = load(tmp_path, GOOD), load(tmp_path, GOOD, size=1_000_000)
    assert same.ranges["learning_rate"].low == pytest.approx(1e-6)
    assert small.ranges["learning_rate"].low == pytest.approx(1e-6 * 7000**0.6)
    assert small.warm_starts[0]["learning_rate"] == pytest.approx(scaled(1e-5, 7e9, 1_000_000))
    assert small.ranges["beta"] == same.ranges["beta"]


def test_a_benchmarks_own_table_wins(tmp_path):
    space = load(tmp_path, GOOD, benchmark="wmdp", scale="mini")
    assert space.fixed["beta"] == 3.0
    assert "beta" not in space.ranges


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("low = 1.0", "low = 9.0", r"\[space.beta\].*reversed"),
        ("[space.beta]", "[space.temperature]", "temperature"),
        ("low = 1e-6", "low = 0", "logarithmic"),
        ("high = 4.0", 'high = "4"', "needs numbers"),
        ("epochs = 4", "epochs = -1", "epochs"),
        ("epochs = 4", "epoch = 4", "'epoch'"),
        ('"simnpo"', '"npo"', "method"),
        ("[fixed]", "[fixed", "TOML"),
        ("epochs = 4", "epochs = 2.5", "whole numbers"),
        ("epochs = 4", "epochs = 0", "between 1"),
        ("epochs = 4", "warmup_fraction = 5", "between 0 and 1"),
        ("epochs = 4", "retain_weight = nan", "no number"),
        ("low = 1.0", "low = -1.0", "above 0"),
        ("[space.beta]", "[space.schedule]", "no number"),
        ("[space.beta]", "[space.batch_size]\nlow = 1.5\nhigh = 4\n[space.beta]", "whole numbers"),
        ("[on.wmdp-mini.fixed]", "[on.wmpd-mini.fixed]", "wmpd-mini"),
        ("[on.wmdp-mini.fixed]\nbeta", "on", "'on'|no table|TOML|at_parameters"),
        ("beta = 2.5\nat_parameters = 7e9", 'at_parameters = "x"', "no model size"),
        ("epochs = 4", "beta = 2.0", r"beta is in \[fixed\] and in \[space\]"),
        ("log = true", 'log = "false"', r"\[space.learning_rate\] log = 'false': write true or false"),
        ("high = 4.0", "high = 4.0\ninteger = 1", r"integer = 1: write true or false"),
        ("high = 4.0", "high = 4.0\nat_parameters = 7e9", r"\[space.beta\] has at_parameters"),
        ("learning_rate = 1e-5\n", "", r"\[\[warm_start\]\] has at_parameters"),
        ("learning_rate = 1e-5", "learning_rate = 0", r"learning_rate = 0: its range is logarithmic"),
        ("beta = 2.5", "batch_size = 2.5", r"\[\[warm_start\]\] batch_size = 2.5: takes whole numbers"),
        ("beta = 2.5", 'schedule = "cosine"', "schedule = 'cosine'. Choose one of: linear, constant"),
        ("high = 4.0", "high = 4.0\ninteger = true", r"\[\[warm_start\]\] beta = 2.5: its range has whole numbers"),
    ],
)
def test_what_cannot_work_is_refused_by_name(tmp_path, old, new, message):
    with pytest.raises(UserError, match=message):
        load(tmp_path, GOOD.replace(old, new))


def test_a_parameter_that_the_method_does_not_take_is_refused(tmp_path):
    with pytest.raises(UserError, match="gamma"):
        load(tmp_path, 'method = "npo"\n[space.gamma]\nlow = 0\nhigh = 1\n', method="npo")


def test_the_first_points_are_the_published_ones_then_spread_out(tmp_path):
    space = load(tmp_path, GOOD)
    points = first_points(space, 8, seed=0)
    assert points[0] == {"learning_rate": pytest.approx(1e-5), "beta": 2.5}
    assert len({round(p["beta"], 6) for p in points}) == 8
    for name, range_ in space.ranges.items():
        assert all(range_.low <= p[name] <= range_.high for p in points)
    assert points == first_points(space, 8, seed=0)


PUBLISHED = """
method = "simnpo"
[fixed]
epochs = 4.0
batch_size = 4
[space.learning_rate]
low = 1e-6
high = 1e-3
log = true
[space.beta]
low = 1.0
high = 4.0
[space.evaluations]
low = 1.0
high = 2.0
[[warm_start]]
learning_rate = 5e-3
beta = 7.5
gamma = 0.5
batch_size = 16.0
schedule = "constant"
"""


def test_a_first_point_runs_as_it_is_written(tmp_path):
    """Its settings outside their ranges, and those that are fixed for all other trials."""
    space = load(tmp_path, PUBLISHED)
    assert space.ranges["learning_rate"] == Range(1e-6, 5e-3, log=True)
    assert space.ranges["beta"] == Range(1.0, 7.5)
    study = MethodStudy(space, 4, pareto=False, seed=0)
    first, other = (build_trial(space, name, 0, study.ask(name)) for name in ("first", "other"))
    assert (first.learning_rate, first.parameters, first.batch_size) == (5e-3, {"beta": 7.5, "gamma": 0.5}, 16)
    assert (first.schedule, other.schedule) == ("constant", "linear")
    assert (other.batch_size, other.parameters["gamma"]) == (4, METHODS["simnpo"].parameters["gamma"])


def test_every_published_point_runs_where_there_are_trials_for_it(tmp_path):
    more = "".join(f"[[warm_start]]\nbeta = {beta}\n" for beta in (1.5, 2.5))
    points = [MethodStudy(load(tmp_path, PUBLISHED + more), trials, False, 0) for trials in (2, 4)]
    asked = [[study.ask(str(n))["beta"] for n in range(trials)] for study, trials in zip(points, (2, 4), strict=True)]
    assert asked[0] == [7.5, 1.5]
    assert asked[1][:3] == [7.5, 1.5, 2.5]


def test_a_whole_number_is_one_however_it_is_written(tmp_path):
    """In a range, fixed and in a first point: TOML's 5.0 is 5, and a trial gets an int."""
    space = load(tmp_path, PUBLISHED)
    for point in (*first_points(space, 4, 0), {}):
        trial = build_trial(space, "t", 0, point)
        assert [type(value) for value in (trial.epochs, trial.batch_size, trial.evaluations)] == [int] * 3
    assert space.ranges["evaluations"] == Range(1, 2, integer=True)


def test_a_layer_that_the_model_does_not_have_is_refused_at_both_ends_of_the_space(tmp_path):
    space = load(tmp_path, PUBLISHED.replace("evaluations]\nlow = 1.0\nhigh = 2.0", "hidden_layer]\nlow = 0\nhigh = 3"))
    check_trials(space, num_layers=4)
    with pytest.raises(UserError, match="hidden_layer = 3: the model has layers 0 to 2"):
        check_trials(space, num_layers=3)


def test_a_method_that_is_no_word_is_refused(tmp_path):
    file = tmp_path / "space.toml"
    file.write_text('method = ["simnpo"]')
    with pytest.raises(UserError, match="is unknown"):
        file_method(file)


def test_a_range_is_walked_in_its_own_scale():
    assert Range(1e-4, 1e-2, log=True).at(0.5) == pytest.approx(1e-3)
    assert Range(0.0, 10.0).at(0.25) == 2.5
    assert Range(1, 4, integer=True).at(1.0) == 4


def test_a_method_without_a_file_is_searched_round_its_defaults():
    def toy(forget, *, beta: float = 2.0, margin: float = 0.0):
        return forget.logprobs

    method = Method("toy", "-CE", toy, TOKEN, "")
    space = load_space(method, load_benchmark("wmdp"), "mini", 300_000)
    assert set(space.ranges) == {"learning_rate", "beta", "margin", "retain_weight"}
    assert (space.ranges["beta"].low, space.ranges["beta"].high, space.ranges["beta"].log) == (0.25, 16.0, True)
    assert (space.ranges["margin"].low, space.ranges["margin"].high) == (0.0, 1.0)
    assert space.fixed["epochs"] == 6, "what the miniature fixes for every method holds for it, too"


def test_a_users_own_file_has_the_last_word_over_what_a_benchmark_changes(tmp_path):
    text = 'method = "ga"\n[fixed]\nepochs = 3\n[space.learning_rate]\nlow = 1e-4\nhigh = 1e-3\n'
    space = load(tmp_path, text, "ga", "wmdp", "mini", 300_000)
    assert space.fixed == {"epochs": 3}
    assert space.ranges["learning_rate"].high == 1e-3


def test_no_benchmark_is_named_in_a_shipped_space_file():
    for file in folder().glob("*.toml"):
        assert "on" not in read_toml(file), file.name
