"""A slip of the hand, a closed terminal, a notebook: nothing is lost, and what means nothing says so."""

import contextlib
import json
import math
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch

import colourization
import load_data
from colourization import draw_pictures, parse_args, run
from conftest import ROOT, WRITEUP, fails, part_of_sample, unix_only
from load_data import InputError, check_writable

FLAGS = ['-m', 'CNN', '-f', 2, '-e', 2, '--data', 'sample', '--checkpoint', 'w.pkl']
STEPS = 3  # an epoch of the part of the sample that `run_script` trains on


@pytest.fixture(autouse=True)
def heeded():
    """Ctrl-C, which whoever started the tests may have had ignored, like a shell's `&`."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Killed(BaseException):
    """Ends a run as a signal does that Python does not handle."""


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def kill():
    raise Killed


def ends(patch, how, steps):
    """Have a run end by calling `how` when so many training steps have begun."""
    real, begun = load_data.batches, []

    def batches(tensors, batch_size, generator=None, augmentations=()):
        for batch in real(tensors, batch_size, generator, augmentations):
            begun.extend([None] * (generator is not None))
            if generator is not None and len(begun) == steps:
                how()
            yield batch
    for module in load_data, colourization:
        patch.setattr(module, 'batches', batches)


# ---- A trained network ------------------------------------------------------------------------------------


@pytest.mark.parametrize('script, instead', [
    ('colourization.py', 'add --valid'), ('colour_regression.py', 'leave out --train')])
def test_network_is_not_replaced_before_another_has_finished_an_epoch(script, instead, run_script,
                                                                      monkeypatch, tmp_path):
    flags = ['--train', '-f', 16, *FLAGS[4:]] if 'regression' in script else FLAGS
    shipped = ROOT / f'weights/{"regression_cnn" if "regression" in script else "cnn"}_k3_f16.pkl'
    shutil.copy(shipped, tmp_path / 'w.pkl')
    with monkeypatch.context() as patch:
        ends(patch, interrupt, STEPS - 1)
        done = run_script(script, *flags)
    note, end = done.stderr.splitlines()
    assert note.startswith('note: w.pkl ') and 'after the first epoch' in note and instead in note
    assert done.returncode == 130 and re.fullmatch('interrupted before .*/w.pkl is unchanged', end)
    assert (tmp_path / 'w.pkl').read_bytes() == shipped.read_bytes()
    assert sorted(path.name for path in tmp_path.rglob('*.*')) == ['w.pkl']


def goes_on_after_its_first_epoch(run_script, folder):
    """Whether what an ended run has left is whole, and --resume alone continues it."""
    assert torch.load(folder / 'w.pkl', weights_only=True)['downconv1.0.weight'].shape[0] == 2
    assert (folder / 'outputs/history_CNN.csv').read_text('utf-8').count('\n') == 2
    state, weights = ((folder / name).read_bytes() for name in ('w.pkl.resume', 'w.pkl'))
    done = run_script('colourization.py', *FLAGS)
    assert fails(done, 1, 'w.pkl.resume', '--resume', 'another --checkpoint')
    assert state == (folder / 'w.pkl.resume').read_bytes() and weights == (folder / 'w.pkl').read_bytes()
    done = run_script('colourization.py', *FLAGS, '--resume')
    return ((done.returncode, done.stderr) == (0, '') and done.stdout.startswith('Epoch [2/2]')
            and not (folder / 'w.pkl.resume').exists())


def test_interrupted_training_says_where_it_is_and_goes_on(run_script, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        ends(patch, interrupt, STEPS + 2)
        done = run_script('colourization.py', *FLAGS, draw=True)
    assert done.returncode == 130
    assert done.stderr == (f'interrupted: the weights so far are in {tmp_path / "w.pkl"}; --resume goes on '
                           'after the last whole epoch\n')
    assert (tmp_path / 'outputs/training_curve_CNN.png').stat().st_size > 1000
    assert goes_on_after_its_first_epoch(run_script, tmp_path)


def test_killed_training_goes_on_after_its_last_epoch(run_script, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        ends(patch, kill, STEPS + 2)
        with pytest.raises(Killed):
            run_script('colourization.py', *FLAGS)
    assert goes_on_after_its_first_epoch(run_script, tmp_path)


@pytest.mark.slow  # and `test_killed_training_goes_on_after_its_last_epoch` in this process
@unix_only
def test_signal_leaves_whole_files_of_a_training(start_script, tmp_path):
    flags = [*map(str, FLAGS), '-e', '4']
    script = subprocess.Popen([sys.executable, ROOT / 'colourization.py', *flags], cwd=tmp_path,
                              stdout=subprocess.PIPE, text=True)
    while not (tmp_path / 'outputs/history_CNN.csv').exists():  # the last file that an epoch writes
        assert script.poll() is None
        time.sleep(0.01)
    script.terminate()
    script.communicate(timeout=60)
    assert script.returncode == -signal.SIGTERM and not list(tmp_path.rglob('*.partial'))
    done = start_script('colourization.py', *flags, '--resume')
    assert (done.returncode, done.stderr) == (0, '') and re.match(r'Epoch \[[234]/4\]', done.stdout)


@pytest.mark.parametrize('name', ['w.pkl', 'w.pkl.resume'])
def test_read_only_file_is_refused_before_training(name, run_script, monkeypatch, tmp_path):
    monkeypatch.setattr(load_data, 'load_sample', None)  # nothing is read either
    shutil.copy(ROOT / 'weights/cnn_k3_f16.pkl', tmp_path / name)
    (tmp_path / name).chmod(stat.S_IREAD)
    content = (tmp_path / name).read_bytes()
    done = run_script('colourization.py', *FLAGS)
    assert fails(done, 1, f'{name} ', 'read-only')
    assert (tmp_path / name).read_bytes() == content
    with pytest.raises(InputError, match='read-only'):
        check_writable(tmp_path / name)


@pytest.mark.parametrize('length, fits', [(243, True), (248, True), (249, False), (256, False)])
def test_long_name_of_a_checkpoint_is_written_or_refused_at_once(length, fits, run_script, tmp_path):
    name = 'n' * (length - 4) + '.pkl'
    done = run_script('colourization.py', *FLAGS[:-1], name, '-e', 1)
    assert ('.partial' in done.stderr, (tmp_path / name[:255]).exists()) == (False, fits)
    assert (done.returncode == 0) if fits else fails(done, 1, name, 'too long') and done.stdout == ''


# ---- An answer that means nothing -------------------------------------------------------------------------


@pytest.fixture
def other_order(tmp_path):
    """The shipped UNet as who concatenates its skip connections the other way round would have it."""
    state = torch.load(ROOT / 'weights/unet_k3_f16.pkl', weights_only=True)
    for name in ('upconv1.0.weight', 'upconv2.0.weight'):
        state[name] = state[name].roll(state[name].shape[1] // 2, dims=1)
    state['finalconv.weight'] = state['finalconv.weight'].roll(1, dims=1)
    torch.save(dict(state), tmp_path / 'w.pkl')
    return ROOT / 'colour/colour_kmeans24_cat7.npy'


def test_loss_above_that_of_guessing_gives_a_warning(other_order, run_script, tmp_path):
    flags = ['-m', 'UNet', '--valid', '--data', 'sample']
    done = run_script('colourization.py', *flags, '--checkpoint', 'w.pkl', '-c', other_order)
    assert float(re.search('Val Loss: (.*),', done.stdout)[1]) > math.log(24)
    warning, = done.stderr.splitlines()
    assert done.returncode == 0 and warning.startswith('warning: ')
    assert all(words in warning for words in ('ln 24 = 3.1781', 'w.pkl', 'skip connections', 'colours (-c)'))

    shutil.copy(ROOT / 'weights/unet_k3_f16.pkl', tmp_path / 'w.pkl')
    done = run_script('colourization.py', *flags, '--checkpoint', 'w.pkl')
    assert (done.returncode, done.stderr) == (0, '')


@pytest.mark.parametrize('temperature', ['-1', '101', 'nan', 'inf', 'warm'])
def test_temperature_that_scores_cannot_be_divided_by_is_refused(temperature, capsys):
    with pytest.raises(SystemExit) as end:
        parse_args(['-m', 'UNet', f'--temperature={temperature}'])
    assert end.value.code == 2 and temperature in capsys.readouterr().err


@pytest.mark.parametrize('temperature', [0, 0.001, 100])
def test_metrics_say_how_they_came_about(temperature, run_script, tmp_path):
    colours = np.array([[0.2, 0.2, 0.2], [0.7, 0.7, 0.7]], np.float32)
    np.save(tmp_path / 'c.npy', colours)
    done = run_script('colourization.py', '-m', 'CNN', '-k', 1, '-f', 3, '-e', 1, '-s', 5, '-c', 'c.npy',
                      '--data', 'sample', '--temperature', temperature)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / 'outputs/metrics_CNN.json').read_text('utf-8')
    told = json.loads(text, parse_constant=pytest.fail)
    expected = {'kernel': 1, 'num_filters': 3, 'seed': 5, 'temperature': temperature, 'prior': 0,
                'colours': colours.tolist(), 'checkpoint': 'cnn_k1_f3.pkl', 'hold_out': 0,
                'threads': torch.get_num_threads(), 'model': 'CNN', 'data': 'sample pictures'}
    assert {name: told[name] for name in expected} == expected
    assert 0 < told['pictures']['prediction']['mean_squared_error'] < 1


@pytest.mark.parametrize('words', ['CUDA error: an illegal memory access was encountered',
                                   'memory format option is only supported by strided tensors'])
def test_mistake_that_mentions_memory_is_not_too_little_of_it(words):
    def main():
        raise RuntimeError(words)
    with pytest.raises(RuntimeError, match=words):
        run(main)


@pytest.mark.parametrize('main', [
    lambda: torch.empty(10**15), lambda: np.empty(10**15), lambda: bytearray(10**15),
    lambda: (_ for _ in ()).throw(torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20 GiB')),
    lambda: (_ for _ in ()).throw(RuntimeError('MPS backend out of memory'))])
def test_too_little_memory_is_told_in_a_line(main):
    with pytest.raises(SystemExit, match='^error: there is not enough memory.*--batch_size$'):
        run(main)


@pytest.mark.parametrize('script', ['experiments.py', 'comparison.py', 'writeup.py'])
def test_pages_about_horses_are_not_made_of_the_sample(script, run_script):
    done = run_script(WRITEUP / script, '--data', 'sample')
    assert fails(done, 1, 'horses of CIFAR-10', '--data') and done.stdout == ''


# ---- Notebooks and other surroundings ---------------------------------------------------------------------


def test_figures_are_the_same_whatever_the_settings_and_leave_them_alone(tmp_path):
    import matplotlib

    panels = [('a label', np.random.default_rng(0).random((8, 26, 3)))]
    draw_pictures(panels, tmp_path / 'a.png', 'a title')
    settings = {'font.size': 30, 'text.usetex': True, 'axes.titlecolor': 'red', 'savefig.dpi': 10,
                'savefig.bbox': 'tight', 'savefig.format': 'pdf', 'backend': 'pdf'}
    with matplotlib.rc_context(settings):
        draw_pictures(panels, tmp_path / 'b.png', 'a title')
        assert matplotlib.rcParams['font.size'] == 30 and matplotlib.rcParams['text.usetex']
    assert (tmp_path / 'a.png').read_bytes() == (tmp_path / 'b.png').read_bytes()


@pytest.mark.parametrize('command', [
    'colourization.py -m CNN -e 1', 'colour_regression.py',
    'activations.py --checkpoint weights/cnn_k3_f16.pkl'])
def test_what_the_end_of_a_run_needs_is_missed_at_its_beginning(command, run_script, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    for module in load_data, colourization:
        monkeypatch.setattr(module, 'load_cifar10', None)  # nothing is read before
    done = run_script(*shlex.split(command), '--data', 'sample')
    assert fails(done, 1, 'matplotlib') and not list(tmp_path.rglob('*.*'))


def test_picture_library_that_is_missing_is_named(run_script, monkeypatch):
    monkeypatch.setitem(sys.modules, 'PIL', None)
    assert fails(run_script('colourization.py', '--image', 'a.jpg'), 1, 'PIL', 'pip install')


class Text:
    """The least that Python asks of a standard stream."""

    def __init__(self):
        self.lines = ''

    def write(self, text):
        self.lines += text

    def flush(self):
        pass


@pytest.mark.parametrize('stream', [Text, lambda: None])
def test_standard_streams_may_be_any(stream, monkeypatch, tmp_path):
    out, err = stream(), stream()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(load_data, 'load_sample', part_of_sample)
    monkeypatch.setattr(sys, 'argv', ['colourization.py', *map(str, FLAGS)])
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        run(colourization.main)
    assert (tmp_path / 'w.pkl').exists() and (tmp_path / 'outputs/eval_CNN.png').exists()
    if out is not None:
        assert 'Val Acc' in out.lines


@pytest.mark.slow  # and `test_standard_streams_may_be_any` in this process
@pytest.mark.parametrize('closed', ['>&-', '2>&-', '<&- >&- 2>&-'])
def test_closed_streams_do_not_end_a_run(closed, tmp_path):
    np.save(tmp_path / 'two.npy', [[0.2, 0.2, 0.2], [0.7, 0.7, 0.7]])
    done = subprocess.run(f'{shlex.quote(sys.executable)} {shlex.quote(str(ROOT / "colourization.py"))} '
                          f'-m CNN -f 2 -e 1 -c two.npy --data sample {closed}',
                          shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, '')
    assert (tmp_path / 'outputs/metrics_CNN.json').exists()


@pytest.mark.slow
def test_cell_of_the_readme_runs_in_a_notebook(tmp_path):
    """In a real kernel, and so does what else people write into cells."""
    reason = 'needs ipykernel and jupyter_client'
    pytest.importorskip('ipykernel', reason=reason)
    start_new_kernel = pytest.importorskip('jupyter_client.manager', reason=reason).start_new_kernel
    cell = re.search(r'\n((?:    %.*\n)(?:    .*\n)+)', (ROOT / 'README.md').read_text('utf-8'))[1]
    for name in ('colourization.py', 'load_data.py', 'requirements.txt'):
        (tmp_path / name).symlink_to(ROOT / name)
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ['PATH']])
    kernel, client = start_new_kernel(cwd=str(tmp_path), env=os.environ | {'PATH': path})

    def execute(code):
        messages = []
        reply = client.execute_interactive(code, timeout=500, output_hook=messages.append)
        assert reply['content']['status'] == 'ok', messages
        printed = ''.join(message['content'].get('text', '') for message in messages)
        assert 'Traceback' not in printed and 'Error' not in printed and 'rror:' not in printed, printed
        return printed, [message['content']['data'] for message in messages if 'data' in message['content']]

    try:
        printed, shown = execute(textwrap.dedent(cell))
        assert 'Epoch [5/5], Val Loss' in printed and 'image/png' in shown[-1]
        again = '--model CNN -f 2 -e 1 --data sample --outdir again'
        for code in (f'%run colourization.py {again}',
                     'import contextlib, io, sys, colourization\n'
                     f'sys.argv[1:] = "{again} --checkpoint other.pkl".split()\n'
                     'with contextlib.redirect_stdout(io.StringIO()) as out:\n'
                     '    colourization.run(colourization.main)\n'
                     'print(out.getvalue())'):
            printed, _ = execute(code)
            assert 'Epoch [1/1], Val Loss' in printed and 'Val Acc' in printed.strip().splitlines()[-1]
            assert (tmp_path / 'again/eval_CNN.png').exists()
        printed, _ = execute('%matplotlib inline\nimport matplotlib; print(matplotlib.get_backend())')
        assert 'inline' in printed
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)


# ---- Lists of flags ---------------------------------------------------------------------------------------


def test_lists_add_up():
    args = parse_args(shlex.split('--image a.jpg b.jpg --image c.jpg'))
    assert list(map(str, args.image)) == ['a.jpg', 'b.jpg', 'c.jpg']
    args = parse_args(shlex.split('-m UNet --augment flip_lr --augment zoom classes'))
    assert args.augment == ['flip_lr', 'zoom', 'classes']
    assert parse_args(['-m', 'UNet']).augment == []


def test_order_of_augmentations_makes_no_other_run(run_script, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        ends(patch, interrupt, STEPS + 1)
        done = run_script('colourization.py', *FLAGS, '--augment', 'zoom', 'flip_lr', 'zoom')
    assert done.returncode == 130
    flags = [*FLAGS, '--resume', '--augment']
    assert fails(run_script('colourization.py', *flags, 'flip_lr'), 1, 'augment', 'flip_lr', 'zoom')
    done = run_script('colourization.py', *flags, 'flip_lr', 'zoom')
    assert (done.returncode, done.stderr) == (0, '')
