"""Autoregressive models of images, usable alone, given a class, or as decoders given z."""

from vaelib.pixelcnn.models import (
    AutoregressiveImage,
    GatedPixelCNN,
    PixelCNN,
    PixelModel,
    PixelSNAIL,
)

__all__ = ["AutoregressiveImage", "GatedPixelCNN", "PixelCNN", "PixelModel", "PixelSNAIL"]
