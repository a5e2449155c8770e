"""Train the networks of `benchmarks/edge_networks.py` on Fashion-MNIST, as the built-in ones were, and
those of `benchmarks/kernel_networks.py`:

    apt-get install dataset-fashion-mnist
    python examples/train_edge.py --network mobilenet --epochs 4 --renormalize -o edge
    python examples/train_edge.py --network efficientnet --epochs 4 --renormalize -o edge
    python examples/train_edge.py --network large_kernels --epochs 6 --renormalize -o edge
    python examples/train_edge.py --network regnet --epochs 6 --renormalize -o edge

Half an hour each of the first two on one core (depthwise layers are slow to train on a CPU), a few
minutes each of the others. Give --no-bfloat16 to a processor without arithmetic in bfloat16, where
float32 is several times faster.
"""

from __future__ import annotations

import sys
from pathlib import Path

import train_demo

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import edge_networks
import kernel_networks

NETWORKS = edge_networks.NETWORKS | kernel_networks.NETWORKS

if __name__ == "__main__":
    parser = train_demo.options(NETWORKS)
    args = parser.parse_args()
    if not args.network:
        parser.error(f"say which with --network: {', '.join(NETWORKS)}")
    train_demo.train(args, NETWORKS[args.network])
