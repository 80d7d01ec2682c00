"""One function per reference file: rebuild the model, run it, compare every output.

The layouts (NCHW, [out, in], key names) are those of the original code; see `verify_fixture`.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxseg import losses
from jaxseg.convert import backbone, heads
from jaxseg.convert.rules import convert
from jaxseg.data import transforms
from jaxseg.execute import Masked, Packing
from jaxseg.inference import EvalSpec, Predictor
from jaxseg.methods.dtop import Exit
from jaxseg.metrics import confusion, nan_mean, summarise
from jaxseg.models.atm import AtmSpec
from jaxseg.models.heads import CascadeHead, ConvHead, ConvSpec, Logits, pixel_scores
from jaxseg.models.network import Network, network, shapes
from jaxseg.models.segmenter import HeadSpec, SegmenterSpec
from jaxseg.models.vit import ViT, ViTSpec
from jaxseg.resize import resize_bilinear, resize_position_embedding
from jaxseg.tokens import Rows


def images_of(data: dict, name: str) -> jax.Array:
    return jnp.asarray(data[name].transpose(0, 2, 3, 1))


def weights_below(data: dict, prefix: str) -> dict:
    return {n[len(prefix) :]: v for n, v in data.items() if n.startswith(prefix)}


def pair(size: int | list[int]) -> tuple[int, int]:
    """(height, width) of a stored size, which is a number where it is square."""
    return (size, size) if isinstance(size, int) else tuple(size)


def patches_of(size: int | list[int], side: int) -> tuple[int, int]:
    height, width = pair(size)
    return -(-height // side), -(-width // side)


def to_maps(tokens, grid) -> np.ndarray:
    """[B, N, F] -> [B, F, rows, columns]."""
    return np.asarray(tokens).reshape(len(tokens), *grid, -1).transpose(0, 3, 1, 2)


def bind(module: nnx.Module, flat: dict) -> nnx.Module:
    """The module with the arrays of ``flat`` (dotted names)."""
    graph, state = nnx.split(module)
    nested = {tuple(int(p) if p.isdigit() else p for p in n.split(".")): v for n, v in flat.items()}
    del state
    return nnx.merge(graph, nnx.traversals.unflatten_mapping(nested))


def module_shapes(module: nnx.Module, prefix: str) -> dict:
    flat = nnx.traversals.flatten_mapping(nnx.to_pure_dict(nnx.state(module)))
    return {prefix + ".".join(map(str, path)): value.shape for path, value in flat.items()}


def lowered(source: dict, names: tuple[str, ...]) -> dict:
    """The "lowvar" variant: some arrays times 2^-6, which makes the norms' epsilon visible."""
    return {n: v * 2.0**-6 if n in names else v for n, v in source.items()}


def make_vit(source: dict, spec: ViTSpec) -> ViT:
    module = ViT(spec)
    wanted = module_shapes(module, "vit.")
    flat = backbone.convert_vit(source, spec, wanted, "fixture", stored_grid=spec.grid)
    return bind(module, {name[4:]: value for name, value in flat.items()})


def run(module: nnx.Module, arrays, sizes):
    """``module(arrays, sizes)``, compiled as a whole: op by op takes several times as long."""
    graph, state = nnx.split(module)
    return jax.jit(lambda state, arrays: nnx.merge(graph, state)(arrays, sizes))(state, arrays)


ALL = Rows(None, prefix=0)  # every token of every image, no class token


def run_head(module, taps, grid):
    """The logits of a head on the grid, from token matrices [B, N, D] of a whole image."""

    if not module.per_token:
        taps = [tap.reshape(len(tap), *grid, -1) for tap in taps]
    return on_grid(run(module, tuple(taps), ALL), grid)


def on_grid(logits, grid):
    """Rows of masks on the grid; those of all levels of a cascade."""
    if not isinstance(logits, Logits):
        return tuple(on_grid(level, grid) for level in logits)
    mask = logits.mask
    return logits._replace(mask=mask.reshape(len(mask), *grid, -1) if mask.ndim == 3 else mask)


