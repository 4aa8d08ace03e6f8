"""Checkpoints: what is saved, what others save, what is none; the colours of a network; what stays."""

import io
import os
import re
import zipfile
from collections import OrderedDict
from contextlib import nullcontext, suppress
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import colourization
from colour_regression import RegressionCNN
from colourization import (CNN, MODELS, DUNet, UNet, check_checkpoint, find_shipped, load_model, load_trained,
                           parse_args, read_checkpoint, save_checkpoint)
from conftest import ROOT, fails, training
from files import HOSTILE_PICKLES, OLD, OPENS, Runs, checkpoint_2018, npy, others_than, saved, torch_zip
from load_data import InputError

pytestmark = pytest.mark.filterwarnings('ignore:.*torch.jit')
COLOURS = np.random.default_rng(0).random((24, 3), dtype=np.float32)
GREY = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def network(make=CNN, *sizes):
    """Its weights are the same in half precision, of either kind."""
    torch.manual_seed(0)
    return make(*sizes or (3, 4, 24)).half().bfloat16().float().eval()


@pytest.mark.parametrize('make', MODELS.values())
def test_checkpoint_is_a_plain_state_dict_that_tells_its_size_and_colours(make, tmp_path):
    model = make(5, 8, 24).to(memory_format=torch.channels_last)
    model(torch.rand(2, 1, 32, 32))  # in training mode, so that running statistics differ
    for given in None, COLOURS:
        save_checkpoint(model, tmp_path / 'w.pkl', given)
        state = torch.load(tmp_path / 'w.pkl', weights_only=True)
        assert state.keys() == model.state_dict().keys()
        assert all(t.is_contiguous() and t.device.type == 'cpu' for t in state.values())
        loaded, colours = load_model(make, tmp_path / 'w.pkl')
        assert not loaded.training and (colours is None if given is None else np.array_equal(colours, given))
        for name, tensor in loaded.state_dict().items():
            assert 'num_batches_tracked' in name or torch.equal(tensor, model.state_dict()[name])
        make(5, 8, 24).load_state_dict(state)  # for users who do it by hand


@pytest.mark.parametrize('make', MODELS.values())
def test_checkpoint_of_2018_loads_on_the_cpu(make, tmp_path):
    model = network(make)
    state = OrderedDict((name, torch.rand_like(t) + 0.1) for name, t in model.state_dict().items()
                        if 'num_batches_tracked' not in name)
    model.load_state_dict(state, strict=False)
    (tmp_path / 'gpu.pkl').write_bytes(checkpoint_2018(state))
    assert torch.equal(load_model(make, tmp_path / 'gpu.pkl')[0](GREY), model(GREY))


def compiled_inside(model):
    model.downconv1 = torch.compile(model.downconv1)
    return model.state_dict()


def prefixed(prefix):
    return lambda model: {'state_dict': {prefix + name: t for name, t in model.state_dict().items()}}


def in_precision(dtype):
    return lambda model: {name: t.to(dtype) if t.is_floating_point() else t
                          for name, t in model.state_dict().items()}


class Hidden:
    """Comes back from a pickle as a state dict whose methods are hidden by numbers."""

    def __init__(self, weights):
        self.weights = weights

    def __reduce__(self):
        return OrderedDict, (), dict.fromkeys(['items', 'get', 'keys', 'values'], 5), None, iter(
            self.weights.items())


def with_hidden_methods(model):
    state = model.state_dict()
    state['finalconv.bias'].isfinite = state['finalconv.bias'].element_size = 5
    return Hidden({'model': Hidden(state)})


@pytest.mark.parametrize('options', [{}, OLD])
@pytest.mark.parametrize('make', [
    lambda model: torch.compile(nn.DataParallel(model)).state_dict(), compiled_inside,
    lambda model: torch.optim.swa_utils.AveragedModel(model).state_dict(),
    lambda model: {'epoch': 3, 'optimizer': torch.optim.Adam(model.parameters()).state_dict(),
                   'net': nn.DataParallel(model).state_dict()},
    lambda model: {'epoch': np.int64(5), 'loss': np.float64(0.25), 'best': np.float32(1),
                   'done': np.bool_(True), 'model_state_dict': model.state_dict()},
    lambda model: model.state_dict() | dict.fromkeys(  # what thop counts
        ['total_ops', 'total_params', 'rfconv.total_ops', 'downconv1.0.total_params'],
        torch.zeros(1, dtype=torch.float64)),
    *map(prefixed, ['model.', 'net.', 'model.module.', 'module.', 'generator.unet.']),
    *map(in_precision, [torch.float16, torch.bfloat16, torch.float64]), with_hidden_methods])
