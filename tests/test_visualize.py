"""Pictures of tokens: groups, the trace they come from, the page and the figure."""

import colorsys
import html.parser
import json
import re
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import diffrate_jax as dr
from diffrate_jax import visualize
from diffrate_jax.depiction import BATCH, Depicter
from diffrate_jax.depiction.figure import filled, token_figure
from diffrate_jax.depiction.groups import edge_colour, group_patches, inset, outline
from diffrate_jax.depiction.groups import patch_colours as colours_of
from diffrate_jax.depiction.page import in_script, token_page
from diffrate_jax.depiction.trace import PRUNED, trace_blocks
from diffrate_jax.depiction.views import Picture, best_guesses, views_of
from diffrate_jax.model_folder import load, save_model
from diffrate_jax.pictures import to_png
from diffrate_jax.preprocess import published

SIDE, PIXELS = 4, 3
VIT = {
    "image_size": 16, "patch_size": 4, "width": 16, "depth": 3, "num_heads": 2,
    "num_classes": 5,
}  # fmt: skip
CAFORMER = {
    "depths": (1, 1, 3, 1), "widths": (32, 32, 64, 64), "num_classes": 7,
    "image_size": 64,
}  # fmt: skip
# Blocks that do nothing, prune and merge, and prune again.
SCHEDULE = dr.Schedule([17, 14, 9], [17, 11, 9])
# What a page must not take for markup.
LABELS = [
    "</script><script>window.hacked = 1</script>",
    "b&b",
    "<!--",
    "ü",
    "two words",
]


@st.composite
def owners(draw) -> np.ndarray:
    """Draws which of a few tokens each patch ended in."""
    side = draw(st.integers(1, 6))
    count = side * side
    tokens = st.integers(PRUNED, draw(st.integers(0, count - 1)))
    return np.array(draw(st.lists(tokens, min_size=count, max_size=count)))