# --- F1, F5: backbones


def vit_backbone(data: dict, check) -> None:
    config, source = data["config"], weights_below(data, "weights/")
    stem = ("patch_embed.projection.weight", "patch_embed.projection.bias")
    taps = tuple(range(config["num_layers"]))
    side = config["patch_size"]
    base = patches_of(config["img_size"], side)
    for variant in sorted({name.split("/")[1] for name in check.outputs} - {"pos_embed_resized"}):
        switches = config["variants"][variant.removeprefix("lowvar_")]
        with_class = switches["with_cls_token"]
        spec = ViTSpec(
            width=config["embed_dims"],
            depth=config["num_layers"],
            heads=config["num_heads"],
            grid=base,
            patch=side,
            mlp_ratio=config["mlp_ratio"],
            class_token=with_class,
            final_norm=switches["final_norm"],
        )
        weights = source
        if variant.startswith("lowvar"):
            weights = lowered(source, (*stem, "cls_token", "pos_embed"))
        vit = make_vit(weights, spec)
        for size in config["inputs"]:
            wanted = [n for n in check.outputs if n.startswith(f"out/{variant}/{size}/")]
            if not wanted:
                continue
            images = images_of(data, f"in/image_{size}")
            grid = vit.grid(*images.shape[1:3])
            tokens = run(vit, images, taps)
            for name in wanted:
                layer = tokens[int(re.search(r"layer(\d+)", name)[1])]
                maps = to_maps(layer[:, int(with_class) :], grid)
                check.equal(name[4:], layer[:, 0] if name.endswith("_cls") else maps)
    for name in check.outputs:
        if name.startswith("out/pos_embed_resized/"):
            grid = patches_of(data[f"in/image_{name.split('/')[-1]}"].shape[2:], side)
            check.equal(name[4:], positions(source["pos_embed"], base, grid))


def positions(embedding: np.ndarray, base, grid, resize=resize_position_embedding) -> np.ndarray:
    """[1, 1 + N, D] resized with its class row untouched."""
    patches = jnp.asarray(embedding[0, 1:]).reshape(*base, -1)
    resized = np.asarray(resize(patches, grid)).reshape(1, grid[0] * grid[1], -1)
    return np.concatenate([embedding[:, :1], resized], axis=1)


def timm_resize(patches, grid):
    """timm's default: antialiased bicubic with a = -0.5, which is jax's own."""
    return jax.image.resize(patches, (*grid, patches.shape[-1]), "cubic", antialias=True)


def timm_vit(data: dict, check) -> None:
    config, source = data["config"], weights_below(data, "weights/")
    stem = ("patch_embed.proj.weight", "patch_embed.proj.bias", "cls_token", "pos_embed")
    side = config["patch_size"]
    base = patches_of(config["img_size"], side)
    last = config["depth"] - 1

    def vit_of(weights, grid):
        spec = ViTSpec(
            width=config["embed_dim"],
            depth=config["depth"],
            heads=config["num_heads"],
            grid=grid,
            patch=side,
            mlp_ratio=config["mlp_ratio"],
            class_token=True,
            final_norm=True,
        )
        return make_vit(weights, spec)

    vit, images = vit_of(source, base), images_of(data, "in/image")
    features = run(vit, images, (last,))[last]
    x = vit.embed(images)
    for i, block in enumerate(vit.blocks):  # timm's block outputs come before the final norm
        x = block(x, ALL)
        check.equal(f"native/block{i}", x)
    check.equal("native/forward_features", features)
    check.equal("native/logits", features[:, 0] @ source["head.weight"].T + source["head.bias"])
    low = vit_of(lowered(source, stem), base)
    check.equal("lowvar/forward_features", run(low, images, (last,))[last])

    wide = images_of(data, "in/image_dynamic")
    bottom, right = pair(config["dynamic_pad_size"])
    for name, crop in {"dynamic": wide, "dynamic_pad": wide[:, :bottom, :right]}.items():
        grid = patches_of(crop.shape[1:3], side)
        resized = positions(source["pos_embed"], base, grid, timm_resize)
        check.equal(f"{name}/pos_embed", resized)
        dynamic = vit_of(source | {"pos_embed": resized}, grid)
        check.equal(f"{name}/forward_features", run(dynamic, crop, (last,))[last])

    stored_name = next(name for name in data if name.startswith("in/pos_embed_"))
    stored, from_grid = data[stored_name], sides_of(stored_name.rpartition("_")[2])
    for name in sorted(check.outputs):
        kind, _, sizes = name[4:].partition("/")
        if kind.startswith("pos_resample"):
            to = sides_of(sizes.split("_to_")[1])
            resize = timm_resize if kind.endswith("_antialias") else resize_position_embedding
            channels = data[name].shape[-1]
            check.equal(name[4:], positions(stored[..., :channels], from_grid, to, resize))
    check.equal("checkpoint_filter/pos_embed", positions(stored, from_grid, base, timm_resize))


