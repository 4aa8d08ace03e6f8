"""The write-up: measure what it needs, draw its figures, and typeset it.

    python outputs/writeup/writeup.py --data data        # measure, and train what was never trained
    python outputs/writeup/writeup.py --only macros      # typeset again, from the result files alone

Writes `a2-writeup.pdf`, with pdflatex. No number in `a2-writeup.tex` is typed: they are the macros of
`results/numbers.tex`, made from `results/writeup.json`, all that is measured here;
`results/writeup_runs.csv` and `results/history_b10_e25.csv`, the trainings of C.2, C.3 and G.2;
`results/experiments.csv`, part F; and `results/course.json`, the course's own weights. The figures go
into `figures/`.
"""

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.stats import ttest_1samp

HERE = Path(__file__).resolve().parent
ROOT, RESULTS, FIGURES = HERE.parent.parent, HERE / 'results', HERE / 'figures'
sys.path[:0] = [str(ROOT), str(HERE)]

import comparison  # noqa: E402
import experiments  # noqa: E402
from activations import record_activations  # noqa: E402
from colour_regression import RegressionCNN, regression  # noqa: E402
from colourization import (CNN, MODELS, STAGES, DUNet, MyConv2d, MyDilatedConv2d, UNet,  # noqa: E402
                           Settings, architecture, baselines, classification, colour_counts, draw_curves,
                           draw_pictures, figure_file, get_cat_rgb, get_rgb_cat, grey_levels, load_model,
                           log_frequencies, mosaic, number_type, process, psnr, put_grey_back, run,
                           run_validation_step, scores_to_rgb, train)
from comparison import PAPER, measure_pictures  # noqa: E402
from experiments import read_table, write_table  # noqa: E402
from load_data import InputError, batches, hold_out, load_cifar10, load_colours, whole_file  # noqa: E402

MEASURED, NUMBERS = RESULTS / 'writeup.json', RESULTS / 'numbers.tex'
RUNS, HISTORY = RESULTS / 'writeup_runs.csv', RESULTS / 'history_b10_e25.csv'
COURSE = RESULTS / 'course.json'
TEX, PDF = HERE / 'a2-writeup.tex', HERE / 'a2-writeup.pdf'

# ---------------------------------------------------------------------------
# What is trained for the write-up (C.2, C.3, G.2)
# ---------------------------------------------------------------------------

# Each skip connection by the stage that it leads to, with the stage whose maps come first there.
SKIPS = {'upconv1': 'rfconv', 'upconv2': 'upconv1', 'finalconv': 'upconv2'}
COLOURS = load_colours(ROOT / 'colour/colour_kmeans24_cat7.npy')

SEEDS = range(9)
PAINTED_SEEDS = range(4)  # the runs whose pictures were measured, too
SHORT = {'schedule': 'onecycle', 'learn_rate': 0.03, 'batch_size': 16}  # as in experiments.py
PLANNED = {  # by name: the network, what is cut from it, filters, epochs, enlargement of the pictures
    'UNet': (UNet, (), 32, 3, 1),
    'UNet without upconv1': (UNet, ('upconv1',), 32, 3, 1),
    'UNet without upconv2': (UNet, ('upconv2',), 32, 3, 1),
    'UNet without finalconv': (UNet, ('finalconv',), 32, 3, 1),
    'UNet without all': (UNet, tuple(SKIPS), 32, 3, 1),
    'UNet without middle': (UNet, ('middle',), 32, 3, 1),
    'CNN': (CNN, (), 32, 3, 1),
    'CNN, 37 filters': (CNN, (), 37, 3, 1),
    'DUNet': (DUNet, (), 32, 3, 1),
    'DUNet without all': (DUNet, tuple(SKIPS), 32, 3, 1),
    'UNet, 8 filters': (UNet, (), 8, 4, 1),
    'DUNet, 8 filters': (DUNet, (), 8, 4, 1),
    'UNet, 8 filters, 2 epochs': (UNet, (), 8, 2, 1),
    'DUNet, 8 filters, 2 epochs': (DUNet, (), 8, 2, 1),
    'UNet, 8 filters, 64x64': (UNet, (), 8, 2, 2),
    'DUNet, 8 filters, 64x64': (DUNet, (), 8, 2, 2),
}


def cut(model, what, replacement=0.0):
    """Let a UNet see `replacement` where a skip connection, or the middle, brings the maps of another stage.

    `what` is the stage that the skip connection leads to, or 'middle' for the maps of rfconv in upconv1;
    `replacement` is a number, or a tensor [C, 1, 1] with one for each map. The `remove()` of what is returned
    mends the network.
    """
    stage = 'upconv1' if what == 'middle' else what
    first = len(getattr(model, SKIPS[stage])[0].weight)
    maps = slice(first) if what == 'middle' else slice(first, None)

    def replace(_, inputs):
        x = inputs[0].clone()
        x[:, maps] = replacement
        return x

    return getattr(model, stage).register_forward_pre_hook(replace)


def training_pictures(data, enlargement=1):
    """The training horses less 500, and those 500: grey pictures and colour numbers; the 500 in RGB."""
    sets = []
    for pictures in hold_out(load_cifar10(data)[0], 500):
        rgb, _ = process(*pictures)
        if enlargement > 1:
            rgb = F.interpolate(torch.from_numpy(rgb), scale_factor=enlargement, mode='bilinear').numpy()
        cats = get_rgb_cat(rgb, COLOURS).astype(np.int16)
        sets.append((torch.from_numpy(rgb.mean(axis=1, keepdims=True)), torch.from_numpy(cats)))
    return *sets, rgb


def train_short(name, seed, data):
    """Train one of PLANNED; returns its line of writeup_runs.csv."""
    make, cuts, num_filters, epochs, enlargement = PLANNED[name]
    torch.manual_seed(seed)
    model = make(3, num_filters, 24).to(memory_format=torch.channels_last)
    for what in cuts:
        cut(model, what)
    train_set, valid_set, rgb = training_pictures(data, enlargement)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(name, 'the horses of CIFAR-10', epochs=epochs, seed=seed, **SHORT)
        history = train(model, classification, train_set, valid_set, settings, Path(folder, 'weights.pkl'),
                        Path(folder))
    painted = paint(outputs(model.eval(), valid_set[0]), 1)
    (error, _), (back, _), (colourful, _) = judge_one(painted, rgb, valid_set[0].numpy())
    return {'run': name, 'seed': str(seed)} | history[-1] | {
        'val_error': error, 'val_error_back': back, 'val_colourfulness': colourful}


