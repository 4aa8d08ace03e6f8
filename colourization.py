"""Image colourization as classification: colour the horses of CIFAR-10.

Programming assignment 2 of CSC321, University of Toronto, winter 2018. A network sees a grey
picture and chooses for each pixel one of K colours, which k-means found in the training pictures.

    python colourization.py --model UNet --data sample -e 5                # try it, no data needed
    python colourization.py --model UNet --checkpoint unet_k3_f32.pkl      # train
    python colourization.py --model UNet --checkpoint weights/unet_k3_f32.pkl --valid
    python colourization.py --model UNet --summary                         # its layers
    python colourization.py --kmeans 24                                    # find the colours
    python colourization.py --image photo.jpg                              # colour your own picture

From top to bottom: colours, pictures, layers, models, training, pictures of the user, files,
command line.
"""

import argparse
import copy
import io
import json
import math
import os
import re
import sys
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, OneCycleLR
from tqdm import tqdm

from load_data import HORSE, InputError, load_cifar10, one_line, safe_unpickle

# scikit-learn and matplotlib take seconds to import, so the functions that need them do it;
# Pillow, which --image alone needs, likewise.

HERE = Path(__file__).resolve().parent

# ---------------------------------------------------------------------------
# Colours
# ---------------------------------------------------------------------------

NUM_COLOURS = 24  # handout, part B
MAX_COLOURS = 256  # the last layer grows with their square, and the scores take memory for each
KMEANS_RESTARTS = 10  # one run alone often ends in an optimum a percent worse


def colour_file(num_colours, name):
    return f'colour/colour_kmeans{num_colours}_{name}.npy'


def kmeans_colours(xs, num_colours, seed=0):
    """Find the K colours that are nearest to a set of pictures by k-means in RGB (part B).

    Args:
        xs: RGB pictures [N, 3, H, W].

    Returns:
        The colours, float32 [K, 3], from dark to bright: the best of ten runs.

    Raises:
        InputError: the pictures have fewer than K different colours.
    """
    from sklearn.cluster import KMeans

    seeds = tqdm(range(seed, seed + KMEANS_RESTARTS), 'k-means', leave=False, disable=None)
    # Most pixels share their colour with others: a third of them, weighted, has the same optimum.
    pixels, counts = np.unique(np.moveaxis(xs, 1, -1).reshape(-1, 3), axis=0, return_counts=True)
    if len(pixels) < num_colours:
        raise InputError(f'the pictures have {len(pixels)} colours, fewer than {num_colours}')
    runs = [KMeans(num_colours, n_init=1, random_state=i).fit(pixels, sample_weight=counts) for i in seeds]
    colours = min(runs, key=lambda run: run.inertia_).cluster_centers_
    return colours[colours.sum(axis=1).argsort()].astype(np.float32)


def get_rgb_cat(xs, colours):
    """Nearest colour of each pixel: pictures [N, 3, H, W] -> colour numbers, int64 [N, 1, H, W]."""
    # |x - c|^2 = |x|^2 - 2 x c + |c|^2, whose first term is the same for all colours; in double
    # precision, since what is left are small differences.
    centres = torch.from_numpy(colours).double()
    factors = torch.cat([-2 * centres.T, centres.square().sum(dim=1)[None]])
    cats = []
    for part in torch.from_numpy(np.ascontiguousarray(xs)).split(32):  # as many as fit into a cache
        pixels = part.new_ones(len(part), *xs.shape[2:], 4, dtype=torch.float64)
        pixels[..., :3] = part.movedim(1, -1)
        cats.append((pixels.flatten(0, 2) @ factors).min(dim=1).indices)  # argmin is slower
    return torch.cat(cats).numpy().reshape(len(xs), 1, *xs.shape[2:])


def get_cat_rgb(cats, colours):
    """Colour of each pixel's colour number: [N, 1, H, W] -> pictures [N, 3, H, W]."""
    return np.moveaxis(colours[cats[:, 0]], -1, 1)


def scores_to_rgb(scores, colours, temperature=0.0):
    """Colour of each pixel by the scores of the K colours: tensor [N, K, H, W] -> array [N, 3, H, W].

    Args:
        temperature: 0 takes the most likely colour; above, it is the annealed mean of Zhang,
            Isola and Efros (2016), Colorful image colorization, equation 5, who use 0.38; and 1
            is the mean over the probabilities.
    """
    if temperature == 0:
        return get_cat_rgb(scores.argmax(dim=1, keepdim=True).numpy(), colours)
    weights = (scores / temperature).softmax(dim=1)
    return torch.einsum('nkhw, kc -> nchw', weights, torch.from_numpy(colours)).numpy()


def load_colours(path):
    """Read colours, float32 [K, 3] in [0, 1], from an .npy file of ours or of the course.

    The course's files hold a pickled object array `(centres, distortion)`. It is read without
    running anything that the pickle asks for.

    Raises:
        InputError: the file holds no colours.
    """
    with open(path, 'rb') as file:
        try:
            version = np.lib.format.read_magic(file)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0,
                           (2, 0): np.lib.format.read_array_header_2_0}[version]
            if read_header(file)[2].hasobject:
                colours = safe_unpickle(file).value[0].value
            else:
                file.seek(0)
                colours = np.load(file, allow_pickle=False)
        except Exception as e:  # a broken or hostile file can raise nearly anything
            raise InputError(f'{path}: not a file of colours ({one_line(e)[:100]}); '
                             '--kmeans makes one') from e
    return check_colours(colours, path)


def check_colours(colours, path):
    """The colours as float32; raises InputError if they are not [K, 3] numbers in [0, 1]."""
    shape = getattr(colours, 'shape', ())
    if len(shape) != 2 or shape[1] != 3 or colours.dtype.kind != 'f' or not 2 <= shape[0] <= MAX_COLOURS:
        raise InputError(f'{path}: its colours are not a [K, 3] array of 2 to {MAX_COLOURS}')
    if not (colours.min() >= 0 and colours.max() <= 1):  # so written, it refuses NaN too
        raise InputError(f'{path}: its colours are not all between 0 and 1')
    return colours.astype(np.float32)


# ---------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------

MAX_PIXEL = 256.0  # the course divides by 256, not by 255
SHOWN = 10  # the validation pictures that every figure shows
NUM_LEVELS = 3 * 255 + 1  # sums of red, green and blue
MOVES = ['flip_ud', 'flip_lr', 'shift_lr', 'shift_ud', 'zoom']  # the first are a to d of question F.1
ZOOM = 0.25  # at most a quarter closer or farther


def process(xs, ys, max_pixel=MAX_PIXEL, category=HORSE):
    """Select the pictures of one category, None for all, and make them grey.

    Args:
        xs: uint8 pictures [N, 3, 32, 32].
        ys: labels [N, 1].

    Returns:
        RGB [M, 3, 32, 32] and grey [M, 1, 32, 32], float32 in [0, 1). Grey is the plain
        mean of red, green and blue.

    Raises:
        InputError: there is no picture of the category.
    """
    if category is not None:
        xs = xs[ys[:, 0] == category]
    rgb = xs.astype(np.float32)
    rgb /= max_pixel
    if len(rgb) == 0:
        raise InputError(f'the data has no picture of category {category}')
    return rgb, rgb.mean(axis=1, keepdims=True)


def hold_out(train, count, category=HORSE):
    """Keep the last pictures of a category out of the training set, to choose settings on.

    Args:
        train: pictures [N, 3, 32, 32] and labels [N, 1].
        category: None for all.

    Returns:
        The other pictures and labels, and those that are held out.

    Raises:
        InputError: none would be left to train on.
    """
    xs, ys = train
    candidates = np.flatnonzero((ys[:, 0] == category) | (category is None))
    if count >= len(candidates):
        raise InputError(f'--hold_out {count} leaves none of the {len(candidates)} training pictures')
    held = candidates[-count:]
    return (np.delete(xs, held, axis=0), np.delete(ys, held, axis=0)), (xs[held], ys[held])


