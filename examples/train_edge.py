"""Train the networks of `benchmarks/edge_networks.py` on Fashion-MNIST, as the built-in ones were:

    apt-get install dataset-fashion-mnist
    python examples/train_edge.py --network mobilenet --epochs 4 --renormalize -o edge
    python examples/train_edge.py --network efficientnet --epochs 4 --renormalize -o edge

Half an hour each on one core with bfloat16 (depthwise layers are slow to train on a CPU).
"""

from __future__ import annotations

import sys
from pathlib import Path

import train_demo

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import edge_networks

if __name__ == "__main__":
    parser = train_demo.options(edge_networks.NETWORKS)
    args = parser.parse_args()
    if not args.network:
        parser.error("say which: --network mobilenet or --network efficientnet")
    train_demo.train(args, edge_networks.NETWORKS[args.network])
