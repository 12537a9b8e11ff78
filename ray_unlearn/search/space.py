"""A search_spaces/ TOML file -> ranges, checked against the method's signature.

method = "simnpo"
[fixed]                     # trial settings or method parameters that are not searched
epochs = 10
[space.learning_rate]       # ranges; log = true for a logarithmic one, integer = true for whole numbers
low = 1e-6
high = 1e-4
log = true
at_parameters = 7e9         # the range is meant for a model of this size, see `scaled`
[[warm_start]]              # tried first, as written: a range widens for it, and a key that is fixed is its own here;
beta = 2.5                  # a key left out takes the middle of its range
[on.NAME-mini.fixed]        # the same tables again, for one benchmark (and scale) only; "custom": all own data
epochs = 6
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ray_unlearn.benchmarks import BENCHMARKS, OWN_DATA
from ray_unlearn.benchmarks.contract import Benchmark
from ray_unlearn.config import SCHEDULES, SETTING_LIMITS, TRIAL_SETTINGS, Range, TrialConfig, UserError
from ray_unlearn.files import read_toml
from ray_unlearn.models.sizes import hidden_layer, scaled
from ray_unlearn.training.losses import Method, find_method, keyword_ranges

ADAPTER_RATE = 10.0
"""How many times the learning rate of all weights low-rank adapters want (Schulman and others, "LoRA Without Regret",
2025: about ten, whatever the model)."""
WARM_START = "[[warm_start]]"


@dataclass(frozen=True)
class Space:
    """What is searched for one method, what is fixed, and which points come first."""

    method: str
    fixed: Mapping[str, Any]
    ranges: Mapping[str, Range]
    warm_starts: tuple[Mapping[str, Any], ...]
    """Settings by name, each inside its range where it is searched; others are this point's alone."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Space:
        """As search.json has it."""
        ranges = {name: Range(**range_) for name, range_ in values["ranges"].items()}
        return cls(values["method"], values["fixed"], ranges, tuple(values["warm_starts"]))


def warm_points(space: Space) -> list[dict[str, Any]]:
    """The space's first points with every searched setting: one that a point leaves out is in the middle of its
    range."""
    middle = {name: range_.at(0.5) for name, range_ in sorted(space.ranges.items())}
    return [{**middle, **warm_start} for warm_start in space.warm_starts]


def build_trial(space: Space, trial_id: str, seed: int, point: Mapping[str, Any]) -> TrialConfig:
    """The trial at a point of the space: what the point has, then what is fixed, then the method's own defaults."""
    method, values = find_method(space.method), {**space.fixed, **point}
    settings = {name: values[name] for name in TRIAL_SETTINGS if name in values}
    if not method.uses_retain:
        settings["retain_weight"] = 0.0
    parameters = {name: float(values.get(name, default)) for name, default in method.parameters.items()}
    return TrialConfig(trial_id=trial_id, method=method.name, parameters=parameters, seed=seed, **settings)


def check_trials(space: Space, num_layers: int) -> None:
    """Build the trials at both ends of every range and at every first point.

    Raises UserError where a model of so many layers cannot run one of them.
    """
    ends = [{name: range_.at(share) for name, range_ in space.ranges.items()} for share in (0.0, 1.0)]
    for point in [*ends, *warm_points(space)]:
        trial = build_trial(space, "check", 0, point)
        for name, (kind, _, _) in SETTING_LIMITS.items():
            assert isinstance(getattr(trial, name), kind | int), name
        hidden_layer(trial.hidden_layer, num_layers)


