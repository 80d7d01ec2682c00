"""Exit pictures veil the tokens that left and no others; titles and bars tell the right numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg import exit_pictures as ep
from jaxseg import viz
from jaxseg.data.classes import make_classes

CLASSES = make_classes(["road", "sky"], [(200, 0, 0), (0, 0, 200)])
STAGES = ["first", "second"]
RNG = np.random.default_rng(0)


def a_scene(height, width, patch, exits):
    image = RNG.integers(0, 256, (height, width, 3), np.uint8)
    left = RNG.integers(-1, exits, (-(-height // patch), -(-width // patch)))
    return image, left


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 40), st.sampled_from([4, 7, 16]), st.sampled_from([0, 1, 3])
)
def test_exactly_the_tokens_that_left_are_veiled(height, width, patch, exits):
    """Also where the image ends within a token, and for an image smaller than one."""
    image, left = a_scene(height, width, patch, exits)
    before = image.copy()
    shown = ep.exit_map(image, left, [f"exit {k}" for k in range(exits)], patch)
    assert shown.shape == image.shape and shown.dtype == np.uint8
    np.testing.assert_array_equal(image, before)
    for (row, column), stage in np.ndenumerate(left):
        token = np.s_[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
        changed = (shown[token] != image[token]).any(axis=2)
        assert changed.mean() > 0.9 if stage >= 0 else not changed.any()


def test_later_exits_are_darker_and_hide_more():
    black, white = np.zeros((16, 48, 3), np.uint8), np.full((16, 48, 3), 255, np.uint8)
    left = np.array([[0, 1, 2]])
    over = [ep.exit_map(image, left, "abc", 16)[8, 8::16].astype(int) for image in (black, white)]
    luminance = over[1] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) < -20).all()
    seen_through = (over[1] - over[0]).mean(axis=1)
    assert (np.diff(seen_through) < 0).all() and (seen_through > 60).all()


def test_one_exit_has_the_colour_of_the_first_of_several():
    image, left = np.full((16, 32, 3), 90, np.uint8), np.array([[0, 0]])
    alone, first = (ep.exit_map(image, left, stages, 16) for stages in (["a"], STAGES))
    np.testing.assert_array_equal(alone, first)


def test_lines_part_exits_and_stay_within_tokens_that_left():
    image = np.full((48, 48, 3), 120, np.uint8)
    left = np.array([[0, 0, 1], [0, 0, 1], [-1, -1, 1]])
    shown = ep.exit_map(image, left, STAGES, 16)
    plain, other = shown[8, 8], shown[8, 40]
    lines = (shown != 120).any(axis=2) & (shown != plain).any(axis=2) & (shown != other).any(axis=2)
    assert lines[:32, 31].all() and lines[:, 32].all() and lines[31, :32].all()
    assert lines.sum() == 32 + 48 + 31  # nothing between equals, nor in the tokens that stayed
    assert shown[8, 31].sum() < plain.sum() and shown[8, 32].sum() < other.sum()


def test_lines_are_wider_on_large_images():
    image, left = np.full((16, 1600, 3), 120, np.uint8), np.full((1, 100), -1)
    left[:, :50] = 0
    shown = ep.exit_map(image, left, ["a"], 16)
    assert (shown[:, :800] != shown[0, 0]).any(axis=2).sum() == 2 * 16


def test_maps_that_do_not_fit_are_refused():
    image = np.zeros((33, 32, 3), np.uint8)
    with pytest.raises(ValueError, match=r"33x32 has \(3, 2\) tokens, but left \(2, 2\)"):
        ep.exit_map(image, np.zeros((2, 2), int), STAGES, 16)
    for wrong in (2, -2):
        with pytest.raises(ValueError, match="'first', 'second'"):
            ep.exit_map(image, np.full((3, 2), wrong), STAGES, 16)


def test_titles_say_the_shares():
    left = np.array([0] * 38 + [1] * 12 + [-1] * 50).reshape(10, 10)
    assert ep.exit_titles(left, [6, 8]) == [
        "layer 6: 38 % left",
        "layer 8: 12 % left, 50 % in all",
    ]
    assert ep.exit_titles(np.full((2, 2), 2), [3, 6, 9]) == [
        "layer 3: 0 % left",
        "layer 6: 0 % left, 0 % in all",
        "layer 9: 100 % left, 100 % in all",
    ]
    assert ep.exit_titles(left, []) == []


def cells(page, width, count):
    """The page's two rows of cells, for panels of a width that is not scaled."""
    assert page.dtype == np.uint8 and page.shape[1:] == (count * (width + 16), 3)
    below = len(page) // 2
    return [np.split(row, count, axis=1) for row in (page[:below], page[below:])]


