"""Where people run it: notebooks, their own torch, Windows, other programs, and files of those."""

import errno
import importlib.metadata
import io
import json
import os
import platform
import runpy
import shutil
import subprocess
import sys
import venv
from http.client import HTTPException
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from PIL import Image
from torch import nn
from torch.nn.utils import prune

import colour_regression
import colourization
import load_data
from colourization import CNN, DUNet, UNet, colourize, load_model, multiplies_bfloat16, run, save_checkpoint
from conftest import ROOT, fails, training, unix_only
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
    monkeypatch.setattr(load_data.shutil, 'copyfile', refuse)
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


# ---- Streams, folders and file systems --------------------------------------------------------------------


def stream(file):
    """What Python makes of an opened file for its standard streams, without a buffer as with `python -u`."""
    return io.TextIOWrapper(io.FileIO(file, 'w'), write_through=True)


@unix_only
def test_epoch_is_kept_before_it_is_printed(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, 'stdout', stream('/dev/full'))
        with pytest.raises(InputError, match='standard output cannot be written .No space left on device'):
            training(tmp_path, epochs=2)
    state = torch.load(tmp_path / 'w.pkl.resume', weights_only=False)
    weights = torch.load(tmp_path / 'w.pkl', weights_only=True)
    assert all(torch.equal(weights[name], tensor) for name, tensor in state['model'].items())
    assert (tmp_path / 'history_UNet.csv').read_text('utf-8').count('\n') == 2
    (tmp_path / 'whole').mkdir()
    whole, resumed = training(tmp_path / 'whole'), training(tmp_path, resume=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@unix_only
@pytest.mark.parametrize('flag', ['--summary', '--help'])
def test_full_disk_behind_standard_output_ends_in_one_line(flag, monkeypatch):
    monkeypatch.setattr(sys, 'stdout', stream('/dev/full'))
    monkeypatch.setattr(sys, 'argv', ['colourization.py', '--model', 'CNN', flag])
    with pytest.raises(SystemExit, match='error: standard output cannot be written .No space left on device'):
        run(colourization.main)


@pytest.mark.parametrize('error', [errno.EPIPE, errno.EINVAL])  # the latter on Windows
def test_closed_pipe_ends_a_training_without_a_word(error, tmp_path, monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, 'stdout', stream(writer))
    if error == errno.EINVAL:
        monkeypatch.setattr(sys.stdout, 'write', lambda _: (_ for _ in ()).throw(OSError(error, 'Invalid')))
    with pytest.raises(SystemExit) as end:
        run(lambda: training(tmp_path))
    assert end.value.code == 1 and capsys.readouterr().err == ''
    assert (tmp_path / 'w.pkl.resume').exists()


@unix_only
def test_warning_that_cannot_be_written_ends_nothing(monkeypatch):
    monkeypatch.setattr(sys, 'stderr', stream('/dev/full'))
    assert colourization.choose_device(gpu=not torch.accelerator.is_available()).type == 'cpu'
    with colourization.only_warn():
        raise InputError('no room for a table')


@unix_only
def test_training_outlives_its_folder(tmp_path, monkeypatch):
    """As where an old folder of a scratch disk is cleaned; what it has to keep goes into a new one."""
    real, here = colourization.save_history, tmp_path / 'here'

    def remove_folder(history, path):
        if len(history) == 1:
            shutil.rmtree(here)
        real(history, path)
    monkeypatch.setattr(colourization, 'save_history', remove_folder)
    here.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(FileNotFoundError):  # the helper looks into the old folder
        training(Path())
    assert (here / 'history_UNet.csv').read_text('utf-8').count('\n') == 3
    assert torch.load(here / 'w.pkl', weights_only=True)


# The kernel answers system call 74, which is fsync, with EINVAL: see prctl(2) and seccomp(2).
WITHOUT_FSYNC = """import ctypes, struct
rules = struct.pack("HBBI" * 4, 32, 0, 0, 0, 21, 0, 1, 74, 6, 0, 0, 0x50000 + 22, 6, 0, 0, 0x7fff0000)
buffer, libc = ctypes.create_string_buffer(rules), ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, struct.pack("HxxxxxxQ", 4, ctypes.addressof(buffer))) == 0
"""
NAMESPACE = ['unshare', '--map-root-user', '--mount']  # where one may mount, and nobody else sees it


def in_namespace(mount, code, folder, **environment):
    """Run a shell command that mounts something, then Python, which finds the project."""
    if not shutil.which('unshare') or subprocess.run([*NAMESPACE, 'true'], capture_output=True).returncode:
        pytest.skip('mounting needs Linux with user namespaces')
    code = f'import sys\nsys.path.insert(0, {str(ROOT)!r})\n' + code
    return subprocess.run([*NAMESPACE, 'sh', '-e', '-c', f'{mount}\nexec "$0" -c "$1"', sys.executable, code],
                          cwd=folder, env=os.environ | environment, capture_output=True, text=True)


@pytest.mark.skipif(platform.machine() != 'x86_64', reason='the numbers of system calls are those of x86-64')
@pytest.mark.parametrize('mount, code', [('mount --bind w.pkl w.pkl', ''), ('true', WITHOUT_FSYNC)],
                         ids=['mounted by itself', 'no fsync'])
def test_file_is_written_wherever_it_lies(mount, code, tmp_path):
    """A file that docker run -v mounts cannot be replaced; some file systems cannot synchronize."""
    (tmp_path / 'w.pkl').write_bytes(b'old content')
    code += 'import load_data\nwith load_data.whole_file("w.pkl") as file: file.write(b"new")'
    assert in_namespace(mount, code, tmp_path).stderr == ''
    assert (tmp_path / 'w.pkl').read_bytes() == b'new' and len(list(tmp_path.iterdir())) == 1


@unix_only
def test_file_keeps_its_mode(tmp_path):
    (tmp_path / 'w.pkl').touch(mode=0o600)
    with whole_file(tmp_path / 'w.pkl') as file:
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}  # no one else may look
    assert (tmp_path / 'w.pkl').stat().st_mode & 0o777 == 0o600


