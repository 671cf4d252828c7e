"""The chat page: that it is closed to everything else, and, in a real browser, that one can talk with a model in it.

The browser is Debian's Chromium with its driver (`apt-get install chromium chromium-driver`)."""

import base64
import contextlib
import hashlib
import re
import shutil
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest
from reciting import reciting
from served import KEY, Server, running

from llama_jax.inference.server.page import PAGE, PAGE_HEADERS

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

in_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs a browser: apt-get install chromium chromium-driver"),
    pytest.mark.skipif(not find_spec("selenium"), reason="needs selenium: pip install 'llama_jax[test]'"),
]

SHORT = [
    "It is Paris.",
    "Paris, on the Seine.",
    "The capital is Paris.",
    "Paris!",
    "Of course, Paris.",
    "Paris, I think.",
]
LONG = "Once upon a time a small river wanted to see the sea, and so it went to look for it, day after day.\n\n…"
TOUR = """# Rivers

Some are **long**, *slow* or ~~dry~~; `mouth` is a [term](https://example.org/mouth).

1. Nile
2. Amazon
   - Ucayali

> A quote.

```python
print("<river>")
```

| River | km |
|---|---:|
| Nile | 6650 |

2 * 3 * 4 and snake_case_name stay; so does \\*this\\*.
"""
HOSTILE = """<script>window.broken = 1</script> <img src=x onerror="window.broken = 2"> **<b>bold</b>**

[click](javascript:window.broken=3) [data](data:text/html,<script>1</script>) ![picture](https://example.org/p.png)

<iframe src="/"></iframe><style>* { display: none }</style>

```html"><script>window.broken=4</script>
</code></pre><script>window.broken = 5</script>
```

| <svg onload=window.broken=6> | b |
|---|---|
| <a href="javascript:window.broken=7">x</a> | y |

"""
SPEECHES = {"?": SHORT, ".": LONG, "#": TOUR, "!": HOSTILE}


