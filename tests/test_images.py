"""--image: a user's own pictures of every kind, coloured with their own brightness."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin

import colourization
from colourization import CNN, add_prior, colourize, scores_to_rgb
from conftest import ROOT
from load_data import InputError, read_picture

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
        assert np.abs(result[..., :3].mean(axis=2) - grey).max() <= 1, name
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
    Image.new('1', (14_000, 14_000)).save(tmp_path / 'bomb.png')
    Image.fromarray(RGB[..., 0] / np.float32(255)).save(tmp_path / 'fractions.tif')
    broken = ['cut.png', 'empty.jpg', 'missing.png', 'text.jpg', 'folder', 'bomb.png', 'fractions.tif']
    done = run_script('colourization.py', '--image', *broken, 'good.png')
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
    assert rgb.mean(axis=2) == pytest.approx(grey, abs=1e-5)


@pytest.mark.parametrize('temperature', [0, 0.38, 1])
def test_small_picture_is_the_networks_own_chroma_with_the_grey(temperature):
    model = CNN(3, 4, 5).eval()
    add_prior(model, torch.randn(766, 5))  # so that its scores depend on every grey level
    grey = np.random.default_rng(2).uniform(0.45, 0.55, (32, 32)).astype(np.float32)
    with torch.no_grad():
        scores = model(torch.from_numpy(grey)[None, None] * 255 / 256)
    pale = COLOURS * 0.4  # so that no colour leaves [0, 1]
    answer = scores_to_rgb(scores, pale, temperature)[0].transpose(1, 2, 0)
    expected = answer - answer.mean(axis=2, keepdims=True) + grey[..., None]
    assert colourize(grey, model, pale, temperature) == pytest.approx(expected, abs=1e-4)


def test_flat_areas_get_smooth_colours_from_a_small_view(model):
    """Between the pixels that the network sees there are no steps."""
    grey = np.full((256, 256), 0.5, np.float32)
    grey[64:192, 64:192] = 0.6
    seen = CNN(3, 4, 5).eval()
    add_prior(seen, 50 * torch.eye(5)[torch.arange(766) % 5])
    rgb = colourize(grey, seen, COLOURS, size=32)
    chroma = rgb - rgb.mean(axis=2, keepdims=True)
    whole = np.ptp(chroma, axis=(0, 1)).max()
    assert whole > 0.02 and np.abs(np.diff(chroma, axis=0)).max() < whole / 3


# ---- Files of cameras, scanners and phones ----------------------------------------------------------------


def tiff(values, bits=16, white_is_zero=False, kind=1, **more):
    """A grey TIFF file of rows of numbers; `kind` 1 is unsigned, 2 signed; more tags by `t` and number."""
    height, width = np.shape(values)
    if bits == 12:  # the only ones that share bytes
        packed = ''.join(f'{value:012b}' for value in np.ravel(values))
        data = bytes(int(packed[i:i + 8], 2) for i in range(0, len(packed), 8))
    else:
        data = np.asarray(values, f'<u{bits // 8}').tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 0 if white_is_zero else 1, 277: 1, 278: height,
            273: 0, 279: len(data), 339: kind} | {int(name[1:]): value for name, value in more.items()}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b''.join(struct.pack('<HHII', tag, 4, 1, tags[tag]) for tag in sorted(tags))
    return struct.pack('<2sHIH', b'II', 42, 8, len(tags)) + entries + bytes(4) + data


RAMP = np.linspace(0, 65535, 40).astype(int).reshape(4, 10)


@pytest.mark.parametrize('content, expected', [
    (tiff(RAMP), RAMP / 65535), (tiff(RAMP, white_is_zero=True), 1 - RAMP / 65535),
    (tiff(RAMP >> 8, 8, white_is_zero=True), 1 - (RAMP >> 8) / 255),
    (tiff(RAMP >> 4, 12), (RAMP >> 4) / 4095),
    (b'P5 10 4 4095\n' + (RAMP >> 4).astype('>u2').tobytes(), (RAMP >> 4) / 4095),
    (b'P5 10 4 65535\n' + RAMP.astype('>u2').tobytes(), RAMP / 65535)],
    ids=['16 bits', '16 bits, white is 0', '8 bits, white is 0', '12 bits', 'PGM, 12 bits', 'PGM, 16 bits'])
def test_white_is_white_however_many_bits_it_has(content, expected, tmp_path):
    (tmp_path / 'a').write_bytes(content)
    grey, alpha, _, _ = read_picture(tmp_path / 'a')
    assert grey == pytest.approx(expected, abs=2e-5) and alpha is None


@pytest.mark.parametrize('content', [tiff(RAMP * 65537, 32), tiff(RAMP * 32768, 32, kind=2),
                                     tiff(RAMP, kind=2)], ids=['32 bits', '32, signed', '16, signed'])
def test_numbers_without_an_agreed_white_are_refused(content, tmp_path):
    (tmp_path / 'a.tif').write_bytes(content)
    with pytest.raises(InputError, match='no agreed white: save it with 8 or 16 bits'):
        read_picture(tmp_path / 'a.tif')


def test_deep_grey_keeps_its_transparency(tmp_path):
    Image.fromarray(RAMP.astype(np.uint16)).save(tmp_path / 'a.png', transparency=int(RAMP[1, 3]))
    grey, alpha, _, _ = read_picture(tmp_path / 'a.png')
    assert grey == pytest.approx(RAMP / 65535, abs=1e-6)
    assert np.array_equal(alpha, np.where(RAMP == RAMP[1, 3], 0, 255))


def grey_profile(gamma):
    """An ICC profile of a grey scale, as scanners write them; lcms makes none such, so by hand."""
    curve = struct.pack('>4sIIH2x', b'curv', 0, 1, round(256 * gamma))
    white = struct.pack('>4sI3i', b'XYZ ', 0, 63190, 65536, 54061)  # D50
    words = b'desc' + bytes(4) + struct.pack('>I', 5) + b'grey\0' + bytes(78 + 1)
    parts, offset = [(b'desc', words), (b'wtpt', white), (b'kTRC', curve)], 128 + 4 + 3 * 12
    table, data = struct.pack('>I', 3), b''
    for name, part in parts:
        part = part.ljust(-(-len(part) // 4) * 4, b'\0')
        table += name + struct.pack('>II', offset + len(data), len(part))
        data += part
    header = struct.pack('>I4sI4s4s4s', offset + len(data), bytes(4), 0x02100000, b'mntr', b'GRAY', b'XYZ ')
    header += bytes(12) + b'acsp' + bytes(28) + struct.pack('>3i', 63190, 65536, 54061)
    return header.ljust(128, b'\0') + table + data


def to_srgb(linear):
    """The curve of sRGB, IEC 61966-2-1."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize('gamma', [1, 1.8, 2.6])
