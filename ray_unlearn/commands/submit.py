"""`ray_unlearn submit`: run one of the other commands as a job of a Ray cluster, or write it as a KubeRay manifest.

What runs there is `python -m ray_unlearn.cli ...` in the job's working directory: with a checkout uploaded its
`ray_unlearn/` comes first, without one the package that the cluster has. Ray's client is met here alone. The token is
read by Ray itself, and sent only where a cluster asks for one; it is in no argument, variable or message of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import shlex
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ray_unlearn.commands.job_command import SHARED, Command, read_command
from ray_unlearn.commands.machine import find_token
from ray_unlearn.commands.options import Submit
from ray_unlearn.commands.rayjob import write_rayjob
from ray_unlearn.config import SearchFailed, UserError
from ray_unlearn.wording import first_line

UPLOAD_LIMIT = 100 * 2**20
"""Bytes of the zipped working directory above which Ray's server refuses it; it is zipped without compression."""
ZIP_ENTRY = 128
"""Bytes that a file takes in the archive beside its content and twice its name, at the most."""
STOP_SECONDS = 60
"""From SIGTERM to SIGKILL when a job is stopped (Ray's own 3 s are too few for a search to write what it has)."""
POLL_SECONDS = 1.0
ANSWER_SECONDS = 10.0
LOST_CONNECTIONS = 5
"""Failures in a row after which following gives up; the job goes on."""
STOPPED = 143
"""Exit code of a job that was stopped: as of a process that SIGTERM ended."""
INTERRUPTED = 130


def run(options: Submit) -> int:
    """Submit, follow, stop or write a job, as the options ask; the exit code."""
    asked = {"a command": options.words, "--follow": options.follow, "--stop": options.stop}
    if sum(map(bool, asked.values())) != 1:
        given = ", ".join(name for name, value in asked.items() if value) or "nothing"
        raise UserError(f"submit: {given} given. Give one of: -- COMMAND, --follow JOB, --stop JOB")
    if options.follow:
        return follow_job(options.follow, options.address, options.as_json)
    if options.stop:
        return stop_job(options.stop, options.address, options.as_json)
    if options.write_rayjob is not None:
        write_rayjob(options.write_rayjob, options.words)
        print(options.write_rayjob)
        return 0
    return submit(options)


def submit(options: Submit) -> int:
    """Check, upload, start the job, follow it; the job's exit code."""
    command = read_command(options.words)
    check_writes(command)
    folder = find_working_dir(options.working_dir)
    client = connect(options.address)
    travelling = {} if folder is None else list_travelling(folder)
    check_reads(command, folder, travelling)
    size = check_size(folder, travelling)
    entrypoint = shlex.join(["python", "-m", "ray_unlearn.cli", *command.words])
    say = Screen(options.as_json)
    say.note(f"{options.address}: " + ("nothing to upload" if folder is None else f"uploading {size / 2**20:.1f} MiB"))
    environment: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}}
    if folder is not None:
        environment["working_dir"] = str(folder)
    with told_plainly(options.address):
        job = client.submit_job(entrypoint=entrypoint, runtime_env=environment)
    say.note(f"job {job}: {entrypoint}")
    about = {"job": job, "address": options.address, "entrypoint": entrypoint, "uploaded_bytes": size}
    if options.no_follow:
        say.note(how_to_go_on(job, options.address))
        say.result(about)
        return 0
    return follow(client, job, options.address, say, about)


def follow_job(job: str, address: str, as_json: bool) -> int:
    """Show the log of a job that was submitted before until it ends; its exit code."""
    return follow(connect(address), job, address, Screen(as_json), {"job": job, "address": address})


def stop_job(job: str, address: str, as_json: bool) -> int:
    """End a job with SIGTERM and wait until it has ended; 0 where it has."""
    client, say = connect(address), Screen(as_json)
    with told_plainly(address, job):
        if client.stop_job(job):
            say.note(f"job {job}: asked to stop; it has {STOP_SECONDS} s to write what it has")
        deadline = time.monotonic() + 2 * STOP_SECONDS
        while not (details := client.get_job_info(job)).status.is_terminal():
            if time.monotonic() > deadline:
                raise SearchFailed(f"job {job}: has not stopped within {2 * STOP_SECONDS} s. Look at the cluster")
            time.sleep(POLL_SECONDS)
    say.note(f"job {job}: {details.status}")
    say.result({"job": job, "address": address, "status": str(details.status)})
    return 0


