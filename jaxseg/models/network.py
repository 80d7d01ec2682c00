"""The bridge from modules to plain dicts of arrays: a network without its numbers.

Any spec that offers ``make(batch_axis) -> nnx.Module`` can be one: a segmenter, a policy.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from jaxseg.execute import Masked, Packing
from jaxseg.programs import Arrays, Chain, OneProgram, Program

TEACHER = "teacher."  # prefix of frozen parameters that only training has, for distillation


@dataclass(frozen=True)
class Network:
    """``spec`` says what it is; `bind` puts arrays in, inside or outside jit.

    The graph stays in a closure and plain dicts go through jit, because handing flax modules
    through jit costs milliseconds on every call.
    """

    spec: object
    graph: nnx.GraphDef
    names: frozenset[str]

    def bind(self, params: Arrays, stats: Arrays) -> nnx.Module:
        """Arrays of other names are left out: a dense form runs on the arrays of the whole."""
        teacher = {n[len(TEACHER) :]: v for n, v in params.items() if n.startswith(TEACHER)}
        known = ({n: v for n, v in each.items() if n in self.names} for each in (params, stats))
        model = nnx.merge(self.graph, *map(_nest, known))
        if teacher:
            self.spec.teach(model, teacher)
        return model

    def split(self, arrays: Arrays) -> tuple[Arrays, Arrays]:
        """(parameters, statistics) from one dict that holds both, as a weights file does."""
        stats = {n: v for n, v in arrays.items() if n.endswith((".mean", ".var"))}
        return {n: v for n, v in arrays.items() if n not in stats}, stats

    def program(
        self, executor: Masked | Packing | None = None, *, bfloat16: bool = False
    ) -> Program:
        """What answers for a batch of normalised images (`jaxseg.programs`).

        ``executor`` None: packed with capacities picked on the host where tokens leave, else dense.
        """

        def bind(arrays):
            return self.bind(*self.split(arrays))

        prepare = in_bfloat16 if bfloat16 else jax.device_put
        patch = self.spec.vit.patch
        executor = executor or self.spec.executor
        if executor is None:
            merges, grows = self.spec.merge is not None, self.spec.grows
            return Chain(bind, Packing(), patch, self.spec.stages, merges, grows, prepare)
        return OneProgram(bind, executor, patch, prepare)


def steered(program: Chain, respec: Callable[[Array], object], name: str) -> Chain:
    """The program whose decisions depend on an array that travels among the parameters.

    ``respec(arrays[name])`` is the network with them. New values compile nothing.
    """

    def bind(arrays):
        model = program.bind({n: value for n, value in arrays.items() if n != name})
        model.spec = respec(arrays[name])
        return model

    return replace(program, bind=bind)


def in_bfloat16(arrays: Arrays) -> Arrays:
    """Parameters on the device in bfloat16; statistics of batch normalisation stay float32."""
    return {
        name: jax.device_put(value)
        if name.endswith((".mean", ".var"))
        else jnp.asarray(value, jnp.bfloat16)
        for name, value in arrays.items()
    }


def stats_of(model: nnx.Module) -> Arrays:
    """Batch-normalisation statistics of a bound model (updated by a training forward pass)."""
    return _flatten(nnx.state(model, nnx.BatchStat))


def network(spec, batch_axis: str | None = None) -> Network:
    """The network of ``spec``; ``batch_axis`` is where training shares batch statistics."""
    graph, *states = nnx.split(spec.make(batch_axis), nnx.Param, nnx.BatchStat)
    return Network(spec, graph, frozenset(name for state in states for name in _flatten(state)))


def shapes(spec) -> tuple[dict, dict]:
    """Parameters and statistics as `jax.ShapeDtypeStruct`s under their names."""
    model = spec.make()
    return _flatten(nnx.state(model, nnx.Param)), _flatten(nnx.state(model, nnx.BatchStat))


def _flatten(state: nnx.State) -> dict:
    nested = nnx.traversals.flatten_mapping(nnx.to_pure_dict(state))
    return {".".join(map(str, path)): value for path, value in nested.items()}


def _nest(flat: dict) -> dict:
    paths = {
        tuple(int(part) if part.isdigit() else part for part in name.split(".")): value
        for name, value in flat.items()
    }
    return nnx.traversals.unflatten_mapping(paths)
