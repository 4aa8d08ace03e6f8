"""What several tests share: the scripts as a user runs them, and the real data where it is."""

import functools
import io
import os
import runpy
import signal
import struct
import subprocess
import sys
import traceback
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

# One thread, also for the scripts that are started: two wait for each other on a busy machine.
os.environ['OMP_NUM_THREADS'] = '1'
os.environ['no_proxy'] = '127.0.0.1'  # where some tests have servers

ROOT = Path(__file__).resolve().parent.parent
WRITEUP = ROOT / 'outputs/writeup'
sys.path[:0] = [str(ROOT), str(WRITEUP)]

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

import colourization  # noqa: E402
import load_data  # noqa: E402
from load_data import load_cifar10, load_sample  # noqa: E402


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
            raise pytest.UsageError(f'--solution: {path.name} cannot be imported: {in_a_line(error, path)}')
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


def python2_string(data):
    """The opcode of Python 2 for a str, which is bytes."""
    if len(data) < 256:
        return b'U' + bytes([len(data)]) + data
    return b'T' + struct.pack('<I', len(data)) + data


class Runs:
    """A pickle of this calls the function as soon as it is loaded."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def training(tmp_path, make=colourization.UNet, *, resume=False, **changes):
    """Train a small network on ten pictures of noise; returns the weights that its checkpoint has.

    Its curves, which take longer than the training, are not drawn: only their title is written.
    """
    settings = colourization.Settings(**{'network': make.__name__, 'pictures': 'sample pictures',
                                         'batch_size': 4, 'epochs': 2, 'float32': True} | changes)
    torch.manual_seed(settings.seed)
    data = torch.rand(10, 1, 8, 8), torch.randint(5, (10, 1, 8, 8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(colourization, 'figure_file', lambda path, *_, **__: nullcontext(path))
        patch.setattr(colourization, 'draw_curves', lambda history, path, title: path.write_text(title))
        colourization.train(make(3, 4, 5), colourization.classification, data, data, settings,
                            tmp_path / 'w.pkl', tmp_path, resume)
    return torch.load(tmp_path / 'w.pkl', weights_only=True)


def obey_ctrl_c():
    """For `preexec_fn`: a shell has its background jobs ignore Ctrl-C, and their children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


unix_only = pytest.mark.skipif(os.name == 'nt', reason='Windows has no such pipes, links, signals or devices')


def near(array, expected, distance):
    """Whether an array has the shape of another (or that is a number), and is nowhere farther from it."""
    return (np.shape(expected) in ((), np.shape(array))
            and np.abs(np.subtract(array, expected)).max() <= distance)


def fails(done, status, *words):
    """Whether a script ended with a status and one line of error that has the words."""
    line, = done.stderr.splitlines()
    return (done.returncode == status and line.startswith('error: ')
            and all(word in line for word in words))


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


@pytest.fixture
def start_script(tmp_path):
    """Run a script of the project as a process in an empty folder; returns it when it has finished.

    Settings of the environment, `HTTPS_PROXY='…'` say, are given by name.
    """
    def start(script, *arguments, **environment):
        return subprocess.run([sys.executable, ROOT / script, *map(str, arguments)], cwd=tmp_path,
                              env=os.environ | environment, capture_output=True, text=True, timeout=600)
    return start


@pytest.fixture
def run_script(tmp_path, monkeypatch):
    """Like `start_script`, but in this process, which spares the seconds that the imports take.

    And --data sample gives a part of it, and figures are files of a few bytes unless `draw` says otherwise.
    """
    def run(script, *arguments, draw=False):
        out, err = (io.TextIOWrapper(io.BytesIO(), 'utf-8') for _ in range(2))
        status = 0
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            patch.setattr(sys, 'argv', [str(ROOT / script), *map(str, arguments)])
            patch.setattr(sys, 'stdout', out)
            patch.setattr(sys, 'stderr', err)
            patch.setattr(load_data, 'load_sample', part_of_sample)
            if not draw:
                patch.setattr(Figure, 'savefig', lambda figure, file, **_: file.write(b'not drawn'))
            try:
                runpy.run_path(str(ROOT / script), run_name='__main__')
            except SystemExit as end:
                status = end.code
                if isinstance(status, str):  # which Python prints at the end, with status 1
                    status = print(status, file=err) or 1
        printed = []
        for stream in (out, err):
            stream.flush()
            printed.append(stream.buffer.getvalue().decode())
        return SimpleNamespace(returncode=status or 0, stdout=printed[0], stderr=printed[1])
    return run


@pytest.fixture(scope='session')
def cifar10():
    """Where the real data set is: the folder or archive that CIFAR10_DATA names."""
    where = os.environ.get('CIFAR10_DATA')
    if not where:
        pytest.skip('CIFAR10_DATA does not name a folder with CIFAR-10')
    return Path(where).resolve()
