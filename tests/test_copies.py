"""Copies of a search against a real S3 server on loopback: what is there, what comes back, who may write."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from uuid import uuid4

import pytest

from ray_unlearn import cli
from ray_unlearn.config import UserError
from ray_unlearn.files import Patience, checksum, write_file
from ray_unlearn.records import copies
from ray_unlearn.records.bucket import Place, join, open_place, split
from ray_unlearn.records.copied_ledger import read_copied_ledger
from ray_unlearn.records.copies import Copies, copied, fetch_search
from ray_unlearn.records.ledger import LEDGER, WRITER, Ledger, read_ledger
from ray_unlearn.records.tables import read_search, write_json
from ray_unlearn.records.verify import verify_search

CREDENTIALS = {"ACCESS_KEY_ID": "nobody-knows-this-name", "SECRET_ACCESS_KEY": "nobody-knows-this-word"}


class Store:
    """An S3 server that can go down and come back with all that it had."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        self._build = lambda port: ThreadedMotoServer("127.0.0.1", port, verbose=False)
        self._server, self.port = None, 0

    def start(self) -> None:
        self._server = self._build(self.port)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
        self._server = None

    def ask(self, method: str, path: str, body: bytes | None = None) -> None:
        url, headers = f"http://127.0.0.1:{self.port}/{path}", {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(url, body, headers, method=method)).close()

    def uri(self, place: str) -> str:
        return f"s3://{place}?endpoint_override=127.0.0.1:{self.port}&scheme=http"


@pytest.fixture(scope="module")
def running_store() -> Iterator[Store]:
    store = Store()
    store.start()
    store.ask("PUT", "bucket")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**CREDENTIALS, "EC2_METADATA_DISABLED": "true"}.items():
            patch.setenv(f"AWS_{name}", value)
        yield store
    store.stop()


@pytest.fixture
def store(running_store):
    yield running_store
    if running_store._server is None:
        running_store.start()


@pytest.fixture
def bucket(store) -> str:
    """The URI of a prefix that nothing has been written to."""
    return store.uri(f"bucket/{uuid4().hex}/searches")


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    for name, seconds in {"LOOK": 0.05, "BEAT": 0.1, "LEASE": 0.4, "LAST": 0.1, "LONGEST_PAUSE": 0.2}.items():
        monkeypatch.setattr(copies, f"{name}_SECONDS", seconds)


@dataclass
class Search:
    """A folder as a search would fill it."""

    folder: Path

    def go_on(self, *numbers: int) -> None:
        with Ledger(self.folder, Patience()) as ledger:
            ledger.open()
            for number in numbers:
                name = f"finals/ga-{number:04d}.parquet"
                write_file(self.folder / name, bytes([number]) * 3000)
                crc = checksum(self.folder / name)
                ledger.append("final", trial_id=f"ga-{number:04d}", row={}, files={name: crc}, has_model=False)
            meta = {"name": "s", "numbers": numbers, "at": time.time()}
            ledger.append("described", meta=meta)
            write_json(self.folder / "search.json", meta)


@pytest.fixture
def search(tmp_path) -> Search:
    search = Search(tmp_path / "results" / "toy-1")
    search.folder.mkdir(parents=True)
    search.go_on(1, 2)
    write_file(search.folder / "model" / "model.safetensors", os.urandom(20_000_000))
    write_file(search.folder / "log.txt", b"noise")
    return search


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def eventually(condition: Callable[[], bool], seconds: float = 50) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


@pytest.mark.parametrize("kind", ["s3", "memory", "file"])
def test_a_copied_search_comes_back_to_the_byte(search, bucket, tmp_path, kind, capsys):
    to = {"s3": bucket, "memory": f"memory://{uuid4().hex}/x", "file": f"file://{tmp_path}/other/disk"}[kind]
    with copied(search.folder, to):
        pass
    before = contents(search.folder)
    uri = join(to, "toy-1")
    assert open_place(uri).listed().keys() == before.keys()
    shutil.rmtree(search.folder)
    folder = fetch_search(uri, tmp_path / "results")
    assert folder == search.folder
    assert contents(folder) == before
    assert verify_search(folder) == []
    assert read_search(folder).meta["name"] == "s"
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f"{uri}: {len(before)} of {len(before)} files fetched into {folder}"


