"""--image: a user's own pictures of every kind, coloured with their own brightness."""

import base64
import io
import os
import re
import struct
import textwrap
import unicodedata
import warnings
import zlib

import numpy as np
import PIL
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms, PngImagePlugin
from scipy.ndimage import uniform_filter

import colourization
from colourization import CNN, add_prior, colourize, load_model, scores_to_rgb
from conftest import ROOT, near, peak_memory, unix_only
from load_data import InputError, jpeg2000_depths, read_picture, what_it_is_instead

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (40, 60, 3), np.uint8)
RGB[:, :30] = RGB[:, :30] // 40 * 20 + 50  # calmer, and far from black and white
GREY = RGB.mean(axis=2)
ALPHA = RNG.integers(0, 256, (40, 60), np.uint8)
COLOURS = RNG.random((5, 3), dtype=np.float32)


def kinds():
    """Files by name: the picture, how to save it, the grey that it means (0 to 255), its alpha."""
    rgb, luma = Image.fromarray(RGB), Image.fromarray(GREY.astype(np.uint8))
    palette = rgb.quantize(16)
    through = luma.quantize(8)
    of_palette = np.asarray(through.convert('RGB')).mean(axis=2)
    deep = (GREY * 257).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    return {
        'rgb.png': (rgb, {}, GREY, None),
        'grey.png': (luma, {}, GREY.astype(np.uint8), None),
        'rgba.png': (Image.fromarray(np.dstack([RGB, ALPHA])), {}, GREY, ALPHA),
        'la.png': (Image.merge('LA', [luma, Image.fromarray(ALPHA)]), {}, GREY.astype(np.uint8), ALPHA),
        'palette.gif': (palette, {}, np.asarray(palette.convert('RGB')).mean(axis=2), None),
        'transparent.png': (through, {'transparency': 3}, of_palette,
                            np.where(np.asarray(through) == 3, 0, 255)),
        'deep.png': (Image.fromarray(deep), {}, deep / 257, None),
        'bits.png': (luma.convert('1'), {}, np.asarray(luma.convert('1')) * 255, None),
        'print.tif': (rgb.convert('CMYK'), {}, np.asarray(rgb.convert('CMYK').convert('RGB')).mean(axis=2),
                      None),
        'turned.png': (rgb, {'exif': exif}, np.rot90(GREY, -1), None)}


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return CNN(3, 4, 5).eval()


def test_pictures_of_every_kind_keep_size_brightness_and_alpha(run_script, tmp_path):
    files = kinds()
    for name, (picture, options, _, _) in files.items():
        picture.save(tmp_path / name, **options)
    done = run_script('colourization.py', '--image', *files)
    assert done.returncode == 0 and done.stderr == '', done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines()] == [
        f'outputs/{name.split(".")[0]}_colour.png' for name in files]
    for name, (_, _, grey, alpha) in files.items():
        result = np.asarray(Image.open(tmp_path / f'outputs/{name.split(".")[0]}_colour.png'))
        difference = result[..., :3].mean(axis=2) - grey
        assert np.abs(difference).max() <= 1 and abs(difference.mean()) < 0.1, name  # rounded, not cut off
        if alpha is None:
            assert result.shape[2] == 3
        else:
            assert result.shape[2] == 4 and np.array_equal(result[..., 3], alpha)
        if name != 'bits.png':  # black and white have no room for colour
            assert np.ptp(result[..., :3], axis=2).max() > 5


