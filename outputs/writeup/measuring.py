"""What the write-up trains, and what it measures of the shipped networks.

The latter lands in `results/writeup.json`: numbers by section, row and measure.
"""

import functools
import hashlib
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

import comparison  # which finds the modules of the root
import experiments
from activations import record_activations
from ciede2000 import ciede2000, rgb_to_lab
from colour_regression import RegressionCNN
from colourization import (CNN, MODELS, DUNet, Settings, UNet, add_prior, architecture, classification,
                           colour_counts, get_cat_rgb, get_rgb_cat, grey_levels, load_model, log_frequencies,
                           process, psnr, put_grey_back, run_validation_step, scores_to_rgb, train)
from comparison import HERE, ROOT
from load_data import batches, hold_out, load_cifar10, load_colours, whole_file

RESULTS = HERE / 'results'
MEASURED, RUNS, HISTORY = map(RESULTS.joinpath, ['writeup.json', 'writeup_runs.csv', 'history_b10_e25.csv'])
COLOURS = load_colours(ROOT / 'colour/colour_kmeans24_cat7.npy')

# ---- Trainings --------------------------------------------------------------------------------------------

# Each skip connection by the stage that it leads to, with the stage whose maps come first there.
SKIPS = {'upconv1': 'rfconv', 'upconv2': 'upconv1', 'finalconv': 'upconv2'}
ALL = tuple(SKIPS)

SEEDS = range(9)
SHORT = {'epochs': 3, 'schedule': 'onecycle', 'learn_rate': 0.03, 'batch_size': 16}  # as in experiments.py
PLANNED = {  # by name: the network, what is changed in it, and its filters
    'UNet': (UNet, (), 32), 'UNet without upconv1': (UNet, ('upconv1',), 32),
    'UNet without upconv2': (UNet, ('upconv2',), 32), 'UNet without finalconv': (UNet, ('finalconv',), 32),
    'UNet without all': (UNet, ALL, 32), 'UNet without middle': (UNet, ('middle',), 32),
    'UNet, pixels for upconv2': (UNet, ('pixels',), 32), 'UNet with prior': (UNet, ('prior',), 32),
    'UNet with prior without all': (UNet, (*ALL, 'prior'), 32),
    'CNN': (CNN, (), 32), 'CNN, 37 filters': (CNN, (), 37),
    'DUNet': (DUNet, (), 32), 'DUNet without upconv1': (DUNet, ('upconv1',), 32),
    'DUNet without all': (DUNet, ALL, 32)}


def cut(model, what):
    """Let a UNet see zeros where a skip connection, or the middle, brings the maps of another stage.

    `what` is the stage that the skip connection leads to; 'middle' for the maps of rfconv in upconv1; or
    'pixels': then upconv2 sees the grey of the four pixels of each place, instead of the maps of downconv1.
    """
    stage, pixels = {'middle': 'upconv1', 'pixels': 'upconv2'}.get(what, what), []
    first = len(getattr(model, SKIPS[stage])[0].weight)
    maps = slice(first) if what == 'middle' else slice(first, None)

    def remember(_, inputs):
        pixels[:] = [F.pixel_unshuffle(inputs[0], 2)]

    def replace(_, inputs):
        x = inputs[0].clone()
        x[:, maps] = 0
        if what == 'pixels':
            x[:, first:first + 4] = pixels[0]
        return x
    model.register_forward_pre_hook(remember)
    getattr(model, stage).register_forward_pre_hook(replace)


@functools.cache
def training_pictures(data):
    """The training horses less 500, and those 500: grey pictures and colour numbers; the 500 in RGB."""
    sets = [process(*pictures) for pictures in hold_out(load_cifar10(data)[0], 500)]
    train_set, valid_set = ((torch.from_numpy(grey), torch.from_numpy(get_rgb_cat(rgb, COLOURS)))
                            for rgb, grey in sets)
    return train_set, valid_set, sets[1][0]


def train_short(name, seed, data):
    """Train one of PLANNED; returns its line of writeup_runs.csv, where the pictures are of mean colours."""
    make, changes, num_filters = PLANNED[name]
    train_set, valid_set, rgb = training_pictures(data)
    torch.manual_seed(seed)
    model = make(3, num_filters, 24).to(memory_format=torch.channels_last)
    for what in changes:
        if what == 'prior':
            add_prior(model, log_frequencies(colour_counts(*train_set, 24)))
        else:
            cut(model, what)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(name, 'the horses of CIFAR-10', seed=seed, **SHORT)
        history = train(model, classification, train_set, valid_set, settings, Path(folder, 'weights.pkl'),
                        Path(folder))
    scores, maps = record_activations(model.eval(), valid_set[0])
    judged, middle = judge(paint(scores, 1), rgb, valid_set[0].numpy()), maps['rfconv']
    return history[-1] | {f'val_{measure}': value for measure, value in judged.items()} | {
        'middle_active': (middle > 0).float().mean().item(),
        'middle_like_grey': likeness(middle, valid_set[0])}


