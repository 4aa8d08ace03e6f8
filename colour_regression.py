"""Image colourization as regression (part A): predict red, green and blue of each pixel.

The network is the CNN of colourization.py with three outputs, trained on squared error.

    python colour_regression.py             # evaluate weights/regression_cnn_k3_f32.pkl
    python colour_regression.py --train     # train such weights
    python colour_regression.py --summary   # the layers of the network
"""

import os
import sys
from pathlib import Path

sys.path.append(os.path.dirname(os.path.abspath(__file__)))  # which `python -P` leaves out

from colourization import (CNN, KERNEL, NUM_FILTERS, Parser, add_file_flags, add_network_flags,
                           add_training_flags, check_checkpoint, default_checkpoint, load_model, print_result,
                           run, summary_table, train_and_evaluate)

import torch  # after colourization, which tells its threads how to wait
import torch.nn.functional as F

CHECKPOINT = Path('weights/regression_cnn_k3_f32.pkl')


class RegressionCNN(CNN):
    """The CNN with red, green and blue as outputs: grey [N, 1, H, W] -> RGB [N, 3, H, W]."""

    def __init__(self, kernel, num_filters):
        super().__init__(kernel, num_filters, num_colours=3)


def regression(outputs, rgb):
    """Mean squared error of pictures [N, 3, H, W]."""
    return {'loss': F.mse_loss(outputs, rgb)}


def parse_args(argv=None):
    """Read the command line, and fill in what depends on other flags."""
    parser = Parser(__doc__)
    group = parser.add_argument_group('what to do')
    modes = group.add_mutually_exclusive_group()
    modes.add_argument('--train', action='store_true',
                       help=f'train a network; otherwise --checkpoint or {CHECKPOINT} is evaluated')
    modes.add_argument('--summary', action='store_true', help='only print the layers of the network')
    group.add_argument('--resume', action='store_true', help='with --train: continue an interrupted training')
    add_network_flags(parser.add_argument_group('the network').add_argument)
    add_training_flags(parser)
    add_file_flags(parser.add_argument_group('data and results').add_argument)
    args = parser.parse_args(argv)
    if args.resume and not args.train:
        parser.error('--resume continues a training: add --train')
    args.model, args.temperature, args.valid = 'RegressionCNN', 0.0, not args.train
    if not (args.checkpoint or args.summary):
        args.checkpoint = default_checkpoint(args, 'regression_cnn') if args.train else CHECKPOINT
    return args


def main():
    args = parse_args()
    if args.checkpoint and not args.train:
        model, _ = load_model(lambda kernel, num_filters, _: RegressionCNN(kernel, num_filters),
                              args.checkpoint, args.kernel, args.num_filters)
    else:
        if args.train:
            check_checkpoint(args.checkpoint, RegressionCNN, args.resume, 'leave out --train, but give')
        torch.manual_seed(args.seed)
        model = RegressionCNN(args.kernel or KERNEL, args.num_filters or NUM_FILTERS)
    if args.summary:
        return print_result(summary_table(model))
    train_and_evaluate(model, regression, args)


if __name__ == '__main__':
    run(main)
