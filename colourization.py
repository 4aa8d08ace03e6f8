"""Image colourization as classification: colour the horses of CIFAR-10.

Programming assignment 2 of CSC321, University of Toronto, winter 2018. A network sees a grey picture and
chooses for each pixel one of K colours, which k-means found in the training pictures.

weights/unet_k3_f32.pkl chooses the right one of 24 colours for 60.3 % of the pixels of the 1,000 test horses;
the course's own weights did for 48.2 %. In 7 seconds, from the start of Python to the last picture, two cores
of an AMD EPYC reach 47.2 % (--model UNet --schedule onecycle -l 0.06 -b 8 -e 1, mean of three seeds).

    python colourization.py --model UNet --data sample -e 5                # try it, no download
    python colourization.py --model UNet --checkpoint unet_k3_f32.pkl      # train
    python colourization.py --help                                         # all else

The assignment comes first, from settings to evaluation. Below the line "The assignment ends here" is what it
needs: a prior for the networks, figures, checkpoints, photographs, threads and streams, the command line.

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
"""

import argparse
import atexit
import copy
import errno
import functools
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
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

sys.path.append(os.path.dirname(os.path.abspath(__file__)))  # which `python -P` leaves out
if not {'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT'} & os.environ.keys():
    os.environ['GOMP_SPINCOUNT'] = '20000'  # read when torch is imported: waiting threads yield

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, OneCycleLR
from tqdm import tqdm

from load_data import (HORSE, MAX_COLOURS, MOVES, InputError, batches, check_colours, check_writable,
                       hold_out, is_of, load_cifar10, load_colours, one_line, read_picture,
                       what_it_is_instead, whole_file)

# SciPy, scikit-learn, matplotlib and Pillow take seconds to import, so the functions that need them do it.

# ---- Settings: of the course, unless a flag says otherwise ------------------------------------------

HERE = Path(__file__).resolve().parent
NUM_COLOURS = 24  # handout, part B
KERNEL, NUM_FILTERS = 3, 32  # of the course's weights: `*_k3_f32.pkl`
MAX_PIXEL = 256.0  # the course divides by 256, not by 255
SHOWN = 10  # the validation pictures that every figure shows
KMEANS_RESTARTS = 10  # one run alone often ends in an optimum a percent worse
ETA = 32  # the weights are averaged over about the last 1/32 of the steps
SAMPLE = 'sample pictures'  # what lines and figures call --data sample


# ---- Colours ----------------------------------------------------------------------------------------


def kmeans_colours(xs, num_colours, seed=0):
    """Find the K colours that fit RGB pictures [N, 3, H, W] best, by k-means in RGB (part B).

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

    The scores, a detached tensor on any device, belong to `colours` [K, 3]; if that is None, they are red,
    green and blue themselves. Temperature 0 takes the likeliest colour; above it is the annealed
    mean of Zhang, Isola and Efros (2016), Colorful image colorization, equation 5; 1 is the plain mean.
    """
    scores = scores.float().cpu()
    if colours is None:
        return scores.clamp(0, 1).numpy()
    if temperature < 0.001:  # scores divided by less could overflow
        return get_cat_rgb(scores.argmax(dim=1, keepdim=True).numpy(), colours)
    with torch.autocast('cpu', enabled=False):  # the caller's, if there is one
        probabilities = (scores / temperature).softmax(dim=1)
        return torch.einsum('nkhw, kc -> nchw', probabilities, torch.from_numpy(colours)).numpy()


# ---- Pictures, and the sets that are made of them ---------------------------------------------------


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


def load_sets(data, category, held_out, colours, device, trained_on):
    """What a network is trained and validated on: two sets of pictures in --data.

    Training pictures are of the category `trained_on`; if that is None, there is no such set. Validation
    pictures are of `category`: test pictures, or `held_out` training pictures if that is not 0. Returns both
    sets, pairs of grey pictures and targets (numbers of the colours [K, 3], or RGB) on the device; the true
    validation pictures, uint8 [N, 3, 32, 32]; and the `colour_counts` of the category's training pictures.
    """
    train_pictures, (xs, ys) = load_cifar10(data)
    if held_out:
        train_pictures, (xs, ys) = hold_out(train_pictures, held_out, category)
    train_set = counts = None
    if trained_on is not None:
        train_set = grey_and_target(*train_pictures, trained_on, colours, device)
    if colours is not None and trained_on == category:
        counts = colour_counts(*train_set, len(colours))
    elif colours is not None:
        counts = sum(colour_counts(grey, cats, len(colours)) for grey, cats in
                     pieces(*train_pictures, category, colours, device))
    return train_set, grey_and_target(xs, ys, category, colours, device), xs[is_of(category, ys)], counts


def grey_and_target(xs, ys, category, colours, device):
    """Grey pictures [M, 1, H, W], and their colour numbers [M, 1, H, W], or RGB if `colours` is None."""
    count, end = is_of(category, ys).sum(), 0
    for grey, target in pieces(xs, ys, category, colours, device):
        if end == 0:
            whole = [piece.new_empty(count, *piece.shape[1:]) for piece in (grey, target)]
        start, end = end, end + len(grey)
        whole[0][start:end], whole[1][start:end] = grey, target
    return whole


def pieces(xs, ys, category, colours, device):
    """Yield what `grey_and_target` returns, about 100 pictures at a time: as floats, all take much memory."""
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


def takes_channels_last(device: torch.device):
    """Whether that layout is faster on a device; on Apple's, gradients are wrong (pytorch issue 181411)."""
    return device.type in ('cpu', 'cuda')


def down(in_channels, out_channels, kernel):
    """A stage that halves height and width: convolution, 2x2 max pooling, batch norm, ReLU."""
    return nn.Sequential(MyConv2d(in_channels, out_channels, kernel), nn.MaxPool2d(2),
                         nn.BatchNorm2d(out_channels), nn.ReLU())


