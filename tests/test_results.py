"""What is committed under outputs/ against the files and commands that it comes from."""

import csv
import re
import shlex
import sys

import numpy as np
import pytest
import torch

import comparison
import experiments
from colourization import DUNet, UNet, load_model, parse_args
from conftest import ROOT, near
from load_data import InputError


def test_tables_of_part_f_are_those_of_its_runs():
    runs = experiments.read_table(experiments.RUNS)
    assert experiments.PAGE.read_text('utf-8') == experiments.page(runs)
    assert [(run['run'], int(run['seed'])) for run in runs] == experiments.planned_runs()
    for run in runs:
        script, *flags = shlex.split(run['run'])
        assert script == 'colourization.py' and parse_args(flags).hold_out == 500


def test_a_table_has_means_spreads_and_gains_seed_by_seed_and_stars_what_is_hardly_chance():
    """Dunnett's test of three rows over three seeds: at 8 degrees of freedom, |t| above 2.88."""
    losses = {1: (2, 2.1, 2.2), 2: (2.23, 2.33, 2.43),  # t = 0.23 / 0.0816 = 2.82
              3: (2.24, 2.34, 2.44), 4: (1.77, 1.87, 1.97)}  # t = 2.94 and -2.82
    runs = [{'run': f'run {i}', 'seed': str(seed), 'train_loss': '1', 'val_loss': str(loss),
             'val_accuracy': str((.5, .52, .54)[seed] + i / 100 * (seed + 1))}
            for i, row in losses.items() for seed, loss in enumerate(row)]
    names = {'one': 'run 1', 'two': 'run 2', 'three': 'run 3', 'four': 'run 4'}
    block = experiments.measures(names, range(3), runs)
    assert block['three']['gain'] == pytest.approx([2, 4, 6])
    first, *others = experiments.table(block, experiments.FORMS | {'train_loss': '.3f'})
    assert first == ['one', '2.100 ± 0.100', '54.0 ± 3.0', '', '1.000 ± 0.000']
    assert others[0] == ['two', '2.330 ± 0.100', '56.0 ± 4.0', '+2.0 ± 1.0', '1.000 ± 0.000']
    assert [row[1].endswith(' *') for row in others] == [False, True, False]
    with pytest.raises(InputError, match='run 4 was not run with seed 2'):
        experiments.measures(names, range(3), runs[:-1])


@pytest.mark.slow
def test_experiment_is_its_command(run_script, tmp_path):
    command = 'colourization.py -m CNN -f 1 -e 1 -b 500 --hold_out 50'
    *_, run = experiments.history(command, 3, 'sample')
    done = run_script(*shlex.split(command), '--data', 'sample', '-s', 3, new_process=True)
    with open(tmp_path / 'outputs/history_CNN.csv', newline='') as file:
        *_, last = csv.DictReader(file)
    assert done.status == 0 and run == last | {'seconds': run['seconds']}


def test_what_was_run_is_not_run_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiments, 'RUNS', tmp_path / 'runs.csv')
    monkeypatch.setattr(experiments, 'PAGE', tmp_path / 'page.md')
    monkeypatch.setattr(experiments, 'TABLES', {
        'title': ({'-e': 1}, {'one': {}, 'two': {'-e': 2}}, range(3))})
    monkeypatch.setattr(experiments, 'history', lambda command, seed, data: [
        {'val_loss': f'{seed}', 'val_accuracy': f'0.{seed}{len(command)}', 'train_loss': '1'}])
    monkeypatch.setattr(sys, 'argv', ['experiments.py'])
    experiments.main()
    whole = experiments.RUNS.read_text('utf-8')
    *_, last = lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7 and last.startswith('All 6 runs are in ')
    head, *rows = whole.splitlines(True)
    experiments.RUNS.write_text(''.join([head, rows[4], rows[1]]))  # interrupted after two
    experiments.main()
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert experiments.RUNS.read_text('utf-8') == whole
    assert experiments.PAGE.read_text('utf-8') == experiments.page(experiments.read_table(experiments.RUNS))


def test_colourfulness_equals_the_paper_written_out():
    rng = np.random.default_rng(2)
    rgb = rng.random((3, 3, 6, 7))
    expected = []
    for picture in rgb:
        rg = [255 * (r - g) for r, g in zip(picture[0].ravel(), picture[1].ravel())]
        yb = [255 * (0.5 * (r + g) - b) for r, g, b in zip(*picture.reshape(3, -1))]
        expected.append(np.hypot(np.std(rg), np.std(yb)) + 0.3 * np.hypot(np.mean(rg), np.mean(yb)))
    assert comparison.colourfulness(rgb) == pytest.approx(np.mean(expected))
    grey = np.repeat(rng.random((2, 1, 4, 4)), 3, axis=1)
    assert comparison.colourfulness(grey) == pytest.approx(0, abs=1e-9)


