"""Proves the report in a real Chromium: no network, no script, both schemes, phone, keyboard, reader."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from comparison_samples import SAMPLES, many

from compute_router.report import page

pytestmark = pytest.mark.slow

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")

VISIBLE_TEXT = """
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
for (let n; n = walker.nextNode();) {
  const e = n.parentElement;
  if (!n.data.trim() || ['STYLE', 'title', 'desc'].includes(e.tagName)) continue;
  const range = document.createRange(); range.selectNode(n);
  if (!e.checkVisibility({visibilityProperty: true, contentVisibilityAuto: true})) continue;
  if (![...range.getClientRects()].some(r => r.width && r.height)) continue;
  found.push([n, e]);
}
"""
CONTRASTS = (
    VISIBLE_TEXT
    + """
const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
const solid = c => { const p = parse(c); return p.length >= 3 && (p.length < 4 || p[3] === 1); };
const linear = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = c => { const [r, g, b] = parse(c).map(linear);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const ground = e => {
  if (e.classList.contains('on')) return getComputedStyle(e.parentNode.previousElementSibling).fill;
  for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor;
    if (solid(c)) return c;
  }
  return 'rgb(255, 255, 255)';
};
return found.map(([n, e]) => {
  const style = getComputedStyle(e), svg = e.namespaceURI.endsWith('svg');
  const ink = svg ? style.fill : style.color, on = ground(e);
  const [a, b] = [light(ink), light(on)].sort((x, y) => y - x);
  return [n.data.trim().slice(0, 40), ink, on, solid(ink) ? (a + 0.05) / (b + 0.05) : 0, svg];
});
"""
)
OPENED = "document.querySelectorAll('details').forEach(d => d.open = true); return 1;"
WIDTHS = "const r = document.scrollingElement; return [r.scrollWidth, r.clientWidth];"


class Chromium:
    """A Chromium of this module's own, with what it asked for and complained of."""

    def __init__(self, folder: Path) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for argument in (
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={folder}/profile",
            "--host-resolver-rules=MAP * ~NOTFOUND",
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        self.driver: Any = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
        self.folder = folder
        self.cdp("Network.enable")
        self.cdp("Accessibility.enable")

    def cdp(self, name: str, **given: Any) -> Any:
        return self.driver.execute_cdp_cmd(name, given)

    def js(self, code: str) -> Any:
        return self.driver.execute_script(code)

    def show(self, name: str, *, scheme: str = "light", width: int = 1200, text: str = "") -> str:
        """Open a sample's report from its file; the address."""
        path = self.folder / f"{name}.html"
        path.write_text(text or page(SAMPLES[name]()), encoding="utf-8")
        self.cdp(
            "Emulation.setEmulatedMedia",
            media="",
            features=[
                {"name": "prefers-color-scheme", "value": scheme},
                {"name": "prefers-reduced-motion", "value": "reduce"},
            ],
        )
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=800,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.said()
        self.driver.get(path.as_uri())
        return path.as_uri()

    def said(self) -> tuple[list[str], list[str]]:
        """Since last asked: addresses that were requested, and lines of the console.

        What the page's own policy stopped is no request.
        """
        requested: dict[str, str] = {}
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                requested[message["params"]["requestId"]] = message["params"]["request"]["url"]
            if message["params"].get("blockedReason") == "csp":
                del requested[message["params"]["requestId"]]
        console = [entry["message"] for entry in self.driver.get_log("browser")]
        return list(requested.values()), console

    def tree(self) -> list[dict[str, Any]]:
        """What a screen reader is told, in the order of the page."""
        nodes = {n["nodeId"]: n for n in self.cdp("Accessibility.getFullAXTree")["nodes"]}
        found: list[dict[str, Any]] = []

        def walk(node: dict[str, Any]) -> None:
            if not node.get("ignored"):
                found.append(node)
            for child in node.get("childIds", ()):
                if child in nodes:
                    walk(nodes[child])

        walk(next(n for n in nodes.values() if "parentId" not in n))
        return found


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("there is no chromium with a chromedriver: apt-get install chromium chromium-driver")
    pytest.importorskip("selenium")
    from selenium.common.exceptions import WebDriverException

    try:
        browser = Chromium(tmp_path_factory.mktemp("chromium"))
    except WebDriverException as e:
        pytest.skip(f"chromium does not start here: {str(e).splitlines()[0]}")
    yield browser
    browser.driver.quit()


def role(node: dict[str, Any]) -> str:
    return str(node.get("role", {}).get("value", ""))


def name(node: dict[str, Any]) -> str:
    return str(node.get("name", {}).get("value", ""))


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_report_asks_for_nothing_but_itself_and_complains_of_nothing(
    chromium: Chromium, sample: str
) -> None:
    address = chromium.show(sample)
    chromium.js(OPENED)
    requested, console = chromium.said()
    assert requested == [address]
    assert console == []


def test_the_policy_holds(chromium: Chromium) -> None:
    """What somebody adds to the file afterwards neither runs nor loads."""
    added = (
        "<script>document.title='ran'</script><img src='https://example.org/a.png'>"
        "<style>body{margin-left:77px}</style><p style='margin-left:99px' id='added'>x</p></body>"
    )
    address = chromium.show("faster", text=page(SAMPLES["faster"]()).replace("</body>", added))
    requested, console = chromium.said()
    assert requested == [address]
    assert len(console) >= 4
    assert chromium.js("return document.title") == "fused against flash"
    assert chromium.js("return getComputedStyle(document.body).marginLeft") == "0px"
    assert chromium.js("return getComputedStyle(document.getElementById('added')).marginLeft") == "0px"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("sample", SAMPLES)
def test_every_visible_text_can_be_read(chromium: Chromium, sample: str, scheme: str) -> None:
    chromium.show(sample, scheme=scheme)
    chromium.js(OPENED)
    texts = chromium.js(CONTRASTS)
    assert len(texts) > 15
    if SAMPLES[sample]().points:
        assert any(svg for *_, svg in texts), "words in plots are looked at, too"
    weak = [(text, ink, ground, round(ratio, 2)) for text, ink, ground, ratio, _ in texts if ratio < 4.5]
    assert weak == []


def test_the_schemes_differ(chromium: Chromium) -> None:
    grounds = set()
    for scheme in ("light", "dark"):
        chromium.show("faster", scheme=scheme)
        grounds.add(chromium.js("return getComputedStyle(document.body).backgroundColor"))
    assert grounds == {"rgb(246, 247, 248)", "rgb(16, 20, 24)"}


@pytest.mark.parametrize("sample", SAMPLES)
def test_nothing_is_wider_than_the_screen(chromium: Chromium, sample: str) -> None:
    for width in (320, 768, 360):
        chromium.show(sample, width=width)
        assert chromium.js(OPENED)
        page_width, screen = chromium.js(WIDTHS)
        assert screen == width
        assert page_width <= screen
    small = chromium.js(
        VISIBLE_TEXT + "return found.map(([n, e]) => [n.data.trim().slice(0, 30), parseFloat("
        "getComputedStyle(e).fontSize)]).filter(([t, s]) => s < 11);"
    )
    assert small == [], "no text shrinks with the screen"


def test_a_long_name_does_not_squeeze_what_it_is_called(chromium: Chromium) -> None:
    named = [msgspec.structs.replace(p, name="n" * 400) for p in SAMPLES["faster"]().points]
    text = page(msgspec.structs.replace(SAMPLES["faster"](), points=tuple(named)))
    chromium.show("long", width=390, text=text)
    lines = chromium.js(
        "return [...document.querySelectorAll('.facts dt')].map(e => [e.textContent, "
        "e.getBoundingClientRect().height / parseFloat(getComputedStyle(e).fontSize)])"
    )
    assert lines[0][0] == "Workload"
    assert [name for name, height in lines if height > 2] == [], "each in one line"


@pytest.mark.parametrize("sample", ["three_arms", "waived", "many", "nothing"])
def test_the_keyboard_reaches_everything_and_shows_where_it_is(chromium: Chromium, sample: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    chromium.show(sample)
    count = chromium.js(
        "const all = [...document.querySelectorAll('a[href], summary, [tabindex]')].filter(e =>"
        " e.checkVisibility({visibilityProperty: true, contentVisibilityAuto: true}));"
        "all.forEach((e, i) => e.dataset.place = i); return all.length;"
    )
    assert count >= 8
    for place in range(count):
        ActionChains(chromium.driver).send_keys(Keys.TAB).perform()
        at, style, width, top, bottom = chromium.js(
            "const e = document.activeElement, s = getComputedStyle(e), r = e.getBoundingClientRect();"
            "return [e.dataset.place, s.outlineStyle, parseFloat(s.outlineWidth), r.top, r.bottom];"
        )
        assert at == str(place)
        assert (style, width) == ("solid", 3)
        assert bottom > 0, "what has the focus is on the screen"
        assert top < 800
    assert chromium.js("return document.querySelectorAll('[tabindex]:not([tabindex=\"0\"])').length") == 0


def test_the_skip_link_is_first_and_leads_to_the_verdict(chromium: Chromium) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    chromium.show("faster")
    assert chromium.js("return document.querySelector('.skip').getBoundingClientRect().bottom") <= 0
    ActionChains(chromium.driver).send_keys(Keys.TAB).perform()
    assert chromium.js("return document.activeElement.textContent") == "Skip to the verdict"
    assert chromium.js("return document.activeElement.getBoundingClientRect().top") >= 0
    ActionChains(chromium.driver).send_keys(Keys.ENTER).perform()
    assert chromium.js("return location.hash") == "#verdict"


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_screen_reader_finds_its_way(chromium: Chromium, sample: str) -> None:
    chromium.show(sample)
    chromium.js(OPENED)
    nodes = chromium.tree()
    roles = [role(n) for n in nodes]
    for landmark in ("banner", "navigation", "main", "contentinfo"):
        assert roles.count(landmark) == 1, landmark
    for node in nodes:
        if role(node) in ("image", "img", "figure", "table", "region", "link", "graphics-document"):
            assert name(node).strip(), f"a {role(node)} has no name"
    levels = [
        int(p["value"]["value"])
        for n in nodes
        if role(n) == "heading"
        for p in n["properties"]
        if p["name"] == "level"
    ]
    assert levels[:2] == [1, 2]
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels)), levels
    assert chromium.js("return document.documentElement.lang") == "en"
    made = SAMPLES[sample]()
    if made.points:
        assert "table" in roles
        assert "image" in roles
        assert roles.count("columnheader") > 5
        assert "rowheader" in roles


