"""The ground floor: errors, registries, whole files, names of files, and what one sees while work goes on."""

import dataclasses
import json
import math
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hydraprune
from hydraprune import console, io
from hydraprune.console import SilentProgress, TerminalProgress
from hydraprune.errors import DataError, HydrapruneError, Interrupted, RecipeError, UserError
from hydraprune.paths import RunPaths, StagePaths
from hydraprune.registry import Registry
from hydraprune.threads import let_waiting_threads_sleep

# Errors


@pytest.mark.parametrize(
    ("kind", "code"), [(HydrapruneError, 1), (UserError, 2), (DataError, 2), (RecipeError, 2), (Interrupted, 75)]
)
def test_every_error_has_the_exit_code_that_the_command_line_promises(kind, code):
    assert kind.exit_code == code
    assert issubclass(kind, HydrapruneError)
    assert not issubclass(Interrupted, UserError)


def test_one_mistake_of_a_recipe_is_one_line_and_several_are_listed():
    assert str(RecipeError("a.yaml", ["x is 1"])) == "a.yaml: x is 1"
    error = RecipeError("a.yaml", ["x is 1", "y is 2"])
    assert str(error) == "a.yaml: 2 mistakes\n  - x is 1\n  - y is 2"
    assert (error.source, error.complaints) == ("a.yaml", ("x is 1", "y is 2"))


# Registries


@pytest.fixture
def colours():
    registry: Registry[int] = Registry("colour")
    registry.register("red")(1)
    registry.register("green")(2)
    return registry


def test_a_registry_finds_what_was_filed_in_the_order_of_filing(colours):
    assert (colours["red"], colours["green"]) == (1, 2)
    assert list(colours) == ["red", "green"]
    assert "red" in colours
    assert "blue" not in colours
    assert 3 not in colours
    assert colours.name_of(2) == "green"


def test_an_unknown_name_lists_the_choices_and_the_nearest(colours):
    with pytest.raises(UserError, match=r"^unknown colour 'gren' \(did you mean 'green'\?\); known: red, green$"):
        _ = colours["gren"]
    with pytest.raises(UserError, match=r"^unknown colour 'xyz'; known: red, green$"):
        _ = colours["xyz"]


def test_a_name_taken_twice_is_a_programming_error_and_keeps_the_first(colours):
    with pytest.raises(ValueError, match="colour 'red' is registered twice"):
        colours.register("red")(3)
    assert colours["red"] == 1


def test_filing_returns_the_entry_itself(colours):
    @colours.register("blue")
    class Blue:
        pass

    assert colours["blue"] is Blue


# Files


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    return path


def test_an_atomic_write_replaces_the_file_and_leaves_nothing_beside_it(file):
    io.write_text(file, "new ä")
    assert file.read_text(encoding="utf-8") == "new ä"
    assert list(file.parent.iterdir()) == [file]


def test_a_writer_that_raises_leaves_the_old_file_and_nothing_beside_it(file):
    with pytest.raises(ZeroDivisionError), io.atomic_path(file) as temporary:
        temporary.write_text("half")
        _ = 1 / 0
    assert file.read_text() == "old"
    assert list(file.parent.iterdir()) == [file]


def test_until_the_end_readers_see_the_old_file(file):
    with io.atomic_path(file) as temporary:
        temporary.write_text("new")
        assert temporary.parent == file.parent  # a rename across file systems would not be atomic
        assert file.read_text() == "old"
    assert file.read_text() == "new"


def test_the_content_is_on_disk_before_it_takes_the_name(file, monkeypatch):
    seen = []
    monkeypatch.setattr(io.os, "fsync", lambda handle: seen.append((os.fstat(handle).st_size, file.read_text())))
    io.write_text(file, "newer")
    assert seen[0] == (5, "old")
    assert seen[1][1] == "newer"  # the folder, so that the new name outlives a power cut too


def test_a_writer_that_writes_nothing_is_an_error_and_leaves_the_old_file(file):
    with pytest.raises(UserError, match=r"cannot write '.*file.txt'"), io.atomic_path(file):
        pass
    assert file.read_text() == "old"


def test_what_a_killed_writer_left_is_swept_away_and_what_a_living_one_writes_is_not(tmp_path):
    gone = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True).stdout.strip()
    node = platform.node()
    dead, alive = tmp_path / f".a-b.json.{node}-{gone}.tmp", tmp_path / f".a.json.{node}-{os.getpid()}.tmp"
    elsewhere, other = tmp_path / f".a.json.not-{node}-{gone}.tmp", tmp_path / ".hidden"
    for path in (dead, alive, elsewhere, other):
        path.write_text("x")
    io.sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([alive, elsewhere, other])
    io.sweep(tmp_path, everything=True)
    assert list(tmp_path.iterdir()) == [other]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot write '.*none/file.txt': No such file or directory"):
        io.write_text(tmp_path / "none" / "file.txt", "x")


