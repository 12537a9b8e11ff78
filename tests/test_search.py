"""Whole searches through the command line, on a real Ray cluster with real engines."""

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from ray_unlearn.models.fingerprints import weights_digest
from ray_unlearn.report.verdicts import SEED, tabulate_differences
from tests.faults.table import FAULTS, Search, run_search

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

REQUIRED = {
    *("trial_id", "benchmark", "method", "scale", "status", "error", "beta", "gamma", "retain_weight"),
    *("learning_rate", "objective", "forget", "utility", "seed", "wall_seconds", "train_seconds", "evaluate_seconds"),
}


def ray_unlearn(*arguments: str) -> subprocess.CompletedProcess:
    """Run a command that must end well."""
    command = [sys.executable, "-m", "ray_unlearn.cli", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ}, check=False)
    assert run.returncode == 0, run.stderr + run.stdout
    return run


def tune(out: Path, *options: str) -> tuple[Path, subprocess.CompletedProcess]:
    """Run the command; the search's folder, by the last line of standard output."""
    run = ray_unlearn("tune", *options, "--out", str(out))
    return out / run.stdout.splitlines()[-1], run


@pytest.mark.slowest
def test_a_synthetic_search_of_two_workers_under_zero_2_costs_little_beside_its_work(tmp_path):
    folder, run = tune(
        tmp_path,
        *("--benchmark", "synthetic", "--methods", "simnpo", "--trials", "12"),
        *("--concurrent", "1", "--workers-per-trial", "2", "--zero", "2"),
    )
    table = ds.dataset(folder / "trials").to_table()
    assert table.num_rows == 12
    for name in REQUIRED:
        assert table.column(name).null_count == (12 if name == "error" else 0), name
    rows = sorted(table.to_pylist(), key=lambda row: row["number"])
    overheads = sorted(r["wall_seconds"] - r["train_seconds"] - r["evaluate_seconds"] for r in rows[1:])
    print(f"median overhead {overheads[len(overheads) // 2]:.3f} s")
    assert all(overhead > 0 for overhead in overheads)
    assert "MINI" in run.stdout
    assert "Chosen" in run.stdout
    assert not run.stderr


def test_a_pareto_search_of_three_methods_on_two_gangs_fills_the_folder(tmp_path):
    options = ("--benchmark", "wmdp", "--trials", "2", "--objective", "pareto", "--concurrent", "2", "--seed", "5")
    options += ("--under", "quantise,relearn")
    folder, _ = tune(tmp_path, *options)
    meta = json.loads((folder / "search.json").read_text())
    assert meta["status"] == "complete"
    assert meta["chosen"]
    assert meta["retrained"]["utility"] == pytest.approx(1.0, abs=0.05)
    assert meta["retrained"]["forget"] == 1.0, "it is the goal under every attack, too"
    assert pq.read_table(folder / "finals" / "retrained.parquet").to_pylist()[0]["forget"] == 1.0
    for name in ("report.html", "pareto.png", "trials.csv"):
        assert (folder / "report" / name).stat().st_size > 1000
    assert (folder / "model" / "config.json").is_file()
    rows = ds.dataset(folder / "trials").to_table().to_pylist()
    assert sorted(row["trial_id"] for row in rows) == [f"{m}-{i:04d}" for m in ("ga", "npo", "simnpo") for i in (0, 1)]
    assert {row["status"] for row in rows} == {"completed"}
    assert all(row["wmdp/quantised_forget_accuracy"] is not None for row in rows)
    chosen = next(row for row in rows if row["trial_id"] == meta["chosen"])
    final = pq.read_table(folder / "finals" / f"{meta['chosen']}.parquet").to_pylist()[0]
    assert final["learning_rate"] == chosen["learning_rate"]


@pytest.mark.slowest
def test_a_pruned_search_ends_trials_early_and_loses_none(tmp_path):
    options = ("--benchmark", "wmdp", "--methods", "simnpo,ga", "--trials", "6", "--sampler", "qmc", "--prune")
    folder, run = tune(tmp_path, *options, "--concurrent", "2")
    rows = ds.dataset(folder / "trials").to_table().to_pylist()
    curves = ds.dataset(folder / "curves").to_table().to_pylist()
    assert sorted(row["trial_id"] for row in rows) == [f"{m}-{i:04d}" for m in ("ga", "simnpo") for i in range(6)]
    assert {row["status"] for row in rows} == {"completed", "pruned"}
    for row in rows:
        epochs = [point["epoch"] for point in curves if point["trial_id"] == row["trial_id"]]
        assert row["epochs_run"] == max(epochs)
        assert row["epoch"] in epochs
        if row["status"] == "pruned":
            assert row["epochs_run"] < row["epochs"]
        else:
            assert sorted(epochs) == [1, 3, 6]
    for method in ("simnpo", "ga"):
        assert any(row["method"] == method and row["status"] == "completed" for row in rows)
    chosen = json.loads((folder / "search.json").read_text())["chosen"]
    assert next(row for row in rows if row["trial_id"] == chosen)["status"] == "completed"
    assert "pruned after epoch 1" in run.stdout


