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
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

HERE = Path(__file__).resolve().parent
ROOT, RESULTS, FIGURES = HERE.parent.parent, HERE / 'results', HERE / 'figures'
sys.path[:0] = [str(ROOT), str(HERE)]

import comparison  # noqa: E402
import experiments  # noqa: E402
from activations import activation_panels, record_activations  # noqa: E402
from colour_regression import RegressionCNN, regression  # noqa: E402
from colourization import (CNN, MODELS, STAGES, DUNet, MyConv2d, MyDilatedConv2d, UNet,  # noqa: E402
                           architecture, baselines, classification, colour_counts, draw_curves,
                           draw_pictures, get_rgb_cat, judge, load_model, mosaic, process, psnr,
                           put_grey_back, run, run_validation_step, scores_to_rgb, train)
from experiments import SEEDS, read_table, write_table  # noqa: E402
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

SHORT = {'schedule': 'onecycle', 'learn_rate': 0.03, 'batch_size': 16}  # as in experiments.py
PLANNED = {  # by name: the network, the skip connections that it does without, filters, epochs, enlargement
    'UNet': (UNet, (), 32, 3, 1),
    'UNet without upconv1': (UNet, ('upconv1',), 32, 3, 1),
    'UNet without upconv2': (UNet, ('upconv2',), 32, 3, 1),
    'UNet without finalconv': (UNet, ('finalconv',), 32, 3, 1),
    'UNet without all': (UNet, tuple(SKIPS), 32, 3, 1),
    'DUNet': (DUNet, (), 32, 3, 1),
    'DUNet without all': (DUNet, tuple(SKIPS), 32, 3, 1),
    'UNet, 8 filters': (UNet, (), 8, 4, 1),
    'DUNet, 8 filters': (DUNet, (), 8, 4, 1),
    'UNet, 8 filters, 64x64': (UNet, (), 8, 2, 2),
    'DUNet, 8 filters, 64x64': (DUNet, (), 8, 2, 2),
}


def cut_skip(model, stage, replacement=0.0):
    """Let a stage of a UNet see `replacement` where its skip connection brings the maps of another.

    Args:
        replacement: a number, or a tensor [C, 1, 1] with one for each map.

    Returns:
        The hook; its `remove()` mends the network.
    """
    own = len(getattr(model, SKIPS[stage])[0].weight)

    def cut(_, inputs):
        x = inputs[0].clone()
        x[:, own:] = replacement
        return x

    return getattr(model, stage).register_forward_pre_hook(cut)


def training_pictures(data, enlargement=1):
    """The training horses less 500, and those 500: pairs of grey pictures and colour numbers."""
    def grey_and_cats(pictures):
        rgb, _ = process(*pictures)
        if enlargement > 1:
            rgb = F.interpolate(torch.from_numpy(rgb), scale_factor=enlargement, mode='bilinear').numpy()
        cats = get_rgb_cat(rgb, COLOURS).astype(np.int16)
        return torch.from_numpy(rgb.mean(axis=1, keepdims=True)), torch.from_numpy(cats)

    return [grey_and_cats(pictures) for pictures in hold_out(load_cifar10(data)[0], 500)]


def train_short(name, seed, data):
    """Train one of PLANNED; returns its line of writeup_runs.csv."""
    make, cuts, num_filters, epochs, enlargement = PLANNED[name]
    torch.manual_seed(seed)
    model = make(3, num_filters, 24).to(memory_format=torch.channels_last)
    for stage in cuts:
        cut_skip(model, stage)
    with tempfile.TemporaryDirectory() as folder:
        history = train(model, classification, *training_pictures(data, enlargement),
                        about={'model': name, 'data': 'the horses of CIFAR-10'}, outdir=Path(folder),
                        checkpoint=Path(folder, 'weights.pkl'), epochs=epochs, seed=seed, **SHORT)
    return {'run': name, 'seed': str(seed)} | history[-1]


