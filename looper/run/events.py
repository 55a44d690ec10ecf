"""TensorBoard's event files of one run: one writer for its directory, shared by all callbacks.

TensorBoard reads the files of a directory one after the other, so two writers that are open at once hide each other.
Each directory with files is a run to it: what evaluations log has names that begin with `eval/`, and stands in the same
run. A workdir of looper before 0.2 has the directories `train` and `eval`, and goes on with them.
"""

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub import dtypes
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import summary as custom_scalar
from tensorboard.plugins.graph import keras_util
from tensorboard.plugins.image.metadata import create_summary_metadata as image_metadata
from tensorboard.plugins.text.metadata import create_summary_metadata as text_metadata
from tensorboard.util.tensor_util import make_tensor_proto

from looper.run.event_file import EventFile


class Events:
    """Writes summaries for TensorBoard.

    Attributes:
        apart: whether training and evaluation have directories of their own, as an older run in it has.

    Args:
        folder: the directory. None drops what is added.
        first_step: the step that this process continues from: TensorBoard drops what an earlier process wrote after it.
    """

    def __init__(self, folder: Path | None, first_step: int) -> None:
        self._folder, self._first_step = folder, first_step
        self.apart = bool(first_step) and folder is not None and _is_of_older_looper(folder)
        self._files: dict[str, EventFile] = {}

    def add_graph(self, graph: bytes) -> None:
        """Adds a serialized `GraphDef`, which the graph tab shows."""
        if self._folder is not None:
            self._file("train" if self.apart else ".").add(Event(wall_time=time.time(), graph_def=graph))

    def add(self, kind: str, step: int, summary: Summary) -> None:
        """Adds what belongs to "train", "eval" or, as ".", to the whole run."""
        if self._folder is None:
            return
        if not self.apart:
            if kind == "eval":
                summary = Summary.FromString(summary.SerializeToString())
                for value in summary.value:
                    value.MergeFrom(Summary.Value(tag=f"eval/{value.tag}"))
            kind = "."
        self._file(kind).add(Event(wall_time=time.time(), step=step, summary=summary))

    def _file(self, kind: str) -> EventFile:
        if kind not in self._files:
            self._files[kind] = EventFile(self._folder / kind, self._first_step + 1 if self._first_step else 0)
        return self._files[kind]

    def flush(self) -> None:
        """Gives the system what was added."""
        for file in self._files.values():
            file.flush()

    def close(self) -> None:
        """Closes the files; `add` opens new ones."""
        for file in self._files.values():
            file.close()


def _is_of_older_looper(folder: Path) -> bool:
    """Whether its run has directories of its own for training and evaluation. A callback of Keras may make `train`."""

    def has_events(name: str) -> bool:
        return any(folder.glob(f"{name}/events.out.tfevents.*"))

    return has_events("train") and (has_events("eval") or not has_events("."))


def layout(names: Sequence[str]) -> Summary:
    """The charts of the custom-scalars tab: for each name the values in training and in evaluation, drawn together."""
    charts = [
        layout_pb2.Chart(
            title=name,
            multiline=layout_pb2.MultilineChartContent(tag=[f"^{re.escape(name)}$", f"^eval/{re.escape(name)}$"]),
        )
        for name in names
    ]
    categories = [layout_pb2.Category(title="training and evaluation", chart=charts)]
    # of TensorFlow's class, where the writer wants TensorBoard's
    return Summary.FromString(custom_scalar.pb(layout_pb2.Layout(category=categories)).SerializeToString())


def layer_graph(model: keras.Model) -> bytes | None:
    """A model's layers and how they are connected, as a serialized `GraphDef`; None of a model that cannot say it."""
    try:
        graph = keras_util.keras_model_to_graph_def(json.loads(model.to_json()))
    except Exception:  # a class of one's own without a configuration, or one that TensorBoard cannot draw
        return None
    for node in graph.node:  # the model's own name would be one box around all
        node.name = node.name.removeprefix(f"{model.name}/")
        node.input[:] = [name.removeprefix(f"{model.name}/") for name in node.input]
    return graph.SerializeToString()


def text(tag: str, markdown: str) -> Summary:
    """A text in Markdown."""
    value = Summary.Value(tag=tag, tensor=make_tensor_proto(markdown.encode(), dtype=dtypes.string))
    # the writer's copy of the proto wants its own metadata class
    value.metadata.CopyFrom(text_metadata(display_name=None, description=None))
    return Summary(value=[value])


def images(tag: str, pictures: Sequence[np.ndarray] | np.ndarray) -> Summary:
    """Pictures, uint8 or float in [0, 1], `[height, width, channels]` or `[height, width]`, 1 to 4 channels each."""
    encoded: list[bytes] = []
    height = width = 0
    for picture in pictures:
        picture = np.asarray(picture)
        picture = picture[:, :, None] if picture.ndim == 2 else picture
        if picture.dtype != np.uint8:
            picture = np.clip(np.asarray(picture, np.float64) * 255 + 0.5, 0, 255).astype(np.uint8)
        height, width = picture.shape[:2]
        encoded.append(tf.io.encode_png(picture).numpy())
    content = [str(width).encode(), str(height).encode(), *encoded]  # as the image plugin reads it
    value = Summary.Value(tag=tag, tensor=make_tensor_proto(content, dtype=dtypes.string))
    value.metadata.CopyFrom(image_metadata(display_name=None, description=None))
    return Summary(value=[value])