def put_grey_back(rgb, grey):
    """Pictures [N, 3, H, W] with the brightness of grey ones [N, 1, H, W], clipped to [0, 1]."""
    return np.clip(rgb - rgb.mean(axis=1, keepdims=True) + grey, 0, 1)


def colourfulness(rgb):
    """Mean colourfulness of pictures [N, 3, H, W] in [0, 1]: 0 is grey, 109 extremely colourful.

    Hasler and Süsstrunk (2003), Measuring colourfulness in natural images, their third measure.
    """
    red, green, blue = 255 * np.moveaxis(rgb, 1, 0)
    opponents = np.stack([red - green, (red + green) / 2 - blue])
    spread = np.sqrt(opponents.var(axis=(2, 3)).sum(axis=0))
    centre = np.sqrt(np.square(opponents.mean(axis=(2, 3))).sum(axis=0))
    return float((spread + 0.3 * centre).mean())


def grey_levels(grey):
    """The sum of red, green and blue, 0 to 765, that grey pictures [N, 1, H, W] were made from."""
    return (grey * 3 * MAX_PIXEL).round().long()


def colour_counts(grey, cats, num_colours):
    """How often each colour stands at each grey level, [766, K], in pictures [N, 1, H, W]."""
    pairs = grey_levels(grey) * num_colours + cats
    return torch.bincount(pairs.flatten(), minlength=NUM_LEVELS * num_colours).reshape(NUM_LEVELS, -1)


def batches(tensors, batch_size, generator=None, augmentations=()):
    """Cut tensors [N, C, H, W] of the same pictures into batches.

    If a generator is given, they come in a new random order, augmented as `augment` says.
    """
    n, device = len(tensors[0]), tensors[0].device
    order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
    for indices in order.to(device, non_blocking=True).split(batch_size):
        batch = [tensor[indices] for tensor in tensors]
        yield augment(batch, augmentations, generator) if set(augmentations) & set(MOVES) else batch


