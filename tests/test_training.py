"""Training: its steps by hand, what it prints and leaves, and how an interrupted one goes on."""

import csv
import errno
import gc
import itertools
import math
import re
import shutil
import signal
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import ConstantLR

import colourization
import load_data
from colourization import (CNN, DUNet, Settings, UNet, AverageOfWeights, classification, load_model,
                           run_validation_step, train_epoch)
from conftest import ROOT, fails, refusing, run_in, training, unix_only
from load_data import MOVES, InputError, batches

STEPS = 3  # an epoch: of `training`, ten pictures in batches of four; and of the part of the sample
FLAGS = ['-m', 'CNN', '-f', 2, '-e', 2, '--data', 'sample', '--checkpoint', 'w.pkl']


def interrupt(*_, **__):
    raise KeyboardInterrupt


def history_of(folder, network='UNet'):
    """The rows of a history, numbers by their names."""
    rows = csv.DictReader((folder / f'history_{network}.csv').read_text('utf-8').splitlines())
    return [{name: float(value) for name, value in row.items()} for row in rows]


# ---- Steps, epochs, and what is told of them ----


def evaluated(*sizes):
    """A network in the mode in which an evaluation leaves it."""
    return UNet(*sizes).eval()


@pytest.mark.parametrize('schedule, weight_decay, augment, batch_size, steps', [
    ('constant', 0.5, [], 4, 6), ('onecycle', 0., ['flip_lr', 'classes'], 5, 4), ('onecycle', 0.5, [], 4, 6),
    ('constant', 0., [], 4, 1), ('constant', 0., [], 4, 5)])
def test_training_equals_one_written_by_hand(schedule, weight_decay, augment, batch_size, steps, tmp_path):
    """Two epochs of Adam, after each step of which the weights shrink by rate * decay; or Ctrl-C amid them.

    What is saved is the average: the weights after step t count in proportion to t (t + 1) ... (t + 31), the
    polynomial decay of Shamir and Zhang (2013).
    """
    last = 2 * math.ceil(10 / batch_size)
    colours = np.random.default_rng(9).random((5, 3), np.float32)
    saved = training(tmp_path, evaluated, schedule=schedule, weight_decay=weight_decay, learn_rate=0.02,
                     augment=augment, batch_size=batch_size, seed=5, colours=colours.tolist(),
                     stop_after=None if steps == last else steps)

    torch.manual_seed(5)
    grey, cats = torch.rand(10, 1, 8, 8), torch.randint(5, (10, 1, 8, 8))
    model, generator, averages, losses = UNet(3, 4, 5), torch.Generator().manual_seed(5), [], []
    optimizer = torch.optim.Adam(model.parameters())
    orders = (torch.randperm(10, generator=generator) for _ in range(2))
    for part in (part for order in orders for part in order.split(batch_size)):
        rate, step = 0.02, len(averages)
        if schedule == 'onecycle':  # up until step 0.3 * 6 - 1 of 0 to 5, say, then down
            low, middle = 0.02 / 25, 0.3 * last - 1
            up = low + (0.02 - low) * (1 - np.cos(np.pi * step / middle)) / 2
            low /= 10**4
            down = low + (0.02 - low) * (1 + np.cos(np.pi * (step - middle) / (last - 1 - middle))) / 2
            rate = up if step < middle else down
        optimizer.param_groups[0]['lr'] = rate
        x, y = grey[part], cats[part]
        if augment:
            for i, mirrored in enumerate(torch.randint(2, (len(part),), generator=generator)):
                if mirrored:
                    x[i], y[i] = x[i].flip(2), y[i].flip(2)
        loss = F.cross_entropy(model(x), y.squeeze(1))
        optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            for weight in model.parameters():
                weight *= 1 - rate * weight_decay
        optimizer.step()
        losses += [loss.item()] * len(part)
        averages.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    counts = [math.comb(t + 32, 32) for t in range(steps)]
    # Batch norm takes the bias before it away again, so Adam moves that by rounding errors alone.
    rounding_errors = re.compile(r'conv\d?\.0\.bias|running_mean|num_batches_tracked')
    for name in saved:
        if not rounding_errors.search(name):
            expected = sum(count / sum(counts) * state[name] for count, state in zip(counts, averages))
            torch.testing.assert_close(saved[name], expected, rtol=1e-4, atol=1e-5)
    assert np.array_equal(load_model(UNet, tmp_path / 'w.pkl')[1], colours)
    if steps < last / 2:  # no epoch was finished
        assert [path.name for path in tmp_path.iterdir()] == ['w.pkl']
        return
    for i, epoch in enumerate(history_of(tmp_path, 'evaluated')):
        assert epoch['train_loss'] == pytest.approx(np.mean(losses[10 * i:10 * i + 10]), rel=1e-4)
    title = (tmp_path / 'training_curve_evaluated.png').read_text()  # all that `training` writes there
    more = ' and the other classes' if 'classes' in augment else ''
    assert title == f'evaluated, trained on sample pictures{more}'


