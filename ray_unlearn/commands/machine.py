"""`ray_unlearn doctor`: look at a machine before a search is started on it. It changes nothing, and shows no secret.

Each check is a function of plain values, so that it can be tried on any machine; what gathers them comes after.
Tokens are never read, and of the environment only what a line names: the authentication mode, whether the hub is
switched off.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import stat
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from ray_unlearn.byte_code import AGENT_LIMIT, agent_seconds, keep_byte_code
from ray_unlearn.config import UserError
from ray_unlearn.hardware import free_memory, granted_cpus, unusable_gpus
from ray_unlearn.wording import first_line

OK, WARNING, PROBLEM = "ok", "warning", "problem"
GIB = 1 << 30
NEEDED_DISK, WANTED_DISK = 1 * GIB, 20 * GIB
"""Free space: below the first nothing can be relied on, below the second one 7 B model in bf16 does not fit twice."""
FULL_DISK = 0.95
"""Used share of a disk at which Ray takes it for full and stops making objects and workers (its own default)."""
NEEDED_MEMORY, WANTED_MEMORY = 2 * GIB, 8 * GIB
"""Ray's head takes about 1 GiB, each CPU worker of the miniature about as much."""
WANTED_SHM = 1 * GIB
WANTED_AGENT_SECONDS = 5.0
"""On a free machine Ray's agent loads in two; busy ones, and the rest of Ray's start, take several times as long."""
HUB_SECONDS = 3.0
CLUSTER_SECONDS = 3.0
EVERYWHERE = ("0.0.0.0", "::", "*")


@dataclass(frozen=True)
class Check:
    """One line of the table: what was looked at, how it stands, what was found, and the way out where there is one."""

    name: str
    state: str
    says: str
    fix: str = ""


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_bytes: int
    bf16: bool


@dataclass(frozen=True)
class Port:
    """A TCP port on which a process of Ray listens."""

    process: str
    port: int
    address: str


# ---- checks of plain values


def check_packages(
    requirements: Sequence[str], pinned: Mapping[str, str], installed: Mapping[str, str | None]
) -> list[Check]:
    """One line for all that is as tested, and one for each package that is not.

    requirements: as package metadata give them ("ray[tune]>=2.60,<3"); pinned: tested versions by name, in lower
    case; installed: versions by name, None where it is missing.
    """
    from packaging.requirements import Requirement

    found, good = [], []
    for requirement in map(Requirement, requirements):
        name = requirement.name
        have, tested = installed.get(name), pinned.get(name.lower().replace("-", "_"))
        install = f"pip install -c constraints.txt '{requirement.name}{requirement.specifier}'"
        if have is None:
            found.append(Check(name, PROBLEM, "not installed", install))
        elif not requirement.specifier.contains(have, prereleases=True):
            found.append(Check(name, PROBLEM, f"{have} is installed, {requirement.specifier} is needed", install))
        elif tested is not None and without_build(have) != tested:
            found.append(Check(name, WARNING, f"{have} is installed, {tested} is what was tested", install))
        else:
            good.append(name)
    if good:
        found.insert(0, Check("packages", OK, f"{len(good)} as tested: {', '.join(good)}"))
    return found


def check_python(version: str, needed: str) -> Check:
    from packaging.specifiers import SpecifierSet

    if SpecifierSet(needed).contains(version):
        return Check("python", OK, version)
    return Check("python", PROBLEM, f"{version}, {needed} is needed", "Make the environment with another Python")


def check_optional(name: str, version: str | None, serves: str, install: str) -> Check:
    if version is None:
        return Check(name, OK, f"not installed, so {serves} cannot be used", install)
    return Check(name, OK, f"{version}, for {serves}")


def check_gpus(gpus: Sequence[Gpu], nccl: bool) -> Check:
    if not gpus:
        return Check("gpu", OK, "none that torch sees: --scale auto takes the miniature, and models train on the CPU")
    kinds: dict[str, int] = {}
    for gpu in gpus:
        kind = f"{gpu.name} ({gpu.memory_bytes / GIB:.0f} GiB)"
        kinds[kind] = kinds.get(kind, 0) + 1
    says = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    if not all(gpu.bf16 for gpu in gpus):
        fix = "Take a GPU of the Ampere generation or later"
        return Check("gpu", PROBLEM, f"{says}; bf16, in which models train on GPUs, is not supported", fix)
    if not nccl and len(gpus) > 1:
        fix = "Install a torch build with NCCL, or take --workers-per-trial 1"
        return Check("gpu", PROBLEM, f"{says}; torch lacks NCCL, so workers cannot train together", fix)
    return Check("gpu", OK, f"{says}, bf16, {'NCCL' if nccl else 'no NCCL'}")


