"""The XML editor: a description, written into the definition."""

from desk import apply, domain, environment, key, page, shot, typed, until

win = environment("web1")
page(win, "Overview")
win.find("XML", "page tab").click()
text = win.find("XML editor", "text")
assert text.text.startswith('<domain type="vz">'), text.text
text.click()
key("ctrl+Home", "End", "Return")
typed("<description>sells socks</description>")
apply(win)
shot("xml", win)
assert "<description>sells socks</description>" in domain("web1").XMLDesc()
win.find("Details", "page tab").click()
until("the description", lambda: win.find("Description:", "text").text == "sells socks")
