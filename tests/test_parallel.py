"""Data parallelism on the local devices (several CPU devices in the tests)."""

import pickle

import chex
import jax
import numpy as np
import pytest

from jaxseg import parallel
from jaxseg.errors import UserError
from jaxseg.parallel import (
    AXIS,
    gather,
    pmap_step,
    replicate,
    require_same,
    shard,
    step_key,
    unreplicate,
)

DEVICES = jax.local_device_count()


@pytest.fixture(autouse=True)
def several_devices():
    assert DEVICES > 1, "these tests need jax_num_cpu_devices of at least 2"


def host_state():
    return {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.zeros((), np.int32)}


def step(state, batch, key):
    mean = jax.lax.pmean(batch["x"].mean(), AXIS)
    noise = jax.random.uniform(step_key(key, state["step"]))
    metrics = {"mean": mean, "noise": jax.lax.all_gather(noise, AXIS)}
    return {"w": state["w"] + mean, "step": state["step"] + 1}, metrics


def test_replicate_and_unreplicate_are_inverse():
    state = replicate(host_state())
    assert state["w"].shape == (DEVICES, 2, 3)
    assert {s.device for s in state["w"].addressable_shards} == set(jax.local_devices())
    back = unreplicate(state)
    assert all(type(x) is np.ndarray and x.flags.owndata for x in back.values())
    chex.assert_trees_all_equal(back, host_state())


def test_shard_gives_each_device_its_rows():
    x = np.arange(3 * DEVICES * 2).reshape(3 * DEVICES, 2)
    parts = shard({"x": x})["x"]
    assert parts.shape == (DEVICES, 3, 2)
    for i, part in enumerate(sorted(parts.addressable_shards, key=lambda s: s.device.id)):
        np.testing.assert_array_equal(part.data[0], x[3 * i : 3 * i + 3])


def test_shard_refuses_a_batch_that_does_not_divide():
    with pytest.raises(UserError, match=f"batch of {DEVICES + 1} images .* {DEVICES} devices"):
        shard({"x": np.zeros((DEVICES + 1, 2))})


def test_step_means_over_all_devices_and_leaves_the_host_state_alone():
    host = host_state()
    x = np.arange(2 * DEVICES, dtype=np.float32)
    state, metrics = pmap_step(step)(replicate(host), shard({"x": x}), jax.random.key(0))
    state = unreplicate(state)
    np.testing.assert_allclose(state["w"], host_state()["w"] + x.mean())
    np.testing.assert_allclose(unreplicate(metrics)["mean"], x.mean())
    chex.assert_trees_all_equal(host, host_state())


def test_keys_differ_by_device_and_by_step():
    run = pmap_step(step)
    state, batch = replicate(host_state()), shard({"x": np.zeros(DEVICES, np.float32)})
    noise = []
    for _ in range(3):
        state, metrics = run(state, batch, jax.random.key(0))
        noise += list(unreplicate(metrics)["noise"])
    assert len(set(np.array(noise).tolist())) == 3 * DEVICES


def test_donated_state_is_gone():
    state = replicate(host_state())
    pmap_step(step)(state, shard({"x": np.zeros(DEVICES, np.float32)}), jax.random.key(0))
    assert state["w"].is_deleted()


def test_a_copy_taken_before_a_donating_step_keeps_its_values():
    run, batch = pmap_step(step), shard({"x": np.ones(DEVICES, np.float32)})
    state, _ = run(replicate(host_state()), batch, jax.random.key(0))
    copy = unreplicate(state)
    run(state, batch, jax.random.key(0))
    np.testing.assert_array_equal(copy["w"], host_state()["w"] + 1)


def test_the_second_step_is_not_traced_or_compiled_again():
    compilations = []

    def count(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compilations.append(duration)

    run = pmap_step(chex.assert_max_traces(step, n=1))
    batches = [shard({"x": np.full(DEVICES, i, np.float32)}) for i in range(3)]
    key, state = jax.random.key(0), replicate(host_state())
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        state, _ = run(state, batches[0], key)
        first = len(compilations)
        assert first > 0, "the event of jax that counts compilations has another name now"
        for batch in batches[1:]:
            state, _ = run(state, batch, key)
        jax.block_until_ready(state)
        assert len(compilations) == first
    finally:
        jax.monitoring.unregister_event_duration_listener(count)


def test_alone_gathering_is_nothing():
    value = object()
    assert gather(value) == [value]
    require_same(value, "value")


def test_what_differs_between_processes_is_named(monkeypatch):
    monkeypatch.setattr(parallel, "gather", lambda value: [value, value, 2, 3])
    with pytest.raises(UserError, match="process 2, 3 has another number than process 0"):
        require_same(1, "number")


def test_values_of_all_sizes_are_gathered_whole_and_in_order(monkeypatch):
    """Here as the second of three; tests/test_processes.py has true processes."""
    values = ["", "x" * 1000, {"a": np.arange(3)}]
    texts = [pickle.dumps(value) for value in values]
    sent = []

    def allgather(array):
        sent.append(array)
        if len(sent) == 1:
            return np.array([len(text) for text in texts])
        return np.stack([np.frombuffer(text.ljust(len(array), b"\0"), np.uint8) for text in texts])

    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(parallel.multihost_utils, "process_allgather", allgather)
    found = gather(values[1])
    assert sent[0] == len(texts[1]) and sent[1].tobytes().startswith(texts[1])
    assert found[:2] == values[:2]
    np.testing.assert_array_equal(found[2]["a"], values[2]["a"])
