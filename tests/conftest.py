import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# What a script starts in the background ignores Ctrl-C, and so does all that it starts; some tests interrupt that.
signal.signal(signal.SIGINT, signal.default_int_handler)

TOFU = Path(os.environ.get("RAY_UNLEARN_TOFU", Path(__file__).parents[2] / "shared" / "tofu"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tofu_data() -> Path:
    if not TOFU.is_dir():
        pytest.skip("the TOFU data are not here; RAY_UNLEARN_TOFU can name their folder")
    return TOFU
