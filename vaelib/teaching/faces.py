"""Faces drawn by a formula: the stand-in for the Frey Face where it cannot be had."""

import numpy as np


def drawn_faces(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Grey levels ``(count, 28, 20)``, uint8, and the factors ``(count, 2)`` behind them.

    The factors, each in [−1, 1], are pose (the head turns) and expression (frown to smile). They
    swing at two speeds: neighbouring frames look alike, and the path comes near every pair of
    values. A little fixed noise bounds the density that a Gaussian decoder can reach.
    """
    t = np.arange(count) / count
    pose, smile = np.sin(2 * np.pi * 17 * t), np.sin(2 * np.pi * 26.5 * t + 0.5)
    faces = _draw(pose[:, None, None], smile[:, None, None])
    # RandomState and not default_rng: numpy promises that its stream never changes.
    faces += 0.02 * np.random.RandomState(0).standard_normal(faces.shape)
    return np.round(255 * faces.clip(0, 1)).astype(np.uint8), np.stack([pose, smile], 1)


def _draw(pose: np.ndarray, smile: np.ndarray) -> np.ndarray:
    """Grey levels ``(N, 28, 20)`` of faces with these factors, each ``(N, 1, 1)``."""
    y, x = np.mgrid[0:28, 0:20][:, None].astype(float)

    def paint(image, grey, cx, cy, rx, ry, sharp=3.0):
        """Lay an ellipse over the image; its soft edge lets it move by parts of a pixel."""
        distance = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 - 1
        return image + (0.5 - 0.5 * np.tanh(sharp / 2 * distance)) * (grey - image)

    head = 9.5 + 1.2 * pose
    mid = head + 1.8 * pose  # the features lead when the head turns
    nose = mid + 0.9 * pose
    skin = 0.76 + 0.10 * np.tanh((x - mid) / 4 + 0.8 * pose) - 0.001 * (y - 14) ** 2
    face = paint(0.45 + 0.01 * y + 0 * pose, 0.15, head, 13, 9.6, 15.5, 8)  # hair
    face = paint(face, skin, head + 0.4 * pose, 15.5, 8.3, 13, 8)
    for side in (-1, 1):
        eye = mid + side * 3.9 - 0.5 * pose
        brow = 8.7 - 0.6 * smile + 0.2 * smile * side * (x - eye)  # inner ends fall in a frown
        face = paint(face, 0.55, eye, 11.2, 2.2, 1.5)  # socket
        face = paint(face, 0.10, eye + 0.4 * pose, 11.3, 1.0, 0.8 + 0.2 * smile)
        face = paint(face, 0.22, eye, brow, 2.4, 0.8)
    face = paint(face, 0.62, nose + 0.8, 14.5, 0.8, 2.6)  # the nose's shaded side
    face = paint(face, 0.35, nose, 17, 1.7, 0.8)
    mouth = 22 + smile * (0.9 - ((x - mid) / 2.9) ** 2)  # corners up in a smile
    face = paint(face, 0.58, mid, mouth, 4.4 + 0.5 * smile, 1.7)  # lips
    return paint(face, 0.15, mid, mouth, 3.6 + 0.6 * smile, 0.9)