def test_panels_of_two_exits():
    height, width, patch = 150, 300, 16
    image, left = a_scene(height, width, patch, 2)
    label = RNG.integers(0, 2, (height, width), np.uint8)
    label[:20] = 255
    predictions = [RNG.integers(0, 2, (height, width), np.uint8) for _ in range(3)]
    page = ep.panels(image, label, predictions, left, [6, 8], CLASSES, patch)
    top, bottom = cells(page, width, 4)
    only_first = np.where(left == 0, 0, -1)
    titles = ep.exit_titles(left, [6, 8])
    for cell, title, panel in (
        (top[0], "image", image),
        (top[1], titles[0], ep.exit_map(image, only_first, STAGES, patch)),
        (top[2], titles[1], ep.exit_map(image, left, STAGES, patch)),
        (top[3], "label, hatched where ignored", viz.overlay(image, label, CLASSES, 0.85)),
        (bottom[3], "final prediction", viz.overlay(image, predictions[2], CLASSES, 0.85)),
    ):
        np.testing.assert_array_equal(cell, viz.sheet([[panel]], [title]))
    for k, layer in enumerate([6, 8]):
        opaque = viz.overlay(image, predictions[k], CLASSES, 0.85)
        title = viz.sheet([[opaque]], [f"prediction at layer {layer}"])[:26]
        np.testing.assert_array_equal(bottom[1 + k][:26], title)
        panel = bottom[1 + k][26 : 26 + height, 8 : 8 + width]
        gone = np.kron((left >= 0) & (left <= k), np.ones((patch, patch), bool))[:height, :width]
        np.testing.assert_array_equal(panel[gone], opaque[gone])
        assert panel[~gone].min() >= 0.7 * 255 > opaque[~gone].min()
    legend = {tuple(rgb) for rgb in bottom[0].reshape(-1, 3).tolist()}
    assert legend >= {*CLASSES.colours, *(tuple(c) for c in ep._scale(2)[0].astype(int).tolist())}


def test_exits_are_drawn_over_outlined_tokens():
    image, left = a_scene(150, 300, 16, 2)
    label = RNG.integers(0, 2, (150, 300), np.uint8)
    lined = 255 - image
    page = ep.panels(image, None, [label] * 3, left, [6, 8], CLASSES, 16, lined)
    top, bottom = cells(page, 300, 4)
    over = ep.exit_map(lined, left, STAGES, 16)
    for cell, title, panel in (
        (top[0], "image", image),
        (top[2], ep.exit_titles(left, [6, 8])[1], over),
        (bottom[3], "final prediction", viz.overlay(image, label, CLASSES, 0.85)),
    ):
        np.testing.assert_array_equal(cell, viz.sheet([[panel]], [title]))


def test_legend_names_only_what_is_shown():
    image, left = a_scene(32, 300, 16, 1)
    sky = np.ones((32, 300), np.uint8)
    pages = [ep.panels(image, None, [sky, last], left, [6], CLASSES, 16) for last in (sky, 0 * sky)]
    road = [(page[:, :300] == (200, 0, 0)).all(axis=2).any() for page in pages]
    assert road == [False, True]


def test_panels_without_label_or_exits():
    image, left = a_scene(150, 300, 16, 0)
    label = np.zeros((150, 300), np.uint8)
    top, bottom = cells(ep.panels(image, None, [label], left, [], CLASSES, 16), 300, 2)
    np.testing.assert_array_equal(top[0], viz.sheet([[image]], ["image"]))
    assert (top[1] == 255).all()
    painted = viz.overlay(image, label, CLASSES, 0.85)
    np.testing.assert_array_equal(bottom[1], viz.sheet([[painted]], ["final prediction"]))


def test_panels_where_nothing_is_a_class():
    image, left = a_scene(150, 300, 16, 0)
    nothing = np.full((150, 300), 255, np.uint8)
    page = ep.panels(image, nothing, [nothing], left, [], CLASSES, 16)
    _, bottom = cells(page, 300, 2)
    assert (bottom[0] == 255).all() and (bottom[1] != 255).any()


def test_a_label_without_ignored_pixels_is_titled_so():
    image, left = a_scene(150, 300, 16, 0)
    label = np.zeros((150, 300), np.uint8)
    top, _ = cells(ep.panels(image, label, [label], left, [], CLASSES, 16), 300, 2)
    np.testing.assert_array_equal(top[1][:26], viz.sheet([[image]], ["label"])[:26])


@pytest.mark.parametrize("size, shown", [((20, 70), (100, 350)), ((300, 1300), (148, 640))])
def test_panels_have_legible_widths(size, shown):
    image, left = a_scene(*size, 16, 1)
    label = np.zeros(size, np.uint8)
    page = ep.panels(image, label, [label, label], left, [6], CLASSES, 16)
    assert page.shape[1] == 3 * (shown[1] + 16)
    tall = np.flatnonzero((page[:, 4 + shown[1]] != 255).any(axis=1))
    assert tall.min() == 26 and tall[tall < 26 + shown[0] + 16].max() == 25 + shown[0]


def test_predictions_must_fit_the_exits():
    image, left = a_scene(16, 16, 16, 1)
    with pytest.raises(ValueError, match="1 predictions for 1 exits"):
        ep.panels(image, None, [np.zeros((16, 16), np.uint8)], left, [6], CLASSES, 16)


