"""The same horses by the course's way and by the one that goes beyond it.

    python outputs/writeup/comparison.py --data data
    python outputs/writeup/comparison.py --image         # photographs instead, for which no data is needed

Writes `figures/comparison.png`, and prints a table in Markdown, of the 1,000 test horses. Or it tells how
`colourization.py --image` colours three photographs of installed packages: `figures/photograph.png`.
"""

import argparse
import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from colourization import (IMAGE_CHECKPOINT, SHOWN, DUNet, UNet, colourize, draw_pictures,
                           load_model, mosaic, process, psnr, put_grey_back, run, scores_to_rgb)
from load_data import InputError, check_writable, load_cifar10

BEST = 'mean, grey put back'
ANNEALED = 0.38  # the temperature of Zhang, Isola and Efros (2016)
PAPER = 6.7  # the width of the write-up's text in inches: a font of 9 points comes out as such


def colourfulness(rgb):
    """Mean colourfulness of pictures [N, 3, H, W] in [0, 1]: 0 is grey, 109 extremely colourful.

    Hasler and Süsstrunk (2003), Measuring colourfulness in natural images, their third measure.
    """
    red, green, blue = 255 * np.moveaxis(rgb, 1, 0)
    opponents = np.stack([red - green, (red + green) / 2 - blue])
    spread = np.sqrt(opponents.var(axis=(2, 3)).sum(axis=0))
    centre = np.sqrt(np.square(opponents.mean(axis=(2, 3))).sum(axis=0))
    return float((spread + 0.3 * centre).mean())


def judge(pictures, rgb):
    """Error of pictures, arrays [N, 3, H, W] in [0, 1], against the true ones, and their colourfulness."""
    return {'error': float(np.square(pictures - rgb).mean()), 'colourfulness': colourfulness(pictures)}


@torch.no_grad()
def colour(name, grey, temperature, make=UNet):
    """What a network of weights/ makes of grey pictures [N, 1, H, W]; with a temperature, keep their grey."""
    model, colours = load_model(make, ROOT / f'weights/{name}_k3_f32.pkl')
    painted = np.concatenate([scores_to_rgb(model(x), colours, temperature)
                              for x in torch.from_numpy(grey).split(100)])
    return put_grey_back(painted, grey) if temperature else painted


def ways(grey):
    """Grey pictures [N, 1, H, W] coloured in each of the ways that are compared, by name."""
    return {'grey picture': np.repeat(grey, 3, axis=1),
            'UNet, likeliest colours': colour('unet', grey, 0),
            'UNet with prior, likeliest colours': colour('unet_prior', grey, 0),
            f'UNet, {BEST}': colour('unet', grey, 1),
            'UNet with prior, annealed mean, grey put back': colour('unet_prior', grey, ANNEALED),
            f'UNet with prior, {BEST}': colour('unet_prior', grey, 1),
            f'DUNet with prior, {BEST}': colour('dunet_prior', grey, 1, DUNet)}


def draw(pictures, path):
    """Draw some of the ways."""
    shown = 'grey picture', 'UNet, likeliest colours', f'UNet with prior, {BEST}', 'truth'
    draw_pictures([(name, mosaic(pictures[name][:SHOWN], SHOWN)) for name in shown], path, '', width=PAPER)


def photographs():
    """Three photographs, RGB [H, W, 3] in [0, 1] with at most 640 pixels a side, by name."""
    from PIL import Image
    from sklearn.datasets import load_sample_images
    paths = [Path(path) for path in load_sample_images().filenames]  # scikit-learn's
    for path in (*sorted(paths), Path(matplotlib.get_data_path(), 'sample_data/grace_hopper.jpg')):
        picture = Image.open(path).convert('RGB')
        picture.thumbnail((640, 640))
        yield path.stem, np.asarray(picture, np.float32) / 255


def chroma(rgb):
    """What is left of pictures [..., 3] without their brightness."""
    return rgb - rgb.mean(axis=-1, keepdims=True)


def compare_photographs(outdir):
    """What --image makes of the grey of photographs; errors are relative to the grey picture's."""
    check_writable(outdir / 'photograph.png')
    model, colours = load_model(UNet, ROOT / IMAGE_CHECKPOINT)
    print('| | error of the chroma | colourfulness | of the truth |\n|---|---|---|---|')
    rows, shown = [], {}
    for name, truth in photographs():
        grey = truth.mean(axis=-1)
        coloured = colourize(grey, model, colours)
        error = np.square(chroma(coloured) - chroma(truth)).sum() / np.square(chroma(truth)).sum()
        rows.append([error, *(colourfulness(np.moveaxis(rgb, -1, 0)[None]) for rgb in (coloured, truth))])
        shown[name] = [('grey', grey[..., None]), ('coloured', coloured), ('truth', truth)]
        print('| {} | {:.3f} | {:.1f} | {:.1f} |'.format(name, *rows[-1]))
    print('| mean | {:.3f} | {:.1f} | {:.1f} |'.format(*np.mean(rows, axis=0)))
    draw_pictures(shown['china'], outdir / 'photograph.png', '', columns=3, width=8)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--data', default=ROOT / 'data', help='where CIFAR-10 is (default: data/)')
    parser.add_argument('--image', action='store_true', help='colour photographs instead of horses')
    parser.add_argument('--outdir', type=Path, default=HERE / 'figures', help='where the picture goes')
    args = parser.parse_args()
    if args.image:
        return compare_photographs(args.outdir)
    if args.data == 'sample':
        raise InputError('--data sample will not do: name a folder with the horses of CIFAR-10')
    rgb, grey = process(*load_cifar10(args.data)[1])
    pictures = ways(grey) | {'truth': rgb}
    draw(pictures, args.outdir / 'comparison.png')
    print('| | mean squared error | PSNR | colourfulness |\n|---|---|---|---|')
    for name, painted in pictures.items():
        error, colourful = judge(painted, rgb).values()
        distance = f'{error:.5f} | {psnr(error):.2f} dB' if error else '|'
        print(f'| {name} | {distance} | {colourful:.1f} |')


if __name__ == '__main__':
    run(main)
