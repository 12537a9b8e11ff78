"""Wrong use ends in one clear line and exit code 2, before Ray starts; `--dry-run` says what would run."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ray_unlearn import cli
from ray_unlearn.commands.checks import take_folder


def run(capfd, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command."""
    before = sys.argv
    sys.argv = ["ray_unlearn", *arguments]
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = before
    output = capfd.readouterr()
    return code, output.out, output.err


@pytest.fixture
def no_ray(monkeypatch):
    """Ray may not start."""
    import ray

    def refuse(*positional, **named):
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", refuse)


def space_file(folder: Path, text: str) -> str:
    path = folder / "space.toml"
    path.write_text(text)
    return str(path)


REVERSED = 'method = "simnpo"\n[space.beta]\nlow = 4.0\nhigh = 1.0\n'
FOREIGN = 'method = "ga"\n[space.beta]\nlow = 1.0\nhigh = 4.0\n'


@pytest.mark.timeout(300)  # the miniature's models may have to be trained first
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--benchmark", "wmpd"], ["--benchmark wmpd", "muse, synthetic, tofu, wmdp"]),
        (["--benchmark", "wmdp", "--methods", "simnpo,magic"], ["method magic", "graddiff"]),
        (["--benchmark", "wmdp", "--methods", "ga,ga"], ["names one twice"]),
        (["--benchmark", "wmdp", "--methods", ""], ["names no method"]),
        (["--benchmark", "wmdp", "--workers-per-trial", "0", "--zero", "3"], ["--zero 3", "at least 1"]),
        (["--benchmark", "wmdp", "--workers-per-trial", "-2"], ["--workers-per-trial -2"]),
        (["--benchmark", "wmdp", "--trials", "0"], ["--trials 0", "at least 1"]),
        (["--benchmark", "wmdp", "--concurrent", "0"], ["--concurrent 0"]),
        (["--benchmark", "wmdp", "--utility-floor", "1.5"], ["--utility-floor 1.5", "between 0 and 1"]),
        (["--benchmark", "wmdp", "--seed", "-1"], ["--seed -1"]),
        (["--benchmark", "wmdp", "--scale", "full"], ["--scale full", "GPU", "--scale mini"]),
        (["--benchmark", "wmdp", "--gpus-per-worker", "1"], ["--gpus-per-worker 1", "no GPU"]),
        (["--benchmark", "wmdp", "--model", "./nowhere"], ["--model ./nowhere", "no such folder"]),
        (["--benchmark", "wmdp", "--model", "{empty}"], ["holds no model", "config.json"]),
        (["--benchmark", "wmdp", "--data", "./nowhere"], ["--data nowhere", "no such folder"]),
        (["--benchmark", "wmdp", "--space", "./nowhere.toml"], ["nowhere.toml", "no such file"]),
        (["--benchmark", "wmdp", "--space", "{reversed}"], ["[space.beta]", "reversed"]),
        (["--benchmark", "wmdp", "--space", "{foreign}"], ["'beta'", "ga takes"]),
        (["--benchmark", "wmdp", "--methods", "npo", "--space", "{good}"], ["simnpo", "--methods"]),
        (["--benchmark", "tofu", "--data", "{empty}"], ["--data", "miniature generates its data"]),
        (["--benchmark", "tofu", "--split", "forget99"], ["--split forget99", "forget10"]),
        (["--benchmark", "synthetic", "--split", "some"], ["--split some", "Leave --split out"]),
        (["--benchmark", "wmdp", "--train", "("], ["--train (", "regular expression"]),
        (["--benchmark", "wmdp", "--train", "no_such_weight"], ["--train no_such_weight", "names no parameter"]),
        (["--benchmark", "wmdp", "--lora", "-1"], ["--lora -1"]),
        (["--benchmark", "tofu", "--model", "{model}", "--split", "forget99"], ["--split forget99", "forget10"]),
    ],
)
def test_what_cannot_work_is_one_line_and_exit_code_2(capfd, tmp_path, tiny_model, no_ray, options, says):
    (tmp_path / "empty").mkdir()
    places = {
        "{empty}": str(tmp_path / "empty"),
        "{model}": str(tiny_model),
        "{reversed}": space_file(tmp_path, REVERSED) if "{reversed}" in options else "",
        "{foreign}": space_file(tmp_path, FOREIGN) if "{foreign}" in options else "",
        "{good}": space_file(tmp_path, REVERSED.replace("4.0", "0.5")) if "{good}" in options else "",
    }
    options = [places.get(option, option) for option in options]
    methods = ["--methods", "simnpo,ga"] if "--methods" not in options else []
    code, _, errors = run(capfd, "tune", *options, *methods, "--out", str(tmp_path / "out"))
    assert code == 2
    lines = [line for line in errors.splitlines() if line.startswith("ray_unlearn: ")]
    assert len(lines) == 1
    assert "Traceback" not in errors
    for words in says:
        assert words in lines[0]


