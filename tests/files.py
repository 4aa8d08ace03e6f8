"""Files of all kinds, built byte by byte where it has to be known what is in them."""

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import torch
from PIL import Image

from colourization import CNN

# ---- Pickles ----


def python2_string(data):
    """The opcode of Python 2 for a str, which is bytes."""
    if len(data) < 256:
        return b'U' + bytes([len(data)]) + data
    return b'T' + struct.pack('<I', len(data)) + data


def word(value):
    """The opcode of a text."""
    return b'X' + struct.pack('<I', len(value.encode())) + value.encode()


def look_up(module, attribute):
    """The opcode of a function or class that is looked up by its name."""
    return f'c{module}\n{attribute}\n'.encode()


def look_up_path(module, attributes):
    """The same since Python 3.4, which also looks up attributes of attributes."""
    return b'\x80\x04' + word(module) + word(attributes) + b'\x93'


class Runs:
    """A pickle of this calls the function as soon as it is loaded."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


OPENS = "open('victim', 'w')"
SHELL_CALL = word('echo > victim') + b'\x85R.'  # what was looked up is called with that
HOSTILE_PICKLES = {  # each makes a file `victim` when Python loads it
    'REDUCE': look_up('os', 'system') + SHELL_CALL,
    'INST': b"(S'echo > victim'\nios\nsystem\n.",
    'NEWOBJ': (b'\x80\x02' + look_up('numpy', 'memmap') + b'(' + word('victim') + word('u1') + word('w+')
               + b'K\x00K\x03t\x81.'),
    'STACK_GLOBAL': look_up_path('os', 'system') + SHELL_CALL,
    'dotted path from numpy': look_up_path('numpy.f2py', 'os.system') + SHELL_CALL,
    'eval': look_up('builtins', 'eval') + word(OPENS) + b'\x85R.',
    'numpy that writes': look_up('numpy', 'savetxt') + word('victim') + b']K\x01a\x86R.',
    'in an array of objects': pickle.dumps(np.array([Runs(exec, OPENS)], object), 2),
    'in a batch': pickle.dumps({b'data': Runs(exec, OPENS), b'labels': [0] * 10}, 2)}


# ---- CIFAR-10 and archives ----


def python2_dtype(code, order, flags=b'K\x00'):
    """Opcodes of cPickle of Python 2 for a type of numbers."""
    return (look_up('numpy', 'dtype') + python2_string(code) + b'K\x00K\x01\x87R(K\x03'
            + python2_string(order) + b'NNN' + b'J\xff\xff\xff\xff' * 2 + flags + b'tb')


def python2_array(shape, dtype, content):
    """Opcodes of cPickle of Python 2 for an array of one or two dimensions."""
    sides = b''.join(b'M' + struct.pack('<H', side) for side in shape) + (b'\x85', b'\x86')[len(shape) - 1]
    return (look_up('numpy.core.multiarray', '_reconstruct') + look_up('numpy', 'ndarray') + b'K\x00\x85'
            + python2_string(b'b') + b'\x87R(K\x01' + sides + dtype + b'\x89' + content + b'tb')


def python2_batch(x, labels):
    """A batch of CIFAR-10, opcode for opcode."""
    array = python2_array(x.shape, python2_dtype(b'u1', b'|'), python2_string(x.tobytes()))
    numbers = b''.join(b'K' + bytes([label]) for label in labels)
    return (b'\x80\x02}(' + python2_string(b'data') + array
            + python2_string(b'labels') + b'](' + numbers + b'e'
            + python2_string(b'batch_label') + python2_string(b'a batch') + b'u.')


def python2_colours(colours):
    """A file of the course's: the pair (centres, distortion)."""
    centres = python2_array(colours.shape, python2_dtype(b'f4', b'<'), python2_string(colours.tobytes()))
    distortion = (look_up('numpy.core.multiarray', 'scalar') + python2_dtype(b'f8', b'<')
                  + python2_string(struct.pack('<d', 0.07)) + b'\x86R')
    pair = python2_array((2,), python2_dtype(b'O8', b'|', b'K\x3f'), b'](' + centres + distortion + b'e')
    return npy_of_objects(b'\x80\x02' + pair + b'.')


def tar_header(name, **attributes):
    """The header of an archive's member."""
    member = tarfile.TarInfo(name)
    for attribute, value in attributes.items():
        setattr(member, attribute, value)
    return member.tobuf(tarfile.GNU_FORMAT)


def tarred(files, mode='w'):
    """An archive of files, given by name: their contents, or the name of another that they are a link to."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname, content = tarfile.LNKTYPE, content, b''
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def zipped(files):
    """A zip archive of files, given by name."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


# ---- Colours and checkpoints ----


def npy(array, save=np.save):
    file = io.BytesIO()
    save(file, array)
    return file.getvalue()


def npy_header(text, version=(1, 0)):
    return b'\x93NUMPY' + bytes(version) + struct.pack('<H', len(text) + 1) + text.encode() + b'\n'


