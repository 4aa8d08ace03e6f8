"""The commands: what they print and leave behind, flags, exit status, streams, surroundings, the READMEs."""

import copy
import errno
import json
import math
import os
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
import venv
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import version
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement  # which pytest needs

import activations
import colour_regression
import colourization
from colourization import CNN, Settings, colour_counts, log_frequencies, parse_args, report, run
from conftest import ROOT, is_picture, part_of_sample, peak_memory, raising, read_once, refusing, unix_only
from files import image, npy, saved
from load_data import InputError

COLOURS = np.random.default_rng(0).random((24, 3), dtype=np.float32)


# ---- What a command does ----


def test_training_prints_the_lines_of_the_course_and_its_files_say_the_same(run_script, tmp_path):
    done = run_script('colourization.py', '--model', 'UNet', '--data', 'sample', '-e', 2, '-f', 4, '--plot',
                      '--checkpoint', 'w.pkl', draw=True)
    assert (done.status, done.errors) == (0, '')
    *epochs, last = [line for line in done.output.splitlines() if re.match('Epoch|Val Loss', line)]
    valid = r'Val Loss: \d+\.\d{4}, Val Acc: \d+\.\d%'
    for epoch, first, second in zip((1, 2), epochs[::2], epochs[1::2], strict=True):
        line = rf'Epoch \[{epoch}/2\]'
        assert re.fullmatch(rf'{line}, Loss: \d+\.\d{{4}}, Time \(s\): \d+ \(sample\)', first)
        assert re.fullmatch(rf'{line}, {valid}, Time\(s\): \d+ \(sample\)', second)
    assert re.fullmatch(rf'{valid} \(sample\)', last)
    for name in ('training_curve_UNet', 'eval_UNet', 'eval_UNet_epoch02'):
        assert is_picture(tmp_path / f'outputs/{name}.png')
    assert torch.load(tmp_path / 'w.pkl', weights_only=True)['finalconv.bias'].shape == (24,)

    header, *rows = (tmp_path / 'outputs/history_UNet.csv').read_text('utf-8').splitlines()
    assert header == 'epoch,seconds,train_loss,train_accuracy,val_loss,val_accuracy'
    for row, first, second in zip(rows, epochs[::2], epochs[1::2], strict=True):
        _, _, train_loss, _, val_loss, val_accuracy = map(float, row.split(','))
        assert f' Loss: {train_loss:.4f}, T' in first
        assert f'Val Loss: {val_loss:.4f}, Val Acc: {val_accuracy:.1%}, ' in second
    metrics = json.loads((tmp_path / 'outputs/metrics_UNet.json').read_text('utf-8'))
    assert metrics['val_loss'] == val_loss and metrics['data'] == 'sample pictures'
    assert f'Val Loss: {val_loss:.4f}, Val Acc: {val_accuracy:.1%}' in last


@pytest.mark.parametrize('command, total', [
    ('colour_regression.py', 75156), ('colour_regression.py -f 16', 19188),
    ('colourization.py -m CNN -f 16', 27336),
    ('colour_regression.py --checkpoint weights/regression_cnn_k3_f16.pkl', 19188),
    ('colourization.py -m CNN -f 16 --prior 100', 27336 + 2400),
    ('colourization.py -m DUNet --checkpoint weights/dunet_k3_f32.pkl', 111888)])
def test_summary_prints_the_layers_without_data(command, total, run_script, tmp_path):
    done = run_script(*command.split(), '--summary', '--data', 'none')
    assert done.status == 0 and done.output.split()[0] == 'stage'
    assert done.output.splitlines()[-1].split()[:2] == ['total', str(total)]
    assert not list(tmp_path.iterdir())


@pytest.fixture
def called(monkeypatch):
    """What a script that trains calls, by name: with which arguments and settings. It gets small data."""
    rng, called = np.random.default_rng(0), {}
    data = rng.integers(0, 256, (60, 3, 32, 32), np.uint8), rng.choice([3, 7], (60, 1))

    def note(name, returned):
        def call(*arguments, **settings):
            called[name] = arguments, copy.deepcopy(settings)  # to which the script adds later
            return returned
        monkeypatch.setattr(colourization, name, call)
    note('load_cifar10', (data, data))
    note('train', None)
    note('evaluate', ({'loss': 0}, {}))
    note('report', None)
    return called, data