SECRETS = {
    name: f"secret-of-{name.lower()}" for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "MY_KEY")
}


@pytest.mark.slowest
def test_the_same_search_with_adapters_is_the_same_to_the_bit(tmp_path):
    """Twice from the command line, the second time interrupted by nothing but its end: equal trials, finals, weights,
    and an export that trains the model of a trial that was not kept."""
    options = ("--benchmark", "synthetic", "--methods", "graddiff", "--trials", "2", "--lora", "2", "--concurrent", "2")
    folders = [tune(tmp_path / name, *options, "--robustness", "none")[0] for name in ("one", "two")]
    found = []
    for folder in folders:
        rows = [row for part in ("trials", "finals") for row in ds.dataset(folder / part).to_table().to_pylist()]
        scores = {(r["trial_id"], k): v for r in rows for k, v in r.items() if "/" in k or k in ("forget", "utility")}
        found.append((scores, weights_digest(folder / "model")))
    assert found[0] == found[1]
    started = [json.loads((folder / "local.json").read_text())["config"]["gang"]["adapter"] for folder in folders]
    assert started[0] == started[1] != ""
    ray_unlearn("export", str(folders[0]), "--adapter", "--out", str(tmp_path / "exported"))
    run = json.loads((tmp_path / "exported" / "reproduce.json").read_text())
    assert run["hashes"]["starting adapter"] == started[0]
    chosen = json.loads((folders[0] / "search.json").read_text())["chosen"]
    final = pq.read_table(folders[0] / "finals" / f"{chosen}.parquet").to_pylist()[0]
    assert run["metrics"] == {k.removeprefix("synthetic/"): v for k, v in final.items() if "/" in k and v is not None}


@pytest.mark.slowest
@pytest.mark.parametrize("more", [(), ("--lora", "4")], ids=["all weights", "LoRA"])
def test_a_search_is_compared_exported_and_repeated_to_the_bit(tmp_path, monkeypatch, more):
    import torch
    from transformers import AutoModelForCausalLM

    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    options = ("--benchmark", "wmdp", "--methods", "simnpo,npo", "--trials", "2", "--robustness", "quantise")
    folder, _ = tune(tmp_path, *options, *more, "--concurrent", "2")
    meta = json.loads((folder / "search.json").read_text())
    assert str(tmp_path) not in json.dumps({**meta, "command": None})
    assert json.loads((folder / "local.json").read_text())["config"]["methods"] == ["simnpo", "npo"]

    # The machine may have been busy during one method's trials, so their seconds may differ.
    compare = ("compare", str(folder), "--seeds", "2", "--allow-unequal")
    first = ray_unlearn(*compare)
    comparison = json.loads((folder / "comparison.json").read_text())
    assert [entry["n"] for entry in comparison["finalists"]] == [2, 2]
    judged = [item["verdict"] for item in comparison["differences"] if item["measure"] == "objective"]
    assert judged == ["undecided"], "two seeds"
    assert tabulate_differences(comparison["differences"], SEED) in first.stdout
    rows = [pq.read_table(path).to_pylist()[0] for path in sorted((folder / "compare" / "runs").glob("*.parquet"))]
    assert sorted((row["method"], row["seed"]) for row in rows) == [
        (method, seed) for method in ("npo", "simnpo") for seed in comparison["seeds"]
    ]
    assert all(row["status"] == "completed" and row["wmdp/quantised_forget_accuracy"] is not None for row in rows)
    again = ray_unlearn(*compare)
    assert "4 of 4 runs are there already" in again.stdout
    assert json.loads((folder / "comparison.json").read_text()) == comparison

    # Not the chosen one, whose model is kept: this one has to be trained again.
    names = ds.dataset(folder / "trials").to_table().column("trial_id").to_pylist()
    other = next(name for name in names if name != meta["chosen"])
    out = tmp_path / "exported"
    ray_unlearn("export", str(folder), "--trial", other, "--out", str(out))
    model = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        assert model(torch.arange(5)[None]).logits.isfinite().all()
    for path in [*out.glob("*.json"), *out.glob("*.md")]:
        assert str(tmp_path) not in path.read_text(), path.name

    repeated = ray_unlearn("reproduce", str(out / "reproduce.json"))
    assert "final weights: the same bits" in repeated.stdout
    assert repeated.stdout.rstrip().endswith("verdict: bit-identical")
    written = [path for place in (folder, out) for path in place.rglob("*") if path.is_file()]
    assert len(written) > 20
    for path in written:
        content = path.read_bytes()
        assert not [name for name, value in SECRETS.items() if value.encode() in content], path


