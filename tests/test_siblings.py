"""colour_regression.py and activations.py: what they print, write and draw."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from activations import record_activations, tile_maps
from colourization import CNN, UNet
from conftest import fails, is_picture, near, panels


# ---- colour_regression.py ----


def test_regression_is_evaluated(run_script, tmp_path):
    done = run_script('colour_regression.py', '--data', 'sample', draw=True)
    assert (done.status, done.errors) == (0, '')
    loss, psnr = re.search(r'\nVal Loss: (0\.\d{5}), PSNR: (\d+\.\d\d) dB', done.output).groups()
    assert float(psnr) == pytest.approx(10 * np.log10(1 / float(loss)), abs=0.02)
    assert is_picture(tmp_path / 'outputs/regression_output.png')
    metrics = json.loads((tmp_path / 'outputs/metrics_RegressionCNN.json').read_text('utf-8'))
    assert metrics['val_loss'] == pytest.approx(float(loss), abs=1e-5)
    assert metrics['pictures']['prediction']['mean_squared_error'] == pytest.approx(float(loss), rel=0.02)


def test_regression_is_trained(run_script, tmp_path):
    done = run_script('colour_regression.py', '--train', '--data', 'sample', '-e', 2, '-f', 4, draw=True)
    assert (done.status, done.errors) == (0, '')
    losses = [float(x) for x in re.findall(r'Epoch .* Val Loss: ([\d.]+)', done.output)]
    assert len(losses) == 2 and losses[1] < losses[0]
    assert torch.load(tmp_path / 'outputs/regression_cnn_k3_f4.pkl',
                      weights_only=True)['finalconv.bias'].shape == (3,)
    assert is_picture(tmp_path / 'outputs/training_curve_RegressionCNN.png')


# ---- activations.py ----


LABELS = {  # by the name of the file, in the order in which they are drawn; for 2 filters and 3 colours
    'input': 'input: grey', 'out0': 'downconv1: 2 maps of 16x16', 'out1': 'downconv2: 4 maps of 8x8',
    'out2': 'rfconv: 4 maps of 8x8', 'out3': 'upconv1: 2 maps of 16x16', 'out4': 'upconv2: 3 maps of 32x32',
    'output': 'output: the likeliest colours', 'input_rgb': 'input in colour: the truth'}


@pytest.mark.parametrize('model', ['CNN', pytest.param('UNet', marks=pytest.mark.slow)])
def test_activations_are_drawn(model, run_script, tmp_path):
    done = run_script('activations.py', 5, '–model', model, '–checkpoint',
                      f'weights/{model.lower()}_k3_f32.pkl', '--data', 'sample', draw=True)
    assert done[:3] == (0, f'Wrote outputs/act_{model}_5 (sample)\n', '')
    files = [*(f'filter_{name}_5.png' for name in LABELS), 'overview_5.png']
    folder = tmp_path / f'outputs/act_{model}_5'
    assert sorted(p.name for p in folder.iterdir()) == sorted(files)
    assert all(is_picture(folder / name) for name in files)


@pytest.mark.parametrize('category, called', [
    (3, 'category 3 of CIFAR-10'), (7, 'the horses of CIFAR-10'), ('all', 'CIFAR-10')])
def test_activations_are_those_of_the_pictures_asked_for(category, called, mixed, run_script, tmp_path):
    """Every panel against the network run by hand, stage by stage."""
    _, (xs, ys), colours = mixed
    torch.manual_seed(6)
    model = CNN(3, 2, 3)
    torch.save(model.state_dict(), tmp_path / 'w.pkl')
    figures = run_script('activations.py', 5, 2, '-m', 'CNN', '--category', category, '-c', 'c.npy',
                         '--checkpoint', 'w.pkl').figures
    true = xs[(ys[:, 0] == category) | (category == 'all')].astype(np.float32) / 256
    grey = true.mean(axis=1, keepdims=True)
    with torch.no_grad():
        stages, x = [], torch.from_numpy(grey)
        for stage in list(model.eval().children())[:5]:
            x = stage(x)
            stages.append(x.numpy())
        prediction = colours[model.finalconv(x).argmax(dim=1)]
    assert not np.array_equal(prediction[5], prediction[2])
    assert {name for name in figures if name.startswith('overview')} == {'overview_5.png', 'overview_2.png'}
    for i in (5, 2):
        expected = {'input': grey[i, 0], 'output': prediction[i], 'input_rgb': np.moveaxis(true[i], 0, -1)}
        for number, maps in enumerate(stages):
            maps = maps[i] / np.maximum(maps[i].max(axis=(1, 2), keepdims=True), 1e-12)
            columns, (count, side, _) = 2, maps.shape
            tiles = np.ones((-(-count // columns) * (side + 1), columns * (side + 1)), np.float32)
            for j in range(count):
                top, left = j // columns * (side + 1), j % columns * (side + 1)
                tiles[top:top + side, left:left + side] = maps[j]
            expected[f'out{number}'] = tiles[:-1, :-1]
        overview = figures[f'overview_{i}.png']
        assert overview.get_suptitle() == f'CNN from grey to colour: picture {i}, {called}'
        assert list(panels(overview)) == [*LABELS.values()]
        for name, label in LABELS.items():
            picture, own = panels(overview)[label], figures[f'filter_{name}_{i}.png']
            assert near(picture, expected[name], 1e-5)
            assert own.get_suptitle() == f'CNN, picture {i}, {called}'
            assert panels(own).keys() == {label} and np.array_equal(panels(own)[label], picture)


def test_recording_leaves_the_network_as_it_was():
    model, grey = UNet(3, 4, 5).eval(), torch.rand(2, 1, 32, 32)
    scores, _ = record_activations(model, grey)
    assert torch.equal(scores, model(grey))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize('count', [1, 5, 24, 64])
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


def test_colours_of_activations_may_be_in_the_folder_of_the_user(run_script):
    done = run_script('activations.py', '--checkpoint', 'weights/cnn_k3_f16.pkl', '-c~/none.npy')
    assert fails(done, 1, f'{Path.home() / "none.npy"}: no file of colours')