def test_what_is_written_during_a_search_is_copied_soon_and_logs_at_the_end(search, bucket):
    place = open_place(join(bucket, "toy-1"))
    with copied(search.folder, bucket):
        search.go_on(3)
        eventually(lambda: read_copied_ledger(place) == (search.folder / LEDGER).read_bytes())
        eventually(lambda: "finals/ga-0003.parquet" in place.listed())
        assert "log.txt" not in place.listed()
        report = search.folder / "report" / "report.html"
        write_file(report, b"first")
        eventually(lambda: place.read("report/report.html") == b"first")
        write_file(report, b"again")
        eventually(lambda: place.read("report/report.html") == b"again")
    assert "log.txt" in place.listed()
    assert place.read(WRITER) is None


def test_the_ledger_goes_up_to_its_last_whole_line_and_unfinished_files_not_at_all(search, bucket):
    whole = (search.folder / LEDGER).read_bytes()
    with (search.folder / LEDGER).open("ab") as file:
        file.write(b'0000 {"event": "cut o')
    for name in ("model.unfinished/x", "export/.y.unfinished/z", ".z.tmp"):
        write_file(search.folder / name, b"no")
    with copied(search.folder, bucket):
        pass
    place = open_place(join(bucket, "toy-1"))
    assert place.read(LEDGER) == whole
    names = {"finals/ga-0001.parquet", "finals/ga-0002.parquet", "model/model.safetensors"}
    assert place.listed().keys() == {LEDGER, "search.json", "log.txt", *names}


def test_a_store_that_goes_away_is_said_once_and_gets_everything_when_it_is_back(search, bucket, store, capsys):
    told: list[str] = []
    with copied(search.folder, bucket) as now, now.told(told.append):
        store.stop()
        search.go_on(3)
        eventually(lambda: len(told) == 1)
        search.go_on(4)
        store.start()
        eventually(lambda: len(told) == 2)
        place = open_place(join(bucket, "toy-1"))
        assert read_copied_ledger(place) == (search.folder / LEDGER).read_bytes()
    assert "copying fails (When" in told[0]
    assert "copying goes on" in told[1]
    assert place.listed().keys() == contents(search.folder).keys()
    assert capsys.readouterr().err == ""


def test_what_a_store_that_stays_away_lacks_is_said_at_the_end_and_copied_later(
    search, bucket, store, capsys, monkeypatch
):
    monkeypatch.setattr(copies, "LAST_SECONDS", 3)  # one attempt takes two
    with copied(search.folder, bucket):
        store.stop()
        search.go_on(3)
    errors = capsys.readouterr().err.splitlines()
    assert "trying for" in errors[0]
    assert "file(s) are not at" in errors[1]
    assert f"`ray_unlearn tune --resume {search.folder}` copies them" in errors[1]
    assert len(errors) == 2
    store.start()
    with copied(search.folder, bucket):
        pass
    assert open_place(join(bucket, "toy-1")).listed().keys() == contents(search.folder).keys()
    assert capsys.readouterr().err == ""


class Observed(Place):
    """Remembers what is put, and breaks off over one name."""

    def put(self, name, source):
        self.__dict__.setdefault("names", []).append(name)
        if name == self.__dict__.get("refused"):
            super().put(name, BytesIO(source.read(10)))
            raise OSError("cut off")
        super().put(name, source)


def observe(place: Place, refused: str = "") -> Observed:
    observed = Observed(place.uri, place.filesystem, place.path)
    observed.__dict__["refused"] = refused
    return observed


def test_a_file_that_cannot_be_copied_keeps_no_other_back_and_leaves_no_part_of_it(search, bucket, capsys):
    place = observe(open_place(join(bucket, "toy-1")), "finals/ga-0001.parquet")
    now = Copies(search.folder, place)
    now.claim()
    with now:
        eventually(lambda: "model/model.safetensors" in place.listed())
    assert place.listed().keys() == contents(search.folder).keys() - {"finals/ga-0001.parquet"}
    assert "1 file(s) are not at" in capsys.readouterr().err