@pytest.mark.parametrize('step', ['training', 'validation'])
def test_metrics_are_averaged_over_the_pictures_and_not_kept(step, request):
    """Batches of 4, 4, 4, 4 and 2: after the second, no tensor more may be alive than before it.

    Nor a part of the graph of a batch, to each of which one is tied.
    """
    model, grey, alive = CNN(1, 1, 2), torch.rand(18, 1, 4, 4), []

    def objective(outputs, targets):
        gc.collect()
        alive.append(sum(type(thing) is torch.Tensor for thing in gc.get_objects()))
        loss = 0 * outputs.sum() + len(outputs)
        if loss.requires_grad:
            loss.grad_fn.metadata['tied'] = torch.ones(1)
        return {'loss': loss, 'accuracy': torch.tensor(len(alive) / 5)}

    gc.collect()
    gc.freeze()  # what is there already is not looked through
    request.addfinalizer(gc.unfreeze)
    if step == 'validation':
        metrics = run_validation_step(model, objective, grey, grey, batch_size=4)
    else:
        optimizer = torch.optim.SGD(model.parameters())
        metrics = train_epoch(model, AverageOfWeights(CNN(1, 1, 2), model), optimizer,
                              ConstantLR(optimizer, factor=1), objective, batches((grey, grey), 4))
    assert metrics == pytest.approx({'loss': (4 * 16 + 4) / 18,
                                     'accuracy': (4 * (0.2 + 0.4 + 0.6 + 0.8) + 2) / 18})
    assert len(alive) == 5 and len(set(alive[1:])) == 1


def test_training_returns_its_history_and_prints_and_draws_what_it_says(tmp_path, capsys, monkeypatch):
    """Ten seconds a batch, of which three train and one validates."""
    data, drawn, clock = (torch.rand(10, 1, 8, 8), torch.randint(5, (10, 1, 8, 8))), [], [100]
    monkeypatch.setattr(colourization, 'time', SimpleNamespace(time=lambda: clock[0]))

    def objective(*batch):
        clock[0] += 10
        return classification(*batch)

    history = colourization.train(
        UNet(3, 4, 5), objective, data, data, Settings('U', 'noise', batch_size=4, epochs=2),
        tmp_path / 'w.pkl', tmp_path, draw=lambda metrics, suffix: drawn.append((suffix, metrics)))
    assert [(record['epoch'], record['seconds']) for record in history] == [(1, 40), (2, 80)]
    assert capsys.readouterr().out == ''.join(
        f'Epoch [{h["epoch"]}/2], Loss: {h["train_loss"]:.4f}, Time (s): {h["seconds"] - 10}\n'
        f'Epoch [{h["epoch"]}/2], Val Loss: {h["val_loss"]:.4f}, Val Acc: {h["val_accuracy"]:.1%}, '
        f'Time(s): {h["seconds"]}\n' for h in history)
    assert drawn == [(f'_epoch0{h["epoch"]}', {'loss': h['val_loss'], 'accuracy': h['val_accuracy']})
                     for h in history]
    rows = (tmp_path / 'history_U.csv').read_text('utf-8').splitlines()
    assert rows == [','.join(map(str, row)) for row in (history[0], *(record.values() for record in history))]


# ---- What is kept when it goes wrong ----


def break_loss(monkeypatch, call, value):
    """Have the loss be NaN or infinite at one call; three steps and a validation make an epoch."""
    real, calls = F.cross_entropy, itertools.count(1)
    monkeypatch.setattr(F, 'cross_entropy', lambda scores, cats: real(scores, cats) * (
        value if next(calls) == call else 1))


@pytest.mark.parametrize('call', [5, 8])
def test_loss_that_is_not_finite_stops_and_keeps_the_last_good_weights(call, tmp_path, monkeypatch):
    """In the training, or only in the validation, of the second epoch; it cannot be resumed."""
    (tmp_path / 'one').mkdir()
    good = training(tmp_path / 'one', epochs=1)
    break_loss(monkeypatch, call, np.inf)
    with pytest.raises(InputError, match='not finite in epoch 2.*--learn_rate'):
        training(tmp_path)
    saved = torch.load(tmp_path / 'w.pkl', weights_only=True)
    assert all(torch.equal(saved[name], good[name]) for name in good)
    assert len(history_of(tmp_path)) == 1 and not (tmp_path / 'w.pkl.resume').exists()


