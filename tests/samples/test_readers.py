"""Batches against an oracle that gathers cell by cell."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
import torch

from xsuperres.samples.plan import WindowPlan
from xsuperres.samples.readers import Batch, Block, Mirror, Planes, Position, Reader

SCALE, FIELDS, ROWS, COLUMNS, STATICS = 3, 5, 6, 11, 2


def make_block(fields: int = FIELDS, seed: int = 0, *, missing: bool = False) -> Block:
    rng = np.random.default_rng(seed)
    fine = fields, 1, ROWS * SCALE, COLUMNS * SCALE
    coarse, skip, target = (rng.normal(size=s).astype(np.float32) for s in ((fields, 2, ROWS, COLUMNS), fine, fine))
    coarse[:, 0, 0, 0] = np.arange(fields)  # tells the field
    if missing:
        target[rng.random(fine) < 0.2] = np.nan
    return Block(coarse, skip, target)


def make_planes() -> Planes:
    rng = np.random.default_rng(9)
    fine = rng.normal(size=(STATICS, ROWS * SCALE, COLUMNS * SCALE)).astype(np.float32)
    return Planes(fine, rng.uniform(0.5, 1.5, fine.shape[1:]).astype(np.float32))


PLANS = {
    "regional": WindowPlan(rows=ROWS, parts=[slice(0, COLUMNS)], patch=4),
    "periodic": WindowPlan(rows=ROWS, parts=[slice(0, COLUMNS)], periodic=True, patch=4),
    "parts": WindowPlan(rows=ROWS, parts=[slice(0, 5), slice(5, COLUMNS)], patch=4),
    "full": WindowPlan(rows=ROWS, parts=[slice(0, COLUMNS)]),
    "full periodic": WindowPlan(rows=ROWS, parts=[slice(0, COLUMNS)], periodic=True, margin=2),
    "margin wider than the globe": WindowPlan(rows=ROWS, parts=[slice(0, COLUMNS)], periodic=True, margin=13),
}
every = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())


def make_reader(plan: WindowPlan, blocks: list[Block] | None = None, **options) -> Reader:
    blocks = [make_block()] if blocks is None else blocks
    options = {"scale": SCALE, "batch_size": 2, "seed": 1} | options
    return Reader(blocks.__getitem__, [len(b.coarse) for b in blocks], make_planes(), plan, **options)


def windows_of(plan: WindowPlan, fields: int, epoch: int, *, seed: int = 1) -> np.ndarray:
    """Return the windows that the reader of one block draws, by its documented seed."""
    rng = np.random.default_rng([seed, epoch])
    rng.permutation(1)
    return plan.windows(fields, rng)


def oracle(plan: WindowPlan, block: Block, window: np.ndarray) -> dict[str, np.ndarray]:
    """Gather one sample cell by cell, with indices modulo the domain."""
    field, row, column = (int(n) for n in window)
    height, width = plan.shape
    rows = [row + i for i in range(height)]
    columns = [(column + i) % COLUMNS for i in range(width)]
    fine_rows = [r * SCALE + i for r in rows for i in range(SCALE)]
    fine_columns = [c * SCALE + i for c in columns for i in range(SCALE)]
    fine, planes = np.ix_(fine_rows, fine_columns), make_planes()
    target = block.target[field, 0][fine]
    weight = planes.weight[fine].copy()
    edge = plan.margin * SCALE
    weight[:, :edge] = weight[:, weight.shape[1] - edge :] = 0
    return {
        "coarse": block.coarse[field][:, rows][:, :, columns],
        "skip": block.skip[field, 0][fine],
        "target": np.nan_to_num(target),
        "weight": np.where(np.isfinite(target), weight, 0),
        "fine": planes.fine[(slice(None), *fine)],
        "rows": np.asarray(fine_rows),
        "columns": np.asarray(fine_columns),
    }


def arrays(batch: Batch) -> dict[str, np.ndarray]:
    """Return the samples of a batch, what they share repeated for each."""
    n = len(batch.coarse)
    tensors = {
        "coarse": batch.coarse,
        "skip": batch.skip[:, 0],
        "target": batch.target[:, 0],
        "weight": batch.weight.expand(n, -1, -1, -1)[:, 0],
        "fine": batch.fine.expand(n, -1, -1, -1),
        "rows": batch.cells.rows.expand(n, -1),
        "columns": batch.cells.columns.expand(n, -1),
    }
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def epoch_of(reader: Reader, epoch: int = 0) -> dict[str, np.ndarray]:
    parts = [arrays(batch) for batch in reader.batches(epoch)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@every
@pytest.mark.parametrize("missing", [False, True])
def test_every_sample_is_what_the_oracle_gathers(plan, missing):
    block = make_block(missing=missing)
    reader = make_reader(plan, [block])
    for epoch in (0, 1):
        got, windows = epoch_of(reader, epoch), windows_of(plan, FIELDS, epoch)
        assert len(windows) == len(got["coarse"]) == FIELDS * plan.per_field
        for index, window in enumerate(windows):
            for name, expected in oracle(plan, block, window).items():
                np.testing.assert_array_equal(got[name][index], expected, err_msg=f"{name} of {window}")


@every
def test_the_loss_never_sees_nan(plan):
    for batch in make_reader(plan, [make_block(missing=True)]).batches(0):
        for tensor in (batch.coarse, batch.skip, batch.target, batch.weight):
            assert torch.isfinite(tensor).all()
        assert (batch.weight > 0).any()


def test_margins_have_no_weight_and_the_rest_has_it_all():
    plan = PLANS["full periodic"]
    weight = next(make_reader(plan).batches(0)).weight[0, 0]
    inner = weight[:, 2 * SCALE : -2 * SCALE]
    np.testing.assert_array_equal(inner, make_planes().weight)
    edges = torch.cat([weight[:, : 2 * SCALE], weight[:, -2 * SCALE :]])
    assert (edges == 0).all()


@every
def test_batches_are_reshuffled_and_seeded(plan):
    first, second = epoch_of(make_reader(plan), 0), epoch_of(make_reader(plan), 1)
    assert not all(np.array_equal(first[name], second[name]) for name in ("coarse", "rows", "columns"))
    again, other = epoch_of(make_reader(plan), 0), epoch_of(make_reader(plan, seed=2), 0)
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name])
    assert not np.array_equal(first["coarse"], other["coarse"])


def test_an_epoch_can_be_read_out_of_order():
    """Epoch 3 is epoch 3, whatever was read before: training that goes on gets the batches it would have had."""
    reader = make_reader(PLANS["regional"])
    straight = [epoch_of(reader, epoch) for epoch in range(4)][3]
    np.testing.assert_array_equal(epoch_of(make_reader(PLANS["regional"]), 3)["coarse"], straight["coarse"])


def field_ids(reader: Reader, epoch: int) -> list[float]:
    """Return which fields an epoch of full fields reads, by their first cell."""
    at = reader.plan.margin
    return [float(f) for batch in reader.batches(epoch) for f in batch.coarse[:, 0, 0, at]]


@pytest.mark.parametrize("name", ["full", "full periodic"])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
def test_all_fields_are_used_once_per_epoch(name, batch_size):
    reader = make_reader(PLANS[name], batch_size=batch_size)
    orders = [field_ids(reader, epoch) for epoch in range(6)]
    assert all(sorted(order) == list(range(FIELDS)) for order in orders)
    assert len({tuple(order) for order in orders}) > 2
    assert reader.steps_per_epoch == sum(1 for _ in reader.batches(0)) == -(-FIELDS // batch_size)


def numbered(sizes: list[int]) -> list[Block]:
    blocks, start = [], 0
    for size in sizes:
        block = make_block(size, seed=start)
        block.coarse[:, 0, 0, 0] = start + np.arange(size)
        blocks.append(block)
        start += size
    return blocks


def test_streamed_blocks_are_all_read_once_in_an_order_of_their_own():
    blocks, loads = numbered([3, 1, 4, 2]), []

    def load(index):
        loads.append(index)
        return blocks[index]

    reader = Reader(load, [3, 1, 4, 2], make_planes(), PLANS["full"], scale=SCALE, batch_size=2, seed=0)
    orders = []
    for epoch in range(5):
        loads.clear()
        assert sorted(field_ids(reader, epoch)) == list(range(10))
        assert sorted(loads) == [0, 1, 2, 3], "each block is loaded once per epoch"
        orders.append(tuple(loads))
    assert len(set(orders)) > 1
    assert reader.steps_per_epoch == sum(1 for _ in reader.batches(0)) == 2 + 1 + 2 + 1


def test_the_next_block_is_loaded_while_the_current_one_is_used():
    blocks, loaded = numbered([2, 2, 2]), [threading.Event() for _ in range(3)]
    order: list[int] = []

    def load(index):
        order.append(index)
        loaded[index].set()
        return blocks[index]

    reader = Reader(load, [2, 2, 2], make_planes(), PLANS["full"], scale=SCALE, batch_size=2, seed=0)
    batches = reader.batches(0)
    next(batches)
    expected = np.random.default_rng([0, 0]).permutation(3)
    assert loaded[expected[1]].wait(5), "nothing was prefetched"
    assert len(order) == 2, "no more than one block ahead"
    batches.close()


def test_one_block_is_prepared_once():
    loads = []

    def load(index):
        loads.append(index)
        return make_block()

    reader = Reader(load, [FIELDS], make_planes(), PLANS["periodic"], scale=SCALE, batch_size=2, seed=0)
    for epoch in range(3):
        list(reader.batches(epoch))
    assert loads == [0]


def test_a_block_that_fails_to_load_says_so():
    def load(index):
        raise OSError("the disk is gone")

    reader = Reader(load, [2, 2], make_planes(), PLANS["full"], scale=SCALE, batch_size=2, seed=0)
    with pytest.raises(OSError, match="the disk is gone"):
        list(reader.batches(0))


@pytest.mark.parametrize("flip", [("x",), ("y",), ("x", "y")])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", ["regional", "periodic", "full"])
def test_flips_mirror_all_arrays_alike(flip, signed, name):
    """Each sample is the oracle's, mirrored in one way, the same for coarse, skip, target, static planes, weights."""
    plan, block = PLANS[name], make_block(8, missing=True)
    got = epoch_of(make_reader(plan, [block], mirror=Mirror(flip, {flip[0]: ((0, 1), (0,))} if signed else {})))
    rng = np.random.default_rng([1, 0])
    rng.permutation(1)
    windows = plan.windows(8, rng)
    ways = [()] + [(a,) for a in flip] + ([flip] if len(flip) > 1 else [])
    used = set()
    for index, window in enumerate(windows):
        expected = oracle(plan, block, window)
        matches = [way for way in ways if agrees(got, index, expected, way, signed_axis=flip[0] if signed else None)]
        assert len(matches) == 1, f"sample {index} is no mirrored window"
        used.add(matches[0])
    assert used == set(ways), "each way occurs"