def test_json_that_cannot_be_written_leaves_the_old_file(file):
    for value in (math.nan, math.inf, object()):
        with pytest.raises((ValueError, TypeError)):
            io.write_json(file, {"value": value})
    assert file.read_text() == "old"


@settings(deadline=None, max_examples=20)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
def test_json_comes_back_equal(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "value.json"
    io.write_json(path, value)
    assert io.read_json(path) == value


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1, 2", b"nonsense", b"[" * 100_000, b"1" * 10_000])
def test_broken_json_is_a_users_error_that_names_the_file(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken.json' is not readable JSON"):
        io.read_json(path)


def test_json_that_is_missing_or_a_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no such file: '.*none.json'"):
        io.read_json(tmp_path / "none.json")
    with pytest.raises(UserError, match="is not readable JSON"):
        io.read_json(tmp_path)


def test_equal_values_have_equal_hashes_whatever_the_order_of_keys():
    one = {"b": [1, 2.5, None], "a": {"y": True, "x": "ä"}}
    other = {"a": {"x": "ä", "y": True}, "b": [1, 2.5, None]}
    assert io.content_hash(one) == io.content_hash(other)
    assert io.canonical_json(one) == io.canonical_json(other)
    assert io.content_hash({"b": (1, 2.5, None), "a": one["a"]}) == io.content_hash(one)


def test_hashes_stay_what_they_are_between_versions_and_processes():
    """A finished stage is found again by this hash: were it to change, every run would begin anew."""
    assert io.canonical_json({"b": 1, "a": [0.1, "x"]}) == '{"a":[0.1,"x"],"b":1}'
    assert io.content_hash({"b": 1, "a": [0.1, "x"]}) == "e76318e59b3b"
    assert len(io.content_hash({}, length=20)) == 20


@pytest.mark.parametrize(
    "other", [{"a": [2, 1]}, {"a": [1, 2, 0]}, {"b": [1, 2]}, {"a": "12"}, {"a": [1, 2], "b": None}]
)
def test_different_values_have_different_hashes(other):
    assert io.content_hash(other) != io.content_hash({"a": [1, 2]})


def test_values_without_a_canonical_text_have_no_hash():
    with pytest.raises(ValueError, match="JSON compliant"):
        io.content_hash({"a": math.nan})


def test_file_hashes_are_those_of_the_bytes(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert io.file_hash(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert io.file_hash(tmp_path / "abc", "md5") == "900150983cd24fb0d6963f7d28e17f72"
    with pytest.raises(UserError, match=r"cannot read '.*none'"):
        io.file_hash(tmp_path / "none")


def test_folders_are_made_with_their_parents_and_may_exist(tmp_path):
    path = tmp_path / "a" / "b"
    assert io.make_folder(path) == path
    assert io.make_folder(path).is_dir()
    assert list(path.iterdir()) == []


def test_a_folder_appears_whole_with_the_usual_rights_or_not_at_all(tmp_path):
    wanted, usual = tmp_path / "parent" / "wanted", tmp_path / "usual"
    usual.mkdir()
    for _ in range(2):  # also in the place of an empty folder
        with pytest.raises(RuntimeError), io.atomic_folder(wanted) as folder:
            (folder / "file").write_text("x")
            raise RuntimeError
        assert not wanted.exists() or not any(wanted.iterdir())
        wanted.mkdir(exist_ok=True)
    with io.atomic_folder(wanted) as folder:
        (folder / "file").write_text("x")
        assert not any(wanted.iterdir())
    assert (wanted / "file").read_text() == "x"
    assert wanted.stat().st_mode == usual.stat().st_mode
    assert [path.name for path in wanted.parent.iterdir()] == ["wanted"]


def test_a_folder_that_holds_something_or_is_a_file_is_not_replaced(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match="not an empty folder"), io.atomic_folder(path):
            pass
    assert (tmp_path / "file").read_text() == "x"


def test_a_folder_below_or_instead_of_a_regular_file_is_refused_by_name(file):
    for path, what in ((file, "it"), (file / "below", f"'{file}'"), (file / "below" / "it", f"'{file}'")):
        message = f"cannot write into folder '{path}': {what} is a file; name another folder"
        with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
            io.make_folder(path)


def test_what_is_no_folder_is_told_from_what_is_not_there(tmp_path):
    io.check_folder(tmp_path)
    (tmp_path / "run.txt").write_text("x")
    with pytest.raises(UserError, match=r"run\.txt' is a file, not a run folder; give the --out of a run"):
        io.check_folder(tmp_path / "run.txt")
    with pytest.raises(UserError, match=r"no such folder: '.*/run'; nearest: '.*/run\.txt'; give the --out of a run"):
        io.check_folder(tmp_path / "run")
    with pytest.raises(UserError, match=r"no such folder: '.*/run'; give the --out of a run"):
        io.check_folder(tmp_path / "no" / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_ours_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"):
        io.make_folder(tmp_path)


# Names of files


@pytest.mark.parametrize("paths", [StagePaths(Path("out")), RunPaths(Path("out"))], ids=["stage", "run"])
def test_every_file_has_a_name_of_its_own_inside_its_folder(paths):
    names = [name for name, value in vars(type(paths)).items() if isinstance(value, property)]
    files = [getattr(paths, name) for name in names]
    assert len(files) == len(set(files)) >= 6
    assert all(file.parent == Path("out") for file in files)


def test_a_stage_is_found_by_kind_and_key():
    stage = RunPaths(Path("out")).stage("prune", "abc")
    assert stage == StagePaths(Path("out/stages/prune-abc"))
    assert stage.outcome == Path("out/stages/prune-abc/outcome.json")
    with pytest.raises(dataclasses.FrozenInstanceError):
        stage.folder = Path("other")


# Progress


@pytest.fixture
def plain(monkeypatch):
    """No terminal, whatever the machine that runs the tests says."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def test_where_there_is_no_terminal_a_task_is_a_line_at_its_start_and_its_end(plain, capsys):
    with TerminalProgress() as progress, progress.task("pretrain", 3, done=1) as task:
        assert capsys.readouterr().err.splitlines() == ["pretrain  1/3  0 s"]
        task.advance()
        task.advance()
        task.note("loss 0.5 [bold]")
        assert capsys.readouterr().err == ""
    out, err = capsys.readouterr()
    assert err.splitlines() == ["pretrain  3/3  0 s  loss 0.5 [bold]"]
    assert out == ""


def test_and_a_line_every_half_minute(plain, capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with TerminalProgress() as progress, progress.task("long", 100) as task:
        for _ in range(100):
            now[0] += 1.0
            task.advance()
    assert [line.split()[1:3] for line in capsys.readouterr().err.splitlines()] == [
        ["0/100", "0"], ["31/100", "31"], ["62/100", "62"], ["93/100", "93"], ["100/100", "100"],
    ]  # fmt: skip


def test_a_task_that_fails_still_says_how_far_it_came(plain, capsys):
    with pytest.raises(ZeroDivisionError), TerminalProgress() as progress, progress.task("work", 3) as task:
        task.advance()
        _ = 1 / 0
    assert capsys.readouterr().err.splitlines()[-1] == "work  1/3  0 s"


def test_long_lines_and_brackets_are_printed_as_they_are(plain, capsys):
    text = "see [red]'/" + "very-long-folder/" * 20 + "report.html' for 8/255"
    TerminalProgress().say(text)
    assert capsys.readouterr().err == text + "\n"


def test_on_a_terminal_there_are_bars_that_go_when_their_task_ends(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "150")
    with TerminalProgress() as progress:
        with progress.task("pretrain", 10, done=4) as task:
            task.advance(2)
            task.note("loss 0.5")
            (bar,) = progress._bars.tasks
            assert (bar.description, bar.total, bar.completed, bar.fields["note"]) == ("pretrain", 10, 6, "loss 0.5")
        assert progress._bars.tasks == []
        progress.say("done")
    assert "done" in capsys.readouterr().err


def test_silent_progress_is_silent(capsys):
    with SilentProgress().task("work", 3, done=1) as task:
        task.advance()
        task.note("note")
    SilentProgress().say("text")
    assert capsys.readouterr() == ("", "")


# The package


def test_importing_the_package_is_quick_and_its_names_are_all_there():
    code = "import hydraprune, sys; print('torch' in sys.modules, hydraprune.__version__)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", hydraprune.__version__]
    assert all(getattr(hydraprune, name) is not None for name in hydraprune.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hydraprune.nothing


def test_the_version_is_written_once():
    assert re.fullmatch(r"\d+\.\d+\.\d+", hydraprune.__version__)
    assert json.dumps(hydraprune.__version__)


# Threads


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": "10000"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_what_the_environment_says_of_waiting_threads_is_left_alone(monkeypatch, given, expected):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    let_waiting_threads_sleep()
    found = {name: os.environ[name] for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY") if name in os.environ}
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)  # what was set here is not monkeypatch's to take back
    assert found == expected


def test_a_command_says_it_before_torch_is_loaded():
    program = (
        "import sys, os; from hydraprune.cli import main; assert 'torch' not in sys.modules; "
        "main(['models', '--json']); "
        "assert 'torch' in sys.modules; print(os.environ['GOMP_SPINCOUNT'], file=sys.stderr)"
    )
    plain = {key: value for key, value in os.environ.items() if key not in {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=plain)
    assert done.stderr.strip() == "10000", done.stderr
