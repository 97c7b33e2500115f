"""CERS: segmentation of medical images that recalls past cases by image and by diagnostic reasoning."""

__version__ = "0.1.0"
