"""How fast it is, in ratios against what one would write otherwise, measured in turns in one run.

    python tests/benchmark.py --data data           # all, a quarter of an hour
    python tests/benchmark.py --only step           # one part
    python tests/benchmark.py --gpu                 # step and dilation there, and a whole training loop

The reference is the same network from `nn.Conv2d` and `dilation=2`, a `DataLoader` over a
`TensorDataset`, the nearest colours by broadcasting in NumPy, and all of it as a script
(`reference_script`); an expert's step is that of the reference in channels_last and bfloat16, with fused
Adam and without a `DataLoader`. A ratio is the median over the rounds; its spread is the smallest and the
largest of them. Nothing is asserted here.
"""

import argparse
import copy
import math
import pickle
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import DeviceType
from torch.optim.lr_scheduler import ConstantLR
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from colourization import (AverageOfWeights, DilatedUNet, MyConv2d, MyDilatedConv2d, UNet,
                           choose_device, classification, get_rgb_cat, multiplies_bfloat16, train_epoch)
from load_data import ARCHIVE, batches, load_colours

COLOURS = load_colours(ROOT / 'colour/colour_kmeans24_cat7.npy')
# Run a command, print its last line and its peak memory in kB: a process starts with that of the one that
# starts it, which therefore has to be a small one.
MEASURE = '''import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, text=True, check=True)
print(done.stdout.splitlines()[-1])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)'''
spawn = get_context('spawn')
FLAGS = '-b 10 -e 5'
SHORT = ['--schedule onecycle -l 0.06 -b 8 -e 1',  # to the accuracy of the script with FLAGS
         '--schedule onecycle -l 0.06 -b 24 -e 2']  # and beyond that of the course's weights


# ---- What one would write otherwise ----


def reference_network(make):
    """The same network from torch's own convolutions, its layers in the order in which they stand."""
    model = make(3, 32, len(COLOURS))
    model.upconv1, model.upconv2 = nn.Sequential(*model.upconv1), nn.Sequential(*model.upconv2)
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, MyConv2d):
                gap = getattr(layer, 'dilation', 0) + 1
                outputs, inputs, size, _ = layer.weight.shape
                setattr(parent, name, nn.Conv2d(inputs, outputs, size, padding=layer.padding, dilation=gap))
    return model