def test_the_ledger_goes_first_and_then_small_files(search, bucket):
    place = observe(open_place(join(bucket, "toy-1")))
    now = Copies(search.folder, place)
    now.claim()
    with now:
        pass
    names = [name for name in place.names if name != WRITER]
    sizes = [len(contents(search.folder)[name]) for name in names[1:] if name != "log.txt"]
    assert names[0] == LEDGER
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("is_fetched", [False, True])
def test_what_is_there_already_is_not_copied_again(search, bucket, tmp_path, is_fetched):
    with copied(search.folder, bucket):
        pass
    if is_fetched:
        shutil.rmtree(search.folder)
        fetch_search(join(bucket, "toy-1"), tmp_path / "results")
    search.go_on(3)
    place = observe(open_place(join(bucket, "toy-1")))
    now = Copies(search.folder, place)
    now.claim()
    with now:
        pass
    assert {name for name in place.names if name != WRITER} == {LEDGER, "search.json", "finals/ga-0003.parquet"}


# What a look costs


class Weighed(Place):
    """Remembers what is put, by name and size."""

    def put(self, name, source):
        self.__dict__.setdefault("sizes", []).append((name, len(source.read())))
        source.seek(0)
        super().put(name, source)


def write_trials(folder: Path, numbers: range) -> None:
    """Trials that end, each with an event and a file of its own."""
    with Ledger(folder, Patience()) as ledger:
        ledger.open()
        for number in numbers:
            name = f"trials/toy/ga/ga-{number:04d}.parquet"
            content = bytes([number % 256]) * 1000
            crc = f"{zlib.crc32(content):08x}"
            ledger.append("ended", trial_id=f"ga-{number:04d}", row={"x": "y" * 1000}, files={name: crc})
            write_file(folder / name, content)


def looked(folder: Path, looks: int, place: Place) -> tuple[Copies, Weighed]:
    """A search of ten trials a look, each looked at once."""
    weighed = Weighed(place.uri, place.filesystem, place.path)
    now = Copies(folder, weighed)
    now.claim()
    for look in range(looks):
        write_trials(folder, range(10 * look, 10 * look + 10))
        with (folder / "optuna.log").open("ab") as file:
            file.write(b"z" * 5000)
        now._copy_new(is_last=False)
    return now, weighed


def test_every_byte_is_sent_a_few_times_however_long_the_search(tmp_path):
    folder = tmp_path / "toy-1"
    folder.mkdir()
    now, place = looked(folder, 40, open_place(f"file://{tmp_path}/bucket"))
    assert read_copied_ledger(place) == (folder / LEDGER).read_bytes()
    now._copy_new(is_last=True)
    sent = sum(size for name, size in place.sizes if name != WRITER)
    assert sent <= 3 * sum(len(content) for content in contents(folder).values())
    trials = [name for name, _ in place.sizes if name.startswith("trials/")]
    assert len(trials) == len(set(trials)) == 400


def test_a_ledger_in_parts_goes_on_is_fetched_whole_and_ends_as_one_file(tmp_path):
    folder, uri = tmp_path / "results" / "toy-1", f"file://{tmp_path}/bucket/toy-1"
    folder.mkdir(parents=True)
    _, place = looked(folder, 3, open_place(uri))  # and is killed
    place.remove(WRITER)
    parts = {name: place.read(name) for name in place.listed() if name.startswith("ledger.parts/")}
    assert len(parts) == 2
    before = contents(folder)
    shutil.rmtree(folder)
    assert contents(fetch_search(uri, tmp_path / "results")) == {**before, "optuna.log": b"z" * 10000}

    write_trials(folder, range(30, 40))
    with copied(folder, f"file://{tmp_path}/bucket"):
        pass
    assert place.listed().keys() == contents(folder).keys()
    assert place.read(LEDGER) == (folder / LEDGER).read_bytes()
    for name, part in parts.items():  # as where the end was broken off
        place.put(name, BytesIO(part))
    assert read_copied_ledger(place) == (folder / LEDGER).read_bytes()


def test_a_search_within_the_search_is_copied_like_the_first(tmp_path):
    folder, place = tmp_path / "toy-1", open_place(f"file://{tmp_path}/bucket")
    inner = folder / "compare" / "searches" / "toy-1-repeat1"
    inner.mkdir(parents=True)
    write_trials(folder, range(1))
    now = Copies(folder, place)
    now.claim()
    for look in range(3):
        write_trials(inner, range(look, look + 1))
        now._copy_new(is_last=False)
    head = "compare/searches/toy-1-repeat1/"
    assert read_copied_ledger(place, head) == (inner / LEDGER).read_bytes()
    assert f"{head}trials/toy/ga/ga-0002.parquet" in place.listed()
    fetched = fetch_search(f"file://{tmp_path}/bucket", tmp_path / "results")
    assert (fetched / head / LEDGER).read_bytes() == (inner / LEDGER).read_bytes()


