"""Search folders with made-up figures, written by the one writer."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from ray_unlearn.results import Writer, curve_schema, trial_schema

METRICS = {
    "forget_accuracy": "share of forget questions answered right; chance is 0.25",
    "retain_accuracy": "share of retain questions answered right",
}
PARAMETERS = ("beta", "gamma")
STRENGTH = {"simnpo": (0.96, 0.05), "npo": (0.92, 0.16), "ga": (0.88, 0.5)}
"""(how much can be forgotten, how much utility that costs)."""


def build_meta(**changes: Any) -> dict[str, Any]:
    config = {
        "name": "wmdp-mini-1",
        "benchmark": "wmdp",
        "scale": "mini",
        "methods": ["simnpo", "npo", "ga"],
        "trials": 16,
        "concurrent": 2,
        "objective": "combined",
        "utility_floor": 0.95,
        "seed": 7,
        "gang": {"num_workers": 2, "zero_stage": 2, "precision": "fp32"},
        "model": "embedded miniature",
        "data": None,
        "split": None,
        "space": None,
        "address": None,
    }
    config |= changes.pop("config", {})
    space = {
        "method": "simnpo",
        "ranges": {
            "beta": {"low": 0.5, "high": 8.0, "log": True, "integer": False},
            "retain_weight": {"low": 0.1, "high": 10.0, "log": True},
            "learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
        },
        "fixed": {"epochs": 10, "batch_size": 16},
        "warm_starts": [{"beta": 2.5, "gamma": 0.0, "retain_weight": 7.27, "learning_rate": 1e-5}],
    }
    meta = {
        "name": "wmdp-mini-1",
        "status": "complete",
        "created": "2026-03-01T10:00:00+00:00",
        "finished": "2026-03-01T10:12:30+00:00",
        "command": ["ray_unlearn", "tune", "--benchmark", "wmdp", "--address", "ray://secret-node:10001"],
        "config": config,
        "objective_text": "Forget is how far the accuracy on hazardous questions has fallen from the "
        "starting model towards chance, and falls again when it goes below. Utility is the accuracy on general "
        "questions relative to the starting model. The objective is their harmonic mean, under a floor.",
        "metrics": METRICS,
        "start": {"metrics": {}, "forget": 0.0, "utility": 1.0, "objective": 0.0},
        "retrained": {"metrics": {}, "forget": 1.0, "utility": 0.99, "objective": 0.995},
        "spaces": dict.fromkeys(config["methods"], space),
        "versions": {"python": "3.11.9", "torch": "2.13.0", "ray": "2.60.0", "deepspeed": "0.19.8"},
        "git": "1f3c2ab",
        "chosen": None,
    }
    return {**meta, **changes}


def build_row(number: int, method: str, **changes: Any) -> dict[str, Any]:
    """One completed trial with every column that a search writes."""
    row = {
        "trial_id": f"{method}-{number:04d}",
        "number": number,
        "benchmark": "wmdp",
        "method": method,
        "scale": "mini",
        "status": "completed",
        "error": None,
        "retain_weight": 1.0,
        "learning_rate": 1.2e-5,
        "epochs": 10,
        "batch_size": 16,
        "warmup_fraction": 0.1,
        "schedule": "linear",
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "evaluations": 4,
        "beta": 2.5,
        "gamma": 0.0 if method == "simnpo" else None,
        "objective": 0.8,
        "forget": 0.8,
        "utility": 0.8,
        "epoch": 10.0,
        "seed": 7,
        "wall_seconds": 12.5,
        "train_seconds": 9.0,
        "evaluate_seconds": 2.5,
        "device_seconds": 25.0,
        "peak_memory_bytes": 345_000_000,
        "wmdp/forget_accuracy": 0.31,
        "wmdp/retain_accuracy": 0.62,
    }
    unscored = dict.fromkeys(
        ("objective", "forget", "utility", "epoch", "wmdp/forget_accuracy", "wmdp/retain_accuracy")
    )
    if changes.get("status") == "failed":
        row |= unscored
    return row | changes


def simulate(num_trials: int, methods: tuple[str, ...], seed: int = 3) -> list[tuple[dict[str, Any], list[Any]]]:
    """Trials that look like a search's: stronger settings forget more and keep less."""
    chance = random.Random(seed)
    found = []
    for number in range(num_trials):
        method = methods[number % len(methods)]
        reach, price = STRENGTH.get(method, (0.85, 0.3))
        push = chance.betavariate(1.6, 1.2)
        forget = min(1.0, max(0.0, reach * (1 - math.exp(-3.2 * push)) / (1 - math.exp(-3.2)) + chance.gauss(0, 0.02)))
        utility = min(
            1.0,
            max(0.0, 1 - price * push**3 - abs(chance.gauss(0, 0.03)) - 0.5 * price * chance.random() ** 6),
        )
        mean = 2 * forget * utility / max(1e-9, forget + utility)
        scores = {
            "objective": mean * min(1.0, utility / 0.95),
            "forget": forget,
            "utility": utility,
            "wmdp/forget_accuracy": 0.7 - 0.45 * forget,
            "wmdp/retain_accuracy": 0.25 + 0.4 * utility,
        }
        settings = {
            "beta": 0.5 * 16 ** chance.random(),
            "retain_weight": 10 ** chance.uniform(-1, 1),
            "learning_rate": 10 ** chance.uniform(-5, -2),
        }
        status = "failed" if number % 23 == 22 else "pruned" if number % 6 == 5 else "completed"
        changes: dict[str, Any] = {**settings, "status": status}
        if status == "failed":
            changes["error"] = (
                'Traceback (most recent call last):\n  File "worker.py", line 88\n'
                "FloatingPointError: loss is NaN at step 14 (ip=10.1.2.3)"
            )
            found.append((build_row(number, method, **changes), []))
            continue
        last = 2 if status == "pruned" else 4
        share = 0.5 if status == "pruned" else 1.0
        scores = {key: value * (share if key in {"objective", "forget"} else 1) for key, value in scores.items()}
        row = build_row(number, method, **changes, **scores, epoch=2.5 * last, device_seconds=25 * share)
        curve = [
            {
                "trial_id": row["trial_id"],
                "benchmark": "wmdp",
                "method": method,
                "step": 10 * k,
                "epoch": 2.5 * k,
                "objective": scores["objective"] * (1 - math.exp(-1.1 * k)) / (1 - math.exp(-1.1 * last)),
                "forget": scores["forget"],
                "utility": scores["utility"],
            }
            for k in range(1, last + 1)
        ]
        found.append((row, curve))
    return found


