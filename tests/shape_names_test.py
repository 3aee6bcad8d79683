"""That the shapes in names are checked: what fits passes, what does not is refused."""

import conftest
import numpy as np
import pytest
from shape_names import checked

from colajax.models.text_vae import Encoder
from colajax.objectives import elbo
from colajax.sampling import tokens


@checked
def pairs(a_BxT, b_BxTxV, count, c_B=None):
    return "called"


@pytest.mark.parametrize(
    ("a", "b", "c", "fits"),
    [
        ((2, 3), (2, 3, 5), (2,), True),
        ((2, 3), (1, 3, 5), (2,), True),
        ((1, 3), (2, 3, 5), None, True),
        ((2, 3), (2, 4, 5), (2,), False),
        ((2, 3), (2, 3, 5), (3,), False),
        ((2, 3, 1), (2, 3, 5), (2,), False),
    ],
)
def test_names_say_dimensions_and_which_are_equal(a, b, c, fits):
    def call():
        return pairs(np.zeros(a), np.zeros(b), 7, c_B=None if c is None else np.zeros(c))

    if fits:
        assert call() == "called"
    else:
        with pytest.raises(TypeError, match="has the shape"):
            call()


def test_the_public_functions_are_among_them():
    assert {
        "objectives.elbo.cross_entropy", "objectives.flow_matching.interpolate", "models.text_vae.Encoder.__call__",
        "models.decoder.Decoder.hidden", "models.dit.DiT.__call__", "models.vae_block.VAEBlock.__call__",
        "sampling.tokens.choose", "sampling.cola.Sampler._flow",
    } <= set(conftest.SHAPE_CHECKED)  # fmt: skip
    for function in (elbo.cross_entropy, tokens.penalise, Encoder.__call__):
        with pytest.raises(TypeError, match="has the shape"):
            function(*[np.zeros((2, 3, 4, 5))] * (3 if function is tokens.penalise else 2))