# Who may write


def test_a_second_writer_is_refused_while_the_first_one_lives(search, bucket):
    with (
        copied(search.folder, bucket),
        pytest.raises(UserError, match=rf"process {os.getpid()} on .* is copying to it"),
    ):
        copied(search.folder, bucket)
    with copied(search.folder, bucket):
        pass


def test_a_writer_that_died_is_succeeded(search, bucket, capsys):
    Copies(search.folder, open_place(join(bucket, "toy-1"))).claim()  # and it never comes back
    with copied(search.folder, bucket):
        pass
    assert "waiting 0.4 s to see whether it lives" in capsys.readouterr().out
    assert open_place(join(bucket, "toy-1")).listed().keys() == contents(search.folder).keys()


def test_a_writer_that_was_taken_for_dead_stops_and_leaves_the_place_to_the_other(search, bucket, capsys):
    place, told = open_place(join(bucket, "toy-1")), []
    other = json.dumps({"id": "another", "host": "elsewhere", "pid": 7}).encode()
    with copied(search.folder, bucket) as now, now.told(told.append):
        place.put(WRITER, BytesIO(other))
        eventually(lambda: bool(told))
        search.go_on(3)
        before = place.read(LEDGER)
    assert told == [f"{place.uri}: process 7 on elsewhere has taken it; the search goes on, copying does not"]
    assert place.read(LEDGER) == before
    assert place.read(WRITER) == other
    assert "belongs to another process now" in capsys.readouterr().err


def test_a_search_that_went_on_elsewhere_is_not_overwritten(search, bucket, tmp_path):
    other = Search(tmp_path / "other" / "toy-1")
    shutil.copytree(search.folder, other.folder)
    other.go_on(3)
    with copied(other.folder, bucket):
        pass
    with pytest.raises(UserError, match=r"gone on elsewhere.*--resume 's3://"):
        copied(search.folder, bucket)
    assert not read_ledger(search.folder).files().keys() & {"finals/ga-0003.parquet"}
    fetch_search(join(bucket, "toy-1"), tmp_path / "results")
    assert contents(search.folder) == contents(other.folder), "a folder that is behind is brought up to date"

    search.go_on(4)
    other.go_on(5)
    with copied(search.folder, bucket):
        pass
    with pytest.raises(UserError, match="went on differently"):
        fetch_search(join(bucket, "toy-1"), tmp_path / "other")


def test_a_folder_that_is_farther_than_its_copy_is_left_as_it_is(search, bucket, tmp_path):
    with copied(search.folder, bucket):
        pass
    search.go_on(3)
    write_file(search.folder / "search.json", b"newer")
    (search.folder / "finals" / "ga-0001.parquet").unlink()
    before = contents(search.folder)
    fetch_search(join(bucket, "toy-1"), tmp_path / "results")
    after = contents(search.folder)
    assert after.pop("finals/ga-0001.parquet") == b"\1" * 3000, "what is missing is fetched"
    assert after == before


# What cannot work


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("results/elsewhere", "is no URI"),
        ("{no-such-bucket}", "cannot be written .*NO_SUCH_BUCKET"),
        ("s3://bucket/x?endpoint_override=127.0.0.1:9&scheme=http", "cannot be written .*NETWORK_CONNECTION"),
        ("s3://bucket/x?regoin=here", "regoin is not known. It may have region"),
        ("s3://name:word@bucket/x", r"s3://\.\.\.: has credentials"),
        ("ftp://name:word@host/x", r"ftp://\.\.\.: has credentials"),
        ("gs://bucket/x?access_token=word", r"gs://\.\.\.: has credentials"),
        ("nowhere://bucket/x", "cannot be opened .*nowhere"),
    ],
)
def test_a_place_that_cannot_be_used_is_refused_in_one_line(search, store, capsys, uri, says):
    uri = uri.replace("{no-such-bucket}", store.uri("no-such-bucket/x"))
    with pytest.raises(UserError, match=says) as refusal:
        copied(search.folder, uri)
    assert "\n" not in str(refusal.value)
    assert "word" not in str(refusal.value)
    with copied(search.folder, uri, is_needed=False) as now:
        assert now is None
    assert "nothing is copied" in capsys.readouterr().err