@pytest.mark.parametrize('deep', [False, True])
@pytest.mark.parametrize('alpha', [False, True])
def test_grey_of_a_colour_profile_becomes_that_of_srgb(gamma, deep, alpha, tmp_path):
    levels = np.arange(16, 256, dtype=np.uint8)[None].repeat(2, axis=0)
    picture = Image.fromarray(levels.astype(np.uint16) * 257 if deep else levels)
    if alpha and not deep:
        picture = Image.merge('LA', [picture, Image.new('L', picture.size, 9)])
    picture.save(tmp_path / 'a.png', icc_profile=grey_profile(gamma))
    grey = read_picture(tmp_path / 'a.png').grey
    assert 255 * grey == pytest.approx(255 * to_srgb((levels / 255) ** gamma), abs=1.5)
    assert np.abs(255 * grey - levels).max() > 10  # so the profile matters


def test_colours_of_a_profile_become_those_of_srgb(tmp_path):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile('LAB'))
    wide = Image.fromarray(RGB).convert('RGB')
    to_lab = ImageCms.profileToProfile(wide, ImageCms.createProfile('sRGB'), lab, outputMode='LAB')
    to_lab.save(tmp_path / 'lab.tif')
    expected = ImageCms.profileToProfile(to_lab, lab, ImageCms.createProfile('sRGB'), outputMode='RGB')
    assert read_picture(tmp_path / 'lab.tif').grey * 255 == pytest.approx(np.asarray(expected).mean(axis=2))

    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    for profile in (srgb, b'broken', grey_profile(1.8), srgb[:200], b''):  # its own, or of no use to it
        Image.fromarray(RGB).save(tmp_path / 'a.png', icc_profile=profile)
        assert read_picture(tmp_path / 'a.png').grey * 255 == pytest.approx(GREY, abs=1e-4)