class UpStage(nn.Sequential):
    """The layers of `up`, which computes batch norm and ReLU before it upsamples.

    Upsampling copies pixels, which changes neither mean nor variance, so the function is the same, for a
    quarter of the work. Only the running variance is larger: its n / (n - 1) is of fewer pixels.
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
        if takes_channels_last(x.device):  # like up2, for speed
            x = x.to(up2.dtype, memory_format=torch.channels_last, copy=True)
        return self.finalconv(torch.cat([up2, x.to(up2.dtype)], dim=1))


class DilatedUNet(UNet):
    """The UNet whose middle convolution leaves a gap of one pixel between its weights (part D).

    Yu and Koltun (2015), Multi-scale context aggregation by dilated convolutions.
    """

    middle = MyDilatedConv2d  # whose dilation is 1 by default


DUNet = DilatedUNet
MODELS = {'CNN': CNN, 'UNet': UNet, 'DUNet': DUNet}
STAGES = ['downconv1', 'downconv2', 'rfconv', 'upconv1', 'upconv2']


# ---- Training ---------------------------------------------------------------------------------------


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
        add_up(totals, metrics, len(x))
    return {name: (total / pictures).item() for name, total in totals.items()}


@torch.no_grad()
def add_up(totals, metrics, pictures):
    """Add the metrics of a batch, means over its number of pictures, to their totals by name."""
    for name, value in metrics.items():
        totals[name] = totals.get(name, 0) + pictures * value


def train(model, objective, train_set, valid_set, *, about, checkpoint, outdir, colours=None, draw=None,
          batch_size=100, epochs=25, learn_rate=0.001, schedule='constant', weight_decay=0.0, augment=(),
          seed=0, float32=False, resume=False):
    """Train a network with Adam; after every epoch validate it, print as the course does, save it.

    It ends up with the average of its last weights. With weight decay it is AdamW: Loshchilov and Hutter
    (2019), Decoupled weight decay regularization. The one-cycle schedule raises the learning rate from 1/25
    of its peak in three tenths of the steps, then lowers it: Smith and Topin (2019), Super-convergence.

    Args:
        objective: see `train_epoch`. train_set, valid_set: pairs (grey, target) on the network's device.
        about: what else identifies the run for --resume: at least the name of the 'model', and the 'data' as
            `data_name` says it.
        checkpoint: the file for its weights, saved after every epoch and when Ctrl-C interrupts; what was
            there before stays until an epoch is over. Until the last epoch, a file `.resume` beside it has
            what continues the training to the same bits.
        outdir: where history_*.csv is written after every epoch, and training_curve_*.png at the end.
        colours: the array [K, 3] that belongs to the network, for its checkpoint.
        draw: if given, `draw(metrics, epoch)` is called after every epoch.
        batch_size, ..., resume: as the flags of the same names.

    Returns the history, a dict for each epoch: its number, the seconds so far, the metrics. Raises InputError
    if the loss is no longer finite (the checkpoint keeps the epoch before), or no interrupted run has these
    settings; KeyboardInterrupt, once what was trained so far is saved.
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

    stateful = {'model': model, 'learner': learner, 'optimizer': optimizer, 'scheduler': scheduler}
    state_file, was_there = checkpoint.with_name(checkpoint.name + '.resume'), checkpoint.exists()
    history = load_state(state_file, settings, stateful, generator) if resume else []
    average, saved_epoch = AverageOfWeights(model, learner, step=len(history) * steps), len(history)
    start = time.time() - (history[-1]['seconds'] if history else 0)
    try:
        for epoch in range(len(history) + 1, epochs + 1):
            loader = tqdm(batches(train_set, batch_size, generator, augment), 'training', steps,
                          leave=False, disable=None)
            trained = train_epoch(learner, average, optimizer, scheduler, objective, loader, bfloat16)
            print_result(f'Epoch [{epoch}/{epochs}], Loss: {trained["loss"]:.{digits(trained)}f}, '
                         f'Time (s): {time.time() - start:.0f}', about['data'])
            valid = run_validation_step(model, objective, *valid_set)
            print_result(f'Epoch [{epoch}/{epochs}], {metrics_line(valid)}, '
                         f'Time(s): {time.time() - start:.0f}', about['data'])
            if not math.isfinite(trained['loss'] + valid['loss']):
                state_file.unlink(missing_ok=True)  # resuming would end in the same way
                raise InputError(f'the loss is not finite in epoch {epoch}: try a smaller --learn_rate')
            history.append({'epoch': epoch, 'seconds': round(time.time() - start, 3),
                            **with_prefix('train_', trained), **with_prefix('val_', valid)})
            save_checkpoint(model, checkpoint, colours)
            if epoch < epochs:
                save_state(state_file, settings, stateful, generator, history)
                saved_epoch = epoch
            with only_warn():
                save_history(history, outdir / f'history_{about["model"]}.csv')
                if draw:
                    draw(valid, epoch)
    except (KeyboardInterrupt, BrokenPipeError):  # the latter where `| head` has seen enough
        if history or not was_there:
            save_interrupted(average, model, checkpoint, colours, saved_epoch)
        else:
            print(f'interrupted before the end of the first epoch: {checkpoint} is unchanged',
                  file=sys.stderr)
        raise
    finally:
        if history:
            title = f'{about["model"]}, trained on {about["data"]}'
            title += ' and the other classes' if 'classes' in augment else ''
            with only_warn():
                draw_curves(history, outdir / f'training_curve_{about["model"]}.png', title)
    state_file.unlink(missing_ok=True)
    return history


def with_prefix(prefix, metrics):
    return {prefix + name: value for name, value in metrics.items()}


@contextmanager
def only_warn():
    """Only warn if a table or a picture cannot be written: that must not end a training."""
    try:
        yield
    except InputError as e:
        print(f'warning: {one_line(e)}', file=sys.stderr)


def multiplies_bfloat16(device):
    """Whether the hardware multiplies bfloat16; only then is training in it faster."""
    if device.type == 'cpu':
        can = getattr(torch.cpu, 'get_capabilities', dict)()  # before torch 2.11 it is not known
        return can.get('avx512_bf16', False) or can.get('amx_bf16', False)
    return device.type == 'cuda' and torch.cuda.is_bf16_supported(including_emulation=False)


# ---- Evaluation -------------------------------------------------------------------------------------


@torch.no_grad()
def validate(model, objective, grey, target, batch_size=100):
    """Yield the outputs of a network for each batch of validation pictures, and the batch's metrics."""
    model.eval()
    for x, y in tqdm(batches((grey, target), batch_size), 'validating', math.ceil(len(grey) / batch_size),
                     leave=False, disable=None, delay=1):
        outputs = model(x)
        yield outputs, objective(outputs, y)


def run_validation_step(model, objective, grey, target, batch_size=100):
    """The means of the metrics over validation pictures, see `train_epoch`."""
    totals = {}
    for outputs, metrics in validate(model, objective, grey, target, batch_size):
        add_up(totals, metrics, len(outputs))
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


def measure_pictures(pictures, truth):
    """Errors and colourfulness of pictures, arrays [N, 3, H, W] in [0, 1] by name, against the true ones."""
    return {name: {'mean_squared_error': float(np.square(rgb - truth).mean()),
                   'colourfulness': colourfulness(rgb)} for name, rgb in pictures.items()}


