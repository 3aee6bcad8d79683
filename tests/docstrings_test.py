"""The gathered docstrings against what `inspect.getdoc` says of imported modules."""

import inspect
import itertools
import sysconfig
import textwrap

import pytest

from colajax.data import docstrings
from colajax.data.docstrings import MIN_CHARACTERS, gather_docstrings

LIMIT = 150_000


@pytest.fixture(scope="module")
def gathered():
    return list(gather_docstrings(LIMIT))


@pytest.fixture
def installation(tmp_path, monkeypatch):
    """A folder that stands for the installation: its `lib` is the standard library, its `packages` site-packages."""
    roots = {"stdlib": tmp_path / "lib", "purelib": tmp_path / "packages", "platlib": tmp_path / "packages"}
    monkeypatch.setattr(docstrings.sysconfig, "get_path", lambda name: str(roots[name]))
    for root in roots.values():
        root.mkdir(exist_ok=True)
    return tmp_path


def test_texts_are_long_distinct_within_the_limit_and_the_same_each_time(gathered):
    assert all(len(text) >= MIN_CHARACTERS for text in gathered)
    assert len(set(gathered)) == len(gathered)
    assert LIMIT * 0.9 < sum(map(len, gathered)) <= LIMIT
    assert list(gather_docstrings(LIMIT)) == gathered


def test_texts_are_what_inspect_says_of_the_standard_library():
    texts = set(gather_docstrings())
    known = [textwrap.wrap, textwrap, itertools.chain, textwrap.TextWrapper, inspect.signature, inspect.BoundArguments]
    for thing in known:
        doc = inspect.getdoc(thing)
        written_in_python = thing is not itertools.chain
        assert (doc in texts) == (written_in_python and len(doc) >= MIN_CHARACTERS), thing


def test_the_files_of_an_installation_one_by_one(installation):
    def write(path, source):
        file = installation / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(source.encode("utf-8", "surrogatepass"))

    prose = {name: f"{name} é\n\n    indented " + "word " * 50 + "end" for name in "ABCDEFG"}
    write("lib/b.py", f'class Kept:\n    async def f():\n        """{prose["B"]}"""\n')
    write("lib/a/z.py", f'"""{prose["A"]}"""\nassigned = """{prose["F"]}"""\nraise SystemExit\n')
    write("lib/broken.py", f'"""{prose["G"]}"""\ndef (:\n')
    write("lib/nul.py", f'"""{prose["G"]}"""\n\0')
    write("lib/latin.py", f'# coding: nonsense\n"""{prose["G"]}"""\n')
    write("lib/notes.txt", f'"""{prose["G"]}"""\n')
    write("lib/test/t.py", f'"""{prose["G"]}"""\n')
    write("lib/site-packages/p.py", f'"""{prose["G"]}"""\n')
    write("lib/short.py", '"""Too short."""\n')
    write("packages/c.py", f'"""{prose["B"]}"""\ndef f():\n    """\n    {prose["C"]}\n    """\n')
    expected = [inspect.cleandoc(prose[name]) for name in "BAC"]
    assert list(gather_docstrings()) == expected
    assert list(gather_docstrings(len(expected[0]) + len(expected[1]))) == expected[:2]
    assert list(gather_docstrings(len(expected[0]) + len(expected[1]) - 1)) == expected[:1]


def test_half_of_a_surrogate_pair_is_dropped(installation):
    (installation / "lib" / "a.py").write_text('"""\\ud800' + "x" * 300 + '"""\n')
    assert list(gather_docstrings()) == ["x" * 300]


def test_the_standard_library_comes_first(gathered):
    first = next(iter(gathered))
    with open(sysconfig.get_path("stdlib") + "/__future__.py") as source:
        assert first in source.read()
