"""STEP on SegViT with ViT-Ti, MSRC v2, 320x224: supertokens, then exits after layers 6 and 8.

Ours, with time and machine: docs/results.md. Sized for two CPU cores.

    python train.py --config=configs/step_vitti_msrc.py --config.data.root=MSRC \
        --config.init_from=runs/segvit_vitti_msrc/model.safetensors \
        --config.method.policy=runs/policy_dcts_msrc --workdir=runs/step_vitti_msrc
    python eval.py --config=configs/step_vitti_msrc.py --config.data.root=MSRC \
        --workdir=runs/step_vitti_msrc

Fine-tuned from the dense model. Without training: evaluate the dense model's workdir with this
configuration and --config.method.policy=runs/policy_dcts_msrc.
"""

from configs import dtop_segvit_vitti_msrc, policy_dcts_msrc
from jaxseg.config import ConfigDict, finish


def get_config(arg: str = "") -> ConfigDict:
    config = dtop_segvit_vitti_msrc.get_config()
    policy = policy_dcts_msrc.get_config()
    for field in ("merge", "tau2", "tau4", "tau8", "tau16"):
        config.method[field] = policy.method[field]
    config.policy.update(policy.policy)
    config.method.policy = "runs/policy_dcts_msrc"
    return finish(config, arg)