def image_of(side: int, seed: int = 0) -> np.ndarray:
    """Returns noise in bytes, `PIXELS` to a patch."""
    shape = (side * PIXELS, side * PIXELS, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def winding(loops, x: float, y: float) -> int:
    """Returns how often loops go around a point: their sides to the right of it."""
    count = 0
    for loop in loops:
        for (x0, y0), (x1, y1) in zip(loop, (*loop[1:], loop[0]), strict=True):
            if x0 == x1 > x and min(y0, y1) < y < max(y0, y1):
                count += 1 if y1 > y0 else -1
    return count


def inside(loops, side: int) -> np.ndarray:
    """Returns how often loops go around each patch [Y, X]."""
    middle = np.arange(side) + 0.5
    return np.array([[winding(loops, x, y) for x in middle] for y in middle])


def length(loops) -> float:
    """Returns the length of all sides."""
    return sum(
        abs(x1 - x0) + abs(y1 - y0)
        for loop in loops
        for (x0, y0), (x1, y1) in zip(loop, (*loop[1:], loop[0]), strict=True)
    )


@given(owners(), st.integers(0, 9))
def test_every_patch_is_in_one_group_or_pruned(owner_P, seed):
    side = round(len(owner_P) ** 0.5)
    image_YXC = image_of(side, seed)
    size_K = np.bincount(owner_P[owner_P >= 0], minlength=len(owner_P))
    groups = group_patches(owner_P, size_K, colours_of(image_YXC, side))
    members = [patch for group in groups for patch in group.patches]
    assert sorted(members) == np.flatnonzero(owner_P != PRUNED).tolist()
    assert sum(group.size for group in groups) == len(members)
    for group in groups:
        assert len({*owner_P[list(group.patches)]}) == 1
        assert group.size == len(group.patches)
        pixels = [
            image_YXC[y * PIXELS : (y + 1) * PIXELS, x * PIXELS : (x + 1) * PIXELS]
            for y, x in (divmod(patch, side) for patch in group.patches)
        ]
        mean_C = np.concatenate(pixels).reshape(-1, 3).mean(axis=0)
        np.testing.assert_allclose(group.colour, mean_C, atol=0.5 + 1e-9)


@given(*[st.integers(0, 40)] * 2, *[st.integers(-3, 3)] * 2)
def test_outlines_nearby_differ_in_colour(y, x, down, right):
    hues = [
        colorsys.rgb_to_hls(*np.divide(edge_colour(*place), 255))[0]
        for place in ((y, x), (y + down, x + right))
    ]
    apart = abs((hues[0] - hues[1] + 0.5) % 1 - 0.5)
    steps = max(abs(down), abs(right))
    # What is left of 3/16 and 1/16 of a turn in bytes.
    assert apart >= {0: 0, 1: 0.18}.get(steps, 0.055)


@given(*[st.integers(0, 40)] * 2, st.sampled_from([(0, 4), (4, 0), (4, -4), (8, 0)]))
def test_outlines_of_one_hue_differ_in_lightness(y, x, step):
    places = (y, x), (y + step[0], x + step[1])
    ends = [(min(colour), max(colour)) for colour in (edge_colour(*p) for p in places)]
    assert abs(sum(ends[0]) - sum(ends[1])) / 2 > 0.1 * 255


@given(owners())
def test_outlines_enclose_exactly_the_group(owner_P):
    side = round(len(owner_P) ** 0.5)
    is_in_YX = (owner_P == owner_P[0]).reshape(side, side)
    loops = outline(is_in_YX)
    np.testing.assert_array_equal(inside(loops, side), is_in_YX)
    padded = np.pad(is_in_YX, 1).astype(int)
    borders = np.abs(np.diff(padded, axis=0)).sum() + np.abs(np.diff(padded)).sum()
    assert length(loops) == borders
    # What is drawn within the patches encloses them too, and crosses no other.
    moved = [inset(loop, 0.05) for loop in loops]
    np.testing.assert_array_equal(inside(moved, side), is_in_YX)
    for loop, own in zip(loops, moved, strict=True):
        for (x, _), (new_x, new_y) in zip(loop, own, strict=True):
            assert abs(new_x - x) == pytest.approx(0.05)
            assert is_in_YX[int(new_y), int(new_x)]


def test_an_outline_written_out():
    diagonal = np.eye(2, dtype=bool)
    assert outline(diagonal) == (
        ((0, 0), (1, 0), (1, 1), (0, 1)),
        ((1, 1), (2, 1), (2, 2), (1, 2)),
    )
    ring = np.ones((3, 3), bool)
    ring[1, 1] = False
    hole = ((1, 1), (1, 2), (2, 2), (2, 1))
    assert outline(ring) == (((0, 0), (3, 0), (3, 3), (0, 3)), hole)
    assert inset(hole, 0.25)[0] == (0.75, 0.75)


@given(st.recursive(st.text(), lambda inner: st.dictionaries(st.text(), inner)))
def test_any_text_is_safe_in_a_script(record):
    text = in_script(record)
    assert not set("<>&") & set(text)
    assert json.loads(text) == record


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=9))
def test_guesses_are_the_most_probable(logits):
    guesses = best_guesses(np.array(logits), [])
    chances = np.exp(logits) / np.exp(logits).sum()
    assert [guess.probability for guess in guesses] == pytest.approx(
        sorted(chances, reverse=True)[:3]
    )
    assert guesses[0].label == f"class {np.argmax(logits)}"


