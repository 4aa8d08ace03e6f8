"""Pictures built byte by byte, so that what is in them is known without Pillow."""

import struct
import zlib

import numpy as np


def packed(values, bits):
    """Numbers [H, W] of 1 to 7 bits as bytes, each row from a new one."""
    each = values[..., None] >> np.arange(bits)[::-1] & 1
    return np.packbits(each.astype(bool).reshape(len(values), -1), axis=1).tobytes()


def tiff(data, shape, bits, photometric=1, samples=1, *, order='<', deflate=False, **tags):
    """A TIFF of one strip. `photometric` is 0 or 1 (grey, 0 is white or black), 2 (RGB), 3 (a colour map), 5
    (ink) or 8 (Lab); `tags` like t338=2, which says that the last sample is alpha, are numbers or lists."""
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
    if bits < 8:
        rows = np.frombuffer(packed(rows, bits), np.uint8).reshape(len(rows), -1)
    else:
        rows = rows.astype(f'>u{bits // 8}').view(np.uint8)
    header = struct.pack('>2I5B', np.shape(values)[1], len(values), bits, colour, 0, 0, 0)
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header)
            + b''.join(chunk(name.encode(), data) for name, data in chunks.items())
            + chunk(b'IDAT', zlib.compress(b''.join(b'\0' + row.tobytes() for row in rows)))
            + chunk(b'IEND', b''))


def bmp(data, shape, bits, palette=b'', masks=()):
    """A BMP; its rows go up, and each has a multiple of four bytes. Four masks say where R, G, B, A are."""
    more = struct.pack(f'<{len(masks)}I', *masks)
    size = 40 + (len(more) + 68 if len(masks) == 4 else 0)  # with alpha, a header of version 5
    kind = 3 if masks else 0
    header = struct.pack('<IiiHHIIiiII', size, shape[1], shape[0], 1, bits, kind, len(data), 0, 0,
                         len(palette) // 4, 0) + more
    header = header.ljust(size, b'\0') if len(masks) == 4 else header
    start = 14 + len(header) + len(palette)
    return b'BM' + struct.pack('<IHHI', start + len(data), 0, 0, start) + header + palette + data


def pnm(kind, values, white):
    """A PPM or PGM, from P2 (grey, in words) to P6 (RGB, in bytes); above 255, two bytes each."""
    body = (' '.join(map(str, np.ravel(values))).encode() if kind in 'P1 P2 P3' else
            np.asarray(values).astype('>u2' if white > 255 else 'u1').tobytes())
    return b'%s %d %d %d\n' % (kind.encode(), np.shape(values)[1], len(values), white) + body