def baselines(counts, grey, cats):
    """Accuracies without a network: of the most frequent colour, overall and of each grey level.

    Takes `colour_counts` of the training pictures, the validation pictures [N, 1, H, W], and their colours.
    """
    guesses = {'most_frequent_colour': counts.sum(dim=0).argmax(),
               'most_frequent_colour_of_grey_level': counts.argmax(dim=1)[grey_levels(grey)]}
    return {name: (guess == cats).float().mean().item() for name, guess in guesses.items()}


def evaluate(model, objective, valid_set, xs, *, about, outdir, file_name, colours=None, temperature=0.0,
             accuracies={}):
    """Validate a network (--valid); draw, measure and report what it makes of the validation pictures.

    Takes grey pictures and targets on the network's device, and the true pictures, uint8 [N, 3, H, W].
    Writes `file_name`.png and the report, with `about` and the `baselines` in `accuracies`, into `outdir`.
    Colours and temperature: see `scores_to_rgb`.
    """
    done, totals, measured, shown = 0, {}, {}, None
    for outputs, metrics in validate(model, objective, *valid_set):  # all pictures would take much memory
        truth = xs[done:done + len(outputs)].astype(np.float32) / MAX_PIXEL
        prediction, grey = scores_to_rgb(outputs, colours, temperature), truth.mean(axis=1, keepdims=True)
        shown = shown or (truth[:SHOWN], prediction[:SHOWN])
        pictures = {'grey': grey.repeat(3, axis=1), 'prediction': prediction,
                    'grey_put_back': put_grey_back(prediction, grey), 'truth': truth}
        for name, measures in measure_pictures(pictures, truth).items():
            add_up(measured.setdefault(name, {}), measures, len(truth))
        add_up(totals, metrics, len(truth))
        done += len(truth)
    metrics = {name: (total / done).item() for name, total in totals.items()}
    measured = {name: {measure: total / done for measure, total in measures.items()}
                for name, measures in measured.items()}
    draw_predictions(*shown, outdir / f'{file_name}.png', about, metrics)
    report(about, metrics, accuracies, measured, outdir)
    return metrics


def report(about, metrics, accuracies, measured, outdir):
    """Print what was measured, the course's line last, and write it into metrics_*.json."""
    results = about | with_prefix('val_', metrics) | {'baseline_accuracies': accuracies, 'pictures': measured}
    with whole_file(outdir / f'metrics_{about["model"]}.json') as file:
        file.write(json.dumps(results, indent=2).encode() + b'\n')
    print_result(f'The results are in {outdir}', about['data'])
    for name, values in measured.items():
        error, words = values['mean_squared_error'], f'colourfulness {values["colourfulness"]:.1f}'
        if error:
            words = f'mean squared error {error:.5f}, PSNR {psnr(error):.2f} dB, {words}'
        print_result(f'{name.replace("_", " ").capitalize()}: {words}', about['data'])
    for name, accuracy in accuracies.items():
        print_result(f'{name.replace("_", " ").capitalize()}: accuracy {accuracy:.1%}', about['data'])
    print_result(metrics_line(metrics), about['data'])


def digits(metrics):
    """Decimals of a loss: four of a cross entropy, as in the course; squared errors are small."""
    return 4 if 'accuracy' in metrics else 5


def metrics_line(metrics):
    """Validation metrics, in the course's words where it has them."""
    second = (f'Val Acc: {metrics["accuracy"]:.1%}' if 'accuracy' in metrics else
              f'PSNR: {psnr(metrics["loss"]):.2f} dB')
    return f'Val Loss: {metrics["loss"]:.{digits(metrics)}f}, {second}'


def print_result(line, data):
    """Print a line, with '(sample)' at its end if `data`, as `data_name` has it, is the sample."""
    print(f'{line} (sample)' if data == SAMPLE else line, flush=True)


def data_name(data, category):
    """What lines and figures call the pictures that --data and --category choose."""
    if data == 'sample':
        return SAMPLE
    return {'all': 'CIFAR-10', HORSE: 'the horses of CIFAR-10'}.get(category, f'class {category} of CIFAR-10')


# ==== The assignment ends here; what follows is what it needs ==========================================


# ---- A prior of the grey level, beyond the handout --------------------------------------------------

NUM_LEVELS = 3 * 255 + 1  # of grey: sums of red, green and blue
SMOOTHING = 100.0  # pixels with the colours of all, beside the thousands that a grey level has


def add_prior(model, table):
    """Give a network a parameter `prior`: scores [E, K] of the colours at E grey levels, black to white."""
    model.prior = nn.Parameter(table)
    model.register_forward_hook(add_prior_scores)


