"""Image colourization as classification: colour the horses of CIFAR-10.

Programming assignment 2 of CSC321, University of Toronto, winter 2018. A network sees a grey picture and
chooses for each pixel one of K colours, which k-means found in the training pictures.

    python colourization.py --model UNet --data sample -e 5                # try it, no data needed
    python colourization.py --model UNet --checkpoint unet_k3_f32.pkl      # train
    python colourization.py --model UNet --checkpoint weights/unet_k3_f32.pkl --valid
    python colourization.py --model UNet --summary                         # its layers
    python colourization.py --kmeans 24                                    # find the colours
    python colourization.py --image photo.jpg                              # colour your own picture

Where the questions of the handout are answered in code:

    A  regression           A.1: `CNN` below with three outputs, RegressionCNN in colour_regression.py, and
                            `architecture` (--summary); A.2: `evaluate`; A.3, A.4: the loss, `regression`
    B  classification       B.1: `MyConv2d`, `down`, `up`, `CNN`; the 24 colours: `kmeans_colours`,
                            `get_rgb_cat`; B.2: `classification`, `evaluate`, `draw_predictions` (--valid)
    C  skip connections     C.1: `UNet`; C.2: `train_epoch`, `train`, the curve: `draw_curves`; C.3: as B.2
    D  dilation             D.1: `spread_weight`, whose sides are the receptive fields; of whole networks:
                            `architecture` (--summary); D.2: `DilatedUNet`
    E  activations          activations.py: `record_activations`, `tile_maps`
    F  augmentation         F.1: (a) to (d) `augment` in load_data.py, (e) `load_sets`; F.2: the flags of
                            `add_training_flags`; both measured in outputs/writeup/experiments.py
    G  dilated convolution  G.1: `MyDilatedConv2d`; G.2: as B.2, with --model DUNet

From top to bottom: settings, colours, pictures, layers, models (and a prior for them), training,
evaluation, checkpoints, pictures of the user, command line.
"""

import argparse
import atexit
import copy
import functools
import gc
import io
import json
import math
import os
import pickle
import re
import signal
import sys
import threading
import time
import unicodedata
import warnings
import zipfile
from contextlib import contextmanager
from pathlib import Path

if not {'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT'} & os.environ.keys():
    os.environ['GOMP_SPINCOUNT'] = '20000'  # torch's import reads it: threads that wait let others run

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, OneCycleLR
from tqdm import tqdm

from load_data import (HORSE, MAX_COLOURS, MOVES, InputError, batches, check_colours, check_writable,
                       hold_out, instead, is_of, load_cifar10, load_colours, one_line, read_picture,
                       whole_file)

# SciPy, scikit-learn and matplotlib take seconds to import, so the functions that need them do it;
# Pillow, which --image alone needs, likewise.

HERE = Path(__file__).resolve().parent
NUM_COLOURS = 24  # handout, part B
KERNEL, NUM_FILTERS = 3, 32  # of the course's weights: `*_k3_f32.pkl`
MAX_PIXEL = 256.0  # the course divides by 256, not by 255
SHOWN = 10  # the validation pictures that every figure shows
KMEANS_RESTARTS = 10  # one run alone often ends in an optimum a percent worse
NUM_LEVELS = 3 * 255 + 1  # of grey: sums of red, green and blue
SMOOTHING = 100.0  # pixels; a grey level of the training horses has thousands
ETA = 32  # the weights are averaged over about the last 1/32 of the steps
IMAGE_CHECKPOINT = Path('weights/unet_prior_all_k3_f64.pkl')  # of --image: it knows more than horses
BAND = 2**20  # pixels of a picture that are coloured at a time
IMAGE_SIZE = 224  # pixels a side of a photograph, as the network sees it
SATURATION = 1.4  # of photographs: a mean of likely colours is paler than each
RADIUS, FLATNESS = 2, 1e-3  # of the guided filter: pixels that the network sees, and a variance of the grey
STAT, QUOTA = Path('/proc/stat'), Path('/sys/fs/cgroup/cpu.max')  # what Linux tells of its cores
SAMPLE = 'sample pictures'  # what lines and figures call --data sample


# ---- Colours ------------------------------------------------------------------------------------------


def kmeans_colours(xs, num_colours, seed=0):
    """Find the K colours that are nearest to RGB pictures [N, 3, H, W] by k-means in RGB (part B).

    Float32 [K, 3], from dark to bright: the best of ten runs. Raises InputError if there are fewer colours.
    """
    from sklearn.cluster import KMeans
    seeds = tqdm(range(seed, seed + KMEANS_RESTARTS), 'k-means', leave=False, disable=None)
    # Each colour once, weighted by how often it occurs: a third of the points, and the same optimum.
    pixels, counts = np.unique(np.moveaxis(xs, 1, -1).reshape(-1, 3), axis=0, return_counts=True)
    if len(pixels) < num_colours:
        raise InputError(f'the pictures have {len(pixels)} colours, fewer than {num_colours}')
    fits = [KMeans(num_colours, n_init=1, random_state=i).fit(pixels, sample_weight=counts) for i in seeds]
    colours = min(fits, key=lambda fit: fit.inertia_).cluster_centers_
    return colours[colours.sum(axis=1).argsort()].astype(np.float32)


def get_rgb_cat(xs, colours):
    """Nearest colour of each pixel: pictures [N, 3, H, W] -> colour numbers, int64 [N, 1, H, W]."""
    from scipy.cluster.vq import vq
    pixels = np.moveaxis(xs, 1, -1).reshape(-1, 3)
    cats, _ = vq(pixels, colours.astype(np.float64))  # in double precision: some pixels are nearly ties
    return cats.astype(np.int64).reshape(len(xs), 1, *xs.shape[2:])


def get_cat_rgb(cats, colours):
    """Colour of each pixel's colour number: [N, 1, H, W] -> pictures [N, 3, H, W]."""
    return np.moveaxis(colours[cats[:, 0]], -1, 1)


def scores_to_rgb(scores, colours, temperature=0.0):
    """Colour of each pixel by what a network puts out: [N, K, H, W] -> array [N, 3, H, W] in [0, 1].

    The scores, a tensor on any device that needs no gradient, are those of `colours` [K, 3], or red, green
    and blue themselves if that is None. Temperature 0 takes the likeliest colour; above, it is the annealed
    mean of Zhang, Isola and Efros (2016), Colorful image colorization, equation 5; 1 is the plain mean.
    """
    scores = scores.cpu()
    if colours is None:
        return scores.clamp(0, 1).numpy()
    if temperature == 0:
        return get_cat_rgb(scores.argmax(dim=1, keepdim=True).numpy(), colours)
    probabilities = (scores / temperature).softmax(dim=1)
    return torch.einsum('nkhw, kc -> nchw', probabilities, torch.from_numpy(colours)).numpy()


# ---- Pictures -----------------------------------------------------------------------------------------


def process(xs, ys, max_pixel=MAX_PIXEL, category=HORSE):
    """Select the pictures of one category, or 'all', and make them grey.

    Takes uint8 pictures [N, 3, 32, 32] and labels [N, 1]; returns RGB [M, 3, 32, 32] and grey [M, 1, 32, 32],
    its plain mean, float32 in [0, 1). Raises InputError if there are no such pictures.
    """
    rgb = xs[is_of(category, ys)].astype(np.float32)
    rgb /= max_pixel
    if len(rgb) == 0:
        raise InputError(f'the data has no picture of category {category}: choose another --category or '
                         '--data')
    return rgb, rgb.mean(axis=1, keepdims=True)


def put_grey_back(rgb, grey):
    """Pictures [N, 3, H, W] with the brightness of grey ones [N, 1, H, W], clipped to [0, 1]."""
    return np.clip(rgb - rgb.mean(axis=1, keepdims=True) + grey, 0, 1)


def mosaic(pictures, columns):
    """Tile pictures [N, C, H, W] into one, with gaps of one pixel: [rows * (H + 1) - 1, ..., C]."""
    n, channels, height, width = pictures.shape
    rows = -(-n // columns)
    tiles = np.ones((rows * columns, channels, height + 1, width + 1), np.float32)
    tiles[:n, :, :height, :width] = pictures
    tiles = tiles.reshape(rows, columns, channels, height + 1, width + 1)
    return tiles.transpose(0, 3, 1, 4, 2).reshape(rows * (height + 1), -1, channels)[:-1, :-1]


def import_matplotlib():
    """matplotlib, before long work and not after it; raises InputError if it cannot be imported."""
    try:
        try:
            import matplotlib.figure
        except ValueError:  # as in a notebook's shell: of a backend that is not installed, and not needed
            os.environ.pop('MPLBACKEND', None)
            import matplotlib.figure
    except Exception as e:  # a settings file can make it raise nearly anything
        raise InputError(f'matplotlib cannot be imported ({one_line(e)}): pip install -r requirements.txt '
                         'installs it') from e
    return matplotlib


@contextmanager
def figure_file(path, width, height, dpi):
    """A figure of so many inches, to draw into; it ends as a PNG file, whatever the user's settings are."""
    matplotlib = import_matplotlib()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = matplotlib.figure.Figure(figsize=(width, height), layout='constrained')
        yield figure
        with whole_file(path) as file:
            figure.savefig(file, dpi=dpi, backend='agg')


def draw_pictures(panels, path, title, columns=1, width=10):
    """Draw (label, picture) pairs, `columns` of them side by side, into a PNG file `width` inches wide.

    Every figure but the curves is drawn here. Pictures are [H, W, 3] or, grey, [H, W, 1], in [0, 1].
    """
    rows = [panels[i:i + columns] for i in range(0, len(panels), columns)]
    heights = [max(width / columns * p.shape[0] / p.shape[1] for _, p in row) + 0.3 for row in rows]
    with figure_file(path, width, sum(heights) + 0.3 * bool(title), dpi=150) as figure:
        grid = figure.add_gridspec(len(rows), columns, height_ratios=heights)
        for i, row in enumerate(rows):
            for j, (label, picture) in enumerate(row):
                axes = figure.add_subplot(grid[i, j])
                axes.imshow(picture, cmap='gray', vmin=0, vmax=1, interpolation='nearest')
                axes.set_title(label, fontsize=9)
                axes.axis('off')
        if title:
            figure.suptitle(title, fontsize=11)


def draw_rows(rows, path, title):
    """Draw (label, pictures [N, C, H, W]) pairs, the pictures of each in a row of their own."""
    draw_pictures([(label, mosaic(np.clip(np.asarray(pictures), 0, 1), len(pictures)))
                   for label, pictures in rows], path, title)


# ---- Layers -------------------------------------------------------------------------------------------


class MyConv2d(nn.Module):
    """A convolution: pictures [N, I, H, W] -> [N, O, H, W], the same size for odd kernels.

    `weight` [O, I, k, k] and `bias` [O] start uniform in +-1 / sqrt(I * k * k). `padding=None` means k // 2.
    """

    def __init__(self, in_channels, out_channels, kernel_size, padding=None):
        super().__init__()
        self.padding = kernel_size // 2 if padding is None else padding
        bound = 1 / math.sqrt(in_channels * kernel_size**2)
        weight = torch.empty(out_channels, in_channels, kernel_size, kernel_size)
        self.weight = nn.Parameter(weight.uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_channels).uniform_(-bound, bound))

    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, padding=self.padding)


