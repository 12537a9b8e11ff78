"""What the driver spends on a trial as trials become many: the gangs are replaced by a broker that answers at once.

    python -m tests.perf.growth [--trials 100,1000,10000] [--alone] [--sampler tpe] [--objective combined] [--prune]

The whole of `run_search` with a real Ray session, Tune's loop and one Tune actor a gang, and no training: a trial is
two made-up reports (or one more a rung, with --prune). With --alone there is no Ray either: recorder, study and
writer, as Tune would call them. One search as long as the largest number is cut into stretches at each number, and a
stretch's row says what one of its trials took: milliseconds of the clock, of the driver's processor, and of the clock
inside the study's ask and tell, the verdicts and the writer; then the driver's memory at the stretch's end, above
what it was at the start. What grows down the rows is worse than linear in all.
"""

import asyncio
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

from tests.perf.common import read_options, resident_bytes

METHOD, BENCHMARK, EPOCHS = "simnpo", "wmdp", 10
PARTS = {
    "ask": ("ray_unlearn.search.sampling", "MethodStudy", "ask"),
    "tell": ("ray_unlearn.search.sampling", "MethodStudy", "tell"),
    "verdicts": ("ray_unlearn.search.recorder", "Recorder", "goes_on"),
    "write": ("ray_unlearn.records.tables", "Writer", "write_files"),
    "ledger": ("ray_unlearn.records.ledger", "Ledger", "append"),
}
"""What is timed by itself: module, class, method."""


class Stretches:
    """Watches a search, and says at each of the numbers what its trials took since the number before."""

    def __init__(self, numbers: Sequence[int], say: Callable[[str], object]) -> None:
        self._numbers, self._say = list(numbers), say
        self._spent = dict.fromkeys(PARTS, 0.0)
        self._count = 0
        for part, (module, owner, name) in PARTS.items():
            kind = getattr(sys.modules[module], owner)
            setattr(kind, name, self._timed(part, getattr(kind, name)))

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*values: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*values, **named)
            finally:
                self._spent[part] += time.perf_counter() - began

        return call

    def begin(self) -> None:
        self._at_first = resident_bytes()
        self._before = self._now()

    def _now(self) -> dict[str, float]:
        return {"clock": time.perf_counter(), "driver": time.process_time(), **self._spent}

    def stage(self, what: str) -> None:
        if what.startswith("searching"):
            self.begin()

    def started(self, trial: Any, number: int) -> None:
        return None

    def finished(self, row: Mapping[str, Any]) -> None:
        self._count += 1
        if self._count not in self._numbers:
            return
        now = self._now()
        trials = self._count - max([0, *(n for n in self._numbers if n < self._count)])
        each = "  ".join(f"{part} {1000 * (now[part] - self._before[part]) / trials:7.2f}" for part in now)
        memory = (resident_bytes() - self._at_first) / 2**20
        self._say(f"to {self._count:>6,}   ms a trial: {each}   memory {memory:6.1f} MiB")
        self._before = self._now()

    def finish(self) -> None:
        self._say(f"after the last trial: {time.perf_counter() - self._before['clock']:.1f} s")


def made_up_metrics(trial: Any, epoch: int) -> dict[str, float]:
    """Accuracies that fall the faster the larger the learning rate, utility the less the larger the retain weight."""
    push = epoch / EPOCHS * trial.learning_rate / 2e-3
    blur = 0.02 * math.sin(1e7 * trial.learning_rate + 1e3 * trial.parameters["beta"])
    forget = 0.25 + 0.5 * math.exp(-3 * push) + blur
    general = 0.75 - 0.1 * push / (0.5 + trial.retain_weight) - abs(blur)
    return {"forget_accuracy": forget, "general_accuracy": general}


def reports(job: Any, num_forget: int) -> Iterator[Any]:
    """What a gang would report of a job."""
    from ray_unlearn.benchmarks.contract import Profile
    from ray_unlearn.training.outcome import Report
    from ray_unlearn.training.trial import evaluation_epochs

    plain = {"train_seconds": 1.0, "evaluate_seconds": 1.0, "peak_memory_bytes": 1}
    if job.trial is None:
        metrics = {"forget_accuracy": 0.75, "general_accuracy": 0.75}
        profiles = {split: Profile(metrics) for split in job.evaluate}
        yield Report(0, profiles, True, forget_nll=[1.0] * num_forget, **plain)
        return
    epochs = evaluation_epochs(job.trial.epochs, job.trial.evaluations, job.rungs) if job.points else []
    for epoch in epochs or [job.stop_after]:
        profiles = {split: Profile(made_up_metrics(job.trial, epoch)) for split in job.evaluate}
        done = epoch == (job.stop_after or job.trial.epochs)
        weights = [[1.0] * num_forget] if done and job.weights else None
        yield Report(epoch, profiles, done, epoch, 1.0, 1.0, gradient_weights=weights, **plain)


class InstantBroker:
    """The broker's side that Tune and the search see."""

    def __init__(self, num_forget: int, num_gangs: int) -> None:
        self._num_forget = num_forget
        self._jobs: dict[str, Iterator[Any]] = {}
        self._all_there = asyncio.Barrier(num_gangs)
        self._waited = 0

    async def submit(self, job: Any) -> None:
        """The first trials start together. Tune hands an actor that is free to a trial whose own is still starting,
        and ends that one: trials shorter than an actor's start would have one started for each of them."""
        self._jobs[job.job_id] = reports(job, self._num_forget)
        if job.trial and job.points and self._waited < self._all_there.parties:
            self._waited += 1
            await self._all_there.wait()

    async def next(self, job_id: str) -> Any:
        report = next(self._jobs[job_id])
        if report.done:
            del self._jobs[job_id]
        return report

    async def stop(self, job_id: str) -> None:
        self._jobs.pop(job_id, None)

    async def stop_trial(self, trial_id: str) -> None:
        return None


