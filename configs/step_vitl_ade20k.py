"""STEP on SegViT with ViT-L, ADE20K, 640x640: supertokens, then early exits.

Published: (table 2, GMACs; those of its row of CTS include the policy) STEP@[8,16] tau-6899 51.2
mIoU at 224, tau-4999 50.8 at 209; STEP@[18] 51.7 at 395 and 50.4 at 261; dense 53.0 at 624.
Ours: not measured (docs/results.md). Hardware of the original: one A100, 160 k steps of 4 images.

    python train.py --config=configs/step_vitl_ade20k.py --config.data.root=DATA \
        --config.init_from=AUGREG.npz --config.method.policy=runs/policy_dcts_ade20k \
        --workdir=runs/step_vitl_ade20k
    python eval.py --config=configs/step_vitl_ade20k.py --config.data.root=DATA \
        --workdir=runs/step_vitl_ade20k

":at18" has one exit, after layer 18; ":tau4999" the other thresholds; ":at18_tau4999" both. Exit
heads of one layer: --config.model.aux_head=atm --config.model.aux_head_layers=1
--config.model.aux_head_width=512; linear ones: --config.model.aux_head=conv
--config.model.aux_head_layers=0. DATA, AUGREG.npz: see segvit_vitl_ade20k.
"""

from configs import segvit_vitl_ade20k
from jaxseg.config import ConfigDict, step


def get_config(arg: str = "") -> ConfigDict:
    config = segvit_vitl_ade20k.get_config()
    config.method.policy = "runs/policy_dcts_ade20k"
    config.optim.lr = 6e-5
    config.optim.schedule = "cosine"
    config.train.batch_size = 4
    return step(config, arg, threshold=0.9)