def rational(tag, number, denominator):
    """A big-endian EXIF block: upside down, and a rational that may be nonsense."""
    entries = struct.pack('>HHIHH', 0x0112, 3, 1, 3, 0) + struct.pack('>HHII', tag, 5, 1, 38)
    return (b'Exif\0\0MM\0*' + struct.pack('>IH', 8, 2) + entries + bytes(4)
            + struct.pack('>II', number, denominator))


@pytest.mark.parametrize('exif, turned', [
    (rational(282, 1, 0), True), (rational(33434, 2**32 - 1, 0), True),
    (b'Exif\0\0MM\0*\0\0\0\7broken', False),
    (b'Exif\0\0', False), (b'Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\x63\0\0\0\0\0\0', False)],
    ids=['resolution of 1/0', 'exposure of nonsense', 'broken', 'empty', 'orientation 99'])
def test_only_the_orientation_of_exif_matters(exif, turned, tmp_path):
    smooth = Image.fromarray(np.arange(0, 240, 4, dtype=np.uint8)[:, None].repeat(40, axis=1))
    smooth.save(tmp_path / 'a.jpg', exif=exif, quality=95)
    grey = read_picture(tmp_path / 'a.jpg').grey * 255
    plain = np.asarray(smooth)[::-1] if turned else np.asarray(smooth)
    assert np.abs(grey - plain).max() < 4


@pytest.mark.parametrize('turn', range(1, 9))
def test_picture_is_upright_as_pillow_has_it(turn, tmp_path):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(np.dstack([RGB, ALPHA])).save(tmp_path / 'a.png', exif=exif, dpi=(300, 150))
    with Image.open(tmp_path / 'a.png') as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    grey, alpha, dpi, _ = read_picture(tmp_path / 'a.png')
    assert grey * 255 == pytest.approx(expected[..., :3].mean(axis=2), abs=1e-4)
    assert np.array_equal(alpha, expected[..., 3])
    assert dpi == pytest.approx((300, 150) if turn < 5 else (150, 300), abs=0.1)


@pytest.mark.parametrize('chunk', [b'zTXt', b'iTXt', b'tEXt'])
def test_long_text_in_a_picture_is_no_reason_to_refuse_it(chunk, tmp_path):
    text = b'k\0' + {b'zTXt': b'\0', b'iTXt': b'\1\0\0\0', b'tEXt': b''}[chunk]
    text += (b'x' * 3_000_000 if chunk == b'tEXt' else zlib.compress(b'x' * 3_000_000))
    out = io.BytesIO()
    Image.fromarray(RGB).save(out, 'PNG')
    png = out.getvalue()
    piece = struct.pack('>I', len(text)) + chunk + text + struct.pack('>I', zlib.crc32(chunk + text))
    for where in (33, len(png) - 12):  # before the pixels, and after them
        (tmp_path / 'a.png').write_bytes(png[:where] + piece + png[where:])
        assert read_picture(tmp_path / 'a.png').grey * 255 == pytest.approx(GREY, abs=1e-4)
    assert PngImagePlugin.MAX_TEXT_CHUNK > 2**20  # as Pillow has it, such a text is refused


@pytest.mark.parametrize('name, content', [
    ('a.dng', tiff(RAMP >> 8, 8, t50706=1)), ('a.tif', tiff(RAMP >> 8, 8, t50706=1)),
    ('a.tiff', tiff(RAMP >> 8, 8, t254=1)), ('b.NEF', tiff(RAMP >> 8, 8)), ('c.raf', b'FUJIFILMCCD-RAW'),
    ('d.bin', tiff(RAMP >> 8, 8)[:4] + struct.pack('>I', 16) + b'CR\2\0' + bytes(4)
     + tiff(RAMP >> 8, 8, t273=9)[8:])])
def test_raw_file_of_a_camera_is_refused(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match='save it as JPEG or PNG'):
        read_picture(tmp_path / name)


def test_words_for_what_cannot_be_coloured(run_script, tmp_path):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'phone.heic').write_bytes(b'\0\0\0\x18ftypheic' + bytes(100))
    (tmp_path / 'pointer.jpg').write_text('version https://git-lfs.github.com/spec/v1\noid sha256:0\n')
    Image.new('L', (8, 8), 100).save(tmp_path / 'good[1].png')
    names = ['*.jpg', 'folder', 'phone.heic', 'pointer.jpg', 'good[1].png']
    done = run_script('colourization.py', '--image', *names)
    assert done.returncode == 1 and done.stdout == 'Wrote outputs/good[1]_colour.png\n'
    lines = done.stderr.splitlines()
    for line, name, words in zip(lines, names, ('the shell replaces', 'name the pictures in it',
                                                'save it as JPEG or PNG', 'git lfs pull')):
        assert line.startswith(f'error: {name}: ') and words in line
    assert len(lines) == 4


