"""Methods that other frameworks call are named, and those that looper calls can be called."""

import functools
import warnings

import pytest

import looper


def of(**methods):
    return type("Recipe", (looper.Trainer,), {"build": lambda self: None, **methods})


@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("test_step", r"eval_step\(self, batch\)"),
        ("training_step", r"train_step\(self, batch\)"),
        ("validation_step", r"eval_step\(self, batch\)"),
        ("configure_optimizers", r"build\(self\), where self.optimizer is set"),
        ("train_dataloader", r"train_data\(self\)"),
        ("on_epoch_end", r"a method of a looper.callbacks.Callback"),
        ("on_train_batch_end", r"a method of a looper.callbacks.Callback"),
    ],
)
def test_a_method_of_another_framework_is_named_with_its_line(name, here):
    with pytest.warns(UserWarning, match=rf"Recipe.{name} \(test_methods.py:\d+\) is not called: here it is {here}"):
        of(**{name: lambda self, *given: None})()


def test_a_method_that_the_recipe_itself_calls_is_its_own():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        of(training_step=lambda self, batch: {}, train_step=lambda self, batch: self.training_step(batch))()
        of(helper=lambda self: None)()
        of(training_step=lambda self: 1, train_step=lambda self, batch: (lambda: self.training_step())())()


@pytest.mark.parametrize(
    ("name", "method", "said"),
    [
        (
            "compute_loss",
            lambda self, x, y, y_pred: 0.0,
            r"takes \(x, y, y_pred\): looper calls compute_loss",
        ),
        (
            "compute_loss",
            lambda self, batch: 0.0,
            r"takes \(batch\): looper calls compute_loss\(self, batch, tr",
        ),
        ("train_step", lambda self, x, y: {}, r"takes \(x, y\): looper calls train_step\(self, batch\)"),
        ("train_step", lambda self, batch, batch_idx: {}, r"takes \(batch, batch_idx\): looper calls train_step"),
        ("after_update", lambda self, step: None, r"takes \(step\): looper calls after_update\(self\)"),
    ],
)
def test_a_method_with_other_arguments_is_one_line(name, method, said):
    with pytest.raises(looper.InputError, match=rf"Recipe.{name} {said}.*See test_methods.py:\d+"):
        of(**{name: method})()


def unpacked(step):
    @functools.wraps(step)
    def of_a_batch(self, batch):
        return step(self, *batch)

    return of_a_batch


def test_a_decorator_may_take_other_arguments():
    of(train_step=unpacked(lambda self, x, y: {}))()


def test_more_arguments_with_defaults_are_right():
    of(compute_loss=lambda self, batch, training=True, scale=1.0: 0.0, train_step=lambda self, *given, **more: {})()