def test_weights_are_found_in_what_others_save(make, options, tmp_path):
    model = network()
    scores = model(GREY)
    torch.save(make(model), tmp_path / 'w.pkl', **options)
    loaded, _ = load_model(CNN, tmp_path / 'w.pkl')
    assert torch.equal(loaded(GREY), scores) and loaded.finalconv.bias.dtype == torch.float32


def test_wrapped_weights_of_ours_keep_their_notes(tmp_path):
    save_checkpoint(network(UNet), tmp_path / 'w.pkl', COLOURS)
    torch.save({'state_dict': torch.load(tmp_path / 'w.pkl', weights_only=True)}, tmp_path / 'w.pkl')
    _, model, colours = read_checkpoint(tmp_path / 'w.pkl')
    assert model == 'UNet' and np.array_equal(colours, COLOURS)


def test_state_of_an_interrupted_run_has_weights_too(tmp_path):
    training(tmp_path, stop_after=4)
    state = torch.load(tmp_path / 'w.pkl.resume', weights_only=True)
    weights = load_model(UNet, tmp_path / 'w.pkl.resume')[0].state_dict()
    assert torch.equal(weights['finalconv.weight'], state['model']['finalconv.weight'])


def test_weights_that_share_memory_in_a_file_have_their_own_in_a_network(tmp_path):
    state = network().state_dict()
    state['rfconv.0.bias'] = state['downconv2.0.bias']
    torch.save(state, tmp_path / 'w.pkl')
    model, _ = load_model(CNN, tmp_path / 'w.pkl')
    assert model.rfconv[0].bias.data_ptr() != model.downconv2[0].bias.data_ptr()


def test_mmap_set_by_the_caller_is_no_obstacle(tmp_path):
    config = pytest.importorskip('torch.utils.serialization', reason='an older torch has no settings').config
    save_checkpoint(network(), tmp_path / 'w.pkl')
    with config.patch({'load.mmap': True}):
        assert torch.equal(load_model(CNN, tmp_path / 'w.pkl')[0](GREY), network()(GREY))


# ---- What is no checkpoint, or of another network ----


def with_notes(notes):
    state = network().state_dict()
    state._metadata = notes
    return state


def floats(change):
    return {name: change(t) if t.is_floating_point() else t for name, t in network().state_dict().items()}


def bad_checkpoints():
    """What torch.save is given, or bytes; and words that the line has."""
    for names in ({'downconv1.2': 'downconv1.1', 'downconv2.2': 'downconv2.1'},  # batch norm before pooling
                  {'upconv1.0': 'upconv1.1', 'upconv2.0': 'upconv2.1'}):  # upsampling first
        renamed = {re.sub(r'^\w+\.\d', lambda start, names=names: names.get(start[0], start[0]), name): tensor
                   for name, tensor in network().state_dict().items()}
        yield f'other order, {names}', renamed, f'CNN: Missing.*{next(iter(names))}'
    state = network().state_dict()
    for name, whole in ('new', saved(state)), ('old', saved(state, **OLD)):
        yield from ((f'{name}, cut at {end}', whole[:end], 'it starts with ') for end in (10, 2000, -1))
    yield from ((name, content, 'it starts with ') for name, content in others_than('checkpoint').items())
    yield 'no storage', torch_zip(zipfile.ZipFile(io.BytesIO(saved(state))).read('archive/data.pkl')), ''
    yield 'scripted', torch_zip(*[HOSTILE_PICKLES['INST']] * 2), ''
    yield 'lists in lists', b'\x80\x02' + b']' * 10**5 + b'a' * (10**5 - 1) + b'.', ''
    yield from ((f'{value}', value, '') for value in (None, {}, torch.zeros(3)))
    yield 'others', {'a.weight': torch.ones(2)}, 'no finalconv.weight'
    yield 'nested twice', {'a': {'state_dict': state}}, 'no finalconv.weight'
    yield 'nested in a list', {'model': [state]}, 'no finalconv.weight'
    yield 'array of numpy beside', {'lr': np.zeros(2), 'model': state}, ''
    yield 'number among them', state | {'epoch': 3}, ''
    yield 'number as name', state | {5: torch.zeros(1)}, 'Unexpected.*5'
    for missing in 'upconv1.2.bias', 'downconv1.0.weight':
        yield f'no {missing}', {name: t for name, t in state.items() if name != missing}, missing
    yield 'one more', state | {'attention': torch.ones(2)}, 'Unexpected.*attention'
    yield 'complex', floats(lambda t: t + 1j), 'finite floats'
    yield 'one NaN', floats(lambda t: torch.where(t == t.max(), np.nan, t)), 'finite floats'
    yield 'infinite in float32', floats(lambda t: t.double() + 1e300), 'finite floats'
    yield 'too large to add', floats(lambda t: torch.full_like(t, 3e38)), 'outputs are not finite'
    yield 'negative variance', floats(lambda t: -1 - t.abs()), 'outputs are not finite'
    yield 'on no device', floats(lambda t: t.to('meta')), ''
    yield 'even kernels', {name: t[..., :2, :2] if t.ndim == 4 else t for name, t in state.items()}, 'outputs'
    for name, tensor in (
            ('finalconv.bias', torch.full((24,), np.inf)), ('finalconv.bias', torch.zeros(24).to_sparse()),
            ('downconv1.0.weight', torch.zeros(0, 1, 3, 3)), ('downconv1.0.weight', torch.tensor(1.)),
            ('downconv1.0.weight', torch.zeros(4, 1, 2, 2)), ('rfconv.0.weight', torch.zeros(8, 8, 5, 5)),
            ('downconv1.0.weight', torch.zeros(10**5, 1, 3, 3)),  # a network of 720 GB
            ('more', torch.zeros(1).expand(2**38)), ('prior', torch.zeros(1).expand(10**10, 24)),
            ('prior', torch.zeros(766, 24).index_fill(0, torch.tensor([0]), np.nan)),
            *(('prior', torch.ones(shape)) for shape in ((), (7,), (7, 4), (7, 24, 1)))):
        yield f'{name} {list(tensor.shape)} {tensor.layout}', state | {name: tensor}, ''
    for notes in 5, {'': None}, *({'': {'colours': colours}} for colours in (
            COLOURS[:20].tolist(), [[10**400, 0, 0]] * 24, [[2., 0., 0.]] * 24, 'red', [[1, 2], 3])):
        yield f'notes {str(notes)[:40]}', with_notes(notes), ''
    model = network()
    nn.utils.parametrizations.weight_norm(model.finalconv)
    yield 'parametrization', model.state_dict(), 'finalconv.weight'


