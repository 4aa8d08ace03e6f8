"""Where people run it: notebooks, their own torch, Windows, other programs, and files of those."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.utils import prune

import colourization
import load_data
from colourization import CNN, DUNet, UNet, colourize, load_model, multiplies_bfloat16, run, save_checkpoint
from conftest import ROOT, fails, training
from load_data import InputError, check_writable, whole_file

GREY = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
NETWORKS = [CNN, UNet, DUNet]


def network(make=CNN):
    torch.manual_seed(0)
    return make(3, 4, 24).eval()


# ---- Notebooks, torch, Windows ----------------------------------------------------------------------------


def test_backend_of_a_notebook_that_is_not_installed_is_no_obstacle(tmp_path):
    """The value that every kernel sets, in a process that cannot import it; whoever imports us keeps it.

    Nor are settings of matplotlib that need a program which may not be there, LaTeX.
    """
    (tmp_path / 'matplotlibrc').write_text('text.usetex: True\n')
    code = ('import sys; sys.modules["matplotlib_inline"] = None\n'
            f'sys.path.insert(0, {str(ROOT)!r})\n'
            'import os, colourization\n'
            'colourization.draw_pictures([("a", colourization.np.ones((8, 8, 3)))], "a.png", "title")\n'
            'print(os.environ["MPLBACKEND"])')
    backend = 'module://matplotlib_inline.backend_inline'
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True,
                          env=os.environ | {'MPLBACKEND': backend})
    assert (done.stdout, done.stderr) == (backend + '\n', '')
    assert (tmp_path / 'a.png').stat().st_size > 1000


def test_backend_of_who_imports_us_stays(tmp_path):
    code = (f'import sys; sys.path.insert(0, {str(ROOT)!r})\n'
            'import colourization; colourization.import_matplotlib()\n'
            'import matplotlib; print(matplotlib.get_backend())')
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=os.environ | {'MPLBACKEND': 'svg'},
                          capture_output=True, text=True)
    assert done.stdout == 'svg\n', done.stderr


def test_torch_that_cannot_tell_what_the_processor_does_trains_in_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, 'get_capabilities', raising=False)
    assert not multiplies_bfloat16(torch.device('cpu'))


@pytest.mark.parametrize('script', ['colourization', 'colour_regression', 'activations'])
def test_scripts_find_each_other_without_their_folder_on_the_path(script, monkeypatch):
    """Which `python -P` and `-I` leave out, and Windows' embeddable Python."""
    monkeypatch.setattr(sys, 'path', [folder for folder in sys.path if Path(folder).resolve() != ROOT])
    for name in ('colourization', 'colour_regression', 'activations', 'load_data'):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert runpy.run_path(str(ROOT / f'{script}.py'), run_name='other')['main']


def test_file_that_another_program_has_open_for_a_moment_is_written(tmp_path, monkeypatch):
    """Windows refuses to replace it."""
    real, tries = os.replace, []

    def replace(old, new):
        tries.append(new)
        if len(tries) < 3:
            raise PermissionError(13, 'Permission denied')
        real(old, new)
    monkeypatch.setattr(os, 'replace', replace)
    monkeypatch.setattr(load_data.time, 'sleep', lambda seconds: None)
    with whole_file(tmp_path / 'a') as file:
        file.write(b'new')
    assert (tmp_path / 'a').read_bytes() == b'new' and len(tries) == 3


def test_file_that_stays_open_is_told(tmp_path, monkeypatch):
    slept = []
    def refuse(old, new):
        raise PermissionError(13, 'Permission denied')
    monkeypatch.setattr(os, 'replace', refuse)
    monkeypatch.setattr(load_data.time, 'sleep', slept.append)
    with pytest.raises(InputError, match='a cannot be written .Permission denied.: choose'):
        with whole_file(tmp_path / 'a') as file:
            file.write(b'new')
    assert not list(tmp_path.iterdir()) and sum(slept) == pytest.approx(1)


