"""STEP on SegViT with ViT-Ti, CamVid, 480x352: supertokens, then exits after layers 6 and 8.

Ours, with time and machine: docs/results.md. Sized for two CPU cores.

    python train.py --config=configs/step_vitti_camvid.py --config.data.root=CAMVID \
        --config.init_from=runs/segvit_vitti_camvid/model.safetensors \
        --config.method.policy=runs/policy_dcts_camvid --workdir=runs/step_vitti_camvid
    python eval.py --config=configs/step_vitti_camvid.py --config.data.root=CAMVID \
        --workdir=runs/step_vitti_camvid

Fine-tuned from the dense model. Without training: evaluate the dense model's workdir with this
configuration and --config.method.policy=runs/policy_dcts_camvid.
"""

from configs import dtop_segvit_vitti_camvid, policy_dcts_camvid
from jaxseg.config import ConfigDict, finish


def get_config(arg: str = "") -> ConfigDict:
    config = dtop_segvit_vitti_camvid.get_config()
    policy = policy_dcts_camvid.get_config()
    for field in ("merge", "tau2", "tau4", "tau8", "tau16"):
        config.method[field] = policy.method[field]
    config.policy.update(policy.policy)
    config.method.policy = "runs/policy_dcts_camvid"
    return finish(config, arg)