def train_missing(data):
    """Train what the result files lack; each run is kept as soon as it is done."""
    if not HISTORY.exists():
        command = 'colourization.py --model UNet -b 10 -e 25'
        write_table(experiments.history(command, 0, data, torch.get_num_threads()), HISTORY)
    runs = read_table(RUNS) if RUNS.exists() else []
    done = {(run['run'], int(run['seed'])) for run in runs}
    for name in PLANNED:
        for seed in SEEDS:
            if (name, seed) not in done:
                runs.append(train_short(name, seed, data))
                write_table(runs, RUNS)


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
LABELS = {'Regression': 'RegressionCNN', 'Grey': 'grey picture', 'Truth': 'truth'}
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
        data: where CIFAR-10 is; rgb, grey: arrays [N, C, H, W]; x, cats: tensors, what the networks
        see and should choose; networks, scores and pictures: by name; counts: `colour_counts` of the
        training horses.
    """
    train_pictures, test_pictures = load_cifar10(data)
    rgb, grey = process(*test_pictures)
    networks = {name: shipped_network(name)[0] for name in SHIPPED}
    x = torch.from_numpy(grey)
    train_rgb, train_grey = process(*train_pictures)
    scores = {name: outputs(model, x) for name, model in networks.items()}
    pictures = {name: s.clamp(0, 1).numpy() if name == 'Regression' else scores_to_rgb(s, COLOURS)
                for name, s in scores.items()}
    return SimpleNamespace(
        data=data, rgb=rgb, grey=grey, x=x, cats=torch.from_numpy(get_rgb_cat(rgb, COLOURS)),
        networks=networks, scores=scores, pictures=pictures,
        counts=colour_counts(torch.from_numpy(train_grey),
                             torch.from_numpy(get_rgb_cat(train_rgb, COLOURS)), len(COLOURS)))


def checksums_of_weights():
    paths = [ROOT / 'weights' / name for name in (*SHIPPED.values(), *PRIORS.values())]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def judge_one(pictures, truth):
    measured, = judge({'': pictures}, truth).values()
    return measured['mean_squared_error'], measured['colourfulness']


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
    weights, biases = (sum(row.get(name, 0) for row in rows) for name in ('weights', 'biases'))
    norms = sum(row['weights'] + row['biases'] for row in rows if row['operation'] == 'batch norm')
    return {'WeightsRegression': [weights, ',d'], 'BiasesRegression': [biases, 'd'],
            'ParametersOfNorms': [norms, 'd'], 'TableLayers': table}


def judge_networks(h):
    """A.2, B.2, C.3, G.2: errors and colourfulness, as the networks paint and with the grey put back."""
    found, table = {}, []
    grey = np.repeat(h.grey, 3, axis=1)
    for name, pictures in ({'Grey': grey} | h.pictures | {'Truth': h.rgb}).items():
        error, colourful = judge_one(pictures, h.rgb)
        back, _ = judge_one(put_grey_back(pictures, h.grey), h.rgb)
        found[f'Colourful{name}'] = [colourful, COLOURFUL]
        cells = [''] * 6
        if name in MODELS:
            loss, accuracy = classification(h.scores[name], h.cats).values()
            cells[:2] = [loss.item(), LOSS], [accuracy.item(), SHARE]
            found |= {f'Loss{name}': cells[0], f'Accuracy{name}': cells[1]}
        if name != 'Truth':
            brightness = np.square((pictures - h.rgb).mean(axis=1)).mean() / error
            cells[2:5] = [error, ERROR], [psnr(error), DECIBEL], [brightness, '.0%']
            found |= {f'Error{name}': cells[2], f'Brightness{name}': cells[4]}
        if name in h.pictures:
            cells[5] = found[f'ErrorBack{name}'] = [back, ERROR]
        table.append([LABELS.get(name, name), *cells, found[f'Colourful{name}']])
    loss = regression(h.scores['Regression'], torch.from_numpy(h.rgb))['loss']
    brightness = h.rgb.mean(axis=1).var() / h.rgb.var(axis=(0, 2, 3)).mean()
    found |= {'LossRegression': [loss.item(), ERROR], 'BrightnessOfSpread': [brightness, '.0%']}
    return found | {'TableNetworks': table}


def draw_networks(h):
    """All networks side by side: left as they are, right with the grey of the input."""
    shown = slice(7)
    panels = [('grey: what the networks see', h.grey[shown]), ('truth', h.rgb[shown])]
    for name, pictures in h.pictures.items():
        label = LABELS.get(name, name)
        panels += [(label, pictures[shown]),
                   (f"{label}, with the input's grey", put_grey_back(pictures[shown], h.grey[shown]))]
    draw_pictures([(label, mosaic(pictures, 7)) for label, pictures in panels],
                  FIGURES / 'networks.png', '', columns=2, width=12)


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


PAIRS = np.array([[[0, 255, 0], [60, 255, 0]], [[0, 180, 60], [60, 180, 60]],  # all 60 apart
                  [[0, 0, 0], [0, 0, 60]], [[120, 80, 40], [120, 140, 40]]]) / 255
HORSE_OR_GRASS = np.array([[150, 90, 55], [110, 150, 60]]) / 255


def compare_distances(h):
    """A.3: the CIELAB difference (CIE 1976) of colours that are equally far apart in RGB."""
    different = np.linalg.norm(rgb_to_lab(PAIRS[:, 0]) - rgb_to_lab(PAIRS[:, 1]), axis=1)
    random = np.random.default_rng(0)
    pixels = np.moveaxis(h.rgb, 1, -1).reshape(-1, 3)
    pixels = pixels[random.choice(len(pixels), 100_000)]
    steps = random.normal(size=pixels.shape)
    moved = pixels + 60 / 255 * steps / np.linalg.norm(steps, axis=1, keepdims=True)
    inside = ((moved >= 0) & (moved <= 1)).all(axis=1)
    far = np.linalg.norm(rgb_to_lab(pixels[inside]) - rgb_to_lab(moved[inside]), axis=1)
    low, high = np.percentile(far, [5, 95])

    figure = Figure(figsize=(10, 2.5), layout='constrained')
    grid = figure.add_gridspec(1, 5, width_ratios=[1, 1, 1, 1, 3.4])
    for i, (pair, difference) in enumerate(zip(PAIRS, different)):
        axes = figure.add_subplot(grid[i])
        axes.imshow(pair[:, None], extent=(0, 1, 0, 1), interpolation='nearest')
        axes.set(xticks=[], yticks=[], title=f'RGB: 60\nCIELAB: {difference:.0f}')
    axes = figure.add_subplot(grid[4])
    draw_two_colours(axes)
    save_figure(figure, 'colours.png')
    return {'LabSmallest': [different.min(), '.0f'], 'LabLargest': [different.max(), '.0f'],
            'LabLow': [low, '.0f'], 'LabHigh': [high, '.0f']}


def draw_two_colours(axes):
    """A.4: expected squared error on the line between two colours that are equally probable."""
    first, second = HORSE_OR_GRASS
    places = np.linspace(0, 1, 101)
    line = first + places[:, None] * (second - first)
    loss = (np.square(line - first).sum(axis=1) + np.square(line - second).sum(axis=1)) / 2
    axes.imshow(line[None], extent=(0, 1, 0, 0.006), aspect='auto')
    axes.plot(places, loss, 'k')
    for i, label in ((0, 'brown'), (50, 'their mean'), (100, 'green')):
        axes.plot(places[i], loss[i], 'o', color=line[i], markersize=13, markeredgecolor='k')
        axes.text(places[i], loss[i] + 0.004, label, ha='center')
    axes.set(xlim=(-0.1, 1.1), ylim=(0, 0.052), xticks=[], ylabel='expected squared error',
             xlabel='predicted colour')


def desaturate(h):
    """A.4: the classifier's own probabilities, by the likeliest colour and by their mean."""
    found = {}
    for name, temperature in (('Likeliest', 0), ('Mean', 1)):
        error, colourful = judge_one(scores_to_rgb(h.scores['CNN'], COLOURS, temperature), h.rgb)
        found |= {f'Error{name}': [error, ERROR], f'Colourful{name}': [colourful, COLOURFUL]}
    apart = np.square(HORSE_OR_GRASS[0] - HORSE_OR_GRASS[1]).sum()
    return found | {'LossOfEither': [apart / 2, '.3f'], 'LossOfMean': [apart / 4, '.3f']}