@pytest.mark.parametrize("layers", [[], [6], [6, 8]])
def test_tokens_leave_at_exits_that_there_are(layers):
    image, label = np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.uint8)
    left = np.full((1, 1), len(layers))
    with pytest.raises(ValueError, match="but the stages are"):
        ep.panels(image, label, [label] * (len(layers) + 1), left, layers, CLASSES, 16)


def test_bin_counts():
    values = np.float32([0, 0.1, 0.3, 0.5, 0.99, 1, 1.0000001])
    assert ep.bin_counts(values, 4).tolist() == [2, 1, 1, 3]
    assert ep.bin_counts(np.zeros(0), 3).tolist() == [0, 0, 0]


def test_bar_heights_are_proportional():
    assert ep.bar_heights(np.array([0, 10, 25, 50]), 100).tolist() == [0, 20, 50, 100]
    assert ep.bar_heights(np.array([1, 100_000]), 100).tolist() == [1, 100]
    assert ep.bar_heights(np.array([0, 0]), 100).tolist() == [0, 0]


@given(st.integers(0, 10**9))
@settings(max_examples=200, deadline=None)
def test_count_ticks(most):
    ticks = ep.count_ticks(most)
    assert ticks[0] == 0 and ticks[-1] <= most and len(ticks) <= 6
    assert len(ticks) >= min(3, most + 1)
    assert len(set(np.diff(ticks))) <= 1
    assert most == 0 or str(ticks[1]).rstrip("0") in ("1", "2", "5")


def area(page, colour):
    return (page == colour).all(axis=2).sum()


def test_bars_beyond_the_threshold_stand_out():
    values = np.repeat([0.505, 0.975], [30, 90])
    both = ep.difficulty_histogram([values], [6], [0.9])
    assert area(both, ep._ACCENT) == 5 * 130
    assert area(both, ep._PLAIN) == 5 * round(130 / 3)
    none = ep.difficulty_histogram([values], [6], [1.1])
    assert area(none, ep._ACCENT) == 0
    assert area(none, ep._PLAIN) == area(both, ep._PLAIN) + area(both, ep._ACCENT)
    split = ep.difficulty_histogram([values], [6], [0.975])
    assert 0 < area(split, ep._ACCENT) < 4 * 130
    columns = [np.flatnonzero((split == c).all(axis=2).any(0)) for c in (ep._PLAIN, ep._ACCENT)]
    assert columns[0].max() < columns[1].min()


def test_difficulty_titles():
    values = np.repeat(np.float32([0.2, 0.95, 0.96]), [600, 300, 300])
    title = "layer 6: 25 % of 1 200 tokens above the threshold"
    assert ep.difficulty_title(values, 6, 0.95) == title  # being equal is not above
    assert ep.difficulty_title(values[:0], 8, 0.95) == "layer 8: no tokens graded"


def test_shares_titles():
    assert ep.shares_title(
        np.array([0.25, 0.5, 1]), 6
    ) == "after layer 6: 25 % to 100 % inside, " + ("over 3 images")
    assert ep.shares_title(np.zeros(0), 8) == "after layer 8: no images"


def test_shares_histogram_has_a_row_per_exit():
    kept = np.array([[0.99, 0.22], [0.98, 0.22], [0.97, 0.52]])
    page = ep.shares_histogram(kept, [6, 8])
    assert page.dtype == np.uint8
    one, other = page[: len(page) // 2], page[len(page) // 2 :]
    bar = ep._PLOT_WIDTH // 20 - 1
    assert area(one, ep._ACCENT) == (bar - 1) * 130  # the mean's line covers a column
    assert area(other, ep._ACCENT) == bar * (130 + 65)


@pytest.mark.parametrize(
    "page, position",
    [
        (lambda: ep.shares_histogram(np.array([[0.0], [0.5]]), [6]), 0.25),
        (lambda: ep.difficulty_histogram([np.array([0.1])], [6], [0.4]), 0.4),
        (lambda: ep.difficulty_histogram([np.array([0.1])], [6], [1.5]), 1.0),
    ],
)
def test_mean_and_threshold_are_marked(page, position):
    dark = (page() == ep._INK).all(axis=2).sum(axis=0)
    assert dark.argmax() == ep._MARGIN_LEFT + round(ep._PLOT_WIDTH * position)
    assert dark.max() > 130


@pytest.mark.parametrize(
    "page",
    [
        lambda: ep.difficulty_histogram([], [], []),
        lambda: ep.difficulty_histogram([np.zeros(0)], [6], [0.95]),
        lambda: ep.difficulty_histogram([np.full(9, 0.2)], [6], [0.95]),
        lambda: ep.shares_histogram(np.zeros((5, 0)), []),
        lambda: ep.shares_histogram(np.zeros((0, 2)), [6, 8]),
    ],
)
def test_histograms_of_nothing(page):
    drawn = page()
    assert drawn.dtype == np.uint8 and drawn.shape[2] == 3
    assert area(drawn, ep._ACCENT) == 0


def test_rows_must_fit_the_layers():
    with pytest.raises(ValueError):
        ep.difficulty_histogram([np.zeros(3)], [6, 8], [0.9, 0.9])
    with pytest.raises(ValueError):
        ep.shares_histogram(np.zeros((3, 1)), [6, 8])