@pytest.mark.parametrize('script, name, file_name, prior, temperature', [
    ('colourization.py -m DUNet -c c.npy --prior 9 --temperature 0.5', 'DUNet_prior', 'eval_DUNet_prior',
     9, 0.5),
    ('colour_regression.py --train', 'RegressionCNN', 'regression_output', 0, 0)])
def test_every_flag_of_a_training_reaches_it(script, name, file_name, prior, temperature, called, run_script,
                                             tmp_path):
    """Each has another value than its default; --gpu is left to test_devices.py."""
    called, (xs, ys) = called
    colours = COLOURS[:4]
    np.save(tmp_path / 'c.npy', colours)
    (tmp_path / 'w.pkl.resume').touch()  # which stops who does not say --resume
    done = run_script(
        *script.split(), *'-k 5 -f 2 --checkpoint w.pkl -b 7 -e 3 -l 0.02 --schedule onecycle --weight_decay '
        '0.3 --augment zoom shift_ud --hold_out 12 -s 6 --float32 --plot --resume --data there --category 3 '
        '--outdir results'.split())
    (model, _, (grey, numbers), valid_set, settings, *others), draw = called['train']
    its_colours = None if name == 'RegressionCNN' else colours
    assert called['load_cifar10'] == (('there',), {})
    assert settings == Settings(
        name, 'category 3 of CIFAR-10', batch_size=7, epochs=3, learn_rate=0.02, schedule='onecycle',
        weight_decay=0.3, augment=['shift_ud', 'zoom'], hold_out=12, seed=6, float32=True,
        colours=None if its_colours is None else colours.tolist())
    assert others == [Path('w.pkl'), Path('results'), True]

    bound = 1 / 5  # of the first filters, of 1x5x5 weights, which the seed decides
    weight = torch.empty(2, 1, 5, 5).uniform_(-bound, bound, generator=torch.Generator().manual_seed(6))
    assert torch.equal(model.downconv1[0].weight, weight)
    cats = xs[ys[:, 0] == 3] / np.float32(256)
    training, held_out = cats[:-12], cats[-12:]
    assert np.array_equal(grey, training.mean(axis=1, keepdims=True))
    if prior:
        torch.testing.assert_close(model.prior.data, log_frequencies(colour_counts(grey, numbers, 4), 9))

    assert done.figures.keys() == {f'{file_name}.png'} and draw.keys() == {'draw'}
    (evaluated, _, its_valid_set, true_pictures, used_colours, used_temperature), _ = called['evaluate']
    assert evaluated is model and its_valid_set is valid_set and used_temperature == temperature
    assert np.array_equal(true_pictures, held_out * 256) and np.array_equal(used_colours, its_colours)
    (_, reported, about, *_), _ = called['report']
    assert reported is model and about['network'] == name and about['pictures'] == 'category 3 of CIFAR-10'


@pytest.mark.parametrize('command, expected', [
    ('colourization.py -m CNN --valid --checkpoint weights/cnn_k3_f32.pkl --temperature 2 --hold_out 4',
     {'checkpoint': 'cnn_k3_f32.pkl', 'seed': None, 'temperature': 2, 'hold_out': 4, 'num_filters': 32}),
    ('colour_regression.py', {'model': 'RegressionCNN', 'checkpoint': 'regression_cnn_k3_f32.pkl',
                              'seed': None, 'num_filters': 32}),
    ('colour_regression.py --train -f 2', {'model': 'RegressionCNN',
                                           'checkpoint': 'regression_cnn_k3_f2.pkl'}),
    ('colourization.py -m CNN -k 1 -f 2 -c c.npy', {'checkpoint': 'cnn_k1_f2.pkl', 'kernel': 1,
                                                    'colours': COLOURS.tolist()}),
    ('colourization.py -m DUNet -f 2 --prior', {'model': 'DUNet_prior', 'prior': 766,
                                                'checkpoint': 'dunet_prior_k3_f2.pkl'})])
def test_metrics_say_how_they_came_about_and_checkpoints_are_called_after_it(
        command, expected, called, run_script, tmp_path, monkeypatch):
    called, _ = called
    monkeypatch.setattr(colourization, 'report', report)
    np.save(tmp_path / 'c.npy', COLOURS)
    run_script(*command.split(), '-s', 6, '--outdir', 'there')
    told, = (json.loads(path.read_text('utf-8')) for path in tmp_path.glob('there/metrics_*.json'))
    expected = {'model': 'CNN', 'kernel': 3, 'num_filters': 2, 'prior': 0, 'seed': 6, 'temperature': 0,
                'hold_out': 0, 'threads': torch.get_num_threads(), 'data': 'the horses of CIFAR-10',
                **expected}
    assert {name: told[name] for name in expected} == expected
    assert ('train' in called) == (told['seed'] == 6)
    if 'train' in called:
        arguments, drawing = called['train']
        assert arguments[5] == Path('there', told['checkpoint']) and drawing == {}  # without --plot