@pytest.mark.parametrize("sample", ["faster", "refused", "hostile", "nothing"])
def test_it_is_whole_without_scripts(chromium: Chromium, sample: str) -> None:
    chromium.cdp("Emulation.setScriptExecutionDisabled", value=True)
    try:
        chromium.show(sample)
        nodes = chromium.tree()
        headings = [name(n) for n in nodes if role(n) == "heading"]
        for title in ("Verdict", "Ratios", "Runs over time", "Where the time went", "Repeat it"):
            assert title in headings
        # Details open by the browser itself.
        if sample == "faster":
            before = sum(role(n) == "table" for n in nodes)
            chromium.driver.find_element("xpath", "//summary[.='Times as a table']").click()
            assert sum(role(n) == "table" for n in chromium.tree()) > before
    finally:
        chromium.cdp("Emulation.setScriptExecutionDisabled", value=False)


def test_hostile_names_stay_names(chromium: Chromium) -> None:
    chromium.show("hostile")
    chromium.js(OPENED)
    title = chromium.js("return document.title")
    assert title != "owned"
    assert "<script>" in title
    tags = chromium.js("return [...new Set([...document.querySelectorAll('*')].map(e => e.localName))]")
    assert not set(tags) & {"script", "img", "b", "iframe", "link"}
    handlers = chromium.js(
        "return [...document.querySelectorAll('*')].flatMap(e => [...e.attributes])"
        ".filter(a => /^on|^style$|^src$/.test(a.name)).length"
    )
    assert handlers == 0
    odd = chromium.js(
        r"return document.documentElement.textContent.match("
        r"/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g)"
    )
    assert odd is None
    _, console = chromium.said()
    assert console == []


