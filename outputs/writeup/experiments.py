"""Part F by experiment: which augmentations help (F.1), and what tuning is worth (F.2).

    python outputs/writeup/experiments.py --data data

Every run is a command of colourization.py, validated on 500 training horses that it does not train on. Writes
`results/experiments.csv`, a line a run, none of which is repeated, and `results/part_f.md`, the tables.
"""

import argparse
import csv
import io
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev

from scipy.stats import dunnett

sys.path.append(str(Path(__file__).resolve().parent))  # which `python -P` leaves out
from comparison import HERE, ROOT  # which finds the modules of the root
from colourization import run
from load_data import InputError, whole_file

RUNS, PAGE = HERE / 'results/experiments.csv', HERE / 'results/part_f.md'
MAIN = {'--model': 'UNet', '--schedule': 'onecycle', '-l': 0.03, '-b': 16, '--hold_out': 500}
SHIFTS = 'shift_lr shift_ud'

FORMS = {'val_loss': '.3f', 'val_accuracy': '.1f', 'gain': '+.1f'}  # what tables tell
TESTED = {'val_loss': 'val_loss', 'gain': 'val_accuracy', 'val_error_back': 'val_error_back'}  # by what
PERCENT = {'val_accuracy', 'middle_active'}

# The tables: the flags of the first row, those that each row changes, and the seeds.
# The 4,500 horses 11 times are as many pictures as all 49,500 of the ten classes once.
TABLES = {
    'F.1: augmentation, as many pictures as 11 epochs of horses': (MAIN | {'-e': 11}, {
        'none': {}, '(a) flip_ud': {'--augment': 'flip_ud'}, '(b) flip_lr': {'--augment': 'flip_lr'},
        '(c) shift_lr': {'--augment': 'shift_lr'}, '(d) shift_ud': {'--augment': 'shift_ud'},
        '(e) classes': {'--augment': 'classes', '-e': 1},
        '(b), (c) and (d)': {'--augment': f'flip_lr {SHIFTS}'},
        '(a), (b), (c) and (d)': {'--augment': f'flip_ud flip_lr {SHIFTS}'},
        '(b), (c), (d) and (e)': {'--augment': f'flip_lr {SHIFTS} classes', '-e': 1}}, range(6)),
    'F.1: augmentation, as many pictures as 22 epochs of horses': (MAIN | {'-e': 22}, {
        'none': {}, '(e) classes': {'--augment': 'classes', '-e': 2},
        '(b), (c) and (d)': {'--augment': f'flip_lr {SHIFTS}'}}, range(6)),
    'F.1: augmentation, each horse once': (MAIN | {'-e': 1}, {
        'none': {}, '(e) classes': {'--augment': 'classes'}}, range(6)),
    'F.2: hyperparameters': (MAIN | {'-e': 6}, {
        'one cycle with a peak of 0.03, batches of 16, 6 epochs, 32 filters of 3x3, bfloat16': {},
        'peak of 0.001': {'-l': 0.001}, 'peak of 0.01': {'-l': 0.01}, 'peak of 0.1': {'-l': 0.1},
        'constant 0.001, as in the course': {'--schedule': 'constant', '-l': 0.001},
        'constant 0.03': {'--schedule': 'constant'}, 'batches of 8': {'-b': 8}, 'batches of 32': {'-b': 32},
        'batches of 100': {'-b': 100}, 'batches of 100, as many steps': {'-b': 100, '-e': 38},
        '11 epochs': {'-e': 11}, '22 epochs': {'-e': 22}, '16 filters': {'-f': 16}, '64 filters': {'-f': 64},
        'filters of 1x1': {'-k': 1}, 'filters of 5x5': {'-k': 5},
        'weight decay 0.01': {'--weight_decay': 0.01}, 'float32': {'--float32': ''}}, range(3)),
    'Beyond the handout: a prior of the grey level': (MAIN | {'-e': 6}, {
        'no prior': {}, '766 entries': {'--prior': 766}, '128 entries': {'--prior': 128},
        '32 entries': {'--prior': 32}}, range(3)),
}

INTRODUCTION = '''# Part F, answered by experiment

Made by `python outputs/writeup/experiments.py`; every run is a line of `experiments.csv`. All networks are
UNets, trained on 4,500 of the 5,000 training horses and validated on the other 500, with 24 colours.
Numbers are means over the seeds ± their standard deviation; gains in accuracy over the first row are in
points, between runs of the same seed. A star marks the losses and gains that differ significantly from the
first row: p < 0.05 in Dunnett's test of all rows, which covers the chance in training, not in the choice of
the pictures. Without a star, a difference is not shown. Losses are cross entropies, the training loss that
of the last epoch, of the weights while they learn. What follows from the tables is in the write-up, part F.
'''


