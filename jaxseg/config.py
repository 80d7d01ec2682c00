"""Every field of a configuration, with its default and its meaning.

A file in ``configs/`` offers ``get_config(arg)``: it takes `defaults`, changes what differs and
returns `finish(config, arg)`. ``arg`` is what follows a colon on the command line:
``--config=configs/x.py:smoke`` asks for the same recipe shrunk to a two-step test.

Sizes are (height, width), except where (long side, short side) is said. Tuples, never lists: only
tuples can be overridden on the command line (``--config.data.crop='(480, 480)'``).
"""

import difflib
import json

from ml_collections import ConfigDict

from jaxseg.errors import UserError


def defaults() -> ConfigDict:
    """The common defaults: SegViT with DToP's decoupled heads on a folder of images and labels."""
    config = ConfigDict()
    # segment | policy (which windows of an image show one class) | classify (its one class)
    config.task = "segment"
    config.seed = 0
    # Start weights: a ViT of AugReg, timm or mmsegmentation (.npz, .safetensors, .pth; heads start
    # fresh, but that of classify), or a model.safetensors of this project (what fits; other class
    # counts restart the classifier). A policy: EfficientNet-Lite0 of timm. "" = random.
    config.init_from = ""
    # Go on from the newest checkpoint in the workdir. Otherwise a workdir with some is refused.
    config.resume = False

    config.data = data = ConfigDict()
    # folder | shapes | ade20k | pascal_context | coco_stuff10k. classify: class_folder |
    # imagenet2012 | shape_classes (shapes, each with the ground that covers most of it)
    data.name = "folder"
    # Where the data set lies (folder: has images/, labels/, classes.txt; class_folder: SPLIT/CLASS)
    data.root = ""
    # Splits to train on, to choose the best checkpoint by, and to report. Folder data sets select
    # by file name too: "train/!0006R0*+val" = train without 0006R0*, and val.
    data.train = "train"
    data.val = "val"
    data.test = "test"
    data.ignore = ()  # class names whose pixels count as unlabelled (folder)
    data.count = (64, 16, 16)  # number of images of train, val, test (shapes)
    data.size = (128, 192)  # image size (shapes)
    data.resize = (2048, 512)  # training: fit inside (long, short) x a random ratio, aspect kept
    data.ratio = (0.5, 2.0)  # range of that ratio
    data.crop = (512, 512)  # training crop
    data.cat_max_ratio = 0.75  # redraw a crop in which one class covers more than this share
    data.flip = 0.5  # probability of a horizontal flip
    # classify: share of an image that its random crop covers (in place of resize, ratio,
    # cat_max_ratio, distort); label smoothing; alpha of mixup and of cutmix, 0 = off. RandAugment
    # and random erasing, which DeiT's recipe has too, are left out.
    data.area = (0.08, 1.0)
    data.smoothing = 0.1
    data.mixup = 0.0
    data.cutmix = 0.0
    data.distort = True  # photometric distortion
    data.mean = (127.5, 127.5, 127.5)  # RGB, 0..255; AugReg weights want 127.5
    data.std = (127.5, 127.5, 127.5)
    data.workers = 0  # loader processes; 0 = threads of this process

    config.model = model = ConfigDict()
    model.variant = "B"  # Ti | S | B | L
    model.patch = 16
    model.class_token = False  # keep a class token in the encoder (SETR)
    model.final_norm = False  # normalise the output of the last block (SETR)
    model.norm_epsilon = 1e-6  # of the ViT's layer norms; Segmenter's code uses 1e-5
    model.drop_path = 0.1  # stochastic depth of the last block, linear from 0
    # atm (DToP's SegViT) | cascade (SegViT v1) | conv (SETR, FCN) | mask_transformer (Segmenter)
    # | class (classify: linear, on the class token; needs class_token and final_norm)
    model.head = "atm"
    model.taps = (
        5,
        7,
        11,
    )  # blocks (0-based) that heads read; atm, conv: one head each, the last answers
    model.head_width = 384  # ATM: width of the class queries; conv: channels; else of the decoder
    model.head_heads = 6  # ATM, mask transformer: attention heads
    model.head_layers = 3  # ATM, mask transformer: decoder layers; conv: convolutions
    model.head_kernel = 1  # conv: side of the kernels: 1 (SETR-Naive, FCN) | 3 (SETR-PUP)
    model.head_up_scale = 1  # conv: bilinear up-sampling after each convolution (where tokens
    # leave early, auxiliary heads grade them without it)
    model.aux_head = ""  # kind of the heads before the last, not cascade; "" = as the last
    model.aux_head_width = 256  # and, where it differs, its width
    model.aux_head_layers = 1  # and its decoder layers or convolutions
    model.aux_head_up_scale = 0  # and its up-sampling (conv); 0 = as the last
    model.aux_weight = 0.4  # conv: loss weight of the heads before the last
    # Compute in bfloat16; parameters, losses and scores stay float32. The policy of a segmenter
    # computes in bfloat16, too: grades near a threshold may then fall on its other side.
    model.bfloat16 = False

    config.method = method = ConfigDict()
    # dense | dtop (tokens leave early) | svit, dynamicvit, evit, evovit, ats (tokens skip blocks)
    method.name = "dense"
    # segment, all but dense: after layer N (1-based; a head must read block N - 1, see model.taps)
    # tokens more confident than this leave; 1 = no exit there.
    for layer in range(1, 24):
        method[f"exit{layer}"] = ConfigDict({"threshold": 1.0})
    # dtop: what stays of those that could leave: top_k | remove | average | average_top_k
    method.context = "top_k"
    method.k = 5  # dtop: tokens per class that stay as context
    # dtop: at the exits that are on, this share leaves instead, most confident first; 0 = off
    method.share = 0.0
    # dtop: the label of a token that leaves. False: its mask logits are frozen and multiplied with
    # the class probabilities of the last head (the released code; DToP footnote 2; STEP runs it).
    # True: it is final when the token leaves (DToP section 3.2; with SETR's heads it always is).
    method.final_at_exit = False

    # The five that choose tokens. Layers (1-based) before which they do, of evit and ats in which;
    # what is kept there, as shares of the tokens there are (evit: of those left). () = published.
    method.layers = ()
    method.keep = ()
    method.preserve = True  # who is not chosen keeps its last features; False: reads as zero
    method.reactivate = True  # svit: who has been skipped may come back
    method.gate = "mlp"  # svit: mlp | complex (DynamicViT's)
    # svit: at inference dynamic (the round(sum p) best) | sampled (as released) | static (keep)
    method.selection = "dynamic"
    method.ratio = "dynamic"  # svit: keep is the target of dynamic (a batch) | fixed (every image)
    method.ratio_weight = 4.0  # svit, dynamicvit: weight of that loss (dynamicvit: 2)
    method.distil = 0.0  # dynamicvit: weight of what the model of init_from says (published: 0.5)
    method.fuse = True  # evit: those who are dropped become one more token
    # Patches that share a token: none | cts (a fixed number of windows of 2x2) | dcts (windows of
    # 2, 4, 8 and 16 patches by threshold; with dtop's exits that is STEP)
    method.merge = "none"
    # The network that grades windows: the workdir of a run with config.task=policy. "", or a
    # workdir that is no longer there = the one that is stored with the model. "oracle" = the labels
    # instead (evaluation only); "random" = one that nothing has trained (tests).
    method.policy = ""
    method.windows = 103  # cts: windows merged per image
    for side in (2, 4, 8, 16):
        method[f"tau{side}"] = 2.0  # dcts: merge windows with this score or more; above 1 = off
    method.guard = False  # dcts: only where all smaller windows inside would be merged, too
    method.budget = 0  # dcts: move the thresholds so that this many tokens are left; 0 = off

    # config.task=policy: windows that are graded, in patches; the share of a window's pixels that
    # its largest class must have; leave out windows on the rim with one class and unlabelled pixels
    config.policy = ConfigDict()
    config.policy.trunk = "lite0"  # EfficientNet-Lite0
    config.policy.sides = (2,)
    config.policy.purity = (1.0,)
    config.policy.border = False

    config.optim = optim = ConfigDict()
    optim.name = "adamw"  # adamw | sgd (momentum 0.9)
    optim.lr = 2e-5
    optim.weight_decay = 0.01
    optim.lr_multipliers = (
        ("^heads", 10.0),
    )  # (regex on parameter names, factor); first match wins
    optim.no_decay = ()  # regexes of parameters without weight decay
    optim.freeze = ()  # regexes of parameters that are not trained
    optim.clip_norm = 0.0  # global gradient norm; 0 = no clipping
    optim.warmup_steps = 1500
    optim.warmup_multiplies = False  # True: mmcv 0.x, the warm-up scales the running schedule
    optim.schedule = "poly"  # poly | cosine
    optim.schedule_steps = 0  # length of the schedule; 0 = train.steps
    optim.power = 0.9  # of poly
    optim.end_lr = 0.0
    optim.accumulate = 1  # micro-batches per step; train.batch_size is their sum
    optim.ema = 0.0  # decay of an exponential moving average of the weights; 0 = none

    config.train = train = ConfigDict()
    train.batch_size = 16  # images per step, over all devices
    train.steps = 160_000
    train.log_every = 50  # steps
    train.eval_every = 4_000  # evaluate on data.val and keep the best; 0 = only at the end
    train.checkpoint_every = 1_000
    train.max_bad_steps = 20  # stop after so many non-finite steps in a row (each is skipped)

    config.eval = evaluation = ConfigDict()
    evaluation.split = (
        "test"  # which of data.train, data.val, data.test; or any split of the data set
    )
    evaluation.resize = (2048, 512)  # fit inside (long, short), aspect kept; () = native size
    evaluation.mode = "slide"  # slide | whole
    evaluation.crop = (512, 512)  # slide: window; classify: size of the centre crop
    evaluation.crop_share = 0.875  # classify: which is this share of the resized image's short side
    evaluation.stride = (341, 341)  # slide: step
    evaluation.scales = (1.0,)  # several = multi-scale, scores averaged
    evaluation.flip = False  # also average the mirrored image
    evaluation.batch_size = 4  # slide: windows per device call; classify: images
    evaluation.pictures = 12  # samples on the report page
    # names of classes: how many blocks their patches go through, against those of all others
    evaluation.foreground = ()
    return config.lock()


