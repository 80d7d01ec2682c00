r"""A trained model as StableHLO: files that hold weights and program, exits included.

    python -m jaxseg.tools.export --weights=runs/dtop_segvit_vitti_camvid --size=352,480 --batch=1

Writes WEIGHTS/export/packed.stablehlo (tokens leave early: a `lax.switch` inside the program picks
the capacity of every stage) and dense.stablehlo (nobody leaves). Both take uint8 RGB images
[batch, height, width, 3], fitted to the size that the model is used at (config.eval.resize), and
return (labels uint8 [batch, height, width], alive int32 [batch, stages]: tokens that every stage
worked on). To use one, jax alone is needed:

    exported = jax.export.deserialize(bytearray(pathlib.Path("packed.stablehlo").read_bytes()))
    labels, alive = exported.call(images)

A file runs on the kind of device it was exported on, with this or a newer jax (docs of jax.export).
"""

import pathlib

import jax
import jax.numpy as jnp
from absl import flags
from jax import export as jax_export

from jaxseg import build, cli, labels, model_arrays, model_dir, startup
from jaxseg.errors import UserError
from jaxseg.execute import Packing
from jaxseg.models.network import network
from jaxseg.models.segmenter import SegmenterSpec
from jaxseg.weights import write_atomically

FLAGS = flags.FLAGS
Size = tuple[int, int]


def exported(
    spec: SegmenterSpec, arrays: dict, config, size: Size, batch: int
) -> jax_export.Exported:
    """The program for uint8 images [batch, *size, 3], weights inside as constants."""
    # Fewer capacities than elsewhere: all of them are in the file, and compiled when it is loaded.
    executor = spec.executor or Packing(steps=16)
    program = network(spec).program(executor, bfloat16=config.model.bfloat16)
    arrays = program.prepare(arrays)
    mean, std = (jnp.array(v, jnp.float32) for v in (config.data.mean, config.data.std))
    patch = spec.vit.patch

    def run(images):
        answer = program(arrays, (images.astype(jnp.float32) - mean) / std)
        rows, columns = (
            labels.axis(n, ((-(-side // patch) * patch, side),))
            for n, side in zip(answer.scores.shape[1:3], size, strict=True)
        )
        found = labels.label_map(answer.scores, rows, columns)
        return found[:, : size[0], : size[1]], answer.alive

    return jax_export.export(jax.jit(run))(jax.ShapeDtypeStruct((batch, *size, 3), jnp.uint8))


def main(_) -> None:
    startup.prepare()
    stored = model_dir.load(FLAGS.weights)
    config = FLAGS.config or stored.config
    try:
        size = tuple(int(text) for text in FLAGS.size) or tuple(config.data.crop)
    except ValueError:
        size = ()
    if len(size) not in (1, 2) or min(size) < 1:
        raise UserError(f"--size={','.join(FLAGS.size)}: give HEIGHT,WIDTH or one number for both")
    size = size * 2 if len(size) == 1 else size
    model_arrays.no_oracle(config)
    spec = build.segmenter_spec(config, len(stored.classes))
    arrays = model_arrays.arrays_for(stored, config, spec)
    specs = {"dense": spec.dense()} | ({"packed": spec} if spec.adaptive else {})
    folder = pathlib.Path(FLAGS.weights) / "export"
    folder.mkdir(exist_ok=True)
    for name, each in specs.items():
        content = exported(each, arrays, config, size, FLAGS.batch).serialize()
        write_atomically(folder / f"{name}.stablehlo", bytes(content))
        print(f"wrote {folder}/{name}.stablehlo ({len(content) / 1e6:.1f} MB)")


if __name__ == "__main__":
    cli.define_config(required=False)
    flags.DEFINE_string("weights", None, "Folder of a finished training run.", required=True)
    flags.DEFINE_list("size", [], "HEIGHT,WIDTH in pixels, or one number; default: training crop.")
    flags.DEFINE_integer("batch", 1, "Images per call.", lower_bound=1)
    cli.run(main)
