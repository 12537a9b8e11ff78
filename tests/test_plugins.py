"""Methods and benchmarks of installed packages, and scorers that own data name."""

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from ray_unlearn.benchmarks import load_benchmark
from ray_unlearn.benchmarks.contract import OwnScorer, Request
from ray_unlearn.benchmarks.custom import read_benchmark, scorers_of
from ray_unlearn.benchmarks.definition import read_definition
from ray_unlearn.config import UserError
from ray_unlearn.plugins import (
    METHOD,
    SCORER,
    Plugin,
    check_here,
    check_trust,
    check_unchanged,
    describe_installed,
    installed,
    load_installed,
    trust_code,
)
from ray_unlearn.search.used_plugins import used_plugins
from ray_unlearn.training.in_process import build_models
from ray_unlearn.training.losses import Method, find_method
from ray_unlearn.training.own_scorers import run_scorer

PACKAGE = {
    "toy_plugin/__init__.py": "",
    "toy_plugin/method.py": """
from ray_unlearn.training.losses import SEQUENCE, Method

def capped(forget, *, cap: float = 3.0):
    return -(-forget.mean(forget.logprobs)).clamp(max=cap)

METHOD = Method("toy_capped", "-min(CE, cap)", capped, SEQUENCE, "nowhere")
""",
    "toy_plugin/benchmark.py": """
from dataclasses import replace

from ray_unlearn.benchmarks.synthetic import BENCHMARK as CHAINS

def load(request, train=None):
    return replace(CHAINS.load(request, train), benchmark="toy_chains")

BENCHMARK = replace(CHAINS, name="toy_chains", load=load)
""",
}
ENTRY_POINTS = """[ray_unlearn.methods]
toy_capped = toy_plugin.method:METHOD
toy_wrong = toy_plugin.benchmark:load
toy_broken = toy_plugin.nowhere:METHOD

[ray_unlearn.benchmarks]
toy_chains = toy_plugin.benchmark:BENCHMARK
"""


def install(folder: Path, version: str = "1.0", more: str = "") -> Path:
    """The package as a wheel, installed by pip into a folder of its own."""
    wheel = folder / f"toy_plugin-{version}-py3-none-any.whl"
    head = f"toy_plugin-{version}.dist-info"
    files = {
        **PACKAGE,
        "toy_plugin/method.py": PACKAGE["toy_plugin/method.py"] + more,
        f"{head}/METADATA": f"Metadata-Version: 2.1\nName: toy-plugin\nVersion: {version}\n",
        f"{head}/WHEEL": "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{head}/entry_points.txt": ENTRY_POINTS,
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(f"{head}/RECORD", "".join(f"{name},,\n" for name in [*files, f"{head}/RECORD"]))
    place = folder / f"site-{version}"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(place)]
    subprocess.run([*pip, str(wheel)], check=True)
    return place


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    return install(tmp_path_factory.mktemp("plugin"))


@pytest.fixture
def here(site, monkeypatch) -> Path:
    """The package is installed in this very environment."""
    monkeypatch.syspath_prepend(str(site))
    yield site
    for name in [name for name in sys.modules if name.startswith("toy_plugin")]:
        del sys.modules[name]


def test_an_installed_method_and_benchmark_are_found_by_name_and_recorded(here):
    method = find_method("toy_capped")
    assert (method.name, method.parameters) == ("toy_capped", {"cap": 3.0})
    assert load_benchmark("toy_chains").name == "toy_chains"
    found = used_plugins(load_benchmark("toy_chains"), ["npo", "toy_capped"])
    assert [(plugin.kind, plugin.name, plugin.source, plugin.version) for plugin in found] == [
        ("method", "toy_capped", "toy-plugin", "1.0"),
        ("benchmark", "toy_chains", "toy-plugin", "1.0"),
    ]
    assert used_plugins(load_benchmark("wmdp"), ["npo"]) == ()
    check_here(found)


def test_nothing_is_imported_to_list_or_to_describe(here):
    assert set(installed(METHOD)) == {"toy_capped", "toy_wrong", "toy_broken"}
    describe_installed(METHOD, ["toy_capped"])
    assert "toy_plugin" not in sys.modules


@pytest.mark.parametrize(("name", "says"), [("toy_wrong", "is no Method called toy_wrong"), ("toy_broken", "imported")])
def test_what_is_no_method_or_cannot_be_imported_is_named_with_its_package(here, name, says):
    with pytest.raises(UserError, match=f"method {name} of the package toy-plugin: .*{says}"):
        load_installed(METHOD, name, Method)


