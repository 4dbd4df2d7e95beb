"""The name, changed on the overview."""

from desk import apply, domain, environment, manager, page, window

uuid = domain("web1").UUIDString()
win = environment("web1")
page(win, "Overview")
win.find("Name:", "text").write("shop")
apply(win)
window("shop on .*")
manager().find("shop\n.*", "table cell")
assert domain("shop").UUIDString() == uuid
assert not domain("web1")