def begin_worker(threads):
    """A process of `train_missing` begins; Ctrl-C is to end it at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(threads)


def train_missing(data, jobs=1):
    """Train what the result files lack; each run is kept as soon as it is done."""
    threads = max(1, os.cpu_count() // jobs)
    if not HISTORY.exists():
        command = 'colourization.py --model UNet -b 10 -e 25'
        write_table(experiments.history(command, 0, data, threads), HISTORY)
    runs = read_table(RUNS) if RUNS.exists() else []
    done = {(run['run'], int(run['seed'])) for run in runs}
    planned = [(name, seed) for name in PLANNED for seed in SEEDS]
    with ProcessPoolExecutor(jobs, get_context('spawn'), begin_worker, (threads,)) as pool:
        try:
            for finished in as_completed([pool.submit(train_short, *pair, data)
                                          for pair in planned if pair not in done]):
                runs.append(finished.result())
                write_table(sorted(runs, key=lambda run: planned.index((run['run'], int(run['seed'])))), RUNS)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


# ---------------------------------------------------------------------------
# What every question needs
# ---------------------------------------------------------------------------

# What a section measures: numbers by the name of their macro, each a value and the format that it
# is printed in, and tables, whose cells are such pairs or texts. A list of values, one for each
# seed, is printed as mean and standard deviation.

SHIPPED = {'Regression': 'regression_cnn_k3_f32.pkl', 'CNN': 'cnn_k3_f32.pkl',
           'UNet': 'unet_k3_f32.pkl', 'DUNet': 'dunet_k3_f32.pkl'}
PRIORS = {'CNN': 'cnn_prior_k3_f32.pkl', 'UNet': 'unet_prior_k3_f32.pkl',
          'DUNet': 'dunet_prior_k3_f32.pkl'}
LABELS = {'Regression': 'RegressionCNN', 'Grey': 'grey picture', 'Table': 'table of grey levels',
          'Floor': 'truth in 24 colours', 'Truth': 'truth'}
LETTERS = {'downconv1': 'DownOne', 'downconv2': 'DownTwo', 'rfconv': 'Middle', 'upconv1': 'UpOne',
           'upconv2': 'UpTwo', 'finalconv': 'Final'}  # names of macros have letters only
LOSS, SHARE, ERROR, COLOURFUL, DECIBEL, RATIO = '.4f', '.1%', '.5f', '.1f', '.2f', '.2f'


def shipped_network(name, files=SHIPPED):
    """A network of weights/ in eval mode, and its colours."""
    make = MODELS.get(name, lambda kernel, filters, _: RegressionCNN(kernel, filters))
    return load_model(make, ROOT / 'weights' / files[name])


@torch.no_grad()
def outputs(model, grey):
    return torch.cat([model(x) for x, in batches([grey], batch_size=100)])


def test_horses(data):
    """The 1,000 test horses, and what the networks make of them, as every section takes them.

    Returns:
        rgb, grey: arrays [N, C, H, W]; x, cats: tensors, what the networks see and should choose;
        train_x, train_cats: those of the 5,000 training horses, and counts: their `colour_counts`;
        networks, scores [N, K, H, W]: by name. 'Table' has scores too: those of the colours at each
        grey level.
    """
    train_pictures, test_pictures = load_cifar10(data)
    (rgb, grey), (train_rgb, train_grey) = process(*test_pictures), process(*train_pictures)
    cats, train_cats = (torch.from_numpy(get_rgb_cat(pictures, COLOURS)) for pictures in (rgb, train_rgb))
    x, train_x = torch.from_numpy(grey), torch.from_numpy(train_grey)
    networks = {name: shipped_network(name)[0] for name in SHIPPED}
    counts = colour_counts(train_x, train_cats, len(COLOURS))
    scores = {name: outputs(model, x) for name, model in networks.items()}
    scores['Table'] = log_frequencies(counts)[grey_levels(x[:, 0])].movedim(-1, 1)
    return SimpleNamespace(rgb=rgb, grey=grey, x=x, cats=cats, train_x=train_x, train_cats=train_cats,
                           counts=counts, networks=networks, scores=scores)


def paint(scores, temperature=0):
    """The pictures that scores of 24 colours, or a regression's three outputs, give."""
    return scores_to_rgb(scores, None if scores.shape[1] == 3 else COLOURS, temperature)


def checksums_of_weights():
    paths = [ROOT / 'weights' / name for name in (*SHIPPED.values(), *PRIORS.values())]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def judge_one(pictures, rgb, grey):
    """Error, error with the grey of the input put back, and colourfulness: cells of a table."""
    own, back = measure_pictures({'own': pictures, 'back': put_grey_back(pictures, grey)}, rgb).values()
    return [[own['mean_squared_error'], ERROR], [back['mean_squared_error'], ERROR],
            [own['colourfulness'], COLOURFUL]]


def mean_and_error(values):
    """The mean over pictures, and its standard error."""
    return np.mean(values), np.std(values, ddof=1) / len(values) ** 0.5


def save_figure(figure, name):
    with whole_file(FIGURES / name) as file:
        figure.savefig(file, dpi=160)


# ---------------------------------------------------------------------------
# A: regression
# ---------------------------------------------------------------------------


def describe_regression(_):
    """A.1: the layers of RegressionCNN, as --summary prints them."""
    table, rows = [], architecture(RegressionCNN(3, 32))
    for row in rows:
        if 'filter' in row:
            then = [other['operation'] for other in rows
                    if other['stage'] == row['stage'] and 'filter' not in other]
            filters, output = (row[name].replace('x', '$\\times$') for name in ('filter', 'output'))
            table.append([f'\\texttt{{{row["stage"]}}}', filters, [row['inputs'], 'd'],
                          [row['filters'], 'd'], output, [row['weights'], ',d'], [row['biases'], 'd'],
                          row['receptive field'], ', '.join(then) or '---'])
    (weights, biases), (scales, shifts) = (
        [sum(row.get(name, 0) for row in rows if (row['operation'] == 'batch norm') == norm)
         for name in ('weights', 'biases')] for norm in (False, True))
    table.append(['\\midrule sum', '', '', '', '', [weights, ',d'], [biases, 'd'], '', ''])
    return {'Weights': [weights, ',d'], 'Biases': [biases, 'd'], 'Scales': [scales, 'd'],
            'Shifts': [shifts, 'd'], 'AllWeights': [weights + scales, ',d'],
            'AllBiases': [biases + shifts, 'd'], 'TableLayers': table}