class Screen:
    """Where things are said: results and the job's log to standard output; notes, and with --json the log too, to
    standard error."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def log(self, text: str) -> None:
        print(text, end="", file=sys.stderr if self._as_json else sys.stdout, flush=True)

    def result(self, values: Mapping[str, Any]) -> None:
        if self._as_json:
            print(json.dumps(values, indent=1), flush=True)


# ---- what is uploaded


def find_working_dir(asked: Path | None) -> Path | None:
    """What is uploaded: the folder that was asked for, else this one where it is a checkout; None: nothing."""
    if asked is not None:
        if not asked.is_dir():
            raise UserError(f"--working-dir {asked}: no such folder. Give the folder to upload")
        return asked.resolve()
    here = Path.cwd()
    return here if (here / "ray_unlearn" / "cli.py").is_file() else None


def list_travelling(folder: Path) -> dict[Path, int]:
    """Bytes of each file that Ray uploads of the folder, by its path in there: found by Ray's own walk, which leaves
    out what .rayignore and .gitignore name."""
    from ray._private.ray_constants import RAY_RUNTIME_ENV_IGNORE_GITIGNORE, get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    found: dict[Path, int] = {}

    def take(path: Path) -> None:
        if path.is_file():
            found[path.relative_to(folder)] = path.stat().st_size

    include_gitignore = os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    _dir_travel(folder, [_get_excludes(folder, get_runtime_env_default_excludes())], take, include_gitignore)
    return found


def check_size(folder: Path | None, travelling: Mapping[Path, int]) -> int:
    """Bytes of the upload. Raises UserError naming what weighs most where the server would refuse it."""
    size = sum(n + ZIP_ENTRY + 2 * len(str(path)) for path, n in travelling.items())
    if size > UPLOAD_LIMIT:
        named = ", ".join(f"{path} ({n / 2**20:.0f} MiB)" for path, n in heaviest(travelling))
        raise UserError(
            f"--working-dir {folder}: {size / 2**20:.0f} MiB to upload, and Ray takes {UPLOAD_LIMIT >> 20}. The most: "
            f"{named}. Name them in .rayignore; models and data belong on the cluster's file system"
        )
    return size


def heaviest(sizes: Mapping[Path, int], count: int = 3, share: float = 0.8) -> list[tuple[Path, int]]:
    """The largest entries at the top, each followed down as long as one entry in it has that share of it."""
    totals: dict[Path, int] = {}
    for path, size in sizes.items():
        for part in (path, *path.parents[:-1]):
            totals[part] = totals.get(part, 0) + size

    def below(folder: Path) -> list[Path]:
        return sorted((p for p in totals if p.parent == folder), key=lambda p: -totals[p])

    found = []
    for path in below(Path())[:count]:
        while (inside := below(path)) and totals[inside[0]] >= share * totals[path]:
            path = inside[0]
        found.append((path, totals[path]))
    return found


def check_reads(command: Command, folder: Path | None, travelling: Mapping[Path, int]) -> None:
    """Raise UserError for a file or folder that is here, is meant to be read there, and does not travel."""
    for written, path in command.reads:
        if path.is_absolute() or not any((place / path).exists() for place in (folder, Path.cwd()) if place):
            continue
        if not any(path in (name, *name.parents) for name in travelling):
            raise UserError(
                f"{written} {path}: lies here and is not uploaded. Give its place on the cluster, such as "
                f"{SHARED / path.name}, or a --working-dir that holds it"
            )


def check_writes(command: Command) -> None:
    """Raise UserError where results would go into the job's own folder."""
    for written, path in command.writes:
        if not path.is_absolute():
            raise UserError(
                f"{written} {path}: lies in the job's own folder, which goes with the job. Give a folder on the file "
                f"system that the nodes share, such as {SHARED / path}"
            )


# ---- the cluster


def connect(address: str) -> Any:
    """Ray's job client. Raises UserError where the package is missing or the cluster does not let us in."""
    address = address.rstrip("/")
    if not re.match(r"https?://", address):
        raise UserError(f"--address {address}: is no address of a dashboard. Give one such as http://HEAD:8265")
    choose_authentication(address)
    # Ray takes what these name rather than what it is given.
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        os.environ.pop(name, None)
    try:
        import aiohttp  # noqa: F401
        import requests  # noqa: F401
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise UserError(
            f"submit: needs Ray's job client ({error.name} is missing). Install ray_unlearn[cluster]"
        ) from None
    for name in ("ray._private.runtime_env.packaging", "ray.dashboard.modules.dashboard_sdk"):
        logging.getLogger(name).setLevel(logging.WARNING)  # what is uploaded is said by us
    with told_plainly(address):
        return JobSubmissionClient(address)


