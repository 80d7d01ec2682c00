"""Prepares ADE20K, Pascal-Context or COCO-Stuff-10K from its archive, once::

python -m jaxseg.tools.prepare_data --name=ade20k --archives=~/Downloads --root=data
"""

from pathlib import Path

from absl import flags

from jaxseg import cli
from jaxseg.data import builders

_NAME = flags.DEFINE_enum("name", None, list(builders.BUILDERS), "data set", required=True)
_ARCHIVES = flags.DEFINE_string(
    "archives", None, "folder that holds the downloaded archive (docs/datasets.md)", required=True
)
_ROOT = flags.DEFINE_string("root", None, "folder to write the data set to", required=True)


def main(argv: list[str]) -> None:
    del argv
    root = Path(_ROOT.value).expanduser()
    builders.prepare(_NAME.value, Path(_ARCHIVES.value).expanduser(), root)
    for split in builders.BUILDERS[_NAME.value].COUNTS:
        print(f"{_NAME.value} {split}: {len(builders.source(_NAME.value, root, split))} examples")


if __name__ == "__main__":
    cli.run(main)
