"""Every option of every command line with values that nobody means: no traceback; status 0 or 2; with 2 one line, and
nothing left behind."""

import os
import re
import shutil

import pytest
import tiny_runs
from command_lines import COMMANDS, assert_refused, run, tree

from colajax.train.config import flatten

# "@" is a folder with one of everything, @/null leads to a device. What is written beside a real one is not undone.
VALUES = (
    "", " ", "\n", "\x1b[31m", "\x01", "\udcff", "\N{SNOWMAN}", "x", "*", "..", ":", "[", "None",
    "x" * 300, "x/" * 2500, "@/null", "/proc/self/mem", "/proc/none", "@/none/none", "@", "@/text/a.txt",
    "@/text/a.txt/x", "~", "~nosuchuser/x", "@/joint/config.json:x",
    "-1", "0", "0.5", "1e999", "nan", "-inf", "99999999999999999999", "-99999999999999999999", "9" * 5000,
)  # fmt: skip
# Of these each option meets every third, another third than the option before it; all of them with COLAJAX_DAMAGES=50.
SHARE = 1 if int(os.environ.get("COLAJAX_DAMAGES", "3")) >= 50 else 3
COMMON = {
    "make_corpus": ["--kind", "stories", "--out", "@/out.jsonl", "--count", "3"],
    "make_probes": ["--out", "@/probes", "--count", "2"],
    "flops": ["--config", tiny_runs.spec("vae")],
    "scaling": ["status", "--ladder", "@/ladder.py:tiny", "--root", "@/curves"],
    "plan": ["--config", tiny_runs.spec("vae"), "--topology", "cpu:2"],
    **{name: arguments for name, arguments in COMMANDS.items() if " " not in name},
    **{name: COMMANDS[name] for name in ("evaluate tasks", "evaluate rescore")},
}


def without(option: str, arguments: list[str]) -> list[str]:
    """The arguments but for this option and its value."""
    if option not in arguments:
        return arguments
    at = arguments.index(option)
    return arguments[:at] + arguments[at + 2 :]


@pytest.fixture
def base(things, tmp_path, monkeypatch):
    """Copies of the things, in a folder that is also home."""
    shutil.copytree(things, tmp_path / "base")
    (tmp_path / "base" / "null").symlink_to("/dev/null")
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "base"


def renewed(base, things) -> None:
    """What a command that came to its end has changed is as before."""
    kept = (base, base.parent / "home")
    for path in [path for folder in (base.parent, *kept) for path in folder.iterdir() if path not in kept]:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    shutil.copytree(things, base, dirs_exist_ok=True)
    (base / "null").symlink_to("/dev/null")


@pytest.mark.parametrize("command", COMMON)
def test_an_option_with_a_value_that_nobody_means(command, base, things):
    options = sorted({*re.findall(r"--[a-z_]+", run(command.split()[0], ["--help"]).output)} - {"--help", "--config."})
    assert options
    before = tree(base.parent)
    for place, option in enumerate(options):
        taken = 0
        for value in VALUES[place % SHARE :: SHARE]:
            if taken == 2:
                break  # a text, of which one is as good as another
            arguments = [*without(option, COMMON[command]), f"{option}={value}"]
            status, _, errors = run(command.split()[0], [argument.replace("@", str(base)) for argument in arguments])
            assert status in (0, 2), (option, value)
            if status:
                assert_refused(errors)
                assert tree(base.parent) == before, (option, value)
            else:
                taken += 1
                renewed(base, things)


@pytest.mark.parametrize("value", ["", "\x01", "[" * 5000, "99999999999999999999", "9" * 5000, "1e999", "{}", "[[]]"])
def test_a_key_of_a_configuration_with_a_value_that_nobody_means(value, tmp_path, records):
    """Every key but those that name folders, which may be anything."""
    for key in flatten(tiny_runs.tiny_config("joint").to_dict()):
        if key in ("records", "records_cache", "init_from"):
            continue
        config = ["--config", tiny_runs.spec("joint"), f"--config.records={records}", f"--config.{key}={value}"]
        status, _, errors = run("train", [*config, "--workdir", str(tmp_path / "run")])
        assert status == 2, key  # some are taken, but there is no stage 1 to begin with
        assert_refused(errors)
        assert not list(tmp_path.iterdir()), key


@pytest.mark.parametrize("command", COMMON)
@pytest.mark.parametrize("argument", ["--unknown", "--unknown=1", "unknown", "-x", "--", "", "--work", "--config.x"])
def test_an_argument_that_is_not_known(command, argument, tmp_path):
    status, _, errors = run(command.split()[0], [argument])
    assert status == 2
    assert_refused(errors)


def test_a_tolerance_that_nothing_exceeds(base):
    """A comparison with NaN is false: with it every export would pass."""
    arguments = ["--workdir", str(base / "joint"), "--hf", str(base / "hf")]
    for tolerance in ("nan", "inf", "-1"):
        assert "--tolerance" in run("verify_export", [*arguments, f"--tolerance={tolerance}"]).errors


def test_a_device_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    status, _, errors = run("make_corpus", ["--kind", "stories", "--count", "3", "--out", str(tmp_path / "pipe")])
    assert (status, errors.count("\n")) == (2, 1)
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("content", ["", "VARIANTS = ()\n", "def get_config(variant):\n    pass\n"])
def test_a_python_file_that_is_no_configuration(content, tmp_path):
    (tmp_path / "other.py").write_text(content)
    status, _, errors = run("train", ["--config", str(tmp_path / "other.py"), "--workdir", str(tmp_path / "run")])
    assert (status, errors.count("\n")) == (2, 1)
    assert f"{tmp_path}/other.py" in errors
