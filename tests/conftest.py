"""What several tests share: the scripts as a user runs them, and the real data where it is."""

import errno
import functools
import importlib
import io
import itertools
import os
import runpy
import shutil
import signal as signals
import subprocess
import sys
import traceback
from collections import namedtuple
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

# One thread, also for the scripts that are started: two wait for each other on a busy machine.
os.environ['OMP_NUM_THREADS'] = '1'
os.environ['no_proxy'] = '127.0.0.1'  # where some tests have servers

ROOT = Path(__file__).resolve().parent.parent
WRITEUP = ROOT / 'outputs/writeup'
sys.path[:0] = [str(ROOT), str(WRITEUP)]

import matplotlib.style  # noqa: F401  # which complains here, in older ones of a newer pyparsing
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

import activations
import colourization
import load_data
from load_data import load_cifar10, load_sample


COURSE = ['MyConv2d', 'MyDilatedConv2d', 'CNN', 'UNet', 'DilatedUNet']
UNDER_TEST = pytest.StashKey()  # these classes by their names: ours, or those of a student's file


def pytest_addoption(parser):
    parser.addoption('--solution', metavar='FILE', type=Path, help="check a student's file instead of this "
                     'program: its layers and networks (tests/test_layers.py)')


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: left out unless -m says otherwise')
    config.addinivalue_line('markers', "only_ours: left out where --solution names a student's file")
    config.option.markexpr = config.option.markexpr or 'not slow'
    config.stash[UNDER_TEST] = vars(colourization)
    if config.option.solution:
        config.option.solution = config.option.solution.expanduser().resolve()
        config.stash[UNDER_TEST] = load_solution(config.option.solution)
        config.option.markexpr = f'not only_ours and ({config.option.markexpr})'
        config.option.reportchars = ''  # pytest_terminal_summary says it in fewer words
        if config.option.tbstyle == 'auto':
            config.option.tbstyle = 'no'


def load_solution(path):
    """What a student's file defines. What it imports comes from its own folder, else from ours."""
    if not path.is_file() or path.suffix != '.py':
        raise pytest.UsageError(f'--solution: there is no .py file {path}')
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)
        for ours in ROOT.glob('*.py'):  # the student's folder may have another of this name
            patch.delitem(sys.modules, ours.stem, raising=False)
        try:
            names = runpy.run_path(str(path), run_name='solution')
        except (Exception, SystemExit) as error:
            line = in_a_line(error, path)
            raise pytest.UsageError(f'--solution: {path.name} cannot be imported: {line}') from None
    if 'DUNet' in names:
        names.setdefault('DilatedUNet', names['DUNet'])
    if not names.keys() & set(COURSE):
        raise pytest.UsageError(f'--solution: {path.name} defines none of {", ".join(COURSE)}')
    return names


def in_a_line(error, path):
    """The first line of an error, with the line of the student's file where it comes from there."""
    where = [f'line {frame.lineno}: ' for frame in traceback.extract_tb(error.__traceback__)
             if frame.filename == str(path)]
    kind = '' if isinstance(error, (AssertionError, pytest.skip.Exception)) else f'{type(error).__name__}: '
    return ''.join(where[-1:]) + kind + (str(error).splitlines() or [''])[0]