def test_defaults_are_those_of_the_course():
    assert vars(parse_args(['-m', 'UNet'])).items() >= {
        'batch_size': 100, 'epochs': 25, 'learn_rate': 0.001, 'schedule': 'constant', 'weight_decay': 0,
        'hold_out': 0, 'seed': 0, 'float32': False, 'model': 'UNet', 'valid': False, 'gpu': False,
        'checkpoint': Path('outputs/unet_k3_f32.pkl'), 'plot': False, 'data': None, 'kmeans': None,
        'outdir': Path('outputs'), 'resume': False, 'category': 7, 'entries': 0, 'temperature': 0,
        'augment': []}.items()
    assert parse_args(['-m', 'UNet', '--prior']).entries == 766
    assert vars(parse_args(['--image', 'a.jpg'])).items() >= {
        'model': 'UNet', 'checkpoint': Path('weights/unet_prior_all_k3_f64.pkl'), 'temperature': 1,
        'image_size': 224, 'saturation': 1.4}.items()


def test_lists_add_up():
    args = parse_args('--image a.jpg b.jpg --image c.jpg --augment flip_lr --augment zoom classes'.split())
    assert (list(map(str, args.image)), args.augment) == (['a.jpg', 'b.jpg', 'c.jpg'],
                                                          ['flip_lr', 'zoom', 'classes'])


@pytest.mark.parametrize('dash', '–—‐‑‒―−﹘－')
def test_pasted_dash_of_any_kind_is_a_hyphen(dash):
    args = parse_args([f'{dash}{dash}model', 'CNN', f'{dash}b', '5', f'{dash}f4', f'{dash}valid',
                       f'{dash}{dash}checkpoint=a{dash}b'])
    assert (args.model, args.batch_size, args.valid, args.checkpoint.name) == ('CNN', 5, True, f'a{dash}b')


@pytest.mark.parametrize('parse_args', [parse_args, colour_regression.parse_args])
def test_tilde_of_every_path_is_the_folder_of_the_user(parse_args, monkeypatch, tmp_path):
    """Shells leave it alone behind an equals sign."""
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('USERPROFILE', str(tmp_path))
    flags = ['data', 'outdir', 'checkpoint']
    if parse_args is colourization.parse_args:
        flags += ['image', 'colours']
    args = vars(parse_args([f'--{flag}=~/x' for flag in flags]))
    assert {str(*path) if isinstance(path, list) else str(path) for path in map(args.get, flags)} == {
        str(tmp_path / 'x')}


# ---- Wrong use ----


LIMITS = {'-b': (1, 10**6), '-e': (1, 10**6), '-f': (1, 4096), '-s': (0, 2**31), '--hold_out': (0, 10**6),
          '--prior': (1, 766), '--image_size': (4, 1024), '--kmeans': (2, 256), '-l': (1e-12, 10.),
          '--weight_decay': (0., 10.), '--temperature': (0., 100.), '--saturation': (0., 100.)}


@pytest.mark.parametrize('flag', LIMITS)
def test_numbers_up_to_their_limits_are_taken_and_others_are_not(flag, capsys):
    low, high = LIMITS[flag]
    words = [] if flag == '--kmeans' else ['-m', 'UNet']
    for value in (low, high):
        parse_args([*words, flag, str(value)])
    if isinstance(low, int):
        bad = [low - 1, high + 1, 10**30, low + 0.5]
    else:
        bad = [math.nextafter(low, -1), math.nextafter(high, math.inf), 'inf']
    for value in [*bad, 'nan', 'many', '']:
        with pytest.raises(SystemExit) as end:
            parse_args([*words, f'{flag}={value}' if flag[1] == '-' else f'{flag}{value}'])
        line, = capsys.readouterr().err.splitlines()
        assert end.value.code == 2 and line.startswith('error: argument ') and flag in line
        assert value == '' or f'number from {low} to {high} '.replace('.0', '') in line