def finish(config: ConfigDict, arg: str) -> ConfigDict:
    """Apply what follows the colon: nothing, or ``smoke`` (same structure, tiny, two steps)."""
    if arg == "smoke":
        _smoke(config)
    elif arg:
        raise UserError(f"--config=...:{arg}: unknown argument {arg!r}; the only one is 'smoke'")
    return config


def dtop(config: ConfigDict, arg: str, finetune_steps: int) -> ConfigDict:
    """DToP's three ways of training over the configuration of a dense model, exits being set.

    ``arg``: nothing for Finetune (``init_from`` is then a dense model), ``heads_only`` for Finetune
    with the ViT frozen, ``retrain`` for the dense model's own schedule, ``smoke`` as in `finish`.
    """
    config.method.name = "dtop"
    if arg == "retrain":
        return config
    config.train.steps = finetune_steps
    if arg == "heads_only":
        config.optim.freeze = ("^vit",)
        return config
    if arg not in ("", "smoke"):
        raise UserError(
            f"--config=...:{arg}: unknown argument {arg!r}; use heads_only, retrain or smoke"
        )
    return finish(config, arg)


def choosing(config: ConfigDict, arg: str, method: str, finetune_steps: int) -> ConfigDict:
    """Fine-tuning a dense model with a method that chooses tokens before or inside blocks."""
    config.method.name = method
    config.optim.lr, config.optim.warmup_steps = 2e-5, 20
    config.optim.lr_multipliers = (("^method", 50.0), ("^heads", 5.0))  # new among trained
    config.train.steps, config.train.eval_every = finetune_steps, 0
    return finish(config, arg)


