"""DToP on SETR-naive with ViT-B, ADE20K, 512x512: tokens leave after layers 6 and 8.

Published: (p0 0.98, GMACs with the heads that decide) dense 47.0 mIoU at 107.7; Finetune 47.0 at
80.6; Direct 46.6 at 82.5.
Ours: not measured (docs/results.md). Hardware of the original: 8 A100, 2.5 h (ViT-B, Finetune).

    python train.py --config=configs/dtop_setr_vitb_ade20k.py --config.data.root=DATA \
        --config.init_from=runs/setr_vitb_ade20k/model.safetensors \
        --workdir=runs/dtop_setr_vitb_ade20k
    python eval.py --config=configs/dtop_setr_vitb_ade20k.py --config.data.root=DATA \
        --workdir=runs/dtop_setr_vitb_ade20k

This is DToP@Finetune: from the dense model, all weights trained as in the released code; the paper
speaks of the heads alone, which is ":heads_only". DToP@Direct trains nothing: evaluate the dense
model's workdir with this configuration. DToP@Retrain is ":retrain", from the ImageNet weights.
DATA: python -m jaxseg.tools.prepare_data --name=ade20k (docs/datasets.md).

No SETR code of DToP is released: confidence is the largest class probability of a token, and its
label is final when it leaves.
"""

from configs import setr_vitb_ade20k
from jaxseg.config import ConfigDict, dtop


def get_config(arg: str = "") -> ConfigDict:
    config = setr_vitb_ade20k.get_config()
    config.method.exit6.threshold = config.method.exit8.threshold = 0.98
    return dtop(config, arg, finetune_steps=40_000)
