"""CompressAI's entropy bottleneck without its waits for the device: the same numbers, parameters and names."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nas_kd.codec import compressai_light


class EntropyBottleneck(compressai_light.EntropyBottleneck):
    """Its ``forward`` permutes by numbers of the host; CompressAI's reads them from tensors, eight waits a step."""

    def forward(self, x: Tensor, training: bool | None = None) -> tuple[Tensor, Tensor]:
        """Values with noise (in training) or rounded, and their likelihoods, each [B, C, ...] as x."""
        noisy = self.training if training is None else training
        by_channel = x.transpose(0, 1).contiguous()
        values = by_channel.reshape(len(by_channel), 1, -1)
        outputs = self.quantize(values, "noise" if noisy else "dequantize", self._get_medians())
        likelihood, _, _ = self._likelihood(outputs)
        if self.use_likelihood_bound:
            likelihood = self.likelihood_lower_bound(likelihood)
        back = [t.reshape(by_channel.shape).transpose(0, 1) for t in (outputs, likelihood)]
        return back[0].contiguous(), back[1].contiguous()


def without_waits(model: Any) -> Any:
    """A model of CompressAI's with this forward in its entropy bottlenecks; the weights stay as they are."""
    for part in model.modules():
        if type(part) is compressai_light.EntropyBottleneck:
            part.__class__ = EntropyBottleneck
    return model
