"""Configurations: a Python file with get_config(variant), command-line overrides, and the copy that a run keeps.

`configs/cola_vae.py:quickstart` is that file with get_config("quickstart").
"""

import ast
import contextlib
import difflib
import functools
import hashlib
import importlib.util
import json
import math
import sys
import traceback
import types
from collections.abc import Iterator
from pathlib import Path

import ml_collections
from etils import epath
from ml_collections import config_dict

from colajax.data.mixture import met
from colajax.errors import UserError
from colajax.files import write_whole
from colajax.parallel.mesh import AXES
from colajax.train.kept import NULLABLE, defaults_of, nullable_of, read_kept

# Keys that say where and how often, not what is computed; they may differ when a run goes on.
OPERATIONAL = (
    "records", "records_cache", "init_from", "init_step", "log_every", "eval_every", "eval_rows", "checkpoint_every",
    "keep_every", "budgets", "remat", "accumulation_steps", "gradient_reduction", "compute_params", "spike_sigmas",
    "skips_in_a_row", "hang_seconds", "damaged_rows", "max_epochs", "alerts",
    *(f"mesh.{axis}" for axis in AXES),
)  # fmt: skip
_PLACES = ("records", "records_cache", "init_from")  # of them those that may be elsewhere on every machine
_ABSENT = object()


def load_config(spec: str, overrides: list[str]) -> ml_collections.ConfigDict:
    """The locked configuration of `spec` (FILE, FILE:VARIANT, or the config.json of a run) after overrides such as
    "optimizer.peak=3e-4".

    Raises UserError on a file or variant that does not exist, an unknown key (with the nearest name) and a value of
    another type than the default's.
    """
    if spec.endswith(".json"):
        config = _of_run(epath.Path(spec))
    else:
        file, _, variant = spec.partition(":")
        if not Path(file).is_file() or not file.endswith(".py"):
            raise UserError(f"{file}: no such configuration file; configs/ lists the ones that ship")
        config = _of_file(Path(file), spec, variant)
    for override in overrides:
        _override(config, override)
    return config.lock()


def _of_run(path: epath.Path) -> ml_collections.ConfigDict:
    found = read_kept(path)
    del found["facts"]
    config = ml_collections.ConfigDict(_tuples(found))
    for name, kind in nullable_of(found).items():
        *parents, last = name.split(".")
        node = functools.reduce(lambda node, key: node[key], parents, config)
        value = node.get(last)
        with node.ignore_type():
            node[last] = config_dict.placeholder(kind)
        node[last] = value
    return config


def _of_file(path: Path, spec: str, variant: str) -> ml_collections.ConfigDict:
    with load_module(path) as module:
        if not hasattr(module, "VARIANTS") or not hasattr(module, "get_config"):
            raise UserError(f"{path}: no configuration file; expected VARIANTS and get_config(variant) in it")
        if variant not in module.VARIANTS:
            known = ", ".join(f"{path}:{name}" for name in module.VARIANTS if name)
            raise UserError(f"{spec}: no variant {variant!r}; expected {path} or one of {known}")
        return module.get_config(variant)


@contextlib.contextmanager
def load_module(path: Path) -> Iterator[types.ModuleType]:
    """A Python file of the user's as a module, which may import those beside it. Raises UserError, naming the line, on
    what goes wrong in it, while it is read and as long as it is used."""
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(module_spec)
    sys.path.insert(0, str(path.parent))
    try:
        module_spec.loader.exec_module(module)
        yield module
    except UserError:
        raise
    except Exception as error:  # of a program that is the user's
        raise UserError(f"{path}: {_said(error, path)}") from error
    finally:
        sys.path.remove(str(path.parent))


def _said(error: Exception, path: Path) -> str:
    """An exception in a configuration file as one line, with the line of the file where there is one."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    lines = [n for frame, n in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == str(path)]
    return f"line {lines[-1]}: {text}" if lines else text  # a SyntaxError says it itself


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
    none = value is None and (node[last] is None or key in NULLABLE)
    if not (type(value) is kind or (kind is float and type(value) is int) or none):
        raise UserError(f"--config.{key}={text}: expected a value of type {kind.__name__}, as in {node[last]!r}")
    if type(value) is float and not math.isfinite(value):
        raise UserError(f"--config.{key}={text}: expected a finite number")
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


def _tuples(value):
    """JSON's lists, which no configuration holds, as the tuples that they were."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def check_config(workdir: epath.Path, config: ml_collections.ConfigDict, facts: dict, batches: int = 0) -> dict | None:
    """The config.json that is in workdir, None where there is none. Raises UserError unless its run, that has had
    so many batches, may go on with this configuration and these facts (digests of what it reads; one that the run has
    not met yet, as after an import, or records of later batches, are free)."""
    path = workdir / "config.json"
    if not path.exists():
        return None
    kept = read_kept(path)
    known = kept | {"facts": facts | kept["facts"]}
    now = _as_kept(config, {**kept["facts"], **facts})
    for of in (known["facts"], now["facts"]):
        if "records" in of:
            of["records"] = met(of["records"], batches)
    defaults = defaults_of(now)
    found, wanted = flatten(known), flatten(now)
    changed_keys = [
        key for key in sorted({*found, *wanted})
        if found.get(key, defaults.get(key, _ABSENT)) != wanted.get(key, defaults.get(key, _ABSENT))
    ]  # fmt: skip
    free = {*OPERATIONAL, "total_steps", "optimizer.decay_steps"}
    if not wanted.get("objective.lambda_ref") and bool(found.get("init_from")) != bool(wanted.get("init_from")):
        free.remove("init_from")  # it is by which the state has a reference encoder or none
    refused = [key for key in changed_keys if key not in free]
    if refused:
        shown = "; ".join(f"{key} was {found.get(key)!r}, is {wanted.get(key)!r}" for key in refused[:5])
        raise UserError(f"{workdir}: holds a run of another configuration ({shown}); use another --workdir")
    if "total_steps" in changed_keys and config.optimizer.decay_steps is None:
        raise UserError(
            f"{workdir}: total_steps was {found['total_steps']}, is {config.total_steps}: say where the learning "
            f"rate's decay ends, with --config.optimizer.decay_steps={found['total_steps']} (end_value from there on) "
            f"or another step"
        )
    return kept


def config_digest(config: ml_collections.ConfigDict) -> str:
    """A digest of a configuration but for where things lie."""
    values = {key: value for key, value in flatten(config.to_dict()).items() if key not in _PLACES}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def keep_config(workdir: epath.Path, config: ml_collections.ConfigDict, facts: dict) -> None:
    """Writes workdir/config.json: the configuration, and the facts that are not there yet; of the records also those of
    later steps."""
    path = workdir / "config.json"
    kept = read_kept(path)["facts"] if path.exists() else {}
    later = {name: facts[name] for name in ("records",) if name in facts}
    content = json.dumps(_as_kept(config, facts | kept | later), indent=2) + "\n"
    if not path.exists() or path.read_text() != content:
        workdir.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)


def _as_kept(config: ml_collections.ConfigDict, facts: dict) -> dict:
    return json.loads(json.dumps({**config.to_dict(), "facts": facts}))
