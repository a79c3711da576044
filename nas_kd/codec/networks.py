"""What the two sides of a codec run on a device: networks without the entropy coder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nas_kd.codec.macs import FRAME_PX
from nas_kd.codec.student import Student

FRAME = (1, 3, *FRAME_PX)
"""One picture as large as those of the Kodak set."""
MEGAPIXELS = FRAME_PX[0] * FRAME_PX[1] / 1e6
PARTS = ("encoder", "decoder", "both")

Pass = Callable[[], None]


def passes(student: Student, frames: list[Tensor]) -> dict[str, Pass]:
    """Encoder, decoder, and one after the other, each on the next frame in turn.

    Args:
        student: on the device of the frames, in evaluation mode.
        frames: [1, 3, H, W] each.
    """
    # On the device beforehand: a number would be copied there in every pass.
    level = torch.ones(1, device=frames[0].device)
    return in_turn(
        lambda x: student.rounded(x, level),
        lambda y_hat, z_hat: student.restored(y_hat, z_hat, level),
        frames,
    )


def in_turn(
    encode: Callable[[Tensor], tuple[Tensor, ...]],
    decode: Callable[..., Tensor],
    frames: list[Tensor],
) -> dict[str, Pass]:
    """Encoder, decoder, and one after the other, each on the next frame in turn.

    Args:
        encode: latents of a frame.
        decode: a frame of these latents.
        frames: [1, 3, H, W] each, on the codec's device.
    """
    with torch.inference_mode():
        latents = [encode(x) for x in frames]
    turn = {part: 0 for part in PARTS}

    def now(part: str) -> int:
        turn[part] = (turn[part] + 1) % len(frames)
        return turn[part]

    @torch.inference_mode()
    def encoder() -> None:
        encode(frames[now("encoder")])

    @torch.inference_mode()
    def decoder() -> None:
        decode(*latents[now("decoder")])

    @torch.inference_mode()
    def both() -> None:
        decode(*encode(frames[now("both")]))

    return {"encoder": encoder, "decoder": decoder, "both": both}


def noise_frame(device: str) -> Tensor:
    """A frame of noise, the same every time."""
    return torch.rand(FRAME, generator=torch.Generator().manual_seed(0)).to(device)
