"""Image colourization as classification: colour the horses of CIFAR-10.

Programming assignment 2 of CSC321, University of Toronto, winter 2018. A network sees a grey picture and
chooses for each pixel one of K colours, which k-means found in the training pictures.

weights/unet_k3_f32.pkl chooses the right one of 24 colours for 60.3 % of the pixels of the 1,000 test horses;
the course's own weights did for 48.2 %. In 7 seconds, from the start of Python to the last picture, two cores
of an AMD EPYC reach 47.2 % (--model UNet --schedule onecycle -l 0.06 -b 8 -e 1, mean of three seeds).

    python colourization.py --model UNet --data sample -e 5                # try it, no download
    python colourization.py --help                                         # all else

The questions of the handout are answered above the line "The assignment ends here", but for these:

    A     regression              colour_regression.py
    B, C  classification, skips   the pictures: `draw_predictions`; the training curve: `draw_curves`
    E, F  activations, flips      activations.py; `augment` in load_data.py, outputs/writeup/experiments.py
"""

import argparse
import atexit
import copy
import errno
import gc
import glob
import io
import json
import math
import os
import re
import sys
import time
import unicodedata
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

sys.path.append(os.path.dirname(os.path.abspath(__file__)))  # which `python -P` leaves out
if not {'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT'} & os.environ.keys():
    os.environ['GOMP_SPINCOUNT'] = '20000'  # read when torch is imported: waiting threads yield
# Ours, which torch may leave to one thread each when it is imported; None where the system does not tell.
CORES = os.sched_getaffinity(0) if hasattr(os, 'sched_getaffinity') else None

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, OneCycleLR
from tqdm import tqdm

from load_data import (HORSE, MAX_COLOURS, MOVES, InputError, Recorded, batches, check_colours,
                       check_writable, hold_out, is_of, load_cifar10, load_colours, one_line, progress,
                       read_picture, reason, wanted, whole_file)

# SciPy, scikit-learn, matplotlib and Pillow take seconds to import, so the functions that need them do it.

# ---- Settings: of the course, unless a flag says otherwise ------------------------------------------

HERE = Path(__file__).resolve().parent
NUM_COLOURS = 24  # handout, part B
KERNEL, NUM_FILTERS = 3, 32  # of the course's weights: `*_k3_f32.pkl`
MAX_PIXEL = 256.0  # the course divides by 256, not by 255
NUM_LEVELS = 3 * 255 + 1  # of grey: sums of red, green and blue
SHOWN = 10  # the first validation pictures, which figures show
ETA = 32  # the weights are averaged over about the last 1/32 of the steps
SAMPLE = 'sample pictures'  # what lines and figures call --data sample


# ---- Colours ----------------------------------------------------------------------------------------


def kmeans_colours(rgb, num_colours, seed=0):
    """Find the K colours that fit pictures [N, 3, H, W] from `process` best, by k-means in RGB (part B).

    Of many pixels ten runs see a part; the best three go on with all. Float32 [K, 3], from dark to bright.
    """
    from sklearn.cluster import KMeans
    pixels = np.moveaxis(rgb, 1, -1).reshape(-1, 3)
    keys = (pixels * MAX_PIXEL).astype(np.uint32) @ np.uint32([1 << 16, 1 << 8, 1])
    _, first, counts = np.unique(keys, return_index=True, return_counts=True)
    if len(first) < num_colours:
        raise InputError(f'the pictures have {len(first)} colours, fewer than {num_colours}')
    some = pixels[::63] if len(pixels) > 10**6 else pixels  # an odd step, so that all columns take part
    seeds = progress(range(seed, seed + 10), 'k-means')  # one run alone is often a percent worse
    runs = [KMeans(num_colours, n_init=1, random_state=i).fit(some) for i in seeds]
    runs = [KMeans(num_colours, n_init=1, init=run.cluster_centers_).fit(pixels[first], sample_weight=counts)
            for run in sorted(runs, key=lambda run: run.inertia_)[:3]]
    colours = min(runs, key=lambda run: run.inertia_).cluster_centers_
    return colours[colours.sum(axis=1).argsort()].astype(np.float32)


def get_rgb_cat(xs, colours):
    """Nearest colour of each pixel: pictures [N, 3, H, W] -> colour numbers, int64 [N, 1, H, W]."""
    from scipy.cluster.vq import vq
    pixels = np.moveaxis(xs, 1, -1).reshape(-1, 3)
    numbers, _ = vq(pixels, colours.astype(np.float64))  # in double precision: some pixels are nearly ties
    return numbers.astype(np.int64).reshape(len(xs), 1, *xs.shape[2:])


def get_cat_rgb(cats, colours):
    """Colour of each pixel's colour number: [N, 1, H, W] -> pictures [N, 3, H, W]."""
    return np.moveaxis(colours[cats[:, 0]], -1, 1)


# ---- Pictures, and the sets that are made of them ---------------------------------------------------


def process(xs, ys, max_pixel=MAX_PIXEL, category=HORSE):
    """Select the pictures of one category, or 'all', and make them grey.

    Takes uint8 pictures [N, 3, 32, 32] and labels [N, 1]; returns RGB [M, 3, 32, 32] and grey [M, 1, 32, 32],
    its plain mean, float32 in [0, 1). Raises InputError if there are no such pictures.
    """
    rgb = xs[is_of(category, ys)].astype(np.float32)
    rgb /= max_pixel
    if len(rgb) == 0:
        raise InputError(f'no picture is of category {category}: choose another --category or --data')
    return rgb, rgb.mean(axis=1, keepdims=True)


def grey_levels(grey):
    """The sum of red, green and blue, 0 to 765, that grey pixels of any shape were made from."""
    return (grey * 3 * MAX_PIXEL).round().long()


def colour_counts(grey, numbers, num_colours):
    """How often each colour, 0 to K - 1, occurs at each grey level, [766, K], in pictures [N, 1, H, W]."""
    pairs = grey_levels(grey) * num_colours + numbers
    return torch.bincount(pairs.flatten(), minlength=NUM_LEVELS * num_colours).reshape(NUM_LEVELS, -1)


def load_sets(args, colours, device):
    """The training set, None with --valid, and the validation set that the flags name, on the device.

    Both are grey pictures and targets: numbers of the colours [K, 3], or RGB. Returns also the validation
    pictures, uint8 [N, 3, 32, 32], and `colour_counts` of the training pictures of --category, or None.
    """
    train_pictures, (xs, ys) = load_cifar10(args.data)
    if args.hold_out:
        train_pictures, (xs, ys) = hold_out(train_pictures, args.hold_out, args.category)
    train_set = counts = None
    trained_on = 'all' if 'classes' in args.augment else args.category
    if not args.valid:
        train_set = grey_and_target(*train_pictures, trained_on, colours, device)
    if colours is not None:
        parts = pieces(*train_pictures, args.category, colours, device)
        if train_set and trained_on == args.category:  # there they are already
            parts = zip(train_set[0].split(100), train_set[1].split(100))
        counts = sum(colour_counts(grey, numbers, len(colours)) for grey, numbers in parts)
    valid_set = grey_and_target(xs, ys, args.category, colours, device)
    return train_set, valid_set, xs[is_of(args.category, ys)], counts


def grey_and_target(xs, ys, category, colours, device):
    """All `pieces` as one set, which never has them twice in memory."""
    count, end = is_of(category, ys).sum(), 0
    for grey, target in pieces(xs, ys, category, colours, device):
        if end == 0:
            whole = grey.new_empty(count, *grey.shape[1:]), target.new_empty(count, *target.shape[1:])
        start, end = end, end + len(grey)
        whole[0][start:end], whole[1][start:end] = grey, target
    return whole