def sides_of(words: str) -> tuple[int, int]:
    """ "14x14" as numbers."""
    rows, columns = words.split("x")
    return int(rows), int(columns)


# --- F2: DToP


def dtop(data: dict, check) -> None:
    config, size = data["config"], data["config"]["model"]
    side, taps = size["patch"], size["out_indices"]
    atm = AtmSpec(size["ncls"], size["ch"], size["hheads"], size["ldec"])
    leaving = Exit(config["thresh_p0"], k=config["topk_kept_per_class"])
    spec = SegmenterSpec(
        ViTSpec(size["dim"], size["layers"], size["heads"], patches_of(size["img"], side), side),
        tuple(HeadSpec((tap,), atm, leaving if tap != taps[-1] else None) for tap in taps),
    )
    source = weights_below(data, "weights/")
    wanted = {name: shape.shape for name, shape in shapes(spec)[0].items()}
    vit_source = {n[9:]: v for n, v in source.items() if n.startswith("backbone.")}
    head_source = {n: v for n, v in source.items() if not n.startswith("backbone.")}
    last = len(spec.heads) - 1
    names = [rf"auxiliary_head\.{i}\." for i in range(last)] + [r"decode_head\."]
    rules = [r for i, n in enumerate(names) for r in heads.atm_rules(n, f"heads.{i}.")]
    vit_shapes = {n: s for n, s in wanted.items() if n.startswith("vit.")}
    head_shapes = {n: s for n, s in wanted.items() if n.startswith("heads.")}
    params = backbone.convert_vit(vit_source, spec.vit, vit_shapes, "fixture", spec.vit.grid)
    params |= convert(head_source, rules, head_shapes, "fixture")
    for kind, net in (("prune", network(spec)), ("noprune", network(spec.dense()))):
        outputs, values, grads = _dtop_outputs(data, net, params)
        _dtop_stages(data, check, kind, net, params, outputs)
        _dtop_losses(data, check, kind, net.bind(params, {}), outputs, values)
        _dtop_gradients(check, kind, grads, [*backbone.mmseg_rules(False), *rules])
    _dtop_inference(data, check, network(spec), params)
    _dtop_slide(data, check, network(spec), params)


def _dtop_outputs(data, net: Network, params) -> tuple[list, dict, dict]:
    """Every stage's outputs, the losses by name and the gradients of their sum, by one program."""
    images, labels = images_of(data, "in/image"), jnp.asarray(data["in/label"])

    def total(params):
        model = net.bind(params, {})
        values = {name: term.value() for name, term in model.losses(images, labels).items()}
        return sum(values.values()), (model(images), values)

    grads, (outputs, values) = jax.jit(jax.grad(total, has_aux=True))(params)
    return outputs, values, grads