@pytest.fixture(scope="module")
def vit(cache):
    """A small model, and weights large enough for tokens to differ."""
    model = dr.create_model("vit", **VIT)
    return model, jax.tree.map(lambda w: w * 8.0, dr.init_weights(model, 1))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Noise of three colours."""
    return np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "compression",
    [dr.Gathered(SCHEDULE), pytest.param(dr.ToMe(3), marks=pytest.mark.slow), None],
)
def test_the_trace_is_of_the_forward_pass(vit, images, compression):
    logits, blocks = trace_blocks(*vit, images, compression)
    output = dr.forward(*vit, images, compression, trace=True)
    np.testing.assert_allclose(logits, output.logits, atol=2e-6)
    owner_BO, origin_BKO = blocks[-1].owner, output.tokens.origin
    is_left_BO = origin_BKO.sum(axis=1)
    np.testing.assert_array_equal(owner_BO != PRUNED, is_left_BO == 1)
    np.testing.assert_array_equal(
        np.take_along_axis(origin_BKO, np.maximum(owner_BO, 0)[:, None], 1)[:, 0],
        is_left_BO,
    )
    np.testing.assert_array_equal(blocks[-1].size, output.tokens.size)
    for block in blocks:
        np.testing.assert_allclose(block.importance.sum(axis=1), 1.0, atol=1e-5)


def test_the_trace_of_a_block_is_that_of_a_schedule_cut_off_behind_it(vit, images):
    _, blocks = trace_blocks(*vit, images, dr.Gathered(SCHEDULE))
    for block, traced in enumerate(blocks):
        ahead = slice(0, block + 1)
        rest = (17,) * (2 - block)
        cut = dr.Schedule(SCHEDULE.prune[ahead] + rest, SCHEDULE.merge[ahead] + rest)
        tokens = dr.forward(*vit, images, dr.Gathered(cut), trace=True).tokens
        owned_BKO = np.arange(tokens.x.shape[1])[:, None] == traced.owner[:, None]
        np.testing.assert_array_equal(owned_BKO, tokens.origin)
        np.testing.assert_allclose(traced.size, tokens.size, rtol=1e-6)


def test_pruned_are_those_of_least_importance(vit, images):
    _, blocks = trace_blocks(*vit, images, dr.Gathered(SCHEDULE))
    noise = np.zeros((16, 16, 3), np.uint8)
    for row in range(len(images)):
        own = jax.tree.map(lambda values, row=row: np.asarray(values[row]), blocks)
        views, pruned_P = views_of(own, noise, 1)
        assert {*pruned_P} == {PRUNED, 1, 2}
        for view in views[1:]:
            now_P = pruned_P == view.block
            later_P = (pruned_P == PRUNED) | (pruned_P > view.block)
            most = view.importance_P[now_P].max()
            assert most <= view.importance_P[later_P].min()
            gone_P = (pruned_P != PRUNED) & (pruned_P < view.block)
            np.testing.assert_array_equal(np.isnan(view.importance_P), gone_P)
        for view in views:
            left = SCHEDULE.steps(17)[view.block][2]
            assert len(view.groups) == left - 1
            kept_P = (pruned_P == PRUNED) | (pruned_P > view.block)
            assert sum(len(group.patches) for group in view.groups) == kept_P.sum()


@pytest.mark.slow
def test_caformer_shows_its_third_stage(cache):
    model = dr.create_model("caformer", **CAFORMER)
    schedule = dr.Schedule(None, (16, 10, 10, 4))
    depicter = Depicter(
        model, dr.init_weights(model), dr.Gathered(schedule), published(64)
    )
    (picture,) = depicter.pictures({"noise": np.zeros((64, 64, 3), np.uint8)})
    assert picture.side == 4
    assert [len(view.groups) for view in picture.views] == [16, 10, 10]
    assert len(picture.dense) == len(picture.compressed) == 3
    facts = visualize.facts_of(model, "caformer", dr.Gathered(schedule), "mine")
    assert len(facts.steps) == 3
    assert "all attention" in token_page([picture], facts)


@pytest.fixture(scope="module")
def made(tmp_path_factory, vit) -> dict[str, Path]:
    """A model folder, a schedule, labels and three photos."""
    folder = tmp_path_factory.mktemp("visualize")
    save_model(folder / "model", *vit)
    SCHEDULE.save(folder / "schedule.json")
    (folder / "labels.txt").write_text("\n".join(LABELS), encoding="utf-8")
    (folder / "photos/deep").mkdir(parents=True)
    for name, seed in {"a": 1, "b, too": 2, "deep/c": 3}.items():
        photo = Image.fromarray(image_of(8, seed)).resize((40, 30))
        photo.save(folder / f"photos/{name}.png")
    return {path.stem: path for path in folder.iterdir()} | {"here": folder}


def run(text: str, paths: dict[str, Path]) -> int:
    """Runs the program with flags in which "{name}" stands for a path."""
    common = "--weights={model} --schedule={schedule} --preprocess=published"
    words = f"{common} {text}".split()
    return visualize.main(["visualize", *(word.format_map(paths) for word in words)])


@pytest.fixture(scope="module")
def page_file(made) -> Path:
    """The page of all photos."""
    out = made["here"] / "out/page.html"
    flags = f"--image={{photos}} --labels={{labels}} --out={out}"
    assert run(flags, made) == 0
    return out


@pytest.fixture(scope="module")
def pictures(made) -> list[Picture]:
    """What the page must show, in its order."""
    model, params = load(made["model"])
    files = visualize.image_files([str(made["photos"])])
    preprocess = published(16)
    images = {
        name: visualize.read_image(path, preprocess) for name, path in files.items()
    }
    compression = dr.Gathered(SCHEDULE)
    depicter = Depicter(model, params, compression, preprocess, LABELS)
    return list(depicter.pictures(images))


def test_files_are_named_one_by_one_or_by_folder(made):
    photos = made["photos"]
    one, two = photos / "a.png", photos / "b, too.png"
    assert visualize.image_files([str(two), f"{one},{one}"]) == {
        "b, too": two,
        "a": one,
    }
    assert [*visualize.image_files([str(photos)])] == ["a", "b, too", "deep/c"]


def test_images_of_one_name_are_told_apart(tmp_path):
    places = ["x/cat.png", "y/cat.png", "y/cat.jpg"]
    for place in places:
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(b"")
    paths = [str(tmp_path / place) for place in places]
    assert [*visualize.image_files(paths[:2])] == ["x/cat", "y/cat"]
    assert [*visualize.image_files(paths)] == paths
    assert len(visualize.image_files([str(tmp_path)])) == 3


def test_a_list_of_images_may_be_longer_than_a_name(made):
    one, two = made["photos"] / "a.png", made["photos"] / "b, too.png"
    assert [*visualize.image_files([",".join([str(one)] * 500), str(two)])] == [
        *("a", "b, too")
    ]
    with pytest.raises(dr.UserError, match="no image 'xxx"):
        visualize.image_files(["x" * 300])


@pytest.mark.parametrize("text", [",", "{0},,{0}", "{0},", ",{0}", ""])
def test_a_comma_too_many_names_no_folder(made, monkeypatch, text):
    monkeypatch.chdir(made["photos"])
    with pytest.raises(dr.UserError, match="one comma between two .* leave out the"):
        visualize.image_files([text.format(made["photos"] / "a.png")])


def test_a_figure_holds_fewer_images_than_a_page(tmp_path, made, capsys):
    for number in range(41):
        (tmp_path / f"{number}.png").write_bytes(b"")
    assert run(f"--image={tmp_path} --out={tmp_path}/out.png", made) == 2
    said = capsys.readouterr().err
    assert "holds at most 40 images, got 41; let --out end in .html, or name" in said
    with pytest.raises(dr.UserError, match="at most 400 images, got 401; name fewer"):
        visualize.check_count(401, ".html")


def test_more_images_than_a_batch(made, pictures):
    model, params = load(made["model"])
    image_YXC = pictures[0].image_YXC
    depicter = Depicter(model, params, dr.Gathered(SCHEDULE), published(16), LABELS)
    many = list(depicter.pictures({str(n): image_YXC for n in range(BATCH + 1)}))
    assert len(many) == BATCH + 1
    assert many[-1].views[-1].groups == pictures[0].views[-1].groups


class Parts(html.parser.HTMLParser):
    """Collects the elements of a page, and what refers to somewhere else."""

    def __init__(self) -> None:
        super().__init__()
        self.tags, self.places = [], []

    def handle_starttag(self, tag, attrs) -> None:
        """Notes an element."""
        self.tags.append(tag)
        self.places += [value for name, value in attrs if name in ("src", "href")]


def test_the_page_is_one_file(page_file):
    text = page_file.read_text("utf-8")
    parts = Parts()
    parts.feed(text)
    assert parts.tags.count("script") == 2
    assert parts.places == ["data:,"]
    assert not re.findall(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", text)


def test_the_same_again_is_the_same_to_the_byte(page_file, made):
    out = made["here"] / "again.html"
    flags = f"--image={{photos}} --labels={{labels}} --out={out}"
    assert run(flags, made) == 0
    assert out.read_bytes() == page_file.read_bytes()


def centre(page, card: int, patch: int) -> tuple[float, float]:
    """Returns where the middle of a patch is in the window."""
    box = page.locator("article > svg").nth(card).bounding_box()
    y, x = divmod(patch, SIDE)
    unit = box["width"] / SIDE
    return box["x"] + (x + 0.5) * unit, box["y"] + (y + 0.5) * unit


def drawn(page, card: int) -> dict[str, int]:
    """Returns how many patches or groups of each kind a picture shows."""
    layer = page.locator("article").nth(card)
    count = lambda kind: int(layer.locator(kind).get_attribute("data-count"))  # noqa: E731
    return {
        "groups": layer.locator(".merged-group").count(),
        "now": count(".now-gone"),
        "before": count(".gone"),
    }


def expected(picture: Picture, block: int) -> dict[str, int]:
    """Returns what `drawn` must find after a block."""
    merged = [g for g in picture.views[block].groups if len(g.patches) > 1]
    gone_P = (picture.pruned_P != PRUNED) & (picture.pruned_P < block)
    now_P = picture.pruned_P == block
    return {"groups": len(merged), "now": now_P.sum(), "before": gone_P.sum()}


def test_the_slider_goes_from_block_to_block(page_file, pictures, open_page):
    page = open_page(page_file)
    slider, said = page.locator("#slider"), page.locator(".now")
    assert said.inner_text() == "Input 17 of 17 tokens"
    assert page.locator("article").count() == 3
    assert page.locator("h2").all_inner_texts() == ["a", "b, too", "deep/c"]
    assert drawn(page, 0) == {"groups": 0, "now": 0, "before": 0}
    slider.focus()
    for block, (_, _, left) in enumerate(SCHEDULE.steps(17)):
        page.keyboard.press("ArrowRight")
        assert said.inner_text() == f"After block {block} {left} of 17 tokens"
        for card, picture in enumerate(pictures):
            assert drawn(page, card) == expected(picture, block)
    assert any(expected(picture, 1)["groups"] for picture in pictures)
    # Without the slider's focus, and by the other ways.
    slider.blur()
    page.keyboard.press("Home")
    assert said.inner_text().startswith("Input")
    page.keyboard.press(".")
    assert said.inner_text().startswith("After block 0")
    page.locator("#bars div").last.click()
    assert said.inner_text().startswith("After block 2")
    page.locator("#back").click()
    assert slider.input_value() == "2"


def test_pointing_at_a_patch_tells_what_it_is(page_file, pictures, open_page):
    page = open_page(page_file)
    tip = page.locator("#tip")
    assert tip.is_hidden()
    page.locator("#slider").fill("3")
    picture, view = pictures[0], pictures[0].views[2]
    (patch, *_) = np.flatnonzero(picture.pruned_P == 2).tolist()
    page.mouse.move(*centre(page, 0, patch))
    assert tip.inner_text().startswith("Pruned in this block")
    share = re.search(r"with ([\d.]+) % of the class token's", tip.inner_text())
    assert float(share[1]) == pytest.approx(100 * view.importance_P[patch], rel=0.06)
    (patch, *_) = np.flatnonzero(picture.pruned_P == 1).tolist()
    page.mouse.move(*centre(page, 0, patch))
    assert tip.inner_text().startswith("Pruned in block 1")
    group = max(view.groups, key=lambda group: len(group.patches))
    page.mouse.move(*centre(page, 0, group.patches[-1]))
    count = len(group.patches)
    size = f"{group.size:.2f}".rstrip("0").rstrip(".")
    assert tip.inner_text().startswith(f"A token of {count} patches, size {size}")
    ring, path = page.locator(".ring"), page.locator("article").first
    own = path.locator(".merged-group").evaluate_all("all => all.map(g => g.outerHTML)")
    assert sum(ring.get_attribute("d") in text for text in own) == 1
    assert any(edge in text for text in own for edge in [hexed(group.edge)])
    page.mouse.move(1, 1)
    assert tip.is_hidden()


def hexed(colour) -> str:
    """Returns a colour as CSS writes it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def test_the_keyboard_walks_over_patches(page_file, open_page):
    page = open_page(page_file)
    page.locator("article > svg").first.focus()
    page.keyboard.press("ArrowRight")
    assert "Row 2, column 2" in page.locator("#tip").inner_text()
    page.keyboard.press("ArrowUp")
    assert "Row 1, column 2" in page.locator("#tip").inner_text()
    page.keyboard.press(".")
    assert page.locator("#slider").input_value() == "1"
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()