@pytest.mark.parametrize('name', ['history_CNN.csv', 'training_curve_CNN.png', 'eval_CNN_epoch01.png'])
def test_table_or_picture_that_cannot_be_written_is_a_warning(name, tmp_path, monkeypatch, run_script):
    real = load_data.replace

    def replace(old, new):
        if new.name == name:
            raise PermissionError(13, 'Permission denied')
        real(old, new)
    monkeypatch.setattr(load_data, 'replace', replace)
    done = run_script('colourization.py', '-m', 'CNN', '-f', 2, '-e', 2, '--data', 'sample', '--plot',
                      '--checkpoint', 'w.pkl')
    assert done.returncode == 0 and 'Epoch [2/2], Val Loss' in done.stdout
    assert all(line.startswith('warning: ') and f'{name} cannot be written' in line
               for line in done.stderr.splitlines()) and done.stderr
    assert (tmp_path / 'w.pkl').exists() and (tmp_path / 'outputs/eval_CNN.png').exists()


def test_weights_and_state_are_saved_before_tables(tmp_path, monkeypatch):
    """So that a table that ends the process costs nothing."""
    monkeypatch.setattr(colourization, 'save_history', lambda *_: (_ for _ in ()).throw(SystemExit))
    with pytest.raises(SystemExit):
        training(tmp_path)
    assert {'w.pkl', 'w.pkl.resume'} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize('number', [22, 32])
def test_closed_pipe_of_any_system_ends_without_a_word(number, monkeypatch, capsys):
    def main():
        raise OSError(number, 'the pipe is closed')
    monkeypatch.setattr(os, 'dup2', lambda *_: None)
    monkeypatch.setattr(sys, 'stdout', open(os.devnull, 'w'))
    with pytest.raises(SystemExit) as end:
        run(main)
    assert end.value.code == 1 and capsys.readouterr().err == ''


# ---- What a container tells -------------------------------------------------------------------------------


def threads_of_a_busy_machine(monkeypatch, quota):
    """Eight, and those that are chosen instead, where three of eight cores are at work."""
    monkeypatch.setattr(colourization, 'QUOTA', quota)
    monkeypatch.setattr(colourization, 'START', (0, None))
    monkeypatch.setattr(os, 'cpu_count', lambda: 8)
    monkeypatch.setattr(os, 'getloadavg', lambda: (3, 0, 0), raising=False)
    chosen = [8]
    monkeypatch.setattr(torch, 'get_num_threads', lambda: chosen[-1])
    monkeypatch.setattr(torch, 'set_num_threads', chosen.append)
    colourization.choose_threads()
    return chosen


@pytest.mark.parametrize('content', [
    b'', b'max', b'max 100000', b'100000 100000 1', b'100000 0', b'-1 100000', b'100000 -1', b'nan 1',
    b'\xff\xfe', None])
def test_quota_that_cannot_be_understood_is_ignored(content, tmp_path, monkeypatch):
    path = tmp_path / 'cpu.max'
    path.mkdir() if content is None else path.write_bytes(content)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    assert threads_of_a_busy_machine(monkeypatch, path) == [8, 5]


@pytest.mark.parametrize('value, expected', [('', 5), ('abc', 5), ('0', 5), ('-2', 5), ('1.5', 5),
                                             (' 8 ', 8), ('8', 8)])
def test_only_a_number_of_threads_is_one(value, expected, monkeypatch, tmp_path):
    monkeypatch.setenv('OMP_NUM_THREADS', value)
    assert threads_of_a_busy_machine(monkeypatch, tmp_path / 'none')[-1] == expected


def test_read_only_file_system_names_the_file_and_not_a_hidden_one(tmp_path, monkeypatch):
    def refuse(*arguments, **_):
        raise OSError(30, 'Read-only file system', str(arguments[0]))
    monkeypatch.setattr(load_data, 'open', refuse, raising=False)
    monkeypatch.setattr(load_data.Path, 'unlink', refuse)
    with pytest.raises(InputError, match='a.png cannot be written .Read-only file system.: choose'):
        check_writable(tmp_path / 'a.png')


# ---- Called by others -------------------------------------------------------------------------------------


