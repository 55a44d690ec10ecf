"""Makes the environments that the peers of other frameworks run in, each with pinned versions.

    python -m benchmarks.environments                all of them, into the folder .peers of this clone
    python -m benchmarks.environments torch jax      some

What looper is compared with is no dependency of looper. A peer whose environment was not made is reported as missing.
Orbit runs on the TensorFlow of the environment that this command is run in, which its own one borrows.
"""

import argparse
import dataclasses
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

FOLDER = Path(__file__).parent.parent / ".peers"
HAS_GPU = shutil.which("nvidia-smi") is not None


@dataclasses.dataclass(frozen=True)
class Environment:
    """What is installed in one environment.

    Attributes:
        installs: arguments of `pip install`, one call each.
        borrows: whether the packages of the running environment can be imported too.
    """

    installs: tuple[tuple[str, ...], ...]
    borrows: bool = False


ENVIRONMENTS = {
    # torch by itself and first: what is found for it (the build for CPU or for CUDA) then stays
    "torch": Environment((("torch==2.13.0",), ("lightning==2.6.6", "tensorboard==2.21.0"))),
    "jax": Environment((("jax[cuda12]==0.10.2" if HAS_GPU else "jax==0.10.2", "optax==0.2.8"),)),
    # of the many things that the model garden asks for, orbit/ needs tf_keras alone
    "orbit": Environment((("--no-deps", "tf-models-official==2.20.0", "tf_keras==2.21.0"),), borrows=True),
}


def python_of(name: str) -> Path | None:
    """The interpreter of an environment, or None if it was not made, not to the end, or with other versions."""
    done = FOLDER / name / "installed.txt"
    if not done.exists() or done.read_text() != _written(ENVIRONMENTS[name]):
        return None
    return FOLDER / name / "bin" / "python"


def make(name: str) -> None:
    """Makes an environment anew.

    Args:
        name: which of `ENVIRONMENTS`.

    Raises:
        subprocess.CalledProcessError: if something cannot be installed.
    """
    path, environment = FOLDER / name, ENVIRONMENTS[name]
    subprocess.run([sys.executable, "-m", "venv", "--clear", path], check=True)
    if environment.borrows:
        [packages] = path.glob("lib/python*/site-packages")
        (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for arguments in environment.installs:
        subprocess.run([path / "bin" / "python", "-m", "pip", "install", *arguments], check=True)
    (path / "installed.txt").write_text(_written(environment))


def _written(environment: Environment) -> str:
    return "".join(" ".join(arguments) + "\n" for arguments in environment.installs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ENVIRONMENTS)}; default: all")
    names = parser.parse_args().names or list(ENVIRONMENTS)
    unknown = set(names) - set(ENVIRONMENTS)
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}; expected some of {', '.join(ENVIRONMENTS)}")
    for name in names:
        if python_of(name) is None:
            make(name)
        print(f"{name}: {python_of(name)}")


if __name__ == "__main__":
    main()