# ---------------------------------------------------------------------------
# C: skip connections
# ---------------------------------------------------------------------------


def draw_training():
    """C.2: the course's training, 25 epochs, of which the first 5 are the run of -e 5."""
    history = [{name: float(value) for name, value in record.items()} for record in read_table(HISTORY)]
    draw_curves(history, FIGURES / 'curves.png', '', marks={5: '-e 5 ends here'})


def brightness_edges(pictures):
    """Differences of neighbouring pixels' brightness, down and to the right: [2, N, H - 1, W - 1]."""
    grey = pictures.mean(axis=1)
    return np.stack([grey[:, 1:, :-1] - grey[:, :-1, :-1], grey[:, :-1, 1:] - grey[:, :-1, :-1]])


def compare_edges(h):
    """C.3: how sharp the outputs are, where their edges are, and who is right at edges."""
    found, table = {}, []
    true = brightness_edges(h.rgb)
    strength = np.hypot(*true)
    edge = strength > np.quantile(strength, 0.9)
    for name in ('Regression', 'CNN', 'UNet', 'DUNet'):
        edges = brightness_edges(h.pictures[name])
        sharp = np.hypot(*edges).mean() / strength.mean()
        alike = np.corrcoef(edges.ravel(), true.ravel())[0, 1]
        found |= {f'Sharp{name}': [sharp, RATIO], f'Alike{name}': [alike, RATIO]}
        cells = '', ''
        if name in MODELS:
            right = (h.scores[name].argmax(dim=1) == h.cats[:, 0]).numpy()[:, :-1, :-1]
            cells = [right[edge].mean(), SHARE], [right[~edge].mean(), SHARE]
            found |= {f'AtEdges{name}': cells[0], f'OffEdges{name}': cells[1]}
        table.append([LABELS.get(name, name), found[f'Sharp{name}'], found[f'Alike{name}'], *cells])
    return found | {'TableEdges': table}


