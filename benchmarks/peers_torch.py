"""PyTorch's side of peers.py: updates of ResNet-18 on request, in an environment of its own."""

from __future__ import annotations

import json
import sys
import time

import brevitas
import brevitas.nn as qnn
import torch
from torch import nn


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, conv, inputs, maps, stride):
        super().__init__()
        self.conv1 = conv(inputs, maps, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(maps)
        self.conv2 = conv(maps, maps, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(maps)
        self.shortcut = None
        if stride > 1 or inputs != maps:
            self.shortcut = nn.Sequential(
                conv(inputs, maps, 1, stride, bias=False), nn.BatchNorm2d(maps)
            )

    def forward(self, x):
        h = torch.relu(self.bn1(self.conv1(x)))
        h = self.bn2(self.conv2(h))
        return torch.relu(h + (x if self.shortcut is None else self.shortcut(x)))


def resnet18(conv, linear, width):
    """For 32x32 images, as the package's resnet18_32."""
    maps = [max(1, round(width * m)) for m in (64, 128, 256, 512)]
    layers = [conv(3, maps[0], 3, 1, 1, bias=False), nn.BatchNorm2d(maps[0]), nn.ReLU()]
    inputs = maps[0]
    for i, m in enumerate(maps):
        for k in range(2):
            layers.append(Block(conv, inputs, m, 2 if i and not k else 1))
            inputs = m
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(inputs, 10))


def quantized(kind):
    """A layer of Brevitas with 2-bit weights, one scale a tensor, and float everything else."""
    return lambda *args, **options: kind(*args, weight_bit_width=2, **options)


def main(threads, batch, width):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x, t = torch.rand(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
    nets = {
        "float": resnet18(nn.Conv2d, nn.Linear, width),
        "brevitas": resnet18(
            quantized(qnn.QuantConv2d), lambda i, o: quantized(qnn.QuantLinear)(i, o, True), width
        ),
    }
    solvers = {
        name: torch.optim.SGD(net.parameters(), 1e-4, 0.9, weight_decay=5e-4)
        for name, net in nets.items()
    }
    versions = {"torch": torch.__version__, "brevitas": brevitas.__version__}
    print(json.dumps(versions), flush=True)
    for line in sys.stdin:
        net, solver = nets[line.strip()], solvers[line.strip()]
        start = time.perf_counter()
        solver.zero_grad()
        loss = nn.functional.cross_entropy(net(x), t)
        loss.backward()
        solver.step()
        loss.item()
        print(json.dumps({"ms": 1000 * (time.perf_counter() - start)}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