def pieces(xs, ys, category, colours, device):
    """Yield grey pictures and targets, about 100 at a time: as floats, all of them take much memory."""
    chosen = np.flatnonzero(is_of(category, ys))
    for some in np.array_split(chosen, len(chosen) // 100 + 1):
        rgb, grey = process(xs[some], ys[some], category=category)
        target = rgb if colours is None else get_rgb_cat(rgb, colours).astype(np.uint8)
        yield torch.from_numpy(grey).to(device), torch.from_numpy(target).to(device)


# ---- Layers -----------------------------------------------------------------------------------------


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
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2 * (dilation + 1))
        self.dilation = dilation

    def spread_weight(self):
        """The filters with their gaps, [O, I, s, s]: s = k + (k - 1) * dilation is the receptive field."""
        size = 2 * self.padding + 1
        spread = self.weight.new_zeros(self.weight.shape[0], self.weight.shape[1], size, size)
        spread[:, :, ::self.dilation + 1, ::self.dilation + 1] = self.weight
        return spread

    def forward(self, x):
        return F.conv2d(x, self.spread_weight(), self.bias, padding=self.padding)


# ---- Models: grey pictures [N, 1, H, W] -> scores [N, K, H, W]; H and W are multiples of 4 ----------


def down(in_channels, out_channels, kernel):
    """A stage that halves height and width: convolution, 2x2 max pooling, batch norm, ReLU."""
    return nn.Sequential(MyConv2d(in_channels, out_channels, kernel), nn.MaxPool2d(2),
                         nn.BatchNorm2d(out_channels), nn.ReLU())


class UpStage(nn.Sequential):
    """The layers of `up`, which computes batch norm and ReLU before it upsamples, for a quarter of the work.

    Upsampling copies pixels, which changes neither mean nor variance, so the function is the same. Only the
    running variance is larger: its n / (n - 1) is of fewer pixels.
    """

    def forward(self, x):
        return self[1](self[3](self[2](self[0](x))))  # convolution, batch norm, ReLU, upsampling

    def __getitem__(self, index):  # a slice is an ordinary Sequential
        return nn.Sequential(*self.children())[index]


def up(in_channels, out_channels, kernel):
    """A stage that doubles height and width: convolution, 2x2 upsampling, batch norm, ReLU."""
    return UpStage(MyConv2d(in_channels, out_channels, kernel), nn.Upsample(scale_factor=2),
                   nn.BatchNorm2d(out_channels), nn.ReLU())


def check_sides(x):
    """Raise ValueError if pictures [N, 1, H, W] cannot be halved twice."""
    height, width = x.shape[2:]
    if height % 4 != 0 or width % 4 != 0:
        raise ValueError(f'the sides of a picture must be multiples of 4, not {height} and {width}')


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
        check_sides(x)
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
        check_sides(x)
        down1 = self.downconv1(x)
        down2 = self.downconv2(down1)
        middle = self.rfconv(down2)
        up1 = self.upconv1(torch.cat([middle, down2], dim=1))
        up2 = self.upconv2(torch.cat([up1, down1], dim=1))
        if takes_channels_last(x.device):  # like up2
            x = x.to(up2.dtype, memory_format=torch.channels_last)
        return self.finalconv(torch.cat([up2, x], dim=1))


class DilatedUNet(UNet):
    """The UNet whose middle convolution leaves a gap of one pixel between its weights (part D).

    Yu and Koltun (2015), Multi-scale context aggregation by dilated convolutions.
    """

    middle = MyDilatedConv2d  # whose dilation is 1 by default


DUNet = DilatedUNet
MODELS = {'CNN': CNN, 'UNet': UNet, 'DUNet': DUNet}
STAGES = ['downconv1', 'downconv2', 'rfconv', 'upconv1', 'upconv2']
OPERATIONS = {MyConv2d: 'convolution', MyDilatedConv2d: 'convolution, dilation {0.dilation}',
              nn.MaxPool2d: 'max pool 2x2', nn.Upsample: 'upsample 2x2', nn.BatchNorm2d: 'batch norm',
              nn.ReLU: 'ReLU'}
PARAMETERS = {'weight': 'weights', 'bias': 'biases'}


def architecture(model, size=32):
    """What a network is made of: a dict for each operation, from the input on (parts A.1 and D.1)."""
    rows, channels = [], 1
    first = last = np.arange(4096)  # the input rows that each row sees; so many that the middle sees no edge
    for name, layer in model.named_modules():
        if type(layer) not in OPERATIONS:
            continue
        row = {'stage': name.split('.')[0], 'operation': OPERATIONS[type(layer)].format(layer),
               'inputs': channels}
        if isinstance(layer, MyConv2d):
            channels, inputs, height, width = layer.weight.shape
            first, last = np.roll(first, layer.padding), np.roll(last, -layer.padding)
            row |= {'inputs': inputs, 'filter': f'{height}x{width}', 'filters': channels}
        elif isinstance(layer, nn.MaxPool2d):
            size, first, last = size // 2, first[::2], last[1::2]
        elif isinstance(layer, nn.Upsample):
            size, first, last = size * 2, first.repeat(2), last.repeat(2)
        middle = len(first) // 2
        fields = sorted(set(last[middle:middle + 4] - first[middle:middle + 4] + 1))
        row |= {'output': f'{channels}x{size}x{size}', 'receptive field': ' or '.join(map(str, fields))}
        rows.append(row | {PARAMETERS[kind]: values.numel() for kind, values in layer.named_parameters()})
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


# ---- Training ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """How a network is trained (part F.2), mostly by flags of these names; --resume needs all the same."""

    network: str  # what lines and files call it
    pictures: str  # what lines and figures call them
    batch_size: int = 100
    epochs: int = 25
    learn_rate: float = 0.001
    schedule: str = 'constant'
    weight_decay: float = 0.0
    augment: tuple = ()
    hold_out: int = 0
    seed: int = 0
    float32: bool = False
    colours: list | None = None  # K times red, green, blue, for the checkpoint


def classification(scores, numbers):
    """Pixel-wise cross entropy and accuracy of scores [N, K, H, W] for colour numbers [N, 1, H, W]."""
    # The colours go last, where cross entropy is faster; and max is faster than argmax.
    scores, numbers = scores.movedim(1, -1).flatten(0, 2), numbers.flatten().long()
    return {'loss': F.cross_entropy(scores, numbers),
            'accuracy': (scores.max(dim=1).indices == numbers).float().mean()}


class AverageOfWeights:
    """Keeps in `model` the average of the weights of `learner`, which jump with every batch.

    Polynomial decay: Shamir and Zhang (2013), Stochastic gradient descent for non-smooth optimization.
    """

    def __init__(self, model, learner, step=0):
        self.means = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
        self.current = [tensor for tensor in learner.state_dict().values() if tensor.is_floating_point()]
        self.step = step  # how many went before

    def update(self):
        self.step += 1
        torch._foreach_lerp_(self.means, self.current, (ETA + 1) / (self.step + ETA))