def test_last_category_and_widest_filter_are_taken():
    args = parse_args('-m CNN --category 9 -k 31'.split())
    assert (args.category, args.kernel) == (9, 31)


CNN_WEIGHTS = '--checkpoint weights/cnn_k3_f32.pkl'
USAGE = {  # wrong flags of colourization.py, or of another script, and what the line says
    '': '--model', '-m cnn': 'DUNet', '-m CNN --nonsense': '--nonsense', '-m CNN --valid': '--checkpoint',
    "-m CNN 'two\nlines'": 'two lines',
    '-m CNN -k 4': 'choose from 1, 3, 5,', '-m CNN -k 33': '31', '-m CNN --augment flip_lr flip': 'flip_ud',
    '-m CNN --schedule cosine': 'onecycle', '-m CNN --category -1': '--category', '--image': '--image',
    '-m CNN --category 10': 'all', '--kmeans 3 -m UNet': '--model', '--kmeans 3 -c c.npy': '--colours',
    '--kmeans 3 --hold_out 5': '--hold_out', '--kmeans 3 --checkpoint w.pkl': '--checkpoint',
    **{f'{one} {other}': f'{other.split()[0]}: not allowed with argument {one.split()[0]}' for one, other in
       combinations(['--image a.png', '--kmeans 3', '--valid', '--resume', '--summary'], 2)},
    'colour_regression --summary --train': '--summary', 'colour_regression --resume': '--train',
    'activations': '--checkpoint', f'activations -1 {CNN_WEIGHTS}': '-1'}
INPUT = {  # what cannot be done, in a folder with the files c.npy, a.png, text and colour, and a pipe
    '--kmeans 3': 'colour/colour_kmeans3_cat7.npy cannot be written', '-m CNN -c missing.npy': 'missing.npy',
    '-m CNN --hold_out 3000 --data sample': '3000', '-m CNN --category 3': 'kmeans24_cat3.npy: no file of',
    '-m CNN --category 3 --data sample -c c.npy': 'no picture is of category 3',
    '-m CNN --valid --checkpoint missing.pkl': 'missing.pkl: no', f'-m UNet --summary {CNN_WEIGHTS}': 'a CNN',
    '-m UNet --valid --checkpoint weights/dunet_k3_f32.pkl': 'is a DilatedUNet, not a UNet',
    '-m UNet --valid --checkpoint weights/unet_prior_k3_f32.pkl --prior 5': '766',
    **{f'-m CNN --valid {CNN_WEIGHTS} {flag}': words for flag, words in {
        '-f 16': '-f 32', '-k 5': '-k 3', '--prior': 'no entries', '--outdir text': 'be written',
        '-c colour/colour_kmeans16_cat7.npy': 'other colours'}.items()},
    '-m CNN --checkpoint .': 'not a file', '-m CNN --checkpoint text/w.pkl': 'w.pkl cannot be written',
    '-m CNN --checkpoint pipe': 'not a file', '-m CNN --checkpoint a.png': 'a.png is not replaced',
    '-m CNN --outdir /proc': '/proc', '-m CNN --outdir text': 'be written', "-m CNN --data ''": 'no CIFAR-10',
    '--image a.png --outdir text': 'cannot be written', '--image a.png -c c.npy': 'than those of c.npy',
    'colour_regression -k 5': '-k 3', 'colour_regression -f 16': '-f 32',
    f'colour_regression {CNN_WEIGHTS}': 'is a CNN', f'activations -m UNet {CNN_WEIGHTS}': 'is a CNN',
    f'activations {CNN_WEIGHTS} -k 5': '-k 3', f'activations {CNN_WEIGHTS} -f 16': '-f 32',
    f'activations {CNN_WEIGHTS} --data dta': 'dta: no CIFAR-10',
    f'activations 100 {CNN_WEIGHTS} --data sample': 'the last one is 99',
    **{f'outputs/writeup/{script} --data sample': 'horses of CIFAR-10' for script in (
        'experiments', 'comparison', 'writeup')}}


@pytest.mark.parametrize('command, status, word', [
    *((command, 2, word) for command, word in USAGE.items()),
    *((command, 1, word) for command, word in INPUT.items())])