def step(config: ConfigDict, arg: str, threshold: float) -> ConfigDict:
    """STEP's published forms over the configuration of a dense ViT-L.

    ``arg``: words joined by "_": ``at18`` (one exit, after layer 18; otherwise after 8 and 16),
    ``tau4999`` (otherwise tau-6899), or ``smoke``. ``threshold``: that of the exits.
    """
    words = set(arg.split("_")) - {""}
    config.method.name, config.method.merge = "dtop", "dcts"
    config.policy.sides, config.policy.purity = (2, 4, 8, 16), (1.0, 1.0, 0.98, 0.98)
    config.method.tau2, config.method.tau4 = (0.4, 0.9) if "tau4999" in words else (0.6, 0.8)
    config.method.tau8 = config.method.tau16 = 0.9
    exits = (18,) if "at18" in words else (8, 16)
    config.model.taps = (*(layer - 1 for layer in exits), 23)
    for layer in exits:
        config.method[f"exit{layer}"].threshold = threshold
    rest = words - {"at18", "tau4999"}
    if rest - {"smoke"}:
        raise UserError(f"--config=...:{arg}: unknown argument; use at18, tau4999 or smoke")
    return finish(config, "smoke" if rest else "")


def _smoke(config: ConfigDict) -> None:
    patch = config.model.patch
    drawn = {"classify": "shape_classes"}.get(config.task, "shapes")
    config.data.update(name=drawn, train="train", val="val", test="test", ignore=())
    config.data.update(count=(4, 2, 2), size=(4 * patch, 6 * patch), crop=(4 * patch, 4 * patch))
    config.data.update(resize=(6 * patch, 4 * patch))
    taps = tuple(range(len(config.model.taps)))
    for old, new in zip(config.model.taps[:-1], taps[:-1], strict=True):  # exits move with heads
        threshold = config.method[f"exit{old + 1}"].threshold
        config.method[f"exit{old + 1}"].threshold = 1.0
        config.method[f"exit{new + 1}"].threshold = threshold
    config.model.update(variant="smoke", taps=taps)
    config.model.update(head_width=16, head_heads=2, head_layers=1, bfloat16=False)
    config.model.update(aux_head_width=16)
    config.method.update(layers=(2, 3), keep=(0.7, 0.49), distil=0.0)
    config.init_from = ""
    config.method.update(policy="random", windows=2)
    config.policy.trunk = "smoke"
    config.optim.update(warmup_steps=1)
    config.train.update(batch_size=2, steps=2, log_every=1, eval_every=0, checkpoint_every=1)
    config.eval.update(split="test", resize=(), crop=config.data.crop, pictures=2, batch_size=2)
    config.eval.update(stride=(2 * patch, 2 * patch), foreground=())


