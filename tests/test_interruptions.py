"""Interrupted training: what is on the disk is whole, and --resume goes on as if nothing had happened."""

import csv
import multiprocessing
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import colourization
import load_data
from colourization import CNN, DUNet, UNet, AverageOfWeights, load_model
from conftest import ROOT, fails, obey_ctrl_c, training, unix_only
from load_data import MOVES, InputError

STEPS = 3  # an epoch of `training`: ten pictures in batches of four


def interrupted_after(steps, monkeypatch, *arguments, **settings):
    """Run `training` until so many steps are done."""
    real, done = AverageOfWeights.update, []

    def update(self):
        real(self)
        done.append(None)
        if len(done) == steps:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(AverageOfWeights, 'update', update)
        with pytest.raises(KeyboardInterrupt):
            training(*arguments, **settings)


def left_behind(folder):
    """The weights, and the bytes of the other files less the seconds that an epoch took."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != 'w.pkl'}
    for name in files:
        if name.startswith('history'):
            rows = list(csv.DictReader(files[name].decode().splitlines()))
            files[name] = [{key: row[key] for key in row if key != 'seconds'} for row in rows]
    return torch.load(folder / 'w.pkl', weights_only=True), files


def assert_same(folder, other):
    weights, files = left_behind(folder)
    its_weights, its_files = left_behind(other)
    assert weights.keys() == its_weights.keys() and files == its_files
    assert all(torch.equal(weights[name], its_weights[name]) for name in weights)


@pytest.mark.parametrize('make, settings', [
    (CNN, {}), (DUNet, {'augment': MOVES}), (UNet, {'schedule': 'onecycle', 'weight_decay': 0.1}),
    (CNN, {'schedule': 'onecycle', 'augment': MOVES})])
def test_resumed_run_equals_the_uninterrupted_one(make, settings, tmp_path, monkeypatch):
    """Interrupted in the second, third and last of four epochs, at their begin and amid them."""
    settings |= {'make': make, 'epochs': 4, 'learn_rate': 0.02}
    (tmp_path / 'whole').mkdir()
    training(tmp_path / 'whole', **settings)
    for steps in (STEPS + 1, 2 * STEPS + 2, 4 * STEPS):
        folder = tmp_path / str(steps)
        folder.mkdir()
        interrupted_after(steps, monkeypatch, folder, **settings)
        assert (folder / 'w.pkl.resume').exists()
        training(folder, resume=True, **settings)
        assert_same(folder, tmp_path / 'whole')


def test_seconds_of_a_resumed_run_go_on(tmp_path, monkeypatch, capsys):
    interrupted_after(STEPS + 1, monkeypatch, tmp_path)
    state = torch.load(tmp_path / 'w.pkl.resume', weights_only=True)
    state['history'][0]['seconds'] = 1000.0
    torch.save(state, tmp_path / 'w.pkl.resume')
    capsys.readouterr()
    training(tmp_path, resume=True)
    _, first, second = csv.reader((tmp_path / 'history_UNet.csv').read_text('utf-8').splitlines())
    assert float(first[1]) == 1000 and 1000 < float(second[1]) < 1900
    assert re.match(r'Epoch \[2/2\], Loss: .*, Time \(s\): 1\d{3} ', capsys.readouterr().out)


def test_run_can_be_interrupted_again_and_again(tmp_path, monkeypatch):
    (tmp_path / 'whole').mkdir()
    (tmp_path / 'parts').mkdir()
    training(tmp_path / 'whole', epochs=4)
    interrupted_after(STEPS + 1, monkeypatch, tmp_path / 'parts', epochs=4)
    for _ in range(2):
        interrupted_after(STEPS + 2, monkeypatch, tmp_path / 'parts', epochs=4, resume=True)
    training(tmp_path / 'parts', epochs=4, resume=True)
    assert_same(tmp_path / 'parts', tmp_path / 'whole')


@pytest.mark.parametrize('changes, word', [
    ({'epochs': 5}, 'epochs 4'), ({'batch_size': 5}, 'batch_size 4'), ({'seed': 1}, 'seed 0'),
    ({'learn_rate': 0.1}, 'learn_rate 0.001'), ({'schedule': 'onecycle'}, 'schedule constant'),
    ({'weight_decay': 0.1}, r'weight_decay 0\.0'), ({'float32': False}, 'float32 True'),
    ({'augment': ['flip_lr']}, 'augment'), ({'make': DUNet}, 'network UNet'),
    ({'pictures': 'CIFAR-10'}, 'pictures sample pictures'), ({'hold_out': 9}, 'hold_out 0'),
    ({'colours': [[0.5, 0.5, 0.5]] * 5}, 'colours None')])
def test_run_is_not_resumed_with_other_flags(changes, word, tmp_path, monkeypatch):
    interrupted_after(STEPS + 1, monkeypatch, tmp_path, epochs=4)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=f'no interrupted run .* begun with {word}.*give the same flags'):
        training(tmp_path, resume=True, **{'epochs': 4, **changes})
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_nothing_is_resumed_where_nothing_was_interrupted(tmp_path):
    with pytest.raises(InputError, match='w.pkl.resume: no interrupted run of these flags'):
        training(tmp_path, resume=True)
    training(tmp_path)
    with pytest.raises(InputError, match='w.pkl.resume: no interrupted run of these flags'):
        training(tmp_path, resume=True)


def test_broken_state_is_not_resumed(tmp_path, monkeypatch):
    interrupted_after(STEPS + 1, monkeypatch, tmp_path)
    state = tmp_path / 'w.pkl.resume'
    whole = state.read_bytes()
    weights = torch.load(tmp_path / 'w.pkl', weights_only=True)
    for content in [whole[:len(whole) * tenth // 10] for tenth in range(10)] + [b'not a state']:
        state.write_bytes(content)
        with pytest.raises(InputError, match='w.pkl.resume: no interrupted run'):
            training(tmp_path, resume=True)
    torch.save(weights, state)
    with pytest.raises(InputError, match='w.pkl.resume: no interrupted run'):
        training(tmp_path, resume=True)


@pytest.mark.parametrize('epoch, promised', [(1, ''), (2, '; --resume goes on after the last whole epoch')])
def test_only_epochs_whose_state_was_saved_are_promised(epoch, promised, tmp_path, monkeypatch, capsys):
    real = colourization.save_state

    def interrupted(path, settings, stateful, generator, history):
        if len(history) == epoch:
            raise KeyboardInterrupt
        real(path, settings, stateful, generator, history)

    monkeypatch.setattr(colourization, 'save_state', interrupted)
    with pytest.raises(KeyboardInterrupt):
        training(tmp_path, epochs=3)
    assert capsys.readouterr().err.endswith(f'w.pkl{promised}\n')
    assert (tmp_path / 'w.pkl.resume').exists() == bool(promised)


def test_run_can_be_killed_anywhere(tmp_path):
    """What lies on the disk at each line of the program is whole, and resumed to the same end.

    A process that is killed leaves just that: what it has written, and no more.
    """
    whole, seen = tmp_path / 'whole', []
    whole.mkdir()

    def look(frame, event, argument):
        if frame.f_globals.get('__name__') not in ('colourization', 'load_data'):
            return None
        files = {name: (whole / name).read_bytes() for name in ('w.pkl', 'w.pkl.resume')
                 if (whole / name).exists()}
        if not seen or files != seen[-1]:
            seen.append(files)
        return look

    sys.settrace(look)
    try:
        training(whole, epochs=4)
    finally:
        sys.settrace(None)
    # Weights, state; new weights, state; new weights, state; new weights; and no state any more.
    assert [len(files) for files in seen] == [0, 1, 2, 2, 2, 2, 2, 2, 1]
    for i, files in enumerate(seen):
        folder = tmp_path / str(i)
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        if 'w.pkl' in files:
            load_model(UNet, folder / 'w.pkl')
        if 'w.pkl.resume' in files:
            training(folder, epochs=4, resume=True)
            assert_same(folder, whole)


def test_script_resumes_what_was_interrupted(run_script, tmp_path, monkeypatch):
    """In the second of two epochs; it says how to go on, and ends with the same weights as without."""
    real, epochs = load_data.batches, []

    def interrupted(tensors, batch_size, generator=None, augmentations=()):
        epochs.append(generator)  # of the training alone
        if sum(generator is not None for generator in epochs) == 2:
            raise KeyboardInterrupt
        return real(tensors, batch_size, generator, augmentations)

    np.save(tmp_path / 'c.npy', [[0.2, 0.2, 0.2], [0.7, 0.7, 0.7]])
    words = ['colourization.py', '-m', 'CNN', '--data', 'sample', '-k', 1, '-f', 1, '-e', 2, '-b', 500,
             '-c', 'c.npy', '--augment', 'flip_lr', '--prior', 20, '--checkpoint']
    assert run_script(*words, 'whole.pkl').stderr == ''
    with monkeypatch.context() as patch:
        patch.setattr(load_data, 'batches', interrupted)
        done = run_script(*words, 'parts.pkl')
    assert done.returncode == 130
    assert done.stderr == (f'interrupted: the weights so far are in {tmp_path / "parts.pkl"}; --resume goes '
                           'on after the last whole epoch\n')
    assert fails(run_script(*words, 'parts.pkl', '--resume', '--hold_out', 9), 1, 'begun with hold_out 0)')
    done = run_script(*words, 'parts.pkl', '--resume')
    assert done.stderr == '' and done.stdout.startswith('Epoch [2/2], Loss')
    whole, parts = (torch.load(tmp_path / name, weights_only=True) for name in ('whole.pkl', 'parts.pkl'))
    assert whole['prior'].shape == (20, 2) and whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not (tmp_path / 'parts.pkl.resume').exists()


def run_for_ever(folder, seed):
    torch.set_num_threads(1)
    training(folder, epochs=10**6, seed=seed)


@pytest.mark.slow
def test_checkpoint_loads_whenever_a_run_is_killed(tmp_path):
    """Forty runs, each killed at some instant after its first checkpoint."""
    rng = random.Random(0)
    context = multiprocessing.get_context('forkserver')  # a fork of this process inherits locks
    context.set_forkserver_preload(['conftest'])
    for seed in range(40):
        process = context.Process(target=run_for_ever, args=(tmp_path, seed))
        process.start()
        while not (tmp_path / 'w.pkl').exists():
            assert process.is_alive()
            time.sleep(0.001)
        time.sleep(0.05 * rng.random())
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        load_model(UNet, tmp_path / 'w.pkl')
        if seed % 10 == 9:
            (tmp_path / 'w.pkl').unlink()


@pytest.mark.slow
@unix_only
def test_killed_script_is_resumed(tmp_path):
    """With SIGKILL and with Ctrl-C, which says how to go on; the same weights as without."""
    np.save(tmp_path / 'two.npy', [[0.2, 0.2, 0.2], [0.7, 0.7, 0.7]])
    words = [sys.executable, ROOT / 'colourization.py', '-m', 'CNN', '--data', 'sample', '-f', '4', '-e', '6',
             '-c', tmp_path / 'two.npy', '-b', '100', '--prior', '20', '--augment', 'flip_lr']

    def start(folder, *flags):
        (tmp_path / folder).mkdir(exist_ok=True)
        return subprocess.Popen([*words, *flags], cwd=tmp_path / folder, text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, preexec_fn=obey_ctrl_c)

    def end_in_epoch(number, how, *flags):
        process = start('parts', *flags)
        while f'[{number}/6], Loss' not in (line := process.stdout.readline()):
            assert line
        process.send_signal(how)
        return process.communicate(timeout=100)[1]

    assert start('whole').communicate(timeout=100)[1] == ''
    end_in_epoch(3, signal.SIGKILL)
    errors = end_in_epoch(5, signal.SIGINT, '--resume')
    assert re.fullmatch(r'interrupted: .*cnn_prior_k3_f4.pkl; --resume goes on after the last .*\n', errors)
    output, errors = start('parts', '--resume').communicate(timeout=100)
    assert errors == '' and re.match(r'Epoch \[[56]/6\], Loss', output)
    name = 'outputs/cnn_prior_k3_f4.pkl'
    whole, parts = (torch.load(tmp_path / folder / name, weights_only=True) for folder in ('whole', 'parts'))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    whole, parts = ({path.name for path in (tmp_path / folder / 'outputs').iterdir() if path.name[0] != '.'}
                    for folder in ('whole', 'parts'))
    assert whole == parts