@unix_only
def test_wrong_use_is_told_in_a_line_before_any_work(command, status, word, run_script, tmp_path,
                                                     monkeypatch):
    for name, content in {'c.npy': npy(COLOURS), 'a.png': image(np.zeros((8, 8), np.uint8), 'PNG'),
                          'text': b'text', 'colour': b'text'}.items():
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / 'pipe')

    def contents():
        return {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}

    before = contents()
    if '--data' not in command:
        for owner in (colourization, activations):
            monkeypatch.setattr(owner, 'load_cifar10', None)
    script, *flags = shlex.split(command if command[:1].isalpha() else f'colourization {command}')
    done = run_script(f'{script}.py', *flags)
    line, = done.errors.splitlines()
    assert (done.status, done.output) == (status, '') and word in line
    assert contents() == before


@pytest.mark.parametrize('words', [
    'shapes do not match', 'CUDA error: an illegal memory access was encountered',
    'memory format option is only supported by strided tensors'])
def test_mistakes_of_the_program_itself_are_not_hidden(words):
    with pytest.raises(RuntimeError, match=words):
        run(raising(RuntimeError(words)))


MEMORY = 'error: there is not enough memory: close .*, or try a smaller .*--batch_size'


@pytest.mark.parametrize('main, line', [
    (lambda: torch.empty(10**15), MEMORY), (lambda: np.empty(10**15), MEMORY),
    (lambda: bytearray(10**15), MEMORY), (raising(RuntimeError('MPS backend out of memory')), MEMORY),
    (raising(RuntimeError('DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes')), MEMORY),
    (raising(torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20 GiB')), MEMORY),
    (raising(OSError(errno.EINVAL, 'Invalid argument', 'a.png')), 'error: a.png: Invalid argument'),
    (raising(OSError(errno.ENOSPC, 'No space left')), r'error: \[Errno 28\] No space left'),
    (raising(OSError()), 'error: OSError'),
    (raising(ImportError('DLL load failed')), 'error: DLL load failed: pip install .*')])
def test_what_a_user_can_put_right_ends_in_a_line(main, line):
    with pytest.raises(SystemExit, match=f'^{line}$'):
        run(main)


# ---- Streams ----


class Text:
    """The least that Python asks of a standard stream."""

    def __init__(self):
        self.text, self.flushed = '', []  # the latter is what had been written then

    def write(self, text):
        self.text += text

    def flush(self):
        self.flushed.append(self.text)


@pytest.mark.parametrize('number, status', [
    (errno.EPIPE, 1), (errno.EINVAL, 1),  # nobody reads it any more; the latter on Windows
    (errno.ENOSPC, 'error: standard output cannot be written (No space left on device): have it go '
                   'elsewhere')])
@pytest.mark.parametrize('script, flags', [(colourization, '-m CNN --summary'), (colourization, '--help'),
                                           (colour_regression, '--summary')])
@unix_only
def test_output_that_cannot_be_written_ends_a_run(number, status, script, flags, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'stdout', refusing(number))
    monkeypatch.setattr(sys, 'argv', ['script.py', *flags.split()])
    with pytest.raises(SystemExit) as end:
        run(script.main)
    assert end.value.code == status and capsys.readouterr().err == ''


@unix_only
def test_warning_that_cannot_be_written_ends_nothing(monkeypatch):
    monkeypatch.setattr(sys, 'stderr', refusing(errno.ENOSPC))
    assert colourization.choose_device(gpu=not torch.accelerator.is_available()).type == 'cpu'
    with colourization.only_warn():
        raise InputError('no room for a table')


@pytest.mark.parametrize('stream', [Text, lambda: None])
def test_standard_streams_may_be_any_and_each_line_is_flushed(stream, monkeypatch, tmp_path):
    out, err = stream(), stream()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(colourization, 'load_cifar10', lambda where: part_of_sample())
    monkeypatch.setattr(sys, 'argv', 'colourization.py -m CNN -f 2 -e 2 --data sample'.split())
    with redirect_stdout(out), redirect_stderr(err):
        run(colourization.main)
    assert (tmp_path / 'outputs/cnn_k3_f2.pkl').exists() and (tmp_path / 'outputs/eval_CNN.png').exists()
    if out is not None:
        lines = out.text.splitlines(keepends=True)
        assert 'Val Acc' in lines[-1]
        assert {''.join(lines[:count]) for count in range(1, len(lines) + 1)} <= set(out.flushed)


TRAINING = 'project/colourization.py -m CNN -f 2 -c two.npy --data sample'


@pytest.mark.parametrize('command, redirection, status, said', [
    ('project/colourization.py -m UNet --summary', '| true', 1, ''),
    *(pytest.param(*row, marks=pytest.mark.slow) for row in [
        ('-u project/colour_regression.py --help', '| true', 1, ''),
        ('-u project/colour_regression.py --summary', '| true', 1, ''),
        ('-u project/colourization.py --image a.png a.png', '| true', 1, ''),
        (f'{TRAINING} -e 50', '| head -1', 1, ''),
        *((f'{TRAINING} -e 1', closed, 0, '') for closed in ('>&-', '2>&-', '<&- >&- 2>&-'))])])
@unix_only
def test_streams_that_are_closed_make_no_noise_and_cost_nothing(command, redirection, status, said,
                                                                 tmp_path):
    (tmp_path / 'project').symlink_to(ROOT)
    np.save(tmp_path / 'two.npy', [[0.2, 0.2, 0.2], [0.7, 0.7, 0.7]])
    (tmp_path / 'a.png').write_bytes(image(np.zeros((8, 8), np.uint8), 'PNG'))
    done = subprocess.run(f'{{ {shlex.quote(sys.executable)} {command}; echo $? > status; }} {redirection}',
                          shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=120,
                          env=os.environ | {'PYTHONUNBUFFERED': ''})  # as -u
    assert re.fullmatch(said, done.stderr.strip())
    assert (tmp_path / 'status').read_text().strip() == str(status)
    assert (tmp_path / 'outputs/cnn_k3_f2.pkl').exists() == (TRAINING in command)


# ---- Surroundings ----


def test_help_needs_no_library_that_takes_seconds_to_import():
    code = ('import runpy, sys\nsys.argv[1:] = ["--help"]\n'
            'for script in ("colourization", "colour_regression", "activations"):\n'
            '    try: runpy.run_path(f"{script}.py", run_name="__main__")\n'
            '    except SystemExit as e: assert e.code == 0\n'
            '    assert not {"scipy", "sklearn", "matplotlib"} & sys.modules.keys(), script')
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count('usage: ') == 3, done.stderr


@pytest.mark.parametrize('script', ['colourization', 'colour_regression', 'activations'])
def test_scripts_find_each_other_without_their_folder_on_the_path(script, monkeypatch):
    """Which `python -P` and `-I` leave out, and Windows' embeddable Python."""
    monkeypatch.setattr(sys, 'path', [folder for folder in sys.path if Path(folder).resolve() != ROOT])
    for name in ('colourization', 'colour_regression', 'activations', 'load_data'):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert runpy.run_path(str(ROOT / f'{script}.py'), run_name='other')['main']


@pytest.mark.parametrize('environment', [
    {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'},
    pytest.param({'PYTHONIOENCODING': 'ascii:strict', 'PYTHONUTF8': '0'}, marks=pytest.mark.slow)])
def test_names_of_any_letters_work_in_any_locale_without_a_display(environment, run_script, tmp_path):
    folder = tmp_path / 'zwei Wörter 馬'
    folder.mkdir()
    (folder / 'Bild äöü 馬.png').write_bytes(image(np.zeros((8, 8, 3), np.uint8), 'PNG'))
    (folder / 'Farben 馬.npy').write_bytes(npy(COLOURS))
    (folder / 'Gewichte 馬.pkl').write_bytes(saved(CNN(3, 4, 24).state_dict()))
    done = run_script('colourization.py', '--image', folder / 'verloren 馬.png', folder / 'Bild äöü 馬.png',
                      '-m', 'CNN', '--checkpoint', folder / 'Gewichte 馬.pkl', '-c', folder / 'Farben 馬.npy',
                      '--outdir', folder / 'Ausgabe ß', **environment, DISPLAY='', WAYLAND_DISPLAY='')
    assert (folder / 'Ausgabe ß/Bild äöü 馬_colour.png').exists()
    assert done.status == 1 and done.errors.count('error: ') == 1  # which says that one is lost


@pytest.mark.parametrize('ignored, names', [
    (True, 'outputs/a.txt outputs/act_CNN_0/overview_0.png unet_k3_f32.pkl data '
           'colour/colour_kmeans12_cat7.npy'),
    (False, 'colour/colour_kmeans24_cat7.npy weights/unet_k3_f32.pkl outputs/writeup/figures/eval_UNet.png '
            'outputs/writeup/a2-writeup.tex outputs/writeup/experiments.py outputs/writeup/results/part_f.md')
])
def test_git_ignores_what_the_scripts_write_and_keeps_what_is_shipped(ignored, names):
    if not (ROOT / '.git').exists():
        pytest.skip('not a git checkout')
    done = subprocess.run(['git', 'check-ignore', '--no-index', *names.split()], cwd=ROOT, text=True,
                          stdout=subprocess.PIPE)
    assert done.stdout.split() == names.split() * ignored


@pytest.mark.slow
def test_cell_of_the_readme_runs_in_a_notebook(tmp_path):
    """In a real kernel, and so does %run."""
    reason = 'needs ipykernel and jupyter_client'
    pytest.importorskip('ipykernel', reason=reason)
    start_new_kernel = pytest.importorskip('jupyter_client.manager', reason=reason).start_new_kernel
    cell = re.search(r'\n((?:    %.*\n)(?:    .*\n)+)', (ROOT / 'README.md').read_text('utf-8'))[1]
    for name in ('colourization.py', 'load_data.py', 'requirements.txt'):
        (tmp_path / name).symlink_to(ROOT / name)
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ['PATH']])
    kernel, client = start_new_kernel(cwd=str(tmp_path), env=os.environ | {'PATH': path})

    def execute(code):
        messages = []
        reply = client.execute_interactive(code, timeout=500, output_hook=messages.append)
        printed = ''.join(message['content'].get('text', '') for message in messages)
        assert reply['content']['status'] == 'ok' and 'Epoch [' in printed, messages
        assert not re.search('Traceback|Error|error:', printed), printed
        return [message['content']['data'] for message in messages if 'data' in message['content']]

    try:
        assert 'image/png' in execute(textwrap.dedent(cell))[-1]
        execute('%run colourization.py --model CNN -f 2 -e 1 --data sample --outdir again')
        assert (tmp_path / 'again/eval_CNN.png').exists()
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)