@pytest.mark.parametrize("place", ["/proc/results", "{file}/results"])
def test_an_output_folder_that_cannot_be_written_is_refused(capfd, tmp_path, no_ray, place):
    (tmp_path / "file").touch()
    place = place.replace("{file}", str(tmp_path / "file"))
    code, _, errors = run(capfd, "tune", "--benchmark", "wmdp", "--out", place)
    assert code == 2
    assert "--out" in errors
    assert "cannot be written" in errors


def test_an_unknown_option_is_refused_with_the_right_exit_code(capfd):
    code, _, errors = run(capfd, "tune", "--benchmark", "wmdp", "--trails", "3")
    assert code == 2
    assert "--trails" in errors


def test_an_unknown_sampler_is_refused_with_the_names_that_there_are(capfd):
    code, _, errors = run(capfd, "tune", "--benchmark", "wmdp", "--sampler", "grid")
    assert code == 2
    for name in ("--sampler", "grid", "tpe", "gp", "nsga2", "qmc", "random"):
        assert name in errors


@pytest.mark.timeout(300)  # the miniature's models may have to be trained first
@pytest.mark.parametrize("benchmark", ["wmdp", "tofu"])
def test_a_dry_run_says_what_would_run_and_leaves_nothing(capfd, tmp_path, no_ray, benchmark):
    code, output, _ = run(
        capfd,
        "tune",
        "--benchmark",
        benchmark,
        "--methods",
        "simnpo,npo",
        "--dry-run",
        "--out",
        str(tmp_path),
        "--prune",
    )
    assert code == 0
    assert "MINI" in output
    for words in (f"{benchmark} (mini)", "with pruning", "20 each of simnpo, npo", "learning_rate", "retain_weight"):
        assert words in output
    assert os.listdir(tmp_path) == []


def test_report_of_a_folder_without_a_search_says_so(capfd, tmp_path):
    code, _, errors = run(capfd, "report", str(tmp_path))
    assert code == 2
    assert "holds no search" in errors


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--benchmark", "tofu"], "--model"),
        (["--benchmark", "synthetic", "--model", "{model}"], "makes its models by itself"),
        (["--benchmark", "tofu", "--model", "{model}", "--epochs", "0"], "--epochs 0"),
        (["--benchmark", "tofu", "--model", "{model}", "--workers", "0"], "--workers 0"),
    ],
)
def test_prepare_refuses_what_cannot_work(capfd, tmp_path, tiny_model, no_ray, options, says):
    options = [str(tiny_model) if option == "{model}" else option for option in options]
    code, _, errors = run(capfd, "prepare", *options, "--out", str(tmp_path / "out"))
    assert code == 2
    assert says in errors


def test_commands_of_the_same_second_get_a_folder_each(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda _: take_folder(tmp_path / "s-20260101-000000"), range(8)))
    assert sorted(path.name for path in taken)[:2] == ["s-20260101-000000", "s-20260101-000000-2"]
    assert len(set(taken)) == 8
    assert all(path.is_dir() for path in taken)


@pytest.mark.parametrize("more", [("--dry-run",), ("--train", "no_such_layer")])
def test_a_search_that_does_not_begin_leaves_no_folder(tmp_path, capfd, no_ray, more):
    code, _, error = run(capfd, "tune", "--benchmark", "synthetic", "--methods", "ga", *more, "--out", str(tmp_path))
    assert code == (0 if more == ("--dry-run",) else 2), error
    assert list(tmp_path.iterdir()) == []
