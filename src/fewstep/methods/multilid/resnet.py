"""ResNet-18 as it is before any training, whose layers the detector was published on."""

from torch import Tensor, nn

from fewstep.rng import initial_weights

CHANNELS = (64, 128, 256, 512)


class Block(nn.Module):
    """A basic block of an untrained network, which passes on its shortcut alone.

    The last norm of a block starts at 0 [goyal2017imagenet], hence what stands before it, the second convolution, has
    no part in any output; norms in evaluation mode that saw no image divide by one.
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.act1 = nn.ReLU()
        self.shortcut: nn.Module = (
            nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1, stride, bias=False)
        )
        self.act2 = nn.ReLU()
        for conv in (self.conv1, self.shortcut):
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) -> (B, c_out, H / stride, W / stride); `act1` is computed for those who tap it."""
        self.act1(self.conv1(x))
        out: Tensor = self.act2(self.shortcut(x))
        return out


class UntrainedResNet18(nn.Module):
    """The network for small images: a stem of 3 x 3 with stride 1, no max-pool, four stages of two blocks.

    Args: seed: decides the weights alone.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        with initial_weights(seed):
            self.stem = nn.Conv2d(3, CHANNELS[0], 3, 1, 1, bias=False)
            self.stages = nn.ModuleList()
            c_in = CHANNELS[0]
            for i, c_out in enumerate(CHANNELS):
                self.stages.append(nn.Sequential(Block(c_in, c_out, 2 if i else 1), Block(c_out, c_out, 1)))
                c_in = c_out
        self.eval().requires_grad_(False)

    def taps(self) -> dict[str, nn.Module]:
        """The eight tapped activations, in the published order, last stage first."""
        found: dict[str, nn.Module] = {}
        for i in reversed(range(len(CHANNELS))):
            stage = self.stages[i]
            assert isinstance(stage, nn.Sequential)
            for j, name in ((1, "act2"), (0, "act1")):
                found[f"layer{i + 1}.{j}.{name}"] = stage[j].get_submodule(name)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 512, H / 8, W / 8), rounded up."""
        x = nn.functional.relu(self.stem(x))
        for stage in self.stages:
            x = stage(x)
        return x