# ---- What the READMEs say ----


README = (ROOT / 'README.md').read_text('utf-8')
README_OF_WEIGHTS = (ROOT / 'weights/README.md').read_text('utf-8')
SHIPPED = re.findall(  # the rows of its tables: the checkpoint, loss, accuracy or PSNR, and the command
    r'\| `(\w+\.pkl)` \| ([\d.]+) \| ([\d.]+) (?:%|dB) \| `python (.*?)` \|', README_OF_WEIGHTS)
BETTER_THAN = {  # the course's weights, by far: a loss, and an accuracy or PSNR
    'cnn_k3_f32.pkl': (1.42, 46.5), 'unet_k3_f32.pkl': (1.18, 56), 'dunet_k3_f32.pkl': (1.18, 56),
    'regression_cnn_k3_f32.pkl': (0.0060, 22.2)}
QUICK = [*BETTER_THAN, 'unet_prior_k3_f32.pkl']


@pytest.mark.parametrize('name, loss, measure, command', [
    pytest.param(*row, id=row[0], marks=[pytest.mark.slow] * (row[0] not in QUICK)) for row in SHIPPED])
def test_shipped_weights_reach_what_their_readme_says(name, loss, measure, command, cifar10, run_script,
                                                      monkeypatch):
    monkeypatch.setattr(colourization, 'load_cifar10', read_once)
    done = run_script(*shlex.split(command), '--data', cifar10)
    assert (done.status, done.errors) == (0, '')
    last = done.output.splitlines()[-1]
    measured = re.fullmatch(r'Val Loss: ([\d.]+), .*: ([\d.]+)(?:%| dB)', last).groups()
    assert float(measured[0]) == pytest.approx(float(loss), rel=2e-4)  # but for another machine's rounding
    assert float(measured[1]) == pytest.approx(float(measure), abs=0.11)
    assert (f'weights/{name}' in command) == (command != 'colour_regression.py')  # which names it itself
    most, least = BETTER_THAN.get(name, (np.inf, 0))
    assert float(measured[0]) < most and float(measured[1]) > least