def test_guesses_are_shown_as_text(page_file, pictures, open_page):
    page = open_page(page_file)
    columns = page.locator("article").first.locator(".guesses > div")
    for column, guesses in zip(
        columns.all(), (pictures[0].dense, pictures[0].compressed), strict=True
    ):
        shown = column.locator("p span:first-child").all_inner_texts()
        assert shown == [guess.label for guess in guesses]
    assert page.evaluate("window.hacked") is None


def test_a_model_without_classes_guesses_nothing(vit, open_page, tmp_path):
    model = dr.create_model("vit", **VIT | {"num_classes": 0})
    params = {name: part for name, part in vit[1].items() if name != "head"}
    (picture,) = Depicter(model, params, None, published(16)).pictures(
        {"noise": np.zeros((16, 16, 3), np.uint8)}
    )
    assert picture.dense == picture.compressed == ()
    out = tmp_path / "page.html"
    out.write_text(
        token_page([picture], visualize.facts_of(model, "vit", None, "none")), "utf-8"
    )
    page = open_page(out)
    assert page.locator("h2").inner_text() == "noise"
    assert page.locator(".guesses").count() == 0


def test_a_tap_tells_of_a_patch_until_the_next(page_file, open_page):
    window = {"width": 390, "height": 844}
    page = open_page(page_file, viewport=window, has_touch=True, is_mobile=True)
    assert page.locator(".controls").bounding_box()["height"] <= 240
    tip, rings = page.locator("#tip"), page.locator(".ring")
    page.touchscreen.tap(*centre(page, 0, 2))
    assert "Row 0, column 2" in tip.inner_text()
    second = page.locator("article > svg").nth(1)
    second.scroll_into_view_if_needed()
    page.touchscreen.tap(*centre(page, 1, SIDE))
    assert "Row 1, column 0" in tip.inner_text()
    assert rings.count() == 1
    page.locator("#facts").scroll_into_view_if_needed()
    page.locator("#count").tap()
    assert tip.is_hidden()
    assert rings.count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_has_two_colour_schemes(page_file, open_page, scheme):
    page = open_page(page_file, color_scheme=scheme)
    colour = "getComputedStyle(document.body).backgroundColor"
    level = sum(map(int, re.findall(r"\d+", page.evaluate(colour)))) / 3
    assert (level > 200) == (scheme == "light")


