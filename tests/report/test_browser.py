import threading
from dataclasses import replace
from itertools import combinations

import pytest
from browser import CHROMIUM, Browser

from nas_kd.evaluation.published import ANCHOR, decoders, shown
from nas_kd.report import html
from nas_kd.report.dashboard import bind
from nas_kd.report.frontier import MACS, TIME, Frontier, Spot
from nas_kd.report.html import write_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def report(browser, small, tmp_path):
    write_report(small, tmp_path / "report.html")
    browser.errors.clear()
    browser.appear(1200, 900)
    browser.open((tmp_path / "report.html").as_uri())
    browser.wait("document.querySelectorAll('.plot .main-svg').length >= 6")
    return browser


def column(browser, index):
    rows = "[...document.querySelectorAll('#trials tbody tr')]"
    return browser.evaluate(f"{rows}.map(row => row.cells[{index}].textContent)")


def test_the_report_answers_clicks_and_sorts_without_a_complaint(report):
    # It opens with the best BD-rate, and with a middle level of it.
    assert report.evaluate("document.querySelector('#pick').value") == "1"
    assert report.evaluate("[$('shot-trial').value, $('shot-level').value]") == ["1", "4"]
    point = "document.querySelectorAll('[data-figure=flops-bd_rate] .trace.scatter .point')[0]"
    report.evaluate(point + ".scrollIntoView({block: 'center'})")
    box = report.evaluate(
        f"(b => [b.x + b.width / 2, b.y + b.height / 2])({point}.getBoundingClientRect())"
    )
    report.click(*box)
    report.wait("document.querySelector('#pick').value === '2'")
    assert "60.00" in report.evaluate("document.querySelector('#detail').textContent")

    named = "document.querySelector('[data-figure=curves]').data.map(trace => trace.name)"
    assert report.evaluate(named)[-2:] == ["trial 2, chosen", "chosen"]

    heading = "document.querySelectorAll('#trials th button')[2].click()"
    report.evaluate(heading)
    assert column(report, 0) == ["1", "0", "2", "3", "4"]
    report.evaluate(heading)
    assert column(report, 0) == ["2", "0", "1", "3", "4"]

    heads = report.evaluate("[...$('trials').tHead.rows[0].cells].map(c => c.textContent)")
    assert "encoder_width_1" in heads
    assert "arch" not in heads
    lines = report.evaluate("csv()").splitlines()
    assert lines[0].endswith(",arch")
    assert lines[0].startswith("trial,state,BD-rate %,")
    assert len(lines) == 6

    report.evaluate("$('slide').value = 20; $('slide').oninput()")
    assert report.evaluate("$('compare').style.getPropertyValue('--cut')") == "20%"
    assert report.evaluate("$('coded').naturalWidth") == 192
    assert report.errors == []


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1200, True)])
def test_it_fits_a_phone_and_follows_dark_mode(report, width, dark):
    report.appear(width, 844, dark)
    report.wait(f"innerWidth === {width}")
    assert report.evaluate("document.documentElement.scrollWidth") <= width
    ground = "getComputedStyle(document.body).backgroundColor"
    red = report.evaluate(f"Number({ground}.match(/\\d+/)[0])")
    assert (red < 60) is dark
    plot = "document.querySelector('.plot').layout.paper_bgcolor"
    report.wait(
        f"{plot} === getComputedStyle(document.documentElement).getPropertyValue('--bg').trim()"
    )
    assert report.errors == []


def beside_published():
    """The fullest panes: every published decoder, the longest name to be compared with."""
    others = [Spot(name, one.kmac_px, one.bd_rate, "published") for name, one in decoders().items()]
    ours = [Spot("trial 1", 2.0, -10.0, "front", 3.0, 1)]
    return [
        Frontier(MACS, ANCHOR, [*others, *ours], {"JPEG": 90.0, "WebP": 40.0}),
        Frontier(TIME, ANCHOR, ours, {"JPEG": 90.0}),
    ]


TEXTS = """[...document.querySelectorAll('[data-figure]')].flatMap(div => {
  const frame = div.getBoundingClientRect();
  return [...div.querySelectorAll('text')].filter(t => getComputedStyle(t).visibility !== 'hidden').map(t => {
    const box = t.getBoundingClientRect();
    return {figure: div.dataset.figure, text: t.textContent, name: t.closest('.textpoint') !== null,
      x: [box.left, box.right], y: [box.top, box.bottom], empty: !box.width,
      cut: box.left < frame.left - 1 || box.right > frame.right + 1
        || box.top < frame.top - 1 || box.bottom > frame.bottom + 1};
  })})"""


def overlap(a, b):
    return all(max(a[k][0], b[k][0]) < min(a[k][1], b[k][1]) for k in ("x", "y"))


@pytest.mark.thorough
def test_no_text_of_a_plot_is_cut_or_covered_on_any_screen(browser, small, tmp_path, monkeypatch):
    seen = replace(html.look(small), published=shown())
    monkeypatch.setattr(html, "look", lambda study: seen)
    monkeypatch.setattr(html, "frontiers", lambda study, kodak: beside_published())
    write_report(small, tmp_path / "report.html")
    browser.errors.clear()
    for width in (400, 1400):
        browser.appear(width, 900)
        browser.open((tmp_path / "report.html").as_uri())
        browser.wait("document.querySelectorAll('.plot .legend').length >= 4")
        texts = [one for one in browser.evaluate(TEXTS) if not one["empty"]]
        assert {"frontier-macs", "frontier-ms", "curves"} <= {one["figure"] for one in texts}
        assert [(width, one["text"]) for one in texts if one["cut"]] == []
        names = [one for one in texts if one["name"]]
        assert {"pulse", "elic"} <= {one["text"] for one in names}
        assert [(a["text"], b["text"]) for a, b in combinations(names, 2) if overlap(a, b)] == []
    assert browser.errors == []


@pytest.mark.thorough
def test_the_dashboard_opens_the_study_without_a_complaint(browser, small):
    with bind(small, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        browser.errors.clear()
        browser.appear(1200, 900)
        address = f"http://127.0.0.1:{server.server_port}/dashboard/studies/1"
        browser.open(address)
        browser.wait("document.body.innerText.includes('BD-rate (%)')")
        errors = [e for e in browser.errors if "favicon" not in e]
        server.shutdown()
        thread.join()
    assert errors == []