def add_prior_scores(model, inputs, scores):
    """A forward hook: adds to scores [N, K, H, W] the entry of the prior for each pixel's grey level."""
    grey, = inputs
    entries = len(model.prior)  # the 766 levels are spread evenly over them
    entry = (grey_levels(grey[:, 0]) * entries // NUM_LEVELS).clamp(0, entries - 1)
    return scores + F.embedding(entry, model.prior).movedim(-1, 1)


def grey_levels(grey):
    """The sum of red, green and blue, 0 to 765, that grey pixels of any shape were made from."""
    return (grey * 3 * MAX_PIXEL).round().long()


def colour_counts(grey, cats, num_colours):
    """How often each colour, 0 to K - 1, occurs at each grey level, [766, K], in pictures [N, 1, H, W]."""
    counts = 0
    for some, their_cats in zip(grey.split(100), cats.split(100)):  # the pairs take 32 bytes a pixel
        pairs = grey_levels(some) * num_colours + their_cats
        counts += torch.bincount(pairs.flatten(), minlength=NUM_LEVELS * num_colours)
    return counts.reshape(NUM_LEVELS, -1)


def log_frequencies(counts, entries=NUM_LEVELS):
    """A table for `add_prior` from `colour_counts`: smoothed log probabilities of the colours, [E, K]."""
    entry = torch.arange(NUM_LEVELS, device=counts.device) * entries // NUM_LEVELS
    pooled = counts.new_zeros(entries, counts.shape[1]).index_add(0, entry, counts)
    overall = (counts.sum(dim=0) + 1) / (counts.sum() + counts.shape[1])
    pooled = pooled + SMOOTHING * overall
    return (pooled / pooled.sum(dim=1, keepdim=True)).log()


# ---- Figures, and the table of layers ---------------------------------------------------------------

OPERATIONS = {MyConv2d: 'convolution', MyDilatedConv2d: 'convolution, dilation {0.dilation}',
              nn.MaxPool2d: 'max pool 2x2', nn.Upsample: 'upsample 2x2', nn.BatchNorm2d: 'batch norm',
              nn.ReLU: 'ReLU'}
PARAMETERS = {'weight': 'weights', 'bias': 'biases'}


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
    first, backend = 'matplotlib' not in sys.modules, os.environ.pop('MPLBACKEND', None)
    try:
        import matplotlib.figure
    except Exception as e:  # a settings file can make it raise nearly anything
        raise InputError(f'matplotlib cannot be imported ({one_line(e)}): pip install -r requirements.txt '
                         'installs it') from e
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
        for i, row in enumerate(rows):
            for j, (label, picture) in enumerate(row):
                axes = figure.add_subplot(grid[i, j])
                axes.imshow(picture, cmap='gray', vmin=0, vmax=1, interpolation='nearest')
                axes.set_title(label, fontsize=9)
                axes.axis('off')
        if title:
            figure.suptitle(title, fontsize=11)


def draw_predictions(rgb, prediction, path, about, metrics):
    """Draw the first validation pictures [N, 3, H, W]; `about` and `metrics` make the line above them."""
    rgb, prediction = rgb[:SHOWN], np.clip(prediction[:SHOWN], 0, 1)
    grey = rgb.mean(axis=1, keepdims=True)
    rows = {'grey: what the network sees': grey, 'truth': rgb, 'prediction': prediction,
            "prediction with the input's grey": put_grey_back(prediction, grey)}
    draw_pictures([(label, mosaic(pictures, len(pictures))) for label, pictures in rows.items()], path,
                  f'{about["model"]}, {about["data"]}: {metrics_line(metrics)}')


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


def architecture(model, size=32):
    """What a network is made of: a dict for each operation, from the input on (parts A.1 and D.1).

    One forward pass tells all. Its receptive fields are the first and last input row that each row sees.
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
    model(model.finalconv.weight.new_zeros(1, 1, size, size))
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


# ---- Checkpoints ------------------------------------------------------------------------------------

COUNTERS = 'num_batches_tracked', 'n_averaged', 'total_ops', 'total_params'  # which nothing here uses
SAVE_IT = 'save model.state_dict() with torch.save'


def save_checkpoint(model, path, colours=None):
    """Save the weights as a plain state dict; its metadata, which torch ignores, names model and colours."""
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


def save_interrupted(average, model, checkpoint, colours, epochs):
    """Save what Ctrl-C interrupted after so many epochs, unless no step was made or its weights are NaN."""
    if average.step and all(mean.isfinite().all() for mean in average.means):
        save_checkpoint(model, checkpoint, colours)
        words = f'interrupted: the weights so far are in {checkpoint}'
        print(f'{words}; --resume goes on after epoch {epochs}' if epochs else words, file=sys.stderr)


def load_tensors(file):
    """What `save_tensors` wrote, on the CPU; a broken or hostile file can raise nearly anything."""
    numbers = [(Ignored, name) for name in ('numpy.dtype', 'numpy.core.multiarray.scalar',
                                            'numpy._core.multiarray.scalar')]
    with warnings.catch_warnings(action='ignore'), torch.serialization.safe_globals(numbers):
        return torch.load(file, map_location='cpu', weights_only=True, mmap=False)


class Ignored:
    """What comes of a NumPy number beside the weights."""

    def __init__(self, *_):
        pass
    __setstate__ = __init__


def what_it_is(path, error):
    """What a file is that torch could not read as tensors, and what to do: words for an error."""
    if os.path.getsize(path) == 0:
        return f'it is empty: {SAVE_IT}'
    if 'TorchScript' in str(error):
        return 'it is a TorchScript program, not a checkpoint: torch.jit.load it, and save its state_dict()'
    if asked := re.search(r'GLOBAL (\S+)', str(error)):
        return (f'it holds more than tensors ({asked[1]:.60}), as a whole pickled model does, and could run '
                f'code: {SAVE_IT} instead')
    return f'it is damaged, or no file that torch.save wrote: copy or download it again, or {SAVE_IT}'


def find_weights(value):
    """Weights by name, and their metadata, in what torch.load returned: a state dict, or a dict with one."""
    # A hostile file can hide methods behind attributes: `items`, and those that `detach` sheds.
    if not isinstance(value, dict):
        raise InputError(f'it holds a {type(value).__name__}, not a checkpoint: {SAVE_IT}')
    if {'learner', 'generator', 'settings'} <= dict.keys(value):
        raise InputError('it is what --resume goes on from, not a checkpoint: name the file without .resume')
    for part in (value, *dict.values(value)):
        if isinstance(part, dict):
            weights = {re.sub(r'\b(module|_orig_mod)\.', '', str(name)): tensor
                       for name, tensor in dict.items(part) if not str(name).endswith(COUNTERS)}
            if last := [name for name in weights if re.search(r'\bfinalconv\.', name)]:
                break
    else:
        raise InputError('it has no finalconv.weight: it is not a checkpoint of this assignment')
    prefix = last[0].partition('finalconv.')[0]  # Lightning's is `model.`
    weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    for name, tensor in weights.items():
        if not isinstance(tensor, torch.Tensor):
            raise InputError(f'its {name:.60} is no tensor: {SAVE_IT}')
        weights[name] = torch.detach(tensor)
    return weights, getattr(part, '_metadata', {})


def read_checkpoint(path):
    """Weights by name; the name of their model and their colours [K, 3], or None in files of 2018."""
    with open(path, 'rb') as file:
        try:
            value = load_tensors(file)
        except Exception as e:
            raise InputError(f'{path}: {what_it_is_instead(path) or what_it_is(path, e)}') from e
    try:
        weights, metadata = find_weights(value)
        check_weights(weights)
        notes = metadata.get('', {})
        colours = check_colours(np.array(notes['colours'], np.float32)) if 'colours' in notes else None
        return weights, str(notes.get('model', '')) or None, colours
    except InputError as e:
        raise InputError(f'{path}: {e}') from e
    except Exception as e:
        raise InputError(f'{path}: its notes on model and colours are damaged: copy it again') from e


def check_weights(weights):
    """Raise InputError if tensors are not plain finite floats, or do not tell the network's size."""
    for name, tensor in weights.items():
        if re.search(r'\.parametrizations\.|\.(weight|bias)_(g|v|u|orig|mask)$', name):
            raise InputError(f'its {name:.60} is of weight_norm, spectral_norm or pruning: remove that, then '
                             f'{SAVE_IT}')
        size = tensor.numel() * tensor.element_size()
        if (tensor.layout != torch.strided or tensor.is_nested or tensor.device.type != 'cpu'
                or not 0 < size <= tensor.untyped_storage().nbytes()):  # it claims more than the file holds
            raise InputError(f'its {name:.60} is no plain tensor, or damaged: {SAVE_IT}')
        if not (tensor.is_floating_point() and tensor.float().isfinite().all()):
            raise InputError(f'its {name:.60} is not all finite floats: train it again')
        weights[name] = tensor.float().clone(memory_format=torch.contiguous_format)
    for name in ('downconv1.0.weight', 'finalconv.weight'):
        shape = list(weights[name].shape) if name in weights else 'missing'
        if len(shape) != 4 or shape[-1] % 2 == 0:
            raise InputError(f'its {name} is {shape}, not filters of an odd size: these are not the weights '
                             'of a network of this assignment')


def load_model(make_model, path, kernel=None, num_filters=None):
    """Build the network of a checkpoint, one of ours (found beside this script too) or of the course.

    `make_model(kernel, num_filters, num_colours)` builds it; the weights tell the sizes. Returns it in eval
    mode, and its colours [K, 3] or, where the file does not tell, None. Raises InputError if the file is no
    state dict of that model, or has other sizes than the `kernel` and `num_filters` that are given.
    """
    path = find_shipped(path)
    weights, saved_as, colours = read_checkpoint(path)
    filters, _, _, width = weights['downconv1.0.weight'].shape
    for flag, given, found in (('-k', kernel, width), ('-f', num_filters, filters)):
        if given not in (None, found):
            raise InputError(f'{path} was trained with {flag} {found}: leave out {flag} {given}')
    if colours is not None and len(colours) != len(weights['finalconv.weight']):
        raise InputError(f'{path} is damaged: it has {len(colours)} colours, but '
                         f'{len(weights["finalconv.weight"])} outputs; train it again')
    model, error = build(make_model, weights)
    name = type(model).__name__
    if saved_as not in (None, name):
        user = ({make.__name__: f'colourization.py or activations.py --model {flag}'
                 for flag, make in MODELS.items()} | {'RegressionCNN': 'colour_regression.py'}).get(saved_as)
        raise InputError(f'{path} is a {saved_as:.60}, not a {name}: {user or "no script"} takes it')
    if error:
        words = one_line(str(error).partition(':')[2])  # less 'Error(s) in loading state_dict for UNet'
        raise InputError(f'{path} does not fit a {name} ({words:.200}): name its own model, or build the '
                         'network as the handout does, layer by layer, and save its whole state_dict()')
    with torch.no_grad():  # finite weights can be too large, or the square roots of negative ones
        if not model.eval()(torch.full((1, 1, 8, 8), 0.5, dtype=torch.float32)).isfinite().all():
            raise InputError(f'{path} is damaged: its outputs are not finite; train it again')
    return model, colours


def build(make_model, weights):
    """A network with weights that tell its sizes, in float32; and what torch says if they do not fit."""
    filters, _, _, width = weights['downconv1.0.weight'].shape
    num_colours = len(weights['finalconv.weight'])
    with torch.device('meta'):  # no memory for sizes that may be absurd
        model = make_model(width, filters, num_colours)
        if 'prior' in weights:
            add_prior(model, torch.empty(*weights['prior'].shape[:1], num_colours))
    try:
        model.load_state_dict(weights, assign=True)
        return model, None
    except RuntimeError as e:
        return model, e


def save_state(path, settings, stateful, generator, history):
    """Save a training after an epoch: all settings, and the state dicts of `stateful` objects by name."""
    state = {name: part.state_dict() for name, part in stateful.items()}
    save_tensors(state | {'generator': generator.get_state(), 'history': history, 'settings': settings,
                          'threads': torch.get_num_threads()}, path)


def load_state(path, settings, stateful, generator):
    """Bring a training of the same settings into the state that was saved; returns the history so far."""
    if not path.exists():
        raise InputError(f'{path} is missing: no epoch was completed there, or the run is finished: leave '
                         'out --resume')
    with open(path, 'rb') as file:
        try:
            state = load_tensors(file)
            for name, value in settings.items():
                if state['settings'].get(name) != value:
                    other = '' if name == 'colours' else f', {state["settings"].get(name)}'
                    raise ValueError(f'the interrupted run had another {name}{other}')
            for name, part in stateful.items():
                part.load_state_dict(state[name])
            generator.set_state(state['generator'])
            history = list(state['history'])
            if not threads_are_chosen():  # as many as before, for the same bits
                torch.set_num_threads(min(state['threads'], torch.get_num_threads()))
            return history
        except Exception as e:
            raise InputError(f'{path}: cannot be resumed ({one_line(e)[:100]}); give the same flags as '
                             'before, or remove this file and leave out --resume') from e


# ---- Photographs of the user ------------------------------------------------------------------------

IMAGE_CHECKPOINT = Path('weights/unet_prior_all_k3_f64.pkl')  # of --image: it knows more than horses
IMAGE_SIZE = 224  # pixels a side of a photograph, as the network sees it
SATURATION = 1.4  # of photographs: a mean of likely colours is paler than each
RADIUS, FLATNESS = 2, 1e-3  # of the guided filter: pixels that the network sees, and a variance of the grey
BAND = 2**20  # pixels of a picture that are coloured at a time


def colourize(grey, model, colours, temperature=1.0, size=IMAGE_SIZE, saturation=SATURATION):
    """Colour a grey picture, an array [H, W] in [0, 1]: RGB, float32 [H, W, 3], with that grey as its mean.

    The network, in eval mode, sees it with about `size` x `size` pixels, and a half and a quarter of that a
    side. Of its answers only the chroma is used, each channel less their mean. The mean of the three chromas,
    `saturation` times as large, is enlarged along the edges of the grey, and made weaker where it would lead
    out of [0, 1]. Colours and temperature: see `scores_to_rgb`. Raises ValueError if it is no such picture.
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
    longest = max(1, size**2 // 16)  # blocks of 4x4 pixels: a picture of 1 x N pixels becomes one block wide
    return F.interpolate(grey, [4 * min(max(1, round(side * scale / 4)), longest) for side in grey.shape[2:]],
                         mode='bilinear', antialias=True)


def follow_edges(grey, chroma):
    """How chroma [1, 3, H, W] follows the grey [1, 1, H, W] around each pixel: its slope and offset there.

    The fast guided filter: He, Sun and Tang (2013), Guided image filtering; He and Sun (2015).
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
        tint = (F.interpolate(slope[:, :, rows], lit.shape[2:], mode='bicubic') * lit
                + F.interpolate(offset[:, :, rows], lit.shape[2:], mode='bicubic'))
        room = torch.minimum((1 - lit) / tint.amax(dim=1, keepdim=True).clamp(min=1e-6),
                             lit / (-tint.amin(dim=1, keepdim=True)).clamp(min=1e-6))
        yield rows, (lit + tint * room.clamp(max=1))[0].movedim(0, -1).clamp(0, 1).numpy()


def expand(paths):
    """Paths with patterns like *.jpg replaced by what they match: shells of Windows leave that to us."""
    found = {path: glob.glob(str(path)) for path in paths if not os.path.lexists(path)}
    return [Path(name) for path in paths for name in sorted(found.get(path, ())) or [path]]


def colour_files(paths, model, colours, outdir, temperature, size, saturation):
    """--image: `colourize` files into outdir; a bad one does not stop the others, but the status is 1."""
    from PIL import Image
    check_writable(outdir / f'{os.getpid()}_colour.png')  # hardly a file of the user
    status, taken = 0, set()
    for path in tqdm(paths, 'colouring', leave=False, disable=None):
        name, i = path.stem, 1
        while (folded := unicodedata.normalize('NFC', name).casefold()) in taken:
            name, i = f'{path.stem}_{i + 1}', i + 1
        taken.add(folded)
        result = outdir / f'{name}_colour.png'
        try:
            picture = read_picture(path)
            if result.exists() and any(other.exists() and result.samefile(other) for other in paths):
                raise InputError(f'{result} is itself a picture to colour: choose another --outdir')
            pixels = np.empty((*picture.grey.shape, 3), np.uint8)
            for rows, band in colour_bands(picture.grey, model, colours, temperature, size, saturation):
                pixels[rows] = (255 * band).round()
            if picture.alpha is not None:
                pixels = np.dstack([pixels, picture.alpha])
            with whole_file(result) as file:  # Pillow's usual level takes twice as long, for hardly less
                Image.fromarray(pixels).save(file, 'PNG', compress_level=3)
            tqdm.write(f'Wrote {result}')
        except (InputError, OSError) as e:
            tqdm.write(error_line(e), file=sys.stderr)
            status = 1
    return status


# ---- Threads, devices and streams -------------------------------------------------------------------

STAT, QUOTA = Path('/proc/stat'), Path('/sys/fs/cgroup/cpu.max')  # what Linux tells of its cores


def busy_seconds():
    """Seconds that our cores have worked for others since the machine started; None if it is not told."""
    try:
        lines, cores = STAT.read_text().splitlines(), os.sched_getaffinity(0)
    except (OSError, AttributeError):
        return None
    counts = [line.split() for line in lines if line[:3] == 'cpu' and line[3:4].isdigit()]
    ticks = sum(sum(map(int, count[1:4] + count[6:9])) for count in counts if int(count[0][3:]) in cores)
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
        free = len(os.sched_getaffinity(0)) - busy
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
        print(f'note: {threads} of {most} threads are used, as other programs are at work; OMP_NUM_THREADS '
              'chooses another number', file=sys.stderr)


def choose_device(gpu):
    if gpu and torch.accelerator.is_available():
        return torch.accelerator.current_accelerator()
    if gpu:
        print('warning: no GPU was found, so the CPU is used', file=sys.stderr)
    return torch.device('cpu')


def error_line(error):
    """The one line for something that a user can mend."""
    if isinstance(error, OSError) and error.filename:
        error = f'{error.filename}: {error.strerror}'
    return f'error: {one_line(error)}'


def run(main):
    """Run a script; errors that a user can cause end in one line and an exit status, not a traceback."""
    gc.set_threshold(100_000)  # imports make little garbage, and looking for it takes half a second
    atexit.register(gc.freeze)  # and another half at the end, among what goes away anyhow
    for name in ('stdout', 'stderr'):  # closed by whoever called, as in pythonw
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, 'w'))
    try:
        if hasattr(sys.stdout, 'reconfigure'):  # notebooks have other streams
            sys.stdout.reconfigure(errors='backslashreplace')  # names that the terminal cannot show
        try:
            main()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except (InputError, OSError) as e:
        if isinstance(e, OSError) and e.errno in (errno.EPIPE, errno.EINVAL) and not e.filename:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read it has closed it
            sys.exit(1)
        sys.exit(error_line(e))
    except ImportError as e:
        sys.exit(f'error: {one_line(e)}: pip install -r requirements.txt installs all that is needed')
    except (MemoryError, RuntimeError) as e:
        if not isinstance(e, (MemoryError, torch.OutOfMemoryError)) and not re.search(
                'allocate memory|not enough memory|out of memory', str(e)):
            raise
        sys.exit('error: there is not enough memory: close other programs, or try a smaller --num_filters, '
                 '--image_size or --batch_size')