def train_missing(data):
    """Train what the result files lack."""
    if not HISTORY.exists():
        history = experiments.history('colourization.py --model UNet -b 10 -e 25', 0, data)
        experiments.write_table(history, HISTORY)
    experiments.run_missing([(name, seed) for name in PLANNED for seed in SEEDS], RUNS, data, train_short)


# ---- What every section needs -----------------------------------------------------------------------------

SHIPPED = {'RegressionCNN': 'regression_cnn_k3_f32.pkl', 'CNN': 'cnn_k3_f32.pkl',
           'UNet': 'unet_k3_f32.pkl', 'DUNet': 'dunet_k3_f32.pkl'}
PRIORS = {'CNN': 'cnn_prior_k3_f32.pkl', 'UNet': 'unet_prior_k3_f32.pkl', 'DUNet': 'dunet_prior_k3_f32.pkl'}
SMALL = {'CNN': 'cnn_k3_f16.pkl', 'UNet': 'unet_k3_f16.pkl'}


def shipped_network(name, files=SHIPPED):
    """A network of weights/ in eval mode."""
    make = MODELS.get(name, lambda kernel, filters, _: RegressionCNN(kernel, filters))
    return load_model(make, ROOT / 'weights' / files[name])[0]


@torch.no_grad()
def outputs(model, grey):
    return torch.cat([model(x) for x, in batches([grey], batch_size=100)])


def test_horses(data):
    """The 1,000 test horses, and what the networks make of them, as every section takes them.

    rgb, grey: arrays [N, C, H, W]; x, cats: tensors, what the networks see and should choose; networks,
    scores [N, K, H, W]: by name, also of the table of grey levels.
    """
    train_pictures, test_pictures = load_cifar10(data)
    (rgb, grey), (train_rgb, train_grey) = process(*test_pictures), process(*train_pictures)
    cats, train_cats = (torch.from_numpy(get_rgb_cat(pictures, COLOURS)) for pictures in (rgb, train_rgb))
    x, networks = torch.from_numpy(grey), {name: shipped_network(name) for name in SHIPPED}
    table = log_frequencies(colour_counts(torch.from_numpy(train_grey), train_cats, len(COLOURS)))
    scores = {'table of grey levels': table[grey_levels(x[:, 0])].movedim(-1, 1),
              **{name: outputs(model, x) for name, model in networks.items()}}
    return SimpleNamespace(rgb=rgb, grey=grey, x=x, cats=cats, networks=networks, scores=scores)


def paint(scores, temperature=0):
    """The pictures that scores of 24 colours, or a regression's three outputs, give."""
    return scores_to_rgb(scores, None if scores.shape[1] == 3 else COLOURS, temperature)


def judge(pictures, rgb, grey):
    """Error, error with the grey of the input put back, and colourfulness."""
    back = put_grey_back(pictures, grey)
    return comparison.judge(pictures, rgb) | {'error_back': comparison.judge(back, rgb)['error']}


def mean_and_error(values):
    """The mean over pictures, and its standard error."""
    return {'mean': np.mean(values), 'error': np.std(values, ddof=1) / len(values) ** 0.5}


def checksums_of_weights():
    paths = [ROOT / 'weights' / name for name in (*SHIPPED.values(), *PRIORS.values(), *SMALL.values())]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


# ---- The sections -----------------------------------------------------------------------------------------


def count_weights(_):
    """A.1, C.3 and D.2: the layers of RegressionCNN, as --summary prints them, and sums."""
    found, rows = {}, architecture(RegressionCNN(3, 32))
    for row in rows:
        if 'filter' in row:
            then = [other['operation'] for other in rows
                    if other['stage'] == row['stage'] and 'filter' not in other]
            found[row['stage']] = row | {'then': ', '.join(then) or '---'}
    found['sum'] = {kind: sum(row[kind] for row in found.values()) for kind in ('weights', 'biases')}
    found |= {name: {'parameters': sum(values.numel() for values in model.parameters())}
              for name, model in (('UNet', UNet(3, 32, 24)), ('CNN, 37 filters', CNN(3, 37, 24)))}
    return found | {'middle': UNet(3, 32, 24).rfconv[0].weight.numel()}


