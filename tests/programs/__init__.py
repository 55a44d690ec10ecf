"""Twelve small training programs, each as a recipe and by hand in plain TensorFlow."""

from tests.programs import (
    adversarial,
    cyclegan,
    diffusion,
    distillation,
    dqn,
    gan,
    moco,
    pcgrad,
    sam,
    semi_supervised,
    translation,
    vq_vae,
)

PROGRAMS = {
    module.__name__.rpartition(".")[2]: module
    for module in (
        gan,
        cyclegan,
        diffusion,
        vq_vae,
        moco,
        semi_supervised,
        distillation,
        sam,
        pcgrad,
        adversarial,
        dqn,
        translation,
    )
}
