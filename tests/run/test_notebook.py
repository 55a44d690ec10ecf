"""One notebook, executed by a kernel: the bar, cells that are run twice, an interrupt, what is left behind."""

import nbclient
import nbformat
import pytest

RECIPE = """
import os, signal, threading
import keras, numpy as np, looper

class Digits(looper.Trainer):
    def build(self):
        self.model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)])
        self.optimizer, self.loss = keras.optimizers.Adam(0.01), "mse"
    def train_data(self):
        return np.ones((64, 4), "float32"), np.ones((64, 1), "float32")
"""

FIT = """
digits = Digits(workdir="run", execution="graph")
history = digits.fit(epochs=EPOCHS, batch_size=8, eval_data=(np.ones((8, 4)), np.ones((8, 1))))
print("steps", digits.step)
"""

INTERRUPTED = """
class Interrupt(looper.callbacks.Callback):
    def on_execution(self, step):
        if step >= 100:
            os.kill(os.getpid(), signal.SIGINT)
digits = Digits(workdir="run", execution="graph", steps_per_execution=4)
digits.fit(epochs=40, batch_size=8, callbacks=[Interrupt()])
"""


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """The outputs of a notebook's cells, as one reads them, and all that is in them."""
    sources = [
        RECIPE,
        "before = {thread.name for thread in threading.enumerate()}",
        FIT.replace("EPOCHS", "5"),
        RECIPE,  # the class defined anew
        FIT.replace("EPOCHS", "10"),
        FIT.replace("EPOCHS", "10"),  # and nothing is left to do
        INTERRUPTED,
        "print('stopped at', digits.step)\ndigits.fit(epochs=20, batch_size=8)\nprint('steps', digits.step)",
        "print(sorted({thread.name for thread in threading.enumerate()} - before))",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    notebook.cells[6].metadata["tags"] = ["raises-exception"]
    folder = tmp_path_factory.mktemp("notebook")
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook.cells


def texts(cell):
    return "".join(output["text"] for output in cell.outputs if output["output_type"] == "stream")


def test_a_fit_draws_tqdm_s_own_bar_for_notebooks(cells):
    shown = [output["data"] for output in cells[2].outputs if output["output_type"] == "display_data"]
    assert any("application/vnd.jupyter.widget-view+json" in data for data in shown)
    assert "epoch 5/5  step 40  loss" in texts(cells[2])
    assert "steps 40\n" in texts(cells[2])


def test_cells_are_run_again_and_classes_defined_anew(cells):
    assert "continuing after step 40" in texts(cells[4])
    assert "steps 80\n" in texts(cells[4])
    assert "nothing to do: 80 steps are done" in texts(cells[5])


def test_an_interrupt_is_one_line_and_the_trainer_goes_on(cells):
    (error,) = [output for output in cells[6].outputs if output["output_type"] == "error"]
    assert error["traceback"] == ["looper: stopped after step 100; the same command continues there"]
    assert texts(cells[7]).startswith("stopped at 100\n")
    assert texts(cells[7]).endswith("steps 160\n")


def test_nothing_is_left_behind_and_nothing_warns(cells):
    assert texts(cells[8]) == "[]\n"
    assert "retracing" not in str(cells)
    assert "Warning" not in str(cells)