def _dtop_stages(data, check, kind: str, net: Network, params, outputs: list) -> None:
    """Every stage's outputs for all tokens, those that have left included."""
    model, images = net.bind(params, {}), images_of(data, "in/image")
    left = np.asarray(net.program(Masked())(params, images).left).reshape(len(images), -1)
    for i, (head, logits) in enumerate(zip(model.heads, outputs, strict=True)):
        stage = f"{kind}/stage{i}"
        batch, *_, classes = logits.mask.shape
        mask = logits.mask.reshape(batch, -1, classes)
        check.equal(f"{stage}/mask_logits", mask.swapaxes(1, 2))
        check.equal(f"{stage}/cls_logits", logits.classes)
        scores = head.token_scores(Logits(mask, logits.classes), ALL)
        check.equal(f"{stage}/conf", scores.max(-1))
        check.equal(f"{stage}/argmax", scores.argmax(-1))
        check.equal(f"{stage}/pruned_before", (left >= 0) & (left < i))
        check.equal(f"{stage}/pruned_after", (left >= 0) & (left <= i))
    check.skip(
        f"{kind}/stage", "tokens inside the backbone: the mask logits of each head show them"
    )
    size = images.shape[1:3]
    scores = pixel_scores(model.heads[-1], outputs[-1], size)
    maps = scores.transpose(0, 3, 1, 2)
    check.equal(f"{kind}/pixel_logits", maps)
    check.equal(f"{kind}/pixel_logits_every2", maps[..., ::2, ::2])
    check.equal(f"{kind}/pixel_argmax", scores.argmax(-1), scores)


def _dtop_losses(data, check, kind: str, model, outputs: list, values: dict) -> None:
    labels = jnp.asarray(data["in/label"])
    for name, value in values.items():
        check.equal(f"loss_{kind}/{name}", value)
    check.equal(f"loss_{kind}/total", sum(values.values()))
    stages = [f"aux_{i}" for i in range(len(model.heads) - 1)] + ["decode"]
    for stage, head, logits in zip(stages, model.heads, outputs, strict=True):
        scores = pixel_scores(head, logits, labels.shape[1:])
        check.equal(f"loss_{kind}/{stage}.acc_seg", accuracy(scores, labels))


def _dtop_gradients(check, kind: str, grads: dict, rules) -> None:
    names = [str(name) for name in check.given("grad_param_names")]
    norms = [np.linalg.norm(torch_gradient(name, grads, rules)) for name in names]
    check.equal(f"grad_{kind}/l2_norms", np.array(norms))
    for name in sorted(check.outputs - check.done):
        if name.startswith(f"out/grad_{kind}/"):
            theirs = name.removeprefix(f"out/grad_{kind}/")
            check.equal(name[4:], torch_gradient(theirs, grads, rules))


def _dtop_inference(data, check, net: Network, params) -> None:
    """All executors give the original's score map, and batch 1 what the batch gives."""
    images = images_of(data, "in/image")
    reference = net.program(Masked())(params, images)
    for executor in (None, Packing(3, windows=2)):
        answer = net.program(executor)(params, images)
        np.testing.assert_array_equal(answer.left, reference.left)
        pixels = resize_bilinear(answer.scores, images.shape[1:3])
        check.equal("prune/pixel_logits", pixels.transpose(0, 3, 1, 2))
    for i in range(len(images)):
        alone = net.program()(params, images[i : i + 1])
        gap = abs(np.asarray(alone.scores[0]) - np.asarray(reference.scores[i])).max()
        check.equal(f"prune_b1_img{i}/pixel_logits_maxabsdiff_to_batched", gap)
    check.skip("final_head_thresh", "the last head has no threshold here")


def _dtop_slide(data, check, net: Network, params) -> None:
    if "in/image_slide" not in data:
        return
    image, slide = images_of(data, "in/image_slide")[0], data["config"]["slide"]
    spec = EvalSpec(crop=pair(slide["crop"]), stride=pair(slide["stride"]), batch_size=2)
    predictor = Predictor(net.program(), spec)
    scores = predictor.of_normalised(params, np.asarray(image))
    check.equal("slide/pixel_logits_every2", scores.transpose(2, 0, 1)[None, :, ::2, ::2])
    check.equal("slide/pixel_argmax", scores.argmax(-1)[None], scores[None])