@pytest.fixture
def course(request):
    """Gives a class of the course by its name: ours, or the student's where --solution names a file."""
    def find(name):
        if name not in request.config.stash[UNDER_TEST]:
            pytest.skip(f'{name} is not defined, so it is not tested')
        return request.config.stash[UNDER_TEST][name]
    return find


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Note the reason in a line, for pytest_terminal_summary."""
    report = yield
    if item.config.option.solution and call.excinfo:
        report.reason = in_a_line(call.excinfo.value, item.config.option.solution)
    return report


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    """What a student reads: what each test finds first in each class, and what is not tested."""
    if not config.option.solution or config.option.collectonly:
        return
    reasons = {}
    for report in [*terminalreporter.getreports('failed'), *terminalreporter.getreports('skipped')]:
        about = report.nodeid.partition('[')[0], report.reason.partition(':')[0]
        reasons.setdefault(about, report.reason)
    terminalreporter.section(config.option.solution.name)
    for reason in dict.fromkeys(reasons.values()):
        terminalreporter.line(reason)
    if exitstatus == 0:
        terminalreporter.line('all that was tested is right')


def training(tmp_path, make=colourization.UNet, *, resume=False, stop_after=None, **changes):
    """Train a small network on ten pictures of noise; returns the weights that its checkpoint has.

    It ends as by Ctrl-C after `stop_after` steps. Its curves, which take longer than the training, are not
    drawn: only their title is written.
    """
    settings = colourization.Settings(**{'network': make.__name__, 'pictures': 'sample pictures',
                                         'batch_size': 4, 'epochs': 2, 'float32': True} | changes)
    torch.manual_seed(settings.seed)
    data = torch.rand(10, 1, 8, 8), torch.randint(5, (10, 1, 8, 8))
    with (pytest.MonkeyPatch.context() as patch, stopped_after(stop_after),
          pytest.raises(KeyboardInterrupt) if stop_after else nullcontext()):
        patch.setattr(colourization, 'figure_file', lambda path, *_, **__: nullcontext(path))
        patch.setattr(colourization, 'draw_curves', lambda history, path, title: path.write_text(title))
        colourization.train(make(3, 4, 5), colourization.classification, data, data, settings,
                            tmp_path / 'w.pkl', tmp_path, resume)
    return torch.load(tmp_path / 'w.pkl', weights_only=True)


def is_picture(path, pixels=100_000):
    """Whether a PNG file shows something: enough pixels, and not all of the same colour."""
    picture = imread(path)[..., :3]
    return picture.shape[0] * picture.shape[1] >= pixels and picture.std() > 0.05


def panels(figure):
    """What `draw_pictures` has drawn: pictures [H, W] or [H, W, 3] by their labels."""
    return {axes.get_title(): np.asarray(axes.images[0].get_array()) for axes in figure.axes}


def pictures_in(picture, columns=10):
    """The pictures [N, H, W, ...] of a row of 32x32 ones, cut out again."""
    return np.stack([picture[:, 33 * i:33 * i + 32] for i in range(columns)])


@pytest.fixture
def mixed(monkeypatch, tmp_path):
    """Put pictures of ten classes, in mixed order, in place of CIFAR-10; returns what it is, and c.npy.

    Their pixels are red, green or blue, at two grey levels. Of the training cats the first 20 are mostly red
    where they are bright, the last 30 green; the other pictures, and all for testing, are blue. Where they
    are dark, it is the next colour.
    """
    rng = np.random.default_rng(0)

    def pictures(ys, favourites):
        dark = rng.random((len(ys), 32, 32)) < 0.3
        which = (favourites[:, None, None] + rng.choice(3, dark.shape, p=[.7, .2, .1]) + dark) % 3
        pixels = np.where(dark[..., None], np.array([70, 15, 15]), np.array([200, 50, 50]))
        pixels = np.take_along_axis(pixels, (np.arange(3) - which[..., None]) % 3, axis=-1)
        return np.moveaxis(pixels, -1, 1).astype(np.uint8), ys[:, None]

    ys = rng.permutation(np.repeat(np.arange(10), [10, 10, 10, 50, *[10] * 6]))
    favourites = np.full(140, 2)
    favourites[ys == 3] = np.repeat([0, 1], [20, 30])
    train = pictures(ys, favourites)
    test = pictures(rng.permutation(np.repeat(np.arange(10), [10, 10, 10, 110, *[10] * 6])), np.full(200, 2))
    for module in (colourization, activations):
        monkeypatch.setattr(module, 'load_cifar10', lambda where: (train, test))
    colours = np.array([[.7, .2, .25], [.2, .7, .3], [.15, .25, .7]], np.float32)
    np.save(tmp_path / 'c.npy', colours)
    return train, test, colours


def obey_ctrl_c():
    """For `preexec_fn`: a shell has its background jobs ignore Ctrl-C, and their children inherit that."""
    signals.signal(signals.SIGINT, signals.SIG_DFL)


unix_only = pytest.mark.skipif(os.name == 'nt', reason='Windows has no such pipes, links, signals or devices')


def near(array, expected, distance):
    """Whether an array has the shape of another (or that is a number), and is nowhere farther from it."""
    return (np.shape(expected) in ((), np.shape(array))
            and np.abs(np.subtract(array, expected)).max() <= distance)


def fails(done, status, *words):
    """Whether a script ended with a status and, on standard error, one line that has the words."""
    line, = done.errors.splitlines()
    return done.status == status and all(word in line for word in words)


def peak_memory(folder, script, *arguments):
    """Bytes that a script takes at most; it has to end well and without a word on standard error.

    A process starts with the memory of the one that starts it, so a small one does.
    """
    pytest.importorskip('resource', reason='measures memory on Unix only')
    code = ('import resource, subprocess, sys\n'
            'subprocess.run([sys.executable, *sys.argv[1:]], check=True)\n'
            'print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)')
    done = subprocess.run([sys.executable, '-c', code, ROOT / script, *arguments], cwd=folder,
                          capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == '', done.stderr
    unit = 1 if sys.platform == 'darwin' else 1024  # of ru_maxrss, in bytes
    return int(done.stdout.split()[-1]) * unit


def in_namespace(mount, code, folder, **environment):
    """Run a shell command that mounts what nobody else sees, then Python, which finds the project."""
    namespace = ['unshare', '--map-root-user', '--mount']
    if not shutil.which('unshare') or subprocess.run([*namespace, 'true'], capture_output=True).returncode:
        pytest.skip('mounting needs Linux with user namespaces')
    return subprocess.run([*namespace, 'sh', '-e', '-c', f'{mount}\nexec "$0" -c "$1"', sys.executable, code],
                          cwd=folder, env=os.environ | {'PYTHONPATH': str(ROOT)} | environment,
                          capture_output=True, text=True)


def raising(error):
    def main(*_):
        raise error
    return main


def refusing(number):
    """A stream that cannot be written: a full disk, or a pipe that nobody reads (EINVAL is Windows' word)."""
    reader, writer = os.pipe()
    os.close(reader)
    file = io.FileIO('/dev/full' if number == errno.ENOSPC else writer, 'w')
    stream = io.TextIOWrapper(file, write_through=True)
    if number == errno.EINVAL:
        stream.write = raising(OSError(number, 'Invalid argument'))
    return stream


@contextmanager
def full_disk(room):
    """No file can grow beyond so many bytes."""
    resource = pytest.importorskip('resource', reason='limits files on Unix only')
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


read_once = functools.cache(load_cifar10)


@functools.cache
def part_of_sample():
    """What --data sample gives, but with 300 pictures to train on and 100 to validate on."""
    (xs, ys), (x_test, y_test) = load_sample()
    return (xs[:300], ys[:300]), (x_test[:100], y_test[:100])


@contextmanager
def stopped_after(steps):
    """A training ends as by Ctrl-C when it has done so many steps; None is never."""
    real, done = load_data.batches, itertools.count(1)

    def batches(tensors, batch_size, generator=None, augmentations=()):
        for batch in real(tensors, batch_size, generator, augmentations):
            yield batch
            if generator is not None and next(done) == steps:  # without one it only validates
                raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(colourization, 'batches', batches)
        yield


# How a script has ended: what it printed, and the figures by the names of their files.
Done = namedtuple('Done', 'status output errors figures', defaults=[None])


def run_here(folder, script, flags, draw, steps):
    """Run a script as `run_script` does in this process, which spares the seconds that the imports take."""
    out, err = (io.TextIOWrapper(io.BytesIO(), 'utf-8', write_through=True) for _ in range(2))
    figures, savefig = {}, Figure.savefig

    def save(figure, file, **settings):
        figures[Path(file.name).name[1:].rsplit('.', 2)[0]] = figure  # unfinished, it is `.NAME.….partial`
        return savefig(figure, file, **settings) if draw else file.write(b'not drawn')

    module = importlib.import_module(Path(script).stem)
    with pytest.MonkeyPatch.context() as patch, stopped_after(steps):
        patch.chdir(folder)
        patch.setattr(sys, 'argv', [str(ROOT / script), *flags])
        patch.setattr(sys, 'stdout', out)
        patch.setattr(sys, 'stderr', err)
        patch.setattr(load_data, 'load_sample', part_of_sample)
        patch.setattr(Figure, 'savefig', save)
        try:
            module.run(module.main)
            status = 0
        except SystemExit as end:
            status = end.code or 0
            if isinstance(status, str):  # which Python prints at the end, with status 1
                status = print(status, file=err) or 1
    return Done(status, *(stream.buffer.getvalue().decode() for stream in (out, err)), figures)


def run_there(folder, script, flags, stop_after, signal, environment):
    """Run a script as `run_script` does in a new process."""
    settings = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
    process = subprocess.Popen([sys.executable, ROOT / script, *flags], cwd=folder, env=settings,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding='utf-8',
                               preexec_fn=obey_ctrl_c if stop_after else None)
    printed = ''
    try:
        while stop_after and stop_after not in printed:
            assert (line := process.stdout.readline()), process.stderr.read()
            printed += line
        if stop_after:
            process.send_signal(signal)
        output, errors = process.communicate(timeout=600)
    finally:
        process.kill()
    return Done(process.returncode, printed + output, errors)


def run_in(folder, script, *flags, draw=False, new_process=False, stop_after=None, signal=signals.SIGINT,
           **environment):
    """`run_script` in a folder."""
    flags = [*map(str, flags)]
    if new_process or environment or isinstance(stop_after, str):
        done = run_there(folder, script, flags, stop_after, signal, environment)
    else:
        done = run_here(folder, script, flags, draw, stop_after)
    lines = done.errors.splitlines()
    mistakes = [line for line in lines if line.startswith('error: ')]
    assert 'Traceback' not in done.errors, done.errors
    assert len(mistakes) == (done.status in (1, 2)) or done.status == 1 and '--image' in flags, done.errors
    assert not mistakes or lines[-1] == mistakes[-1], done.errors
    assert done.status < 0 or not list(folder.rglob('*.partial')), done  # a signal can leave one
    return done


@pytest.fixture
def run_script(tmp_path):
    """Run a script in an empty folder: `run_script(script, *flags)` tells how it ended, which is a `Done`.

    As it has to: a failure is told in one line on standard error, which begins with `error: ` and is the last
    one, without a traceback, and no file is left unfinished. Only --image may name more than one picture.

    It runs in this process, --data sample gives a part of it, and figures are files of a few bytes unless
    `draw` says otherwise. It runs in a new process with `new_process`, with settings of the environment by
    name, of which None is removed, or where `stop_after` is a text: once a line of output has it, Ctrl-C is
    pressed, or another signal sent. Where that is a number, it is Ctrl-C after so many training steps.
    """
    return partial(run_in, tmp_path)


@pytest.fixture(scope='session')
def cifar10():
    """Where the real data set is: the folder or archive that CIFAR10_DATA names."""
    where = os.environ.get('CIFAR10_DATA')
    if not where:
        pytest.skip('CIFAR10_DATA does not name a folder with CIFAR-10')
    return Path(where).resolve()