def folder() -> Path:
    """Where the search spaces are: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).parents[1]
    return here / "search_spaces" if (here / "search_spaces").is_dir() else here.parent / "search_spaces"


def load_space(
    method: Method,
    benchmark: Benchmark,
    scale: str,
    num_parameters: int,
    file: Path | None = None,
    has_adapters: bool = False,
) -> Space:
    """The method's space for this benchmark and model size: from the user's own file, else from the shipped one with
    what the benchmark changes laid over it. Shipped learning rates are for training all weights, and move with
    adapters.

    Raises UserError for whatever in the file cannot work, naming file, table and key.
    """
    shipped = folder() / f"{method.name}.toml"
    path = file or shipped
    raw = read_toml(path) if file or shipped.is_file() else default_tables(method)
    if raw.get("method") != method.name:
        raise UserError(f'{path}: has method = {raw.get("method")!r}. Write method = "{method.name}"')
    _check_keys(path, "the file", raw, {"method", "fixed", "space", "warm_start", "on"})
    fixed, ranges = dict(_table(path, raw, "fixed")), dict(_table(path, raw, "space"))
    warm_starts = _tables(path, raw, "warm_start")
    for name, table in _changes(path, raw, method, benchmark, scale, is_own=file is not None):
        _check_keys(path, name, table, {"fixed", "space", "warm_start"})
        for key, value in _table(path, table, "fixed").items():
            ranges.pop(key, None)
            fixed[key] = value
        for key, value in _table(path, table, "space").items():
            fixed.pop(key, None)
            ranges[key] = value
        warm_starts = _tables(path, table, "warm_start") or warm_starts
    space = _check(path, method, fixed, ranges, warm_starts, num_parameters)
    return for_adapters(space) if has_adapters and file is None else space


def for_adapters(space: Space) -> Space:
    """The same with the learning rates that low-rank adapters want."""

    def moved(values: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v * ADAPTER_RATE if k == "learning_rate" else v for k, v in values.items()}

    ranges = {
        key: replace(r, low=r.low * ADAPTER_RATE, high=r.high * ADAPTER_RATE) if key == "learning_rate" else r
        for key, r in space.ranges.items()
    }
    return replace(space, fixed=moved(space.fixed), ranges=ranges, warm_starts=tuple(map(moved, space.warm_starts)))


def _changes(
    path: Path, raw: Mapping[str, Any], method: Method, benchmark: Benchmark, scale: str, is_own: bool
) -> list[tuple[str, Mapping[str, Any]]]:
    """(where it stands, tables to lay over): the benchmark's own unless the file is the user's, then the file's for
    this benchmark."""
    changes = [] if is_own else [benchmark.spaces[name] for name in ("", scale) if name in benchmark.spaces]
    found: list[tuple[str, Mapping[str, Any]]] = []
    for change in changes:
        found += [(benchmark.name, {"fixed": change.fixed}), (benchmark.name, change.methods.get(method.name, {}))]
    overrides = _table(path, raw, "on")
    known = {*BENCHMARKS, benchmark.name}
    _check_keys(path, "[on]", overrides, {f"{name}{scale}" for name in known for scale in ("", "-mini", "-full")})
    own = () if benchmark.name in BENCHMARKS else (OWN_DATA,)
    names = (*own, benchmark.name, f"{benchmark.name}-{scale}")
    return found + [(f"[on.{name}]", _table(path, overrides, name)) for name in names]


def default_tables(method: Method) -> dict[str, Any]:
    """For a method that has no file: learning rate and retain weight as most have them, and each parameter of its own
    in the Range of its annotation, else within a factor of 8 round its default (from 0 to 1 where that is 0)."""
    space: dict[str, Any] = {"learning_rate": {"low": 1e-6, "high": 1e-4, "log": True, "at_parameters": 7e9}}
    annotated = keyword_ranges(method.loss)
    for name, default in method.parameters.items():
        if name in annotated:
            space[name] = asdict(annotated[name])
        else:
            space[name] = (
                {"low": default / 8, "high": default * 8, "log": True} if default > 0 else {"low": 0.0, "high": 1.0}
            )
    if method.uses_retain:
        space["retain_weight"] = {"low": 0.5, "high": 20.0, "log": True}
    fixed = {"epochs": 10, "batch_size": 32, "weight_decay": 0.01, "warmup_fraction": 0.1, "evaluations": 2}
    return {"method": method.name, "fixed": fixed, "space": space}


def read_spaces(meta: Mapping[str, Any]) -> dict[str, Space]:
    """By method, as search.json has them."""
    return {name: Space.from_json(values) for name, values in meta["spaces"].items()}


def _table(path: Path, parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    table = parent.get(key, {})
    if not isinstance(table, dict):
        raise UserError(f"{path}: {key} = {table!r} is no table. Write [{key}] and the settings under it")
    return table


def _tables(path: Path, parent: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    tables = parent.get(key, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UserError(f"{path}: {key} is no list of tables. Write [[{key}]] and the settings under it")
    return list(tables)


def file_method(path: Path) -> str:
    """The method that a space file is for."""
    name = read_toml(path).get("method")
    if not isinstance(name, str):
        raise UserError(f"{path}: method = {name!r} is unknown. Give a method's name in quotes")
    try:
        return find_method(name).name
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _check(
    path: Path,
    method: Method,
    fixed: dict[str, Any],
    tables: dict[str, Any],
    warm_starts: list[dict[str, Any]],
    num_parameters: int,
) -> Space:
    allowed = {*method.parameters, *TRIAL_SETTINGS} - (set() if method.uses_retain else {"retain_weight"})
    for where, keys in (
        ("[fixed]", fixed),
        ("[space]", tables),
        *((WARM_START, w) for w in warm_starts),
    ):
        _check_keys(path, where, keys, allowed, f"{method.name} takes")
    for key in tables:
        if key in fixed:
            raise UserError(f"{path}: {key} is in [fixed] and in [space]. Take it out of one of them")
        if key in _words(method):
            raise UserError(f"{path}: [space.{key}] is no number. Put it into [fixed]")
    fixed = {key: _value(path, f"[fixed] {key}", method, key, value) for key, value in fixed.items()}
    ranges = {key: _range(path, key, table, num_parameters) for key, table in tables.items()}
    if not ranges:
        raise UserError(f"{path}: [space] is empty, there is nothing to search. Add a range")
    points = [_point(path, method, warm_start, num_parameters) for warm_start in warm_starts]
    for point in points:
        for key in point.keys() & ranges.keys():
            ranges[key] = _widened(path, key, ranges[key], point[key])
            point[key] = int(point[key]) if ranges[key].integer else point[key]
    return Space(method.name, fixed, ranges, tuple(points))


def _words(method: Method) -> dict[str, tuple[str, ...]]:
    """The settings that are words, with what each may be."""
    return {"schedule": SCHEDULES, "retain_loss": tuple(method.retain_losses)}


def _value(path: Path, where: str, method: Method, key: str, value: Any) -> Any:
    """A setting's value in its own type: 5.0 is 5 where a whole number is wanted."""
    words = _words(method).get(key)
    if words is None:
        return _number(path, where, key, value)
    if value not in words:
        raise UserError(f"{path}: {where} = {value!r}. Choose one of: {', '.join(words)}")
    return value


