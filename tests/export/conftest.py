"""An untrained model for the tests of what is written."""

from tiny_model import model_folder, model_folder_2d, raw_images, results  # noqa: F401
