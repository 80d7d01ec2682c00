"""Your own images and labels: images/{train,val}/x.jpg, labels/{train,val}/x.png, classes.txt.

    python -m jaxseg.tools.check_data --config=configs/own_data.py --config.data.root=MY_DATA
    python train.py --config=configs/own_data.py --config.data.root=MY_DATA --workdir=runs/mine \
        --config.init_from=VIT_TINY.npz
    python eval.py --config=configs/own_data.py --config.data.root=MY_DATA --workdir=runs/mine

docs/datasets.md describes the layout. The lines below are what differs from the CamVid recipe.
"""

from configs import segvit_vitti_camvid
from jaxseg.config import ConfigDict, finish


def get_config(arg: str = "") -> ConfigDict:
    config = segvit_vitti_camvid.get_config()
    config.data.train, config.data.val, config.data.test = "train", "val", "val"
    config.data.ignore = ()  # names of classes to leave out; label 255 always is
    config.data.resize = (640, 480)  # (long side, short side) of a typical image
    config.data.crop = (480, 480)
    config.eval.resize = (640, 480)
    config.eval.foreground = ()  # names of classes that usage/index.html tells from the others
    return finish(config, arg)
