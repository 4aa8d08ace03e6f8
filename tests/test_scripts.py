"""The scripts as users run them: the handout's commands, wrong uses, interruptions."""

import copy
import importlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from packaging.requirements import Requirement  # which pytest needs
from PIL import Image

import activations
import colourization
import load_data
from colour_regression import RegressionCNN
from colourization import (Settings, get_rgb_cat, log_frequencies, parse_args, report, run,
                           scores_to_rgb)
from conftest import ROOT, fails, near, obey_ctrl_c, part_of_sample, peak_memory, read_once, unix_only
from load_data import load_cifar10

EPOCH_LINES = [r'Epoch \[{e}/2\], Loss: \d+\.\d{{4}}, Time \(s\): \d+',
               r'Epoch \[{e}/2\], Val Loss: \d+\.\d{{4}}, Val Acc: \d+\.\d%, Time\(s\): \d+']


def is_picture(path, pixels=100_000):
    """Whether a PNG file shows something: enough pixels, and not all of the same colour."""
    picture = imread(path)[..., :3]
    return picture.shape[0] * picture.shape[1] >= pixels and picture.std() > 0.05


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A folder where small networks were trained on a part of the sample, and what each printed."""
    folder = tmp_path_factory.mktemp('trained')
    printed = {}
    for model in ('CNN', 'UNet'):
        out, err = (io.TextIOWrapper(io.BytesIO(), 'utf-8', write_through=True) for _ in range(2))
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(load_data, 'load_sample', part_of_sample)
            patch.setattr(sys, 'argv', ['colourization.py', *shlex.split(
                f'--model {model} --data sample -e 2 -f 4 --checkpoint {model}.pkl'
                + ' --plot' * (model == 'UNet'))])
            patch.setattr(sys, 'stdout', out)
            patch.setattr(sys, 'stderr', err)
            run(colourization.main)
        assert err.buffer.getvalue() == b''
        printed[model] = out.buffer.getvalue().decode().splitlines()
    return folder, printed


@pytest.mark.parametrize('model', ['CNN', 'UNet'])
def test_training_prints_the_lines_of_the_course_and_leaves_pictures(trained, model):
    folder, printed = trained
    *epochs, last = [line for line in printed[model] if re.match('Epoch|Val Loss', line)]
    patterns = [line.format(e=e) for e in (1, 2) for line in EPOCH_LINES]
    assert all(re.fullmatch(pattern + r' \(sample\)', line)
               for pattern, line in zip(patterns, epochs, strict=True))
    assert re.fullmatch(r'Val Loss: \d+\.\d{4}, Val Acc: \d+\.\d% \(sample\)', last)
    for name in (f'training_curve_{model}', f'eval_{model}'):
        assert is_picture(folder / f'outputs/{name}.png')
    assert torch.load(folder / f'{model}.pkl', weights_only=True)['finalconv.bias'].shape == (24,)
    assert (folder / f'outputs/eval_{model}_epoch02.png').exists() == (model == 'UNet')  # --plot

    metrics = json.loads((folder / f'outputs/metrics_{model}.json').read_text('utf-8'))
    header, *rows = (folder / f'outputs/history_{model}.csv').read_text('utf-8').splitlines()
    assert header == 'epoch,seconds,train_loss,train_accuracy,val_loss,val_accuracy'
    assert [row.split(',')[0] for row in rows] == ['1', '2']
    for row, trained, valid in zip(rows, epochs[::2], epochs[1::2], strict=True):
        _, _, train_loss, _, val_loss, val_accuracy = map(float, row.split(','))
        assert f' Loss: {train_loss:.4f}, T' in trained
        assert f'Val Loss: {val_loss:.4f}, Val Acc: {val_accuracy:.1%}, ' in valid
    assert metrics['val_loss'] == float(rows[-1].split(',')[4])
    assert metrics['data'] == 'sample pictures'
    assert f'Val Loss: {metrics["val_loss"]:.4f}, Val Acc: {metrics["val_accuracy"]:.1%}' in last


@pytest.mark.parametrize('dash', ['--', '–', '—'])
def test_pasted_dashes_work_and_validation_repeats_what_training_ended_with(trained, dash, run_script):
    folder, printed = trained
    done = run_script('colourization.py', f'{dash}model', 'UNet', f'{dash}checkpoint',
                      folder / 'UNet.pkl', f'{dash}valid', f'{dash}data=sample',
                      f'{dash[:1]}b', 10, f'{dash[:1]}f4')
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == printed['UNet'][-1]


@pytest.mark.parametrize('model', ['CNN', 'UNet', 'DUNet'])
def test_handout_commands_find_the_shipped_weights_from_any_folder(model, run_script, tmp_path):
    done = run_script('colourization.py', '–model', model, '–checkpoint',
                      f'weights/{model.lower()}_k3_f32.pkl', '–valid', '--data', 'sample', draw=True)
    assert done.returncode == 0 and done.stderr == '', done.stderr
    assert done.stdout.splitlines()[-1].endswith('(sample)')
    assert is_picture(tmp_path / f'outputs/eval_{model}.png')


def test_regression_is_evaluated(run_script, tmp_path):
    done = run_script('colour_regression.py', '--data', 'sample', draw=True)
    assert done.returncode == 0 and done.stderr == '', done.stderr
    last = done.stdout.splitlines()[-1]
    loss, psnr = re.match(r'Val Loss: (0\.\d{5}), PSNR: (\d+\.\d\d) dB', last).groups()
    assert float(psnr) == pytest.approx(10 * np.log10(1 / float(loss)), abs=0.02)
    assert is_picture(tmp_path / 'outputs/regression_output.png')
    metrics = json.loads((tmp_path / 'outputs/metrics_RegressionCNN.json').read_text('utf-8'))
    assert metrics['val_loss'] == pytest.approx(float(loss), abs=1e-5)
    assert metrics['pictures']['prediction']['mean_squared_error'] == pytest.approx(float(loss), rel=0.02)


def shipped_weights():
    """Rows of the tables in weights/README.md: the checkpoint, loss, accuracy or PSNR, and the command."""
    row = r'\| `(\w+\.pkl)` \| ([\d.]+) \| ([\d.]+) (?:%|dB) \| `python (.*?)` \|'
    return re.findall(row, (ROOT / 'weights/README.md').read_text('utf-8'))


BETTER_THAN = {  # the course's weights, by far: a loss, and an accuracy or PSNR
    'cnn_k3_f32.pkl': (1.42, 46.5), 'unet_k3_f32.pkl': (1.18, 56), 'dunet_k3_f32.pkl': (1.18, 56),
    'regression_cnn_k3_f32.pkl': (0.0060, 22.2)}
WITH_PRIOR = 'unet_prior_k3_f32.pkl'


@pytest.mark.parametrize('name, loss, measure, command', [
    pytest.param(*row, id=row[0], marks=[pytest.mark.slow] * (row[0] not in [*BETTER_THAN, WITH_PRIOR]))
    for row in shipped_weights()])
def test_readme_tells_what_the_shipped_weights_reach(name, loss, measure, command, cifar10, run_script,
                                                          monkeypatch):
    monkeypatch.setattr(load_data, 'load_cifar10', read_once)
    done = run_script(*shlex.split(command), '--data', cifar10)
    assert done.returncode == 0 and done.stderr == '', done.stderr
    last = done.stdout.splitlines()[-1]
    measured = re.fullmatch(r'Val Loss: ([\d.]+), .*: ([\d.]+)(?:%| dB)', last).groups()
    assert float(measured[0]) == pytest.approx(float(loss), rel=2e-4)  # but for another machine's rounding
    assert float(measured[1]) == pytest.approx(float(measure), abs=0.11)
    assert (f'weights/{name}' in command) == (command != 'colour_regression.py')  # which names it itself
    most, least = BETTER_THAN.get(name, (np.inf, 0))
    assert float(measured[0]) < most and float(measured[1]) > least


def recipes():
    """The commands of weights/README.md that made the networks: the script, its flags, and what they save."""
    text = (ROOT / 'weights/README.md').read_text('utf-8')
    for script, flags in re.findall(r'^    python (colour\w+)\.py (.*)$', text, re.MULTILINE):
        def given(pattern, default):
            return (re.search(pattern, flags) or [None, default])[1]
        model = given(r'--model (\w+)', 'regression_cnn').lower() + '_prior' * ('--prior' in flags)
        name = f'outputs/{model}_k{given("-k (.)", 3)}_f{given(r"-f (.+?) ", 32)}.pkl'
        yield script, flags, given(r'--checkpoint (\S+)', name)


def test_readme_has_every_shipped_checkpoint_with_its_recipe_and_the_colours_are_there():
    shipped = {path.name for path in (ROOT / 'weights').glob('*.pkl')}
    assert {name for name, *_ in shipped_weights()} == shipped
    assert sorted(path for *_, path in recipes()) == sorted(f'outputs/{name}' for name in shipped)
    for path in (ROOT / 'weights').glob('*.pkl'):
        torch.load(path, weights_only=True)
    for script, flags, path in recipes():
        if script == 'colourization':
            args = colourization.parse_args(shlex.split(flags))
            _, _, saved = colourization.read_checkpoint(ROOT / 'weights' / os.path.basename(path))
            assert np.array_equal(colourization.choose_colours(args.colours, args.category), saved), path


def test_readme_and_that_of_the_weights_tell_the_same_numbers():
    readme = (ROOT / 'README.md').read_text('utf-8')
    row = r'\| `python (.+?)` \| \d+ s \| `Val Loss: ([\d.]+), .+?: ([\d.]+)(?:%| dB)` \|'
    told = re.findall(row, readme)
    evaluated = {row for row in told if '-e 5' not in row[0]}  # not that of part C, which trains
    assert (len(told), len(evaluated)) == (5, 4)
    assert evaluated <= {(command, loss, measure) for _, loss, measure, command in shipped_weights()}
    accuracies = {name: measure for name, _, measure, _ in shipped_weights()}
    table = re.findall(r'^\| (\w+) \| 4[\d.]+ % \| ([\d.]+) % \| ([\d.]+) % \|$', readme, re.MULTILINE)
    assert [name for name, *_ in table] == ['CNN', 'UNet', 'DUNet']
    for name, ours, with_prior in table:
        assert accuracies[f'{name.lower()}_k3_f32.pkl'] == ours
        assert accuracies[f'{name.lower()}_prior_k3_f32.pkl'] == with_prior


def test_any_newer_torch_is_kept_and_the_readme_names_the_one_of_its_numbers():
    lines = (ROOT / 'requirements.txt').read_text('utf-8').splitlines()
    torch_line, = (Requirement(line.partition('#')[0]) for line in lines if line.startswith('torch'))
    assert all(version in torch_line.specifier for version in ('2.6.0', '2.13.0', '2.15.0', '3.0'))
    commands = re.findall(r'^ +pip install (.*) && ', (ROOT / 'README.md').read_text('utf-8'), re.MULTILINE)
    assert commands == ['torch==2.13.0 -r requirements.txt'] * 2


def test_regression_is_trained(run_script, tmp_path):
    done = run_script('colour_regression.py', '--train', '--data', 'sample', '-e', 2, '-f', 4, draw=True)
    assert done.returncode == 0 and done.stderr == '', done.stderr
    losses = [float(x) for x in re.findall(r'Epoch .* Val Loss: ([\d.]+)', done.stdout)]
    assert len(losses) == 2 and losses[1] < losses[0]
    assert torch.load(tmp_path / 'outputs/regression_cnn_k3_f4.pkl',
                      weights_only=True)['finalconv.bias'].shape == (3,)
    assert is_picture(tmp_path / 'outputs/training_curve_RegressionCNN.png')


@pytest.mark.parametrize('model', ['CNN', pytest.param('UNet', marks=pytest.mark.slow)])
def test_activations_are_drawn(model, run_script, tmp_path):
    done = run_script('activations.py', 5, '–model', model, '–checkpoint',
                      f'weights/{model.lower()}_k3_f32.pkl', '--data', 'sample', draw=True)
    assert done.returncode == 0 and done.stderr == '', done.stderr
    names = ['input', 'input_rgb', 'output', *(f'out{stage}' for stage in range(5))]
    files = [*(f'filter_{name}_5.png' for name in names), 'overview_5.png']
    folder = tmp_path / f'outputs/act_{model}_5'
    assert sorted(p.name for p in folder.iterdir()) == sorted(files)
    assert all(is_picture(folder / name) for name in files)


def test_kmeans_of_the_sample_leaves_the_colours_of_the_horses_alone(run_script, tmp_path):
    done = run_script('colourization.py', '--kmeans', 3, '--data', 'sample')
    assert done.returncode == 0 and done.stdout.endswith('(sample)\n'), done.stderr
    assert [p.name for p in (tmp_path / 'colour').iterdir()] == ['colour_kmeans3_sample.npy']
    assert np.load(tmp_path / 'colour/colour_kmeans3_sample.npy').shape == (3, 3)


def test_kmeans_takes_the_best_of_ten_runs_of_scikit_learn(call_script, monkeypatch, tmp_path):
    """Of pixels without clusters, where every run ends elsewhere; of seeds 72 to 81 the last is the best."""
    from sklearn.cluster import KMeans

    xs, ys = np.random.default_rng(0).integers(0, 256, (1, 3, 32, 32), np.uint8), np.array([[7]])
    monkeypatch.setattr(colourization, 'load_cifar10', lambda where: ((xs, ys), None))
    call_script('colourization --kmeans 5 -s 72')
    pixels = np.unique(xs.reshape(3, -1).T, axis=0) / np.float32(256)
    runs = [KMeans(5, n_init=1, random_state=seed).fit(pixels) for seed in range(72, 82)]
    distances = [run.inertia_ for run in runs]
    assert distances[-1] < 0.99 * min(distances[:-1])
    expected = sorted(runs[-1].cluster_centers_.tolist(), key=sum)
    assert np.load(tmp_path / 'colour/colour_kmeans5_cat7.npy') == pytest.approx(np.array(expected), abs=1e-5)


@pytest.mark.parametrize('script, flags, total', [
    ('colour_regression.py', '', '75156'), ('colourization.py', '-m CNN -f 16', '27336'),
    ('colourization.py', '-m CNN -f 16 --prior 100', str(27336 + 2400)),
    ('colourization.py', f'-m DUNet --checkpoint {ROOT}/weights/dunet_k3_f32.pkl', '111888')])
def test_summary_prints_the_layers_without_data(script, flags, total, run_script, tmp_path):
    done = run_script(script, '--summary', *flags.split(), '--data', tmp_path / 'none')
    assert done.returncode == 0 and done.stdout.split()[0] == 'stage', done.stderr
    assert done.stdout.splitlines()[-1].split()[:2] == ['total', total]
    assert not list(tmp_path.iterdir())


def test_missing_gpu_gives_one_warning(run_script):
    if torch.accelerator.is_available():
        pytest.skip('this machine has a GPU')
    done = run_script('colourization.py', '--model', 'CNN', '-e', 1, '-f', 1, '--gpu', '--data', 'sample')
    assert done.returncode == 0
    assert re.fullmatch('warning: .*CPU.*\n', done.stderr)


def pictures_in(picture, columns):
    """The pictures [N, H, W, C] of a mosaic of 32x32 ones, cut out again."""
    return np.stack([picture[:, 33 * i:33 * i + 32] for i in range(columns)])


@pytest.fixture
def call_script(tmp_path, monkeypatch):
    """Run a script in this process, in an empty folder; what it draws is handed back instead."""
    def call(command):
        script, *flags = shlex.split(command)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(load_data, 'load_sample', part_of_sample)
        monkeypatch.setattr(sys, 'argv', [f'{script}.py', *flags])
        module, drawn = importlib.import_module(script), {}
        for owner in (colourization, module):
            monkeypatch.setattr(owner, 'draw_pictures', raising=False, value=(
                lambda panels, path, title, **_: drawn.update({path.name: (panels, title)})))
        run(module.main)
        return drawn
    return call


@pytest.mark.parametrize('model', ['CNN', 'UNet', 'DUNet', 'RegressionCNN'])
def test_figure_shows_the_first_ten_validation_pictures(model, call_script):
    _, (x_test, _) = load_cifar10('sample')
    truth = x_test[:10].astype(np.float32) / 256
    grey = torch.from_numpy(truth.mean(axis=1, keepdims=True))
    name = 'regression_cnn' if model == 'RegressionCNN' else model.lower()
    make = RegressionCNN(3, 32) if model == 'RegressionCNN' else colourization.MODELS[model](3, 32, 24)
    make.load_state_dict(torch.load(ROOT / f'weights/{name}_k3_f32.pkl', weights_only=True))
    with torch.no_grad():
        output = make.eval()(grey).numpy()
    if model == 'RegressionCNN':
        expected = output.clip(0, 1).transpose(0, 2, 3, 1)
        drawn = call_script('colour_regression --data sample')['regression_output.png']
    else:
        expected = np.load(ROOT / 'colour/colour_kmeans24_cat7.npy')[output.argmax(axis=1)]
        drawn = call_script(f'colourization -m {model} --valid --data sample '
                            f'--checkpoint weights/{name}_k3_f32.pkl')[f'eval_{model}.png']
    panels, title = drawn
    assert 'sample' in title and model in title
    assert [label.split(':')[0] for label, _ in panels] == ['grey', 'truth', 'prediction',
                                                            "prediction with the input's grey"]
    rows = [pictures_in(picture, 10) for _, picture in panels]
    same_grey = rows[2] + (rows[0] - rows[2].mean(axis=-1, keepdims=True))
    assert near(rows[3], same_grey.clip(0, 1), 1e-6)
    assert np.array_equal(rows[0], grey.numpy().transpose(0, 2, 3, 1))
    assert np.array_equal(rows[1], truth.transpose(0, 2, 3, 1))
    assert (np.abs(rows[2] - expected) < 1e-4).mean() > 0.999  # but for ties within rounding


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


@pytest.mark.parametrize('flags', ['colourization -m UNet -c c.npy --temperature 1',
                                   'colourization -m CNN -c c.npy --hold_out 30',
                                   'colour_regression --train --hold_out 30'])
def test_evaluation_is_of_the_category_and_equals_a_network_run_by_hand(flags, mixed, call_script, tmp_path,
                                                                        capsys, monkeypatch):
    """All that is drawn, printed and reported: against the saved network, and errors written out."""
    (xs, ys), test, colours = mixed
    curves = []
    monkeypatch.setattr(colourization, 'draw_curves',
                        lambda history, figure, title: curves.extend([history, title]))
    monkeypatch.setattr(colourization, 'figure_file', lambda *_, **__: nullcontext())
    drawn = call_script(f'{flags} -f 2 -e 1 -s 4 --plot --category 3 --checkpoint w.pkl')
    name = re.search('CNN|UNet|$', flags)[0] or 'RegressionCNN'
    model = RegressionCNN(3, 2) if name == 'RegressionCNN' else colourization.MODELS[name](3, 2, 3)
    model.load_state_dict(torch.load(tmp_path / 'w.pkl', weights_only=True))

    cats, held_out = np.flatnonzero(ys == 3), '--hold_out' in flags
    true = xs[cats[-30:]] if held_out else test[0][test[1][:, 0] == 3]
    true = true.astype(np.float32) / 256
    grey = true.mean(axis=1, keepdims=True)
    with torch.no_grad():
        outputs = model.eval()(torch.from_numpy(grey))
    nearest = [np.square(x.astype(np.float32).transpose(0, 2, 3, 1)[..., None, :] / 256 - colours)
               .sum(axis=-1).argmin(axis=-1) for x in (xs[cats[:-30] if held_out else cats], true * 256)]
    if name == 'RegressionCNN':
        predicted = outputs.numpy().clip(0, 1)
        metrics, baselines = {'loss': np.square(outputs.numpy() - true).mean()}, {}
    else:
        right, p = torch.from_numpy(nearest[1]), outputs.softmax(dim=1)
        predicted = (np.einsum('nkhw, kc -> nchw', p, colours) if 'temperature' in flags else
                     np.moveaxis(colours[outputs.argmax(dim=1)], -1, 1))
        metrics = {'loss': -p.gather(1, right[:, None]).log().mean().item(),
                   'accuracy': (outputs.argmax(dim=1) == right).float().mean().item()}
        most = 0 if held_out else 1  # of the pictures trained on
        dark = grey[:, 0] < 0.25
        baselines = {'most_frequent_colour': (nearest[1] == most).mean(),
                     'most_frequent_colour_of_grey_level': (nearest[1] == (most + dark) % 3).mean()}
    with_grey = (predicted - predicted.mean(axis=1, keepdims=True) + grey).clip(0, 1)
    pictures = {'grey': grey.repeat(3, axis=1), 'prediction': predicted, 'grey_put_back': with_grey}
    errors = {row: np.square(rgb - true).mean() for row, rgb in pictures.items()}

    reported = json.loads((tmp_path / f'outputs/metrics_{name}.json').read_text('utf-8'))
    assert {measure: reported[f'val_{measure}'] for measure in metrics} == pytest.approx(metrics, rel=1e-4)
    (epoch,), curve_title = curves
    assert {measure: epoch[f'val_{measure}'] for measure in metrics} == pytest.approx(metrics, rel=1e-4)
    assert reported['baseline_accuracies'] == pytest.approx(baselines)
    assert {row: measured['mean_squared_error'] for row, measured in reported['pictures'].items()} == (
        pytest.approx(errors, rel=1e-4))
    assert reported['data'] == 'category 3 of CIFAR-10' and reported['hold_out'] == 30 * held_out

    *lines, last = capsys.readouterr().out.splitlines()
    printed = dict(line.split(': ', 1) for line in lines if ': ' in line)
    for row in ('grey', 'prediction', 'grey_put_back'):
        error, db = re.findall(r'[\d.]+', printed[row.replace('_', ' ').capitalize()])[:2]
        assert float(error) == pytest.approx(errors[row], abs=1.1e-5)
        assert float(db) == pytest.approx(10 * np.log10(1 / errors[row]), abs=0.011)
    for row, accuracy in baselines.items():
        assert printed[row.replace('_', ' ').capitalize()] == f'accuracy {accuracy:.1%}'
    assert float(last.split()[2].strip(',')) == pytest.approx(metrics['loss'], abs=1.1e-4)

    assert curve_title == f'{name}, trained on category 3 of CIFAR-10'
    final = 'regression_output' if name == 'RegressionCNN' else f'eval_{name}'
    for picture in (f'{final}.png', f'{final}_epoch01.png'):
        panels, title = drawn[picture]
        assert title == f'{name}, category 3 of CIFAR-10: {last}'
        for (_, ours), by_hand in zip(panels, (grey, true, predicted, with_grey), strict=True):
            assert near(pictures_in(ours, 10), by_hand[:10].transpose(0, 2, 3, 1), 1e-5)

    call_script(f'{flags.replace("--train", "")} {"--valid" * (name != "RegressionCNN")} --category 3 '
                '--checkpoint w.pkl')
    report = (tmp_path / f'outputs/metrics_{name}.json').read_text('utf-8')
    assert json.loads(report) == reported | {'seed': None}


@pytest.mark.parametrize('category, called', [
    (3, 'category 3 of CIFAR-10'), (7, 'the horses of CIFAR-10'), ('all', 'CIFAR-10')])
def test_activations_are_those_of_the_pictures_asked_for(category, called, mixed, call_script, tmp_path):
    """Every panel against the network run by hand, stage by stage."""
    _, (xs, ys), colours = mixed
    torch.manual_seed(6)
    model = colourization.CNN(3, 2, 3)
    torch.save(model.state_dict(), tmp_path / 'w.pkl')
    drawn = call_script(f'activations 5 2 -m CNN --category {category} -c c.npy --checkpoint w.pkl')
    true = xs[(ys[:, 0] == category) | (category == 'all')].astype(np.float32) / 256
    grey = true.mean(axis=1, keepdims=True)
    with torch.no_grad():
        stages, x = [], torch.from_numpy(grey)
        for stage in list(model.eval().children())[:5]:
            x = stage(x)
            stages.append(x.numpy())
        prediction = colours[model.finalconv(x).argmax(dim=1)]
    assert not np.array_equal(prediction[5], prediction[2])
    assert {path for path in drawn if path.startswith('overview')} == {'overview_5.png', 'overview_2.png'}
    for i in (5, 2):
        panels, title = drawn[f'overview_{i}.png']
        assert title == f'CNN from grey to colour: picture {i}, {called}'
        expected = {'input': grey[i].transpose(1, 2, 0), 'output': prediction[i],
                    'input_rgb': true[i].transpose(1, 2, 0)}
        for number, maps in enumerate(stages):
            maps = maps[i] / np.maximum(maps[i].max(axis=(1, 2), keepdims=True), 1e-12)
            columns, (count, side, _) = 2, maps.shape
            tiles = np.ones((-(-count // columns) * (side + 1), columns * (side + 1), 1), np.float32)
            for j in range(count):
                top, left = j // columns * (side + 1), j % columns * (side + 1)
                tiles[top:top + side, left:left + side, 0] = maps[j]
            expected[f'out{number}'] = tiles[:-1, :-1]
        order = ['input', *(f'out{number}' for number in range(5)), 'output', 'input_rgb']
        for name, (label, picture) in zip(order, panels, strict=True):
            assert near(picture, expected[name], 1e-5)
            ((own_label, own),), own_title = drawn[f'filter_{name}_{i}.png']
            assert own is picture and own_label == label and own_title == f'CNN, picture {i}, {called}'


@pytest.mark.slow  # and test_colourization.py with small arrays
def test_same_seed_gives_the_same_checkpoint(run_script, tmp_path):
    np.save(tmp_path / 'c.npy', [[0.2, 0.2, 0.2], [0.7, 0.7, 0.7]])

    def train(name, seed):
        done = run_script('colourization.py', '-m', 'CNN', '--data', 'sample', '-e', 1, '-f', 2,
                          '-c', 'c.npy', '-s', seed, '--checkpoint', name)
        assert done.returncode == 0 and all(line.endswith('(sample)') for line in done.stdout.splitlines())
        return torch.load(tmp_path / name, weights_only=True)

    first, second, other = train('a', 3), train('b', 3), train('c', 4)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first['finalconv.weight'], other['finalconv.weight'])


@pytest.mark.parametrize('category, places', [
    (7, [5, 106, 207, 4000]), (3, [5, 106, 207, 4000]), ('all', range(0, 10_000, 2))], ids=str)
def test_kmeans_counts_the_training_pictures_of_the_category(category, places, call_script, monkeypatch,
                                                             tmp_path, capsys):
    """Black and a dark cyan share one of two colours; green is in no picture that counts, red in the test's.

    Pictures have one pixel. All of a class count, but only every other of all 10,000.
    """
    xs, ys = np.full((10_000, 3, 1, 1), [[[0]], [[250]], [[0]]], np.uint8), np.zeros((10_000, 1), int)
    four = [[0, 0, 0], [0, 48, 48], [255, 0, 255], [255, 0, 255]]
    xs[places, :, 0, 0] = np.resize(four, (len(places), 3))
    ys[places] = 7 if category == 'all' else category
    red = np.full((4, 3, 1, 1), [[[250]], [[0]], [[0]]], np.uint8)
    monkeypatch.setattr(colourization, 'load_cifar10', lambda where: ((xs, ys), (red, ys[places[:4]])))
    call_script(f'colourization --kmeans 2 --category {category}')
    found = np.load(tmp_path / f'colour/colour_kmeans2_cat{category}.npy')
    assert found * 256 == pytest.approx(np.array([[0, 24, 24], [255, 0, 255]]))
    distance = (2 * 24**2 + 2 * 24**2 + 0 + 0) / 4 / 256**2
    assert capsys.readouterr().out.endswith(f' of a pixel to its colour is {distance:.5f}\n')


@pytest.mark.parametrize('script', ['colourization -m CNN', 'colour_regression --train'])
@pytest.mark.parametrize('flags, trained_on, validated_on', [
    ('', 'horses', 'test'), ('--augment flip_lr', 'horses', 'test'),
    ('--augment classes shift_ud', 'all', 'test'), ('--hold_out 10', 'horses but ten', 'ten'),
    ('--hold_out 10 --augment classes', 'all but ten', 'ten'),
    ('--category 3 -c c.npy', 'cats', 'test cats'), ('--category all -c c.npy', 'all', 'test all'),
    ('--hold_out 9 --category 3 -c c.npy', 'cats but nine', 'nine cats'),
    ('--hold_out 9 --category 3 -c c.npy --augment classes', 'all but nine cats', 'nine cats'),
    ('--hold_out 9 --category all -c c.npy', 'all but nine', 'nine')])
def test_pictures_that_a_network_is_trained_and_validated_on(script, flags, trained_on, validated_on,
                                                             call_script, monkeypatch, tmp_path):
    if 'regression' in script:
        flags = flags.replace('-c c.npy', '')
    rng = np.random.default_rng(0)
    xs, ys = rng.integers(0, 256, (200, 3, 32, 32), np.uint8), rng.integers(10, size=(200, 1))
    test = rng.integers(0, 256, (30, 3, 32, 32), np.uint8), np.repeat([0, 3, 7], [4, 6, 20])[:, None]
    np.save(tmp_path / 'c.npy', rng.random((3, 3)))
    horses, cats = np.flatnonzero(ys == 7), np.flatnonzero(ys == 3)
    sets = {'horses': xs[horses], 'all': xs, 'horses but ten': xs[horses[:-10]], 'test': test[0][10:],
            'cats': xs[cats], 'test cats': test[0][4:10], 'test all': test[0],
            'all but ten': np.delete(xs, horses[-10:], axis=0), 'ten': xs[horses[-10:]],
            'cats but nine': xs[cats[:-9]], 'all but nine cats': np.delete(xs, cats[-9:], axis=0),
            'nine cats': xs[cats[-9:]], 'all but nine': xs[:-9], 'nine': xs[-9:]}
    grey = {name: torch.from_numpy(x.astype(np.float32).mean(axis=1, keepdims=True) / 256)
            for name, x in sets.items()}
    colours = load_data.load_colours(
        tmp_path / 'c.npy' if 'c.npy' in flags else ROOT / 'colour/colour_kmeans24_cat7.npy')
    used = []
    monkeypatch.setattr(colourization, 'load_cifar10', lambda where: ((xs, ys), test))
    monkeypatch.setattr(colourization, 'train', lambda model, objective, *sets, **_: used.extend(sets[:2]))
    call_script(f'{script} -f 1 {flags}')
    for (x, target), name in zip(used, (trained_on, validated_on), strict=True):
        torch.testing.assert_close(x, grey[name])
        rgb = sets[name].astype(np.float32) / 256
        assert np.array_equal(target, rgb if 'regression' in script else get_rgb_cat(rgb, colours))


@pytest.fixture
def called(monkeypatch):
    """What a script that trains calls, by name: with which arguments and settings. It gets small data."""
    rng, called = np.random.default_rng(0), {}
    data = rng.integers(0, 256, (60, 3, 32, 32), np.uint8), rng.choice([3, 7], (60, 1))

    def note(name, returned):
        def call(*arguments, **settings):
            called[name] = arguments, copy.deepcopy(settings)  # to which the script adds later
            return returned
        monkeypatch.setattr(colourization, name, call)
    note('load_cifar10', (data, data))
    note('train', None)
    note('evaluate', ({'loss': 0}, {}))
    note('report', None)
    return called, data


@pytest.mark.parametrize('script, name, file_name, prior, temperature', [
    ('colourization -m DUNet -c c.npy --prior 9 --temperature 0.5', 'DUNet_prior', 'eval_DUNet_prior',
     9, 0.5),
    ('colour_regression --train', 'RegressionCNN', 'regression_output', 0, 0)])
def test_every_flag_of_a_training_reaches_it(script, name, file_name, prior, temperature, called, call_script,
                                             tmp_path):
    """Each has another value than its default; --gpu is left to test_accelerator.py."""
    called, (xs, ys) = called
    colours = np.random.default_rng(1).random((4, 3), np.float32)
    np.save(tmp_path / 'c.npy', colours)
    (tmp_path / 'w.pkl.resume').touch()  # which stops who does not say --resume
    drawn = call_script(
        f'{script} -k 5 -f 2 --checkpoint w.pkl -b 7 -e 3 -l 0.02 --schedule onecycle --weight_decay 0.3 '
        '--augment zoom shift_ud --hold_out 12 -s 6 --float32 --plot --resume --data there --category 3 '
        '--outdir results')
    (model, _, (grey, _), valid_set, settings, *others), draw = called['train']
    its_colours = None if name == 'RegressionCNN' else colours
    assert called['load_cifar10'] == (('there',), {})
    assert settings == Settings(
        name, 'category 3 of CIFAR-10', batch_size=7, epochs=3, learn_rate=0.02, schedule='onecycle',
        weight_decay=0.3, augment=['shift_ud', 'zoom'], hold_out=12, seed=6, float32=True,
        colours=None if its_colours is None else colours.tolist())
    assert others == [Path('w.pkl'), Path('results'), True]

    bound = 1 / 5  # of the first filters, of 1x5x5 weights, which the seed decides
    weight = torch.empty(2, 1, 5, 5).uniform_(-bound, bound, generator=torch.Generator().manual_seed(6))
    assert torch.equal(model.downconv1[0].weight, weight)
    cats = xs[ys[:, 0] == 3] / np.float32(256)
    training, held_out = cats[:-12], cats[-12:]
    assert np.array_equal(grey, training.mean(axis=1, keepdims=True))
    if prior:
        levels = (training.sum(axis=1, keepdims=True) * 256).astype(int)
        counts = np.zeros((766, 4), int)
        np.add.at(counts, (levels, get_rgb_cat(training, colours)), 1)
        torch.testing.assert_close(model.prior.data, log_frequencies(torch.from_numpy(counts), 9))

    model.eval()  # as the validation before it leaves it
    draw['draw']({'loss': 1.5, 'accuracy': 0.5}, '_epoch02')
    panels, _ = drawn[f'{file_name}_epoch02.png']
    truth, prediction = (pictures_in(picture, 10).transpose(0, 3, 1, 2) for _, picture in panels[1:3])
    assert np.array_equal(truth, held_out[:10])
    with torch.no_grad():
        scores = model(torch.from_numpy(held_out.mean(axis=1, keepdims=True)))[:10]
    assert near(prediction, scores_to_rgb(scores, its_colours, temperature), 1e-5)

    (evaluated, _, its_valid_set, true_pictures, used_colours, used_temperature), _ = called['evaluate']
    assert evaluated is model and its_valid_set is valid_set and used_temperature == temperature
    assert np.array_equal(true_pictures, held_out * 256) and np.array_equal(used_colours, its_colours)
    assert {f'{file_name}.png', f'{file_name}_epoch02.png'} == drawn.keys()
    (_, reported, about, *_), _ = called['report']
    assert reported is model and about['network'] == name and about['pictures'] == 'category 3 of CIFAR-10'


@pytest.mark.parametrize('command, checkpoint, temperature', [
    ('colourization -m CNN --valid --checkpoint weights/cnn_k3_f32.pkl --temperature 2', 'cnn_k3_f32.pkl', 2),
    ('colour_regression', 'regression_cnn_k3_f32.pkl', 0)])
def test_evaluation_does_not_train_and_tells_no_seed(command, checkpoint, temperature, called, call_script,
                                                     tmp_path, monkeypatch):
    called, _ = called
    monkeypatch.setattr(colourization, 'report', report)
    call_script(f'{command} -s 6 --hold_out 4')
    told = json.loads(next(tmp_path.glob('outputs/metrics_*.json')).read_text('utf-8'))
    assert 'train' not in called and told['seed'] is None
    assert told.items() >= {'checkpoint': checkpoint, 'hold_out': 4, 'temperature': temperature,
                            'kernel': 3, 'num_filters': 32, 'data': 'the horses of CIFAR-10'}.items()


@pytest.mark.parametrize('command, checkpoint', [
    ('colourization -m CNN -f 2', 'outputs/cnn_k3_f2.pkl'),
    ('colourization -m DUNet -k 5 -f 1 --prior --outdir there', 'there/dunet_prior_k5_f1.pkl'),
    ('colour_regression --train -k 5 -f 2 --outdir there', 'there/regression_cnn_k5_f2.pkl')])
def test_checkpoint_is_called_after_its_network(command, checkpoint, called, call_script):
    called, _ = called
    call_script(command)
    assert called['train'][0][5] == Path(checkpoint)
    assert called['report'][0][0].checkpoint == Path(checkpoint)


@pytest.mark.parametrize('category', [7, 'all'])
def test_colours_are_counted_in_the_category_whatever_a_network_is_trained_on(category, monkeypatch):
    rng = np.random.default_rng(0)
    xs, ys = rng.integers(0, 256, (250, 3, 32, 32), np.uint8), rng.integers(6, 8, size=(250, 1))
    monkeypatch.setattr(colourization, 'load_cifar10', lambda where: ((xs, ys), (xs[:9], ys[:9])))
    colours = rng.random((3, 3), np.float32)
    rgb = (xs if category == 'all' else xs[ys[:, 0] == 7]) / np.float32(256)
    pairs = np.stack([rgb.sum(axis=1, keepdims=True) * 256, get_rgb_cat(rgb, colours)]).astype(int)
    expected = np.zeros((766, 3), int)
    np.add.at(expected, tuple(pairs), 1)
    for flags in (['--valid', '--checkpoint', 'w.pkl'], [], ['--augment', 'classes']):
        args = parse_args(['-m', 'CNN', '--category', str(category), *flags])
        train_set, _, _, counts = colourization.load_sets(args, colours, torch.device('cpu'))
        assert np.array_equal(counts, expected)
        assert (train_set is None) == args.valid


def test_colours_of_a_checkpoint_need_not_be_repeated(run_script, tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / 'mine.npy', rng.random((24, 3), dtype=np.float32))
    flags = ['-m', 'CNN', '--data', 'sample', '--checkpoint', 'w.pkl']
    trained = run_script('colourization.py', *flags, '-e', 1, '-f', 2, '-c', 'mine.npy')
    again = run_script('colourization.py', *flags, '--valid')
    assert again.stdout.splitlines()[-1] == trained.stdout.splitlines()[-1]
    np.save(tmp_path / 'other.npy', rng.random((24, 3), dtype=np.float32))
    assert fails(run_script('colourization.py', *flags, '--valid', '-c', 'other.npy'), 1, 'other.npy')


def test_colours_that_nobody_names_are_those_of_the_category(mixed, call_script, tmp_path, capsys):
    colours = np.load(ROOT / 'colour/colour_kmeans24_catall.npy')
    flags = 'colourization -m CNN -f 1 --category all --checkpoint w.pkl'
    call_script(f'{flags} -e 1')
    metrics = tmp_path / 'outputs/metrics_CNN.json'
    assert json.loads(metrics.read_text('utf-8'))['colours'] == colours.tolist()
    torch.save(dict(torch.load(tmp_path / 'w.pkl')), tmp_path / 'w.pkl')  # without its notes, as in 2018
    metrics.unlink()
    call_script(f'{flags} --valid')
    assert json.loads(metrics.read_text('utf-8'))['colours'] == colours.tolist()
    assert 'w.pkl does not say which colours' in capsys.readouterr().err


def test_prior_is_recognised_in_its_checkpoint(run_script, tmp_path):
    trained = run_script('colourization.py', '-m', 'UNet', '--prior', 50, '--data', 'sample',
                         '-e', 1, '-f', 2)
    saved = torch.load(tmp_path / 'outputs/unet_prior_k3_f2.pkl', weights_only=True)
    assert saved['prior'].shape == (50, 24)
    flags = ['-m', 'UNet', '--data', 'sample', '--checkpoint', 'outputs/unet_prior_k3_f2.pkl']
    (tmp_path / 'outputs/eval_UNet_prior.png').unlink()
    again = run_script('colourization.py', *flags, '--valid', draw=True)
    assert again.stdout == trained.stdout[trained.stdout.index('The results'):] and not again.stderr
    assert is_picture(tmp_path / 'outputs/eval_UNet_prior.png')
    assert run_script('activations.py', 0, *flags).stdout.startswith('Wrote outputs/act_UNet_prior_0')
    assert run_script('colourization.py', *flags, '--summary').stdout.splitlines()[-2].split() == [
        'prior', 'table', str(50 * 24)]
    for what in ('--valid', '--summary'):
        assert fails(run_script('colourization.py', *flags, what, '--prior', 60), 1, '50 entries', '--prior')
    assert fails(run_script('colourization.py', '-m', 'DUNet', *flags[2:], '--valid'), 1, 'UNet')


@pytest.mark.parametrize('temperature, distinct', [(0, True), (0.38, False), (1, False)])
def test_temperature_mixes_the_colours_of_the_drawing(temperature, distinct, call_script):
    drawn = call_script(f'colourization -m UNet --valid --data sample --temperature {temperature} '
                        '--checkpoint weights/unet_k3_f32.pkl')
    panels, _ = drawn['eval_UNet.png']
    pixels = pictures_in(dict((label, p) for label, p in panels)['prediction'], 10).reshape(-1, 3)
    assert (len(np.unique(pixels, axis=0)) <= 24) == distinct


@pytest.mark.parametrize('name, ignored', [
    ('outputs/a.txt', True), ('outputs/eval_UNet.png', True), ('outputs/act_CNN_0/overview_0.png', True),
    ('outputs/unet_k3_f32.pkl', True), ('unet_k3_f32.pkl', True), ('data', True),
    ('colour/colour_kmeans12_cat7.npy', True),
    ('colour/colour_kmeans24_cat7.npy', False), ('weights/unet_k3_f32.pkl', False),
    ('outputs/writeup/figures/eval_UNet.png', False), ('outputs/writeup/a2-writeup.tex', False),
    ('outputs/writeup/experiments.py', False), ('outputs/writeup/results/part_f.md', False)])
def test_git_ignores_what_the_scripts_write_and_keeps_what_is_shipped(name, ignored):
    if not (ROOT / '.git').exists():
        pytest.skip('not a git checkout')
    done = subprocess.run(['git', 'check-ignore', '-q', '--no-index', name], cwd=ROOT)
    assert done.returncode == (0 if ignored else 1)


@pytest.mark.slow  # it starts processes
def test_closed_output_ends_the_program_quietly_and_saves(tmp_path):
    np.save(tmp_path / 'two.npy', [[0.2, 0.2, 0.2], [0.7, 0.7, 0.7]])
    done = subprocess.run(
        f'{shlex.quote(sys.executable)} {shlex.quote(str(ROOT / "colourization.py"))} -m CNN -f 2 -e 50 '
        '-c two.npy --data sample --checkpoint w.pkl | head -1',
        shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.count('\n') == 1 and 'Traceback' not in done.stderr
    assert torch.load(tmp_path / 'w.pkl', weights_only=True)


@pytest.mark.parametrize('command, unbuffered', [
    ('colourization.py -m UNet --summary', ''),
    pytest.param('colour_regression.py --help', '1', marks=pytest.mark.slow),
    pytest.param('colour_regression.py --summary', '1', marks=pytest.mark.slow),
    pytest.param('colourization.py --image picture.png picture.png', '', marks=pytest.mark.slow)])
def test_output_that_nobody_reads_makes_no_noise(command, unbuffered, tmp_path):
    Image.new('L', (8, 8)).save(tmp_path / 'picture.png')
    reader, writer = os.pipe()
    os.close(reader)
    script, *flags = command.split()
    done = subprocess.run([sys.executable, ROOT / script, *flags], cwd=tmp_path, stdout=writer,
                          stderr=subprocess.PIPE, text=True, timeout=120,
                          env=os.environ | {'PYTHONUNBUFFERED': unbuffered})
    os.close(writer)
    argparse_does_not_mind = unbuffered and '--help' in command
    assert (done.returncode, done.stderr) == (0 if argparse_does_not_mind else 1, '')


def test_without_network_one_line_says_what_to_do(run_script, tmp_path, monkeypatch):
    monkeypatch.setattr(urllib.request, '_opener', None)  # it keeps the proxies that it was made with
    monkeypatch.setenv('https_proxy', 'http://127.0.0.1:9')  # nothing listens there
    monkeypatch.setenv('no_proxy', '')
    (tmp_path / 'data').mkdir()
    done = run_script('colourization.py', '--model', 'UNet', '-e', 5, '--data', tmp_path / 'data')
    assert fails(done, 1, 'zenodo.org', 'cs.toronto.edu', 'cifar-10-python.tar.gz', str(tmp_path / 'data'),
                 'by hand', '--data sample')
    assert not list(tmp_path.glob('data/*'))


@pytest.mark.parametrize('arguments, status, word', [
    ('colourization', 2, '--model'),
    ('colourization --model VNet', 2, 'VNet'),
    ('colourization --model UNet --valid', 2, '--checkpoint'),
    ('colourization --model UNet -b 0', 2, '-b'),
    ('colourization --model UNet -e -1', 2, '-e'),
    ('colourization --model UNet -e many', 2, 'many'),
    ('colourization --model UNet -k 4', 2, 'choose from 1, 3, 5,'),
    ('colourization --model UNet -f 0', 2, '-f'),
    ('colourization --model UNet -l 0', 2, '-l'),
    ('colourization --model UNet -l nan', 2, 'nan'),
    ('colourization --model UNet -s -1', 2, '-s'),
    ('colourization --model UNet --augment flip', 2, 'flip_ud'),
    ('colourization --model UNet --augment', 2, '--augment'),
    ('colourization --model UNet --schedule cosine', 2, 'onecycle'),
    ('colourization --model UNet --weight_decay -1', 2, '--weight_decay'),
    ('colourization --model UNet --hold_out -1', 2, '--hold_out'),
    ('colourization --model UNet --hold_out 3000 --data sample', 1, '3000'),
    ('colourization --model UNet --category 10', 2, '--category'),
    ('colourization --model UNet --category horses', 2, '--category'),
    ('colourization --model UNet --category 3', 1, 'colour_kmeans24_cat3.npy'),
    ('colourization --model UNet --category 3 --data sample -c colour/colour_kmeans24_cat7.npy', 1,
     'category 3'),
    ('colourization --model UNet --temperature -1', 2, '--temperature'),
    ('colourization --image a.png --valid', 2, '--image'),
    ('colourization --image a.png --kmeans 4', 2, '--image'),
    ('colourization --image a.png --checkpoint missing.pkl', 1, 'missing.pkl'),
    ('colourization --image', 2, '--image'),
    ('colourization --kmeans 1', 2, '--kmeans'),
    ('colourization --kmeans 24 --model UNet', 2, '--kmeans'),
    ('colourization --kmeans 24 --hold_out 500', 2, '--hold_out'),
    ('colourization --model UNet --nonsense', 2, '--nonsense'),
    ('colourization --model UNet --summary --resume', 2, '--summary'),
    ('colourization --model CNN --summary --checkpoint weights/unet_k3_f32.pkl', 1, 'UNet'),
    ('colour_regression --summary --train', 2, '--summary'),
    ("colourization --model UNet --data ''", 1, 'no CIFAR-10'),
    ('colourization -m UNet --valid --checkpoint missing.pkl', 1, 'missing.pkl'),
    ('colourization -m CNN --valid --checkpoint weights/unet_k3_f32.pkl', 1, 'UNet'),
    ('colourization -m UNet --valid --checkpoint weights/dunet_k3_f32.pkl', 1, 'is a DilatedUNet, not'),
    ('colourization -m CNN --valid --checkpoint weights/regression_cnn_k3_f32.pkl', 1, 'RegressionCNN'),
    ('colourization -m CNN --valid --checkpoint weights/cnn_k3_f32.pkl -f 16', 1, '-f 32'),
    ('colourization -m CNN --valid --checkpoint weights/cnn_k3_f32.pkl -k 5', 1, '-k 3'),
    ('colourization -m CNN --valid --checkpoint weights/cnn_k3_f32.pkl '
     '-c colour/colour_kmeans16_cat7.npy', 1, '16'),
    ('colourization -m CNN --valid --checkpoint colour/colour_kmeans16_cat7.npy', 1, 'no weights of'),
    ('colourization -m CNN -c missing.npy', 1, 'missing.npy: no file of colours'),
    ('colourization -m CNN --category 3', 1, '--kmeans K --category C'),
    ('colourization -m CNN -c weights/cnn_k3_f32.pkl', 1, 'colours'),
    ('colourization -m CNN --checkpoint .', 1, 'folder'),
    ('colourization -m CNN --data missing.tar.gz', 1, 'missing.tar.gz'),
    ('activations --data dta --checkpoint weights/cnn_k3_f32.pkl', 1, 'dta: no CIFAR-10'),
    ('colourization -m CNN --data text', 1, 'text'),
    ('colourization -m CNN --outdir text', 1, 'cannot be written'),
    ('colourization -m CNN --checkpoint text/w.pkl', 1, 'text/w.pkl cannot be written'),
    ('colour_regression --checkpoint weights/cnn_k3_f32.pkl', 1, 'CNN'),
    ('colour_regression --checkpoint missing.pkl', 1, 'missing.pkl'),
    ('colour_regression -k 5', 1, '-k 3'), ('colour_regression -f 16', 1, '-f 32'),
    ('colour_regression --resume', 2, '--train'),
    ('activations', 2, '--checkpoint'),
    ('activations -1 --checkpoint weights/cnn_k3_f32.pkl', 2, '-1'),
    ('activations 500 --checkpoint weights/cnn_k3_f32.pkl --data sample', 1, '499'),
    ('activations --checkpoint weights/unet_k3_f32.pkl', 1, 'UNet'),
    ('activations --checkpoint weights/cnn_k3_f32.pkl -k 5', 1, '-k 3'),
    ('activations --checkpoint weights/cnn_k3_f32.pkl -f 16', 1, '-f 32'),
])
def test_wrong_use_gives_one_line(arguments, status, word, tmp_path, monkeypatch, capsys):
    """Run in this process, because there are many: `run(main)` is all that the scripts call."""
    (tmp_path / 'text').write_text('no archive')
    monkeypatch.chdir(tmp_path)
    script, *flags = shlex.split(arguments)
    monkeypatch.setattr(sys, 'argv', [f'{script}.py', *flags])
    with pytest.raises(SystemExit) as end:
        run(importlib.import_module(script).main)
    printed = capsys.readouterr()
    # sys.exit(line) is how Python prints a line on standard error and exits with status 1
    line = printed.err.removesuffix('\n') if status == 2 else end.value.code
    assert end.value.code == (2 if status == 2 else line)
    assert line.startswith('error: ') and '\n' not in line and word in line
    assert printed.out == ''
    assert not list(tmp_path.glob('**/*.pkl'))


def test_mistakes_of_the_program_itself_are_not_hidden():
    def main():
        raise RuntimeError('shapes do not match')
    with pytest.raises(RuntimeError, match='shapes'):
        run(main)


def test_wrong_use_ends_a_script_with_its_status(start_script, run_script):
    assert fails(run_script('colourization.py', '--model', 'VNet'), 2, 'VNet')
    assert fails(start_script('activations.py', '--checkpoint', 'missing.pkl'), 1, 'missing.pkl')


@pytest.mark.slow  # and test_slips.py with signals of this process to itself
@unix_only
def test_ctrl_c_saves_what_was_trained(tmp_path):
    np.save(tmp_path / 'two.npy', [[0.2, 0.2, 0.2], [0.7, 0.7, 0.7]])
    process = subprocess.Popen(
        [sys.executable, ROOT / 'colourization.py', '-m', 'CNN', '--data', 'sample', '-f', '4',
         '-c', 'two.npy', '-e', '1000', '--checkpoint', 'cnn.pkl'],
        cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=obey_ctrl_c)
    while '[2/1000], Loss' not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == ('interrupted: the weights so far are in cnn.pkl; --resume goes on after the last whole '
                      'epoch\n')
    assert torch.load(tmp_path / 'cnn.pkl', weights_only=True)


def test_help_needs_no_library_that_takes_seconds_to_import():
    code = ('import runpy, sys\nsys.argv[1:] = ["--help"]\n'
            'for script in ("colourization", "colour_regression", "activations"):\n'
            f'    try: runpy.run_path({str(ROOT)!r} + f"/{{script}}.py", run_name="__main__")\n'
            '    except SystemExit as e: assert e.code == 0\n'
            '    assert not {"scipy", "sklearn", "matplotlib"} & sys.modules.keys(), script')
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count('usage: ') == 3, done.stderr


# ---------------------------------------------------------------------------
# The real data
# ---------------------------------------------------------------------------

@pytest.mark.slow
def test_unet_of_five_epochs_reaches_what_the_course_measured(cifar10, run_script):
    done = run_script('colourization.py', '–model', 'UNet', '–checkpoint', 'unet_k3_f32.pkl',
                      '-b', 10, '-e', 5, '--data', cifar10)
    assert done.returncode == 0, done.stderr
    assert float(re.search(r'Val Acc: (\S+)%$', done.stdout.strip()).group(1)) >= 47


ALL = '--category all --checkpoint'


@pytest.mark.slow
@pytest.mark.parametrize('flags, megabytes', [
    (f'--valid --checkpoint {ROOT}/weights/unet_k3_f32.pkl', 700),
    (f'--valid {ALL} {ROOT}/weights/unet_prior_all_k3_f64.pkl', 635), (f'-e 1 -f 4 {ALL} all.pkl', 920)])
def test_memory_that_real_data_needs(flags, megabytes, cifar10, tmp_path):
    peak = peak_memory(tmp_path, 'colourization.py', '-m', 'UNet', *shlex.split(flags), '--data', cifar10)
    assert peak < megabytes * 1e6
