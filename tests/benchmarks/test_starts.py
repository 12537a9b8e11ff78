"""Which starting models can be judged, and what is said of the others."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ray_unlearn.benchmarks import load_benchmark
from ray_unlearn.benchmarks.contract import Aim, Benchmark, Keep, Profile, Request
from ray_unlearn.benchmarks.miniatures import tofu as tofu_mini
from ray_unlearn.benchmarks.miniatures.shapes import write_untrained
from ray_unlearn.benchmarks.objective import Judge, relative, two_sided
from ray_unlearn.benchmarks.starts import Start, check_start
from ray_unlearn.benchmarks.tofu import MINI
from ray_unlearn.config import FLOORED, GangConfig, SearchConfig, UserError
from ray_unlearn.metrics.errors import accuracy_error, ks_error, standard_error
from ray_unlearn.metrics.ranking import Ranking
from ray_unlearn.records.tables import write_json
from ray_unlearn.search.run import _record_start, _recorded_left_out
from ray_unlearn.training.in_process import build_models, local_worker

TOFU = {
    **{f"{name}_probability": 0.6 for name in ("retain", "real_authors", "world_facts")},
    **{f"{name}_truth_ratio": 0.5 for name in ("retain", "real_authors", "world_facts")},
    **{"forget_ks_distance": 0.96, "forget_exact_memorisation": 1.0, "teacher_forced_utility": 0.5},
}
RANKING = Ranking(0.95)
RETRAINED = Profile({"forget_ks_distance": 0.0, "forget_exact_memorisation": 0.5})


def wmdp(right_of_the_kept: float, num_questions: int = 100) -> Start:
    correct = {"forget": 0.9, "general": right_of_the_kept}
    answers = {side: np.arange(num_questions) < share * num_questions for side, share in correct.items()}
    start = Profile(
        {f"{side}_accuracy": float(right.mean()) for side, right in answers.items()},
        errors={f"{side}_accuracy": accuracy_error(right, 0.25) for side, right in answers.items()},
    )
    judge = Judge.build(load_benchmark("wmdp"), start.metrics, None, Ranking(0.95))
    return check_start("wmdp", judge, start, None)


def tofu(num_questions: int = 50, rule: Ranking = RANKING, **changed: float) -> tuple[Start, Judge]:
    start = Profile({**TOFU, **changed}, errors={"forget_ks_distance": ks_error(num_questions, num_questions, 3.0)})
    judge = Judge.build(load_benchmark("tofu"), start.metrics, RETRAINED.metrics, rule)
    return check_start("tofu", judge, start, RETRAINED), judge


def refused(call) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.3])
def test_a_start_at_chance_below_it_or_barely_above_it_is_refused_by_name(share):
    message = refused(lambda: wmdp(share))
    assert message.startswith(
        f"wmdp: the starting model's general_accuracy is {share:g}, and a model that knows nothing"
    )
    assert "Give a --model that knows" in message


def test_more_questions_tell_what_few_cannot():
    assert "nothing to keep" in refused(lambda: wmdp(0.3))
    (said,) = wmdp(0.3, num_questions=2000).notes
    assert said.startswith("From start to goal: forget_accuracy 0.9 -> 0.25 (")


def test_a_part_that_the_start_has_nothing_of_is_named_and_left_out_and_others_are_judged():
    start, judge = tofu(world_facts_truth_ratio=0.0)
    assert start.left_out == ("world_facts_truth_ratio",)
    assert start.notes[-1].startswith("world_facts_truth_ratio: the starting model has 0, which cannot be told")
    lost = {**judge.start, "retain_probability": 0.3}
    assert judge.verdict(judge.start).utility == 0.0
    without = Judge.build(load_benchmark("tofu"), judge.start, judge.retrained, Ranking(0.95), (), start.left_out)
    assert without.verdict(judge.start).utility == 1.0
    assert without.verdict(lost).utility == pytest.approx(5 / 6)


def test_what_must_be_kept_is_never_left_out():
    assert "retain_probability is 0.001" in refused(lambda: tofu(retain_probability=0.001))


def test_a_start_that_has_nothing_of_most_parts_is_refused():
    lost = dict.fromkeys([name for name in TOFU if name.endswith("_truth_ratio")], 0.0)
    assert len(tofu(**lost)[0].left_out) == 3
    assert "so there is nothing to keep" in refused(lambda: tofu(**lost, real_authors_probability=0.25))


def test_a_distance_that_so_few_questions_cannot_show_is_said_and_not_aimed_at():
    start, _ = tofu(num_questions=3)
    assert start.left_out == ("forget_ks_distance",)
    assert any(note.startswith("forget_ks_distance: so few questions") for note in start.notes)
    assert tofu(num_questions=10)[0].left_out == ()
    assert "forget_ks_distance is 0.5" in refused(lambda: tofu(num_questions=10, forget_ks_distance=0.5))


@pytest.mark.parametrize("part", [f"{name}_{kind}" for name in ("retain", "real_authors", "world_facts")
                                  for kind in ("probability", "truth_ratio")])  # fmt: skip
def test_each_part_of_tofu_is_measured_against_its_own_start_and_none_can_be_lost(part):
    _, judge = tofu()
    useless = 0.25 if part in ("real_authors_probability", "world_facts_probability") else 0.0
    half = {**judge.start, part: useless + (judge.start[part] - useless) / 2}
    assert judge.verdict(half).utility == pytest.approx(6 / 7)
    assert judge.verdict({**judge.start, part: useless}).utility == 0.0


def test_a_recorded_search_keeps_the_utility_that_it_was_made_with():
    _, judge = tofu(rule=Ranking(0.95, FLOORED))
    assert [keep.metric for keep in judge.keeps] == ["teacher_forced_utility"]


def test_sampled_answers_that_do_not_leak_leave_nothing_to_attack():
    keep, aim = Keep("kept", 0.0), Aim("known", never_knew=0.0)
    benchmark = Benchmark("toy", "", "", {}, (aim,), (keep,), load=None, measure=None, leaks={"forget": "rouge"})
    start = Profile({"kept": 0.9, "known": 0.9, "sampled_rouge": 0.31})
    judge = Judge.build(benchmark, start.metrics, {"rouge": 0.1, "sampled_rouge": 0.3}, Ranking(0.95), ("sample",))
    assert "Leave out --under sample" in refused(lambda: check_start("toy", judge, start, None))


def test_of_sampled_measures_the_one_that_cannot_tell_is_left_out_and_never_perfect():
    """Both models' answers have nothing of one measure (text in a script that it cannot read): that one is absent,
    with its reason, and the other decides."""
    leaks = {"forget": "rouge", "knowledge": "words"}
    benchmark = Benchmark(
        "toy", "", "", {}, (Aim("known", never_knew=0.0),), (Keep("kept", 0.0),), load=None, measure=None, leaks=leaks
    )
    start = Profile({"kept": 0.9, "known": 0.9, "sampled_rouge": 0.0, "sampled_words": 0.8})
    retrained = dict.fromkeys(("rouge", "sampled_rouge"), 0.0) | dict.fromkeys(("words", "sampled_words"), 0.2)
    build = partial(Judge.build, benchmark, start.metrics, retrained, Ranking(0.95), ("sample",))
    found = check_start("toy", build(), start, None)
    assert found.left_out == ("sampled_rouge",)
    assert "sampled_rouge is 0, and the retrained model's answers have 0" in found.notes[-1]
    assert found.notes[-1].endswith("it is left out.")
    metrics = {"kept": 0.9, "known": 0.0, "sampled_rouge": 0.0}
    assert build(left_out=found.left_out).verdict({**metrics, "sampled_words": 0.5}).forget == pytest.approx(0.5)
    assert build(left_out=found.left_out).verdict({**metrics, "sampled_words": 0.8}).forget == 0.0


def test_where_start_and_bound_are_equal_nothing_scores():
    assert two_sided(0.5, start=0.5, goal=0.5) == 0.0
    assert two_sided(0.7, start=0.5, goal=0.5) == 0.0
    for value in (0.1, 0.25, 0.9):
        assert relative(value, start=0.25, useless=0.25) == 0.0
        assert relative(value, start=0.2, useless=0.25) == 0.0


def test_standard_errors_are_those_of_the_mean_and_few_equal_answers_are_no_proof():
    values = np.random.default_rng(0).random(400)
    assert standard_error(values) == pytest.approx(values.std(ddof=1) / 20)
    assert standard_error([1.0]) == 0.5
    assert standard_error([1.0, 1.0]) == 0.25
    assert accuracy_error(np.ones(100, bool), 0.25) == pytest.approx((0.25 * 0.75 / 100) ** 0.5)


def test_chance_exceeds_the_distance_of_two_equal_samples_as_often_as_is_said():
    from scipy.stats import ks_2samp

    draw = np.random.default_rng(0)
    found = [ks_2samp(*draw.random((2, 60))).statistic for _ in range(1000)]
    assert np.mean(np.array(found) > 3.0 * ks_error(60, 60, 3.0)) < 0.02


def test_what_a_search_goes_without_is_kept_for_the_commands_that_come_later(tmp_path):
    asked = {"name": "a", "benchmark": "tofu", "scale": "mini", "methods": ["ga"], "trials": 1, "concurrent": 1}
    asked |= {"objective": "combined", "utility_floor": 0.95, "seed": 0, "model": "m", "gang": {}, "robustness": {}}
    (tmp_path / "local.json").write_text(json.dumps({"config": asked, "request": {}}))
    assert SearchConfig.from_json(asked).left_out == ()
    _record_start(tmp_path, replace(SearchConfig.from_json(asked), left_out=("world_facts_truth_ratio",)))
    local = json.loads((tmp_path / "local.json").read_text())
    assert SearchConfig.from_json(local["config"]).left_out == ("world_facts_truth_ratio",)
    write_json(tmp_path / "search.json", {"config": local["config"]})
    assert _recorded_left_out(tmp_path) == ("world_facts_truth_ratio",)


@pytest.mark.parametrize("name", ["synthetic", "muse"])
def test_a_miniature_s_untrained_network_cannot_be_judged(name):
    task, benchmark = load_benchmark(name).load(Request("mini"), build_models), load_benchmark(name)
    untrained = replace(task, model=str(Path(task.model).parent / "start"))
    start = local_worker(untrained, GangConfig(zero_stage=0)).scorer.evaluate(task.selection)
    judge = Judge.build(benchmark, start.metrics, task.selection.retrained.metrics, RANKING)
    assert f"{name}: the starting model's " in refused(
        lambda: check_start(name, judge, start, task.selection.retrained)
    )


# Through the command


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["wmdp", "tofu", "own data"])
def test_an_untrained_model_is_refused_before_anything_is_searched(name, tmp_path):
    untrained, benchmark = tmp_path / "untrained", [name, "--scale", "mini"]
    write_untrained(untrained, tofu_mini.build_world(MINI).language, MINI, tofu_mini.DATA_SEED)
    if name == "own data":
        for part in ("forget", "retain"):
            rows = [f'{{"question": "What is {part} {i}?", "answer": "It is {i * i}."}}\n' for i in range(12)]
            (tmp_path / f"{part}.jsonl").write_text("".join(rows))
        tables = [
            f'[{p}]\nfile = "{p}.jsonl"\nquestion = "question"\nanswer = "answer"\n' for p in ("forget", "retain")
        ]
        (tmp_path / "own.toml").write_text(f'name = "own"\n{"".join(tables)}')
        benchmark = [str(tmp_path / "own.toml")]
    words = ["tune", "--benchmark", *benchmark, "--model", str(untrained), "--methods", "ga", "--trials", "1"]
    run = subprocess.run(
        [sys.executable, "-m", "ray_unlearn.cli", *words, "--concurrent", "1", "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2, run.stderr + run.stdout
    assert any(f"{benchmark[0]}: the starting model's " in line for line in run.stderr.splitlines()), run.stderr
    assert not list((tmp_path / "out").glob("*/trials/*.parquet"))
