"""STEP on SegViT with ViT-L, COCO-Stuff-10K, 512x512: supertokens, then early exits.

Published: (table 3, GMACs) STEP@[8,16] tau-6899 46.0 mIoU at 173, tau-4999 45.3 at 150; STEP@[18]
46.0 at 201 and 45.1 at 177; dense 46.7 at 373, CTS 46.2 at 251 (table 1: 248, which includes the
policy).
Ours: not measured (docs/results.md). Hardware of the original: one A100, 80 k steps of 4 images.

    python train.py --config=configs/step_vitl_coco_stuff10k.py --config.data.root=DATA \
        --config.init_from=AUGREG.npz --config.method.policy=runs/policy_dcts_coco_stuff10k \
        --workdir=runs/step_vitl_coco_stuff10k
    python eval.py --config=configs/step_vitl_coco_stuff10k.py --config.data.root=DATA \
        --workdir=runs/step_vitl_coco_stuff10k

":at18", ":tau4999", exit heads: see step_vitl_ade20k. DATA, AUGREG.npz: see
segvit_vitl_coco_stuff10k.
"""

from configs import segvit_vitl_coco_stuff10k
from jaxseg.config import ConfigDict, step


def get_config(arg: str = "") -> ConfigDict:
    config = segvit_vitl_coco_stuff10k.get_config()
    config.method.policy = "runs/policy_dcts_coco_stuff10k"
    config.optim.lr = 6e-5
    config.optim.schedule = "cosine"
    config.train.batch_size = 4
    config.train.steps = 80_000
    return step(config, arg, threshold=0.95)
