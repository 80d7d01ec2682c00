"""How long a training takes from SIGTERM to its end, against the length of its steps.

    JAX_PLATFORMS=cpu python -m benchmarks.stop_training --config=configs/quickstart.py

The flags are those of train.py. Each trial starts it (with --processes=N as N processes on this
machine), sends SIGTERM to the last process at a random moment of a step, and waits for all.
"""

import argparse
import pathlib
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time


def trial(flags: list[str], processes: int, folder: str, draw: random.Random):
    """(seconds from the signal to the end of all, seconds per step). ``folder``: the workdir."""
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, "train.py", *flags, "--config.train.log_every=1"]
    command += [f"--workdir={folder}"]
    running = []
    for i in range(processes):
        several = [f"--coordinator=localhost:{port}", f"--num_processes={processes}"]
        several = [*several, f"--process_id={i}"] if processes > 1 else []
        running.append(
            subprocess.Popen(
                [*command, *several], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
        )
    log, times = pathlib.Path(folder) / "metrics.jsonl", []
    before = None
    while len(times) < 5:  # the first is that of a compilation
        if running[0].poll() is not None:
            sys.exit(running[0].stderr.read().decode())
        lines = log.read_bytes().count(b"\n") if log.exists() else 0
        if lines != before:
            before = lines
            times.append(time.monotonic())
        time.sleep(0.005)
    step = statistics.median(b - a for a, b in zip(times[2:], times[3:], strict=False))
    time.sleep(draw.uniform(0, step))
    running[-1].terminate()
    begin = time.monotonic()
    errors = [process.communicate()[1].decode().splitlines()[-1] for process in running]
    seconds = time.monotonic() - begin
    if not all("SIGTERM after step" in error for error in errors):
        sys.exit(f"not stopped as it should be: {errors}")
    return seconds, step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--processes", type=int, default=1)
    options, flags = parser.parse_known_args()
    draw, found = random.Random(0), []
    for _ in range(options.trials):
        with tempfile.TemporaryDirectory() as folder:
            found.append(trial(flags, options.processes, folder, draw))
        print("SIGTERM to end {:.2f} s, step {:.2f} s".format(*found[-1]), flush=True)
    stops, steps = zip(*found, strict=True)
    print(
        f"median of {len(found)}: {statistics.median(stops):.2f} s, longest {max(stops):.2f} s; "
        f"step {statistics.median(steps):.2f} s"
    )


if __name__ == "__main__":
    main()