def check_memory(cpus: float, memory_bytes: int) -> Check:
    says = f"{cpus:g} CPUs, {memory_bytes / GIB:.1f} GiB of memory free"
    if memory_bytes < NEEDED_MEMORY:
        return Check("machine", PROBLEM, says, f"End other programs: Ray needs {NEEDED_MEMORY // GIB} GiB at the least")
    if memory_bytes < WANTED_MEMORY:
        return Check("machine", WARNING, says, "Keep --concurrent low: each worker takes about 1 GiB and its model")
    return Check("machine", OK, says)


def check_disk(name: str, folder: str, free_bytes: int, total_bytes: int) -> Check:
    says = f"{folder}: {free_bytes / GIB:.1f} GiB free"
    if free_bytes < NEEDED_DISK:
        return Check(name, PROBLEM, says, "Free space there, or name another folder")
    if total_bytes and 1 - free_bytes / total_bytes > FULL_DISK:
        return Check(name, WARNING, f"{says}, over {FULL_DISK:.0%} used, which Ray takes for full", "Free space there")
    if free_bytes < WANTED_DISK:
        return Check(name, WARNING, says, "Enough for small models; a 7 B model wants 15 GiB each time it is kept")
    return Check(name, OK, says)


def check_shm(free_bytes: int | None) -> Check:
    if free_bytes is None:
        return Check("/dev/shm", OK, "none on this system: Ray keeps its objects in files")
    says = f"{free_bytes / GIB:.1f} GiB free"
    if free_bytes < WANTED_SHM:
        fix = "In a container give --shm-size, in Kubernetes an emptyDir of medium Memory at /dev/shm"
        return Check("/dev/shm", WARNING, f"{says}, so Ray's objects go to a slower disk", fix)
    return Check("/dev/shm", OK, says)


def check_hub(host: str, offline: bool, failure: str | None, has_token: bool) -> Check:
    """failure: why the hub did not answer, None where it did."""
    if offline:
        return Check("hub", OK, "switched off by HF_HUB_OFFLINE: only what is on this machine can be loaded")
    if failure is not None:
        fix = "Give folders to --model and --data, and set HF_HUB_OFFLINE=1 to save the waiting"
        return Check("hub", WARNING, f"{host} cannot be reached ({failure})", fix)
    return Check("hub", OK, f"{host} answers, {'with' if has_token else 'without'} a token of yours")


def check_authentication(mode: str | None, has_token: bool, readable_by_others: bool) -> Check:
    """mode: RAY_AUTH_MODE; has_token: whether there is one to use, whose file others may or may not read."""
    if mode not in (None, "token", "disabled"):
        return Check(
            "authentication", PROBLEM, "RAY_AUTH_MODE is neither token nor disabled", "Set RAY_AUTH_MODE=token"
        )
    if mode == "disabled":
        fix = "Set RAY_AUTH_MODE=token on every node and where jobs are submitted"
        return Check("authentication", WARNING, "disabled: whoever reaches a port of Ray can run code", fix)
    if not has_token:
        says = "no token yet; Ray makes one at its first local start"
        state = WARNING if mode == "token" else OK
        return Check("authentication", state, says, "For a cluster: ray get-auth-token --generate")
    if readable_by_others:
        return Check("authentication", WARNING, "others can read the token's file", "chmod 600 ~/.ray/auth_token")
    if mode is None:
        fix = "Set RAY_AUTH_MODE=token where a cluster asks for the token"
        return Check("authentication", OK, "RAY_AUTH_MODE is not set, a token is there", fix)
    return Check("authentication", OK, "token")


def check_ports(ports: Sequence[Port], guarded: bool) -> Check:
    """Which ports of a Ray that runs here other machines can reach; guarded: whether a token is asked for."""
    if not ports:
        return Check("ports", OK, "no Ray is running here")
    wide: dict[str, set[int]] = {}
    for port in ports:
        if port.address in EVERYWHERE:
            wide.setdefault(port.process, set()).add(port.port)
    if not wide:
        return Check("ports", OK, f"Ray's {len(ports)} ports listen on this machine's own addresses alone")
    named = "; ".join(f"{process} {few(numbers)}" for process, numbers in sorted(wide.items()))
    fix = "The token guards them; nothing is encrypted, so a firewall should admit only the cluster's nodes"
    if not guarded:
        fix = "Let a firewall admit only the cluster's nodes, and set RAY_AUTH_MODE=token"
    return Check("ports", OK if guarded else WARNING, f"listen on all interfaces: {named}", fix)


