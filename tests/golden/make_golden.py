"""Cut the reference files of ``../shared/fixtures`` to the small ones stored here.

``python tests/golden/make_golden.py FIXTURES`` writes F1 ... F6 and ``INDEX.tsv`` (the
tolerances of what was kept) beside this file. Weights stay as they are.
"""

import csv
import json
import pathlib
import re
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent

KEPT = {  # file: patterns of the names kept
    # All variants; inner blocks only of the plain one at its own size.
    "F1_vit_backbone": (
        "weights/.*|in/.*|out/pos_embed_resized/.*|out/[^/]*/native/layer._cls",
        "out/(nocls_nonorm|lowvar_nocls_nonorm)/native/.*|out/[^/]*/[^/]*/layer2",
    ),
    # Without the last third (see `first_two_stages`), hence without gradients and pixel maps.
    "F2_dtop_full": (
        r"weights/(?!decode_head|backbone\.layers\.[45]\.).*|in/image|in/label",
        r"out/noprune/stage[01]/.*|out/loss_noprune/aux_[01]\..*",
    ),
    "F3_segvit_atm": (
        "weights/.*|in/.*|out/atm/(loss|grad|aux[01])/.*",
        "out/atm/(pred_logits|eval_semantic_argmax)|out/atm/lowvar/pred_logits",
    ),
    "F4_heads": (r"(weights|out)/(setr_naive|setr_pup|fcn|segmenter_mask)/.*|in/(feat2|label)",),
    "F5_timm_vit": (
        "weights/.*|in/.*|out/(native|lowvar|dynamic|dynamic_pad)/(?!block[01]).*",
        "out/(checkpoint_filter|pos_resample.*)/(pos_embed|14x14_to_[46].*)",
    ),
    # Without the whole classifier.
    "F6_svit_block": (r"weights/pair/.*|in/(?!image_full).*|out/(?!full/).*",),
    # One of the two grids, and of the decoders the smaller one.
    "F7_cts_sharing": (
        "weights/(encoder/(?!square).*|decoder_linear/.*)|in/wide/.*",
        "out/wide/(?!.*mask_decoder).*",
    ),
}


def main(fixtures: pathlib.Path) -> None:
    with open(fixtures / "INDEX.tsv", newline="") as file:
        index = {(row[0], row[1]): row for row in csv.reader(file, delimiter="\t")}
    rows = [index["file", "key"]]
    for name, patterns in KEPT.items():
        with np.load(fixtures / f"{name}.npz", allow_pickle=False) as file:
            kept = [n for n in file.files if re.fullmatch("|".join(patterns), n)]
            data = {n: file[n] for n in kept}
            config = json.loads(str(file["meta/config_json"]))
        lines = {n: index[name, n] for n in kept if n.startswith("out/")}
        config.pop("fp32_vs_fp64_maxabs", None)  # the index has it
        if name in ("F1_vit_backbone", "F5_timm_vit"):
            data = {n: first_image(n, v) for n, v in data.items()}
            config["cut"] = "first image of each batch"
        if name == "F7_cts_sharing":
            del config["scenarios"]["square"]
        if name == "F2_dtop_full":
            data, lines = first_two_stages(data, lines, config)
        np.savez_compressed(
            HERE / f"{name}.npz", **data, **{"meta/config_json": json.dumps(config)}
        )
        rows += [[name, n, "x".join(map(str, data[n].shape)), *row[3:]] for n, row in lines.items()]
    with open(HERE / "INDEX.tsv", "w", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows(rows)


def first_image(name: str, array: np.ndarray) -> np.ndarray:
    return array[:1] if name.startswith(("in/image", "out/")) else array


def first_two_stages(data: dict, lines: dict, config: dict) -> tuple[dict, dict]:
    """Blocks 0 to 3 and two heads: auxiliary head 1 becomes the last one.

    Nothing that the first stages compute depends on later ones while nothing is pruned.
    """
    model = config["model"]
    model |= {"layers": 4, "out_indices": model["out_indices"][:2]}
    config["cut"] = "first 4 blocks, auxiliary_head.1 renamed decode_head, no pruning, no gradients"

    def renamed(name):
        return name.replace("auxiliary_head.1.", "decode_head.").replace("/aux_1.", "/decode.")

    return (
        {renamed(n): v for n, v in data.items()},
        {renamed(n): [row[0], renamed(n), *row[2:]] for n, row in lines.items()},
    )


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