def test_broken_files_do_not_stop_the_others(run_script, tmp_path):
    Image.fromarray(RGB).save(tmp_path / 'good.png')
    whole = (tmp_path / 'good.png').read_bytes()
    (tmp_path / 'cut.png').write_bytes(whole[:len(whole) // 2])
    (tmp_path / 'empty.jpg').touch()
    (tmp_path / 'text.jpg').write_text('no picture')
    (tmp_path / 'folder').mkdir()
    Image.new('1', (13_400, 13_400)).save(tmp_path / 'bomb.png')
    Image.fromarray(RGB[..., 0] / np.float32(255)).save(tmp_path / 'fractions.tif')
    broken = ['cut.png', 'empty.jpg', 'missing.png', 'text.jpg', 'folder', 'bomb.png', 'fractions.tif']
    done = run_script('colourization.py', '--image', 'good.png', *broken)
    assert done.returncode == 1 and done.stdout == 'Wrote outputs/good_colour.png\n'
    lines = done.stderr.splitlines()
    assert [line.split(':')[:2] for line in lines] == [['error', f' {name}'] for name in broken]
    assert [p.name for p in (tmp_path / 'outputs').iterdir()] == ['good_colour.png']


def test_pictures_of_the_same_name_do_not_overwrite_each_other(run_script, tmp_path):
    for folder, value in (('a', 50), ('b', 200)):
        (tmp_path / folder).mkdir()
        Image.new('L', (8, 8), value).save(tmp_path / folder / 'x.png')
    done = run_script('colourization.py', '--image', 'a/x.png', 'b/x.png', '-m', 'CNN',
                      '--checkpoint', 'weights/cnn_k3_f32.pkl')
    assert done.returncode == 0, done.stderr
    for name, value in (('x', 50), ('x_2', 200)):
        assert np.asarray(Image.open(tmp_path / f'outputs/{name}_colour.png')).mean() == pytest.approx(
            value, abs=1)


@pytest.mark.parametrize('shape', [(1, 1), (1, 700), (5, 3), (33, 47), (300, 200)])
@pytest.mark.parametrize('size', [4, 64])
def test_any_size_keeps_its_brightness(shape, size, model):
    grey = np.random.default_rng(1).random(shape, dtype=np.float32)
    rgb = colourize(grey, model, COLOURS, size=size)
    assert rgb.shape == (*shape, 3) and rgb.dtype == np.float32
    assert rgb.min() >= 0 and rgb.max() <= 1
    assert near(rgb.mean(axis=2), grey, 1e-5)


@pytest.mark.parametrize('temperature, saturation', [(0, 1), (0.38, 1), (1, 1), (1, 1.5), (1, 0)])
def test_small_picture_is_the_networks_own_chroma_along_edges_with_the_grey(temperature, saturation):
    model = CNN(3, 4, 5).eval()
    add_prior(model, torch.randn(766, 5))  # so that its scores depend on every grey level
    grey = np.random.default_rng(2).uniform(0.45, 0.55, (32, 32)).astype(np.float32)
    with torch.no_grad():
        scores = model(torch.from_numpy(grey)[None, None] * 255 / 256)
    pale = COLOURS * 0.4  # so that no colour leaves [0, 1]
    answer = scores_to_rgb(scores, pale, temperature)[0].astype(float)
    slope, offset = guided(grey.astype(float), answer - answer.mean(axis=0))
    expected = (saturation * (slope * grey + offset) + grey).transpose(1, 2, 0)
    rgb = colourize(grey, model, pale, temperature, saturation=saturation)
    assert near(rgb, expected, 1e-4)


def test_lines_of_the_readme_colour_a_photo(tmp_path, monkeypatch):
    readme = (ROOT / 'README.md').read_text('utf-8')
    lines = re.search(r'^ +from matplotlib.*\n(?: +.*\n)+', readme, re.MULTILINE)[0]
    assert lines.count('\n') == 4
    monkeypatch.chdir(tmp_path)
    Image.fromarray(RGB).save('photo.jpg')
    exec(textwrap.dedent(lines), {})
    coloured = np.asarray(Image.open('photo_colour.png').convert('RGB')).astype(float)
    grey = np.asarray(Image.open('photo.jpg')).mean(axis=2)
    assert np.abs(coloured.mean(axis=2) - grey).max() <= 1  # imsave rounds down
    assert coloured.std(axis=2).mean() > 1


@pytest.mark.parametrize('flag, times', [('--saturation 0', 0), ('--saturation 0.7', 0.5), ('', 1)])
def test_saturation_says_how_strong_the_colours_are(flag, times, run_script, tmp_path):
    Image.fromarray(RGB[:, :30]).save(tmp_path / 'a.png')  # where nothing leaves [0, 255]
    painted = []
    for flags in ('--saturation 1.4', flag):
        assert run_script('colourization.py', '--image', 'a.png', *flags.split()).returncode == 0
        painted.append(np.asarray(Image.open(tmp_path / 'outputs/a_colour.png')).astype(float))
    full, result = (rgb - rgb.mean(axis=2, keepdims=True) for rgb in painted)
    assert np.abs(full).max() > 10 and np.abs(result - times * full).max() < 1.5  # rounded to whole numbers


def test_stripes_finer_than_what_the_network_sees_look_even_to_it(model):
    views = []
    hook = model.register_forward_hook(lambda _, inputs, answer: views.extend(inputs))
    colourize(np.tile(np.float32([0, 1]), (288, 144)), model, COLOURS, size=32)
    hook.remove()
    assert [view.shape[2:] for view in views] == [(32, 32), (16, 16), (8, 8)]
    for view in views:
        assert near(view.numpy(), 0.5 * 255 / 256, 0.03)  # more at its rim


@pytest.mark.parametrize('flags, temperature, size, saturation', [
    ('', 1, 224, 1.4), ('--temperature 0.3 --image_size 16 --saturation 2 -k 3 -f 32', 0.3, 16, 2)])
def test_flags_and_their_defaults_are_those_of_colourize(flags, temperature, size, saturation, run_script,
                                                         tmp_path):
    """Of a picture that is larger than what the network sees of it."""
    grey = np.random.default_rng(3).integers(0, 256, (30, 40), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    Image.fromarray(grey).save(tmp_path / 'a.png')
    checkpoint = ROOT / 'weights/cnn_k3_f32.pkl'
    done = run_script('colourization.py', '--image', 'a.png', '-m', 'CNN', '--checkpoint', checkpoint,
                      *flags.split(), '--outdir', 'results')
    assert done.returncode == 0 and done.stderr == ''
    model, colours = load_model(CNN, checkpoint)
    expected = colourize(grey / np.float32(255), model, colours, temperature, size, saturation)
    painted = np.asarray(Image.open(tmp_path / 'results/a_colour.png'))
    assert np.abs(painted - 255 * expected).max() < 0.51  # rounded


def test_network_sees_a_picture_a_half_and_a_quarter_of_it(model):
    seen = []
    hook = model.register_forward_pre_hook(lambda model, inputs: seen.append(inputs[0].shape))
    colourize(np.random.default_rng(4).random((100, 400), np.float32), model, COLOURS, size=64)
    hook.remove()
    assert seen == [(1, 1, 32, 128), (1, 1, 16, 64), (1, 1, 8, 32)]


def test_flat_areas_get_smooth_colours_from_a_small_view(model):
    """Between the pixels that the network sees there are no steps."""
    grey = np.full((256, 256), 0.5, np.float32)
    grey[64:192, 64:192] = 0.6
    seen = CNN(3, 4, 5).eval()
    add_prior(seen, 50 * torch.eye(5)[torch.arange(766) % 5])
    rgb = colourize(grey, seen, COLOURS, size=32)
    chroma = rgb - rgb.mean(axis=2, keepdims=True)
    whole, flat = np.ptp(chroma, axis=(0, 1)).max(), np.diff(grey, axis=0) == 0
    assert whole > 0.02 and np.abs(np.diff(chroma, axis=0))[flat].max() < whole / 3


def test_chroma_has_the_edges_of_the_large_picture():
    """A step in a picture that the network sees at an eighth of the size."""
    class TwoColours(CNN):
        def forward(self, grey):
            return torch.cat([grey - 0.5, 0.5 - grey], dim=1) * 1000
    grey = np.full((256, 256), 0.35, np.float32)
    grey[:, 131:] = 0.65  # in the middle of what becomes one pixel
    rgb = colourize(grey, TwoColours(3, 1, 2), np.float32([[0.6, 0.4, 0.5], [0.4, 0.6, 0.5]]), 0, 32, 1)
    red = (rgb - rgb.mean(axis=2, keepdims=True))[128, :, 0]
    assert red[:110] == pytest.approx(-0.1, abs=0.01) and red[150:] == pytest.approx(0.1, abs=0.01)
    assert red[131] - red[130] > 0.15


# ---------------------------------------------------------------------------
# What files say of their pixels
# ---------------------------------------------------------------------------

DEEP = np.array([[0, 1, 1000, 2048], [2049, 3000, 4094, 4095]], np.uint16)  # of 12 bits


def packed(values):
    """12 bits each, without gaps."""
    return b''.join(((int(a) << 12) + int(b)).to_bytes(3, 'big') for a, b in values.reshape(-1, 2))


def tiff(values, bits, *, white0=0, order='<', kind=1, extra=()):
    """A grey TIFF by hand; `extra` are tags (number, SHORT)."""
    dtype = f'{order}{"?uif"[kind]}{bits // 8}'
    data = packed(values) if bits == 12 else values.astype(dtype).tobytes()
    tags = {256: values.shape[1], 257: values.shape[0], 258: bits, 259: 1, 262: 1 - white0, 273: 8, 277: 1,
            278: values.shape[0], 279: len(data), 339: kind} | dict(extra)
    file = {'<': b'II*\0', '>': b'MM\0*'}[order] + struct.pack(f'{order}I', 8 + len(data)) + data
    file += struct.pack(f'{order}H', len(tags))
    for tag, value in sorted(tags.items()):
        file += struct.pack(f'{order}HHIHH', tag, 3, 1, value, 0)
    return file + bytes(4)


def png(values, bits, colour=0, **chunks):
    """A PNG by hand; `values` [H, W] or [H, W, channels]."""
    def chunk(name, data):
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    rows = np.asarray(values).reshape(len(values), -1)
    if bits < 8:
        rows = (rows[..., None] >> np.arange(bits)[::-1] & 1).reshape(len(rows), -1)
        rows = np.packbits(rows.astype(bool), axis=1)
    else:
        rows = rows.astype(f'>u{bits // 8}').view(np.uint8)
    header = struct.pack('>2I5B', np.shape(values)[1], len(values), bits, colour, 0, 0, 0)
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header)
            + b''.join(chunk(name.encode(), data) for name, data in chunks.items())
            + chunk(b'IDAT', zlib.compress(b''.join(b'\0' + row.tobytes() for row in rows)))
            + chunk(b'IEND', b''))


def saved(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def pgm(values, white, text=False):
    pixels = ' '.join(map(str, values.ravel())).encode() if text else values.astype('>u2').tobytes()
    return b'P%d %d %d %d\n' % (2 if text else 5, *values.shape[::-1], white) + pixels


def read(path, content):
    path.write_bytes(content)
    return read_picture(path)


TURNED = Image.Exif()
TURNED[0x0112] = 6
WIDE = np.arange(0, 65536, 16, np.uint16).reshape(64, 64)


@pytest.mark.parametrize('content, grey', {
    'png': (png(WIDE, 16), WIDE / 65535),
    'png, turned': (saved(Image.fromarray(WIDE[:9]), 'PNG', exif=TURNED), np.rot90(WIDE[:9], -1) / 65535),
    'pgm of 12 bits': (pgm(DEEP, 4095), DEEP / 4095),
    'pgm of 12 bits in text': (pgm(DEEP, 4095, text=True), DEEP / 4095),
    'pgm of 16 bits': (pgm(WIDE, 65535), WIDE / 65535),
    'tiff of 12 bits': (tiff(DEEP, 12), DEEP / 4095),
    'tiff of 16 bits': (tiff(WIDE, 16), WIDE / 65535),
    'tiff, turned': (tiff(WIDE[:9], 16, extra=[(274, 6)]), np.rot90(WIDE[:9], -1) / 65535),
    'tiff of 16 bits, other order': (tiff(WIDE, 16, order='>'), WIDE / 65535),
    'tiff of 16 bits, packed': (saved(Image.fromarray(WIDE), 'TIFF', compression='tiff_lzw'), WIDE / 65535),
    'tiff of 16 bits where white is 0': (tiff(WIDE, 16, white0=1), 1 - WIDE / 65535),
    'tiff of 8 bits where white is 0': (tiff(WIDE >> 8, 8, white0=1), 1 - (WIDE >> 8) / 255),
    'jpeg 2000': (saved(Image.fromarray(WIDE), 'JPEG2000'), WIDE / 65535)}.values())
def test_deep_grey_is_read_to_its_last_bit(content, grey, tmp_path):
    picture = read(tmp_path / 'x', content)
    assert picture.alpha is None and picture.grey.dtype == np.float32
    assert near(picture.grey, grey, 1e-5)  # Pillow rounds 12 bits of PGM to 16


@pytest.mark.parametrize('content', [
    tiff(DEEP, 32), tiff(DEEP, 32, kind=2), tiff(DEEP, 32, kind=2, order='>'), tiff(DEEP, 32, kind=3),
    tiff(DEEP, 16, kind=2), tiff(DEEP, 16, kind=2, order='>')])
def test_numbers_without_an_agreed_white_are_refused(content, tmp_path):
    with pytest.raises(InputError, match='x: its numbers .* no agreed white: save it with 8 or 16 bits'):
        read(tmp_path / 'x', content)


@pytest.mark.parametrize('bits, colour', [(1, 0), (8, 0), (16, 0), (8, 2)])
def test_colour_of_a_png_that_means_transparent(bits, colour, tmp_path):
    white = 2**bits - 1
    values = np.array([[white, white // 3, 0, white // 3]])
    content = png(np.stack([values] * 3, 2) if colour else values, bits, colour,
                  tRNS=struct.pack('>H', white // 3) * (3 if colour else 1))
    picture = read(tmp_path / 'x', content)
    assert near(picture.grey, values / white, 1e-6)
    assert np.array_equal(picture.alpha, np.where(values == white // 3, 0, 255))


# ---------------------------------------------------------------------------
# Colour profiles
# ---------------------------------------------------------------------------

def srgb(linear):
    """IEC 61966-2-1: what light becomes."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def srgb_light(x):
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def light(lightness):
    """CIE 1976: the light of L* in [0, 1]."""
    return np.where(lightness <= 0.08, lightness / 9.033, ((lightness + 0.16) / 1.16) ** 3)


def profile(space, pcs, **tags):
    """An ICC profile, version 2, by hand."""
    def number(x):
        return struct.pack('>i', round(x * 65536))
    white = b''.join(map(number, (0.9642, 1, 0.8249)))
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


def curve(function):
    points = np.round(65535 * function(np.linspace(0, 1, 1024))).astype('>u2')
    return b'curv\0\0\0\0' + struct.pack('>I', len(points)) + points.tobytes()


def rgb_profile(function):
    """The primaries of sRGB with some curve."""
    primaries = {'r': (0.4361, 0.2225, 0.0139), 'g': (0.3851, 0.7169, 0.0971), 'b': (0.1431, 0.0606, 0.7142)}
    return profile('RGB ', 'XYZ ', **{f'{c}TRC': curve(function) for c in 'rgb'}, **{
        f'{c}XYZ': b'XYZ \0\0\0\0' + struct.pack('>3i', *(round(65536 * x) for x in xyz))
        for c, xyz in primaries.items()})


def black_ink():
    """CMYK whose lightness is 1 - K, whatever the other inks: a table with two points a side."""
    even, k = np.arange(256, dtype=np.uint8).tobytes(), [(255, 128, 128), (0, 128, 128)]
    identity = b''.join(struct.pack('>i', x) for x in (65536, 0, 0, 0, 65536, 0, 0, 0, 65536))
    return profile('CMYK', 'Lab ', A2B0=b'mft1\0\0\0\0' + bytes((4, 3, 2, 0)) + identity + 4 * even
                   + 8 * bytes(k[0] + k[1]) + 3 * even)


LEVELS = np.arange(256, dtype=np.uint8).reshape(16, 16)
X = LEVELS / 255
LINEAR = rgb_profile(lambda x: x)
CURVES = {'gamma 1': lambda x: x, 'gamma 1.8': lambda x: x**1.8, 'gamma 3': lambda x: x**3, 'L*': light}


@pytest.mark.parametrize('name', CURVES)
@pytest.mark.parametrize('kind', ['L', 'LA', '16', 'LA16', 'jpeg'])
def test_grey_profile_is_converted_to_srgb(kind, name, tmp_path):
    icc, expected = profile('GRAY', 'XYZ ', kTRC=curve(CURVES[name])), srgb(CURVES[name](X))
    iccp = {'iCCP': b'x\0\0' + zlib.compress(icc)}
    deep = LEVELS.astype(int) * 257
    alpha = LEVELS[::-1] if 'LA' in kind else None
    content = {'L': lambda: png(LEVELS, 8, **iccp),
               'LA': lambda: png(np.dstack([LEVELS, alpha]), 8, 4, **iccp),
               '16': lambda: png(deep, 16, **iccp),
               'LA16': lambda: png(np.dstack([deep, alpha.astype(int) * 257]), 16, 4, **iccp),
               'jpeg': lambda: saved(Image.fromarray(LEVELS.repeat(8, 0).repeat(8, 1)), 'JPEG', quality=100,
                                     icc_profile=icc)}[kind]()
    picture = read(tmp_path / 'x', content)
    grey = picture.grey[4::8, 4::8] if kind == 'jpeg' else picture.grey
    if kind == 'jpeg':
        expected, grey = expected[X > 0.2], grey[X > 0.2]  # darker ones magnify the loss of JPEG
    assert np.abs(grey - expected).max() * 255 < (1.5 if kind == 'jpeg' else 0.8)
    assert np.array_equal(picture.alpha, alpha) if alpha is not None else picture.alpha is None


def test_deep_grey_with_a_profile_keeps_more_than_256_levels(tmp_path):
    icc = profile('GRAY', 'XYZ ', kTRC=curve(CURVES['gamma 1.8']))
    picture = read(tmp_path / 'x', png(WIDE, 16, iCCP=b'x\0\0' + zlib.compress(icc)))
    assert len(np.unique(picture.grey)) > 3000
    assert np.abs(picture.grey - srgb((WIDE / 65535) ** 1.8)).max() * 255 < 1


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'P'])
@pytest.mark.parametrize('gamma', [1, 1.4, 2.6])
def test_colour_profile_is_converted_to_srgb(gamma, mode, tmp_path):
    image = Image.fromarray(np.dstack([RGB, ALPHA]) if mode == 'RGBA' else RGB)
    image = image.quantize(32) if mode == 'P' else image
    picture = read(tmp_path / 'x', saved(image, 'PNG', icc_profile=rgb_profile(lambda x: x**gamma)))
    expected = srgb((np.asarray(image.convert('RGB')) / 255) ** gamma).mean(axis=2)
    assert np.abs(picture.grey - expected).max() * 255 < 1
    assert np.array_equal(picture.alpha, ALPHA) if mode == 'RGBA' else picture.alpha is None


def test_profile_that_moves_levels_by_two_is_converted(tmp_path):
    icc = rgb_profile(lambda x: srgb_light(x)**1.02)
    picture = read(tmp_path / 'x', saved(Image.fromarray(RGB), 'PNG', icc_profile=icc))
    assert np.abs(picture.grey - srgb(srgb_light(RGB / 255)**1.02).mean(axis=2)).max() * 255 < 1


def test_ink_and_lab_are_converted_to_srgb(tmp_path):
    ink = np.dstack([LEVELS * 0, LEVELS[::-1], LEVELS.T, LEVELS])
    picture = read(tmp_path / 'x', saved(Image.fromarray(ink, 'CMYK'), 'TIFF', icc_profile=black_ink()))
    assert np.abs(picture.grey - srgb(light(1 - X))).max() * 255 < 1.5
    lab = np.dstack([LEVELS, LEVELS * 0, LEVELS * 0])  # the colours are signed
    picture = read(tmp_path / 'x', saved(Image.fromarray(lab, 'LAB'), 'TIFF'))
    assert np.abs(picture.grey - srgb(light(X))).max() * 255 < 1.5


@pytest.mark.parametrize('icc', {
    'none': b'', 'noise': b'noise' * 50, 'cut': LINEAR[:200], 'header': LINEAR[:128],
    'other': black_ink(), 'sRGB': ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes(),
    'grey sRGB': profile('GRAY', 'XYZ ', kTRC=curve(srgb_light)),
    'near sRGB': rgb_profile(lambda x: srgb_light(x)**1.008)  # it would move some levels by one
}.values())
@pytest.mark.parametrize('mode', ['L', 'RGB'])
def test_profile_that_is_broken_or_unsuitable_or_srgb_changes_nothing(icc, mode, tmp_path):
    image = Image.fromarray(RGB if mode == 'RGB' else RGB[..., 0])
    plain = np.asarray(image, float) if mode == 'L' else RGB.mean(axis=2)
    picture = read(tmp_path / 'x', saved(image, 'PNG', icc_profile=icc))
    assert near(picture.grey * 255, plain, 1e-4)


def test_colour_profile_on_grey_is_ignored(tmp_path):
    picture = read(tmp_path / 'x', saved(Image.fromarray(LEVELS), 'PNG', icc_profile=LINEAR))
    assert near(picture.grey, X, 1e-6)


# ---------------------------------------------------------------------------
# EXIF, text, resolution, pages, camera raw files
# ---------------------------------------------------------------------------

def exif(orientation, *others):
    """EXIF by hand: its orientation, and other entries, 12 bytes each."""
    entries = [struct.pack('<HHIHH', 0x0112, 3, 1, orientation, 0), *others]
    return (b'Exif\0\0II*\0' + struct.pack('<IH', 8, len(entries)) + b''.join(entries) + bytes(4)
            + struct.pack('<4i', -1, 0, 3, -2))


@pytest.mark.parametrize('other', {
    'by zero': struct.pack('<HHII', 0x011a, 10, 1, 38), 'unsigned': struct.pack('<HHII', 0x011a, 5, 1, 38),
    'negative': struct.pack('<HHII', 0x829a, 10, 1, 46), 'beyond': struct.pack('<HHII', 0x829a, 5, 1, 10**6),
    'text': struct.pack('<HHI4s', 0x829a, 2, 4, b'abc'),
    'wrong': struct.pack('<HHI4s', 0x0131, 3, 2, b'abcd'),
    'pointer': struct.pack('<HHII', 0x8769, 4, 1, 10**6)}.values())
@pytest.mark.parametrize('orientation, turn', [
    (0, lambda x: x), (1, lambda x: x), (2, np.fliplr), (3, lambda x: np.rot90(x, 2)), (4, np.flipud),
    (5, np.transpose), (6, lambda x: np.rot90(x, -1)), (7, lambda x: np.rot90(x, 2).T), (8, np.rot90),
    (9, lambda x: x)])
def test_of_exif_only_the_orientation_matters(orientation, turn, other, tmp_path):
    picture = read(tmp_path / 'x', saved(Image.fromarray(RGB), 'PNG', exif=exif(orientation, other)))
    assert near(picture.grey * 255, turn(GREY), 1e-4)


def test_noise_for_exif_leaves_the_picture_upright(tmp_path):
    for content in (b'Exif\0\0' + b'noise' * 9, exif(6)[:20], b'Exif\0\0II*\0\xff\xff\xff\xff'):
        picture = read(tmp_path / 'x', saved(Image.fromarray(RGB), 'WEBP', lossless=True, exif=content))
        assert picture.grey.shape[0] in GREY.shape


@pytest.mark.parametrize('megabytes', [2, 20])
@pytest.mark.parametrize('international', [False, True])
def test_long_text_in_a_png_does_no_harm(megabytes, international, tmp_path):
    text = PngImagePlugin.PngInfo()
    (text.add_itxt if international else text.add_text)('Comment', 'x' * (megabytes << 20), zip=True)
    picture = read(tmp_path / 'x', saved(Image.fromarray(RGB), 'PNG', pnginfo=text))
    assert near(picture.grey * 255, GREY, 1e-4)


@pytest.mark.parametrize('name, kind, options', [
    ('a.tif', 'TIFF', {}), ('a.tif', 'TIFF', {'compression': 'tiff_lzw'}), ('a.gif', 'GIF', {}),
    ('a.png', 'PNG', {}), ('a.webp', 'WEBP', {}), ('a.jpg', 'MPO', {})])
def test_of_several_pages_the_first_is_coloured(name, kind, options, tmp_path):
    if kind == 'MPO' and int(PIL.__version__.split('.')[0]) < 11:
        pytest.skip('an old Pillow writes a broken file')
    pages = [Image.new('RGB', (8, 8), (value,) * 3) for value in (50, 100, 200)]
    pages[0].save(tmp_path / name, kind, save_all=True, append_images=pages[1:], **options)
    assert read_picture(tmp_path / name).grey * 255 == pytest.approx(50, abs=2)


@pytest.mark.parametrize('name, content, raw', [
    ('a.dng', tiff(LEVELS, 8, extra=[(50706, 1)]), True),
    ('a.tif', tiff(LEVELS, 8, extra=[(50706, 1)]), True),
    ('a.cr2', b'II*\0' + struct.pack('<I', 16) + b'CR\2\0' + bytes(4) + tiff(LEVELS, 8)[264:], True),
    ('a', b'II*\0' + struct.pack('<I', 16) + b'CR\2\0' + bytes(4) + tiff(LEVELS, 8)[264:], True),
    ('a', tiff(LEVELS, 8, extra=[(254, 1), (271, 0), (330, 0)]), True),
    ('a.tif', tiff(LEVELS, 8, extra=[(254, 1), (330, 0)]), True),
    ('a.tif', tiff(LEVELS, 8, extra=[(271, 0)]), False), ('a.tif', tiff(LEVELS, 8, extra=[(330, 0)]), False),
    ('a.tif', tiff(LEVELS, 8, extra=[(254, 0), (271, 0)]), False),
    ('a.tif', tiff(LEVELS, 8, extra=[(254, 2)]), False),
    ('a.nef', saved(Image.fromarray(LEVELS), 'PNG'), False)])
def test_raw_file_of_a_camera_is_refused(name, content, raw, tmp_path):
    if raw:
        with pytest.raises(InputError, match=f"{name}: it is a camera's raw file, .* and save it as JPEG"):
            read(tmp_path / name, content)
    else:
        assert near(read(tmp_path / name, content).grey, X, 1e-6)


# ---------------------------------------------------------------------------
# Names and messages
# ---------------------------------------------------------------------------

def test_slips_get_a_line_that_helps(run_script, tmp_path):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'lfs.jpg').write_bytes(b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n')
    (tmp_path / 'page.jpg').write_bytes(b'<!DOCTYPE html><html></html>')
    (tmp_path / 'iphone.heic').write_bytes(b'\0\0\0\x24ftypheic\0\0\0\0mif1heic' + bytes(99))
    Image.new('1', (13_400, 13_400)).save(tmp_path / 'large.png')
    Image.new('L', (8, 8)).save(tmp_path / '[1].png')  # a name that looks like a pattern
    names = ['folder', 'a?.png', 'x[1].png', 'none.jpg', 'lfs.jpg', 'page.jpg', 'iphone.heic', 'large.png',
             'https:/example.org/a.jpg', '-']
    done = run_script('colourization.py', '--image', *names, '[1].png')
    assert done.returncode == 1 and done.stdout == 'Wrote outputs/[1]_colour.png\n'
    words = ['it is a folder', *['none of this pattern: check the folder'] * 3, 'Git LFS', 'web page',
             'HEIC picture.*save it as JPEG', 'more than 178 megapixels: make it smaller',
             *['save it into a file first'] * 2]
    for line, name, word in zip(done.stderr.splitlines(), names, words, strict=True):
        assert line.startswith(f'error: {name}: ') and re.search(word, line)


@pytest.mark.parametrize('start, words', [
    (b'\xef\xbb\xbf\r\n <!DOCTYPE html>', 'web page'), (b'\n<HTML lang="en">', 'web page'),
    *((b'\0\0\0\x24ftyp' + brand, 'HEIC') for brand in (b'heic', b'heix', b'mif1', b'msf1')),
    (b'a plain file', '')])
def test_start_of_a_file_tells_what_it_is_instead(start, words, tmp_path):
    (tmp_path / 'a').write_bytes(start + bytes(99))
    said = what_it_is_instead(tmp_path / 'a')
    assert words in said and bool(words) == bool(said)


def test_pattern_that_the_shell_left_is_expanded(run_script, tmp_path):
    for name in ('b.png', 'a.png', 'a.jpg', '[ab].png', 'c.png'):
        Image.new('L', (8, 8)).save(tmp_path / name)
    done = run_script('colourization.py', '--image', '*.jpg', '[bc]*.png', '[ab].png')
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.splitlines() == [
        f'Wrote outputs/{name}_colour.png' for name in ('a', 'b', 'c', '[ab]')]


DEEP_JPEG_2000 = {  # ramps of 256 columns from black to white, 64 rows, opaque
    'rgb12':
        'AAAADGpQICANCocKAAAAFGZ0eXBqcDIgAAAAAGpwMiAAAAAtanAyaAAAABZpaGRyAAAAQAAAAQAAAwsHAAAAAAAPY29scgEA'
        'AAAAABAAAAHLanAyY/9P/1EALwAAAAABAAAAAEAAAAAAAAAAAAAAAQAAAABAAAAAAAAAAAAAAwsBAQsBAQsBAf9SAAwAAAAB'
        'AQMEBAAB/1wADUBgaGhwaGhwaGhw/2QAJQABQ3JlYXRlZCBieSBPcGVuSlBFRyB2ZXJzaW9uIDIuNS40/5AACgAAAAABSgAB'
        '/5Pf5QoRayi2Jvu0efRgN4w29PoAZMSJfCOsdgj7lNDgDRxkTBi4mXw21aSoHoPcbXdb79Xic2HZqLQfJUm3ZKv3XzfOQooB'
        'w2Gw2Gw2GvVjb5vm+b5xHhw2Gw2Gw2JE4w4r9KCV16JDCQkIDQDCQfY56WEhGCvZWAwkITTvDCQhtIuJEhKKDAwkIbSexzsh'
        'FmEDCQkdjwDCQhJAjCQjWOFe4AwkJc4XwALeCO69YAFvAATeEXg/2VjCN6fiCpAylsJCXRf0YRvT8QU9pR5sPzYg3p+bVp+w'
        '/lHFo+xHNh+bEG9PzatP2H8o4rpOt9bS6tpdW0uraXVtLq2l1bS6tpdW0uraXVtLq2l1bS6tp4CAwH2hIIth3UTU5CZzSYCA'
        'wD6gsK1yAbX4l7wdW7A/gIDQB+cMAK1yAb2ZR4CA/9k=',
    'rgb16':
        'AAAADGpQICANCocKAAAAFGZ0eXBqcDIgAAAAAGpwMiAAAAAtanAyaAAAABZpaGRyAAAAQAAAAQAAAw8HAAAAAAAPY29scgEA'
        'AAAAABAAAAIOanAyY/9P/1EALwAAAAABAAAAAEAAAAAAAAAAAAAAAQAAAABAAAAAAAAAAAAAAw8BAQ8BAQ8BAf9SAAwAAAAB'
        'AQMEBAAB/1wADUCAiIiQiIiQiIiQ/2QAJQABQ3JlYXRlZCBieSBPcGVuSlBFRyB2ZXJzaW9uIDIuNS40/5AACgAAAAABjQAB'
        '/5Pf+JpwEWsotib7tHn0YDeMNvT6AGTEiXwjrHYI+5TQ4A0cZEwYuJl8NtWkqB6D3G13W+/V4nNh2ai0HyVJwm67zfN837yP'
        '4bwxW3XzfN/SuO6+b5v42npdNituvm+cclPYekp6QAG6QwkIxAkYSEO3zpDCQldgzIYSErINhhIQ2jiHMhK0FIwkIbSc045C'
        'PcMGEhIQGgGEhFmEDCQjWOAGwAwkJdM4wDQAyvqAC/mSmMI4cAN8GEb0/2hyprCQcmL8GEb0/2a8+Nq0/Yk9pUBgWj7D+S/H'
        'iUubD82IPaVAYFo+w/kvraXVtLq2l1bUYV0nW+tpdW0vGZ7pOt9bS6tqMK6TrfW0uraXhw2Gw2Gw2Gw2Gw2Gw2Gw2Gw2Gw2G'
        'w2Gw2Gw2Gw2Gw2Gw2Gw1+NLxngj5mckP4nPAhZ54gIDAfyHAi2HdRNTkJnNKRsWVHj+AgMA/YRCtcgG1+Je8HVuwSwGJAYGa'
        '34CA0AfzDwCtcgG9mUfqdiAAAAAAYR+AgP/Z',
    'la16':
        'AAAADGpQICANCocKAAAAFGZ0eXBqcDIgAAAAAGpwMiAAAAAtanAyaAAAABZpaGRyAAAAQAAAAQAAAg8HAAAAAAAPY29scgEA'
        'AAAAABEAAAIRanAyY/9P/1EALAAAAAABAAAAAEAAAAAAAAAAAAAAAQAAAABAAAAAAAAAAAAAAg8BAQ8BAf9SAAwAAAABAAME'
        'BAAB/1wADUCAiIiQiIiQiIiQ/2QAJQABQ3JlYXRlZCBieSBPcGVuSlBFRyB2ZXJzaW9uIDIuNS40/5AACgAAAAABkwAB/5Pf'
        '+JpwEWsotib7tHn0YDeMNvT6AGTEiXwjrHYI+5TQ4A0cZEwYuJl8NtWkqB6D3G13W+/V4nNh2ai0HyVJwm67zfN837yP4bwx'
        'W3XzfN/SuO6+b5v42npdNituvm+cclPYekp6QAG6QwkIxAkYSEO3zpDCQldgzIYSErINhhIQ2jiHMhK0FIwkIbSc045CPcMG'
        'EhIQGgGEhFmEDCQjWOAGwAwkJdM4wDQAyvqAC/mSmMI4cAN8GEb0/2hyprCQcmL8GEb0/2a8+Nq0/Yk9pUBgWj7D+S/HiUub'
        'D82IPaVAYFo+w/kvraXVtLq2l1bUYV0nW+tpdW0vGZ7pOt9bS6tqMK6TrfW0uraXhw2Gw2Gw2Gw2Gw2Gw2Gw2Gw2Gw2Gw2Gw'
        '2Gw2Gw2Gw2Gw2Gw1+NLxngj5mckP4nPAhZ54z/wwHBQAXK/S9J/AfyHAi2HdRNTkJnNKRsWVHj+AwD9hEK1yAbX4l7wdW7BL'
        'AYkBgZrfgNAH8w8ArXIBvZlH6nYgAAAAAGEfgP/Z',
    'rgba16':
        'AAAADGpQICANCocKAAAAFGZ0eXBqcDIgAAAAAGpwMiAAAAAtanAyaAAAABZpaGRyAAAAQAAAAQAABA8HAAAAAAAPY29scgEA'
        'AAAAABAAAAUFanAyY/9P/1EAMgAAAAABAAAAAEAAAAAAAAAAAAAAAQAAAABAAAAAAAAAAAAABA8BAQ8BAQ8BAQ8BAf9SAAwA'
        'AAABAAMEBAAB/1wADUCAiIiQiIiQiIiQ/2QAJQABQ3JlYXRlZCBieSBPcGVuSlBFRyB2ZXJzaW9uIDIuNS40/5AACgAAAAAE'
        'gQAB/5Pf+JpwEWsotib7tHn0YDeMNvT6AGTEiXwjrHYI+5TQ4A0cZEwYuJl8NtWkqB6D3G13W+/V4nNh2ai0HyVJwm67zfN8'
        '37yP4bwxW3XzfN/SuO6+b5v42npdNituvm+cclPYekp6QAG6QwkIxAkYSEO3zpDCQldgzIYSErINhhIQ2jiHMhK0FIwkIbSc'
        '045CPcMGEhIQGgGEhFmEDCQjWOAGwAwkJdM4wDQAyvqAC/mSmMI4cAN8GEb0/2hyprCQcmL8GEb0/2a8+Nq0/Yk9pUBgWj7D'
        '+S/HiUubD82IPaVAYFo+w/kvraXVtLq2l1bUYV0nW+tpdW0vGZ7pOt9bS6tqMK6TrfW0uraXhw2Gw2Gw2Gw2Gw2Gw2Gw2Gw2'
        'Gw2Gw2Gw2Gw2Gw2Gw2Gw2Gw1+NLxngj5mckP4nPAhZ543/iacBFrKLYm+7R59GA3jDb0+gBkxIl8I6x2CPuU0OANHGRMGLiZ'
        'fDbVpKgeg9xtd1vv1eJzYdmotB8lScJuu83zfN+8j+G8MVt183zf0rjuvm+b+Np6XTYrbr5vnHJT2HpKekABukMJCMQJGEhD'
        't86QwkJXYMyGEhKyDYYSENo4hzIStBSMJCG0nNOOQj3DBhISEBoBhIRZhAwkI1jgBsAMJCXTOMA0AMr6gAv5kpjCOHADfBhG'
        '9P9ocqawkHJi/BhG9P9mvPjatP2JPaVAYFo+w/kvx4lLmw/NiD2lQGBaPsP5L62l1bS6tpdW1GFdJ1vraXVtLxme6TrfW0ur'
        'ajCuk631tLq2l4cNhsNhsNhsNhsNhsNhsNhsNhsNhsNhsNhsNhsNhsNhsNhsNfjS8Z4I+ZnJD+JzwIWeeN/4mnARayi2Jvu0'
        'efRgN4w29PoAZMSJfCOsdgj7lNDgDRxkTBi4mXw21aSoHoPcbXdb79Xic2HZqLQfJUnCbrvN83zfvI/hvDFbdfN839K47r5v'
        'm/jael02K26+b5xyU9h6SnpAAbpDCQjECRhIQ7fOkMJCV2DMhhISsg2GEhDaOIcyErQUjCQhtJzTjkI9wwYSEhAaAYSEWYQM'
        'JCNY4AbADCQl0zjANADK+oAL+ZKYwjhwA3wYRvT/aHKmsJByYvwYRvT/Zrz42rT9iT2lQGBaPsP5L8eJS5sPzYg9pUBgWj7D'
        '+S+tpdW0uraXVtRhXSdb62l1bS8Znuk631tLq2owrpOt9bS6tpeHDYbDYbDYbDYbDYbDYbDYbDYbDYbDYbDYbDYbDYbDYbDY'
        'bDX40vGeCPmZyQ/ic8CFnnjP/DAcFABcr9L0n8B/IcCLYd1E1OQmc0pGxZUeP8B/IcCLYd1E1OQmc0pGxZUeP8B/IcCLYd1E'
        '1OQmc0pGxZUeP4DAP2EQrXIBtfiXvB1bsEsBiQGBmt/AP2EQrXIBtfiXvB1bsEsBiQGBmt/AP2EQrXIBtfiXvB1bsEsBiQGB'
        'mt+A0AfzDwCtcgG9mUfqdiAAAAAAYR/QB/MPAK1yAb2ZR+p2IAAAAABhH9AH8w8ArXIBvZlH6nYgAAAAAGEfgP/Z',
}


@pytest.mark.parametrize('options', [{}, {'progressive': True}, {'quality': 40, 'subsampling': 0}])
def test_jpeg_that_lacks_only_its_end_marker_is_read_and_no_shorter_one(options, tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(64, 96), dtype=np.uint8)
    whole = saved(Image.fromarray(pixels), 'JPEG', **options)
    expected = read(tmp_path / 'x', whole).grey
    for end in (-1, -2):
        assert np.array_equal(read(tmp_path / 'x', whole[:end]).grey, expected)
    for end in range(len(whole) // 2, len(whole) - 4, len(whole) // 30):
        with pytest.raises(InputError, match='x: it cannot be read'):
            read(tmp_path / 'x', whole[:end])


@pytest.mark.parametrize('mode', ['RGB', 'L', 'LA', 'RGBA', 'I;16'])
def test_jpeg_2000_is_right(mode, tmp_path):
    ramp = np.tile(np.arange(256, dtype=np.uint16 if mode == 'I;16' else np.uint8), (64, 1))
    picture = Image.fromarray(ramp * (257 if mode == 'I;16' else 1)).convert(mode)
    picture.save(tmp_path / 'x.jp2', irreversible=False)
    assert near(read_picture(tmp_path / 'x.jp2').grey * 255, ramp, 0.01)


def test_depths_of_jpeg_2000_are_those_of_its_size_segment():
    """Bits less one, and above them whether a component is signed: ISO 15444-1, table A.11."""
    segment = struct.pack('>HHHIIIIIIIIH', 0xff51, 38 + 3 * 3, 0, *[8] * 8, 3)
    file = io.BytesIO(b'\0\0\0\x0cjP  \xff\x4f' + segment + bytes([7, 1, 1, 0x87, 1, 1, 11, 1, 1, 99]))
    file.seek(5)
    assert jpeg2000_depths(file) == [8, 8, 12] and file.tell() == 5


@pytest.mark.parametrize('name', ['rgb12', 'rgb16', 'la16', 'rgba16'])
def test_jpeg_2000_that_pillow_garbles_is_refused(name, tmp_path):
    (tmp_path / 'x.jp2').write_bytes(base64.b64decode(DEEP_JPEG_2000[name]))
    with pytest.raises(InputError, match='x.jp2: .* JPEG 2000 above 8 bits: save it as PNG'):
        read_picture(tmp_path / 'x.jp2')


def test_pictures_of_one_name_get_a_result_each(run_script, tmp_path):
    for suffix in ('png', 'bmp', 'gif'):
        Image.new('L', (8, 8)).save(tmp_path / f'a.{suffix}')
    done = run_script('colourization.py', '--image', 'a.png', 'a.bmp', 'a.gif')
    assert done.stdout.splitlines() == [f'Wrote outputs/{name}_colour.png' for name in ('a', 'a_2', 'a_3')]


@pytest.mark.parametrize('one, other', [
    ('X', 'x'), ('ß', 'ss'), ('ä', unicodedata.normalize('NFD', 'ä')),
    ('Ä', unicodedata.normalize('NFD', 'ä'))])
def test_names_that_some_file_systems_hold_for_one_get_two_results(one, other, run_script, tmp_path):
    for name, value in ((one, 50), (other, 200)):
        Image.new('L', (8, 8), value).save(tmp_path / f'{name}.png')
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip('this file system is one of them')
    done = run_script('colourization.py', '--image', f'{one}.png', f'{other}.png')
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / 'outputs').iterdir()) == sorted(
        [f'{one}_colour.png', f'{other}_2_colour.png'])


@unix_only
def test_input_is_not_overwritten_under_another_name(run_script, tmp_path):
    """A hard link has two names, as each file has where case does not count."""
    (tmp_path / 'outputs').mkdir()
    for name in 'ab':
        Image.new('L', (8, 8), 99).save(tmp_path / f'{name}.png')
    os.link(tmp_path / 'b.png', tmp_path / 'outputs/a_colour.png')
    before = (tmp_path / 'b.png').read_bytes()
    done = run_script('colourization.py', '--image', 'a.png', 'b.png')
    assert done.returncode == 1 and done.stdout == 'Wrote outputs/b_colour.png\n'
    assert 'a_colour.png is itself a picture to colour: choose another --outdir' in done.stderr
    assert (tmp_path / 'outputs/a_colour.png').read_bytes() == (tmp_path / 'b.png').read_bytes() == before


# ---------------------------------------------------------------------------
# Large pictures
# ---------------------------------------------------------------------------

def guided(grey, chroma):
    """The guided filter, by SciPy's box filter: slope and offset of chroma [3, h, w] by grey [h, w]."""
    def mean(x):
        ones = uniform_filter(np.ones(x.shape[-2:]), 5, mode='constant')
        return uniform_filter(x, 5, mode='constant', axes=(-2, -1)) / ones
    variance = mean(grey**2) - mean(grey)**2
    slope = (mean(grey * chroma) - mean(grey) * mean(chroma)) / (variance + 1e-3)
    return mean(slope), mean(mean(chroma) - slope * mean(grey))


@pytest.mark.parametrize('shape, sizes', [
    ((1, 999), [(4, 256), (4, 64), (4, 16)]), ((999, 1), [(256, 4), (64, 4), (16, 4)]),
    ((101, 60), [(40, 24), (20, 12), (12, 8)])])  # of the views: about 32x32, 16x16 and 8x8 pixels
@pytest.mark.parametrize('band', [1, 1000, 10**9])
def test_bands_are_the_picture_that_is_coloured_at_once(band, shape, sizes, model, monkeypatch):
    monkeypatch.setattr(colourization, 'BAND', band)
    grey = np.random.default_rng(3).random(shape, dtype=np.float32)
    seen, answers = [], []
    hook = model.register_forward_hook(lambda _, views, answer: seen.extend(views) or answers.append(answer))
    rgb = colourize(grey, model, COLOURS, 0.38, size=32)
    hook.remove()
    first = Image.fromarray(grey).resize(sizes[0][::-1], Image.Resampling.BILINEAR)
    slope = offset = 0
    for size, view, answer in zip(sizes, seen, answers, strict=True):
        small = np.asarray(first.resize(size[::-1], Image.Resampling.BILINEAR))
        assert near(view[0, 0].numpy() * 256 / 255, small, 1e-5)
        tint = scores_to_rgb(answer.detach(), COLOURS, 0.38)[0].astype(float)
        line = guided(small.astype(float), tint - tint.mean(axis=0))
        for size in (sizes[0], shape):
            line = [F.interpolate(torch.as_tensor(x)[None], size, mode='bicubic')[0] for x in line]
        slope, offset = (whole + 1.4 / 3 * x.numpy() for whole, x in zip((slope, offset), line))
    tint = slope * grey + offset
    with np.errstate(divide='ignore'):
        room = np.minimum((1 - grey) / tint.max(0), grey / -tint.min(0))
    expected = grey[..., None] + np.moveaxis(tint * np.minimum(room, 1), 0, 2)
    assert near(rgb, expected.clip(0, 1), 5e-6)


@pytest.mark.slow
def test_108_megapixels_take_less_than_4_gb(tmp_path):
    if os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') < 6e9:
        pytest.skip('there is too little memory to try')
    Image.fromarray(RGB).resize((12_000, 9000)).save(tmp_path / 'a.jpg')
    assert peak_memory(tmp_path, 'colourization.py', '--image', 'a.jpg') < 4e9
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert Image.open(tmp_path / 'outputs/a_colour.png').size == (12_000, 9000)