def test_comparison_is_of_the_test_horses_in_the_ways_that_it_names(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    train, test = ((rng.integers(0, 256, (30, 3, 32, 32), np.uint8),
                    rng.permutation(np.repeat([7, 1], 15))[:, None]) for _ in range(2))
    drawn = []
    monkeypatch.setattr(comparison, 'load_cifar10', lambda where: (train, test))
    monkeypatch.setattr(comparison, 'draw_pictures', lambda panels, *_, **__: drawn.extend(panels))
    monkeypatch.setattr(sys, 'argv', ['comparison.py', '--outdir', str(tmp_path)])
    comparison.main()
    rgb = test[0][test[1][:, 0] == 7].astype(np.float32) / 256
    grey = rgb.mean(axis=1, keepdims=True)

    def painted(name, temperature):
        make = DUNet if name[0] == 'd' else UNet
        model, colours = load_model(make, ROOT / f'weights/{name}_k3_f32.pkl')
        with torch.no_grad():
            scores = model(torch.from_numpy(grey))
        if not temperature:
            return np.moveaxis(colours[scores.argmax(dim=1)], -1, 1)
        p = (scores / temperature).softmax(dim=1)
        mean = np.einsum('nkhw, kc -> nchw', p, colours)
        return (mean - mean.mean(axis=1, keepdims=True) + grey).clip(0, 1)

    expected = {'grey picture': grey.repeat(3, axis=1), 'UNet, likeliest colours': painted('unet', 0),
                'UNet with prior, likeliest colours': painted('unet_prior', 0),
                'UNet, mean, grey put back': painted('unet', 1),
                'UNet with prior, annealed mean, grey put back': painted('unet_prior', 0.38),
                'UNet with prior, mean, grey put back': painted('unet_prior', 1),
                'DUNet with prior, mean, grey put back': painted('dunet_prior', 1), 'truth': rgb}
    rows = [re.fullmatch(r'\| (.+?) \| ([\d.]*) ?\|.*\|.*\|', line).groups()
            for line in capsys.readouterr().out.splitlines()[2:]]
    assert [name for name, _ in rows] == list(expected)
    assert [float(error or 0) for _, error in rows] == pytest.approx(
        [np.square(picture - rgb).mean() for picture in expected.values()], abs=2e-5)
    for name, picture in drawn:
        by_hand = np.concatenate([*expected[name][:10].transpose(0, 2, 3, 1)], axis=1)
        ours = np.concatenate([picture[:, 33 * i:33 * i + 32] for i in range(10)], axis=1)
        assert near(ours, by_hand if ours.shape[-1] == 3 else by_hand[..., :1], 1e-4)


@pytest.mark.slow
def test_readme_of_the_weights_has_the_table_of_the_comparison(cifar10, run_script, tmp_path):
    done = run_script('outputs/writeup/comparison.py', '--data', cifar10, '--outdir', tmp_path, draw=True)
    assert done.status == 0, done.errors
    assert (tmp_path / 'comparison.png').stat().st_size > 50_000
    rows = re.findall(r'^\| (.+?) \| ([\d.]+) \| ([\d.]+) dB \| ([\d.]+) \|$', done.output, re.MULTILINE)
    assert len(rows) == 7
    readme = (ROOT / 'weights/README.md').read_text('utf-8')
    for name, *numbers in rows:
        told = re.search(rf'^\| {re.escape(name)} \| ([\d.]+) \| ([\d.]+) dB \| ([\d.]+) \|$', readme,
                         re.MULTILINE).groups()
        assert [float(n) for n in told] == pytest.approx([float(n) for n in numbers],
                                                         rel=0.01)  # another machine rounds otherwise


@pytest.mark.slow
def test_readme_of_the_weights_has_the_table_of_the_photographs(run_script, tmp_path):
    done = run_script('outputs/writeup/comparison.py', '--image', '--outdir', tmp_path, draw=True)
    assert done.status == 0, done.errors
    assert (tmp_path / 'photograph.png').stat().st_size > 50_000
    rows = re.findall(r'^\| (\w+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$', done.output, re.MULTILINE)
    assert [name for name, *_ in rows] == ['china', 'flower', 'grace_hopper', 'mean']
    readme = (ROOT / 'weights/README.md').read_text('utf-8')
    for name, *numbers in rows:
        told = re.search(rf'^\| {name} \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$', readme,
                         re.MULTILINE).groups()
        assert [float(n) for n in told] == pytest.approx([float(n) for n in numbers], rel=0.01)
