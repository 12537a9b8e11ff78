"""What `ray job submit --working-dir .` uploads, packed by Ray's own code from a copy of the checkout."""

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEBIBYTE = 1 << 20
LIMIT = 100 * MEBIBYTE
LEFT_HERE = [
    ".git/objects/pack",
    ".venv/lib/python3.11/site-packages/torch/lib.so",
    ".venv/bin/python",
    "results/tofu-1/model/model.safetensors",
    "results/tofu-1/trials/part.parquet",
    "models/target/model.safetensors",
    ".cache/wmdp-mini/target/model.safetensors",
    "ray_unlearn/__pycache__/cli.cpython-311.pyc",
    "dist/ray_unlearn-0.1.0.whl",
    ".ray_auth_token-12345",
    "ray_unlearn-12345.log",
    ".env",
]


@pytest.fixture
def checkout(tmp_path) -> Path:
    """The files that git knows or would add, and much that must not travel."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    copy = tmp_path / "checkout"
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    for name in LEFT_HERE:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        with (copy / name).open("wb") as file:
            file.truncate(20 * MEBIBYTE)  # sparse: takes no disk
    return copy


def packed(checkout: Path, target: Path, include_gitignore: bool) -> set[str]:
    from ray._private.runtime_env.packaging import create_package

    create_package(str(checkout), target, include_gitignore=include_gitignore)
    with zipfile.ZipFile(target) as archive:
        return set(archive.namelist())


@pytest.mark.parametrize("include_gitignore", [True, False])
def test_code_and_settings_travel_and_nothing_else(checkout, tmp_path, include_gitignore):
    names = packed(checkout, tmp_path / "package.zip", include_gitignore)
    assert not names & set(LEFT_HERE)
    needed = {
        str(path.relative_to(ROOT))
        for folder, pattern in (("ray_unlearn", "*.py"), ("search_spaces", "*.toml"), ("cluster", "*.json"))
        for path in (ROOT / folder).rglob(pattern)
    }
    assert len(needed) > 40
    assert needed | {"pyproject.toml", "constraints.txt"} <= names
    assert (tmp_path / "package.zip").stat().st_size < 5 * MEBIBYTE


def test_without_the_file_the_upload_would_be_refused(checkout, tmp_path):
    (checkout / ".rayignore").unlink()
    packed(checkout, tmp_path / "package.zip", include_gitignore=False)
    assert (tmp_path / "package.zip").stat().st_size > LIMIT
