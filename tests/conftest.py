"""What several tests share: the scripts as a user runs them, and the real data where it is."""

import io
import os
import runpy
import signal
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

# One thread, also for the scripts that are started: two wait for each other on a busy machine.
os.environ['OMP_NUM_THREADS'] = '1'

ROOT = Path(__file__).resolve().parent.parent
WRITEUP = ROOT / 'outputs/writeup'
sys.path[:0] = [str(ROOT), str(WRITEUP)]

import pytest  # noqa: E402
import torch  # noqa: E402

import colourization  # noqa: E402
import load_data  # noqa: E402


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: left out unless -m says otherwise')
    config.option.markexpr = config.option.markexpr or 'not slow'


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


def training(tmp_path, make=colourization.UNet, *, seed=0, **changes):
    """Train a small network on ten pictures of noise; returns the weights that its checkpoint has."""
    settings = {'batch_size': 4, 'epochs': 2, 'float32': True} | changes
    torch.manual_seed(seed)
    data = torch.rand(10, 1, 8, 8), torch.randint(5, (10, 1, 8, 8))
    colourization.train(make(3, 4, 5), colourization.classification, data, data,
                        about={'model': make.__name__, 'data': 'sample pictures'},
                        checkpoint=tmp_path / 'w.pkl', outdir=tmp_path, seed=seed, **settings)
    return torch.load(tmp_path / 'w.pkl', weights_only=True)


def obey_ctrl_c():
    """For `preexec_fn`: a shell has its background jobs ignore Ctrl-C, and their children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


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

    And --data sample trains on a part of it.
    """
    (xs, ys), test = load_data.load_sample()
    def run(script, *arguments):
        out, err = (io.TextIOWrapper(io.BytesIO(), 'utf-8') for _ in range(2))
        status = 0
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            patch.setattr(sys, 'argv', [str(ROOT / script), *map(str, arguments)])
            patch.setattr(sys, 'stdout', out)
            patch.setattr(sys, 'stderr', err)
            patch.setattr(load_data, 'load_sample', lambda: ((xs[:500], ys[:500]), test))
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
