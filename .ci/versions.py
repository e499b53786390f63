"""Install the built wheel beside the oldest or the newest versions it allows, and train with it.

    python .ci/versions.py oldest dist/prefopt-*.whl
    python .ci/versions.py newest dist/prefopt-*.whl

Oldest: a clean environment, first without extras, then with all; the lower bounds are read from
the wheel. Newest: what the index offers today, laid over the environment that runs this, so that
only what differs is fetched. torch is the pinned one in both: of others the index has CUDA builds
of several GB; ``--torch oldest`` takes its lower bound all the same, ``--torch newest`` any.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from email.parser import Parser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
SMOKE = Path(__file__).with_name("smoke.py")
EXTRA = "all"


def main() -> None:
    """Read the command line; exit with 1 if a step fails."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("which", choices=("oldest", "newest"))
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environment")
    parser.add_argument("--torch", choices=("pinned", "oldest", "newest"), default="pinned")
    arguments = parser.parse_args()
    wheel = arguments.wheel.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = make_environment(folder / "venv", arguments.python)
        torch = {"pinned": pinned("torch"), "newest": "torch"}.get(arguments.torch)
        if arguments.which == "oldest":
            install_oldest(python, wheel, torch, folder)
        else:
            install_newest(python, wheel, torch or bounds(wheel)["torch"])
        smoke(python, folder / "all", EXTRA)


def make_environment(folder: Path, interpreter: str) -> Path:
    """Return the interpreter of a new environment."""
    run([interpreter, "-m", "venv", folder])
    return folder / "bin" / "python"


def install_oldest(python: Path, wheel: Path, torch: str | None, folder: Path) -> None:
    """Install the wheel and the lower bounds: without extras, which is tried, then with all."""
    for extra in ("", EXTRA):
        oldest = bounds(wheel, extra)
        if torch:
            oldest["torch"] = torch
        constraints = folder / "oldest.txt"
        constraints.write_text("\n".join(oldest.values()))
        print(f"oldest{' with extras' if extra else ''}: {' '.join(oldest.values())}", flush=True)
        target = f"{wheel}[{extra}]" if extra else str(wheel)
        pip(python, "-c", constraints, oldest["torch"], target)
        if not extra:
            smoke(python, folder / "plain", "")


def install_newest(python: Path, wheel: Path, torch: str) -> None:
    """Install the wheel and the newest of what it needs, where that is not here already."""
    here = sysconfig.get_path("purelib")
    there = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
    Path(there, "here.pth").write_text(f"{here}\n")
    names = bounds(wheel, EXTRA).keys() - {"torch"}
    pip(python, "--upgrade", *sorted(names), torch, f"{wheel}[{EXTRA}]")
    pip(python, "--force-reinstall", "--no-deps", wheel)  # not the clone, which is here too


def bounds(wheel: Path, extra: str = "") -> dict[str, str]:
    """Return ``name==oldest`` of what the wheel needs, by name; the highest bound of each."""
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(path).decode())
    needs = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    extras = [extra]  # and those that it brings, as `all` does: prefopt[cli]; extra == "all"
    for name in extras:
        brought = (it.extras for it in needs if it.name == metadata["Name"] and _goes(it, [name]))
        extras += sorted({more for its in brought for more in its} - {*extras})
    oldest: dict[str, Version] = {}
    for requirement in needs:
        for bound in requirement.specifier if _goes(requirement, extras) else ():
            version = Version(bound.version)
            if bound.operator == ">=" and version >= oldest.get(requirement.name, version):
                oldest[requirement.name] = version
    return {name: f"{name}=={version}" for name, version in oldest.items()}


def _goes(requirement: Requirement, extras: list[str]) -> bool:
    """Return whether one of the extras, or none, needs it on this machine."""
    marker = requirement.marker
    return not marker or any(marker.evaluate({"extra": extra}) for extra in extras)


def pinned(name: str) -> str:
    """Return the line of a package in ``constraints.txt``."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"{name}=="))


def pip(python: Path, *argv: object) -> None:
    """Install; what is imported is compiled then."""
    start = time.perf_counter()
    run([python, "-m", "pip", "install", "--quiet", "--no-compile", *argv])
    print(f"{time.perf_counter() - start:5.1f} s  pip install {argv[-1]}", flush=True)


def smoke(python: Path, folder: Path, extra: str) -> None:
    """Let the installed package do its work in an empty folder."""
    folder.mkdir()
    print(run([python, "-I", SMOKE, extra], cwd=folder), end="", flush=True)


def run(argv: list[object], cwd: Path | None = None) -> str:
    """Return what a program prints; end all with its output if it fails."""
    hidden = {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [str(word) for word in argv], cwd=cwd, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\n{' '.join(map(str, argv))}: exit {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    main()
