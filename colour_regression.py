"""Image colourization as regression (part A): predict red, green and blue of each pixel.

The network is the CNN of colourization.py with three outputs, trained on squared error.

    python colour_regression.py             # evaluate weights/regression_cnn_k3_f32.pkl
    python colour_regression.py --train     # train such weights
    python colour_regression.py --summary   # the layers of the network
"""

from pathlib import Path

import torch.nn.functional as F

from colourization import (CNN, add_training_flags, choose_sizes, load_model, make_parser,
                           prepare_training, run, run_network, shipped, summary_table)

CHECKPOINT = Path('weights/regression_cnn_k3_f32.pkl')


class RegressionCNN(CNN):
    """The CNN with red, green and blue as outputs: grey [N, 1, H, W] -> RGB [N, 3, H, W]."""

    def __init__(self, kernel, num_filters):
        super().__init__(kernel, num_filters, num_colours=3)


def regression(outputs, rgb):
    """Mean squared error of pictures [N, 3, H, W]."""
    return {'loss': F.mse_loss(outputs, rgb)}


def main():
    parser = make_parser('Train or evaluate a network that predicts RGB with squared error.')
    add_training_flags(parser)
    parser.add_argument('--train', action='store_true',
                        help=f'train a network; without it, --checkpoint or {CHECKPOINT} is evaluated')
    args = parser.parse_args()
    if args.resume and not args.train:
        parser.error('--resume goes on with a training: add --train')
    if args.summary and args.train:
        parser.error('--summary only prints layers: leave out --train')
    args.name, args.valid, args.colours, args.prior = 'RegressionCNN', not args.train, None, 0

    if args.summary and not args.checkpoint:
        choose_sizes(args)
        model = RegressionCNN(args.kernel, args.num_filters)
    elif args.train:
        prepare_training(args, RegressionCNN, 'regression_cnn')
        model = RegressionCNN(args.kernel, args.num_filters)
    else:
        args.checkpoint = shipped(args.checkpoint or CHECKPOINT)
        model, _ = load_model(lambda kernel, num_filters, _: RegressionCNN(kernel, num_filters),
                              args.checkpoint, args.kernel, args.num_filters)
    if args.summary:
        return print(summary_table(model))
    run_network(args, model, regression, colours=None, file_name='regression_output')


if __name__ == '__main__':
    run(main)
