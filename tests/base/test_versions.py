"""The versions that looper tells, and the one line where Keras is too old."""

import platform
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import looper
from looper import cli
from looper.base import versions

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
TOO_OLD = "Keras 3.14.9 is installed, and looper needs 3.15 or newer: pip install -U keras."


@pytest.fixture
def old_keras(monkeypatch):
    monkeypatch.setattr(versions, "installed", {"keras": "3.14.9"}.get)


def test_the_command_prints_the_versions_without_tensorflow():
    heavy = "{'tensorflow', 'keras'}"
    code = f"import sys, looper.cli; looper.cli.main(['--version']); sys.exit(bool({heavy} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    looper_, tensorflow, keras = map(metadata.version, ("looper-tf", "tensorflow", "keras"))
    python = platform.python_version()
    assert done.stdout == f"looper {looper_}, TensorFlow {tensorflow}, Keras {keras}, Python {python}\n"


def test_looper_has_its_version_and_reads_it_when_asked(monkeypatch):
    assert looper.__version__ == metadata.version("looper-tf")
    monkeypatch.setattr(versions, "installed", lambda distribution: None)
    assert looper.__version__ == "unknown"
    code = "import sys, looper; sys.exit('importlib.metadata' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_keras_that_is_needed_is_the_one_that_is_declared():
    needed = ".".join(map(str, versions.KERAS_NEEDED))
    assert f"keras>={needed}" in PROJECT["dependencies"]
    versions.check_keras()


@pytest.mark.parametrize("name", [name for name in looper._LAZY if name != "run_recipe"])
def test_an_older_keras_is_told_before_anything_needs_it(name, old_keras, monkeypatch):
    monkeypatch.delitem(sys.modules, looper._LAZY[name], raising=False)  # as before the first use
    monkeypatch.delitem(vars(looper), name, raising=False)  # which importing a module sets
    with pytest.raises(looper.InputError) as raised:
        getattr(looper, name)
    assert str(raised.value) == TOO_OLD


@pytest.mark.parametrize("command", ["run", "audit", "bench", "doctor"])
def test_the_command_tells_of_an_older_keras_in_one_line(command, old_keras, capsys):
    assert cli.main([command, "recipe.py"]) == 2
    assert capsys.readouterr().err == f"looper: error: {TOO_OLD}\n"


@pytest.mark.parametrize("found", ["3.15.0", "3.16.0.dev2026010203", "3.100.1", "4.0rc1", None])
def test_a_newer_keras_will_do_and_so_does_one_of_another_name(found, monkeypatch):
    monkeypatch.setattr(versions, "installed", lambda distribution: found)
    versions.check_keras()


@pytest.mark.parametrize("found", ["2.15.0", "3.9.2", "3.14.0rc0"])
def test_an_older_keras_will_not(found, monkeypatch):
    monkeypatch.setattr(versions, "installed", lambda distribution: found)
    with pytest.raises(looper.InputError, match=f"^Keras {found} is installed"):
        versions.check_keras()