class InstantGangs:
    """Takes the place of `Gangs`."""

    def __init__(self, task: Any, config: Any, count: int, *others: Any) -> None:
        import ray

        self.broker: Any = ray.remote(num_cpus=0)(InstantBroker).remote(len(task.forget), count)

    def __enter__(self) -> "InstantGangs":
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def run_all(self, jobs: Any) -> Iterator[tuple[Any, Any, float]]:
        return ((job, self.run(job), 0.0) for job in jobs)

    def run(self, job: Any) -> Any:
        import ray

        ray.get(self.broker.submit.remote(job))
        while not (report := ray.get(self.broker.next.remote(job.job_id))).done:
            pass
        return report


def settings(options: Any, trials: int) -> tuple[Any, dict[str, Any]]:
    """The search's settings and spaces."""
    from ray_unlearn.benchmarks import load_benchmark
    from ray_unlearn.config import GangConfig, SearchConfig
    from ray_unlearn.search.space import load_space
    from ray_unlearn.training.losses import METHODS

    config = SearchConfig(
        name="growth",
        benchmark=BENCHMARK,
        scale="mini",
        methods=(METHOD,),
        trials=trials,
        concurrent=2,
        objective=options.objective,
        utility_floor=0.95,
        seed=0,
        gang=GangConfig(),
        model="none",
        sampler=options.sampler,
        prune=options.prune,
    )
    space = load_space(METHODS[METHOD], load_benchmark(BENCHMARK), "mini", 300_000)
    return config, {METHOD: type(space)(METHOD, {**space.fixed, "epochs": EPOCHS}, space.ranges, space.warm_starts)}


def run_whole(config: Any, spaces: Mapping[str, Any], folder: Path, watcher: Stretches) -> None:
    import ray_unlearn.search.run
    from ray_unlearn.benchmarks import load_benchmark
    from ray_unlearn.benchmarks.contract import Request
    from ray_unlearn.training.in_process import build_models

    ray_unlearn.search.run.Gangs = InstantGangs  # type: ignore[misc, assignment]
    task = load_benchmark(BENCHMARK).load(Request("mini"), build_models)
    status = ray_unlearn.search.run.run_search(config, task, spaces, folder, [], watcher, keep_model=False)
    assert status == "complete"


def run_alone(config: Any, spaces: Mapping[str, Any], folder: Path, watcher: Stretches) -> None:
    """What Tune's loop does with the recorder, with two trials open at a time."""
    from ray_unlearn.benchmarks import load_benchmark
    from ray_unlearn.benchmarks.objective import Judge
    from ray_unlearn.files import Patience
    from ray_unlearn.metrics.ranking import Ranking
    from ray_unlearn.records.ledger import Ledger
    from ray_unlearn.records.tables import Writer, curve_schema
    from ray_unlearn.search.held_out import row_schema
    from ray_unlearn.search.ray_tune import trial_job
    from ray_unlearn.search.recorder import Recorder
    from ray_unlearn.search.run import build_studies
    from ray_unlearn.training.trial import Job

    benchmark = load_benchmark(BENCHMARK)
    folder.mkdir()
    writer = Writer(folder, row_schema(config), curve_schema(benchmark.name, benchmark.metrics))
    start = next(reports(Job("start"), 1)).metrics()
    judge = Judge.build(benchmark, start, None, Ranking.of_search(config))
    with Ledger(folder, Patience()) as ledger:
        ledger.open()
        recorder = Recorder(config, build_studies(config, spaces), spaces, writer, ledger, watcher)
        recorder.attach(lambda trial_id: None)
        watcher.begin()
        _lead(config, recorder, judge, trial_job(config))


def _lead(config: Any, recorder: Any, judge: Any, job: Any) -> None:
    from ray_unlearn.search.scored import score

    running: list[tuple[str, Iterator[Any]]] = []
    for number in range(config.trials + config.concurrent):
        if trial := recorder.suggest(str(number)):
            running.append((str(number), reports(replace(job, trial=trial), 1)))
            recorder.running(str(number))
        if len(running) < config.concurrent and trial:
            continue
        tune_id, points = running.pop(0)
        for point in (score(report, judge) for report in points):
            goes_on = point.done or recorder.goes_on(tune_id, point)
            recorder.reported(tune_id, point)
            if not goes_on:
                break
        recorder.ended(tune_id)
        if not running:
            break


def main() -> None:
    options = read_options(
        __doc__ or "",
        trials="100,1000,10000",
        alone=False,
        sampler=("tpe", "gp", "nsga2", "qmc", "random"),
        objective=("combined", "pareto"),
        prune=False,
    )
    numbers = sorted(int(n) for n in options.trials.split(","))
    import ray_unlearn.search.run  # noqa: F401
    from ray_unlearn.commands.screen import noise_to

    how = "recorder, study and writer alone" if options.alone else "the whole search"
    print(f"{how}: {options.sampler}, {options.objective}, {'pruned' if options.prune else 'not pruned'}")
    with tempfile.TemporaryDirectory() as name, noise_to(Path(name) / "log.txt") as screen:
        watcher = Stretches(numbers, lambda text: print(text, file=screen, flush=True))
        config, spaces = settings(options, numbers[-1])
        (run_alone if options.alone else run_whole)(config, spaces, Path(name) / "search", watcher)
        watcher.finish()


if __name__ == "__main__":
    main()
