"""Checkpoints and colours as others save them: what can be read is read."""

import re
from collections import OrderedDict
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import colourization
from colour_regression import RegressionCNN
from colourization import (CNN, MODELS, DUNet, UNet, load_model, load_trained, parse_args, read_checkpoint,
                           save_checkpoint)
from conftest import ROOT, training
from load_data import InputError, load_colours

pytestmark = pytest.mark.filterwarnings('ignore:.*torch.jit:DeprecationWarning')
COLOURS = np.random.default_rng(0).random((24, 3), dtype=np.float32)
OLD = {'_use_new_zipfile_serialization': False}
GREY = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def network(make=CNN, *sizes):
    torch.manual_seed(0)
    return make(*sizes or (3, 4, 24)).eval()


def compiled_inside(model):
    model.downconv1 = torch.compile(model.downconv1)
    return model


def training_state(name, wrap=lambda model: model):
    def make(model):
        optimizer = torch.optim.Adam(model.parameters())
        return {'epoch': 3, 'optimizer': optimizer.state_dict(), name: wrap(model).state_dict()}
    return make


# ---------------------------------------------------------------------------
# What can be read
# ---------------------------------------------------------------------------

@pytest.mark.parametrize('options', [{}, OLD])
@pytest.mark.parametrize('make', [
    lambda model: nn.DataParallel(model).state_dict(), lambda model: torch.compile(model).state_dict(),
    lambda model: torch.compile(nn.DataParallel(model)).state_dict(),
    lambda model: compiled_inside(model).state_dict(),
    lambda model: torch.optim.swa_utils.AveragedModel(model).state_dict(),
    training_state('state_dict'), training_state('model_state_dict'), training_state('model'),
    training_state('net', nn.DataParallel)])
def test_wrapped_weights_are_read(make, options, tmp_path):
    model = network()
    scores = model(GREY)
    torch.save(make(model), tmp_path / 'w.pkl', **options)
    assert torch.equal(load_model(CNN, tmp_path / 'w.pkl')[0](GREY), scores)


def test_wrapped_weights_of_ours_keep_their_notes(tmp_path):
    save_checkpoint(network(UNet), tmp_path / 'w.pkl', COLOURS)
    torch.save({'state_dict': torch.load(tmp_path / 'w.pkl', weights_only=True)}, tmp_path / 'w.pkl')
    _, model, colours = read_checkpoint(tmp_path / 'w.pkl')
    assert model == 'UNet' and np.array_equal(colours, COLOURS)