def torch_gradient(name: str, grads: dict, rules) -> np.ndarray:
    """The gradient of a parameter of the original model: what its rule made of it, put together."""
    name = name.removeprefix("backbone.")
    if name == "cls_token":  # the model without a class token has none; its gradient is 0
        return np.zeros(1)
    for rule in rules:
        match = re.fullmatch(rule.pattern, name)
        if match and rule.targets:
            targets = [match.expand(target) for target in rule.targets]
            parts = [np.asarray(grads[target]) for target in targets]
            if targets[0].endswith(".kernel"):
                parts = [part.T for part in parts]
            return np.concatenate(parts, axis=0)
    raise KeyError(name)


def accuracy(scores, labels) -> float:
    """Share of labelled pixels with the right argmax, in percent (100 if nothing is labelled)."""
    tiny = np.finfo(np.float32).eps
    valid = np.asarray(labels) != losses.IGNORE
    right = np.asarray(scores.argmax(-1)) == np.asarray(labels)
    return 100.0 * ((right & valid).sum() + tiny) / (valid.sum() + tiny)


# --- F3: SegViT's cascade


def segvit(data: dict, check) -> None:
    config = data["config"]
    spec = AtmSpec(
        config["num_classes"],
        config["embed_dims"],
        config["num_heads"],
        config["num_layers_per_decoder"],
    )
    levels, size = config["use_stages"], pair(config["img_size"])
    source = weights_below(data, "weights/atm/")
    module = CascadeHead(config["in_channels"], spec, levels)
    rules = heads.cascade_rules("", "", levels)
    features = [data[f"in/feat{i}"] for i in range(levels)]
    grid = features[0].shape[2:]
    taps = [jnp.asarray(f.reshape(*f.shape[:2], -1).swapaxes(1, 2)) for f in features]

    def bound(weights):
        return bind(module, convert(weights, rules, module_shapes(module, ""), "fixture"))

    head = bound(source)
    logits = run_head(head, taps, grid)
    for i, level in enumerate(logits[:-1]):
        check.equal(f"atm/aux{i}/pred_logits", level.classes)
        check.equal(f"atm/aux{i}/pred_masks", level.mask.transpose(0, 3, 1, 2))
    check.equal("atm/pred_logits", logits[-1].classes)
    masks = resize_bilinear(logits[-1].mask, size).transpose(0, 3, 1, 2)
    check.equal("atm/pred_masks_every2", masks[..., ::2, ::2])
    scores = pixel_scores(head, logits, size)
    check.equal("atm/eval_semantic_every2", scores.transpose(0, 3, 1, 2)[..., ::2, ::2])
    check.equal("atm/eval_semantic_argmax", scores.argmax(-1), scores)
    check.equal("atm/semantic_train_vs_eval_maxabsdiff", 0.0)  # one path serves both here

    biases = tuple(f"input_proj_{i + 1}.bias" for i in range(levels))
    low = run_head(bound(lowered(source, biases)), [tap * 2.0**-6 for tap in taps], grid)
    check.equal("atm/lowvar/pred_logits", low[-1].classes)
    masks = resize_bilinear(low[-1].mask, size).transpose(0, 3, 1, 2)
    check.equal("atm/lowvar/pred_masks_every4", masks[..., ::4, ::4])

    first = data["in/label"][:, 0]
    label_sets = {
        "label": first,
        "label_last_img_ignored": data["in/label_last_img_ignored"][:, 0],
        "label_all_ignored": np.full_like(first, 255),
    }
    flat = convert(source, rules, module_shapes(module, ""), "fixture")

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradients(flat, labels):
        head = bind(module, flat)
        terms = head.losses(on_grid(head(tuple(taps), ALL), grid), labels)
        values = {name: term.value() for name, term in terms.items()}
        return sum(values.values()), values

    for name, labels in label_sets.items():
        grads, values = gradients(flat, jnp.asarray(labels))
        for term, value in values.items():
            check.equal(f"atm/loss/{name}/{term}", value)
        check.equal(f"atm/loss/{name}/total", sum(values.values()))
        check.equal(f"atm/loss/{name}/acc_seg", accuracy(scores, labels))
        for output in sorted(check.outputs):
            if output.startswith(f"out/atm/grad/{name}/"):
                gradient = torch_gradient(output.rpartition("/")[2], grads, rules)
                check.equal(output[4:], gradient)


