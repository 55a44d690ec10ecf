"""A worker process of `looper bench`: one side, which starts, measures itself and runs bursts when it is told to.

    {"spec", "options", "side", "workdir"}  ->  {"ready"}            the recipe is imported
    {}                                      ->  {"first_step_seconds", "losses", ...}
    {"burst_seconds"}                       ->  {"steps"}            in about so many seconds, after a warm-up
    {"burst": true}, again and again        ->  {"seconds", "steps"}
    {"burst": false}                        ->  {"peak_memory_bytes", ...}, and the process ends

Instead of an answer there may be {"left_out": why} or {"error": what is wrong with the input}.
"""

import os
import re
import resource
import sys
import traceback
from pathlib import Path
from typing import Any

from looper.base.errors import InputError, first_line
from looper.commands.bench.messages import Channel, LeftOutError
from looper.commands.recipe import load


def main() -> None:
    channel = Channel.of_process()
    try:
        request = channel.receive()
        side = _side(request)
        channel.send(ready=True)
        channel.receive()
        channel.send(**side.start())
        side.serve(channel, channel.receive()["burst_seconds"])
    except LeftOutError as error:
        channel.send(left_out=str(error))
    except InputError as error:
        channel.send(error=str(error))
    except Exception as error:
        traceback.print_exc()
        channel.send(left_out=f"{type(error).__name__}: {first_line(error)}")
    else:
        channel.send(**_peak_memory())
    sys.stderr.flush()
    os._exit(0)  # what would be done at a normal end, such as a last checkpoint, is not wanted


def _side(request: dict[str, Any]) -> Any:
    recipe, config, trainer_options, fit_options = load("bench", [request["spec"], *request["options"]])[:4]
    from looper.commands.bench.keras_fit import KerasFit
    from looper.commands.bench.looper_fit import LooperFit
    from looper.commands.bench.raw_loop import RawLoop
    from looper.commands.bench.subject import Subject

    subject, name, workdir = Subject(recipe, config, trainer_options, fit_options), request["side"], request["workdir"]
    if name == "raw":
        return RawLoop(subject)
    if name.startswith("keras"):
        return KerasFit(subject, Path(workdir), many=name == "keras_many")
    return LooperFit(subject, Path(workdir), name)


def _peak_memory() -> dict[str, Any]:
    """The most memory that this process had resident, and that TensorFlow had of the first GPU, in bytes; the GPUs."""
    import tensorflow as tf

    status = Path("/proc/self/status")
    if status.exists():  # of this program: Linux' getrusage begins with what the parent had
        peak = int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) << 10
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gpus = [tf.config.experimental.get_device_details(d)["device_name"] for d in tf.config.list_physical_devices("GPU")]
    on_gpu = tf.config.experimental.get_memory_info("GPU:0")["peak"] if gpus else None
    return {"peak_memory_bytes": peak, "peak_gpu_memory_bytes": on_gpu, "gpus": gpus}


if __name__ == "__main__":
    main()
