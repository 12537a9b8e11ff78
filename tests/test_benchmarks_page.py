"""What `ray_unlearn benchmarks` says is what the judge computes, and what every report prints."""

import re

import pytest

from ray_unlearn.benchmarks import BENCHMARKS, load_benchmark
from ray_unlearn.benchmarks.objective import Judge, describe_objective
from ray_unlearn.commands.benchmarks import describe_benchmarks
from ray_unlearn.metrics.ranking import Ranking
from tests.test_cli import run

NAMED = [name for name in BENCHMARKS if name != "custom"]


def plain(text: str) -> str:
    """Without the page's line breaks, which may be after a hyphen."""
    return re.sub(r"(?<=\w-)\s+|\s+", lambda gap: "" if gap.start() and text[gap.start() - 1] == "-" else " ", text)


def test_all_benchmarks_are_listed_with_data_scales_and_the_objective(capfd):
    code, output, _ = run(capfd, "benchmarks")
    assert code == 0
    for name in BENCHMARKS:
        title = load_benchmark(name).title
        assert f"{name}  ({title})" in output
        assert plain(load_benchmark(name).source) in plain(output)
        assert plain(load_benchmark(name).scales) in plain(output)
    for name in NAMED:
        assert plain(describe_objective(load_benchmark(name), Ranking(0.95))) in plain(output)


def test_one_benchmark_comes_with_all_its_metrics_and_an_unknown_one_with_the_names_that_there_are(capfd):
    output = describe_benchmarks("muse")
    for name, note in load_benchmark("muse").metrics.items():
        assert re.search(rf"^  {name} +{re.escape(note)}$", output, re.MULTILINE)
    code, _, errors = run(capfd, "benchmarks", "wmpd")
    assert code == 2
    assert "muse, synthetic, tofu, wmdp" in errors


@pytest.mark.parametrize("name", NAMED)
def test_the_objective_names_every_metric_it_is_made_of_and_its_own_numbers(name):
    benchmark = load_benchmark(name)
    text = describe_objective(benchmark, Ranking(0.8))
    for part in (*benchmark.aims, *benchmark.keeps):
        assert f"{part.metric} ({benchmark.metrics[part.metric]})" in text
    for aim in benchmark.aims:
        assert aim.hold_out is None or f"{aim.hold_out} for {aim.metric}" in text
        assert aim.never_knew is None or f"{aim.never_knew:g}" in text
    for keep in benchmark.keeps:
        assert f"{keep.useless:.3g}" in text
    assert "(utility / 0.8) ** 12 where utility is under the floor of 0.8" in text
    assert all(metric in text for metric in benchmark.privacy)
    assert set(benchmark.privacy) <= set(benchmark.metrics)


def test_a_floor_of_zero_is_no_floor_and_attacks_are_named():
    benchmark = load_benchmark("tofu")
    text = describe_objective(benchmark, Ranking(0.0), ("relearn", "sample"))
    assert "floor" not in text
    assert "the same of the relearned model" in text
    assert "forget_rouge_l_recall" in text
    assert "lowest of" not in describe_objective(benchmark, Ranking(0.0))


def test_what_is_said_to_be_left_out_without_a_retrained_model_is_left_out():
    benchmark = load_benchmark("muse")
    assert "else forget_qa_probability is left out" in describe_objective(benchmark, Ranking(0.95))
    start = dict.fromkeys(benchmark.metrics, 0.5)
    judge = Judge.build(benchmark, start, None, Ranking(0.95))
    assert "forget_qa_probability" not in {aim.metric for aim in judge.aims}