def judge_networks(h):
    """A.2, A.4, B.2, C.3, G.2: what is painted, by likeliest and by mean colours; the grey-level table."""
    found, table = {}, []
    pictures = {'Grey': np.repeat(h.grey, 3, axis=1),
                **{name: paint(h.scores[name]) for name in ('Table', *SHIPPED)},
                'Floor': get_cat_rgb(h.cats.numpy(), COLOURS), 'Truth': h.rgb}
    for name, painted in pictures.items():
        error, back, colourful = judge_one(painted, h.rgb, h.grey)
        found |= {f'Error{name}': error, f'ErrorBack{name}': back, f'Colourful{name}': colourful}
        cells = {'Truth': ['', '', '', '', colourful], 'Grey': ['', '', error, '', colourful]}.get(
            name, ['', '', error, back, colourful])
        means = ['', '', '']
        if name in (*MODELS, 'Table'):
            loss, accuracy = classification(h.scores[name], h.cats).values()
            cells[:2] = [loss.item(), LOSS], [accuracy.item(), SHARE]
            means = judge_one(paint(h.scores[name], 1), h.rgb, h.grey)
            found |= {f'Loss{name}': cells[0], f'Accuracy{name}': cells[1]}
            found |= dict(zip((f'ErrorMean{name}', f'ErrorMeanBack{name}', f'ColourfulMean{name}'), means))
        table.append([LABELS.get(name, name), *cells, *means])
    wrong = pictures['Regression'] - h.rgb
    brightness = np.square(wrong.mean(axis=1)).mean() / np.square(wrong).mean()
    spread = h.rgb.mean(axis=1).var() / h.rgb.var(axis=(0, 2, 3)).mean()
    loss = regression(h.scores['Regression'], torch.from_numpy(h.rgb))['loss']
    right = {name: (h.scores[name].argmax(dim=1) == h.cats[:, 0]).float().mean(dim=(1, 2))
             for name in ('Table', 'UNet')}
    gain, error = mean_and_error(100 * (right['Table'] - right['UNet']).numpy())
    table_alone = baselines(h.counts, h.x, h.cats)
    return found | {'TableNetworks': table, 'LossRegression': [loss.item(), ERROR],
                    'BrightnessRegression': [brightness, '.0%'], 'BrightnessOfSpread': [spread, '.0%'],
                    'GainOfTable': [gain, '.1f'], 'GainOfTableError': [error, '.1f'],
                    'AccuracyMostFrequent': [table_alone['most_frequent_colour'], SHARE]}


def draw_networks(h):
    """All networks side by side: left as they are, right with the grey of the input."""
    shown = slice(7)
    panels = [('grey: what the networks see', h.grey[shown]), ('truth', h.rgb[shown])]
    for name in SHIPPED:
        label, pictures = LABELS.get(name, name), paint(h.scores[name])
        panels += [(label, pictures[shown]),
                   (f"{label}, with the input's grey", put_grey_back(pictures[shown], h.grey[shown]))]
    draw_pictures([(label, mosaic(pictures, 7)) for label, pictures in panels],
                  FIGURES / 'networks.png', '', columns=2, width=PAPER)


def rgb_to_lab(rgb):
    """CIELAB of sRGB colours [..., 3] in [0, 1], for the white of D65: IEC 61966-2-1 and CIE 15."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124564, 0.3575761, 0.1804375],
                       [0.2126729, 0.7151522, 0.0721750],
                       [0.0193339, 0.1191920, 0.9503041]])
    xyz = linear @ to_xyz.T / to_xyz.sum(axis=1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def ciede2000(first, second):
    """The difference of CIELAB colours [..., 3] as people measure it.

    Sharma, Wu and Dalal (2005), The CIEDE2000 color-difference formula.
    """
    (l1, a1, b1), (l2, a2, b2) = np.moveaxis(first, -1, 0), np.moveaxis(second, -1, 0)

    def chroma_factor(chroma):
        return np.sqrt(chroma**7 / (chroma**7 + 25.0**7))
    stretch = 1.5 - chroma_factor((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2) / 2
    c1, c2 = np.hypot(stretch * a1, b1), np.hypot(stretch * a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, stretch * a)) for a, b in ((a1, b1), (a2, b2)))
    turn = (h2 - h1 + 180) % 360 - 180
    lightness, chroma, hue = (l1 + l2) / 2, (c1 + c2) / 2, np.radians(h1 + turn / 2)
    scale = (1 - 0.17 * np.cos(hue - np.pi / 6) + 0.24 * np.cos(2 * hue)
             + 0.32 * np.cos(3 * hue + np.radians(6)) - 0.2 * np.cos(4 * hue - np.radians(63)))
    of_l = (l2 - l1) / (1 + 0.015 * (lightness - 50)**2 / np.sqrt(20 + (lightness - 50)**2))
    of_c = (c2 - c1) / (1 + 0.045 * chroma)
    of_h = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2)) / (1 + 0.015 * chroma * scale)
    blue = np.radians(60) * np.exp(-(((np.degrees(hue) % 360 - 275) / 25)**2))
    return np.sqrt(of_l**2 + of_c**2 + of_h**2 - 2 * np.sin(blue) * chroma_factor(chroma) * of_c * of_h)


APART = 60 / 255
SHOWN_PAIRS = 5, 35, 65, 95  # percentiles
HORSE_OR_GRASS = np.array([[150, 90, 55], [110, 150, 60]]) / 255


def moved_pixels(rgb):
    """100,000 random pixels of pictures, each with a colour that is APART from it in a random direction.

    Returns pairs of colours that can be shown, [P, 2, 3], and the share of those that cannot.
    """
    random = np.random.default_rng(0)
    pixels = np.moveaxis(rgb, 1, -1).reshape(-1, 3)
    pixels = pixels[random.choice(len(pixels), 100_000)]
    steps = random.normal(size=pixels.shape)
    moved = pixels + APART * steps / np.linalg.norm(steps, axis=1, keepdims=True)
    inside = ((moved >= 0) & (moved <= 1)).all(axis=1)
    return np.stack([pixels, moved], axis=1)[inside], 1 - inside.mean()


def compare_distances(h):
    """A.3: the differences to see of colours that are equally far apart in RGB."""
    pairs, outside = moved_pixels(h.rgb)
    seen = ciede2000(rgb_to_lab(pairs[:, 0]), rgb_to_lab(pairs[:, 1]))
    chosen = seen.argsort()[[len(seen) * percentile // 100 for percentile in SHOWN_PAIRS]]

    figure = Figure(figsize=(PAPER, 1.9), layout='constrained')
    grid = figure.add_gridspec(1, 5, width_ratios=[1, 1, 1, 1, 3.6])
    for i, place in enumerate(chosen):
        axes = figure.add_subplot(grid[i])
        axes.imshow(pairs[place, :, None], extent=(0, 1, 0, 1), interpolation='nearest')
        axes.set(xticks=[], yticks=[])
        axes.set_title(f'{SHOWN_PAIRS[i]} %: {seen[place]:.0f}', fontsize=9)
    axes = figure.add_subplot(grid[4])
    draw_two_colours(axes)
    save_figure(figure, 'colours.png')
    return {'SeenLow': [seen[chosen[0]], '.0f'], 'SeenHigh': [seen[chosen[-1]], '.0f'],
            'SeenLeast': [seen.min(), '.1f'], 'OutsideGamut': [outside, '.0%']}


def draw_two_colours(axes):
    """A.4: expected error on the line between two colours that are equally probable."""
    first, second = HORSE_OR_GRASS
    places = np.linspace(0, 1, 101)
    line = first + places[:, None] * (second - first)
    loss = (np.square(line - first).mean(axis=1) + np.square(line - second).mean(axis=1)) / 2
    axes.imshow(line[None], extent=(0, 1, 0, 0.002), aspect='auto')
    axes.plot(places, loss, 'k')
    for i, label in ((0, 'brown'), (50, 'their mean'), (100, 'green')):
        axes.plot(places[i], loss[i], 'o', color=line[i], markersize=13, markeredgecolor='k')
        axes.text(places[i], loss[i] + 0.002, label, ha='center')
    axes.set(xlim=(-0.1, 1.1), ylim=(0, 0.018), xticks=[], ylabel='expected error', xlabel='predicted colour')


def choose_between_two(_):
    """A.4: the expected errors in the figure."""
    apart = np.square(HORSE_OR_GRASS[0] - HORSE_OR_GRASS[1]).mean()
    return {'LossOfEither': [apart / 2, '.3f'], 'LossOfMean': [apart / 4, '.3f']}


# ---------------------------------------------------------------------------
# C: skip connections
# ---------------------------------------------------------------------------


def draw_training():
    """C.2: the course's training, 25 epochs, of which the first 5 are the run of -e 5."""
    history = [{name: float(value) for name, value in record.items()} for record in read_table(HISTORY)]
    with figure_file(FIGURES / 'curves.png', 9, 3.4, dpi=130) as figure:
        draw_curves(history, figure, '')
        for axes in figure.axes:
            axes.axvline(5, color='grey', linewidth=1, linestyle=':', label='-e 5 ends here')
            axes.legend()


