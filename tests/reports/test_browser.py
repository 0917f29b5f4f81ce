"""The page in a real browser: no overflow, no complaint, every image there, every letter readable."""

import json
from pathlib import Path

import pytest

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
SIZES = [(320, 640), (360, 740), (768, 1024), (1440, 900)]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM.exists() and DRIVER.exists()), reason=f"needs {CHROMIUM} and {DRIVER} (apt: chromium-driver)"
    ),
]

# The lowest contrast of any text against the first opaque background behind it, by the formula of WCAG 2.
CONTRAST = """
const light = rgb => rgb.slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
const parse = text => text.match(/[\\d.]+/g).map(Number);
const behind = element => {
  for (; element; element = element.parentElement) {
    const colour = parse(getComputedStyle(element).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }
  return [255, 255, 255];
};
let worst = 99;
for (const element of document.querySelectorAll("main *")) {
  if (![...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())) continue;
  const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))].sort((x, y) => y - x);
  worst = Math.min(worst, (a + .05) / (b + .05));
}
return worst;
"""


@pytest.fixture(scope="module")
def browser(full_report):
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (extra 'dev')")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    # No name resolves: whatever the page or the browser itself would like to fetch stays unfetched.
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # A service with its own path: selenium then looks for no driver elsewhere.
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture(params=["light", "dark"])
def scheme(request):
    return request.param


@pytest.fixture(params=SIZES, ids=[f"{width}x{height}" for width, height in SIZES])
def opened(request, browser, scheme, full_report):
    """Open the report at one size, with everything that folds unfolded; return the browser and the width."""
    width, height = request.param
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get((full_report / "report.html").as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(details => details.open = true)")
    return browser, width


def test_page_fits_its_width_is_readable_and_complete_in_a_browser(opened, scheme):
    browser, width = opened
    scrolled, client = browser.execute_script(
        "const page = document.scrollingElement; return [page.scrollWidth, page.clientWidth]"
    )
    assert scrolled <= client
    assert width - 20 <= client <= width  # less the scroll bar
    images = browser.execute_script(
        "return [...document.images].map(i => [i.complete, i.naturalWidth, i.currentSrc])"
    )
    assert len(images) > 10
    assert all(complete and natural > 0 for complete, natural, _ in images)
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(252, 252, 251)", "dark": "rgb(22, 24, 27)"}[scheme]
    assert browser.execute_script(CONTRAST) >= 4.5
    assert browser.get_log("browser") == []


def test_page_asks_for_nothing_but_itself(browser, full_report):
    browser.get_log("performance")
    browser.get((full_report / "report.html").as_uri())
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert asked and all(url.startswith(("file:", "data:")) for url in asked)


def test_figures_change_with_the_colour_scheme_and_the_width(browser, full_report):
    sources = set()
    for width in (360, 1440):
        for scheme in ("light", "dark"):
            browser.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False},
            )
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            browser.get((full_report / "report.html").as_uri())
            sources.add(browser.execute_script("return document.querySelector('figure.wide img').currentSrc"))
    assert len(sources) == 4