def test_state_of_an_interrupted_run_has_weights_too(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(colourization.Path, 'unlink', lambda *_, **__: None)  # which a last epoch does
        training(tmp_path)
    state = torch.load(tmp_path / 'w.pkl.resume', weights_only=True)
    weights = load_model(UNet, tmp_path / 'w.pkl.resume')[0].state_dict()
    assert torch.equal(weights['finalconv.weight'], state['model']['finalconv.weight'])


# ---------------------------------------------------------------------------
# Networks that differ
# ---------------------------------------------------------------------------

def reordered(state, names):
    return OrderedDict((re.sub(r'^(\w+\.\d)', lambda start: names.get(start[1], start[1]), name), tensor)
                       for name, tensor in state.items())


WANTED = 'w.pkl: no weights of this assignment that torch.save wrote .*{}.*: save model.state_dict'


@pytest.mark.parametrize('make', MODELS.values())
@pytest.mark.parametrize('names', [
    {f'{stage}.2': f'{stage}.1' for stage in ('downconv1', 'downconv2', 'upconv1', 'upconv2')},
    {f'{stage}.2': f'{stage}.1' for stage in ('downconv1', 'downconv2')},
    {'upconv1.0': 'upconv1.1', 'upconv2.0': 'upconv2.1'}])  # upsampling first
def test_layers_in_another_order_are_named(make, names, tmp_path):
    torch.save(reordered(network(make).state_dict(), names), tmp_path / 'w.pkl')
    with pytest.raises(InputError, match=WANTED.format(f'{make.__name__}.*{next(iter(names))}')):
        load_model(make, tmp_path / 'w.pkl')


def test_dilated_filter_that_was_saved_spread_out_is_named(tmp_path):
    model = network(DUNet)
    state = model.state_dict()
    state['rfconv.0.weight'] = model.rfconv[0].spread_weight().detach()
    torch.save(state, tmp_path / 'w.pkl')
    with pytest.raises(InputError, match=WANTED.format('DilatedUNet: size mismatch for rfconv.0.weight')):
        load_model(DUNet, tmp_path / 'w.pkl')


@pytest.mark.parametrize('change, words', [
    (lambda state: state.pop('upconv1.2.bias'), 'Missing.*upconv1.2.bias'),
    (lambda state: state.update(attention=torch.ones(2)), 'Unexpected.*attention'),
    (lambda state: state.pop('downconv1.0.weight'), 'downconv1.0.weight'),
    (lambda state: state.update({'finalconv.bias': torch.ones(3)}), 'finalconv.bias')])
def test_first_layer_that_differs_is_named(change, words, tmp_path):
    state = network().state_dict()
    change(state)
    torch.save(state, tmp_path / 'w.pkl')
    with pytest.raises(InputError, match=WANTED.format(words)):
        load_model(CNN, tmp_path / 'w.pkl')


def test_weights_that_share_memory_in_a_file_have_their_own_in_a_network(tmp_path):
    state = network(CNN).state_dict()
    state['rfconv.0.bias'] = state['downconv2.0.bias']
    torch.save(state, tmp_path / 'w.pkl')
    model, _ = load_model(CNN, tmp_path / 'w.pkl')
    with torch.no_grad():
        model.rfconv[0].bias.add_(1)
    assert torch.equal(model.downconv2[0].bias, state['downconv2.0.bias'])


@pytest.fixture
def call(run_script, tmp_path):
    """Run a script; returns its status and what it prints on standard error."""
    Image.new('RGB', (8, 8), 'red').save(tmp_path / 'a.png')

    def call(command):
        done = run_script(*command.split())
        return done.returncode, done.stderr
    return call


@pytest.mark.parametrize('command', [
    'colourization.py -m CNN --valid', 'activations.py', 'colourization.py -m CNN --image a.png'])
@pytest.mark.parametrize('named', [True, False])
def test_network_of_colour_regression_is_called_that(command, named, call, tmp_path):
    model = network(RegressionCNN, 3, 4)
    if named:
        save_checkpoint(model, tmp_path / 'w.pkl')
    else:
        torch.save(model.state_dict(), tmp_path / 'w.pkl')
    status, line = call(f'{command} --checkpoint w.pkl')
    words = 'w.pkl is a RegressionCNN, .*colour_regression.py' if named else 'kmeans3_cat7.npy: no file of'
    assert status == 1 and re.fullmatch(f'error: .*{words}.*\n', line)


def test_three_outputs_may_be_three_colours(tmp_path, capsys):
    torch.save(network(CNN, 3, 4, 3).state_dict(), tmp_path / 'w.pkl')
    np.save(tmp_path / 'c.npy', COLOURS[:3])
    flags = ['-m', 'CNN', '--valid', '--checkpoint', str(tmp_path / 'w.pkl')]
    _, colours = load_trained(parse_args([*flags, '-c', str(tmp_path / 'c.npy')]))
    assert np.array_equal(colours, COLOURS[:3]) and capsys.readouterr().err == ''
    save_checkpoint(network(CNN, 3, 4, 3), tmp_path / 'w.pkl', COLOURS[:3])
    assert np.array_equal(load_trained(parse_args(flags))[1], COLOURS[:3])


@pytest.mark.parametrize('save, words', [
    (save_checkpoint, ' is a CNN, not a RegressionCNN: .* --model .*'),
    (lambda model, path: torch.save(model.state_dict(), path), ': no weights .*size mismatch.*')])
def test_network_of_colourization_is_called_that(save, words, call, tmp_path):
    save(network(), tmp_path / 'w.pkl')
    status, line = call('colour_regression.py --checkpoint w.pkl')
    assert status == 1 and re.fullmatch(f'error: w.pkl{words}\n', line)


def test_broken_network_of_colour_regression_is_not_another_model(call, tmp_path):
    save_checkpoint(network(RegressionCNN, 3, 4), tmp_path / 'w.pkl')
    state = torch.load(tmp_path / 'w.pkl', weights_only=True)
    del state['rfconv.1.bias']
    torch.save(state, tmp_path / 'w.pkl')
    status, line = call('colour_regression.py --checkpoint w.pkl')
    assert status == 1 and 'loading state_dict for RegressionCNN' in line and 'rfconv.1.bias' in line


# ---------------------------------------------------------------------------
# Colours that a checkpoint does not name
# ---------------------------------------------------------------------------

WARNING = (r'warning: w.pkl does not say which colours it was trained with: those of \S*kmeans24_cat7.npy '
           'are used; name its own with -c\n')


def test_colours_that_a_checkpoint_does_not_name_are_warned_of(call, tmp_path):
    torch.save(network().state_dict(), tmp_path / 'w.pkl')
    np.save(tmp_path / 'c.npy', COLOURS)
    for command in ('colourization.py -m CNN --image a.png', 'activations.py 0 --data sample'):
        status, lines = call(f'{command} --checkpoint w.pkl')
        assert status == 0 and re.fullmatch(WARNING, lines)
    assert call('colourization.py -m CNN --image a.png --checkpoint w.pkl -c c.npy') == (0, '')
    torch.save(network(CNN, 3, 4, 23).state_dict(), tmp_path / 'w.pkl')
    status, line = call('colourization.py -m CNN --image a.png --checkpoint w.pkl')
    assert status == 1 and re.fullmatch('error: .*kmeans23_cat7.npy: no file of colours.*\n', line)


def test_weights_of_2018_are_right_with_their_own_colours_only(run_script, tmp_path):
    """The shipped weights with their colours in another order, which no note names."""
    state = torch.load(ROOT / 'weights/cnn_k3_f16.pkl', weights_only=True)
    colours = np.array(state._metadata['']['colours'], np.float32)
    order = np.random.default_rng(1).permutation(len(colours))
    last = {name: state[name][order] for name in ('finalconv.weight', 'finalconv.bias')}
    torch.save(dict(state) | last, tmp_path / 'w.pkl')
    np.save(tmp_path / 'c.npy', colours[order])
    words = 'colourization.py -m CNN --valid --data sample --checkpoint'.split()
    own, ours = (run_script(*words, *more) for more in (['w.pkl', '-c', 'c.npy'], ['w.pkl']))
    accuracy = [float(re.search(r'Val Acc: ([\d.]+)%', done.stdout)[1]) for done in (own, ours)]
    assert accuracy[0] > 2 * accuracy[1]
    assert own.stderr == '' and re.fullmatch(WARNING + 'warning: the loss is above .*\n', ours.stderr)


SHIPPED = [(model, path) for path in sorted((ROOT / 'weights').glob('*.pkl')) for model in MODELS
           if path.name.startswith(f'{model.lower()}_')]


@pytest.mark.parametrize('model, path', SHIPPED, ids=[path.stem for _, path in SHIPPED])
def test_shipped_weights_name_their_colours(model, path, capsys):
    _, colours = load_trained(parse_args(['-m', model, '--valid', '--checkpoint', str(path)]))
    assert len(colours) >= 16 and capsys.readouterr().err == ''


# ---------------------------------------------------------------------------
# Colours
# ---------------------------------------------------------------------------

@pytest.mark.parametrize('count, fits', [(1, False), (2, True), (256, True), (257, False)])
def test_colours_are_from_2_to_256(count, fits, tmp_path):
    colours = np.linspace(0, 1, 3 * count).reshape(count, 3)  # 0 and 1 themselves too
    np.save(tmp_path / 'c.npy', colours)
    with nullcontext() if fits else pytest.raises(InputError, match='no file of colours .* from 2 to 256'):
        assert np.array_equal(load_colours(tmp_path / 'c.npy'), colours.astype(np.float32))
