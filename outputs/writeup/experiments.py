"""Part F by experiment: which augmentations help (F.1), and what tuning is worth (F.2).

    python outputs/writeup/experiments.py --data data --jobs 2

Every run is one command of colourization.py, validated on 500 training horses that it does not
train on; the test horses have no part in it. Writes `results/experiments.csv`, a line a run with
its command, and `results/part_f.md`, the tables. A run that the former already has is not repeated.
"""

import argparse
import csv
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from statistics import mean, stdev

from scipy.stats import ttest_rel

HERE = Path(__file__).resolve().parent
RUNS, PAGE = HERE / 'results/experiments.csv', HERE / 'results/part_f.md'
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from colourization import number_type, run  # noqa: E402
from load_data import InputError, whole_file  # noqa: E402

SEEDS = range(3)
MORE_SEEDS = range(6)  # where differences are small

MAIN = {'--model': 'UNet', '--schedule': 'onecycle', '-l': 0.03, '-b': 16, '--hold_out': 500}
SHIFTS = 'shift_lr shift_ud'

# The tables: the flags of the first row, those that each row changes, the seeds, and what the table says.
# The 4,500 horses 11 times are as many pictures as all 49,500 of the ten classes once.
TABLES = {
    'F.1: augmentation, as many pictures as 11 epochs of horses': (MAIN | {'-e': 11}, {
        'none': {},
        '(a) flip_ud': {'--augment': 'flip_ud'},
        '(b) flip_lr': {'--augment': 'flip_lr'},
        '(c) shift_lr': {'--augment': 'shift_lr'},
        '(d) shift_ud': {'--augment': 'shift_ud'},
        '(e) classes': {'--augment': 'classes', '-e': 1},
        '(b), (c) and (d)': {'--augment': f'flip_lr {SHIFTS}'},
        '(a), (b), (c) and (d)': {'--augment': f'flip_ud flip_lr {SHIFTS}'},
        '(b), (c), (d) and (e)': {'--augment': f'flip_lr {SHIFTS} classes', '-e': 1}}, MORE_SEEDS,
        """In so short a training no augmentation is worth much: (a) to (d), alone or together, change the
accuracy by no more than chance might; upside down (a) makes the loss larger. The other classes (e)
harm where the number of steps is the same; we believe because most of the steps go into the colours
of ships and frogs, and so small a network is not yet short of pictures."""),
    'F.1: augmentation, as many pictures as 22 epochs of horses': (MAIN | {'-e': 22}, {
        'none': {},
        '(e) classes': {'--augment': 'classes', '-e': 2},
        '(b), (c) and (d)': {'--augment': f'flip_lr {SHIFTS}'}}, MORE_SEEDS,
        """The longer the training, the more augmentation is worth: without it, the training loss is now
below the validation loss, so pictures are memorised; with (b), (c) and (d) it is not, and the
accuracy gains. We believe because a mirrored horse is as good a picture as the original, and because
a convolution is equivariant to shifts, but the two poolings are not: the pixels of a shifted picture
fall into other 2x2 blocks. The shipped weights were trained with these three, for longer still. The
other classes catch up, but within as many pictures as 22 epochs of horses they do not reach the
horses alone."""),
    'F.2: hyperparameters': (MAIN | {'-e': 6}, {
        'one cycle with a peak of 0.03, batches of 16, 6 epochs, 32 filters of 3x3': {},
        'peak of 0.001': {'-l': 0.001},
        'peak of 0.01': {'-l': 0.01},
        'peak of 0.1': {'-l': 0.1},
        'constant 0.001, as in the course': {'--schedule': 'constant', '-l': 0.001},
        'constant 0.03': {'--schedule': 'constant'},
        'batches of 8': {'-b': 8},
        'batches of 32': {'-b': 32},
        'batches of 100': {'-b': 100},
        'batches of 100, as many steps': {'-b': 100, '-e': 38},
        '11 epochs': {'-e': 11},
        '22 epochs': {'-e': 22},
        '16 filters': {'-f': 16},
        '64 filters': {'-f': 64},
        'filters of 1x1': {'-k': 1},
        'filters of 5x5': {'-k': 5},
        'weight decay 0.01': {'--weight_decay': 0.01},
        'float32 throughout': {'--float32': ''}}, SEEDS,
        """Filters of 1x1, which see only what the poolings bring together, lose most. Next comes the
learning rate: the course's constant 0.001 is too small for so short a training, and as the peak of a
one-cycle schedule, which is lower still on average, 0.001 loses more. From a peak of 0.01 on no
difference is beyond chance. Batches of 100 lose in as many epochs and lose nothing in as many steps,
in which they also see more than six times as many pictures; so the table does not tell whether it is
the steps or the pictures that they need. More epochs seem to be worth more than more filters, but
over three seeds neither gain is beyond chance. Filters of 5x5 have nearly three times the weights,
and after as many steps they are behind. Of weight decay and float32 no effect is seen."""),
    'Beyond the handout: a prior of the grey level': (MAIN | {'-e': 6}, {
        'no prior': {},
        '766 entries': {'--prior': 766},
        '128 entries': {'--prior': 128},
        '32 entries': {'--prior': 32}}, SEEDS,
        """The 24 colours differ in brightness more than in anything else, so a table that says what is
probable at each grey level is worth more than all of the above, in accuracy. One entry for every
sum of red, green and blue serves best."""),
}

