"""The layers of the package, read off its imports: a file imports only from layers before its own. And a library that
a start does not wait for."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "colajax"
LAYERS = (
    ("data", "stories", "models", "objectives", "parallel"),
    ("stages", "train"),
    ("sampling", "hf"),
    ("evals", "planning", "serve", "command_line"),
    ("chaos", "scaling", "reporting"),
    ("train.__main__",),
)
BELOW_ALL = ("axes", "errors", "files", "keys", "messages")  # of these, errors below the others
FILES = sorted(PACKAGE.rglob("*.py"))


def _folder(module: tuple[str, ...]) -> str:
    """The row entry in LAYERS or BELOW_ALL that a module of the package (without "colajax") belongs to."""
    return "train.__main__" if module[:2] == ("train", "__main__") else module[0]


def _imports(tree: ast.AST, package: tuple[str, ...]) -> set[tuple[str, ...]]:
    """The modules of colajax that a file names in an import, wherever in the file that stands."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(("colajax", *package)[: len(package) + 2 - node.level]) if node.level else ""
            names = [".".join(part for part in (base, node.module, alias.name) if part) for alias in node.names]
        else:
            continue
        found |= {tuple(name.split(".")[1:]) for name in names if name.startswith("colajax.")}
    return found


def _violations(importer: str, imported: set[tuple[str, ...]]) -> list[str]:
    layer = {folder: number for number, row in enumerate(LAYERS) for folder in row} | dict.fromkeys(BELOW_ALL, -1)
    layer["errors"] = -2
    return [
        ".".join(module)
        for module in sorted(imported)
        if _folder(module) != importer and not layer[_folder(module)] < layer[importer]
    ]


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(PACKAGE)) for file in FILES])
def test_imports_only_from_layers_before_its_own(file):
    module = file.relative_to(PACKAGE).with_suffix("").parts
    if module == ("__init__",):
        assert not _imports(ast.parse(file.read_text()), ())
        return
    assert _violations(_folder(module), _imports(ast.parse(file.read_text()), module[:-1])) == []


@pytest.mark.parametrize(
    ("file", "source", "forbidden"),
    [
        ("models/x.py", "from colajax.objectives import elbo", ["objectives.elbo"]),
        ("models/x.py", "from colajax import train", ["train"]),
        ("models/x.py", "from ..train import loop", ["train.loop"]),
        ("models/x.py", "def f():\n    import colajax.hf.names", ["hf.names"]),
        ("stages/x.py", "from colajax.train.step import f", ["train.step.f"]),
        ("train/x.py", "from colajax.stages.vae import VAEStage", ["stages.vae.VAEStage"]),
        ("train/x.py", "from colajax.train.__main__ import main", ["train.__main__.main"]),
        ("models/x.py", "from . import layers\nfrom colajax.errors import UserError\nimport jax", []),
        ("train/__main__.py", "from colajax.stages.vae import A\nfrom colajax.train.loop import train", []),
    ],
)
def test_a_breach_would_be_seen(file, source, forbidden):
    module = tuple(file.removesuffix(".py").split("/"))
    assert _violations(_folder(module), _imports(ast.parse(source), module[:-1])) == forbidden


def test_every_folder_has_a_layer():
    folders = {file.relative_to(PACKAGE).parts[0].removesuffix(".py") for file in FILES} - {"__init__"}
    assert folders <= {folder for row in LAYERS for folder in row} | set(BELOW_ALL)


def test_a_training_does_not_wait_for_torch_and_leaves_it_importable():
    code = "import sys, colajax.train.__main__; assert 'torch' not in sys.modules; import torch; torch.zeros(1)"
    subprocess.run([sys.executable, "-c", code], check=True)