@unix_only
@pytest.mark.parametrize('link, name', [('there', 'there/w.pkl'), ('w.pkl', 'w.pkl')])
def test_nothing_is_made_where_a_link_leads_to_what_is_gone(link, name, tmp_path):
    (tmp_path / link).symlink_to(tmp_path / 'unplugged/disk')
    with pytest.raises(InputError, match='unplugged/disk.* cannot be written .No such file or directory'):
        check_writable(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [link]


def test_cores_are_counted_before_torch_binds_us_to_one(tmp_path):
    code = ('import os, time\ncores = len(os.sched_getaffinity(0))\nimport colourization, torch\n'
            'colourization.START = time.monotonic() - 1000, colourization.busy_seconds()\n'
            'colourization.choose_threads()\n'
            'print(cores, torch.get_num_threads(), len(os.sched_getaffinity(0)))')
    environment = {name: value for name, value in os.environ.items() if name != 'OMP_NUM_THREADS'}
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True,
                          env=environment | {'OMP_PROC_BIND': 'true'})
    cores, threads, bound = map(int, done.stdout.split())
    if cores == bound:
        pytest.skip('there is one core, or the system does not bind threads')
    assert bound == 1 and threads == cores and done.stderr == ''


@pytest.mark.parametrize('parse_args', [colourization.parse_args, colour_regression.parse_args])
def test_tilde_of_every_path_is_the_folder_of_the_user(parse_args, monkeypatch, tmp_path):
    """Shells leave it alone behind an equals sign."""
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('USERPROFILE', str(tmp_path))
    words = ['--data=~/x', '--outdir=~/x', '--checkpoint=~/x']
    if parse_args is colourization.parse_args:
        words += ['--image=~/x', '--colours=~/x']
    args = vars(parse_args(words))
    paths = [args[word[2:].partition('=')[0]] for word in words]
    assert {str(*path) if isinstance(path, list) else str(path) for path in paths} == {str(tmp_path / 'x')}


def test_two_downloads_that_fail_at_once_tell_why(tmp_path, monkeypatch):
    def other_begins(url):
        (tmp_path / 'data/.other.partial').touch()
        raise HTTPException('this mirror is down')
    monkeypatch.setattr(load_data, 'receive', other_begins)
    with pytest.raises(InputError, match='this mirror is down.* by hand'):
        load_data.fetch(tmp_path / 'data')


def test_matplotlib_without_a_cache_is_not_missing(tmp_path):
    """Where neither the folder of the user nor one for temporary files can be written."""
    nowhere = dict.fromkeys(['HOME', 'XDG_CACHE_HOME', 'XDG_CONFIG_HOME'], '/proc/none')
    mount = 'for x in /tmp /var/tmp "$PWD"; do mount --bind "$x" "$x"; mount -o remount,bind,ro "$x"; done'
    done = in_namespace(mount, 'import colourization\ncolourization.run(colourization.import_matplotlib)',
                        tmp_path, **nowhere)
    line = done.stderr.splitlines()[-1]  # matplotlib has its own say before it
    assert line.startswith('error: matplotlib cannot be imported') and 'or set MPLCONFIGDIR' in line
    assert done.returncode == 1 and 'pip' not in line


@pytest.mark.parametrize('dash', '‐‑‒–—―−﹘－')
def test_pasted_dash_of_any_kind_is_a_hyphen(dash):
    args = colourization.parse_args([f'{dash}{dash}model', 'CNN', f'{dash}b', '5', f'{dash}valid',
                                     '--checkpoint', f'a{dash}b'])
    assert (args.model, args.batch_size, args.valid, args.checkpoint.name) == ('CNN', 5, True, f'a{dash}b')


def test_torch_that_is_newer_is_kept(tmp_path):
    """By pip itself, in an environment that has torch 2.15.0, and all else in the versions of this one."""
    pytest.importorskip('pip', reason='asks pip')
    venv.create(tmp_path / 'venv', symlinks=os.name != 'nt')
    packages = next((tmp_path / 'venv').rglob('site-packages'))
    lines = (ROOT / 'requirements.txt').read_text('utf-8').splitlines()
    for name in [Requirement(line.partition('#')[0]).name for line in lines]:
        version = '2.15.0' if name == 'torch' else importlib.metadata.version(name)
        folder = packages / f'{name.replace("-", "_")}-{version}.dist-info'
        folder.mkdir()
        (folder / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')
    pip = [sys.executable, '-m', 'pip', '--isolated', '--python', tmp_path / 'venv']
    done = subprocess.run([*pip, 'install', '--dry-run', '--no-index', '-r', ROOT / 'requirements.txt'],
                          env=os.environ | {'PIP_CONFIG_FILE': os.devnull}, capture_output=True, text=True)
    assert done.stdout.count('Requirement already satisfied') == len(lines), done.stderr
    assert done.returncode == 0 and 'Would install' not in done.stdout
