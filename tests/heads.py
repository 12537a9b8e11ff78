"""Head nodes of real clusters: each with folders and ports of its own, and ended with all that it has started."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Head:
    process: subprocess.Popen
    log: Path
    address: str
    """Of its GCS."""
    client_environment: Mapping[str, str]
    """What a client needs to be let in."""

    def wait_until(self, condition: Callable[[], bool], seconds: float = 90.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.5)


@contextlib.contextmanager
def running_head(words: Sequence[str], token: str, port: int = 0, **environment: str) -> Iterator[Head]:
    """`ray start --head` with those options. port: of its GCS; 0: a free one."""
    with tempfile.TemporaryDirectory(prefix="ru-", dir="/tmp") as short:  # sockets' names may have 107 bytes
        agent, client, free = free_ports(3)
        Path(short, "token").write_text(token)
        entered = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"{short}/token"}
        own = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        own |= {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": "",
            **entered,
            **environment,
        }
        command = [
            *(str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={port or free}"),
            *(f"--dashboard-agent-listen-port={agent}", f"--temp-dir={short}/ray", "--object-store-memory=200000000"),
            *(f"--ray-client-server-port={client}", "--disable-usage-stats", "--node-ip-address=127.0.0.1", *words),
        ]
        log = Path(short, "head.log")
        with log.open("w") as file:
            process = subprocess.Popen(command, env=own, stdout=file, stderr=file, start_new_session=True)
        try:
            yield Head(process, log, f"127.0.0.1:{port or free}", entered)
        finally:
            process.terminate()  # Ray ends what it has started
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(40)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            end_all(short)
            process.wait()


def free_ports(count: int) -> list[int]:
    """Outside what Ray keeps for its workers; never the same ones again."""
    found: list[int] = []
    for port in _candidates:
        with socket.socket() as link, contextlib.suppress(OSError):
            link.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            break
    return found


_candidates = iter(range(21_000 + os.getpid() % 7, 30_000, 7))


def end_all(folder: str) -> None:
    """Kill what is left of the processes that know this temporary folder: the cluster's own, and no other's."""
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        if process.pid != os.getpid() and any(folder in word for word in process.info["cmdline"] or ()):
            with contextlib.suppress(psutil.Error):
                process.kill()
