"""What `make run` and `make test` say when the machine is not ready."""

import subprocess
from pathlib import Path

SETUP = Path(__file__).parents[1] / "tools" / "setup.sh"


def set_up(tmp_path: Path, python: str, programs: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the set-up with `programs` in front of the machine's own."""
    for name, script in (programs or {}).items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:/usr/local/bin:/usr/bin:/bin"
    command = ["bash", str(SETUP), python, str(tmp_path / "venv")]
    return subprocess.run(command, capture_output=True, text=True, env={"PATH": path}, cwd=tmp_path, check=False)


def assert_one_line(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if not line.startswith("setting up")]
    assert len(said) == 1
    assert said[0].startswith("set-up stopped: ")
    assert message in said[0]


def test_no_python_is_one_line(tmp_path):
    assert_one_line(set_up(tmp_path, "python-that-is-not-there"), "no 'python-that-is-not-there' on the PATH")


def test_a_python_too_old_is_one_line_with_its_version(tmp_path):
    old = {"oldpython": 'if [ "$1" = --version ]; then echo Python 3.9.2; else exit 1; fi'}
    assert_one_line(set_up(tmp_path, "oldpython", old), "Python 3.11 or newer is needed, 'oldpython' is Python 3.9.2")


def test_a_full_disk_is_one_line_with_what_is_left(tmp_path):
    programs = {"goodpython": "exit 0", "df": "echo header; echo disk 9 9 17 9 /"}
    assert_one_line(set_up(tmp_path, "goodpython", programs), "3000 MB of free disk are needed here, there are 17")


def test_a_version_that_cannot_be_had_is_one_line_with_pips_word(tmp_path):
    pip = 'case "$*" in *pip*) echo "ERROR: No matching distribution found for torch==2.13.0" >&2; exit 1;; esac'
    made = f'mkdir -p "$3/bin"; printf \'#!/bin/bash\\n{pip}\\n\' > "$3/bin/python"; chmod +x "$3/bin/python"'
    script = f'if [ "$2" = venv ]; then {made}; fi; exit 0'
    programs = {"goodpython": script, "df": "echo header; echo disk 9 9 99999 9 /"}
    assert_one_line(set_up(tmp_path, "goodpython", programs), "No matching distribution found for torch==2.13.0")


def test_no_compiler_stops_nothing_and_is_said(tmp_path):
    """The package installs without its kernels; the set-up notices that they are missing."""
    python = 'case "$*" in *kernels*) exit 1;; esac'
    made = f'mkdir -p "$3/bin"; printf \'#!/bin/bash\\n{python}\\n\' > "$3/bin/python"; chmod +x "$3/bin/python"'
    script = f'if [ "$2" = venv ]; then {made}; fi; exit 0'
    done = set_up(tmp_path, "goodpython", {"goodpython": script, "df": "echo header; echo disk 9 9 99999 9 /"})
    assert done.returncode == 0
    assert (tmp_path / "venv" / ".ready").exists()
    (said,) = [line for line in done.stderr.splitlines() if not line.startswith("setting up")]
    assert said.startswith("no C++ compiler: the sparse runtime will take its slow path")