def choose_authentication(address: str) -> None:
    """Have Ray send the token where the cluster asks for one; it does not by itself, and decides when it is imported.

    Asked without it, so that no token goes where none is wanted.
    """
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError as error:
        if error.code not in (401, 403):
            return  # the client has its own words for it
        if not find_token()[0]:
            raise UserError(
                f"--address {address}: the cluster asks for a token and there is none here. Put the cluster's into "
                "~/.ray/auth_token, or name its file with RAY_AUTH_TOKEN_PATH"
            ) from None
        os.environ["RAY_AUTH_MODE"] = "token"
    except (OSError, ValueError) as error:
        reason = first_line(getattr(error, "reason", error))
        raise UserError(
            f"--address {address}: no dashboard answers ({reason}). Start the cluster with one (ray[default]), or "
            "forward its port 8265"
        ) from None


@contextlib.contextmanager
def told_plainly(address: str, job: str = "") -> Iterator[None]:
    """What Ray's client raises inside, as one line."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError:
        raise UserError(
            f"--address {address}: the cluster does not take the token that is here. Put the cluster's into "
            "~/.ray/auth_token, or name its file with RAY_AUTH_TOKEN_PATH"
        ) from None
    except (RuntimeError, OSError, ValueError) as error:
        text = " ".join(str(error).split())
        if job and "404" in text:
            raise UserError(f"{job}: {address} knows no such job. Check the name and --address") from None
        raise SearchFailed(f"{address}: {text[:300]}") from None


def follow(client: Any, job: str, address: str, say: Screen, about: Mapping[str, Any]) -> int:
    """Show the job's log until it ends; its exit code. Ctrl-C leaves the job running."""
    try:
        details = show_log(client, job, address, say.log)
    except KeyboardInterrupt:
        say.note(f"\njob {job} goes on. {how_to_go_on(job, address)}")
        return INTERRUPTED
    code = exit_code(str(details.status), details.driver_exit_code)
    why = f": {first_line_of(details.message)}" if code and details.driver_exit_code is None else ""
    say.note(f"job {job}: {details.status}, exit code {code}{why}")
    say.result({**about, "status": str(details.status), "exit_code": code})
    return code


def show_log(client: Any, job: str, address: str, write: Callable[[str], None]) -> Any:
    """Write the job's log as it grows; what is known of the job when it has ended.

    A connection that breaks is made again, and what was shown is not shown twice.
    """
    from aiohttp import ClientError

    shown = failures = 0

    async def tail() -> None:
        nonlocal shown, failures
        passed = 0
        async for text in client.tail_job_logs(job):
            failures = 0
            passed += len(text)
            if passed > shown:
                write(text[len(text) - (passed - shown) :])
                shown = passed

    with told_plainly(address, job):
        client.get_job_info(job)
    while True:
        try:
            asyncio.run(tail())
            details = client.get_job_info(job)
            if details.status.is_terminal():
                write(client.get_job_logs(job)[shown:])  # the connection may close before the last lines
                return details
        except (RuntimeError, OSError, ClientError) as error:
            failures += 1
            if failures == LOST_CONNECTIONS:
                raise SearchFailed(
                    f"job {job}: the connection to {address} is lost ({first_line(error)}); the job goes on. "
                    + how_to_go_on(job, address)
                ) from None
        time.sleep(POLL_SECONDS)


def exit_code(status: str, driver: int | None) -> int:
    """As a shell would have it: the command's own, 128 and the signal where one ended it."""
    if driver is not None:
        return driver if driver >= 0 else 128 - driver
    return {"SUCCEEDED": 0, "STOPPED": STOPPED}.get(status, 1)


def how_to_go_on(job: str, address: str) -> str:
    own = f" --address {address}"
    return f"Follow it: ray_unlearn submit{own} --follow {job}   Stop it: ray_unlearn submit{own} --stop {job}"


def first_line_of(text: str | None) -> str:
    return (text or "").strip().splitlines()[0] if (text or "").strip() else "Ray says nothing of why"