def train_epoch(learner, average, optimizer, scheduler, objective, loader, bfloat16=False):
    """One pass over the training pictures; returns the means of the metrics over them.

    The loader gives batches of grey pictures [N, 1, H, W] and targets [N, ., H, W]; `objective(outputs,
    targets)` their metrics, like `classification`, and the network learns to make the 'loss' small. With
    `bfloat16` it multiplies in that; weights and losses stay float32.
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
        add_up(totals, metrics, len(x))
    return {name: (total / pictures).item() for name, total in totals.items()}


@torch.no_grad()
def add_up(totals, metrics, pictures):
    """Add the metrics of a batch, means over its number of pictures, to their totals by name."""
    for name, value in metrics.items():
        totals[name] = totals.get(name, 0) + pictures * value


def train(model, objective, train_set, valid_set, settings, checkpoint, outdir, resume=False,
          draw=lambda metrics, suffix: None):
    """Train a network with Adam; after every epoch validate it, print as the course does, save it.

    It ends up with the average of its last weights. With weight decay it is AdamW: Loshchilov and Hutter
    (2019), Decoupled weight decay regularization. The one-cycle schedule raises the learning rate from 1/25
    of its peak in three tenths of the steps, then lowers it: Smith and Topin (2019), Super-convergence.

    Sets are pairs (grey, target) on the network's device; objective: see `train_epoch`. The weights are saved
    in the checkpoint after every epoch and at Ctrl-C, what continues the training to the same bits in a file
    `.resume` beside it, until it ends; history_*.csv and training_curve_*.png in `outdir`. After the first
    epoch `draw(metrics, '_epoch01')` is called, and so on.

    Returns the history: a dict for each epoch, of its number, the seconds so far, the metrics. Raises
    InputError if the loss is no longer finite, or no interrupted run has these settings.
    """
    learner = copy.deepcopy(model)  # it is trained; `model`, the average of its weights, validated and saved
    optimizer = torch.optim.AdamW(learner.parameters(), settings.learn_rate,
                                  weight_decay=settings.weight_decay, fused=True)
    steps, epochs = math.ceil(len(train_set[0]) / settings.batch_size), settings.epochs
    scheduler = (OneCycleLR(optimizer, settings.learn_rate, epochs * steps, cycle_momentum=False)
                 if settings.schedule == 'onecycle' else ConstantLR(optimizer, factor=1))
    bfloat16 = not settings.float32 and multiplies_bfloat16(train_set[0].device)
    generator = torch.Generator().manual_seed(settings.seed)

    checkpoint, outdir = checkpoint.absolute(), outdir.absolute()  # the working folder may be removed
    stateful = {'model': model, 'learner': learner, 'optimizer': optimizer, 'scheduler': scheduler}
    state_file = Path(f'{checkpoint}.resume')
    history = load_state(state_file, settings, stateful, generator) if resume else []
    average = AverageOfWeights(model, learner, step=len(history) * steps)
    start = time.time() - (history[-1]['seconds'] if history else 0)
    try:
        for epoch in range(len(history) + 1, epochs + 1):
            loader = batches(train_set, settings.batch_size, generator, settings.augment)
            loader = progress(loader, 'training', steps)
            trained = train_epoch(learner, average, optimizer, scheduler, objective, loader, bfloat16)
            trained_after = time.time() - start
            valid = run_validation_step(model, objective, *valid_set)
            seconds = time.time() - start
            if not math.isfinite(trained['loss'] + valid['loss']):
                with suppress(OSError):  # resuming would end in the same way
                    state_file.unlink()
                raise InputError(f'the loss is not finite in epoch {epoch}: try a smaller --learn_rate')
            history.append({'epoch': epoch, 'seconds': round(seconds, 3),
                            **{f'train_{name}': value for name, value in trained.items()},
                            **{f'val_{name}': value for name, value in valid.items()}})
            save_checkpoint(model, checkpoint, settings.colours)
            if epoch < epochs:
                save_state(state_file, settings, stateful, generator, history)
            with only_warn():
                save_history(history, outdir / f'history_{settings.network}.csv')
                draw(valid, f'_epoch{epoch:02d}')
            print_result(f'Epoch [{epoch}/{epochs}], Loss: {trained["loss"]:.{digits(trained)}f}, '
                         f'Time (s): {trained_after:.0f}', settings.pictures)  # once it is saved
            print_result(f'Epoch [{epoch}/{epochs}], {metrics_line(valid)}, Time(s): {seconds:.0f}',
                         settings.pictures)
    except KeyboardInterrupt:
        save_interrupted(average, model, checkpoint, settings.colours, history)
        raise
    finally:
        if history:
            more = ' and the other classes' if 'classes' in settings.augment else ''
            curve = outdir / f'training_curve_{settings.network}.png'
            with only_warn(), figure_file(curve, 9, 3.4, dpi=130) as figure:
                draw_curves(history, figure, f'{settings.network}, trained on {settings.pictures}{more}')
    with suppress(OSError):
        state_file.unlink()
    return history


def save_history(history, path):
    """Write the history of `train` as a table, comma-separated."""
    with whole_file(path) as file:
        for row in (history[0].keys(), *(record.values() for record in history)):
            file.write((','.join(map(str, row)) + '\n').encode())


# ---- Evaluation -------------------------------------------------------------------------------------


def scores_to_rgb(scores, colours, temperature=0.0):
    """Colour of each pixel by what a network puts out: [N, K, H, W] -> array [N, 3, H, W] in [0, 1].

    The scores, a detached tensor on any device, belong to `colours` [K, 3]; if that is None, they are RGB
    themselves. Temperature 0 takes the likeliest colour; above it is the annealed mean of Zhang, Isola and
    Efros (2016), Colorful image colorization, equation 5; 1 is the plain mean.
    """
    scores = scores.float().cpu()
    if colours is None:
        return scores.clamp(0, 1).numpy()
    if temperature < 0.001:  # scores divided by less could overflow
        return get_cat_rgb(scores.argmax(dim=1, keepdim=True).numpy(), colours)
    with torch.autocast('cpu', enabled=False):  # the caller's, if there is one
        probabilities = (scores / temperature).softmax(dim=1)
        return torch.einsum('nkhw, kc -> nchw', probabilities, torch.from_numpy(colours)).numpy()


def put_grey_back(rgb, grey):
    """Pictures [N, 3, H, W] with the brightness of grey ones [N, 1, H, W], clipped to [0, 1]."""
    return np.clip(rgb - rgb.mean(axis=1, keepdims=True) + grey, 0, 1)


@torch.no_grad()
def validate(model, objective, grey, target, batch_size=100):
    """Yield the outputs of a network for each batch of validation pictures, and the batch's metrics."""
    model.eval()
    loader, steps = batches((grey, target), batch_size), math.ceil(len(grey) / batch_size)
    for x, y in progress(loader, 'validating', steps, delay=1):
        outputs = model(x)
        yield outputs, objective(outputs, y)


def run_validation_step(model, objective, grey, target, batch_size=100):
    """The means of the metrics over validation pictures, see `train_epoch`."""
    totals = {}
    for outputs, metrics in validate(model, objective, grey, target, batch_size):
        add_up(totals, metrics, len(outputs))
    return {name: (total / len(grey)).item() for name, total in totals.items()}


def evaluate(model, objective, valid_set, xs, colours=None, temperature=0.0):
    """Validate a network, and measure what it makes of the validation pictures (--valid).

    Takes grey pictures and targets on the network's device, and the true pictures, uint8 [N, 3, H, W];
    colours and temperature: see `scores_to_rgb`. Returns the metrics, and mean squared errors by name.
    """
    done, totals, errors = 0, {}, {}
    for outputs, metrics in validate(model, objective, *valid_set):  # all pictures would take much memory
        truth = xs[done:done + len(outputs)].astype(np.float32) / MAX_PIXEL
        prediction, grey = scores_to_rgb(outputs, colours, temperature), truth.mean(axis=1, keepdims=True)
        pictures = {'grey': grey, 'prediction': prediction, 'grey_put_back': put_grey_back(prediction, grey)}
        add_up(errors, {name: np.square(rgb - truth).mean() for name, rgb in pictures.items()}, len(truth))
        add_up(totals, metrics, len(truth))
        done += len(truth)
    metrics = {name: (total / done).item() for name, total in totals.items()}
    return metrics, {name: float(total / done) for name, total in errors.items()}