def test_first_of_several_pages_is_coloured_and_a_line_says_so(run_script, tmp_path):
    pages = [Image.new('L', (8, 8), value) for value in (50, 120, 200)]
    for name in ('scan.tif', 'moving.gif', 'moving.webp'):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / 'phone.jpg', 'MPO', save_all=True, append_images=pages[1:])
    done = run_script('colourization.py', '--image', 'scan.tif', 'moving.gif', 'moving.webp', 'phone.jpg')
    assert done.returncode == 0 and done.stderr.splitlines() == [
        f'note: {name} has 3 pages or frames: the first is coloured'
        for name in ('scan.tif', 'moving.gif', 'moving.webp')]
    for name in ('scan', 'moving', 'moving_2', 'phone'):
        result = np.asarray(Image.open(tmp_path / f'outputs/{name}_colour.png'))
        assert result.mean() == pytest.approx(50, abs=3)


@pytest.mark.parametrize('first, second', [('X', 'x'), ('straße', 'STRASSE'), ('\u00e9', 'e\u0301')])
def test_names_that_are_the_same_to_some_file_systems_get_results_of_their_own(first, second, run_script,
                                                                              tmp_path):
    for folder, name in (('a', first), ('b', second)):
        (tmp_path / folder).mkdir()
        Image.new('L', (8, 8), 100).save(tmp_path / folder / f'{name}.png')
    done = run_script('colourization.py', '--image', f'a/{first}.png', f'b/{second}.png')
    assert done.returncode == 0
    assert {p.name for p in (tmp_path / 'outputs').iterdir()} == {f'{first}_colour.png',
                                                                 f'{second}_2_colour.png'}


def test_picture_is_not_replaced_by_a_result_under_another_of_its_names(run_script, tmp_path):
    (tmp_path / 'outputs').mkdir()
    Image.new('L', (8, 8), 100).save(tmp_path / 'other name.png')
    (tmp_path / 'outputs/x_colour.png').hardlink_to(tmp_path / 'other name.png')
    Image.new('L', (8, 8), 50).save(tmp_path / 'x.png')
    done = run_script('colourization.py', '--image', 'x.png', 'other name.png')
    assert done.returncode == 1 and 'x_colour.png is a picture to colour itself' in done.stderr
    assert np.asarray(Image.open(tmp_path / 'other name.png')).mean() == 100


@pytest.mark.parametrize('dpi, kept', [((300, 150), (300, 150)), ((0, 0), None), (None, None)])
def test_resolution_is_kept(dpi, kept, run_script, tmp_path):
    Image.fromarray(RGB).save(tmp_path / 'a.jpg', **({'dpi': dpi} if dpi else {}))
    assert run_script('colourization.py', '--image', 'a.jpg').returncode == 0
    found = Image.open(tmp_path / 'outputs/a_colour.png').info.get('dpi')
    assert found == (pytest.approx(kept, abs=0.1) if kept else None)


def test_bands_make_no_difference(model, monkeypatch):
    grey = np.random.default_rng(3).random((211, 130), dtype=np.float32)
    whole = colourize(grey, model, COLOURS, size=32)
    for pixels in (1, 1000, 211 * 130 - 1):
        monkeypatch.setattr(colourization, 'BAND', pixels)
        assert colourize(grey, model, COLOURS, size=32) == pytest.approx(whole, abs=1e-6)


@pytest.mark.slow
def test_picture_of_108_megapixels_takes_less_than_four_gigabytes(tmp_path):
    code = ('import resource, subprocess, sys\n'
            'subprocess.run([sys.executable, *sys.argv[1:]], check=True)\n'
            'print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)')
    Image.fromarray(RGB).resize((12_000, 9_000)).save(tmp_path / 'a.jpg')
    done = subprocess.run([sys.executable, '-c', code, ROOT / 'colourization.py', '--image', 'a.jpg'],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == '', done.stderr
    assert Image.open(tmp_path / 'outputs/a_colour.png').size == (12_000, 9_000)
    assert int(done.stdout.split()[-1]) * 1024 < 4e9
