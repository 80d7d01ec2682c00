"""The page of predictions in a real browser, driven through its WebDriver; skipped without one."""

import base64
import contextlib
import http.client
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from jaxseg import predict_page
from jaxseg.data.classes import make_classes

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver")

EVIL = "<script>document.title = 'owned'</script><img src=x onerror=alert(1)>\"'.jpg"
ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
RIGHT = "\ue014"  # the key, as WebDriver names it


class Driver:
    """The few commands of the W3C WebDriver protocol that are needed here."""

    def __init__(self, port: int, profile: str):
        self._port, self._session = port, ""
        options = {"binary": BROWSER, "args": [*ARGUMENTS, f"--user-data-dir={profile}"]}
        wanted = {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        answer = self._call("POST", "", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/{answer['sessionId']}"

    def _call(self, method: str, path: str, body: dict | None = None):
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        with contextlib.closing(connection):
            content = None if body is None else json.dumps(body)
            connection.request(method, f"/session{self._session}{path}", content)
            value = json.loads(connection.getresponse().read())["value"]
        assert not (isinstance(value, dict) and "error" in value), value
        return value

    def open(self, url: str) -> None:
        self._call("POST", "/url", {"url": url})

    def run(self, script: str):
        """What ``script`` returns in the page."""
        return self._call("POST", "/execute/sync", {"script": script, "args": []})

    def press(self, key: str) -> None:
        """A key of the keyboard, for what has the focus."""
        strokes = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        self._call(
            "POST", "/actions", {"actions": [{"type": "key", "id": "k", "actions": strokes}]}
        )

    def develop(self, command: str, **parameters) -> None:
        """A command of Chromium's own protocol."""
        self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def log(self, kind: str) -> list[dict]:
        """What was logged since the last call."""
        return self._call("POST", "/se/log", {"type": kind})

    def picture(self) -> bytes:
        return base64.b64decode(self._call("GET", "/screenshot"))

    def close(self) -> None:
        self._call("DELETE", "")


@contextlib.contextmanager
def browser(profile: str):
    """A `Driver` whose processes end with the block."""
    command = [DRIVER, "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            lines = iter(process.stdout.readline, "")
            port = next(m[1] for m in (re.search(r"on port (\d+)\.", s) for s in lines) if m)
            driver = Driver(int(port), profile)
            try:
                yield driver
            finally:
                driver.close()
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with browser(str(tmp_path_factory.mktemp("profile"))) as started:
        yield started


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A page about three pictures, each predicted after layers 2 and 5 and at the end."""
    classes, layers = make_classes([EVIL, "sky"]), [2, 5]
    labels = np.zeros((60, 90), np.uint8)
    labels[:, 40:] = 1
    picture = predict_page.Picture(
        name=EVIL,
        image=np.full((60, 90, 3), 90, np.uint8),
        labels=labels,
        stages=(1 - labels, np.zeros_like(labels)),
        left=np.int8([[0, 1, -1]]),
        predicted_at=(60, 90),
        gmacs=5.0,
        dense_gmacs=7.5,
        tokens=[54, 36, 27],
        milliseconds=12.3,
    )
    rows = [predict_page.row(picture, "labels/x.png")] * 3
    rows.append({"file": EVIL, "error": f"{EVIL}: broken"})
    cards = [predict_page.card(picture, classes, layers, layers)] * 3
    notes = predict_page.notes(rows, cards, layers, 4)
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_bytes(predict_page.render(EVIL, rows, notes, cards, classes, layers))
    return path.as_uri()


def requested(driver, url) -> set[str]:
    """Addresses that the page of ``url`` has asked for since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in driver.log("performance")]
    sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    addresses = {each["request"]["url"] for each in sent if each["documentURL"] == url}
    return {address for address in addresses if not address.startswith("data:")}


def shown(driver) -> list[list]:
    """Of each picture: value of its slider, number of the layer that is seen, text below it."""
    return driver.run(
        """return [...document.querySelectorAll("article")].map(card => [
            card.querySelector("input").value,
            [...card.querySelectorAll(".layer")].flatMap(
                (layer, k) => getComputedStyle(layer).visibility === "visible" ? [k + 1] : []
            ).join(),
            card.querySelector("output").textContent.split(":")[0],
        ]);"""
    )


END = ["3", "3", "final prediction"]


def test_the_page_loads_nothing_and_complains_of_nothing(driver, url):
    driver.log("browser")
    driver.open(url)
    assert shown(driver) == [END, END, END]
    assert driver.run("return [...document.querySelectorAll('.stages')].every(e => !e.hidden)")
    assert driver.run("return document.images.length") == 0  # none from a name
    decoded = "return Promise.all([...document.querySelectorAll('image')].map(e => e.decode()))"
    assert len(driver.run(f"{decoded}.then(all => all)")) == 3 * 5
    assert requested(driver, url) == {url}
    assert not driver.log("browser")


def test_names_are_text(driver, url):
    driver.open(url)
    assert driver.run("return document.title") == EVIL
    assert driver.run("return document.querySelector('article h2 a').textContent") == EVIL
    assert driver.run("return document.scripts.length") == 1


def test_an_address_moves_the_slider_and_the_slider_the_address(driver, url):
    driver.open("about:blank")
    driver.open(f"{url}#2.1")
    first = ["1", "1", "prediction after layer 2"]
    assert shown(driver) == [END, first, END]
    assert abs(driver.run("return document.getElementById('2').getBoundingClientRect().top")) < 2
    driver.run("location.hash = '#3.2'")
    driver.run("return new Promise(done => setTimeout(done))")  # the event of the new address
    second = ["2", "2", "prediction after layer 5"]
    assert shown(driver) == [END, first, second]
    driver.run("document.querySelector('#s2').focus()")
    driver.press(RIGHT)
    assert shown(driver) == [END, second, second]
    assert driver.run("return location.hash") == "#2.2"
    spoken = "return document.querySelector('#s2').getAttribute('aria-valuetext')"
    assert driver.run(spoken).startswith(second[2])
    for odd in ("#2.9", "#9.1", "#2.0", "#x", "#2"):
        driver.open("about:blank")
        driver.open(url + odd)
        assert shown(driver) == [END, END, END]
    assert not driver.log("browser")


def test_all_can_be_reached_and_seen_with_the_keyboard(driver, url):
    driver.open("about:blank")
    driver.open(url)
    focus, found = "return document.activeElement.id || document.activeElement.hash", []
    driver.run("document.body.tabIndex = -1; document.body.focus()")  # not the browser's own bar
    for _ in range(4):
        driver.press("\ue004")  # tab
        found.append(driver.run(focus))
    assert found == ["#1", "s1", "#2", "s2"]
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert driver.run(outline) == "solid"


@pytest.mark.parametrize("width", [320, 400, 800, 1400])
def test_it_fits_into_the_width_of_a_phone(driver, url, width):
    driver.develop(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=900,
        deviceScaleFactor=1,
        mobile=width < 600,
    )
    driver.open(url)
    assert driver.run("return document.documentElement.scrollWidth") <= width
    columns = driver.run(
        "return new Set([...document.querySelectorAll('figure')]"
        ".map(e => Math.round(e.getBoundingClientRect().left))).size"
    )
    assert columns == (3 if width > 760 else 1)
    driver.develop("Emulation.clearDeviceMetricsOverride")


def test_light_and_dark_are_legible(driver, url):
    papers = []
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        driver.develop("Emulation.setEmulatedMedia", features=[feature])
        driver.open(url)
        colours = driver.run(
            """return [["body", "backgroundColor"], ["body", "color"], [".note", "color"],
                       ["article", "backgroundColor"], [".numbers", "color"]].map(
                ([what, key]) => getComputedStyle(document.querySelector(what))[key])"""
        )
        paper, ink, note, card, numbers = [luminance(colour) for colour in colours]
        papers.append(paper)
        for text, behind in ((ink, paper), (note, paper), (numbers, card)):
            light, dark = max(text, behind), min(text, behind)
            assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2, level AA
    assert papers[0] > 0.9 and papers[1] < 0.1


def luminance(colour: str) -> float:
    """WCAG's relative luminance of rgb(r, g, b)."""
    channels = np.array([int(n) for n in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_without_scripts_the_final_predictions_are_shown(driver, url):
    driver.develop("Emulation.setScriptExecutionDisabled", value=True)
    driver.open("about:blank")
    driver.open(f"{url}#2.1")
    assert len(driver.picture()) > 1000
    driver.develop("Emulation.setScriptExecutionDisabled", value=False)
    hidden = "return [...document.querySelectorAll('.stages')].every(e => e.hidden)"
    assert driver.run(hidden) and shown(driver) == [END, END, END]


def test_the_policy_stops_what_a_name_would_smuggle_in(driver, url):
    """Runs last of the file: the browser complains of every attempt, as it should."""
    driver.open(url)
    driver.log("browser")
    driver.run(
        """const script = document.createElement("script");
        script.textContent = "document.title = 'owned'";
        document.body.append(script);
        document.body.insertAdjacentHTML("beforeend", "<img src='https://example.org/x.png'>");"""
    )
    assert driver.run("return document.title") == EVIL
    complaints = [entry["message"] for entry in driver.log("browser")]
    assert any("script-src" in text for text in complaints)
    assert any("img-src" in text for text in complaints)