def hostile_checkpoints():
    """Each makes a file `victim` if torch may run what is in it."""
    model, noted = network(), network().state_dict()
    noted._metadata['']['model'] = model.more = Runs(os.system, 'echo > victim')
    shell = HOSTILE_PICKLES['REDUCE']
    yield from ((form, torch_zip(content)) for form, content in HOSTILE_PICKLES.items())
    yield 'first pickle', shell
    for age, options in ('new', {}), ('old', OLD):
        yield f'module, {age}', saved(model, **options)
        yield f'notes, {age}', saved(noted, **options)
        yield f'among weights, {age}', saved(network().state_dict() | {'w': Runs(eval, OPENS)}, **options)
    yield 'name of a storage', torch_zip(shell[:-1] + b'Q.')


HOSTILE = {f'hostile: {name}': content for name, content in hostile_checkpoints()}
BAD_CHECKPOINTS = {name: rest for name, *rest in bad_checkpoints()} | {
    name: (content, '') for name, content in HOSTILE.items()}


@pytest.mark.parametrize('kind', BAD_CHECKPOINTS)
def test_what_is_no_checkpoint_is_told_what_is_wanted_and_runs_nothing(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, words = BAD_CHECKPOINTS[kind]
    Path('w.pkl').write_bytes(content if isinstance(content, bytes) else saved(content))
    with pytest.raises(InputError) as refusal:
        load_model(CNN, 'w.pkl')
    line = str(refusal.value)
    assert line.isprintable() and len(line) < 320 and 'alloc' not in line and re.fullmatch(
        fr'w.pkl: no weights of this assignment that torch.save wrote \(.*{words}.*\): save '
        r'model.state_dict\(\), or download the file itself', line)
    assert [path.name for path in tmp_path.iterdir()] == ['w.pkl']
    if kind in HOSTILE:  # it would have run otherwise
        with suppress(Exception):  # whatever it is no state dict for
            torch.load('w.pkl', weights_only=False)
        assert Path('victim').exists()


@pytest.mark.parametrize('saved_as, asked', [*permutations([
    CNN, UNet, DUNet, lambda kernel, num_filters, _: RegressionCNN(kernel, num_filters)], 2)])
def test_checkpoint_of_another_model_is_refused_by_name(saved_as, asked, tmp_path):
    models = [make(3, 8, 24) for make in (saved_as, asked)]
    save_checkpoint(models[0], tmp_path / 'w.pkl')
    with pytest.raises(InputError, match='w.pkl is a {}, not a {}: .*colour_regression.py.* --model'.format(
            *(type(model).__name__ for model in models))):
        load_model(asked, tmp_path / 'w.pkl')


def test_name_of_another_model_may_be_long(tmp_path):
    (tmp_path / 'w.pkl').write_bytes(saved(with_notes({'': {'model': 'x' * 1000}})))
    with pytest.raises(InputError, match=f'w.pkl is a {"x" * 60}, not a CNN'):
        load_model(CNN, tmp_path / 'w.pkl')


def test_checkpoint_of_other_sizes_is_refused(tmp_path):
    save_checkpoint(network(CNN, 3, 8, 24), tmp_path / 'w.pkl')
    for sizes, words in (({'num_filters': 16}, '-f 8.*-f 16'), ({'kernel': 5}, '-k 3.*-k 5')):
        with pytest.raises(InputError, match=words):
            load_model(CNN, tmp_path / 'w.pkl', **sizes)
    load_model(CNN, tmp_path / 'w.pkl', kernel=3, num_filters=8)


@pytest.mark.parametrize('command, sizes, words', [
    ('colourization.py -m CNN --valid', (RegressionCNN, 3, 4), 'kmeans3_cat7.npy: no file of colours'),
    ('colour_regression.py', (CNN, 3, 4, 24), 'RegressionCNN: size mismatch')])
def test_regression_without_its_name_is_told_apart(command, sizes, words, run_script, tmp_path):
    torch.save(network(*sizes).state_dict(), tmp_path / 'w.pkl')
    assert fails(run_script(*command.split(), '--checkpoint', 'w.pkl'), 1, words)


# ---- The colours of a checkpoint ----

SHIPPED = {category: np.load(ROOT / f'colour/colour_kmeans24_cat{category}.npy') for category in ('7', 'all')}
OTHER = 'trained with other colours than those of c.npy: leave out -c'


@pytest.mark.parametrize('outputs, named, flags, expected', [
    (24, None, '', SHIPPED['7']), (24, None, '--category all', SHIPPED['all']),  # with a warning
    (23, None, '', 'kmeans23_cat7.npy: no file of colours'), (24, None, '-c c.npy', COLOURS),
    (3, None, '-c 3.npy', COLOURS[:3]), (3, None, '-c c.npy', OTHER), (24, COLOURS, '', COLOURS),
    (24, COLOURS, '-c c.npy', COLOURS), (24, COLOURS[::-1], '-c c.npy', OTHER)])
def test_colours_are_those_that_the_network_was_trained_with(outputs, named, flags, expected, tmp_path,
                                                             monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save('c.npy', COLOURS)
    np.save('3.npy', COLOURS[:3])
    save_checkpoint(network(CNN, 3, 4, outputs), Path('w.pkl'), named)
    args = parse_args(['-m', 'CNN', '--valid', '--checkpoint', 'w.pkl', *flags.split()])
    is_error = isinstance(expected, str)
    with pytest.raises(InputError, match=expected) if is_error else nullcontext():
        assert np.array_equal(load_trained(args)[1], expected)
    warning, is_told = capsys.readouterr().err, is_error or named is not None or 'npy' in flags
    assert warning == '' if is_told else re.fullmatch(
        r'warning: w.pkl does not say which colours it was trained with: those of .*kmeans24_cat(7|all).npy '
        r'are used; name its own with -c\n', warning)


@pytest.mark.parametrize('flags, colours', [
    (['-c', 'c.npy'], COLOURS), (['--category', 'all'], SHIPPED['all'])])
def test_training_saves_its_colours(flags, colours, mixed, run_script, tmp_path):
    np.save(tmp_path / 'c.npy', COLOURS)
    run_script('colourization.py', '-m', 'CNN', '-f', 1, '-e', 1, '--checkpoint', 'w.pkl', *flags)
    assert np.array_equal(read_checkpoint(tmp_path / 'w.pkl')[2], colours)


def test_files_of_the_user_come_before_the_shipped_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = 'colour/colour_kmeans24_cat7.npy'
    assert find_shipped(name) == ROOT / name
    (tmp_path / 'colour').mkdir()
    (tmp_path / name).write_bytes(b'mine')
    assert find_shipped(name).read_bytes() == b'mine'


NAMED = saved(with_notes({'': {'model': 'CNN'}}))


@pytest.mark.parametrize('name, content, make, words', [
    ('w.pkl', b'', UNet, None),  # as mktemp makes one
    ('w.pkl', saved(network().state_dict()), UNet, None), ('w.pkl', NAMED, CNN, None),
    *(('w.pkl', NAMED, make, f'is not replaced by the training of a {make.__name__}: .* add --valid')
      for make in (UNet, DUNet, RegressionCNN)),
    ('w.pkl', npy(COLOURS), UNet, 'w.pkl is not replaced'), ('weights/w.pkl', NAMED, CNN, 'is not replaced'),
    ('w.pkl.resume', b'', CNN, 'w.pkl.resume is of a run that was interrupted, or is still .* --resume')])
def test_training_replaces_networks_of_its_kind_only(name, content, make, words, tmp_path, monkeypatch,
                                                     capsys):
    monkeypatch.setattr(colourization, 'HERE', tmp_path)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) if words else nullcontext():
        check_checkpoint(tmp_path / name.removesuffix('.resume'), make, False, 'add --valid')
    assert path.read_bytes() == content
    assert ('will be replaced' in capsys.readouterr().err) == (words is None and content != b'')
