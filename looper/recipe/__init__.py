"""What a recipe brings, put into the form that the steps use: models, losses, metrics, optimizers, precision."""
