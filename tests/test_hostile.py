"""Hostile and broken input: one line that says so, nothing run, nothing lost, no work begun."""

import copyreg
import gzip
import importlib
import io
import logging
import os
import pickle
import re
import shlex
import struct
import sys
import tarfile
import warnings
import zipfile
import zlib
from collections import OrderedDict
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import activations
import colourization
from colourization import (CNN, UNet, colourize, error_line, draw_pictures, load_model, parse_args,
                           read_checkpoint, report, run, save_checkpoint)
from conftest import Runs, full_disk, unix_only
from files import chunk
from load_data import InputError, load_colours, read_picture, whole_file

RNG = np.random.default_rng(0)
COLOURS = RNG.random((24, 3), dtype=np.float32)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@pytest.fixture
def refused(tmp_path, monkeypatch, capfd, recwarn):
    """Run a script in this process where it has to fail; returns its status and its lines.

    It must not come to reading the data, and leave every file as it was.
    """
    def work(where):
        raise AssertionError('work has begun')

    def call(command):
        script, *flags = shlex.split(command)
        before = contents(tmp_path)
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            patch.setattr(sys, 'argv', [f'{script}.py', *flags])
            for owner in (colourization, activations):
                patch.setattr(owner, 'load_cifar10', work)
            with pytest.raises(SystemExit) as end:
                run(importlib.import_module(script).main)
        assert contents(tmp_path) == before
        # A warning would be a line more; the bombs themselves leave files open.
        assert not [w for w in recwarn if w.category is not ResourceWarning]
        printed = capfd.readouterr()
        assert printed.out == ''
        status, lines = end.value.code, printed.err.splitlines()
        if isinstance(status, str):  # which Python prints at the end, with status 1
            status, lines = 1, [*lines, *status.splitlines()]
        assert all(line.startswith('error: ') and line.isprintable() for line in lines)
        return status, lines
    return call


# ---------------------------------------------------------------------------
# Pickles that run code
# ---------------------------------------------------------------------------

def word(text):
    return b'\x8c' + bytes([len(text)]) + text.encode()


TOUCH = 'touch victim'
PICKLES = {  # each creates the file `victim` when it is loaded
    'os.system by REDUCE': pickle.dumps(Runs(os.system, TOUCH)),
    'builtins.eval': pickle.dumps(Runs(eval, "open('victim', 'w')"), 0),
    'copyreg._reconstructor of a log file': pickle.dumps(
        Runs(copyreg._reconstructor, logging.FileHandler, logging.FileHandler, 'victim')),
    'a function of numpy': pickle.dumps(Runs(np.savetxt, 'victim', [1])),
    'a function of torch': pickle.dumps(Runs(torch.save, 1, 'victim'), 2),
    'a dotted name by STACK_GLOBAL': b'\x80\x04' + word('shutil') + word('os.system') + b'\x93' + word(TOUCH)
                                     + b'\x85R.',
    'INST': b"(S'touch victim'\nios\nsystem\n.",
    'OBJ': b"(cos\nsystem\nS'touch victim'\no.",
    'BUILD of a partial': b"cfunctools\npartial\n(cbuiltins\nprint\ntR(cos\nsystem\n"
                          b"(S'touch victim'\nt}Ntb)R.",
}


@pytest.mark.parametrize('form', PICKLES)
def test_pickle_in_colours_runs_nothing(form, tmp_path, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {'descr': '|O', 'fortran_order': False, 'shape': (2,)})
    Path('c.npy').write_bytes(file.getvalue() + PICKLES[form])
    np.load('c.npy', allow_pickle=True)  # so numpy itself would run it
    assert Path('victim').exists()
    Path('victim').unlink()
    status, (line,) = refused('colourization -m CNN -c c.npy')
    assert status == 1 and 'c.npy: no file of colours' in line


