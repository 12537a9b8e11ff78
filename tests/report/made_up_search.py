"""Search folders with made-up figures, written by the one writer."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from ray_unlearn.records.tables import Writer, curve_schema, trial_schema, write_json

METRICS = {
    "forget_accuracy": "share of forget questions answered right; chance is 0.25",
    "retain_accuracy": "share of retain questions answered right",
}
ATTACKED = {
    f"{attack}_{name}": f"{how}: {METRICS[name]}"
    for attack, how in (("relearned", "after fine-tuning on a part of the forget set"), ("quantised", "in 4 bits"))
    for name in METRICS
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
        "ranking": "floored",
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
        "metrics": METRICS | ATTACKED,
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
        "epochs_run": 10,
        "alpha": 1.0,
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


def on_the_line(row: dict[str, Any], alpha: float, **scores: float) -> tuple[dict[str, Any], list[Any]]:
    """A point on the line from the starting model to that trial's, as a search writes it."""
    plain = {name: value for name, value in row.items() if not name.endswith("_seconds")}
    return {**plain, **scores, "trial_id": f"{row['trial_id']}@{alpha:g}", "status": "interpolated", "alpha": alpha}, []


def attacked(row: dict[str, Any]) -> dict[str, Any]:
    """The same final with its metrics after each attack: part of the way back to the starting model's 0.7 and 0.65."""
    back = {"relearned": 0.6, "quantised": 0.3}
    for name, start in (("forget_accuracy", 0.7), ("retain_accuracy", 0.65)):
        value = row.get(f"wmdp/{name}", start)
        row |= {f"wmdp/{attack}_{name}": value + share * (start - value) for attack, share in back.items()}
    return row


def examples(known: float, number: int = 64, texts: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """known: about the probability of the answers. texts: columns of the first example."""
    chance = random.Random(11)
    rows = []
    for example in range(number):
        probability = min(1.0, known * chance.uniform(0.5, 1.0))
        rows.append(
            {
                "set": "forget",
                "example": example,
                "num_tokens": 3 + example % 9,
                "prompt": f"Which reagent turns compound {example} blue?",
                "reference": f"Reagent {example % 7}, at {20 + example} degrees.",
                "answer": f"Reagent {example % 7}." if known > 0.5 else "It is not known.",
                "probability": probability,
                "exact_memorisation": round(probability, 1),
            }
        )
    rows[0] |= texts or {}
    return rows


NUM_TOKENS = [4 + (7 * i) % 37 for i in range(60)]
START_NLL = [0.05 + ((11 * i) % 60) / 40 for i in range(60)]


def weights(method: str, epochs: int = 6) -> list[list[float]]:
    """Gradient weights [epochs][60] by the papers' formulas, on examples whose loss grows while they are forgotten."""
    found = []
    for epoch in range(epochs):
        losses = [nll + 0.25 * epoch for nll in START_NLL]
        if method == "simnpo":
            ratios = [math.exp(-2.5 * loss) for loss in losses]
            found.append([2 * r / (1 + r) / n for r, n in zip(ratios, NUM_TOKENS, strict=True)])
        elif method == "npo":
            ratios = [math.exp(-0.1 * n * 0.25 * epoch) for n in NUM_TOKENS]
            found.append([2 * r / (1 + r) for r in ratios])
        else:
            found.append([1.0] * len(NUM_TOKENS))
    return found


def comparison(rows: list[dict[str, Any]], seeds: tuple[int, ...] = (1, 2, 3)) -> dict[str, Any]:
    """The finalists over seeds, with a made-up spread."""

    def spread(mean: float) -> dict[str, float]:
        return {"mean": mean, "std": 0.012, "min": mean - 0.015, "max": mean + 0.014}

    best, *others = sorted(rows, key=lambda row: -row["objective"])
    return {
        "seeds": list(seeds),
        "finalists": [
            {
                "method": row["method"],
                "trial_id": row["trial_id"],
                "n": len(seeds),
                **{name: spread(row[name]) for name in ("forget", "utility", "objective")},
                "metrics": {f"wmdp/{name}": {"mean": row[f"wmdp/{name}"], "std": 0.01} for name in METRICS},
            }
            for row in rows
        ],
        "hypervolume": {row["method"]: {"value": 0.8, "low": 0.75, "high": 0.84} for row in rows},
        "differences": [
            {
                "better": best["method"],
                "other": other["method"],
                "measure": "objective",
                "value": best["objective"] - other["objective"],
                "low": -0.01,
                "high": 0.2,
                "verdict": "not told apart",
                "sentence": f"{best['method']} and {other['method']} are not told apart.",
            }
            for other in others
        ],
        "warnings": ["Three seeds are few."],
        "budget": {},
        "edges": [],
    }


def write_folder(
    folder: Path,
    trials: list[tuple[dict[str, Any], list[Any]]] | None = None,
    finals: list[dict[str, Any]] | None = None,
    compared: bool = False,
    **changes: Any,
) -> Path:
    """Without trials: 48 of three methods, with the chosen one, finals, examples and weights; and a comparison
    over seeds where `compared`."""
    made_up = trials is None
    trials = simulate(48, ("simnpo", "npo", "ga")) if trials is None else trials
    if made_up:
        done = [row for row, _ in trials if row["status"] == "completed"]
        best = [max((r for r in done if r["method"] == m), key=lambda r: r["objective"]) for m in STRENGTH]
        changes.setdefault("chosen", max(best, key=lambda row: row["objective"])["trial_id"])
        finals = [
            attacked(row | {name: row[name] * 0.97 for name in ("objective", "forget", "utility")}) for row in best
        ]
        importances = {"beta": 0.25, "retain_weight": 0.15, "learning_rate": 0.6}
        changes.setdefault("importances", dict.fromkeys(STRENGTH, importances))
        model = {"status": "completed", "benchmark": "wmdp", "scale": "mini"}
        for name, forget in (("start", 0.0), ("retrained", 1.0)):
            scores = {"forget": forget, "utility": 1.0, "objective": forget}
            measured = {"wmdp/forget_accuracy": 0.7 - 0.45 * forget, "wmdp/retain_accuracy": 0.65}
            finals.append(attacked({**model, "trial_id": name, "method": name, **scores, **measured}))
    writer = Writer(folder, trial_schema("wmdp", PARAMETERS, METRICS | ATTACKED), curve_schema("wmdp", METRICS))
    writer.write_search(build_meta(**changes))
    for row, curve in trials:
        writer.write_files(writer.trial_files(row, curve, []))
    for row in finals or []:
        writer.write_final(row)
    if made_up:
        writer.write_examples("start", "report", examples(0.95))
        for row in best:
            writer.write_examples(row["trial_id"], "report", examples(0.2))
            writer.write_weights(row["trial_id"], weights(row["method"]), NUM_TOKENS, START_NLL)
        if compared:
            write_json(folder / "comparison.json", comparison(best))
    return folder