def recipes():
    """The commands of weights/README.md that made the networks: the script, its flags, and what they save."""
    for script, flags in re.findall(r'^    python (colour\w+)\.py (.*)$', README_OF_WEIGHTS, re.MULTILINE):
        def given(pattern, default, flags=flags):
            return (re.search(pattern, flags) or [None, default])[1]
        model = given(r'--model (\w+)', 'regression_cnn').lower() + '_prior' * ('--prior' in flags)
        name = f'outputs/{model}_k{given("-k (.)", 3)}_f{given(r"-f (.+?) ", 32)}.pkl'
        yield script, flags, given(r'--checkpoint (\S+)', name)


def test_every_shipped_checkpoint_has_its_recipe_and_the_colours_are_there():
    shipped = {path.name for path in (ROOT / 'weights').glob('*.pkl')}
    assert {name for name, *_ in SHIPPED} == shipped
    assert sorted(path for *_, path in recipes()) == sorted(f'outputs/{name}' for name in shipped)
    for script, flags, path in recipes():
        _, _, saved = colourization.read_checkpoint(ROOT / 'weights' / os.path.basename(path))
        if script == 'colourization':
            args = parse_args(shlex.split(flags))
            assert np.array_equal(colourization.choose_colours(args.colours, args.category), saved), path