def zipped(data, *more):
    """A file like those of torch.save since 1.6, with a pickle of one's own."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        for name, content in [('data.pkl', data), ('version', b'3\n'), *more]:
            archive.writestr(f'w/{name}', content)
    return file.getvalue()


def tarred(data):
    """A file like those of torch.save before 0.1.10: no storages, no tensors, and a pickle."""
    file = io.BytesIO()
    none = pickle.dumps(0, 2) + pickle.dumps([], 2)
    with tarfile.open(fileobj=file, mode='w') as archive:
        for name, content in [('storages', none), ('tensors', none), ('pickle', data)]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def saved(value, **options):
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def small_state():
    torch.manual_seed(0)
    return CNN(3, 4, 24).state_dict()


def hostile_checkpoints():
    model, noted = CNN(3, 4, 24), small_state()
    model.more = noted._metadata['']['model'] = Runs(os.system, TOUCH)
    old = {'_use_new_zipfile_serialization': False}
    forms = {f'{form}, zip': zipped(data) for form, data in PICKLES.items()}
    forms |= {f'{form}, first pickle': PICKLES[form] for form in ('os.system by REDUCE', 'INST')}
    forms |= {'whole module': saved(model), 'whole module, old': saved(model, **old),
              'notes': saved(noted), 'notes, old': saved(noted, **old),
              'among weights, old': saved(small_state() | {'w': Runs(eval, "open('victim', 'w')")}, **old),
              'name of a storage': zipped(pickle.dumps(Runs(os.system, TOUCH))[:-1] + b'Q.'),
              'tar': tarred(PICKLES['os.system by REDUCE'])}
    return forms


HOSTILE_CHECKPOINTS = hostile_checkpoints()
WANTED = re.compile(r'error: w.pkl: no weights of this assignment that torch.save wrote \(.*\): save '
                    r'model.state_dict\(\), or download the file itself')


@pytest.mark.parametrize('form', HOSTILE_CHECKPOINTS)
def test_pickle_in_checkpoint_runs_nothing(form, tmp_path, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('w.pkl').write_bytes(HOSTILE_CHECKPOINTS[form])
    try:
        torch.load('w.pkl', weights_only=False)
    except Exception:
        pass  # whatever it is no state dict for
    assert Path('victim').exists()  # so torch itself would run it
    Path('victim').unlink()
    status, (line,) = refused('colourization -m CNN --valid --checkpoint w.pkl')
    assert status == 1 and WANTED.fullmatch(line)


def test_scripted_archive_is_not_run(tmp_path, refused):
    (tmp_path / 'w.pkl').write_bytes(zipped(PICKLES['INST'], ('constants.pkl', PICKLES['INST'])))
    status, (line,) = refused('activations --checkpoint w.pkl')
    assert status == 1 and WANTED.fullmatch(line)


# ---------------------------------------------------------------------------
# Broken colours
# ---------------------------------------------------------------------------

def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def header(text, version=(1, 0)):
    return b'\x93NUMPY' + bytes(version) + struct.pack('<H', len(text) + 1) + text.encode() + b'\n'


def shaped(shape):
    return header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}")


def with_one(value):
    array = COLOURS.copy()
    array[5, 1] = value
    return array


def objects(*values):
    pair = np.empty(len(values), object)
    pair[:] = values
    return npy(pair)


def png():
    file = io.BytesIO()
    Image.new('RGB', (8, 8)).save(file, 'PNG')
    return file.getvalue()


def npz(*arrays, save=np.savez):
    file = io.BytesIO()
    save(file, *arrays)
    return file.getvalue()


BROKEN_COLOURS = {
    '257 colours': npy(RNG.random((257, 3))), '5000 colours': npy(RNG.random((5000, 3))),
    'one NaN': npy(with_one(np.nan)), 'one infinite': npy(with_one(np.inf)),
    'one just above 1': npy(with_one(1.000001)), 'one just below 0': npy(with_one(-1e-9)),
    'bytes': npy((255 * COLOURS).astype(np.uint8)), 'complex': npy(COLOURS.astype(complex)),
    'transposed': npy(COLOURS.T), 'a dimension more': npy(COLOURS[None]), 'truth': npy(COLOURS > 0.5),
    'records': npy(np.zeros(24, [('r', 'f4'), ('g', 'f4'), ('b', 'f4')])),
    'npz of none': npz(), 'npz of two': npz(COLOURS, COLOURS), 'npz cut off': npz(COLOURS)[:-30],
    'npz that is large': npz(np.zeros((10**5, 3)), save=np.savez_compressed),
    'npz of a pickle': npz(np.array([Runs(os.system, 'touch victim')])),
    'npz of no numbers': npz(COLOURS > 0.5), 'compressed': gzip.compress(npy(COLOURS)), 'picture': png(),
    'text': b'0.1 0.2 0.3\n' * 24, 'checkpoint': saved(small_state()), 'empty': b'',
    'pointer': b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n',
    'web page': b'<!DOCTYPE html><title>404</title>', 'pickle': pickle.dumps(COLOURS),
    'tensor': saved(torch.from_numpy(COLOURS)), 'numbers to 255': npy(255 * COLOURS),
    'header that is code': header("__import__('os').system('touch victim')"),
    'shape of 112 GiB': shaped('(10000000000, 3)'), 'shape beyond all': shaped(f'({10**30}, 3)'),
    'negative shape': shaped('(-1, 3)'), 'no rest': shaped('(24, 3)'),
    'header cut off': shaped('(24, 3)')[:30], 'version 9': header('{}', (9, 0)),
    'nested brackets': header('(' * 9000),
    'pair of a list': objects(COLOURS.tolist(), 0.1), 'pair swapped': objects(0.1, COLOURS),
    'pair with NaN': objects(with_one(np.nan), 0.1), 'pair of objects': objects(COLOURS.astype(object), 0.1),
    'pair cut off': objects(COLOURS, 0.1)[:-20], 'persistent id': objects(1, 2)[:128] + b'Pos.system\n.',
    'recursive pickle': objects(1, 2)[:128] + b'\x80\x02]q\x00h\x00a.',
    'pickle of 8 EiB': objects(1, 2)[:128] + b'\x80\x04\x8e' + b'\xff' * 7 + b'\x7f.',
    'name that steers the terminal': objects(1, 2)[:128] + b'c\x1b[31mos\nsystem\x07\n.',
}


@pytest.mark.parametrize('kind', BROKEN_COLOURS)
def test_broken_colours_are_refused(kind, tmp_path, refused):
    (tmp_path / 'c.npy').write_bytes(BROKEN_COLOURS[kind])
    status, (line,) = refused('colourization -m CNN -c c.npy --outdir .')
    assert status == 1 and len(line) < 320 and re.fullmatch(
        r'error: c.npy: no file of colours \(.*\): an .npy file of floats \[K, 3\] from 0 to 1, with K from '
        '2 to 256, is needed: colourization.py --kmeans K --category C makes one', line)


# ---------------------------------------------------------------------------
# Broken checkpoints
# ---------------------------------------------------------------------------

def state_with(name, tensor):
    return saved(small_state() | {name: tensor})


def with_notes(**notes):
    state = small_state()
    state._metadata[''] = notes
    return saved(state)


def floats(change):
    return saved({name: change(t) if t.is_floating_point() else t for name, t in small_state().items()})


def without_record(content, name):
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, 'w') as new:
        for record in old.namelist():
            if not record.endswith(name):
                new.writestr(record, old.read(record))
    return file.getvalue()


def absurd_state():
    """Shapes that fit each other and need 58 GB, of a few numbers in the file."""
    with torch.device('meta'):
        shapes = {name: t.shape for name, t in CNN(3, 20_000, 24).state_dict().items()}
    return {name: torch.tensor(0.5).expand(shape) for name, shape in shapes.items()}


def nested(tensors):
    with warnings.catch_warnings(action='ignore'):  # that it is a prototype
        return torch.nested.nested_tensor(tensors, layout=torch.strided)


def broken_checkpoints():
    whole, old = saved(small_state()), saved(small_state(), _use_new_zipfile_serialization=False)
    state = small_state()
    files = {f'{name} cut at {tenth}0 %': content[:len(content) * tenth // 10]
             for name, content in (('new', whole), ('old', old)) for tenth in range(10)}
    return files | {
        'nested twice': saved({'a': {'state_dict': state}}), 'nested in a list': saved({'model': [state]}),
        'nested and broken': saved({'model': state | {'finalconv.bias': torch.tensor(np.nan)}}),
        'whole module': saved(CNN(3, 4, 24)), 'list': saved(list(state.values())),
        'tensor': saved(torch.zeros(3)), 'text': saved('weights'), 'nothing': saved(None),
        'parameters only': saved(dict(CNN(3, 4, 24).named_parameters())),
        'number as name': saved(state | {5: torch.zeros(1)}),
        'UNet': saved(UNet(3, 4, 24).state_dict()),
        'integers': saved({name: t.to(torch.int8) for name, t in state.items()}),
        'complex': floats(lambda t: t + 1j),
        'one NaN': floats(lambda t: torch.where(t == t.max(), np.nan, t)),
        'infinite': state_with('finalconv.bias', torch.full((24,), np.inf)),
        'infinite once in float32': floats(lambda t: t.double() + 1e300),
        'too large to add': floats(lambda t: torch.full_like(t, 3e38)),
        'negative variance': floats(lambda t: -1 - t.abs()),
        'sparse': state_with('finalconv.bias', torch.zeros(24).to_sparse()),
        'nested tensor': state_with('finalconv.bias', nested([torch.zeros(20), torch.zeros(4)])),
        'on no device': saved({name: t.to('meta') for name, t in state.items()}),
        'no numbers': state_with('downconv1.0.weight', torch.zeros(0, 1, 3, 3)),
        'scalar': state_with('downconv1.0.weight', torch.tensor(1.)),
        'claims a terabyte': state_with('downconv1.0.weight', torch.zeros(1).expand(2**38, 1, 3, 3)),
        'claims a terabyte in vain': state_with('more', torch.zeros(1).expand(2**38)),
        'claims 58 GB that fit': saved(absurd_state()),
        'prior of a terabyte': state_with('prior', torch.zeros(1).expand(10**10, 24)),
        'prior with NaN': state_with('prior', torch.full((766, 24), np.nan)),
        'prior with NaN for black': state_with('prior', torch.zeros(766, 24).index_fill(
            0, torch.tensor([0]), np.nan)),
        'bias of another size': state_with('finalconv.bias', torch.zeros(25)),
        'even kernel': state_with('downconv1.0.weight', torch.zeros(4, 1, 2, 2)),
        'colours that are fewer': with_notes(colours=COLOURS[:20].tolist()),
        'colours that are infinite': with_notes(colours=[[10**400, 0, 0]] * 24),
        'colours that are text': with_notes(colours='red'), 'model that is another': with_notes(model='VGG'),
        'without a storage': without_record(whole, '/data/0'),
        'without its pickle': without_record(whole, '.pkl'),
        'empty': b'', 'pointer': BROKEN_COLOURS['pointer'], 'web page': BROKEN_COLOURS['web page'],
        'hdf5': b'\x89HDF\r\n\x1a\n' + bytes(90), 'noise': bytes(range(256)) * 9,
        'safetensors': (80).to_bytes(8, 'little') + b'{"finalconv.weight":{}}' + bytes(99),
        'onnx': b'\x08\x0a\x12\x07pytorch\x1a\x062.13.0' + bytes(99), 'pickle': pickle.dumps(state),
        'no tensor among them': saved(state | {'epoch': 3}), 'others': saved({'a.weight': torch.ones(2)}),
        'numpy beside': saved({'lr': np.zeros(2), 'model': state}),
        'larger filter': state_with('rfconv.0.weight', torch.zeros(8, 8, 5, 5)),
        'npz': npz(COLOURS), 'npy': npy(COLOURS), 'picture': png(), 'words': b'weights\n',
        'tar': tarred(b'.'), 'office document': without_record(whole, ''), 'compressed': gzip.compress(whole),
        'pickle of lists in lists': b'\x80\x02' + b']' * 10**5 + b'a' * (10**5 - 1) + b'.'}


BROKEN_CHECKPOINTS = broken_checkpoints()


@pytest.mark.parametrize('kind', BROKEN_CHECKPOINTS)
def test_broken_checkpoints_are_refused(kind, tmp_path, refused):
    (tmp_path / 'w.pkl').write_bytes(BROKEN_CHECKPOINTS[kind])
    status, (line,) = refused('colourization -m CNN --valid --checkpoint w.pkl')
    if kind == 'model that is another':
        assert status == 1 and line.startswith('error: w.pkl is a VGG, not a CNN')
    else:
        assert status == 1 and len(line) < 320 and WANTED.fullmatch(line) and 'alloc' not in line


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precision_are_taken(dtype, tmp_path):
    state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in small_state().items()}
    torch.save(state, tmp_path / 'w.pkl')
    model, _ = load_model(CNN, tmp_path / 'w.pkl')
    assert all(torch.equal(t, state[name].float()) for name, t in model.state_dict().items()
               if name in state and t.is_floating_point())


class State:
    """Comes back from a pickle as a state dict whose methods are hidden by numbers."""

    def __init__(self, weights):
        self.weights = weights

    def __reduce__(self):
        hidden = {'items': 5, 'get': 5, 'keys': 5, 'values': 5}
        return OrderedDict, (), hidden, None, iter(self.weights.items())


def test_attributes_that_hide_methods_do_no_harm(tmp_path):
    state = small_state()
    for name in ('isfinite', 'element_size'):
        setattr(state['finalconv.bias'], name, 5)
    for value in (State(state), State({'model': State(state)})):
        torch.save(value, tmp_path / 'w.pkl')
        model, _ = load_model(CNN, tmp_path / 'w.pkl')
        assert torch.equal(model.finalconv.bias, small_state()['finalconv.bias'])


# ---------------------------------------------------------------------------
# Broken pictures
# ---------------------------------------------------------------------------

def claimed_png(width, height, *more):
    """A PNG file that says how large it is and holds no pixels."""
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0))
            + b''.join(more) + chunk(b'IDAT', zlib.compress(b'')) + chunk(b'IEND', b''))


def test_broken_pictures_get_a_line_each(tmp_path, refused):
    files = {'nothing.png': claimed_png(0, 0), 'flat.png': claimed_png(0, 5),
             'empty.png': claimed_png(700, 700),
             'bomb.png': claimed_png(10**5, 10**5), 'largest.png': claimed_png(2**31 - 1, 2**31 - 1),
             'words.png': claimed_png(
                 5, 5, chunk(b'zTXt', b'a\0\0' + zlib.compress(bytes(10**8)))),
             'page.png': b'<!DOCTYPE html><title>404</title>', 'drawing.svg': b'<svg/>',
             'program.eps': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n',
             'iphone.heic': b'\0\0\0\x24ftypheic\0\0\0\0mif1heic' + bytes(99), 'folder': None,
             'pointer.png': BROKEN_COLOURS['pointer'], 'empty.jpg': b'', 'missing.png': None, '-': None,
             'https:/example.org/a.jpg': None, 'none?.png': None,
             'c.npy': npy(COLOURS), 'w.pkl': saved(small_state()),
             '\x1b[31mred\x07.png': b'red', 'two\nlines.png': b'two', '馬 äöü.png': b'horse',
             os.fsdecode(b'\xff\xfe.png'): b'no text', 'http:/example.org/a.png': None, '': None}
    picture = Image.fromarray(RNG.integers(0, 256, (40, 60, 3), np.uint8))
    for kind in 'PCX', 'TGA', 'JPEG2000', 'TIFF', 'ICO':  # the last but one under the name of a raw file
        file = io.BytesIO()
        picture.save(file, kind)
        files[f'other.{kind.replace("TIFF", "dng")}'] = file.getvalue()
    for kind in ('JPEG', 'PNG', 'GIF', 'TIFF', 'BMP', 'WEBP', 'PPM'):
        file = io.BytesIO()
        picture.save(file, kind)
        for percent in (1, 10, 50):
            whole = file.getvalue()
            files[f'{percent}.{kind.replace("TIFF", "tif")}'] = whole[:len(whole) * percent // 100]
    for name, content in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    (tmp_path / 'folder').mkdir()
    status, lines = refused(shlex.join(['colourization', '--image', *files]))
    assert status == 1
    for line, name in zip(lines, files, strict=True):
        shown = ' '.join(name.replace('\x1b', ' ').replace('\x07', ' ').split()) if name.isprintable() else ''
        assert line.startswith(f'error: {shown}') and len(line) - len(name) < 320 and '<_io' not in line
        assert re.search(r': no JPEG, PNG, WebP, AVIF, GIF, TIFF, BMP or PPM picture that can be read '
                         r'\(.*\): save it as one of these with 8 bits a channel, or make it smaller$', line)


@pytest.mark.parametrize('shape', [(1, 10_000), (10_000, 1), (1, 1_000_000)])
def test_long_thin_picture_is_shown_as_no_more_pixels_than_others(shape):
    model = CNN(3, 4, 24).eval()
    seen = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numel()))
    rgb = colourize(np.full(shape, 0.5, np.float32), model, COLOURS, size=128)
    assert rgb.shape == (*shape, 3) and seen[0] <= 128**2


def test_animation_is_coloured_by_its_first_picture(tmp_path):
    frames = [Image.new('RGB', (8, 8), (v, v, v)) for v in (50, 200)]
    frames[0].save(tmp_path / 'a.gif', save_all=True, append_images=frames[1:])
    assert read_picture(tmp_path / 'a.gif').grey * 255 == pytest.approx(50)


def test_result_does_not_replace_a_picture_that_is_to_be_coloured(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ('a', 'a_colour'):
        Image.new('RGB', (8, 8), 'red').save(f'{name}.png')
    before = contents(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['', '--image', 'a.png', 'a_colour.png', '--outdir', str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        run(colourization.main)
    assert end.value.code == 1 and 'choose another --outdir' in capsys.readouterr().err
    after = contents(tmp_path)
    assert before.items() <= after.items() and tmp_path / 'a_colour_colour.png' in after


# ---------------------------------------------------------------------------
# Wrong flags
# ---------------------------------------------------------------------------

HUGE = 10**30
CNN_WEIGHTS = 'weights/cnn_k3_f32.pkl'


@pytest.mark.parametrize('flags, status, word', [
    *((f'-m CNN {flag} {value}', 2, flag) for flag, values in {
        '-b': ('-1', HUGE, '1.5', '1e3', "''", 'nan'), '-e': ('0', HUGE, '1.5', 'inf', "''"),
        '-l': ('-1', HUGE, 'inf', '1e-400', 'fast', "''"), '-k': ('0', '-3', '33', HUGE, '3.0', 'nan'),
        '-f': ('-1', HUGE, '1.5', 'many'), '-s': (2**64, '0.5', 'x'), '--weight_decay': (HUGE, 'nan', 'x'),
        '--hold_out': (HUGE, '0.1', 'ten'), '--prior': ('0', '-1', '767', 'x'),
        '--temperature': (HUGE, 'nan', 'inf', 'hot'), '--category': ('-1', HUGE, '7.0', 'horse', "''"),
        '--schedule': ("''",), '--augment': ('flip_lr rotate',)}.items() for value in values),
    *((f'--image a.png --image_size {value}', 2, '--image_size') for value in ('0', '-8', HUGE, '1.5', 'x')),
    *((f'--image a.png --saturation {value}', 2, '--saturation') for value in ('-1', '101', 'nan', 'x')),
    *((f'--kmeans {value}', 2, '--kmeans') for value in ('0', '-1', '257', HUGE, '2.5', 'x')),
    ('-m cnn', 2, 'DUNet'), ('-m RegressionCNN', 2, 'RegressionCNN'), ('-m CNN --train', 2, '--train'),
    ('-m CNN --gpu 0', 2, '0'), ('-m CNN c.npy', 2, 'c.npy'), ('-m CNN --category None', 2, '--category'),
    *((f'{one} {other}', 2, f'{other.split()[0]}: not allowed with argument {one.split()[0]}')
      for one, other in combinations(['--image a.png', '--kmeans 3', '--valid', '--resume', '--summary'], 2)),
    ('--kmeans 3 -c c.npy', 2, '--colours'), ('--kmeans 3 --checkpoint w.pkl', 2, '--checkpoint'),
    (f'-m CNN --valid --checkpoint {CNN_WEIGHTS} --prior', 1, 'leave out --prior'),
    ('-m UNet --valid --checkpoint weights/unet_prior_k3_f32.pkl --prior 5', 1, '766'),
    ("-m CNN -c ''", 1, 'directory'), ('-m CNN -c folder', 1, 'directory'),
    ('-m CNN -c dangling', 1, 'dangling: no file of'), ('-m CNN -c w.pkl --checkpoint c.npy', 1, 'c.npy'),
    ("-m CNN --valid --checkpoint ''", 1, 'directory'),
    ('-m CNN --valid --checkpoint folder', 1, 'directory'),
    ('-m CNN --valid --checkpoint text/w.pkl', 1, 'text/w.pkl'),
    ('-m CNN --valid --checkpoint http://example.org/w.pkl', 1, 'example.org'),
    ('-m CNN --valid --checkpoint loop', 1, 'loop'), (f'-m CNN --valid --checkpoint {300 * "x"}', 1, 'long'),
    (f'-m CNN --valid --checkpoint {CNN_WEIGHTS} --outdir text', 1, 'cannot be written'),
    (f'-m CNN --valid --checkpoint {CNN_WEIGHTS} --outdir /proc', 1, '/proc'),
    ("-m CNN --checkpoint ''", 1, 'not a file'), ('-m CNN --checkpoint folder', 1, 'not a file'),
    ('-m CNN --checkpoint /dev/null', 1, '/dev/null'), ('-m CNN --checkpoint fifo', 1, 'fifo'),
    ('-m CNN --checkpoint /proc/w.pkl', 1, '/proc/w.pkl'), (f'-m CNN --checkpoint {255 * "x"}', 1, 'long'),
    *((f'-m CNN --checkpoint {name}', 1, f'{name} is not replaced')
      for name in ('c.npy', 'a.png', 'text')),
    ('-m CNN --outdir loop', 1, 'loop'), ('-m CNN --outdir /proc', 1, '/proc'),
    ('--image a.png a.png --outdir text', 1, 'cannot be written'),
    ('--image a.png -c c.npy', 1, 'other colours than those of c.npy'),
    (f'--image a.png -m CNN --checkpoint {CNN_WEIGHTS} -c c.npy', 1, 'other colours'),
    ('--image a.png --checkpoint folder', 1, 'directory'), ('--image a.png --checkpoint c.npy', 1, 'c.npy'),
    ('--image a.png --checkpoint a.png', 1, 'a.png'),
])
@unix_only
def test_wrong_flags_are_found_before_any_work(flags, status, word, tmp_path, refused):
    (tmp_path / 'c.npy').write_bytes(npy(COLOURS))
    (tmp_path / 'a.png').write_bytes(png())
    (tmp_path / 'text').write_text('text')
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
    (tmp_path / 'dangling').symlink_to(tmp_path / 'nowhere')
    os.mkfifo(tmp_path / 'fifo')
    found, (line,) = refused(f'colourization {flags}')
    assert found == status and word in line


@pytest.mark.parametrize('script', ['colourization -m UNet', 'colourization -m DUNet',
                                    'colour_regression --train'])
def test_training_does_not_overwrite_the_checkpoint_of_another_model(script, tmp_path, refused):
    save_checkpoint(CNN(3, 2, 24), tmp_path / 'w.pkl')
    before = (tmp_path / 'w.pkl').read_bytes()
    status, (line,) = refused(f'{script} --checkpoint w.pkl')
    assert status == 1 and 'w.pkl is not replaced by the training of a ' in line
    assert (tmp_path / 'w.pkl').read_bytes() == before


def test_kmeans_finds_out_first_that_its_folder_cannot_be(tmp_path, refused):
    (tmp_path / 'colour').write_text('a file')
    status, (line,) = refused('colourization --kmeans 3')
    assert status == 1 and 'cannot be written' in line


# ---------------------------------------------------------------------------
# Files that may not be read, folders that cannot be written, disks that are full
# ---------------------------------------------------------------------------

@contextmanager
def ordinary_user():
    """Root may read every file, so be somebody else for a while."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize('read', [read_checkpoint, load_colours, read_picture])
