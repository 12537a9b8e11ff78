"""The ledger alone: what is written is read, whatever happens to the file in between."""

import json
import os
import subprocess
import sys
import threading
import time
import zlib

import pytest

from ray_unlearn.config import UserError
from ray_unlearn.files import Patience
from ray_unlearn.records.ledger import LEDGER, Ledger, read_ledger, settings_hash

TRIAL = {"trial_id": "npo-0000", "method": "npo", "seed": 0, "learning_rate": 0.1 + 0.2}


def fill(folder) -> None:
    with Ledger(folder, Patience()) as ledger:
        ledger.open()
        ledger.append("suggested", trial=TRIAL, number=0, settings_hash="x")
        ledger.append("judged", trial_id="npo-0000", rung=0, scores=[0.5], goes_on=True)
        ledger.append("ended", trial_id="npo-0000", row={"trial_id": "npo-0000"}, points=[], curve=[])


def test_events_come_back_in_order_and_to_the_bit(tmp_path):
    fill(tmp_path)
    history = read_ledger(tmp_path)
    assert [event["event"] for event in history.events] == ["opened", "suggested", "judged", "ended"]
    life = history.lives()["npo-0000"]
    assert life.trial == TRIAL
    assert life.judged == {0: ([0.5], True)}
    assert life.row == {"trial_id": "npo-0000"}
    assert (history.damaged, history.is_cut) == ([], False)


def test_every_cut_leaves_the_events_before_it_and_the_next_process_goes_on(tmp_path):
    fill(tmp_path)
    path = tmp_path / LEDGER
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(1, len(whole)):
        path.write_bytes(whole[:cut])
        history = read_ledger(tmp_path)
        assert len(history.events) == sum(end <= cut for end in ends)
        assert history.is_cut == (cut not in ends)
        assert history.damaged == []
    with Ledger(tmp_path, Patience()) as ledger:
        ledger.open()
    assert [event["event"] for event in read_ledger(tmp_path).events][-2:] == ["judged", "opened"]
    assert not read_ledger(tmp_path).is_cut


def test_every_flipped_bit_is_seen(tmp_path):
    fill(tmp_path)
    path = tmp_path / LEDGER
    whole = path.read_bytes()
    events = read_ledger(tmp_path).events
    for place in range(0, len(whole), 3):
        broken = bytearray(whole)
        broken[place] ^= 1 << (place % 8)
        path.write_bytes(broken)
        history = read_ledger(tmp_path)
        assert history.damaged or history.is_cut
        assert all(event in events for event in history.events)
        assert len(history.events) >= len(events) - 2, "a flipped line end takes two lines"


def test_a_second_writer_is_told_who_the_first_is(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from ray_unlearn.records.ledger import Ledger;"
        "from ray_unlearn.files import Patience\n"
        "with Ledger(Path(sys.argv[1]), Patience()): print('in', flush=True); time.sleep(60)"
    )
    first = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "in\n"
        with pytest.raises(UserError, match=f"process {first.pid} on .* is writing"), Ledger(tmp_path, Patience()):
            pass
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
    with Ledger(tmp_path, Patience()) as ledger:  # a kill frees the lock
        ledger.open()


def test_a_ledger_of_another_format_is_refused_with_its_version(tmp_path):
    text = json.dumps({"event": "opened", "format": 99, "version": "9.1"})
    (tmp_path / LEDGER).write_text(f"{zlib.crc32(text.encode()):08x} {text}\n")
    with pytest.raises(UserError, match=r"9\.1 in format 99"), Ledger(tmp_path, Patience()) as ledger:
        ledger.open()


def test_a_share_that_goes_away_and_comes_back_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("ray_unlearn.files.RETRY_SECONDS", 0.02)
    folder, away = tmp_path / "share", tmp_path / "away"
    folder.mkdir()
    said: list[str] = []
    with Ledger(folder, Patience(said.append, seconds=20)) as ledger:
        ledger.open()
        folder.rename(away)
        threading.Timer(0.3, lambda: away.rename(folder)).start()
        began = time.monotonic()
        ledger.append("running", trial_id="a")
        assert time.monotonic() - began > 0.2
        copy = (folder / LEDGER).read_bytes()
        (folder / LEDGER).unlink()
        (folder / LEDGER).write_bytes(copy)  # the same file under a new handle
        ledger.append("running", trial_id="b")
    assert [e.get("trial_id") for e in read_ledger(folder).events] == [None, "a", "b"]
    assert len(said) == 2
    assert "trying again" in said[0]


def test_a_disk_that_stays_full_is_an_error_that_leaves_the_file_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("ray_unlearn.files.RETRY_SECONDS", 0.01)
    with Ledger(tmp_path, Patience(seconds=0.05)) as ledger:
        ledger.open()

        def full(*arguments):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space left"):
                ledger.append("running", trial_id="a")
        ledger.append("running", trial_id="b")
    events = read_ledger(tmp_path).events
    assert [e.get("trial_id") for e in events] == [None, "b"]


def test_the_hash_of_settings_is_the_same_for_the_same_settings_alone():
    assert settings_hash(TRIAL) == settings_hash({**TRIAL, "trial_id": "npo-0007"})
    assert settings_hash(TRIAL) != settings_hash({**TRIAL, "seed": 1})
