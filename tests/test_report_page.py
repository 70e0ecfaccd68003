"""The report in a browser, offline: what one can hover, sort, filter and switch off."""

import pytest
from made_up import SCHEDULE, benchmark, evaluation, write, write_everything

from diffrate_jax.reporting import write_report

# As long as a name may be, and longer: paths of a study, and letters that are broad.
LONG = ("cifar10_study/1/seed0/schedule_60%", "study/3/merge_only/schedules/of/mm_50%")


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """The report of one result of each kind, and of a second run."""
    folder = tmp_path_factory.mktemp("page")
    write_everything(folder / "r" / "first")
    other = evaluation(1) | {"command": "another"}
    write(folder / "r" / "second" / "evaluation.json", other)
    write(folder / "r" / "second" / "benchmark.json", benchmark(256))
    timed = benchmark(512)
    timed["rows"] += [timed["rows"][1] | {"name": f"{name}.json@8"} for name in LONG]
    write(folder / "r" / "second" / "benchmark_512.json", timed)
    for name in LONG:
        SCHEDULE.save(folder / "r" / f"{name}.json")
    write_report(folder / "r", folder / "report.html")
    return folder / "report.html"


def column(page, number: int) -> list[str]:
    """Returns a column of the first table of all figures, as it is shown."""
    cells = page.locator("#s1 tbody tr:visible").all()
    return [row.locator("th, td").nth(number).inner_text() for row in cells]


def test_pointing_at_a_mark_tells_what_it_is(page_file, open_page):
    page = open_page(page_file)
    tip = page.locator("#tip")
    assert not tip.is_visible()
    point = page.locator("#s1 svg").first.locator(".pt[data-series=learned]").last
    point.hover()
    assert tip.inner_text().startswith("learned\n")
    assert "% top-1, 95% " in tip.inner_text()
    # The browser's own bubble would say it a second time.
    assert point.locator("title").count() == 0
    page.locator("h1").hover()
    assert not tip.is_visible()


def test_points_below_others_are_told_of_too(page_file, open_page):
    page = open_page(page_file)
    # Both runs had the same dense model.
    page.locator("#s1 svg").first.locator(".pt[data-series=dense]").last.hover()
    texts = page.locator("#tip").inner_text().split("\n\n")
    assert [text.split("\n")[0] for text in texts] == ["dense", "dense"]
    assert {text.split("\n")[-2] for text in texts} == {"first", "second"}


def test_marks_can_be_reached_without_a_mouse(page_file, open_page):
    page = open_page(page_file)
    page.locator(".box").first.focus()
    assert "images/s" in page.locator("#tip").inner_text()


def test_a_click_on_a_column_sorts_by_its_numbers(page_file, open_page):
    page = open_page(page_file)
    head = page.locator("#s1 thead th", has_text="top-1, %")
    place = [h.inner_text() for h in page.locator("#s1 thead th").all()].index(
        "top-1, %"
    )
    before = column(page, place)
    head.click()
    numbers = [float(text.split(" ")[0]) for text in column(page, place)]
    assert numbers == sorted(numbers)
    assert head.get_attribute("aria-sort") == "ascending"
    head.press("Enter")
    again = [float(text.split(" ")[0]) for text in column(page, place)]
    assert again == numbers[::-1]
    assert sorted(column(page, place)) == sorted(before)


def test_numbers_with_signs_sort_as_numbers_and_dashes_come_last(page_file, open_page):
    page = open_page(page_file)
    page.locator("#s1 thead th", has_text="− dense").click()
    place = page.locator("#s1 thead th").count() - 2
    texts = column(page, place)
    dashes = [text == "–" for text in texts]
    assert any(dashes)
    assert dashes == sorted(dashes)
    values = [float(t.split(" ")[0].replace("−", "-")) for t in texts if t != "–"]
    assert values == sorted(values)


def test_the_filter_keeps_what_fits_in_tables_and_charts(page_file, open_page):
    page = open_page(page_file)
    page.locator("#filter").fill("second learned")
    rows = page.locator("#s1 tbody tr:visible")
    assert rows.count() == 1
    assert "learned" in rows.first.inner_text()
    points = page.locator("#s1 svg").first.locator(".pt:not(.off)")
    assert [p.get_attribute("data-run") for p in points.all()] == ["second"]
    assert " of " in page.locator("#found").inner_text()
    page.locator("#filter").fill("")
    assert page.locator(".off").count() == 0


def test_a_legend_switches_its_series(page_file, open_page):
    page = open_page(page_file)
    key = page.locator("#s1 .keys button", has_text="ToMe constant").first
    points = page.locator("#s1 figure").first.locator(
        ".pt[data-series='ToMe constant']"
    )
    assert points.first.is_visible()
    key.click()
    assert not points.first.is_visible()
    assert key.get_attribute("aria-pressed") == "false"
    key.click()
    assert points.first.is_visible()


def test_without_javascript_everything_is_there(page_file, open_page):
    page = open_page(page_file, java_script_enabled=False)
    assert page.locator("#s1 tbody tr:visible").count() > 8
    assert page.locator("#s1 .pt").first.is_visible()
    assert not page.locator("#filter").is_visible()
    assert page.locator("#s1 .pt title").count() > 5


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(page_file, open_page, width, scheme):
    window = {"width": width, "height": 800}
    page = open_page(page_file, viewport=window, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    page.evaluate("document.querySelectorAll('details').forEach((d) => d.open = true)")
    # Letters of charts stay legible where they have to be scrolled.
    assert page.evaluate("""() => [...document.querySelectorAll('.chart svg')].every(
        (svg) => svg.getBoundingClientRect().width >= .84 * svg.viewBox.baseVal.width)
    """)
    # Words inside charts stand inside them.
    assert page.evaluate("""() => [...document.querySelectorAll('.chart svg')].every(
        (svg) => { const box = svg.getBoundingClientRect();
          return [...svg.querySelectorAll('text')].every((text) => {
            const own = text.getBoundingClientRect();
            return own.left >= box.left - 1 && own.right <= box.right + 1 &&
              own.top >= box.top - 1 && own.bottom <= box.bottom + 1; }); })""")