def _point(path: Path, method: Method, warm_start: Mapping[str, Any], num_parameters: int) -> dict[str, Any]:
    """A first point as it will run: its learning rate moved to the model's size."""
    at = _size(path, WARM_START, warm_start, "learning_rate" in warm_start)
    values = {key: value for key, value in warm_start.items() if key != "at_parameters"}
    point = {key: _value(path, f"{WARM_START} {key}", method, key, value) for key, value in values.items()}
    if "learning_rate" in point:
        point["learning_rate"] = scaled(point["learning_rate"], at, num_parameters)
    return point


def _widened(path: Path, key: str, range_: Range, value: float) -> Range:
    """The range with a first point's value in it."""
    if range_.low <= value <= range_.high and not (range_.integer and value != int(value)):
        return range_
    where = f"{path}: {WARM_START} {key} = {value:g}"
    if range_.log and value <= 0:
        raise UserError(f"{where}: its range is logarithmic, which has only numbers above 0. Give one, or drop log")
    if range_.integer and value != int(value):
        raise UserError(f"{where}: its range has whole numbers only. Give one, or drop integer")
    return replace(range_, low=min(range_.low, value), high=max(range_.high, value))


def _range(path: Path, key: str, table: Any, num_parameters: int) -> Range:
    where = f"{path}: [space.{key}]"
    if not isinstance(table, dict):
        raise UserError(f"{where} is no table. Write low = and high = under it")
    _check_keys(path, f"[space.{key}]", table, {"low", "high", "log", "integer", "at_parameters"})
    low, high = table.get("low"), table.get("high")
    if not _is_number(low) or not _is_number(high):
        raise UserError(f"{where} needs numbers for low and high, not {low!r} and {high!r}. Give both")
    for switch in ("log", "integer"):
        if not isinstance(table.get(switch, False), bool):
            raise UserError(f"{where} {switch} = {table[switch]!r}: write true or false, without quotation marks")
    assert low is not None
    assert high is not None
    if low >= high:
        raise UserError(f"{where} has low = {low:g} and high = {high:g}: the range is reversed or empty. Swap them")
    if table.get("log") and low <= 0:
        raise UserError(f"{where} is logarithmic and starts at {low:g}. Give a low above 0")
    integer = SETTING_LIMITS.get(key, (float, 0, 0))[0] is int or table.get("integer", False)
    ends = [_number(path, f"[space.{key}] {name}", key, value) for name, value in (("low", low), ("high", high))]
    for name, value in zip(("low", "high"), ends, strict=True):
        if integer and value != int(value):
            raise UserError(f"{where} {name} = {value:g}: {key} takes whole numbers. Give one")
    at = _size(path, f"[space.{key}]", table, key == "learning_rate")
    ends = [scaled(value, at, num_parameters) for value in ends]
    low, high = map(int, ends) if integer else ends
    return Range(low, high, table.get("log", False), integer)


def _size(path: Path, where: str, table: Mapping[str, Any], has_rate: bool) -> float | None:
    """The table's at_parameters: the size that its learning rate is meant for."""
    at = table.get("at_parameters")
    if at is not None and (not _is_number(at) or at <= 0):
        raise UserError(f"{path}: {where} at_parameters = {at!r} is no model size. Give a number such as 7e9")
    if at is not None and not has_rate:
        raise UserError(f"{path}: {where} has at_parameters, which moves learning_rate alone. Take it out")
    return at


def _number(path: Path, where: str, key: str, value: Any) -> float:
    """The value as the setting, or the method parameter, takes it (any number; one called beta must be above 0)."""
    if not _is_number(value):
        raise UserError(f"{path}: {where} = {value!r} is no number. Give one")
    kind, low, high = SETTING_LIMITS.get(key, (float, -math.inf, math.inf))
    if kind is int and value != int(value):
        raise UserError(f"{path}: {where} = {value:g}: takes whole numbers. Give one")
    if not low <= value <= high:
        raise UserError(f"{path}: {where} = {value:g}: must lie between {low:g} and {high:g}. Give such a number")
    if key == "beta" and value <= 0:
        raise UserError(f"{path}: {where} = {value:g}: must be above 0. Give such a number")
    return int(value) if kind is int else float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_keys(path: Path, where: str, found: Mapping[str, Any], allowed: set[str], who: str = "there is") -> None:
    unknown = sorted(set(found) - allowed - ({"at_parameters"} if where == WARM_START else set()))
    if unknown:
        raise UserError(f"{path}: {where} has {unknown[0]!r}. {who} only: {', '.join(sorted(allowed))}")