def test_on_paper_everything_is_there_in_the_light(chromium: Chromium) -> None:
    chromium.show("three_arms")
    chromium.cdp("Emulation.setEmulatedMedia", media="print")
    assert chromium.js("return getComputedStyle(document.querySelector('nav')).display") == "none"
    hidden = chromium.js(
        "return [...document.querySelectorAll('main table')].filter(e => "
        "!e.checkVisibility({contentVisibilityAuto: true})).length"
    )
    assert hidden == 0, "what is folded up on the screen is unfolded on paper"
    printed = chromium.cdp("Page.printToPDF", printBackground=True)
    assert len(printed["data"]) > 20_000


@pytest.mark.parametrize(
    ("sample", "scheme"), [*((s, "light") for s in SAMPLES), ("three_arms", "dark"), ("waived", "dark")]
)
def test_axe_finds_no_violation(chromium: Chromium, sample: str, scheme: str) -> None:
    """The rules of axe-core, from the wheel that carries them."""
    spec = importlib.util.find_spec("axe_core_python")
    if spec is None or spec.origin is None:
        pytest.skip("axe-core-python is not installed: pip install axe-core-python")
    # Two hundred runs are sixty, only more of them, and keep axe busy for a minute.
    text = page(many(30)) if sample == "many" else ""
    chromium.show(sample, scheme=scheme, text=text)
    chromium.js(OPENED)
    chromium.driver.set_script_timeout(200)
    chromium.js(Path(spec.origin).with_name("axe.min.js").read_text(encoding="utf-8"))
    found = chromium.driver.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "axe.run({resultTypes: ['violations']}).then(r => done([r.passes.length, r.violations]),"
        " e => done([0, [{id: String(e), nodes: []}]]));"
    )
    passes, violations = found
    assert [(v["id"], [n["html"][:120] for n in v["nodes"]][:4]) for v in violations] == []
    assert passes > 10