@pytest.mark.slowest
def test_tofu_on_its_real_data_from_prepare_to_the_table(tmp_path, tofu_data):
    from tests.tiny import write_text_model

    base = write_text_model(tmp_path / "base", tofu_data / "full.json")
    common = ("--benchmark", "tofu", "--split", "forget01", "--data", str(tofu_data))
    prepare = [sys.executable, "-m", "ray_unlearn.cli", "prepare", *common, "--model", str(base)]
    prepare += ["--out", str(tmp_path / "models"), "--epochs", "1", "--learning-rate", "3e-3", "--workers", "2"]
    run = subprocess.run(prepare, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr + run.stdout
    profile = json.loads((tmp_path / "models" / "retrained" / "profile.json").read_text())
    assert profile["profiles"]["report"]["metrics"]["forget_quality"] == 1.0

    folder, _ = tune(
        tmp_path, *common, "--model", str(tmp_path / "models" / "target"), "--trials", "1", "--methods", "npo"
    )
    finals = {path.stem: pq.read_table(path).to_pylist()[0] for path in (folder / "finals").glob("*.parquet")}
    assert set(finals) == {"start", "retrained", "npo-0000"}
    for row in finals.values():
        for name in ("forget_quality", "forget_ks_distance", "model_utility", "forget_rouge_l_recall"):
            assert 0.0 <= row[f"tofu/{name}"] <= 1.0
    assert finals["retrained"]["forget"] == pytest.approx(1.0)
    assert finals["start"]["tofu/forget_exact_memorisation"] > finals["npo-0000"]["tofu/forget_exact_memorisation"]


@pytest.mark.slowest
def test_the_tofu_miniature_has_every_metric_at_the_end_and_learns_what_to_do(tmp_path):
    from ray_unlearn.benchmarks.tofu import METRICS

    folder, run = tune(tmp_path, "--benchmark", "tofu", "--methods", "simnpo", "--trials", "4", "--seed", "1")
    assert "MINI" in run.stdout
    finals = {path.stem: pq.read_table(path).to_pylist()[0] for path in (folder / "finals").glob("*.parquet")}
    chosen = json.loads((folder / "search.json").read_text())["chosen"]
    assert set(finals) == {"start", "retrained", chosen}
    for name, row in finals.items():
        assert [metric for metric in METRICS if row[f"tofu/{metric}"] is None] == [], name
    start, retrained, best = (finals[name] for name in ("start", "retrained", chosen))
    assert start["objective"] == 0.0
    assert retrained["objective"] > 0.95
    assert best["objective"] > 0.3
    assert best["tofu/mia_loss"] < start["tofu/mia_loss"]
    assert best["tofu/aggregate_without_fluency"] > start["tofu/aggregate_without_fluency"]


SAME_SECOND = """
import datetime, sys
from ray_unlearn.commands import tune
class Fixed(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2026, 11, 29, 8, tzinfo=tz)
tune.datetime = Fixed
from ray_unlearn.cli import run
run()
"""


@pytest.mark.slowest
def test_two_searches_that_start_in_the_same_second_both_end_well(tmp_path):
    options = ("--benchmark", "synthetic", "--methods", "ga", "--trials", "1", "--concurrent", "1", "--out")
    command = [sys.executable, "-c", SAME_SECOND, "tune", *options, str(tmp_path), "--robustness", "none", "--seed"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    both = [subprocess.Popen([*command, seed], **pipes) for seed in ("1", "2")]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    names = [output.splitlines()[-1] for output in said]
    assert sorted(names) == ["synthetic-20261129-080000", "synthetic-20261129-080000-2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    for name, seed in zip(names, (1, 2), strict=True):
        assert json.loads((tmp_path / name / "search.json").read_text())["config"]["seed"] == seed
        assert (tmp_path / name / "log.txt").is_file()


@pytest.mark.slowest
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("concurrent", [2, 3])
def test_the_same_command_gives_the_same_table_with_several_trials_at_a_time_also_after_a_kill(concurrent, monkeypatch):
    monkeypatch.setattr(Search, "concurrent", concurrent)
    with tempfile.TemporaryDirectory(prefix="o") as place:  # short, because Ray's sockets lie in it
        tables = {
            name: run_search(Search, fault, Path(place) / name, 6, random.Random(1)).table()
            for name, fault in (("one", None), ("two", None), ("killed", FAULTS["everything"]))
        }
    assert len(tables["one"]) == 12
    assert tables["one"] == tables["two"] == tables["killed"]