def augment(tensors, moves, generator):
    """Mirror, shift and zoom each picture of a batch at random (handout, question F.1, a to d).

    Half of them are mirrored; a third is shifted one pixel, a third the other way. Zooming scales a
    picture about its middle, shifts it by up to an eighth, and takes the nearest pixels. What is then
    missing at the edge is reflected.

    Args:
        tensors: tensors [N, C, H, W] of the same pictures, which move together.
        moves: any of MOVES; other words change nothing.
        generator: of the CPU; it decides.
    """
    n, _, *sizes = tensors[0].shape
    device = tensors[0].device

    if 'zoom' in moves:
        scale = 1 + ZOOM * (2 * torch.rand(n, 1, generator=generator) - 1)

    def sources(size, flip, shift):
        """Which pixel of the old rows or columns each new one takes, [N, size]."""
        places = torch.arange(size).expand(n, size)
        if 'zoom' in moves:
            middle = (size - 1) / 2
            off = torch.randint(-(size // 8), size // 8 + 1, (n, 1), generator=generator)
            places = (scale * (places - middle) + middle + off).round().long()
        if shift in moves:
            places = places + torch.randint(-1, 2, (n, 1), generator=generator)
        places = size - 1 - (size - 1 - places.abs()).abs()  # reflected
        if flip in moves:
            mirrored = torch.randint(2, (n, 1), generator=generator) == 1
            places = torch.where(mirrored, size - 1 - places, places)
        return places.to(device, non_blocking=True)

    rows = sources(sizes[0], 'flip_ud', 'shift_ud')[:, :, None]
    columns = sources(sizes[1], 'flip_lr', 'shift_lr')[:, None, :]
    pictures = torch.arange(n, device=device)[:, None, None]
    return [tensor[pictures, :, rows, columns].movedim(-1, 1) for tensor in tensors]


def mosaic(pictures, columns):
    """Tile pictures [N, C, H, W] with one-pixel gaps into one [rows * (H + 1) - 1, ..., C]."""
    n, channels, height, width = pictures.shape
    rows = -(-n // columns)
    tiles = np.ones((rows * columns, channels, height + 1, width + 1), np.float32)
    tiles[:n, :, :height, :width] = pictures
    tiles = tiles.reshape(rows, columns, channels, height + 1, width + 1)
    return tiles.transpose(0, 3, 1, 4, 2).reshape(rows * (height + 1), -1, channels)[:-1, :-1]


def draw_pictures(panels, path, title, columns=1, width=10):
    """Draw labelled pictures into a PNG file; every picture of this project is drawn here.

    Args:
        panels: (label, picture) pairs; a picture is [H, W, 3] or, grey, [H, W, 1], in [0, 1].
        path: the PNG file.
        title: a line above all.
        columns: number of panels side by side.
        width: of the figure in inches.
    """
    from matplotlib.figure import Figure

    rows = [panels[i:i + columns] for i in range(0, len(panels), columns)]
    heights = [max(width / columns * p.shape[0] / p.shape[1] for _, p in row) + 0.3 for row in rows]
    figure = Figure(figsize=(width, sum(heights) + 0.3), layout='constrained')
    grid = figure.add_gridspec(len(rows), columns, height_ratios=heights)
    for i, row in enumerate(rows):
        for j, (label, picture) in enumerate(row):
            axes = figure.add_subplot(grid[i, j])
            axes.imshow(picture, cmap='gray', vmin=0, vmax=1, interpolation='nearest')
            axes.set_title(label, fontsize=9)
            axes.axis('off')
    figure.suptitle(title, fontsize=11)
    with whole_file(path) as file:
        figure.savefig(file, dpi=150)


def draw_rows(rows, path, title):
    """Draw (label, pictures [N, C, H, W]) pairs, the pictures of each in a row of their own."""
    panels = [(label, mosaic(np.clip(np.asarray(pictures), 0, 1), len(pictures)))
              for label, pictures in rows]
    draw_pictures(panels, path, title)


# ---------------------------------------------------------------------------
# Layers
# ---------------------------------------------------------------------------


class MyConv2d(nn.Module):
    """A convolution: pictures [N, I, H, W] -> [N, O, H, W], the same size for odd kernels.

    `weight` [O, I, k, k] and `bias` [O] start uniform in +-1 / sqrt(I * k * k).
    `padding=None` means k // 2.
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
    """A convolution with `dilation` pixels left out between its taps (handout, Figure 1).

    Dilation 0 is an ordinary filter, so this is `F.conv2d(..., dilation=dilation + 1)`, made by
    spreading the taps over a larger filter of zeros (part G). The size of the picture stays.

    Raises:
        ValueError: the kernel is even or the dilation negative.
    """

    def __init__(self, in_channels, out_channels, kernel_size, dilation=1):
        if kernel_size % 2 == 0 or dilation < 0:
            raise ValueError(f'kernel {kernel_size} must be odd and dilation {dilation} not negative')
        super().__init__(in_channels, out_channels, kernel_size,
                         padding=kernel_size // 2 * (dilation + 1))
        self.dilation = dilation

    def spread_weight(self):
        """The filters with their gaps, [O, I, s, s] where s = k + (k - 1) * dilation."""
        size = 2 * self.padding + 1
        spread = self.weight.new_zeros(*self.weight.shape[:2], size, size)
        spread[:, :, ::self.dilation + 1, ::self.dilation + 1] = self.weight
        return spread

    def forward(self, x):
        return F.conv2d(x, self.spread_weight(), self.bias, padding=self.padding)


# ---------------------------------------------------------------------------
# Models: grey pictures [N, 1, H, W] -> scores of the colours [N, K, H, W]; H and W are
# multiples of 4
# ---------------------------------------------------------------------------


def down(in_channels, out_channels, kernel):
    """A stage that halves the size of the picture."""
    return nn.Sequential(MyConv2d(in_channels, out_channels, kernel), nn.MaxPool2d(2),
                         nn.BatchNorm2d(out_channels), nn.ReLU())


def up(in_channels, out_channels, kernel):
    """A stage that doubles the size of the picture."""
    return nn.Sequential(MyConv2d(in_channels, out_channels, kernel), nn.Upsample(scale_factor=2),
                         nn.BatchNorm2d(out_channels), nn.ReLU())


class CNN(nn.Module):
    """Six convolutions; the picture shrinks to a quarter and grows again (part B)."""

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
    """The CNN with skip connections, first stage to last, second to second last (part C).

    Ronneberger, Fischer and Brox (2015), U-Net.
    """

    def __init__(self, kernel, num_filters, num_colours):
        super().__init__()
        self.downconv1 = down(1, num_filters, kernel)
        self.downconv2 = down(num_filters, 2 * num_filters, kernel)
        self.rfconv = nn.Sequential(self.middle(2 * num_filters, kernel),
                                    nn.BatchNorm2d(2 * num_filters), nn.ReLU())
        self.upconv1 = up(2 * num_filters + 2 * num_filters, num_filters, kernel)
        self.upconv2 = up(num_filters + num_filters, num_colours, kernel)
        self.finalconv = MyConv2d(num_colours + 1, num_colours, kernel)

    def middle(self, channels, kernel):
        return MyConv2d(channels, channels, kernel)

    def forward(self, x):
        down1 = self.downconv1(x)
        down2 = self.downconv2(down1)
        middle = self.rfconv(down2)
        up1 = self.upconv1(torch.cat([middle, down2], dim=1))
        up2 = self.upconv2(torch.cat([up1, down1], dim=1))
        x = x.to(up2.dtype, memory_format=torch.channels_last, copy=True)  # as up2, for speed
        return self.finalconv(torch.cat([up2, x], dim=1))


class DilatedUNet(UNet):
    """The UNet whose middle convolution leaves a gap of one pixel between its taps (part D).

    Yu and Koltun (2015), Multi-scale context aggregation by dilated convolutions.
    """

    def middle(self, channels, kernel):
        return MyDilatedConv2d(channels, channels, kernel, dilation=1)


DUNet = DilatedUNet
MODELS = {'CNN': CNN, 'UNet': UNet, 'DUNet': DUNet}
STAGES = ['downconv1', 'downconv2', 'rfconv', 'upconv1', 'upconv2']
OPERATIONS = {MyConv2d: 'convolution', MyDilatedConv2d: 'convolution', nn.MaxPool2d: 'max pool 2x2',
              nn.Upsample: 'upsample 2x2', nn.BatchNorm2d: 'batch norm', nn.ReLU: 'ReLU'}
PARAMETERS = {'weight': 'weights', 'bias': 'biases'}
SMOOTHING = 100.0  # pixels; a grey level of the training horses has thousands


def add_prior(model, table):
    """Give a network a prior: what a pixel's grey level alone says of its colour.

    It becomes the parameter `prior` of the network, and is learned with the others. From then
    on the network adds to a pixel's scores the entry of its grey level.

    Args:
        table: scores [E, K] of the colours at E grey levels from black to white.
    """
    model.prior = nn.Parameter(table)
    model.register_forward_hook(add_prior_scores)


def add_prior_scores(model, inputs, scores):
    grey, = inputs
    entries = len(model.prior)
    entry = (grey_levels(grey[:, 0]) * entries // NUM_LEVELS).clamp(0, entries - 1)
    return scores + F.embedding(entry, model.prior).movedim(-1, 1)


def log_frequencies(counts, entries=NUM_LEVELS):
    """A table for `add_prior`: how probable the training pictures make each colour, [E, K].

    Args:
        counts: `colour_counts`, [766, K]. If there are fewer entries, neighbouring levels share
            one. SMOOTHING more pixels, coloured as all pixels are, count at each entry.
    """
    entry = torch.arange(NUM_LEVELS, device=counts.device) * entries // NUM_LEVELS
    pooled = counts.new_zeros(entries, counts.shape[1]).index_add(0, entry, counts)
    overall = (counts.sum(dim=0) + 1) / (counts.sum() + counts.shape[1])
    pooled = pooled + SMOOTHING * overall
    return (pooled / pooled.sum(dim=1, keepdim=True)).log()


def receptive_field(layers):
    """How many input rows an output pixel depends on, and as many columns: the least and the most.

    They are counted backwards, from an output row to the input rows that it needs. How many there
    are depends on where the row lies in the 2x2 blocks of the poolings.

    Args:
        layers: the modules on the longest way, in the order of the data.
    """
    def side(row):
        low = high = row
        for layer in reversed(layers):
            if isinstance(layer, MyConv2d):
                low, high = low - layer.padding, high + layer.padding
            elif isinstance(layer, nn.MaxPool2d):
                low, high = 2 * low, 2 * high + 1
            elif isinstance(layer, nn.Upsample):
                low, high = low // 2, high // 2
        return high - low + 1

    sides = [side(row) for row in range(4)]
    return min(sides), max(sides)


def architecture(model, size=32):
    """What a network is made of: a dict for each operation, from the input on (part A.1).

    Args:
        size: side of the input picture.
    """
    rows, layers, channels = [], [], 1
    for stage, part in model.named_children():
        for layer in part if isinstance(part, nn.Sequential) else [part]:
            layers.append(layer)
            row = {'stage': stage, 'operation': OPERATIONS[type(layer)], 'inputs': channels}
            if isinstance(layer, MyConv2d):
                channels, row['inputs'], width, _ = layer.weight.shape
                row |= {'filter': f'{width}x{width}', 'filters': channels}
                if gap := getattr(layer, 'dilation', 0):
                    row['operation'] += f', dilation {gap}'
            size = size // 2 if isinstance(layer, nn.MaxPool2d) else size
            size = size * 2 if isinstance(layer, nn.Upsample) else size
            field = ' or '.join(map(str, sorted({*receptive_field(layers)})))
            rows.append(row | {'output': f'{channels}x{size}x{size}', 'receptive field': field}
                        | {PARAMETERS[name]: p.numel() for name, p in layer.named_parameters()})
    if hasattr(model, 'prior'):
        rows.append({'stage': 'prior', 'operation': 'table', 'weights': model.prior.numel()})
    return rows


def summary_table(model):
    """The layers of a network and the sums of their weights and biases, as a text to print."""
    rows = architecture(model)
    columns = ['stage', 'operation', 'inputs', 'filter', 'filters', 'output', 'weights', 'biases',
               'receptive field']
    total = {'stage': 'total'} | {name: sum(row.get(name, 0) for row in rows)
                                  for name in ('weights', 'biases')}
    lines = [columns] + [[f'{row.get(name, "")}' for name in columns] for row in [*rows, total]]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return '\n'.join('  '.join(map(str.ljust, line, widths)).rstrip() for line in lines)


def save_checkpoint(model, path, colours=None):
    """Save the weights as a plain state dict, on the CPU, for `torch.load(weights_only=True)`.

    What the weights do not tell goes along in the state dict's metadata, which torch ignores:
    the name of the model (a UNet's shapes are a DilatedUNet's too) and its colours [K, 3].
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
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the error says it all
        return torch.load(file, map_location='cpu', weights_only=True)


def read_checkpoint(path):
    """Read a state dict.

    Returns:
        Its tensors, less BatchNorm's counters, which nothing here uses; the name of its model
        and its colours [K, 3], or None where it does not tell, as the files of 2018 do not.

    Raises:
        InputError: the file is no state dict of this assignment.
    """
    with open(path, 'rb') as file:
        try:
            state = load_tensors(file)
            # A hostile file can hide methods behind attributes: `items`, and those that `detach` sheds.
            weights = {name: torch.detach(state[name]) for name in state
                       if not name.endswith('num_batches_tracked')}
        except Exception as e:  # a broken or hostile file can raise nearly anything
            raise InputError(f'{path}: not a checkpoint, which is the state dict of a network as '
                             'training saves it, or damaged') from e
    if not all(t.layout == torch.strided and t.device.type == 'cpu' and not t.is_nested
               and t.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
               and 0 < t.numel() * t.element_size() <= t.untyped_storage().nbytes()  # no claim too large
               and t.isfinite().all() for t in weights.values()):
        raise InputError(f'{path}: not all of its weights are finite numbers; train it again')
    ends = [weights.get(name) for name in ('downconv1.0.weight', 'finalconv.weight')]
    if not all(end is not None and end.ndim == 4 and end.shape[-1] % 2 for end in ends):
        raise InputError(f'{path}: not the weights of a network of this assignment')
    try:
        notes = getattr(state, '_metadata', {}).get('', {})
        saved_as = str(notes.get('model', '')) or None
        colours = np.array(notes['colours'], np.float32) if 'colours' in notes else None
    except Exception as e:
        raise InputError(f'{path}: its notes on model and colours are damaged') from e
    return weights, saved_as, colours if colours is None else check_colours(colours, path)


def load_model(make_model, path, kernel=None, num_filters=None):
    """Build the network of a checkpoint, one of ours or of the course.

    Args:
        make_model: `make_model(kernel, num_filters, num_colours)` builds it; the three sizes
            are read off the weights.
        path: a file that holds a state dict of that model.
        kernel, num_filters: what these sizes have to be, if the user said so.

    Returns:
        The network in eval mode, and its colours [K, 3] if the file has them, else None.

    Raises:
        InputError: the file is no such state dict, or has other sizes.
    """
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

    def fits(make):
        with torch.device('meta'):  # no memory for sizes that may be absurd
            model = build(make)
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()
                  if not name.endswith('num_batches_tracked')}
        return (saved_as in (None, type(model).__name__)
                and shapes == {name: tensor.shape for name, tensor in weights.items()})

    if not fits(make_model):
        owners = [name for name, make in MODELS.items() if fits(make)]
        if saved_as == 'RegressionCNN':
            owners = [saved_as]
        raise InputError(f'{path} belongs to another model: {" or ".join(owners)}' if owners else
                         f'{path} is damaged: its layers do not fit each other')
    if colours is not None and len(colours) != num_colours:
        raise InputError(f'{path} is damaged: it has {len(colours)} colours and scores {num_colours}')
    model = build(make_model)
    model.load_state_dict(weights, strict=False)
    with torch.no_grad():  # finite weights can be too large, or the square roots of negative ones
        if not model.eval()(torch.full((1, 1, 8, 8), 0.5)).isfinite().all():
            raise InputError(f'{path} is damaged: its network puts out no finite numbers')
    return model, colours


# ---------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------


def classification(scores, cats):
    """Pixel-wise cross entropy and accuracy of scores [N, K, H, W] for colours [N, 1, H, W]."""
    scores, cats = scores.movedim(1, -1).flatten(0, 2), cats.flatten().long()  # so it is faster
    return {'loss': F.cross_entropy(scores, cats),
            'accuracy': (scores.max(dim=1).indices == cats).float().mean()}  # argmax is slower


def psnr(mean_squared_error):
    """Peak signal-to-noise ratio in dB of pictures whose largest value is 1."""
    return -10 * math.log10(mean_squared_error)


def average(results):
    """Means over all pictures of (number of pictures, metrics) pairs, as plain floats."""
    count, totals = 0, {}
    for n, metrics in results:  # kept one by one, they would break up the free memory
        count += n
        totals = {name: totals.get(name, 0) + n * value for name, value in metrics.items()}
    return {name: (total / count).item() for name, total in totals.items()}


def train_epoch(model, optimizer, objective, loader, after_step, bfloat16=False):
    """One pass over the training pictures; returns the means of the metrics.

    Args:
        objective: `objective(outputs, targets)` gives the metrics of a batch, like
            `classification`; the network learns to make its 'loss' small.
        loader: the batches: grey pictures [N, 1, H, W] and what to predict, [N, ., H, W].
        after_step: called after each step.
        bfloat16: whether the network multiplies in bfloat16; weights and losses stay float32.
    """
    model.train()

    def steps():
        for x, y in loader:
            with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
                outputs = model(x)
            metrics = objective(outputs.float(), y)
            optimizer.zero_grad()
            metrics['loss'].backward()
            optimizer.step()
            after_step()
            yield len(x), {name: value.detach() for name, value in metrics.items()}

    return average(steps())


class AverageOfWeights:
    """Keeps in one network the average of the weights that another has while it learns.

    The average reaches over about the last 1/32 of the steps so far: polynomial decay, Shamir
    and Zhang (2013), Stochastic gradient descent for non-smooth optimization. Without it the
    weights keep jumping with every batch, and the validation accuracy with them.
    """

    ETA = 32

    def __init__(self, model, learner):
        self.means, self.news = ([tensor for tensor in network.state_dict().values()
                                  if tensor.is_floating_point()] for network in (model, learner))
        self.step = 0

    @torch.no_grad()
    def update(self):
        self.step += 1
        torch._foreach_lerp_(self.means, self.news, (self.ETA + 1) / (self.step + self.ETA))

    def state_dict(self):
        return {'step': self.step}

    def load_state_dict(self, state):
        self.step = state['step']


@torch.no_grad()
def run_validation_step(model, objective, grey, target, batch_size=100, see=lambda outputs: None):
    """The means of the metrics over the validation pictures, in eval mode.

    Args:
        see: is called with the outputs of each batch.
    """
    model.eval()
    loader = tqdm(batches((grey, target), batch_size), 'validating', math.ceil(len(grey) / batch_size),
                  leave=False, disable=None, delay=1)

    def results():
        for x, y in loader:
            outputs = model(x)
            see(outputs)
            yield len(x), objective(outputs, y)

    return average(results())


def baselines(counts, grey, cats):
    """Accuracies without a network: of the most frequent colour, and of that of each grey level.

    Args:
        counts: `colour_counts` of the training pictures.
        grey, cats: the validation pictures [N, 1, H, W] and their colours.
    """
    guesses = {'most_frequent_colour': counts.sum(dim=0).argmax(),
               'most_frequent_colour_of_grey_level': counts.argmax(dim=1)[grey_levels(grey)]}
    return {name: (guess == cats).float().mean().item() for name, guess in guesses.items()}


def judge(pictures, truth):
    """How far pictures are from the true ones, and how colourful they are: both by name.

    Args:
        pictures: arrays [N, 3, H, W] in [0, 1] by name.
        truth: such an array.
    """
    return {name: {'mean_squared_error': float(np.square(rgb - truth).mean()),
                   'colourfulness': colourfulness(rgb)} for name, rgb in pictures.items()}


def train(model, objective, train_set, valid_set, args, draw):
    """Train a network with Adam; after every epoch validate it, print the course's lines, save it.

    With weight decay it is AdamW: Loshchilov and Hutter (2019), Decoupled weight decay
    regularization. The one-cycle schedule raises the learning rate from 1/25 of its peak over
    the first three tenths of the steps and then lowers it to nearly nothing: Smith and Topin
    (2019), Super-convergence.

    The network ends up with the average of its last weights. Whatever happens, the history of
    the epochs done and their curve are written in the end.

    Beside the checkpoint lies, from the first epoch to the last, what --resume needs to go on as if
    nothing had happened: to the same bits, on the CPU.

    Args:
        objective: see `train_epoch`.
        train_set, valid_set: pairs of grey pictures and targets, on the network's device.
        args: the command line.
        draw: `draw(metrics, suffix)` draws what the network makes of the validation pictures.

    Raises:
        InputError: the loss is no longer finite; the checkpoint keeps the epoch before. Or
            --resume finds no interrupted run with the same settings.
        KeyboardInterrupt: after what was trained so far is saved.
    """
    learner = copy.deepcopy(model)
    weights = AverageOfWeights(model, learner)
    optimizer = torch.optim.AdamW(learner.parameters(), args.learn_rate,
                                  weight_decay=args.weight_decay, fused=True)
    steps = math.ceil(len(train_set[0]) / args.batch_size)  # an epoch
    scheduler = (OneCycleLR(optimizer, args.learn_rate, args.epochs * steps, cycle_momentum=False)
                 if args.schedule == 'onecycle' else ConstantLR(optimizer, factor=1))

    def after_step():
        weights.update()
        scheduler.step()

    bfloat16 = not args.float32 and multiplies_bfloat16(train_set[0].device)
    generator = torch.Generator().manual_seed(args.seed)
    run = {'model': model, 'learner': learner, 'weights': weights, 'optimizer': optimizer,
           'scheduler': scheduler}
    state_file = args.checkpoint.with_name(args.checkpoint.name + '.resume')
    history = resume(run, generator, state_file, args) if args.resume else []
    resumable = len(history)
    start = time.time() - (history[-1]['seconds'] if history else 0)
    try:
        for epoch in range(len(history) + 1, args.epochs + 1):
            label = f'Epoch [{epoch}/{args.epochs}]'
            loader = batches(train_set, args.batch_size, generator, args.augment)
            trained = train_epoch(learner, optimizer, objective,
                                  tqdm(loader, 'training', steps, leave=False, disable=None),
                                  after_step, bfloat16)
            say(args, f'{label}, Loss: {trained["loss"]:.{digits(trained)}f}, '
                      f'Time (s): {time.time() - start:.0f}')
            valid = run_validation_step(model, objective, *valid_set)
            say(args, f'{label}, {summary(valid)}, Time(s): {time.time() - start:.0f}')
            if not math.isfinite(trained['loss'] + valid['loss']):
                raise InputError(f'the loss is not finite in epoch {epoch}: try a smaller --learn_rate')
            save_checkpoint(model, args.checkpoint, args.colours)
            history.append({'epoch': epoch, 'seconds': round(time.time() - start, 3)}
                           | {f'train_{name}': value for name, value in trained.items()}
                           | {f'val_{name}': value for name, value in valid.items()})
            if epoch < args.epochs:
                save_state(run, generator, history, state_file, args)
                resumable = epoch
            if args.plot:
                draw(valid, f'_epoch{epoch:02d}')
    except (KeyboardInterrupt, BrokenPipeError):  # the latter where `| head` has seen enough
        if weights.step and all(mean.isfinite().all() for mean in weights.means):
            save_checkpoint(model, args.checkpoint, args.colours)
            print(f'interrupted: the weights so far are in {args.checkpoint}'
                  + f'; --resume goes on after epoch {resumable}' * bool(resumable), file=sys.stderr)
        raise
    finally:
        if history:
            save_history(history, args)
    state_file.unlink(missing_ok=True)


def settings(args):
    """All that decides what training ends with."""
    names = ['name', 'kernel', 'num_filters', 'prior', 'category', 'hold_out', 'augment', 'batch_size',
             'epochs', 'learn_rate', 'schedule', 'weight_decay', 'seed', 'float32']
    return {name: getattr(args, name) for name in names} | {
        'data': data_name(args), 'colours': None if args.colours is None else args.colours.tolist()}


def save_state(run, generator, history, path, args):
    """Save a run after an epoch, for --resume: networks, optimizer and so on, by name."""
    state = {name: part.state_dict() for name, part in run.items()}
    save_tensors(state | {'generator': generator.get_state(), 'history': history,
                          'settings': settings(args)}, path)


def resume(run, generator, path, args):
    """Bring a run into the state that `save_state` saved; returns the history of its epochs."""
    if not path.exists():
        raise InputError(f'{path} is missing, so the run was not interrupted, or is finished: without '
                         '--resume it begins anew')
    with open(path, 'rb') as file:
        try:
            state = load_tensors(file)
            for name, value in settings(args).items():
                if state['settings'][name] != value:
                    raise ValueError(f'the interrupted run had another {name}'
                                     + f', {state["settings"][name]}' * (name != 'colours'))
            for name, part in run.items():
                part.load_state_dict(state[name])
            generator.set_state(state['generator'])
            history = list(state['history'])
            if len(history) >= args.epochs or not all('seconds' in record for record in history):
                raise ValueError('its history is damaged')
            return history
        except Exception as e:  # a broken or hostile file can raise nearly anything
            raise InputError(f'{path}: cannot be resumed ({one_line(e)[:100]}); give the same flags as '
                             'before, or leave out --resume') from e


def save_history(history, args):
    """Write the history of a training as a table and as curves, loss and accuracy."""
    from matplotlib.figure import Figure

    table = [history[0].keys(), *(record.values() for record in history)]
    with whole_file(args.outdir / f'history_{args.name}.csv') as file:
        file.write(''.join(','.join(map(str, row)) + '\n' for row in table).encode())

    epochs = [record['epoch'] for record in history]
    measures = [name.removeprefix('val_') for name in history[0] if name.startswith('val_')]
    figure = Figure(figsize=(5 * len(measures), 3.6), layout='constrained')
    for axes, measure in zip(np.ravel(figure.subplots(1, len(measures))), measures):
        for part, label, style in (('train', 'training, while it learns', '--'),
                                   ('val', 'validation, averaged weights', '-')):
            values = [record[f'{part}_{measure}'] for record in history]
            last = f'{values[-1]:.1%}' if measure == 'accuracy' else f'{values[-1]:.{digits(measures)}f}'
            axes.plot(epochs, values, style, marker='.', label=f'{label} (last: {last})')
        if measure == 'accuracy':
            axes.yaxis.set_major_formatter('{x:.1%}')
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel='epoch', xlim=(0.5, len(epochs) + 0.5), title=measure)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(f'{args.name}, trained on {data_name(args)}'
                    + ' and the other classes' * ('classes' in args.augment))
    with whole_file(args.outdir / f'training_curve_{args.name}.png') as file:
        figure.savefig(file, dpi=120)


# ---------------------------------------------------------------------------
# Pictures of the user
# ---------------------------------------------------------------------------

IMAGE_CHECKPOINT = Path('weights/unet_prior_all_k3_f32.pkl')  # knows more than horses
IMAGE_SIZE = 128  # 64 leaves larger blots; both were looked at on photographs
ANNEALED = 0.38  # Zhang et al. (2016)


@torch.no_grad()
def colourize(grey, model, colours, temperature=ANNEALED, size=IMAGE_SIZE):
    """Colour a grey picture of any size; its brightness stays.

    The network sees it as small as the pictures that it knows. Of what it answers only the chroma
    is used, the difference of each channel from their mean: brought up to the full size, and made
    weaker where it would lead out of [0, 1].

    Args:
        grey: array [H, W] in [0, 1].
        model, colours: a trained network in eval mode, and its colours [K, 3].
        temperature: see `scores_to_rgb`.
        size: about the square root of the number of pixels that the network sees; a smaller
            picture is not enlarged.

    Returns:
        RGB, float32 [H, W, 3] in [0, 1]; the mean of its channels is `grey`.
    """
    grey = torch.from_numpy(np.asarray(grey, np.float32))[None, None]
    sides = grey.shape[2:]
    scale = min(1, size / math.sqrt(math.prod(sides)))
    longest = size**2 // 16  # in fours: a picture of 1 x N pixels becomes four wide
    small = F.interpolate(grey, [4 * min(max(1, round(side * scale / 4)), longest) for side in sides],
                          mode='bilinear', antialias=True)
    scores = model(small.to(model.finalconv.weight.device) * 255 / MAX_PIXEL).cpu()
    rgb = torch.from_numpy(scores_to_rgb(scores, colours, temperature))
    chroma = F.interpolate(rgb - rgb.mean(dim=1, keepdim=True), sides, mode='bicubic')
    room = torch.minimum((1 - grey) / chroma.amax(dim=1, keepdim=True).clamp(min=1e-6),
                         grey / (-chroma.amin(dim=1, keepdim=True)).clamp(min=1e-6))
    return (grey + chroma * room.clamp(max=1))[0].movedim(0, -1).clamp(0, 1).numpy()


def read_picture(path):
    """Read a picture file of any kind that Pillow knows, upright as its EXIF says.

    Returns:
        Its grey, the plain mean of red, green and blue, float32 [H, W] in [0, 1]; and its alpha
        channel, uint8 [H, W], or None.

    Raises:
        InputError: it is no picture, damaged, or absurdly large.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # if a file is damaged, the error is enough
            warnings.simplefilter('error', Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.mode == 'F':
                    raise InputError('numbers with fractions have no agreed white: save it with 8 or 16 bits')
                if image.format == 'EPS':  # Pillow would hand it to Ghostscript, if there is one
                    raise InputError('PostScript is a program')
                image = ImageOps.exif_transpose(image)
                if image.mode.startswith('I'):  # 16 bits, which convert() would cut off
                    return (np.asarray(image, np.float32) / 65535).clip(0, 1), None
                alpha = None
                if image.has_transparency_data:
                    image = image.convert('RGBA')
                    alpha = np.asarray(image.getchannel('A'))
                rgb = np.asarray(image.convert('RGB'))
    except FileNotFoundError:
        raise
    except Exception as e:  # a broken file can raise nearly anything
        raise InputError(f'{path}: not a picture that can be read ({one_line(e)})') from e
    return rgb.mean(axis=2, dtype=np.float32) / 255, alpha


def colour_files(args, model, colours):
    """--image: colour the user's pictures into args.outdir, one after another.

    A file that fails gets its line and does not stop the others, but the exit status is 1.
    """
    from PIL import Image

    check_writable(args.outdir / 'colour.png')
    inputs = {os.path.realpath(path) for path in args.image}
    status, taken = 0, set()
    for path in tqdm(args.image, 'colouring', leave=False, disable=None):
        name, i = path.stem, 1
        while name in taken:
            name, i = f'{path.stem}_{i + 1}', i + 1
        taken.add(name)
        try:
            grey, alpha = read_picture(path)
            rgb = colourize(grey, model, colours, args.temperature, args.image_size)
            pixels = (255 * rgb).round().astype(np.uint8)
            if alpha is not None:
                pixels = np.dstack([pixels, alpha])
            result = args.outdir / f'{name}_colour.png'
            if os.path.realpath(result) in inputs:
                raise InputError(f'{result} is a picture to colour itself: choose another --outdir')
            with whole_file(result) as file:
                Image.fromarray(pixels).save(file, 'PNG')
        except (InputError, OSError) as e:
            tqdm.write(complaint(e), file=sys.stderr)
            status = 1
        else:
            tqdm.write(f'Wrote {result}')
    sys.exit(status)


# ---------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------


def shipped(path):
    """The path itself, or the same one beside this script if the file is only there."""
    path = Path(path)
    return HERE / path if (HERE / path).exists() and not path.exists() else path


def make_folder(path):
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as e:
        raise InputError(f'{path} cannot be a folder, a file is in its way: choose another') from e


@contextmanager
def whole_file(path, trial=False):
    """Open a file to write bytes to; it takes its place at `path` only once it is complete.

    Args:
        trial: leave what is at `path`, and only find out if it could be written.

    Raises:
        InputError: it cannot be written, perhaps because the disk is full.
    """
    path = Path(os.path.realpath(path))  # a link goes on pointing to the file
    make_folder(path.parent)
    if path.exists() and not path.is_file():
        raise InputError(f'{path} is a folder or a device, not a file: choose another name')
    beside = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        with open(beside, 'wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if not trial:
            os.replace(beside, path)
    except OSError as e:
        raise InputError(f'{path} cannot be written: {e.strerror or one_line(e)}') from e
    finally:
        beside.unlink(missing_ok=True)


def check_writable(path):
    """Find out before long work, not after it, if a file cannot be written."""
    with whole_file(path, trial=True):
        pass


# ---------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------


def say(args, line):
    """Print a line, which says so if it comes from the sample pictures."""
    print(line + (' (sample)' if args.data == 'sample' else ''), flush=True)


def data_name(args):
    if args.data == 'sample':
        return 'sample pictures'
    return {None: 'CIFAR-10', HORSE: 'the horses of CIFAR-10'}.get(
        args.category, f'class {args.category} of CIFAR-10')


def category_name(args):
    """As it stands in the names of colour files."""
    return 'catall' if args.category is None else f'cat{args.category}'


def digits(metrics):
    """Decimals of a loss: four of a cross entropy, as in the course; squared errors are small."""
    return 4 if 'accuracy' in metrics else 5


def summary(metrics):
    """The course's words for validation metrics."""
    more = (f'Val Acc: {metrics["accuracy"]:.1%}' if 'accuracy' in metrics else
            f'PSNR: {psnr(metrics["loss"]):.2f} dB')
    return f'Val Loss: {metrics["loss"]:.{digits(metrics)}f}, {more}'


class Parser(argparse.ArgumentParser):
    """Takes a pasted en or em dash before a flag for hyphens; a wrong use gives one line."""

    def parse_args(self, argv=None):
        argv = sys.argv[1:] if argv is None else argv
        argv = [re.sub('^[–—][-–—]*(?=[a-z]([^a-z]|$))', '-', argument) for argument in argv]
        return super().parse_args([re.sub('^[–—][-–—]*(?=[a-z])', '--', argument)
                                   for argument in argv])

    def error(self, message):
        self.exit(2, f'error: {one_line(message)}; see {self.prog} --help\n')


def number(kind, low, high=math.inf, odd=False):
    """A type for argparse: an int or float from `low` to `high`."""
    def parse(text):
        value = kind(text)
        if not low <= value <= high or odd and value % 2 == 0:
            raise argparse.ArgumentTypeError(
                f'{text} is not {"an odd number" if odd else "a number"} from {low} to {high}')
        return value
    parse.__name__ = 'number'  # argparse says "invalid number value"
    return parse


def one_class_or_all(text):
    """A type for argparse: a class of CIFAR-10, or None for `all`."""
    if text not in ('all', *'0123456789'):
        raise argparse.ArgumentTypeError(f'{text} is not a number from 0 to 9, nor all')
    return None if text == 'all' else int(text)


def make_parser(description):
    """The flags that all scripts share."""
    parser = Parser(description=description)
    parser.add_argument('--checkpoint', type=Path, metavar='FILE', help='the weights of a network')
    parser.add_argument('-k', '--kernel', type=number(int, 1, 31, odd=True), metavar='K',
                        help='size of the filters (default: 3, or what the checkpoint has)')
    parser.add_argument('-f', '--num_filters', type=number(int, 1, 4096), metavar='F',
                        help='filters of the first stage (default: 32, or what the checkpoint has)')
    parser.add_argument('--data', metavar='WHERE',
                        help='a folder or archive with CIFAR-10 (default: data/, fetched on first '
                             'use), or `sample` for a few pictures that need no network')
    parser.add_argument('--category', type=one_class_or_all, default=HORSE, metavar='C',
                        help='which class of CIFAR-10, 0 to 9, or `all` (default: %(default)s, horses)')
    parser.add_argument('--outdir', type=Path, default=Path('outputs'), metavar='DIR',
                        help='where pictures and results go (default: outputs/)')
    return parser


def add_training_flags(parser):
    parser.add_argument('-b', '--batch_size', type=number(int, 1, 10**6), default=100, metavar='N',
                        help='pictures a training step (default: %(default)s)')
    parser.add_argument('-e', '--epochs', type=number(int, 1, 10**6), default=25, metavar='N',
                        help='passes over the training pictures (default: %(default)s)')
    parser.add_argument('-l', '--learn_rate', type=number(float, 1e-12, 10), default=0.001,
                        metavar='R', help='step size of Adam (default: %(default)s)')
    parser.add_argument('--schedule', choices=['constant', 'onecycle'], default='constant',
                        help='of the learning rate: onecycle raises it to -l and lowers it again '
                             '(default: %(default)s)')
    parser.add_argument('--weight_decay', type=number(float, 0, 10), default=0.0, metavar='D',
                        help='pull of the weights towards zero (default: %(default)s)')
    parser.add_argument('--augment', nargs='+', choices=[*MOVES, 'classes'], default=[],
                        metavar='WAY', help='vary the training pictures: any of %(choices)s; '
                        'classes trains on all ten (default: none)')
    parser.add_argument('--hold_out', type=number(int, 0, 10**6), default=0, metavar='N',
                        help='to choose settings: keep N training horses back and validate on '
                             'them, not on the test horses (default: %(default)s)')
    parser.add_argument('-s', '--seed', type=number(int, 0, 2**31), default=0, metavar='S',
                        help='the same seed gives the same numbers (default: %(default)s)')
    parser.add_argument('--float32', action='store_true',
                        help='train in float32 also where the hardware multiplies bfloat16')
    parser.add_argument('--gpu', action='store_true', help='use the GPU, if there is one')
    parser.add_argument('--plot', action='store_true', help='draw pictures after every epoch too')
    parser.add_argument('--resume', action='store_true',
                        help='go on with the interrupted run of the same flags and --checkpoint')
    parser.add_argument('--summary', action='store_true',
                        help='only print the layers of the network, and their sizes for a 32x32 picture')


def parse_args(argv=None):
    parser = make_parser('Train or evaluate a network that colours the horses of CIFAR-10.')
    add_training_flags(parser)
    parser.add_argument('-m', '--model', choices=MODELS, help='which network')
    parser.add_argument('--valid', action='store_true',
                        help='only evaluate the network in --checkpoint')
    parser.add_argument('-c', '--colours', metavar='FILE',
                        help='the colours (default: those of the checkpoint, or the '
                             f'{NUM_COLOURS} of the category in colour/)')
    parser.add_argument('--prior', type=number(int, 1, NUM_LEVELS), nargs='?', const=NUM_LEVELS,
                        default=0, metavar='E',
                        help='train with a table of how probable each colour is at each grey level, '
                             'which has E entries (default: %(const)s)')
    parser.add_argument('--temperature', type=number(float, 0, 100), metavar='T',
                        help='how scores become a colour: 0 takes the most likely one, 1 the mean, '
                             f'between them is annealed (default: 0; {ANNEALED} with --image)')
    parser.add_argument('--image', type=Path, nargs='+', metavar='FILE',
                        help='colour these pictures, with the network in --checkpoint (default: '
                             f'{IMAGE_CHECKPOINT})')
    parser.add_argument('--image_size', type=number(int, 4, 4096), default=IMAGE_SIZE, metavar='N',
                        help='the network sees them with about N x N pixels (default: %(default)s)')
    parser.add_argument('--kmeans', type=number(int, 2, MAX_COLOURS), metavar='K',
                        help='find K colours by k-means, write them into colour/, and stop')
    args = parser.parse_args(argv)
    if args.kmeans and (args.model or args.valid or args.image or args.colours or args.checkpoint):
        parser.error('--kmeans only finds colours: leave out --model, --valid, --image, --colours '
                     'and --checkpoint')
    if args.resume and (args.kmeans or args.valid or args.image):
        parser.error('--resume goes on with a training: leave out --kmeans, --valid and --image')
    if args.summary and (args.kmeans or args.valid or args.image or args.resume):
        parser.error('--summary only prints layers: leave out --kmeans, --valid, --image and --resume')
    if args.image and args.valid:
        parser.error('--image colours pictures, --valid evaluates: choose one of them')
    if args.temperature is None:
        args.temperature = ANNEALED if args.image else 0.0
    if args.image:
        args.model = args.model or 'UNet'
        args.checkpoint = args.checkpoint or IMAGE_CHECKPOINT
    if not (args.model or args.kmeans):
        parser.error('choose a network with --model CNN, UNet or DUNet')
    if args.valid and not args.checkpoint:
        parser.error('--valid evaluates the network in --checkpoint FILE, which is missing')
    return args


def choose_device(args):
    if args.gpu and not torch.accelerator.is_available():
        print('warning: no GPU was found, so the CPU is used', file=sys.stderr)
    elif args.gpu:
        return torch.accelerator.current_accelerator()
    return torch.device('cpu')


def multiplies_bfloat16(device):
    """Whether the hardware itself does, which makes training faster; otherwise it is slower."""
    if device.type == 'cpu':
        can = torch.cpu.get_capabilities()
        return bool(can.get('avx512_bf16') or can.get('amx_bf16'))
    return device.type == 'cuda' and torch.cuda.is_bf16_supported(including_emulation=False)


def choose_sizes(args):
    """Those of the handout, where the user did not say others."""
    args.kernel = args.kernel or 3
    args.num_filters = args.num_filters or 32


def prepare_training(args, make_model, file_name):
    """Fill in what a checkpoint would tell, and find out now if the results cannot be written.

    Raises:
        InputError: they cannot, or a file that is no older checkpoint of this model would be lost.
    """
    choose_sizes(args)
    file_name = f'{file_name}_k{args.kernel}_f{args.num_filters}.pkl'
    args.checkpoint = args.checkpoint or args.outdir / file_name
    check_writable(args.checkpoint)
    if args.checkpoint.exists() and args.checkpoint.stat().st_size:
        overwritten = 'would be overwritten: choose another name, or remove it'
        try:
            _, owner, _ = read_checkpoint(args.checkpoint)
        except InputError as e:  # a slip must not cost the user a picture or colours
            raise InputError(f'{args.checkpoint} is no checkpoint and {overwritten}') from e
        if owner not in (None, make_model.__name__):
            raise InputError(f'{args.checkpoint} belongs to another model, {owner}, and {overwritten}')
    torch.manual_seed(args.seed)


def choose_colours(args, num_colours=None, saved=None):
    """The colours of --colours, or of the checkpoint, or the shipped ones that are as many.

    Args:
        num_colours, saved: how many the checkpoint has, and which if it says.

    Raises:
        InputError: there are none, or --colours contradicts the checkpoint.
    """
    if saved is not None and args.colours is None:
        return saved
    path = shipped(colour_file(num_colours or NUM_COLOURS, category_name(args))
                   if args.colours is None else args.colours)
    if not path.exists():
        raise InputError(f'{path} is missing: name a file of {num_colours or "the"} colours with '
                         '--colours, or make one with --kmeans')
    colours = load_colours(path)
    if num_colours not in (None, len(colours)):
        raise InputError(f'the checkpoint has {num_colours} colours, {path} has {len(colours)}')
    if saved is not None and not np.allclose(saved, colours):
        raise InputError(f'the checkpoint was trained with other colours than {path}: leave out -c')
    return colours


def load_trained(args):
    """The network in --checkpoint, in eval mode, and its colours [K, 3]; notes if it has a prior."""
    args.checkpoint = shipped(args.checkpoint)
    model, saved = load_model(MODELS[args.model], args.checkpoint, args.kernel, args.num_filters)
    entries = len(getattr(model, 'prior', ()))
    if args.prior not in (0, entries):
        raise InputError(f'{args.checkpoint} has a prior of {entries} entries, not {args.prior}: '
                         'leave out --prior')
    args.prior = entries
    args.name = network_name(args)
    return model, choose_colours(args, len(model.finalconv.bias), saved)


def network_name(args):
    return args.model + '_prior' * bool(args.prior)


def find_colours(args):
    """--kmeans: find colours, write them, and print how far the pixels are from them."""
    path = colour_file(args.kmeans, 'sample' if args.data == 'sample' else category_name(args))
    check_writable(path)
    xs, ys = load_cifar10(args.data)[0]
    step = len(xs) // 5000 if args.category is None else 1  # as many pictures as one class has
    rgb, _ = process(xs[::max(1, step)], ys[::max(1, step)], category=args.category)
    colours = kmeans_colours(rgb, args.kmeans, args.seed)
    with whole_file(path) as file:
        np.save(file, colours)
    error = np.square(rgb - get_cat_rgb(get_rgb_cat(rgb, colours), colours)).sum(axis=1).mean()
    say(args, f'Wrote {path}: the mean squared distance of a pixel to its colour is {error:.5f}')


def run_network(args, model, objective, colours, file_name):
    """Train a network unless --valid only evaluates it; draw and judge what it makes of grey pictures.

    Args:
        colours: the array [K, 3] that the network chooses from; None if it predicts RGB itself.
        file_name: of the drawing, without .png.
    """
    check_writable(args.outdir / f'{file_name}.png')
    device = choose_device(args)
    model = model.to(device, memory_format=torch.channels_last)  # on CPUs the faster format

    def grey_and_target(rgb, grey):
        target = rgb
        if colours is not None:  # in parts and with few bytes a pixel: all ten classes are large
            target = np.concatenate([get_rgb_cat(rgb[i:i + 1000], colours).astype(np.int16)
                                     for i in range(0, len(rgb), 1000)])
        return [torch.from_numpy(array).to(device) for array in (grey, target)]

    def to_rgb(outputs):
        outputs = outputs.cpu()
        return (outputs.clamp(0, 1).numpy() if colours is None else
                scores_to_rgb(outputs, colours, args.temperature))

    train_pictures, valid_pictures = load_cifar10(args.data)
    if args.hold_out:
        train_pictures, valid_pictures = hold_out(train_pictures, args.hold_out, args.category)
    classes = 'classes' in args.augment and not args.valid
    train_rgb, train_grey = process(*train_pictures, category=args.category)
    all_pictures = process(*train_pictures, category=None) if classes else ()
    rgb, grey = process(*valid_pictures, category=args.category)
    del train_pictures, valid_pictures  # all ten classes, which are large
    train_set = grey_and_target(train_rgb, train_grey)
    del train_rgb, train_grey
    valid_set = grey_and_target(rgb, grey)
    counts = None if colours is None else colour_counts(*train_set, len(colours))
    if args.prior and not args.valid:
        add_prior(model, log_frequencies(counts, args.prior))
    if classes:
        train_set = grey_and_target(*all_pictures)

    @torch.no_grad()
    def draw(metrics, suffix=''):
        prediction = to_rgb(model.eval()(valid_set[0][:SHOWN]))
        draw_rows([('grey: what the network sees', grey[:SHOWN]), ('truth', rgb[:SHOWN]),
                   ('prediction', prediction),
                   ("prediction with the input's grey", put_grey_back(prediction, grey[:SHOWN]))],
                  args.outdir / f'{file_name}{suffix}.png',
                  f'{args.name}, {data_name(args)}: {summary(metrics)}')

    if not args.valid:
        train(model, objective, train_set, valid_set, args, draw)
    predictions = []
    metrics = run_validation_step(model, objective, *valid_set,
                                  see=lambda outputs: predictions.append(to_rgb(outputs)))
    draw(metrics)
    prediction = np.concatenate(predictions)
    pictures = {'grey': grey.repeat(3, axis=1), 'prediction': prediction,
                'grey_put_back': put_grey_back(prediction, grey), 'truth': rgb}
    report(args, metrics, judge(pictures, rgb),
           {} if colours is None else baselines(counts, *valid_set))


def report(args, metrics, pictures, baselines):
    """Print what was measured, the course's line last, and write it into a file."""
    results = {'model': args.name, 'data': data_name(args), 'hold_out': args.hold_out,
               'checkpoint': args.checkpoint.name,
               **{f'val_{name}': value for name, value in metrics.items()},
               'baseline_accuracies': baselines, 'pictures': pictures}
    with whole_file(args.outdir / f'metrics_{args.name}.json') as file:
        file.write(json.dumps(results, indent=2).encode() + b'\n')
    say(args, f'The results are in {args.outdir}')
    for name, measured in pictures.items():
        error = measured['mean_squared_error']
        near = f'mean squared error {error:.5f}, PSNR {psnr(error):.2f} dB, ' if error else ''
        say(args, f'{name.replace("_", " ").capitalize()}: {near}'
                  f'colourfulness {measured["colourfulness"]:.1f}')
    for name, accuracy in baselines.items():
        say(args, f'{name.replace("_", " ").capitalize()}: accuracy {accuracy:.1%}')
    say(args, summary(metrics))


def main():
    args = parse_args()
    if args.kmeans:
        return find_colours(args)
    if args.image:
        model, colours = load_trained(args)
        return colour_files(args, model.to(choose_device(args)), colours)
    if args.summary:
        if args.checkpoint:
            model, _ = load_trained(args)
        else:
            choose_sizes(args)
            num_colours = len(choose_colours(args))
            model = MODELS[args.model](args.kernel, args.num_filters, num_colours)
            if args.prior:
                add_prior(model, torch.zeros(args.prior, num_colours))
        return print(summary_table(model))
    if args.valid:
        model, colours = load_trained(args)
    else:
        args.name = network_name(args)
        prepare_training(args, MODELS[args.model], args.name.lower())
        args.colours = colours = choose_colours(args)  # they go into the checkpoint
        model = MODELS[args.model](args.kernel, args.num_filters, len(colours))
    run_network(args, model, classification, colours, f'eval_{args.name}')


def complaint(error):
    """The one line for something that a user can mend."""
    if isinstance(error, OSError) and error.filename:
        error = f'{error.filename}: {error.strerror}'
    return f'error: {one_line(error)}'


def run(main):
    """Run a script; what a user can cause ends in one line and an exit status, not a traceback."""
    if sys.stdout is None:  # closed by whoever called
        sys.stdout = open(os.devnull, 'w')
    try:
        sys.stdout.reconfigure(errors='backslashreplace')  # names that the terminal cannot show
        try:
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
    except (MemoryError, RuntimeError) as e:
        if isinstance(e, RuntimeError) and 'memory' not in str(e):
            raise
        sys.exit('error: there is not enough memory: try a smaller --num_filters, --image_size or '
                 '--batch_size')


if __name__ == '__main__':
    run(main)
