"""What int8 costs and brings: a student's int8 files beside its float ones, in BD-rate and milliseconds."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nas_kd.codec.macs import FRAME_PX
from nas_kd.codec.onnx import DECODER, ENCODER
from nas_kd.codec.onnx_int8 import INT8
from nas_kd.codec.student import Student
from nas_kd.codec.tiling import LATENT
from nas_kd.data.images import ImageSet, Progress, to_image, to_tensor, unheard
from nas_kd.data.metrics import psnr_db
from nas_kd.errors import StudyError
from nas_kd.evaluation.bd_rate import RDCurve, bd_rate

Point = tuple[float, float]
"""Bits per pixel of the strings, and PSNR."""

ROUNDS = 9
"""In which each file is run once, the first left out."""


def int8_bd_rate(
    student: Student, folder: Path, images: ImageSet, progress: Progress = unheard
) -> float | str:
    """Of the int8 encoder and decoder against the float ones, both in ONNX Runtime, by real strings.

    In per cent, or the reason why there is none.

    Args:
        student: with its tables made; its coder writes the strings.
        folder: where ``export_int8`` wrote the four files.
        images: pictures to judge by.
        progress: hears (done, all) of the pictures.
    """
    codecs = [
        [_session(folder / names(name)) for name in (ENCODER, DECODER)]
        for names in (str, INT8.__getitem__)
    ]
    points = []
    for done, image in enumerate(images.images, 1):
        points.append([_points(student, sessions, image) for sessions in codecs])
        progress(done, len(images))
    curves = [_curve(np.array(of)) for of in zip(*points, strict=True)]
    plain, int8 = curves
    shared = max(min(c.psnr_db) for c in curves), min(max(c.psnr_db) for c in curves)
    try:
        found = bd_rate(plain, int8, shared)
    except StudyError as error:  # fewer than four levels, or nothing that both reach
        return str(error)
    return str(found.reason) if found.value is None else found.value


def _curve(points: np.ndarray) -> RDCurve:
    """The mean over pictures, of [pictures, levels, 2]."""
    bpp, psnr = points.mean(0).T.tolist()
    return RDCurve(tuple(bpp), tuple(psnr))


def _points(student: Student, sessions: list[Any], image: np.ndarray) -> list[Point]:
    """Of one picture at each level."""
    assert student.coder is not None
    encoder, decoder = sessions
    H, W = image.shape[:2]
    y, z = (torch.from_numpy(t) for t in encoder.run(None, {"x": to_tensor(image).numpy()}))
    found = []
    for level in range(1, student.levels + 1):
        coded = student.coder.encode(y, z, level)
        (x_hat,) = decoder.run(None, {"y_hat": coded.y_hat.numpy()})
        restored = to_image(torch.from_numpy(x_hat)[..., :H, :W])
        bits = 8 * sum(len(string) for string in coded.strings)
        found.append((bits / (H * W), psnr_db(restored, image)))
    return found


def decoder_ms(folder: Path) -> tuple[float, float]:
    """Of the float and the int8 decoder for 768x512: processor time on one thread, medians of rounds in turn."""
    found: dict[str, list[float]] = {DECODER: [], INT8[DECODER]: []}
    sessions = {name: _session(folder / name, threads=1) for name in found}
    channels = sessions[DECODER].get_inputs()[0].shape[1]
    places = (channels, *(side // LATENT for side in FRAME_PX))
    y_hat = np.random.default_rng(0).standard_normal((1, *places), np.float32)
    for _ in range(ROUNDS):
        for name, session in sessions.items():
            began = time.process_time()
            session.run(None, {"y_hat": y_hat})
            found[name].append(1000 * (time.process_time() - began))
    plain, int8 = (statistics.median(ms[1:]) for ms in found.values())
    return plain, int8


def _session(file: Path, threads: int = 0) -> Any:
    """Threads: 0 as many as there are cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