# ---- Command line -----------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Reads a pasted en or em dash before a flag as hyphens; wrong usage ends in one line."""

    def parse_args(self, argv=None):
        return super().parse_args(map(plain_hyphens, sys.argv[1:] if argv is None else argv))

    def error(self, message):
        self.exit(2, f'error: {one_line(message)}; see {self.prog} --help\n')


def plain_hyphens(word):
    """A word of the command line; pasted dashes before a flag become hyphens: –model, —b, –-valid."""
    if not re.match('[–—][-–—]*[a-z]', word):
        return word
    name = word.lstrip('-–—')
    return f'--{name}' if re.match('[a-z]{2}', name) else f'-{name}'


def number_type(kind, low, high=math.inf):
    """A type for argparse: an int or float from `low` to `high`."""
    def parse(text):
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f'{text} is not a number from {low} to {high}')
        return value
    parse.__name__ = 'whole number' if kind is int else 'number'  # argparse says "invalid number value"
    return parse


def file_type(text):
    """A type for argparse: the path of a file."""
    if text.endswith(('/', os.sep)):
        raise argparse.ArgumentTypeError(f'{text} is a folder: name a file in it')
    return Path(text)


def make_parser(text):
    """A parser whose help begins with the first line of a text, and ends with the others."""
    description, _, examples = text.partition('\n\n')
    return Parser(description=description, epilog=examples, usage='%(prog)s [options]',
                  formatter_class=argparse.RawDescriptionHelpFormatter)