def test_modes_change_what_fills_a_group(page_file, open_page):
    page = open_page(page_file)
    page.locator("#slider").fill("2")
    group = page.locator(".merged-group").first
    fill = lambda: group.evaluate("g => getComputedStyle(g).fillOpacity")  # noqa: E731
    merged = page.locator("#merged")
    assert fill() == "1"
    assert merged.inner_text() == "merged: outlined, in their mean colour"
    page.locator("#mode >> text=Photo").click()
    assert fill() == "0"
    assert merged.inner_text() == "merged: outlined"
    page.locator("#mode >> text=Attention").click()
    assert page.locator("article").first.locator("path[fill^=rgb]").count() == SIDE**2


def test_playing_goes_round(page_file, open_page):
    page = open_page(page_file)
    page.clock.install()
    page.locator("#play").click()
    assert page.locator("#play").get_attribute("aria-label") == "Pause"
    for position in ("1", "2", "3", "0"):
        page.clock.run_for(900)
        assert page.locator("#slider").input_value() == position
    page.locator("#play").click()
    page.clock.run_for(5000)
    assert page.locator("#slider").input_value() == "0"


@settings(deadline=None)
@given(st.integers(0, 2), st.integers(0, 2))
def test_a_figure_s_patches(pictures, number, block):
    picture = pictures[number]
    pixels = filled(picture, picture.views[block]).reshape(SIDE, 4, SIDE, 4, 3)
    own = picture.image_YXC.reshape(SIDE, 4, SIDE, 4, 3)
    group_of = {
        p: group for group in picture.views[block].groups for p in group.patches
    }
    for patch in range(SIDE**2):
        y, x = divmod(patch, SIDE)
        if patch not in group_of:
            assert pixels[y, :, x].min() >= 200
        elif len(group_of[patch].patches) == 1:
            np.testing.assert_array_equal(pixels[y, :, x], own[y, :, x])
        else:
            assert (pixels[y, :, x] == group_of[patch].colour).all()