def test_loss_that_is_not_finite_from_the_first_epoch_on_saves_nothing(tmp_path, monkeypatch):
    break_loss(monkeypatch, 1, np.inf)
    with pytest.raises(InputError, match='not finite in epoch 1'):
        training(tmp_path)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_not_saved_when_they_are_interrupted(tmp_path, monkeypatch, capsys):
    break_loss(monkeypatch, STEPS + 2, np.nan)
    saved = training(tmp_path, stop_after=STEPS + 1)
    assert all(tensor.isfinite().all() for tensor in saved.values())
    assert capsys.readouterr().err == ''


def test_interruption_before_the_first_step_saves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, 'randperm', interrupt)
    with pytest.raises(KeyboardInterrupt):
        training(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('script, network, flags, instead', [
    ('colourization.py', 'cnn', FLAGS, 'add --valid'),
    ('colour_regression.py', 'regression_cnn', ['--train', '-f', 16, *FLAGS[4:]], 'leave out --train')])
def test_network_is_not_replaced_before_another_has_finished_an_epoch(script, network, flags, instead,
                                                                      run_script, tmp_path):
    shipped = ROOT / f'weights/{network}_k3_f16.pkl'
    shutil.copy(shipped, tmp_path / 'w.pkl')
    done = run_script(script, *flags, stop_after=STEPS - 1)
    note, end = done.errors.splitlines()
    assert note.startswith('note: w.pkl ') and 'after the first epoch' in note and instead in note
    assert done.status == 130 and re.fullmatch('interrupted before .*w.pkl .*', end)
    assert (tmp_path / 'w.pkl').read_bytes() == shipped.read_bytes()
    assert sorted(path.name for path in tmp_path.rglob('*.*')) == ['w.pkl']


@pytest.mark.parametrize('name', ['history_CNN.csv', 'training_curve_CNN.png', 'eval_CNN_epoch01.png'])
def test_table_or_picture_that_cannot_be_written_is_a_warning(name, tmp_path, monkeypatch, run_script):
    real = load_data.replace

    def replace(old, new):
        if new.name == name:
            raise PermissionError(13, 'Permission denied')
        real(old, new)
    monkeypatch.setattr(load_data, 'replace', replace)
    done = run_script('colourization.py', *FLAGS, '--plot')
    assert done.status == 0 and 'Epoch [2/2], Val Loss' in done.output
    assert all(line.startswith('warning: ') and f'{name} cannot be written' in line
               for line in done.errors.splitlines()) and done.errors
    assert (tmp_path / 'w.pkl').exists() and (tmp_path / 'outputs/eval_CNN.png').exists()


@pytest.mark.parametrize('later', ['tables', pytest.param('lines', marks=unix_only)])
def test_weights_and_state_are_saved_before_tables_and_lines(later, tmp_path, monkeypatch):
    """So that what ends the process there, as a full disk that the lines are sent to, costs nothing."""
    if later == 'tables':
        monkeypatch.setattr(colourization, 'save_history', lambda *_: sys.exit())
    else:
        monkeypatch.setattr(sys, 'stdout', refusing(errno.ENOSPC))
    with pytest.raises((SystemExit, InputError)):
        training(tmp_path)
    state = torch.load(tmp_path / 'w.pkl.resume', weights_only=True)
    weights = torch.load(tmp_path / 'w.pkl', weights_only=True)
    assert all(torch.equal(weights[name], tensor) for name, tensor in state['model'].items())
    assert (tmp_path / 'history_UNet.csv').exists() == (later == 'lines')


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
    assert len(history_of(here)) == 2 and torch.load(here / 'w.pkl', weights_only=True)


# ---- Interrupted, and resumed as if nothing had happened ----


def left_behind(folder):
    """The weights and, but for the seconds, the histories, and the bytes of the other files, in a folder."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix not in ('.pkl', '.csv')}
    histories = [history_of(folder, path.stem.removeprefix('history_')) for path in folder.glob('*.csv')]
    for row in (row for history in histories for row in history):
        del row['seconds']
    return torch.load(folder / 'w.pkl', weights_only=True), files, histories


def assert_same(folder, other):
    weights, *files = left_behind(folder)
    its_weights, *its_files = left_behind(other)
    assert weights.keys() == its_weights.keys() and files == its_files
    assert all(torch.equal(weights[name], its_weights[name]) for name in weights)


@pytest.mark.parametrize('make, settings', [
    (CNN, {}), (UNet, {'schedule': 'onecycle', 'weight_decay': 0.1}),
    (DUNet, {'schedule': 'onecycle', 'augment': MOVES, 'batch_size': 5})])
def test_resumed_run_equals_the_uninterrupted_one(make, settings, tmp_path):
    """Interrupted in the second, third and last of four epochs, at their begin and amid them; or thrice."""
    settings |= {'make': make, 'epochs': 4, 'learn_rate': 0.02}
    (tmp_path / 'whole').mkdir()
    training(tmp_path / 'whole', **settings)
    epoch = math.ceil(10 / settings.get('batch_size', 4))
    for steps in ([epoch + 1], [2 * epoch + 2], [4 * epoch], [epoch + 1, epoch + 1, epoch + 1]):
        folder = tmp_path / str(steps)
        folder.mkdir()
        for i, stop_after in enumerate(steps):
            training(folder, resume=i > 0, stop_after=stop_after, **settings)
            assert (folder / 'w.pkl.resume').exists()
        training(folder, resume=True, **settings)
        assert_same(folder, tmp_path / 'whole')


def test_seconds_of_a_resumed_run_go_on(tmp_path, capsys):
    training(tmp_path, stop_after=STEPS + 1)
    state = torch.load(tmp_path / 'w.pkl.resume', weights_only=True)
    state['history'][0]['seconds'] = 1000.0
    torch.save(state, tmp_path / 'w.pkl.resume')
    capsys.readouterr()
    training(tmp_path, resume=True)
    first, second = history_of(tmp_path)
    assert first['seconds'] == 1000 < second['seconds'] < 1900
    assert re.match(r'Epoch \[2/2\], Loss: .*, Time \(s\): 1\d{3} ', capsys.readouterr().out)


@pytest.fixture(scope='module')
def interrupted(tmp_path_factory):
    """The files that a run of four epochs leaves when it is interrupted in the second one."""
    folder = tmp_path_factory.mktemp('interrupted')
    training(folder, epochs=4, stop_after=STEPS + 1)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_not_resumed(folder, files, words, **changes):
    """Whether an error says so, and the files stay as they are."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=f'w.pkl.resume: no interrupted run of these flags .*{words}.*: give '
                       'the same flags as before, or leave out --resume and choose another --checkpoint'):
        training(folder, resume=True, **{'epochs': 4, **changes})
    assert files == {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize('changes, words', [
    ({'epochs': 5}, 'epochs 4'), ({'batch_size': 5}, 'batch_size 4'), ({'seed': 1}, 'seed 0'),
    ({'learn_rate': 0.1}, 'learn_rate 0.001'), ({'schedule': 'onecycle'}, 'schedule constant'),
    ({'weight_decay': 0.1}, r'weight_decay 0\.0'), ({'float32': False}, 'float32 True'),
    ({'augment': ['flip_lr']}, 'augment'), ({'make': DUNet}, 'network UNet'),
    ({'pictures': 'CIFAR-10'}, 'pictures sample pictures'), ({'hold_out': 9}, 'hold_out 0'),
    ({'colours': [[0.5, 0.5, 0.5]] * 5}, 'colours None')], ids=lambda value: next(iter(value), None))
def test_run_is_not_resumed_with_other_flags(changes, words, interrupted, tmp_path):
    assert_not_resumed(tmp_path, interrupted, f'it was begun with {words}', **changes)


@pytest.mark.parametrize('kind, words', [
    ('no file', 'No such file'), ('no state', "it starts with 'not a state'"), ('weights', ''),
    *((tenths, '') for tenths in range(10))])
def test_broken_state_is_not_resumed(kind, words, interrupted, tmp_path):
    files = dict(interrupted)
    state = files.pop('w.pkl.resume')
    if kind != 'no file':
        contents = {'no state': b'not a state', 'weights': files['w.pkl']}
        files['w.pkl.resume'] = contents[kind] if kind in contents else state[:len(state) * kind // 10]
    assert_not_resumed(tmp_path, files, words)


def test_no_epoch_is_promised_whose_state_was_not_saved(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(colourization, 'save_state', interrupt)
    with pytest.raises(KeyboardInterrupt):
        training(tmp_path)
    assert capsys.readouterr().err.endswith('w.pkl\n') and not (tmp_path / 'w.pkl.resume').exists()


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


def test_script_says_how_an_interrupted_training_goes_on_and_it_does(run_script, tmp_path):
    """Interrupted in the second of two epochs, it ends with the same weights as without."""
    np.save(tmp_path / 'c.npy', [[0.2, 0.2, 0.2], [0.7, 0.7, 0.7]])
    words = ['colourization.py', *FLAGS, '--prior', 20, '-c', 'c.npy']
    moves = ['--augment', 'zoom', 'flip_lr', 'zoom']
    assert run_script(*words, *moves, '--checkpoint', 'whole.pkl').errors == ''
    done = run_script(*words, *moves, stop_after=STEPS + 2)
    assert done.status == 130 and 'training_curve_CNN_prior.png' in done.figures
    assert re.fullmatch('interrupted: the weights so far are in .*w.pkl; --resume goes on after the last '
                        'whole epoch\n', done.errors)
    assert len(history_of(tmp_path / 'outputs', 'CNN_prior')) == 1
    state, weights = ((tmp_path / name).read_bytes() for name in ('w.pkl.resume', 'w.pkl'))
    for flags, told in ((moves, ['interrupted, or is still going on', '--resume', 'another --checkpoint']),
                        (['--resume', '--augment', 'flip_lr'], ["begun with augment ['flip_lr', 'zoom']"]),
                        (['--resume', *moves, '--hold_out', 9], ['begun with hold_out 0'])):
        assert fails(run_script(*words, *flags), 1, 'w.pkl.resume', *told)
    assert state == (tmp_path / 'w.pkl.resume').read_bytes() and weights == (tmp_path / 'w.pkl').read_bytes()
    done = run_script(*words, '--resume', '--augment', 'flip_lr', 'zoom')  # in any order
    assert (done.status, done.errors) == (0, '') and done.output.startswith('Epoch [2/2], Loss')
    whole, parts = (torch.load(tmp_path / name, weights_only=True) for name in ('whole.pkl', 'w.pkl'))
    assert whole['prior'].shape == (20, 2) and whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not (tmp_path / 'w.pkl.resume').exists()


@pytest.mark.slow
@unix_only
def test_killed_script_is_resumed(tmp_path):
    """With two signals that end it and with Ctrl-C; the same files and weights as without."""
    np.save(tmp_path / 'two.npy', [[0.2, 0.2, 0.2], [0.7, 0.7, 0.7]])

    def run(name, *flags, **settings):
        (tmp_path / name).mkdir(exist_ok=True)
        return run_in(tmp_path / name, 'colourization.py', '-m', 'CNN', '--data', 'sample', '-f', 4, '-e', 9,
                      '-c', tmp_path / 'two.npy', '-b', 100, '--prior', 20, '--augment', 'flip_lr', *flags,
                      new_process=True, **settings)

    assert run('whole').errors == ''
    for epoch, how, status in ((3, signal.SIGKILL, -signal.SIGKILL), (5, signal.SIGTERM, -signal.SIGTERM),
                               (7, signal.SIGINT, 130)):
        done = run('parts', *['--resume'] * (epoch > 3), stop_after=f'[{epoch}/9], Loss', signal=how)
        assert done.status == status
    assert '; --resume goes on after the last' in done.errors
    done = run('parts', '--resume')
    assert done.errors == '' and re.match(r'Epoch \[[789]/9\], Loss', done.output)
    whole, parts = (torch.load(tmp_path / name / 'outputs/cnn_prior_k3_f4.pkl', weights_only=True)
                    for name in ('whole', 'parts'))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    whole, parts = ({path.name for path in (tmp_path / name / 'outputs').iterdir() if path.name[0] != '.'}
                    for name in ('whole', 'parts'))
    assert whole == parts


def test_colour_numbers_may_be_bytes():
    scores, numbers = torch.randn(2, 256, 4, 32), torch.arange(256).reshape(2, 1, 4, 32)
    assert classification(scores, numbers.byte()) == classification(scores, numbers)


def test_network_is_channels_last_and_what_it_was_trained_on_let_go_afterwards(run_script, monkeypatch):
    kept, real = [], colourization.evaluate

    def train(model, objective, train_set, *_, **__):
        assert model.upconv1[0].weight.is_contiguous(memory_format=torch.channels_last)
        kept.append(weakref.ref(train_set[0]))

    monkeypatch.setattr(colourization, 'train', train)
    monkeypatch.setattr(colourization, 'evaluate', lambda *given: kept.append(kept[0]()) or real(*given))
    assert run_script('colourization.py', '-m', 'CNN', '-f', 2, '--data', 'sample').status == 0
    assert kept[1] is None