def cut_at_evaluation(h):
    """C.3: the trained UNet, with the maps of a skip connection replaced by their means."""
    model = h.networks['UNet']
    _, maps = record_activations(model, h.x[:200])
    brought = {'upconv1': maps['downconv2'], 'upconv2': maps['downconv1'], 'finalconv': h.x}
    found = {}
    for name, cuts in {**{LETTERS[stage]: [stage] for stage in SKIPS}, 'All': SKIPS}.items():
        hooks = [cut_skip(model, stage, brought[stage].mean(dim=(0, 2, 3))[:, None, None])
                 for stage in cuts]
        metrics = run_validation_step(model, classification, h.x, h.cats)
        for hook in hooks:
            hook.remove()
        found[f'CutAccuracy{name}'] = [metrics['accuracy'], SHARE]
    return found


GRADIENT_STEPS = 100


def follow_gradients(h):
    """C.3: the gradient of the first filters in the course's training, with and without skips."""
    grey, cats = (part[:16 * GRADIENT_STEPS] for part in training_pictures(h.data)[0])
    norms = {}
    for name, cuts in (('With', ()), ('Without', SKIPS)):
        norms[name] = []
        for seed in SEEDS:
            torch.manual_seed(seed)
            model = UNet(3, 32, 24)
            for stage in cuts:
                cut_skip(model, stage)
            optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
            seen = []
            for x, y in batches((grey, cats), 16, torch.Generator().manual_seed(seed)):
                optimizer.zero_grad()
                classification(model(x), y)['loss'].backward()
                optimizer.step()
                seen.append(model.downconv1[0].weight.grad.norm().item())
            norms[name].append(seen)
    pairs = list(zip(norms['With'], norms['Without']))  # seed by seed
    return {'GradientFirstWith': [[seen[0] for seen in norms['With']], '.3f'],
            'GradientFirstWithout': [[seen[0] for seen in norms['Without']], '.3f'],
            'GradientRatioFirst': [[a[0] / b[0] for a, b in pairs], '.1f'],
            'GradientRatio': [[mean(a) / mean(b) for a, b in pairs], '.1f']}


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

    table = []
    for stage in LETTERS:
        model = CNN(3, 32, 24)
        name = 'finalconv' if stage == 'finalconv' else f'{stage}.0'
        outputs, inputs, _, _ = model.get_submodule(name).weight.shape
        model.set_submodule(name, MyDilatedConv2d(inputs, outputs, 3, dilation=1))
        table.append([f'\\texttt{{{stage}}}', architecture(model)[-1]['receptive field']])
    table = [['none', architecture(CNN(3, 32, 24))[-1]['receptive field']]] + table
    found['TablePlaces'] = [list(row) for row in zip(*table)]
    middle = next(row for row in architecture(UNet(3, 32, 24)) if row['stage'] == 'rfconv')
    found['WeightsMiddle'] = [middle['weights'], ',d']
    return found


