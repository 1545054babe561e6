"""What a browser sends when a page's form is submitted unchanged."""

from html.parser import HTMLParser
from typing import Any


class _Fields(HTMLParser):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.wanted, self.is_inside = form, False
        self.data: dict[str, list[str]] = {}
        self.area: tuple[str, list[str]] | None = None
        self.select: dict[str, Any] | None = None

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        given = {name: "" if value is None else value for name, value in attrs}
        if tag == "form":
            self.is_inside = given.get("id") == self.wanted
        elif not self.is_inside or "disabled" in given:
            return
        elif tag == "input" and given.get("name"):
            self._input(given)
        elif tag == "textarea":
            self.area = (given["name"], [])
        elif tag == "select":
            self.select = {"name": given["name"], "all": [], "chosen": [], **given}
        elif tag == "option" and self.select is not None:
            self.select["all"].append(given.get("value", ""))
            if "selected" in given:
                self.select["chosen"].append(given.get("value", ""))

    def _input(self, given: dict[str, str]) -> None:
        kind = given.get("type", "text")
        if kind in ("submit", "button", "file"):
            return
        if kind in ("checkbox", "radio"):
            if "checked" in given:
                self.data.setdefault(given["name"], []).append(given.get("value", "on"))
            return
        value = given.get("value", "").replace("\r", "").replace("\n", "")
        self.data.setdefault(given["name"], []).append(value)

    def handle_data(self, data: str) -> None:
        if self.area is not None:
            self.area[1].append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self.is_inside = False
        elif tag == "textarea" and self.area is not None:
            name, parts = self.area
            text = "".join(parts).replace("\r\n", "\n").removeprefix("\n")
            self.data.setdefault(name, []).append(text.replace("\n", "\r\n"))
            self.area = None
        elif tag == "select" and self.select is not None:
            chosen = self.select["chosen"]
            if not chosen and "multiple" not in self.select:
                chosen = self.select["all"][:1]
            if chosen:
                self.data.setdefault(self.select["name"], []).extend(chosen)
            self.select = None


def sent(page: Any) -> dict[str, Any]:
    """{name: text, or list of several}, with line breaks as browsers send them."""
    name = page.context["opts"].model_name
    parser = _Fields(f"{name}_form")
    parser.feed(page.content.decode())
    parser.close()
    assert parser.data, f"The page has no form {name}_form."
    return {name: all_[0] if len(all_) == 1 else all_ for name, all_ in parser.data.items()}