def test_credentials_that_the_store_does_not_know_are_refused(search, bucket, store):
    store.ask("POST", "moto-api/reset-auth", b"0")
    try:
        with pytest.raises(UserError, match=r"ACCESS_DENIED.*Check the place, the credentials"):
            copied(search.folder, bucket)
    finally:
        store.ask("POST", "moto-api/reset-auth", b"inf")


def test_a_place_without_a_search_is_refused(bucket, tmp_path):
    with pytest.raises(UserError, match="holds no search"):
        fetch_search(join(bucket, "nothing"), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["tune --benchmark synthetic --copy-to", "report", "verify", "tune --resume"])
def test_the_command_line_says_it_in_one_line_before_anything_starts(command, store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ray_unlearn", *command.split(), store.uri("no-such-bucket/x")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ray_unlearn: s3://no-such-bucket/x")
    assert list(tmp_path.rglob("*.json*")) == []


def test_a_uri_keeps_its_query_when_a_name_is_joined():
    assert join("s3://b/p/?region=x", "s") == "s3://b/p/s?region=x"
    assert split("s3://b/p/s?region=x") == ("s3://b/p?region=x", "s")
    assert split("s3://b/s/") == ("s3://b", "s")


# Whole searches

OPTIONS = ("--benchmark", "synthetic", "--methods", "simnpo", "--concurrent", "1", "--robustness", "none")


def ray_unlearn(place: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "ray_unlearn.cli", *arguments]
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    run = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=place, env={**os.environ, "PYTHONPATH": path}
    )
    assert run.returncode == 0, run.stderr + run.stdout
    return run


@pytest.mark.slowest
@pytest.mark.timeout(420)
def test_a_search_whose_disk_is_gone_goes_on_from_its_copy(bucket, store, tmp_path):
    run = ray_unlearn(tmp_path, "tune", *OPTIONS, "--trials", "2", "--copy-to", bucket)
    assert not run.stderr
    folder = tmp_path / "results" / run.stdout.splitlines()[-1]
    uri = join(bucket, folder.name)
    assert f"Copy:    {uri}" in run.stdout
    before = contents(folder)
    for name, content in before.items():
        assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in content, name
    shutil.rmtree(tmp_path / "results")

    assert "files fetched into" in ray_unlearn(tmp_path, "report", uri).stdout
    fetched = contents(folder)
    assert {name: fetched[name] for name in before if not name.startswith("report/")} == {
        name: content for name, content in before.items() if not name.startswith("report/")
    }
    assert "every file is as it was written" in ray_unlearn(tmp_path, "verify", uri).stdout
    shutil.rmtree(tmp_path / "results")

    assert "2 of 3 trials are there already" in ray_unlearn(tmp_path, "tune", "--resume", uri, "--trials", "3").stdout
    events = read_ledger(folder).events
    assert [e["trial_id"] for e in events if e["event"] == "running"] == [f"simnpo-{i:04d}" for i in range(3)]
    assert open_place(uri).read(LEDGER) == (folder / LEDGER).read_bytes()


@pytest.mark.slowest
@pytest.mark.timeout(420)
def test_a_search_ends_well_without_its_store_and_brings_it_everything_later(bucket, store, tmp_path):
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ray_unlearn, tmp_path, "tune", *OPTIONS, "--trials", "1", "--copy-to", bucket)
        eventually(lambda: len(open_place(bucket).listed()) > 0, seconds=200)
        store.stop()
        run = running.result()
    assert "copying fails" in run.stdout
    assert "file(s) are not at" in run.stderr
    folder = tmp_path / "results" / run.stdout.splitlines()[-1]
    store.start()
    assert not ray_unlearn(tmp_path, "tune", "--resume", str(folder)).stderr
    shutil.rmtree(tmp_path / "results")
    uri = join(bucket, folder.name)
    assert "every file is as it was written" in ray_unlearn(tmp_path, "verify", uri).stdout
    assert [event["trial_id"] for event in read_ledger(folder).events if event["event"] == "ended"] == ["simnpo-0000"]