def command_of(flags):
    return ' '.join(['colourization.py', *(f'{flag} {value}'.strip() for flag, value in flags.items())])


def read_table(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def history(command, seed, data):
    """Run a command; returns a line for each epoch."""
    with tempfile.TemporaryDirectory() as folder:
        script, *flags = shlex.split(command)
        done = subprocess.run([sys.executable, ROOT / script, *flags, '--seed', str(seed),
                               '--data', data, '--outdir', folder], stdout=subprocess.DEVNULL)
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


def commands(first, rows):
    """The commands of a table, by label."""
    return {label: command_of(first | changes) for label, changes in rows.items()}


def planned_runs():
    return list(dict.fromkeys((command, seed) for first, rows, seeds in TABLES.values()
                              for seed in seeds for command in commands(first, rows).values()))


def run_missing(planned, path, data, train):
    """Run the pairs of name and seed that a file of runs lacks; each run is kept as soon as it is done.

    `train(name, seed, data)` gives what a run reached, a line of the file. Returns all lines.
    """
    runs = read_table(path) if path.exists() else []
    pairs = [(run['run'], int(run['seed'])) for run in runs]
    for name, seed in planned:
        if (name, seed) not in pairs:
            runs.append({'run': name, 'seed': str(seed)} | train(name, seed, data))
            pairs.append((name, seed))
            write_table([runs[pairs.index(pair)] for pair in planned if pair in pairs], path)
            print(f'[{len(runs)}/{len(planned)}]', name, seed, runs[-1]['val_accuracy'], flush=True)
    return runs


def spread(values, form):
    """Mean and standard deviation over the seeds, the latter with a digit that is not 0."""
    while stdev(values) and float(f'{stdev(values):{form.lstrip("+")}}') == 0:
        form = re.sub(r'\d+', lambda digits: str(int(digits[0]) + 1), form)
    return f'{mean(values):{form}} ± {stdev(values):{form.lstrip("+")}}'


def measures(names, seeds, runs):
    """What runs reached, by label of a run's name: lists by seed of each measure.

    Their `gain` is how much more accurate they are than the first.
    """
    found = {}
    for label, name in names.items():
        chosen = {int(run['seed']): run for run in runs if run['run'] == name}
        if missing := set(seeds) - set(chosen):
            raise InputError(f'{name} was not run with seed {min(missing)}: experiments.py and, without '
                             '--only, writeup.py run what is missing')
        row = {measure: [float(chosen[seed][measure]) for seed in seeds] for measure in runs[0]
               if measure not in ('run', 'seed') and all(chosen[seed][measure] for seed in seeds)}
        row |= {measure: [100 * share for share in row[measure]] for measure in PERCENT & row.keys()}
        found[label] = row
        first = next(iter(found.values()))['val_accuracy']
        row['gain'] = [a - b for a, b in zip(row['val_accuracy'], first)]
    return found


def table(block, forms):
    """The rows of a table of `measures`, as texts; a star marks what differs significantly from the first."""
    rows, (first, *others) = [[label] for label in block], block.values()
    for measure, form in forms.items():
        chances = [1] * len(rows)
        if measure in TESTED:
            of = TESTED[measure]  # the test draws random numbers: with a seed, the same ones
            chances[1:] = dunnett(*(row[of] for row in others), control=first[of], random_state=0).pvalue
        for row, values, chance in zip(rows, block.values(), chances):
            text = spread(values[measure], form) + (' *' if chance < 0.05 else '')
            row.append('' if measure == 'gain' and values is first else text)
    return rows


def page(runs):
    parts = [INTRODUCTION]
    for title, (first, rows, seeds) in TABLES.items():
        block = measures(commands(first, rows), seeds, runs)
        lines = [['', 'loss', 'accuracy, %', 'gain', 'training loss'], ['---'] * 5,
                 *table(block, FORMS | {'train_loss': '.3f'})]
        table_text = '\n'.join(f'| {" | ".join(line)} |' for line in lines)
        parts.append(f'## {title}\n\nFirst row, over {len(seeds)} seeds: `python {command_of(first)}`\n\n'
                     f'{table_text}\n')
    return '\n'.join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--data', default=ROOT / 'data', help='where CIFAR-10 is (default: data/)')
    args = parser.parse_args()
    if args.data == 'sample':
        raise InputError('--data sample will not do: name a folder with the horses of CIFAR-10')

    runs = run_missing(planned_runs(), RUNS, args.data, lambda *run: history(*run)[-1])
    with whole_file(PAGE) as file:
        file.write(page(runs).encode())
    print(f'All {len(runs)} runs are in {RUNS}, and their tables in {PAGE}')


if __name__ == '__main__':
    run(main)