def colours():
    return np.random.default_rng(0).random((24, 3), dtype=np.float32)


@pytest.mark.parametrize('temperature', [0, 1])
def test_default_dtype_of_the_caller_changes_nothing(temperature, tmp_path):
    save_checkpoint(network(UNet), tmp_path / 'w.pkl', colours())
    results = []
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            model, its_colours = load_model(UNet, tmp_path / 'w.pkl')
            results.append((colourize(GREY[0, 0].numpy(), model, its_colours, temperature),
                            colourization.architecture(model)))
        finally:
            torch.set_default_dtype(torch.float32)
    assert np.array_equal(results[0][0], results[1][0]) and results[0][1] == results[1][1]


@pytest.mark.parametrize('temperature', [0, 1])
def test_autocast_of_the_caller_is_no_obstacle(temperature):
    model = network(UNet)
    expected = colourize(GREY[0, 0].numpy(), model, colours(), temperature)
    with torch.autocast('cpu', torch.bfloat16):
        result = colourize(GREY[0, 0].numpy(), model, colours(), temperature)
        assert torch.is_autocast_enabled('cpu')
    assert result.dtype == np.float32
    if temperature:  # the likeliest of random scores may be another one
        assert result == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize('grey', [
    np.zeros((8, 8), np.uint8), np.full((8, 8), 128.0), np.full((8, 8), np.nan), np.full((8, 8), -0.1),
    np.zeros((8, 8, 3)), np.zeros((0, 8)), [[1, 0]]])
def test_what_is_no_grey_picture_is_refused_by_colourize(grey):
    with pytest.raises(ValueError, match=r'\[H, W\] of floats in \[0, 1\]: divide bytes by 255'):
        colourize(grey, network(), colours())


@pytest.mark.parametrize('make', NETWORKS)
@pytest.mark.parametrize('sides', [(30, 32), (32, 33), (30, 33), (2, 4)])
def test_sides_that_cannot_be_halved_twice_are_refused(make, sides):
    with pytest.raises(ValueError, match=f'multiples of 4, not {sides[0]} and {sides[1]}'):
        network(make)(torch.zeros(1, 1, *sides))


@pytest.mark.parametrize('make', NETWORKS)
@pytest.mark.filterwarnings('ignore:.*torch.jit:DeprecationWarning')
def test_networks_can_be_scripted(make):
    model = network(make)
    assert torch.equal(torch.jit.script(model)(GREY), model(GREY))


# ---- Other people's files ---------------------------------------------------------------------------------


def test_training_does_not_replace_shipped_weights(run_script, monkeypatch, tmp_path):
    for folder in ('weights', 'colour'):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    before = (tmp_path / 'weights/cnn_k3_f16.pkl').read_bytes()
    monkeypatch.setattr('colourization.HERE', tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['c', '-m', 'CNN', '-f', '2', '-e', '1', '--data', 'sample',
                                      '--checkpoint', 'weights/cnn_k3_f16.pkl'])
    with pytest.raises(InputError, match='not replaced by the training of a CNN: .* add --valid'):
        colourization.main()
    assert (tmp_path / 'weights/cnn_k3_f16.pkl').read_bytes() == before
    (tmp_path / 'weights/cnn_k3_f16.pkl').unlink()
    (xs, ys), test = load_data.load_sample()
    monkeypatch.setattr(load_data, 'load_sample', lambda: ((xs[:50], ys[:50]), test))
    colourization.main()
    assert torch.load('weights/cnn_k3_f16.pkl', weights_only=True)['downconv1.0.weight'].shape[0] == 2


NUMBERS = {'epoch': np.int64(5), 'loss': np.float64(0.25), 'best': np.float32(1), 'done': np.bool_(True)}


@pytest.mark.parametrize('options', [{}, {'_use_new_zipfile_serialization': False}])
def test_numbers_of_numpy_beside_the_weights_do_no_harm(options, tmp_path):
    model = network()
    torch.save({**NUMBERS, 'model_state_dict': model.state_dict()}, tmp_path / 'w.pkl', **options)
    assert torch.equal(load_model(CNN, tmp_path / 'w.pkl')[0](GREY), model(GREY))