def npy_of_objects(content):
    """An .npy file of two objects, as the course's colours are, with a pickle of one's own."""
    return npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (2,), }") + content


OLD = {'_use_new_zipfile_serialization': False}  # what torch.save wrote until 1.5


def saved(value, **options):
    """A file of torch.save."""
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def torch_zip(data, constants=None):
    """A file like those of torch.save since 1.6, or of torch.jit if it has constants, with any pickles."""
    return zipped({'w/data.pkl': data, 'w/version': b'3\n'} | (
        {'w/constants.pkl': constants} if constants else {}))


def tensor_2018(key, tensor):
    """Opcodes of Python 2 for a tensor of PyTorch 0.3 that lived on a GPU."""
    def integers(values):
        return b'(' + b''.join(b'J' + struct.pack('<i', v) for v in values) + b't'

    storage = (b'(' + python2_string(b'storage') + b'ctorch.cuda\nFloatStorage\n'
               + python2_string(key) + python2_string(b'cuda:0')
               + b'J' + struct.pack('<i', tensor.numel()) + b'NtQ')
    return (b'ctorch._utils\n_rebuild_tensor\n(' + storage + b'K\x00'
            + integers(tensor.shape) + integers(tensor.stride()) + b'tR')


def checkpoint_2018(state):
    """A state dict as torch.save of PyTorch 0.3 and Python 2 wrote it: four pickles, raw data."""
    keys = [str(94_000_000 + i).encode() for i in range(len(state))]
    items = b''.join(b'](' + python2_string(name.encode()) + tensor_2018(key, tensor) + b'e'
                     for key, (name, tensor) in zip(keys, state.items(), strict=True))
    sizes = {'short': 2, 'int': 4, 'long': 4}
    about = {'protocol_version': 1001, 'little_endian': True, 'type_sizes': sizes}
    content = b''.join(pickle.dumps(part, 2) for part in (0x1950a86a20f9469cfc6c, 1001, about))
    content += b'\x80\x02ccollections\nOrderedDict\n](' + items + b'e\x85R.'
    content += b'\x80\x02](' + b''.join(python2_string(key) for key in keys) + b'e.'
    for tensor in state.values():
        content += struct.pack('<q', tensor.numel()) + tensor.numpy().astype('<f4').tobytes()
    return content


# ---- Pictures ----


def image(picture, kind, **options):
    """A file of Pillow, of a picture or an array."""
    file = io.BytesIO()
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(file, kind, **options)
    return file.getvalue()


def packed(values, bits):
    """Numbers [H, W] of 1 to 12 bits as bytes, each row from a new one: [H, bytes]."""
    each = values[..., None] >> np.arange(bits)[::-1] & 1
    return np.packbits(each.astype(bool).reshape(len(values), -1), axis=1)


def tiff(values, bits, photometric=1, *, order='<', deflate=False, **tags):
    """A TIFF of `values` [H, W] or [H, W, channels]. `photometric` is 0 or 1 (grey, 0 is white or black), 2
    (RGB), 3 (a colour map) or 5 (ink); `tags`, like t338=2 for a last channel of alpha, numbers or lists."""
    shape, samples = np.shape(values)[:2], np.size(values) // len(values) // np.shape(values)[1]
    data = packed(values, bits) if bits % 8 else np.asarray(values).astype(
        f'{order}{"f" if tags.get("t339") == 3 else "u"}{bits // 8}')
    data = data.tobytes()
    if deflate:
        data, tags = zlib.compress(data), tags | {'t259': 8}
    values = {256: shape[1], 257: shape[0], 258: [bits] * samples, 259: 1, 262: photometric, 277: samples,
              278: shape[0], 279: len(data)} | {int(name[1:]): value for name, value in tags.items()}
    end = 8 + 2 + 12 * (len(values) + 1) + 4
    entries, beyond = {}, b''
    for tag, value in values.items():
        value = np.atleast_1d(value).astype(int)
        kind, code = (4, 'I') if tag == 279 else (3, 'H')
        content = struct.pack(f'{order}{len(value)}{code}', *value)
        if len(content) > 4:
            content, beyond = struct.pack(f'{order}I', end + len(beyond)), beyond + content
        entries[tag] = struct.pack(f'{order}HHI', tag, kind, len(value)) + content.ljust(4, b'\0')
    entries[273] = struct.pack(f'{order}HHII', 273, 4, 1, end + len(beyond))
    head = {'<': b'II*\0', '>': b'MM\0*'}[order] + struct.pack(f'{order}IH', 8, len(entries))
    return head + b''.join(entries[tag] for tag in sorted(entries)) + bytes(4) + beyond + data


def chunk(name, data):
    """A chunk of a PNG."""
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))