def brightness_edges(pictures):
    """Differences of neighbouring pixels' brightness, down and to the right: [2, N, H - 1, W - 1]."""
    grey = pictures.mean(axis=1)
    return np.stack([grey[:, 1:, :-1] - grey[:, :-1, :-1], grey[:, :-1, 1:] - grey[:, :-1, :-1]])


def lone_pixels(cats):
    """The share of inner pixels whose chroma is more than 0.1 from that of each of the four neighbours.

    Takes colours [N, H, W]; chroma is a colour less its own brightness.
    """
    chroma = torch.from_numpy(COLOURS - COLOURS.mean(axis=1, keepdims=True))
    apart = torch.cdist(chroma, chroma) > 0.1
    neighbours = cats[:, :-2, 1:-1], cats[:, 2:, 1:-1], cats[:, 1:-1, :-2], cats[:, 1:-1, 2:]
    lone = torch.stack([apart[cats[:, 1:-1, 1:-1], other] for other in neighbours]).all(dim=0)
    return lone.float().mean().item()


def compare_edges(h):
    """C.3: how sharp the outputs are, where their edges are, who is right there, and lone pixels."""
    found, table = {}, []
    true = brightness_edges(h.rgb)
    strength = np.hypot(*true)
    edge = strength > np.quantile(strength, 0.9)
    for name in (*SHIPPED, 'Floor'):
        edges = brightness_edges(get_cat_rgb(h.cats.numpy(), COLOURS) if name == 'Floor' else
                                 paint(h.scores[name]))
        sharp = np.hypot(*edges).mean() / strength.mean()
        alike = np.corrcoef(edges.ravel(), true.ravel())[0, 1]
        found |= {f'Sharp{name}': [sharp, RATIO], f'Alike{name}': [alike, RATIO]}
        cells = ['', '', '']
        if name != 'Regression':
            cats = h.cats[:, 0] if name == 'Floor' else h.scores[name].argmax(dim=1)
            found[f'Lone{name}'] = cells[2] = [lone_pixels(cats), SHARE]
        if name in MODELS:
            right = (cats == h.cats[:, 0]).numpy()[:, :-1, :-1]
            cells[:2] = [right[edge].mean(), SHARE], [right[~edge].mean(), SHARE]
            found |= {f'AtEdges{name}': cells[0], f'OffEdges{name}': cells[1]}
        table.append([LABELS.get(name, name), found[f'Sharp{name}'], found[f'Alike{name}'], *cells])
    return found | {'TableEdges': table}


CUT_MEASURES = 'Accuracy', 'ErrorBack', 'ErrorMeanBack', 'Colourful'
CUTS = {**{LETTERS[stage]: (stage,) for stage in SKIPS}, 'All': tuple(SKIPS), 'Middle': ('middle',)}


def cut_at_evaluation(h):
    """C.3: the trained UNet, with the maps of a skip connection or of the middle replaced by their means."""
    model = h.networks['UNet']
    _, maps = record_activations(model, h.x)
    brought = {'upconv1': maps['downconv2'], 'upconv2': maps['downconv1'], 'finalconv': h.x,
               'middle': maps['rfconv']}
    found = {}
    for name, cuts in CUTS.items():
        hooks = [cut(model, what, brought[what].mean(dim=(0, 2, 3))[:, None, None]) for what in cuts]
        scores = outputs(model, h.x)
        for hook in hooks:
            hook.remove()
        _, back, colourful = judge_one(paint(scores), h.rgb, h.grey)
        found |= {f'CutAccuracy{name}': [classification(scores, h.cats)['accuracy'].item(), SHARE],
                  f'CutErrorBack{name}': back, f'CutColourful{name}': colourful,
                  f'CutErrorMeanBack{name}': judge_one(paint(scores, 1), h.rgb, h.grey)[1]}
    whole = judge_one(paint(h.scores['UNet']), h.rgb, h.grey)[2][0]
    return found | {'CutColourfulLost': [1 - found['CutColourfulMiddle'][0] / whole, '.0%']}


