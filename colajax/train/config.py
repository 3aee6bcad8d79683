"""Configurations: a Python file with get_config(variant), command-line overrides, and the copy that a run keeps.

`configs/cola_vae.py:quickstart` is that file with get_config("quickstart").
"""

import ast
import difflib
import importlib.util
import json
import sys
from pathlib import Path

import ml_collections
from etils import epath

from colajax.errors import UserError
from colajax.files import write_whole
from colajax.parallel.mesh import AXES

# Keys that say where and how often, not what is computed; they may differ when a run goes on.
OPERATIONAL = (
    "records", "log_every", "eval_every", "checkpoint_every", "keep_every", "remat", "accumulation_steps",
    "gradient_reduction",
    *(f"mesh.{axis}" for axis in AXES),
)  # fmt: skip


def load_config(spec: str, overrides: list[str]) -> ml_collections.ConfigDict:
    """The locked configuration of `spec` (FILE, FILE:VARIANT, or the config.json of a run) after overrides such as
    "optimizer.peak=3e-4".

    Raises UserError on a file or variant that does not exist, an unknown key (with the nearest name) and a value of
    another type than the default's.
    """
    file, _, variant = spec.partition(":")
    path = Path(file)
    if not path.is_file():
        raise UserError(f"{file}: no such configuration file; configs/ lists the ones that ship")
    config = _of_run(path) if path.suffix == ".json" else _of_file(path, spec, variant)
    for override in overrides:
        _override(config, override)
    return config.lock()


def _of_run(path: Path) -> ml_collections.ConfigDict:
    try:
        found = json.loads(path.read_text())
        del found["facts"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: expected the config.json of a run's workdir") from None
    return ml_collections.ConfigDict(found)


def _of_file(path: Path, spec: str, variant: str) -> ml_collections.ConfigDict:
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(module_spec)
    sys.path.insert(0, str(path.parent))  # a configuration may build on the one beside it
    try:
        module_spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    if variant not in module.VARIANTS:
        known = ", ".join(f"{path}:{name}" for name in module.VARIANTS if name)
        raise UserError(f"{spec}: no variant {variant!r}; expected {path} or one of {known}")
    return module.get_config(variant)


def _override(config: ml_collections.ConfigDict, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"--config.{override}: expected --config.KEY=VALUE")
    *parents, last = key.split(".")
    node = config
    for i, part in enumerate([*parents, last]):
        if not isinstance(node, ml_collections.ConfigDict) or part not in node:
            known = list(flatten(config.to_dict()))
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(config))}"
            raise UserError(f"--config.{key}: unknown key; {hint}")
        if i < len(parents):
            node = node[part]
    if isinstance(node[last], ml_collections.ConfigDict):
        raise UserError(f"--config.{key}: a group of keys; set one of them, such as {key}.{next(iter(node[last]))}")
    kind = node.get_type(last)
    try:
        value = text if kind is str else ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the last two of nested brackets
        value = text
    if not (type(value) is kind or (kind is float and type(value) is int) or value is node[last]):
        raise UserError(f"--config.{key}={text}: expected a value of type {kind.__name__}, as in {node[last]!r}")
    if type(value) is int and abs(value) >= 2**31:
        raise UserError(f"--config.{key}={text}: expected a number of less than 2**31")
    node[last] = value


def changed(config: ml_collections.ConfigDict, **values) -> ml_collections.ConfigDict:
    """A copy of a configuration with other values; of `mesh`, the axes that change."""
    copy = config.copy_and_resolve_references()
    with copy.unlocked():
        copy.update(values)
    return copy


def flatten(tree: dict, prefix: str = "") -> dict:
    """{"a.b": value} of a nested dict."""
    flat = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, dict) else {name: value})
    return flat


def keep_config(workdir: epath.Path, config: ml_collections.ConfigDict, facts: dict, *, write: bool = True) -> None:
    """Writes workdir/config.json (with `write`), or checks the one that is there: the configuration and `facts`
    (digests of what the run reads). Raises UserError naming the keys that differ: a run goes on with what it began
    with. An imported run has met no records yet: it takes the first that it is given."""
    wanted = json.loads(json.dumps({**config.to_dict(), "facts": facts}))
    path = workdir / "config.json"
    if path.exists():
        kept = json.loads(path.read_text())
        imported = kept["facts"].keys() != facts.keys()
        kept["facts"] = {**wanted["facts"], **kept["facts"]}
        found, now = flatten(kept), flatten(wanted)
        missing = object()
        differ = [
            k for k in sorted({*found, *now}) if found.get(k, missing) != now.get(k, missing) and k not in OPERATIONAL
        ]
        if differ:
            shown = "; ".join(f"{k} was {found.get(k)!r}, is {now.get(k)!r}" for k in differ[:5])
            raise UserError(f"{workdir}: holds a run of another configuration ({shown}); use another --workdir")
        if not imported:
            return
        wanted = kept | {"records": wanted["records"]}
    if not write:
        return
    workdir.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(wanted, indent=2) + "\n")
