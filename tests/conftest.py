"""What several tests share: the scripts as a user runs them, and the real data where it is."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def obey_ctrl_c():
    """For `preexec_fn`: a shell has its background jobs ignore Ctrl-C, and their children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def run_script(tmp_path):
    """Run a script of the project in an empty folder; returns the finished process.

    Settings of the environment, `HTTPS_PROXY='…'` say, are given by name.
    """
    def run(script, *arguments, **environment):
        return subprocess.run([sys.executable, ROOT / script, *map(str, arguments)], cwd=tmp_path,
                              env=os.environ | environment, capture_output=True, text=True,
                              timeout=600)
    return run


@pytest.fixture(scope='session')
def cifar10():
    """Where the real data set is: the folder or archive that CIFAR10_DATA names."""
    where = os.environ.get('CIFAR10_DATA')
    if not where:
        pytest.skip('CIFAR10_DATA does not name a folder with CIFAR-10')
    return Path(where).resolve()