def test_a_figure_has_a_column_for_each_block(made, pictures, tmp_path):
    figure = token_figure(pictures, SCHEDULE.steps(17), load(made["model"])[0].geometry)
    assert len(figure.axes) == 3 * 4
    titles = [axes.get_title() for axes in figure.axes[:4]]
    assert titles == ["input\n17 tokens", "block 0\n17", "block 1\n11", "block 2\n9"]
    merged = [g for g in pictures[0].views[2].groups if len(g.patches) > 1]
    assert len(figure.axes[3].collections[0].get_paths()) == len(merged)
    out = tmp_path / "figure.png"
    flags = f"--image={{photos}} --labels={{labels}} --blocks=all --out={out}"
    assert run(flags, made) == 0
    assert out.read_bytes() == to_png(figure)


@pytest.mark.parametrize("columns", [1, 2, 5, 12, 24])
def test_no_word_leaves_a_figure_or_lies_on_a_picture(made, pictures, columns):
    labelled = [
        replace(guess, label="of two words " * 9) for guess in pictures[0].dense
    ]
    picture = replace(
        pictures[0],
        name="a/name/" * 30,
        views=pictures[0].views[:1] * columns,
        dense=tuple(labelled),
    )
    geometry = load(made["model"])[0].geometry
    figure = token_figure([picture, picture], SCHEDULE.steps(17), geometry)
    figure.draw_without_rendering()
    images = [axes.images[0].get_window_extent() for axes in figure.axes]
    for axes in figure.axes:
        for text in (axes.title, *axes.texts):
            box = text.get_window_extent()
            assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1
            assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1
            assert not any(box.overlaps(image) for image in images)
    captions = [axes.texts[0].get_text() for axes in figure.axes if axes.texts]
    assert [caption.count("\n") for caption in captions] == [2, 2]