def judge_networks(h):
    """A.2, A.4, B.2, C.3, G.2: what is painted, by likeliest and by mean colours; the grey-level table."""
    pictures = {'grey picture': np.repeat(h.grey, 3, axis=1),
                **{name: paint(scores) for name, scores in h.scores.items()},
                'truth in 24 colours': get_cat_rgb(h.cats.numpy(), COLOURS), 'truth': h.rgb}
    found = {name: judge(painted, h.rgb, h.grey) for name, painted in pictures.items()}
    found['truth'] = {'colourfulness': found['truth']['colourfulness']}
    for name, scores in h.scores.items():
        if name != 'RegressionCNN':
            found[name] |= {measure: value.item()
                            for measure, value in classification(scores, h.cats).items()}
            found[name]['mean'] = judge(paint(scores, 1), h.rgb, h.grey)
    wrong = pictures['RegressionCNN'] - h.rgb
    return found | {
        'brightness in the error': np.square(wrong.mean(axis=1)).mean() / np.square(wrong).mean(),
        'brightness in the variance': h.rgb.mean(axis=1).var() / h.rgb.var(axis=(0, 2, 3)).mean()}


APART = 60 / 255
SHOWN_PAIRS = 5, 35, 65, 95  # percentiles
HORSE_OR_GRASS = np.array([[150, 90, 55], [110, 150, 60]]) / 255


