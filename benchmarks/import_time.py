"""What `import jaxem` costs over `import jax, optax`: medians of fresh processes, alternated.

python benchmarks/import_time.py [repeats]
"""

import statistics
import subprocess
import sys

CODE = """
import time
start = time.perf_counter()
import jax, optax
middle = time.perf_counter()
import jaxem
print(middle - start, time.perf_counter() - middle)
"""


def main(repeats: int = 7) -> None:
    """Print the medians and the spread."""
    runs = []
    for _ in range(repeats + 1):
        done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
        runs.append(tuple(map(float, done.stdout.split())))
    jax_optax, jaxem = zip(*runs[1:], strict=True)  # the first one fills the file cache and writes bytecode
    for name, seconds in (("import jax, optax", jax_optax), ("import jaxem on top", jaxem)):
        print(f"{name:<20} median {statistics.median(seconds):.3f} s   from {min(seconds):.3f} to {max(seconds):.3f} s")
    print(f"target: under 0.3 s: {'met' if statistics.median(jaxem) < 0.3 else 'MISSED'}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