REACH = 21  # pixels around the output pixel; no network sees more


def gradient_energy(model, grey):
    """How much each input pixel around an output pixel matters: [43, 43], with the sum 1.

    The squared gradient of the likeliest colour's score, averaged over pictures and over the 4x4
    places in the blocks of the poolings: Luo et al. (2016). The pictures [N, 1, 32, 32] are
    continued by their mirror images, so that no output pixel is near to an edge.
    """
    x = F.pad(grey, (16,) * 4, 'reflect').requires_grad_()
    scores = model(x)
    energy = torch.zeros(2 * REACH + 1, 2 * REACH + 1)
    for row in range(30, 34):
        for column in range(30, 34):
            likeliest = scores[:, :, row, column].amax(dim=1).sum()
            gradient, = torch.autograd.grad(likeliest, x, retain_graph=True)
            energy += gradient[:, 0, row - REACH:row + REACH + 1, column - REACH:column + REACH + 1
                               ].square().sum(dim=0)
    return (energy / energy.sum()).numpy()


def measure_receptive_fields(h):
    """D.2: theoretical and effective receptive fields of the trained networks."""
    found, table = {}, []
    figure = Figure(figsize=(9, 2.7), layout='constrained')
    span = np.arange(-REACH, REACH + 1)
    distance = np.hypot(*np.meshgrid(span, span))
    for axes, name in zip(figure.subplots(1, 3), MODELS):
        energy = gradient_energy(h.networks[name], h.x[:50])
        order = distance.ravel().argsort(kind='stable')
        reached = energy.ravel()[order].cumsum()
        half, most = distance.ravel()[order][np.searchsorted(reached, (0.5, 0.9))]
        deviation = np.sqrt((energy * distance**2).sum())
        theory = architecture(MODELS[name](3, 32, 24))[-1]['receptive field']
        found[f'Radius{name}'] = [most, '.1f']
        table.append([name, theory, [half, '.1f'], [most, '.1f'], [deviation, '.1f'],
                      [energy[REACH, REACH], SHARE], [energy[distance > 4].sum(), SHARE]])
        side = int(theory.split()[-1])
        image = axes.imshow(np.log10(energy + 1e-12), extent=(-REACH - .5, REACH + .5) * 2,
                            vmin=-6, vmax=-1)
        axes.add_patch(Rectangle((-side / 2, -side / 2), side, side, fill=False, edgecolor='w',
                                 linestyle=':'))
        axes.set(title=name, xlim=(-REACH - .5, REACH + .5), ylim=(-REACH - .5, REACH + .5))
    figure.colorbar(image, ax=figure.axes, label='log10 of the share', shrink=0.8)
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

    figure = Figure(figsize=(7, 2.5), layout='constrained')
    for axes, dilation in zip(figure.subplots(1, 3), (0, 1, 3)):
        layer = MyDilatedConv2d(1, 1, 3, dilation)
        taps = (layer.spread_weight()[0, 0] != 0).numpy()
        around = 6 - len(taps) // 2
        axes.imshow(np.pad(taps, around), cmap='Blues', vmax=1.4)
        axes.set_title(f'dilation {dilation}: {taps.sum()} weights, {len(taps)}x{len(taps)}', fontsize=10)
        axes.set(xticks=np.arange(14) - .5, yticks=np.arange(14) - .5)
        axes.tick_params(length=0, labelbottom=False, labelleft=False)
        axes.grid(color='lightgrey', linewidth=0.6)
    save_figure(figure, 'dilation.png')
    return {'DilationCases': [cases, 'd'], 'DilationWorst': [worst, '.0e']}