def agrees(got, index, expected, way, *, signed_axis) -> bool:
    sign = -1.0 if signed_axis in way else 1.0
    for name in ("coarse", "skip", "target", "fine", "weight"):
        values = expected[name]
        for axis in way:
            values = np.flip(values, {"y": -2, "x": -1}[axis])
        values = values * sign if name in ("coarse", "skip", "target") else values
        if not np.array_equal(got[name][index], values):
            return False
    return True


def test_a_mask_channel_has_no_sign():
    """The second coarse channel says which cells are valid: mirrored, it still does."""
    block = make_block(40)
    block.coarse[:, 1] = 1.0
    got = epoch_of(make_reader(PLANS["full"], [block], mirror=Mirror(flip=("x",), sign={"x": ((0,), (0,))})))
    assert (got["coarse"][:, 1] == 1.0).all()
    assert (got["coarse"][:, 0] != got["coarse"][:, 1]).any()
    values = np.sort(np.abs(got["skip"]).sum(axis=(1, 2)))
    np.testing.assert_allclose(values, np.sort(np.abs(block.skip[:, 0]).sum(axis=(1, 2))), rtol=1e-5)


def test_about_half_of_the_samples_are_mirrored():
    block = make_block(200)
    plan = PLANS["full"]
    got = epoch_of(make_reader(plan, [block], mirror=Mirror(("x",)), batch_size=16))
    untouched = np.isin(got["coarse"][:, 0, 0, 0], np.arange(200.0))
    assert 70 < untouched.sum() < 130