def test_both_readmes_tell_the_same_numbers():
    row = r'\| `python (.+?)` \| \d+ s \| `Val Loss: ([\d.]+), .+?: ([\d.]+)(?:%| dB)` \|'
    told = re.findall(row, README)
    evaluated = {row for row in told if '-e 5' not in row[0]}  # not that of part C, which trains
    assert (len(told), len(evaluated)) == (5, 4)
    assert evaluated <= {(command, loss, measure) for _, loss, measure, command in SHIPPED}
    accuracies = {name: measure for name, _, measure, _ in SHIPPED}
    table = re.findall(r'^\| (\w+) \| 4[\d.]+ % \| ([\d.]+) % \| ([\d.]+) % \|$', README, re.MULTILINE)
    assert [name for name, *_ in table] == ['CNN', 'UNet', 'DUNet']
    for name, ours, with_prior in table:
        assert accuracies[f'{name.lower()}_k3_f32.pkl'] == ours
        assert accuracies[f'{name.lower()}_prior_k3_f32.pkl'] == with_prior


@pytest.mark.parametrize('torch_version', ['2.6.0', '2.15.0'])
def test_torch_that_is_there_is_kept(torch_version, tmp_path):
    """By pip itself, in an environment that has this one, and all else as here."""
    pytest.importorskip('pip', reason='asks pip')
    venv.create(tmp_path / 'venv', symlinks=os.name != 'nt')
    packages = next((tmp_path / 'venv').rglob('site-packages'))
    lines = (ROOT / 'requirements.txt').read_text('utf-8').splitlines()
    for name in [Requirement(line.partition('#')[0]).name for line in lines]:
        number = torch_version if name == 'torch' else version(name)
        folder = packages / f'{name.replace("-", "_")}-{number}.dist-info'
        folder.mkdir()
        (folder / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n')
    pip = [sys.executable, '-m', 'pip', '--isolated', '--python', tmp_path / 'venv']
    done = subprocess.run([*pip, 'install', '--dry-run', '--no-index', '-r', ROOT / 'requirements.txt'],
                          env=os.environ | {'PIP_CONFIG_FILE': os.devnull}, capture_output=True, text=True)
    assert done.stdout.count('Requirement already satisfied') == len(lines), done.stderr
    assert done.returncode == 0 and 'Would install' not in done.stdout


def test_readme_names_the_torch_of_its_numbers():
    commands = re.findall(r'^ +pip install (.*) && ', README, re.MULTILINE)
    assert commands == ['torch==2.13.0 -r requirements.txt'] * 2


@pytest.mark.slow
def test_unet_of_five_epochs_reaches_what_the_course_measured(cifar10, run_script):
    done = run_script(*'colourization.py –model UNet –checkpoint unet_k3_f32.pkl -b 10 -e 5'.split(),
                      '--data', cifar10)
    assert float(re.search(r'Val Acc: (\S+)%$', done.output.strip())[1]) >= 47


@pytest.mark.slow
@pytest.mark.parametrize('flags, megabytes', [
    (f'--valid --checkpoint {ROOT}/weights/unet_k3_f32.pkl', 700), ('-e 1 -f 4 --category all', 920),
    (f'--valid --category all --checkpoint {ROOT}/weights/unet_prior_all_k3_f64.pkl', 635)])
def test_memory_that_real_data_needs(flags, megabytes, cifar10, tmp_path):
    peak = peak_memory(tmp_path, 'colourization.py', '-m', 'UNet', *flags.split(), '--data', cifar10)
    assert peak < megabytes * 1e6
