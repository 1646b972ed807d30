"""Runs the tests of accelerated models beside the real packages, each in an environment of its own.

    python tests/clients/run.py mace nequip sevennet

The packages want different versions of e3nn, so no environment holds them all. Environments are made once,
with the Python that runs this, in `.clients/`, and use the clebsch of this source tree, which must be built.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKAGES = {
    "mace": ["mace-torch==0.3.16"],
    "nequip": ["nequip==0.19.1", "nequip-allegro==0.8.3"],
    "sevennet": ["sevenn==0.13.0"],
}
TESTS = {"mace": "mace", "nequip": "nequip|allegro", "sevennet": "sevennet"}


def environment(client: str) -> Path:
    """The Python of an environment with the packages of `client`, made if there is none of this recipe."""
    folder = ROOT / ".clients" / client
    constraints = ROOT / "constraints.txt"
    # torch is pinned: the newest one is a build for GPUs, of gigabytes.
    wanted = [*PACKAGES[client], "pytest>=8", "pytest-xdist>=3.5", "ase>=3.23"]
    recipe, ready = f"{sys.version}\n{wanted}\n{constraints.read_text()}", folder / "ready"
    python = folder / "bin" / "python"
    if not (ready.exists() and ready.read_text() == recipe):
        print(f"{client}: making an environment with {', '.join(wanted)}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        install = [python, "-m", "pip", "install", "-q", "-c", constraints, "torch"]
        subprocess.run(install, check=True)
        subprocess.run([*install, *wanted], check=True)
        ready.write_text(recipe)
    return python


def run(client: str, arguments: list[str]) -> int:
    names = TESTS[client].split("|")
    files = sorted(path for name in names for path in HERE.glob(f"test_{name}*.py"))
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "python"), "OMP_NUM_THREADS": "1"}
    # Beside this file, so that the configuration and fixtures of the other tests, with their needs, stay out.
    command = [environment(client), "-m", "pytest", "-q", "-n", "2", "--confcutdir", HERE]
    command += ["-c", os.devnull, "-p", "no:cacheprovider", "-W", "ignore", *files, *arguments]
    print(f"{client}: {', '.join(path.name for path in files)}", flush=True)
    return subprocess.run(command, cwd=HERE, env=variables).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description="Other arguments go to pytest.")
    parser.add_argument("clients", nargs="+", choices=list(PACKAGES))
    options, arguments = parser.parse_known_args()
    codes = [run(client, arguments) for client in options.clients]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
