"""Evaluation: what scores become, metrics, and what is reported, against numbers written out."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import colourization
from colour_regression import RegressionCNN
from colourization import (CNN, UNet, baselines, classification, psnr, put_grey_back, report,
                           run_validation_step, scores_to_rgb)
from conftest import ROOT, fails, near, panels, pictures_in


def test_grey_put_back_has_the_brightness_of_the_input():
    rgb = np.random.default_rng(0).uniform(0.3, 0.6, (2, 3, 4, 5)).astype(np.float32)
    grey = np.random.default_rng(1).uniform(0.4, 0.6, (2, 1, 4, 5)).astype(np.float32)
    ours = put_grey_back(rgb, grey)
    assert ours.mean(axis=1, keepdims=True) == pytest.approx(grey, abs=1e-6)
    assert ours - ours[:, :1] == pytest.approx(rgb - rgb[:, :1], abs=1e-6)  # between the channels
    white = put_grey_back(rgb, np.ones_like(grey))
    assert white.max() == 1 and put_grey_back(rgb, np.zeros_like(grey)).min() == 0


def test_temperature_goes_from_the_likeliest_colour_over_the_annealed_mean_to_the_mean():
    colours = np.random.default_rng(3).random((5, 3), dtype=np.float32)
    scores = torch.randn(2, 5, 3, 4)
    for n, row, column in np.ndindex(2, 3, 4):
        p = np.exp(scores[n, :, row, column].double().numpy())
        p /= p.sum()
        for temperature in (0.38, 1, 5):  # equation 5: exp(log(z) / T), normalised
            annealed = np.exp(np.log(p) / temperature)
            expected = annealed / annealed.sum() @ colours
            ours = scores_to_rgb(scores, colours, temperature)
            assert ours[n, :, row, column] == pytest.approx(expected, abs=1e-5)
        assert np.array_equal(scores_to_rgb(scores, colours)[n, :, row, column], colours[p.argmax()])
    for almost_none in (1e-4, 1e-45):
        assert scores_to_rgb(scores, colours, almost_none) == pytest.approx(scores_to_rgb(scores, colours))


def test_outputs_without_colours_are_rgb_brought_into_its_range():
    rgb = scores_to_rgb(torch.tensor([-0.5, 0.25, 1.5]).reshape(1, 3, 1, 1), None)
    assert rgb.ravel().tolist() == [0, 0.25, 1]


def brute_force_metrics(scores, cats):
    loss = correct = 0
    n, _, height, width = scores.shape
    for i, row, column in np.ndindex(n, height, width):
        s = scores[i, :, row, column].double().numpy()
        right = cats[i, 0, row, column].item()
        loss += np.log(np.exp(s).sum()) - s[right]
        correct += s.argmax() == right
    return {'loss': loss / (n * height * width), 'accuracy': correct / (n * height * width)}


@pytest.mark.parametrize('batch_size', [4, 7])
def test_validation_is_pixelwise_cross_entropy_and_accuracy_whatever_the_batch_size(batch_size):
    model = UNet(3, 4, 5)
    grey, cats = torch.rand(7, 1, 8, 12), torch.randint(5, (7, 1, 8, 12))
    metrics = run_validation_step(model, classification, grey, cats, batch_size)
    with torch.no_grad():
        scores = model.eval()(grey)
    assert metrics == pytest.approx(brute_force_metrics(scores, cats), rel=1e-5)


def test_psnr_of_a_tenth_is_twenty_decibels():
    assert psnr(0.1**2) == pytest.approx(20)
    assert psnr(0) == np.inf


@pytest.mark.parametrize('flags', ['colourization.py -m UNet -c c.npy --temperature 1',
                                   'colourization.py -m CNN -c c.npy --hold_out 30',
                                   'colour_regression.py --train --hold_out 30'])
def test_evaluation_is_of_the_category_and_equals_a_network_run_by_hand(flags, mixed, run_script, tmp_path,
                                                                        monkeypatch):
    """All that is drawn, printed and reported: against the saved network, and errors written out."""
    (xs, ys), test, colours = mixed
    curves = []
    monkeypatch.setattr(colourization, 'draw_curves',
                        lambda history, figure, title: curves.extend([history, title]))
    words = f'{flags} -f 2 --category 3 --checkpoint w.pkl'
    done = run_script(*f'{words} -e 1 -s 4 --plot'.split())
    name = re.search('CNN|UNet|$', flags)[0] or 'RegressionCNN'
    model = RegressionCNN(3, 2) if name == 'RegressionCNN' else colourization.MODELS[name](3, 2, 3)
    model.load_state_dict(torch.load(tmp_path / 'w.pkl', weights_only=True))

    cats, held_out = np.flatnonzero(ys == 3), '--hold_out' in flags
    true = xs[cats[-30:]] if held_out else test[0][test[1][:, 0] == 3]
    true = true.astype(np.float32) / 256
    grey = true.mean(axis=1, keepdims=True)
    with torch.no_grad():
        outputs = model.eval()(torch.from_numpy(grey))
    nearest = np.square(np.moveaxis(true, 1, -1)[..., None, :] - colours).sum(axis=-1).argmin(axis=-1)
    if name == 'RegressionCNN':
        predicted = outputs.numpy().clip(0, 1)
        metrics, baselines = {'loss': np.square(outputs.numpy() - true).mean()}, {}
    else:
        right, p = torch.from_numpy(nearest), outputs.softmax(dim=1)
        predicted = (np.einsum('nkhw, kc -> nchw', p, colours) if 'temperature' in flags else
                     np.moveaxis(colours[outputs.argmax(dim=1)], -1, 1))
        metrics = {'loss': -p.gather(1, right[:, None]).log().mean().item(),
                   'accuracy': (outputs.argmax(dim=1) == right).float().mean().item()}
        most = 0 if held_out else 1  # of the pictures trained on
        dark = grey[:, 0] < 0.25
        baselines = {'most_frequent_colour': (nearest == most).mean(),
                     'most_frequent_colour_of_grey_level': (nearest == (most + dark) % 3).mean()}
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

    *lines, last = done.output.splitlines()
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
        figure = done.figures[picture]
        assert figure.get_suptitle() == f'{name}, category 3 of CIFAR-10: {last}'
        rows = {'grey: what the network sees': grey, 'truth': true, 'prediction': predicted,
                "prediction with the input's grey": with_grey}
        assert list(panels(figure)) == [*rows]
        for label, by_hand in rows.items():
            ours, by_hand = panels(figure)[label], np.moveaxis(by_hand[:10], 1, -1)
            assert near(pictures_in(ours), by_hand if ours.ndim == 3 else by_hand[..., 0], 1e-5)

    run_script(*words.replace('--train', '').split(), *['--valid'] * (name != 'RegressionCNN'))
    report = (tmp_path / f'outputs/metrics_{name}.json').read_text('utf-8')
    assert json.loads(report) == reported | {'seed': None}


def test_loss_above_that_of_guessing_gives_a_warning(run_script, tmp_path):
    """As of a UNet whose skip connections are concatenated the other way round, or of too large a step."""
    state = torch.load(ROOT / 'weights/unet_k3_f16.pkl', weights_only=True)
    for name in ('upconv1.0.weight', 'upconv2.0.weight'):
        state[name] = state[name].roll(state[name].shape[1] // 2, dims=1)
    state['finalconv.weight'] = state['finalconv.weight'].roll(1, dims=1)
    torch.save(dict(state), tmp_path / 'w.pkl')
    colours = ROOT / 'colour/colour_kmeans24_cat7.npy'
    for model, flags, words in (
            ('UNet', ['--valid', '--checkpoint', 'w.pkl', '-c', colours], ['w.pkl', '(-c)', 'skip conn']),
            ('CNN', ['-f', 2, '-e', 1, '-l', 10], ['try a smaller --learn_rate'])):
        done = run_script('colourization.py', '-m', model, '--data', 'sample', *flags)
        assert done.status == 0 and float(re.findall('Val Loss: (.*),', done.output)[-1]) > math.log(24)
        assert fails(done, 0, 'warning: ', 'ln 24 = 3.1781', *words)
    done = run_script('colourization.py', '-m', 'UNet', '--valid', '--data', 'sample', '--checkpoint',
                      'weights/unet_k3_f16.pkl')
    assert (done.status, done.errors) == (0, '')


@pytest.mark.parametrize('loss, warned', [
    (math.log(2), False), (math.nextafter(math.log(2), 1), True), (math.nan, True)])
def test_loss_is_warned_of_from_above_that_of_guessing(loss, warned, tmp_path, capsys):
    args = SimpleNamespace(checkpoint=Path('w.pkl'), outdir=tmp_path, seed=0, valid=True, hold_out=0,
                           temperature=0)
    about = {'network': 'CNN', 'pictures': 'noise', 'colours': [[0.2] * 3, [0.7] * 3]}
    report(args, CNN(1, 1, 2), about, {'loss': loss, 'accuracy': 0.5}, {}, {})
    assert ('above that of guessing' in capsys.readouterr().err) == warned


@pytest.mark.parametrize('temperature', [1e-300, 1e-40, 1e-4])
def test_temperature_of_nearly_nothing_takes_the_likeliest_colour(temperature):
    """Scores divided by it would be infinite."""
    scores, colours = torch.randn(2, 5, 3, 4), np.random.default_rng(0).random((5, 3), dtype=np.float32)
    assert np.array_equal(scores_to_rgb(scores, colours, temperature), scores_to_rgb(scores, colours))


def test_baseline_tells_white_from_what_is_nearly_white():
    counts = torch.zeros(766, 3, dtype=torch.int64)
    counts[764, 1], counts[765, 2] = 9, 5
    grey, numbers = torch.tensor([764, 765]) / 768, torch.tensor([1, 2])
    assert list(baselines(counts, grey, numbers).values()) == [0.5, 1]