def add_network_flags(flag):
    """The flags of all scripts that say which network; `flag` is add_argument of a group."""
    flag('--checkpoint', type=file_type, metavar='FILE',
         help='file of its weights; a training saves them there, by default in --outdir')
    flag('-k', '--kernel', type=int, choices=range(1, 32, 2), metavar='K',
         help=f'odd width of the filters (default: {KERNEL}, or what the checkpoint has)')
    flag('-f', '--num_filters', type=number_type(int, 1, 4096), metavar='F',
         help=f'filters of the first stage (default: {NUM_FILTERS}, or what the checkpoint has)')


def add_file_flags(flag):
    """The flags of all scripts that say which pictures, and where results go."""
    flag('--data', metavar='WHERE', help='a folder or archive with CIFAR-10 (default: data/, downloaded on '
         'first use), or `sample`: a few pictures that need no download')
    flag('--category', type=lambda text: int(text) if text.isdecimal() else text, default=HORSE,
         choices=['all', *range(10)], metavar='C',
         help='class of CIFAR-10, 0 to 9, or `all` (default: %(default)s, horses)')
    flag('--outdir', type=Path, default=Path('outputs'), metavar='DIR',
         help='folder for pictures and results (default: outputs/)')


def add_training_flags(flag):
    """The settings of `train` (part F.2), and what goes with them."""
    flag('-b', '--batch_size', type=number_type(int, 1, 10**6), default=100, metavar='N',
         help='pictures in a training step (default: %(default)s)')
    flag('-e', '--epochs', type=number_type(int, 1, 10**6), default=25, metavar='N',
         help='passes over the training pictures (default: %(default)s)')
    flag('-l', '--learn_rate', type=number_type(float, 1e-12, 10), default=0.001, metavar='R',
         help='learning rate of Adam (default: %(default)s)')
    flag('--schedule', choices=['constant', 'onecycle'], default='constant',
         help='learning-rate schedule; onecycle rises to -l, then falls to almost 0 (default: %(default)s)')
    flag('--weight_decay', type=number_type(float, 0, 10), default=0.0, metavar='D',
         help='weight decay of AdamW (default: %(default)s)')
    flag('--augment', nargs='+', action='extend', choices=[*MOVES, 'classes'], default=[], metavar='WAY',
         help='change the training pictures at random: any of %(choices)s; classes adds those of all ten '
         'classes (default: none)')
    flag('--hold_out', type=number_type(int, 0, 10**6), default=0, metavar='N', help='to choose settings: '
         'validate on N of the training pictures, not on the test pictures (default: %(default)s)')
    flag('-s', '--seed', type=number_type(int, 0, 2**31), default=0, metavar='S',
         help='seed: the same one gives the same numbers (default: %(default)s)')
    flag('--float32', action='store_true',
         help='train in float32 even where the hardware multiplies bfloat16')
    flag('--gpu', action='store_true', help='use the GPU; without one, the CPU')
    flag('--plot', action='store_true', help='also draw pictures after every epoch')