def to_json(config: ConfigDict) -> str:
    """The whole configuration as JSON; tuples become lists."""
    return json.dumps(config.to_dict(), indent=2)


def from_json(text: str, origin: str) -> ConfigDict:
    """A stored configuration, read as data: every key must be known and every type must fit.

    ``origin`` names the file in errors. Raises `UserError`.
    """
    try:
        stored = json.loads(text)
        config = defaults()
        update(config, stored, origin)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{origin}: not JSON ({error}); restore it from the training run") from None
    return config


# What the tuples hold that are empty by default.
_PARTS = {"ignore": "", "foreground": "", "no_decay": "", "freeze": "", "layers": 0, "keep": 0.0}


def update(config: ConfigDict, stored: object, origin: str, path: str = "config") -> None:
    """Set the fields that ``stored`` (plain dicts, lists, values) has; known ones of right types.

    ``origin`` names where they are from in errors, ``path`` the part of the configuration. Raises
    `UserError`.
    """
    if not isinstance(stored, dict):
        raise UserError(f"{origin}: {path} must be an object, not {stored!r}")
    for key, value in stored.items():
        if key not in config:
            near = difflib.get_close_matches(key, list(config), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(config)}"
            raise UserError(f"{origin}: unknown field {path}.{key}; {hint}")
        if isinstance(config[key], ConfigDict):
            update(config[key], value, origin, f"{path}.{key}")
            continue
        value = _read_as(value, config[key], _PARTS.get(key))
        if value is None:
            want = type(config[key]).__name__
            if isinstance(config[key], tuple):
                want = f"tuple like {config[key] or (_PARTS[key],)}"
            raise UserError(f"{origin}: {path}.{key} must be a {want}, not {stored[key]!r}")
        config[key] = value


def _read_as(value: object, default: object, part: object = None) -> object:
    """``value`` of a JSON as what ``default`` is: None if it is nothing like it.

    Lists become tuples. Those of one kind may have any length, and ``part`` is like their parts
    where the default is empty; mixed ones, such as a pattern and a factor, are as long as it is.
    Whole numbers may stand for floats.
    """
    if isinstance(default, tuple):
        if not isinstance(value, list | tuple):
            return None
        mixed = len({type(each) for each in default}) > 1
        if mixed and len(value) != len(default):
            return None
        like = default if mixed else [default[0] if default else part] * len(value)
        parts = tuple(map(_read_as, value, like))
        return None if None in parts else parts
    if type(default) is float and type(value) is int:
        return float(value) if abs(value) < 2**53 else None
    return value if type(value) is type(default) else None
