"""What the activations are taken from, and how they are tiled."""

import numpy as np
import pytest
import torch

from activations import activation_panels, record_activations, tile_maps
from colourization import CNN, UNet
from conftest import near


@pytest.mark.parametrize('make', [CNN, UNet])
def test_maps_are_what_the_stages_put_out(make):
    model = make(3, 4, 5).eval()
    grey = torch.rand(2, 1, 32, 32)
    scores, maps = record_activations(model, grey)
    with torch.no_grad():
        stages = [model.downconv1(grey)]
        stages.append(model.downconv2(stages[0]))
        stages.append(model.rfconv(stages[1]))
        join = (lambda *xs: torch.cat(xs, dim=1)) if make is UNet else (lambda first, _: first)
        stages.append(model.upconv1(join(stages[2], stages[1])))
        stages.append(model.upconv2(join(stages[3], stages[0])))
        assert torch.equal(scores, model(grey))
    assert list(maps) == ['downconv1', 'downconv2', 'rfconv', 'upconv1', 'upconv2']
    for ours, expected in zip(maps.values(), stages, strict=True):
        assert torch.equal(ours, expected)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize('count', [1, 5, 16, 24, 32, 64])
def test_every_map_is_drawn_whole_with_its_own_maximum_in_white(count):
    maps = torch.rand(count, 8, 8) * torch.arange(count)[:, None, None]  # the first one is dead
    picture = tile_maps(maps)
    columns = (picture.shape[1] + 1) // 9
    assert abs(picture.shape[0] - picture.shape[1]) <= 9  # near to a square
    for i in range(count):
        top, left = 9 * (i // columns), 9 * (i % columns)
        drawn = picture[top:top + 8, left:left + 8, 0]
        expected = maps[i] / maps[i].max() if i else maps[i]
        assert near(drawn, expected.numpy(), 1e-6)


def test_panels_lead_from_grey_to_colour():
    grey, rgb, prediction = (np.full((c, 32, 32), v, np.float32) for c, v in ((1, .1), (3, .2), (3, .3)))
    _, maps = record_activations(CNN(3, 4, 5).eval(), torch.rand(1, 1, 32, 32))
    panels = activation_panels(grey, rgb, prediction, {name: m[0] for name, m in maps.items()})
    assert list(panels) == ['input', 'out0', 'out1', 'out2', 'out3', 'out4', 'output', 'input_rgb']
    for name, channels, value in (('input', 1, .1), ('output', 3, .3), ('input_rgb', 3, .2)):
        assert panels[name][1].shape == (32, 32, channels) and panels[name][1][0, 0, 0] == np.float32(value)
    for number, (stage, m) in enumerate(maps.items()):
        label, picture = panels[f'out{number}']
        assert label == f'{stage}: {m.shape[1]} maps of {m.shape[2]}x{m.shape[3]}'
        assert np.array_equal(picture, tile_maps(m[0]))
