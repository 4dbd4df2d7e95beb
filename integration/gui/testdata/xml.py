"""The XML editor: a title, written into the definition."""

from desk import apply, domain, environment, key, page, shot, typed

win = environment("web1")
page(win, "Overview")
win.find("XML", "page tab").click()
text = win.find("", "text")
assert "<domain type=\"vz\"" in text.text, text.text
text.click()
key("ctrl+Home", "End", "Return")
typed("<title>the shop</title>")
shot("xml", win)
apply(win)
assert "<title>the shop</title>" in domain("web1").XMLDesc()
win.find("Details", "page tab").click()
assert win.find("Title:", "text").text == "the shop"