@pytest.mark.parametrize('prefix', ['model.', 'net.', 'model.module.', 'module.', 'generator.unet.'])
def test_prefix_of_all_names_is_left_out(prefix, tmp_path):
    model = network()
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save({'state_dict': state}, tmp_path / 'w.pkl')
    assert torch.equal(load_model(CNN, tmp_path / 'w.pkl')[0](GREY), model(GREY))


def test_counters_of_thop_are_left_out(tmp_path):
    model = network()
    counters = {name: torch.zeros(1, dtype=torch.float64) for name in (
        'total_ops', 'total_params', 'rfconv.total_ops', 'downconv1.0.total_params')}
    torch.save(model.state_dict() | counters, tmp_path / 'w.pkl')
    assert torch.equal(load_model(CNN, tmp_path / 'w.pkl')[0](GREY), model(GREY))


@pytest.mark.parametrize('parametrize', [
    nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm,
    pytest.param(nn.utils.weight_norm, marks=pytest.mark.filterwarnings('ignore:.*weight_norm')),
    nn.utils.spectral_norm, lambda layer: prune.l1_unstructured(layer, 'weight', 0.5)])
@pytest.mark.parametrize('layer', ['finalconv', 'rfconv'])
def test_parametrisations_have_to_be_removed_before_saving(parametrize, layer, tmp_path):
    model = network()
    parametrize(model.finalconv if layer == 'finalconv' else model.rfconv[0])
    torch.save(model.state_dict(), tmp_path / 'w.pkl')
    with pytest.raises(InputError, match='w.pkl: no weights of this assignment'):
        load_model(CNN, tmp_path / 'w.pkl')


def test_mmap_set_by_the_caller_is_no_obstacle(tmp_path):
    config = pytest.importorskip('torch.utils.serialization', reason='an older torch has no settings').config
    save_checkpoint(network(), tmp_path / 'w.pkl')
    before, config.load.mmap = config.load.mmap, True
    try:
        assert torch.equal(load_model(CNN, tmp_path / 'w.pkl')[0](GREY), network()(GREY))
    finally:
        config.load.mmap = before


def test_second_start_is_told_that_the_first_may_be_going_on(run_script, tmp_path):
    (tmp_path / 'w.pkl.resume').write_bytes(b'')
    done = run_script('colourization.py', '-m', 'CNN', '--data', 'sample', '--checkpoint', 'w.pkl')
    assert fails(done, 1, 'w.pkl.resume', 'interrupted, or is still going on', '--resume')


def test_loss_above_that_of_guessing_is_warned_of_after_training(run_script, tmp_path):
    done = run_script('colourization.py', '-m', 'CNN', '-f', 2, '-e', 1, '-l', 10, '--data', 'sample')
    warning, = done.stderr.splitlines()
    assert done.returncode == 0 and 'ln 24 = 3.1781: try a smaller --learn_rate' in warning
    assert json.loads((tmp_path / 'outputs/metrics_CNN.json').read_text('utf-8'))['val_loss'] > np.log(24)


def test_without_a_network_no_empty_folder_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(load_data, '__file__', str(tmp_path / 'load_data.py'))
    monkeypatch.setattr(load_data, 'MIRRORS', ['http://127.0.0.1:1/cifar-10-python.tar.gz'])
    with pytest.raises(InputError, match='could not be fetched'):
        load_data.load_cifar10()
    assert not list(tmp_path.iterdir())
    (tmp_path / 'data').mkdir()
    with pytest.raises(InputError, match='could not be fetched'):
        load_data.load_cifar10()
    assert (tmp_path / 'data').is_dir()


def test_largest_size_of_a_photograph_is_bounded(run_script, tmp_path):
    Image.new('L', (8, 8)).save(tmp_path / 'a.png')
    done = run_script('colourization.py', '--image', 'a.png', '--image_size', 1025)
    assert fails(done, 2, 'from 4 to 1024')