def test_an_unknown_name_lists_what_is_installed(here):
    with pytest.raises(UserError, match=r"method magic: unknown.*toy_capped"):
        find_method("magic")
    with pytest.raises(UserError, match=r"--benchmark magic: unknown.*toy_chains"):
        load_benchmark("magic")


def test_a_node_with_another_version_or_other_code_is_refused(here):
    (mine,) = describe_installed(METHOD, ["toy_capped"])
    for other in (replace(mine, version="0.9"), replace(mine, sha256="0" * 64)):
        with pytest.raises(RuntimeError, match="install the same on every node"):
            check_here([other])
    with pytest.raises(RuntimeError, match="this node has none"):
        check_here([replace(mine, name="absent")])


def test_a_search_does_not_go_on_with_other_code():
    had = Plugin(SCORER, "polite", "mine.py", "", "a" * 64)
    check_unchanged("s", [vars(had)], [had])
    for now in ([replace(had, sha256="b" * 64)], []):
        with pytest.raises(UserError, match=r"s: was made with scorer polite of mine.py \(aaaaaaaaaaaa\)"):
            check_unchanged("s", [vars(had)], now)
    with pytest.raises(UserError, match="was made with none, and here is scorer polite"):
        check_unchanged("s", [], [had])


# Scorers

SCORERS = """
def polite(prompts, references, answers):
    return [answer.count("e") + 1 for answer in answers]

def few(prompts, references, answers):
    return [1.0]

def words(prompts, references, answers):
    return ["much"] * len(answers)
"""
TOML = """name = "own"
[forget]
file = "forget.jsonl"
question = "q"
answer = "a"
[retain]
file = "retain.jsonl"
question = "q"
answer = "a"
"""


def own(folder: Path, scorers: str, code: str = SCORERS) -> Path:
    (folder / "mine.py").write_text(code)
    path = folder / "own.toml"
    path.write_text(TOML + scorers)
    return path


def scorer(function: str, source: str = SCORERS) -> OwnScorer:
    import hashlib

    sha = hashlib.sha256(source.encode()).hexdigest()
    return OwnScorer("polite", "mine.py", function, source, sha, ("retain",), True)


def test_a_scorer_s_number_is_the_mean_over_the_answers():
    mean, error = run_scorer(scorer("polite"), ["a", "b"], ["", ""], ["eee", "e"])
    assert (mean, error) == (3.0, 1.0)


@pytest.mark.parametrize("function", ["few", "words"])
def test_a_scorer_that_gives_no_number_an_answer_is_named(function):
    with pytest.raises(RuntimeError, match=rf"scorer polite \(mine.py, {function}\): must give one finite number"):
        run_scorer(scorer(function), ["a", "b"], ["", ""], ["x", "y"])


def test_code_that_is_not_what_was_read_does_not_run():
    with pytest.raises(RuntimeError, match="not what was read"):
        run_scorer(replace(scorer("polite"), source="raise SystemExit"), ["a"], [""], ["x"])


def test_a_scorer_is_a_metric_an_aim_or_kept(tmp_path):
    text = '[scorers.polite]\nfunction = "mine:polite"\nsets = ["forget", "retain"]\naim = 2.0\nkeep = 0.5\n'
    path = own(tmp_path, text + '[scorers.few]\nfunction = "mine:few"\nsets = ["retain"]\n')
    benchmark = read_benchmark(path)
    assert {"forget_polite", "retain_polite", "retain_few"} <= set(benchmark.metrics)
    assert [(aim.metric, aim.never_knew) for aim in benchmark.aims if "polite" in aim.metric] == [
        ("forget_polite", 2.0)
    ]
    assert [(keep.metric, keep.useless) for keep in benchmark.keeps if "polite" in keep.metric] == [
        ("retain_polite", 0.5)
    ]
    assert [one.at_every_point for one in scorers_of(read_definition(path))] == [True, False]
    assert [plugin.name for plugin in benchmark.code] == ["polite", "few"]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ('function = "mine"', 'Write "module:function"'),
        ('function = "mine:absent"', "mine.py defines no such function"),
        ('function = "other:polite"', "other.py, which is not there"),
        ('function = "mine:polite"\nsets = ["forgte"]', "sets has 'forgte'"),
        ('function = "mine:polite"\nkeep = "much"', "keep = 'much' is no number"),
        ('function = "mine:polite"\nsets = ["retain"]\naim = 1.0', "aim needs the forget set"),
        ('functoin = "mine:polite"', "Did you mean function?"),
    ],
)
def test_what_cannot_work_in_a_scorer_s_table_is_named(tmp_path, table, says):
    with pytest.raises(UserError) as error:
        read_benchmark(own(tmp_path, f"[scorers.polite]\n{table}\n"))
    assert says in str(error.value)