def test_a_figure_writes_names_as_they_are(made, pictures):
    name = "$100_$x"
    named = replace(pictures[0], name=name, views=pictures[0].views[:1])
    figure = token_figure([named], SCHEDULE.steps(17), load(made["model"])[0].geometry)
    assert to_png(figure)
    assert figure.axes[0].texts[0].get_text().startswith(name)


def test_blocks_are_chosen(made):
    geometry = dr.create_model("deit_small_patch16_224").geometry
    steps = dr.published_schedule("deit_small_patch16_224", 2.9).steps(geometry)
    facts = visualize.Facts("deit", "2.9", 1, 2, steps, geometry)
    assert visualize.chosen_blocks(None, facts, ".html") == [*range(12)]
    few = visualize.chosen_blocks(None, facts, ".png")
    assert len(few) == 6
    assert all(steps[block][2] < steps[block][0] for block in few)
    assert visualize.chosen_blocks("11,0", facts, ".png") == [0, 11]
    assert visualize.chosen_blocks("all", facts, ".png") == [*range(12)]
    idle = visualize.Facts("deit", "none", 2, 2, ((9, 9, 9),) * 3, geometry)
    assert visualize.chosen_blocks(None, idle, ".png") == [2]


REFUSED = {
    "": "--image is needed",
    "--image={photos}/a.png": "--out is needed",
    "--image={photos}/a.png --out=x.pdf": "must end in .html or .png, got 'x.pdf'",
    "--image={photos}/a.png --out={page}": "is a folder; name a file in it",
    "--image={photos}/a.png --out={labels}/x.html": "cannot write",
    "--image=nothing.jpg --out=x.html": "no image 'nothing.jpg'",
    "--image={photos}/a.png,nothing.jpg --out=x.html": "no image 'nothing.jpg'",
    "--image={labels} --out=x.html": "expected an image in",
    "--image={model} --out=x.html": "expected images in",
    "--image={photos}/a.png --out=x.html --blocks=3": "numbers from 0 to 2 such as 0,2",
    "--image={photos}/a.png --out=x.html --blocks=1,x": "got '1,x'",
    "--image={photos}/a.png --out=x.html --labels=none.txt": "cannot read the labels",
    "--image={photos}/a.png --out=x.html --labels={schedule}": "5 classes apart,",
    "--image={photos}/a.png --out=x.html --schedule={other}": "has 3 attention blocks",
    "--image={photos}/a.png --out=x.html --weights={photos}": "holds no model",
    "--image={photos}/a.png --out=x.html --imgae=b.png": "--imgae=b.png",
}


@pytest.mark.parametrize("text", REFUSED)
def test_bad_input_is_one_sentence(text, made, tmp_path, capsys):
    (tmp_path / "page.html").mkdir()
    dr.Schedule(None, [17]).save(tmp_path / "other.json")
    own = {"page": tmp_path / "page.html", "other": tmp_path / "other.json"}
    assert run(text, made | own) == 2
    *_, sentence = capsys.readouterr().err.strip().splitlines()
    assert sentence.startswith("error: ")
    assert REFUSED[text] in sentence
    assert not Path("x.html").exists()
