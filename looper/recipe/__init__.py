"""Models, losses, metrics, optimizers and precision of a recipe, put into the form that the steps use."""
