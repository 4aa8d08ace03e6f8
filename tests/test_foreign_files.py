"""Checkpoints and colours as others save them: what can be read is read, the rest is called what it is."""

import pickle
import re
import zipfile
from collections import OrderedDict
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import colourization
from colour_regression import RegressionCNN
from colourization import (CNN, MODELS, DUNet, MyConv2d, UNet, load_model, load_trained, read_checkpoint,
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


# ---------------------------------------------------------------------------
# What is no checkpoint
# ---------------------------------------------------------------------------

POINTER = b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n'


def content(data):
    return lambda path: path.write_bytes(data)


def zip_of(path):
    torch.save(network().state_dict(), path.with_name('inner.pkl'))
    with zipfile.ZipFile(path, 'w') as archive:
        archive.write(path.with_name('inner.pkl'), 'inner.pkl')


def cut(**options):
    def write(path):
        torch.save(network().state_dict(), path, **options)
        path.write_bytes(path.read_bytes()[:-9])
    return write


def scripted(path):
    torch.jit.save(torch.jit.script(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())), path)


def traced(path):
    torch.jit.save(torch.jit.trace(network(), GREY), path)


def tensors(value, **options):
    return lambda path: torch.save(value, path, **options)


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.parametrize('write, words', [
    (content(b''), 'it is empty'),
    (content(POINTER), 'a Git LFS pointer.*lfs pull'),
    (content(b'<!DOCTYPE html><title>404</title>'), 'a web page.*download'),
    *((write, 'no file that torch.save wrote') for write in (
        content(b'\x93NUMPY\x01\0'), content(b'\x89HDF\r\n\x1a\n' + bytes(90)), content(b'0.1 0.2 0.3\n'),
        content((80).to_bytes(8, 'little') + b'{"finalconv.weight":{}}' + bytes(99)), zip_of,
        content(b'\x08\x0a\x12\x07pytorch\x1a\x062.13.0' + bytes(99)),
        lambda path: Image.new('L', (8, 8)).save(path, 'PNG'),
        content(pickle.dumps(network().state_dict())))),
    (scripted, 'a TorchScript program.*torch.jit.load.*state_dict'), (traced, 'a TorchScript program'),
    (tensors(network()), r'more than tensors \(colourization.CNN\).*whole.*model.state_dict\(\)'),
    (tensors(network(), **OLD), 'whole pickled model'),
    (tensors(nn.DataParallel(network())), 'DataParallel.*whole pickled model'),
    (tensors({'lr': np.zeros(2), 'model': network().state_dict()}), r'more than tensors \(numpy'),
    (tensors(list(network().parameters())), 'it holds a list.*state_dict'),
    (tensors(torch.zeros(3), **OLD), 'it holds a Tensor.*state_dict'),
    (tensors({}), 'it has no finalconv'),
    (tensors(nn.Linear(2, 2).state_dict()), 'it has no finalconv.weight'),
    (tensors(network().state_dict() | {'epoch': 3}), 'its epoch is no tensor'),
    (cut(), 'damaged.*copy'), (cut(**OLD), 'damaged.*copy')])
def test_what_is_no_checkpoint_is_called_what_it_is(write, words, tmp_path):
    write(tmp_path / 'w.pkl')
    with pytest.raises(InputError, match=f'{re.escape(str(tmp_path))}/w.pkl: .*{words}') as end:
        load_model(CNN, tmp_path / 'w.pkl')
    assert len(str(end.value).splitlines()) == 1


