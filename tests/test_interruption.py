"""What SIGTERM does: to a search that can end, and to one whose cluster got it too."""

import signal
import subprocess
import sys

import pytest

SEARCH = """
import signal, sys, time
from ray_unlearn import interruption
interruption.GRACE_SECONDS = 0.3
way_on = lambda: print("go on with --resume", flush=True)
try:
    with interruption.signals_as_interrupts(way_on):
        if "hangs" in sys.argv:
            signal.signal(signal.SIGINT, lambda *_: None)
        if "ignores Ctrl-C" in sys.argv:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("ready", flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1.0)
    print("ended")
    sys.exit(interruption.exit_code())
"""


@pytest.mark.parametrize(
    ("how", "says"), [("ends", "ended"), ("ignores Ctrl-C", "ended"), ("hangs", "go on with --resume")]
)
def test_sigterm_ends_a_search_whether_or_not_its_cluster_still_answers(how, says):
    process = subprocess.Popen([sys.executable, "-c", SEARCH, how], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == f"{says}\n"
    assert process.returncode == 143


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_search_that_loads_ends_at_once(number, code):
    load = SEARCH.replace("signals_as_interrupts(way_on)", "signals_end_at_once()")
    process = subprocess.Popen([sys.executable, "-c", load], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.communicate(timeout=30)[0] == ""
    assert process.returncode == code