class MyDilatedConv2d(MyConv2d):
    """A convolution with `dilation` pixels left out between its weights (handout, Figure 1).

    Dilation 0 is an ordinary filter, so this is `F.conv2d(..., dilation=dilation + 1)`, made by spreading the
    weights over a larger filter of zeros (part G). The size of the picture stays. Raises ValueError if the
    kernel is even or the dilation negative.
    """

    def __init__(self, in_channels, out_channels, kernel_size, dilation=1):
        if kernel_size % 2 == 0 or dilation < 0:
            raise ValueError(f'kernel {kernel_size} must be odd and dilation {dilation} not negative')
        super().__init__(in_channels, out_channels, kernel_size,
                         padding=kernel_size // 2 * (dilation + 1))
        self.dilation = dilation

    def spread_weight(self):
        """The filters with their gaps, [O, I, s, s]: s = k + (k - 1) * dilation is the receptive field."""
        size = 2 * self.padding + 1
        spread = self.weight.new_zeros(*self.weight.shape[:2], size, size)
        spread[:, :, ::self.dilation + 1, ::self.dilation + 1] = self.weight
        return spread

    def forward(self, x):
        return F.conv2d(x, self.spread_weight(), self.bias, padding=self.padding)


# ---- Models: grey pictures [N, 1, H, W] -> scores [N, K, H, W]; H and W are multiples of 4 ----------------


def down(in_channels, out_channels, kernel):
    """A stage that halves height and width: convolution, 2x2 max pooling, batch norm, ReLU."""
    return nn.Sequential(MyConv2d(in_channels, out_channels, kernel), nn.MaxPool2d(2),
                         nn.BatchNorm2d(out_channels), nn.ReLU())


class UpStage(nn.Sequential):
    """The layers of `up`, which computes batch norm and ReLU before it upsamples.

    Upsampling copies pixels: the same function, as copies have the mean and the biased variance of what they
    copy, for a quarter of the work. Only the running variance, unbiased, is larger: by n / (n - 1) of the
    fewer pixels instead of the more.
    """

    def forward(self, x):
        if len(self) != 4:  # a part of the stage, or more than it
            return super().forward(x)
        convolution, upsample, norm, relu = self
        return upsample(relu(norm(convolution(x))))


def up(in_channels, out_channels, kernel):
    """A stage that doubles height and width: convolution, 2x2 upsampling, batch norm, ReLU."""
    return UpStage(MyConv2d(in_channels, out_channels, kernel), nn.Upsample(scale_factor=2),
                   nn.BatchNorm2d(out_channels), nn.ReLU())


class CNN(nn.Module):
    """Six convolutions; the sides of the picture shrink to a quarter and grow again (part B)."""

    def __init__(self, kernel, num_filters, num_colours):
        super().__init__()
        self.downconv1 = down(1, num_filters, kernel)
        self.downconv2 = down(num_filters, 2 * num_filters, kernel)
        self.rfconv = nn.Sequential(MyConv2d(2 * num_filters, 2 * num_filters, kernel),
                                    nn.BatchNorm2d(2 * num_filters), nn.ReLU())
        self.upconv1 = up(2 * num_filters, num_filters, kernel)
        self.upconv2 = up(num_filters, num_colours, kernel)
        self.finalconv = MyConv2d(num_colours, num_colours, kernel)

    def forward(self, x):
        x = self.downconv1(x)
        x = self.downconv2(x)
        x = self.rfconv(x)
        x = self.upconv1(x)
        x = self.upconv2(x)
        return self.finalconv(x)


class UNet(nn.Module):
    """The CNN with skip connections: downconv2 to upconv1, downconv1 to upconv2, input to finalconv (C.1).

    Ronneberger, Fischer and Brox (2015), U-Net.
    """

    middle = MyConv2d  # makes the convolution of `rfconv`

    def __init__(self, kernel, num_filters, num_colours):
        super().__init__()
        self.downconv1 = down(1, num_filters, kernel)
        self.downconv2 = down(num_filters, 2 * num_filters, kernel)
        self.rfconv = nn.Sequential(self.middle(2 * num_filters, 2 * num_filters, kernel),
                                    nn.BatchNorm2d(2 * num_filters), nn.ReLU())
        self.upconv1 = up(2 * num_filters + 2 * num_filters, num_filters, kernel)
        self.upconv2 = up(num_filters + num_filters, num_colours, kernel)
        self.finalconv = MyConv2d(num_colours + 1, num_colours, kernel)

    def forward(self, x):
        down1 = self.downconv1(x)
        down2 = self.downconv2(down1)
        middle = self.rfconv(down2)
        up1 = self.upconv1(torch.cat([middle, down2], dim=1))
        up2 = self.upconv2(torch.cat([up1, down1], dim=1))
        x = x.to(up2.dtype, memory_format=torch.channels_last, copy=True)  # as up2, for speed
        return self.finalconv(torch.cat([up2, x], dim=1))


class DilatedUNet(UNet):
    """The UNet whose middle convolution leaves a gap of one pixel between its weights (part D).

    Yu and Koltun (2015), Multi-scale context aggregation by dilated convolutions.
    """

    middle = MyDilatedConv2d  # with its dilation of 1


DUNet = DilatedUNet
MODELS = {'CNN': CNN, 'UNet': UNet, 'DUNet': DUNet}
STAGES = ['downconv1', 'downconv2', 'rfconv', 'upconv1', 'upconv2']
OPERATIONS = {MyConv2d: 'convolution', MyDilatedConv2d: 'convolution, dilation {0.dilation}',
              nn.MaxPool2d: 'max pool 2x2', nn.Upsample: 'upsample 2x2', nn.BatchNorm2d: 'batch norm',
              nn.ReLU: 'ReLU'}
PARAMETERS = {'weight': 'weights', 'bias': 'biases'}


def architecture(model, size=32):
    """What a network is made of: a dict for each operation, from the input on (parts A.1 and D.1).

    All is read off one forward pass of a picture of `size` x `size`. On the way the receptive field is
    followed, the first and last input row that a row depends on; rows of a pooled 2x2 block differ in it.
    """
    model, rows = copy.deepcopy(model).eval().cpu(), []
    first = last = np.arange(4096)  # more rows than any receptive field, so that the middle sees no edge

    def note(stage, layer, inputs, output):
        nonlocal first, last
        operation = OPERATIONS[type(layer)].format(layer)
        row = {'stage': stage, 'operation': operation, 'inputs': inputs[0].shape[1]}
        if isinstance(layer, MyConv2d):
            first, last = np.roll(first, layer.padding), np.roll(last, -layer.padding)
            row |= {'filter': '{2}x{3}'.format(*layer.weight.shape), 'filters': output.shape[1]}
        elif isinstance(layer, nn.MaxPool2d):
            first, last = first[::2], last[1::2]
        elif isinstance(layer, nn.Upsample):
            first, last = first.repeat(2), last.repeat(2)
        sides = (last - first + 1)[len(first) // 2:][:4]
        rows.append(row | {'output': '{1}x{2}x{3}'.format(*output.shape),
                           'receptive field': ' or '.join(map(str, sorted({sides.min(), sides.max()})))}
                    | {PARAMETERS[name]: p.numel() for name, p in layer.named_parameters()})
    for name, layer in model.named_modules():
        if isinstance(layer, UpStage):  # here the layers run in the order in which they stand
            layer.forward = functools.partial(nn.Sequential.forward, layer)
        if not list(layer.children()):
            layer.register_forward_hook(functools.partial(note, name.split('.')[0]))
    model(torch.zeros(1, 1, size, size))
    if hasattr(model, 'prior'):
        rows.append({'stage': 'prior', 'operation': 'table', 'weights': model.prior.numel()})
    return rows


def summary_table(model):
    """The layers of a network and the sums of their weights and biases, as a text to print."""
    rows = architecture(model)
    total = {name: sum(row.get(name, 0) for row in rows) for name in PARAMETERS.values()}
    columns = ['stage', 'operation', 'inputs', 'filter', 'filters', 'output', *total, 'receptive field']
    rows.append({'stage': 'total'} | total)
    lines = [columns, *([f'{row.get(name, "")}' for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return '\n'.join('  '.join(map(str.ljust, line, widths)).rstrip() for line in lines)


# ---- A prior of the grey level, beyond the handout ------------------------------------------------------


def add_prior(model, table):
    """Give a network a prior: what a pixel's grey level alone says of its colour.

    The table, scores [E, K] of the colours at E grey levels from black to white, becomes its parameter
    `prior`, learned with the others. From now on `add_prior_scores` adds it to the scores.
    """
    model.prior = nn.Parameter(table)
    model.register_forward_hook(add_prior_scores)


def add_prior_scores(model, inputs, scores):
    """A forward hook: adds to scores [N, K, H, W] the entry of the prior for each pixel's grey level.

    The 766 levels are spread evenly over the E entries, so that neighbours share one where there are fewer;
    what is darker than black or brighter than white takes the first or the last.
    """
    grey, = inputs
    entries = len(model.prior)
    entry = (grey_levels(grey[:, 0]) * entries // NUM_LEVELS).clamp(0, entries - 1)
    return scores + F.embedding(entry, model.prior).movedim(-1, 1)


def grey_levels(grey):
    """The sum of red, green and blue, 0 to 765, that grey pixels of any shape were made from."""
    return (grey * 3 * MAX_PIXEL).round().long()


def colour_counts(grey, cats, num_colours):
    """How often each colour, 0 to K - 1, occurs at each grey level, [766, K], in pictures [N, 1, H, W].

    A grey between two of the levels that `process` makes of bytes counts for the nearer one; none may lie
    outside of [0, 765 / 768].
    """
    counts = 0
    for some, their_cats in zip(grey.split(100), cats.split(100)):  # the pairs take 32 bytes a pixel
        pairs = grey_levels(some) * num_colours + their_cats
        counts += torch.bincount(pairs.flatten(), minlength=NUM_LEVELS * num_colours)
    return counts.reshape(NUM_LEVELS, -1)


def log_frequencies(counts, entries=NUM_LEVELS):
    """A table for `add_prior` from `colour_counts`: log probabilities of the colours, [E, K].

    Neighbouring levels share an entry, smoothed by SMOOTHING pixels with the colours of all.
    """
    entry = torch.arange(NUM_LEVELS, device=counts.device) * entries // NUM_LEVELS
    pooled = counts.new_zeros(entries, counts.shape[1]).index_add(0, entry, counts)
    overall = (counts.sum(dim=0) + 1) / (counts.sum() + counts.shape[1])
    pooled = pooled + SMOOTHING * overall
    return (pooled / pooled.sum(dim=1, keepdim=True)).log()


# ---- Training -----------------------------------------------------------------------------------------


def classification(scores, cats):
    """Pixel-wise cross entropy and accuracy of scores [N, K, H, W] for colours [N, 1, H, W]."""
    # The colours go last, where cross entropy is faster; and max is faster than argmax.
    scores, cats = scores.movedim(1, -1).flatten(0, 2), cats.flatten().long()
    return {'loss': F.cross_entropy(scores, cats),
            'accuracy': (scores.max(dim=1).indices == cats).float().mean()}


class AverageOfWeights:
    """Keeps in `model` the average of the weights that `learner` has while it learns.

    Polynomial decay with ETA: Shamir and Zhang (2013), Stochastic gradient descent for non-smooth
    optimization. Without it the weights keep jumping with every batch, and the validation accuracy too.
    """

    def __init__(self, model, learner, step=0):
        self.means, self.current = ([tensor for tensor in network.state_dict().values()
                                     if tensor.is_floating_point()] for network in (model, learner))
        self.step = step  # how many went before

    @torch.no_grad()
    def update(self):
        self.step += 1
        torch._foreach_lerp_(self.means, self.current, (ETA + 1) / (self.step + ETA))


def train_epoch(learner, average, optimizer, scheduler, objective, loader, bfloat16=False):
    """One pass over the training pictures; returns the means of the metrics over them.

    Args:
        learner, average: the network that is trained, and its AverageOfWeights.
        objective: `objective(outputs, targets)` gives the metrics of a batch, like `classification`; the
            network learns to make its 'loss' small.
        loader: the batches: grey pictures [N, 1, H, W] and what to predict, [N, ., H, W].
        bfloat16: whether the network multiplies in bfloat16; weights and losses stay float32.
    """
    learner.train()
    pictures, totals = 0, {}
    for x, y in loader:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
            outputs = learner(x)
        metrics = objective(outputs.float(), y)
        optimizer.zero_grad()
        metrics['loss'].backward()
        optimizer.step()
        scheduler.step()
        average.update()
        pictures += len(x)
        for name, value in metrics.items():  # kept one by one, they would fragment memory
            totals[name] = totals.get(name, 0) + len(x) * value.detach()
    return {name: (total / pictures).item() for name, total in totals.items()}


def train(model, objective, train_set, valid_set, *, about, checkpoint, outdir, colours=None, draw=None,
          batch_size=100, epochs=25, learn_rate=0.001, schedule='constant', weight_decay=0.0, augment=(),
          seed=0, float32=False, resume=False):
    """Train a network with Adam; after every epoch validate it, print the course's lines, save it.

    With weight decay it is AdamW: Loshchilov and Hutter (2019), Decoupled weight decay regularization. The
    one-cycle schedule raises the learning rate from 1/25 of its peak over the first three tenths of the steps
    and then lowers it to nearly nothing: Smith and Topin (2019), Super-convergence. The network ends up with
    the average of its last weights.

    Args:
        objective, train_set, valid_set: see `train_epoch`; the sets are pairs, on the network's device.
        about: what else decides what training ends with, so that --resume can tell it from other runs: at
            least the name of the 'model', and the 'data' as `data_name` says it.
        checkpoint: the file for its weights, saved after every epoch and when training is interrupted; what
            was there before stays until an epoch is over. Beside it lies, until the last epoch, a file
            `.resume` with what is needed to go on to the same bits.
        outdir: where history_*.csv is written after every epoch, and training_curve_*.png after the last.
        colours: the array [K, 3] that belongs to the network, for its checkpoint.
        draw: if given, `draw(metrics, epoch)` is called after every epoch.
        batch_size, ..., resume: as the flags of the same names.

    Returns the history, a dict for each epoch: its number, the seconds so far, the metrics. Raises InputError
    if the loss is no longer finite (the checkpoint keeps the epoch before), or no interrupted run has these
    settings; KeyboardInterrupt after what was trained so far is saved.
    """
    settings = about | dict(colours=None if colours is None else colours.tolist(), batch_size=batch_size,
                            epochs=epochs, learn_rate=learn_rate, schedule=schedule, seed=seed,
                            weight_decay=weight_decay, augment=sorted(set(augment)), float32=float32)
    learner = copy.deepcopy(model)  # it is trained; `model`, the average of its weights, validated and saved
    optimizer = torch.optim.AdamW(learner.parameters(), learn_rate, weight_decay=weight_decay, fused=True)
    steps = math.ceil(len(train_set[0]) / batch_size)  # of an epoch
    scheduler = (OneCycleLR(optimizer, learn_rate, epochs * steps, cycle_momentum=False)
                 if schedule == 'onecycle' else ConstantLR(optimizer, factor=1))
    bfloat16 = not float32 and multiplies_bfloat16(train_set[0].device)
    generator = torch.Generator().manual_seed(seed)

    parts = {'model': model, 'learner': learner, 'optimizer': optimizer, 'scheduler': scheduler}
    state_file, was_there = resume_file(checkpoint), checkpoint.exists()
    history = load_state(state_file, settings, parts, generator) if resume else []
    average = AverageOfWeights(model, learner, step=len(history) * steps)
    resumable = len(history)
    start = time.time() - (history[-1]['seconds'] if history else 0)
    try:
        for epoch in range(len(history) + 1, epochs + 1):
            loader = tqdm(batches(train_set, batch_size, generator, augment), 'training', steps,
                          leave=False, disable=None)
            trained = train_epoch(learner, average, optimizer, scheduler, objective, loader, bfloat16)
            say(f'Epoch [{epoch}/{epochs}], Loss: {trained["loss"]:.{digits(trained)}f}, '
                f'Time (s): {time.time() - start:.0f}', about['data'])
            valid = run_validation_step(model, objective, *valid_set)
            say(f'Epoch [{epoch}/{epochs}], {metrics_line(valid)}, Time(s): {time.time() - start:.0f}',
                about['data'])
            if not math.isfinite(trained['loss'] + valid['loss']):
                state_file.unlink(missing_ok=True)  # from there it would end in the same way
                raise InputError(f'the loss is not finite in epoch {epoch}: try a smaller --learn_rate')
            save_checkpoint(model, checkpoint, colours)
            history.append({'epoch': epoch, 'seconds': round(time.time() - start, 3)}
                           | {f'train_{name}': value for name, value in trained.items()}
                           | {f'val_{name}': value for name, value in valid.items()})
            save_history(history, outdir / f'history_{about["model"]}.csv')
            if epoch < epochs:
                save_state(state_file, settings, parts, generator, history)
                resumable = epoch
            if draw:
                draw(valid, epoch)
    except (KeyboardInterrupt, BrokenPipeError):  # the latter where `| head` has seen enough
        if was_there and not history:
            print(f'interrupted before the end of the first epoch: {checkpoint} is unchanged',
                  file=sys.stderr)
        elif average.step and all(mean.isfinite().all() for mean in average.means):
            save_checkpoint(model, checkpoint, colours)
            print(f'interrupted: the weights so far are in {checkpoint}'
                  + f'; --resume goes on after epoch {resumable}' * bool(resumable), file=sys.stderr)
        raise
    finally:
        if history:
            draw_curves(history, outdir / f'training_curve_{about["model"]}.png',
                        f'{about["model"]}, trained on {about["data"]}'
                        + ' and the other classes' * ('classes' in augment))
    state_file.unlink(missing_ok=True)
    return history


def multiplies_bfloat16(device):
    """Whether the hardware multiplies bfloat16; only then is training in it faster."""
    if device.type == 'cpu':
        return any(torch.cpu.get_capabilities().get(name) for name in ('avx512_bf16', 'amx_bf16'))
    return device.type == 'cuda' and torch.cuda.is_bf16_supported(including_emulation=False)


def save_history(history, path):
    """Write the history of `train` as a table, comma-separated."""
    table = [history[0].keys(), *(record.values() for record in history)]
    with whole_file(path) as file:
        file.write(''.join(','.join(map(str, row)) + '\n' for row in table).encode())


def draw_curves(history, path, title, marks={}):
    """Draw the metrics of a history of `train` into a PNG file (C.2); `marks` are words for some epochs."""
    epochs = [record['epoch'] for record in history]
    measures = [name.removeprefix('val_') for name in history[0] if name.startswith('val_')]
    with figure_file(path, 4.5 * len(measures), 3.4, dpi=130) as figure:
        for axes, measure in zip(np.ravel(figure.subplots(1, len(measures))), measures):
            for part, label, style in (('train', 'training, while it learns', '--'),
                                       ('val', 'validation, averaged weights', '-')):
                values = [record[f'{part}_{measure}'] for record in history]
                last = f'{values[-1]:.1%}' if measure == 'accuracy' else f'{values[-1]:.{digits(measures)}f}'
                axes.plot(epochs, values, style, marker='.', label=f'{label} (last: {last})')
            for epoch, words in marks.items():
                axes.axvline(epoch, color='grey', linewidth=1, linestyle=':', label=words)
            if measure == 'accuracy':
                axes.yaxis.set_major_formatter('{x:.1%}')
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.set(xlabel='epoch', xlim=(0.5, len(epochs) + 0.5), title=measure)
            axes.grid(alpha=0.3)
            axes.margins(y=0.25)  # room for the legend
            axes.legend()
        figure.suptitle(title)


# ---- Evaluation ---------------------------------------------------------------------------------------


@torch.no_grad()
def run_validation_step(model, objective, grey, target, batch_size=100, on_outputs=None):
    """The means of the metrics over validation pictures; `on_outputs` is called with each batch's outputs."""
    model.eval()
    totals = {}
    for x, y in tqdm(batches((grey, target), batch_size), 'validating', math.ceil(len(grey) / batch_size),
                     leave=False, disable=None, delay=1):
        outputs = model(x)
        for name, value in objective(outputs, y).items():
            totals[name] = totals.get(name, 0) + len(x) * value
        if on_outputs:
            on_outputs(outputs)
    return {name: (total / len(grey)).item() for name, total in totals.items()}


def psnr(mean_squared_error):
    """Peak signal-to-noise ratio in dB of pictures whose largest value is 1; infinite without error."""
    return -10 * math.log10(mean_squared_error) if mean_squared_error else math.inf


def colourfulness(rgb):
    """Mean colourfulness of pictures [N, 3, H, W] in [0, 1]: 0 is grey, 109 extremely colourful.

    Hasler and Süsstrunk (2003), Measuring colourfulness in natural images, their third measure.
    """
    red, green, blue = 255 * np.moveaxis(rgb, 1, 0)
    opponents = np.stack([red - green, (red + green) / 2 - blue])
    spread = np.sqrt(opponents.var(axis=(2, 3)).sum(axis=0))
    centre = np.sqrt(np.square(opponents.mean(axis=(2, 3))).sum(axis=0))
    return float((spread + 0.3 * centre).mean())


def judge(pictures, truth):
    """Errors and colourfulness of pictures, arrays [N, 3, H, W] in [0, 1] by name, against the true ones."""
    return {name: {'mean_squared_error': float(np.square(rgb - truth).mean()),
                   'colourfulness': colourfulness(rgb)} for name, rgb in pictures.items()}


def baselines(counts, grey, cats):
    """Accuracies without a network: of the most frequent colour, and of that of each grey level.

    Takes `colour_counts` of the training pictures, the validation pictures [N, 1, H, W], and their colours.
    """
    guesses = {'most_frequent_colour': counts.sum(dim=0).argmax(),
               'most_frequent_colour_of_grey_level': counts.argmax(dim=1)[grey_levels(grey)]}
    return {name: (guess == cats).float().mean().item() for name, guess in guesses.items()}


def draw_predictions(rgb, prediction, path, about, metrics):
    """Draw the first validation pictures [N, 3, H, W]; `about` and `metrics` make the line above them."""
    rgb, prediction = rgb[:SHOWN], prediction[:SHOWN]
    grey = rgb.mean(axis=1, keepdims=True)
    draw_rows([('grey: what the network sees', grey), ('truth', rgb), ('prediction', prediction),
               ("prediction with the input's grey", put_grey_back(prediction, grey))],
              path, f'{about["model"]}, {about["data"]}: {metrics_line(metrics)}')


def evaluate(model, objective, valid_set, xs, *, about, outdir, file_name, colours=None, temperature=0.0,
             accuracies={}):
    """Validate a network; draw, judge, report and return what it makes of the validation pictures (--valid).

    Takes grey pictures and targets on the network's device, and the true pictures, uint8 [N, 3, H, W].
    Writes `file_name`.png and the report into `outdir`; the report begins with `about`, at least 'model' and
    'data', and has the `baselines` in `accuracies`. Colours and temperature: see `scores_to_rgb`.
    """
    shown, sizes, judged = None, [], []

    def judge_batch(outputs):  # the predictions of all would take much memory
        nonlocal shown
        truth = xs[sum(sizes):][:len(outputs)].astype(np.float32) / MAX_PIXEL
        prediction, grey = scores_to_rgb(outputs, colours, temperature), truth.mean(axis=1, keepdims=True)
        shown = shown or (truth[:SHOWN], prediction[:SHOWN])
        sizes.append(len(truth))
        judged.append(judge({'grey': grey.repeat(3, axis=1), 'prediction': prediction,
                             'grey_put_back': put_grey_back(prediction, grey), 'truth': truth}, truth))
    metrics = run_validation_step(model, objective, *valid_set, on_outputs=judge_batch)
    draw_predictions(*shown, outdir / f'{file_name}.png', about, metrics)
    means = {name: {measure: np.average([batch[name][measure] for batch in judged], weights=sizes)
                    for measure in measures} for name, measures in judged[0].items()}
    report(about, metrics, accuracies, means, outdir)
    return metrics


def report(about, metrics, accuracies, judged, outdir):
    """Print what was measured, the course's line last, and write it into metrics_*.json."""
    results = about | {f'val_{name}': value for name, value in metrics.items()}
    results |= {'baseline_accuracies': accuracies, 'pictures': judged}
    results = json.loads(json.dumps(results), parse_constant=lambda _: None)  # no reader need know NaN
    with whole_file(outdir / f'metrics_{about["model"]}.json') as file:
        file.write(json.dumps(results, indent=2).encode() + b'\n')
    measured = {}
    for name, values in judged.items():
        error = values['mean_squared_error']
        near = f'mean squared error {error:.5f}, PSNR {psnr(error):.2f} dB, ' if error else ''
        measured[name] = f'{near}colourfulness {values["colourfulness"]:.1f}'
    measured |= {name: f'accuracy {accuracy:.1%}' for name, accuracy in accuracies.items()}
    say(f'The results are in {outdir}', about['data'])
    for name, words in measured.items():
        say(f'{name.replace("_", " ").capitalize()}: {words}', about['data'])
    say(metrics_line(metrics), about['data'])


def digits(metrics):
    """Decimals of a loss: four of a cross entropy, as in the course; squared errors are small."""
    return 4 if 'accuracy' in metrics else 5


def metrics_line(metrics):
    """Validation metrics, in the course's words where it has them."""
    more = (f'Val Acc: {metrics["accuracy"]:.1%}' if 'accuracy' in metrics else
            f'PSNR: {psnr(metrics["loss"]):.2f} dB')
    return f'Val Loss: {metrics["loss"]:.{digits(metrics)}f}, {more}'


def say(line, data):
    """Print a line, with '(sample)' at its end if `data`, as `data_name` has it, is the sample."""
    print(line + ' (sample)' * (data == SAMPLE), flush=True)


def data_name(data, category):
    """What lines and figures call the pictures that --data and --category choose."""
    return SAMPLE if data == 'sample' else {'all': 'CIFAR-10', HORSE: 'the horses of CIFAR-10'}.get(
        category, f'class {category} of CIFAR-10')


# ---- Checkpoints --------------------------------------------------------------------------------------


def save_checkpoint(model, path, colours=None):
    """Save the weights as a plain state dict, on the CPU, for `torch.load(weights_only=True)`.

    Its metadata, which torch ignores, names the model (a UNet's shapes are a DilatedUNet's too) and colours.
    """
    state = model.state_dict()
    for name in state:
        state[name] = state[name].cpu().contiguous()
    state._metadata['']['model'] = type(model).__name__
    if colours is not None:
        state._metadata['']['colours'] = colours.tolist()
    save_tensors(state, path)


def save_tensors(state, path):
    content = io.BytesIO()  # torch.save hides what goes wrong with a file
    torch.save(state, content)
    with whole_file(path) as file:
        file.write(content.getbuffer())


def load_tensors(file):
    """What `save_tensors` wrote, on the CPU; another file raises nearly anything."""
    with warnings.catch_warnings(action='ignore'):  # the error says it all
        return torch.load(file, map_location='cpu', weights_only=True)


SAVE_IT = 'save model.state_dict() with torch.save'
FORMATS = {rb'\x93NUMPY': 'a NumPy array', rb'\x89PNG|\xff\xd8\xff|GIF8': 'a picture',
           rb'\x89HDF': 'an HDF5 file, as Keras writes them', rb'\x08.[\x12:]': 'an ONNX model',
           rb'.{6}\0\0\{': 'a safetensors file', rb'\x1f\x8b|BZh|\xfd7z|7z\xbc\xaf|Rar!': 'a compressed file',
           rb'\x80[\x01-\x05]': 'a pickle that torch.save did not write',
           rb'PK\x03\x04': 'a zip archive of other files', rb'': 'some other file'}


def what_it_is(path, error):
    """What a file is that torch could not read as tensors, and what to do: words for an error."""
    with open(path, 'rb') as file:
        start, names = file.read(32), []
    if start.startswith(b'PK\3\4'):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except Exception:  # a broken archive can raise nearly anything
            return 'it is damaged, its end is missing: copy or download it again'
    if any(name.endswith('/constants.pkl') for name in names):
        return 'it is a TorchScript program, not a checkpoint: torch.jit.load it, and save its state_dict()'
    if asked := re.search(r'GLOBAL (\S+)', str(error)):
        return (f'it holds more than tensors ({asked[1]:.60}), as a whole pickled model does, and could run '
                f'code: {SAVE_IT} instead')
    if start.startswith(b'\x80\2\x8a\nl\xfc\x9cF\xf9') or any(name.endswith('/data.pkl') for name in names):
        return (f'it holds more than tensors, or is damaged: {SAVE_IT} again' if isinstance(
            error, pickle.UnpicklingError) else 'it is damaged: copy or download it again')
    kind = next(kind for pattern, kind in FORMATS.items() if re.match(pattern, start, re.DOTALL))
    return (f'it is {kind if start else "empty"}, not a checkpoint: name a file that '
            'torch.save(model.state_dict(), FILE) wrote')


def find_weights(value):
    """The state dict in what torch.load returned: that itself, or one in it.

    Returns its metadata, and its tensors by names without what DataParallel and torch.compile add, less the
    counters of BatchNorm and AveragedModel, which nothing here uses. Raises InputError if there is none.
    """
    # A hostile file can hide methods behind attributes: `items`, and those that `detach` sheds.
    if not isinstance(value, dict):
        raise InputError(f'it holds a {type(value).__name__}, not a checkpoint: {SAVE_IT}')
    if {'learner', 'generator', 'settings'} <= dict.keys(value):
        raise InputError('it is what --resume goes on from, not a checkpoint: name the file without .resume')
    for part in (value, *dict.values(value)):
        if isinstance(part, dict):
            weights = {re.sub(r'\b(module|_orig_mod)\.', '', str(name)): tensor
                       for name, tensor in dict.items(part)}
            if 'finalconv.weight' in weights:
                break
    else:
        names = ', '.join(map(str, list(dict.keys(value))[:3])) or 'nothing'
        raise InputError(f'it has {names:.60}, but no finalconv.weight: not a checkpoint of this assignment')
    if others := [name for name, tensor in weights.items() if not isinstance(tensor, torch.Tensor)]:
        raise InputError(f'its {others[0]:.60} is no tensor: {SAVE_IT}')
    return getattr(part, '_metadata', {}), {name: torch.detach(tensor) for name, tensor in weights.items()
                                            if not name.endswith(('num_batches_tracked', 'n_averaged'))}


def read_checkpoint(path):
    """Read a state dict; raises InputError if it is none of this assignment.

    Returns its tensors, see `find_weights`; the name of its model and its colours [K, 3], or None where it
    does not tell, as the files of 2018 do not.
    """
    with open(path, 'rb') as file:
        try:
            metadata, weights = find_weights(load_tensors(file))
        except Exception as e:  # a broken or hostile file can raise nearly anything
            words = e if isinstance(e, InputError) else instead(path) or what_it_is(path, e)
            raise InputError(f'{path}: {words}') from e
    if not all(t.layout == torch.strided and t.device.type == 'cpu' and not t.is_nested
               and t.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
               and 0 < t.numel() * t.element_size() <= t.untyped_storage().nbytes()  # no claim too large
               and t.isfinite().all() for t in weights.values()):
        raise InputError(f'{path}: not all of its weights are finite floats in plain tensors: convert them, '
                         'or train it again')
    for name in ('downconv1.0.weight', 'finalconv.weight'):
        shape = weights[name].shape if name in weights else ()
        if len(shape) != 4 or shape[-1] % 2 == 0:
            raise InputError(f'{path}: its {name} is {list(shape) or "missing"}, not filters of an odd size: '
                             'these are not the weights of a network of this assignment')
    try:
        notes = metadata.get('', {})
        saved_as = str(notes.get('model', '')) or None
        colours = np.array(notes['colours'], np.float32) if 'colours' in notes else None
    except Exception as e:
        raise InputError(f'{path}: its notes on model and colours are damaged: copy it again') from e
    return weights, saved_as, colours if colours is None else check_colours(colours, path)


def difference(weights, expected, model):
    """How tensors differ from those whose shapes a model expects, and what to do: words for an error."""
    missing, more = ([name for name in some if name not in others]
                     for some, others in ((expected, weights), (weights, expected)))
    kinds = [sorted(re.sub(r'\.\d+', '', name) for name in names) for names in (missing, more)]
    if missing and kinds[0] == kinds[1]:
        return (f'its layers are in another order ({more[0]:.60} for {missing[0]}): train it in '
                'this order: convolution, pooling (or upsampling), batch norm, ReLU')
    if missing or more:
        return (f'it has {[*more, "nothing"][0]:.60} where a {model} has {[*missing, "nothing"][0]}: '
                'save the whole state_dict() of such a network')
    name = next(name for name in expected if weights[name].shape != expected[name])
    taps, width = weights['rfconv.0.weight'].clone(), expected['rfconv.0.weight'][-1]
    if width > 1 and taps.shape[2:] == 2 * (2 * width - 1,):
        taps[:, :, ::2, ::2] = 0
        if not taps.any():
            return ('its rfconv.0.weight is a dilated filter spread out, with its gaps: save the taps alone, '
                    'weight[:, :, ::2, ::2]')
    found, wanted = list(weights[name].shape), list(expected[name])
    return f'its {name} is {found} where a {model} has {wanted}: build the network as the course does'


def load_model(make_model, path, kernel=None, num_filters=None):
    """Build the network of a checkpoint, one of ours (found beside this script too) or of the course.

    `make_model(kernel, num_filters, num_colours)` builds it; the weights tell the sizes. Returns it in eval
    mode, and its colours [K, 3] or, where the file does not tell, None. Raises InputError if the file is no
    state dict of that model, or has other sizes than the `kernel` and `num_filters` that are given.
    """
    path = find_shipped(path)
    weights, saved_as, colours = read_checkpoint(path)
    filters, _, _, width = weights['downconv1.0.weight'].shape
    num_colours = len(weights['finalconv.weight'])
    for flag, given, found in (('-k', kernel, width), ('-f', num_filters, filters)):
        if given not in (None, found):
            raise InputError(f'{path} was trained with {flag} {found}: leave out {flag} {given}')

    def build(make):
        model = make(width, filters, num_colours)
        if 'prior' in weights:
            add_prior(model, torch.empty(*weights['prior'].shape[:1], num_colours))
        return model

    def name_and_shapes(make):
        with torch.device('meta'):  # no memory for sizes that may be absurd
            model = build(make)
        return type(model).__name__, {name: tensor.shape for name, tensor in model.state_dict().items()
                                      if not name.endswith('num_batches_tracked')}
    (name, expected), shapes = name_and_shapes(make_model), {name: t.shape for name, t in weights.items()}
    owners = []
    if saved_as not in (None, name):
        owners = [next((owner for owner in MODELS if MODELS[owner].__name__ == saved_as), saved_as)]
    elif saved_as is None and shapes != expected:
        owners = [owner for owner, make in MODELS.items() if name_and_shapes(make)[1] == shapes]
    if owners == ['RegressionCNN'] or (owners == ['CNN'] and num_colours == 3 and saved_as is None):
        raise InputError(f'{path} is a RegressionCNN: only colour_regression.py can use it')
    if owners:
        script = 'colourization.py ' * (name == 'RegressionCNN')
        raise InputError(f'{path} belongs to another model: give {script}--model '
                         f'{" or ".join(owners):.60}, or another --checkpoint')
    if shapes != expected:
        raise InputError(f'{path}: {difference(weights, expected, name)}')
    if colours is not None and len(colours) != num_colours:
        raise InputError(f'{path} is damaged: {len(colours)} colours, but {num_colours} outputs; train it '
                         'again')
    model = build(make_model)
    model.load_state_dict(weights, strict=False)
    with torch.no_grad():  # finite weights can be too large, or the square roots of negative ones
        if not model.eval()(torch.full((1, 1, 8, 8), 0.5)).isfinite().all():
            raise InputError(f'{path} is damaged: its outputs are not finite; train it again')
    return model, colours


def resume_file(checkpoint):
    """The file beside a checkpoint that an interrupted training leaves for --resume."""
    return checkpoint.with_name(checkpoint.name + '.resume')


def save_state(path, settings, parts, generator, history):
    """Save a training after an epoch: all settings, and the `parts` that have a state_dict, by name."""
    state = {name: part.state_dict() for name, part in parts.items()}
    save_tensors(state | {'generator': generator.get_state(), 'history': history, 'settings': settings,
                          'threads': torch.get_num_threads()}, path)


def load_state(path, settings, parts, generator):
    """Bring a training of the same settings into the state that was saved; returns the history so far."""
    if not path.exists():
        raise InputError(f'{path} is missing: no epoch was completed there, or the run is finished: leave '
                         'out --resume')
    with open(path, 'rb') as file:
        try:
            state = load_tensors(file)
            for name, value in settings.items():
                if state['settings'].get(name) != value:
                    raise ValueError(f'the interrupted run had another {name}'
                                     + f', {state["settings"].get(name)}' * (name != 'colours'))
            for name, part in parts.items():
                part.load_state_dict(state[name])
            generator.set_state(state['generator'])
            history = list(state['history'])
            if len(history) >= settings['epochs'] or not all('seconds' in record for record in history):
                raise ValueError('its history is damaged')
            if 'OMP_NUM_THREADS' not in os.environ:  # as many as before, for the same bits
                torch.set_num_threads(min(state['threads'], torch.get_num_threads()))
            return history
        except Exception as e:  # a broken or hostile file can raise nearly anything
            raise InputError(f'{path}: cannot be resumed ({one_line(e)[:100]}); give the same flags as '
                             'before, or remove this file and leave out --resume') from e


# ---- Pictures of the user -----------------------------------------------------------------------------


def colourize(grey, model, colours, temperature=1.0, size=IMAGE_SIZE, saturation=SATURATION):
    """Colour a grey picture, an array [H, W] in [0, 1]: RGB, float32 [H, W, 3], with that grey as its mean.

    The network, in eval mode, sees it with about `size` x `size` pixels, a half and a quarter of that a side,
    and not enlarged. Of what it answers only the chroma is used, the difference of each channel from their
    mean. The mean of the three, `saturation` times as large, is brought up to the full size along the edges
    of the grey, and made weaker where it would lead out of [0, 1]. Colours and temperature: see
    `scores_to_rgb`.
    """
    rgb = np.empty((*np.shape(grey), 3), np.float32)
    for rows, band in colour_bands(grey, model, colours, temperature, size, saturation):
        rgb[rows] = band
    return rgb


def shrink(grey, size):
    """A grey picture [1, 1, H, W] with at most about size x size pixels, its sides multiples of 4."""
    scale = min(1, size / math.sqrt(math.prod(grey.shape[2:])))
    longest = max(1, size**2 // 16)  # blocks of 4x4 pixels: a picture of 1 x N pixels becomes one block wide
    return F.interpolate(grey, [4 * min(max(1, round(side * scale / 4)), longest) for side in grey.shape[2:]],
                         mode='bilinear', antialias=True)


def follow_edges(grey, chroma):
    """How chroma [1, 3, H, W] follows the grey [1, 1, H, W] around each pixel: its slope and offset there.

    Brought up to the size of a larger grey picture, they give chroma that has the edges of that. It is the
    guided filter: He, Sun and Tang (2013), Guided image filtering; He and Sun (2015), Fast guided filter.
    """
    def mean(x):
        return F.avg_pool2d(x, 2 * RADIUS + 1, stride=1, padding=RADIUS, count_include_pad=False)
    mean_grey, mean_chroma = mean(grey), mean(chroma)
    slope = ((mean(grey * chroma) - mean_grey * mean_chroma)
             / (mean(grey.square()) - mean_grey.square() + FLATNESS))
    return mean(slope), mean(mean_chroma - slope * mean_grey)


@torch.no_grad()
def colour_bands(grey, model, colours, temperature, size, saturation):
    """Yield what `colourize` returns in bands, which take little memory: rows, a slice, and their RGB."""
    grey = torch.from_numpy(np.asarray(grey, np.float32))[None, None]
    height, width = grey.shape[2:]
    small, line = shrink(grey, size), 0
    views = small, shrink(small, size // 2), shrink(small, size // 4)  # large and small things look familiar
    for view in views:
        scores = model(view.to(model.finalconv.weight.device) * 255 / MAX_PIXEL)
        rgb = torch.from_numpy(scores_to_rgb(scores, colours, temperature))
        line_of_view = torch.cat(follow_edges(view, rgb - rgb.mean(dim=1, keepdim=True)), dim=1)
        line += saturation / len(views) * F.interpolate(line_of_view, small.shape[2:], mode='bicubic')
    line = F.interpolate(line, (height, small.shape[3]), mode='bicubic')  # only higher: still small
    for start in range(0, height, max(1, BAND // width)):
        rows = slice(start, start + max(1, BAND // width))
        lit = grey[:, :, rows]
        slope, offset = F.interpolate(line[:, :, rows], (lit.shape[2], width), mode='bicubic').chunk(2, dim=1)
        tint = slope * lit + offset
        room = torch.minimum((1 - lit) / tint.amax(dim=1, keepdim=True).clamp(min=1e-6),
                             lit / (-tint.amin(dim=1, keepdim=True)).clamp(min=1e-6))
        yield rows, (lit + tint * room.clamp(max=1))[0].movedim(0, -1).clamp(0, 1).numpy()


def colour_files(paths, model, colours, outdir, temperature, size, saturation):
    """--image: `colourize` files into outdir; a bad one does not stop the others, but the status is 1."""
    from PIL import Image
    check_writable(outdir / f'{os.getpid()}_colour.png')  # hardly a file of the user

    def identities(path):
        """A path without links, and the file that is there, which has several where case does not count."""
        yield os.path.realpath(path)
        if os.path.exists(path):
            yield os.stat(path).st_dev, os.stat(path).st_ino
    inputs = {identity for path in paths for identity in identities(path)}
    status, taken = 0, set()
    for path in tqdm(paths, 'colouring', leave=False, disable=None):
        name, i = path.stem, 1
        while (folded := unicodedata.normalize('NFC', name).casefold()) in taken:
            name, i = f'{path.stem}_{i + 1}', i + 1
        taken.add(folded)
        try:
            picture = read_picture(path)
            pixels = np.empty((*picture.grey.shape, 3), np.uint8)
            for rows, band in colour_bands(picture.grey, model, colours, temperature, size, saturation):
                pixels[rows] = (255 * band).round()
            if picture.alpha is not None:
                pixels = np.dstack([pixels, picture.alpha])
            result = outdir / f'{name}_colour.png'
            if not inputs.isdisjoint(identities(result)):
                raise InputError(f'{result} is itself a picture to colour: choose another --outdir')
            with whole_file(result) as file:
                # With Pillow's usual level, saving takes more than twice as long, for hardly a smaller file.
                Image.fromarray(pixels).save(file, 'PNG', dpi=picture.dpi, compress_level=3)
            if picture.frames > 1:
                note = f'note: {path} has {picture.frames} pages or frames: the first is coloured'
                tqdm.write(one_line(note), file=sys.stderr)
            tqdm.write(f'Wrote {result}')
        except (InputError, OSError) as e:
            tqdm.write(complaint(e), file=sys.stderr)
            status = 1
    return status


# ---- Command line -------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Reads a pasted en or em dash before a flag as hyphens; a wrong use gives one line."""

    def parse_args(self, argv=None):
        argv = sys.argv[1:] if argv is None else argv
        return super().parse_args([re.sub('^[–—][-–—]*(?=([a-z]+))', lambda dashes:
                                          '-' if len(dashes[1]) == 1 else '--', word) for word in argv])

    def error(self, message):
        self.exit(2, f'error: {one_line(message)}; see {self.prog} --help\n')


def number(kind, low, high=math.inf, odd=False):
    """A type for argparse: an int or float from `low` to `high`."""
    def parse(text):
        value = kind(text)
        if not low <= value <= high or odd and value % 2 == 0:
            raise argparse.ArgumentTypeError(
                f'{text} is not {"an odd number" if odd else "a number"} '
                + (f'of {low} or more' if high == math.inf else f'from {low} to {high}'))
        return value
    parse.__name__ = 'whole number' if kind is int else 'number'  # argparse says "invalid number value"
    return parse


def temperature(text):
    """A type for argparse: 0, or what scores can be divided by."""
    if not (float(text) == 0 or 0.001 <= float(text) <= 100):
        raise argparse.ArgumentTypeError(f'{text} is neither 0 nor a number from 0.001 to 100')
    return float(text)


def make_parser(description):
    """The flags that all scripts share."""
    parser = Parser(description=description)
    flag = parser.add_argument
    flag('--checkpoint', type=Path, metavar='FILE', help='the weights of a network')
    flag('-k', '--kernel', type=number(int, 1, 31, odd=True), metavar='K',
         help=f'size of the filters (default: {KERNEL}, or what the checkpoint has)')
    flag('-f', '--num_filters', type=number(int, 1, 4096), metavar='F',
         help=f'filters of the first stage (default: {NUM_FILTERS}, or what the checkpoint has)')
    flag('--data', metavar='WHERE', help='a folder or archive with CIFAR-10 (default: data/, fetched on '
         'first use), or `sample` for a few pictures that need no network')
    flag('--category', type=lambda text: int(text) if text.isdecimal() else text, default=HORSE,
         choices=['all', *range(10)], metavar='C',
         help='which class of CIFAR-10, 0 to 9, or `all` (default: %(default)s, horses)')
    flag('--outdir', type=Path, default=Path('outputs'), metavar='DIR',
         help='where pictures and results go (default: outputs/)')
    return parser


def add_training_flags(parser, modes):
    """The settings of `train` (part F.2), and what goes with them; those of `modes` exclude each other."""
    flag = parser.add_argument
    flag('-b', '--batch_size', type=number(int, 1, 10**6), default=100, metavar='N',
         help='pictures a training step (default: %(default)s)')
    flag('-e', '--epochs', type=number(int, 1, 10**6), default=25, metavar='N',
         help='passes over the training pictures (default: %(default)s)')
    flag('-l', '--learn_rate', type=number(float, 1e-12, 10), default=0.001, metavar='R',
         help='step size of Adam (default: %(default)s)')
    flag('--schedule', choices=['constant', 'onecycle'], default='constant',
         help='of the learning rate: onecycle raises it to -l and lowers it again (default: %(default)s)')
    flag('--weight_decay', type=number(float, 0, 10), default=0.0, metavar='D',
         help='pull of the weights towards zero (default: %(default)s)')
    flag('--augment', nargs='+', action='extend', choices=[*MOVES, 'classes'], default=[], metavar='WAY',
         help='vary the training pictures: any of %(choices)s; classes trains on all ten (default: none)')
    flag('--hold_out', type=number(int, 0, 10**6), default=0, metavar='N', help='to choose settings: keep N '
         'training horses back and validate on them, not on the test horses (default: %(default)s)')
    flag('-s', '--seed', type=number(int, 0, 2**31), default=0, metavar='S',
         help='the same seed gives the same numbers (default: %(default)s)')
    flag('--float32', action='store_true',
         help='train in float32 even where the hardware multiplies bfloat16')
    flag('--gpu', action='store_true', help='use the GPU, if there is one')
    flag('--plot', action='store_true', help='draw pictures after every epoch too')
    modes.add_argument('--resume', action='store_true',
                       help='go on with the interrupted run of the same flags and --checkpoint')
    modes.add_argument('--summary', action='store_true',
                       help='only print the layers of the network, and their sizes for a 32x32 picture')


def parse_args(argv=None):
    """Read the command line of colourization.py, and fill in what depends on other flags."""
    parser = make_parser('Train or evaluate a network that colours the horses of CIFAR-10.')
    flag, modes = parser.add_argument, parser.add_mutually_exclusive_group()
    add_training_flags(parser, modes)
    flag('-m', '--model', choices=MODELS, help='which network')
    flag('-c', '--colours', metavar='FILE', help='the colours (default: those of the checkpoint, or the '
         f'{NUM_COLOURS} of the category in colour/)')
    flag('--prior', type=number(int, 1, NUM_LEVELS), nargs='?', const=NUM_LEVELS, default=0, metavar='E',
         help='train with a table of how probable each colour is at each grey level, which has E entries '
         '(default: %(const)s)')
    flag('--temperature', type=temperature, metavar='T', help='how scores become a colour: 0 takes '
         'the likeliest one, 1 the mean, between them is annealed (default: 0; 1 with --image)')
    flag('--image_size', type=number(int, 4, 4096), default=IMAGE_SIZE, metavar='N',
         help='the network sees the pictures of --image with about N x N pixels, and with a half and a '
         'quarter of N (default: %(default)s)')
    flag('--saturation', type=number(float, 0, 100), default=SATURATION, metavar='S',
         help='the colours of --image are S times as strong as those of the network (default: %(default)s)')
    modes.add_argument('--valid', action='store_true', help='only evaluate the network in --checkpoint')
    modes.add_argument('--image', type=Path, nargs='+', action='extend', metavar='FILE', help='colour these '
                       f'pictures, with the network in --checkpoint (default: {IMAGE_CHECKPOINT})')
    modes.add_argument('--kmeans', type=number(int, 2, MAX_COLOURS), metavar='K',
                       help='find K colours by k-means, write them into colour/, and stop')
    args = parser.parse_args(argv)
    if args.kmeans and (args.model or args.colours or args.checkpoint):
        parser.error('--kmeans only finds colours: leave out --model, --colours and --checkpoint')
    if args.image:
        args.model = args.model or 'UNet'
        args.checkpoint = args.checkpoint or IMAGE_CHECKPOINT
    if args.temperature is None:
        args.temperature = 1.0 if args.image else 0.0
    if not (args.model or args.kmeans):
        parser.error('choose a network with --model CNN, UNet or DUNet')
    if args.valid and not args.checkpoint:
        parser.error('--valid needs a network: name it with --checkpoint FILE')
    return args


def training_settings(args):
    """The keyword arguments of `train` that are flags of the same names."""
    names = 'batch_size epochs learn_rate schedule weight_decay augment seed float32 resume'
    return {name: getattr(args, name) for name in names.split()}


def find_shipped(path):
    """The path itself, or the same one beside this script if the file is only there."""
    beside = HERE / path
    return beside if beside.exists() and not Path(path).exists() else Path(path)


def busy_seconds():
    """Seconds that the cores which we may use have worked for others since the machine started.

    None where the system does not tell.
    """
    try:
        lines, cores = STAT.read_text().splitlines(), os.sched_getaffinity(0)
    except (OSError, AttributeError):
        return None
    counts = [line.split() for line in lines if line[:3] == 'cpu' and line[3:4].isdigit()]
    ticks = sum(sum(map(int, count[1:4] + count[6:9])) for count in counts if int(count[0][3:]) in cores)
    return ticks / os.sysconf('SC_CLK_TCK') - sum(os.times()[:4])


START = time.monotonic(), busy_seconds()  # when the program began


def choose_threads():
    """Have torch use as many threads as there were free cores since the program began; at least one.

    Threads that have to share cores wait for each other, at times for ten times as long as they compute.
    The user's own OMP_NUM_THREADS is left alone.
    """
    if 'OMP_NUM_THREADS' in os.environ:
        return
    free = os.cpu_count()
    if START[1] is not None:
        busy = (busy_seconds() - START[1]) / (time.monotonic() - START[0])
        free = len(os.sched_getaffinity(0)) - busy
    elif hasattr(os, 'getloadavg'):
        free -= os.getloadavg()[0]
    if QUOTA.exists():  # of a container, in microseconds
        share, period = QUOTA.read_text().split()
        free = free if share == 'max' else min(free, int(share) / int(period))
    threads, most = max(1, round(free)), torch.get_num_threads()
    if threads < most:
        torch.set_num_threads(threads)
        print(f'note: {threads} of {most} threads are used, as other programs are at work; OMP_NUM_THREADS '
              'chooses another number', file=sys.stderr)


def choose_device(gpu):
    if gpu and torch.accelerator.is_available():
        return torch.accelerator.current_accelerator()
    if gpu:
        print('warning: no GPU was found, so the CPU is used', file=sys.stderr)
    return torch.device('cpu')


def choose_colours(path, category, num_colours=None, saved=None, checkpoint=None):
    """The colours in the file of --colours, or those `saved` in the checkpoint, or the shipped ones.

    The last come with a warning where a `checkpoint` does not name its colours. Raises InputError if there
    are none, or the file contradicts the checkpoint and its `num_colours`.
    """
    if saved is not None and path is None:
        return saved
    guessed = path is None
    if guessed:
        path = f'colour/colour_kmeans{num_colours or NUM_COLOURS}_cat{category}.npy'
    path = find_shipped(path)
    if not path.exists():
        number = num_colours or NUM_COLOURS
        raise InputError(f'{path} is missing: ' + (
            f'name a file of {number} colours with --colours, or run colourization.py --kmeans {number} '
            f'--category {category}' if guessed else 'name another file with --colours'))
    colours = load_colours(path)
    if num_colours not in (None, len(colours)):
        raise InputError(f'{path} has {len(colours)} colours, the checkpoint {num_colours}: name its own '
                         'with -c')
    if saved is not None and not np.allclose(saved, colours):
        raise InputError(f'the checkpoint was trained with other colours than {path}: leave out -c')
    if guessed and checkpoint:
        print(f'warning: {checkpoint} does not say which colours it was trained with: those of {path} are '
              'used; name its own with -c', file=sys.stderr)
    return colours


def load_trained(model, checkpoint, category, colours=None, kernel=None, num_filters=None, prior=0):
    """A network of MODELS in eval mode, and its colours [K, 3], as the flags of these names tell it."""
    network, saved = load_model(MODELS[model], checkpoint, kernel, num_filters)
    entries = len(getattr(network, 'prior', ()))
    if prior not in (0, entries):
        found = f'a prior of {entries} entries' if entries else 'no prior'
        raise InputError(f'{checkpoint} has {found}: leave out --prior {prior}')
    outputs = len(network.finalconv.bias)
    if model == 'CNN' and outputs == 3 and saved is None and colours is None:
        raise InputError(f'{checkpoint} has 3 outputs and names no colours, like a network of '
                         'colour_regression.py: evaluate it there, or name its colours with -c')
    return network, choose_colours(colours, category, outputs, saved, checkpoint)


def check_checkpoint(path, make_model, resume, evaluate):
    """Find out before training if its checkpoint cannot be written, or would replace what must not be lost.

    `evaluate` says what the user may have meant where the file is a checkpoint already.
    """
    check_writable(path)
    check_writable(resume_file(path))
    if resume_file(path).exists() and not resume:
        raise InputError(f'{resume_file(path)} is left from an interrupted run: go on with --resume, or '
                         'remove that file to begin anew')
    if path.exists() and path.stat().st_size:
        overwritten = 'would be overwritten: choose another --checkpoint, or remove it'
        try:
            _, owner, _ = read_checkpoint(path)
        except InputError as e:  # a slip must not cost the user a picture or colours
            raise InputError(f'{path} is no checkpoint that can be read and {overwritten}') from e
        if owner not in (None, make_model.__name__):
            raise InputError(f'{path} belongs to another model, {owner}, and {overwritten}')
        if not resume:
            print(f'note: {path} will be replaced after the first epoch; to evaluate it, stop this and '
                  f'{evaluate} --checkpoint {path}', file=sys.stderr)


def find_colours(num_colours, data, category, seed):
    """--kmeans: find colours, write them, and print how far the pixels are from them."""
    path = f'colour/colour_kmeans{num_colours}_{"sample" if data == "sample" else f"cat{category}"}.npy'
    check_writable(path)
    xs, ys = load_cifar10(data)[0]
    step = max(1, len(xs) // 5000) if category == 'all' else 1  # as many pictures as one class has
    rgb, _ = process(xs[::step], ys[::step], category=category)
    colours = kmeans_colours(rgb, num_colours, seed)
    with whole_file(path) as file:
        np.save(file, colours)
    error = np.square(rgb - get_cat_rgb(get_rgb_cat(rgb, colours), colours)).sum(axis=1).mean()
    say(f'Wrote {path}: the mean squared distance of a pixel to its colour is {error:.5f}',
        data_name(data, category))


def load_sets(data, category, held_out, colours, device, trained_on):
    """What a network is trained and validated on: pictures from --data of a category.

    It is trained on those of `trained_on`, a category too or None, and validated on the test pictures, or on
    `held_out` training pictures if that is not 0. Returns both sets, pairs of grey pictures and targets
    (numbers of the colours [K, 3], or RGB) on the device, or None; the true validation pictures, uint8
    [N, 3, 32, 32]; and the `colour_counts` of the category's training pictures.
    """
    train_pictures, valid_pictures = load_cifar10(data)
    if held_out:
        train_pictures, valid_pictures = hold_out(train_pictures, held_out, category)

    def parts(xs, ys, category):
        """A hundred at a time: floats of all pictures would take much memory."""
        chosen = np.flatnonzero(is_of(category, ys))
        for some in np.array_split(chosen, len(chosen) // 100 + 1):
            rgb, grey = process(xs[some], ys[some], category=category)
            target = rgb if colours is None else get_rgb_cat(rgb, colours).astype(np.uint8)
            yield [torch.from_numpy(array).to(device) for array in (grey, target)]

    def grey_and_target(xs, ys, category):
        whole, end = None, 0
        for part in parts(xs, ys, category):
            whole = whole or [piece.new_empty(is_of(category, ys).sum(), *piece.shape[1:]) for piece in part]
            start, end = end, end + len(part[0])
            for tensor, piece in zip(whole, part):
                tensor[start:end] = piece
        return whole

    train_set = counts = None
    if trained_on is not None:
        train_set = grey_and_target(*train_pictures, trained_on)
    if colours is not None:
        counts = (colour_counts(*train_set, len(colours)) if trained_on == category else
                  sum(colour_counts(*part, len(colours)) for part in parts(*train_pictures, category)))
    xs, ys = valid_pictures
    return train_set, grey_and_target(xs, ys, category), xs[is_of(category, ys)], counts


def train_and_evaluate(model, objective, *, name, file_name, checkpoint, settings, data, category, held_out,
                       outdir, gpu, plot, colours=None, temperature=0.0):
    """The work of both scripts: read the pictures, train a network if there are settings, evaluate it.

    `settings` are keyword arguments of `train`, or None if it is trained already; `checkpoint` is the file to
    save it in, or that it came from; `name` and `file_name` are what lines and drawings are called. The
    others are as the flags of these names, see `load_sets` and `scores_to_rgb`.
    """
    check_writable(outdir / f'{file_name}.png')
    import_matplotlib()
    device = choose_device(gpu)
    model = model.to(device, memory_format=torch.channels_last)  # on CPUs the faster format
    num_filters, _, _, kernel = model.downconv1[0].weight.shape
    about = {'model': name, 'kernel': kernel, 'num_filters': num_filters, 'data': data_name(data, category),
             'prior': len(getattr(model, 'prior', ())), 'hold_out': held_out}
    trained_on = None if settings is None else 'all' if 'classes' in settings['augment'] else category
    train_set, valid_set, xs, counts = load_sets(data, category, held_out, colours, device, trained_on)
    if not (settings and settings['resume']):  # which takes as many threads as before
        choose_threads()

    @torch.no_grad()
    def draw(metrics, epoch):
        prediction = scores_to_rgb(model.eval()(valid_set[0][:SHOWN]), colours, temperature)
        truth = xs[:SHOWN].astype(np.float32) / MAX_PIXEL
        draw_predictions(truth, prediction, outdir / f'{file_name}_epoch{epoch:02d}.png', about, metrics)

    if settings is not None:
        if about['prior']:
            model.prior.data = log_frequencies(counts, about['prior'])
        train(model, objective, train_set, valid_set, about=about, checkpoint=checkpoint, outdir=outdir,
              colours=colours, draw=draw if plot else None, **settings)
    train_set = None  # evaluation can use its memory
    about |= {'checkpoint': checkpoint.name, 'seed': settings and settings['seed'],
              'threads': torch.get_num_threads(),
              'temperature': temperature, 'colours': None if colours is None else colours.tolist()}
    metrics = evaluate(model, objective, valid_set, xs, about=about, outdir=outdir, file_name=file_name,
                       colours=colours, temperature=temperature,
                       accuracies={} if colours is None else baselines(counts, *valid_set))
    if settings is None and colours is not None and not metrics['loss'] <= math.log(len(colours)):
        print(f'warning: the loss is above that of guessing, ln {len(colours)} = '
              f'{math.log(len(colours)):.4f}: {checkpoint} may have been trained with other colours (-c), or '
              'with its skip connections in another order', file=sys.stderr)


def main():
    args = parse_args()
    if args.kmeans:
        return find_colours(args.kmeans, args.data, args.category, args.seed)
    checkpoint, make_model = args.checkpoint, MODELS[args.model]
    if args.valid or args.image or (args.summary and checkpoint):
        model, colours = load_trained(args.model, checkpoint, args.category, args.colours, args.kernel,
                                      args.num_filters, args.prior)
    else:
        kernel, num_filters = args.kernel or KERNEL, args.num_filters or NUM_FILTERS
        if not args.summary:
            name = f'{args.model.lower()}{"_prior" * bool(args.prior)}_k{kernel}_f{num_filters}.pkl'
            checkpoint = checkpoint or args.outdir / name
            check_checkpoint(checkpoint, make_model, args.resume, 'add --valid')
        colours = choose_colours(args.colours, args.category)
        torch.manual_seed(args.seed)
        model = make_model(kernel, num_filters, len(colours))
        if args.prior:
            add_prior(model, torch.zeros(args.prior, len(colours)))  # until the pictures are counted
    if args.summary:
        return print(summary_table(model))
    if args.image:
        sys.exit(colour_files(args.image, model.to(choose_device(args.gpu)), colours, args.outdir,
                              args.temperature, args.image_size, args.saturation))
    name = args.model + '_prior' * hasattr(model, 'prior')
    train_and_evaluate(model, classification, name=name, file_name=f'eval_{name}', checkpoint=checkpoint,
                       settings=None if args.valid else training_settings(args), data=args.data,
                       category=args.category, held_out=args.hold_out, outdir=args.outdir, gpu=args.gpu,
                       plot=args.plot, colours=colours, temperature=args.temperature)


@contextmanager
def ended_like_ctrl_c():
    """SIGTERM, of a scheduler, and SIGHUP, of a closed terminal, raise KeyboardInterrupt as Ctrl-C does."""
    ends = [number for number in (signal.SIGTERM, getattr(signal, 'SIGHUP', None))
            if number and signal.getsignal(number) == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():  # where Python handles no signals
        ends = []
    for number in ends:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in ends:
            signal.signal(number, signal.SIG_DFL)


def complaint(error):
    """The one line for something that a user can mend."""
    if isinstance(error, OSError) and error.filename:
        error = f'{error.filename}: {error.strerror}'
    return f'error: {one_line(error)}'


def run(main):
    """Run a script; what a user can cause ends in one line and an exit status, not a traceback."""
    gc.set_threshold(100_000)  # imports make little garbage, and looking for it takes half a second
    atexit.register(gc.freeze)  # and another half at the end, among what goes away anyhow
    for name in ('stdout', 'stderr'):  # closed by whoever called, as in pythonw
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, 'w'))
    try:
        if hasattr(sys.stdout, 'reconfigure'):  # notebooks have other streams
            sys.stdout.reconfigure(errors='backslashreplace')  # names that the terminal cannot show
        try:
            with ended_like_ctrl_c():
                main()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever read the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (InputError, OSError) as e:
        sys.exit(complaint(e))
    except ImportError as e:
        sys.exit(f'error: {one_line(e)}: pip install -r requirements.txt installs all that is needed')
    except (MemoryError, RuntimeError) as e:
        if not isinstance(e, (MemoryError, torch.OutOfMemoryError)) and not re.search(
                'allocate memory|not enough memory|out of memory', str(e)):
            raise
        sys.exit('error: there is not enough memory: close other programs, or try a smaller --num_filters, '
                 '--image_size or --batch_size')


if __name__ == '__main__':
    run(main)