def few(numbers: set[int]) -> str:
    """The numbers, or how many there are where that is shorter."""
    return ", ".join(map(str, sorted(numbers))) if len(numbers) <= 4 else f"{len(numbers)} ports"


def check_agent(seconds: float | None, lacks_byte_code: bool) -> Check:
    """seconds: for loading Ray's dashboard agent; None where that failed. lacks_byte_code: before it was loaded."""
    if seconds is None:
        return Check("ray's agent", PROBLEM, "its modules cannot be loaded, so Ray cannot start", "Install Ray again")
    lacks = ", for which there was no byte code" if lacks_byte_code else ""
    says = f"loads in {seconds:.1f} s{lacks}; Ray's start fails where it takes {AGENT_LIMIT} s"
    if seconds < WANTED_AGENT_SECONDS:
        return Check("ray's agent", OK, says)
    fix = "Have the Python environment on a local disk, write its byte code with `python -m ray_unlearn.byte_code`, "
    fix += "and start searches while fewer jobs run"
    return Check("ray's agent", PROBLEM if seconds >= AGENT_LIMIT else WARNING, says, fix)


def check_nodes(address: str, nodes: Sequence[Mapping[str, float]]) -> list[Check]:
    """One line a node, from the resources that each has."""
    if not nodes:
        return [Check("cluster", PROBLEM, f"{address} answers but has no node alive", "Start nodes")]
    kinds: dict[str, int] = {}
    for node in nodes:
        parts = [f"{node[kind]:g} {kind}" for kind in ("CPU", "GPU") if node.get(kind)]
        parts.append(f"{node.get('memory', 0) / GIB:.0f} GiB")
        kinds[", ".join(parts)] = kinds.get(", ".join(parts), 0) + 1
    return [Check("cluster", OK, f"{count} node(s) with {kind}") for kind, count in kinds.items()]


def bare_name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]


def without_build(version: str) -> str:
    """2.13.0 of 2.13.0+cu130."""
    return version.split("+")[0]


def installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def tested_versions() -> dict[str, str]:
    """constraints.txt, from the checkout or the wheel: versions by lower-case name."""
    package = Path(__file__).parents[1]
    file = next((f for f in (package / "constraints.txt", package.parent / "constraints.txt") if f.is_file()), None)
    lines = file.read_text().splitlines() if file else []
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {name.lower().replace("-", "_"): version for name, version in pairs}


def find_gpus() -> Check:
    try:
        import torch
    except ImportError as error:
        return Check("gpu", PROBLEM, f"torch cannot be imported ({first_line(error)})", "Install it again")
    if why := unusable_gpus():
        return Check("gpu", PROBLEM, why, "Install a newer driver or another torch build, or correct the variable")
    gpus = []
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        gpus.append(Gpu(properties.name, properties.total_memory, properties.major >= 8))
    return check_gpus(gpus, torch.distributed.is_available() and torch.distributed.is_nccl_available())


def find_memory() -> Check:
    return check_memory(granted_cpus(), free_memory())


def find_disks(out: Path) -> list[Check]:
    from ray_unlearn.files import cache_folder

    ray_files = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    places = {"results": out.absolute(), "cache": cache_folder(), "temporary": Path(ray_files)}
    checks = []
    for name, folder in places.items():
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        usage = shutil.disk_usage(there)
        checks.append(check_disk(name, str(folder), usage.free, usage.total))
    shm = Path("/dev/shm")
    return [*checks, check_shm(shutil.disk_usage(shm).free if shm.is_dir() else None)]


def time_agent() -> Check:
    """Load Ray's agent once, as each start of Ray does."""
    lacks_byte_code = keep_byte_code()
    return check_agent(agent_seconds(), lacks_byte_code)


def ask_hub() -> Check:
    """One HEAD request, without the token."""
    from huggingface_hub import constants, get_token

    host = urlsplit(constants.ENDPOINT).hostname or "the hub"  # the address itself might hold a password
    if constants.HF_HUB_OFFLINE:
        return check_hub(host, True, None, False)
    failure = None
    try:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        urllib.request.urlopen(request, timeout=HUB_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, ValueError) as error:
        failure = type(getattr(error, "reason", error)).__name__
    return check_hub(host, False, failure, failure is None and get_token() is not None)