def png(values, bits, colour=0, **chunks):
    """A PNG of `values` [H, W] or [H, W, channels]; `colour` is 0 (grey), 2 (RGB), 3 (PLTE), 4, 6 (alpha)."""
    rows = np.asarray(values).reshape(len(values), -1)
    rows = packed(rows, bits) if bits < 8 else rows.astype(f'>u{bits // 8}').view(np.uint8)
    header = struct.pack('>2I5B', np.shape(values)[1], len(values), bits, colour, 0, 0, 0)
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header)
            + b''.join(chunk(name.encode(), data) for name, data in chunks.items())
            + chunk(b'IDAT', zlib.compress(b''.join(b'\0' + row.tobytes() for row in rows)))
            + chunk(b'IEND', b''))


def bmp(values, bits, palette=(), masks=()):
    """A BMP of `values` [H, W], or [H, W, BGR or BGRA]; `palette` is RGB; `masks` are of R, G, B and A."""
    palette = np.pad(np.asarray(palette, np.uint8).reshape(-1, 3)[:, ::-1], [(0, 0), (0, 1)]).tobytes()
    rows = packed(values, bits) if bits < 8 else np.asarray(values).astype(
        '<u2' if bits == 16 else 'u1').reshape(len(values), -1).view(np.uint8)
    data = np.pad(rows[::-1], [(0, 0), (0, -rows.shape[1] % 4)]).tobytes()  # they go up
    more = struct.pack(f'<{len(masks)}I', *masks)
    size = 40 + (len(more) + 68 if len(masks) == 4 else 0)  # with alpha, a header of version 5
    header = struct.pack('<IiiHHIIiiII', size, np.shape(values)[1], len(values), 1, bits, 3 if masks else 0,
                         len(data), 0, 0, len(palette) // 4, 0) + more
    header = header.ljust(size, b'\0') if len(masks) == 4 else header
    start = 14 + len(header) + len(palette)
    return b'BM' + struct.pack('<IHHI', start + len(data), 0, 0, start) + header + palette + data


def pnm(kind, values, white):
    """A PPM or PGM, from P2 (grey, in words) to P6 (RGB, in bytes); above 255, two bytes each."""
    body = (' '.join(map(str, np.ravel(values))).encode() if kind in 'P1 P2 P3' else
            np.asarray(values).astype('>u2' if white > 255 else 'u1').tobytes())
    return b'%s %d %d %d\n' % (kind.encode(), np.shape(values)[1], len(values), white) + body


def claimed_png(width, height, *more):
    """A PNG that says how large it is and holds no pixels."""
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0))
            + b''.join(more) + chunk(b'IDAT', zlib.compress(b'')) + chunk(b'IEND', b''))


def exif(orientation, *others):
    """EXIF by hand: its orientation, and other entries, 12 bytes each."""
    entries = [struct.pack('<HHIHH', 0x0112, 3, 1, orientation, 0), *others]
    return (b'Exif\0\0II*\0' + struct.pack('<IH', 8, len(entries)) + b''.join(entries) + bytes(4)
            + struct.pack('<4i', -1, 0, 3, -2))


def profile(space, pcs, **tags):
    """An ICC profile, version 2, by hand."""
    white = struct.pack('>3i', *(round(x * 65536) for x in (0.9642, 1, 0.8249)))
    tags = {'desc': b'desc\0\0\0\0' + struct.pack('>I', 5) + b'test\0' + bytes(78),
            'wtpt': b'XYZ \0\0\0\0' + white} | tags
    table, data = struct.pack('>I', len(tags)), b''
    for name, content in tags.items():
        table += name.encode() + struct.pack('>2I', 132 + 12 * len(tags) + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    kind = b'prtr' if space == 'CMYK' else b'mntr'
    header = struct.pack('>I4sI4s4s4s', 132 + len(table) - 4 + len(data), b'lcms', 0x02100000, kind,
                         space.encode(), pcs.encode())
    header += struct.pack('>6H', 2026, 1, 1, 0, 0, 0) + b'acsp' + bytes(28) + white
    return header.ljust(128, b'\0') + table + data


# ---- What is none of these, or another of them ----

POINTER = b'version https://git-lfs.github.com/spec/v1\noid sha256:6d95\nsize 31035704\n'
SOME = np.random.default_rng(0).random((24, 3), dtype=np.float32)
OTHER_FILES = {
    'nothing': b'', 'words': b'0.1 0.2 0.3\n' * 24, 'noise': bytes(range(256)) * 40, 'pointer': POINTER,
    'web page': b'<!DOCTYPE html><title>404</title>', 'picture': image(np.uint8(255 * SOME), 'PNG'),
    'colours': npy(SOME), 'npz': npy(SOME, np.savez), 'gzip': gzip.compress(npy(SOME)),
    'zip': zipped({'cifar-10-batches-py/test_batch': b'abc'}), 'pickle': pickle.dumps(SOME),
    'checkpoint': saved(CNN(3, 4, 24).state_dict()), 'MATLAB': b'MATLAB 5.0 MAT-file'.ljust(10_000)}


def others_than(*names):
    """Files of other kinds than what is wanted."""
    return {name: content for name, content in OTHER_FILES.items() if name not in names}
