"""Networks of nobody's: what `harness profile` is given as `tests.profiling.networks:FACTORY`, and made files of."""

import torch
from torch import Tensor, nn

UP = nn.PixelShuffle(2)


class Pyramid(nn.Module):
    """Goes down by `factor` and up again, so that it needs multiples of it, and then up by `scale`."""

    def __init__(self, factor: int = 1, scale: int = 2, channels: int = 3):
        super().__init__()
        self.head = nn.Conv2d(channels, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 8, factor, stride=factor)
        self.up = nn.ConvTranspose2d(8, 8, factor, stride=factor)
        self.tail = nn.Sequential(nn.Conv2d(8, channels * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, input_BCHW: Tensor) -> Tensor:
        features = self.head(input_BCHW)
        restored: Tensor = self.tail(features + self.up(self.down(features)))
        return restored


class ResidualNetwork(nn.Module):
    """MSRResNet, the baseline of AIM 2020's efficient-SR challenge: 16 residual blocks of 64 features, ×2 twice."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 64, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1))
            for _ in range(16)
        )
        self.ups = nn.Sequential(*[layer for _ in range(2) for layer in (nn.Conv2d(64, 256, 3, padding=1), UP)])
        self.tail = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(64, 3, 3, padding=1))

    def forward(self, input_BCHW: Tensor) -> Tensor:
        features = self.head(input_BCHW)
        for block in self.blocks:
            features = features + block(features)
        restored: Tensor = self.tail(self.ups(features))
        return restored


class Mirrored(nn.Module):
    """Mirrors 20 pixels at each border, so that it needs sides of 21 at least."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.ReflectionPad2d(20), nn.Conv2d(3, 3, 41))

    def forward(self, input_BCHW: Tensor) -> Tensor:
        restored: Tensor = self.body(input_BCHW)
        return restored


def any_size() -> nn.Module:
    return Pyramid()


def needs_16() -> nn.Module:
    return Pyramid(factor=16)


def needs_256() -> nn.Module:
    """One that needs 256 at scale 4, so that a 1280×720 output is no size of its."""
    return Pyramid(factor=256, scale=4)


def needs_12() -> nn.Module:
    return Pyramid(factor=12, scale=1)


def grey() -> nn.Module:
    return Pyramid(scale=3, channels=1)


def classifier() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def lists() -> nn.Module:
    class Lists(Pyramid):
        def forward(self, input_BCHW: Tensor) -> Tensor:
            return [super().forward(input_BCHW)]  # type: ignore[return-value]

    return Lists()


def raises() -> nn.Module:
    print("about to fail")
    raise RuntimeError("no weights\nanywhere")


def no_module() -> int:
    return 3


def needs_arguments(width: int) -> nn.Module:
    return nn.Conv2d(3, width, 3)


finished = torch.nn.PixelShuffle(1)
