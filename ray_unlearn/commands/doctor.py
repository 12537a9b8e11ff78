"""`ray_unlearn doctor`: look at a machine before a search is started on it. It changes nothing, and shows no secret."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from ray_unlearn.commands.exit_codes import FAILED
from ray_unlearn.commands.machine import (
    PROBLEM,
    WARNING,
    Check,
    ask_hub,
    bare_name,
    check_authentication,
    check_optional,
    check_packages,
    check_ports,
    check_python,
    find_disks,
    find_gpus,
    find_memory,
    find_ports,
    find_token,
    installed,
    tested_versions,
    time_agent,
    try_benchmark,
    try_ray,
)
from ray_unlearn.commands.options import Doctor

# ---- what is here


def run(options: Doctor) -> int:
    checks = examine(
        options.benchmark,
        options.model,
        options.data,
        options.split,
        options.address,
        options.start_ray,
        options.out,
    )
    print(show(checks, options.as_json))
    return FAILED if has_problem(checks) else 0


def examine(
    benchmark: str | None = None,
    model: str | None = None,
    data: Path | None = None,
    split: str | None = None,
    address: str | None = None,
    start_ray: bool = False,
    out: Path = Path("results"),
) -> list[Check]:
    """All checks that apply, in the order in which they are best mended."""
    mode = os.environ.get("RAY_AUTH_MODE")
    ours = metadata.metadata("ray_unlearn")
    required = [r for r in metadata.requires("ray_unlearn") or [] if "extra ==" not in r]
    checks = [check_python(platform.python_version(), ours["Requires-Python"])]
    checks += check_packages(required, tested_versions(), {n: installed(n) for n in map(bare_name, required)})
    checks.append(check_optional("peft", installed("peft"), "--lora", "pip install 'ray_unlearn[lora]'"))
    dashboard = installed("aiohttp_cors")  # of what ray[default] brings, a package that nothing else does
    fix = "pip install 'ray_unlearn[cluster]'"
    checks.append(check_optional("ray[default]", dashboard and installed("ray"), "`ray_unlearn submit`", fix))
    checks.append(find_gpus())
    checks.append(find_memory())
    checks += find_disks(out)
    checks.append(time_agent())
    checks.append(ask_hub())
    checks += try_benchmark(benchmark, model, data, split)
    token, others_read_it = find_token()
    checks.append(check_authentication(mode, token, others_read_it))
    checks.append(
        check_ports(find_ports(), token and mode in (None, "token"))
    )  # unset, Ray takes a token that is there
    checks += try_ray(address, start_ray)
    return checks


# ---- showing them


def show(checks: Sequence[Check], as_json: bool) -> str:
    if as_json:
        return json.dumps([asdict(check) for check in checks], indent=2)
    width = max(len(check.name) for check in checks)
    lines = [f"{c.state:<8} {c.name:<{width}}  {c.says}{f'. {c.fix}' if c.fix else ''}" for c in checks]
    counts = {state: sum(c.state == state for c in checks) for state in (PROBLEM, WARNING)}
    ends = [f"{n} {state}{'s' if n > 1 else ''}" for state, n in counts.items() if n] or ["nothing is in the way"]
    return "\n".join([*lines, ", ".join(ends)])


def has_problem(checks: Sequence[Check]) -> bool:
    return any(check.state == PROBLEM for check in checks)
