"""The benchmark compares like with like: what it calls the reference computes the same."""

import numpy as np
import pytest
import torch

from benchmark import COLOURS, reference_cats, reference_network
from colourization import MODELS, get_rgb_cat


@pytest.mark.parametrize('make', MODELS.values())
def test_reference_network_computes_the_same_scores(make):
    ours, reference = make(3, 32, len(COLOURS)), reference_network(make)
    reference.load_state_dict(ours.state_dict())
    x = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(reference(x), ours(x), rtol=1e-4, atol=1e-5)


def test_reference_colours_are_the_same():
    xs = np.random.default_rng(0).random((30, 3, 32, 32), np.float32)
    assert (reference_cats(xs) == get_rgb_cat(xs, COLOURS)[:, 0]).mean() > 0.9999  # but for rounding
