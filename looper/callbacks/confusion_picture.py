"""A confusion matrix as a picture, with the names of the classes and the numbers."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont  # TensorBoard requires Pillow

TEXT = 14
"""Height of letters in pixels."""

MOST_NUMBERS = 25
"""Classes up to which the numbers stand in the cells."""

SMALL = 12
"""Pixels of a cell without a number."""

DARK = np.array([8, 48, 107])
"""The color of a cell that has all examples of its row."""


def picture(matrix: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """A confusion matrix: rows are the true classes, columns the predicted ones, the color is the share of the row.

    Args:
        matrix: counts, int `[classes, classes]`.
        names: of the classes.

    Returns:
        uint8 `[height, width, 3]`.

    Example:
        >>> picture(np.array([[8, 2], [0, 10]]), ["cat", "dog"]).dtype.name
        'uint8'
    """
    font = ImageFont.load_default(TEXT)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    names = [name if len(name) <= 16 else f"{name[:15]}…" for name in names]
    numbers = len(matrix) <= MOST_NUMBERS
    widest = max(font.getlength(str(number)) for number in matrix.ravel())
    cell = max(int(widest) + 10, 2 * TEXT + 4) if numbers else SMALL
    spaced = max(1, -(-(TEXT + 2) // cell))  # every so many names have room
    left = top = int(max(font.getlength(name) for name in names)) + 2 * TEXT + 14
    size = cell * len(matrix)
    image = Image.new("RGB", (left + size + 4, top + size + 4), "white")
    draw = ImageDraw.Draw(image)
    for row, column in np.ndindex(*matrix.shape):
        share = shares[row, column]
        x, y = left + column * cell, top + row * cell
        color = tuple(np.round(255 - share * (255 - DARK)).astype(int).tolist())
        draw.rectangle((x, y, x + cell - 2, y + cell - 2), fill=color)
        if numbers and matrix[row, column]:
            ink = "white" if share > 0.5 else "black"
            draw.text((x + cell / 2 - 1, y + cell / 2 - 1), str(matrix[row, column]), ink, font, anchor="mm")
    upright = Image.new("RGB", (top - 4, size), "white")  # the columns' names, before they are turned
    along = ImageDraw.Draw(upright)
    for i, name in list(enumerate(names))[::spaced]:
        middle = i * cell + cell / 2 - 1
        draw.text((left - 6, top + middle), name, "black", font, anchor="rm")
        along.text((6, middle), name, "black", font, anchor="lm")
    image.paste(upright.transpose(Image.Transpose.ROTATE_90), (left, 0))
    draw.text((left + size / 2, TEXT / 2 + 3), "predicted", "gray", font, anchor="mm")
    draw.text((4, top + size / 2), "true", "gray", font, anchor="lm")
    return np.asarray(image)