def baselines(counts, grey, numbers):
    """Accuracies on validation pictures of the most frequent colour, overall and of each grey level."""
    guesses = {'most_frequent_colour': counts.sum(dim=0).argmax(),
               'most_frequent_colour_of_grey_level': counts.argmax(dim=1)[grey_levels(grey)]}
    return {name: (guess == numbers).float().mean().item() for name, guess in guesses.items()}


def psnr(mean_squared_error):
    """Peak signal-to-noise ratio in dB of pictures whose largest value is 1; infinite without error."""
    return -10 * math.log10(mean_squared_error) if mean_squared_error else math.inf


def digits(metrics):
    """Decimals of a loss: four of a cross entropy, as in the course; squared errors are small."""
    return 4 if 'accuracy' in metrics else 5


def metrics_line(metrics):
    """Validation metrics, in the course's words where it has them."""
    second = (f'Val Acc: {metrics["accuracy"]:.1%}' if 'accuracy' in metrics else
              f'PSNR: {psnr(metrics["loss"]):.2f} dB')
    return f'Val Loss: {metrics["loss"]:.{digits(metrics)}f}, {second}'


# ==== The assignment ends here; what follows is what it needs ==========================================


# ---- A prior of the grey level, beyond the handout --------------------------------------------------


def add_prior(model, table):
    """Give a network a parameter `prior`: scores [E, K] of the colours in E entries, from black to white.

    For each pixel, the entry of its grey level is added to the network's own scores [N, K, H, W].
    """
    def add_entries(model, inputs, scores):
        entries = len(model.prior)  # the 766 levels are spread evenly over them
        entry = (grey_levels(inputs[0][:, 0]) * entries // NUM_LEVELS).clamp(0, entries - 1)
        return scores + F.embedding(entry, model.prior).movedim(-1, 1)
    model.prior = nn.Parameter(table)
    model.register_forward_hook(add_entries)


def log_frequencies(counts, entries=NUM_LEVELS):
    """A table for `add_prior` from `colour_counts`: smoothed log probabilities of the colours, [E, K]."""
    entry = torch.arange(NUM_LEVELS, device=counts.device) * entries // NUM_LEVELS
    overall = (counts.sum(dim=0) + 1) / (counts.sum() + counts.shape[1])
    pooled = counts.new_zeros(entries, counts.shape[1]).index_add(0, entry, counts)
    pooled = pooled + 100 * overall  # beside the thousands of pixels that a grey level has
    return (pooled / pooled.sum(dim=1, keepdim=True)).log()


# ---- Figures ----------------------------------------------------------------------------------------


def mosaic(pictures, columns):
    """Tile pictures [N, C, H, W] into one, with gaps of one pixel: [rows * (H + 1) - 1, ..., C]."""
    n, channels, height, width = pictures.shape
    rows = -(-n // columns)
    tiles = np.pad(pictures, [(0, rows * columns - n), (0, 0), (0, 1), (0, 1)], constant_values=1)
    tiles = tiles.reshape(rows, columns, channels, height + 1, width + 1)
    return tiles.transpose(0, 3, 1, 4, 2).reshape(rows * (height + 1), -1, channels)[:-1, :-1]


def import_matplotlib():
    """matplotlib, before long work and not after it; raises InputError if it cannot be imported."""
    first, backend = 'matplotlib' not in sys.modules, os.environ.pop('MPLBACKEND', None)
    try:
        import matplotlib.figure
    except Exception as e:  # a settings file can make it raise nearly anything
        raise InputError(f'matplotlib cannot be imported ({one_line(e)}): ' + (
            'pip install -r requirements.txt installs it' if isinstance(e, ImportError) else
            'mend its settings, or set MPLCONFIGDIR to a folder that can be written')) from e
    finally:
        if backend is not None:
            os.environ['MPLBACKEND'] = backend
    if first and backend:
        with suppress(ValueError):  # a notebook's backend may not be installed, and is not needed here
            matplotlib.rcParams['backend'] = backend
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
    """Draw (label, picture [H, W, 3 or 1] in [0, 1]) pairs into a PNG file `width` inches wide."""
    rows = [panels[i:i + columns] for i in range(0, len(panels), columns)]
    heights = [max(width / columns * p.shape[0] / p.shape[1] for _, p in row) + 0.3 for row in rows]
    with figure_file(path, width, sum(heights) + 0.3 * bool(title), dpi=150) as figure:
        grid = figure.add_gridspec(len(rows), columns, height_ratios=heights)
        for i, (label, picture) in enumerate(panels):
            axes = figure.add_subplot(grid[divmod(i, columns)])
            axes.imshow(picture, cmap='gray', vmin=0, vmax=1, interpolation='nearest')
            axes.set_title(label, fontsize=9)
            axes.axis('off')
        if title:
            figure.suptitle(title, fontsize=11)


def draw_predictions(rgb, prediction, path, title):
    """Draw validation pictures [N, 3, H, W] in [0, 1]."""
    grey = rgb.mean(axis=1, keepdims=True)
    rows = {'grey: what the network sees': grey, 'truth': rgb, 'prediction': prediction,
            "prediction with the input's grey": put_grey_back(prediction, grey)}
    draw_pictures([(label, mosaic(pictures, len(pictures))) for label, pictures in rows.items()], path, title)


def draw_curves(history, figure, title):
    """Draw the metrics of a history of `train` into a figure, side by side (C.2)."""
    epochs = [record['epoch'] for record in history]
    measures = [name.removeprefix('val_') for name in history[0] if name.startswith('val_')]
    figure.set_figwidth(4.5 * len(measures))
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
        axes.margins(y=0.25)  # room for the legend
        axes.legend()
    figure.suptitle(title)


# ---- Checkpoints ------------------------------------------------------------------------------------


def save_checkpoint(model, path, colours=None):
    """Save the weights as a plain state dict; its metadata, which torch ignores, names model and colours."""
    state = model.state_dict()
    for name in state:
        state[name] = state[name].cpu().contiguous()
    state._metadata['']['model'] = type(model).__name__
    if colours is not None:
        state._metadata['']['colours'] = np.asarray(colours).tolist()
    save_tensors(state, path)


def save_tensors(state, path):
    content = io.BytesIO()  # torch.save hides what goes wrong with a file
    torch.save(state, content)
    with whole_file(path) as file:
        file.write(content.getbuffer())


def save_interrupted(average, model, checkpoint, colours, history):
    """Save what Ctrl-C interrupted, but neither NaN nor, before an epoch is over, over another network."""
    if checkpoint.exists() and not history:
        warn(f'interrupted before the end of the first epoch: {checkpoint} is unchanged')
    elif average.step and all(mean.isfinite().all() for mean in average.means):
        save_checkpoint(model, checkpoint, colours)
        can_go_on = Path(f'{checkpoint}.resume').exists()
        warn(f'interrupted: the weights so far are in {checkpoint}'
             + '; --resume goes on after the last whole epoch' * can_go_on)


def load_tensors(path):
    """What `save_tensors` wrote, on the CPU; nothing in a file can run. Raises anything for others."""
    numbers = [(Recorded, name) for name in ('numpy.dtype', 'numpy.core.multiarray.scalar',
                                             'numpy._core.multiarray.scalar')]  # beside the weights
    with open(path, 'rb') as file, torch.serialization.safe_globals(numbers):
        start = file.read(15).decode('latin1')
        file.seek(0)
        try:
            return torch.load(file, map_location='cpu', weights_only=True, mmap=False)
        except Exception as e:  # torch says how one could have the file run its code
            raise ValueError(f'it starts with {start!a}') from e


def find_weights(value):
    """Weights by name, and their metadata, in what torch.load returned: a state dict, or a dict with one."""
    # A hostile file can hide methods behind attributes: `items`, and those that `detach` sheds.
    for part in (value, *dict.values(value)):
        if isinstance(part, dict):
            weights = {re.sub(r'\b(module|_orig_mod)\.', '', str(name)): tensor
                       for name, tensor in dict.items(part) if not str(name).endswith((
                           'num_batches_tracked', 'n_averaged', 'total_ops', 'total_params'))}  # counters
            if last := [name for name in weights if re.search(r'\bfinalconv\.', name)]:
                prefix = last[0].partition('finalconv.')[0]  # Lightning's is `model.`
                return ({name.removeprefix(prefix): finite_floats(torch.detach(tensor))
                         for name, tensor in weights.items()}, getattr(part, '_metadata', {}))
    raise ValueError('it has no finalconv.weight')


def finite_floats(tensor):
    """A tensor in float32 with memory of its own; ValueError unless it is finite floats, all in the file."""
    if not (tensor.is_floating_point() and tensor.nbytes <= tensor.untyped_storage().nbytes()
            and tensor.float().isfinite().all()):
        raise ValueError('its weights are not all finite floats')
    return tensor.float().clone(memory_format=torch.contiguous_format)


def read_checkpoint(path):
    """Weights by name; the name of their model and their colours [K, 3], or None."""
    weights, metadata = find_weights(load_tensors(path))
    notes = metadata.get('', {})
    colours = check_colours(np.array(notes['colours'], np.float32)) if 'colours' in notes else None
    return weights, str(notes.get('model', '')) or None, colours


def load_model(make_model, path, kernel=None, num_filters=None):
    """Build the network of a checkpoint, one of ours (found beside this script too) or of the course.

    `make_model(kernel, num_filters, num_colours)` builds it. Returns it in eval mode, and its colours [K, 3]
    or, where the file does not tell, None. Raises InputError if the file has no weights of that model, or
    other sizes than those that are given.
    """
    path = find_shipped(path)
    with wanted(path, 'weights of this assignment that torch.save wrote',
                'save model.state_dict(), or download the file itself'):
        weights, saved_as, colours = read_checkpoint(path)
        filters, _, _, side = weights['downconv1.0.weight'].shape
        for flag, given, found in (('-k', kernel, side), ('-f', num_filters, filters)):
            if given not in (None, found):
                raise InputError(f'{path} was trained with {flag} {found}: leave out {flag} {given}')
        num_colours = len(weights['finalconv.weight'])
        with torch.device('meta'):  # no memory for sizes that may be absurd
            model = make_model(side, filters, num_colours)
            if 'prior' in weights:
                add_prior(model, torch.empty(*weights['prior'].shape[:1], num_colours))
        if saved_as not in (None, name := type(model).__name__):
            raise InputError(f'{path} is a {saved_as:.60}, not a {name}: colour_regression.py is for a '
                             'RegressionCNN, the other scripts with their --model for the others')
        model.load_state_dict(weights, assign=True)
        with torch.no_grad():  # finite weights can be too large, or the square roots of negative ones
            scores = model.eval()(torch.full((1, 1, 8, 8), 0.5, dtype=torch.float32))
        if scores.shape[2:] != (8, 8) or not scores.isfinite().all():
            raise ValueError('its outputs are not finite, or of another size than the picture')
        if colours is not None and len(colours) != num_colours:
            raise ValueError(f'it has {len(colours)} colours, but {num_colours} outputs')
    return model, colours


def find_shipped(path):
    """The path itself, or the same one beside this script if the file is only there."""
    beside = HERE / path
    return beside if beside.exists() and not Path(path).exists() else Path(path)


def choose_colours(path, category, num_colours=NUM_COLOURS, saved=None, checkpoint=None):
    """The colours in the file of --colours, or those `saved` in the checkpoint, or the shipped ones."""
    if path is None and saved is not None:
        return saved
    found = find_shipped(f'colour/colour_kmeans{num_colours}_cat{category}.npy' if path is None else path)
    colours = load_colours(found)
    if checkpoint and (len(colours) != num_colours or saved is not None and not np.allclose(saved, colours)):
        raise InputError(f'{checkpoint} was trained with other colours than those of {found}: leave out -c, '
                         'or name its own')
    if checkpoint and path is None:
        warn(f'warning: {checkpoint} does not say which colours it was trained with: those of {found} are '
             'used; name its own with -c')
    return colours


def load_trained(args):
    """The network of --model and --checkpoint in eval mode, and its colours [K, 3]."""
    model, saved = load_model(MODELS[args.model], args.checkpoint, args.kernel, args.num_filters)
    entries, num_colours = len(getattr(model, 'prior', ())), len(model.finalconv.bias)
    if args.entries not in (0, entries):
        raise InputError(f'{args.checkpoint} has {entries or "no"} entries of a prior: leave out --prior')
    return model, choose_colours(args.colours, args.category, num_colours, saved, args.checkpoint)


def save_state(path, settings, stateful, generator, history):
    """Save a training after an epoch: its settings, and the state dicts of `stateful` objects by name."""
    state = {name: part.state_dict() for name, part in stateful.items()}
    save_tensors(state | {'settings': asdict(settings), 'generator': generator.get_state(),
                          'history': history, 'threads': torch.get_num_threads()}, path)


def load_state(path, settings, stateful, generator):
    """Bring a training into the state of an interrupted one that was the same; returns the history so far."""
    with wanted(path, 'interrupted run of these flags', 'give the same flags as before, or leave out '
                '--resume and choose another --checkpoint'):
        state = load_tensors(path)
        for name, value in asdict(settings).items():
            if state['settings'][name] != value:
                raise ValueError(f'it was begun with {name} {state["settings"][name]}')
        for name, part in stateful.items():
            part.load_state_dict(state[name])
        generator.set_state(state['generator'])
        if not threads_are_chosen():  # as many as before, for the same bits
            torch.set_num_threads(min(state['threads'], torch.get_num_threads()))
        return list(state['history'])


def check_checkpoint(path, make_model, resume, evaluate):
    """Find out before training if its checkpoint cannot be written, or would replace what must stay."""
    state_file = Path(f'{path}.resume')
    check_writable(path)
    check_writable(state_file)
    if resume:
        return
    if state_file.exists():
        raise InputError(f'{state_file} is of a run that was interrupted, or is still going on: continue it '
                         'with --resume, or choose another --checkpoint')
    if path.exists() and path.stat().st_size:
        try:
            _, owner, _ = read_checkpoint(path)
        except Exception:  # a slip must not cost the user a picture or colours
            owner = 'no network'
        if owner not in (None, make_model.__name__) or path.resolve().parent == HERE / 'weights':
            raise InputError(f'{path} is not replaced by the training of a {make_model.__name__}: choose '
                             f'another --checkpoint; to evaluate it, {evaluate} --checkpoint {path}')
        warn(f'note: {path} will be replaced after the first epoch; to evaluate it, stop this and '
             f'{evaluate} --checkpoint {path}')


# ---- Photographs of the user ------------------------------------------------------------------------

IMAGE_CHECKPOINT = Path('weights/unet_prior_all_k3_f64.pkl')  # of --image: it knows more than horses
IMAGE_SIZE = 224  # pixels a side of a photograph, as the network sees it
SATURATION = 1.4  # of photographs: a mean of likely colours is paler than each
RADIUS, FLATNESS = 2, 1e-3  # of the guided filter: pixels that the network sees, and a variance of the grey
BAND = 2**20  # pixels of a picture that are coloured at a time


def colourize(grey, model, colours, temperature=1.0, size=IMAGE_SIZE, saturation=SATURATION):
    """Colour a grey picture, an array [H, W] in [0, 1]: RGB, float32 [H, W, 3], with that grey as its mean.

    The network, in eval mode, sees it with about `size` x `size` pixels, and a half and a quarter of that a
    side. The mean chroma of its answers, each channel less their mean, is made `saturation` times as strong,
    enlarged along the edges of the grey, and made weaker where it would lead out of [0, 1]. Colours and
    temperature: see `scores_to_rgb`. Raises ValueError if it is no such picture.
    """
    if np.ndim(grey) != 2 or np.asarray(grey).dtype.kind != 'f' or not (
            np.size(grey) and np.min(grey) >= 0 and np.max(grey) <= 1):  # which is not so with NaN
        raise ValueError('a grey picture must be an array [H, W] of floats in [0, 1]: divide bytes by 255')
    rgb = np.empty((*np.shape(grey), 3), np.float32)
    for rows, band in colour_bands(grey, model, colours, temperature, size, saturation):
        rgb[rows] = band
    return rgb


def shrink(grey, size):
    """A grey picture [1, 1, H, W] with at most about size x size pixels, its sides multiples of 4."""
    scale = min(1, size / math.sqrt(math.prod(grey.shape[2:])))
    blocks = [round(side * scale / 4) for side in grey.shape[2:]]  # of 4x4 pixels
    blocks = np.clip(blocks, 1, max(1, size**2 // 16))  # a picture of 1 x N pixels becomes one block wide
    return F.interpolate(grey, (4 * blocks).tolist(), mode='bilinear', antialias=True)


def follow_edges(grey, chroma):
    """How chroma [1, 3, H, W] follows the grey [1, 1, H, W] around each pixel: its slope and offset there."""
    # the fast guided filter: He, Sun and Tang (2013), Guided image filtering; He and Sun (2015)
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
    small, slope, offset = shrink(grey, size), 0, 0
    views = small, shrink(small, size // 2), shrink(small, size // 4)  # large and small things look familiar
    for view in views:
        scores = model(view.to(model.finalconv.weight.device) * 255 / MAX_PIXEL)
        rgb = torch.from_numpy(scores_to_rgb(scores, colours, temperature))
        view_slope, view_offset = (saturation / len(views) * F.interpolate(x, small.shape[2:], mode='bicubic')
                                   for x in follow_edges(view, rgb - rgb.mean(dim=1, keepdim=True)))
        slope, offset = slope + view_slope, offset + view_offset
    slope, offset = (F.interpolate(x, (height, small.shape[3]), mode='bicubic')  # only higher: still small
                     for x in (slope, offset))
    for start in range(0, height, max(1, BAND // width)):
        rows = slice(start, start + max(1, BAND // width))
        lit = grey[:, :, rows]
        tint = (F.interpolate(slope[:, :, rows], lit.shape[2:], mode='bilinear') * lit
                + F.interpolate(offset[:, :, rows], lit.shape[2:], mode='bilinear'))
        room = torch.minimum((1 - lit) / tint.amax(dim=1, keepdim=True).clamp(min=1e-6),
                             lit / (-tint.amin(dim=1, keepdim=True)).clamp(min=1e-6))
        yield rows, (lit + tint * room.clamp(max=1))[0].movedim(0, -1).clamp(0, 1).numpy()


def colour_files(model, colours, args):
    """--image: `colourize` files into --outdir; a bad one does not stop the others, but the status is 1."""
    from PIL import Image
    paths = [Path(name) for path in args.image for name in (  # shells of Windows leave *.jpg to us
        [path] if os.path.lexists(path) else sorted(glob.glob(str(path))) or [path])]
    check_writable(args.outdir / f'{os.getpid()}_colour.png')  # hardly a file of the user
    status, taken = 0, set()
    for path in progress(paths, 'colouring'):
        name, i = path.stem, 1
        while (folded := unicodedata.normalize('NFC', name).casefold()) in taken:
            name, i = f'{path.stem}_{i + 1}', i + 1
        taken.add(folded)
        result = args.outdir / f'{name}_colour.png'
        try:
            picture = read_picture(path)
            if result.exists() and any(map(result.samefile, filter(os.path.exists, paths))):
                raise InputError(f'{result} is itself a picture to colour: choose another --outdir')
            pixels = np.empty((*picture.grey.shape, 3), np.uint8)
            for rows, band in colour_bands(picture.grey, model, colours, args.temperature,
                                           args.image_size, args.saturation):
                pixels[rows] = (255 * band).round()
            if picture.alpha is not None:
                pixels = np.dstack([pixels, picture.alpha])
            with whole_file(result) as file:  # Pillow's usual level takes twice as long, for hardly less
                Image.fromarray(pixels).save(file, 'PNG', compress_level=1)
        except (InputError, OSError) as e:
            warn(error_line(e))
            status = 1
        else:
            print_result(f'Wrote {result}')
    return status


# ---- Devices, threads and streams -------------------------------------------------------------------

STAT, QUOTA = Path('/proc/stat'), Path('/sys/fs/cgroup/cpu.max')  # what Linux tells of its cores


def busy_seconds():
    """Seconds that our cores have worked for others since the machine started; None if it is not told."""
    if CORES is None or not STAT.exists():
        return None
    counts = [line.split() for line in STAT.read_text().splitlines() if re.match(r'cpu\d', line)]
    ticks = sum(sum(map(int, count[1:4] + count[6:9])) for count in counts if int(count[0][3:]) in CORES)
    return ticks / os.sysconf('SC_CLK_TCK') - sum(os.times()[:4])


START = time.monotonic(), busy_seconds()  # when the program began


def threads_are_chosen():
    """Whether OMP_NUM_THREADS is a number of threads: torch takes no notice of anything else."""
    return re.fullmatch('0*[1-9][0-9]*', os.environ.get('OMP_NUM_THREADS', '').strip()) is not None


def choose_threads():
    """Have torch use as many threads as cores were free since the program began: shared ones slow it down."""
    if threads_are_chosen():
        return
    free = os.cpu_count()
    if START[1] is not None:
        busy = (busy_seconds() - START[1]) / (time.monotonic() - START[0])
        free = len(CORES) - busy
    elif hasattr(os, 'getloadavg'):
        free -= os.getloadavg()[0]
    try:
        share, period = map(int, QUOTA.read_text().split())  # of a container, in microseconds
        free = min(free, share / period) if share > 0 and period > 0 else free
    except (OSError, ValueError):  # there is none, or it says `max`
        pass
    threads, most = max(1, round(free)), torch.get_num_threads()
    if threads < most:
        torch.set_num_threads(threads)
        warn(f'note: {threads} of {most} threads are used, as other programs are at work; OMP_NUM_THREADS '
             'chooses another number')


def choose_device(gpu):
    if gpu and torch.accelerator.is_available():
        return torch.accelerator.current_accelerator()
    if gpu:
        warn('warning: no GPU was found, so the CPU is used')
    return torch.device('cpu')


def takes_channels_last(device: torch.device):
    """Whether channels_last is faster; on Apple's devices, gradients are wrong (pytorch issue 181411)."""
    return device.type in ('cpu', 'cuda')


def multiplies_bfloat16(device):
    """Whether the hardware multiplies bfloat16; only then is training in it faster."""
    if device.type == 'cpu':
        can = getattr(torch.cpu, 'get_capabilities', dict)()  # before torch 2.11 it is not known
        return can.get('avx512_bf16', False) or can.get('amx_bf16', False)
    return device.type == 'cuda' and torch.cuda.is_bf16_supported(including_emulation=False)


def print_result(line, pictures=''):
    """Print a line, with '(sample)' at its end if the pictures are those; if it cannot be, end the run."""
    try:
        tqdm.write(f'{line} (sample)' if pictures == SAMPLE else line)
        sys.stdout.flush()
    except OSError as e:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python tries it again at its end
        if e.errno in (errno.EPIPE, errno.EINVAL):  # whoever read it has closed it; the latter on Windows
            sys.exit(1)
        raise InputError(f'standard output cannot be written ({reason(e)}): have it go elsewhere') from e


def warn(line):
    """Print a line on standard error; where that is full, the work goes on without."""
    with suppress(OSError):
        tqdm.write(line, file=sys.stderr)


@contextmanager
def only_warn():
    """Only warn if a table or a picture cannot be written: that must not end a training."""
    try:
        yield
    except InputError as e:
        warn(f'warning: {one_line(e)}')


def error_line(error):
    """The one line for something that a user can mend."""
    if isinstance(error, OSError) and error.filename:
        error = f'{error.filename}: {error.strerror}'
    return f'error: {one_line(error)}'


def run(main):
    """Run a script; errors that a user can cause end in one line and an exit status, not a traceback."""
    gc.set_threshold(100_000)  # imports make little garbage, and looking for it takes half a second
    atexit.register(gc.freeze)  # and another half at the end, among what goes away anyhow
    sys.stdout = sys.stdout or open(os.devnull, 'w')  # closed by whoever called, as in pythonw
    sys.stderr = sys.stderr or open(os.devnull, 'w')
    try:
        if hasattr(sys.stdout, 'reconfigure'):  # notebooks have other streams
            sys.stdout.reconfigure(errors='backslashreplace')  # names that the terminal cannot show
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (InputError, OSError) as e:
        sys.exit(error_line(e))
    except ImportError as e:
        sys.exit(f'error: {one_line(e)}: pip install -r requirements.txt installs all that is needed')
    except (MemoryError, RuntimeError) as e:
        if not isinstance(e, (MemoryError, torch.OutOfMemoryError)) and not re.search(
                'allocate memory|not enough memory|out of memory', str(e)):
            raise
        sys.exit('error: there is not enough memory: close other programs, or try a smaller --num_filters, '
                 '--image_size or --batch_size')


# ---- What the commands do ---------------------------------------------------------------------------


def names(args, model=None):
    """What lines and files call the network of --model, and the pictures of --data and --category."""
    network = f'{args.model}_prior' if hasattr(model, 'prior') else args.model
    known = {'all': 'CIFAR-10', HORSE: 'the horses of CIFAR-10'}
    pictures = known.get(args.category, f'category {args.category} of CIFAR-10')
    return network, SAMPLE if args.data == 'sample' else pictures


def find_colours(args):
    """--kmeans: find colours, write them, and print how far the pixels are from them."""
    named = 'sample' if args.data == 'sample' else f'cat{args.category}'
    path = f'colour/colour_kmeans{args.kmeans}_{named}.npy'
    check_writable(path)
    xs, ys = load_cifar10(args.data)[0]
    step = max(1, len(xs) // 5000) if args.category == 'all' else 1  # as many pictures as one category has
    rgb, _ = process(xs[::step], ys[::step], category=args.category)
    colours = kmeans_colours(rgb, args.kmeans, args.seed)
    with whole_file(path) as file:
        np.save(file, colours)
    distance = np.square(rgb - get_cat_rgb(get_rgb_cat(rgb, colours), colours)).sum(axis=1).mean()
    print_result(f'Wrote {path}: the mean squared distance of a pixel to its colour is {distance:.5f}',
                 names(args)[1])


def train_and_evaluate(model, objective, args, colours=None):
    """The work of two scripts: train a network unless --valid says otherwise, evaluate it, draw, report."""
    network, pictures = names(args, model)
    drawing = 'regression_output' if colours is None else f'eval_{network}'
    check_writable(args.outdir / f'{drawing}.png')
    import_matplotlib()
    device = choose_device(args.gpu)
    layout = torch.channels_last if takes_channels_last(device) else torch.preserve_format
    model = model.to(device, memory_format=layout)
    train_set, valid_set, xs, counts = load_sets(args, colours, device)
    if not args.resume:  # which takes as many threads as before
        choose_threads()

    @torch.no_grad()
    def draw(metrics, suffix=''):
        prediction = scores_to_rgb(model(valid_set[0][:SHOWN]), colours, args.temperature).clip(0, 1)
        draw_predictions(xs[:SHOWN].astype(np.float32) / MAX_PIXEL, prediction,
                         args.outdir / f'{drawing}{suffix}.png',
                         f'{network}, {pictures}: {metrics_line(metrics)}')

    about = {'network': network, 'pictures': pictures,
             'colours': None if colours is None else colours.tolist()}
    if not args.valid:
        if hasattr(model, 'prior'):
            model.prior.data = log_frequencies(counts, len(model.prior))
        flags = {flag: value for flag, value in vars(args).items() if flag in Settings.__annotations__}
        settings = Settings(**flags | about | {'augment': sorted(set(args.augment))})
        train(model, objective, train_set, valid_set, settings, args.checkpoint, args.outdir, args.resume,
              **{'draw': draw} if args.plot else {})
    train_set = None  # evaluation can use its memory
    accuracies = {} if colours is None else baselines(counts, *valid_set)
    metrics, errors = evaluate(model, objective, valid_set, xs, colours, args.temperature)
    draw(metrics)
    report(args, model, about, metrics, errors, accuracies)


def report(args, model, about, metrics, errors, accuracies):
    """Print what was measured, the course's line last, and write it into metrics_*.json."""
    say, colours = partial(print_result, pictures=about['pictures']), about['colours']
    num_filters, _, _, kernel = model.downconv1[0].weight.shape
    results = {'model': about['network'], 'kernel': kernel, 'num_filters': num_filters,
               'data': about['pictures'], 'prior': len(getattr(model, 'prior', ())), 'colours': colours,
               'checkpoint': args.checkpoint.name, 'seed': None if args.valid else args.seed,
               'hold_out': args.hold_out, 'threads': torch.get_num_threads(), 'temperature': args.temperature,
               **{f'val_{name}': value for name, value in metrics.items()}, 'baseline_accuracies': accuracies,
               'pictures': {name: {'mean_squared_error': error} for name, error in errors.items()}}
    with whole_file(args.outdir / f'metrics_{about["network"]}.json') as file:
        file.write(json.dumps(results, indent=2).encode() + b'\n')
    say(f'The results are in {args.outdir}')
    for name, error in errors.items():
        name = name.replace('_', ' ').capitalize()
        say(f'{name}: mean squared error {error:.5f}, PSNR {psnr(error):.2f} dB')
    for name, accuracy in accuracies.items():
        say(f'{name.replace("_", " ").capitalize()}: accuracy {accuracy:.1%}')
    say(metrics_line(metrics))
    if colours and not metrics['loss'] <= math.log(len(colours)):
        why = (f'{args.checkpoint} may have been trained with other colours (-c), or with its skip '
               'connections in another order' if args.valid else 'try a smaller --learn_rate')
        warn(f'warning: the loss is above that of guessing, ln {len(colours)} = '
             f'{math.log(len(colours)):.4f}: {why}')


# ---- Command line -----------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Reads pasted dashes of any kind before a flag as hyphens; wrong usage ends in one line."""

    def __init__(self, text):
        description, _, examples = text.partition('\n\n')
        super().__init__(description=description, epilog=examples, usage='%(prog)s [options]',
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def parse_args(self, argv=None):
        words = sys.argv[1:] if argv is None else argv
        dashes = '−' + ''.join({c for c in ''.join(words) if unicodedata.category(c) == 'Pd'} - {'-'})
        words = [re.sub(f'^[{dashes}][-{dashes}]*(?=[a-z]{{2}})', '--', word) for word in words]
        return super().parse_args([re.sub(f'^[{dashes}][-{dashes}]*(?=[a-z])', '-', word) for word in words])

    def print_help(self, file=None):
        print_result(self.format_help())

    def error(self, message):
        self.exit(2, f'error: {one_line(message)}; see {self.prog} --help\n')


def number_type(kind, low, high=math.inf):
    """A type for argparse: an int or float from `low` to `high`."""
    def parse(text):
        if not low <= kind(text) <= high:
            raise ValueError
        return kind(text)
    parse.__name__ = f'{"whole " if kind is int else ""}number from {low} to {high}'  # for argparse's message
    return parse


def user_path(text):
    """A path of the command line: shells leave the ~ of --outdir=~/x to the program."""
    return Path(os.path.expanduser(text))


def add_network_flags(flag):
    """The flags of all scripts that say which network; `flag` is add_argument of a group."""
    flag('--checkpoint', type=user_path, metavar='FILE',
         help='file of its weights; a training saves them there, by default in --outdir')
    flag('-k', '--kernel', type=int, choices=range(1, 32, 2), metavar='K',
         help=f'odd width of the filters (default: {KERNEL}, or what the checkpoint has)')
    flag('-f', '--num_filters', type=number_type(int, 1, 4096), metavar='F',
         help=f'filters of the first stage (default: {NUM_FILTERS}, or what the checkpoint has)')


def add_file_flags(flag):
    """The flags of all scripts that say which pictures, and where results go."""
    flag('--data', type=os.path.expanduser, metavar='WHERE', help='a folder or archive with CIFAR-10 '
         '(default: data/, downloaded on first use), or `sample`: a few pictures that need no download')
    flag('--category', type=lambda text: int(text) if text.isdecimal() else text, default=HORSE, metavar='C',
         choices=['all', *range(10)], help='of CIFAR-10, 0 to 9, or `all` (default: %(default)s, horses)')
    flag('--outdir', type=user_path, default=Path('outputs'), metavar='DIR',
         help='folder for pictures and results (default: outputs/)')


def add_training_flags(parser):
    """The `Settings` of a training (part F.2), and what goes with them."""
    parser.set_defaults(**asdict(Settings('', '')))
    flag, count = parser.add_argument_group('training').add_argument, number_type(int, 1, 10**6)
    flag('-b', '--batch_size', type=count, metavar='N', help='pictures in a step (default: %(default)s)')
    flag('-e', '--epochs', type=count, metavar='N', help='passes over the pictures (default: %(default)s)')
    flag('-l', '--learn_rate', type=number_type(float, 1e-12, 10), metavar='R',
         help='learning rate of Adam (default: %(default)s)')
    flag('--schedule', choices=['constant', 'onecycle'],
         help='learning-rate schedule; onecycle rises to -l, then falls to almost 0 (default: %(default)s)')
    flag('--weight_decay', type=number_type(float, 0, 10), metavar='D',
         help='weight decay of AdamW (default: %(default)s)')
    flag('--augment', nargs='+', action='extend', choices=[*MOVES, 'classes'], default=[], metavar='WAY',
         help='change the training pictures at random: any of %(choices)s; classes adds those of all ten '
         'categories (default: none)')
    flag('--hold_out', type=number_type(int, 0, 10**6), metavar='N', help='to choose settings: '
         'validate on N of the training pictures, not on the test pictures (default: %(default)s)')
    flag('-s', '--seed', type=number_type(int, 0, 2**31), metavar='S',
         help='the same one gives the same numbers (default: %(default)s)')
    flag('--float32', action='store_true', help='not in bfloat16 where the hardware multiplies that')
    flag('--gpu', action='store_true', help='use the GPU; without one, the CPU')
    flag('--plot', action='store_true', help='also draw pictures after every epoch')


def parse_args(argv=None):
    """Read the command line of colourization.py, and fill in what depends on other flags."""
    parser = Parser("""Train or evaluate a network that colours the horses of CIFAR-10.

examples:
  python colourization.py --model UNet --data sample -e 5          try it, no download
  python colourization.py --model UNet --checkpoint weights/unet_k3_f32.pkl --valid
  python colourization.py --image photo.jpg                        colour your own picture""")
    group = parser.add_argument_group('what to do')
    group.add_argument('-m', '--model', choices=MODELS, help='the network (--image has one, --kmeans needs '
                       'none); it is trained, then evaluated, unless one of these says otherwise:')
    flag = group.add_mutually_exclusive_group().add_argument
    flag('--valid', action='store_true', help='only evaluate the network in --checkpoint')
    flag('--resume', action='store_true', help='continue the interrupted training of the same flags')
    flag('--summary', action='store_true', help='only print the layers of the network, and their sizes')
    flag('--image', type=user_path, nargs='+', action='extend', metavar='FILE',
         help=f'colour these pictures (default --checkpoint: {IMAGE_CHECKPOINT})')
    flag('--kmeans', type=number_type(int, 2, MAX_COLOURS), metavar='K',
         help='only find K colours by k-means and write them into colour/')
    flag = parser.add_argument_group('the network').add_argument
    add_network_flags(flag)
    flag('-c', '--colours', type=user_path, metavar='FILE', help='its colours (default: those of the '
         f'checkpoint, or the {NUM_COLOURS} of the category in colour/)')
    flag('--prior', type=number_type(int, 1, NUM_LEVELS), nargs='?', const=NUM_LEVELS, default=0, metavar='E',
         dest='entries', help='train it with a table of how probable each colour is at each grey level, of '
         'E entries (without E: %(const)s)')
    flag('--temperature', type=number_type(float, 0, 100), default=0.0, metavar='T', help='how scores become '
         'a colour: 0 takes the likeliest one, 1 the mean; in between, a blend (default: 0; 1 with --image)')
    add_training_flags(parser)
    flag = parser.add_argument_group('your photographs').add_argument
    flag('--image_size', type=number_type(int, 4, 1024), default=IMAGE_SIZE, metavar='N', help='the network '
         'sees them at about N x N pixels, and at a half and a quarter of N (default: %(default)s)')
    flag('--saturation', type=number_type(float, 0, 100), default=SATURATION, metavar='S',
         help='colours S times as strong as those of the network (default: %(default)s)')
    add_file_flags(parser.add_argument_group('data and results').add_argument)
    args = parser.parse_args(argv)
    if args.image:  # it has defaults of its own
        parser.set_defaults(model='UNet', checkpoint=IMAGE_CHECKPOINT, temperature=1.0)
        args = parser.parse_args(argv)
    if args.kmeans and any([args.model, args.colours, args.checkpoint, args.hold_out]):
        parser.error('--kmeans only finds colours: leave out --model, --colours, --checkpoint, --hold_out')
    if not (args.model or args.kmeans):
        parser.error('choose a network with --model CNN, UNet or DUNet')
    if args.valid and not args.checkpoint:
        parser.error('--valid needs a network: name it with --checkpoint FILE')
    if not (args.checkpoint or args.kmeans or args.summary):
        args.checkpoint = default_checkpoint(args, f'{args.model.lower()}{"_prior" if args.entries else ""}')
    return args


def default_checkpoint(args, name):
    return args.outdir / f'{name}_k{args.kernel or KERNEL}_f{args.num_filters or NUM_FILTERS}.pkl'


def main():
    args = parse_args()
    if args.kmeans:
        return find_colours(args)
    if args.valid or args.image or (args.summary and args.checkpoint):
        model, colours = load_trained(args)
    else:
        if not args.summary:
            check_checkpoint(args.checkpoint, MODELS[args.model], args.resume, 'add --valid')
        colours = choose_colours(args.colours, args.category)
        torch.manual_seed(args.seed)
        model = MODELS[args.model](args.kernel or KERNEL, args.num_filters or NUM_FILTERS, len(colours))
        if args.entries:
            add_prior(model, torch.zeros(args.entries, len(colours)))  # until the pictures are counted
    if args.summary:
        return print_result(summary_table(model))
    if args.image:
        sys.exit(colour_files(model.to(choose_device(args.gpu)), colours, args))
    train_and_evaluate(model, classification, args, colours)


if __name__ == '__main__':
    run(main)
