"""What users install: the wheel, and the source archive where there is no compiler.

Both tests are slow: the first one builds the kernels, which takes most of a minute.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

from qkvshare.kernels.native import native

from .round_trip import round_trip

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
BUILD_SDIST = (
    "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
)


def run(*command: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository's root, where only this test's package can be imported."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command, cwd=ROOT, env=inherited | env, capture_output=True, text=True, timeout=500
    )


def make_wheel(source: Path, folder: Path, **env: str) -> Path:
    """As ``make wheel`` does, with the build tools of the dev extra."""
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-cache-dir")
    made = run(sys.executable, "-m", "pip", "wheel", *options, "-w", folder, source, **env)
    assert made.returncode == 0, made.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, folder: Path) -> tuple[Path, dict[str, str]]:
    """Install into a new environment, with no program on the path.

    Returns:
        The environment's Python and the variables to run it with.
    """
    (nothing := folder / "nothing").mkdir(parents=True)
    env = {"PATH": str(nothing)}
    venv.EnvBuilder(symlinks=os.name != "nt").create(folder)
    places = sysconfig.get_paths("venv", {"base": str(folder), "platbase": str(folder)})
    python = Path(places["scripts"], Path(sys.executable).name)
    pip = (sys.executable, "-m", "pip", "--python", python)
    installed = run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, **env)
    assert installed.returncode == 0, installed.stderr
    # Only then the packages of this environment (torch), less what is editable in it.
    Path(places["purelib"], "here.pth").write_text(sysconfig.get_path("purelib"))
    return python, env


@pytest.mark.skipif(native is None, reason="there is no compiler here")
def test_wheel_has_the_kernels_and_nothing_but_the_product(tmp_path: Path) -> None:
    wheel = make_wheel(ROOT, tmp_path / "dist")
    names = ZipFile(wheel).namelist()
    release = "-".join(wheel.name.split("-")[:2])
    assert {name.split("/")[0] for name in names} == {"qkvshare", f"{release}.dist-info"}
    assert {Path(name).suffix for name in names if name.startswith("qkvshare/")} <= {
        *(".py", ".typed", ".txt", ".html", ".css", ".js"),
        Path(native.__file__).suffix,
    }
    assert [name for name in names if "native." in name and not name.endswith(".py")] == [
        f"qkvshare/kernels/{Path(native.__file__).name}"
    ]

    python, env = install(wheel, tmp_path / "clean")
    result = run(python, "-m", "tests.round_trip", **env)
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert Path(found["package"]).is_relative_to(tmp_path)
    assert found["digests"] == round_trip(tmp_path)


def test_source_archive_installs_without_a_compiler_and_says_so(tmp_path: Path) -> None:
    made = run(sys.executable, "-c", BUILD_SDIST, tmp_path)
    assert made.returncode == 0, made.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    wheel = make_wheel(archive, tmp_path / "dist", CXX="no-such-compiler")
    assert wheel.name.endswith("-py3-none-any.whl")

    python, env = install(wheel, tmp_path / "clean")
    result = run(python, "-m", "tests.round_trip", **env)
    assert result.returncode == 1
    assert "QKVShare has no compiled kernels here" in result.stderr
    assert "this installation has no native kernels" in result.stderr
    assert json.loads(result.stdout)["digests"] == round_trip(tmp_path)