def try_benchmark(benchmark: str | None, model: str | None, data: Path | None, split: str | None) -> list[Check]:
    """The model's configuration; and the benchmark's own reading of its data where that loads and trains nothing."""
    from ray_unlearn.benchmarks import load_benchmark
    from ray_unlearn.benchmarks.contract import Request
    from ray_unlearn.models.gguf import converted
    from ray_unlearn.models.loading import check_model, load_config
    from ray_unlearn.models.sizes import check_trained, context_length

    checks = []
    try:
        if model is not None:
            check_model(model)
            model = converted(model)
            size = check_trained(model, 0, "")
            says = f"{size:,} parameters, reads {context_length(load_config(model))} tokens"
            checks.append(Check("model", OK, says))
        if benchmark is None:
            return checks
        bench = load_benchmark(benchmark)
        if data is None or model is None or not Path(model).expanduser().is_dir():
            says = f"{benchmark}: not read, because that may download data or train a miniature"
            return [*checks, Check("data", OK, says, "Give local folders to --model and --data to have them read")]
        task = bench.load(Request("full", str(Path(model).expanduser().absolute()), data, split))
        says = f"{benchmark}: {len(task.forget)} sequences to forget, {len(task.retain)} to retain"
        checks.append(Check("data", OK, says))
    except UserError as error:
        checks.append(Check("data" if checks else "model", PROBLEM, *split_fix(str(error))))
    return checks


def find_token() -> tuple[bool, bool]:
    """Whether Ray has a token to use here, and whether it lies in a file that others can read."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True, False
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named) if named else Path.home() / ".ray" / "auth_token"
    if not file.is_file():
        return False, False
    return True, bool(file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)) and not _shut_in(file)


def _shut_in(file: Path) -> bool:
    """Whether a folder above lets nobody else pass."""
    return any(not folder.stat().st_mode & stat.S_IXOTH for folder in file.absolute().parents)


def find_ports() -> list[Port]:
    """The listening TCP ports of Ray's processes; those of other users only where the system shows them."""
    import psutil

    ports = set()
    for process in psutil.process_iter(["name", "cmdline"]):
        name = ray_process(process.info["name"] or "", process.info["cmdline"] or [])
        if name is None:
            continue
        with contextlib.suppress(psutil.Error):
            for link in process.net_connections(kind="tcp"):
                if link.status == psutil.CONN_LISTEN:
                    ports.add(Port(name, link.laddr.port, link.laddr.ip))
    return sorted(ports, key=lambda port: (port.process, port.port))


def ray_process(name: str, command: Sequence[str]) -> str | None:
    """What part of Ray the process is; None where it is none."""
    if name.startswith("ray::") or (command and command[0].startswith("ray::")):
        return "worker"
    parts = [part for part in command[:4] if re.search(r"/ray/(core|dashboard|_private|autoscaler|util)/", part)]
    return Path(parts[0]).stem if parts else None


def try_ray(address: str | None, start_ray: bool) -> list[Check]:
    """The cluster's nodes, or a local start with --start-ray; without either nothing is started."""
    if address is None and not start_ray:
        fix = "--start-ray starts one and ends it, --address asks a cluster"
        return [Check("ray", OK, "not started", fix)]
    if address is not None and (failure := unreachable(address)):
        return [Check("cluster", PROBLEM, f"{address}: {failure}", "Start it, or correct --address")]
    import ray

    started = time.perf_counter()
    try:
        with quiet():
            if address is None:
                ray.init(address="local", num_cpus=1, include_dashboard=False, _temp_dir=os.environ.get("RAY_TMPDIR"))
            else:
                ray.init(address=address, log_to_driver=False)
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    except Exception as error:  # Ray raises a different type for each way that this can fail
        fix = (
            "Look into the newest folder under /tmp/ray"
            if address is None
            else ("Run this on a node of the cluster, with RAY_AUTH_MODE=token and its token where it asks for one")
        )
        return [Check("cluster" if address else "ray", PROBLEM, first_line(error), fix)]
    finally:
        with quiet():
            ray.shutdown()
    if address is None:
        return [Check("ray", OK, f"a local cluster started and ended in {time.perf_counter() - started:.0f} s")]
    return check_nodes(address, nodes)


def unreachable(address: str) -> str | None:
    """Why nothing listens at host:port, asked for a moment; None for other forms, which Ray resolves itself."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return None
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CLUSTER_SECONDS).close()
    except (OSError, OverflowError) as error:
        return f"nothing answers ({getattr(error, 'strerror', None) or type(error).__name__})"
    return None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What Ray prints of its own goes nowhere: the table says what there is to say."""
    with open(os.devnull, "w") as nowhere:
        kept = [os.dup(1), os.dup(2)]
        sys.stdout.flush()
        try:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            for number, copy in enumerate(kept, start=1):
                os.dup2(copy, number)
                os.close(copy)


def split_fix(message: str) -> tuple[str, str]:
    """A UserError's line as what is wrong and the way out, which is its last sentence."""
    wrong, mark, fix = message.rpartition(". ")
    return (wrong, fix) if mark else (message, "")