# --- F4: convolutional heads


def heads_part(data: dict, check) -> None:
    config = data["config"]
    size, feature = pair(config["image_size"]), data[f"in/feat{config['in_index']}"]
    grid = feature.shape[2:]
    taps = [jnp.asarray(feature.reshape(*feature.shape[:2], -1).swapaxes(1, 2))]
    labels = jnp.asarray(data["in/label"][:, 0])
    for name in sorted({n.split("/")[1] for n in check.outputs}):
        if not name.startswith(("setr", "fcn")) or "concat_input True" in config[name]:
            check.skip(name, "this head is not built yet")
            continue
        words = dict(re.findall(r"(num_convs|up_scale|kernel_size|kernel)[= ](\d+)", config[name]))
        spec = ConvSpec(
            classes=config["num_classes"],
            channels=config["channels"],
            convs=int(words["num_convs"]),
            kernel=int(words.get("kernel_size") or words["kernel"]),
            up_scale=int(words.get("up_scale", 1)),
            norm=name.startswith("setr"),
        )
        module = ConvHead(feature.shape[1], spec, None)
        source = weights_below(data, f"weights/{name}/")
        flat = convert(source, heads.conv_rules("", ""), module_shapes(module, ""), "fixture")
        head = bind(module, flat)
        logits = run_head(head, taps, grid)
        check.equal(f"{name}/head_logits", head.grid_scores(logits, size).transpose(0, 3, 1, 2))
        full = pixel_scores(head, logits, size)
        (term,) = head.losses(logits, labels).values()
        check.equal(f"{name}/loss/loss_ce", term.value())
        check.equal(f"{name}/loss/acc_seg", accuracy(full, labels))
        low = run_head(head, [tap * 2.0**-6 for tap in taps], grid)
        low = head.grid_scores(low, size).transpose(0, 3, 1, 2)
        check.equal(f"{name}/lowvar_head_logits", low)
        check.equal(f"{name}/logits_fullres_every2", full.transpose(0, 3, 1, 2)[..., ::2, ::2])
        check.equal(f"{name}/argmax_fullres", full.argmax(-1), full)


# --- F8: metrics, preprocessing, position embeddings


def metrics(data: dict, check) -> None:
    config = data["config"]
    classes = config["num_classes"]
    count = sum(name.startswith("in/pred") for name in data)
    preds = [data[f"in/pred{i}"] for i in range(count)]
    plain = [data[f"in/label{i}"] for i in range(count)]
    raw = [data[f"in/rawlabel{i}"] for i in range(count)]
    table = np.arange(256, dtype=np.uint8)
    for old, new in config["label_map"].items():
        table[int(old)] = new
    reduced = [reduce_zero(label) for label in raw]
    for version in ("v030", "v122"):
        for name, labels in (("plain", plain), ("reduce_zero", reduced)):
            _scores(check, f"{version}/{name}", preds, labels, classes)
    mapped = sum(_areas(p, table[label], classes) for p, label in zip(preds, plain, strict=True))
    check.equal("v030/label_map/areas_total_intersect_union_pred_label", mapped)
    check.equal("v030/all_ignored/areas", _areas(preds[0], np.full_like(plain[0], 255), classes))
    odd = data["in/label_out_of_range0"]
    check.equal("v030/out_of_range_label/areas", _areas(preds[0], odd, classes))
    check.equal("v122/LoadAnnotations_reduce_zero/label0", reduced[0])
    check.skip("v030/caller_label_changed_by_reduce_zero", "a property of the original's arguments")
    _preprocessing(data, check)
    _position_resizes(data, check)


def reduce_zero(label: np.ndarray) -> np.ndarray:
    """0 becomes 255, the others move down by one; 255 stays."""
    return np.where((label == 0) | (label == 255), 255, label - 1).astype(np.uint8)