def test_flips_leave_the_block_as_it_is():
    block = make_block()
    before = [a.copy() for a in (block.coarse, block.skip, block.target)]
    list(make_reader(PLANS["full"], [block], mirror=Mirror(("x", "y"), {"x": ((0, 1), (0,))})).batches(0))
    for old, new in zip(before, (block.coarse, block.skip, block.target), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_batch_shares_what_all_its_full_fields_have_in_common():
    batch = next(make_reader(PLANS["full"]).batches(0))
    assert len(batch.coarse) == 2 and len(batch.fine) == 1 and len(batch.cells.rows) == 1
    missing = next(make_reader(PLANS["full"], [make_block(missing=True)]).batches(0))
    assert len(missing.weight) == 2, "what is missing differs from field to field"


def test_no_fine_channels_is_none():
    planes = Planes(np.zeros((0, ROWS * SCALE, COLUMNS * SCALE), np.float32), make_planes().weight)
    block = make_block()
    reader = Reader(lambda i: block, [FIELDS], planes, PLANS["periodic"], scale=SCALE, batch_size=2, seed=0)
    batch = next(reader.batches(0))
    assert batch.fine is None and batch.to(torch.device("cpu")).fine is None


def test_batches_move_to_a_device_in_channels_last():
    batch = next(make_reader(PLANS["regional"]).batches(0))
    moved = batch.to(torch.device("cpu"))
    assert moved.coarse.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(moved.fine, batch.fine)
    np.testing.assert_array_equal(moved.cells.columns, batch.cells.columns)


# positions


@pytest.mark.parametrize("counts", [[7], [3, 5, 1, 4]])
@pytest.mark.parametrize("flip", [(), ("x", "y")])
def test_a_stream_begun_anywhere_goes_on_as_the_whole_one(counts, flip):
    """Epoch after epoch, each in its own order; flips are random numbers of the same generator."""
    blocks = [make_block(count, seed) for seed, count in enumerate(counts)]

    def reader() -> Reader:
        return make_reader(PLANS["regional"], blocks, mirror=Mirror(flip))

    per_epoch = reader().steps_per_epoch
    whole = [
        (arrays(batch), position)
        for batch, position in itertools.islice(reader().stream(Position()), 2 * per_epoch + 3)
    ]
    positions = [position for _, position in whole]
    assert positions[0] == Position(0, 1) and positions[-1] == Position(2, 3)
    assert positions[per_epoch - 1 : per_epoch + 1] == [Position(0, per_epoch), Position(1, 1)]
    for start in range(len(whole) - 1):
        batch, position = next(reader().stream(positions[start]))
        assert position == positions[start + 1]
        for name, values in arrays(batch).items():
            np.testing.assert_array_equal(values, whole[start + 1][0][name], err_msg=f"{name} after {start}")


def test_blocks_whose_batches_are_used_are_not_read():
    blocks, read = [make_block(4, seed) for seed in range(5)], []
    reader = make_reader(PLANS["full"], blocks)
    load = reader.load
    reader.load = lambda index: (read.append(int(index)), load(index))[1]
    next(reader.stream(Position(0, 7)))  # of 10 batches, two a block
    order = np.random.default_rng([1, 0]).permutation(5)
    assert read[0] == order[3] and set(read) <= set(order[3:].tolist())
    read.clear()
    list(reader.batches(0, 10))
    assert not read