# ---------------------------------------------------------------------------
# D and G.1: dilation
# ---------------------------------------------------------------------------


def side_that_counts(layer):
    """Rows of the input that one output pixel of a convolution has a gradient to."""
    x = torch.zeros(1, 1, 15, 15, requires_grad=True)
    layer(x)[0, 0, 7, 7].backward()
    rows = x.grad[0, 0].any(dim=1).nonzero()
    return (rows.max() - rows.min() + 1).item()


def measure_filters(_):
    """D.1: weights per pair of channels and receptive fields, by gradients; D.2: the choice of the place.

    For the latter, `architecture` counts the field of the CNN with each convolution dilated in turn.
    """
    found, table = {}, []
    for name, layer in (('$3\\times3$', MyConv2d(1, 1, 3)), ('$5\\times5$', MyConv2d(1, 1, 5)),
                        ('$3\\times3$, dilation 1', MyDilatedConv2d(1, 1, 3, dilation=1))):
        table.append([name, [layer.weight.numel(), 'd'], [side_that_counts(layer), 'd']])
    found['TableFilters'] = table

    found['TablePlaces'] = [['none', architecture(CNN(3, 32, 24))[-1]['receptive field']]]
    for stage in LETTERS:
        model = CNN(3, 32, 24)
        name = 'finalconv' if stage == 'finalconv' else f'{stage}.0'
        outputs, inputs, _, _ = model.get_submodule(name).weight.shape
        model.set_submodule(name, MyDilatedConv2d(inputs, outputs, 3, dilation=1))
        found['TablePlaces'].append([f'\\texttt{{{stage}}}', architecture(model)[-1]['receptive field']])
    middle = next(row for row in architecture(UNet(3, 32, 24)) if row['stage'] == 'rfconv')
    found['WeightsMiddle'] = [middle['weights'], ',d']
    return found


REACH = 21  # pixels around the output pixel; no network sees more


def likeliest_score(scores):
    return scores.amax(dim=1, keepdim=True)


def expected_chroma(scores):
    """The mean of the colours, less its own brightness: [N, 3, H, W]."""
    expected = torch.einsum('nkhw, kc -> nchw', scores.softmax(dim=1), torch.from_numpy(COLOURS))
    return expected - expected.mean(dim=1, keepdim=True)


def gradient_energy(model, grey, quantity=likeliest_score, power=2):
    """How much each input pixel around an output pixel matters to a quantity: [43, 43], with the sum 1.

    The gradient to a power, averaged over pictures, over the channels of `quantity(scores)`, and over the
    4x4 places in the blocks of the poolings: Luo et al. (2016). The pictures [N, 1, 32, 32] are continued by
    their mirror images, so that no output pixel is near to an edge.
    """
    x = F.pad(grey, (16,) * 4, 'reflect').requires_grad_()
    values = quantity(model(x))
    energy = torch.zeros(2 * REACH + 1, 2 * REACH + 1)
    for row in range(30, 34):
        for column in range(30, 34):
            for channel in range(values.shape[1]):
                gradient, = torch.autograd.grad(values[:, channel, row, column].sum(), x, retain_graph=True)
                around = gradient[:, 0, row - REACH:row + REACH + 1, column - REACH:column + REACH + 1]
                energy += around.abs().pow(power).sum(dim=0)
    return (energy / energy.sum()).numpy()


def radius(energy, share):
    """Of the circle around the output pixel that holds a share of the energy, in pixels."""
    span = np.arange(-REACH, REACH + 1)
    distance = np.hypot(*np.meshgrid(span, span)).ravel()
    order = distance.argsort(kind='stable')
    return distance[order][np.searchsorted(energy.ravel()[order].cumsum(), share)]


def measure_receptive_fields(h):
    """D.2: theoretical and effective receptive fields of the trained networks, of score and of chroma."""
    found, table = {}, []
    figure = Figure(figsize=(PAPER, 4.4), layout='constrained')
    panels = figure.subplots(2, 3, sharex=True, sharey=True)
    for column, name in zip(panels.T, MODELS):
        theory = architecture(MODELS[name](3, 32, 24))[-1]['receptive field']
        side, row = int(theory.split()[-1]), [name, theory]
        for axes, quantity in zip(column, (likeliest_score, expected_chroma)):
            energy = gradient_energy(h.networks[name], h.x[:50], quantity)
            row += [[radius(energy, share), '.1f'] for share in (0.5, 0.9)]
            image = axes.imshow(np.log10(energy + 1e-12), extent=(-REACH - .5, REACH + .5) * 2,
                                vmin=-6, vmax=-1)
            axes.add_patch(Rectangle((-side / 2, -side / 2), side, side, fill=False, edgecolor='w',
                                     linestyle=':'))
            what = 'score' if quantity is likeliest_score else 'chroma'
            axes.set_title(f'{name}, {what}', fontsize=9)
            axes.tick_params(labelsize=9)
            axes.set(xticks=(-15, 0, 15), yticks=(-15, 0, 15))
        found[f'Field{name}'] = theory
        absolute = gradient_energy(h.networks[name], h.x[:50], power=1)
        found |= {f'RadiusScore{name}': row[3], f'RadiusChroma{name}': row[5],
                  f'RadiusAbsolute{name}': [radius(absolute, 0.9), '.1f']}
        table.append(row)
    for axes in panels[1]:
        axes.set_xlabel('pixels to the right', fontsize=9)
    for axes in panels[:, 0]:
        axes.set_ylabel('pixels up', fontsize=9)
    bar = figure.colorbar(image, ax=panels, shrink=0.8)
    bar.set_label('log10 of the share', fontsize=9)
    save_figure(figure, 'receptive_fields.png')
    return found | {'TableFields': table}