def _areas(pred, label, classes) -> np.ndarray:
    """[4, K]: intersection, union, predicted, labelled pixels of one image."""
    matrix = confusion(pred, label, classes)
    hit, labelled, predicted = np.diagonal(matrix[:-1]), matrix[:-1].sum(1), matrix.sum(0)
    return np.stack([hit, labelled + predicted - hit, predicted, labelled])


def _scores(check, prefix: str, preds, labels, classes) -> None:
    areas = [_areas(p, label, classes) for p, label in zip(preds, labels, strict=True)]
    check.equal(f"{prefix}/areas_per_image_intersect_union_pred_label", areas)
    matrix = sum(confusion(p, label, classes) for p, label in zip(preds, labels, strict=True))
    scores = summarise(matrix, [str(k) for k in range(classes)])
    per_class = {
        "IoU": scores.iou,
        "Acc": scores.recall,
        "Dice": scores.dice,
        "Fscore": scores.fscore,
        "Precision": scores.precision,
        "Recall": scores.recall,
    }
    for name, values in per_class.items():
        check.equal(f"{prefix}/{name}", values)
        if f"out/{prefix}/summary_m{name}" in check.outputs:
            check.equal(f"{prefix}/summary_m{name}", round(100 * nan_mean(values), 2))
    check.equal(f"{prefix}/aAcc", scores.pixel_accuracy)
    others = {
        "areas_total_intersect_union_pred_label": sum(areas),
        "mIoU_nanmean": scores.miou,
        "mAcc_nanmean": scores.mean_accuracy,
        "IoU_nan_to_num0": np.nan_to_num(scores.iou),
        "summary_aAcc": round(100 * scores.pixel_accuracy, 2),
    }
    for name, value in others.items():
        if f"out/{prefix}/{name}" in check.outputs:
            check.equal(f"{prefix}/{name}", value)


def _preprocessing(data: dict, check) -> None:
    statistics = {
        "imagenet": (transforms.IMAGENET_MEAN, transforms.IMAGENET_STD),
        "half": ((127.5,) * 3, (127.5,) * 3),
    }
    image, size = data["in/image_bgr_hwc0"][..., ::-1], tuple(data["config"]["pad_size"])
    for name, (mean, std) in statistics.items():
        normalised = transforms.normalise(image, mean, std)
        check.equal(f"v17_imnormalize/{name}", normalised)
        padded = transforms.pad(normalised, size, 0.0)
        check.equal(f"v122_preprocess_train_padded/{name}", padded.transpose(2, 0, 1)[None])
        for key, shape in (("", None), ("_label_pad", image.shape[:2])):
            output = f"v122_preprocess_train_padded/{name}{key}"
            if shape and f"out/{output}" in check.outputs:
                theirs = data[f"out/{output}"][0, : shape[0], : shape[1]]
                check.equal(output, transforms.pad(theirs, size, losses.IGNORE)[None])
        vit = ViT(ViTSpec(width=8, depth=1, heads=1, grid=(2, 2)))  # pads its images by itself
        padded = [16 * n for n in vit.grid(*image.shape[:2])]
        count = sum(key.startswith("in/image_bgr_hwc") for key in data)
        check.equal(f"v122_preprocess_test_div16_shape/{name}", [count, 3, *padded])
        check.skip(f"v17_vs_v122_normalise_maxabsdiff/{name}", "compares two originals")


def _position_resizes(data: dict, check) -> None:
    for name in sorted(n for n in check.outputs if n.startswith("out/pos/")):
        _, _, method, sizes = name.split("/")
        source, target = sizes.split("_to_")
        square = "x" not in source
        embedding = data["in/pos_embed_square" if square else "in/pos_embed"]
        base, grid = (
            (int(n),) * 2 if square else tuple(map(int, n.split("x"))) for n in (source, target)
        )
        resize = {
            "mmseg_bicubic": resize_position_embedding,
            "mmseg_bilinear": resize_bilinear,
            "cts_bilinear": resize_bilinear,
        }.get(method)
        if resize is None:
            check.skip(name[4:], "no model here resizes positions this way")
        else:
            check.equal(name[4:], positions(embedding, base, grid, resize))