def reference_epoch(model, optimizer, loader, device):
    model.train()
    losses = []
    for x, y in loader:
        x, y = x.to(device), y.to(device)
        loss = nn.CrossEntropyLoss()(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.mean(losses)


def reference_cats(xs):
    """Nearest colours [N, H, W] by broadcasting: pixels [P, 1, 3] less colours [K, 3]."""
    pixels = xs.transpose(0, 2, 3, 1).reshape(-1, 3)
    cats = [np.square(part[:, None] - COLOURS).sum(axis=2).argmin(axis=1)
            for part in np.array_split(pixels, math.ceil(len(pixels) / 10_000))]  # memory is not endless
    return np.concatenate(cats).reshape(len(xs), *xs.shape[2:])


def reference_script(data, batch_size, epochs):
    """`colourization.py --model UNet`, as a script of the usual kind."""
    from matplotlib import pyplot as plt

    batches = {}
    with tarfile.open(Path(data) / ARCHIVE) as archive:
        for member in archive:
            if '_batch' in member.name:
                batches[Path(member.name).name] = pickle.load(archive.extractfile(member), encoding='bytes')

    def horses(names):
        x = np.concatenate([batches[name][b'data'] for name in names])
        x = x[np.concatenate([batches[name][b'labels'] for name in names]) == 7].reshape(-1, 3, 32, 32)
        x = x.astype(np.float32) / 256
        return x, torch.from_numpy(x.mean(axis=1, keepdims=True)), torch.from_numpy(reference_cats(x))

    _, x_train, y_train = horses([f'data_batch_{i}' for i in range(1, 6)])
    rgb, x_test, y_test = horses(['test_batch'])
    model = reference_network(UNet)
    optimizer = torch.optim.Adam(model.parameters())
    loader = DataLoader(TensorDataset(x_train, y_train), batch_size, shuffle=True)
    for epoch in range(epochs):
        loss = reference_epoch(model, optimizer, loader, 'cpu')
        model.eval()
        losses, right, shown = [], 0, []
        with torch.no_grad():
            for x, y in DataLoader(TensorDataset(x_test, y_test), 100):
                scores = model(x)
                losses.append(F.cross_entropy(scores, y).item())
                right += (scores.argmax(1) == y).sum().item()
                shown.append(COLOURS[scores.argmax(1)])
        print(epoch, loss, np.mean(losses), 100 * right / y_test.numel(), flush=True)
        torch.save(model.state_dict(), 'reference.pkl')
    rows = [x_test[:10].repeat(1, 3, 1, 1).permute(0, 2, 3, 1), rgb[:10].transpose(0, 2, 3, 1), shown[0][:10]]
    plt.imsave('reference.png', np.vstack([np.hstack(list(row)) for row in rows]))


# ---- Measuring ----


def seconds(work, device=None):
    start = time.perf_counter()
    work()
    if device is not None and device.type != 'cpu':
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def compare(name, reference, ours, rounds, device=None):
    """Time two pieces of work in turns, and print how many times as fast ours is."""
    pairs = [(seconds(reference, device), seconds(ours, device)) for _ in range(rounds + 1)][1:]  # warm
    theirs, mine = map(statistics.median, zip(*pairs))
    print_ratio(name, [a / b for a, b in pairs], theirs, mine)


def print_ratio(name, ratios, theirs, mine):
    print(f'{name:60} {statistics.median(ratios):6.2f}x  ({min(ratios):.2f} to {max(ratios):.2f})'
          f'  {1000 * theirs:10.2f} ms  {1000 * mine:10.2f} ms', flush=True)


def random_pictures(pictures):
    """Grey pictures and numbers of colours to train on."""
    cats = torch.randint(len(COLOURS), (pictures, 1, 32, 32), dtype=torch.int16)
    return torch.rand(pictures, 1, 32, 32), cats


def reference_training(make, batch_size, pictures, device):
    """An epoch of the reference, to be called."""
    grey, cats = random_pictures(pictures)
    model = reference_network(make).to(device)
    optimizer = torch.optim.Adam(model.parameters())
    loader = DataLoader(TensorDataset(grey, cats[:, 0].long()), batch_size, shuffle=True)
    return lambda: reference_epoch(model, optimizer, loader, device)


def expert_training(make, batch_size, pictures, device):
    """An epoch as an expert writes it, without averages and accuracies, to be called."""
    grey, cats = (tensor.to(device) for tensor in random_pictures(pictures))
    model = reference_network(make).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)

    def epoch():
        model.train()
        total = 0
        for indices in torch.randperm(pictures, device=device).split(batch_size):
            x, y = grey[indices].contiguous(memory_format=torch.channels_last), cats[indices, 0].long()
            with torch.autocast(device.type, torch.bfloat16, enabled=multiplies_bfloat16(device)):
                scores = model(x)
            loss = F.cross_entropy(scores.float(), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        return total.item()
    return epoch


def our_training(make, batch_size, pictures, device):
    """An epoch of ours, to be called."""
    train_set = [tensor.to(device) for tensor in random_pictures(pictures)]
    model = make(3, 32, len(COLOURS)).to(device, memory_format=torch.channels_last)
    learner = copy.deepcopy(model)
    average = AverageOfWeights(model, learner)
    optimizer = torch.optim.AdamW(learner.parameters(), weight_decay=0, fused=True)
    scheduler, generator = ConstantLR(optimizer, factor=1), torch.Generator()
    return lambda: train_epoch(learner, average, optimizer, scheduler, classification,
                               batches(train_set, batch_size, generator), multiplies_bfloat16(device))


def serve(connection, training, *about):
    np.ones((10_000, 3072), np.uint8)  # like a batch of CIFAR-10, after which the allocator asks Linux less
    epoch = training(*about)
    while True:
        connection.recv()
        connection.send(seconds(epoch, about[-1]))


@contextmanager
def in_its_own_process(*training):
    """Each call makes an epoch of a training there, which shares memory and threads with no other."""
    here, there = spawn.Pipe()
    process = spawn.Process(target=serve, args=(there, *training), daemon=True)
    process.start()
    there.close()  # or nobody would notice that the process has failed
    try:
        yield lambda: (here.send(None), here.recv())
    finally:
        process.terminate()


def steps(args, device):
    for make in (UNet, DilatedUNet):
        for batch_size, pictures in ((10, 1000), (100, 2000)):
            about = make, batch_size, pictures, device
            name = f'training step, {make.__name__}, batch of {batch_size}'
            with in_its_own_process(reference_training, *about) as reference, \
                    in_its_own_process(expert_training, *about) as expert, \
                    in_its_own_process(our_training, *about) as ours:
                compare(name, reference, ours, args.rounds)
                compare(f"{name}, against an expert's", expert, ours, args.rounds)


def dilation(args, device):
    mine = MyDilatedConv2d(64, 64, 3, dilation=1).to(device)
    torchs = nn.Conv2d(64, 64, 3, padding=2, dilation=2).to(device)
    for batch_size in (10, 100):
        x = torch.randn(batch_size, 64, 8, 8, device=device)
        x = x.to(memory_format=torch.channels_last).requires_grad_()

        def work(layer, bfloat16, x=x):
            def forward_and_backward():
                for _ in range(50):
                    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                        y = layer(x)
                    y.float().sum().backward()
            return forward_and_backward

        for bfloat16 in {False, multiplies_bfloat16(device)}:
            kind = 'bfloat16' if bfloat16 else 'float32'
            compare(f'dilated convolution, {kind}, batch of {batch_size}', work(torchs, bfloat16),
                    work(mine, bfloat16), args.rounds, device)


def colours(args):
    xs = np.random.default_rng(0).random((1000, 3, 32, 32), np.float32)
    compare('nearest colours of a million pixels', lambda: reference_cats(xs),
            lambda: get_rgb_cat(xs, COLOURS), args.rounds)


def command(args):
    """The reference script, the same command of ours, and short ones: seconds, peak memory, accuracy."""
    data = str(Path(args.data).resolve())
    ours = [sys.executable, ROOT / 'colourization.py', '--model', 'UNet', '--data', data]
    commands = [[sys.executable, __file__, '--reference', data, *FLAGS.split()],
                *([*ours, *flags.split()] for flags in (FLAGS, *SHORT))]
    times, peaks, accuracies = [[[] for _ in commands] for _ in range(3)]
    for seed in range(args.command_rounds):
        for i, words in enumerate(commands):
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                done = subprocess.run([sys.executable, '-c', MEASURE, *words, '-s', str(seed)], cwd=folder,
                                      text=True, stdout=subprocess.PIPE, check=True)
                times[i].append(time.perf_counter() - start)
            line, peak = done.stdout.splitlines()
            peaks[i].append(int(peak) / 1024)
            accuracies[i].append(float(line.split()[-1].removesuffix('%')))
    for flags, ours in zip((FLAGS, *SHORT), times[1:]):
        print_ratio(f'whole command, UNet, {flags}', [a / b for a, b in zip(times[0], ours)],
                    *map(statistics.median, (times[0], ours)))
    for name, some, digits in ('peak memory, MB', peaks, 0), ('accuracy, %', accuracies, 1):
        print(f'    {name}: ' + ', '.join(f'{statistics.mean(values):.{digits}f}' for values in some)
              + ' (the script, then as above)')


def gpu_loop(device):
    """25 epochs of 5,000 pictures in batches of 100, and how much of that time the GPU works."""
    epoch = our_training(UNet, 100, 5000, device)
    epoch()
    wall = seconds(lambda: [epoch() for _ in range(25)], device)
    with torch.profiler.profile() as profile:
        seconds(epoch, device)
    busy = 25e-6 * sum(event.self_device_time_total for event in profile.key_averages()
                       if event.device_type != DeviceType.CPU and not event.is_user_annotation)
    print(f'25 epochs of the UNet in batches of 100: {wall:.2f} s, of which the GPU works {busy / wall:.0%}')


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--data', default='data',
                        help='where CIFAR-10 is, for the whole command (default: data)')
    parser.add_argument('--only', metavar='PART',
                        choices=['step', 'dilation', 'colours', 'command', 'loop'],
                        help='one of %(choices)s; colours and command are of the CPU, loop of the GPU')
    parser.add_argument('--rounds', type=int, default=7, help='of each comparison (default: %(default)s)')
    parser.add_argument('--command_rounds', type=int, default=3,
                        help='of the whole command (default: %(default)s)')
    parser.add_argument('--gpu', action='store_true',
                        help='measure steps, dilation and the training loop there')
    parser.add_argument('--reference', metavar='DATA',
                        help='run the reference script instead, with -b, -e and -s')
    parser.add_argument('-b', type=int, default=10)
    parser.add_argument('-e', type=int, default=5)
    parser.add_argument('-s', type=int, default=0)
    args = parser.parse_args()
    if args.reference:
        torch.manual_seed(args.s)
        return reference_script(args.reference, args.b, args.e)

    device = choose_device(args.gpu)
    parts = {'step': lambda: steps(args, device), 'dilation': lambda: dilation(args, device)}
    if device.type == 'cpu':
        parts |= {'colours': lambda: colours(args), 'command': lambda: command(args)}
    else:
        parts['loop'] = lambda: gpu_loop(device)
    chosen = [args.only] if args.only else list(parts)
    if not {*chosen} <= {*parts}:
        parser.error(f'{args.only} cannot be measured on this device')
    if 'command' in chosen and not (Path(args.data) / ARCHIVE).exists():
        parser.error(f'{args.data} has no {ARCHIVE}: name the folder of the archive with --data')

    print(f'torch {torch.__version__}, {torch.get_num_threads()} threads, bfloat16 '
          f'{"multiplied" if multiplies_bfloat16(device) else "not multiplied"} by the hardware, {device}')
    print(f'{"":60} times as fast (spread)  {"the reference":>10}  {"ours":>10}')
    for name in chosen:
        parts[name]()


if __name__ == '__main__':
    main()