def check_dilation(_):
    """G.1: MyDilatedConv2d against torch's own dilation, forward and gradients, in double precision."""
    worst, cases = 0.0, 0
    for kernel in (1, 3, 5, 7):
        for dilation in range(5):
            torch.manual_seed(cases)
            layer = MyDilatedConv2d(3, 5, kernel, dilation).double()
            x = torch.randn(2, 3, 9, 13, dtype=torch.float64, requires_grad=True)
            gaps = dilation + 1
            ours = layer(x)
            theirs = F.conv2d(x, layer.weight, layer.bias, dilation=gaps, padding=kernel // 2 * gaps)
            direction = torch.randn_like(ours)
            needed = (x, layer.weight, layer.bias)
            results = [[out, *torch.autograd.grad(out, needed, direction)] for out in (ours, theirs)]
            worst = max(worst, *((a - b).abs().max().item() for a, b in zip(*results)))
            cases += 1

    figure = Figure(figsize=(4.2, 1.7), layout='constrained')
    for axes, dilation in zip(figure.subplots(1, 3), (0, 1, 3)):
        layer = MyDilatedConv2d(1, 1, 3, dilation)
        taps = (layer.spread_weight()[0, 0] != 0).numpy()
        around = 6 - len(taps) // 2
        axes.imshow(np.pad(taps, around), cmap='Blues', vmax=1.4)
        axes.set_title(f'dilation {dilation}:\n{taps.sum()} taps in {len(taps)}x{len(taps)}', fontsize=9)
        axes.set(xticks=np.arange(14) - .5, yticks=np.arange(14) - .5)
        axes.tick_params(length=0, labelbottom=False, labelleft=False)
        axes.grid(color='lightgrey', linewidth=0.6)
    save_figure(figure, 'dilation.png')
    return {'DilationCases': [cases, 'd'], 'DilationWorst': [worst, '.0e']}


def compare_with_dilation(h):
    """G.2: the losses of UNet and DUNet on the pictures that they were trained on, and picture by picture."""
    found = {}
    for name in ('UNet', 'DUNet'):
        metrics = run_validation_step(h.networks[name], classification, h.train_x, h.train_cats)
        found[f'TrainLoss{name}'] = [metrics['loss'], '.3f']
    losses = [F.cross_entropy(h.scores[name], h.cats[:, 0], reduction='none').mean(dim=(1, 2)).numpy()
              for name in ('DUNet', 'UNet')]
    more, error = mean_and_error(losses[0] - losses[1])
    return found | {'MoreLoss': [more, '.4f'], 'MoreLossError': [error, '.4f']}


# ---------------------------------------------------------------------------
# E: activations
# ---------------------------------------------------------------------------

SHOWN_HORSE, SHOWN_MAPS = 6, 8  # of the test horses: brown, on a meadow; and of each stage
GAP = 0.35, 0.55, 0.9  # a colour that no map has


def liveliest_maps(maps):
    """Some of the maps [C, H, W] as one picture, whose gaps are blue: those that vary most.

    They are chosen and scaled by what they show within a rim of an eighth, where no padding is seen.
    """
    rim = maps.shape[1] // 8
    inner = maps[:, rim:-rim, rim:-rim]
    chosen = inner.std(dim=(1, 2)).topk(SHOWN_MAPS).indices.sort().values
    shown = (maps[chosen] / inner[chosen].amax(dim=(1, 2), keepdim=True)).clamp(max=1)
    picture = mosaic(shown[:, None].numpy(), SHOWN_MAPS)
    gaps = mosaic(np.zeros_like(shown[:, None]), SHOWN_MAPS)
    return np.where(gaps == 1, GAP, picture)


def roughness(maps):
    """Mean squared difference of neighbours in maps [N, C, H, W], 0 for an even map, 1 for noise: [C]."""
    change = ((maps[:, :, 1:] - maps[:, :, :-1]).square().mean(dim=(0, 2, 3))
              + (maps[:, :, :, 1:] - maps[:, :, :, :-1]).square().mean(dim=(0, 2, 3)))
    return change / (4 * maps.transpose(0, 1).flatten(1).var(dim=1))


def compare_activations(h):
    """E.1, E.2: the maps of CNN and UNet for the same pictures: some drawn for one, all counted over 200."""
    found, rows, panels = {}, {}, {}
    for name in ('CNN', 'UNet'):
        _, maps = record_activations(h.networks[name], h.x[:200])
        colours = [h.rgb[SHOWN_HORSE], paint(h.scores[name][SHOWN_HORSE:][:1])[0]]
        grey = np.repeat(h.grey[SHOWN_HORSE], 3, axis=0)
        panels[name] = [(f'{name}: input, truth, output', mosaic(np.stack([grey, *colours]), SHOWN_MAPS))]
        for stage in STAGES:
            m = maps[stage]
            panels[name].append((f'{name}: {stage}', liveliest_maps(m[SHOWN_HORSE])))
            if stage.startswith('up'):  # each value stands there four times
                m = m[:, :, ::2, ::2]
            alive = m.amax(dim=(0, 2, 3)) > 0
            grey_there = F.adaptive_avg_pool2d(h.x[:200], m.shape[2:])
            flat = m[:, alive].transpose(0, 1).flatten(1)
            alike = torch.corrcoef(torch.cat([grey_there.flatten()[None], flat]))[0, 1:].abs()
            cells = {'Active': [(m > 0).float().mean().item(), '.0%'],
                     'Dead': [(~alive).sum().item(), 'd'],
                     'LikeGrey': [alike.mean().item(), RATIO],
                     'Rough': [roughness(m[:, alive]).mean().item(), RATIO]}
            found |= {f'{what}{name}{LETTERS[stage]}': cell for what, cell in cells.items()}
            found[f'RoughGrey{LETTERS[stage]}'] = [roughness(grey_there).item(), RATIO]
            rows.setdefault(stage, [f'\\texttt{{{stage}}}', [m.shape[1], 'd'],
                                    found[f'RoughGrey{LETTERS[stage]}']]).extend(cells.values())
    draw_pictures([panel for row in zip(*panels.values()) for panel in row], FIGURES / 'activations.png', '',
                  columns=2, width=PAPER)
    return found | {'TableActivations': list(rows.values())}


# ---------------------------------------------------------------------------
# Beyond the handout
# ---------------------------------------------------------------------------


def go_beyond(h):
    """The priors, and the grey put back, with and without one."""
    found, table = {}, []
    for name in PRIORS:
        metrics = run_validation_step(shipped_network(name, PRIORS)[0], classification, h.x, h.cats)
        found |= {f'PriorLoss{name}': [metrics['loss'], LOSS],
                  f'PriorAccuracy{name}': [metrics['accuracy'], SHARE]}
    ways = comparison.ways(h.grey)
    comparison.draw(ways, h.rgb, FIGURES)
    for name, measured in measure_pictures(ways | {'truth': h.rgb}, h.rgb).items():
        error, colourful = measured.values()
        table.append([name, *([[error, ERROR], [psnr(error), DECIBEL]] if error else ['', '']),
                      [colourful, COLOURFUL]])
    errors = {row[0]: row[1][0] for row in table[:-1]}
    best = errors['UNet with prior, mean, grey put back']
    return found | {'TableWays': table, 'ErrorBest': [best, ERROR],
                    'ErrorBestShare': [best / errors['grey picture'], '.0%'],
                    'ByAll': [errors['UNet, likeliest colours'] - best, ERROR],
                    'ByPrior': [errors['UNet, mean, grey put back'] - best, ERROR]}


# ---------------------------------------------------------------------------
# From results to macros
# ---------------------------------------------------------------------------

SECTIONS = [describe_regression, judge_networks, compare_distances, choose_between_two, compare_edges,
            cut_at_evaluation, measure_filters, measure_receptive_fields, check_dilation,
            compare_with_dilation, compare_activations, go_beyond]


def measure(data):
    """Measure everything that needs no training; writes writeup.json and the figures."""
    h = test_horses(data)
    results = {'weights': checksums_of_weights()}
    for section in SECTIONS:
        what = section.__doc__.splitlines()[0]
        print(what, flush=True)
        results[section.__name__] = {'what': what} | section(h)
    draw_networks(h)
    draw_training()
    with whole_file(MEASURED) as file:
        file.write(json.dumps(results, indent=1, default=float).encode() + b'\n')


def trained(measured):
    """The numbers of C.2, C.3 and G.2 that were trained for the write-up, beside those measured."""
    found, history, runs = {}, read_table(HISTORY), read_table(RUNS)
    for name, record in ('Five', history[4]), ('Late', history[-3]), ('All', history[-1]):
        found |= {f'CurveTrain{name}': [float(record['train_loss']), LOSS],
                  f'CurveLoss{name}': [float(record['val_loss']), LOSS],
                  f'CurveAccuracy{name}': [float(record['val_accuracy']), SHARE]}
    for name, model in ('CNN', CNN(3, 32, 24)), ('UNet', UNet(3, 32, 24)), ('Wider', CNN(3, 37, 24)):
        found[f'Parameters{name}'] = [sum(p.numel() for p in model.parameters()), ',d']
    for name, run in ('UNet', 'UNet'), ('Wider', 'CNN, 37 filters'):
        found[f'Gain{name}'] = [difference(runs, run, 'CNN', 'val_accuracy'), '+.1f']
    return found | trained_without(runs, measured) | trained_with_dilation(runs)


def column(runs, name, measure):
    """What runs of that name reached, by seed; accuracies in percent."""
    factor = 100 if measure == 'val_accuracy' else 1
    seeds = PAINTED_SEEDS if measure in ('val_error_back', 'val_colourfulness') else SEEDS
    measured = [run for run in runs if run['run'] == name and run[measure]]
    return [factor * value for value in experiments.by_seed(measured, measure, seeds, name)]


def difference(runs, name, first, measure):
    """Between runs of the same seed."""
    return [a - b for a, b in zip(column(runs, name, measure), column(runs, first, measure), strict=True)]


def trained_without(runs, measured):
    """C.3: the UNet trained without a part, and beside it the trained UNet that this part is cut from."""
    found, whole = {}, [measured[f'{measure}UNet'] for measure in CUT_MEASURES]
    table = [['nothing', [column(runs, 'UNet', 'val_loss'), '.3f'],
              [column(runs, 'UNet', 'val_accuracy'), '.1f'], '',
              [column(runs, 'UNet', 'val_error_back'), '.6f'], *whole]]
    parts = {'upconv1': '\\texttt{downconv2} to \\texttt{upconv1}',
             'upconv2': '\\texttt{downconv1} to \\texttt{upconv2}',
             'finalconv': 'input to \\texttt{finalconv}', 'all': 'all three',
             'middle': '\\texttt{rfconv} to \\texttt{upconv1}'}
    for what, label in parts.items():
        name, letters = f'UNet without {what}', LETTERS.get(what, what.title())

        def starred(measure, form, values=None):
            values = column(runs, name, measure) if values is None else values
            star = experiments.star(column(runs, name, measure), column(runs, 'UNet', measure), len(parts))
            return as_latex(experiments.spread(values, form) + star)
        gain = difference(runs, name, 'UNet', 'val_accuracy')
        found[f'TrainedCut{letters}'] = [gain, '+.1f']
        table.append([label, starred('val_loss', '.3f'), [column(runs, name, 'val_accuracy'), '.1f'],
                      starred('val_accuracy', '+.1f', gain), starred('val_error_back', '.6f'),
                      *(measured[f'Cut{measure}{letters}'] for measure in CUT_MEASURES)])
    for letters, name in ('UNet', 'UNet'), ('Middle', 'UNet without middle'), ('All', 'UNet without all'):
        found |= {f'TrainedBack{letters}': [np.mean(column(runs, name, 'val_error_back')), ERROR],
                  f'TrainedColourful{letters}': [np.mean(column(runs, name, 'val_colourfulness')), COLOURFUL]}
    return found | {'TableCuts': table}


def trained_with_dilation(runs):
    """G.2: what dilation changes, and whether it changes more in one case than in another."""
    ends = {'32 filters': '', '32 filters, no skip connections': ' without all',
            '8 filters, 4 epochs': ', 8 filters', '8 filters, 2 epochs': ', 8 filters, 2 epochs',
            '8 filters, 2 epochs, enlarged to $64\\times64$': ', 8 filters, 64x64'}
    contrasts = {'with skip connections minus without': ('', ' without all'),
                 'enlarged minus not, 2 epochs': (', 8 filters, 64x64', ', 8 filters, 2 epochs'),
                 '8 filters minus 32': (', 8 filters', '')}
    tables = {'TableDilation': [[label] for label in ends],
              'TableContrasts': [[label] for label in contrasts]}

    def change(end, measure):
        return difference(runs, f'DUNet{end}', f'UNet{end}', measure)

    def add(row, values, form, comparisons):
        row += [[values, form], [min(1, comparisons * ttest_1samp(values, 0).pvalue), '#.2g']]

    for measure, form in ('val_loss', '+.4f'), ('val_accuracy', '+.2f'):
        for row, end in zip(tables['TableDilation'], ends.values()):
            add(row, change(end, measure), form, len(ends))
        for row, pair in zip(tables['TableContrasts'], contrasts.values()):
            more = [a - b for a, b in zip(*(change(end, measure) for end in pair))]
            add(row, more, form, len(contrasts))
    return tables | {'DilatedLoss': tables['TableDilation'][0][1],
                     'DilatedAccuracy': tables['TableDilation'][0][3]}


def tables_of_part_f():
    """The tables of experiments.py, as LaTeX."""
    runs, found = read_table(experiments.RUNS), {}
    names = 'TableAugmentShort', 'TableAugmentLong', 'TableTuning'
    for name, (first, rows, seeds, _) in zip(names, experiments.TABLES.values()):
        lines = experiments.table(first, rows, seeds, runs).splitlines()[2:]
        cells = [line.strip('|').split('|')[:-1] for line in lines if 'float32' not in line]  # less training
        found[name] = [[as_latex(cell.strip()) for cell in row] for row in cells]
    for name, label in (('GainPrior', '766 entries'), ('GainOfBatches', 'batches of 100'),
                        ('GainOfBatchesSteps', 'batches of 100, as many steps'),
                        ('GainOfConstant', 'constant 0.001, as in the course'),
                        ('GainOfPeak', 'peak of 0.001')):
        gain, = (experiments.table(first, rows, seeds, runs).split(f'| {label} |')[1].split('|')[2]
                 for first, rows, seeds, _ in experiments.TABLES.values() if label in rows)
        found[name] = as_latex(gain.strip(' *'))
    first, rows, seeds, _ = experiments.TABLES['F.2: hyperparameters']
    losses = []
    for changes in rows['batches of 100, as many steps'], {}:
        command = experiments.command_of(first | changes)
        losses.append(experiments.by_seed([run for run in runs if run['command'] == command], 'val_loss',
                                          seeds, command))
    return found | {'LossOfBatchesSteps': [[a - b for a, b in zip(*losses)], '+.3f']}


def as_latex(text):
    """A number or a label as it stands in the text."""
    text = re.sub(r'^(.*)e([-+])0*(\d+)$', r'$\1\\cdot10^{\2\3}$', text) if 'e-' in text else text
    text = re.sub(r'(?<![\w.$^{])([-+])(?=\d)', r'$\1$', text)
    text = text.replace(' *', r'\rlap{\,*}')  # a star takes no room, so that columns stay centred
    return text.replace('%', r'\,\%').replace(' ± ', r'\,$\pm$\,').replace('_', r'\_')


def printed(cell):
    if isinstance(cell, str):
        return cell
    value, form = cell
    if isinstance(value, list):
        return as_latex(experiments.spread(value, form))
    return as_latex(f'{value:{form}}')


def all_numbers():
    """Every number and table of the result files, by the name of its macro."""
    sections = json.loads(MEASURED.read_text())
    del sections['weights']
    found = {name: value for section in sections.values() for name, value in section.items()
             if name != 'what'}
    found |= trained(found)
    course = json.loads(COURSE.read_text())
    found['TableCourse'] = [[name, [course[name]['loss'], LOSS], [course[name]['accuracy'], SHARE],
                             found[f'Loss{name}'], found[f'Accuracy{name}'],
                             found[f'PriorLoss{name}'], found[f'PriorAccuracy{name}']]
                            for name in MODELS]
    for name in MODELS:
        found |= {f'CourseLoss{name}': [course[name]['loss'], LOSS],
                  f'CourseAccuracy{name}': [course[name]['accuracy'], SHARE]}
    found['CourseErrorRegression'] = [course['RegressionCNN']['mean_squared_error'], ERROR]
    return found | tables_of_part_f()


def macros():
    """The text of numbers.tex."""
    lines = ['% Made by outputs/writeup/writeup.py from the result files; not to be edited.']
    for name, value in all_numbers().items():
        if name.startswith('Table'):
            value = ' \\\\\n'.join(' & '.join(map(printed, row)) for row in value) + ' \\\\'
        else:
            value = printed(value)
        lines.append(f'\\newcommand{{\\{name}}}{{{value}}}')
    return '\n'.join(lines) + '\n'


def checksum():
    """Of everything that the PDF is made from: it stands among the PDF's keywords."""
    figures = re.findall(r'\\includegraphics(?:\[.*?\])?{(.+?)}', TEX.read_text())
    digest = hashlib.sha256()
    for path in [TEX, NUMBERS, *(HERE / name for name in figures)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def typeset():
    """Make the PDF; twice, for the references. The same files give the same bytes."""
    with tempfile.TemporaryDirectory() as folder:
        command = ['pdflatex', '-halt-on-error', '-interaction=nonstopmode', f'-output-directory={folder}',
                   '-jobname=a2-writeup', f'\\def\\checksum{{{checksum()}}}\\input{{{TEX.name}}}']
        for _ in range(2):
            try:
                done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, errors='replace')
            except FileNotFoundError as e:
                raise InputError('pdflatex is missing: install it (see the README), or give --no-pdf') from e
            if done.returncode:
                complaints = re.findall(r'^! .*|^l\.\d+.*', done.stdout, re.MULTILINE)
                raise InputError(f'pdflatex: {" ".join(complaints)}')
        with whole_file(PDF) as file:
            file.write((Path(folder) / 'a2-writeup.pdf').read_bytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--data', default=ROOT / 'data', help='where CIFAR-10 is (default: data/)')
    parser.add_argument('--jobs', type=number_type(int, 1), default=1,
                        help='trainings at a time (default: 1)')
    parser.add_argument('--only', choices=['macros'],
                        help='do not measure: make the macros and the PDF from the result files')
    parser.add_argument('--no-pdf', action='store_true', help='do without LaTeX')
    args = parser.parse_args()
    if args.data == 'sample':
        raise InputError('--data sample will not do: name a folder with the horses of CIFAR-10')
    if args.only is None:
        train_missing(args.data, args.jobs)
        measure(args.data)
    with whole_file(NUMBERS) as file:
        file.write(macros().encode())
    if not args.no_pdf:
        typeset()


if __name__ == '__main__':
    run(main)