def distant_pairs(rgb):
    """Pairs of a random pixel and a colour that is APART from it in RGB: those at SHOWN_PAIRS, [4, 2, 3].

    Returns also their differences to the eye, and the share of colours that cannot be shown, so are left out.
    """
    random = np.random.default_rng(0)
    pixels = np.moveaxis(rgb, 1, -1).reshape(-1, 3)
    pixels = pixels[random.choice(len(pixels), 100_000)]
    steps = random.normal(size=pixels.shape)
    moved = pixels + APART * steps / np.linalg.norm(steps, axis=1, keepdims=True)
    inside = ((moved >= 0) & (moved <= 1)).all(axis=1)
    pairs = np.stack([pixels, moved], axis=1)[inside]
    seen = ciede2000(rgb_to_lab(pairs[:, 0]), rgb_to_lab(pairs[:, 1]))
    chosen = seen.argsort()[[len(seen) * percentile // 100 for percentile in SHOWN_PAIRS]]
    return pairs[chosen], seen[chosen], 1 - inside.mean()


def compare_distances(h):
    """A.3: differences to see of colours that are equally far apart in RGB; A.4: the errors in the figure."""
    _, seen, outside = distant_pairs(h.rgb)
    apart = np.square(HORSE_OR_GRASS[0] - HORSE_OR_GRASS[1]).mean()
    return {'low': seen[0], 'high': seen[-1], 'outside': outside, 'error of either': apart / 2,
            'error of the mean': apart / 4}


def compare_edges(h):
    """C.3: accuracy at the tenth of the pixels that differ most in brightness from the next; elsewhere."""
    strength = np.hypot(np.diff(h.grey[:, 0, :, :-1], axis=1), np.diff(h.grey[:, 0, :-1], axis=2))
    edge, found = strength > np.quantile(strength, 0.9), {}
    for name, scores in h.scores.items():
        if name != 'RegressionCNN':
            right = (scores.argmax(dim=1) == h.cats[:, 0]).numpy()[:, :-1, :-1]
            found[name] = {'at edges': right[edge].mean(), 'elsewhere': right[~edge].mean()}
    return found


def compare_chroma(h):
    """C.3, G.2: by how much the chroma errors of two shipped networks differ, of the mean of the colours."""
    def errors(name, files):
        painted = put_grey_back(paint(outputs(shipped_network(name, files), h.x), 1), h.grey)
        return np.square(painted - h.rgb).mean(axis=(1, 2, 3))
    return {label: mean_and_error(errors(first, files) - errors(second, files))
            for label, first, second, files in (
                ('UNet minus CNN', 'UNet', 'CNN', SHIPPED),
                ('UNet minus CNN, 16 filters', 'UNet', 'CNN', SMALL),
                ('DUNet minus UNet', 'DUNet', 'UNet', SHIPPED),
                ('DUNet minus UNet, with prior', 'DUNet', 'UNet', PRIORS))}


REACH = 21  # pixels around the output pixel; no network sees more
BRIGHTNESS = COLOURS.mean(axis=1, keepdims=True)
EXPECTED = {'brightness': BRIGHTNESS, 'chroma': COLOURS - BRIGHTNESS}


def expected(scores, values):
    """The mean of values [K, C] of the colours, weighted by their probabilities: [N, C, H, W]."""
    return torch.einsum('nkhw, kc -> nchw', scores.softmax(dim=1), torch.from_numpy(values))


def gradient_energy(model, grey, values):
    """How much each input pixel around an output pixel matters to its `expected` values: [43, 43], sum 1.

    The squared gradient, averaged over pictures, channels of the values, and the 4x4 places in the blocks of
    the poolings: Luo et al. (2016). The pictures [N, 1, 32, 32] are continued by their mirror images.
    """
    x = F.pad(grey, (16,) * 4, 'reflect').requires_grad_()
    quantity = expected(model(x), values)
    energy = torch.zeros(2 * REACH + 1, 2 * REACH + 1)
    for row in range(30, 34):
        for column in range(30, 34):
            for channel in range(quantity.shape[1]):
                gradient, = torch.autograd.grad(quantity[:, channel, row, column].sum(), x, retain_graph=True)
                around = gradient[:, 0, row - REACH:row + REACH + 1, column - REACH:column + REACH + 1]
                energy += around.square().sum(dim=0)
    return (energy / energy.sum()).numpy()


def radius(energy, share):
    """Of the circle around the output pixel that holds a share of the energy, in pixels."""
    span = np.arange(-REACH, REACH + 1)
    distance = np.hypot(*np.meshgrid(span, span)).ravel()
    order = distance.argsort(kind='stable')
    return distance[order][np.searchsorted(energy.ravel()[order].cumsum(), share)]


def measure_receptive_fields(h):
    """D.2: theoretical and effective receptive fields of the trained networks, of brightness and chroma."""
    found = {}
    for name, make in MODELS.items():
        found[name] = {'theory': architecture(make(3, 32, 24))[-1]['receptive field']}
        for what, values in EXPECTED.items():
            energy = gradient_energy(h.networks[name], h.x[:50], values)
            found[name][what] = {f'{share:.0%}': radius(energy, share) for share in (0.5, 0.9)}
    return found


def likeness(maps, grey):
    """Mean absolute correlation of maps [N, C, h, w], less dead ones, with grey pictures, made as small."""
    grey = F.adaptive_avg_pool2d(grey, maps.shape[2:])
    flat = maps[:, maps.amax(dim=(0, 2, 3)) > 0].transpose(0, 1).flatten(1)
    return torch.corrcoef(torch.cat([grey.flatten()[None], flat]))[0, 1:].abs().mean().item()


def compare_activations(h):
    """E.1, E.2: the maps of CNN and UNet for the same 200 pictures."""
    found = {}
    for name in ('CNN', 'UNet'):
        for stage, maps in record_activations(h.networks[name], h.x[:200])[1].items():
            if stage.startswith('up'):  # each value stands there four times
                maps = maps[:, :, ::2, ::2]
            found.setdefault(stage, {'maps': maps.shape[1]})[name] = {
                'active': (maps > 0).float().mean().item(), 'like grey': likeness(maps, h.x[:200]),
                'dead': (maps.amax(dim=(0, 2, 3)) == 0).sum().item()}
    return found


def go_beyond(h):
    """The priors, and the grey put back, with and without one."""
    found = {name: run_validation_step(shipped_network(name, PRIORS), classification, h.x, h.cats)
             for name in PRIORS} | {'ways': {}}
    for name, pictures in comparison.ways(h.grey).items():
        judged = comparison.judge(pictures, h.rgb)
        found['ways'][name] = judged | {'psnr': psnr(judged['error'])}
    return found


SECTIONS = {'layers': count_weights, 'networks': judge_networks, 'distances': compare_distances,
            'edges': compare_edges, 'chroma': compare_chroma, 'fields': measure_receptive_fields,
            'maps': compare_activations, 'beyond': go_beyond}


def measure(data):
    """Measure what writeup.json lacks, all if it is of other weights; returns the horses if it lacked any."""
    measured, weights = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}, checksums_of_weights()
    if measured.get('weights') != weights:
        measured = {'weights': weights}
    if SECTIONS.keys() <= measured.keys():
        return None
    horses = test_horses(data)
    for name, section in SECTIONS.items():
        if name not in measured:
            print(section.__doc__.splitlines()[0], flush=True)
            measured[name] = section(horses)
    with whole_file(MEASURED) as file:
        file.write(json.dumps(measured, indent=1, default=float).encode() + b'\n')
    return horses