INTRODUCTION = """# Part F, answered by experiment

Made by `python outputs/writeup/experiments.py`; every run is a line of `experiments.csv`. All networks are
UNets, trained on 4,500 of the 5,000 training horses and validated on the other 500, with 24 colours. Each
number is the mean over the seeds ± its standard deviation; the gain in accuracy over the first row is in
points, between runs of the same seed. A star marks the gains, and the losses, that differ from the first
row: the p of a paired t-test, times the number of rows below the first (Bonferroni), is below 0.05. That
covers the chance in training, not in the choice of the 500 pictures. Losses are cross entropies; that of
the training pictures is the last epoch's, of the weights while they learn. The error of the pictures was
not measured.
"""


def command_of(flags):
    return ' '.join(['colourization.py', *(f'{flag} {value}'.strip() for flag, value in flags.items())])


def read_table(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def train(command, seed, data, threads):
    """Run a command; returns its line of experiments.csv."""
    return {'command': command, 'seed': str(seed)} | history(command, seed, data, threads)[-1]


def history(command, seed, data, threads):
    """Run a command; returns a line for each epoch."""
    with tempfile.TemporaryDirectory() as folder:
        script, *flags = shlex.split(command)
        done = subprocess.run([sys.executable, ROOT / script, *flags, '--seed', str(seed),
                               '--data', data, '--outdir', folder], stdout=subprocess.DEVNULL,
                              env=os.environ | {'OMP_NUM_THREADS': str(threads)})
        if done.returncode:
            raise InputError(f'this run failed, its error is above: {command}')
        path, = Path(folder).glob('history_*.csv')
        return read_table(path)


def write_table(lines, path):
    table = io.StringIO(newline='')
    writer = csv.DictWriter(table, lines[0])
    writer.writeheader()
    writer.writerows(lines)
    with whole_file(path) as file:
        file.write(table.getvalue().encode())


def write_runs(runs):
    order = {command: i for i, (command, _) in enumerate(planned_runs())}
    write_table(sorted(runs, key=lambda run: (order.get(run['command'], len(order)), int(run['seed']))),
                RUNS)


def planned_runs():
    return list(dict.fromkeys((command_of(first | changes), seed) for first, rows, seeds, _ in TABLES.values()
                              for seed in seeds for changes in rows.values()))


def by_seed(runs, measure, seeds, name):
    """A measure of some runs, one for each seed; an error calls them `name`."""
    values = {int(run['seed']): float(run[measure]) for run in runs}
    if missing := set(seeds) - set(values):
        raise InputError(f'{name} was not run with seed {min(missing)}: experiments.py and, without --only, '
                         'writeup.py run what is missing')
    return [values[seed] for seed in seeds]


def spread(values, form):
    """Mean and standard deviation over the seeds, the latter with a digit that is not 0."""
    while stdev(values) and float(f'{stdev(values):{form.lstrip("+")}}') == 0:
        form = re.sub(r'\d+', lambda digits: str(int(digits[0]) + 1), form)
    return f'{mean(values):{form}} ± {stdev(values):{form.lstrip("+")}}'


def star(values, reference, comparisons):
    """A star where values of some seeds differ from the reference's by more than chance makes of them."""
    return ' *' if comparisons * ttest_rel(values, reference).pvalue < 0.05 else ''


def table(first, rows, seeds, runs):
    """A table in Markdown; a star marks the losses and gains that chance alone hardly makes."""
    def column(changes, name):
        command = command_of(first | changes)
        return by_seed([run for run in runs if run['command'] == command], name, seeds, command)

    lines = ['| | loss | accuracy, % | gain | training loss |', '|---|---|---|---|---|']
    reference = [100 * a for a in column({}, 'val_accuracy')]
    for label, changes in rows.items():
        accuracy, losses = [100 * a for a in column(changes, 'val_accuracy')], column(changes, 'val_loss')
        loss, gain = spread(losses, '.3f'), ''
        if changes:
            loss += star(losses, column({}, 'val_loss'), len(rows) - 1)
            gain = spread([a - b for a, b in zip(accuracy, reference)], '+.1f')
            gain += star(accuracy, reference, len(rows) - 1)
        lines.append(f'| {label} | {loss} | {spread(accuracy, ".1f")} | {gain} '
                     f'| {spread(column(changes, "train_loss"), ".3f")} |')
    return '\n'.join(lines)


def page(runs):
    tables = (f'## {title}\n\nFirst row, over {len(seeds)} seeds: `python {command_of(first)}`\n\n'
              f'{table(first, rows, seeds, runs)}\n\n{text}\n'
              for title, (first, rows, seeds, text) in TABLES.items())
    return '\n'.join([INTRODUCTION, *tables])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--data', default=ROOT / 'data', help='where CIFAR-10 is (default: data/)')
    parser.add_argument('--jobs', type=number_type(int, 1), default=1, help='runs at a time (default: 1)')
    args = parser.parse_args()
    if args.data == 'sample':
        raise InputError('--data sample will not do: name a folder with the horses of CIFAR-10')

    runs = read_table(RUNS) if RUNS.exists() else []
    done = {(run['command'], int(run['seed'])) for run in runs}
    todo = [pair for pair in planned_runs() if pair not in done]
    RUNS.parent.mkdir(exist_ok=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        waiting = [pool.submit(train, *pair, args.data, max(1, os.cpu_count() // args.jobs))
                   for pair in todo]
        for i, finished in enumerate(as_completed(waiting), 1):
            runs.append(finished.result())
            write_runs(runs)
            print(f'[{i}/{len(todo)}]', *list(runs[-1].values())[:2], runs[-1]['val_accuracy'], flush=True)
    with whole_file(PAGE) as file:
        file.write(page(runs).encode())
    print(f'All {len(runs)} runs are in {RUNS}, and their tables in {PAGE}')


if __name__ == '__main__':
    run(main)
