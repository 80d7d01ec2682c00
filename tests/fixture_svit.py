"""F6: SViT's gates, blocks and masked training, through our own executors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from fixture_parts import (
    ALL,
    bind,
    images_of,
    make_vit,
    module_shapes,
    patches_of,
    weights_below,
)

from jaxseg.bypass import Choice, Journey
from jaxseg.convert import backbone
from jaxseg.convert.rules import convert, linear, norm
from jaxseg.execute import Masked, Packing, answer
from jaxseg.losses import usage_term
from jaxseg.methods import svit
from jaxseg.models.gates import straight_through
from jaxseg.models.heads import ConvSpec
from jaxseg.models.segmenter import HeadSpec
from jaxseg.models.sparse import SparseSegmenter, SparseSpec
from jaxseg.models.vit import ViTSpec
from jaxseg.tokens import Rows


@dataclasses.dataclass(frozen=True)
class Likelier(svit.Skip):
    """The fixture's evaluation: a token is kept where keeping is more probable. Masks are noted."""

    found: tuple = ()  # fixed masks, in training

    def choose(self, gates, look) -> Choice:
        if self.found:
            mask = jnp.asarray(self.found[look.number])
            return Choice(mask, weight=mask.astype(jnp.float32), among=look.patch)
        logits = gates[look.number](look.rows)
        return Choice(logits[..., 0] > logits[..., 1])


class OfTokens(SparseSegmenter):
    """Tokens in, the map out."""

    def begin(self, x) -> Journey:
        left = jnp.full(x.shape[:2], -1, jnp.int32)
        return Journey(x, Rows(None, 0), (x.shape[1], 1), left=left, map=x)

    def finish(self, carry):
        begin = self.spec.cuts[-1].position
        ends = self._run(carry, begin, self._end(-1), (), self._no_keys()[0])
        return ends.map


def svit_names(source: dict) -> dict:
    """timm's names for torch's TransformerEncoderLayer."""
    parts = {
        "self_attn.in_proj_": "attn.qkv.",
        "self_attn.out_proj": "attn.proj",
        "linear1": "mlp.fc1",
        "linear2": "mlp.fc2",
    }
    renamed = {}
    for name, value in source.items():
        name = name.replace("TransformerEncoderLayer.", "")
        for theirs, ours in parts.items():
            name = name.replace(theirs, ours)
        renamed[name] = value
    return renamed


def of_tokens(source: dict, spec: SparseSpec) -> OfTokens:
    """The model with blocks and gates of ``source``; what else it has is zero."""
    model = OfTokens(spec)
    wanted = module_shapes(model, "")
    flat = {name: np.zeros(shape, np.float32) for name, shape in wanted.items()}
    blocks = [rule for rule in backbone.timm_rules(False) if rule.pattern.startswith("blocks")]
    gate, ours = r"selective_modules\.(\d+)\.", r"method.gates.\1."
    gates = [
        *norm(gate + "norm", ours + "norm"),
        *linear(gate + r"mlp\.fc1", ours + "fc1"),
        *linear(gate + r"mlp\.fc2", ours + "fc2"),
    ]
    used = tuple(f"selective_modules.{i}." for i in range(len(spec.cuts)))
    named = svit_names(source).items()
    named = {n: v for n, v in named if n.startswith(("blocks", *used))}
    fits = {n: s for n, s in wanted.items() if n.startswith(("vit.blocks", "method"))}
    return bind(model, flat | convert(named, (*blocks, *gates), fits, "fixture"))


def chosen(model: OfTokens, x, executor) -> jax.Array:
    """The map at the end. With few capacities: each is compiled."""
    if isinstance(executor, Packing):
        executor = Packing(2, windows=2)
    return jax.jit(lambda x: answer(model, x, executor).scores)(x)


