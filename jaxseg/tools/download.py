"""Download public checkpoints by name (docs/checkpoints.md), or list them.

    python -m jaxseg.tools.download
    python -m jaxseg.tools.download setr-naive-vitl-ade20k augreg-vitb-384

Files go to $JAXSEG_CACHE/checkpoints, or ~/.cache/jaxseg/checkpoints. Prints where each one is and
its sha256. What was downloaded before is checked and not fetched again.
"""

from jaxseg import cli, zoo
from jaxseg.downloads import sha256_of


def main(names: list[str]) -> None:
    if not names:
        print(zoo.table())
    for name in names:
        zoo.find(name)  # a typing error is noticed before the first of them is downloaded
    for name in names:
        path = zoo.get(name)
        print(f"{path}  sha256 {sha256_of(path)}", flush=True)


if __name__ == "__main__":
    cli.run(main, arguments=True)