def test_the_page_lets_nothing_run_but_what_it_holds(server: Server) -> None:
    with server.client() as client:
        answer = client.get("/")
    assert answer.status_code == 200 and answer.content == PAGE
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    for element, rule in (("script", "script-src"), ("style", "style-src")):
        (content,) = re.findall(rf"<{element}\b[^>]*>(.*?)</{element}>", PAGE.decode(), re.DOTALL)
        assert policy.pop(rule) == f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
    assert policy == {
        "default-src": "'none'",
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert PAGE_HEADERS.items() <= dict(answer.headers).items()


def test_the_page_loads_nothing_and_makes_no_markup_of_text() -> None:
    text = PAGE.decode()
    assert re.findall(r"\b(?:src|href)=\"(?!data:)", text) == []
    assert re.findall(r"@import|url\(|innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", text) == []
    assert re.findall(r"\son\w+=\"|\sstyle=\"", text) == []


class Page:
    """The page in a browser."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str) -> Any:
        (found,) = self.all(selector)
        return found

    def texts(self, selector: str) -> list[str]:
        return [element.text for element in self.all(selector)]

    def buttons(self) -> list[str]:
        """Those in the conversation that can be seen."""
        return [text for text in self.texts(".actions button") if text]

    def run(self, script: str) -> Any:
        return self.driver.execute_script(f"return {script}")

    def until(self, condition: Callable[[], Any], seconds: float = 20) -> Any:
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, self.driver.get_log("browser")
            time.sleep(0.02)
        return found

    def press(self, *keys: str) -> None:
        """Keys, wherever the focus is."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def open(self, url: str) -> None:
        self.driver.get(url)
        self.until(lambda: self.run("!document.getElementById('model').disabled"))

    def ask(self, text: str, *, wait: bool = True) -> None:
        self.one("#message").send_keys(text, "\n")
        if wait:
            self.wait()

    def wait(self) -> None:
        self.until(lambda: self.one("#send").text == "Send")


@pytest.fixture(scope="module")
def speaker() -> Iterator[Server]:
    with running(reciting(SPEECHES, context_length=8192), api_key=None, slots=2) as made:
        yield made


@contextlib.contextmanager
def browser(folder: Any, width: int = 1000, height: int = 800, *, phone: bool = False) -> Iterator[Page]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"):
        options.add_argument(f"--{flag}")
    for flag in ("disable-background-networking", "disable-component-update", f"user-data-dir={folder}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": phone})
        yield Page(driver)
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def shared_browser(tmp_path_factory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(shared_browser: Page, speaker: Server) -> Iterator[Page]:
    """The page, with nothing said and nothing set. In the end nothing may have been complained about."""
    page = shared_browser
    page.open(speaker.url)
    page.run("(sessionStorage.clear(), localStorage.clear(), turns = [])")
    page.open(speaker.url)
    page.driver.get_log("browser")
    yield page
    assert page.driver.get_log("browser") == []


class TestInABrowser:
    pytestmark = in_browser

    def test_an_answer_is_watched_as_it_comes_and_stopped(self, page: Page, speaker: Server) -> None:
        page.ask("Tell me a story.", wait=False)
        page.until(lambda: page.one(".markdown").text)
        seen = {len(page.one(".markdown").text) for _ in range(20)}
        assert len(seen) > 5, "it did not grow"
        assert page.one("#send").text == "Stop" and page.one("#status").get_attribute("textContent")
        assert page.buttons() == []
        page.one("#send").click()
        page.wait()
        (stopped,) = page.texts(".markdown")
        assert stopped.startswith("Once upon a time a small river") and "stopped" in page.one(".figures").text
        page.until(lambda: not speaker.service.worker.open_answers)
        assert page.texts(".markdown") == [stopped]

    def test_another_answer_takes_the_place_of_the_last(self, page: Page) -> None:
        page.ask("What is the capital of France?")
        (first,) = page.texts(".markdown")
        assert first in SHORT and re.fullmatch(
            r"\d+ tokens · first after .* s( · .* tokens/s)?", page.one(".figures").text
        )
        for _ in range(12):
            page.one(".again").click()
            page.wait()
            if page.texts(".markdown") != [first]:
                break
        assert page.texts(".markdown")[0] in {*SHORT} - {first}
        assert page.run("turns.length") == 1

    def test_a_seed_and_settings_reach_the_model(self, page: Page) -> None:
        page.one("#open-settings").click()
        page.one("#seed").send_keys("7")
        page.one("#max_completion_tokens").send_keys("2")
        page.one("#settings .main").click()
        page.ask("Where?")
        (first,) = page.texts(".markdown")
        assert len(first) == 10 and "limit of tokens" in page.one(".figures").text
        for _ in range(3):
            page.one(".again").click()
            page.wait()
            assert page.texts(".markdown") == [first]

    def test_markdown_is_shown_as_it_is_meant(self, page: Page) -> None:
        page.ask("Tour #")
        assert page.texts(".markdown h3") == ["Rivers"] and page.texts(".markdown strong") == ["long"]
        assert page.texts(".markdown em") == ["slow"] and page.texts(".markdown s") == ["dry"]
        assert page.one(".markdown a").get_attribute("href") == "https://example.org/mouth"
        assert page.texts(".markdown ol > li") == ["Nile", "Amazon\nUcayali"] and page.texts("ol ul li") == ["Ucayali"]
        assert page.texts(".markdown blockquote") == ["A quote."]
        assert page.texts(".markdown pre") == ['print("<river>")'] and page.texts(".code span") == ["python"]
        assert page.texts(".markdown th") == ["River", "km"] and page.texts(".markdown td") == ["Nile", "6650"]
        assert page.texts(".markdown > p")[-1] == "2 * 3 * 4 and snake_case_name stay; so does *this*."

    def test_markup_in_an_answer_is_text(self, page: Page) -> None:
        page.ask("Attack!")
        assert page.run("window.broken ?? 0") == 0
        inside = page.run("[...document.querySelectorAll('.markdown *')].map(each => each.tagName)")
        assert {"SCRIPT", "IMG", "IFRAME", "STYLE", "SVG", "B"} & set(inside) == set()
        assert [link.get_attribute("href") for link in page.all(".markdown a")] == ["https://example.org/p.png"]
        shown = page.one(".markdown").text
        for markup in (
            "<script>window.broken = 1</script>",
            "<b>bold</b>",
            "[click](javascript:window.broken=3)",
            "</code></pre>",
        ):
            assert markup in shown

    def test_no_text_keeps_the_page_busy(self, page: Page) -> None:
        """Texts that take a parser of Markdown quadratic time or worse, or too much of its stack."""
        texts = ["> ", "- ", "*_", "**a ", "[", "[a](", "`a``", "|", "|-|\n", "# ", "1. a\n\n", "~~a ", "_a"]
        for text in texts:
            parse = f"nodes({text!r}.repeat(20000).split('\\n'), 0)"
            milliseconds = page.run(
                f"(() => {{ const t = performance.now(); {parse}; return performance.now() - t }})()"
            )
            assert milliseconds < 3000, text

    def test_a_message_is_changed_and_what_followed_is_asked_anew(self, page: Page) -> None:
        for question in ("Who?", "Where?", "When?"):
            page.ask(question)
        page.all(".question button")[1].click()
        field = page.one(".question textarea")
        assert field.get_attribute("value") == "Where?"
        field.send_keys(" Tour #", "\n")
        page.wait()
        assert page.texts(".question .text") == ["Who?", "Where? Tour #"]
        assert page.texts(".markdown h3") == ["Rivers"]

    def test_a_conversation_outlives_a_reload_and_ends_with_a_new_one(self, page: Page, speaker: Server) -> None:
        page.ask("Who?")
        said = page.texts(".turn")
        page.open(speaker.url)
        assert page.texts(".turn") == said
        page.one("#new").click()
        assert page.texts(".turn") == [] and page.one("#welcome").is_displayed()
        page.open(speaker.url)
        assert page.texts(".turn") == []

    def test_the_keyboard_is_enough(self, page: Page) -> None:
        from selenium.webdriver import Keys as keys

        names = []
        for _ in range(6):
            page.press(keys.TAB)
            names.append(page.run("document.activeElement.id"))
        # Beyond the last one lies the browser itself; nothing was said, so no new conversation can be begun.
        assert names == ["send", "", "model", "theme", "open-settings", "message"]
        page.press("A line", keys.SHIFT + keys.ENTER + keys.NULL, "and a story.", keys.ENTER)
        page.until(lambda: len("".join(page.texts(".markdown"))) > 50)
        page.press(keys.ESCAPE)
        page.wait()
        assert page.texts(".question .text") == ["A line\nand a story."] and "stopped" in page.one(".figures").text
        assert page.run("document.activeElement.id") == "message"
        page.press(keys.SHIFT + keys.TAB)
        assert page.run("document.activeElement.textContent") == "Regenerate"
        page.press(keys.ENTER)
        page.until(lambda: page.one("#send").text == "Stop")
        page.press(keys.ESCAPE)
        page.wait()
        page.run("document.getElementById('open-settings').focus()")
        page.press(keys.ENTER)
        assert page.one("#settings").is_displayed()
        page.press(keys.ESCAPE)
        assert not page.one("#settings").is_displayed() and page.run("document.activeElement.id") == "open-settings"

    def test_everything_has_a_name_for_a_screen_reader_and_answers_are_read_aloud(self, page: Page) -> None:
        page.ask("Who?")
        (answer,) = page.texts(".markdown")
        assert page.one("#status").get_attribute("role") == "status"
        assert page.one("#status").get_attribute("textContent") == f"Answer: {answer}"
        for area in ("body", "#settings"):
            controls = page.all(f"{area} :is(button, input, select, textarea)")
            names = [each.accessible_name for each in controls if each.is_displayed()]
            assert len(names) >= 8 and all(names), names
            page.run("document.getElementById('open-settings').click()")

    def test_light_and_dark_by_the_system_and_by_the_switch(self, page: Page) -> None:
        def paper() -> str:
            return page.run("getComputedStyle(document.documentElement).backgroundColor")

        found = {}
        for scheme in ("light", "dark"):
            media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            found[scheme] = paper()
        assert found["light"] != found["dark"]
        for scheme in ("light", "dark"):
            page.one("#theme").click()
            assert paper() == found[scheme]
            assert page.one("#theme").accessible_name == f"Appearance: {scheme}"

    def test_a_wrong_request_is_explained_and_can_be_tried_again(self, page: Page) -> None:
        page.run("document.getElementById('message').value = 'x'.repeat(9000)")
        page.ask("?")
        page.driver.get_log("browser")  # the browser notes the status
        assert "8192" in page.one(".turn .wrong").text and page.buttons() == ["Edit", "Try again"]
        assert page.one("#status").get_attribute("textContent") == page.one(".turn .wrong").text
        page.ask("And now?")
        assert page.texts(".markdown")[-1] in SHORT

    def test_a_phone_shows_all_of_it(self, speaker: Server, tmp_path) -> None:
        with browser(tmp_path, 360, 640, phone=True) as page:
            page.open(speaker.url)
            page.one("#message").send_keys("Tour " + "w" * 200 + "#")
            page.one("#send").click()
            page.wait()
            assert page.run("[document.documentElement.scrollWidth, innerWidth]") == [360, 360]
            for button in page.all("header button, header select, #send"):
                box = button.rect
                assert box["x"] >= 0 and box["x"] + box["width"] <= 360 and box["height"] >= 32
            page.one("#open-settings").click()
            assert page.run("document.querySelector('#settings .main').getBoundingClientRect().bottom") < 640
            assert page.run("document.activeElement.id") != "message"  # or the keyboard would cover the answer

    def test_a_server_that_is_gone_is_said_to_be(self, tmp_path) -> None:
        with contextlib.ExitStack() as stack:
            page = stack.enter_context(browser(tmp_path))
            with running(reciting(SPEECHES), api_key=None, slots=1, shutdown_timeout_seconds=0.1) as server:
                page.open(server.url)
                page.ask("A story.", wait=False)
                page.until(lambda: page.texts(".markdown")[0])
            page.wait()
            assert page.one(".turn .wrong").text and page.one(".markdown").text
            page.ask("Still there?")
            assert page.texts(".turn .wrong")[-1] == "The server cannot be reached. Is it still running?"

    def test_a_key_is_asked_for_and_kept_in_the_tab_alone(self, tmp_path) -> None:
        with browser(tmp_path) as page, running(reciting(SPEECHES), slots=1) as server:
            # The browser itself asks for what the page needs; a name and a password in the address are its answer.
            page.driver.get(server.url.replace("://", f"://me:{KEY}@"))
            page.driver.execute_cdp_cmd("Network.enable", {})
            page.until(lambda: page.run("!document.getElementById('model').disabled"))
            page.ask("Who?")
            assert page.texts(".markdown")[0] in SHORT
            page.run("(key = 'another', loadModels(), 0)")
            page.until(lambda: page.one("#key").is_displayed())
            assert "does not know this API key" in page.one("#key-reason").text
            page.one("#key-field").send_keys(KEY, "\n")
            page.until(lambda: not page.one("#notice").is_displayed())
            page.ask("Who?")
            assert page.texts(".turn .wrong") == ["", ""] and page.texts(".markdown")[1] in SHORT
            assert page.run("sessionStorage.getItem('llama_jax.key')") == f'"{KEY}"'
            assert KEY not in page.run("JSON.stringify(localStorage) + document.cookie")

    def test_a_model_without_a_chat_template_continues_text(self, tmp_path) -> None:
        with browser(tmp_path) as page, running(reciting(SPEECHES, template=None), api_key=None, slots=1) as server:
            page.open(server.url)
            assert "continues each text" in page.one("#about").text
            page.ask("The capital of France is?")
            assert page.texts(".markdown")[0] in SHORT