def svit_pair(data: dict, check) -> None:
    config, source = data["config"], weights_below(data, "weights/pair/")
    x, masks = jnp.asarray(data["in/x"]), data["in/fixed_masks"]
    vit = ViTSpec(config["dim"], 2, config["heads"], (1, 1), epsilon=config["block_ln_eps"])
    targets = tuple(config["keep_ratio_pair"])

    def model_of(blocks: int, **options) -> OfTokens:
        method = Likelier(layers=(1, 2)[:blocks], keep=targets[:blocks], **options)
        head = HeadSpec((blocks - 1,), ConvSpec(classes=2, channels=2))
        return of_tokens(source, SparseSpec(vit, (head,), method=method))

    model = model_of(2)
    gates, blocks = model.method.gates, model.vit.blocks
    logits = gates[0](x)
    kept = logits[..., 0] > logits[..., 1]
    check.equal("gate0/logits", logits)
    check.equal("gate0/log_softmax", jax.nn.log_softmax(logits))
    check.equal("gate0/mask", kept)
    check.equal("block0_unmasked", blocks[0](x, ALL))
    low = x * 2.0**-6
    check.equal("lowvar/gate0_logits", gates[0](low))
    check.equal("lowvar/block0_unmasked", blocks[0](low, ALL))
    check.equal("block0_masked_all_rows", blocks[0](x, Rows(kept, 0)))
    after = {}
    for name, count in (("one_block", 1), ("two_blocks", 2)):
        for executor in (Masked(), Packing()):
            after[count] = chosen(model_of(count), x, executor)
            check.equal(f"eval_gather_scatter/{name}", after[count])
    second = gates[1](after[1])
    check.equal("gate1/mask", second[..., 0] > second[..., 1])
    check.equal("eval_nested_batched/two_blocks_maxabsdiff", 0.0)  # both batches are ours

    used = tuple(tuple(map(tuple, mask.tolist())) for mask in masks)
    weight = jnp.asarray(data["in/grad_weight"])

    def trained(x, count):
        fixed = model_of(count, found=used[:count])
        _, carry, choices = fixed._forward(x, jax.random.key(0))
        return (carry.map * weight).sum(), (carry.map, choices)

    gradient = jax.jit(jax.grad(trained, has_aux=True), static_argnums=1)
    _, (one, _) = gradient(x, 1)
    check.equal("train_fixed_mask/one_block", one)
    grad, (two, choices) = gradient(x, 2)
    check.equal("train_fixed_mask/two_blocks", two)
    check.equal("train_fixed_mask/grad_x", grad)
    for kind, ratio in (("", "dynamic"), ("_per_sample", "fixed")):
        method = svit.Skip((1, 2), targets, ratio=ratio, ratio_weight=1.0)
        mean = method.terms(choices, 0, None)["ratio"].value()
        check.equal(f"train_fixed_mask/ratio_loss{kind}_sum", 2 * mean)
        check.equal(f"train_fixed_mask/ratio_loss{kind}_mean", mean)


def gumbel(data: dict, check) -> None:
    logits, noise = jnp.asarray(data["in/gumbel_logits"]), jnp.asarray(check.given("gumbel/noise"))
    weight = jnp.asarray(data["in/grad_weight"])[..., 0]
    for temperature in data["config"]["gumbel_tau"]:
        name = f"gumbel/tau{temperature}"
        hard = straight_through(logits, noise, temperature)
        check.equal(f"{name}/hard_keep", hard[..., None])
        noisy = jax.nn.log_softmax(logits) + noise
        check.equal(f"{name}/soft", jax.nn.softmax(noisy / temperature))
        total = lambda x, t=temperature: (straight_through(x, noise, t) * weight).sum()  # noqa: E731
        check.equal(f"{name}/grad_logits_of_weighted_sum", jax.grad(total)(logits))


def svit_full(data: dict, check) -> None:
    config, source = data["config"], weights_below(data, "weights/full/")
    sizes = config["full"]
    grid = patches_of(sizes["img_size"], sizes["patch_size"])
    depth = sizes["depth"]
    vit = ViTSpec(
        sizes["embed_dim"],
        depth,
        sizes["num_heads"],
        grid,
        sizes["patch_size"],
        class_token=True,
        epsilon=config["block_ln_eps"],
    )
    names = {n: v for n, v in svit_names(source).items() if not n.startswith("selective")}
    x = jax.jit(make_vit(names, vit).embed)(images_of(data, "in/image_full"))
    layers = tuple(sizes["select_loc"])
    method = Likelier(layers, tuple(sizes["keep_ratio"]))
    head = HeadSpec((depth - 1,), ConvSpec(classes=2, channels=2))
    alike = dataclasses.replace(vit, class_token=False)  # a gated token like others
    model = of_tokens(source, SparseSpec(alike, (head,), method=method))
    _, carry, choices = jax.jit(lambda x: model._forward(x, None))(x)
    for i, choice in enumerate(choices):
        check.equal(f"full/mask{i}", choice.chosen)
    wide = carry.map - carry.map.mean(-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + config["final_norm_eps"])
    features = wide * scale * source["norm.weight"] + source["norm.bias"]
    check.equal("full/forward_features", features)
    check.equal("full/logits", features[:, 0] @ source["head.weight"].T + source["head.bias"])
    used = [choice.chosen for choice in choices]
    all_ = [jnp.ones_like(each) for each in used]
    check.equal("full/ratio_loss", usage_term(used, all_, method.keep, 1.0, False).value())
    check.skip("full/fast_path_nested", "says how far two programs of the source differ")


def svit_parts(data: dict, check) -> None:
    svit_pair(data, check)
    gumbel(data, check)
    if "in/image_full" in data:
        svit_full(data, check)