# ---------------------------------------------------------------------------
# E: activations
# ---------------------------------------------------------------------------

SHOWN_HORSE = 6  # of the test horses: brown, on a meadow


def compare_activations(h):
    """E.1, E.2: the maps of CNN and UNet for the same pictures: drawn for one, counted over 200."""
    found, rows, panels = {}, {}, []
    for name in ('CNN', 'UNet'):
        _, maps = record_activations(h.networks[name], h.x[:200])
        horse = [pictures[SHOWN_HORSE] for pictures in (h.grey, h.rgb, h.pictures[name])]
        picture = activation_panels(*horse, {stage: maps[stage][SHOWN_HORSE] for stage in STAGES})
        del picture['input_rgb']
        panels += [(f'{name}: {label.split(":")[0]}', panel) for label, panel in picture.values()]
        for stage in STAGES:
            m = maps[stage]
            if stage.startswith('up'):  # each value stands there four times
                m = m[:, :, ::2, ::2]
            alive = m.amax(dim=(0, 2, 3)) > 0
            grey = F.adaptive_avg_pool2d(h.x[:200], m.shape[2:]).flatten()
            flat = m[:, alive].transpose(0, 1).flatten(1)
            alike = torch.corrcoef(torch.cat([grey[None], flat]))[0, 1:].abs()
            change = ((m[:, alive, 1:] - m[:, alive, :-1]).square().mean(dim=(0, 2, 3))
                      + (m[:, alive, :, 1:] - m[:, alive, :, :-1]).square().mean(dim=(0, 2, 3)))
            rough = (change / (4 * flat.var(dim=1))).mean()
            cells = {'Active': [(m > 0).float().mean().item(), '.0%'],
                     'Dead': [(~alive).sum().item(), 'd'],
                     'LikeGrey': [alike.mean().item(), RATIO], 'Rough': [rough.item(), RATIO]}
            found |= {f'{what}{name}{LETTERS[stage]}': cell for what, cell in cells.items()}
            rows.setdefault(stage, [f'\\texttt{{{stage}}}', [m.shape[1], 'd']]).extend(cells.values())
    draw_pictures(panels, FIGURES / 'activations.png', '', columns=len(panels) // 2, width=14)
    return found | {'TableActivations': list(rows.values())}


# ---------------------------------------------------------------------------
# Beyond the handout
# ---------------------------------------------------------------------------


def go_beyond(h):
    """The grey-level table, the priors, and the grey put back."""
    table_alone = baselines(h.counts, h.x, h.cats)
    found = {'AccuracyMostFrequent': [table_alone['most_frequent_colour'], SHARE],
             'AccuracyOfTable': [table_alone['most_frequent_colour_of_grey_level'], SHARE]}
    for name in PRIORS:
        metrics = run_validation_step(shipped_network(name, PRIORS)[0], classification, h.x, h.cats)
        found |= {f'PriorLoss{name}': [metrics['loss'], LOSS],
                  f'PriorAccuracy{name}': [metrics['accuracy'], SHARE]}
    ways = comparison.ways(h.grey)
    comparison.draw(ways, h.rgb, FIGURES)
    table = []
    for name, pictures in (ways | {'truth': h.rgb}).items():
        error, colourful = judge_one(pictures, h.rgb)
        table.append([name, *([[error, ERROR], [psnr(error), DECIBEL]] if error else ['', '']),
                      [colourful, COLOURFUL]])
    errors = [row[1][0] for row in table[:-1]]
    return found | {'TableWays': table, 'ErrorBest': [min(errors), ERROR],
                    'ErrorBestShare': [min(errors) / errors[0], '.0%']}


# ---------------------------------------------------------------------------
# From results to macros
# ---------------------------------------------------------------------------

SECTIONS = [describe_regression, judge_networks, compare_distances, desaturate, compare_edges,
            cut_at_evaluation, follow_gradients, measure_filters, measure_receptive_fields,
            check_dilation, compare_activations, go_beyond]


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
    for name, record in (('Five', history[4]), ('All', history[-1])):
        found |= {f'CurveLoss{name}': [float(record['val_loss']), LOSS],
                  f'CurveAccuracy{name}': [float(record['val_accuracy']), SHARE]}

    def column(name, measure, factor=1):
        return [factor * float(run[measure]) for run in runs if run['run'] == name]

    def gain(name, first):
        """In points, seed by seed."""
        return [a - b for a, b in zip(*(column(run, 'val_accuracy', 100) for run in (name, first)))]

    def cells(name):
        return [[column(name, 'val_loss'), '.3f'], [column(name, 'val_accuracy', 100), '.1f']]

    table = [['all skip connections', *cells('UNet'), '', measured['AccuracyUNet']]]
    for stage, label in (('upconv1', 'no \\texttt{downconv2} to \\texttt{upconv1}'),
                         ('upconv2', 'no \\texttt{downconv1} to \\texttt{upconv2}'),
                         ('finalconv', 'no input to \\texttt{finalconv}'), ('all', 'none at all')):
        name, cut = f'UNet without {stage}', LETTERS.get(stage, 'All')
        found[f'TrainedCut{cut}'] = [gain(name, 'UNet'), '+.1f']
        table.append([label, *cells(name), found[f'TrainedCut{cut}'], measured[f'CutAccuracy{cut}']])
    found['TableCuts'] = table

    table = []
    for label, end in (('32 filters, 3 epochs', ''), ('the same, no skip connections', ' without all'),
                       ('8 filters, 4 epochs', ', 8 filters'),
                       ('8 filters, enlarged to $64\\times64$, 2 epochs', ', 8 filters, 64x64')):
        table.append([label, cells(f'UNet{end}')[1], cells(f'DUNet{end}')[1],
                      [gain(f'DUNet{end}', f'UNet{end}'), '+.1f']])
    return found | {'TableDilation': table}


def tables_of_part_f():
    """The tables of experiments.py, as LaTeX."""
    runs, found = read_table(experiments.RUNS), {}
    names = 'TableAugmentShort', 'TableAugmentLong', 'TableTuning', 'TablePrior'
    for name, (first, rows, _) in zip(names, experiments.TABLES.values(), strict=True):
        lines = experiments.table(first, rows, runs).splitlines()[2:]
        cells = [line.strip('|').split('|')[:-1] for line in lines]  # less the training loss
        found[name] = [[as_latex(cell.strip()) for cell in row] for row in cells]
    return found


def as_latex(text):
    """A number or a label as it stands in the text."""
    text = re.sub(r'^(.*)e([-+])0*(\d+)$', r'$\1\\cdot10^{\2\3}$', text) if 'e-' in text else text
    text = re.sub(r'(?<![\w.$^{])([-+])(?=\d)', r'$\1$', text)
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
    parser.add_argument('--only', choices=['macros'],
                        help='do not measure: make the macros and the PDF from the result files')
    parser.add_argument('--no-pdf', action='store_true', help='do without LaTeX')
    args = parser.parse_args()
    if args.data == 'sample':
        raise InputError('--data sample will not do: name a folder with the horses of CIFAR-10')
    if args.only is None:
        train_missing(args.data)
        measure(args.data)
    with whole_file(NUMBERS) as file:
        file.write(macros().encode())
    if not args.no_pdf:
        typeset()


if __name__ == '__main__':
    run(main)