def test_file_that_may_not_be_read_is_said_by_name(read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o755)
    Path('secret').write_bytes(png())
    Path('secret').chmod(0)
    with pytest.raises((InputError, OSError)) as end, ordinary_user():
        read(Path('secret'))
    line = error_line(end.value)
    assert line.startswith('error: secret: ') and 'Permission denied' in line


def write_json(path):
    about = {'network': 'CNN', 'pictures': 'sample pictures', 'colours': None}
    args = parse_args(['-m', 'CNN', '--outdir', str(path.parent)])
    report(args, CNN(3, 4, 24), about, {'loss': 1.0}, {}, {'most_frequent_colour': 0.5})


WRITERS = {
    'w.pkl': lambda path: save_checkpoint(CNN(3, 4, 24), path, COLOURS),
    'eval.png': lambda path: draw_pictures([('noise', RNG.random((64, 64, 3)))], path, 'noise'),
    'metrics_CNN.json': write_json,
    'a_colour.png': None, 'c.npy': None}


@pytest.mark.parametrize('name', WRITERS)
def test_full_disk_leaves_the_old_file(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.write_bytes(b'old')
    Image.fromarray(RNG.integers(0, 256, (90, 90, 3), np.uint8)).save('a.png')
    before = contents(tmp_path)

    def main():
        if WRITERS[name]:
            return WRITERS[name](path)
        if name == 'a_colour.png':
            monkeypatch.setattr(sys, 'argv', ['', '--image', 'a.png', '--outdir', '.'])
            return colourization.main()
        with whole_file(path) as file:
            np.save(file, RNG.random((256, 3)))

    with full_disk(100), pytest.raises(SystemExit) as end:  # less than a file, so the last write may be it
        run(main)
    line = end.value.code if isinstance(end.value.code, str) else capsys.readouterr().err.strip()
    assert line.startswith('error: ') and line.isprintable() and f'{name} cannot be written' in line
    assert contents(tmp_path) == before


def test_file_is_on_the_disk_before_it_replaces_another(tmp_path, monkeypatch):
    """Otherwise a computer that loses power can be left with neither."""
    path, synced = tmp_path / 'w.pkl', []
    path.write_bytes(b'old')
    monkeypatch.setattr(os, 'fsync', lambda file: synced.append((os.fstat(file).st_size, path.read_bytes())))
    with whole_file(path) as file:
        file.write(b'the new one')
    assert synced == [(11, b'old')] and path.read_bytes() == b'the new one'


# ---------------------------------------------------------------------------
# Any name, any locale, no display
# ---------------------------------------------------------------------------

OLD_LOCALE = {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'}


@pytest.mark.parametrize('environment, what', [
    (OLD_LOCALE, '--image'),
    pytest.param({'PYTHONIOENCODING': 'ascii:strict', 'PYTHONUTF8': '0'}, '--image', marks=pytest.mark.slow),
    pytest.param(OLD_LOCALE, '--valid', marks=pytest.mark.slow)])
def test_names_of_any_letters_work_in_any_locale_without_a_display(environment, what, start_script, tmp_path):
    folder = tmp_path / 'zwei Wörter 馬'
    folder.mkdir()
    (folder / 'Bild äöü 馬.png').write_bytes(png())
    np.save(folder / 'Farben 馬.npy', COLOURS)
    (folder / 'Gewichte 馬.pkl').write_bytes(saved(small_state()))
    flags = ['-m', 'CNN', '--checkpoint', folder / 'Gewichte 馬.pkl', '-c', folder / 'Farben 馬.npy',
             '--outdir', folder / 'Ausgabe ß']
    environment = environment | {'DISPLAY': '', 'WAYLAND_DISPLAY': '', 'MPLBACKEND': ''}
    if what == '--valid':
        done = start_script('colourization.py', '--valid', '--data', 'sample', *flags, **environment)
        assert done.returncode == 0 and done.stderr == '', done.stderr
        assert (folder / 'Ausgabe ß/eval_CNN.png').exists()
        return
    picture, lost = folder / 'Bild äöü 馬.png', folder / 'verloren 馬.png'
    done = start_script('colourization.py', '--image', lost, picture, *flags, **environment)
    assert done.returncode == 1 and done.stdout.startswith('Wrote ')
    assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1
    assert (folder / 'Ausgabe ß/Bild äöü 馬_colour.png').exists()
