"""Prints the folder of an installed torch to build against; its `include` and `lib` are below it.

The operators use torch's stable ABI, so the torch of any Python serves, and a binary made with one runs on
every other. An isolated build (`python -m build`, `pip install .`) hides the environment that started it;
rather than have gigabytes of torch fetched again, look for the interpreters behind it, in this order:

1. the folder named by the environment variable CLEBSCH_TORCH,
2. the Python that runs this build, as it is and without the isolation,
3. the active virtual environment, the processes that started the build, and the Pythons on PATH.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

OLDEST = (2, 10)  # as TORCH_TARGET_VERSION in CMakeLists.txt
LOCATE = (
    "import importlib.util as i; s = i.find_spec('torch'); "
    "print(s.submodule_search_locations[0] if s and s.submodule_search_locations else '')"
)


def locate(python, *options):
    """The torch folder of another interpreter, or None. Nothing of torch is imported."""
    answer = subprocess.run([python, *options, "-c", LOCATE], cwd="/", capture_output=True, text=True)
    return answer.stdout.strip() or None


def ancestors():
    """Interpreters among the processes that started this one, nearest first (Linux only)."""
    process = Path("/proc/self")
    while True:
        try:
            parent = re.search(r"^PPid:\s*(\d+)", (process / "status").read_text(), re.MULTILINE)[1]
            process = Path("/proc", parent)
            program = (process / "cmdline").read_bytes().split(b"\0")[0].decode()
            folder = os.readlink(process / "cwd")
        except (OSError, TypeError):
            return
        if "/" in program and Path(program).name.startswith("python"):
            yield Path(folder, program)


def interpreters():
    """Pythons whose torch might serve, best first, each once."""
    folders = [Path(os.environ["VIRTUAL_ENV"], "bin")] if os.environ.get("VIRTUAL_ENV") else []
    on_path = [Path(folder) for folder in os.get_exec_path()]
    found = [Path(sys.executable), *[f / "python" for f in folders], *ancestors()]
    found += [folder / name for folder in on_path for name in ("python3", "python")]
    return dict.fromkeys(str(python) for python in found if os.access(python, os.X_OK))


def candidates():
    if os.environ.get("CLEBSCH_TORCH"):
        yield os.environ["CLEBSCH_TORCH"]
        return
    yield locate(sys.executable)
    for python in interpreters():
        yield locate(python, "-E")  # an isolated build hides packages through PYTHONPATH


def rejection(torch):
    """Why this torch does not serve, or None."""
    try:
        version = re.search(r"__version__ = '([^']+)'", Path(torch, "version.py").read_text())[1]
    except (OSError, TypeError):
        return f"{torch} holds no torch"
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        return f"{torch} is torch {version}, older than {OLDEST[0]}.{OLDEST[1]}"
    if not Path(torch, "include/torch/csrc/stable/library.h").exists():
        return f"{torch} (torch {version}) has no headers"
    return None


def main():
    reasons = {}
    for torch in candidates():
        if torch and torch not in reasons:
            reasons[torch] = rejection(torch)
            if reasons[torch] is None:
                print(torch)
                return
    for reason in reasons.values():
        print(reason, file=sys.stderr)
    sys.exit(
        "clebsch builds against an installed torch >= 2.10 and found none: install torch first, run the "
        "build with that Python, or set CLEBSCH_TORCH to the folder of its package"
    )


if __name__ == "__main__":
    main()