def parse_args(argv=None):
    """Read the command line of colourization.py, and fill in what depends on other flags."""
    parser = make_parser("""Train or evaluate a network that colours the horses of CIFAR-10.

examples:
  python colourization.py --model UNet --data sample -e 5          try it, no download
  python colourization.py --model UNet --checkpoint my_unet.pkl    train
  python colourization.py --model UNet --checkpoint weights/unet_k3_f32.pkl --valid
  python colourization.py --image photo.jpg                        colour your own picture""")
    group = parser.add_argument_group('what to do')
    group.add_argument('-m', '--model', choices=MODELS, help='the network (--image has one, --kmeans needs '
                       'none); it is trained, then evaluated, unless one of these says otherwise:')
    flag = group.add_mutually_exclusive_group().add_argument
    flag('--valid', action='store_true', help='only evaluate the network in --checkpoint')
    flag('--resume', action='store_true',
         help='continue the interrupted training of the same flags and --checkpoint')
    flag('--summary', action='store_true',
         help='only print the layers of the network, and their sizes for a 32x32 picture')
    flag('--image', type=Path, nargs='+', action='extend', metavar='FILE',
         help=f'colour these pictures (default --checkpoint: {IMAGE_CHECKPOINT})')
    flag('--kmeans', type=number_type(int, 2, MAX_COLOURS), metavar='K',
         help='only find K colours by k-means and write them into colour/')
    flag = parser.add_argument_group('the network').add_argument
    add_network_flags(flag)
    flag('-c', '--colours', metavar='FILE', help='its colours (default: those of the checkpoint, or the '
         f'{NUM_COLOURS} of the category in colour/)')
    flag('--prior', type=number_type(int, 1, NUM_LEVELS), nargs='?', const=NUM_LEVELS, default=0, metavar='E',
         help='train it with a table, of E entries, of how probable each colour is at each grey level '
         '(without E: %(const)s)')
    flag('--temperature', type=number_type(float, 0, 100), metavar='T', help='how scores become a colour: '
         '0 takes the likeliest one, 1 the mean; in between, a blend (default: 0; 1 with --image)')
    add_training_flags(parser.add_argument_group('training').add_argument)
    flag = parser.add_argument_group('your photographs').add_argument
    flag('--image_size', type=number_type(int, 4, 1024), default=IMAGE_SIZE, metavar='N',
         help='the network sees them at about N x N pixels, and at a half and a quarter of N (default: '
         '%(default)s)')
    flag('--saturation', type=number_type(float, 0, 100), default=SATURATION, metavar='S',
         help='colours S times as strong as those of the network (default: %(default)s)')
    add_file_flags(parser.add_argument_group('data and results').add_argument)
    args = parser.parse_args(argv)
    if args.kmeans and (args.model or args.colours or args.checkpoint or args.hold_out):
        parser.error('--kmeans only finds colours: leave out --model, --colours, --checkpoint, --hold_out')
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


def find_shipped(path):
    """The path itself, or the same one beside this script if the file is only there."""
    beside = HERE / path
    return beside if beside.exists() and not Path(path).exists() else Path(path)


