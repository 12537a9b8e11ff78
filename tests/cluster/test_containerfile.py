"""The Containerfile, read instruction by instruction: nothing here builds it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "cluster" / "Containerfile").read_text()
KNOWN = {"ARG", "FROM", "USER", "RUN", "ENV", "WORKDIR", "COPY"}


def instructions() -> list[tuple[str, str]]:
    """(instruction, rest) in order; continued lines joined, comments left out."""
    lines = [line for line in TEXT.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def all_of(name: str) -> list[str]:
    return [rest for word, rest in instructions() if word == name]


def test_it_has_known_instructions_alone_and_fetches_nothing_from_the_network_by_itself():
    assert {word for word, _ in instructions()} == KNOWN  # no ADD
    assert not any(re.search(r"curl|wget|https?://|git clone", rest) for rest in all_of("RUN"))
    assert [word for word, _ in instructions()][:2] == ["ARG", "FROM"]


def test_the_bases_versions_are_those_that_are_pinned():
    import ray

    assert all_of("ARG")[0].startswith("BASE=docker.io/library/python:3.11")
    assert f"rayproject/ray:{ray.__version__}-py311-gpu" in TEXT


def test_what_is_copied_exists_and_is_the_users():
    for rest in all_of("COPY"):
        options = [word for word in rest.split() if word.startswith("--")]
        *sources, _ = (word for word in rest.split() if not word.startswith("--"))
        assert options == ["--chown=ray"]
        for source in sources:
            assert (ROOT / source).exists(), source


def test_all_that_the_package_is_built_from_is_copied():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied = " ".join(all_of("COPY")).split()
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    for name in [
        "pyproject.toml",
        project["project"]["readme"],
        *project["project"]["license-files"],
        *wheel["packages"],
        *wheel["force-include"],
    ]:
        assert name in copied, name


def test_it_ends_as_a_user_that_is_not_root_and_whose_packages_need_no_root():
    order = [(word, rest) for word, rest in instructions() if word in ("USER", "RUN")]
    user = "root"
    for word, rest in order:
        if word == "USER":
            user = rest
        elif "pip install" in rest:
            assert user == "ray", rest
        elif "apt-get" in rest:
            assert user == "root"
    assert user == "ray"
    assert "HOME=/home/ray" in all_of("ENV"), "the cluster launcher reads it from the image"


def pip_lines(text: str) -> list[str]:
    """What is installed, in order, without paths, quiet options and extras for development."""
    found = re.findall(r"pip install ([^\n&]*)", text)
    drop = {"-q", "--no-compile", "-e", "-c", "constraints.txt", "\\"}
    return [" ".join(word for word in line.split() if word not in drop) for line in found]


def test_packages_are_installed_in_the_order_of_the_makefile_and_pinned():
    image, make = pip_lines(TEXT), pip_lines((ROOT / "Makefile").read_text())
    assert image[:2] == make[:2] == ["torch setuptools", "--no-build-isolation deepspeed"]
    assert image[2].startswith("'.[")
    assert make[2].startswith("'.[")
    for rest in all_of("RUN"):
        if "pip install" in rest:
            assert "-c constraints.txt" in rest


@pytest.mark.parametrize("needed", ["rsync", "openssh-client"])
def test_the_cluster_launcher_finds_its_programs_in_the_image(needed):
    assert any(needed in rest.split() for rest in all_of("RUN"))