def test_code_that_nobody_trusts_is_read_and_does_not_run(tmp_path):
    marker = tmp_path / "ran"
    path = own(tmp_path, '[scorers.polite]\nfunction = "mine:polite"\n', f"open({str(marker)!r}, 'w')\n{SCORERS}")
    benchmark = read_benchmark(path)
    with pytest.raises(UserError, match=r"own: runs code of mine.py. Read it, and give --trust-code"):
        check_trust("own", [plugin.source for plugin in benchmark.code])
    trust_code(True)
    try:
        check_trust("own", [plugin.source for plugin in benchmark.code])
    finally:
        trust_code(False)
    assert not marker.exists()


# Through the command, with workers on two nodes


def ray_unlearn(*words: str, expect: int = 0) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "ray_unlearn.cli", *words]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})
    assert run.returncode == expect, run.stderr + run.stdout
    return run


@pytest.mark.slowest
@pytest.mark.timeout(900)
def test_plug_ins_and_scorers_run_on_two_nodes(tmp_path, site, start_cluster, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    made = Path(load_benchmark("tofu").load(Request("mini"), build_models).model).parent
    cluster = start_cluster(1, 1, 1)
    shared = ("--trials", "1", "--concurrent", "1", "--workers-per-trial", "2", "--robustness", "none")
    shared += ("--address", cluster.address, "--no-keep-model")

    run = ray_unlearn("tune", "--benchmark", "toy_chains", "--methods", "toy_capped", *shared, "--out", str(tmp_path))
    folder = tmp_path / run.stdout.splitlines()[-1]
    (row,) = ds.dataset(folder / "trials").to_table().to_pylist()
    assert (row["method"], row["benchmark"], row["status"]) == ("toy_capped", "toy_chains", "completed")
    assert row["cap"] is not None
    recorded = json.loads((folder / "search.json").read_text())["plugins"]
    assert [(one["kind"], one["name"], one["version"]) for one in recorded] == [
        ("method", "toy_capped", "1.0"),
        ("benchmark", "toy_chains", "1.0"),
    ]
    changed = install(tmp_path, "1.1", "# more\n")
    monkeypatch.setenv("PYTHONPATH", str(changed))
    said = ray_unlearn("tune", "--resume", str(folder), "--trials", "2", expect=2).stderr
    assert "was made with method toy_capped of toy-plugin 1.0" in said

    scorers = '[scorers.polite]\nfunction = "mine:polite"\nsets = ["retain"]\nkeep = 0.0\n'
    path = own(tmp_path, scorers)
    for name, part in (("forget", "forget10"), ("retain", "retain90")):
        rows = [json.loads(line) for line in (made / "data" / f"{part}.json").read_text().splitlines()]
        lines = [json.dumps({"q": row["question"], "a": row["answer"]}) + "\n" for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    words = ("tune", "--benchmark", str(path), "--model", str(made / "target"), "--methods", "ga", *shared)
    assert "give --trust-code" in ray_unlearn(*words, "--out", str(tmp_path), expect=2).stderr
    ray_unlearn("plan", "--benchmark", str(path), "--model", str(made / "target"))
    run = ray_unlearn(*words, "--trust-code", "--out", str(tmp_path))
    folder = tmp_path / run.stdout.splitlines()[-1]
    (row,) = ds.dataset(folder / "trials").to_table().to_pylist()
    assert row["own/retain_polite"] >= 1.0
    assert "--trust-code" in ray_unlearn("tune", "--resume", str(folder), "--trials", "2", expect=2).stderr
    (tmp_path / "mine.py").write_text(SCORERS + "# more\n")
    again = ray_unlearn("tune", "--resume", str(folder), "--trials", "2", "--trust-code", expect=2).stderr
    assert "was made with scorer polite of mine.py" in again
