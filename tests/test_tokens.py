"""Book-keeping: who owns a patch, where slots go, what is read out."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg.execute import Masked, Packing, leave
from jaxseg.fates import Plan, exit_
from jaxseg.tokens import Carry, Packed, Rows, readout

B, GRID, PREFIX = 3, (2, 3), 1
N = GRID[0] * GRID[1]
C = PREFIX + N
FEW = settings(max_examples=40, deadline=None)
CHOICES = st.lists(st.booleans(), min_size=B * N, max_size=B * N)


def start() -> Carry:
    """Every slot's feature is its number, class tokens are negative."""
    x = jnp.arange(B * C, dtype=jnp.float32).reshape(B, C, 1)
    canvas = jnp.full((B, N, 1), -1.0)
    return Carry(x.at[:, 0].multiply(-1), Rows(None, PREFIX), GRID, canvas=canvas)


def plan_of(carry: Carry, leaving: np.ndarray) -> Plan:
    """A plan by patch [B, N], given as slots of ``carry``; patches that have left do not count."""
    slots = carry.x.reshape(-1, 1).shape[0]
    leaves = np.zeros(slots, bool)
    if carry.owner is None:
        leaves.reshape(B, C)[:, PREFIX:] = leaving
    else:
        owner = np.asarray(carry.owner)
        leaves[owner[leaving & (owner >= 0)]] = True
    return Plan(jnp.asarray(leaves))


def patches_own_their_features(carry: Carry, inside: np.ndarray):
    expected = np.arange(B * C, dtype=np.float32).reshape(B, C)[:, PREFIX:]
    ours = readout(carry, carry.x)[..., 0]
    np.testing.assert_array_equal(ours, np.where(inside, expected, -1))


@FEW
@given(CHOICES, CHOICES)
def test_two_exits_leave_every_patch_owned_or_settled(first, second):
    first, second = (np.array(choice).reshape(B, N) for choice in (first, second))
    for executor in (Masked(), Packing(4)):
        carry = start()
        inside = np.ones((B, N), bool)
        for number, leaving in enumerate((first, second)):
            carry = leave(executor, carry, plan_of(carry, leaving), number)
            inside &= ~leaving
            patches_own_their_features(carry, inside)
            np.testing.assert_array_equal(np.asarray(carry.owner) >= 0, inside)
            np.testing.assert_array_equal(carry.alive, inside.sum(1) + PREFIX)
        left = np.where(first, 0, np.where(second, 1, -1))
        np.testing.assert_array_equal(carry.left, left)


@FEW
@given(CHOICES)
def test_packed_slots_are_in_order_and_alone(leaving):
    leaving = np.array(leaving).reshape(B, N)
    carry = leave(Packing(4), start(), plan_of(start(), leaving), 0)
    layout = carry.layout
    assert isinstance(layout, Packed) and carry.x.shape == (B * C, 1)
    np.testing.assert_array_equal(layout.start, np.cumsum([0, *layout.count[:-1]]))
    for i in range(B):
        run = np.asarray(carry.x[int(layout.start[i]) : int(layout.start[i] + layout.count[i]), 0])
        assert run[0] == -(i * C)  # the class token stays, and first
        assert (np.diff(run[1:]) > 0).all() and (run[1:] // C == i).all()
    patches = np.asarray(layout.patches(carry.x))
    assert patches.sum() == (~leaving).sum()
    assert (np.asarray(carry.x)[patches, 0] > 0).all()
    owners = np.asarray(carry.owner)[~leaving]
    assert len(set(owners)) == len(owners) and patches[owners].all()


def test_values_of_images_reach_their_slots():
    leaving = np.zeros((B, N), bool)
    leaving[1] = True
    values = jnp.array([10.0, 20.0, 30.0])
    rows = start()
    assert rows.layout.of_image(values, rows.x).tolist() == [[10.0], [20.0], [30.0]]
    packed = leave(Packing(), rows, plan_of(rows, leaving), 0)
    used = int(packed.layout.used)
    of_slot = packed.layout.of_image(values, packed.x)[:used]
    assert of_slot.tolist() == [10.0] * C + [20.0] * PREFIX + [30.0] * C


def test_slots_that_name_another_are_averaged_into_it():
    carry = start()
    target = np.arange(B * C)
    target[[1, 2, 3]] = 2
    leaves = np.zeros(B * C, bool)
    leaves[[1, 2, 3]] = True
    context = np.zeros(B * C, bool)
    context[2] = True
    plan = Plan(*map(jnp.asarray, (leaves, context, target)))
    after = exit_(carry, plan, 0)
    x = np.asarray(after.x).reshape(-1)
    assert x[2] == 2.0 and x[1] == 1.0 and x[4] == 4.0  # the mean of 1, 2, 3; the others as before
    assert plan.goes.tolist()[:5] == [False, True, False, True, False]
    assert (np.asarray(after.owner)[0] == [-1, -1, -1, 4, 5, 6]).all()  # nobody owns the mean


def test_capacities_rise_to_the_whole_buffer():
    for slots in (1, 7, 48, 660, 5280):
        capacities = Packing(16).capacities(slots)
        assert capacities[-1] == slots and len(capacities) <= 16
        assert (np.diff(capacities) > 0).all()
    assert Packing(16).capacities(1024) == tuple(range(64, 1025, 64))