def choose_colours(path, category, num_colours=None, saved=None, checkpoint=None):
    """The colours in the file of --colours, or those `saved` in the checkpoint, or the shipped ones."""
    if path is None and saved is not None:
        return saved
    number, guessed = num_colours or NUM_COLOURS, path is None
    path = find_shipped(f'colour/colour_kmeans{number}_cat{category}.npy' if guessed else path)
    if not path.exists():
        regression = f'{checkpoint} may be for colour_regression.py; otherwise ' if number == 3 else ''
        raise InputError(f'{regression}{path} is missing: name a file of {number} colours with --colours, or '
                         f'run colourization.py --kmeans {number} --category {category}')
    if guessed and checkpoint:
        print(f'warning: {checkpoint} does not say which colours it was trained with: those of {path} are '
              'used; name its own with -c', file=sys.stderr)
    colours = load_colours(path)
    if num_colours not in (None, len(colours)):
        raise InputError(f'{path} has {len(colours)} colours, the checkpoint {num_colours}: name its own '
                         'with -c')
    if saved is not None and not np.allclose(saved, colours):
        raise InputError(f'the checkpoint was trained with other colours than {path}: leave out -c')
    return colours


def load_trained(model, checkpoint, category, colours=None, kernel=None, num_filters=None, prior=0):
    """A network of MODELS in eval mode, and its colours [K, 3], as the flags of these names tell it."""
    network, saved = load_model(MODELS[model], checkpoint, kernel, num_filters)
    entries = len(getattr(network, 'prior', ()))
    if prior not in (0, entries):
        raise InputError(f'{checkpoint} has {entries or "no"} entries of a prior: leave out --prior {prior}')
    return network, choose_colours(colours, category, len(network.finalconv.bias), saved, checkpoint)


def check_checkpoint(path, make_model, resume, evaluate):
    """Find out before training if its checkpoint cannot be written, or would replace what must stay."""
    check_writable(path)
    state_file = path.with_name(path.name + '.resume')
    check_writable(state_file)
    if state_file.exists() and not resume:
        raise InputError(f'{state_file} is left from a run that was interrupted, or is still going on: '
                         'continue it with --resume, or remove that file to begin anew')
    if path.exists() and path.stat().st_size:
        if not resume and path.resolve().parent == HERE / 'weights':
            raise InputError(f'{path} is not replaced by a training: {evaluate} to evaluate it, or train '
                             'into another --checkpoint; to have it replaced, remove it first')
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
    print_result(f'Wrote {path}: the mean squared distance of a pixel to its colour is {error:.5f}',
                 data_name(data, category))


def train_and_evaluate(model, objective, args, *, train_it, name, file_name, checkpoint, colours=None):
    """The work of both scripts: read the pictures, train the network if `train_it`, evaluate it.

    `args` are the flags; `checkpoint` is the file to save the network in, or that it came from; `name` and
    `file_name` are what lines and drawings are called; colours: see `scores_to_rgb`.
    """
    check_writable(args.outdir / f'{file_name}.png')
    import_matplotlib()
    device = choose_device(args.gpu)
    model = model.to(device)
    if takes_channels_last(device):
        model = model.to(memory_format=torch.channels_last)
    num_filters, _, _, kernel = model.downconv1[0].weight.shape
    about = {'model': name, 'kernel': kernel, 'num_filters': num_filters,
             'data': data_name(args.data, args.category), 'prior': len(getattr(model, 'prior', ())),
             'hold_out': args.hold_out}
    settings = {name: getattr(args, name) for name in 'batch_size epochs learn_rate schedule weight_decay '
                'augment seed float32 resume'.split()}
    trained_on = None if not train_it else 'all' if 'classes' in args.augment else args.category
    train_set, valid_set, xs, counts = load_sets(args.data, args.category, args.hold_out, colours, device,
                                                 trained_on)
    if not args.resume:  # which takes as many threads as before
        choose_threads()

    @torch.no_grad()
    def draw(metrics, epoch):
        prediction = scores_to_rgb(model(valid_set[0][:SHOWN]), colours, args.temperature)
        truth = xs[:SHOWN].astype(np.float32) / MAX_PIXEL
        draw_predictions(truth, prediction, args.outdir / f'{file_name}_epoch{epoch:02d}.png', about, metrics)

    if train_it:
        if about['prior']:
            model.prior.data = log_frequencies(counts, about['prior'])
        train(model, objective, train_set, valid_set, about=about, checkpoint=checkpoint, outdir=args.outdir,
              colours=colours, draw=draw if args.plot else None, **settings)
    train_set = None  # evaluation can use its memory
    about |= {'checkpoint': checkpoint.name, 'seed': args.seed if train_it else None,
              'threads': torch.get_num_threads(), 'temperature': args.temperature,
              'colours': None if colours is None else colours.tolist()}
    metrics = evaluate(model, objective, valid_set, xs, about=about, outdir=args.outdir, file_name=file_name,
                       colours=colours, temperature=args.temperature,
                       accuracies={} if colours is None else baselines(counts, *valid_set))
    if colours is not None and not metrics['loss'] <= math.log(len(colours)):
        reason = ('try a smaller --learn_rate' if train_it else f'{checkpoint} may have been trained with '
                  'other colours (-c), or with its skip connections in another order')
        print(f'warning: the loss is above that of guessing, ln {len(colours)} = '
              f'{math.log(len(colours)):.4f}: {reason}', file=sys.stderr)


def main():
    args = parse_args()
    if args.kmeans:
        return find_colours(args.kmeans, args.data, args.category, args.seed)
    checkpoint = args.checkpoint
    if args.valid or args.image or (args.summary and checkpoint):
        model, colours = load_trained(args.model, checkpoint, args.category, args.colours, args.kernel,
                                      args.num_filters, args.prior)
    else:
        kernel, num_filters = args.kernel or KERNEL, args.num_filters or NUM_FILTERS
        if not args.summary:
            model_name = f'{args.model.lower()}_prior' if args.prior else args.model.lower()
            checkpoint = checkpoint or args.outdir / f'{model_name}_k{kernel}_f{num_filters}.pkl'
            check_checkpoint(checkpoint, MODELS[args.model], args.resume, 'add --valid')
        colours = choose_colours(args.colours, args.category)
        torch.manual_seed(args.seed)
        model = MODELS[args.model](kernel, num_filters, len(colours))
        if args.prior:
            add_prior(model, torch.zeros(args.prior, len(colours)))  # until the pictures are counted
    if args.summary:
        return print(summary_table(model))
    if args.image:
        sys.exit(colour_files(expand(args.image), model.to(choose_device(args.gpu)), colours, args.outdir,
                              args.temperature, args.image_size, args.saturation))
    name = f'{args.model}_prior' if hasattr(model, 'prior') else args.model
    train_and_evaluate(model, classification, args, train_it=not args.valid, name=name,
                       file_name=f'eval_{name}', checkpoint=checkpoint, colours=colours)


if __name__ == '__main__':
    run(main)
