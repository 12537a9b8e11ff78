"""Losses from a file: `--methods ./losses.py:mine` searches the function `mine` like any other method.

    from typing import Annotated
    from ray_unlearn.config import Range

    def mine(forget, *, beta: Annotated[float, Range(0.1, 10.0, log=True)] = 1.0):
        return beta * forget.mean(forget.logprobs)

It takes a training.losses.ScoredTokens and gives one term a sequence ([S]) or one an answer token ([T]). Its
keyword-only arguments are what is searched: in the Range of their annotation, in that of a space file, or round their
default. What it reads of the starting model is computed for it. It must keep loss_contract.py, runs only where
--trust-code says so, and reaches other nodes by value.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from torch import Tensor

from ray_unlearn.config import Range, UserError
from ray_unlearn.models.logprobs import DISTRIBUTION, HIDDEN, LOGPROBS
from ray_unlearn.plugins import LOSS, LOSS_FILE, METHOD, OwnLoss, Plugin, check_trust, installed, load_source
from ray_unlearn.training.loss_contract import LENGTHS, broken_rules, made_up, reads_of, reduction_of
from ray_unlearn.training.losses import METHODS, OWN, Method, keyword_ranges
from ray_unlearn.wording import first_line

_taken: dict[str, OwnLoss] = {}


def take_losses(methods: Sequence[str]) -> tuple[str, ...]:
    """The methods by name; those of files are read, checked and known by the function's name from here on.

    Raises UserError, a line for everything that is wrong.
    """
    names, wrong = [], []
    for given in methods:
        if LOSS_FILE not in given:
            names.append(given)
            continue
        try:
            loss = _read(given)
            wrong += [f"--methods {given}: {rule}. Correct the file" for rule in take(loss)]
            names.append(loss.name)
        except UserError as error:
            wrong.append(str(error))
    if wrong:
        raise UserError("\n".join(wrong))
    return tuple(names)


def _read(given: str) -> OwnLoss:
    path, _, name = given.rpartition(":")
    where = f"--methods {given}"
    if not name.isidentifier():
        raise UserError(f"{where}: {name!r} is no function's name. Give FILE.py:FUNCTION")
    if name in METHODS or name in installed(METHOD):
        raise UserError(f"{where}: there is a method {name} already. Give the function another name")
    try:
        source = Path(path).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: cannot be read ({type(error).__name__}). Check the path") from None
    return OwnLoss(name, Path(path).name, source, hashlib.sha256(source.encode()).hexdigest())


def take(loss: OwnLoss) -> list[str]:
    """Know a loss by its name from here on, in this process; what of the contract it does not keep. Raises UserError
    where it may not run, or is none."""
    where = f"{loss.file}:{loss.name}"
    check_trust(f"--methods {where}", [loss.file])
    try:
        function = getattr(load_source(loss.source, loss.sha256, loss.file), loss.name, None)
    except Exception as error:  # whatever its file raises
        why = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"--methods {where}: cannot be imported ({why}). Correct the file") from None
    if not inspect.isfunction(function):
        raise UserError(f"--methods {where}: has no function of that name. Give one that it has")
    parameters = list(inspect.signature(function).parameters.values())
    searched = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    if len(parameters) - len(searched) != 1:
        return [f"takes {len(parameters) - len(searched)} positional arguments, and must take one, the scored tokens"]
    if odd := [p.name for p in searched if not isinstance(p.default, int | float) or isinstance(p.default, bool)]:
        return [f"its argument {name} has no number as default" for name in odd]
    ranges = keyword_ranges(function)
    broken = broken_rules(function, extremes={name: _ends(r) for name, r in ranges.items()})
    if not broken:
        OWN[loss.name], _taken[loss.name] = _method(loss, function), loss
    return broken


def _ends(range_: Range) -> tuple[float, float]:
    return range_.low, range_.high


def _method(loss: OwnLoss, function: Callable[..., Tensor]) -> Method:
    reads = reads_of(function)
    tokens = made_up(LENGTHS)
    layers = {"hidden", "reference_hidden"} & reads
    distributions = {"log_distribution", "reference_distribution"} & reads
    if layers and distributions:
        raise UserError(
            f"--methods {loss.file}:{loss.name}: may read whole distributions or hidden states, not both. Correct it"
        )
    return Method(
        loss.name,
        f"{loss.name} of {loss.file}",
        function,
        reduction_of(function(tokens), tokens),
        "",
        needs_reference="reference" in reads,
        reads=HIDDEN if layers else DISTRIBUTION if distributions else LOGPROBS,
        reads_reference=bool({"reference_distribution", "reference_hidden"} & reads),
    )


def taken(methods: Iterable[str]) -> tuple[OwnLoss, ...]:
    """Of the methods, those that are from a file."""
    return tuple(_taken[name] for name in methods if name in _taken)


def describe_taken(methods: Iterable[str]) -> tuple[Plugin, ...]:
    return tuple(Plugin(LOSS, loss.name, loss.file, "", loss.sha256) for loss in taken(methods))


def take_here(losses: Iterable[OwnLoss]) -> None:
    """On a worker: the search's losses, which its driver has been allowed to run and has checked."""
    for loss in losses:
        function = getattr(load_source(loss.source, loss.sha256, loss.file), loss.name)
        OWN[loss.name], _taken[loss.name] = _method(loss, function), loss


# ---- in a search's folder, for later commands


def write_losses(folder: Path, methods: Iterable[str]) -> None:
    """Keep the text of each method that is from a file."""
    for loss in taken(methods):
        place = folder / kept_place(loss.name)
        place.parent.mkdir(exist_ok=True)
        place.write_text(loss.source)


def kept_place(name: str) -> str:
    return f"losses/{name}.py"


def recall_losses(folder: Path, plugins: Iterable[Plugin]) -> None:
    """Know those that a search recorded. Raises UserError where one is gone, has changed, or may not run."""
    for plugin in plugins:
        if plugin.kind == LOSS:
            file = folder / kept_place(plugin.name)
            try:
                source = file.read_text()
            except (OSError, UnicodeDecodeError):
                raise UserError(f"{file}: the loss of this search cannot be read. Put it back") from None
            if hashlib.sha256(source.encode()).hexdigest() != plugin.sha256:
                raise UserError(f"{file}: is not what the search ran with. Put it back, or search anew")
            if broken := take(OwnLoss(plugin.name, plugin.source, source, plugin.sha256)):
                raise UserError(f"{file}: {broken[0]}")