def write_folder(
    folder: Path,
    trials: list[tuple[dict[str, Any], list[Any]]] | None = None,
    finals: list[dict[str, Any]] | None = None,
    **changes: Any,
) -> Path:
    made_up = trials is None
    trials = simulate(48, ("simnpo", "npo", "ga")) if trials is None else trials
    if made_up:
        done = [row for row, _ in trials if row["status"] == "completed"]
        best = [max((r for r in done if r["method"] == m), key=lambda r: r["objective"]) for m in STRENGTH]
        changes.setdefault("chosen", max(best, key=lambda row: row["objective"])["trial_id"])
        finals = [row | {name: row[name] * 0.97 for name in ("objective", "forget", "utility")} for row in best]
        model = {"status": "completed", "benchmark": "wmdp", "scale": "mini"}
        for name, forget in (("start", 0.0), ("retrained", 1.0)):
            finals.append(
                {**model, "trial_id": name, "method": name, "forget": forget, "utility": 1.0, "objective": forget}
            )
    writer = Writer.create(folder, trial_schema("wmdp", PARAMETERS, METRICS), curve_schema("wmdp", METRICS))
    writer.write_search(build_meta(**changes))
    for row, curve in trials:
        writer.write_trial(row, curve)
    for row in finals or []:
        writer.write_final(row)
    return folder
