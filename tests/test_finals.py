"""What counts as a finalist that has been run."""

from types import SimpleNamespace

from ray_unlearn.metrics.ranking import Ranking
from ray_unlearn.search.finals import finals_are_done


def test_a_finalist_whose_files_are_missing_is_run_again(tmp_path):
    task = SimpleNamespace(report=SimpleNamespace(retrained=None))
    best = {"ga": {"trial_id": "ga-0001", "status": "completed", "utility": 1.0, "objective": 0.5}}
    files = {"start": ["examples/start.parquet"], "ga-0001": ["finals/ga-0001.parquet", "model/x"]}
    done = {
        name: {"row": {"status": "completed"}, "files": dict.fromkeys(names, ""), "has_model": name != "start"}
        for name, names in files.items()
    }

    def is_done(keep_model: bool) -> bool:
        return finals_are_done(task, best, tmp_path, done, keep_model, Ranking(0.9))

    for name in ("examples/start.parquet", "finals/ga-0001.parquet"):
        assert not is_done(keep_model=False), name
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert is_done(keep_model=False)
    (tmp_path / "model").mkdir()
    assert not is_done(keep_model=True)
    (tmp_path / "model" / "x").touch()
    assert is_done(keep_model=True)
