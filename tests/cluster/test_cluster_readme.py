"""Commands that the page shows are commands that exist, and what it names is there."""

import re
import shlex
from pathlib import Path

import pytest

from ray_unlearn.commands import job_command
from tests.commands import parse

CLUSTER = Path(__file__).parents[2] / "cluster"
PAGE = (CLUSTER / "README.md").read_text()
LINES = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def ours(text: str) -> list[list[str]]:
    """Each command of ours in a text, as words; those that another command starts included."""
    found = []
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if "ray_unlearn" in words:
            found.append(words[words.index("ray_unlearn") :])
    return found


@pytest.mark.parametrize("words", ours("\n".join(LINES)), ids=lambda words: " ".join(words[1:4]))
def test_every_command_of_ours_on_the_page_parses(words):
    command, options = parse(words)
    assert command in ("tune", "doctor", "report", "submit")
    if options.get("words"):
        assert job_command.read_command(options["words"]).name == "tune"


def test_the_page_shows_commands():
    assert len(ours("\n".join(LINES))) >= 4


def test_a_command_with_an_option_that_does_not_exist_would_be_found():
    with pytest.raises(Exception, match="--trails"):
        parse(["ray_unlearn", "tune", "--benchmark", "tofu", "--trails", "3"])


def test_every_file_of_the_folder_is_named_and_every_file_named_exists():
    files = {str(p.relative_to(CLUSTER)) for p in CLUSTER.rglob("*") if p.is_file() and p.name != "README.md"}
    for name in files:
        assert name in PAGE or Path(name).name in PAGE, name
    for name in re.findall(r"`(?:cluster/)?((?:deepspeed/)?[\w]+\.(?:yaml|json|sh))`", PAGE):
        assert (CLUSTER / name).exists() or (CLUSTER / "deepspeed" / name).exists(), name


def test_the_slurm_scripts_own_example_parses():
    (example,) = re.findall(r"^#   sbatch cluster/slurm\.sh (.*)$", (CLUSTER / "slurm.sh").read_text(), re.MULTILINE)
    command, options = parse(["ray_unlearn", "tune", *shlex.split(example)])
    assert (command, options["benchmark"]) == ("tune", "tofu")