def test_state_of_an_interrupted_run_is_no_checkpoint(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(colourization.Path, 'unlink', lambda *_, **__: None)  # which a last epoch does
        training(tmp_path)
    with pytest.raises(InputError, match='w.pkl.resume: it is what --resume goes on from.*without .resume'):
        load_model(UNet, tmp_path / 'w.pkl.resume')


# ---------------------------------------------------------------------------
# Networks that differ
# ---------------------------------------------------------------------------

def reordered(state, names):
    return OrderedDict((re.sub(r'^(\w+\.\d)', lambda start: names.get(start[1], start[1]), name), tensor)
                       for name, tensor in state.items())


@pytest.mark.parametrize('make', MODELS.values())
@pytest.mark.parametrize('names', [
    {f'{stage}.2': f'{stage}.1' for stage in ('downconv1', 'downconv2', 'upconv1', 'upconv2')},
    {f'{stage}.2': f'{stage}.1' for stage in ('downconv1', 'downconv2')},
    {'upconv1.0': 'upconv1.1', 'upconv2.0': 'upconv2.1'}])  # upsampling first
def test_layers_in_another_order_are_named(make, names, tmp_path):
    torch.save(reordered(network(make).state_dict(), names), tmp_path / 'w.pkl')
    words = f'{next(iter(names))}.*build the network as the handout does, layer by layer'
    with pytest.raises(InputError, match=f'w.pkl does not fit a {make.__name__} .*{words}'):
        load_model(make, tmp_path / 'w.pkl')


def test_dilated_filter_that_was_saved_spread_out_is_named(tmp_path):
    model = network(DUNet)
    state = model.state_dict()
    state['rfconv.0.weight'] = model.rfconv[0].spread_weight().detach()
    torch.save(state, tmp_path / 'w.pkl')
    with pytest.raises(InputError, match=r'not fit a DilatedUNet \(size mismatch for rfconv.0.weight'):
        load_model(DUNet, tmp_path / 'w.pkl')


def test_larger_filter_is_named(tmp_path):
    model = network()
    model.rfconv[0] = MyConv2d(8, 8, 5)
    torch.save(model.state_dict(), tmp_path / 'w.pkl')
    with pytest.raises(InputError, match=r'rfconv.0.weight.*\[8, 8, 5, 5\].*\[8, 8, 3, 3\]'):
        load_model(CNN, tmp_path / 'w.pkl')


@pytest.mark.parametrize('change, words', [
    (lambda state: state.pop('upconv1.2.bias'), '.*Missing.*upconv1.2.bias'),
    (lambda state: state.update(attention=torch.ones(2)), '.*Unexpected.*attention'),
    (lambda state: state.pop('downconv1.0.weight'), ': its downconv1.0.weight is missing'),
    (lambda state: state.update({'finalconv.bias': torch.ones(3)}), r'.*finalconv.bias.*\[3\].*\[24\]')])
def test_first_layer_that_differs_is_named(change, words, tmp_path):
    state = network().state_dict()
    change(state)
    torch.save(state, tmp_path / 'w.pkl')
    with pytest.raises(InputError, match=f'w.pkl ?{words}') as end:
        load_model(CNN, tmp_path / 'w.pkl')
    assert 'damaged' not in str(end.value)


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
    assert status == 1 and re.fullmatch('error: w.pkl .*colour_regression.py.*\n', line)


def test_three_outputs_may_be_three_colours(tmp_path, capsys):
    torch.save(network(CNN, 3, 4, 3).state_dict(), tmp_path / 'w.pkl')
    np.save(tmp_path / 'c.npy', COLOURS[:3])
    _, colours = load_trained('CNN', tmp_path / 'w.pkl', 7, tmp_path / 'c.npy')
    assert np.array_equal(colours, COLOURS[:3]) and capsys.readouterr().err == ''
    save_checkpoint(network(CNN, 3, 4, 3), tmp_path / 'w.pkl', COLOURS[:3])
    assert np.array_equal(load_trained('CNN', tmp_path / 'w.pkl', 7)[1], COLOURS[:3])


@pytest.mark.parametrize('save, words', [
    (save_checkpoint, 'is a CNN, .* colourization.py or activations.py --model CNN takes it'),
    (lambda model, path: torch.save(model.state_dict(), path), 'does not fit .* name its own model, or .*')])
def test_network_of_colourization_is_called_that(save, words, call, tmp_path):
    save(network(), tmp_path / 'w.pkl')
    status, line = call('colour_regression.py --checkpoint w.pkl')
    assert status == 1 and re.fullmatch(f'error: w.pkl {words}\n', line)


def test_broken_network_of_colour_regression_is_not_another_model(call, tmp_path):
    save_checkpoint(network(RegressionCNN, 3, 4), tmp_path / 'w.pkl')
    state = torch.load(tmp_path / 'w.pkl', weights_only=True)
    del state['rfconv.1.bias']
    torch.save(state, tmp_path / 'w.pkl')
    status, line = call('colour_regression.py --checkpoint w.pkl')
    assert status == 1 and 'w.pkl does not fit a RegressionCNN' in line and 'rfconv.1.bias' in line


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
    assert status == 1 and re.fullmatch('error: .*kmeans23_cat7.npy is missing.*\n', line)


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
    _, colours = load_trained(model, path, 7)
    assert len(colours) >= 16 and capsys.readouterr().err == ''


# ---------------------------------------------------------------------------
# Colours
# ---------------------------------------------------------------------------

@pytest.mark.parametrize('count, fits', [(1, False), (2, True), (256, True), (257, False)])
def test_colours_are_from_2_to_256(count, fits, tmp_path):
    colours = np.linspace(0, 1, 3 * count).reshape(count, 3)  # 0 and 1 themselves too
    np.save(tmp_path / 'c.npy', colours)
    with nullcontext() if fits else pytest.raises(InputError, match='K from 2 to 256'):
        assert np.array_equal(load_colours(tmp_path / 'c.npy'), colours.astype(np.float32))


@pytest.mark.parametrize('colours', [
    (255 * COLOURS).astype(np.uint8), (255 * COLOURS).astype(int), 255 * COLOURS,
    256 * COLOURS.astype(np.float64)])
def test_colours_from_0_to_255_are_called_that(colours, tmp_path):
    np.save(tmp_path / 'c.npy', colours)
    with pytest.raises(InputError, match='c.npy: its colours .* divide those from 0 to 255 by 256'):
        load_colours(tmp_path / 'c.npy')


@pytest.mark.parametrize('write', [
    lambda path: np.savetxt(path, COLOURS), lambda path: np.savetxt(path, COLOURS, delimiter=','),
    lambda path: Image.new('RGB', (8, 3)).save(path, 'PNG'), content(b''), content(pickle.dumps(COLOURS)),
    tensors(torch.from_numpy(COLOURS)), tensors(COLOURS, **OLD), zip_of,
    lambda path: np.savez(path.open('wb'), COLOURS)])
def test_other_formats_of_colours_say_which_one_is_needed(write, tmp_path):
    write(tmp_path / 'c.npy')
    with pytest.raises(InputError, match=r'c.npy: .*\(it is no NumPy array\): an .npy file with a float '
                                         r'array \[K, 3\] in \[0, 1\] is needed \(--kmeans makes one\)$'):
        load_colours(tmp_path / 'c.npy')


def test_pointer_instead_of_colours_is_called_that(tmp_path):
    (tmp_path / 'c.npy').write_bytes(POINTER)
    with pytest.raises(InputError, match='c.npy: it is a Git LFS pointer'):
        load_colours(tmp_path / 'c.npy')
