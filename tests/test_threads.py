"""As many threads as there are free cores, unless the user says otherwise."""

import os
import subprocess
import sys
import time

import pytest
import torch

import colourization
from colourization import busy_seconds, choose_threads
from conftest import ROOT, training

STAT = """cpu  600 60 600 9000 60 6 6 6 0 0
cpu0 100 10 200 4000 30 1 2 3 7 0
cpu1 500 50 400 5000 30 5 4 3 0 0
cpu10 9000 0 0 0 0 0 0 0 0 0
intr 1
"""


@pytest.mark.parametrize('cores, ticks', [({0}, 316), ({1}, 962), ({0, 1}, 1278)])
def test_busy_seconds_are_those_of_our_cores_without_our_own(cores, ticks, tmp_path, monkeypatch):
    """User, nice, system, interrupts and what a hypervisor took; not idle or waiting for a disk."""
    (tmp_path / 'stat').write_text(STAT)
    monkeypatch.setattr(colourization, 'STAT', tmp_path / 'stat')
    monkeypatch.setattr(colourization, 'CORES', cores)
    monkeypatch.setattr(os, 'times', lambda: (0.25, 0.5, 0.0, 0.0, 99.0))
    assert busy_seconds() == pytest.approx(ticks / os.sysconf('SC_CLK_TCK') - 0.75)


def test_busy_seconds_grow_by_what_others_compute():
    if busy_seconds() is None:
        pytest.skip('this system does not tell how busy its cores are')
    start = busy_seconds()
    code = 'import time\nwhile time.process_time() < 0.4: pass\nprint(flush=True)\ninput()'
    other = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    other.stdout.readline()
    grown = busy_seconds() - start  # while it has not ended: then it would count as our own
    other.communicate(b'\n')
    assert grown > 0.3


@pytest.fixture
def threads(monkeypatch, tmp_path):
    """Choose on a machine of so many cores, which others have kept so busy; how many were set."""
    def choose(cores, busy, quota=None, default=None, **environment):
        chosen = [default or cores]
        monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        if quota:
            (tmp_path / 'cpu.max').write_text(quota + '\n')
        monkeypatch.setattr(colourization, 'QUOTA', tmp_path / 'cpu.max')
        monkeypatch.setattr(os, 'cpu_count', lambda: cores)
        monkeypatch.setattr(colourization, 'CORES', set(range(cores)))
        monkeypatch.setattr(os, 'getloadavg', lambda: (busy, 0, 0), raising=False)
        monkeypatch.setattr(torch, 'get_num_threads', lambda: chosen[-1])
        monkeypatch.setattr(torch, 'set_num_threads', chosen.append)
        choose_threads()
        return chosen[-1]
    return choose


@pytest.mark.parametrize('told', [True, False])  # by /proc/stat, or by the load alone
@pytest.mark.parametrize('cores, busy, expected', [
    (2, 0, 2), (2, 0.4, 2), (2, 0.9, 1), (2, 2.1, 1), (2, 7, 1), (1, 1, 1), (8, 3, 5), (64, 0.2, 64)])
def test_threads_are_as_many_as_the_free_cores(told, cores, busy, expected, threads, monkeypatch, capsys):
    monkeypatch.setattr(colourization, 'START', (time.monotonic() - 1000, 5.0 if told else None))
    monkeypatch.setattr(colourization, 'busy_seconds', lambda: 5 + 1000 * busy)
    assert threads(cores, busy) == expected
    note = capsys.readouterr().err
    assert note == '' if expected == cores else f'{expected} of {cores} threads' in note


@pytest.mark.parametrize('quota, expected', [('150000 100000', 2), ('100000 100000', 1), ('50000 100000', 1),
                                             ('max 100000', 8), ('6400000 100000', 8)])
def test_container_has_the_cores_that_it_may_use(quota, expected, threads, monkeypatch):
    monkeypatch.setattr(colourization, 'START', (0, None))
    assert threads(8, 0, quota) == expected


def test_environment_and_torch_have_their_say(threads, monkeypatch):
    monkeypatch.setattr(colourization, 'START', (0, None))
    assert threads(8, 7, OMP_NUM_THREADS='8') == 8
    assert threads(8, 0, default=4) == 4  # two threads a core are one too many


@pytest.mark.parametrize('environment, threads', [({}, 1), ({'OMP_NUM_THREADS': '3'}, 3)])
def test_resumed_run_has_as_many_threads_as_before(environment, threads, tmp_path, monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS')
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(colourization, 'save_history', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
                        if (tmp_path / 'w.pkl.resume').exists() else None)
    with pytest.raises(KeyboardInterrupt):
        training(tmp_path, epochs=3)
    used = [3]
    monkeypatch.setattr(torch, 'get_num_threads', lambda: used[-1])
    monkeypatch.setattr(torch, 'set_num_threads', used.append)
    monkeypatch.setattr(colourization, 'save_history', lambda *_: None)
    training(tmp_path, epochs=3, resume=True)
    assert used[-1] == threads


@pytest.mark.parametrize('flags, chosen', [('', True), ('--resume', False)])
def test_resumed_run_chooses_no_threads(flags, chosen, run_script, tmp_path, monkeypatch):
    """So that it can take as many as before, and come to the same bits."""
    asked = []
    monkeypatch.delenv('OMP_NUM_THREADS')
    monkeypatch.setattr(torch, 'set_num_threads', asked.append)
    monkeypatch.setattr(os, 'cpu_count', lambda: 1)
    monkeypatch.setattr(colourization, 'START', (0, None))
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 2)
    if flags:
        (tmp_path / 'w.pkl.resume').write_bytes(b'broken')
    run_script('colourization.py', '-m', 'CNN', '-f', 1, '-e', 1, '--data', 'sample', '--checkpoint', 'w.pkl',
               *flags.split())
    assert asked == [1] * chosen


@pytest.mark.parametrize('script', ['colourization', 'colour_regression', 'activations'])
@pytest.mark.parametrize('environment, expected', [({}, '20000'), ({'GOMP_SPINCOUNT': '5'}, '5'),
                                                   ({'OMP_WAIT_POLICY': 'active'}, 'None')])
def test_threads_wait_as_the_environment_says_or_shortly(script, environment, expected, monkeypatch):
    """It has to be said before torch is imported."""
    code = ('import builtins, os, sys\nreal = builtins.__import__\n'
            'def imported(name, *more):\n'
            '    if name == "torch": sys.exit(str(os.environ.get("GOMP_SPINCOUNT")))\n'
            '    return real(name, *more)\n'
            f'builtins.__import__ = imported\nimport {script}')
    for name in ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY'):
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=os.environ | environment,
                          capture_output=True, text=True)
    assert done.stderr.strip() == expected
