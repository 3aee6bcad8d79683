"""Checks, in every test, that arrays have the shapes that the names of parameters say: `tokens_BxT` has two dimensions,
and B is the same number for all parameters of a call (a dimension of 1 broadcasts)."""

import functools
import importlib
import inspect
import re

# In the order of their imports: a function is wrapped before another module takes it by its name.
MODULES = (
    "objectives.elbo", "objectives.flow_matching", "objectives.masked_diffusion", "objectives.next_token",
    "models.attention", "models.vae_block", "models.decoder",
    "models.text_vae", "models.dit", "models.llama", "sampling.tokens", "sampling.cola",
    "sampling.ar", "sampling.llada",
)  # fmt: skip
_SHAPE = re.compile(r"_([A-Z](?:x[A-Z])*)$")


def shapes_in(function) -> dict[str, list[str]]:
    """{parameter: letters of its dimensions} of the parameters whose names say them."""
    found = {name: _SHAPE.search(name) for name in inspect.signature(function).parameters}
    return {name: match[1].split("x") for name, match in found.items() if match}


def checked(function):
    """The function, which first checks its arguments. Raises TypeError on a shape that is not what the names say."""
    expected, signature = shapes_in(function), inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        given, sizes = signature.bind(*args, **kwargs).arguments, {}
        for name, letters in expected.items():
            shape = getattr(given.get(name), "shape", None)
            if shape is None:
                continue
            fits = len(shape) == len(letters) and all(
                size in (1, sizes.setdefault(letter, size)) or sizes[letter] == 1
                for letter, size in zip(letters, shape, strict=True)
            )
            if not fits:
                raise TypeError(f"{function.__qualname__}: {name} has the shape {shape}; others say {sizes}")
        return function(*args, **kwargs)

    return wrapper


def install() -> list[str]:
    """Wraps what MODULES define; returns the names of what is checked."""
    names = []
    for name in MODULES:
        module = importlib.import_module(f"colajax.{name}")
        owners = [module, *(c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__)]
        for owner in owners:
            for attribute, function in list(vars(owner).items()):
                if inspect.isfunction(function) and function.__module__ == module.__name__ and shapes_in(function):
                    setattr(owner, attribute, checked(function))
                    names.append(f"{name}.{function.__qualname__}")
    return names
